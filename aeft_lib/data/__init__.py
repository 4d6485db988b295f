"""Images with tags, and with masks that only evaluation reads: one module a data set.

A spec opens its set; stages import none of them.  `prepare` fetches and checks what is on disk.
"""

"""Images with tags, and with masks that only evaluation reads: one file for each data set, opened by its spec.

Specs name data sets; stages import none of them.  `prepare` fetches and checks what is on disk.
"""

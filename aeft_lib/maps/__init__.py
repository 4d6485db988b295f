"""Class activation maps: merged over scales, stored, turned into labels, scored, submitted.

It knows tensors and files, and no network, stage or data set, so every room may import it.
"""

"""From seeds to pseudo-labels: dense CRF, AffinityNet and its labels, random walk.

Pure functions of tensors, one image at a time, without a compiled extension.  Nothing here knows a
stage or a data set.
"""

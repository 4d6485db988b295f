"""From seeds to pseudo-labels: dense CRF, AffinityNet and its labels, random walk.  No compiled
extension.

Pure functions of tensors, one image at a time.  Stages and notebooks come in; nothing here knows a
stage or a data set.
"""

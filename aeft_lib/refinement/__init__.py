"""From seeds to pseudo-labels: dense CRF, AffinityNet and its labels, random walk.  No compiled extension."""

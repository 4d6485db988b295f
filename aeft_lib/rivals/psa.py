"""AffinityNet (Ahn and Kwak, CVPR 2018; as PSA): GAP's CAMs, and the walk on learned affinities.

The paper refines its seeds by AffinityNet too (`stages.psa`), with numbers of its own.  This is the
method as its authors run it.  What differs::

                              AffinityNet         AEFT's refinement
    ReLU of the CAM           before enlarging    after
    powers low, walk, high    4, 16, 32           2, 19, 21
    steps of the walk         256                 64
    CRF after the walk        none                1 iteration

Kept of the harness, the same for every row: the CAM head of two layers (one in the release), the
profile's schedules (the release trains classifier and AffinityNet at ten times AEFT's rate) and its
augmentation.  AffinityNet's radius shrinks on grids below 11 cells here; in the release it does
not.  On the laptop two things are shrunk: the scales are the profile's, and the powers lie at the
release's distance, in logits, around a threshold that is chosen without masks.
"""

from aeft_lib.stages.relu_first import ReluFirst

READER = ReluFirst()
POWERS, STEPS = (4.0, 16.0, 32.0), 256  # of the refiner, `stages.psa.Psa`

"""The strength of the background, ``(1 - max cam)^alpha``: a rule for alpha without masks.

A score s beats the background where ``s > (1 - s)^alpha``.  The two cross at one score, so a power
stands for a threshold t::

    t = (1 - t)^alpha,      alpha = log t / log(1 - t)

The reference fixes 2, 19 and 21 (crossing at 0.38, 0.11 and 0.10), chosen on VOC and ResNet38d;
CAMs of another network cross elsewhere.  Departure: the rule here keeps the reference's *distance*
between its two powers for affinity labels, in logits of the crossing, around a threshold that reads
the seeds alone (`evaluation.otsu`).
"""

import math
from typing import NamedTuple

# About half the distance of logit(0.382) and logit(0.103), the crossings of alpha 2 and 21.
REFERENCE_SPREAD = 0.85


class Powers(NamedTuple):
    """low: sure of the foreground.  middle: of the label map.  high: sure of the background."""

    low: float
    middle: float
    high: float


REFERENCE = Powers(2.0, 19.0, 21.0)


def power_at(threshold: float) -> float:
    """The power whose background crosses the score at 0 < threshold < 1, else ValueError.

    >>> round(power_at(0.5), 3), round(power_at(0.382), 2), round(power_at(0.102), 1)
    (1.0, 2.0, 21.2)
    """
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold must lie between 0 and 1, got {threshold}")
    return math.log(threshold) / math.log1p(-threshold)


def crossing(alpha: float) -> float:
    """The score that equals the background of power `alpha`: inverts `power_at`, by bisection.

    Raises ValueError for a power that is not positive and finite.

    >>> [round(crossing(alpha), 3) for alpha in (1, 2, 19, 21)]
    [0.5, 0.382, 0.11, 0.103]
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < (1 - middle) ** alpha else (low, middle)
    return low


def powers_around(threshold: float, spread: float = REFERENCE_SPREAD) -> Powers:
    """Powers that cross at `threshold` and at `spread` in logits above and below it.

    Raises ValueError for a threshold outside 0..1 or a spread that is negative.

    >>> [round(alpha, 2) for alpha in powers_around(0.35)]
    [0.72, 2.44, 8.09]
    """
    if not (spread >= 0 and math.isfinite(spread)):
        raise ValueError(f"spread must be finite and not negative, got {spread}")
    middle = power_at(threshold)
    logit = math.log(threshold / (1 - threshold))
    low, high = (power_at(1 / (1 + math.exp(-(logit + step)))) for step in (spread, -spread))
    return Powers(low, middle, high)

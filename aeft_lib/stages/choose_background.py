"""Stage `choose_background`: a threshold for seeds, and background powers, without masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aeft_lib.maps.evaluation import otsu, top_histogram
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.refinement.background import Powers, powers_around
from aeft_lib.stages.artefact import Artefact


@dataclass(frozen=True)
class BackgroundSpec:
    """thresholds: those to choose from, increasing, in 0..1.

    powers: fixed ones (low, middle, high); None: by the rule.
    """

    thresholds: tuple[float, ...]
    powers: tuple[float, float, float] | None = None


def choose_background(
    spec: BackgroundSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``seeds``; the summary has ``threshold`` (Otsu's) and powers ``low, middle, high``."""
    seeds = read_seeds(inputs["seeds"].folder / "seeds.npz")
    top = top_histogram((seed.cam for _, seed in seeds), spec.thresholds)
    threshold = spec.thresholds[otsu(top, spec.thresholds)]
    powers = powers_around(threshold) if spec.powers is None else Powers(*spec.powers)
    return {"threshold": threshold, **powers._asdict()}

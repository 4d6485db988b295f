"""Stage `spread_powers`: background powers of another spread around a chosen threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aeft_lib.refinement.background import powers_around
from aeft_lib.stages.artefact import Artefact


@dataclass(frozen=True)
class SpreadSpec:
    """spread: of the low and high power, in logits of the crossing (`background.powers_around`)."""

    spread: float


def spread_powers(
    spec: SpreadSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``background``; the summary is that of `choose_background`, with this spread."""
    threshold = inputs["background"].summary["threshold"]
    return {"threshold": threshold, **powers_around(threshold, spec.spread)._asdict()}

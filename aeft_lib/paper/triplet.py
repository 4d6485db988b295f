"""One training step of AEFT: which terms the triplet adds to classification, and every quirk of the reference as a switch.

The authors' released code departs from the paper in places; each such place is a field here, never silent.  `REFERENCE` is what
that code does, `CORRECTED` what it seems meant to do.  Quirks of the optimiser (momentum, rates, length of the schedule) are
values of `training.Schedule`.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from aeft_lib.engine.step import Objective
from aeft_lib.paper import erasing, losses
from aeft_lib.paper.classifier import CamClassifier, CamOutput

ATTRACTS = ("off", "soft", "rigid")
SPACES = ("gpp", "cam")
REPEL_TARGETS = ("anchor_tags", "own_tags")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Triplet:
    """The second phase's loss.  Defaults are the corrected method with the paper's constants.

    attract: "soft" compares embeddings, "rigid" classifies the masked image, "off" needs no second pass.
    space: where embeddings live: "gpp", the pooling layer's attention, or "cam", the CAM itself.
    attract_weight, repel_weight: lambda, here the reference's defaults; the author states 0.15 for both.  Weight 0 is off.
    erase_threshold, residual_threshold, margin: t_H, t_L and the margin; what t_H erases, t_L must lie below.
    keep, mask_gradient: of `erasing.erase`.
    anchor_gradient: let L_att move the anchor's embedding too, as paper and reference do; False moves the positive alone, so
        that the distance cannot be closed by shrinking the anchor's CAM (ours).
    repel_target: the negative's embedding in the classes of the "anchor_tags", or of its "own_tags", which share none.
    min_hard: repel is off unless more anchors than this are hard.
    classification_samples: how many samples of a batch, from its start, enter the classification loss; 0 is all.
    missing_negative: what becomes of an anchor without a negative (`erasing.partners`).
    """

    attract: str = "soft"
    space: str = "gpp"
    attract_weight: float = 0.2
    repel_weight: float = 0.15
    erase_threshold: float = 0.6
    residual_threshold: float = 0.2
    margin: float = 0.5
    keep: str = "ring"
    mask_gradient: bool = False
    anchor_gradient: bool = True
    repel_target: str = "anchor_tags"
    min_hard: int = 0
    classification_samples: int = 0
    missing_negative: str = "leave_out"

    def __post_init__(self) -> None:
        choices = {"attract": ATTRACTS, "space": SPACES, "keep": erasing.KEEPS, "repel_target": REPEL_TARGETS}
        for name, allowed in (choices | {"missing_negative": erasing.LONELY}).items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("attract_weight", "repel_weight", "margin"):
            value = getattr(self, name)
            if not (_is_number(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number and not negative, got {value!r}")
        low, high = self.residual_threshold, self.erase_threshold
        if not (_is_number(low) and _is_number(high) and 0 < low < high < 1):
            raise ValueError(f"thresholds must obey 0 < residual_threshold < erase_threshold < 1, got {low!r} and {high!r}")
        for name in ("mask_gradient", "anchor_gradient"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("min_hard", "classification_samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a whole number and not negative, got {value!r}")


CORRECTED = Triplet()
# The switches that live in the loss: field and value of each in the reference.  Those of the optimiser are in `profiles`.
LOSS_QUIRKS = {
    "classification_samples": 8,
    "mask_gradient": True,
    "repel_target": "own_tags",
    "min_hard": 4,
    "missing_negative": "borrow",
}
REFERENCE = replace(CORRECTED, **LOSS_QUIRKS)
CLASSIFICATION = replace(CORRECTED, attract="off", repel_weight=0.0)


class Batch(NamedTuple):
    """Samples as a network takes them.

    images: (B, 3, H, W), in the backbone's range.  features: of the frozen trunk for these images, where they are cached.
    tags: (B, K).  noise: (B, B') in 0..1, of each sample against those of the whole batch, decides who becomes whose negative.
    A step needs tags and one of images and features; erasing needs images, repel needs noise.
    """

    images: Tensor | None
    features: Tensor | None
    tags: Tensor
    noise: Tensor | None


def objective(triplet: Triplet) -> Objective:
    """The loss of a step as `stepping` takes it; `CLASSIFICATION` is that of the first phase."""
    return Objective(partial(measure, triplet=triplet), partial(combine, triplet=triplet))


def terms(network: CamClassifier, batch: Batch, triplet: Triplet) -> dict[str, Tensor]:
    """The terms of the loss, each with its weight, and two counts: anchors without a negative, and hard anchors.

    Raises ValueError where the embeddings are to live in the GPP layer's space and the network has none.
    """
    return combine(measure(network, batch, triplet), triplet)


def measure(network: CamClassifier, batch: Batch, triplet: Triplet) -> dict[str, Tensor]:
    """What the loss needs of every sample: logits, and of what the triplet compares embeddings (B, K) each."""
    anchor = _forward(network, batch)
    found = {"logits": anchor.logits, "tags": batch.tags}
    if triplet.attract != "off":
        found |= _positive(network, anchor, batch, triplet)
    if triplet.repel_weight:
        maps = metric_space(anchor, triplet.space)
        region = erasing.residual_region(anchor.cam, batch.tags, threshold=triplet.residual_threshold)
        found |= {"residual": erasing.region_embeddings(maps, region), "whole": erasing.region_embeddings(maps)}
        found["noise"] = batch.noise
    return found


def combine(measures: dict[str, Tensor], triplet: Triplet) -> dict[str, Tensor]:
    """The terms of the loss from what was measured of the whole batch, see `terms`."""
    logits, tags = measures["logits"], measures["tags"]
    counted = triplet.classification_samples or len(tags)
    found = {"classification": losses.classification(logits[:counted], tags[:counted])}
    if triplet.attract == "rigid":
        found["attract"] = triplet.attract_weight * losses.attract_rigid(measures["positive_logits"], tags)
    elif triplet.attract == "soft":
        e_p, e_a = measures["positive"], measures["anchor"]
        found["attract"] = triplet.attract_weight * losses.attract_soft(e_p, e_a if triplet.anchor_gradient else e_a.detach())
    if triplet.repel_weight:
        repulsion, pairs = _repel(measures, triplet)
        found["repel"] = triplet.repel_weight * repulsion.loss
        found |= {"hard": repulsion.hard.sum().float(), "without_negative": (~pairs.valid).sum().float()}
    return found


def metric_space(output: CamOutput, space: str) -> Tensor:
    """The maps (B, K, h, w) that are pooled into embeddings: the attention of the pooling layer, or the CAM."""
    if space == "cam":
        return output.cam
    if output.attention is None:
        raise ValueError('embeddings in the "gpp" space need a pyramid: GAP has no attention, choose space="cam"')
    return output.attention


def _forward(network: CamClassifier, batch: Batch) -> CamOutput:
    return network(batch.images) if batch.features is None else network.from_trunk(batch.features)


def _positive(network: CamClassifier, anchor: CamOutput, batch: Batch, triplet: Triplet) -> dict[str, Tensor]:
    """The second pass: logits of the masked image (rigid), or its embedding and the anchor's (soft)."""
    erased = erasing.erase(
        batch.images,
        anchor.cam,
        batch.tags,
        threshold=triplet.erase_threshold,
        keep=triplet.keep,
        gradient=triplet.mask_gradient,
    )
    positive = network(erased.images)
    if triplet.attract == "rigid":
        return {"positive_logits": positive.logits}
    e_p, e_a = (erasing.embeddings(metric_space(output, triplet.space), batch.tags) for output in (positive, anchor))
    return {"positive": e_p, "anchor": e_a}


def _repel(measures: dict[str, Tensor], triplet: Triplet) -> tuple[losses.Repulsion, erasing.Partners]:
    """The anchor's residual region against the whole of an image that shares no class with it."""
    present = measures["tags"]
    tags = present.to(measures["residual"].dtype)
    noise = measures["noise"][:, : len(present)]  # wider where negatives are sought within a rank of several
    pairs = erasing.partners(present, noise, lonely=triplet.missing_negative)
    classes = tags if triplet.repel_target == "anchor_tags" else tags[pairs.index]
    repulsion = losses.repel(
        measures["residual"] * tags,
        measures["whole"][pairs.index] * classes,
        margin=triplet.margin,
        min_hard=triplet.min_hard,
        valid=pairs.valid & present.bool().any(dim=1),  # an anchor without tags has nothing to compare
    )
    return repulsion, pairs

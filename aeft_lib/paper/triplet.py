"""AEFT as a method: what the triplet adds to classification, every quirk of the reference a switch.

The authors' released code departs from the paper in places; each such place is a field here, never
silent.  `REFERENCE` is what that code does, `CORRECTED` what it seems meant to do.  Quirks of the
optimiser (momentum, rates, length of the schedule) are numbers of the profile's second phase.

The authors published two losses.  `REFERENCE` is the one that replaced the other after nine days;
`FIRST_RELEASE` is that other one: it erases the peak alone, and compares embeddings of norm 1.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from aeft_lib.engine.fields import choice, number, whole
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.paper import erasing, losses
from aeft_lib.paper.classifier import CamClassifier, CamMethod, CamOutput
from aeft_lib.paper.gpp import Gap, Pyramid

ATTRACTS = ("off", "soft", "rigid")
SPACES = ("gpp", "cam")
REPEL_TARGETS = ("anchor_tags", "own_tags")
SCALES = ("mean", "unit")


@dataclass(frozen=True)
class Triplet(CamMethod):
    """The paper's second phase.  Defaults are the corrected method with the paper's constants.

    pooling: of the network, a pyramid for embeddings in the "gpp" space.
    attract: "soft" compares embeddings, "rigid" classifies the masked image, "off" needs no second
        pass.
    space: where embeddings live: "gpp", the pooling layer's attention, or "cam", the CAM itself.
    attract_weight, repel_weight: lambda, here the reference's defaults; the author states 0.15 for
        both.  Weight 0 is off.
    erase_threshold, residual_threshold, margin: t_H, t_L < t_H, and the margin.
    keep, mask_gradient: of `erasing.erase`.
    anchor_gradient: let L_att move the anchor's embedding too, as paper and reference do; False
        moves the positive alone, so that the distance cannot be closed by shrinking the anchor's
        CAM (ours).
    attract_scale: "mean" compares mean attention, so that shrinking both embeddings closes the
        distance; "unit" compares directions, which it does not change (first release).
    distance: of `losses.attract_soft`.
    repel_scale: embeddings of repel are "mean" attention scaled by its maximum, or of norm "unit"
        over all classes (first release).
    repel_target: the negative's embedding in the classes of the "anchor_tags", or of its
        "own_tags", which share none.
    min_hard: repel is off unless more anchors than this are hard.
    classification_samples: how many samples of a batch, from its start, enter the classification
        loss; 0 is all.
    missing_negative: what becomes of an anchor without a negative (`erasing.partners`).
    """

    pooling: Gap | Pyramid = Pyramid()
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
    attract_scale: str = "mean"
    distance: str = "absolute"
    repel_scale: str = "mean"
    repel_target: str = "anchor_tags"
    min_hard: int = 0
    classification_samples: int = 0
    missing_negative: str = "leave_out"

    def __post_init__(self) -> None:
        choice(self, attract=ATTRACTS, space=SPACES, keep=erasing.KEEPS)
        choice(self, repel_target=REPEL_TARGETS, missing_negative=erasing.LONELY)
        choice(self, attract_scale=SCALES, repel_scale=SCALES, distance=losses.DISTANCES)
        choice(self, mask_gradient=(True, False), anchor_gradient=(True, False))
        number(self, "attract_weight", "repel_weight", "margin")
        number(self, "residual_threshold", "erase_threshold", positive=True)
        whole(self, "min_hard", "classification_samples")
        low, high = self.residual_threshold, self.erase_threshold
        if not low < high < 1:
            rule = "0 < residual_threshold < erase_threshold < 1"
            raise ValueError(f"thresholds must obey {rule}, got {low!r} and {high!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        """What of a batch it reads besides tags and the anchor's features."""
        return ("images", "noise") if self.attract != "off" or self.repel_weight else ()

    def fitted(self, side: int, strength: float = 1.0) -> "Triplet":
        """For a map of `side` cells, with both weights times `strength`."""
        weights = {name: strength * getattr(self, name) for name in WEIGHTS}
        return replace(self, pooling=self.pooling.fitted(side), **weights)

    def measure(self, network: CamClassifier, batch: Batch) -> dict[str, Tensor]:
        """What the loss needs of every sample: logits and embeddings, (B, K) each.

        Raises ValueError where embeddings live in the GPP space and the network has none.
        """
        anchor = forward(network, batch)
        measures = {"logits": anchor.logits, "tags": batch.tags}
        if self.attract != "off":
            measures |= self._positive(network, anchor, batch)
        if self.repel_weight:
            maps = metric_space(anchor, self.space)
            threshold = self.residual_threshold
            region = erasing.residual_region(anchor.cam, batch.tags, threshold=threshold)
            unit = self.repel_scale == "unit"
            pooled = erasing.unit_embeddings if unit else erasing.region_embeddings
            measures["residual"], measures["whole"] = pooled(maps, region), pooled(maps)
            measures["noise"] = batch.noise
        return measures

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss, weighted, of the whole batch.

        Two counts come along: hard anchors, and anchors without a negative.
        """
        logits, tags = measures["logits"], measures["tags"]
        counted = self.classification_samples or len(tags)
        terms = {"classification": losses.classification(logits[:counted], tags[:counted])}
        if self.attract == "rigid":
            rigid = losses.attract_rigid(measures["positive_logits"], tags)
            terms["attract"] = self.attract_weight * rigid
        elif self.attract == "soft":
            e_p, e_a = measures["positive"], measures["anchor"]
            e_a = e_a if self.anchor_gradient else e_a.detach()
            soft = losses.attract_soft(e_p, e_a, distance=self.distance)
            terms["attract"] = self.attract_weight * soft
        if self.repel_weight:
            repulsion, pairs = self._repel(measures)
            terms["repel"] = self.repel_weight * repulsion.loss
            terms["hard"] = repulsion.hard.sum().float()
            terms["without_negative"] = (~pairs.valid).sum().float()
        return terms

    def _positive(
        self, network: CamClassifier, anchor: CamOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """The second pass: logits of the masked image (rigid), or both embeddings (soft)."""
        erased = erasing.erase(
            batch.images,
            anchor.cam,
            batch.tags,
            threshold=self.erase_threshold,
            keep=self.keep,
            gradient=self.mask_gradient,
        )
        positive = network(erased.images)
        if self.attract == "rigid":
            return {"positive_logits": positive.logits}
        unit = self.attract_scale == "unit"
        e_p, e_a = (
            erasing.embeddings(metric_space(output, self.space), batch.tags, unit=unit)
            for output in (positive, anchor)
        )
        return {"positive": e_p, "anchor": e_a}

    def _repel(self, measures: dict[str, Tensor]) -> tuple[losses.Repulsion, erasing.Partners]:
        """The anchor's residual region against an image that shares no class with it."""
        present = measures["tags"]
        tags = present.to(measures["residual"].dtype)
        # Wider than the batch where negatives are sought within a rank of several.
        noise = measures["noise"][:, : len(present)]
        pairs = erasing.partners(present, noise, lonely=self.missing_negative)
        classes = tags if self.repel_target == "anchor_tags" else tags[pairs.index]
        repulsion = losses.repel(
            measures["residual"] * tags,
            measures["whole"][pairs.index] * classes,
            margin=self.margin,
            min_hard=self.min_hard,
            # An anchor without tags has nothing to compare.
            valid=pairs.valid & present.bool().any(dim=1),
        )
        return repulsion, pairs


WEIGHTS = ("attract_weight", "repel_weight")
CORRECTED = Triplet()
# The quirks that live in the loss: field and value of each in the reference.
LOSS_QUIRKS = {
    "classification_samples": 8,
    "mask_gradient": True,
    "repel_target": "own_tags",
    "min_hard": 4,
    "missing_negative": "borrow",
}
REFERENCE = replace(CORRECTED, **LOSS_QUIRKS)
# What the first release does otherwise, in the loss; its binary mask passes no gradient.
FIRST_RELEASE_PARTS = {
    "mask": {"keep": "all", "mask_gradient": False},
    "scale": {"attract_scale": "unit"},
    "distance": {"distance": "squared"},
    "repel": {"repel_scale": "unit"},
}
FIRST_RELEASE = replace(
    REFERENCE,
    attract_weight=0.15,
    **{field: value for part in FIRST_RELEASE_PARTS.values() for field, value in part.items()},
)


def metric_space(output: CamOutput, space: str) -> Tensor:
    """The maps (B, K, h, w) that embeddings pool: the layer's attention ("gpp"), or the CAM."""
    if space == "cam":
        return output.cam
    if output.attention is None:
        remedy = 'GAP has no attention, choose space="cam"'
        raise ValueError(f'embeddings in the "gpp" space need a pyramid: {remedy}')
    return output.attention

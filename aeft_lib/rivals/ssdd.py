"""SSDD (Shimoda and Yanai, ICCV 2019): label maps from where a refinement changes them.

*Static* (`Ssdd`, a refiner).  K are the label maps of AffinityNet's random walk, A those of a CRF
on it.  A network (`Static`) segments, and a detector DD learns from its features where A differs
from K, seen from either (`parts.difference`)::

    L = CE(s, K) + (DD(K) + DD(A)) / 2,       merged by w = d(K) - d(A) + 0.1

*Dynamic* (`Dynamic`, a segmenter).  Two heads, main m and sub s, and two detectors on one network.
The seed is the static merge.  In every step K0 is what m predicts, with the tags, and A0 its CRF::

    R0 = merge by DD0 (K0, A0),     R1 = merge by DD1 (seed, R0)
    L  = CE(m, R1) + CE(s, seed) / 2 + CE(s, R1) / 2
         + (DD0(K0) + DD0(A0) on K0 != A0,  DD1(seed) on seed != s,  DD1(R0) on R1 != s) / 4

Detectors read features that are constants, so neither loss reaches the other's weights.

Quirks of the authors' release are fields: `order`, the stored d(A) is read as d(K) and the other
way round; `alignment`, the stored maps belong to images that were mirrored and jittered at random,
and are never mirrored back; `square`, images are squashed to a square; `momentum`, the optimiser is
made anew in every step; `norm`, the detector's batch norms are "fixed"; `empty`, the mean over no
pixel is NaN.

Departures.  The heads are `LargeFov`'s (there: reflection padding, and a batch norm).  DD has half
as many channels as they, 256 there, and a quarter of the image's size.  Its low-level features are
the backbone's first tap, of stride 8; there, of stride 2.  The static network begins with
ImageNet's weights (there: a classifier's), the dynamic one with the static one's, its further head
and detector at random (there: not known here).  The release keeps the weights of epoch 10 of 16;
here the static stage has one schedule of the profile's segmenter, and the dynamic one two.  The
network is read as every segmenter of the harness; there, softmaxes are added and softmax is taken
again.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from aeft_lib.engine.fields import choice, number, whole
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.maps.labels import VOID
from aeft_lib.networks.segmenter import LargeFov, segmentation_sum
from aeft_lib.parts.difference import (
    NORMS,
    Detector,
    balanced,
    difference_sums,
    flagged,
    merge,
    nearest,
)
from aeft_lib.parts.difference_network import DifferenceNetwork, at_size, crf_masks, tagged_argmax
from aeft_lib.parts.in_step import as_taken
from aeft_lib.parts.merge_masks import MergeSpec, merge_masks
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.method import Refiner, Workshop
from aeft_lib.stages.train_tagged_segmenter import train_segmenter

WAYS = ("corrected", "released")
EMPTY = ("zero", "nan")
SUMS = ("differs", "agrees", "n_differs", "n_agrees")


@dataclass(frozen=True)
class Cosine(Schedule):
    """The release's schedule: ``(1 + cos(pi epoch / floor(1.2 E))) / 2``, never quite 0."""

    def factor(self, step: int, steps: int) -> float:
        """As of `Schedule`, with its warm-up."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        epoch = step / steps * self.epochs
        return warm * (1 + math.cos(math.pi * epoch / int(1.2 * self.epochs))) / 2


@dataclass(frozen=True)
class Static(LargeFov):
    """The network of the static stage, and its loss.  Fields besides `hidden`: see the module."""

    norm: str = "group"
    empty: str = "zero"
    momentum: str = "corrected"
    heads = 1
    courses = 1
    needs = ("tags",)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, norm=NORMS, empty=EMPTY, momentum=WAYS)

    def build(self, backbone: nn.Module, num_classes: int) -> DifferenceNetwork:
        """The network; what is new is drawn from the global random stream."""
        hidden = self.hidden or 512
        return DifferenceNetwork(
            backbone=backbone,
            num_classes=num_classes,
            hidden=hidden,
            width=max(1, hidden // 2),
            norm=self.norm,
            heads=self.heads,
        )

    def scheduled(self, schedule: Schedule) -> Schedule:
        """The release's cosine over the profile's epochs, or twice as many."""
        fields = vars(schedule) | {"epochs": self.courses * schedule.epochs}
        if self.momentum == "released":
            fields["momentum"] = 0.0
        return Cosine(**fields)

    def measure(self, network: DifferenceNetwork, batch: Batch) -> dict[str, Tensor]:
        """Of every sample: sums of both losses.  batch: K and A as ``labels`` (B, 2, H, W)."""
        (head,), (seen,) = network.read(batch.images)
        known, advised = nearest(batch.labels, head.logits.shape[-2:]).unbind(1)
        logits = network.detectors[0](seen, [known, advised])
        flags = flagged(known, advised, batch.tags)
        summed, counted = segmentation_sum(head.logits.float(), known)
        measures = {"summed": summed[None], "known": counted[None], "kept": ~flags.any(dim=1)}
        for name, logit in zip(("k", "a"), logits, strict=True):
            sums = difference_sums(logit, known, advised)
            measures |= {f"{name}_{key}": value for key, value in sums.items()}
        return measures

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both losses; logged too: which part of the pixels differs."""
        known = measures["known"].sum().clamp(min=1)
        losses = [self.of_images(measures, name) for name in ("k", "a")]
        return {
            "segmentation": measures["summed"].sum() / known,
            "difference": sum(losses) / 2,
            "differs": share(measures, "k"),
        }

    def of_images(self, measures: dict[str, Tensor], name: str) -> Tensor:
        """The mean loss of a detector over the images without a flagged class; 0 without any."""
        own = {key: measures[f"{name}_{key}"] for key in SUMS}
        kept = measures["kept"]
        losses = torch.where(kept, balanced(own, empty=self.empty), 0.0)
        return losses.sum() / kept.sum().clamp(min=1)


@dataclass(frozen=True)
class Dynamic(Static):
    """The segmenter of the dynamic stage.

    bias, bg_bias: of both merges.  iterations: of the CRF in every step, on a quarter of the image.
    """

    bias: float = 0.4
    bg_bias: float = 0.0
    iterations: int = 3
    heads = 2
    courses = 2
    starts_from = "detector"

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "bg_bias")
        whole(self, "iterations")

    def measure(self, network: DifferenceNetwork, batch: Batch) -> dict[str, Tensor]:
        """Of every sample: sums of all losses.  batch: the seed as ``labels`` (B, 1, H, W)."""
        heads, seen = network.read(batch.images)
        size = heads[0].logits.shape[-2:]
        seed = nearest(batch.labels, size)[:, 0]
        pictures = at_size(as_taken(batch.images, network.backbone.normalise).float(), size)
        logits = [head.logits.float() for head in heads]
        advised = crf_masks(logits[0], batch.tags, pictures.round().byte(), self.iterations)
        return self.losses(network.detectors, logits, seen, seed, advised, batch.tags)

    def losses(
        self,
        detectors: nn.ModuleList,
        logits: list[Tensor],
        seen: list[Tensor],
        seed: Tensor,
        advised: Tensor,
        tags: Tensor,
    ) -> dict[str, Tensor]:
        """Sums of all losses from both heads' logits.

        seed, advised: the static merge, and A0, (B, h, w).
        """
        outside = seed == VOID
        main, sub = (tagged_argmax(x.detach(), tags).masked_fill(outside, VOID) for x in logits)
        advised = advised.masked_fill(outside, VOID)
        first, refined, flags = self._merged(detectors[0], seen[0], main, advised, tags)
        second, taught, _ = self._merged(detectors[1], seen[1], seed, refined, tags)
        targets = {"main": taught, "sub_seed": seed, "sub": taught}
        measures = {"kept": ~flags.any(dim=1), "known": (~outside).sum()[None]}
        for (name, target), own in zip(targets.items(), (0, 1, 1), strict=True):
            measures[name] = segmentation_sum(logits[own], target)[0][None]
        compared = {"k": (first[0], main, advised), "a": (first[1], main, advised)}
        compared |= {"seed": (second[0], seed, sub), "merged": (second[1], taught, sub)}
        for name, masks in compared.items():
            sums = difference_sums(*masks)
            measures |= {f"{name}_{key}": value for key, value in sums.items()}
        changed = (taught != seed).flatten(1).float().mean(dim=1)
        return measures | {"changed": changed}

    def _merged(
        self, detector: Detector, seen: Tensor, known: Tensor, advised: Tensor, tags: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Logits of both masks, what they are merged to, and the flags."""
        logits = detector(seen, [known, advised])
        flags = flagged(known, advised, tags)
        probable = [logit.detach().float().sigmoid() for logit in logits]
        biases = {"bias": self.bias, "bg_bias": self.bg_bias}
        return logits, merge(known, advised, *probable, flags, **biases), flags

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses; logged too: what differs, and which part of the seed has been changed."""
        known = measures["known"].sum().clamp(min=1)
        main, seed, sub = (measures[n].sum() / known for n in ("main", "sub_seed", "sub"))
        pairs = [self.of_images(measures, name) for name in ("k", "a")]
        for name in ("seed", "merged"):  # of all images together, whatever is flagged
            together = {key: measures[f"{name}_{key}"].sum() for key in SUMS}
            pairs.append(balanced(together, empty=self.empty))
        return {
            "segmentation": main + (seed + sub) / 2,
            "difference": sum(pairs) / 4,
            "differs": share(measures, "k"),
            "seed_changed": measures["changed"].mean(),
        }


def share(measures: dict[str, Tensor], name: str) -> Tensor:
    """The part of the pixels that differ."""
    differs, agrees = (measures[f"{name}_n_{kind}"].sum() for kind in ("differs", "agrees"))
    return differs / (differs + agrees).clamp(min=1)


@dataclass(frozen=True)
class Ssdd:
    """The refiner: the static merge.

    teacher: a `stages.psa.Psa`, of whose walk the label maps are K; A are those of the same walk
    with a CRF.  detector: DD and its
    network.  bias, bg_bias: of the merge.  iterations: of the CRF.  The rest: see the module.
    """

    teacher: Refiner
    detector: Static = Static()
    bias: float = 0.1
    bg_bias: float = 0.1
    iterations: int = 10
    order: str = "corrected"
    alignment: str = "corrected"
    square: bool = False

    def __post_init__(self) -> None:
        number(self, "bg_bias")
        whole(self, "iterations")
        choice(self, order=WAYS, alignment=WAYS, square=(False, True))
        if not self.teacher.walk or self.teacher.crf:
            raise ValueError(f"teacher must be a walk without a CRF, got {self.teacher}")

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds, detector, labels``: there are no scores that a threshold could cut."""
        obtain, masks = workshop.obtain, self._masks(workshop, "train")
        detector = obtain(train_segmenter, workshop.training(self.detector), masks)
        spec = MergeSpec(workshop.scenes(split), self.bias, self.bg_bias)
        spec = replace(spec, order=self.order, alignment=self.alignment, square=self.square)
        inputs = self._masks(workshop, split) | {"segmenter": detector}
        labels = obtain(merge_masks, spec, inputs)
        return {"seeds": workshop.seeds(split), "detector": detector, "labels": labels}

    def _masks(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """K and A as label maps, as `train_segmenter` takes them."""
        settled = replace(workshop.numbers, last_crf_iterations=self.iterations)
        known = self.teacher.refine(workshop, split)["labels"]
        crf = replace(self.teacher, crf=True)
        advised = crf.refine(replace(workshop, numbers=settled), split)["labels"]
        return {"labels": known, "labels_2": advised}

"""RRM (Zhang et al., AAAI 2020): a small reliable part of the CAMs teaches, end to end.

One network, from a trained classifier on.  In every step its CAMs c, over several scales, become
labels: of what two CRFs, of the backgrounds ``(1 - max c)^4`` and ``(1 - max c)^32``, agree on, the
pixels that are certain and high in their own class's CAM; the rest is void.  The other head learns
from them, and void pixels from a dense energy (`parts.dense_energy`)::

    L = L_cls + CE(background) + CE(objects) + w E

*One step*: this head is the segmentation network (`Rrm` without tags).  *Two steps*: what it
predicts of the training scenes, with their tags, teaches the harness's network.

Quirks of the authors' release are fields: `gradient`, the energy's is "defined"; `padding_labels`,
padding may be labelled; `empty`, the cross-entropy of no pixel is NaN; `momentum`, weight decay in
its place.  There a class that wins without any CAM above 0.1 ends the training, here it is void.

Departures.  The classifier and its head are the harness's (dropout before the head as there), and
its frozen stages stay frozen.  The rates are the profile's, for one course of its segmenter, and
each image has a scale of its own (there: each batch).  The energy's distance is the release's part
of the crop, 100 of 321 pixels, and its weight is multiplied by (321^2 / area)^2, since pairs of
pixels grow so.  Where scenes have one small size, CRFs see at most 128 pixels along a side, and
scales are 1 and 0.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.fields import choice, number, whole
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.labels import VOID
from aeft_lib.networks.segmenter import REACH, LargeFov, LargeFovHead
from aeft_lib.paper import losses
from aeft_lib.paper.classifier import CamHead
from aeft_lib.parts.dense_energy import GRADIENTS, dense_energy, halved
from aeft_lib.parts.in_step import as_taken
from aeft_lib.parts.reliable_labels import reliable_labels
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import load_segmenter, ready
from aeft_lib.stages.method import Workshop
from aeft_lib.stages.predict_logits import normalised
from aeft_lib.stages.train_tagged_segmenter import WARM_START, train_segmenter
from aeft_lib.stages.write_labels import write_all

CROP = 321  # of the release, in pixels
LAST_CRF = (83, 5, 4)  # bilateral, of the predictions
VIEW_SCALES = (0.7, 1.3)
SMALL_SIDE, SMALL_SCALES = 128, (1.0, 0.5)
WAYS = ("corrected", "released")
EMPTY = ("zero", "nan")


class RrmNetwork(nn.Module):
    """A CAM head and a segmentation head on one backbone; tensors of a classifier have its names.

    Images (B, 3, H, W) in the backbone's range -> logits (B, K + 1, H, W), background first.
    """

    def __init__(self, *, backbone: nn.Module, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.num_classes, self.backbone = num_classes, backbone
        sizes = {"in_channels": backbone.out_channels, "num_classes": num_classes}
        self.head = CamHead(**sizes)
        dilation = max(1, REACH // backbone.stride)
        self.segmentation = LargeFovHead(**sizes, dilation=dilation, hidden=hidden)
        self.dropout = nn.Dropout2d(0.5)

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        return F.interpolate(self.coarse(images), size=size, mode="bilinear", align_corners=False)

    def coarse(self, images: Tensor) -> Tensor:
        """Logits (B, K + 1, h, w) at the backbone's stride."""
        return self.segmentation(self.backbone(images))


@dataclass(frozen=True)
class Reliable(LargeFov):
    """The network and its loss, a segmenter that learns from tags alone.

    energy: w, of a crop of 321 pixels.  s_xy: of 321 pixels.  s_rgb: in grey levels.
    scales: of the CAMs, 1 the first.  label_side: pixels along a side that the CRFs see at most;
    0: all.  The rest: see the module.
    """

    energy: float = 1e-7
    s_xy: float = 100.0
    s_rgb: float = 15.0
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    label_side: int = 0
    gradient: str = GRADIENTS[0]
    padding_labels: bool = False
    empty: str = "zero"
    momentum: str = "corrected"
    needs = ("tags",)

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "energy")
        number(self, "s_xy", "s_rgb", positive=True)
        whole(self, "label_side")
        choice(self, gradient=GRADIENTS, padding_labels=(False, True), empty=EMPTY, momentum=WAYS)
        if not self.scales or self.scales[0] != 1 or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive and begin with 1, got {self.scales}")

    @property
    def passes(self) -> float:
        """Of a step, by pixels: further scales go forward alone, a third of a pass."""
        return 1 + sum(scale**2 for scale in self.scales[1:]) / 3

    def build(self, backbone: nn.Module, num_classes: int) -> RrmNetwork:
        """The network; what is new is drawn from the global random stream."""
        hidden = self.hidden or 512
        return RrmNetwork(backbone=backbone, num_classes=num_classes, hidden=hidden)

    def scheduled(self, schedule: Schedule) -> Schedule:
        """The profile's, with the release's slip of the momentum where it is asked for."""
        if self.momentum == "corrected":
            return schedule
        return replace(schedule, momentum=schedule.weight_decay)

    def measure(self, network: RrmNetwork, batch: Batch) -> dict[str, Tensor]:
        """Tag logits, sums of the cross-entropy, and the energy of every sample.

        batch: ``labels`` (B, 1, H, W), `VOID` in padding.
        """
        features = network.backbone(batch.images)
        logits = network.head(network.dropout(features)).mean(dim=(2, 3))
        coarse = network.segmentation(features).float()
        valid = batch.labels[:, 0] != VOID
        pictures = as_taken(batch.images, network.backbone.normalise)
        labels = self.labels(network, features, batch, pictures, valid)
        measures = self.losses(coarse, labels, pictures, valid)
        measures["force"] = self._force(measures, coarse)
        return {"logits": logits, "tags": batch.tags} | measures

    def labels(
        self, network: RrmNetwork, features: Tensor, batch: Batch, pictures: Tensor, valid: Tensor
    ) -> Tensor:
        """Reliable labels of a batch, (B, H, W) uint8, from the network's own CAMs."""
        size = batch.images.shape[-2:]
        cams = self.cams(network, features, batch.images)
        side = min(self.label_side or max(size), max(size))
        small = tuple(max(1, round(s * side / max(size))) for s in size)
        pictures = F.interpolate(pictures.float(), size=small, mode="area").round().byte()
        cams = F.interpolate(cams, size=small, mode="bilinear", align_corners=False)
        cams = cams / (cams.amax(dim=(2, 3), keepdim=True) + 1e-5)
        made = []
        for cam, picture, tags in zip(cams, pictures, batch.tags.bool(), strict=True):
            classes = tags.nonzero()[:, 0]
            made.append(reliable_labels(picture, cam[classes], classes))
        labels = F.interpolate(torch.stack(made)[:, None].float(), size=size, mode="nearest")
        labels = labels[:, 0].to(torch.uint8)
        return labels if self.padding_labels else labels.masked_fill(~valid, VOID)

    @torch.no_grad()
    def cams(self, network: RrmNetwork, features: Tensor, images: Tensor) -> Tensor:
        """CAMs (B, K, h, w), not negative: the mean over the scales, at the map of scale 1."""
        first = network.head(features.detach()).relu().float()
        options = {"mode": "bilinear", "align_corners": False}
        total = first
        for scale in self.scales[1:]:
            sides = [max(1, round(side * scale)) for side in images.shape[-2:]]
            scaled = network.backbone(F.interpolate(images, size=sides, **options))
            cam = network.head(scaled).relu().float()
            total = total + F.interpolate(cam, size=first.shape[-2:], **options)
        return total / len(self.scales)

    def losses(
        self, coarse: Tensor, labels: Tensor, pictures: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """Of every sample, (B,) each: sums of cross-entropy and counts, the energy times w.

        coarse: logits (B, K + 1, h, w).  labels, valid: (B, H, W).  pictures: (B, 3, H, W) uint8.
        """
        size, area = labels.shape[-2:], labels.shape[-2] * labels.shape[-1]
        full = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        loss = F.cross_entropy(full, labels.long(), ignore_index=VOID, reduction="none")
        parts = {"background": labels == 0, "objects": (labels != 0) & (labels != VOID)}
        sums = {name: (loss * part).sum(dim=(1, 2)) for name, part in parts.items()}
        sums |= {f"n_{name}": part.sum(dim=(1, 2)) for name, part in parts.items()}
        sums["labelled"] = (labels != VOID).float().mean(dim=(1, 2))
        weight = self.energy * (CROP**2 / area) ** 2
        if not weight:
            return sums | {"energy": torch.zeros_like(sums["background"])}
        seen = halved(full, pictures, labels, valid)
        s_xy = self.s_xy * max(size) / CROP / 2
        widths = {"s_xy": s_xy, "s_rgb": self.s_rgb}
        return sums | {"energy": weight * dense_energy(seen, **widths, gradient=self.gradient)}

    def _force(self, measures: dict[str, Tensor], coarse: Tensor) -> Tensor:
        """|gradient of the energy| / |gradient of the cross-entropy|, in the logits; (1,).

        0 where there is no gradient at all.
        """
        ratio = coarse.new_zeros(1)
        if not (torch.is_grad_enabled() and coarse.requires_grad and self.energy):
            return ratio
        taught = self._cross_entropy(measures, "zero")
        terms = (measures["energy"].mean(), taught["background"] + taught["objects"])
        slopes = [torch.autograd.grad(t, coarse, retain_graph=True)[0].norm() for t in terms]
        return torch.where(slopes[1] > 0, slopes[0] / slopes[1], 0.0)[None].detach()

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """All losses; logged too: ``labelled``, the part of the pixels that are reliable.

        ``force``: of the energy's gradient against the cross-entropy's.
        """
        return {
            "classification": losses.classification(measures["logits"], measures["tags"]),
            **self._cross_entropy(measures, self.empty),
            "energy": measures["energy"].mean(),
            "labelled": measures["labelled"].mean(),
            "force": measures["force"].mean(),
        }

    def _cross_entropy(self, measures: dict[str, Tensor], empty: str) -> dict[str, Tensor]:
        """The mean over the batch's pixels of either kind."""
        least = 1 if empty == "zero" else 0
        names = ("background", "objects")
        return {n: measures[n].sum() / measures[f"n_{n}"].sum().clamp(min=least) for n in names}


# --- what a row takes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rrm:
    """The refiner: the network's own predictions as label maps.

    network: and its loss.  tags_known: absent classes are left out.  iterations: of the last CRF.
    """

    network: Reliable = Reliable()
    tags_known: bool = True
    iterations: int = 10

    def __post_init__(self) -> None:
        choice(self, tags_known=(False, True))
        whole(self, "iterations")

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds`` of the classifier that it starts from, ``network``, ``labels``."""
        spec = replace(workshop.training(self.network), view_scales=VIEW_SCALES)
        if not spec.crop:  # scenes of one small size
            small = {"label_side": SMALL_SIDE, "scales": SMALL_SCALES}
            spec = replace(spec, segmenter=replace(spec.segmenter, **small))
        trained = workshop.obtain(train_segmenter, spec, {WARM_START: workshop.classifier})
        read = ReadSpec(workshop.scenes(split), self.tags_known, self.iterations)
        labels = workshop.obtain(read_rrm, read, {"segmenter": trained})
        return {"seeds": workshop.seeds(split), "network": trained, "labels": labels}


@dataclass(frozen=True)
class ReadSpec:
    """tags_known, iterations: as of `Rrm`."""

    scenes: SceneSet
    tags_known: bool
    iterations: int


@ranks.collective
def read_rrm(spec: ReadSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``segmenter`` at one scale; write label maps as `write_labels` does."""
    count = len(spec.scenes.open())
    return write_all(folder, over_images(_read, count, spec, inputs["segmenter"]))


@torch.inference_mode()
def _read(indices: range, spec: ReadSpec, segmenter: Artefact) -> list[tuple[str, np.ndarray]]:
    network, scenes, made = ready(load_segmenter, segmenter), spec.scenes.open(), []
    for index in indices:
        image = scenes.image(index)
        scores = network(normalised(network, [image]))[0].float().softmax(dim=0)
        if spec.tags_known:
            scores[1:] *= torch.from_numpy(scenes.tags(index)).to(scores)[:, None, None]
        if spec.iterations:
            crf = DenseCRF(image, bilateral=LAST_CRF, device=device())
            scores = crf.infer(unary_of(scores), iterations=spec.iterations)
        made.append((f"{index:05d}", scores.argmax(dim=0).to(torch.uint8).cpu().numpy()))
    return made

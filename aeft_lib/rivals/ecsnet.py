"""ECS-Net (reconstruction): what is seen once the CAM is erased teaches the refined CAM.

THIS IS A RECONSTRUCTION.  No code of ECS-Net (Sun et al., ICCV 2021) is known here, nor its full
text: abstract, the drawing of its architecture, and notes of readers.  Known from them: two passes
F and F' with shared weights; what F's CAM sees most is erased from the image of F'; reliable pixels
of the CAM of F' (noise suppression) are labels for F's refined CAM.  Every constant and layer is
our choice.  If this row gains nothing, that says nothing about ECS-Net.

    a_k    = (z - min) / (max - min + 1e-5) y_k,  z = up(relu A_k);      S = max over k of a_k
    I'     = I (1 - S) where `erase` is "soft", I [S < erase_threshold] where it is "hard"
    label  = argmax a'_k + 1  where max a' >= reliable, and S < erase_threshold (not erased)
             0                where max a' <= quiet, and S <= quiet;  else void
             void all over an image in which a pass sees nothing (ours too)
    L      = BCE(GAP A, y) + BCE(GAP A', y) + weight CE(softmax up(R), label)

A is F's CAM, A' that of F', R the refined CAM with a background.  Labels and erasing are constants.

What a reader of the paper would set, all in `EcsNet`: `erase` and `erase_threshold`; `overlay`,
the layers of the second CAM; `refine`, those of the refinement; `reliable` and `quiet`, the rule of
noise suppression; `weight` and `starts_at`, of the labels' loss; `erased_classification`.

R is SEAM's affinity (`parts.pixel_correlation`) on the CAM over its maximum, with a background of 1
minus the largest class, times `sharpness`, so that softmax decides; classes without a tag are left
out.  It is relative on purpose: with the signed CAM against a background of 0, labels of background
pull all logits below 0, and the network forgets the tags (tried on few scenes, by tags alone: mean
probability of the tags 0.2 to 0.4, 0.99 without labels).  Seeds are read of R.  The first third of
a training has no labels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.fields import choice, fraction, number
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.maps.labels import VOID
from aeft_lib.paper import losses
from aeft_lib.paper.classifier import CamMethod
from aeft_lib.paper.erasing import check_tags, max_norm
from aeft_lib.parts.map_losses import with_background
from aeft_lib.parts.pixel_correlation import HALVES, PixelCorrelation
from aeft_lib.parts.refined import RefinedClassifier, RefinedOutput

EPS = 1e-5
ERASE = ("soft", "hard")
OVERLAYS = ("plain", "dilated")
REFINEMENTS = ("correlation", "none")
DILATIONS = (1, 3, 6, 9)
ABSENT = -1e4  # logit of a class without a tag: its softmax is 0, and half precision holds it


def scaled_maps(cam: Tensor, tags: Tensor, size: tuple[int, int]) -> Tensor:
    """a, (B, K, H, W) in 0..1, detached: each tagged class from its minimum to its maximum.

    cam: (B, K, h, w) signed, brought to `size` bilinearly after the ReLU.  tags: (B, K), 0 or 1.
    Raises ValueError where they differ in B or K.
    """
    check_tags(cam, tags)
    cam = _single(cam.detach()).relu()
    z = F.interpolate(cam, size=size, mode="bilinear", align_corners=False)
    low, high = z.amin(dim=(2, 3), keepdim=True), z.amax(dim=(2, 3), keepdim=True)
    return (z - low) / (high - low + EPS) * tags[:, :, None, None].to(z.dtype)


def _single(maps: Tensor) -> Tensor:
    """In float32 where they are in half precision, which has no 1e-5."""
    return maps.float() if maps.dtype in HALVES else maps


def erased(images: Tensor, score: Tensor, *, threshold: float, kind: str) -> Tensor:
    """I', (B, 3, H, W): the image without what the CAM sees most; 0 is the mean colour.

    score: S, (B, H, W) in 0..1.  kind: "soft" dims by S, "hard" erases from the threshold on.
    """
    kept = 1 - score if kind == "soft" else (score < threshold).to(images.dtype)
    return images * kept[:, None].to(images.dtype)


def reliable_labels(
    maps: Tensor, score: Tensor, *, erase_threshold: float, reliable: float, quiet: float
) -> Tensor:
    """The rule of noise suppression: labels (B, H, W) uint8, 0 background, class + 1, 255 void.

    An image in which either pass sees no class at all has no label: all of it would be background,
    and its classes would be seen even less.
    maps: a' of F', (B, K, H, W) in 0..1.  score: S of F, (B, H, W).

    >>> a = torch.tensor([0.7, 0.3, 0.05, 0.05]).reshape(1, 1, 1, 4)
    >>> s = torch.tensor([0.2, 0.2, 0.05, 0.3]).reshape(1, 1, 4)
    >>> reliable_labels(a, s, erase_threshold=0.6, reliable=0.5, quiet=0.1).flatten().tolist()
    [1, 255, 0, 255]
    """
    best, winner = maps.max(dim=1)
    fires = (best.amax(dim=(1, 2), keepdim=True) > 0) & (score.amax(dim=(1, 2), keepdim=True) > 0)
    labels = torch.where((best <= quiet) & (score <= quiet) & fires, 0, VOID)
    seen = (best >= reliable) & (score < erase_threshold) & fires
    return torch.where(seen, winner + 1, labels).to(torch.uint8)


def label_sums(refined: Tensor, labels: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every image's labels, summed, (B,), and how many there are, (B,).

    refined: R, (B, K + 1, h, w) logits, background first, brought to the labels' size; classes
    without a tag take no part.
    """
    absent = F.pad(~tags.bool(), (1, 0), value=False)[:, :, None, None]
    logits = F.interpolate(refined, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    logits, options = logits.masked_fill(absent, ABSENT), {"ignore_index": VOID}
    loss = F.cross_entropy(logits, labels.long(), reduction="none", **options)
    return loss.flatten(1).sum(dim=1), (labels != VOID).flatten(1).sum(dim=1).to(loss.dtype)


class Overlaid(nn.Module):
    """A CAM head whose last layer is 3 x 3, and is read at several dilations ("dilated").

    The name "dilated overlay module" is all that is known; MDC (Wei et al., CVPR 2018) has such a
    layer, from memory.  The first CAM is read at dilation 1, the second is the mean over all.
    """

    def __init__(self, *, in_channels: int, num_classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.fc8 = nn.Conv2d(in_channels, hidden, kernel_size=1, bias=False)
        self.fc9 = nn.Conv2d(hidden, num_classes, kernel_size=3, padding=1, bias=False)
        for layer in (self.fc8, self.fc9):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, features: Tensor, dilations: tuple[int, ...] = (1,)) -> Tensor:
        hidden, weight = self.fc8(features).relu(), self.fc9.weight
        read = [F.conv2d(hidden, weight, padding=rate, dilation=rate) for rate in dilations]
        return sum(read) / len(read)


@dataclass(frozen=True)
class EcsNet(CamMethod):
    """Our reconstruction; see the module for its equations, and for what is not known.

    erase, erase_threshold: how the image is erased, and from which S on a pixel counts as erased.
    overlay: the second CAM is "plain", or the mean of "dilated" readings of a 3 x 3 class layer.
    refine: R is the CAM weighted by SEAM's "correlation", or "none", the CAM itself.
    sharpness: of R's softmax, what a map of 1 is as a logit.
    reliable, quiet: thresholds of a label; above 1, and below 0, there is none.
    weight: of the labels' loss.  starts_at: the part of the training from which on it counts.
    erased_classification: the erased image is classified too.
    """

    erase: str = "soft"
    erase_threshold: float = 0.6
    overlay: str = "plain"
    refine: str = "correlation"
    sharpness: float = 5.0
    reliable: float = 0.5
    quiet: float = 0.1
    weight: float = 1.0
    starts_at: float = 1 / 3
    erased_classification: bool = True
    needs = ("images", "taps")
    passes = 2.0

    def __post_init__(self) -> None:
        choice(self, erase=ERASE, overlay=OVERLAYS, refine=REFINEMENTS)
        choice(self, erased_classification=(False, True))
        number(self, "erase_threshold", "reliable", "weight")
        number(self, "sharpness", positive=True)
        fraction(self, "starts_at")
        if not self.quiet <= self.reliable:
            raise ValueError(f"quiet must be at most reliable={self.reliable}, got {self.quiet!r}")

    def build(self, backbone: nn.Module, num_classes: int) -> RefinedClassifier:
        """The classifier with its refinement; random weights come from the global stream."""
        refinement = PixelCorrelation(tap_channels=backbone.tap_channels)
        network = RefinedClassifier(
            backbone=backbone, refinement=refinement, num_classes=num_classes
        )
        if self.overlay == "dilated":
            channels = backbone.out_channels
            network.head = Overlaid(in_channels=channels, num_classes=num_classes)
        return network

    def cam(self, network: RefinedClassifier, batch: Batch) -> Tensor:
        """R of the K classes, (B, K, h, w), not negative.  batch: its tags, where it has some."""
        return self.read(network, batch)[0]

    def read(
        self, network: RefinedClassifier, batch: Batch, refined: bool = True
    ) -> tuple[Tensor, Tensor]:
        """R, or the signed CAM A, (B, K, h, w), and the tag logits (B, K)."""
        output = forward(network, batch)
        maps = self.refined(network, output, batch.tags)[:, 1:] if refined else output.cam
        return maps, output.logits

    def refined(
        self, network: RefinedClassifier, output: RefinedOutput, tags: Tensor | None
    ) -> Tensor:
        """R, (B, K + 1, h, w) logits, background first; with its gradient in the CAM.

        tags: (B, K); None: all classes have a say in the background.
        """
        classes = max_norm(_single(output.cam))
        if tags is not None:
            classes = classes * tags[:, :, None, None].to(classes.dtype)
        maps = with_background(classes)
        refined = maps if self.refine == "none" else network.refined(maps, output)
        return self.sharpness * refined

    def measure(self, network: RefinedClassifier, batch: Batch) -> dict[str, Tensor]:
        """Logits of both passes, and every image's own labels: loss, count, and their parts."""
        size, tags = batch.images.shape[-2:], batch.tags
        first = forward(network, batch)
        score = scaled_maps(first.cam, tags, size).amax(dim=1)
        left = erased(batch.images, score, threshold=self.erase_threshold, kind=self.erase)
        cam, logits = self._second(network, left)
        labels = reliable_labels(
            scaled_maps(cam, tags, size),
            score,
            erase_threshold=self.erase_threshold,
            reliable=self.reliable,
            quiet=self.quiet,
        )
        loss, count = label_sums(self.refined(network, first, tags), labels, tags)
        objects = ((labels > 0) & (labels != VOID)).flatten(1).to(loss.dtype)
        measures = {"logits": first.logits, "logits_2": logits, "tags": tags}
        measures |= {"loss": loss, "count": count, "objects": objects.sum(dim=1)}
        return measures | {"pixels": torch.full_like(count, score[0].numel())}

    def _second(self, network: RefinedClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
        """A' and its tag logits."""
        if self.overlay == "plain":
            output = network(images)
            return output.cam, output.logits
        cam = network.head(network.backbone(images), DILATIONS)
        return cam, network.pooling(cam).logits

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms; logged too: parts of the pixels that have a label, and an object's.

        ``p_tag`` and ``p_tag_erased``: mean probability of the tags, before and after the erasing.
        """
        tags = measures["tags"]
        on = (measures["progress"] >= self.starts_at).to(measures["loss"].dtype)
        loss = measures["loss"].sum() / measures["count"].sum().clamp(min=1)
        terms = {
            "classification": losses.classification(measures["logits"], tags),
            "labels": self.weight * on * loss,
        }
        if self.erased_classification:
            terms["erased"] = losses.classification(measures["logits_2"], tags)
        pixels = measures["pixels"].sum()
        for name, part in (("labelled", "count"), ("labelled_objects", "objects")):
            terms[name] = measures[part].sum() / pixels
        for name, logits in (("p_tag", "logits"), ("p_tag_erased", "logits_2")):
            p = measures[logits].detach().sigmoid() * tags.to(pixels.dtype)
            terms[name] = p.sum() / tags.sum().clamp(min=1)
        return terms

"""ICD (Fan et al., CVPR 2020): for each class, the object against the background of its images.

Beside the CAM a branch learns one direction of feature space for every class, along which the
pixels of its images fall into two groups; the group with the higher CAM is the object.  Its groups,
one value for every superpixel, teach a map t (`parts.discriminator`)::

    L = BCE(GAP CAM, y) + bottom-up(w) + warm top-down(t),      each summed over the classes

warm rises from exp(-10) to 1 over the first tenth.  f is the last map through a batch norm without
scale; t reads f and two layers on it, which begin as copies of the CAM's.  bottom-up trains w
alone.

`IcdLabels` reads t: a pixel is an object where its logit is positive, so that no threshold is
needed; where classes compete, CAM times t decides.

Fields are quirks and choices of the release: `single_tag_only`, images of several tags do not train
w; `conflicts`, "cam_times_icd" or "icd" alone; `needs_cam`, a pixel of an image of several tags is
void where no CAM is positive.

Departures.  The backbone is the harness's, f its last map (there: conv5_3, and pool5 before the
CAM's branch).  New layers have 256 channels (1,024 there), and 1 x 1 cells where the stride is 16.
The optimiser and its rates are the profile's; w has the backbone's.  The superpixels' features are
the backbone's.  The authors' segmenter is not known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.fields import choice, whole
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.labels import VOID
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.paper.classifier import CamMethod
from aeft_lib.paper.gpp import Gap
from aeft_lib.parts.discriminator import (
    EPS,
    bottom_up,
    memberships,
    moved,
    projected,
    signs,
    smoothed,
    top_down,
    warm_up,
)
from aeft_lib.parts.discriminator_network import IcdClassifier
from aeft_lib.parts.superpixels import DivisionSpec, Superpixels, divide_scenes
from aeft_lib.refinement.dense_crf import DenseCRF
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import load_network, ready
from aeft_lib.stages.method import Workshop
from aeft_lib.stages.write_labels import write_all

FINE_STRIDE = 8  # of a map on which the new layers have 3 x 3 cells
WARM = 0.1  # part of the training
CONFLICTS = ("cam_times_icd", "icd")
UNSURE_AS = ("background", "void")
UNSURE = 0.1  # posterior below which a pixel is void
MEAN_GREY = 127


@dataclass(frozen=True)
class Icd(CamMethod):
    """The classifier.  superpixels: that smooth its groups.  width: channels of its new layers.

    single_tag_only: see the module.
    """

    superpixels: Superpixels = Superpixels()
    width: int = 256
    single_tag_only: bool = True
    needs = ("maps",)
    passes = 1.2

    def __post_init__(self) -> None:
        whole(self, "width", least=1)
        choice(self, single_tag_only=(False, True))
        if self.pooling != Gap():
            raise ValueError(f"the CAM of ICD has global average pooling, got {self.pooling}")

    def build(self, backbone: nn.Module, num_classes: int) -> IcdClassifier:
        """The network; what is new is drawn from the global random stream."""
        side = 3 if backbone.stride <= FINE_STRIDE else 1
        sizes = {"num_classes": num_classes, "width": self.width, "side": side}
        return IcdClassifier(backbone=backbone, **sizes)

    def maps(
        self,
        obtain: Callable[..., Artefact],
        scenes: SceneSet,
        backbone: BackboneSpec,
        precision: str,
    ) -> Artefact:
        """The artefact of the superpixels (`train_on_maps`)."""
        data = scenes.open().fingerprint
        spec = DivisionSpec(scenes, self.superpixels, backbone, data, precision)
        return obtain(divide_scenes, spec)

    def measure(self, network: IcdClassifier, batch: Batch) -> dict[str, Tensor]:
        """The losses of every sample, (B,) each; the moving pair is updated, then used.

        batch: superpixels as ``labels``, (B, 1, H, W).
        """
        output, tags = forward(network, batch), batch.tags
        cam, icd, f = (m.float() for m in (output.cam, output.icd, output.features))
        s = projected(f.detach(), network.backbone.directions.float())
        bottom = bottom_up(s, tags, single_tag_only=self.single_tag_only)
        sign, s = self._sign(network, s.detach(), cam.detach(), tags), s.detach()
        owners = memberships(batch.labels[:, 0], s.shape[-2:], self.superpixels.count)
        refined = smoothed(s * sign[:, None, None], owners, tags)
        logits = cam.mean(dim=(2, 3))
        known = F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype), reduction="none")
        turned = (sign < 0).to(s.dtype).mean().expand(len(s))
        return {
            "classification": known.sum(dim=1),
            "bottom_up": bottom,
            "top_down": top_down(icd, refined, tags),
            "turned": turned.contiguous(),
        }

    @staticmethod
    def _sign(network: IcdClassifier, scores: Tensor, cam: Tensor, tags: Tensor) -> Tensor:
        """The signs of all classes, (K,)."""
        if network.training and torch.is_grad_enabled():  # once, where a batch goes in parts
            with torch.no_grad():
                network.moving.copy_(moved(network.moving, scores, cam, tags))
        return signs(network.moving.detach())

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The three losses; logged too: ``turned``, the part of the directions that are turned."""
        warm = warm_up(float(measures["progress"]) / WARM)
        means = {name: values.mean() for name, values in measures.items() if name != "progress"}
        return means | {"top_down": warm * means["top_down"]}


# --- seeds ----------------------------------------------------------------------------------------


def decide(
    icd: Tensor, cam: Tensor, *, conflicts: str = CONFLICTS[0], needs_cam: bool = True
) -> Tensor:
    """The label of every pixel, (H, W) int64: 0 background, k + 1 the map k, or `VOID`.

    icd: the logits t, (K', H, W).  cam: signed, (K', H, W).  Both of the present classes; the first
    of equals wins.  Without any class all is background.
    """
    if not len(icd):
        return torch.zeros(icd.shape[1:], dtype=torch.int64, device=icd.device)
    positive = icd.relu()
    f = positive / icd.amax(dim=(1, 2), keepdim=True).clamp(min=EPS)
    candidate, raised = f > EPS, cam.relu()
    low, high = raised.amin(), raised.amax()
    weights = (raised - low) / (high - low).clamp(min=EPS)
    product = weights * f if conflicts == "cam_times_icd" else f
    contested = torch.where(candidate, product, -1.0).argmax(dim=0) + 1
    count = candidate.sum(dim=0)
    labels = torch.where(count > 1, contested, candidate.int().argmax(dim=0) + 1)
    if len(icd) > 1 and needs_cam:
        labels = labels.masked_fill(((weights * f).amax(dim=0) <= EPS) & (count > 0), VOID)
    outside = torch.where((icd < 0).all(dim=0), 0, VOID)
    return torch.where(count > 0, labels, outside)


def at_image(maps: Tensor, size: tuple[int, int], canvas: int = 0) -> Tensor:
    """Maps (K', h, w) at an image's size (H, W), bilinear; of a canvas, its top left corner."""
    whole_size = (canvas, canvas) if canvas else size
    options = {"mode": "bilinear", "align_corners": False}
    full = F.interpolate(maps[None], size=whole_size, **options)[0]
    return full[:, : size[0], : size[1]]


def settled(image: np.ndarray, labels: Tensor, num_classes: int, iterations: int = 10) -> Tensor:
    """Labels (H, W) after a CRF of all K + 1 classes; void where the winner is below 0.1.

    A label has a half, the others share a half between all K + 1, and void pixels know nothing.
    """
    count = num_classes + 1
    rest = 0.5 / count
    hot = F.one_hot(labels.masked_fill(labels == VOID, 0), count).permute(2, 0, 1).float()
    scores = torch.where(hot == 1, 0.5, rest) / (0.5 + num_classes * rest)
    scores = torch.where(labels == VOID, 1 / count, scores)
    posterior = DenseCRF(image, device=labels.device).infer(-scores.log(), iterations=iterations)
    best = posterior.max(dim=0)
    return best.indices.masked_fill(best.values < UNSURE, VOID)


@dataclass(frozen=True)
class IcdLabels:
    """The refiner of an `Icd` classifier: label maps from its discriminator, in one pass.

    crf: a CRF on them.  canvas: photos stand at the top left of a grey square of so many pixels,
    513 in the release; 0: as they are.  unsure: what is void becomes "background", so that maps can
    be scored, or stays "void", which teaches nothing.  The rest: see the module.
    """

    crf: bool = True
    canvas: int = 0
    conflicts: str = CONFLICTS[0]
    needs_cam: bool = True
    unsure: str = UNSURE_AS[0]

    def __post_init__(self) -> None:
        whole(self, "canvas")
        choice(self, crf=(False, True), conflicts=CONFLICTS, needs_cam=(False, True))
        choice(self, unsure=UNSURE_AS)

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds`` of the CAM, ``labels``: there are no scores that a threshold could cut."""
        scenes = workshop.scenes(split)
        spec = ReadSpec(scenes, self, scenes.open().fingerprint)
        labels = workshop.obtain(read_icd, spec, {"classifier": workshop.classifier})
        return {"seeds": workshop.seeds(split), "labels": labels}

    def label(
        self, image: np.ndarray, icd: Tensor, cam: Tensor, classes: Tensor, num_classes: int
    ) -> np.ndarray:
        """The label map (H, W) uint8 of a photo.  icd, cam: (K', h, w).  classes: (K',) int64."""
        maps = (at_image(m, image.shape[:2], self.canvas) for m in (icd, cam))
        rows = decide(*maps, conflicts=self.conflicts, needs_cam=self.needs_cam)
        names = torch.cat([classes.new_zeros(1), classes + 1])
        labels = torch.where(rows == VOID, VOID, names[rows.masked_fill(rows == VOID, 0)])
        if self.crf and len(classes):
            labels = settled(image, labels, num_classes)
        if self.unsure == "background":
            labels = labels.masked_fill(labels == VOID, 0)
        return labels.to(torch.uint8).cpu().numpy()


@dataclass(frozen=True)
class ReadSpec:
    """maker: of the label maps.  data: fingerprint of the scenes."""

    scenes: SceneSet
    maker: IcdLabels
    data: str = ""


@ranks.collective
def read_icd(spec: ReadSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``classifier``; write label maps as `write_labels` does."""
    count = len(spec.scenes.open())
    return write_all(folder, over_images(_read, count, spec, inputs["classifier"]))


@torch.inference_mode()
def _read(indices: range, spec: ReadSpec, classifier: Artefact) -> list[tuple[str, np.ndarray]]:
    """Name and label map of these scenes.  Raises ValueError for a photo larger than the canvas."""
    network, scenes = ready(load_network, classifier), spec.scenes.open()
    made = []
    for index in indices:
        image = scenes.image(index)
        output = network(network.backbone.normalise(_on_canvas(image, spec.maker.canvas)))
        classes = torch.from_numpy(scenes.tags(index)).nonzero()[:, 0].to(device())
        icd, cam = (m[0, classes].float() for m in (output.icd, output.cam))
        labels = spec.maker.label(image, icd, cam, classes, network.num_classes)
        made.append((f"{index:05d}", labels))
    return made


def _on_canvas(image: np.ndarray, side: int) -> Tensor:
    """A photo as (1, 3, H, W) uint8 on the device, or at the top left of a grey square."""
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    if side:
        if max(image.shape[:2]) > side:
            raise ValueError(f"a photo of {image.shape[:2]} pixels is larger than canvas={side}")
        height, width = image.shape[:2]
        picture = F.pad(picture, (0, side - width, 0, side - height), value=MEAN_GREY)
    return picture.to(device())

"""Label maps, overlays and CAMs of any photos by a row's networks: ``aeft predict``.

A network knows objects at the sizes it was trained on.  So a photo is read at the size of the
training scenes, at the profile's test scales, whatever size it has.  Its scores, not its labels,
are brought back to the photo's size, in strips: what is held at once does not grow with the photo.

Nothing is overwritten but what `aeft predict` wrote for the same photo, and nobody edited since.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from aeft_lib.data.images import image_size, read_resized, resized
from aeft_lib.data.photos import Photos
from aeft_lib.data.scene import Scenes, SceneSet
from aeft_lib.engine.device import check_device, device
from aeft_lib.lab import figures, outputs
from aeft_lib.lab.cams import CamReader, likely
from aeft_lib.maps.labels import write_label_map
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of
from aeft_lib.stages import store
from aeft_lib.stages.loading import load_network, load_segmenter
from aeft_lib.stages.predict_labels import multi_scale_probabilities
from aeft_lib.studies import catalogue, pipeline, run, shipped
from aeft_lib.studies.names import unknown
from aeft_lib.studies.pipeline import Artefacts, products
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

SUFFIX, OVERLAY, CAMS = ".labels.png", ".overlay.png", ".cam.png"
WRITER = "aeft predict"  # in the PNG text "Software" of what is written here
SHIPPED = (shipped.PROFILE, shipped.SEGMENTER, shipped.REPEAT)
SHOWN = 640  # the longer side of a photo in the overlay and the CAM picture
STRIP = 2**22  # scores that are held at once at a photo's own size
SAMPLED = 200  # photos whose headers tell the usual size of a set


class NotStored(ValueError):
    """A row's networks are not in the store."""


@dataclass(frozen=True)
class Reader:
    """A row's trained network, and how it reads a photo.

    side: of the training scenes in pixels, the longer one where they are no squares.
    squares: whether training squared its photos.  scales: relative to that size, each plain and
    mirrored.  crf_iterations: of a CRF on the result; 0 leaves it out.  trained_on: in words.
    """

    network: nn.Module
    classes: tuple[str, ...]
    side: int
    squares: bool
    scales: tuple[float, ...]
    crf_iterations: int
    trained_on: str
    classifier: CamReader | None = None

    def size(self, photo: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) at which a photo of this (height, width) is read."""
        if self.squares:
            return self.side, self.side
        height, width = (max(1, round(side * self.side / max(photo))) for side in photo)
        return height, width

    @torch.inference_mode()
    def scores(self, image: np.ndarray) -> Tensor:
        """Scores (K + 1, h, w) of a photo (h, w, 3) uint8 at the size of the training scenes."""
        where = next(self.network.parameters()).device
        picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(where)
        normalised = self.network.backbone.normalise(picture)
        scores = multi_scale_probabilities(self.network, normalised, self.scales)[0]
        if self.crf_iterations:
            crf = DenseCRF(image, device=where)
            scores = crf.infer(unary_of(scores), iterations=self.crf_iterations)
        return scores

    def label_map(self, file: Path) -> np.ndarray:
        """The labels (H, W) uint8 of a photo at its own size: 0 background, class + 1."""
        size = image_size(file)
        return labels_at(self.scores(read_resized(file, self.size(size))), size)

    def cam_picture(self, file: Path) -> Figure | None:
        """The CAMs of the classes that the classifier sees in a photo, None without one."""
        if self.classifier is None:
            return None
        size = image_size(file)
        image = read_resized(file, self.size(size))
        logits = self.classifier.logits(image)
        ids = likely(logits)
        cams = self.classifier.cams(image, ids)
        shown = read_resized(file, shown_size(size))
        maps = F.interpolate(cams[None], size=shown.shape[:2], mode="bilinear")[0].numpy()
        titles = [f"{self.classes[k]}, logit {logits[k]:.1f}" for k in ids.tolist()]
        return figures.cam_panels(shown, maps, titles)


def labels_at(scores: Tensor, size: tuple[int, int], strip: int = STRIP) -> np.ndarray:
    """The labels of scores (C, h, w) at another (height, width), (H, W) uint8.

    As the argmax of bilinear interpolation without aligned corners, strip by strip.
    strip: scores that are held at once; a line of the map at least.
    """
    height, width = size
    rows = max(1, strip // (len(scores) * width))
    labels = np.empty(size, np.uint8)
    for top in range(0, height, rows):
        lines = _lines(scores, range(top, min(top + rows, height)), height)
        enlarged = F.interpolate(
            lines[None], size=(lines.shape[1], width), mode="bilinear", align_corners=False
        )
        labels[top : top + rows] = enlarged[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


def _lines(scores: Tensor, wanted: range, height: int) -> Tensor:
    """Some lines (C, n, w) of scores (C, h, w) that are stretched to `height` lines."""
    last = scores.shape[1] - 1
    centres = torch.arange(wanted.start, wanted.stop, dtype=torch.float64) + 0.5
    places = (centres * (last + 1) / height - 0.5).clamp(0, last)
    above = places.long()
    share = (places - above).to(scores)[:, None]
    below = (above + 1).clamp(max=last)
    return scores[:, above] * (1 - share) + scores[:, below] * share


def usual_side(scenes: Scenes, spec: SceneSet) -> int:
    """The longer side of a set's scenes in pixels; of photos of their own sizes the median."""
    if spec.size:
        return spec.size
    names = scenes.names[:: max(1, len(scenes) // SAMPLED)]
    return int(np.median([max(image_size(scenes.image_file(name))) for name in names]))


def open_reader(profile: Profile, name: str, repeat: int) -> Reader:
    """The network of a row as a `Reader`: from the store, else the one that the package brings.

    Raises ValueError as `network_row` does, and for a row that is told the tags of what it reads.
    """
    check_device()
    try:
        made, row = network_row(profile, name, repeat), catalogue.row(name)
    except NotStored:
        if (profile.name, name, repeat) != SHIPPED or name not in shipped.known():
            raise
        row, teacher = catalogue.row(name), catalogue.row(shipped.CLASSIFIERS[-1])
        network, source = shipped.network(profile, row), ", weights that come with the package"
        trained = shipped.network(profile, teacher).to(device())
        reader = row.reader.fitted(profile.seed_scales)
        classifier = CamReader(trained, shipped.training(profile, teacher).method, reader)
    else:
        network, source = load_segmenter(made["segmenter"]), ""
        classifier = _stored_cams(profile, row, repeat)
    if row.prediction.tags_known:
        raise ValueError(f"row {name} is told the tags, and a new photo has none: choose another")
    scenes, numbers = profile.train.open(), profile.segmentation
    side, are_photos = usual_side(scenes, profile.train), isinstance(scenes, Photos)
    return Reader(
        network=network.to(device()),
        classes=scenes.classes,
        side=side,
        squares=are_photos and profile.train.size > 0,
        scales=numbers.scales,
        crf_iterations=numbers.crf_iterations if row.prediction.crf else 0,
        trained_on=f"{len(scenes)} {'photos' if are_photos else 'collages'} of {side} px{source}",
        classifier=classifier,
    )


def _stored_cams(profile: Profile, row: Row, repeat: int) -> CamReader | None:
    """The classifier that a row's labels come from, where it has one."""
    if row.method is None:
        return None
    profile = pipeline.with_fast_steps(row.setting.applied(profile, repeat))
    made = pipeline.classifiers(profile, row, repeat, store.lookup)["classifier"]
    reader = row.reader.fitted(profile.seed_scales)
    return CamReader(load_network(made).to(device()), made.spec.method, reader)


def network_row(profile: Profile, name: str, repeat: int) -> Artefacts:
    """What a row with a segmentation network has made.

    Raises ValueError where it has none, is told the tags, or is not in the store.
    """
    names = [row.name for row in catalogue.get("segmentation").rows if row.segmenter]
    if name not in names:
        raise unknown(f"row {name} has no segmentation network", name, names)
    run.check_repeats([repeat])
    try:
        return products(profile, catalogue.row(name), repeat, store.lookup)
    except LookupError as error:
        command = f"aeft run segmentation --profile {profile.name} --row {name} --repeat {repeat}"
        missing = f"row {name}, repeat {repeat} is not in the store, make it with: {command}"
        raise NotStored(missing) from error


def planned(photos: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The file that each photo's label map is written to: ``<folder>/<its stem>.labels.png``.

    The overlay and the CAM picture stand beside it (`pictures_of`).  Pictures among the photos that
    `aeft predict` wrote are left out.
    Raises ValueError, before any work, for a photo that is missing or not readable, for two photos
    that would be one file, and where a file that something else wrote stands in the way.
    """
    planned: dict[Path, Path] = {}
    for photo in outputs.readable(photos):
        if not written_here(photo):
            planned[photo] = folder / f"{photo.stem}{SUFFIX}"
    if not planned:
        raise ValueError("no photo: all files named are label maps that aeft predict wrote")
    outputs.check_apart(planned.items())
    files = {file: photo for photo, to in planned.items() for file in (to, *pictures_of(to))}
    outputs.check_free(files, folder, WRITER, "label map")
    return planned


def pictures_of(labels: Path) -> tuple[Path, Path]:
    """The overlay and the CAM picture beside a label map."""
    stem = labels.name.removesuffix(SUFFIX)
    return labels.with_name(stem + OVERLAY), labels.with_name(stem + CAMS)


def written_here(file: Path) -> bool:
    """Whether a file is a picture that `aeft predict` wrote: its PNG text says so."""
    return outputs.signature(file).get(outputs.WRITER) == WRITER


def write(file: Path, labels: np.ndarray, photo: Path) -> None:
    """Write the labels (H, W) uint8 of a photo as a palette PNG in VOC's colours, or not at all."""
    outputs.write_png(file, labels, photo, WRITER, save=write_label_map)


def write_pictures(file: Path, labels: np.ndarray, photo: Path, reader: Reader) -> list[Path]:
    """Write what stands beside a label map: the overlay, and CAMs where there is a classifier."""
    overlay, cams = pictures_of(file)
    size = shown_size(labels.shape)
    image, small = read_resized(photo, size), resized(labels, size, labels=True)
    drawn = {overlay: figures.label_overlay(image, small, reader.classes)}
    drawn[cams] = reader.cam_picture(photo)
    kept = {path: figure for path, figure in drawn.items() if figure is not None}
    for path, figure in kept.items():
        outputs.write_figure(path, figure, photo, WRITER)
    return list(kept)


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which a photo of a size is shown: no side above `SHOWN`."""
    factor = min(1.0, SHOWN / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width

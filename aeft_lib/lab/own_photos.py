"""Label maps of any photos by a row's segmentation network: ``aeft predict``.

A network knows objects at the sizes it was trained on.  So a photo is read at the size of the
training scenes, at the profile's test scales, whatever size it has.  Its scores, not its labels,
are brought back to the photo's size, in strips: what is held at once does not grow with the photo.

Nothing is overwritten but what `aeft predict` wrote for the same photo, and nobody edited since.
"""

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from aeft_lib import paths
from aeft_lib.data.images import image_size, read_resized
from aeft_lib.data.photos import Photos
from aeft_lib.data.scene import Scenes, SceneSet
from aeft_lib.engine.device import check_device, device
from aeft_lib.maps.foreign import Unreadable, picture
from aeft_lib.maps.labels import write_label_map
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of
from aeft_lib.stages import store
from aeft_lib.stages.loading import load_segmenter
from aeft_lib.stages.predict_labels import multi_scale_probabilities
from aeft_lib.studies import catalogue, run
from aeft_lib.studies.names import unknown
from aeft_lib.studies.pipeline import Artefacts, products
from aeft_lib.studies.settings import Profile

SUFFIX = ".labels.png"
WRITER = "aeft predict"  # in the PNG text "Software" of what is written here
LONGEST = 230  # bytes of a file's name, with room for the one it is written under first
STRIP = 2**22  # scores that are held at once at a photo's own size
SAMPLED = 200  # photos whose headers tell the usual size of a set


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
    """The network of a row as a `Reader`.

    Raises ValueError as `network_row` does, and for a row that is told the tags of what it reads.
    """
    check_device()
    made, row = network_row(profile, name, repeat), catalogue.row(name)
    if row.prediction.tags_known:
        raise ValueError(f"row {name} is told the tags, and a new photo has none: choose another")
    scenes, numbers = profile.train.open(), profile.segmentation
    side, are_photos = usual_side(scenes, profile.train), isinstance(scenes, Photos)
    return Reader(
        network=load_segmenter(made["segmenter"]).to(device()),
        classes=scenes.classes,
        side=side,
        squares=are_photos and profile.train.size > 0,
        scales=numbers.scales,
        crf_iterations=numbers.crf_iterations if row.prediction.crf else 0,
        trained_on=f"{len(scenes)} {'photos' if are_photos else 'collages'} of {side} px",
    )


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
        raise ValueError(missing) from error


def planned(photos: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The file that each photo's label map is written to: ``<folder>/<its stem>.labels.png``.

    Label maps among the photos that `aeft predict` wrote are left out.
    Raises ValueError, before any work, for a photo that is missing or not readable, for two photos
    that would be one file, and where a file that something else wrote stands in the way.
    """
    outputs: dict[Path, Path] = {}
    for photo in photos:
        if not photo.is_file():
            kind = "a folder: name the photos in it" if photo.is_dir() else "not there"
            raise ValueError(f"{photo} is {kind}")
        image_size(photo)  # raises where it is not readable
        if not written_here(photo):
            outputs[photo] = folder / f"{photo.stem}{SUFFIX}"
    if not outputs:
        raise ValueError("no photo: all files named are label maps that aeft predict wrote")
    _check_free(outputs, folder)
    return outputs


def _check_free(outputs: Mapping[Path, Path], folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file, and must be a folder")
    photo_of: dict[str, Path] = {}
    for photo, output in outputs.items():
        # Some file systems do not tell A from a, nor an accent from one that is composed otherwise.
        name = unicodedata.normalize("NFC", output.name).casefold()
        if name in photo_of:
            both = f"{photo_of[name]} and {photo} would both be written to {output}"
            raise ValueError(f"{both}: predict them apart, with another --out each")
        photo_of[name] = photo
        if len(output.name.encode()) > LONGEST:
            raise ValueError(f"{output}: the name is too long, give the photo a shorter one")
        if (output.exists() or output.is_symlink()) and (problem := _foreign(output, photo)):
            raise ValueError(f"{output} {problem}: choose another --out, or move it")


def _foreign(file: Path, photo: Path) -> str:
    """Why a file must not be overwritten by the label map of a photo; "" where it may be."""
    signed = signature(file)
    if signed.get("Software") != WRITER:
        return "is there and was not written by aeft predict"
    if all(signed.get(name) != digest for name, digest in _origin(photo).items()):
        return "is the label map of another photo"
    with picture(file) as opened:
        edited = signed.get("Labels") != _digest(np.array(opened).tobytes())
    return "was edited since aeft predict wrote it" if edited else ""


def signature(file: Path) -> dict[str, str]:
    """What a PNG's text says of its origin; nothing for any other file."""
    try:
        with picture(file) as opened:
            return dict(opened.info) if opened.format == "PNG" else {}
    except Unreadable:
        return {}


def written_here(file: Path) -> bool:
    """Whether a file is a label map that `aeft predict` wrote: its PNG text says so."""
    return signature(file).get("Software") == WRITER


def write(file: Path, labels: np.ndarray, photo: Path) -> None:
    """Write the labels (H, W) uint8 of a photo as a palette PNG in VOC's colours, or not at all.

    Its text holds digests of the labels, of the photo and of the photo's place.
    """
    text = {"Software": WRITER, "Labels": _digest(labels.tobytes())} | _origin(photo)
    signed = PngImagePlugin.PngInfo()
    for name, value in text.items():
        signed.add_text(name, value)
    with paths.replacing(file) as aside:
        write_label_map(aside, labels, pnginfo=signed)


def _origin(photo: Path) -> dict[str, str]:
    """By what a photo is known again: its place where it was changed, its content where moved."""
    place = os.fsencode(photo.resolve())
    return {"Place": _digest(place), "Photo": _digest(photo.read_bytes())}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shares(labels: np.ndarray, classes: Sequence[str]) -> str:
    """What a label map holds, in words: its classes by area, then the background."""
    parts = np.array(Image.fromarray(labels).histogram()[: len(classes) + 1]) / labels.size
    present = [(part, name) for part, name in zip(parts[1:], classes, strict=True) if part]
    shown = [f"{name} {part:.1%}" for part, name in sorted(present, reverse=True)]
    return ", ".join([*shown, f"background {parts[0]:.1%}"])

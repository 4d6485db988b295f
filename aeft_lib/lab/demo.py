"""Five minutes: what each step makes of embedded scenes and of any photos, ``aeft demo``.

It reads the trained weights that come with the package and writes one picture a photo and a page,
``index.html``, that needs no network.  Nothing is trained, and the store is not touched.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from aeft_lib.data.images import image_size, read_resized
from aeft_lib.data.scene import Scenes
from aeft_lib.engine.device import check_device, device
from aeft_lib.lab import figures, outputs
from aeft_lib.lab.cams import CamReader, likely, shipped_reader
from aeft_lib.maps.labels import label_map
from aeft_lib.refinement import dense_crf
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.refinement.background import powers_around
from aeft_lib.refinement.propagation import padded, refine_by_walk
from aeft_lib.stages.predict_labels import predict
from aeft_lib.studies import catalogue, profiles, shipped
from aeft_lib.studies.settings import Profile, Refinement

WRITER = "aeft demo"
PAGE, SUFFIX = "index.html", ".demo.png"
NAMES = {"gap": "GAP", "gated": "GPP", "attract_soft_repel": "AEFT"}
SCENE_CLASSES = (1, 2, 3)  # the scenes shown: the first unseen one with so many classes
WIDTH = 7.2  # inches


@dataclass(frozen=True)
class Shown:
    """A photo to read.

    name: of its picture.  image: (H, W, 3) uint8.  file: of a user's photo, None of a scene.
    truth: (H, W) uint8, None of a photo.  class_ids: its tags; None: the classifier's guess.
    """

    name: str
    image: np.ndarray
    file: Path | None = None
    truth: np.ndarray | None = None
    class_ids: torch.Tensor | None = None


@dataclass(frozen=True)
class Networks:
    """The networks that come with the package.

    cams: classifiers by their name in a picture, AEFT's the last.  segmenter, affinity: None where
    the package brings none.  scales: of the segmenter's passes.  refinement: numbers of the walk.
    threshold: of the seeds' background, chosen on unseen scenes without masks.
    """

    cams: Mapping[str, CamReader]
    segmenter: nn.Module | None
    affinity: AffinityNet | None
    scales: tuple[float, ...]
    refinement: Refinement
    threshold: float
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """A photo, read.  cams: (H, W) in 0..1 by classifier, the largest of its classes.

    maps: label maps (H, W) uint8 by name.  tags: in words, and where they come from.
    """

    shown: Shown
    cams: Mapping[str, np.ndarray]
    maps: Mapping[str, np.ndarray]
    tags: str


def run(photos: Sequence[Path], folder: Path) -> Iterator[str]:
    """Write the pictures and the page; yields a line for each.

    Raises ValueError, before any work, for a photo that cannot be read and for a file in the way.
    """
    scenes = list(example_scenes(profiles.get(shipped.PROFILE).val.open()))
    planned = {f"{photo.stem}{SUFFIX}": photo for photo in outputs.readable(photos)}
    outputs.check_apart((photo, folder / f"{photo.stem}{SUFFIX}") for photo in photos)
    if taken := planned.keys() & {scene.name + SUFFIX for scene in scenes}:
        raise ValueError(f"{planned[min(taken)]} has the name of an embedded scene: rename it")
    files = {folder / f"{scene.name}{SUFFIX}": None for scene in scenes}
    files |= {folder / name: photo for name, photo in planned.items()}
    outputs.check_free(files | {folder / PAGE: None}, folder, WRITER, "picture")
    check_device()
    networks = open_networks()
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for file, photo in files.items():
        shown = scenes.pop(0) if photo is None else opened(photo)
        done = read(shown, networks)
        outputs.write_figure(file, picture(done, networks.classes), photo, WRITER)
        sections.append(section(done, file.name, networks.classes))
        yield f"{file}: {done.tags}"
    outputs.write_page(folder / PAGE, page(sections, networks), WRITER)
    yield f"{folder / PAGE}: open it in a browser"


def open_networks() -> Networks:
    """The package's own networks.  Raises ValueError where a file of theirs is damaged."""
    profile, last = profiles.get(shipped.PROFILE), shipped.CLASSIFIERS[-1]
    segmenter, affinity = None, None
    if shipped.SEGMENTER in shipped.known():
        segmenter = shipped.network(profile, catalogue.row(shipped.SEGMENTER)).to(device())
    if shipped.REFINED in shipped.known():
        affinity = shipped.network(profile, catalogue.row(shipped.REFINED))
    return Networks(
        cams={NAMES[row]: _cams(profile, row) for row in shipped.CLASSIFIERS},
        segmenter=segmenter,
        affinity=affinity,
        scales=profile.segmentation.scales,
        refinement=profile.refinement,
        threshold=shipped.entry(last)["numbers"]["threshold_maskless"],
        classes=tuple(shipped.manifest()["classes"]),
    )


def _cams(profile: Profile, name: str) -> CamReader:
    reader = shipped_reader(profile, catalogue.row(name))
    return replace(reader, network=reader.network.to(device()))


def example_scenes(scenes: Scenes) -> Iterator[Shown]:
    """The first unseen scene of every number of classes in `SCENE_CLASSES`."""
    counts = [int(scenes.tags(index).sum()) for index in range(len(scenes))]
    for wanted in SCENE_CLASSES:
        if wanted in counts:
            index = counts.index(wanted)
            scene = scenes[index]
            ids = torch.from_numpy(np.flatnonzero(scene.tags))
            yield Shown(f"scene{index:03d}", scene.image, None, scene.mask, ids)


def opened(photo: Path) -> Shown:
    """A photo at the size of the training scenes, its shape kept."""
    side, size = profiles.get(shipped.PROFILE).train.size, image_size(photo)
    height, width = (max(1, round(length * side / max(size))) for length in size)
    return Shown(photo.stem, read_resized(photo, (height, width)), photo)


def read(shown: Shown, networks: Networks) -> Read:
    """Every step on one photo."""
    image, last = shown.image, list(networks.cams)[-1]
    ids, logits = shown.class_ids, networks.cams[last].logits(image)
    if ids is None:
        ids = likely(logits)
    names = ", ".join(networks.classes[k] for k in ids.tolist())
    tags = f"tags {names}"
    if shown.class_ids is None:
        sure = "logits above 0" if logits.max() > 0 else "no logit above 0, the largest is taken"
        tags = f"tags guessed by the {last} classifier: {names} ({sure})"
    cams = {name: reader.cams(image, ids) for name, reader in networks.cams.items()}
    seed = cams[last]
    maps = {} if shown.truth is None else {"truth": shown.truth}
    maps[f"seed ({last})"] = label_map(ids, seed, networks.threshold)
    name, posterior = refined(image, seed, networks)
    maps[name] = label_map(ids, posterior[1:])
    if networks.segmenter is not None:
        maps["prediction (no tags)"] = predict(networks.segmenter, image, networks.scales)
    return Read(shown, {name: cam.amax(dim=0).numpy() for name, cam in cams.items()}, maps, tags)


def refined(image: np.ndarray, seed: torch.Tensor, networks: Networks) -> tuple[str, torch.Tensor]:
    """What refinement makes of a seed (K', H, W): its name, and posteriors (1 + K', H, W)."""
    alpha, net = powers_around(networks.threshold).middle, networks.affinity
    if net is None:
        return "pseudo-label (seed + CRF)", dense_crf.refine(image, seed, [alpha])[0]
    pixels = padded(torch.from_numpy(image.copy()).permute(2, 0, 1))[None]
    near, numbers = net.affinity(net.backbone.normalise(pixels))[0], networks.refinement
    walk = {"alpha": alpha, "beta": numbers.beta, "steps": numbers.steps}
    posterior = refine_by_walk(
        image, seed, near, **walk, crf_iterations=numbers.last_crf_iterations
    )
    return "pseudo-label (walk + CRF)", posterior


def picture(read: Read, classes: Sequence[str]) -> Figure:
    """Photo and CAMs above, label maps below, with a legend."""
    image = read.shown.image
    above = {"photo": image}
    above |= {f"CAM, {name}": figures.overlay(image, cam) for name, cam in read.cams.items()}
    columns, ratio = max(len(above), len(read.maps)), image.shape[0] / image.shape[1]
    size = (WIDTH, 2 * (WIDTH / columns * ratio + 0.2) + 0.8)
    figure, axes = plt.subplots(2, columns, figsize=size)
    for axis in axes.flat:
        axis.axis("off")
    for line, shown in ((axes[0], above), (axes[1][-len(read.maps) :], read.maps)):
        for axis, (title, pixels) in zip(line, shown.items(), strict=False):
            drawn = figures.labelled(image, pixels) if pixels.ndim == 2 else pixels
            figures.show(axis, drawn)
            axis.set_title(title)
    if "truth" not in read.maps:
        words = read.tags.replace(": ", ":\n").replace(" (", "\n(")
        axes[1, 0].text(0.5, 0.5, words, ha="center", va="center", fontsize=6)
    figures.cam_bar(figure, axes[0])
    figures.colour_legend(figure, figures.class_colours(read.maps.values(), classes))
    return figure


def alternative(read: Read, classes: Sequence[str]) -> str:
    """What a picture shows, for those who do not see it."""
    parts = [f"{name}: {outputs.shares(labels, classes)}" for name, labels in read.maps.items()]
    cams = ", ".join(read.cams)
    return f"{read.shown.name}, {read.tags}. Photo and CAMs ({cams}). {'. '.join(parts)}."


def section(read: Read, file: str, classes: Sequence[str]) -> str:
    """A picture of the page, with its caption."""
    words, alt = (html.escape(text) for text in (read.tags, alternative(read, classes)))
    name, source = html.escape(read.shown.name), quote(file)
    kind = "an embedded scene that no network saw in training"
    kind = kind if read.shown.file is None else "your photo; nobody knows its true mask"
    return (
        f'<figure><img src="{source}" alt="{alt}">'
        f"<figcaption><b>{name}</b>, {kind}; {words}.</figcaption></figure>"
    )


STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;"
    "margin:2rem auto;padding:0 1rem}figure{margin:2rem 0}img{width:100%;height:auto;"
    "background:#fff}figcaption{font-size:.9em}dt{font-weight:bold}"
)
STEPS = {
    "CAM": "A class activation map: how strongly each place of the photo speaks for a class, "
    "relative to the strongest place. Of several classes the strongest is shown. GAP averages the "
    "map over the photo while the classifier is trained; GPP, the paper's gated pyramid pooling, "
    "takes its place; AEFT goes on from GPP with the paper's erasing triplet.",
    "seed": "The CAM as a label map: a class where its CAM is above a threshold that was chosen "
    "without masks, background elsewhere.",
    "pseudo-label": "The seed after refinement: a random walk spreads it to places that belong "
    "together, and a dense CRF moves its borders to edges of colour.",
    "prediction": "What a segmentation network says that learned from such pseudo-labels (after "
    "walk and CRF). It is told no tags.",
}

ABSENT = {
    "walk": "The package brings no AffinityNet, so pseudo-labels are made without a random walk.",
    "prediction": "The package brings no segmentation network, so there is no prediction.",
}


def page(sections: Sequence[str], networks: Networks) -> str:
    """The page: what is seen, what the networks know and from which data, and the pictures."""
    known = shipped.manifest()
    steps = {name: text for name, text in STEPS.items() if name != "prediction"}
    steps = STEPS if networks.segmenter is not None else steps
    absent = {ABSENT["walk"]: networks.affinity, ABSENT["prediction"]: networks.segmenter}
    lacking = " ".join(words for words, network in absent.items() if network is None)
    terms = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in steps.items())
    classes = html.escape(", ".join(networks.classes))
    body = "\n".join(sections)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>AEFT: from image tags to segmentation</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>
<body><h1>From image tags to segmentation</h1>
<p>No network below saw a mask in training, only tags: which classes are in a photo, not where.
Each picture shows how far one gets with that, step by step.</p>
<dl>{terms}</dl>
{f"<p><b>What is absent.</b> {lacking}</p>" if lacking else ""}
<p><b>What the networks know.</b> {len(networks.classes)} classes: {classes}. Everything else is
background to them; on a photo without these classes their answer means nothing. They learned from
{html.escape(known["trained_on"])}: photographic cut-outs on photographic backgrounds, with tags.
Photos of the world look different, and results on them are worse.</p>
<p><b>Which scenes.</b> Of the unseen scenes the first with one, two and three classes.</p>
{body}
</body></html>
"""

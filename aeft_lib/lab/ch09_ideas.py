"""Chapter 9: every family's idea, asked of one GAP classifier on one scene; nothing is trained.

Each function gives the pictures of a figure (`figures.picture_grid`) and the numbers behind it.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aeft_lib.data.scene import Scene
from aeft_lib.lab import figures
from aeft_lib.lab.session import Session, batch_of
from aeft_lib.maps.labels import VOID, label_map
from aeft_lib.maps.seeds import Seed
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.erasing import erase, max_norm
from aeft_lib.parts.map_losses import resized
from aeft_lib.parts.reliable_labels import reliable_labels
from aeft_lib.refinement import background, dense_crf
from aeft_lib.rivals import cpn, occse
from aeft_lib.rivals.pmm import Ppmg
from aeft_lib.rivals.sccam import clustered
from aeft_lib.stages.cache_features import rescale
from aeft_lib.stages.image_reader import Picture
from aeft_lib.studies import catalogue
from aeft_lib.studies.rows import Row
from aeft_lib.studies.systems import learned

MANY = 60  # scenes of a class that are clustered, at most
READERS = 4  # beside the scene

Pictures = list[list[np.ndarray]]


class Case(NamedTuple):
    """A scene, and a GAP classifier.  class_id: the tag it is surest of.  seed: the whole seed.

    threshold: of the background, chosen without masks.
    """

    scene: Scene
    index: int
    network: CamClassifier
    class_id: int
    seed: Seed
    threshold: float

    @property
    def image(self) -> Tensor:
        """As the network takes it, (1, 3, H, W)."""
        return batch_of(self.network, self.scene.image)

    @property
    def tags(self) -> Tensor:
        """(1, K) bool."""
        return torch.from_numpy(self.scene.tags)[None]


def case(lab: Session, row: str = "gap") -> Case:
    """The first scored scene with two tags that the row's classifier sees, and that classifier.

    It sees a tag with a probability above a half.  Else it is the first with two tags, or with any.
    Raises ValueError where no scene has a tag.
    """
    scenes = lab.scenes
    counts = [int(scenes.tags(i).sum()) for i in range(len(scenes))]
    if not any(counts):
        raise ValueError("no scored scene has a tag: there is nothing to show")
    made, network = lab.artefacts(row), lab.network(row)

    def tag_logits(index: int) -> Tensor:
        tagged = torch.from_numpy(scenes.tags(index))
        return lab.output(network, index).logits[0, tagged]

    double = [index for index, count in enumerate(counts) if count == 2]
    seen = (index for index in double if (tag_logits(index) > 0).all())
    index = next(seen, (double or np.flatnonzero(counts))[0])
    threshold = made["evaluation"].summary["threshold_maskless"]
    seed = lab.seeds(row)[index]
    surest = lab.output(network, index).logits[0, seed.class_ids].argmax()
    class_id = int(seed.class_ids[surest])
    return Case(scenes[index], index, network, class_id, seed, threshold)


@torch.inference_mode()
def views(chosen: Case) -> tuple[Pictures, pd.DataFrame]:
    """Half the size (SEAM), and two complementary halves (CPN), for one class.

    Four columns: what is seen, its CAM, what it is compared with, the difference.
    """
    network, image, k = chosen.network, chosen.image, chosen.class_id
    whole, half = (max_norm(network(x).cam) for x in (image, rescale(image, 0.5)))
    moved = resized(whole, half.shape[-2:])
    grid = cpn.Cpn().fitted(whole.shape[-1]).grid
    size = tuple(image.shape[-2:])
    visible = ~torch.isin(cpn.grid_cells(size, grid), cpn.draw_hidden(grid**2, 0, "half"))
    parts = cpn.halved(image, visible[None])
    shares = (visible.float().mean(), 1 - visible.float().mean())
    both = sum(w * max_norm(network(x).cam) for w, x in zip(shares, parts, strict=True))
    pairs = {"SEAM": (half, moved), "CPN": (both, whole)}
    shown = {"SEAM": chosen.scene.image, "CPN": _hidden(chosen.scene.image, visible.numpy())}
    pictures, lines = [], []
    for name, (seen, against) in pairs.items():
        maps = (seen, against, (seen - against).abs())
        pictures.append([shown[name], *(_over(chosen, m[0, k]) for m in maps)])
        lines.append({"method": name, "mean difference": float(maps[2][0, k].mean())})
    return pictures, pd.DataFrame(lines)


@torch.inference_mode()
def erasing(chosen: Case) -> tuple[Pictures, pd.DataFrame]:
    """One class erased softly and judged (OC-CSE), all but a ring erased (AEFT).

    Four columns: image, CAM, what is left, its CAM.  The numbers are probabilities of the class and
    the mean of the other tags', before and after.
    """
    network, image, k = chosen.network, chosen.image, chosen.class_id
    before = network(image)
    drawn = torch.tensor([k])
    soft = 1 - occse.erasing_mask(before.cam, drawn, tuple(image.shape[-2:]), per="image")
    hard = erase(image, before.cam, chosen.tags, keep="ring").mask
    pictures, lines = [], []
    for name, mask in (("OC-CSE", soft), ("AEFT", hard)):
        after = network(image * mask)
        cams = [max_norm(output.cam)[0, k] for output in (before, after)]
        left = _hidden(chosen.scene.image, mask[0, 0].numpy())
        pictures.append([chosen.scene.image, _over(chosen, cams[0]), left, _over(chosen, cams[1])])
        lines.append({"method": name} | _probabilities(chosen, before.logits, after.logits))
    return pictures, pd.DataFrame(lines)


def _probabilities(chosen: Case, before: Tensor, after: Tensor) -> dict[str, float]:
    others = chosen.tags[0].clone()
    others[chosen.class_id] = False
    numbers = {}
    for name, logits in (("before", before), ("after", after)):
        p = logits[0].sigmoid()
        numbers[f"class, {name}"] = float(p[chosen.class_id])
        numbers[f"others, {name}"] = float(p[others].mean()) if others.any() else float("nan")
    return numbers


@torch.inference_mode()
def rounds(lab: Session, chosen: Case, k: int = 3) -> tuple[Pictures, pd.DataFrame]:
    """Sub-categories of a class (SC-CAM): the scene, two of its cluster, two of others.

    Black where there is no such scene.  The numbers are sizes of the clusters.
    """
    scenes, network = lab.scenes, chosen.network
    having = [i for i in range(len(scenes)) if scenes.tags(i)[chosen.class_id]]
    having = [chosen.index, *(i for i in having if i != chosen.index)][:MANY]
    pooled = []
    for index in having:
        image = batch_of(network, scenes.image(index))
        features = network.backbone.tail(network.backbone.trunk(image))
        pooled.append(features.mean(dim=(2, 3))[0])
    k = min(k, len(having))
    clusters = clustered(torch.stack(pooled), torch.ones(len(having), 1), k)[:, 0].tolist()
    own = [i for i, c in zip(having, clusters, strict=True) if c == clusters[0]][1:3]
    others = [i for i, c in zip(having, clusters, strict=True) if c != clusters[0]][:2]
    blank = np.zeros((*chosen.scene.image.shape[:2], 3), dtype=np.uint8)
    line = [chosen.scene.image]
    for found in (own, others):
        images = [scenes.image(index) for index in found]
        line += [*images, blank, blank][:2]
    sizes = pd.Series(clusters).value_counts().sort_index()
    return [line], sizes.rename_axis("cluster").rename("scenes").reset_index()


def readers(lab: Session, chosen: Case) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """The class's CAM by every reader that a row has for GAP's classifier, by label.

    One that draws on other images, as RIB does, is shown where the store has its seeds.
    The numbers: the share of the scene above half the maximum, and of the object's pixels among it.
    """
    ids, mask = chosen.seed.class_ids, chosen.scene.mask == chosen.class_id + 1
    place = ids.tolist().index(chosen.class_id)
    pictures, lines = {}, []
    for row in _readers():
        cams = _read(lab, chosen, row)
        if cams is None or len(pictures) == READERS:
            continue
        cam = cams[place].detach().numpy()
        pictures[row.label] = figures.overlay(chosen.scene.image, cam)
        lit = cam > 0.5
        on = (lit & mask).sum() / max(lit.sum(), 1)
        lines.append({"reader": row.label, "lit": lit.mean(), "of it on the object": on})
    return pictures, pd.DataFrame(lines)


def _readers() -> list[Row]:
    """Rows that read GAP's classifier, one for each reader, those of published numbers first."""
    rows, found = catalogue.rows_by_name(), {}
    classifier = learned(rows["gap"], "reader")
    for row in rows.values():
        same = learned(row, "reader") == classifier
        if same and not (row.refiner or row.segmenter):
            found.setdefault(row.reader, row)
    return sorted(found.values(), key=lambda row: row.published is None)


def _read(lab: Session, chosen: Case, row: Row) -> Tensor | None:
    """The CAMs (K', H, W) in 0..1 of the scene; None where more than the scene is needed."""
    scales, image = lab.profile.seed_scales, chosen.scene.image
    if hasattr(row.reader, "from_images"):
        given = (row.method, chosen.network, [image], [chosen.seed.class_ids])
        return row.reader.fitted(scales).from_images(*given)[0].cam
    if not row.reader.draws and not lab.at_hand(row.name):
        reader = row.reader.fitted(scales, brief=bool(lab.profile.scenes("scored").size))
        picture = Picture(chosen.index, image, torch.from_numpy(chosen.scene.tags))
        return reader.read(row.method, chosen.network, [picture], None, {})[0].cam
    return lab.seeds(row.name)[chosen.index].cam if lab.at_hand(row.name) else None


def label_makers(chosen: Case) -> tuple[Pictures, pd.DataFrame]:
    """One seed, three label maps: at a threshold, by one CRF, by proportion (PPMG).

    Five columns: image, truth and the three.  The numbers: shares of the pixels that are right.
    """
    image, seed = chosen.scene.image, chosen.seed
    power = background.powers_around(chosen.threshold).middle
    posterior = dense_crf.refine(image, seed.cam, [power])[0]
    maps = {
        "seed": label_map(*seed, chosen.threshold),
        "one CRF": label_map(seed.class_ids, posterior[1:]),
        "PPMG": Ppmg().label(image, seed, {"middle": power})[0],
    }
    lines = [{"labels": name, "right": _right(chosen, labels)} for name, labels in maps.items()]
    return [[image, chosen.scene.mask, *maps.values()]], pd.DataFrame(lines)


def doubts(chosen: Case) -> tuple[Pictures, pd.DataFrame]:
    """Where two label maps differ (SSDD), and which pixels are sure (RRM).

    Five columns: labels before the CRF and after it, who is right where they differ (green: after,
    orange: before, blue: neither), the pixels that RRM keeps (cream: void), truth.
    The numbers: shares of the scene, and how many of them are labelled right.
    """
    image, seed = chosen.scene.image, chosen.seed
    power = background.powers_around(chosen.threshold).middle
    posterior = dense_crf.refine(image, seed.cam, [power])[0]
    before, after = label_map(*seed, chosen.threshold), label_map(seed.class_ids, posterior[1:])
    truth, differ = chosen.scene.mask, before != after
    sure = reliable_labels(torch.tensor(image).permute(2, 0, 1), seed.cam, seed.class_ids)
    sure = sure.numpy()
    grey = np.repeat(image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    regions = (differ & (after == truth), differ & (before == truth))
    neither = differ & ~regions[0] & ~regions[1]
    colours = (figures.HIT, figures.SPILL, figures.MISS)
    for region, colour in zip((*regions, neither), colours, strict=True):
        grey[region] = 0.3 * grey[region] + 0.7 * colour
    lines = [
        {"pixels": "all, before", "share": 1.0, "right": _right(chosen, before)},
        {"pixels": "all, after", "share": 1.0, "right": _right(chosen, after)},
        {"pixels": "sure", "share": (sure != VOID).mean(), "right": _right(chosen, sure)},
    ]
    if differ.any():
        right = (after == truth)[differ].mean()
        lines.append({"pixels": "where they differ", "share": differ.mean(), "right": right})
    return [[before, after, grey, sure, truth]], pd.DataFrame(lines)


def _right(chosen: Case, labels: np.ndarray) -> float:
    """The share of labelled pixels that are right; void does not count."""
    counted = (labels != VOID) & (chosen.scene.mask != VOID)
    return float((labels == chosen.scene.mask)[counted].mean()) if counted.any() else float("nan")


def _over(chosen: Case, small: Tensor) -> np.ndarray:
    """A map (h, w) in 0..1 over the scene."""
    image = chosen.scene.image
    return figures.overlay(image, figures.stretched(small.clamp(0, 1).numpy(), image))


def _hidden(image: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """An image in which what is not shown, (H, W) in 0..1, is the mean colour; RGB in 0..1."""
    mean, shown = image.mean(axis=(0, 1)) / 255, shown[..., None]
    return image / 255 * shown + mean * (1 - shown)

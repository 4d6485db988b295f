"""Chapter 5: one training scene from its seed to its pseudo-label, and rows of label maps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.data.scene import Scene, Scenes
from aeft_lib.lab import figures
from aeft_lib.lab.session import Session
from aeft_lib.maps import evaluation
from aeft_lib.maps.cam_fit import tagged_iou
from aeft_lib.maps.labels import VOID, label_map, read_label_map
from aeft_lib.maps.seeds import Seed, read_seeds
from aeft_lib.refinement import affinity, dense_crf, random_walk
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.refinement.background import Powers, crossing
from aeft_lib.refinement.propagation import CELL, padded, refine_by_walk
from aeft_lib.stages.affinity_nets import load_affinity_net
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.write_labels import label_files
from aeft_lib.studies import catalogue

KEPT = ("seeds", "posteriors", "scores", "labels")


def label_maps(session: Session, row: str, repeat: int = 0) -> list[np.ndarray]:
    """The label maps (H, W) uint8 of a row that has some.

    They are pseudo-labels, or what a segmentation network predicts.
    """
    files = label_files(session.artefacts(row, repeat)["labels"])
    return [read_label_map(file, num_classes=session.num_classes) for file in files]


def label_scores(session: Session, row: str, repeat: int = 0) -> pd.DataFrame:
    """Per scene of a row of label maps: mean IoU over its tagged classes (%), and how many."""
    scenes, lines = scenes_of(session, row), []
    for index, labels in enumerate(label_maps(session, row, repeat)):
        classes = np.flatnonzero(scenes.tags(index)).tolist()
        iou = 100 * tagged_iou(labels, scenes.mask(index), classes)
        lines.append({"scene": index, "iou": iou, "classes": len(classes)})
    return pd.DataFrame(lines)


def label_comparison(
    session: Session, rows: Sequence[str], indices: Sequence[int], repeat: int = 0
) -> list[list[np.ndarray]]:
    """Rows of `figures.picture_grid`: image, truth, then the label map of every row of a study."""
    maps = {row: label_maps(session, row, repeat) for row in rows}
    scenes = scenes_of(session, rows[0])
    return [[scenes[i].image, scenes[i].mask, *(maps[row][i] for row in rows)] for i in indices]


def scenes_of(session: Session, row: str) -> Scenes:
    """The scenes whose label maps a row makes."""
    chosen = catalogue.row(row)
    return session.profile.scenes("val" if chosen.segmenter else chosen.scored_on).open()


def background(session: Session, row: str) -> pd.DataFrame:
    """The threshold and the powers of the background: ``repeat, threshold, low, middle, high``."""
    lines = []
    for repeat in range(session.n_repeats):
        chosen = session.artefacts(row, repeat)["background"].summary
        lines.append({"repeat": repeat, **chosen})
    return pd.DataFrame(lines)


def store_size(session: Session, row: str, repeat: int = 0) -> pd.Series:
    """Kilobytes a scene that each artefact of a refined row keeps, and two CRFs in float32."""
    artefacts, scenes = session.artefacts(row, repeat), scenes_of(session, row)
    sizes = {name: _bytes_of(artefacts[name]) / len(scenes) / 1e3 for name in KEPT}
    maps = np.mean([1 + scenes.tags(index).sum() for index in range(len(scenes))])
    pixels = scenes.image(0)[..., 0].size
    return pd.Series(sizes | {"two CRFs in float32": 2 * maps * pixels * 4 / 1e3})


def quantisation(session: Session, row: str, scenes: int = 40, repeat: int = 0) -> pd.Series:
    """mIoU (percent) of label maps from two CRFs, as stored and as computed, on the first scenes.

    Index: ``low stored, low float, high stored, high float``, the background powers that
    AffinityNet's labels come from.
    """
    artefacts, numbers = session.artefacts(row, repeat), {}
    training = session.training_scenes
    indices = range(min(scenes, len(training)))
    masks = [training.mask(index) for index in indices]
    seeds = _first(artefacts["seeds"], "seeds", len(indices))
    for power in ("low", "high"):
        alpha = artefacts["background"].summary[power]
        stored = _first(artefacts["posteriors"], power, len(indices))
        maps = {"stored": [label_map(*seed) for seed in stored], "float": []}
        for index, seed in enumerate(seeds):
            exact = dense_crf.refine(training.image(index), seed.cam, [alpha])[0]
            maps["float"].append(label_map(seed.class_ids, exact[1:]))
        for kind, labels in maps.items():
            counts = evaluation.confusion(labels, masks, num_classes=session.num_classes)
            numbers[f"{power} {kind}"] = float(counts.miou)
    return pd.Series(numbers)


def _first(artefact: Artefact, file: str, count: int) -> list[Seed]:
    names = [f"{index:05d}" for index in range(count)]
    return [seed for _, seed in read_seeds(artefact.folder / f"{file}.npz", names)]


def _bytes_of(artefact: Artefact) -> int:
    return sum((artefact.folder / name).stat().st_size for name in artefact.record["files"])


class RefinementCase(NamedTuple):
    """One scene, ready to be drawn.

    seed: its tagged classes' CAMs.  threshold, powers: of the background, chosen without masks.
    posteriors: power's name -> the CRF's (1 + K', H, W).
    grid_labels: (h, w), what AffinityNet learns from (rows of scores).
    affinity: of the grid, as the trained network has it.
    """

    scene: Scene
    seed: Seed
    threshold: float
    powers: Powers
    posteriors: dict[str, Tensor]
    grid_labels: Tensor
    affinity: affinity.SparseAffinity


def refinement(
    session: Session, index: int, row: str = "aeft_pseudo", repeat: int = 0
) -> RefinementCase:
    """One training scene on the way of a row from its seed to its pseudo-label."""
    artefacts = session.artefacts(row, repeat)
    file = artefacts["seeds"].folder / "seeds.npz"
    seed = next(seed for _, seed in read_seeds(file, [f"{index:05d}"]))
    network = load_affinity_net(artefacts["affinity"])
    chosen = artefacts["background"].summary
    return refinement_case(session.training_scenes[index], seed, chosen, network)


def refinement_case(
    scene: Scene, seed: Seed, background: dict[str, float], network: AffinityNet
) -> RefinementCase:
    """All that the refinement knows of a scene.  background: summary of `choose_background`."""
    powers = Powers(*(background[name] for name in Powers._fields))
    posteriors = dict(
        zip(Powers._fields, dense_crf.refine(scene.image, seed.cam, powers), strict=True)
    )
    picture = padded(torch.from_numpy(scene.image.copy()).permute(2, 0, 1))[None]
    return RefinementCase(
        scene,
        seed,
        background["threshold"],
        powers,
        posteriors,
        affinity.affinity_labels(posteriors["low"], posteriors["high"], cell=CELL),
        network.affinity(network.backbone.normalise(picture))[0],
    )


def labels_of(case: RefinementCase, posterior: Tensor) -> np.ndarray:
    """Label map (H, W) of a posterior of the case's classes."""
    return label_map(case.seed.class_ids, posterior[1:])


def walked(case: RefinementCase, steps: int, *, beta: float = 8, crf_iterations: int = 0) -> Tensor:
    """Posteriors (1 + K', H, W) of the case after so many steps, and of a CRF where asked."""
    return refine_by_walk(
        case.scene.image,
        case.seed.cam,
        case.affinity,
        alpha=case.powers.middle,
        beta=beta,
        steps=steps,
        crf_iterations=crf_iterations,
    )


def background_pictures(case: RefinementCase) -> list[list[np.ndarray]]:
    """Rows of pictures, one a background power: its score, the seed's labels, those of the CRF."""
    rows = []
    for name, alpha in zip(case.powers._fields, case.powers, strict=True):
        scores = dense_crf.with_background(case.seed.cam, alpha)
        seed_labels = labels_of(case, scores / scores.sum(dim=0, keepdim=True))
        maps = (scores[0].numpy(), seed_labels, labels_of(case, case.posteriors[name]))
        rows.append([case.scene.image, figures.overlay(case.scene.image, maps[0]), *maps[1:]])
    return rows


def grid_picture(case: RefinementCase) -> np.ndarray:
    """What the two CRFs agree on, at the image's size: labels, 255 where they do not."""
    names = torch.cat([torch.zeros(1, dtype=torch.int64), case.seed.class_ids + 1])
    grid = case.grid_labels.long()
    labels = torch.where(grid == VOID, VOID, names[grid.clamp(max=len(names) - 1)])
    return figures.stretched(labels.to(torch.uint8).numpy(), case.scene.image)


def spread(case: RefinementCase, row: int, column: int, steps: int, beta: float = 8) -> np.ndarray:
    """Where the score of one cell of the grid is after so many steps, see `random_walk.reach`."""
    return random_walk.reach(case.affinity, row, column, steps=steps, beta=beta).numpy()


def walk_pictures(case: RefinementCase, steps: Sequence[int]) -> list[list[np.ndarray]]:
    """Two rows of pictures over `steps`: the strongest class's score, and the labels."""
    scores, labels = [], []
    for count in steps:
        posterior = walked(case, count)
        scores.append(figures.overlay(case.scene.image, posterior[1:].amax(dim=0).numpy()))
        labels.append(labels_of(case, posterior))
    return [scores, labels]


def strongest_cell(case: RefinementCase) -> tuple[int, int]:
    """Row and column of the grid's cell where the seed is strongest."""
    grid = F.avg_pool2d(padded(case.seed.cam)[None], CELL)[0].amax(dim=0)
    at = int(grid.argmax())
    return at // grid.shape[1], at % grid.shape[1]


def power_table(case: RefinementCase) -> pd.DataFrame:
    """Per background power: ``power, alpha, crossing``, and the foreground of the seed and the CRF.

    Foreground: the part of the scene, 0..1.
    """
    lines, powers = [], case.powers._asdict().items()
    for (name, alpha), row in zip(powers, background_pictures(case), strict=True):
        parts = [float((labels != 0).mean()) for labels in row[2:]]
        numbers = {"power": name, "alpha": alpha, "crossing": crossing(alpha)}
        lines.append(numbers | {"seed": parts[0], "crf": parts[1]})
    return pd.DataFrame(lines)


def spread_table(case: RefinementCase, cell: tuple[int, int], steps: Sequence[int]) -> pd.DataFrame:
    """How many cells hold more than a tenth of the strongest, from one cell: ``steps, cells``."""
    reached = {count: spread(case, *cell, count) > 0.1 for count in steps}
    lines = [{"steps": count, "cells": int(cells.sum())} for count, cells in reached.items()]
    return pd.DataFrame(lines)


def walk_table(case: RefinementCase, steps: Sequence[int]) -> pd.DataFrame:
    """Over the walk: the foreground and the mean IoU over the tagged classes, both 0..1."""
    lines, classes = [], case.seed.class_ids.tolist()
    for count in steps:
        labels = labels_of(case, walked(case, count))
        iou = tagged_iou(labels, case.scene.mask, classes)
        lines.append({"steps": count, "foreground": float((labels != 0).mean()), "iou": iou})
    return pd.DataFrame(lines)

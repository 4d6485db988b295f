"""Chapter 5, one scene: all that refinement knows of it, and what its steps make of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.data.scene import Scene
from aeft_lib.lab import figures
from aeft_lib.maps.cam_fit import tagged_iou
from aeft_lib.maps.labels import VOID, label_map
from aeft_lib.maps.seeds import Seed
from aeft_lib.refinement import affinity, dense_crf, random_walk
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.refinement.background import Powers, crossing
from aeft_lib.refinement.propagation import CELL, padded, refine_by_walk


class RefinementCase(NamedTuple):
    """One scene, ready to be drawn.

    seed: its tagged classes' CAMs.  threshold, powers: of the background, chosen without masks.
    posteriors: power's name -> the CRF's (1 + K', H, W).
    grid_labels: (h, w), what AffinityNet learns from (rows of scores).
    affinity: of the grid, as the trained network has it; None without one.
    """

    scene: Scene
    seed: Seed
    threshold: float
    powers: Powers
    posteriors: dict[str, Tensor]
    grid_labels: Tensor
    affinity: affinity.SparseAffinity | None


def refinement_case(
    scene: Scene, seed: Seed, background: Mapping[str, float], network: AffinityNet | None
) -> RefinementCase:
    """All that the refinement knows of a scene.  background: summary of `choose_background`."""
    powers = Powers(*(background[name] for name in Powers._fields))
    posteriors = dict(
        zip(Powers._fields, dense_crf.refine(scene.image, seed.cam, powers), strict=True)
    )
    near = None
    if network is not None:
        picture = padded(torch.from_numpy(scene.image.copy()).permute(2, 0, 1))[None]
        near = network.affinity(network.backbone.normalise(picture))[0]
    return RefinementCase(
        scene,
        seed,
        background["threshold"],
        powers,
        posteriors,
        affinity.affinity_labels(posteriors["low"], posteriors["high"], cell=CELL),
        near,
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

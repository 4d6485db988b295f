"""Counts by image: their sums are those of the evaluations, for seeds and for label maps."""

import numpy as np
import pytest
import torch

from aeft_lib.data.collages import SceneSpec
from aeft_lib.maps.evaluation import confusion, sweep
from aeft_lib.maps.labels import write_label_map
from aeft_lib.maps.seeds import Seed, write_seeds
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.count_images import ImagesSpec, count_images, read_counts

SPEC = SceneSpec("val", 5, size=32)
GRID = [50.5 / 255, 100.5 / 255, 150.5 / 255]  # between the steps that a seed is stored in


@pytest.fixture
def made(tmp_path):
    """Artefacts with random seeds and random label maps of the scenes."""
    rng, scenes = np.random.default_rng(0), SPEC.open()
    seeds = []
    for i in range(SPEC.count):
        ids = torch.from_numpy(scenes.tags(i)).nonzero()[:, 0]
        levels = rng.integers(0, 256, size=(len(ids), 32, 32))
        seeds.append(Seed(ids, torch.from_numpy(levels / 255).float()))
    write_seeds(tmp_path / "seeds.npz", zip(scenes.names, seeds, strict=True))
    (tmp_path / "labels").mkdir()
    maps = rng.integers(0, 10, size=(SPEC.count, 32, 32)).astype(np.uint8)
    for name, labels in zip(scenes.names, maps, strict=True):
        write_label_map(tmp_path / "labels" / f"{name}.png", labels)
    masks = [scenes.mask(i) for i in range(SPEC.count)]
    summary = {"threshold": GRID[2], "threshold_maskless": GRID[0]}
    artefact = Artefact("x", "x", tmp_path, {"summary": summary})
    return artefact, [tuple(seed) for seed in seeds], maps, masks


@pytest.mark.parametrize(("metric", "place"), [("miou", 2), ("precision_maskless", 0)])
def test_counts_of_seeds_add_up_to_the_sweep_of_all(made, tmp_path, metric, place):
    artefact, cams, _, masks = made
    inputs = {"seeds": artefact, "evaluation": artefact}
    assert count_images(ImagesSpec(SPEC), inputs, tmp_path) == {"images": 5}
    counts, together = read_counts(artefact, metric), sweep(cams, masks, GRID, num_classes=9)
    for name in ("tp", "predicted", "true"):
        assert getattr(counts, name).shape == (5, 10)
        assert np.array_equal(getattr(counts, name).sum(0), getattr(together, name)[place])


def test_counts_of_labels_add_up_and_have_no_best_threshold(made, tmp_path):
    artefact, _, maps, masks = made
    count_images(ImagesSpec(SPEC), {"labels": artefact}, tmp_path)
    counts, together = read_counts(artefact, "miou_maskless"), confusion(maps, masks, num_classes=9)
    assert np.array_equal(counts.tp.sum(0), together.tp)
    assert np.array_equal(counts.predicted.sum(0), together.predicted)
    assert np.array_equal(counts.true, [np.bincount(m.ravel(), minlength=10) for m in masks])
    assert read_counts(artefact, "miou") is None

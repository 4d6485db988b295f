"""What a CAM makes of one object:

hand-worked numbers, void, nothing to measure, agreement with the evaluation; the stage.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from aeft_lib.data.controlled import ControlledCollages, ControlledSpec
from aeft_lib.maps import evaluation
from aeft_lib.maps.cam_fit import object_counts, object_fits, spread
from aeft_lib.maps.labels import VOID, label_map
from aeft_lib.maps.seeds import Seed, read_seeds, write_seeds
from aeft_lib.stages.measure_objects import ObjectsSpec, measure_objects

SILENT = (np.nan, np.nan)
COLUMNS = [
    "scene",
    "tags",
    "class",
    "area",
    "spill",
    "coverage",
    "entropy",
    "half_area",
    "tp",
    "predicted",
    "true",
]


def seed_of(*classes: tuple[int, list[list[float]]]) -> Seed:
    """The seed with these CAMs (H, W)."""
    return Seed(torch.tensor([k for k, _ in classes]), torch.tensor([cam for _, cam in classes]))


def untagged(height: int, width: int) -> Seed:
    return Seed(torch.zeros(0, dtype=torch.int64), torch.zeros(0, height, width))


def labels(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def random_image(rng, tags: list[int], size=(12, 15)) -> tuple[Seed, np.ndarray]:
    """CAMs of these classes, and a mask of them and the background, a tenth of it void."""
    cam = torch.from_numpy(rng.uniform(size=(len(tags), *size)).astype(np.float32))
    mask = rng.choice([0, *(k + 1 for k in tags)], size=size).astype(np.uint8)
    mask[rng.uniform(size=size) < 0.1] = VOID
    return Seed(torch.tensor(tags, dtype=torch.int64), cam), mask


# --- fits ----------------------------------------------------------------------------------------


def test_fits_by_hand():
    seed = seed_of((2, [[1.0, 0.5], [0.25, 0.25]]))
    (fit,) = object_fits(seed, labels([3, 3], [0, 0]))
    assert fit == {
        "class": 2,
        "area": 0.5,
        "spill": 0.25,
        "coverage": 0.5,
    }  # one half is not above half the maximum


def test_every_tagged_class_has_a_line_in_order_and_other_objects_are_outside():
    seed = seed_of((0, [[1.0, 1.0, 0.0, 0.0]]), (4, [[0.0, 0.25, 0.5, 0.25]]))
    first, second = object_fits(seed, labels([1, 5, 5, 0]))
    assert first == {"class": 0, "area": 0.25, "spill": 0.5, "coverage": 1.0}
    assert second == {"class": 4, "area": 0.5, "spill": 0.25, "coverage": 0.5}


def test_a_precise_cam_spills_nothing_and_a_complete_one_covers_all():
    mask = labels([0, 2, 2], [0, 2, 2])
    inside = torch.from_numpy(mask == 2).float()[None]
    precise, complete, outside = (
        object_fits(Seed(torch.tensor([1]), cam), mask)[0]
        for cam in (inside * torch.tensor([0.0, 1.0, 0.1]), torch.ones(1, 2, 3), 1 - inside)
    )
    assert (precise["spill"], precise["coverage"]) == (0.0, 0.5)
    assert (complete["spill"], complete["coverage"]) == (pytest.approx(1 / 3), 1.0)
    assert (outside["spill"], outside["coverage"]) == (1.0, 0.0)


def test_fits_do_not_depend_on_the_height_of_the_cam(rng):
    seed, mask = random_image(rng, [1, 3])
    halved = Seed(seed.class_ids, seed.cam / 2)  # exact in float32
    assert object_fits(seed, mask) == object_fits(halved, mask)


def test_activation_on_void_pixels_is_neither_in_nor_out():
    seed = seed_of((2, [[1.0, 0.5], [0.25, 0.25]]))
    assert object_fits(seed, labels([3, 3], [0, VOID]))[0]["spill"] == pytest.approx(0.25 / 1.75)
    assert object_fits(seed, labels([3, VOID], [0, VOID]))[0] == {
        "class": 2,
        "area": 0.25,
        "spill": 0.2,
        "coverage": 1.0,
    }


def test_a_cam_without_activation_has_an_area_alone():
    (fit,) = object_fits(seed_of((1, [[0.0, 0.0]])), labels([2, 0]))
    assert fit == pytest.approx(
        {"class": 1, "area": 0.5, "spill": np.nan, "coverage": np.nan}, nan_ok=True
    )


def test_activation_on_void_alone_is_none():
    (fit,) = object_fits(seed_of((1, [[0.0, 1.0]])), labels([2, VOID]))
    assert fit == pytest.approx(
        {"class": 1, "area": 0.5, "spill": np.nan, "coverage": np.nan}, nan_ok=True
    )


def test_a_tagged_class_without_a_pixel_spills_all_and_covers_nothing_that_is():
    (fit,) = object_fits(seed_of((1, [[0.5, 1.0]])), labels([0, 5]))
    assert fit == pytest.approx(
        {"class": 1, "area": 0.0, "spill": 1.0, "coverage": np.nan}, nan_ok=True
    )


def test_an_image_without_tags_has_no_objects():
    assert object_fits(untagged(2, 3), np.zeros((2, 3), np.uint8)) == []
    assert object_counts(untagged(2, 3), np.zeros((2, 3), np.uint8), 0.5) == []


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.2, {"tp": 2, "predicted": 3, "true": 2}),  # the fourth pixel is void
        (0.25, {"tp": 2, "predicted": 2, "true": 2}),  # a tie is background
        (0.7, {"tp": 1, "predicted": 1, "true": 2}),
        (1.0, {"tp": 0, "predicted": 0, "true": 2}),
    ],
)
def test_counts_by_hand(threshold, expected):
    seed = seed_of((2, [[1.0, 0.5], [0.25, 0.75]]))
    assert object_counts(seed, labels([3, 3], [0, VOID]), threshold) == [expected]


@pytest.mark.exact
def test_a_pixel_counts_for_the_class_that_wins_it():
    seed = seed_of((0, [[0.9, 0.6, 0.1, 0.6]]), (4, [[0.8, 0.7, 0.6, 0.6]]))
    first, second = object_counts(seed, labels([5, 5, 5, 1]), 0.3)
    assert first == {"tp": 1, "predicted": 2, "true": 1}  # of equals the first
    assert second == {"tp": 2, "predicted": 2, "true": 3}


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_counts_of_all_objects_are_those_of_the_evaluation(rng, threshold):
    images = [random_image(rng, tags) for tags in ([0], [1, 3], [], [0, 2, 3], [3])]
    seeds, masks = zip(*images, strict=True)
    totals = {name: np.zeros(5, np.int64) for name in ("tp", "predicted", "true")}
    for seed, mask in images:
        for class_id, counts in zip(
            seed.class_ids.tolist(), object_counts(seed, mask, threshold), strict=True
        ):
            for name, value in counts.items():
                totals[name][class_id + 1] += value
    maps = [label_map(*seed, threshold) for seed in seeds]
    swept = evaluation.sweep(map(tuple, seeds), masks, [threshold], num_classes=4).at(0)
    for theirs in (evaluation.confusion(maps, masks, num_classes=4), swept):
        for name, total in totals.items():
            assert total[1:].tolist() == getattr(theirs, name)[1:].tolist(), name
            assert total[1:].sum() > 0


# --- spread --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cam", "expected"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], (1.0, 1.0)),
        ([[0.0, 0.0], [0.3, 0.0]], (0.0, 0.25)),
        ([[0.7, 0.7], [0.0, 0.0]], (0.5, 0.5)),  # one bit of two
        (
            [[1.0, 0.5], [0.5, 0.0]],
            (0.75, 0.25),
        ),  # 1.5 bits of two; one half is not above half the maximum
        ([[0.0, 0.0], [0.0, 0.0]], SILENT),
    ],
)
def test_spread_by_hand(cam, expected):
    assert spread(torch.tensor(cam)) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_spread_does_not_depend_on_height_place_or_size(rng):
    cam = torch.from_numpy(rng.uniform(size=(6, 8)).astype(np.float32))
    shuffled = cam.flatten()[torch.from_numpy(rng.permutation(48))].reshape(8, 6)
    for other in (cam / 4, cam.flip(0), shuffled):
        # 48 float32 terms x 6e-8 x a margin of 10; entropies are given to 1e-6.
        assert spread(other) == pytest.approx(spread(cam), abs=3e-5)
    assert spread(torch.ones(30, 40)) == pytest.approx((1.0, 1.0), abs=1e-4)  # 1200 terms x 6e-8


def test_a_sharper_cam_is_less_spread(rng):
    cam = torch.from_numpy(rng.uniform(size=(10, 10)).astype(np.float32))
    entropies, areas = zip(*(spread(cam**power) for power in (0.5, 1, 2, 4)), strict=True)
    assert list(entropies) == sorted(entropies, reverse=True)
    assert list(areas) == sorted(areas, reverse=True)
    assert 0 < entropies[-1] < entropies[0] < 1


# --- the stage -----------------------------------------------------------------------------------

SCENES = ControlledSpec("val", 5, 48, objects=2)


@pytest.fixture
def inputs(tmp_path, rng) -> dict[str, SimpleNamespace]:
    """Seeds of the scenes that are half noise and half right; the third scene has no tags, a CAM of the fourth is silent."""
    data, seeds = ControlledCollages(SCENES), []
    for i, scene in enumerate(data):
        class_ids = torch.from_numpy(np.flatnonzero(scene.tags))
        inside = np.stack([scene.mask == k + 1 for k in class_ids.tolist()])
        cam = torch.from_numpy(rng.uniform(size=inside.shape) * (0.5 + 0.5 * inside)).float()
        cam[0] *= i != 3
        seeds.append((f"{i:05d}", Seed(class_ids, cam) if i != 2 else untagged(48, 48)))
    write_seeds(tmp_path / "seeds.npz", seeds)
    return {
        "seeds": SimpleNamespace(folder=tmp_path),
        "evaluation": SimpleNamespace(summary={"threshold": 0.4}),
    }


def test_a_line_for_every_object_of_every_scene(inputs, tmp_path):
    measure_objects(ObjectsSpec(SCENES), inputs, tmp_path)
    table = pd.read_csv(tmp_path / "objects.csv")
    assert list(table) == COLUMNS
    assert table["scene"].tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    assert (table["tags"] == 2).all()
    data = ControlledCollages(SCENES)
    for scene, of_scene in table.groupby("scene"):
        assert of_scene["class"].tolist() == np.flatnonzero(data.tags(scene)).tolist()
        assert of_scene["true"].tolist() == [
            (data.mask(scene) == k + 1).sum() for k in of_scene["class"]
        ]
    np.testing.assert_allclose(table["area"], table["true"] / 48**2, rtol=1e-5)
    silent = table[(table["scene"] == 3) & table["spill"].isna()]
    assert (
        len(silent)
        == table["spill"].isna().sum()
        == table["coverage"].isna().sum()
        == table["entropy"].isna().sum()
        == 1
    )
    assert silent[["tp", "predicted"]].to_numpy().tolist() == [[0, 0]]


def test_measured_is_what_the_functions_say_of_the_stored_seeds(inputs, tmp_path):
    measure_objects(ObjectsSpec(SCENES), inputs, tmp_path)
    table, expected, data = pd.read_csv(tmp_path / "objects.csv"), [], ControlledCollages(SCENES)
    for i, (_, seed) in enumerate(read_seeds(tmp_path / "seeds.npz")):
        measured = zip(
            object_fits(seed, data.mask(i)),
            object_counts(seed, data.mask(i), 0.4),
            seed.cam,
            strict=True,
        )
        for fit, counts, cam in measured:
            entropy, half_area = spread(cam)
            expected.append(fit | counts | {"entropy": entropy, "half_area": half_area})
    pd.testing.assert_frame_equal(
        table[COLUMNS[2:]], pd.DataFrame(expected)[COLUMNS[2:]], rtol=1e-5
    )


def test_counts_are_at_the_threshold_of_the_evaluation(inputs, tmp_path):
    tables = []
    for threshold in (0.4, 0.8):
        inputs["evaluation"].summary["threshold"] = threshold
        measure_objects(ObjectsSpec(SCENES), inputs, tmp_path)
        tables.append(pd.read_csv(tmp_path / "objects.csv"))
    low, high = tables
    assert high["predicted"].sum() < low["predicted"].sum()
    pd.testing.assert_frame_equal(
        high.drop(columns=["tp", "predicted"]), low.drop(columns=["tp", "predicted"])
    )
    masks = (ControlledCollages(SCENES).mask(i) for i in range(5))
    seeds = (tuple(seed) for _, seed in read_seeds(tmp_path / "seeds.npz"))
    swept = evaluation.sweep(seeds, masks, [0.8], num_classes=9).at(0)
    for class_id, of_class in high.groupby("class"):
        assert of_class["tp"].sum() == swept.tp[class_id + 1]
        assert of_class["predicted"].sum() == swept.predicted[class_id + 1]


def test_the_summary_has_means_over_what_is_active(inputs, tmp_path):
    summary = measure_objects(ObjectsSpec(SCENES), inputs, tmp_path)
    table = pd.read_csv(tmp_path / "objects.csv").dropna()
    assert len(table) == 7
    assert summary == pytest.approx(
        {name: table[name].mean() for name in ("entropy", "half_area")}, rel=1e-5
    )


def test_scenes_without_any_tag_have_nothing_to_measure(inputs, tmp_path):
    write_seeds(tmp_path / "seeds.npz", [(f"{i:05d}", untagged(48, 48)) for i in range(5)])
    assert measure_objects(ObjectsSpec(SCENES), inputs, tmp_path) == {}

"""From seeds to label maps on the smoke profile: maps, their table and scores, the same bits again.

One store for the whole file; a row is computed by whichever test comes first, in this process with
one thread.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aeft_lib.data.collages import CLASSES, Collages
from aeft_lib.engine import shards
from aeft_lib.maps import evaluation
from aeft_lib.maps.labels import VOID, label_map, statistics, with_rest
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.networks.efficientnet_lite import normalise
from aeft_lib.refinement import dense_crf
from aeft_lib.refinement.affinity import affinity_labels
from aeft_lib.refinement.background import Powers, powers_around
from aeft_lib.refinement.propagation import refine_by_walk
from aeft_lib.stages import store
from aeft_lib.stages.affinity_nets import load_affinity_net
from aeft_lib.stages.choose_background import BackgroundSpec, choose_background
from aeft_lib.stages.refine_by_crf import CrfSpec, refine_by_crf
from aeft_lib.stages.train_affinity import AffinitySpec, label_maps, train_affinity
from aeft_lib.stages.walk_seeds import BATCH, WalkSpec, _batches, walk_seeds
from aeft_lib.stages.write_labels import TruthSpec, label_files, true_labels
from aeft_lib.studies import catalogue, run
from aeft_lib.studies.profiles import SMOKE

ROWS = [
    catalogue.get("refinement").row(name)
    for name in ("aeft_seed", "aeft_crf", "aeft_walk", "aeft_pseudo")
]
SEED, CRF, WALK, PSEUDO = ROWS
FEW = replace(SMOKE.train, count=6)
SIZE = (SMOKE.train.size,) * 2

pytestmark = pytest.mark.usefixtures("stored")


def artefacts(row) -> dict[str, store.Artefact]:
    return run.artefacts(SMOKE, row, 0)


def scores_of(made: dict[str, store.Artefact]) -> list[tuple]:
    """Class ids and scores of every image, as the row's label maps were made from."""
    file = made["scores"].folder / made["labels"].spec.file
    return [tuple(seed) for _, seed in read_seeds(file)]


def pixels(artefact: store.Artefact) -> np.ndarray:
    """All label maps of an artefact, read by Pillow alone, (N, H, W)."""
    return np.stack(
        [np.array(Image.open(file)) for file in sorted(artefact.folder.glob("labels/*.png"))]
    )


def masks(scenes) -> list[np.ndarray]:
    return [scene.mask for scene in Collages(scenes)]


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None]).contiguous(
        memory_format=torch.channels_last
    )


# --- label maps and their table -------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_scene_has_a_map_of_tagged_classes_alone(row):
    labels = artefacts(row)["labels"]
    assert [file.name for file in label_files(labels)] == [
        f"{i:05d}.png" for i in range(SMOKE.train.count)
    ]
    maps = pixels(labels)
    assert maps.shape == (SMOKE.train.count, *SIZE)
    for scene, labelled in zip(Collages(SMOKE.train), maps, strict=True):
        assert set(np.unique(labelled)) <= {0, *(scene.tags.nonzero()[0] + 1)}
    assert 0 < (maps > 0).mean() < 1


def assert_table_agrees(labels: store.Artefact) -> None:
    table = pd.read_csv(
        labels.folder / "labels.csv", dtype={"name": str, "classes": str}, keep_default_na=False
    )
    assert list(table) == ["name", "classes", "foreground", "void"]
    assert table["name"].tolist() == [file.stem for file in label_files(labels)]
    for line, labelled in zip(table.itertuples(), pixels(labels), strict=True):
        expected = statistics(labelled)
        assert line.classes == expected["classes"]
        assert (line.foreground, line.void) == pytest.approx(
            (expected["foreground"], expected["void"]), abs=5.001e-5
        )
    assert labels.summary["images"] == len(table)
    assert labels.summary["foreground"] == pytest.approx((pixels(labels) % VOID > 0).mean())


def test_tables_agree_with_the_maps():
    for row in ROWS:
        assert_table_agrees(artefacts(row)["labels"])
    assert_table_agrees(store.obtain(true_labels, TruthSpec(SMOKE.train)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_maps_are_the_scores_at_the_threshold_or_as_posteriors(row):
    made = artefacts(row)
    threshold = made["background"].summary["threshold"] if row is SEED else None
    expected = np.stack([label_map(*scores, threshold) for scores in scores_of(made)])
    assert (pixels(made["labels"]) == expected).all()


def test_true_labels_are_the_masks():
    assert (
        pixels(store.obtain(true_labels, TruthSpec(SMOKE.train))) == np.stack(masks(SMOKE.train))
    ).all()


# --- background and CRF ---------------------------------------------------------------------------


def test_threshold_is_the_one_a_sweep_chooses_without_masks_and_powers_lie_around_it():
    made = artefacts(SEED)
    swept = evaluation.sweep(
        scores_of(made), masks(SMOKE.train), SMOKE.thresholds, num_classes=SMOKE.num_classes
    )
    summary = made["background"].summary
    assert summary == {
        "threshold": swept.thresholds[swept.maskless],
        **powers_around(summary["threshold"])._asdict(),
    }


def test_fixed_powers_are_taken_as_they_are(tmp_path):
    spec = BackgroundSpec(SMOKE.thresholds, (2, 19, 21))
    summary = choose_background(spec, {"seeds": artefacts(SEED)["seeds"]}, tmp_path)
    assert (summary["low"], summary["middle"], summary["high"]) == (2, 19, 21)
    assert summary["threshold"] == artefacts(SEED)["background"].summary["threshold"]


@pytest.mark.parametrize("power", ["low", "middle", "high"])
def test_stored_posteriors_make_the_label_maps_of_exact_ones(power):
    made = artefacts(CRF)
    folder = made["scores"].folder
    powers = Powers._fields  # together, as the stage has them
    alphas = [made["background"].summary[name] for name in powers]
    stored = [
        seed.cam for _, seed in read_seeds(folder / f"{power}.npz", ["00000", "00001", "00002"])
    ]
    for scene, (class_ids, cam), ours in zip(
        Collages(FEW), scores_of(artefacts(SEED)), stored, strict=False
    ):
        exact = dense_crf.refine(scene.image, cam, alphas)[powers.index(power)]
        assert (ours - exact[1:]).abs().max() <= 0.501 / 255
        # Half a step a score, and as many as there are classes for the background's.
        first, second = with_rest(exact[1:]).topk(2, dim=0).values
        sure = (first - second > (1 + len(ours)) * 0.501 / 255).numpy()
        assert (label_map(class_ids, ours) == label_map(class_ids, exact[1:]))[sure].all()
        assert sure.mean() > 0.9
    assert len(stored) == 3


def test_label_maps_and_affinity_share_the_crf_of_the_training_scenes():
    crf, pseudo = artefacts(CRF), artefacts(PSEUDO)
    assert crf["scores"].folder == pseudo["posteriors"].folder
    files = sorted(file.name for file in crf["scores"].folder.glob("*.npz"))
    assert files == ["high.npz", "low.npz", "middle.npz"]


@pytest.mark.exact
@pytest.mark.parametrize("stage", ["crf", "walk"])
def test_the_same_bits_with_one_process_and_two(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(shards, "SHARD", 3)
    made = artefacts(PSEUDO)
    for asked in (1, 2):
        monkeypatch.setenv(shards.VARIABLE, str(asked))
        (tmp_path / f"{asked}").mkdir()
        if stage == "crf":
            refine_by_crf(CrfSpec(FEW, ("low", "high")), made, tmp_path / f"{asked}")
        else:
            walk_seeds(WalkSpec(FEW), made, tmp_path / f"{asked}")
    files = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert files == (["high.npz", "low.npz"] if stage == "crf" else ["middle.npz"])
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
        assert len(list(read_seeds(tmp_path / "1" / name))) == FEW.count


# --- affinity and walk ----------------------------------------------------------------------------


def test_affinity_learns_from_what_both_crfs_say():
    folder = artefacts(PSEUDO)["posteriors"].folder
    maps = label_maps(folder)
    assert (maps.dtype, maps.shape) == (torch.uint8, (SMOKE.train.count, 12, 12))
    low, high = (next(read_seeds(folder / f"{name}.npz"))[1].cam for name in ("low", "high"))
    whole = [torch.cat([1 - scores.sum(dim=0, keepdim=True), scores]) for scores in (low, high)]
    assert torch.equal(maps[0], affinity_labels(*whole))
    assert artefacts(PSEUDO)["affinity"].summary["known"] == pytest.approx(
        (maps != VOID).float().mean().item()
    )


def spec_of_affinity(scenes=SMOKE.train) -> AffinitySpec:
    return AffinitySpec(scenes, SMOKE.backbone, SMOKE.refinement.schedule, seed=0)


def test_affinity_has_the_same_weights_again(tmp_path):
    made = artefacts(PSEUDO)
    torch.manual_seed(7)
    summary = train_affinity(spec_of_affinity(), made, tmp_path)
    assert summary == made["affinity"].summary
    for name in ("weights.safetensors", "log.csv", "steps.jsonl"):
        assert (tmp_path / name).read_bytes() == (made["affinity"].folder / name).read_bytes()
    assert set(load_file(tmp_path / "weights.safetensors")) == {
        "f8_3.weight",
        "f8_4.weight",
        "f8_5.weight",
        "f9.weight",
    }


def test_walked_posteriors_are_those_of_the_scene_alone():
    made, index = artefacts(PSEUDO), 4
    scene, (_, cam) = Collages(SMOKE.train)[index], scores_of(artefacts(SEED))[index]
    (affinity,) = load_affinity_net(made["affinity"]).affinity(as_tensor(scene.image))
    alpha = made["background"].summary["middle"]
    expected = refine_by_walk(
        scene.image, cam, affinity, alpha=alpha, beta=8, steps=64, crf_iterations=1
    )
    # Half a step, and float32 of a batch: 1e-6 x beta 8 x 13 / 4 in the last CRF, below 0.01 / 255.
    assert (scores_of(made)[index][1] - expected[1:]).abs().max() <= 0.51 / 255


def test_batches_keep_the_order_and_have_one_size():
    sizes = [(4, 6)] * 3 + [(6, 4)] + [(4, 6)] * (BATCH + 1)
    items = [((f"{i}", None), np.zeros((*size, 3))) for i, size in enumerate(sizes)]
    batches = list(_batches(items))
    assert [len(batch) for batch in batches] == [3, 1, BATCH, 1]
    assert [name for batch in batches for (name, _), _ in batch] == list(
        map(str, range(len(sizes)))
    )


def test_the_walk_changes_scores_and_the_crf_after_it_too():
    crf, walk, pseudo = (pixels(artefacts(row)["labels"]) for row in (CRF, WALK, PSEUDO))
    assert 0.001 < (crf != walk).mean() < 0.5
    assert 0.001 < (walk != pseudo).mean() < 0.5


# --- evaluation -----------------------------------------------------------------------------------


def headline(maps: np.ndarray, scenes) -> dict[str, float]:
    counts = evaluation.confusion(maps, masks(scenes), num_classes=len(CLASSES))
    return {"miou": counts.miou, "precision": counts.precision, "recall": counts.recall}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_maskless_numbers_are_those_of_the_maps_and_the_others_of_the_best_threshold(row):
    made = artefacts(row)
    summary = made["evaluation"].summary
    maskless = {
        name.removesuffix("_maskless"): value
        for name, value in summary.items()
        if name.endswith("_maskless")
    }
    assert maskless == pytest.approx(headline(pixels(made["labels"]), SMOKE.train))
    curve = pd.read_csv(made["evaluation"].folder / "curve.csv")
    best = curve.loc[curve["miou"].idxmax()].to_dict()
    assert {name: summary[name] for name in best} == pytest.approx(best)
    classes = pd.read_csv(made["evaluation"].folder / "classes.csv")
    assert classes["class"].tolist() == ["background", *CLASSES]
    assert classes["iou"].mean() == pytest.approx(maskless["miou"])

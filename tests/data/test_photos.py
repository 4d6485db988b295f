"""The lines of paper scale on drawn photos: from tags to label maps, blind to masks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from laid_out import laid_out
from photo_profile import CLASSES, SPLITS, photo_profile
from photo_sets import make_coco, make_folder, make_voc
from PIL import Image

from aeft_lib import paths
from aeft_lib.data.augment import ViewSpec, color_jitter, paired_crop, random_crop, training_view
from aeft_lib.data.coco import CocoSpec
from aeft_lib.data.folder import FolderSpec
from aeft_lib.data.scene import opened
from aeft_lib.data.voc import HOME, MASKS, VocSpec
from aeft_lib.lab import ch08_conditions
from aeft_lib.lab.session import Session
from aeft_lib.maps.labels import VOID, write_label_map
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.stages.write_labels import label_files
from aeft_lib.studies import catalogue, preflight, run

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def fresh_readers():
    """No test sees the scenes of another."""
    opened.cache_clear()
    yield
    opened.cache_clear()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small VOC, and a store of its own."""
    make_voc(tmp_path / "voc", SPLITS, classes=CLASSES, size=SIZE)
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "voc"))
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    return tmp_path


def stages(folder) -> set[str]:
    """The stages that a store has results of."""
    return {record.parent.parent.name for record in folder.glob("*/*/record.json")}


# --- end to end -----------------------------------------------------------------------------------


def test_from_tags_to_a_segmentation_network_at_every_photos_own_size(root):
    row = catalogue.row("segment_aeft_crf")
    artefacts = run.artefacts(photo_profile(), row, 0)
    assert 0 <= artefacts["evaluation"].summary["miou"] <= 100
    assert {Image.open(file).size for file in label_files(artefacts["labels"])} == {SIZE[::-1]}
    labels = run.artefacts(photo_profile(), catalogue.AEFT_PSEUDO, 0)
    seeds = [seed for _, seed in read_seeds(labels["seeds"].folder / "seeds.npz")]
    scenes = (photo_profile().train).open()
    assert len(seeds) == len(scenes) == SPLITS["train_aug"]
    assert all(seed.cam.shape[1:] == SIZE for seed in seeds)
    assert [seed.class_ids.tolist() for seed in seeds] == [
        np.flatnonzero(scenes.tags(i)).tolist() for i in range(len(scenes))
    ]
    assert artefacts["teacher"].key == labels["labels"].key
    classifier = run.artefacts(photo_profile(), catalogue.AEFT, 0)["classifier"]
    lines = (classifier.folder / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


def test_training_and_refinement_read_no_mask(root):
    """Without any mask on disk all is made but the numbers."""
    for folder in MASKS:
        for file in (root / "voc" / HOME / folder).iterdir():
            file.unlink()
    assert "evaluation" not in run.artefacts(photo_profile(), catalogue.AEFT_PSEUDO, 0)
    made = {
        "train_classifier",
        "infer_seeds",
        "choose_background",
        "refine_by_crf",
        "train_affinity",
    }
    assert stages(root / "runs") == made | {"walk_seeds", "write_labels"}


@pytest.mark.parametrize("row", [catalogue.GAP, catalogue.OURS_ROW], ids=lambda row: row.name)
def test_the_same_weights_twice_and_other_views_for_another_repeat(root, row, monkeypatch):
    first = run.artefacts(photo_profile(), row, 0)["classifier"]
    other = run.artefacts(photo_profile(), row, 1)["classifier"]
    monkeypatch.setenv("AEFT_RUNS", str(root / "again"))
    again = run.artefacts(
        photo_profile(compute=replace(photo_profile().compute, lookahead=0)), row, 0
    )["classifier"]
    weights = [(a.folder / "weights.safetensors").read_bytes() for a in (first, other, again)]
    assert weights[0] == weights[2]  # whether threads prepare batches in advance does not matter
    assert weights[0] != weights[1]


def test_objects_of_photos_are_measured_by_size_class_and_number_of_tags(root, monkeypatch):
    monkeypatch.setattr(ch08_conditions, "PHOTO_ROWS", ("gap", "gated"))
    for row in (catalogue.GAP, catalogue.GATED):
        run.artefacts(photo_profile(), row, 0)
    objects = ch08_conditions.photo_objects(Session(photo_profile(), 1))
    scenes = (photo_profile().val).open()
    count = sum(int(scenes.tags(i).sum()) for i in range(len(scenes)))
    assert objects.groupby(["kind", "row"])["n"].sum().to_dict() == {
        (kind, row): count for kind in ("area", "class", "tags") for row in ("gap", "gated")
    }
    assert set(objects.loc[objects["kind"] == "class", "bin"]) <= set(scenes.classes)
    scores = objects[["iou", "precision", "recall"]]
    assert scores.apply(lambda column: column.between(0, 100)).all(axis=None)


def test_coco_with_untagged_images_goes_the_whole_way(tmp_path, monkeypatch):
    make_coco(tmp_path / "coco", {"train2014": 8, "val2014": 4}, crowd=True)
    annotations = tmp_path / "coco" / "annotations" / "instances_train2014.json"
    content = json.loads(annotations.read_text())
    bare, items = content["images"][1]["id"], content["annotations"]
    content["annotations"] = [item for item in items if item["image_id"] != bare]
    annotations.write_text(json.dumps(content))
    monkeypatch.setenv("AEFT_COCO_ROOT", str(tmp_path / "coco"))
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    profile = photo_profile(train=CocoSpec("train2014"), val=CocoSpec("val2014"))
    artefacts = run.artefacts(profile, catalogue.AEFT_PSEUDO, 0)
    maps = [np.asarray(Image.open(file)) for file in label_files(artefacts["labels"])]
    untagged = [i for i in range(8) if not profile.train.open().tags(i).any()]
    assert len(untagged) == 1
    assert not maps[untagged[0]].any()
    assert artefacts["evaluation"].summary["miou"] > 0


def test_an_own_folder_with_squared_scenes_runs_the_laptops_lines(tmp_path, monkeypatch):
    make_folder(tmp_path / "photos", {"train": 8, "val": 4})
    monkeypatch.setenv("AEFT_PHOTOS_ROOT", str(tmp_path / "photos"))
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    sets = {"train": FolderSpec("train", size=96), "val": FolderSpec("val", size=96)}
    profile = photo_profile(**sets, view=None, backbone=EfficientNetLiteSpec(trained_stages=0))
    artefacts = run.artefacts(profile, catalogue.GATED, 0)
    assert artefacts["evaluation"].summary["tag_map"] > 0
    assert "cache_features" in stages(paths.runs())


def test_a_profile_of_another_data_set_is_another_key(root):
    spec = photo_profile().train
    keys = set()
    for changed in (spec, replace(spec, count=8), replace(spec, classes=CLASSES[:2])):
        keys.add(laid_out(photo_profile(train=changed), catalogue.GAP)["classifier"].key)
    assert len(keys) == 3


def test_how_batches_are_prepared_is_no_part_of_the_key(root, monkeypatch):
    """Another lookahead or checkpoint interval has the same key; another precision has not."""
    first = run.artefacts(photo_profile(), catalogue.GAP, 0)["classifier"]
    other = replace(photo_profile().compute, lookahead=0, checkpoint_every=7)
    assert (
        run.artefacts(photo_profile(compute=other), catalogue.GAP, 0)["classifier"].key == first.key
    )
    half = replace(photo_profile().compute, precision="bf16")
    assert (
        run.artefacts(photo_profile(compute=half), catalogue.GAP, 0)["classifier"].key != first.key
    )


# --- views ----------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (20, 20), (16, 90)])
def test_a_crop_is_a_window_or_the_whole_at_a_random_place(height, width):
    picture = torch.arange(1, height * width + 1).view(1, height, width)
    seen = set()
    for seed in range(20):
        (cut,) = random_crop([picture], [0], 32, generator(seed))
        assert cut.shape == (1, 32, 32)
        kept = cut[cut > 0]
        assert len(kept) == min(height, 32) * min(width, 32)
        assert kept.tolist() == sorted(kept.tolist())  # order is kept
        seen.add(cut.nonzero()[0].tolist()[1:].__str__() + str(int(kept[0])))
    assert len(seen) > 5


def test_image_and_labels_are_cut_alike_and_padding_is_black_and_void():
    image = photo(20, 30)
    labels = torch.from_numpy(image[..., 0].copy())
    view = ViewSpec(32, None, (0, 0, 0, 0), 1.0)
    for seed in range(10):
        picture, (cut,) = paired_crop(image, [labels], [VOID], generator(seed), view)
        inside = cut != VOID
        assert torch.equal(picture[0][inside], cut[inside])
        assert not picture[:, ~inside].any()


def test_the_padding_of_a_training_view_is_the_mean_colour():
    view = ViewSpec(64, (16, 32))
    crop = training_view(photo(), generator(), view, lambda images: images.float() + 1000)
    assert crop.shape == (3, 64, 64)
    assert ((crop == 0) | (crop >= 1000)).all()
    assert 0 < (crop == 0).float().mean() < 1


def test_long_sides_are_drawn_from_the_range_with_both_ends():
    sides = set()
    for seed in range(60):
        view, normalise = ViewSpec(64, (20, 23)), lambda images: images.float() + 1
        crop = training_view(photo(30, 60), generator(seed), view, normalise)
        sides.add(int((crop[0] > 0).any(dim=0).sum()))
    assert sides == {20, 21, 22, 23}


def test_jitter_is_a_pure_function_of_its_generator_and_off_at_zero():
    picture = torch.from_numpy(photo()).permute(2, 0, 1)
    first, again, other = (
        color_jitter(picture, generator(seed), (0.4, 0.4, 0.4, 0.1)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (color_jitter(picture, generator(), (0, 0, 0, 0)).int() - picture.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": 8}, "crop must be a whole number, at least 16, got 8"),
        ({"long_side": (300, 200)}, "long_side must be two whole numbers in order"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "its hue at most 0.5"),
        ({"jitter_probability": 1.5}, r"jitter_probability must lie in 0\.\.1, got 1\.5"),
    ],
)
def test_wrong_views_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ViewSpec(**wrong)


# --- real photos ----------------------------------------------------------------------------------


def test_one_step_on_real_coco(monkeypatch, tmp_path, real_coco):
    monkeypatch.setenv("AEFT_COCO_ROOT", str(real_coco))
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    profile = photo_profile(train=CocoSpec("train2014", count=8), val=CocoSpec("val2014", count=2))
    brief = replace(profile, schedule=replace(profile.schedule, epochs=1, steps_per_epoch=1))
    artefacts = run.artefacts(brief, catalogue.AEFT_SEED, 0)
    assert artefacts["evaluation"].summary["miou"] > 0
    assert len(brief.train.open().classes) == 80


def test_pseudo_labels_of_real_voc(monkeypatch, tmp_path, real_voc):
    monkeypatch.setenv("AEFT_VOC_ROOT", str(real_voc))
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    animals = ("cat", "cow", "dog", "horse", "person", "sheep")
    sets = {
        "train": VocSpec("train_aug", 8, classes=animals),
        "val": VocSpec("val", 2, classes=animals),
    }
    artefacts = run.artefacts(photo_profile(**sets), catalogue.get("refinement").row("aeft_crf"), 0)
    assert artefacts["evaluation"].summary["miou"] > 0


# --- what a result depends on ---------------------------------------------------------------------


def score(row) -> float:
    opened.cache_clear()  # as a new process would
    return run.artefacts(photo_profile(), row, 0)["evaluation"].summary["miou"]


def test_changed_masks_are_scored_anew_and_nothing_is_trained_anew(root):
    before = score(catalogue.GAP)
    trained = set((root / "runs" / "train_classifier").iterdir())
    for file in (root / "voc" / HOME / MASKS[0]).iterdir():
        mask = np.zeros(SIZE, np.uint8)
        write_label_map(file, mask)
    assert score(catalogue.GAP) != before
    assert set((root / "runs" / "train_classifier").iterdir()) == trained


def test_a_network_that_learns_from_true_masks_notices_when_they_change(root):
    row = catalogue.row("segment_truth")
    keys = set()
    for _ in range(2):
        opened.cache_clear()
        keys.add(run.artefacts(photo_profile(), row, 0)["segmenter"].key)
        for file in (root / "voc" / HOME / MASKS[1]).iterdir():
            write_label_map(file, np.zeros(SIZE, np.uint8))
    assert len(keys) == 2


def test_a_photo_of_the_same_size_in_bytes_is_another_photo(root):
    photo_file = next((root / "voc" / HOME / "JPEGImages").iterdir())
    before = (photo_profile().train).open().fingerprint
    content = bytearray(photo_file.read_bytes())
    content[-10] ^= 255
    photo_file.write_bytes(content)
    opened.cache_clear()
    assert (photo_profile().train).open().fingerprint != before


def test_another_list_of_scored_photos_is_predicted_anew(root):
    row = catalogue.row("segment_truth")
    before = run.artefacts(photo_profile(), row, 0)["labels"]
    listed = root / "voc" / HOME / "ImageSets" / "Segmentation" / "val.txt"
    listed.write_text("\n".join(listed.read_text().split()[:-1]))
    opened.cache_clear()
    after = run.artefacts(photo_profile(), row, 0)["labels"]
    assert len(label_files(after)) == len(label_files(before)) - 1


# --- before long work -----------------------------------------------------------------------------


def harm(root, what: str) -> None:
    home = root / "voc" / HOME
    names = (home / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    if what == "list":
        (home / "ImageSets" / "Segmentation" / "val.txt").unlink()
    elif what == "photo":
        (home / "JPEGImages" / f"{names[-1]}.jpg").write_bytes(b"")
    elif what == "few":
        listed = home / "ImageSets" / "Segmentation" / "train_aug.txt"
        listed.write_text("\n".join(listed.read_text().split()[:3]))
    elif what == "untagged":
        for name in names:
            (home / "Annotations" / f"{name}.xml").write_text("<annotation></annotation>")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("list", r"no .*val\.txt"),
        ("photo", r"\.jpg: not a readable image"),
        ("few", r"its 3 training scenes .* cannot fill a batch of 4"),
        ("untagged", r"no scene of .*val.* has a tag of cat, cow, dog"),
    ],
)
def test_what_would_end_a_run_is_said_before_it_begins(root, what, message):
    harm(root, what)
    with pytest.raises(ValueError, match=message):
        preflight.check(photo_profile())
    assert not (root / "runs").exists() or not stages(root / "runs")


def test_missing_masks_are_said_and_not_refused(root, capsys):
    for file in (root / "voc" / HOME / MASKS[0]).iterdir():
        file.unlink()
    preflight.check(photo_profile())
    assert "4 of 4 scenes of" in capsys.readouterr().err


def test_devices_and_boards_that_are_not_there_are_named(root, monkeypatch):
    monkeypatch.setenv("AEFT_DEVICE", "gpu0")
    with pytest.raises(ValueError, match="AEFT_DEVICE=gpu0 cannot be used"):
        preflight.check(photo_profile())
    monkeypatch.setenv("AEFT_DEVICE", "cpu")
    monkeypatch.setenv("AEFT_TENSORBOARD", str(root))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        RuntimeError, match="AEFT_TENSORBOARD is set, but TensorBoard is not installed"
    ):
        preflight.check(photo_profile())


def test_weights_that_are_not_there_are_asked_for_first(root, monkeypatch):
    monkeypatch.delenv("AEFT_RESNET38D_PARAMS", raising=False)
    with pytest.raises(ValueError, match="point AEFT_RESNET38D_PARAMS at it"):
        preflight.check(photo_profile(backbone=ResNet38dSpec()))

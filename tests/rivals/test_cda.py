"""CDA: the original's selection and pastes, exactly; its corrected form; a bank, and a training."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.maps.labels import VOID
from aeft_lib.rivals.cda import (
    BANK,
    BankSpec,
    Instance,
    Pasting,
    bank_instances,
    put,
    read_bank,
    rescaled,
    resized,
    select,
    shrunk,
    turned,
)
from aeft_lib.stages import store, train_composed
from aeft_lib.stages.composer import COMPOSITION
from aeft_lib.stages.train_composed import halved, stream
from aeft_lib.stages.write_labels import TruthSpec, true_labels
from aeft_lib.studies import catalogue, pipeline
from aeft_lib.studies.profiles import LAPTOP, SMOKE

LONGEST = 0.7


@pytest.fixture
def case(golden_rivals) -> dict[str, np.ndarray]:
    return golden_rivals("cda")


class Fixed:
    """A generator that draws what it is told, and notes up to where it might."""

    def __init__(self, *drawn: int | float) -> None:
        self.drawn, self.ends = list(drawn), []

    def integers(self, low: int, high: int | None = None) -> int:
        self.ends.append(low if high is None else (low, high))
        return self.drawn.pop(0)

    def random(self) -> float:
        return self.drawn.pop(0)


def pastes(case: dict) -> list[str]:
    return sorted({key.split("/")[0] for key in case if key.startswith("paste")})


# --- the original's numbers -----------------------------------------------------------------------


def test_golden_selection(case):
    kept, boxes = case["select/kept_class_id"], case["select/box_y0_y1_x0_x1"]
    assert (kept == -1).any()
    assert (kept >= 0).any()
    for i, class_id in enumerate(kept.tolist()):
        instance = select(case[f"select/seg_{i}"])
        assert (instance is None) == (class_id == -1), i
        if instance is not None:
            assert instance.class_id == class_id
            assert list(instance[2:6]) == boxes[i].tolist()


@pytest.mark.parametrize("blurred", [False, True])
def test_golden_pastes(case, blurred):
    names = pastes(case)
    assert names
    for name in names:
        given = (case[f"{name}/{part}"] for part in ("background", "instance", "segment"))
        rng = Fixed(*case[f"{name}/degree_row_col"].tolist())
        ours = Pasting(dilated=True, blurred=blurred).paste(*given, rng)
        theirs = case[f"{name}/{'out_blur' if blurred else 'out'}"]
        assert np.array_equal(ours, theirs), name
        assert rng.ends[0] == (-90, 91)
        assert [end - 1 for end in rng.ends[1:]] == case[f"{name}/max_row_col"].tolist(), name


def test_golden_scaled(case):
    """What it drew is not recorded, but how far it might."""
    parts = ("background", "instance", "segment", "out")
    background, instance, segment, out = (case[f"scaled/{part}"] for part in parts)
    drawn, asked = float(case["scaled/random"]), case["scaled/asked"].tolist()
    size = rescaled(segment.shape, background.shape[:2], LONGEST, drawn)
    sides = zip(background.shape, size, strict=False)
    assert [[0, most - side] for most, side in sides] == asked
    (top, left), changed = np.argwhere((out != background).any(axis=2)).min(axis=0), []
    for row in range(max(0, top - 3), top + 1):
        for column in range(max(0, left - 3), left + 1):
            rng, pasting = Fixed(drawn, row, column), Pasting(scaled=True, dilated=True)
            changed.append(pasting.paste(background, instance, segment, rng))
    assert any(np.array_equal(ours, out) for ours in changed)


def test_golden_corrected_mask_keeps_the_area(case):
    """Of every instance, rotated and shrunk: its area is that of the segment, scaled."""
    for name in pastes(case):
        segment, degree = case[f"{name}/segment"], int(case[f"{name}/degree_row_col"][0])
        target = case[f"{name}/background"].shape[:2]
        around = turned(255 * (segment != 0).astype(np.uint8), degree)
        size = shrunk(around.shape, target, LONGEST)
        area = (resized(around, size) > 127).sum()
        scale = size[0] * size[1] / (around.shape[0] * around.shape[1])
        assert area == pytest.approx((segment != 0).sum() * scale, rel=0.04), name


def test_golden_margin_grows_with_the_class_in_the_release_alone(case):
    """The same shape with another label."""
    segment = case["paste1/segment"] != 0
    for dilated in (True, False):
        areas = []
        for label in (1, 20):
            rng = Fixed(37, 5, 20)
            background = np.zeros_like(case["paste1/background"])
            white = np.full((*segment.shape, 3), 255, dtype=np.uint8)
            labels = (label * segment).astype(np.uint8)
            pasted = Pasting(dilated=dilated).paste(background, white, labels, rng)
            areas.append((pasted.max(axis=2) > 0).sum())
        assert (areas[0] < areas[1]) == dilated


# --- instances and places by hand -----------------------------------------------------------------


def rectangle(share: float, label: int = 3) -> np.ndarray:
    """A map of 40 x 40 with so much of a class, from the upper left corner on."""
    labels = np.zeros(1600, np.uint8)
    labels[: round(1600 * share)] = label
    return labels.reshape(40, 40)


@pytest.mark.parametrize(
    ("share", "kept"), [(0.095, False), (0.1, True), (0.7, True), (0.7175, False), (0.0, False)]
)
def test_shares_at_the_ends_count(share, kept):
    assert (select(rectangle(share)) is not None) == kept


def test_two_classes_give_none_and_void_is_none():
    labels = rectangle(0.3)
    labels[30:, 30:] = VOID
    assert select(labels) == Instance(0, 2, 0, 12, 0, 40, 0.3)
    labels[30:, 30:] = 5
    assert select(labels) is None


def test_parts_that_are_apart_stay_together_with_the_hole():
    labels = np.zeros((20, 20), np.uint8)
    labels[2:8, 3:9] = labels[12:15, 14:18] = 1
    assert select(labels)[2:6] == (2, 15, 3, 18)


def test_an_instance_is_shrunk_by_height_then_by_width():
    assert shrunk((100, 100), (100, 100), LONGEST) == (70, 70)
    assert shrunk((20, 30), (100, 100), LONGEST) == (20, 30)  # never enlarged
    assert shrunk((200, 400), (100, 100), LONGEST) == (35, 70)
    assert shrunk((1, 4000), (100, 100), LONGEST) == (1, 70)


@pytest.mark.parametrize("options", [{}, {"scaled": True}, {"dilated": True}])
def test_outside_of_the_box_nothing_changes(options):
    rng = np.random.default_rng(0)
    for _ in range(20):
        target = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        instance = np.full((18, 24, 3), 255, np.uint8)
        pasted = Pasting(**options).paste(target, instance, np.ones((18, 24), np.uint8), rng)
        assert pasted.shape == target.shape
        changed = np.argwhere((pasted != target).any(axis=2))
        assert len(changed)
        height, width = np.ptp(changed, axis=0) + 1
        assert height <= (32 if options.get("scaled") else 0.7 * 32)
        assert width <= 40


def test_a_hard_edge_has_no_other_colours():
    target, white = np.zeros((30, 30, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    mask = np.tri(8, dtype=bool)
    assert set(np.unique(put(target, white, mask, 5, 6))) == {0, 255}
    soft = put(target, white, mask, 5, 6, blurred=True)
    assert len(np.unique(soft)) > 2
    assert not target.any()


# --- the bank and what is composed ----------------------------------------------------------------

SCENES = replace(SMOKE.train, count=12)


@pytest.fixture
def labels(stored) -> store.Artefact:
    """True masks as label maps: the bank that predicted ones are bounded by."""
    return store.obtain(true_labels, TruthSpec(SCENES, SCENES.open().truth))


@pytest.fixture
def inputs(labels) -> dict[str, store.Artefact]:
    return Pasting().prepared(store.obtain, SCENES, labels)


def test_a_bank_has_the_images_of_one_class(inputs, labels):
    opened, bank = SCENES.open(), read_bank(inputs[COMPOSITION])
    found = {i.index: i for instances in bank.values() for i in instances}
    summary = inputs[COMPOSITION].summary
    assert summary["instances"] == len(found) > 0
    assert summary["classes_without"] == len(opened.classes) - len(bank)
    for index in range(len(opened)):
        expected = select(opened.mask(index))
        assert (index in found) == (expected is not None)
        if expected is not None:
            assert found[index][1:6] == expected[1:6]


def test_composed_tags_are_the_targets_and_one_that_was_absent(inputs):
    opened = SCENES.open()
    compose = Pasting().opened(opened, inputs)
    drawn = set()
    for index in range(len(opened)):
        image, tags = compose(index, stream(0, index))
        before = opened.tags(index)
        added = np.flatnonzero(tags & ~before)
        assert len(added) == 1
        assert (tags | before == tags).all()
        assert added[0] in read_bank(inputs[COMPOSITION])
        assert (image != opened.image(index)).any()
        drawn.add(int(added[0]))
    assert len(drawn) > 1


def test_a_composed_scene_follows_from_its_stream(inputs):
    compose = Pasting().opened(SCENES.open(), inputs)
    (first, _), (again, _), (other, _) = (
        compose(3, stream(*path)) for path in ((0, 3), (0, 3), (1, 3))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_empty_bank_leaves_scenes_as_they_are(stored, tmp_path, inputs):
    pd.DataFrame([], columns=Instance._fields).to_csv(tmp_path / BANK, index=False)
    empty = inputs | {COMPOSITION: replace(inputs[COMPOSITION], folder=tmp_path)}
    opened = SCENES.open()
    image, tags = Pasting().opened(opened, empty)(0, stream(0, 0))
    assert np.array_equal(image, opened.image(0))
    assert np.array_equal(tags, opened.tags(0))


def test_label_maps_of_background_alone_make_an_empty_bank(tmp_path, stored):
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(tmp_path / "labels" / "00000.png")
    nothing = store.Artefact("labels", "", tmp_path, {"summary": {}}, None)
    summary = bank_instances(BankSpec(SCENES, 0.1, 0.7), {"labels": nothing}, tmp_path)
    assert summary["instances"] == 0
    assert summary["classes_without"] == len(SCENES.open().classes)
    assert summary["instance_share"] == 0


class Squares:
    """Four scenes of 40 x 40 with a square of 16 x 16, of class 0 or 1; each has its own greys."""

    classes, side, place = ("first", "second"), 40, slice(12, 28)

    def __len__(self) -> int:
        return 4

    def tags(self, index: int) -> np.ndarray:
        return np.arange(2) == index % 2

    def image(self, index: int) -> np.ndarray:
        image = np.full((self.side, self.side, 3), index, np.uint8)
        image[self.place, self.place] = 200 + index
        return image

    def labels(self, index: int, rows: slice, columns: slice, exchanged: bool) -> np.ndarray:
        labels = np.zeros((self.side, self.side), np.uint8)
        labels[rows, columns] = 1 + (index + exchanged) % 2
        return labels


@pytest.mark.parametrize(
    ("rows", "columns", "exchanged"),
    [
        (Squares.place, Squares.place, False),
        (slice(10, 30), slice(10, 30), False),
        (slice(12, 24), Squares.place, False),
        (Squares.place, Squares.place, True),
    ],
    ids=["true", "too large", "too small", "another class"],
)
def test_a_bank_of_true_masks_has_the_objects_and_others_their_errors(
    tmp_path, rows, columns, exchanged
):
    """Pixel by pixel, and tag by tag: so true masks bound what predicted ones can give."""
    scenes = Squares()
    (tmp_path / "labels").mkdir()
    for index in range(len(scenes)):
        labels = scenes.labels(index, rows, columns, exchanged)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index:05d}.png")
    labels = store.Artefact("labels", "", tmp_path, {"summary": {}}, None)
    spec = BankSpec(SimpleNamespace(open=lambda: scenes), 0.1, 0.7)
    bank_instances(spec, {"labels": labels}, tmp_path)
    compose = Pasting(angle=0).opened(scenes, {"labels": labels, COMPOSITION: labels})
    height, width = (min(s.stop, 28) - max(s.start, 12) for s in (rows, columns))
    beside = (rows.stop - rows.start) * (columns.stop - columns.start) - height * width
    for index in range(len(scenes)):
        # Of the class's two instances the one that is not of this scene, upright, in a corner.
        image, tags = compose(index, Fixed(0, 1 - index // 2, 0, 0, 0))
        donor = (2 - index // 2 * 2) + (index + 1 - exchanged) % 2
        values, counts = np.unique(image[..., 0], return_counts=True)
        pasted = {v: n for v, n in zip(values, counts, strict=True) if v % 200 != index}
        assert pasted == {200 + donor: height * width} | ({donor: beside} if beside else {})
        # The new tag is that of the label map, true or not.
        assert tags.all()
        assert (scenes.tags(donor) == scenes.tags(index)).all() == exchanged


# --- the second training --------------------------------------------------------------------------

PLAIN = Schedule(5, 16, lr=0.1, head_lr=1.0, weight_decay=0.0, warmup_steps=0)


def test_half_batches_take_twice_the_steps():
    half = halved(PLAIN, 160)
    assert (half.batch_size, half.epoch_steps(160)) == (8, 20)
    last = half.factor(99, 100)
    assert last == pytest.approx(0.01**0.9)


def test_the_release_s_rate_stands_still_from_the_middle_on():
    half = halved(PLAIN, 160, short_decay=True)
    rates = [half.factor(step, 100) for step in range(100)]
    assert rates[49:] == [rates[49]] * 51
    assert rates[49] == pytest.approx((1 / 50) ** 0.9)
    assert rates[25] == pytest.approx(0.5**0.9)


def test_each_batch_has_scenes_and_what_was_composed_of_them(inputs, monkeypatch, tmp_path):
    made = classifier_inputs(inputs)
    seen: list[Batch] = []

    def fit(network, *, n_samples, batch, **_):
        generator = torch.Generator().manual_seed(0)
        seen.append(batch(torch.tensor([4, 1, 7]), generator, slice(0, 3)))
        seen.append(batch(torch.tensor([4, 1, 7]), generator.manual_seed(0), slice(1, 2)))
        assert n_samples == 12
        return [{"epoch": 1}]

    monkeypatch.setattr(train_composed.loop, "fit", fit)
    train_composed.train_composed(*made, tmp_path)
    whole, part = seen
    opened = SCENES.open()
    assert whole.features.shape[0] == whole.tags.shape[0] == 6
    for place, index in enumerate((4, 1, 7)):
        original, composed = whole.tags[2 * place : 2 * place + 2].bool()
        assert torch.equal(original, torch.from_numpy(opened.tags(index)))
        assert (composed & ~original).sum() == 1
        assert (original & ~composed).sum() == 0
    # Another rank's part of the same batch.
    assert torch.equal(part.tags, whole.tags[2:4])
    assert torch.equal(part.features, whole.features[2:4])


def classifier_inputs(inputs: dict) -> tuple:
    """Spec and inputs of a training on twelve scenes."""
    profile = replace(
        SMOKE, train=SCENES, schedule=replace(SMOKE.schedule, batch_size=4), erasing=SMALL
    )
    asked = []

    def obtain(stage, spec, given=None):
        asked.append((stage, spec))
        return store.Artefact(stage.__name__, "", None, {"summary": {}}, spec)

    pipeline.classifiers(profile, catalogue.get("rivals").row("cda"), 0, obtain)
    stage, spec = asked[-1]
    assert stage is train_composed.train_composed
    features = pipeline.features(profile, "train", store.obtain)
    return spec, inputs | {"features": features}


SMALL = replace(SMOKE.erasing, batch_size=4)


def test_the_training_learns_from_tags_alone(inputs, blind, tmp_path):
    summary = train_composed.train_composed(*classifier_inputs(inputs), tmp_path)
    assert (tmp_path / "weights.safetensors").is_file()
    assert summary["instances"] == inputs[COMPOSITION].summary["instances"]
    assert summary["classification"] > 0
    log = pd.read_csv(tmp_path / "log.csv")
    assert len(log) == SMOKE.schedule.epochs


# --- rows and values ------------------------------------------------------------------------------


def test_the_row_has_the_label_maps_of_its_own_repeat():
    made = pipeline.laid_out(SMOKE, catalogue.get("rivals").row("cda"), 1)
    pseudo = pipeline.laid_out(SMOKE, catalogue.get("rivals").row("gap_pseudo"), 1)
    assert made["classifier"].stage == "train_composed"
    assert made["mechanism_instances"].key == made["classifier"].key
    other = pipeline.laid_out(SMOKE, catalogue.get("rivals").row("cda"), 0)
    assert made["classifier"].key != other["classifier"].key
    assert pseudo["labels"].stage == "write_labels"


def test_contexts_differ_in_their_scenes_alone():
    study = catalogue.get("pasting")
    assert study.fits(LAPTOP)
    names = [row.name for row in study.rows]
    assert names == ["base.gap", "base.cda", "context_1.gap", "context_1.cda"]
    plain, tied = (
        pipeline.laid_out(SMOKE, study.row(f"{n}.cda"), 0) for n in ("base", "context_1")
    )
    specs = [made["classifier"].spec for made in (plain, tied)]
    assert [spec.scenes.context for spec in specs] == [0.0, 1.0]
    same = [replace(spec, scenes=SCENES) for spec in specs]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least": 0.8}, "least must not exceed most"),
        ({"longest": 0.0}, "longest be positive"),
        ({"most": 1.5}, "most must lie in 0..1"),
        ({"angle": 200}, "angle must be a whole number, 0 to 180"),
        ({"dilated": 1}, "dilated must be one of"),
        ({"blurred": None}, "blurred must be one of"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pasting(**options)

"""Windows of training scenes: the original's tags, the draw, what is cut out, and whole rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aeft_lib.maps.seeds import Seed, write_seeds
from aeft_lib.parts.refined import RefinedMaps
from aeft_lib.parts.windows import InWindows, RefinedCrops
from aeft_lib.stages.label_windows import WindowSpec, label_windows, window_tags
from aeft_lib.stages.map_source import WINDOWS_FILE
from aeft_lib.stages.multi_crop import Box, MultiCrop
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_on_windows import at_side, draw_window, window_source
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE
from aeft_lib.studies.rows import Row


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("pmm").items()}


def test_golden_tags_of_windows(case):
    """The rows of the masks are the classes of the image, in order."""
    boxes = [Box(*box) for box in case["window_labels/boxes"].tolist()]
    ids = case["window_labels/tags"].nonzero()[:, 0]
    stays = window_tags(case["window_labels/mask"], boxes)
    expected = case["window_labels/labels"]
    assert torch.equal(stays.float(), expected[:, ids])
    assert expected.sum() == expected[:, ids].sum()
    assert stays.any()
    assert not stays.all()


def test_a_class_stays_by_its_own_part_or_by_the_windows():
    q = torch.zeros(2, 10, 10)
    q[0, :, :5] = 1.0  # 50 pixels
    q[1, 0, :10] = 0.95  # 10 pixels
    boxes = [
        Box(0, 0, 5, 1),  # 5 of 50 of the first is no more than a tenth; of the window it is all
        Box(5, 1, 10, 10),  # nothing of either
        Box(9, 0, 10, 10),  # a tenth of the second, and a tenth of the window
        Box(8, 0, 10, 10),  # a fifth
    ]
    expected = [[True, True], [False, False], [False, False], [False, True]]
    assert window_tags(q, boxes).tolist() == expected
    assert not window_tags(torch.full((1, 4, 4), 0.9), [Box(0, 0, 4, 4)]).any()
    assert window_tags(torch.zeros(0, 4, 4), [Box(0, 0, 4, 4)]).shape == (1, 0)


def posteriors(folder, *seeds: Seed) -> Artefact:
    write_seeds(folder / "high.npz", ((f"{i:05d}", seed) for i, seed in enumerate(seeds)))
    return Artefact("refine_by_crf", "", folder, {"summary": {}}, None)


def test_windows_of_every_scene_and_scale(tmp_path):
    q = torch.zeros(2, 96, 96)
    q[0, :40, :40], q[1, 60:] = 1.0, 1.0
    seeds = [Seed(torch.tensor([1, 3]), q), Seed(torch.zeros(0, dtype=torch.int64), q[:0])]
    spec = WindowSpec(None, 5, MultiCrop())
    summary = label_windows(spec, {"posteriors": posteriors(tmp_path, *seeds)}, tmp_path)
    stored = load_file(tmp_path / WINDOWS_FILE)
    # 86 px at 58: one window at 0.75, four at 1 and at 1.5.
    assert summary["windows"] == len(stored["boxes"]) == 2 * 9
    assert stored["places"].tolist() == [[i, s] for i in (0, 1) for s in (0, *[1] * 4, *[2] * 4)]
    assert stored["tags"][0].tolist() == [0, 1, 0, 1, 0]
    assert not stored["tags"][9:].any()
    kept = stored["tags"][:9][:, [1, 3]].float().mean().item()
    assert summary["tags_kept"] == pytest.approx(kept)
    empty = sum(not any(own) for own in stored["tags"].tolist())
    assert summary["empty_windows"] == pytest.approx(empty / 18)
    assert 9 <= empty < 18


def test_a_window_without_a_tag_is_drawn_again():
    scales = torch.tensor([0, 1, 1, 1])
    tags = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 0]])
    counts = torch.zeros(4)
    for seed in range(400):
        counts[draw_window(scales, tags, torch.Generator().manual_seed(seed))] += 1
    # Half the draws are of each scale: binomial, within 5 sd.
    assert abs(counts[0] - 200) < 5 * 10
    # Three draws miss the one of three with a tag in 8 of 27 cases.
    assert (
        abs(counts[1] + counts[3] - 200 * 8 / 27)
        < 5 * (200 * 8 / 27 * 19 / 27) ** 0.5 + 50 * 8 / 27
    )
    nothing = torch.zeros_like(tags)
    assert draw_window(scales, nothing, torch.Generator().manual_seed(0)) in range(4)


def test_a_window_keeps_its_aspect_or_is_stretched():
    window = torch.ones(1, 3, 10, 20)
    kept, stretched = (at_side(window, 40, stretch=s) for s in (False, True))
    assert kept.shape == stretched.shape == (1, 3, 40, 40)
    assert (stretched == 1).all()
    assert (kept[..., :19, :] == 1).all()
    assert not kept[..., 21:, :].any()


def test_samples_are_windows_of_their_scene_with_its_tags(tmp_path):
    """A window of one pixel's height and its tag tell which it is."""
    scenes = SMOKE.train.open()
    boxes = [[0, 0, 96, 96], [0, 0, 40, 40]] * len(scenes)
    places = [[i, s] for i in range(len(scenes)) for s in (0, 1)]
    tags = torch.zeros(len(boxes), 9, dtype=torch.uint8)
    tags[0::2, 0] = tags[1::2, 1] = 1
    tensors = {"boxes": torch.tensor(boxes), "places": torch.tensor(places), "tags": tags}
    save_file(tensors, tmp_path / WINDOWS_FILE)
    spec = WindowSpec(SMOKE.train, 9, MultiCrop())
    windows = Artefact("label_windows", "", tmp_path, {"summary": {}}, spec)
    classifier = pipeline.classifiers(SMOKE, catalogue.GAP, 0, spy)["classifier"].spec
    source = window_source(classifier, windows, lambda pictures: pictures.float())
    assert source.count == len(scenes)
    batch = source(torch.arange(8), torch.Generator().manual_seed(0), slice(None))
    assert batch.images.shape == (8, 3, 96, 96)
    seen = set()
    for index, (view, own) in enumerate(zip(batch.images, batch.tags, strict=True)):
        image = torch.from_numpy(scenes.image(index).copy()).permute(2, 0, 1).float()
        number = int(own.argmax())
        part = (image, image[:, :40, :40])[number]
        both = [at_side(p[None], 96, stretch=False)[0] for p in (part, part.flip(-1))]
        assert any(torch.equal(view, candidate) for candidate in both)
        seen.add(number)
    assert seen == {0, 1}


def spy(stage, spec, inputs=None) -> Artefact:
    return Artefact(stage.__name__, "", None, {}, spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": "24"}, "power must be one of low, middle, high, got '24'"),
        ({"certain": 1.5}, "certain must lie in 0..1"),
        ({"overlap": -0.1}, "overlap must lie in 0..1"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WindowSpec(None, 5, MultiCrop(), **options)


# --- whole rows -----------------------------------------------------------------------------------


def test_rows_on_windows_run_and_are_read_in_windows(stored):
    study, few = catalogue.get("rivals"), replace(SMOKE, train=replace(SMOKE.train, count=16))
    made = [pipeline.artefacts(few, study.row(n), 0) for n in ("pmm_windows", "pmm_seam_crops")]
    numbers = [run.numbers(row) for row in made]
    assert all(0 < own["miou"] < 100 for own in numbers)
    assert 0 < numbers[0]["tags_kept"] <= 1
    assert 0 <= numbers[0]["empty_windows"] < 1
    assert made[0]["classifier"].stage == "train_on_windows"
    assert made[0]["classifier"].spec.method == made[1]["classifier"].spec.method
    # Tag logits are the classifier's, whatever its maps are read with.
    seam = pipeline.products(few, study.row("seam"), 0)
    logits = [
        load_file(a["seeds"].folder / "logits.safetensors")["logits"] for a in (made[1], seam)
    ]
    # Half precision of cached features, through two layers.
    torch.testing.assert_close(*logits, rtol=0, atol=2e-2)


def test_the_row_is_told_by_the_seeds_of_seam():
    row = catalogue.get("rivals").row("pmm_windows")
    source, maker = row.reads
    assert isinstance(source, InWindows)
    assert maker == Row(
        "seam", "SEAM", maker.method, reader=RefinedMaps(), published="rival.seam.seed"
    )
    assert row.reader == RefinedCrops()
    assert row.reader.fitted((1.0,)) == RefinedCrops()

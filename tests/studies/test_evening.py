"""Long trainings: new collages, curves over steps, the rule of saturation, both published losses."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from evening_profile import curve_table, evening_profile
from laid_out import laid_out

from aeft_lib.data.collages import Collages
from aeft_lib.data.compositions import CompositionSpec
from aeft_lib.data.voc import VocSpec
from aeft_lib.engine import device
from aeft_lib.paper.triplet import FIRST_RELEASE, FIRST_RELEASE_PARTS
from aeft_lib.stages.train_on_views import ViewsSpec, train_on_views, view_source
from aeft_lib.studies import catalogue, curves, ledger, pipeline, plan, publish, run, saturation
from aeft_lib.studies.profiles import EVENING, EVENING_FINE, EVENING_VOC, LAPTOP
from aeft_lib.studies.rows import SOFT, probe

pytestmark = pytest.mark.usefixtures("stored")
PROFILE = evening_profile()
GATED, SOFT_ROW, GAP = (catalogue.row(name) for name in ("gated", "attract_soft", "gap"))
VERSIONS = catalogue.get("triplet_versions")


# --- new collages ---------------------------------------------------------------------------------


def test_a_composition_depends_on_its_random_stream_alone_and_never_is_one_of_the_set():
    scenes = CompositionSpec("train", 4, 64).open()

    def composed(seed: int):
        return scenes.composed(torch.Generator().manual_seed(seed))

    first, again, other = composed(1), composed(1), composed(2)
    assert (first.image == again.image).all()
    assert (first.mask == again.mask).all()
    assert (first.image != other.image).any()
    assert all((first.image != scenes.image(i)).any() for i in range(4))
    assert set(first.mask.ravel()) - {0} == {i + 1 for i in first.tags.nonzero()[0]}


def test_by_index_they_are_the_collages_of_the_plain_set():
    scenes = CompositionSpec("val", 2, 64, seed=3).open()
    plain = Collages(scenes.spec)
    assert all((scenes.image(i) == plain.image(i)).all() for i in range(2))


def source(profile, row=GAP, repeat=0):
    spec = laid_out(profile, row, repeat)["classifier"].spec
    return view_source(spec, spec.backbone.build().normalise)


def test_every_step_sees_new_collages_and_a_resumed_one_the_same():
    batch, indices = source(PROFILE), torch.arange(4)

    def step(number: int, wanted=slice(None)):
        return batch(indices, torch.Generator().manual_seed(number), wanted)

    first = step(0)
    assert first.images.shape == (4, 3, 64, 64)
    assert torch.equal(first.images, step(0).images)
    assert torch.equal(first.tags[1:3], step(0, slice(1, 3)).tags)
    assert torch.equal(first.images[1:3], step(0, slice(1, 3)).images)
    assert not torch.equal(first.images, step(1).images)
    assert len({image.numpy().tobytes() for image in (*first.images, *step(1).images)}) == 8


def test_photos_keep_their_tags_and_get_other_views():
    train = Collages(replace(PROFILE.val, split="train", count=8)).spec
    batch = source(replace(PROFILE, train=train))
    a, b = (batch(torch.arange(4), torch.Generator().manual_seed(s), slice(None)) for s in (0, 1))
    assert torch.equal(a.tags, b.tags)
    assert not torch.equal(a.images, b.images)
    expected = [train.open().tags(i).tolist() for i in range(4)]
    assert a.tags.tolist() == expected


def test_no_mask_is_read(blind, tmp_path):
    spec = laid_out(replace(PROFILE, train=PROFILE.val.__class__("train", 8, 64)), GAP)
    view_source(spec["classifier"].spec, lambda images: images.float())(
        torch.arange(2), torch.Generator().manual_seed(0), slice(None)
    )


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Killed after the second of four epochs; the kept weights too are those of a whole one."""
    spec = laid_out(PROFILE, GAP)["classifier"].spec
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train_on_views(spec, {}, whole)
    calls = []
    save = pipeline.train_on_views.__globals__["state"].save_trained

    def die(network, file):
        calls.append(file.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(network, file)

    with monkeypatch.context() as patch:
        patch.setattr("aeft_lib.networks.state.save_trained", die)
        with pytest.raises(KeyboardInterrupt):
            train_on_views(spec, {}, killed)
    train_on_views(spec, {}, killed)
    names = [*(f"epoch_{point}.safetensors" for point in range(1, 5)), "weights.safetensors"]
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"view": None}, "a training on views needs a view, got None"),
        ({"points": 3}, "3 points do not divide 4 epochs"),
        ({"points": 0}, "0 points do not divide 4 epochs"),
    ],
    ids=lambda x: "",
)
def test_a_training_without_view_or_with_uneven_points_is_refused(changes, problem):
    spec = laid_out(PROFILE, GAP)["classifier"].spec
    assert isinstance(spec, ViewsSpec)
    with pytest.raises(ValueError, match=problem):
        replace(spec, **changes)


def test_another_number_of_classes_is_refused():
    spec = laid_out(PROFILE, GAP)["classifier"].spec
    with pytest.raises(ValueError, match=r"the data has K=9 classes, the network K=5"):
        view_source(replace(spec, num_classes=5), lambda images: images)


# --- curves ---------------------------------------------------------------------------------------


def test_a_row_has_a_small_table_over_its_steps_and_a_second_phase_begins_at_its_warm_start():
    first, second = (pipeline.artefacts(PROFILE, row, 0) for row in (GATED, SOFT_ROW))
    steps = saturation.curve(first["curve"])
    assert steps["step"].tolist() == [2, 4, 6, 8]
    assert steps["part"].tolist() == [0.25, 0.5, 0.75, 1.0]
    measured = {"tag_map", "miou", "precision", "recall", "threshold", "half_area", "e_anchor"}
    assert measured | {"e_positive", "positive_1_first", "negative_3_next"} <= set(steps)
    assert steps.notna().all(axis=None)
    later = saturation.curve(second["curve"])
    assert later["step"].tolist() == [0, 1, 2, 3, 4]
    same = ["tag_map", "miou", "half_area", "e_anchor", "e_positive", "positive_1_first"]
    pd.testing.assert_series_equal(later[same].iloc[0], steps[same].iloc[-1], check_names=False)
    assert [f.name for f in sorted(first["curve"].folder.glob("*.csv"))] == ["steps.csv"]
    # The last point is the trained network: same seeds as the table's but for 1/255.
    numbers = run.numbers(first)
    assert numbers["tag_map"] == pytest.approx(steps["tag_map"].iloc[-1], abs=1e-4)
    gain = steps["tag_map"].iloc[3] - steps["tag_map"].iloc[2]
    assert numbers["tag_gain"] == pytest.approx(gain)
    table = curve_table(PROFILE, [GATED, SOFT_ROW, GAP], [0])
    assert table.groupby("row").size().to_dict() == {"gated": 4, "attract_soft": 5}
    assert curve_table(PROFILE, [GAP], [0, 1]).empty


def test_gap_has_neither_gates_nor_embeddings():
    assert laid_out(PROFILE, GAP)["curve"].spec.probe is None
    assert probe(GATED.method) == SOFT
    assert probe(catalogue.row("first_soft").method).keep == "all"
    assert probe(catalogue.row("first_soft").method).attract_scale == "mean"
    assert probe(catalogue.row("attract_rigid").method).keep == "ring"


def test_differences_are_paired_at_the_same_part_of_the_training():
    lines = [
        {"row": row, "repeat": repeat, "part": part, "step": 10 * part, "miou": value}
        for row, values in (("g", ((1, 4), (6, 9))), ("gap", ((0, 1), (2, 3))))
        for repeat, of_repeat in enumerate(values)
        for part, value in zip((0.5, 1.0), of_repeat, strict=True)
    ]
    found = curves.differences(pd.DataFrame(lines), "g", "gap")
    assert found["step"].tolist() == [5, 10]
    assert found["mean"].tolist() == [2.5, 4.5]  # (1, 4) and (3, 6)
    assert found["n"].tolist() == [2, 2]
    half = 12.706204736 * 2**0.5 * 1.5 / 2**0.5  # t of one degree of freedom, times sd / sqrt(2)
    assert found["high"].tolist() == pytest.approx([2.5 + half, 4.5 + half])
    one = curves.differences(pd.DataFrame(lines[:2] + lines[4:6]), "g", "gap")
    assert one["low"].isna().all()


# --- saturation -----------------------------------------------------------------------------------


def test_the_gain_is_that_of_the_last_quarter_and_needs_its_ends():
    steps = pd.DataFrame({"part": [0.25, 0.5, 0.75, 1.0], "tag_map": [60.0, 80.0, 90.0, 91.5]})
    assert saturation.gain(steps) == pytest.approx(1.5)
    with pytest.raises(ValueError, match=r"no point at 0\.75 of the training: \[0\.5, 1\.0\]"):
        saturation.gain(steps.iloc[[1, 3]])


def test_a_row_counts_by_its_mean_and_one_that_has_not_saturated_is_reported():
    table = pd.DataFrame(
        {
            "row": ["gap", "gap", "gated", "gated"],
            "repeat": [0, 1, 0, 1],
            "tag_gain": [0.9, -0.1, 1.4, 0.2],
        }
    )
    marked = saturation.marked(table)
    assert marked["saturated"].tolist() == [True, True, False, False]
    (line,) = saturation.remarks(marked)
    assert line.startswith("gated: not saturated, its held-out tag mAP rose by 0.8 points")
    assert saturation.remarks(table) == []
    plain = table.drop(columns="tag_gain")
    assert saturation.marked(plain) is plain


def test_the_table_of_a_study_says_which_rows_have_saturated(monkeypatch):
    monkeypatch.setattr(run, "stored", lambda *_: {"miou": 40.0, "tag_gain": 2.0})
    table = run.run_study(catalogue.get("pooling_over_steps"), PROFILE, [0, 1])
    assert not table["saturated"].any()
    summary = run.summarise(table)
    assert summary["saturated"].tolist() == [False] * 3
    assert "saturated_sd" not in summary
    jobs = [(GAP, 0)]
    assert sum("not saturated" in line for line in run.remarks(PROFILE, jobs, table)) == 3


@pytest.mark.parametrize("curve", [6, -4])
def test_a_curve_has_a_point_at_three_quarters(curve):
    with pytest.raises(ValueError, match=f"curve must be a multiple of 4.*got {curve}"):
        evening_profile(curve=curve)
    with pytest.raises(ValueError, match="needs a view"):
        evening_profile(view=None)


# --- the profile and its rows ---------------------------------------------------------------------


def test_evening_keeps_the_papers_proportions():
    """Long side 256..512 against a crop of 320; two stage groups frozen; half as many images."""
    low, high = EVENING.view.long_side
    assert low / EVENING.view.crop == pytest.approx(256 / 320, abs=0.002)
    assert high / EVENING.view.crop == pytest.approx(512 / 320, abs=0.002)
    assert EVENING.backbone.trained_stages == 7 - 2
    first, second = EVENING.schedule, EVENING.erasing
    steps = first.epochs * first.epoch_steps(EVENING.train.count)
    assert steps >= 1800
    images = second.epochs * second.steps_per_epoch * second.batch_size
    assert images >= steps * first.batch_size / 2
    assert first.decay_steps == 0  # poly over the whole length
    photos = replace(EVENING_VOC, name=EVENING.name, train=EVENING.train, val=EVENING.val)
    assert photos == EVENING
    assert isinstance(EVENING_VOC.train, VocSpec)


def test_the_fine_network_has_stride_8_and_the_same_weights():
    spec = EVENING_FINE.backbone
    fine, plain = spec.build(), EVENING.backbone.build()
    assert fine.state_dict().keys() == plain.state_dict().keys()
    images = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        sides = [net.tail(net.trunk(images)).shape[-1] for net in (fine, plain)]
    assert sides == [64 // 8, 64 // 16]
    assert (EVENING_FINE.map_side, EVENING.map_side) == (32, 16)
    assert replace(EVENING_FINE, name=EVENING.name, backbone=EVENING.backbone) == EVENING


def test_a_budget_counts_what_two_studies_share_once():
    study = catalogue.get("pooling_over_steps")
    again = replace(study, name="again", rows=study.rows[:1])
    budget = plan.budget(PROFILE, [(study, range(7, 9)), (again, range(7, 10))])
    assert budget["study"].tolist() == ["pooling_over_steps", "again", "together"]
    assert budget["trainings"].tolist() == [6, 1, 7]
    hours = budget["core hours"]
    assert hours[2] == pytest.approx(hours[0] + hours[1])
    ratio = 1e3 * plan.TFLOPS / plan.CORE_GFLOPS
    assert (hours / budget["GPU hours"]).tolist() == pytest.approx([ratio] * 3)


def test_studies_of_curves_wait_for_a_profile_that_has_them():
    names = ("pooling_over_steps", "triplet_versions", "levels_over_steps", "longer_trainings")
    for study in map(catalogue.get, names):
        assert study.fits(EVENING)
        assert not study.fits(LAPTOP)
        assert run.left_out(study, LAPTOP, 3)
    assert not catalogue.get("conditions").fits(EVENING)


def test_both_versions_and_their_parts_stand_in_one_table():
    methods = {row.name: row.method for row in VERSIONS.rows}
    assert methods["first_soft_repel"] == FIRST_RELEASE
    assert methods["first_soft"] == replace(FIRST_RELEASE, repel_weight=0.0)
    for name in ("mask", "scale", "distance"):
        part = methods[f"soft_{name}"]
        changed = {f: v for f, v in vars(part).items() if v != getattr(SOFT, f)}
        off = {f: v for f, v in FIRST_RELEASE_PARTS[name].items() if v != getattr(SOFT, f)}
        assert changed == off != {}
    for row in VERSIONS.rows:
        assert row.starts_from is catalogue.GATED


def test_the_matched_baseline_takes_as_many_passes_as_attraction():
    matched, plain, soft = (
        laid_out(EVENING, VERSIONS.row(name))["classifier"].spec
        for name in ("gpp_only_matched", "gpp_only", "attract_soft")
    )
    assert matched.schedule == replace(
        plain.schedule, epochs=2 * plain.schedule.epochs, decay_steps=2 * plain.schedule.decay_steps
    )
    assert soft.schedule == plain.schedule
    long = laid_out(EVENING, catalogue.row("gated_x4"))["classifier"].spec
    assert long.schedule == replace(EVENING.schedule, epochs=4 * EVENING.schedule.epochs)


# --- the ledger -----------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A ledger of its own, and no store but that of this file."""
    monkeypatch.setattr(ledger, "home", lambda: tmp_path / "ledger")
    return tmp_path / "ledger"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """From now on the store is empty, as on another machine."""

    def leave():
        monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "empty"))

    return leave


def test_what_was_kept_is_read_where_the_store_is_empty(book, elsewhere, monkeypatch):
    numbers = run.numbers(pipeline.artefacts(PROFILE, GATED, 0))
    curve = curve_table(PROFILE, [GATED], [0])
    folder = run.keep(PROFILE, GATED, 0)
    files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    tables = ("classes.csv", "curve.csv", "record.json")
    assert files == [
        "curve/record.json",
        "curve/steps.csv",
        *(f"evaluation/{name}" for name in tables),
        "images/images.npz",
        "images/record.json",
    ]
    assert sum(f.stat().st_size for f in folder.rglob("*")) < 100_000
    elsewhere()
    assert run.stored(PROFILE, GATED, 0) == numbers
    assert run.stored(PROFILE, GATED, 1) is None
    assert run.stored(PROFILE, GAP, 0) is None
    pd.testing.assert_frame_equal(curve_table(PROFILE, [GATED], [0]), curve)
    study = replace(catalogue.get("gap_vs_gpp"), rows=(GATED,), common="gated")
    monkeypatch.setattr(run, "_compute", None)
    table = run.run_study(study, PROFILE, [0])
    assert table["miou_common"].tolist() == [pytest.approx(numbers["miou"])]
    assert run.keep(PROFILE, GATED, 0) == folder  # what the ledger alone has stays
    assert files == sorted(
        f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()
    )


def test_a_profile_that_everybody_computes_is_not_read_but_as_evidence(
    book, elsewhere, monkeypatch
):
    numbers = run.numbers(pipeline.artefacts(PROFILE, GATED, 0))
    run.keep(PROFILE, GATED, 0)
    elsewhere()
    monkeypatch.setattr(ledger, "COMPUTED", (PROFILE.name,))
    assert run.stored(PROFILE, GATED, 0) is None
    assert run.stored(PROFILE, GATED, 0, evidence=True) == numbers
    with pytest.raises(LookupError):
        run.read(PROFILE, GATED, 0)
    study, asked = replace(catalogue.get("gap_vs_gpp"), rows=(GATED,)), []

    def compute(title, profile, missing, workers):
        asked.extend(missing)
        return dict.fromkeys(missing, numbers)

    monkeypatch.setattr(run, "_compute", compute)
    run.run_study(study, PROFILE, [0])
    run.prepare([(study, [0])], PROFILE)
    assert asked == 2 * [(GATED, 0)]


def test_evidence_counts_in_the_precision_of_another_machine(book, elsewhere, monkeypatch):
    run.numbers(pipeline.artefacts(PROFILE, GATED, 0))
    run.keep(PROFILE, GATED, 0)
    elsewhere()
    anywhere = replace(PROFILE, inference="auto")  # the entry is of a machine in fp32
    monkeypatch.delenv("AEFT_PRECISION", raising=False)
    monkeypatch.setattr(device, "has_bf16", lambda where: True)
    assert run.stored(anywhere, GATED, 0)["miou"] > 0
    assert run.stale(anywhere, [(GATED, 0)]) == []
    only_bf16 = replace(PROFILE, inference="bf16")
    assert run.stored(only_bf16, GATED, 0) is None
    assert run.stale(only_bf16, [(GATED, 0)])


def test_an_entry_of_another_key_is_ignored_and_reported(book, elsewhere):
    pipeline.artefacts(PROFILE, GATED, 0)
    run.keep(PROFILE, GATED, 0)
    changed = replace(PROFILE, thresholds=PROFILE.thresholds[::2])
    elsewhere()
    assert run.stored(changed, GATED, 0) is None
    lines = run.stale(changed, [(GATED, 0), (GAP, 0)])
    assert [line.split(":")[0] for line in lines] == [
        f"evening-test/gated/0/{name}" for name in ("curve", "evaluation", "images")
    ]
    assert run.stale(PROFILE, [(GATED, 0)]) == []
    table = pd.DataFrame({"row": ["gated"], "repeat": [0], "miou": [40.0]})
    assert run.remarks(changed, [(GATED, 0)], table) == lines


def test_publish_refuses_entries_of_other_code_and_code_that_is_no_commit(book, monkeypatch):
    from aeft_lib import cli
    from aeft_lib.stages import store
    from aeft_lib.studies import profiles

    pipeline.artefacts(PROFILE, GATED, 0)
    run.keep(PROFILE, GATED, 0)
    monkeypatch.setitem(profiles.PROFILES, PROFILE.name, PROFILE)
    monkeypatch.setattr(store, "commit", lambda: "abc1234")
    publish.check_current()
    changed = replace(PROFILE, thresholds=PROFILE.thresholds[::2])
    monkeypatch.setitem(profiles.PROFILES, PROFILE.name, changed)
    with pytest.raises(ValueError, match=r"3 entries of .* are not of this code"):
        publish.check_current()
    monkeypatch.setitem(profiles.PROFILES, PROFILE.name, PROFILE)
    monkeypatch.setattr(store, "commit", lambda: "abc1234+")
    with pytest.raises(ValueError, match=r"the code is no commit \(abc1234\+\)"):
        publish.check_current()
    words = ["reproduce", "--profile", "laptop", "--repeats", "3", "--publish"]
    assert cli.main(words) == 1


def test_a_damaged_entry_is_an_error_with_a_remedy(tmp_path, monkeypatch, elsewhere):
    from aeft_lib import paths

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(paths, "SUMS", tmp_path / "SHA256SUMS")
    pipeline.artefacts(PROFILE, GATED, 0)
    folder = run.keep(PROFILE, GATED, 0)
    listed = (tmp_path / "SHA256SUMS").read_text()
    assert listed.count("figures/ledger/evening-test/gated/0/") == 7
    paths.list_committed()
    assert (tmp_path / "SHA256SUMS").read_text() == listed
    elsewhere()
    assert run.stored(PROFILE, GATED, 0)
    steps = folder / "curve" / "steps.csv"
    steps.write_text(steps.read_text().replace("1", "2", 1))
    with pytest.raises(ValueError, match=r"steps\.csv is damaged or was edited"):
        run.stored(PROFILE, GATED, 0)

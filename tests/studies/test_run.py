"""Studies on the smoke profile: the same numbers twice, shared rows, a real kill, wrong requests.

One store for the whole file holds the features and a few rows, so most tests read; computing
happens in this process with one thread, as it does in a worker.
"""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from laid_out import laid_out
from safetensors.torch import load_file, save_file

from aeft_lib import paths
from aeft_lib.data.collages import CLASSES, Collages, SceneSpec
from aeft_lib.engine import loop, shards
from aeft_lib.engine.loop import TrainingDiverged
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import FeatureSpec, load_features, scale_name
from aeft_lib.stages.infer_seeds import SeedSpec, infer_seeds
from aeft_lib.stages.loading import load_network
from aeft_lib.stages.reading import MultiScale
from aeft_lib.stages.train_classifier import ClassifierSpec, train_classifier
from aeft_lib.studies import catalogue, pipeline, profiles, run
from aeft_lib.studies.profiles import SMOKE

NUMBERS = [
    "miou",
    "precision",
    "recall",
    "threshold",
    "miou_maskless",
    "precision_maskless",
    "recall_maskless",
    "threshold_maskless",
    "tag_map",
]


pytestmark = pytest.mark.usefixtures("stored")


@pytest.fixture
def row(stored):
    """The gated row, repeat 0, computed by whichever test comes first."""
    return run.artefacts(SMOKE, catalogue.GATED, 0)


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Fail where anything is computed."""

    def refuse(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(store, "_build", refuse)
    monkeypatch.setattr(run, "_compute", refuse)


# --- the same numbers -----------------------------------------------------------------------------


def test_the_same_repeat_in_two_fresh_stores_gives_the_same_bits(row, tmp_path, monkeypatch):
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path))
    torch.manual_seed(99)  # the global generators have no say
    np.random.seed(99)  # noqa: NPY002
    again = run.artefacts(SMOKE, catalogue.GATED, 0)
    for name in row:
        assert again[name].key == row[name].key
        assert again[name].folder != row[name].folder
    for kind, file in (("classifier", "weights.safetensors"), ("seeds", "logits.safetensors")):
        first, second = (load_file(artefacts[kind].folder / file) for artefacts in (row, again))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    seeds = [
        np.load(artefacts["seeds"].folder / "seeds.npz", allow_pickle=False)
        for artefacts in (row, again)
    ]
    assert seeds[0].files == seeds[1].files
    assert all(np.array_equal(seeds[0][name], seeds[1][name]) for name in seeds[0].files)
    assert again["evaluation"].summary == row["evaluation"].summary
    for file in ("curve.csv", "classes.csv"):
        assert (again["evaluation"].folder / file).read_bytes() == (
            row["evaluation"].folder / file
        ).read_bytes()


def test_another_repeat_gives_other_numbers(row):
    other = run.artefacts(SMOKE, catalogue.GATED, 1)
    assert other["classifier"].key != row["classifier"].key
    first, second = (
        load_file(a["classifier"].folder / "weights.safetensors") for a in (row, other)
    )
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_artefacts_record_where_they_come_from(row):
    record = row["classifier"].record
    pooling = {
        "class": "Pyramid",
        "fusion": "gated",
        "levels": list(SMOKE.levels),
        "prediction": "sign_preserving",
        "gate_gain": 1.0,
        "printed": True,
    }
    assert record["spec"]["method"] == {"class": "Classification", "pooling": pooling}
    assert record["spec"]["data"] == SMOKE.train.open().fingerprint
    assert record["spec"]["seed"] == 0
    assert record["spec"]["schedule"]["epochs"] == SMOKE.schedule.epochs
    assert set(row["seeds"].record["inputs"]) == {"classifier", "features"}
    assert row["seeds"].record["inputs"]["classifier"] == row["classifier"].key
    assert set(record["files"]) == {
        "weights.safetensors",
        "log.csv",
        "steps.jsonl",
    }  # no checkpoint is left


# --- tables ---------------------------------------------------------------------------------------


def test_table_of_stored_rows_computes_nothing(row, nothing_is_built):
    table = run.run_study(catalogue.get("gap_vs_gpp"), SMOKE, [0], rows=[catalogue.GATED])
    assert list(table.columns[:3]) == ["row", "label", "repeat"]
    # smoke's scored masks lack a class
    assert set(table.columns[3:]) == {*NUMBERS, "absent", "miou_present"}
    assert len(table) == 1
    assert table.loc[0, ["row", "label", "repeat"]].tolist() == ["gated", "G", 0]
    assert table.loc[0, list(row["evaluation"].summary)].to_dict() == row["evaluation"].summary
    assert all(0 <= table.loc[0, name] <= 100 for name in NUMBERS)
    assert 0 < table.loc[0, "threshold"] < 1


def test_stored_computes_nothing(row, nothing_is_built, tmp_path, monkeypatch):
    assert run.stored(SMOKE, catalogue.GATED, 0) == row["evaluation"].summary
    assert run.stored(SMOKE, catalogue.GATED, 12345) is None
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "not there"))
    assert run.stored(SMOKE, catalogue.GATED, 0) is None
    assert list(tmp_path.iterdir()) == []


def test_rows_of_two_studies_are_one_artefact(row, nothing_is_built):
    small, large = catalogue.get("gap_vs_gpp"), catalogue.get("pyramid_ablation")
    assert [r.name for r in small.rows] == ["gap", "gated"]
    for name in ("gap", "gated"):
        assert small.row(name) == large.row(name)
    made = run.artefacts(SMOKE, large.row("gated"), 0)
    assert {name: a.key for name, a in made.items()} == {name: a.key for name, a in row.items()}


def test_all_rows_are_different_networks():
    rows = catalogue.get("pyramid_ablation").rows
    assert len({r.name for r in rows}) == len(rows) >= 10
    fitted = {row.method.fitted(SMOKE.map_side) for row in rows}
    assert len(fitted) == len(rows)
    for method in fitted:
        method.pooling.build(SMOKE.num_classes)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_result_is_that_of_its_own_job(monkeypatch, workers):
    monkeypatch.setattr(run, "_job", lambda profile, row, repeat: (row, repeat))
    rows = catalogue.get("gap_vs_gpp").rows
    jobs = {(row, repeat): [] for repeat in range(2) for row in rows}
    with ThreadPoolExecutor(workers) as pool:
        returned = {
            job: future.result() for job, future in run._in_turn(pool, SMOKE, jobs, workers)
        }
    assert returned == {job: job for job in jobs}


# --- which job is next ----------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty store."""
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path))
    return tmp_path


def made_of(*names: str) -> list[Artefact]:
    return [Artefact("stage", name, Path("stage", name), {}) for name in names]


def test_the_next_job_needs_nothing_that_a_running_one_has_yet_to_make(empty):
    runs, waits, free = jobs = [(name, 0) for name in ("runs", "waits", "free")]
    parts = [made_of("features", "cam", "walk"), made_of("features", "cam"), made_of("other")]
    parts = dict(zip(jobs, parts, strict=True))
    assert run._next([waits, free], [], parts) == waits
    assert run._next([waits, free], [runs], parts) == free
    assert run._next([waits], [runs], parts) == waits  # nothing else is left
    (empty / "stage" / "cam").mkdir(parents=True)
    assert run._next([waits, free], [runs], parts) == free
    (empty / "stage" / "features").mkdir(parents=True)
    assert run._next([waits], [runs], parts) == waits


def test_the_job_with_most_to_make_comes_first_and_of_equals_the_first(empty):
    short, long, same = jobs = [(name, 0) for name in ("short", "long", "same")]
    parts = [made_of("cam"), made_of("cam", "crf", "walk"), made_of("a", "b", "c")]
    parts = dict(zip(jobs, parts, strict=True))
    assert run._next([short, long, same], [], parts) == long
    (empty / "stage" / "walk").mkdir(parents=True)
    assert run._next([short, long, same], [], parts) == same


def test_rows_that_share_a_classifier_do_not_begin_together(empty):
    refinement, pooling = catalogue.get("refinement"), catalogue.get("gap_vs_gpp")
    jobs = [(row, 0) for row in (*refinement.rows, pooling.row("gap"))]
    parts = {job: pipeline.parts(SMOKE, *job) for job in jobs}
    for part in parts[jobs[0]]:
        if part.stage == "cache_features":  # which come before the rows
            (empty / part.folder).mkdir(parents=True)
    assert run._next(jobs[1:], jobs[:1], parts) == jobs[-1]
    beside = run._next(jobs[1:-1], jobs[-1:], parts)
    assert len(parts[beside]) == max(len(parts[job]) for job in jobs[1:-1])


def test_a_row_that_is_wrong_is_handed_over_all_the_same(empty):
    """Its own job says what is wrong with it."""
    wrong = replace(catalogue.AEFT, starts_from="no row")
    assert run._parts(SMOKE, wrong, 0) == []
    assert len(run._parts(SMOKE, catalogue.GAP, 0)) > 3
    left, parts = [(wrong, 0)], {(wrong, 0): [], ("runs", 0): made_of("cam")}
    assert run._next(left, [("runs", 0)], parts) == left[0]


def test_summary_by_hand():
    table = pd.DataFrame(
        {
            "row": ["b", "a", "b", "a", "b", "a", "c"],
            "label": ["B", "A", "B", "A", "B", "A", "C"],
            "repeat": [0, 0, 1, 1, 2, 2, 0],
            "miou": [10.0, 1.0, 20.0, 1.0, 30.0, 4.0, 7.0],
        }
    )
    summary = run.summarise(table)
    assert summary["row"].tolist() == ["b", "a", "c"]
    assert summary["n"].tolist() == [3, 3, 1]
    assert summary["miou"].tolist() == [20.0, 2.0, 7.0]
    assert summary["miou_sd"].tolist()[:2] == pytest.approx([10.0, math.sqrt(3)])
    assert math.isnan(summary["miou_sd"].iloc[2])


# --- no mask reaches training ---------------------------------------------------------------------


def test_features_and_training_never_see_a_mask(row, tmp_path, blind, monkeypatch):
    """With scenes whose mask cannot be read the same bits come out."""
    cached, render, shown = run.features(SMOKE, "train"), Collages.__getitem__, []
    assert set(load_features(cached)) == {"scale_1.0", "tags"}

    def recorded(self, index):
        shown.append(index)
        return render(self, index)

    # All that is read of a scene goes through it.
    monkeypatch.setattr(Collages, "__getitem__", recorded)
    for read in (
        lambda scenes: scenes[0].mask,
        lambda scenes: scenes.mask(0),
        lambda scenes: tuple(scenes[0]),
    ):
        with pytest.raises(blind):
            read(SMOKE.train.open())
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path))
    shown.clear()
    again = run.features(SMOKE, "train")
    assert again.folder.is_relative_to(tmp_path)
    assert again.record["files"] == cached.record["files"]
    assert set(shown) == set(range(SMOKE.train.count))
    # Training reads this artefact and no scene at all.
    asked = spec()
    shown.clear()
    trained = store.obtain(train_classifier, asked, {"features": again})
    assert trained.key == row["classifier"].key
    assert trained.record["files"].keys() == row["classifier"].record["files"].keys()
    weights = [made.record["files"]["weights.safetensors"] for made in (trained, row["classifier"])]
    assert weights[0] == weights[1]
    assert shown == []


# --- K --------------------------------------------------------------------------------------------


def spec(**changes) -> ClassifierSpec:
    """The spec of the gated row, repeat 0."""
    return replace(laid_out(SMOKE, catalogue.GATED)["classifier"].spec, **changes)


def five_classes(spec, inputs, folder):
    """Features as of a data set of five classes."""
    generator = torch.Generator().manual_seed(0)
    tags = torch.rand(8, 5, generator=generator) > 0.5
    features = torch.rand(8, 2, 1280, 6, 6, generator=generator).half()
    save_file({"scale_1.0": features, "tags": tags}, folder / "features.safetensors")
    return {"scenes": 8}


def test_classifier_and_data_of_different_k(stored):
    other = store.obtain(five_classes, FeatureSpec(SMOKE.train, SMOKE.backbone, (1.0,), "none"))
    with pytest.raises(ValueError, match="the data has K=5 classes, the network K=9"):
        store.obtain(train_classifier, spec(), {"features": other})
    of_five = store.obtain(train_classifier, spec(num_classes=5), {"features": other})
    inputs = {"classifier": of_five, "features": run.features(SMOKE, "val")}
    reading = SeedSpec(SMOKE.val, MultiScale(SMOKE.seed_scales), SMOKE.val.open().fingerprint)
    with pytest.raises(ValueError, match="the data has K=9 classes, the classifier K=5"):
        store.obtain(infer_seeds, reading, inputs)


def test_weights_of_another_k_than_the_spec_says(row):
    with pytest.raises(ValueError, match="K=5"):
        load_network(replace(row["classifier"], spec=spec(num_classes=5)))


# --- damage in a study ----------------------------------------------------------------------------


def test_truncated_weights_are_trained_again_and_the_table_is_the_same(row, tmp_path, monkeypatch):
    shutil.copytree(os.environ["AEFT_RUNS"], tmp_path / "copy")
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "copy"))
    key = row["classifier"].key
    os.truncate(tmp_path / "copy" / "train_classifier" / key / "weights.safetensors", 1000)
    with pytest.warns(
        UserWarning, match=f"train_classifier {key}: weights.safetensors does not match"
    ):
        again = run.artefacts(SMOKE, catalogue.GATED, 0)
    assert again["classifier"].record["files"] == row["classifier"].record["files"]
    assert again["evaluation"].summary == row["evaluation"].summary


# --- kill -9 --------------------------------------------------------------------------------------


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "aeft_lib.cli", *words]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "AEFT_RUNS": str(folder),
        "AEFT_QUIET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(paths.ROOT),
    }


def records(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and content of every finished record, by path in the store."""
    files = [f for f in folder.glob("*/*/record.json") if "." not in f.parent.name]
    return {f.relative_to(folder): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kill -9 of a process group is POSIX")
def test_kill_minus_nine_loses_nothing_and_changes_nothing(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = command("run", "gap_vs_gpp", "--profile", "smoke", "--repeats", "2", "--workers", "1")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    first = subprocess.Popen(words, env=environment(killed), start_new_session=True, **options)
    uninterrupted = subprocess.Popen(words, env=environment(whole), **options)
    deadline = time.monotonic() + 240
    try:
        while not any("evaluate_seeds" in str(f) for f in records(killed)):
            assert first.poll() is None, first.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    finished = records(killed)
    evaluated = [f for f in finished if "evaluate_seeds" in str(f)]
    assert 1 <= len(evaluated) < 4, "it was killed too late to show anything"
    again = subprocess.run(
        words, env=environment(killed), timeout=240, **(options | {"stdout": -1, "stderr": -1})
    )
    table, _ = uninterrupted.communicate(timeout=240)
    assert (again.returncode, uninterrupted.returncode) == (0, 0), again.stderr
    assert again.stdout == table
    assert "set aside" not in again.stderr
    after = records(killed)
    assert {f: after[f] for f in finished} == finished
    assert after.keys() == records(whole).keys()
    stages = Counter(f.parts[0] for f in after)
    assert stages == {
        "cache_features": 2,
        "count_images": 4,
        "train_classifier": 4,
        "infer_seeds": 4,
        "evaluate_seeds": 4,
    }
    assert not list(killed.glob("*/*.partial"))


# --- workers --------------------------------------------------------------------------------------


class FakePool:
    """In place of a process pool: every job ends with `error`, or, without one, in this process."""

    error: BaseException | None = None

    def __init__(self, **_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def shutdown(self, **_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            if self.error and function is not run.features:
                raise self.error
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def test_worker_that_dies_is_told_with_the_remedy(stored, monkeypatch):
    monkeypatch.setattr(
        run, "ProcessPoolExecutor", type("Pool", (FakePool,), {"error": BrokenProcessPool("gone")})
    )
    with pytest.raises(
        RuntimeError, match=r"worker process died: out of memory.*finished is kept, run again"
    ):
        run.run_study(catalogue.get("gap_vs_gpp"), SMOKE, [77, 78], rows=[catalogue.GAP], workers=2)


def test_one_worker_that_nobody_watches_is_this_process(stored, monkeypatch):
    monkeypatch.setattr(run, "ProcessPoolExecutor", None)
    monkeypatch.setenv("AEFT_WORKERS", "1")
    monkeypatch.setenv(shards.VARIABLE, "3")
    seen = []

    def job(profile, row, repeat):
        seen.append((row.name, repeat, torch.get_num_threads(), shards.processes()))
        if repeat == 78:
            raise ValueError("the row is odd")
        return {"miou": 50.0}

    monkeypatch.setattr(run, "_job", job)
    study, threads = catalogue.get("gap_vs_gpp"), torch.get_num_threads()
    table = run.run_study(replace(study, common=None), SMOKE, [77], rows=[catalogue.GAP])
    assert table["miou"].tolist() == [50.0]
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="the row is odd"):
            run.run_study(study, SMOKE, [78, 79], rows=[catalogue.GAP])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert shards.processes() == 3
    assert seen == [("gap", 77, 1, 3), ("gap", 78, 1, 3)]  # nothing begins after an error


def test_workers_of_the_environment(monkeypatch):
    monkeypatch.setenv("AEFT_WORKERS", "3")
    assert run.default_workers() == 3
    monkeypatch.setenv("AEFT_WORKERS", "")
    assert run.default_workers() == run.cores()
    for asked in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("AEFT_WORKERS", asked)
        with pytest.raises(ValueError, match=rf"AEFT_WORKERS must be .* at least 1, got '{asked}'"):
            run.default_workers()


def test_error_of_a_row_names_row_and_repeat(stored, monkeypatch):
    monkeypatch.setattr(run, "ProcessPoolExecutor", FakePool)

    def diverge(*_, **__):
        raise TrainingDiverged("the loss is nan at step 3")

    monkeypatch.setattr(loop, "fit", diverge)
    with pytest.raises(TrainingDiverged, match="step 3") as caught:
        run.run_study(catalogue.get("gap_vs_gpp"), SMOKE, [77], rows=[catalogue.GAP])
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["in row gap, repeat 77, profile smoke"]


TWO_ROWS = """
import os, sys, time
from types import SimpleNamespace

from aeft_lib.engine import shards
from aeft_lib.studies import run

def wait(indices):
    open(os.path.join(sys.argv[1], str(os.getpid())), "x").close()
    time.sleep(3600)

def job(profile, row, repeat):
    if row == "long":
        shards.SHARD = 1
        return list(shards.over_images(wait, 2))
    while len(os.listdir(sys.argv[1])) < 2:
        time.sleep(0.05)
    raise ValueError("the row is odd")

run._job, run.preflight.check, run.cores = job, lambda _: None, lambda: 4

if __name__ == "__main__":
    try:
        run._compute("title", SimpleNamespace(cached=False), [("long", 0), ("odd", 0)], 2)
    except ValueError as error:
        print(error, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_failing_row_leaves_no_child_of_another(tmp_path):
    """The parent lives on, as a notebook's kernel does."""
    (tmp_path / "two.py").write_text(TWO_ROWS)
    (tmp_path / "pids").mkdir()
    command = [sys.executable, tmp_path / "two.py", tmp_path / "pids"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    given = environment(tmp_path / "runs") | {shards.VARIABLE: ""}
    parent = subprocess.Popen(command, env=given, **pipes)
    try:
        assert parent.stdout.readline() == "the row is odd\n"
        working = [int(file.name) for file in (tmp_path / "pids").iterdir()]
        assert len(working) == 2
        deadline = time.monotonic() + 120
        while any(running(pid) for pid in working):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.communicate()


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_store_below_a_file_is_refused_before_workers_start(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "file" / "runs"))
    monkeypatch.setattr(run, "ProcessPoolExecutor", None)
    with pytest.raises(store.StoreError, match="AEFT_RUNS"):
        run.run_study(catalogue.get("gap_vs_gpp"), SMOKE, [0])


# --- wrong requests -------------------------------------------------------------------------------


def test_unknown_study_row_and_profile(monkeypatch):
    with pytest.raises(
        ValueError, match=r"unknown study 'gap'; there are gap_vs_gpp, pyramid_ablation"
    ):
        catalogue.get("gap")
    with pytest.raises(
        ValueError, match=r"study gap_vs_gpp has no row 'average'; there are gap, gated"
    ):
        catalogue.get("gap_vs_gpp").row("average")
    with pytest.raises(ValueError, match=r"unknown profile 'huge'; there are smoke, laptop"):
        profiles.get("huge")
    monkeypatch.setenv("AEFT_PROFILE", "labtop")
    with pytest.raises(ValueError, match=r"unknown profile 'labtop'"):
        profiles.get()


def test_profile_of_the_environment_and_of_the_caller(monkeypatch):
    assert profiles.get() is profiles.LAPTOP
    monkeypatch.setenv("AEFT_PROFILE", "smoke")
    assert profiles.get() is profiles.SMOKE
    assert profiles.get("laptop") is profiles.LAPTOP
    monkeypatch.setenv("AEFT_PROFILE", "")
    assert profiles.get() is profiles.LAPTOP


@pytest.mark.parametrize("asked", ["3", "", True, False, -1, 2.0, None, [3], 1j])
def test_number_of_repeats_that_is_none(asked):
    with pytest.raises(ValueError, match="repeats must be a whole number"):
        profiles.repeats(SMOKE, asked)


def test_number_of_repeats():
    assert profiles.repeats(SMOKE) == profiles.repeats(SMOKE, 0) == SMOKE.repeats
    assert profiles.repeats(SMOKE, 4) == 4


@pytest.mark.parametrize("repeats", ["3", [True], [-1], [2.0], ["0"], [None]], ids=str)
def test_repeats_of_the_wrong_type_are_refused_before_workers_start(monkeypatch, repeats):
    monkeypatch.setattr(run, "ProcessPoolExecutor", None)
    with pytest.raises(ValueError, match="repeats must be whole numbers"):
        run.run_study(catalogue.get("gap_vs_gpp"), SMOKE, repeats)


def test_scenes_whose_map_has_no_room_for_the_levels():
    """Refused before anything is computed; GAP has no levels."""
    tiny = replace(SMOKE, train=replace(SMOKE.train, size=48), val=replace(SMOKE.val, size=48))
    assert laid_out(tiny, catalogue.GAP)
    with pytest.raises(ValueError, match=r"a 3x3 map has no room for levels \(1, 2, 3, 4\)"):
        laid_out(tiny, catalogue.GATED)


def test_whole_numbers_are_scales(stored):
    assert scale_name(1) == scale_name(1.0)


def test_profile_without_scale_one():
    with pytest.raises(ValueError, match=r"seed_scales \(0\.5,\) must contain 1\.0"):
        replace(SMOKE, seed_scales=(0.5,))


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=profiles.PROFILES)
def test_profiles_are_sound(profile):
    if isinstance(profile.train, SceneSpec):  # the others' data is not there
        assert profile.num_classes == len(CLASSES)
    assert len(profile.levels) == 4
    assert profile.levels[-1] <= profile.map_side
    assert (profile.train.split[:5], profile.val.split[:3]) == ("train", "val")
    assert (profile.train.count or math.inf) >= profile.schedule.batch_size  # 0 is all there is
    assert profile.cached == (profile.train.size > 0 and not profile.curve)
    assert all(a < b for a, b in zip(profile.thresholds, profile.thresholds[1:], strict=False))
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.repeats = 9

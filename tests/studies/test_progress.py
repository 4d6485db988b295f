"""The bar of a study: steps read from logs in the store, the time left, silence where asked."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from aeft_lib.engine import shards
from aeft_lib.stages import fitting
from aeft_lib.studies import catalogue, plan, progress, run
from aeft_lib.studies.pipeline import parts
from aeft_lib.studies.profiles import SMOKE
from aeft_lib.studies.progress import Trainings

LINE = '{{"step": {}, "steps": {}, "lr": 0.1}}\n'


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """An empty store of each test, and a bar that is not silent."""
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path))
    monkeypatch.delenv("AEFT_QUIET", raising=False)
    return tmp_path


def running(store: Path, key: str, text: str, stage: str = "train_classifier") -> Path:
    """The folder that a training will have; its log so far stands in the partial one."""
    log = store / stage / f"{key}.partial" / "steps.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return store / stage / key


# --- which trainings, how many steps --------------------------------------------------------------


def test_the_steps_of_both_phases_are_counted():
    counted = progress.missing(parts(SMOKE, catalogue.AEFT, 0)).counted
    assert {folder.parent.name for folder in counted} == {"train_classifier"}
    count, first, second = len(SMOKE.train.open()), SMOKE.schedule, SMOKE.erasing
    steps = [first.epochs * (count // first.batch_size), second.epochs * second.steps_per_epoch]
    assert sorted(counted.values()) == sorted(steps)


@pytest.mark.parametrize("name", ["triplet_ablation", "refinement", "segmentation", "rivals"])
def test_the_trainings_are_those_of_the_plan_each_once(name):
    rows = catalogue.get(name).rows
    planned = plan.plan(SMOKE, rows, [0])
    keys = {(item.stage, item.key) for item in planned if item.stage.startswith("train_")}
    counted = progress.missing(part for row in rows for part in parts(SMOKE, row, 0)).counted
    assert {(folder.parent.name, folder.name) for folder in counted} == keys
    assert all(steps > 0 for steps in counted.values())


def test_finished_trainings_are_not_counted(store):
    both = [*parts(SMOKE, catalogue.GAP, 0), *parts(SMOKE, catalogue.GATED, 0)]
    first, second = progress.missing(both).counted
    first.mkdir(parents=True)
    assert list(progress.missing(both).counted) == [second]


# --- what the logs say ----------------------------------------------------------------------------


def test_steps_are_read_from_the_last_line_of_every_log(store):
    begun = running(store, "begun", LINE.format(20, 60) + LINE.format(40, 60))
    waiting, done = store / "train_edges" / "waiting", store / "train_edges" / "done"
    done.mkdir(parents=True)
    trainings = Trainings({begun: 60, waiting: 30, done: 10})
    assert trainings.steps() == (40 + 0 + 10, 60 + 30 + 10)


def test_a_log_that_knows_another_number_of_steps_is_right(store):
    assert Trainings({running(store, "a", LINE.format(40, 80)): 60}).steps() == (40, 80)


@pytest.mark.parametrize("tail", ['{"step": 60, "ste', "{}\n", "17\n", '{"step": null}\n', "\n\n"])
def test_a_line_that_is_not_whole_is_passed_over(store, tail):
    assert Trainings({running(store, "a", LINE.format(20, 60) + tail): 60}).steps() == (20, 60)


@pytest.mark.parametrize("text", ["", "x" * 10_000, '{"step": 2'])
def test_a_log_without_a_whole_line_counts_no_step(store, text):
    assert Trainings({running(store, "a", text): 60}).steps() == (0, 60)


def test_a_long_log_is_read_at_its_end_alone(store):
    text = "".join(LINE.format(step, 9000) for step in range(1, 4001))
    assert len(text) > 10 * progress.LAST
    assert Trainings({running(store, "a", text): 60}).steps() == (4000, 9000)


def test_what_a_stage_writes_at_every_check_is_what_is_read(store, monkeypatch):
    folder = running(store, "a", "")
    report = fitting.options(folder.with_name("a.partial"))["progress"]
    trainings, seen = Trainings({folder: 60}), []
    for step in (20, 40, 60):
        report({"step": step, "steps": 60, "lr": 0.1, "loss": 1.0})
        seen.append(trainings.steps())
    assert seen == [(20, 60), (40, 60), (60, 60)]


# --- the bar --------------------------------------------------------------------------------------


def at(bar: progress.Bar, seconds: float) -> None:
    """Set the bar's clock."""
    bar.tqdm._time = lambda: seconds


def last(capsys) -> str:
    """The bar as it stands."""
    return capsys.readouterr().err.split("\r")[-1]


def test_the_time_left_follows_from_steps_since_the_rows_began(store, capsys):
    folder = running(store, "a", LINE.format(20, 100))  # of an earlier run
    with progress.bar(Trainings({folder: 100}), 3, "title") as bar:
        assert "features first" in last(capsys)
        at(bar, 1000.0)
        bar.begin()
        assert "20/100 steps [00:00<?, rows 0/3]" in last(capsys)
        running(store, "a", LINE.format(40, 100))
        at(bar, 1010.0)
        bar.show()  # 20 steps in 10 s, 60 are left
        assert "title:  40%" in (shown := last(capsys))
        assert "40/100 steps [00:10<00:30, rows 0/3]" in shown
        bar.row()
        assert "rows 1/3" in last(capsys)


def test_a_log_ahead_of_its_checkpoint_leaves_the_time_positive(store, capsys):
    """The training resumes from step 20: what was counted of it falls."""
    folder = running(store, "a", LINE.format(80, 100))
    with progress.bar(Trainings({folder: 100}), 1, "title") as bar:
        at(bar, 0.0)
        bar.begin()
        running(store, "a", LINE.format(20, 100))
        bar.show()
        running(store, "a", LINE.format(60, 100))
        at(bar, 10.0)
        bar.show()
        assert "60/100 steps [00:10<00:10, rows 0/1]" in last(capsys)


def test_rows_are_counted_where_nothing_is_trained(capsys):
    with progress.bar(Trainings(), 4, "title") as bar:
        bar.begin()
        bar.row()
        assert "1/4 rows" in last(capsys)


def test_under_quiet_nothing_is_shown(store, monkeypatch, capsys):
    monkeypatch.setenv("AEFT_QUIET", "1")
    folder = running(store, "a", LINE.format(20, 60))
    with progress.bar(Trainings({folder: 60}), 1, "title") as bar:
        bar.begin()
        bar.show()
        bar.row()
    assert capsys.readouterr() == ("", "")


# --- in a run -------------------------------------------------------------------------------------


def test_the_store_is_looked_at_while_a_job_runs(monkeypatch):
    """The job ends only after it was looked at twice."""
    looks, twice = [], threading.Event()

    def look():
        looks.append(1)
        if len(looks) == 2:
            twice.set()

    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(run, "_job", lambda *job: twice.wait(60))
    with ThreadPoolExecutor(1) as pool:
        ((_, future),) = run._in_turn(pool, SMOKE, {("row", 0): []}, 1, look)
    assert future.result() is True


class Pool:
    """In place of a process pool: every job is computed at once, in this process."""

    def __init__(self, **_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize("quiet", ["", "1"])
def test_a_run_shows_its_bar_unless_it_is_quiet(monkeypatch, capsys, quiet):
    monkeypatch.setenv("AEFT_QUIET", quiet)
    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(run.preflight, "check", lambda _: None)
    monkeypatch.setattr(run, "_job", lambda profile, row, repeat: {"miou": repeat})
    jobs = [("one", 0), ("one", 1)]
    values = run._compute("title", SimpleNamespace(cached=False), jobs, 1)
    assert values == {("one", 0): {"miou": 0}, ("one", 1): {"miou": 1}}
    shown = capsys.readouterr().err
    assert ("rows 2/2" in shown) == (not quiet)
    assert bool(shown) == (not quiet)


def test_a_worker_shows_no_bar_of_its_own(monkeypatch):
    started = []
    monkeypatch.setenv("AEFT_QUIET", "")
    monkeypatch.setattr(shards, "start_worker", started.append)
    run._start_worker(3)
    assert started == [3]
    assert progress.quiet()

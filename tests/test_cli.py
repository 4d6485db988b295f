"""The command line as a reader meets it: exit codes, one-line errors, tables.

Most calls are made in this process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aeft_lib import cli, paths
from aeft_lib.data import collages
from aeft_lib.lab import notebooks
from aeft_lib.lab.session import Session
from aeft_lib.maps.labels import VOID
from aeft_lib.stages import store
from aeft_lib.studies import catalogue, league, profiles, readme, report, report_page, run
from aeft_lib.studies.profiles import SMOKE


@pytest.fixture(autouse=True)
def stored(tmp_path, monkeypatch):
    """An empty store, silence, no profile in the environment."""
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("AEFT_QUIET", "1")
    monkeypatch.delenv("AEFT_PROFILE", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Fail where anything is computed."""

    def refuse(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(run, "_compute", refuse)
    monkeypatch.setattr(store, "_build", refuse)


def failure(capsys, *words: str) -> str:
    """The one line on stderr of a command that has to fail with exit code 1 and an empty stdout."""
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    assert err.startswith("aeft: ")
    assert err.count("\n") == 1
    return err


def labels_of(scenes) -> set[int]:
    """The labels that the masks of scenes have, without void."""
    masks = (scenes.mask(index) for index in range(len(scenes)))
    return set().union(*(np.unique(mask).tolist() for mask in masks)) - {VOID}


def refusal(capsys, *words: str) -> str:
    """Run a command that argparse has to refuse with exit code 2; returns what it says."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: aeft")
    return err


# --- wrong requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "gap"], "unknown study 'gap'; there are gap_vs_gpp, pyramid_ablation"),
        (["run", ""], "unknown study ''; there are gap_vs_gpp"),
        (
            ["run", "gap_vs_gpp", "--profile", "huge"],
            "unknown profile 'huge'; there are smoke, laptop",
        ),
        (
            ["run", "gap_vs_gpp", "--profile", "smoke", "--row", "average"],
            "gap_vs_gpp has no row 'average'; there are gap",
        ),
        (
            ["run", "gap_vs_gpp", "--profile", "smoke", "--row", "G"],
            "study gap_vs_gpp has no row 'G'",
        ),
        (
            ["run", "gap_vs_gpp", "--profile", "smoke", "--repeats", "-1"],
            "repeats must be a whole number",
        ),
        (["reproduce", "--profile", "huge"], "unknown profile 'huge'"),
        (["reproduce", "--profile", "smoke", "--repeats", "-3"], "repeats must be a whole number"),
        (["report", "--profile", "huge"], "unknown profile 'huge'"),
        (
            ["data", "check", "voc13"],
            "a check of voc, of coco, and of an existing folder with photos of your own, "
            "got 'voc13'",
        ),
        (["bench", "speed"], "unknown benchmark 'speed'; there are evaluation"),
        (["run", "gap_vs_gp"], "(did you mean gap_vs_gpp?)"),
        (["run", "gap_vs_gpp", "--profile", "labtop"], "(did you mean laptop?)"),
        (["run", "gap_vs_gpp", "--profile", "smoke", "--row", "gate"], "(did you mean gated?)"),
        (["bench", "refine"], "(did you mean refinement?)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_names_and_numbers_are_one_line(capsys, nothing_is_built, stored, words, message):
    assert message in failure(capsys, *words)
    assert not stored.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["run"], "required: study"),
        (
            ["run", "gap_vs_gpp", "--repeats", "three"],
            "argument --repeats/--seeds: invalid int value: 'three'",
        ),
        (
            ["run", "gap_vs_gpp", "--repeats", "2.0"],
            "argument --repeats/--seeds: invalid int value: '2.0'",
        ),
        (
            ["run", "gap_vs_gpp", "--repeat", "a"],
            "argument --repeat/--seed: invalid int value: 'a'",
        ),
        (["run", "gap_vs_gpp", "--workers", "all"], "argument --workers: invalid int value: 'all'"),
        (["data", "chek", "voc"], "invalid choice: 'chek'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_refused_by_the_parser(capsys, nothing_is_built, stored, words, message):
    assert message in refusal(capsys, *words)
    assert not stored.exists()


@pytest.mark.parametrize(
    "words",
    [["--repeat", "-1"], ["--repeat", str(10**30)], ["--repeats", "3", "--repeat", "1"]],
    ids=" ".join,
)
def test_repeats_that_cannot_be_are_refused_before_work(capsys, nothing_is_built, words):
    try:
        code = cli.main(["run", "gap_vs_gpp", "--profile", "smoke", *words])
    except SystemExit as refused:  # the parser's way
        code = refused.code
    assert code in (1, 2)
    assert "repeat" in capsys.readouterr().err


def test_profile_of_the_environment(capsys, nothing_is_built, monkeypatch):
    monkeypatch.setenv("AEFT_PROFILE", "labtop")
    assert "unknown profile 'labtop' (AEFT_PROFILE=labtop); there are smoke, laptop" in failure(
        capsys, "run", "gap_vs_gpp"
    )


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AEFT_DEVICE", "gpu", "AEFT_DEVICE=gpu cannot be used"),
        ("AEFT_DEVICE", "cuda:x", "AEFT_DEVICE=cuda:x cannot be used"),
        ("AEFT_PRECISION", "fp16", "AEFT_PRECISION must be one of fp32, bf16, auto, got 'fp16'"),
        ("AEFT_RUNS", "~nobody-here/runs", "AEFT_RUNS=~nobody-here/runs"),
    ],
)
@pytest.mark.parametrize("command", ["run", "explain"])
def test_variables_are_named_with_their_values(
    capsys, nothing_is_built, monkeypatch, command, variable, value, said
):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(run, "_compute", run._compute)
    assert said in failure(capsys, command, "gap_vs_gpp", "--profile", "smoke")


@pytest.mark.parametrize("below", ["", "runs"])
@pytest.mark.parametrize("words", [["run", "gap_vs_gpp"], ["reproduce"]], ids=" ".join)
def test_store_that_cannot_be_written(capsys, monkeypatch, tmp_path, words, below):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "file" / below))
    monkeypatch.setattr(run, "ProcessPoolExecutor", None)
    err = failure(capsys, *words, "--profile", "smoke")
    assert "cannot write to the store" in err
    assert "point AEFT_RUNS at a folder" in err


def test_report_to_a_store_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "file" / "runs"))
    assert "AEFT_RUNS" in failure(capsys, "report", "--profile", "smoke")


@pytest.mark.parametrize("words", [["report"], ["reproduce"]], ids=" ".join)
def test_a_folder_in_the_place_of_an_output_is_refused_before_work(
    capsys, nothing_is_built, monkeypatch, stored, words
):
    monkeypatch.setattr(run, "prepare", None)
    monkeypatch.setattr(notebooks, "plan", lambda *_, **__: [])
    taken = stored / "figures" / "smoke-1repeats" / "report.md"
    taken.mkdir(parents=True)
    said = f"{taken} is a folder, a file is to be written there: move it away"
    assert said in failure(capsys, *words, "--profile", "smoke")
    assert list(taken.parent.iterdir()) == [taken]
    taken.rmdir()
    taken.parent.rmdir()
    taken.parent.write_text("")
    assert f"{taken.parent} is no folder" in failure(capsys, *words, "--profile", "smoke")


def test_error_with_notes_and_interruption(capsys, monkeypatch):
    error = RuntimeError("the loss is nan at step 3")
    error.__notes__ = ["in row gap, repeat 0, profile smoke"]

    def stop(*_, **__):
        raise error

    monkeypatch.setattr(run, "run_study", stop)
    assert cli.main(["run", "gap_vs_gpp", "--profile", "smoke"]) == 1
    assert (
        capsys.readouterr().err
        == "aeft: the loss is nan at step 3\n  in row gap, repeat 0, profile smoke\n"
    )
    error = KeyboardInterrupt()
    assert cli.main(["run", "gap_vs_gpp", "--profile", "smoke"]) == 130
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "run the command again to resume" in err


# --- help -----------------------------------------------------------------------------------------

COMMANDS = (
    *("run", "reproduce", "export", "explain", "weights", "predict", "report", "bench"),
    *("data", "data check", "data fetch"),
)
HELP = """
import contextlib, io, sys
import aeft_lib
from aeft_lib import cli
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    cli.main([*sys.argv[1].split(), "--help"])
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "pandas", "PIL"}))
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_large(command):
    """Torch takes seconds; in a process of its own, since here it is imported."""
    words = [sys.executable, "-c", HELP, command]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_every_command_has_help_and_names_what_it_takes(capsys):
    def helped(command: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main([*command.split(), "--help"])
        assert caught.value.code == 0
        return capsys.readouterr().out

    def joined(text: str) -> str:  # lines are broken at spaces and hyphens
        return "".join(text.split())

    listed = " ".join(helped("").split())
    assert all(f" {command} " in listed for command in COMMANDS if " " not in command)
    assert "one of evaluation, inference, memory, precision, readers, refinement" in " ".join(
        helped("bench").split()
    )
    assert joined(f"one of {', '.join(catalogue.STUDIES)}") in joined(helped("run"))
    names = f"one of {', '.join(profiles.PROFILES)} (default laptop)"
    assert joined(names) in joined(helped("predict"))


def test_names_in_help_are_those_that_there_are():
    assert tuple(catalogue.STUDIES) == cli.STUDIES
    assert tuple(profiles.PROFILES) == cli.PROFILES


def test_the_packages_doors_open_when_they_are_asked_for():
    import aeft_lib

    for name in aeft_lib.__all__:
        assert getattr(aeft_lib, name).__name__ == name
        assert name in dir(aeft_lib)
    with pytest.raises(AttributeError, match="no attribute 'erased'"):
        _ = aeft_lib.erased


ENDED = """
import multiprocessing, time
def hold(ready):
    lock = multiprocessing.get_context("spawn").Lock()
    ready.set()
    time.sleep(60)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=hold, args=(ready,))
    worker.start()
    ready.wait()
    worker.terminate()
    worker.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="semaphores have no names there")
@pytest.mark.parametrize("quiet", [False, True])
def test_workers_that_are_ended_leave_no_warning(tmp_path, monkeypatch, quiet):
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    if quiet:
        run.quiet_tracker()
        run.quiet_tracker()
        assert os.environ["PYTHONWARNINGS"].count("resource_tracker") == 1
    (tmp_path / "ended.py").write_text(ENDED)
    words = [sys.executable, str(tmp_path / "ended.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert ("leaked semaphore" in done.stderr) is not quiet


# --- right requests -------------------------------------------------------------------------------


def test_row_and_repeat_of_a_study_as_a_table_from_anywhere(tmp_path):
    """As a job of a cluster array: another directory, few variables.

    The store is relative and has a space and an umlaut.
    """
    words = [
        sys.executable,
        "-m",
        "aeft_lib.cli",
        "run",
        "gap_vs_gpp",
        "--profile",
        "smoke",
        "--row",
        "gap",
        "--repeat",
        "0",
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(paths.ROOT),
        "AEFT_RUNS": "meine Läufe/1",
        "AEFT_QUIET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    head, line, remark = done.stdout.splitlines()
    columns = "label n miou miou_sd precision recall miou_maskless tag_map miou_present"
    assert head.split() == columns.split()
    absent = SMOKE.num_classes + 1 - len(labels_of(SMOKE.val.open()))
    assert absent > 0
    assert remark.startswith(f"gap: {absent} of 10 classes (background is one) are in no scored")
    assert f"a perfect map has an mIoU of {100 - 10 * absent:.1f};" in remark
    label, n, miou, sd, *_ = line.split()
    assert (label, n, sd) == ("GAP", "1", "NaN")
    assert 0 < float(miou) < 100
    stages = {
        f.parent.parent.name for f in (tmp_path / "meine Läufe" / "1").glob("*/*/record.json")
    }
    read = {"infer_seeds", "evaluate_seeds", "count_images"}
    assert stages == {"cache_features", "train_classifier"} | read


def test_stored_rows_print_their_summary(capsys, monkeypatch, nothing_is_built):
    numbers = {"precision": 50.0, "recall": 60.0, "miou_maskless": 40.0, "tag_map": 80.0}
    asked = []

    def stored(profile, row, repeat):
        asked.append((profile.name, row.name, repeat))
        return numbers | {"miou": 40.0 + 10 * repeat + (row.name == "gated")}

    monkeypatch.setattr(run, "stored", stored)
    assert cli.main(["run", "gap_vs_gpp", "--profile", "smoke", "--repeats", "2"]) == 0
    assert asked == [("smoke", name, repeat) for repeat in (0, 1) for name in ("gap", "gated")]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["GAP", "2", "45.0", "7.1", "50.0", "60.0", "40.0", "80.0"],
        ["G", "2", "46.0", "7.1", "50.0", "60.0", "40.0", "80.0"],
    ]
    asked.clear()
    assert (
        cli.main(["run", "gap_vs_gpp", "--profile", "smoke", "--row", "gated", "--repeat", "5"])
        == 0
    )
    assert asked == [("smoke", "gated", 5)]
    asked.clear()
    assert cli.main(["run", "gap_vs_gpp", "--profile", "smoke"]) == 0
    assert {repeat for *_, repeat in asked} == set(range(SMOKE.repeats))


def test_earlier_names_of_the_options_stay(monkeypatch, nothing_is_built):
    asked = []

    def stored(profile, row, repeat):
        asked.append(repeat)
        return {"miou": 40.0}

    monkeypatch.setattr(run, "stored", stored)
    words = ["run", "gap_vs_gpp", "--profile", "smoke", "--row", "gap"]
    assert cli.main([*words, "--seeds", "3"]) == cli.main([*words, "--seed", "7"]) == 0
    assert asked == [0, 1, 2, 7]


def test_report_of_an_empty_store_says_not_run(capsys, nothing_is_built, stored):
    assert cli.main(["report", "--profile", "smoke"]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {f.name for f in files} == {"report.json", "report.csv", "report.md"}
    assert all(f.is_relative_to(stored) for f in files)
    claims = json.loads(next(f for f in files if f.suffix == ".json").read_text(encoding="utf-8"))[
        "claims"
    ]
    assert {claim["verdict"] for claim in claims} == {"not run"}


def test_report_that_is_asked_for_verdicts_refuses_too_few_repeats_and_writes_nothing(
    capsys, nothing_is_built, stored, monkeypatch
):
    table = pd.DataFrame({"row": ["gap", "gated"] * 2, "repeat": [0, 0, 1, 1], "miou": 40.0})
    few = report.build({"gap_vs_gpp": table}, "smoke")
    monkeypatch.setattr(Session, "report", lambda *_, **__: few)
    assert cli.main(["report", "--profile", "smoke", "--verdicts"]) == 1
    told = "claim.gpp_beats_gap has 2 repeats, its verdict needs 5: aeft run gap_vs_gpp --repeats 5"
    assert told in capsys.readouterr().err
    assert not list(stored.rglob("report.*"))
    assert cli.main(["report", "--profile", "smoke"]) == 0  # undecided, with the reason
    (written,) = stored.rglob("report.md")
    assert "| undecided (2 of 5 repeats) |" in written.read_text(encoding="utf-8")


def test_report_of_an_empty_store_never_replaces_the_committed_one(
    capsys, nothing_is_built, tmp_path, monkeypatch
):
    table = pd.DataFrame({"row": ["gap", "gated"] * 3, "repeat": [0, 0, 1, 1, 2, 2], "miou": 40.0})
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")  # the ledger's place too
    committed = report.build({"pyramid_ablation": table}, "laptop", short=True)
    report_page.write(committed, tmp_path / "figures")
    shown = []
    monkeypatch.setattr(readme, "update", shown.append)
    monkeypatch.setattr(league, "costs_of", lambda *_: {})
    assert cli.main(["report", "--profile", "laptop", "--repeats", "3"]) == 0
    assert report.load(tmp_path / "figures") == committed
    assert shown == [committed]


@pytest.fixture
def reproduced(monkeypatch):
    """What `reproduce` would compute: (study, repeats); notebooks and report are left out."""
    asked = []
    monkeypatch.setattr(notebooks, "plan", lambda *_, **__: [])
    monkeypatch.setattr(notebooks, "reproduce", lambda **_: "there")
    monkeypatch.setattr(cli, "write_report", lambda *_, **__: None)

    def prepare(chosen, profile, **_):
        asked.extend((study.name, list(repeats)) for study, repeats in chosen)

    monkeypatch.setattr(run, "prepare", prepare)
    return asked


def test_reproduce_leaves_long_studies_out_below_their_repeats_and_says_so(
    capsys, reproduced, tmp_path, monkeypatch
):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    (tmp_path / "quirks.csv").touch()
    assert cli.main(["reproduce", "--profile", "laptop", "--repeats", "2"]) == 0
    assert reproduced == [
        (s.name, list(s.repeats(2)))
        for s in catalogue.STUDIES.values()
        if s.name != "quirks" and not s.apart and s.needs not in ("photos", "curves")
    ]
    assert (
        "study quirks: left out below 3 repeats, its committed table is shown\n"
        in capsys.readouterr().out
    )
    reproduced.clear()
    assert cli.main(["reproduce", "--profile", "laptop", "--repeats", "3"]) == 0
    bounded = {
        "quirks": [0, 1],
        "erasing_settings": [0],
        "settings": [0],
        "erasing_strength": [0, 1],
    }
    assert dict(reproduced) == {
        name: bounded.get(name, [0, 1, 2])
        for name, study in catalogue.STUDIES.items()
        if not study.apart and study.needs not in ("photos", "curves")
    }
    left_out = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    reasons = {
        study.name: f"at any repeats (aeft run {study.name})"
        if study.apart
        else f"because it needs {study.needs}"
        for study in catalogue.STUDIES.values()
        if study.apart or study.needs in ("photos", "curves")
    }
    assert {"rivals", "rivals_grid", "pasting", "photo_depth"} < set(reasons)
    assert left_out == [f"study {name}: left out {reason}" for name, reason in reasons.items()]


# --- data -----------------------------------------------------------------------------------------


def test_data_check_counts_the_pack(capsys):
    assert cli.main(["data", "check", "collages"]) == 0
    lines = capsys.readouterr().out.splitlines()
    pack = collages.load_pack()
    assert [line.split(":")[0] for line in lines] == ["train", "val"]
    for line in lines:
        split = line.split(":")[0]
        count = sum(len(items) for (where, _), items in pack.cutouts.items() if where == split)
        assert line.startswith(f"{split}: {count} cut-outs {{")
        assert line.endswith(f", {len(pack.backgrounds[split])} backgrounds")
        assert all(f"'{name}': " in line for name in collages.CLASSES)


def damaged_pack(tmp_path, damage):
    """A copy of the pack after `damage(folder)`."""
    folder = tmp_path / "pack"
    shutil.copytree(paths.COLLAGES, folder)
    damage(folder)
    return folder


def flip(folder):
    file = sorted(folder.rglob("*.webp"))[7]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


DAMAGES = {
    "no manifest": (lambda f: (f / "manifest.csv").unlink(), "the photo pack is missing"),
    "a photo is gone": (
        lambda f: sorted(f.rglob("*.webp"))[0].unlink(),
        "is missing or differs from the manifest",
    ),
    "a photo is truncated": (
        lambda f: os.truncate(sorted(f.rglob("*.webp"))[3], 50),
        "differs from the manifest",
    ),
    "a bit is flipped": (flip, "differs from the manifest"),
    "an empty manifest": (lambda f: os.truncate(f / "manifest.csv", 0), "has no column 'file'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_pack_is_one_line_with_the_remedy(capsys, tmp_path, monkeypatch, name):
    damage, message = DAMAGES[name]
    folder = damaged_pack(tmp_path, damage)
    load = collages.load_pack
    monkeypatch.setattr(collages, "load_pack", lambda: load(folder))
    err = failure(capsys, "data", "check", "collages")
    assert message in err
    assert "restore it with: git checkout -- data/collages" in err


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00\x01", b"a conflict\n<<<<<<< HEAD\n"], ids=["bytes", "conflict"]
)
def test_damaged_manifest_is_one_line_with_the_remedy(capsys, tmp_path, monkeypatch, content):
    folder = damaged_pack(tmp_path, lambda f: (f / "manifest.csv").write_bytes(content))
    load = collages.load_pack
    monkeypatch.setattr(collages, "load_pack", lambda: load(folder))
    assert "restore it with" in failure(capsys, "data", "check", "collages")

"""The ledger: what an entry has, what is written over, and what a profile's rows ended with."""

import json

import pandas as pd
import pytest

from aeft_lib import paths
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.store import RECORD
from aeft_lib.studies import ledger


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return ledger.home()


@pytest.fixture
def made(tmp_path):
    """An artefact of the store with a table, and with weights that no ledger keeps."""

    def make(key, **summary):
        folder = tmp_path / "store" / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps({"key": key, "summary": summary}))
        (folder / "classes.csv").write_text("class,iou\ncat,50\n")
        (folder / "weights.safetensors").write_bytes(b"0")
        return Artefact("evaluate_seeds", key, folder, {"summary": summary}, None)

    return make


def test_rows_end_with_numbers_of_evaluation_and_mechanism(home, made):
    # The mechanism is a training's, whose summary has more than it.
    moved = made("b", equivariance_error=0.1, loss=3.0)
    measures = {"evaluation": made("a", miou=50.0), "mechanism_equivariance_error": moved}
    ledger.keep(ledger.place("photos", "seam", 1), measures)
    ledger.keep(ledger.place("photos", "gap", 0), {"evaluation": made("c", miou=40.0)})
    expected = pd.DataFrame(
        {
            "row": ["gap", "seam"],
            "repeat": [0, 1],
            "miou": [40.0, 50.0],
            "equivariance_error": [float("nan"), 0.1],
        }
    )
    pd.testing.assert_frame_equal(ledger.results("photos"), expected)
    assert ledger.results("collages").empty
    assert list(ledger.results("collages")) == ["row", "repeat"]


def test_a_profile_names_the_commits_that_its_entries_are_of(home, made):
    for row, commit in (("gap", "b2"), ("seam", "a1"), ("cpn", "b2")):
        artefact = made(row)
        record = {"key": row, "stage": "evaluate_seeds", "commit": commit, "summary": {}}
        (artefact.folder / RECORD).write_text(json.dumps(record))
        ledger.keep(ledger.place("photos", row, 0), {"evaluation": artefact})
    assert ledger.commits("photos") == ["a1", "b2"]
    assert ledger.commits("collages") == []
    kept = ledger.entry("photos", "seam", 0, "evaluation")
    assert (kept.stage, kept.key, kept.record["commit"]) == ("evaluate_seeds", "seam", "a1")
    with pytest.raises(LookupError, match="photos/seam/1/evaluation: not in the ledger"):
        ledger.entry("photos", "seam", 1, "evaluation")


def test_tables_are_kept_and_no_weights(home, made):
    folder = ledger.place("photos", "gap", 0)
    ledger.keep(folder, {"evaluation": made("a", miou=40.0)})
    assert sorted(file.name for file in folder.rglob("*.*")) == ["classes.csv", RECORD]


def test_what_another_study_keeps_of_a_row_leaves_its_mechanism(home, made):
    folder, evaluation = ledger.place("photos", "gap", 0), made("a", miou=40.0)
    ledger.keep(folder, {"evaluation": evaluation, "mechanism_error": made("b", error=0.1)})
    ledger.keep(folder, {"evaluation": evaluation})
    assert ledger.results("photos").loc[0, "error"] == 0.1


def test_another_key_leaves_nothing_of_the_old_one(home, made):
    folder = ledger.place("photos", "gap", 0)
    ledger.keep(folder, {"evaluation": made("a", miou=40.0), "mechanism_error": made("b", error=1)})
    ledger.keep(folder, {"evaluation": made("c", miou=41.0)})
    assert ledger.results("photos").to_dict("records") == [{"row": "gap", "repeat": 0, "miou": 41}]


def test_a_copy_that_was_cut_short_is_written_anew(home, made):
    folder, evaluation = ledger.place("photos", "gap", 0), made("a", miou=40.0)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "classes.csv").write_text("class,")
    ledger.keep(folder, {"evaluation": evaluation})
    assert (folder / "evaluation" / "classes.csv").read_text().endswith("cat,50\n")
    assert ledger.read(folder, {"evaluation": evaluation})["evaluation"].summary["miou"] == 40.0


def test_classes_are_of_every_row_and_repeat(home, made):
    for repeat in (0, 1):
        place = ledger.place("photos", "gap", repeat)
        ledger.keep(place, {"evaluation": made(f"a{repeat}", miou=40.0)})
    lines = ledger.classes("photos").to_dict("records")
    assert lines == [{"class": "cat", "iou": 50, "row": "gap", "repeat": n} for n in (0, 1)]
    assert ledger.classes("collages").empty

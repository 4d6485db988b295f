"""What may be published: entries of the ledger whose photos are here, or not."""

import json

import pytest
from photo_sets import make_voc

from aeft_lib.stages import store
from aeft_lib.studies import ledger, publish

CLASSES = ["cat", "cow"]


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """An entry of `evening-voc` of two classes, with a key of other code."""
    monkeypatch.setattr(ledger, "home", lambda: tmp_path / "ledger")
    monkeypatch.setattr(store, "commit", lambda: "abc1234")
    folder = tmp_path / "ledger" / "evening-voc" / "gated" / "0" / "evaluation"
    folder.mkdir(parents=True)
    record = {"key": "0123456789abcdef", "spec": {"scenes": {"classes": CLASSES}}}
    (folder / store.RECORD).write_text(json.dumps(record))


@pytest.mark.usefixtures("entry")
def test_entries_without_their_photos_are_not_checked_and_a_line_says_so(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "nowhere"))
    publish.check_current()
    told = capsys.readouterr().out
    assert "evening-voc were not checked: no " in told
    assert "AEFT_VOC_ROOT must name the folder" in told


@pytest.mark.usefixtures("entry")
def test_entries_are_of_the_classes_that_they_name(tmp_path, monkeypatch):
    make_voc(tmp_path / "voc", {"train_aug": 2, "val": 2}, classes=tuple(CLASSES))
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "voc"))
    monkeypatch.setenv("AEFT_VOC_CLASSES", "dog")
    ((profile, row, repeat),) = publish.entries()
    assert (profile.train.classes, profile.val.classes) == (("cat", "cow"), ("cat", "cow"))
    assert (row.name, repeat) == ("gated", 0)
    with pytest.raises(ValueError, match=r"1 entry of .* is not of this code"):
        publish.check_current()


def test_entries_of_the_base_are_of_the_row_that_logs_mechanisms(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    (tmp_path / "laptop" / "gap" / "0").mkdir(parents=True)
    ((_, row, _),) = publish.entries()
    assert [logged.names for logged in row.mechanisms] == [("equivariance_error",)]

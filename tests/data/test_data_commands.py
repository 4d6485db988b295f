"""``aeft data check`` and ``aeft data fetch`` from the command line."""

import hashlib
import tarfile

import pytest
from photo_sets import make_folder, make_voc

from aeft_lib.cli import main
from aeft_lib.data.prepare import fetch
from aeft_lib.data.prepare.archives import Archive
from aeft_lib.data.voc import HOME

CLASSES = ("cat", "dog")


def test_check_of_a_whole_set_ends_well_and_says_what_is_there(tmp_path, monkeypatch, capsys):
    make_voc(tmp_path, {"train": 3, "train_aug": 4, "val": 2}, classes=CLASSES)
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path))
    for deep in ([], ["--deep"]):
        assert main(["data", "check", "voc", *deep]) == 0
        assert "train_aug: 4 images of 10582 in the published list" in capsys.readouterr().out


def test_check_of_a_damaged_set_names_the_file_and_ends_with_an_error(
    tmp_path, monkeypatch, capsys
):
    make_voc(tmp_path, {"train": 3, "val": 2}, classes=CLASSES)
    photo = next((tmp_path / HOME / "JPEGImages").iterdir())
    photo.write_bytes(b"")
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path))
    assert main(["data", "check", "voc"]) == 1
    said = capsys.readouterr()
    assert photo.name in said.out
    assert "aeft: 1 problem(s) in voc" in said.err


def test_check_of_an_own_folder_and_of_nothing(tmp_path, capsys):
    make_folder(tmp_path / "mine", {"train": 2, "val": 2})
    assert main(["data", "check", str(tmp_path / "mine")]) == 0
    assert main(["data", "check", str(tmp_path / "theirs")]) == 1
    assert "existing folder" in capsys.readouterr().err
    assert main(["data", "check", "collages"]) == 0


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small COCO as one archive, known by its checksum."""
    file = tmp_path / "coco.tar"
    (tmp_path / "notes.txt").write_text("photos")
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "notes.txt", "annotations/notes.txt")
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    known = Archive(
        name="coco.tar",
        urls=("http://127.0.0.1:9/coco.tar",),
        bytes=file.stat().st_size,
        checksum=f"sha256:{checksum}",
        unpack_to=".",
    )
    monkeypatch.setitem(fetch.ARCHIVES, "coco", (known,))
    monkeypatch.setenv("AEFT_COCO_ROOT", str(tmp_path / "root"))
    return file


def test_fetch_takes_an_archive_at_hand_and_checks_what_came_out(archive, tmp_path, capsys):
    assert (
        main(["data", "fetch", "coco", "--from", str(archive)]) == 1
    )  # it holds no photos, and the doctor says so
    said = capsys.readouterr()
    assert "1 files are below" in said.out
    assert "problem(s) in coco" in said.err
    assert (tmp_path / "root" / "annotations" / "notes.txt").read_text() == "photos"


def test_fetch_refuses_a_damaged_archive_before_it_unpacks(archive, tmp_path, capsys):
    archive.write_bytes(archive.read_bytes()[:-100] + b"x" * 100)
    assert main(["data", "fetch", "coco", "--from", str(archive)]) == 1
    assert "coco.tar" in capsys.readouterr().err
    assert not (tmp_path / "root" / "annotations").exists()

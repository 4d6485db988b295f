"""Fetching a whole data set: which archives, from where, unpacked where; without a network."""

import hashlib
import tarfile
from io import BytesIO

import pytest

from aeft_lib.data.prepare import fetch as fetching
from aeft_lib.data.prepare.archives import Archive
from aeft_lib.data.prepare.fetch import ARCHIVES, fetch


def test_published_archives_are_complete():
    archives = [archive for archives in ARCHIVES.values() for archive in archives]
    assert len({archive.name for archive in archives}) == len(archives) == 5
    for archive in archives:
        assert archive.bytes > 2e8
        assert archive.checksum
        assert all(url.endswith(f"/{archive.name}") for url in archive.urls)


def tar_of(name: str, content: bytes) -> bytes:
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, BytesIO(content))
    return target.getvalue()


@pytest.fixture
def asked():
    """Names of the archives that were downloaded."""
    return []


@pytest.fixture
def small(asked, monkeypatch):
    """Two archives in place of COCO's three: name -> bytes."""
    monkeypatch.setenv("AEFT_QUIET", "1")
    contents = {name: tar_of(f"{name}/x.txt", name.encode()) for name in ("one.tar", "two.tar")}

    def download(archive, root):
        asked.append(archive.name)
        root.mkdir(exist_ok=True)
        (root / archive.name).write_bytes(contents[archive.name])
        return root / archive.name

    def published(name, content):
        return Archive(
            name,
            ("http://127.0.0.1:9",),
            len(content),
            f"md5:{hashlib.md5(content).hexdigest()}",
            f"to {name}",
        )

    monkeypatch.setattr(fetching, "download", download)
    monkeypatch.setitem(
        fetching.ARCHIVES, "coco", tuple(published(*item) for item in contents.items())
    )
    return contents


def test_fetch_downloads_and_unpacks(small, asked, tmp_path):
    lines = fetch("coco", tmp_path / "root")
    assert asked == ["one.tar", "two.tar"]
    assert (tmp_path / "root" / "to two.tar" / "two.tar" / "x.txt").read_bytes() == b"two.tar"
    assert [line.partition(": md5:")[0] for line in lines] == [
        str(tmp_path / "root" / name) for name in small
    ]
    assert all("; 1 files are below" in line for line in lines)
    assert fetch("coco", tmp_path / "root") == lines


def test_local_archives_are_not_downloaded(small, asked, tmp_path):
    (tmp_path / "one.tar").write_bytes(small["one.tar"])
    fetch("coco", tmp_path / "root", local=[tmp_path / "one.tar"])
    assert asked == ["two.tar"]
    assert (tmp_path / "root" / "to one.tar" / "one.tar" / "x.txt").read_bytes() == b"one.tar"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["three.tar"],
            r"three\.tar is none of the archives of coco; there are one\.tar, two\.tar",
        ),
        (["one.tar", "a/one.tar"], r"one\.tar and .*a/one\.tar are both given as one\.tar"),
        (["two.tar"], r"two\.tar is not the published two\.tar: expected \d+ bytes, got 5"),
    ],
)
def test_local_files_are_checked_before_anything_is_fetched(small, asked, tmp_path, names, text):
    (tmp_path / "a").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(small["one.tar"] if name.endswith("one.tar") else b"other")
    with pytest.raises(ValueError, match=text):
        fetch("coco", tmp_path / "root", local=[tmp_path / name for name in names])
    assert not asked


def test_an_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'imagenet'; there are voc, coco"):
        fetch("imagenet", tmp_path)


def test_voc_ends_with_train_aug(tmp_path, monkeypatch):
    made = {"converted": 3, "skipped": 2, "train_aug": 7}
    calls = []
    monkeypatch.setattr(fetching, "download", lambda archive, root: root / archive.name)
    monkeypatch.setattr(fetching, "unpack", lambda file, folder: calls.append((file, folder)) or 5)
    monkeypatch.setattr(
        fetching.sbd, "convert", lambda benchmark, home: calls.append((benchmark, home)) or made
    )
    remark = "but 10582 are published: is this a part of the data?"
    assert (
        fetch("voc", tmp_path)[-1]
        == f"train_aug: 7 images, {remark}; 3 masks made of SBD, 2 were there"
    )
    assert calls == [
        (tmp_path / "VOCtrainval_11-May-2012.tar", tmp_path),
        (tmp_path / "benchmark.tgz", tmp_path / "sbd"),
        (tmp_path / "sbd" / "benchmark_RELEASE" / "dataset", tmp_path / "VOCdevkit" / "VOC2012"),
    ]
    made["train_aug"] = 10_582
    assert fetch("voc", tmp_path)[-1].startswith("train_aug: 10582 images, as published; 3 masks")

"""Fetches and unpacks PASCAL VOC 2012, SBD and COCO 2014, and makes VOC's ``train_aug`` of SBD.

::

    voc    <root>/VOCdevkit/VOC2012/...    VOCtrainval_11-May-2012.tar, 2.0 GB, and SBD's
                                           benchmark.tgz, 1.4 GB
    coco   <root>/train2014, val2014, annotations    three zips, 20.4 GB

The archives stay in the root; they may be deleted once they are unpacked.  Where a mirror is dead,
an archive from anywhere else is as good: it is given as a local file and verified alike.

Sizes and checksums: VOC's and SBD's md5 stand in torchvision, in ``datasets/voc.py`` and
``datasets/sbd.py``.  COCO publishes none; its md5 sums are those that many other projects check
against.  Sizes are the Content-Length of the first mirror as logs of downloads show it.  None of
the archives was fetched here.
"""

from collections.abc import Sequence
from pathlib import Path

from aeft_lib.data.prepare import sbd
from aeft_lib.data.prepare.archives import Archive, download, take, unpack
from aeft_lib.data.voc import HOME, SPLITS

_VOC = "pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
_SBD = "eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
_COCO = (  # one store, without and with TLS
    "http://images.cocodataset.org",
    "https://s3.amazonaws.com/images.cocodataset.org",
)

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "voc": (
        Archive(
            name="VOCtrainval_11-May-2012.tar",
            urls=(
                f"http://host.robots.ox.ac.uk/{_VOC}",
                f"https://thor.robots.ox.ac.uk/{_VOC}",  # where the first one leads
                "https://data.pjreddie.com/files/VOCtrainval_11-May-2012.tar",
            ),
            bytes=1_999_639_040,
            checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
        ),
        Archive(
            name="benchmark.tgz",
            urls=(f"https://www2.{_SBD}", f"http://www.{_SBD}"),
            bytes=1_419_539_633,
            checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
            unpack_to="sbd",
        ),
    ),
    "coco": (
        Archive(
            name="train2014.zip",
            urls=tuple(f"{host}/zips/train2014.zip" for host in _COCO),
            bytes=13_510_573_713,
            checksum="md5:0da8c0bd3d6becc4dcb32757491aca88",
        ),
        Archive(
            name="val2014.zip",
            urls=tuple(f"{host}/zips/val2014.zip" for host in _COCO),
            bytes=6_645_013_297,
            checksum="md5:a3d79f5ed8d289b7a7554ce06a5782b3",
        ),
        Archive(
            name="annotations_trainval2014.zip",
            urls=tuple(f"{host}/annotations/annotations_trainval2014.zip" for host in _COCO),
            bytes=252_872_794,
            checksum="md5:0a379cfc70b0e71301e0f377548639bd",
        ),
    ),
}


def fetch(what: str, root: Path, *, local: Sequence[Path] = ()) -> list[str]:
    """Bring a data set below root; returns lines that say what was done.

    A second call resumes where the first one stopped.
    what: a key of `ARCHIVES`.  local: archives that are at hand, told apart by their file names;
    the others are downloaded.
    Raises ValueError for an unknown data set, a local file that is none of its archives or is
    damaged, and as `unpack` and `sbd.convert` do; RuntimeError as `download` does.
    """
    if what not in ARCHIVES:
        raise ValueError(f"unknown data set {what!r}; there are {', '.join(ARCHIVES)}")
    given = _given(what, local)
    lines = []
    for archive in ARCHIVES[what]:
        file = given.get(archive.name) or download(archive, root)
        folder = root / archive.unpack_to
        count = unpack(file, folder)
        lines.append(f"{file}: {archive.checksum}; {count} files are below {folder}")
    if what == "voc":
        lines.append(_add_sbd(root))
    return lines


def _given(what: str, local: Sequence[Path]) -> dict[str, Path]:
    """Local files by archive, each verified before anything is fetched."""
    archives = {archive.name: archive for archive in ARCHIVES[what]}
    given: dict[str, Path] = {}
    for file in local:
        if file.name not in archives:
            names = ", ".join(archives)
            raise ValueError(f"{file} is none of the archives of {what}; there are {names}")
        if file.name in given:
            both = f"{given[file.name]} and {file}"
            raise ValueError(f"{both} are both given as {file.name}: give one of them")
        given[file.name] = take(file, archives[file.name])
    return given


def _add_sbd(root: Path) -> str:
    made = sbd.convert(root / "sbd" / "benchmark_RELEASE" / "dataset", root / HOME)
    listed, published = made["train_aug"], SPLITS["train_aug"]
    part = f"but {published} are published: is this a part of the data?"
    remark = "as published" if listed == published else part
    counts = f"{made['converted']} masks made of SBD, {made['skipped']} were there"
    return f"train_aug: {listed} images, {remark}; {counts}"

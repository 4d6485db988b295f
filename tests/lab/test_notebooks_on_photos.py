"""Notebooks run on photos: 6 classes squared to a size, 20 classes at the photos' own sizes.

The photos are drawn, in VOC's layout.  The first profile is the smoke profile on photos and runs
every notebook.  The second has the lines of ``voc``, with random views, and runs those that draw
photos in more than one size (`OF_OWN_SIZES`).  Rows are computed in this process, once for all
notebooks of a profile; then the notebooks' cells run here, without a kernel.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import nbformat
import pytest
from photo_profile import photo_profile
from photo_sets import make_voc

from aeft_lib import paths
from aeft_lib.data import collages
from aeft_lib.data.scene import opened
from aeft_lib.data.voc import VocSpec
from aeft_lib.lab import figures
from aeft_lib.lab.session import open_session
from aeft_lib.studies import catalogue, pipeline, profiles, run
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile
from aeft_lib.studies.systems import brief

pytestmark = pytest.mark.usefixtures("stored")
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
SIX = ("cat", "cow", "dog", "horse", "person", "sheep")
OF_OWN_SIZES = ("01", "02", "04", "05", "06")
PROFILE = "drawn"


def squared() -> Profile:
    """Six classes: the smoke profile on photos squared to 96 px, whose features are cached."""
    train, val = (VocSpec(split, size=96, classes=SIX) for split in ("train_aug", "val"))
    long_from = profiles.VOC_LITE.long_from  # never: long studies show their committed tables
    changes = {"name": PROFILE, "controlled": None, "long_from": long_from}
    return replace(profiles.SMOKE, train=train, val=val, **changes)


def own_sizes() -> Profile:
    """All of VOC's classes, with random views."""
    return photo_profile(name=PROFILE, train=VocSpec("train_aug"), val=VocSpec("val"))


def rows(profile: Profile) -> Iterator[Row]:
    """What the notebooks read; of own sizes neither notebook 3's nor notebook 9's."""
    squared = bool(profile.train.size)
    for name, study in catalogue.STUDIES.items():
        if not run.left_out(study, profile, 1) and (squared or name != "pyramid_ablation"):
            yield from study.rows
    yield from brief(catalogue.rows_by_name()) if squared else ()


@pytest.fixture
def photos(request, shared, monkeypatch) -> tuple[str, ...]:
    """The class names of a registered profile, all of whose rows are in the store."""
    root = shared / request.param.__name__
    monkeypatch.setenv("AEFT_VOC_ROOT", str(root))
    profile = request.param()
    classes = profile.train.classes
    monkeypatch.setitem(profiles.PROFILES, PROFILE, profile)
    monkeypatch.delitem(figures.UNDATED, "pdf")  # a second drawing of every figure
    if not root.is_dir():  # the first test on this profile
        count, size = (32, (96, 128)) if profile.train.size else (12, (48, 64))
        make_voc(root, {"train_aug": count, "val": 8}, classes, size=size)
        for row in rows(profile):
            pipeline.artefacts(profile, row, 0)
    yield classes
    plt.close("all")
    opened.cache_clear()  # what is kept of these photos goes by their spec, not by their folder


def run_cells(file) -> str:
    """Run a notebook's cells on the drawn photos; returns what they print."""
    namespace, printed = {"__name__": "__main__"}, io.StringIO()
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        code = cell.source
        if "parameters" in cell.metadata.get("tags", []):
            code = f"profile, repeats, train = {PROFILE!r}, 1, True"
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{file.stem}, cell {cell.id}", "exec"), namespace)
        plt.close("all")
    return printed.getvalue()


RUNS = [(squared, file) for file in NOTEBOOKS]
RUNS += [(own_sizes, file) for file in NOTEBOOKS if file.stem[:2] in OF_OWN_SIZES]


def named(value) -> str:
    return getattr(value, "stem", None) or value.__name__


@pytest.mark.parametrize(("photos", "file"), RUNS, indirect=["photos"], ids=named)
def test_notebooks_run_on_photos(file, photos):
    printed = run_cells(file)
    assert f"profile {PROFILE}: " in printed
    assert "+ 8 photos of " in printed
    if file.stem.startswith("01"):  # its scenes' tags
        assert any(f"'{name}'" in printed for name in photos)
        assert not any(f"'{name}'" in printed for name in set(collages.CLASSES) - set(photos))


@pytest.mark.parametrize("photos", [squared, own_sizes], indirect=True, ids=named)
def test_a_session_knows_the_classes_of_its_photos(photos):
    session = open_session(PROFILE, 1)
    assert session.class_names == photos
    assert session.num_classes == len(photos) in (6, 20)
    assert session.pictures == "photos"

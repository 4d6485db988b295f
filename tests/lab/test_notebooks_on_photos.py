"""Every notebook runs on photos, with 6 and with 20 classes: drawn photos in VOC's layout.

The profile is the smoke profile on 32 + 8 photos of 96 px.  Rows are computed in this process, once
for all notebooks of a set of classes; then the notebooks' cells run here, without a kernel.
"""

import ast
import contextlib
import io
from dataclasses import replace

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import nbformat
import pytest
from photo_sets import make_voc

from aeft_lib import paths
from aeft_lib.data import collages, voc
from aeft_lib.data.voc import VocSpec
from aeft_lib.lab.session import open_session
from aeft_lib.studies import catalogue, profiles, run

pytestmark = pytest.mark.usefixtures("stored")
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
CLASSES = {6: ("cat", "cow", "dog", "horse", "person", "sheep"), 20: voc.CLASSES}
PROFILE = "drawn"


@pytest.fixture(params=CLASSES, ids="{} classes".format)
def photos(request, shared, monkeypatch) -> tuple[str, ...]:
    """The class names of a registered profile, all of whose rows are in the store."""
    classes, root = CLASSES[request.param], shared / f"voc{request.param}"
    monkeypatch.setenv("AEFT_VOC_ROOT", str(root))
    if not root.is_dir():
        make_voc(root, {"train_aug": 32, "val": 8}, classes, size=(96, 128))
    train, val = (VocSpec(split, size=96, classes=classes) for split in ("train_aug", "val"))
    long_from = profiles.VOC_LITE.long_from  # never: long studies show their committed tables
    changes = {"name": PROFILE, "controlled": None, "long_from": long_from}
    profile = replace(profiles.SMOKE, train=train, val=val, **changes)
    monkeypatch.setitem(profiles.PROFILES, PROFILE, profile)
    for study in catalogue.STUDIES.values():
        for row in study.rows if not run.left_out(study, profile, 1) else ():
            run.artefacts(profile, row, 0)
    yield classes
    plt.close("all")


def run_cells(file) -> str:
    """Run a notebook's cells on the drawn photos; returns what they print."""
    namespace, printed = {"__name__": "__main__"}, io.StringIO()
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        code = cell.source
        if "parameters" in cell.metadata.get("tags", []):
            code = f"profile, repeats = {PROFILE!r}, 1"
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.parse(code), f"{file.stem}, cell {cell.id}", "exec"), namespace)
        plt.close("all")
    return printed.getvalue()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_notebook_runs_on_photos(file, photos):
    printed = run_cells(file)
    assert f"profile {PROFILE}: 32 + 8 photos of 96 px" in printed
    if file.stem.startswith("01"):  # its scenes' tags
        assert any(f"'{name}'" in printed for name in photos)
        assert not any(f"'{name}'" in printed for name in set(collages.CLASSES) - set(photos))


def test_a_session_knows_the_classes_of_its_photos(photos):
    session = open_session(PROFILE, 1)
    assert (session.class_names, session.num_classes) == (photos, len(photos))
    assert session.pictures == "photos"

"""Notebooks 1 to 6 open on the package's weights: every cell runs, and nothing is trained.

The weights are of the smoke profile here, classifiers alone or with AffinityNet and the network.
Committed tables of scenes are those of the laptop; scenes that the smoke profile lacks are dropped.
"""

import contextlib
import io

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import nbformat
import pytest

from aeft_lib import paths
from aeft_lib.lab import demo, figures
from aeft_lib.lab.session import Session, open_session
from aeft_lib.stages import fitting
from aeft_lib.studies import catalogue, pipeline, run, shipped, shipping
from aeft_lib.studies.profiles import SMOKE

pytestmark = pytest.mark.usefixtures("stored")
OPENING = [f"{number:02d}" for number in range(1, 7)]
NOTEBOOKS = {
    file.stem[:2]: file
    for file in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if file.stem[:2] in OPENING
}
KINDS = {"classifiers": shipped.CLASSIFIERS, "all": shipped.ROWS}


# What more weights change is in notebooks 5 and 6.
OPENED = [("classifiers", number) for number in OPENING] + [("all", "05"), ("all", "06")]


@pytest.fixture(scope="module")
def weights(request, shared, tmp_path_factory):
    """A folder of smoke weights of some rows, from a store that has those rows alone."""
    folder, patch = tmp_path_factory.mktemp(request.param), pytest.MonkeyPatch()
    patch.setenv("AEFT_RUNS", str(shared / request.param))
    patch.setattr(shipped, "PROFILE", "smoke")
    patch.setattr(shipped, "FOLDER", folder)
    for name in KINDS[request.param]:
        pipeline.artefacts(SMOKE, catalogue.row(name), 0)
    shipping.write()
    yield folder
    patch.undo()


@pytest.fixture
def opened(weights, tmp_path, monkeypatch):
    """An empty store, committed tables without scenes of the laptop, and no training."""
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path))
    committed = Session.committed

    def few(name):
        table = committed(name)
        return table[table["scene"] < len(SMOKE.val.open())] if "scene" in table else table

    def refuse(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr(Session, "committed", staticmethod(few))
    monkeypatch.delitem(figures.UNDATED, "pdf")  # a second drawing of every figure
    monkeypatch.setattr(run, "_compute", refuse)
    monkeypatch.setattr(fitting, "finish", refuse)
    yield shipped.known()
    plt.close("all")


def run_cells(file) -> str:
    """Run a notebook's cells without training; returns what they print."""
    namespace, printed = {"__name__": "__main__", "display": print}, io.StringIO()
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        is_parameters = "parameters" in cell.metadata.get("tags", [])
        code = 'profile, repeats, train = "smoke", 0, False' if is_parameters else cell.source
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{file.stem}, cell {cell.id}", "exec"), namespace)
        plt.close("all")
    return printed.getvalue()


def test_notebooks_1_to_6_open_without_training():
    for number, file in NOTEBOOKS.items():
        (cell,) = [
            cell
            for cell in nbformat.read(file, as_version=4).cells
            if "parameters" in cell.metadata.get("tags", [])
        ]
        assert "\ntrain = False" in cell.source, number


@pytest.mark.parametrize(("weights", "number"), OPENED, indirect=["weights"])
def test_every_cell_runs_and_what_is_left_out_is_reported(number, opened):
    printed = run_cells(NOTEBOOKS[number])
    assert "the package's trained weights" in printed
    has_network = shipped.SEGMENTER in opened
    told = {
        "03": ["committed table pyramid_ablation.csv, 5 repeats", "left out: G, positive only"],
        "04": ["committed table triplet_ablation.csv, 5 repeats", "no training log"],
        "05": ["committed table refinement.csv, 5 repeats"],
        "06": ["committed table segmentation.csv, 3 repeats", "True written"],
    }
    for words in told.get(number, []):
        assert words in printed
    if number == "05":
        assert ("brings no AffinityNet" in printed) == (shipped.REFINED not in opened)
    if number == "06":
        assert ("no segmentation network in the package" in printed) == (not has_network)
        assert "left out: " in printed  # the network from true masks at least


@pytest.mark.parametrize("weights", ["classifiers"], indirect=True)
def test_verdicts_without_training_are_those_of_the_committed_report(opened):
    session = open_session("smoke", train=False)
    shown = session.verdicts("triplet_ablation")
    assert shown.startswith("*As in the committed report")
    assert "`claim.triplet_is_best`" in shown
    assert session.conclusions("triplet_ablation").startswith("*As in the committed report")
    assert not session.verdicts("gap_vs_gpp").startswith("*")


@pytest.mark.parametrize("weights", KINDS, indirect=True)
def test_the_demo_shows_what_the_package_brings_and_names_what_is_absent(opened):
    networks = demo.open_networks()
    done = demo.read(next(demo.example_scenes(SMOKE.val.open())), networks)
    walks, predicts = shipped.REFINED in opened, shipped.SEGMENTER in opened
    assert ("pseudo-label (walk + CRF)" in done.maps) == walks
    assert ("prediction (no tags)" in done.maps) == predicts
    page = demo.page([], networks)
    assert ("brings no AffinityNet" in page) == (not walks)
    assert ("brings no segmentation network" in page) == (not predicts)

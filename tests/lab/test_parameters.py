"""Parameters that papermill was given by hand and a notebook does not have."""

import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from aeft_lib import paths
from aeft_lib.lab import session
from aeft_lib.lab.notebooks import ThisPython
from aeft_lib.lab.parameters import assigned_names, check

TAGGED = 'profile = ""  # a comment\nrepeats: int = 0'


def test_names_that_a_cell_assigns():
    assert assigned_names(TAGGED) == ["profile", "repeats"]
    assert assigned_names("import os\nf(x)\na = b = 1\nc.d = 2\ne += 1") == ["a", "b"]


@pytest.mark.parametrize(
    "injected", ['# Parameters\nprofile = "smoke"\n', '# Parameters\nrepeats = 2\nprofile = ""']
)
def test_parameters_that_are_there_pass(injected):
    check(["", TAGGED, injected, "other = 1", "# Parameters are fine\nx = 1"])
    check([])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            [TAGGED, "# Parameters\nprofile = 'smoke'\nrepeat = 2"],
            r"no parameter 'repeat'; there are profile, repeats \(did you mean repeats\?\)",
        ),
        ([TAGGED, "# Parameters\nseeds = 2"], "no parameter 'seeds'; there are profile, repeats"),
        (["# Parameters\nprofile = ''"], "no parameter 'profile'"),
    ],
)
def test_parameters_that_are_not_there_are_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        check(["", *cells])


def test_a_session_is_opened_right_after_the_parameters_in_every_notebook():
    """So that it can see the cell that papermill puts between."""
    import nbformat

    for file in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        node = nbformat.read(file, as_version=4)
        code = [cell for cell in node.cells if cell.cell_type == "code"]
        tags = [cell.metadata.get("tags", []) for cell in code]
        assert "parameters" in tags[0], file.name
        assert "session.open_session(profile, repeats" in code[1].source, file.name


def test_outside_a_kernel_no_cell_has_run():
    assert session.cells_run() == []


NOTEBOOK = """from IPython import get_ipython
from aeft_lib.lab import parameters
parameters.check(get_ipython().user_ns["In"])"""


@pytest.mark.parametrize(("given", "refused"), [("repeats", False), ("repeat", True)])
def test_papermill_injects_what_is_checked(tmp_path, monkeypatch, given, refused):
    """What papermill writes today, in a kernel."""
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    cells = [new_code_cell(TAGGED, metadata={"tags": ["parameters"]}), new_code_cell(NOTEBOOK)]
    options = {"progress_bar": False, "kernel_name": "python3", "language": "python"}
    options |= {"kernel_manager_class": ThisPython, "log_output": False}
    out = str(tmp_path / "out.ipynb")
    if not refused:
        papermill.execute_notebook(new_notebook(cells=cells), out, {given: 2}, **options)
        return
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter 'repeat'"):
        papermill.execute_notebook(new_notebook(cells=cells), out, {given: 2}, **options)

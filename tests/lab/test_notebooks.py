"""The notebook runner, on notebooks of a few lines; a kernel costs a second, so tests share."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from aeft_lib.lab import notebooks as runner
from aeft_lib.lab.notebooks import NotebookFailed, reproduce

PARAMETERS = 'profile = "laptop"\nrepeats = 3'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty notebooks folder, with a store of its own beside it."""
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def write(folder: Path, name: str, *code: str, parameters: str | None = PARAMETERS) -> Path:
    """A notebook with a title, a parameters cell (none for None) and the given code cells."""
    cells = [new_markdown_cell("# Title")]
    if parameters is not None:
        cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source) for source in code]
    file = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells), file)
    return file


def read(file: Path):
    return nbformat.read(file, as_version=4)


def printed(file: Path) -> str:
    return "".join(o.get("text", "") for c in read(file).cells for o in c.get("outputs", []))


def test_runs_in_order_with_parameters_and_publishes(folder, monkeypatch, capsys):
    monkeypatch.setenv("AEFT_PROFILE", "smoke")
    monkeypatch.setenv("MPLBACKEND", "agg")
    shown = "profile, repeats, os.environ.get('AEFT_PROFILE'), os.environ['MPLBACKEND']"
    code = f"import os, sys\nprint({shown}, sys.executable)"
    note = "with open('order.txt', 'a') as file:\n    file.write(__NAME__)\n1 + 1"
    second = write(folder, "02_second", note.replace("__NAME__", "'2'"))
    first = write(folder, "01_first", code, note.replace("__NAME__", "'1'"))
    write(folder, "draft", "raise RuntimeError('not a numbered notebook')")
    before = read(first)

    home = reproduce(profile="tiny", repeats=2, publish=True, folder=folder)

    assert (folder / "order.txt").read_text() == "12"
    assert home == folder.parent / "runs" / "notebooks" / "tiny-2repeats"
    values = printed(home / "01_first.ipynb").split(maxsplit=4)
    assert values[:3] == ["tiny", "2", "None"]
    assert "inline" in values[3]
    assert values[4].splitlines()[0] == sys.executable
    assert (home / "02_second.html").read_text().startswith("<!DOCTYPE html>")
    assert not list(home.glob("*.partial*"))

    assert re.search(r"01_first: 3 cells, \d+ s\n02_second: 2 cells", capsys.readouterr().out)

    after = read(first)
    assert [(c.id, c.source, c.metadata) for c in after.cells] == [
        (c.id, c.source, c.metadata) for c in before.cells
    ]
    assert [c.execution_count for c in after.cells if c.cell_type == "code"] == [1, 2, 3]
    assert after.cells[-1].outputs[0].execution_count == 3
    assert "papermill" not in json.dumps(after)
    assert read(second).cells[-1].outputs[0].data["text/plain"] == "2"
    assert sorted(f.name for f in folder.iterdir()) == [
        "01_first.ipynb",
        "02_second.ipynb",
        "draft.ipynb",
        "order.txt",
    ]


def test_failure_names_the_command_and_keeps_the_last_good_output(folder):
    write(
        folder,
        "01_fragile",
        "from pathlib import Path",
        "if Path('bad').exists():\n    raise ValueError('the bad value 7')",
    )
    home = reproduce(profile="tiny", repeats=1, folder=folder)
    good = {f.name: f.read_bytes() for f in home.iterdir()}
    (folder / "bad").touch()

    with pytest.raises(NotebookFailed) as failure:
        reproduce(profile="tiny", repeats=1, folder=folder)

    message = str(failure.value)
    assert "notebook 01_fragile failed in cell 4 of 4 (execution count 4)" in message
    assert "ValueError: the bad value 7" in message
    assert "\x1b[" not in message
    assert message.endswith(
        "resume with: aeft reproduce --profile tiny --repeats 1 --from 01_fragile"
    )
    assert {name: (home / name).read_bytes() for name in good} == good
    assert str(home / "01_fragile.partial.ipynb") in message


def test_a_killed_kernel_is_a_failure_and_nothing_is_published(folder):
    whole = write(folder, "01_whole", "print('fine')")
    write(
        folder,
        "02_killed",
        "x = 1",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "print('after')",
    )
    before = whole.read_bytes()

    with pytest.raises(
        NotebookFailed, match=r"02_killed failed in cell 4 of 5 .*\n.*DeadKernelError: Kernel died"
    ) as failure:
        reproduce(profile="tiny", repeats=1, publish=True, folder=folder)

    home = folder.parent / "runs" / "notebooks" / "tiny-1repeats"
    assert "--publish" in str(failure.value)
    assert (home / "01_whole.ipynb").is_file()
    assert not (home / "02_killed.ipynb").exists()
    assert whole.read_bytes() == before


def test_two_run_side_by_side_and_after_a_failure_none_is_begun(folder):
    wait = "import time\nfrom pathlib import Path\nfor _ in range(600):\n    time.sleep(0.1)\n"
    # The first waits for the second.
    first = wait + "    if Path('begun').exists():\n        raise ValueError('the bad value 7')"
    write(folder, "01_fails", first)
    write(folder, "02_whole", "open('begun', 'w').close()", "import time\ntime.sleep(2)")
    write(folder, "03_later", "1 + 1")

    with pytest.raises(NotebookFailed, match="the bad value 7") as failure:
        reproduce(profile="tiny", repeats=1, folder=folder, workers=2)

    assert str(failure.value).endswith("--from 01_fails")
    home = folder.parent / "runs" / "notebooks" / "tiny-1repeats"
    assert (home / "02_whole.html").is_file()
    assert not list(home.glob("03_later*"))


def test_a_notebook_that_exits_early_is_a_failure(folder):
    write(folder, "01_exits", "import sys\nsys.exit(0)", "print('after')")
    with pytest.raises(
        NotebookFailed, match=r"01_exits failed in cell 3 of 4(.*\n)*.*cell 4 was never executed"
    ):
        reproduce(profile="tiny", repeats=1, folder=folder)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "02_wrong must have exactly one code cell tagged 'parameters', it has 0"),
        ('profile = "laptop"', "02_wrong has no parameter 'repeats'"),
        ("def profile(repeats):\n    repeats = 3", "02_wrong has no parameter 'profile'"),
        ("profile = ", "02_wrong: the cell tagged 'parameters' is not Python"),
    ],
)
def test_parameters_are_checked_before_anything_runs(folder, parameters, message):
    write(folder, "01_right", "open('ran', 'w')")
    write(folder, "02_wrong", parameters=parameters)
    with pytest.raises(ValueError, match=re.escape(message)):
        reproduce(profile="tiny", repeats=1, folder=folder)
    assert not (folder / "ran").exists()


def test_two_parameters_cells_are_refused(folder):
    file = write(folder, "01_twice")
    node = read(file)
    node.cells.append(new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    nbformat.write(node, file)
    with pytest.raises(ValueError, match="it has 2 tagged cells"):
        reproduce(profile="tiny", repeats=1, folder=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["03_gone"]}, "no notebook named 03_gone; known are 01_a, 02_b"),
        ({"start": "zz"}, "no notebook named zz; known are 01_a, 02_b"),
        ({"only": ["01_a"], "start": "02_b"}, "none of 01_a comes at or after 02_b"),
        ({"only": ["01_a"], "publish": True}, "publish copies all notebooks or none"),
        ({"repeats": "3"}, "repeats must be a whole number, at least 1, got '3'"),
        ({"repeats": 0}, "repeats must be a whole number, at least 1, got 0"),
    ],
)
def test_what_cannot_be_run_is_refused(folder, options, message):
    write(folder, "01_a")
    write(folder, "02_b")
    with pytest.raises(ValueError, match=message):
        reproduce(**({"profile": "tiny", "repeats": 1, "folder": folder} | options))


def test_a_folder_without_notebooks_and_a_damaged_notebook_are_refused(folder):
    with pytest.raises(ValueError, match="no notebook named"):
        reproduce(profile="tiny", repeats=1, folder=folder)
    (folder / "01_half.ipynb").write_text('{"cells": [')
    with pytest.raises(ValueError, match=r"01_half\.ipynb is not a notebook"):
        reproduce(profile="tiny", repeats=1, folder=folder)


def test_choose_keeps_the_order_of_the_files(folder):
    for name in ("01_a", "02_b", "03_c"):
        write(folder, name)
    sources = runner.read_sources(folder)
    assert [s.name for s in runner.choose(sources, start="02_b")] == ["02_b", "03_c"]
    assert [s.name for s in runner.choose(sources, only=["03_c", "01_a"])] == ["01_a", "03_c"]


def test_cleaned_drops_what_a_run_leaves_behind():
    code = new_code_cell(
        "1",
        id="kept",
        metadata={"execution": {"iopub.execute_input": "12:00"}, "tags": ["nbval-skip"]},
    )
    kernelspec = {"name": "python3", "display_name": "Python 3"}
    source = new_notebook(
        cells=[code], metadata={"kernelspec": kernelspec, "papermill": {"duration": 1}}
    )
    executed = new_notebook(
        cells=[
            new_markdown_cell("an error was here", metadata={"tags": [runner.ERROR_MARKER_TAG]}),
            new_code_cell(
                "repeats = 1", execution_count=1, metadata={"tags": [runner.INJECTED_TAG]}
            ),
            new_code_cell("1", execution_count=7, metadata={"papermill": {"duration": 0.1}}),
        ]
    )
    after = runner.cleaned(source, executed)
    assert after.metadata == {"kernelspec": kernelspec}
    assert [(c.id, c.execution_count, c.metadata) for c in after.cells] == [
        ("kept", 1, {"tags": ["nbval-skip"]})
    ]
    assert "execution" in source.cells[0].metadata


def test_publish_refuses_sources_edited_meanwhile(folder, tmp_path):
    file = write(folder, "01_a")
    sources = runner.read_sources(folder)
    write(folder, "01_a", "x = 2")
    edited = file.read_bytes()
    with pytest.raises(RuntimeError, match="01_a changed while the notebooks ran"):
        runner.publish_notebooks(sources, tmp_path)
    assert file.read_bytes() == edited

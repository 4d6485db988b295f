"""Every exercise has a solution, and the solutions' Python runs on the profile of the tests."""

import json
import re

import pytest

from aeft_lib import paths

TEXT = (paths.ROOT / "docs" / "solutions.md").read_text(encoding="utf-8")
SECTIONS = {int(part[0]): part for part in re.split(r"^## (?=\d)", TEXT, flags=re.M)[1:]}
NOTEBOOKS = {int(file.name[:2]): file for file in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")}


def exercises(number: int) -> list[int]:
    """The numbers of a notebook's exercises."""
    cells = json.loads(NOTEBOOKS[number].read_text(encoding="utf-8"))["cells"]
    last = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    part = last.partition("## Exercises")[2].partition("## Next")[0]
    return [int(n) for n in re.findall(r"^(\d+)\. ", part, flags=re.M)]


@pytest.mark.parametrize("number", sorted(NOTEBOOKS))
def test_every_exercise_has_a_hidden_solution(number):
    found = re.findall(r"<details><summary>Exercise (\d+):", SECTIONS[number])
    assert [int(n) for n in found] == exercises(number) != []


@pytest.mark.parametrize("number", sorted(SECTIONS))
def test_solutions_run(number):
    blocks = re.findall(r"^```python\n(.*?)^```", SECTIONS[number], flags=re.M | re.S)
    names: dict = {}
    for block in blocks:
        exec(compile(block, f"solutions.md, notebook {number}", "exec"), names)

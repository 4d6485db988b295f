"""The rules that every notebook keeps, each a function from a notebook to what is wrong with it."""

import ast
import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_environment import HOSTS, MACHINE_PATHS

from aeft_lib import paths

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
MAX_BYTES = 300 * 1000
MAX_LINES, MAX_MEDIAN_LINES = 25, 7
TEXT_PER_CODE = 0.6
MIN_CHECKED = 2
FEW_CHECKS = {
    "07_report"
}  # its tables are what the store holds: they differ from profile to profile
CLOSING_HEADINGS = ("What was shown", "Exercises", "Next")
WIDGET = "application/vnd.jupyter.widget-view+json"


def code_cells(node: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in node.cells if cell.cell_type == "code"]


def text_cells(node: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in node.cells if cell.cell_type == "markdown"]


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def lines(cell: NotebookNode) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def parsed(cell: NotebookNode) -> ast.Module:
    """The cell's code; magics and shell lines are no Python and are refused by `plain_python`."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def shows(cell: NotebookNode, *kinds: str) -> bool:
    return any(set(kinds) & set(output.get("data", {})) for output in cell.outputs)


def title_first(node: NotebookNode) -> list[str]:
    first = node.cells[0]
    return (
        []
        if first.cell_type == "markdown" and first.source.startswith("# ")
        else ["the first cell is no '# ' title"]
    )


def one_literal_parameters_cell(node: NotebookNode) -> list[str]:
    cells = [cell for cell in node.cells if tagged(cell, "parameters")]
    if len(cells) != 1:
        return [f"{len(cells)} cells are tagged 'parameters', not exactly 1"]
    return [
        f"no literal assignment: {ast.unparse(s)}"
        for s in parsed(cells[0]).body
        if not is_literal_assignment(s)
    ]


def is_literal_assignment(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    try:
        ast.literal_eval(statement.value)
    except ValueError:
        return False
    return True


def plain_python(node: NotebookNode) -> list[str]:
    wrong = []
    for cell in code_cells(node):
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            wrong.append(f"not plain Python ({error.msg}): {cell.source[:60]!r}")
    return wrong


def no_class(node: NotebookNode) -> list[str]:
    return [
        f"class {part.name} belongs in aeft_lib"
        for cell in code_cells(node)
        for part in ast.walk(parsed(cell))
        if isinstance(part, ast.ClassDef)
    ]


def no_training_loop(node: NotebookNode) -> list[str]:
    """A loop or function that calls .backward() or optimizer.step(); a lone gradient is no loop."""
    wrong = []
    for cell in code_cells(node):
        blocks = [
            part
            for part in ast.walk(parsed(cell))
            if isinstance(part, ast.For | ast.While | ast.FunctionDef)
        ]
        calls = [part for block in blocks for part in ast.walk(block) if isinstance(part, ast.Call)]
        names = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
        wrong += [
            f"a training loop ({name}) belongs in aeft_lib"
            for name in sorted(names & {"backward", "step"})
        ]
    return wrong


def no_plotting_code(node: NotebookNode) -> list[str]:
    wrong = {
        f"plt.{part.attr} belongs in aeft_lib.lab.figures"
        for cell in code_cells(node)
        for part in ast.walk(parsed(cell))
        if isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and part.value.id == "plt"
    }
    return sorted(wrong - {"plt.show belongs in aeft_lib.lab.figures"})


def short_cells(node: NotebookNode) -> list[str]:
    counts = [len(lines(cell)) for cell in code_cells(node)]
    wrong = [
        f"a cell of {count} lines, at most {MAX_LINES}" for count in counts if count > MAX_LINES
    ]
    if median(counts) > MAX_MEDIAN_LINES:
        wrong.append(f"median of {median(counts)} lines, at most {MAX_MEDIAN_LINES}")
    return wrong


def enough_text(node: NotebookNode) -> list[str]:
    texts, codes = len(text_cells(node)), len(code_cells(node))
    if texts >= TEXT_PER_CODE * codes:
        return []
    return [f"{texts} text cells for {codes} code cells, at least {TEXT_PER_CODE} each"]


def executed_in_order(node: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(node)]
    return (
        []
        if counts == list(range(1, len(counts) + 1))
        else [f"execution counts {counts} are not 1, 2, 3 .."]
    )


def no_complaints(node: NotebookNode) -> list[str]:
    outputs = [output for cell in code_cells(node) for output in cell.outputs]
    wrong = [f"error output {output.ename}" for output in outputs if output.output_type == "error"]
    return wrong + [
        f"stderr: {output.text[:80]!r}" for output in outputs if output.get("name") == "stderr"
    ]


def figures_are_shown(node: NotebookNode) -> list[str]:
    drawn = [cell for cell in code_cells(node) if shows(cell, "image/png", "image/jpeg")]
    return [
        f"draws without plt.show(): {lines(c)[-1]!r}" for c in drawn if "plt.show()" not in c.source
    ]


def widgets_are_not_compared(node: NotebookNode) -> list[str]:
    cells = [
        cell
        for cell in code_cells(node)
        if shows(cell, WIDGET) or re.search(r"\bwidgets\.\w+\(", cell.source)
    ]
    return [
        f"a widget without nbval-ignore-output: {c.source[:60]!r}"
        for c in cells
        if not tagged(c, "nbval-ignore-output")
    ]


def no_addresses_of_this_machine(node: NotebookNode) -> list[str]:
    texts = [cell.source for cell in node.cells]
    for output in (output for cell in code_cells(node) for output in cell.outputs):
        texts += [output.get("text", "")] + [
            str(v) for kind, v in output.get("data", {}).items() if "image/" not in kind
        ]
    return [
        f"names a host or path: {match}"
        for text in texts
        for match in HOSTS.findall(text) + MACHINE_PATHS.findall(text)
    ]


def outputs_are_checked(node: NotebookNode) -> list[str]:
    cells = [cell for cell in code_cells(node) if tagged(cell, "nbval-check-output")]
    wrong = [f"nothing to check in {cell.source[:60]!r}" for cell in cells if not cell.outputs]
    if len(cells) < MIN_CHECKED:
        wrong.append(f"{len(cells)} cells tagged nbval-check-output, at least {MIN_CHECKED}")
    return wrong


def closes_as_agreed(node: NotebookNode) -> list[str]:
    last = "\n".join(cell.source for cell in text_cells(node)[-2:])
    headings = [line for line in last.splitlines() if line.startswith("#")]
    missing = [
        name for name in CLOSING_HEADINGS if not any(name in heading for heading in headings)
    ]
    return [f"no heading {name!r} in the last two text cells" for name in missing]


RULES: tuple[Callable[[NotebookNode], list[str]], ...] = (
    title_first,
    one_literal_parameters_cell,
    plain_python,
    no_class,
    no_training_loop,
    no_plotting_code,
    short_cells,
    enough_text,
    executed_in_order,
    no_complaints,
    figures_are_shown,
    widgets_are_not_compared,
    no_addresses_of_this_machine,
    outputs_are_checked,
    closes_as_agreed,
)


@cache
def read(file: Path) -> NotebookNode:
    return nbformat.read(file, as_version=4)


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks in notebooks/ yet")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_keeps(file, rule):
    if rule is outputs_are_checked and file.stem in FEW_CHECKS:
        pytest.skip("its numbers are those of the profile")
    assert rule(read(file)) == []


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks in notebooks/ yet")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_is_small(file):
    assert file.stat().st_size < MAX_BYTES


def good_notebook() -> NotebookNode:
    """A notebook that keeps every rule."""
    check = {"tags": ["nbval-check-output"]}
    picture, two = (
        new_output("display_data", {"image/png": "/tmp"}),
        new_output("stream", name="stdout", text="2\n"),
    )
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell(
            'profile: str = ""\nrepeats = -1', execution_count=1, metadata={"tags": ["parameters"]}
        ),
        new_code_cell("print(1 + 1)", execution_count=2, metadata=check, outputs=[two]),
        new_markdown_cell("An equation and a/tmp word."),
        new_code_cell("print(2)", execution_count=3, metadata=check, outputs=[two]),
        new_code_cell("figures.bars()\nplt.show()", execution_count=4, outputs=[picture]),
        new_markdown_cell("## What was shown\n\n## Exercises\n\n## Next"),
    ]
    return new_notebook(cells=cells)


def test_a_good_notebook_keeps_all_rules():
    assert [problem for rule in RULES for problem in rule(good_notebook())] == []


STDERR = new_output("stream", name="stderr", text="warning")
VIEW = new_output("display_data", {WIDGET: {}})
PATH = new_output("execute_result", {"text/plain": "'/root/x'"})


@pytest.mark.parametrize(
    ("rule", "cell", "change"),
    [
        (title_first, 0, {"source": "## Title"}),
        (one_literal_parameters_cell, 1, {"source": "repeats = int('3')"}),
        (one_literal_parameters_cell, 1, {"source": "import os"}),
        (one_literal_parameters_cell, 1, {"metadata": {}}),
        (plain_python, 2, {"source": "%matplotlib inline"}),
        (no_class, 2, {"source": "class A:\n    pass"}),
        (no_training_loop, 2, {"source": "for x in data:\n    f(x).backward()"}),
        (no_plotting_code, 2, {"source": "plt.plot(x)"}),
        (short_cells, 2, {"source": "x = 1\n" * 26}),
        (executed_in_order, 2, {"execution_count": None}),
        (no_complaints, 2, {"outputs": [STDERR]}),
        (no_complaints, 2, {"outputs": [new_output("error", ename="E", evalue="", traceback=[])]}),
        (figures_are_shown, 5, {"source": "figures.bars()"}),
        (widgets_are_not_compared, 5, {"outputs": [VIEW]}),
        (no_addresses_of_this_machine, 4, {"outputs": [PATH]}),
        (no_addresses_of_this_machine, 3, {"source": "see /home/me"}),
        (outputs_are_checked, 4, {"metadata": {}}),
        (outputs_are_checked, 4, {"outputs": []}),
        (closes_as_agreed, 6, {"source": "## What was shown\nNext"}),
    ],
)
def test_each_rule_finds_what_it_is_for(rule, cell, change):
    node = good_notebook()
    node.cells[cell].update(nbformat.from_dict(copy.deepcopy(change)))
    assert rule(node) != []


def test_rules_on_the_whole_find_long_medians_and_missing_text():
    node = good_notebook()
    node.cells = [cell for cell in node.cells if cell.cell_type == "code"]
    for cell in node.cells:
        cell.source = "x = 1\n" * 8
    assert short_cells(node)
    assert enough_text(node)


TEXTS = [paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md")), *NOTEBOOKS]
NAMED = re.compile(r"`([\w./]+\.(?:py|toml))`")


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.stem)
def test_files_that_a_text_names_are_there(file):
    is_notebook = file.suffix == ".ipynb"
    cells = text_cells(read(file)) if is_notebook else [file.read_text(encoding="utf-8")]
    names = NAMED.findall("\n".join(cell.source if is_notebook else cell for cell in cells))
    roots = (paths.ROOT, paths.ROOT / "aeft_lib")
    assert [name for name in names if not any((root / name).is_file() for root in roots)] == []

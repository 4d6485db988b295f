"""Executes the notebooks, two at a time, through papermill's API.

Their folder is ``runs/notebooks/<profile>-<repeats>repeats/``, with the last whole ``NAME.ipynb``
and ``NAME.html`` of each.  Papermill alone would only log an unknown parameter, overwrite the last
good output on failure, and call the cells of a killed kernel completed.  So parameters are checked
before anything runs, and output goes to ``NAME.partial.ipynb`` and is renamed when whole.
"""

import copy
import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import papermill
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.execute import ERROR_MARKER_TAG

from aeft_lib import paths
from aeft_lib.engine.fields import whole
from aeft_lib.lab.parameters import assigned_names
from aeft_lib.stages import store
from aeft_lib.studies import run

PATTERN = "[0-9][0-9]_*.ipynb"
INJECTED_TAG = "injected-parameters"
TRAIN = "train"  # a parameter that some notebooks have: a reproduction reads no shipped weights
AT_ONCE = 2  # kernels side by side; each takes a gigabyte or two
LINES_OF_ERROR = 12
KERNEL_START_SECONDS = 120  # two cores busy with a training start a kernel slowly
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
QUIET = "--IPKernelApp.log_level=ERROR"  # else a warning about TCP lands in the outputs
KERNEL_COMMAND = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", QUIET)


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message names it, the cell, and how to resume."""


@dataclass(frozen=True)
class Source:
    """A notebook as it stood when the run began."""

    file: Path
    sha256: str
    node: NotebookNode

    @property
    def name(self) -> str:
        """The file's stem, by which the command line knows it."""
        return self.file.stem

    @property
    def parameters(self) -> list[str]:
        """The names that its cells tagged ``parameters`` assign."""
        cells = [cell for cell in self.node.cells if _has_tag(cell, "parameters")]
        return [name for cell in cells for name in assigned_names(cell.source)]


class ThisPython(AsyncKernelManager):
    """Kernels of the interpreter that runs this code, whatever an installed kernelspec names."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The same everywhere, never looked up on the machine."""
        names = {"display_name": "Python 3 (ipykernel)", "language": "python"}
        return KernelSpec(argv=list(KERNEL_COMMAND), **names)

    async def start_kernel(self, **options: Any) -> None:
        """Start with `kernel_environment`, not with the caller's."""
        await super().start_kernel(env=kernel_environment(), **options)


def kernel_environment() -> dict[str, str]:
    """The environment of a notebook's kernel.

    AEFT_PROFILE is left out, since the parameters decide, and MPLBACKEND, since a backend other
    than the kernel's inline one draws no figures.  AEFT_RUNS is absolute, since the kernel works in
    the notebooks' folder.  AEFT_QUIET keeps progress bars out of the outputs.
    """
    dropped = ("AEFT_PROFILE", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"AEFT_RUNS": str(paths.runs().resolve()), "AEFT_QUIET": "1"}


def reproduce(
    *,
    profile: str,
    repeats: int,
    only: Sequence[str] = (),
    start: str | None = None,
    publish: bool = False,
    folder: Path | None = None,
    workers: int = 0,
) -> Path:
    """Execute the notebooks of `folder` (``paths.NOTEBOOKS``); returns the folder of their outputs.

    only: names to run, such as ``02_gap_vs_gpp``; empty means all.  start: the name to begin with.
    publish: when all have finished, copy the executed notebooks over their sources, `cleaned`.
    workers: so many side by side, at most `AT_ONCE`; 0 is `run.default_workers`.

    Raises ValueError and StoreError, before anything runs, for what `plan` and `checked_home`
    refuse; NotebookFailed when a notebook does not finish; RuntimeError where another run writes to
    the same folder.
    """
    parameters = {"profile": profile, "repeats": repeats}
    sources = plan(parameters, only=only, start=start, publish=publish, folder=folder)
    home = checked_home(parameters, sources)
    home.mkdir(parents=True, exist_ok=True)
    jobs = [(s, parameters, home, _command(parameters, s.name, only, publish)) for s in sources]
    at_once = min(AT_ONCE, len(jobs), workers or run.default_workers())
    try:
        with FileLock(home / ".lock", timeout=0):
            for line in _side_by_side(jobs, at_once) if at_once > 1 else starmap(_run, jobs):
                print(line, flush=True)
            if publish:
                publish_notebooks(sources, home)
    except Timeout as error:
        raise RuntimeError(f"another run writes to {home}: wait for it or end it") from error
    return home


def _side_by_side(jobs: Sequence[tuple], at_once: int) -> Iterator[str]:
    """What `_run` says of each notebook, as they finish.

    After a failure none is begun; those that run end first, and the first in order is told.
    """
    left = list(jobs)
    running: dict[Future, int] = {}
    failures: dict[int, BaseException] = {}
    share = max(1, run.cores() // at_once)
    with run.pool(at_once, share) as processes:
        while running or (left and not failures):
            while left and len(running) < at_once and not failures:
                job = left.pop(0)
                running[processes.submit(_run_beside, share, *job)] = jobs.index(job)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place = running.pop(future)
                if error := future.exception():
                    failures[place] = error
                else:
                    yield future.result()
        if failures:
            raise failures[min(failures)]


def plan(
    parameters: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    start: str | None = None,
    publish: bool = False,
    folder: Path | None = None,
) -> list[Source]:
    """The notebooks that `reproduce` would run with ``{"profile": str, "repeats": int}``, checked.

    Raises ValueError for names that are not there, a notebook that does not define the parameters,
    a wrong number of repeats, or publish with a part of the notebooks.
    """
    whole(SimpleNamespace(**parameters), "repeats", least=1)
    if publish and (only or start):
        raise ValueError(
            "publish copies all notebooks or none: leave out only and start "
            "(finished stages are not repeated)"
        )
    known = read_sources((folder or paths.NOTEBOOKS).resolve())
    sources = choose(known, only=only, start=start)
    for source in sources:
        check_parameters(source, parameters)
    return sources


def checked_home(parameters: Mapping[str, Any], sources: Sequence[Source]) -> Path:
    """Where executed notebooks stand.

    Raises StoreError where it cannot be written, ValueError where a folder is in a file's place.
    """
    store.check_writable()
    home = paths.runs().resolve() / "notebooks" / "{profile}-{repeats}repeats".format(**parameters)
    for suffix in (".ipynb", ".html"):
        paths.check_outputs(home / f"{source.name}{suffix}" for source in sources)
    return home


def read_sources(folder: Path) -> list[Source]:
    """The numbered notebooks of `folder` in order.

    Raises ValueError where there is none, or where a file cannot be read.
    """
    files = sorted(folder.glob(PATTERN))
    if not files:
        raise ValueError(f"no notebook named {PATTERN} in {folder}: run from a whole checkout")
    return [_read_source(file) for file in files]


def _read_source(file: Path) -> Source:
    content = file.read_bytes()
    try:
        node = nbformat.reads(content.decode("utf-8"), as_version=4)
    except (ValueError, AttributeError) as error:
        why = str(error)[:80]
        raise ValueError(f"{file} is not a notebook ({why}): restore it from git") from error
    return Source(file, hashlib.sha256(content).hexdigest(), node)


def choose(
    sources: Sequence[Source], *, only: Sequence[str] = (), start: str | None = None
) -> list[Source]:
    """The notebooks named in `only` (all where empty), from `start` on.

    Raises ValueError for unknown names.
    """
    known = [source.name for source in sources]
    unknown = [name for name in (*only, *([start] if start else [])) if name not in known]
    if unknown:
        raise ValueError(f"no notebook named {', '.join(unknown)}; known are {', '.join(known)}")
    from_start = sources[known.index(start) :] if start else sources
    chosen = [source for source in from_start if not only or source.name in only]
    if not chosen:
        raise ValueError(f"none of {', '.join(only)} comes at or after {start}: nothing to run")
    return chosen


def check_parameters(source: Source, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError without exactly one cell tagged ``parameters`` that defines all we pass."""
    cells = [cell for cell in source.node.cells if _has_tag(cell, "parameters")]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise ValueError(
            f"{source.name} must have exactly one code cell tagged 'parameters', "
            f"it has {len(cells)} tagged cells"
        )
    try:
        defined = assigned_names(cells[0].source)
    except SyntaxError as error:
        raise ValueError(
            f"{source.name}: the cell tagged 'parameters' is not Python ({error})"
        ) from error
    for name in parameters:
        if name not in defined:
            raise ValueError(
                f"{source.name} has no parameter {name!r}: "
                f"assign it in the cell tagged 'parameters' ({defined})"
            )


def _has_tag(cell: NotebookNode, *tags: str) -> bool:
    return any(tag in cell.metadata.get("tags", []) for tag in tags)


def _command(parameters: Mapping[str, Any], name: str, only: Sequence[str], publish: bool) -> str:
    """The command that resumes at notebook `name`.

    A publishing run begins with the first again; its stages are in the store.
    """
    words = ["aeft", "reproduce", "--profile", parameters["profile"]]
    words += ["--repeats", str(parameters["repeats"])]
    words += ["--publish"] if publish else ["--from", name]
    return shlex.join([*words, *(["--only", *only] if only else [])])


def _run(source: Source, parameters: Mapping[str, Any], home: Path, resume: str) -> str:
    """Execute one notebook aside; rename it when whole, with its HTML.  Returns a line about it."""
    began = time.monotonic()
    partial = home / f"{source.name}.partial.ipynb"
    partial.unlink(missing_ok=True)
    try:
        node = _execute(source, parameters, partial)
    except Exception as error:  # a bad cell and a full disk are reported in the same words
        raise NotebookFailed(_describe(source, partial, error, resume)) from error
    if unfinished := _first_unfinished(node):
        stopped = RuntimeError(f"stopped without an error: {unfinished}")
        raise NotebookFailed(_describe(source, partial, stopped, resume))
    title = {"metadata": {"name": source.name}}
    html, _ = HTMLExporter().from_notebook_node(node, resources=title)
    paths.write_text(home / f"{source.name}.html", html)
    paths.sync(partial)
    partial.replace(home / f"{source.name}.ipynb")
    paths.sync(home)
    seconds = time.monotonic() - began
    return f"{source.name}: {_code_cell_count(node)} cells, {seconds:.0f} s"


def _run_beside(threads: int, *job: Any) -> str:
    """`_run`, in a kernel of so many threads: more than there are cores wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    return _run(*job)


def _execute(source: Source, parameters: Mapping[str, Any], partial: Path) -> NotebookNode:
    trains = {TRAIN: True} if TRAIN in source.parameters else {}
    return papermill.execute_notebook(
        copy.deepcopy(source.node),
        _papermill_path(partial),
        parameters=dict(parameters) | trains,
        cwd=str(source.file.parent),
        kernel_name="python3",  # a label only: ThisPython decides
        language="python",
        kernel_manager_class=ThisPython,
        progress_bar=False,
        start_timeout=KERNEL_START_SECONDS,
    )


def _papermill_path(file: Path) -> str:
    """Papermill formats paths as templates: braces in a folder's name have to be doubled."""
    return str(file).replace("{", "{{").replace("}", "}}")


def _own_cells(node: NotebookNode) -> list[NotebookNode]:
    """The source's cells in an executed notebook: without what papermill put between them."""
    return [cell for cell in node.cells if not _has_tag(cell, INJECTED_TAG, ERROR_MARKER_TAG)]


def _code_cell_count(node: NotebookNode) -> int:
    return sum(cell.cell_type == "code" for cell in _own_cells(node))


def _first_unfinished(node: NotebookNode) -> str | None:
    """The first code cell that was not executed: after sys.exit() papermill reports success."""
    for index, cell in enumerate(_own_cells(node), start=1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            return f"cell {index} was never executed"
    return None


def _describe(source: Source, partial: Path, error: Exception, resume: str) -> str:
    is_cell = isinstance(error, PapermillExecutionError)
    text = "\n".join(error.traceback) if is_cell else f"{type(error).__name__}: {error}"
    lines = [line for line in ANSI_COLOUR.sub("", text).splitlines() if line.strip()]
    kept = f"\nits outputs so far: {partial}" if partial.is_file() else ""
    last = "\n".join(f"  {line}" for line in lines[-LINES_OF_ERROR:])
    place = _where_it_stopped(partial)
    return f"notebook {source.name} failed in {place}:\n{last}{kept}\nresume with: {resume}"


def _where_it_stopped(partial: Path) -> str:
    """The cell with the error, else the last that was started; counted from 1 with text cells."""
    try:
        node = nbformat.read(partial, as_version=4)
    except (OSError, ValueError):
        return "its first steps, before a cell ran"
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    begun = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    wrong = [cell for cell in begun if any(out.output_type == "error" for out in cell.outputs)]
    if not begun:
        return "its first steps, before a cell ran"
    cell = (wrong or begun[-1:])[0]
    if _has_tag(cell, INJECTED_TAG):
        return "the injected parameters"
    own = _own_cells(node)
    index = next(i for i, known in enumerate(own, start=1) if known is cell)
    return f"cell {index} of {len(own)} (execution count {cell.execution_count})"


def publish_notebooks(sources: Sequence[Source], home: Path) -> None:
    """Copy the executed notebooks over their sources, cleaned.

    All are written aside before the first source is replaced.
    Raises RuntimeError, and copies nothing, where a source was edited while the notebooks ran.
    """
    digests = [hashlib.sha256(source.file.read_bytes()).hexdigest() for source in sources]
    pairs = zip(sources, digests, strict=True)
    if edited := [source.name for source, digest in pairs if digest != source.sha256]:
        names = ", ".join(edited)
        raise RuntimeError(
            f"{names} changed while the notebooks ran: nothing was copied, publish again"
        )
    with ExitStack() as replaced:  # at its end
        for source in sources:
            executed = nbformat.read(home / f"{source.name}.ipynb", as_version=4)
            aside = replaced.enter_context(paths.replacing(source.file))
            text = nbformat.writes(cleaned(source.node, executed)) + "\n"
            aside.write_bytes(text.encode())


def cleaned(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """`source` with the outputs of `executed` and execution counts 1..n; neither is changed.

    Code, tags, ids and metadata stay the source's, so injected parameters, timings, papermill's
    notes and the state of widgets are left out: the static picture of a widget stands in the cell
    above it.
    """
    result = copy.deepcopy(source)
    result.cells = _own_cells(result)
    count = 0
    for cell, ran in zip(result.cells, _own_cells(executed), strict=True):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += ran.execution_count is not None
            _take_outputs(cell, ran, count)
    for name in ("papermill", "widgets"):  # a widget's state holds pictures that need a kernel
        result.metadata.pop(name, None)
    return result


def _take_outputs(cell: NotebookNode, ran: NotebookNode, count: int) -> None:
    cell.execution_count = None if ran.execution_count is None else count
    cell.outputs = copy.deepcopy(ran.outputs)
    for output in cell.outputs:
        if "execution_count" in output:
            output.execution_count = cell.execution_count

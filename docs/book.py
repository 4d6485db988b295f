"""What the book adds to Sphinx: equations as MathML, captions of pictures, frames behind widgets.

Nothing is executed: notebooks are read as committed.  ``captions.toml`` has a caption and an alt
text for every picture, found by the id of the cell that shows it; the gallery shows the same
entries.  A widget is replaced by the frames that ``draw.py`` has drawn for it, with
controls that swap them (``static/frames.js``).
"""

import html
import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
FRAMES = ROOT / "docs" / "static" / "frames"
WIDGET = "application/vnd.jupyter.widget-view+json"
GALLERY = "docs/gallery"
ITEM = re.compile(r"([a-z_][\w.]*(?:, [a-z_]\w*)*): ")  # of a docstring: name: meaning


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's door: pages are changed as they are read."""
    app.setup_extension("sphinx.ext.autodoc")  # whose event is used
    inline, display = (_math(app, kind) for kind in ("inline", "block"))
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", plain_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _math(app: Any, kind: str) -> Any:
    """A visitor that writes MathML, which browsers draw themselves; it needs no script."""
    from docutils.nodes import SkipNode

    def visit(translator: Any, node: Any) -> None:
        translator.body.append(convert(node.astext(), display=kind))
        raise SkipNode

    return visit


def plain_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text: ``name: meaning`` becomes a list item, ``|`` and ``*`` stay signs.

    Doctests, bullets and blocks after ``::`` are left as they are.
    """
    written, kind = [], ""  # of the block: "", "item", "bullets", "literal"
    for line in lines:
        text = line.strip() if "``" in line else re.sub(r"([|*])", r"\\\1", line.strip())
        is_indented, item = line.startswith(" "), ITEM.match(line)
        if not text:
            kind = "" if kind == "item" else kind
        elif kind == "literal" and is_indented:
            text = line
        elif line.startswith("- ") or (kind == "bullets" and is_indented):
            kind, text = "bullets", f"  {text}" if is_indented else text
        elif item:
            kind, text = "item", f"- ``{item[1]}``: {text[item.end() :]}"
            written.append("")
        elif kind == "item" and is_indented:
            text = f"  {text}"
        else:
            written += [""] * (kind == "item")
            kind = ""
        kind = "literal" if text.endswith("::") else kind
        written.append(text)
    lines[:] = written


@cache
def captions() -> dict[str, dict[str, str]]:
    """Name -> notebook, cell, code, alt, caption of every picture, in the notebooks' order."""
    return tomllib.loads((ROOT / "docs" / "captions.toml").read_text(encoding="utf-8"))


def read_page(app: Any, name: str, content: list[str]) -> None:
    """Give a notebook's pictures their captions and its widgets their frames; fill the gallery."""
    if name.startswith("notebooks/"):
        node = json.loads(content[0])
        node["cells"] = [part for cell in node["cells"] for part in described(cell)]
        content[0] = json.dumps(node)
    elif name == "figures/report":
        content[0] = f"# Published against reproduced\n\n{content[0]}"
    elif name == GALLERY:
        content[0] += "\n".join(map(_shown, filter(is_saved, captions())))


def described(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A cell with its picture's caption, alt text and links, and frames in its widget's place.

    A caption goes to all outputs of a cell, so those beside the picture get cells of their own.
    """
    name = next((name for name, c in captions().items() if c["cell"] == cell.get("id")), None)
    if cell["cell_type"] != "code" or name is None:
        yield cell
        return
    if any(WIDGET in output.get("data", {}) for output in cell["outputs"]):
        data = {"text/html": frames("".join(cell["source"]), captions()[name])}
        yield cell | {"outputs": [{"output_type": "display_data", "metadata": {}, "data": data}]}
        return
    entry, hidden = captions()[name], {"tags": ["remove-input"]}
    figure = {"caption": f"{entry['caption']} {links(name)}", "align": "left"}
    own = {"mystnb": {"image": {"alt": entry["alt"]}, "figure": figure}}
    for place, (shows, outputs) in enumerate(itertools.groupby(cell["outputs"], _is_picture)):
        metadata = (hidden if place else cell["metadata"]) | (own if shows else {})
        part = cell | {"outputs": list(outputs), "metadata": metadata}
        yield part | ({"id": f"{cell['id']}-{place}", "source": []} if place else {})
    if not cell["outputs"]:
        yield cell


def _is_picture(output: dict[str, Any]) -> bool:
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def is_saved(name: str) -> bool:
    """Whether a picture stands in ``figures/`` with its numbers."""
    return (FIGURES / f"{name}.png").is_file()


def links(name: str) -> str:
    """Where a picture's numbers and code are, as Markdown."""
    entry = captions()[name]
    code = f"[code](#aeft_lib.lab.{entry['code']})"
    if not is_saved(name):
        return f"({code})"
    return f"([numbers](/figures/{name}.csv), [PDF](/figures/{name}.pdf), {code})"


def _shown(name: str) -> str:
    """A gallery's entry, as Markdown."""
    entry = captions()[name]
    page = f"[notebook {entry['notebook'][:2].lstrip('0')}](/notebooks/{entry['notebook']}.ipynb)"
    caption = f"{entry['caption']} {links(name)} {page}"
    alt = entry["alt"]
    return f"## {name}\n\n:::{{figure}} /figures/{name}.png\n:alt: {alt}\n\n{caption}\n:::\n"


def frames(source: str, entry: dict[str, str]) -> str:
    """The controls and the first frame of the widget that a cell makes, as HTML.

    source: the cell's code.  entry: its caption and alt text.
    """
    name = re.search(r"widgets\.(\w+)\(", source)[1]
    file = FRAMES / name / "frames.json"
    if not file.is_file():
        return "<p>This widget needs a running kernel.</p>"
    plan = json.loads(file.read_text(encoding="utf-8"))
    lines = [f'<figure class="frames" data-frames="../_static/frames/{name}/">']
    for control in plan["controls"]:
        options = "".join(f"<option>{html.escape(value)}</option>" for value in control["values"])
        label, last, start = html.escape(control["name"]), len(control["values"]) - 1, control["at"]
        if control["slides"]:
            moved = f'<input type="range" min="0" max="{last}" value="{start}">'
            options = f"<select hidden>{options}</select><output></output>"
        else:
            moved, options = "", f'<select data-at="{start}">{options}</select>'
        lines.append(f"<label><span>{label}</span> {moved}{options}</label>")
    texts = html.escape(json.dumps(plan["texts"]))
    alt, caption = (html.escape(entry[key]) for key in ("alt", "caption"))
    lines.append(f'<img alt="{alt}" data-alt="{alt}" data-texts="{texts}">')
    lines.append(f"<figcaption><output></output> {caption}</figcaption></figure>")
    return "\n".join(lines)

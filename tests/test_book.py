"""The book builds from what is committed, needs no network, and has no dead link or raw equation."""

import importlib
import itertools
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest

from aeft_lib import paths

sys.path.append(str(paths.ROOT / "docs"))
import book
import photos

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
WIDGETS = ("threshold", "pyramid", "triplet", "affinity")


class Page(HTMLParser):
    """What a page links to and loads, its anchors, pictures, and text outside of code."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links, self.loads, self.anchors, self.images = [], [], {""}, []
        self.text, self.equations, self.inside = [], 0, []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.anchors |= {named.get("id") or "", named.get("name") or ""}
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        elif tag in ("script", "img", "link"):
            self.loads.append(named.get("src") or named.get("href") or "")
        if tag == "img":
            self.images.append(named)
        self.equations += tag == "math"
        if tag in ("pre", "code", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The book, built once; a warning of Sphinx is an error."""
    folder = tmp_path_factory.mktemp("book")
    build = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", "docs"]
    build += ["-d", str(folder / "trees"), str(paths.ROOT), str(folder / "site")]
    done = subprocess.run(build, cwd=paths.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def test_every_document_is_a_page(site, pages):
    names = [f"notebooks/{file.stem}" for file in NOTEBOOKS]
    names += [f"docs/{file.stem}" for file in (paths.ROOT / "docs").glob("*.md")]
    assert [name for name in names if site / f"{name}.html" not in pages] == []


def test_no_internal_link_is_dead(site, pages):
    dead = []
    for file, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchors = pages[target].anchors if target in pages else {""}
            fragment = unquote(parts.fragment) if target in pages else ""
            if not target.exists() or fragment not in anchors:
                dead.append((file.relative_to(site).as_posix(), link))
    assert dead == []


def test_nothing_is_loaded_from_a_network(site, pages):
    loads = {
        file.name: [load for load in page.loads if "//" in load] for file, page in pages.items()
    }
    assert {name: found for name, found in loads.items() if found} == {}


def test_equations_are_drawn_and_none_is_left_raw(site, pages):
    assert [file.name for file, page in pages.items() if "$$" in "".join(page.text)] == []
    assert [file.name for file, page in pages.items() if r"\mathrm" in "".join(page.text)] == []
    for file in NOTEBOOKS:
        dollars = file.read_text(encoding="utf-8").count("$$") // 2
        assert pages[site / "notebooks" / f"{file.stem}.html"].equations >= dollars


def test_no_markup_is_left_raw(pages):
    raw = (":::", "{figure}", "```")
    raw += (
        "| — |",
        "|—|",
        "| —: |",
        "|—:|",
    )  # rules of tables, with the dashes that typography makes
    texts = {file.name: "".join(page.text) for file, page in pages.items()}
    assert [(name, sign) for name, text in texts.items() for sign in raw if sign in text] == []


def test_the_gallery_shows_every_saved_figure(site, pages):
    shown = {Path(image["src"]).stem for image in pages[site / "docs" / "gallery.html"].images}
    assert {file.stem for file in paths.FIGURES.glob("*.png")} <= shown


def test_every_picture_has_an_alt_text(pages):
    bare = [
        (file.name, image.get("src"))
        for file, page in pages.items()
        for image in page.images
        if not image.get("alt")
    ]
    assert bare == []


def test_every_picture_of_a_notebook_has_a_caption():
    described = {entry["cell"] for entry in book.captions().values()}
    for file in NOTEBOOKS:
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            if any(
                kind.startswith("image/") or kind == book.WIDGET
                for o in cell.get("outputs", [])
                for kind in o.get("data", {})
            ):
                assert cell["id"] in described, (file.name, cell["source"])


def test_every_saved_figure_has_a_caption_and_captions_name_code_and_numbers():
    assert {file.stem for file in paths.FIGURES.glob("*.png")} <= set(book.captions())
    for name, entry in book.captions().items():
        module, function = entry["code"].split(".")
        assert callable(getattr(importlib.import_module(f"aeft_lib.lab.{module}"), function))
        assert (paths.NOTEBOOKS / f"{entry['notebook']}.ipynb").is_file()
        assert not book.is_saved(name) or (paths.FIGURES / f"{name}.csv").is_file()


def test_the_page_on_real_photos_follows_its_tables():
    page = photos.PAGE.read_text(encoding="utf-8")
    assert photos.computed(page) == page
    assert {found[1] for found in photos.PART.findall(page)} == set(photos.PARTS)


@pytest.mark.parametrize("name", WIDGETS)
def test_every_position_of_a_widget_has_a_frame(name):
    folder = book.FRAMES / name
    if not folder.is_dir():
        pytest.skip("its frames are not drawn yet: `make publish` draws them")
    plan = json.loads((folder / "frames.json").read_text(encoding="utf-8"))
    places = itertools.product(*(range(len(c["values"])) for c in plan["controls"]))
    names = {"-".join(map(str, place)) for place in places}
    assert set(plan["texts"]) == names == {file.stem for file in folder.glob("*.webp")}
    assert all(0 <= c["at"] < len(c["values"]) for c in plan["controls"])


@pytest.mark.skipif(not browser.CHROMIUM, reason="there is no Chromium here")
def test_a_browser_reads_it_from_a_folder(site, tmp_path):
    with browser.Browser(tmp_path) as page:
        page.open(f"{site.as_uri()}/search.html?q=over-expansion")
        found = "[...document.querySelectorAll('#search-results a')].map(a => a.href)"
        results = browser.wait(lambda: page.ask(found))
        assert any("04_triplet_training" in result for result in results)
        page.open(f"{site.as_uri()}/notebooks/01_tags_to_cams.html")
        assert "$$" not in page.ask("document.querySelector('article').innerText")
        shown = "document.querySelector('figure.frames img').src"
        before = page.ask(shown)
        move = "const s = document.querySelector('figure.frames input'); s.value = 12;"
        page.ask(f"{move} s.dispatchEvent(new Event('input', {{bubbles: true}}))")
        assert page.ask(shown) != before
        size = "document.querySelector('figure.frames img').naturalWidth"
        assert browser.wait(lambda: page.ask(size)) > 0
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=390,
            height=800,
            deviceScaleFactor=1,
            mobile=True,
        )
        assert page.ask("document.documentElement.scrollWidth") <= 390
        assert page.errors == []

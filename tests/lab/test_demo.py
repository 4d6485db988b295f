"""``aeft demo``: pictures and a page from the weights that come with the package."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from aeft_lib import cli
from aeft_lib.lab import demo, outputs
from aeft_lib.studies import catalogue, run, shipped, shipping
from aeft_lib.studies.profiles import SMOKE

pytestmark = pytest.mark.usefixtures("stored")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The package's weights: one classifier of the smoke profile."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(shipped, "PROFILE", "smoke")
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(shipped, "CLASSIFIERS", ("gap",))
    run.run_study(catalogue.get("gap_vs_gpp"), SMOKE, [0], rows=[catalogue.row("gap")], workers=1)
    shipping.write()
    return folder


def photo(file: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    return file


class Pictures(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found, self.places = {}, []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.places += [unquote(values[name]) for name in ("src", "href") if name in values]
        if tag == "img":
            self.found[unquote(values["src"])] = values["alt"]


def called(capsys, *words) -> tuple[int, str, str]:
    code = cli.main(["demo", *map(str, words)])
    return code, *capsys.readouterr()


@pytest.mark.usefixtures("weights")
def test_the_demo_writes_a_picture_a_photo_and_a_page_that_works_offline(tmp_path, capsys):
    folder, mine = tmp_path / "out", photo(tmp_path / "a<b.png")
    code, out, err = called(capsys, mine, "--out", folder)
    assert (code, err) == (0, "")
    scenes = [shown.name for shown in demo.example_scenes(SMOKE.val.open())]
    files = [*(f"{name}.demo.png" for name in scenes), "a<b.demo.png"]
    assert {file.name for file in folder.iterdir()} == {*files, "index.html"}
    assert "tags guessed by the gap".lower() in out.lower()
    page = (folder / "index.html").read_text()
    pictures = Pictures()
    pictures.feed(page)
    assert list(pictures.found) == files
    assert pictures.places == files  # nothing is fetched from elsewhere
    assert not re.search(r"https?://|@import|<script", page)
    for name, alt in pictures.found.items():
        assert name.removesuffix(".demo.png") in alt
        assert "pseudo-label" in alt
        assert "background" in alt
    words = " ".join(page.split())
    assert f"9 classes: {', '.join(SMOKE.train.open().classes)}" in words
    assert f"{len(SMOKE.train.open())} collages of 96 px" in words
    assert ("truth" in pictures.found[files[0]], "truth" in pictures.found[files[-1]]) == (
        True,
        False,
    )


@pytest.mark.usefixtures("weights")
def test_the_demo_replaces_its_own_files_alone(tmp_path, capsys, monkeypatch):
    folder, mine = tmp_path / "out", photo(tmp_path / "mine.png")
    assert called(capsys, mine, "--out", folder)[0] == 0
    assert called(capsys, mine, "--out", folder)[0] == 0
    monkeypatch.setattr(demo, "open_networks", None)  # refused before any work
    page = folder / "index.html"
    whole = page.read_text()
    page.write_text(whole.replace("Which scenes", "My scenes"))
    assert "was edited since" in called(capsys, mine, "--out", folder)[2]
    page.write_text(whole)
    photo(folder / "mine.demo.png")
    assert "was not written by aeft demo" in called(capsys, mine, "--out", folder)[2]
    assert "is not there" in called(capsys, tmp_path / "none.png", "--out", folder)[2]
    other = photo(tmp_path / "scene000.png")
    scenes = [shown.name for shown in demo.example_scenes(SMOKE.val.open())]
    other = other.rename(tmp_path / f"{scenes[0]}.png")
    assert "has the name of an embedded scene" in called(capsys, other, "--out", folder)[2]


def test_scenes_are_the_first_of_every_number_of_classes():
    scenes = SMOKE.val.open()
    shown = list(demo.example_scenes(scenes))
    counts = [len(example.class_ids) for example in shown]
    assert counts == sorted(counts)
    for example, count in zip(shown, counts, strict=True):
        index = int(example.name.removeprefix("scene"))
        assert all(scenes.tags(i).sum() != count for i in range(index))
        assert np.array_equal(example.image, scenes.image(index))


def test_tags_without_a_positive_logit_are_said_to_be_a_guess(weights):
    networks = demo.open_networks()
    image = SMOKE.val.open().image(0)
    (cams,) = networks.cams.values()
    with torch.no_grad():
        cams.network.head.fc9.weight.zero_()
    read = demo.read(demo.Shown("dark", image), networks)
    assert "no logit above 0, the largest is taken" in read.tags
    assert read.cams.keys() == {"GAP"}
    assert all(labels.shape == image.shape[:2] for labels in read.maps.values())


def test_a_page_is_signed_by_all_it_says(tmp_path):
    file = tmp_path / "index.html"
    outputs.write_page(file, "<p>one</p>\n<p>two</p>", "aeft demo")
    assert outputs.foreign(file, None, "aeft demo", "picture") == ""
    assert "not written by aeft predict" in outputs.foreign(file, None, "aeft predict", "picture")
    file.write_text(file.read_text() + "\n")
    assert outputs.foreign(file, None, "aeft demo", "picture")

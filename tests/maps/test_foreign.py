"""The one wrapper around foreign parsers, and the one function that opens pictures."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from aeft_lib.maps.foreign import FORMATS, Unreadable, picture, reading


class Panic(BaseException):
    """What Rust code raises."""


@pytest.mark.parametrize(
    "error",
    [
        *(OSError("cut"), SyntaxError("odd"), IndexError(3), AssertionError(), struct.error("4")),
        *(RecursionError("deep"), MemoryError(), UnboundLocalError("x"), KeyError("k"), Panic("p")),
    ],
    ids=repr,
)
def test_whatever_a_parser_raises_names_the_file_and_says_why(tmp_path, error):
    class Parser:
        """Not of this package, as frames of parsers are not."""

        def run(self):
            raise error

    file = tmp_path / "x.dat"
    said = r"x\.dat: not readable \(.+\); fetch it again$"
    with pytest.raises(ValueError, match=said) as caught, reading(file, "not readable"):
        Parser().run()
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2), Unreadable("a.dat: known")])
def test_an_end_and_what_is_named_already_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught, reading(tmp_path / "x.dat", "not readable"):
        raise error
    assert caught.value is error


def test_a_misspelt_name_of_ours_is_no_damage(tmp_path):
    ours = {"__name__": "aeft_lib.maps.some"}
    exec("def wrong():\n    return misspelt", ours)
    with pytest.raises(NameError, match="misspelt"), reading(tmp_path / "x.dat", "not readable"):
        ours["wrong"]()


@pytest.mark.parametrize(
    ("error", "why"),
    [(FileNotFoundError(2, "x"), "no such file"), (PermissionError(13, "x"), "permission denied")],
)
def test_what_is_missing_or_forbidden_is_not_to_be_fetched_again(tmp_path, error, why):
    file, said = tmp_path / "x.dat", rf"x\.dat: not readable \({why}\)$"
    with pytest.raises(ValueError, match=said), reading(file, "not readable"):
        raise error


def test_long_and_broken_words_are_cut_to_a_line_that_can_be_printed(tmp_path):
    with pytest.raises(ValueError) as caught, reading(tmp_path / "x.dat", "not readable"):  # noqa: PT011
        raise OSError("\ud800 a\nb" + "c" * 10_000)
    said = str(caught.value)
    assert said.encode()
    assert "\n" not in said
    assert len(said) < 1000


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_read(tmp_path, kind):
    Image.new("RGB", (4, 3), (9, 9, 9)).save(tmp_path / "x", format=kind)
    with picture(tmp_path / "x") as opened:
        assert (opened.format, np.asarray(opened.convert("RGB")).shape) == (kind, (3, 4, 3))


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "PDF"])
def test_no_other_format_is_opened_whatever_its_suffix(tmp_path, kind, monkeypatch):
    Image.new("RGB", (16, 16)).save(tmp_path / "x.jpg", format=kind)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    said = r"x\.jpg: not a readable image \(of no known kind\)"
    with pytest.raises(ValueError, match=said), picture(tmp_path / "x.jpg") as opened:
        opened.load()


def png_with(kind: bytes, content: bytes) -> bytes:
    """A PNG of one pixel with a chunk more before its pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, format="PNG")
    whole, body = buffer.getvalue(), kind + content
    chunk = struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return whole[:33] + chunk + whole[33:]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000))),
        (b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000))),
        (b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 0, 0, 0, 0)),
        (b"tRNS", b""),
        (b"eXIf", b"MM\0*"),
    ],
)
def test_bombs_and_odd_chunks_are_read_or_named(tmp_path, kind, content):
    (tmp_path / "x.png").write_bytes(png_with(kind, content))
    try:
        with picture(tmp_path / "x.png") as opened:
            opened.load()
            size = opened.size
    except ValueError as error:
        size = str(error)
    assert size == (1, 1) or "x.png: not a readable image (" in size

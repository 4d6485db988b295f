"""Files that other programs wrote: whatever their parsers raise becomes one error that names them.

Parsers raise what they like: Pillow alone has raised struct.error, IndexError and SyntaxError for
damaged pictures, and a list of them is never complete.  So `reading` stands around every call of a
parser that is not ours, and around nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Pillow opens others by programs of the system, an EPS by Ghostscript, whatever the file's suffix.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
LENGTH = 300  # characters of a parser's own words that are repeated
POINTER = b"version https://git-lfs"  # stands where Git LFS would have put a large file


class Unreadable(ValueError):
    """A file cannot be read as what it should be; the message names it."""


@contextmanager
def reading(file: Path, problem: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Stands around the parser of a file: its errors become `Unreadable`.

    problem: "not a readable image", say.  remedy: not given where the file is only missing or
    forbidden, and another one for a picture that is too large and a pointer of Git LFS.  What we
    raise inside as `Unreadable` stays; so does a name that our own lines misspell.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would be waited for
        raise Unreadable(f"{file}: {problem} (no regular file)")
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust code is no Exception
        if _is_pointer(file):
            text = f"{file}: {problem} (a pointer of Git LFS, not the file itself)"
            raise Unreadable(f"{text}; get the file with: git lfs pull") from None
        if isinstance(error, Unreadable):
            raise
        if isinstance(error, NameError | AttributeError) and _is_ours(error):
            raise
        if isinstance(error, Image.DecompressionBombError):
            pixels = 2 * Image.MAX_IMAGE_PIXELS / 1e6
            text = f"{file}: {problem} (more than {pixels:.0f} million pixels)"
            raise Unreadable(f"{text}; save it smaller, or cut it into parts") from error
        text = f"{file}: {problem} ({_reason(error)})"
        absent = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
        raise Unreadable(text if absent or not remedy else f"{text}; {remedy}") from error


@contextmanager
def picture(
    file: Path, problem: str = "not a readable image", remedy: str = "fetch it again"
) -> Iterator[Image.Image]:
    """A picture of one of `FORMATS`, opened and not decoded; errors as `reading` makes them."""
    with reading(file, problem, remedy), Image.open(file, formats=FORMATS) as opened:
        yield opened


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(POINTER)) == POINTER
    except OSError:
        return False


def _reason(error: BaseException) -> str:
    """What an error says, in one line of text that can be printed."""
    plain = {FileNotFoundError: "no such file", PermissionError: "permission denied"}
    plain |= {IsADirectoryError: "a folder", UnidentifiedImageError: "of no known kind"}
    if type(error) in plain:
        return plain[type(error)]
    text = " ".join(str(error).split())[:LENGTH].encode(errors="replace").decode()
    if text and type(error) in (OSError, SyntaxError, ValueError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this package raised it, no line of a parser."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").startswith("aeft_lib.")

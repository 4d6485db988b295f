"""``published.toml``: numbers of the poster and of other methods' papers, and what is claimed."""

from functools import cache
from pathlib import Path
from typing import Any

from aeft_lib import paths

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


@cache
def published() -> dict[str, Any]:
    """The numbers, results and claims of the file.

    Raises ValueError where it is damaged, or edited without its digest.
    """
    content = paths.read_committed(Path(__file__).with_name("published.toml"))
    return tomllib.loads(content.decode())

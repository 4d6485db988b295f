"""A finished result of a stage, and what a stage is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artefact:
    """A finished result: its stage, key, folder of files, record, and the spec it was made for."""

    stage: str
    key: str
    folder: Path
    record: Mapping[str, Any]
    spec: Any = None

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers that the stage returned."""
        return dict(self.record["summary"])


Stage = Callable[[Any, Mapping[str, Artefact], Path], Mapping[str, Any]]
Inputs = Mapping[str, Artefact]

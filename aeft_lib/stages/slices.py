"""Tensors of many scenes in one safetensors file, written and read slice by slice.

The library writes a file from whole tensors, so memory would grow with the number of scenes.  The
format is simple: the length of a JSON header, the header, the tensors one after the other.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bool: "BOOL"}


class SliceWriter:
    """Writes tensors whose first axis counts `count` scenes, some scenes at a time, in order.

    A context manager.  Names, shapes and types are those of the first slice.
    """

    def __init__(self, file: Path, count: int) -> None:
        self._stream, self._count, self._done = file.open("wb"), count, 0
        self._starts: dict[str, int] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next scenes, (B, ...) each.

        Raises ValueError for tensors of several lengths, and for more scenes than `count`.
        """
        sizes = sorted({len(tensor) for tensor in tensors.values()})
        if len(sizes) != 1:
            raise ValueError(f"tensors of a slice must have one length, got {sizes}")
        size = sizes[0]
        if self._done + size > self._count:
            raise ValueError(f"{self._done + size} scenes for a file of {self._count}")
        if not self._starts:
            self._write_header(tensors)
        for name, tensor in tensors.items():
            content = tensor.cpu().contiguous().numpy().tobytes()
            self._stream.seek(self._starts[name] + self._done * len(content) // size)
            self._stream.write(content)
        self._done += size

    def _write_header(self, tensors: Mapping[str, Tensor]) -> None:
        """Large types first, so that all tensors stand at multiples of their size."""
        header, end = {}, 0
        for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
            tensor = tensors[name]
            shape, start = [self._count, *tensor.shape[1:]], end
            end += math.prod(shape) * tensor.element_size()
            entry = {"dtype": KINDS[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
            header[name] = entry
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._stream.write(len(text).to_bytes(8, "little") + text)
        offsets = ((name, entry["data_offsets"][0]) for name, entry in header.items())
        self._starts = {name: 8 + len(text) + offset for name, offset in offsets}

    def __enter__(self) -> "SliceWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Raises ValueError where scenes are missing."""
        self._stream.close()
        if kind is None and self._done < self._count:
            raise ValueError(f"{self._done} scenes for a file of {self._count}")


def read_slices(
    file: Path, part: slice = slice(None), *, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The scenes `part` of the named tensors, () for all; nothing else is read.

    A part is a copy: the library's slice would keep the file mapped, and all that was read of it
    resident.  Whole tensors stay mapped, and are read when they are needed.
    """
    with safe_open(file, framework="pt") as opened:
        read = {name: opened.get_slice(name)[part] for name in names or opened.keys()}
    return read if part == slice(None) else {name: t.clone() for name, t in read.items()}

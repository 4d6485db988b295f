"""Where networks run, where data lies, and how a GPU may round.

The policy for CUDA, set wherever the device is asked for:

- TF32 is off.  Where float32 is asked for, it is compared with the reference, and TF32 keeps 10 of
  its 23 bits; cuDNN's convolutions would have it by default.  Speed comes from bf16, which the
  paper's profiles ask for and artefacts name in their spec.
- cuDNN tries its algorithms and takes the fastest (``benchmark``): the views of a training have one
  size.  Sums may then differ in their last bits from run to run; on a CPU they do not.

A CPU knows neither.  No figure for a real GPU stands here: none was at hand.
"""

import os
from typing import Any

import torch
from torch import Tensor

SHARE = 4  # data that is kept on the device takes at most one part in so many of its free memory


def check_device() -> None:
    """Raises ValueError where ``AEFT_DEVICE`` names no device of this machine."""
    asked = os.environ.get("AEFT_DEVICE")
    try:
        torch.zeros(1, device=device()).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        remedy = "take cpu, cuda or cuda:N of a GPU that is there"
        raise ValueError(f"AEFT_DEVICE={asked} cannot be used ({reason}): {remedy}") from error


def device() -> torch.device:
    """``AEFT_DEVICE`` (cpu, cuda, cuda:1) where it is set, else a GPU, else the CPU.

    Under torchrun "cuda" is this process's own GPU.  Raises RuntimeError for an unknown name.
    """
    chosen = torch.device(
        os.environ.get("AEFT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    )
    if chosen.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return chosen


def policy() -> dict[str, Any]:
    """What decides how the device computes: its name and, on CUDA, TF32 and ``benchmark``."""
    chosen = device()
    if chosen.type != "cuda":
        return {"device": chosen.type}
    return {
        "device": torch.cuda.get_device_name(chosen),
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

"""Where networks run."""

import os

import torch


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
    return torch.device(
        os.environ.get("AEFT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    )

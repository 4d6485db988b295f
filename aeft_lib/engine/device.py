"""Where networks run."""

import os

import torch


def check_device() -> None:
    """Raises ValueError where ``AEFT_DEVICE`` names none, or one that is not there."""
    asked = os.environ.get("AEFT_DEVICE")
    try:
        torch.zeros(1, device=device()).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"AEFT_DEVICE={asked} cannot be used ({reason}): take cpu, cuda or cuda:N of a GPU that is there"
        ) from error


def device() -> torch.device:
    """``AEFT_DEVICE`` where it is set (cpu, cuda, cuda:1), else a GPU where there is one, else the
    CPU.

    Under torchrun "cuda" is this process's own GPU.  Raises RuntimeError for a name that torch does
    not know.
    """
    return torch.device(
        os.environ.get("AEFT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    )

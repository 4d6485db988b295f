"""Where networks run."""

import os

import torch


def device() -> torch.device:
    """``AEFT_DEVICE`` where it is set (cpu, cuda, cuda:1), else a GPU where there is one, else the CPU.

    Under torchrun "cuda" is this process's own GPU.  Raises RuntimeError for a name that torch does not know.
    """
    return torch.device(os.environ.get("AEFT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))

"""Label maps of the originals beside ours."""

import torch


def agreement(ours: object, theirs: object) -> float:
    """The share of equal entries, 0..1, of two label maps of one shape."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return (ours == theirs).float().mean().item()

"""Sparse matrices of the refinement, in one place: torch's CSR layout, on CPU and GPU."""

import warnings

import torch
from torch import Tensor


def from_rows(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A CSR matrix of `size` (rows, columns).

    starts: (rows + 1,) int64, where each row begins.  columns: (E,) int64, ascending in every row.
    values: (E,) float.  torch's warnings that CSR is in beta and unchecked are left out.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


def from_entries(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A CSR matrix of `size` from (E,) int64 rows and columns, each place once, and values."""
    order = (rows * size[1] + columns).argsort()
    counts = torch.bincount(rows, minlength=size[0])
    starts = torch.cat([torch.zeros_like(counts[:1]), counts.cumsum(0)])
    return from_rows(starts, columns[order], values[order], size)

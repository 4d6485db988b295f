"""Sparse matrices of the refinement, in one place: torch's CSR layout, on CPU and GPU."""

import warnings

import torch
from torch import Tensor


def from_rows(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A CSR matrix of `size` (rows, columns).

    starts: (rows + 1,) int64, where each row begins.  columns: (E,) int64, ascending in every row.
        values: (E,) float.
    torch tells once a process that CSR is in beta, and that its invariants go unchecked: both are
        known here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


def from_entries(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A CSR matrix of `size` from entries in any order, each place at most once:

    rows and columns (E,) int64, values (E,).
    """
    order = (rows * size[1] + columns).argsort()
    counts = torch.bincount(rows, minlength=size[0])
    starts = torch.cat([torch.zeros_like(counts[:1]), counts.cumsum(0)])
    return from_rows(starts, columns[order], values[order], size)

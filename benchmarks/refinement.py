"""``aeft bench refinement``: `crf_two_alphas` and `walk`, against the C++ library and the dense walk.

One image of 375 x 500 with three classes, as VOC has them.  The peer of the walk is written from
the definition: a dense n x n matrix, squared six times.  The peer of the CRF is pydensecrf2 (``pip
install '.[oracle]'``), called once an alpha as the field does; where it is not installed the row
says so.

Time: both in turn in one process, torch on up to two threads; the C++ library has one.  ``ratio``
counts the lattice of a size that was never seen, ``ratio_size_seen`` does not: images of one size
share it.  Memory: what a process of its own needs at most beyond its inputs, on one thread, from
/proc (null where there is none), after a run on a small image, which loads the code.
"""

import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from measure import in_turn, peak_of, print_peak
from torch import Tensor

from aeft_lib.data.collages import Collages, SceneSpec
from aeft_lib.refinement import dense_crf
from aeft_lib.refinement.affinity import SparseAffinity, pair_affinity, sparse_affinity
from aeft_lib.refinement.random_walk import propagate

SIZE, SMALL, CELL = (375, 500), (96, 96), 8  # VOC's usual photo; one that loads the code
ALPHAS = (2, 21)  # AffinityNet's two CRFs: sure of the foreground, sure of the background
BETA, SQUARINGS = 8, 6
CAMERA_NOISE = 4  # grey levels, because an enlarged cut-out is smoother than a photo
THREADS = min(2, os.cpu_count() or 1)


def benchmarks() -> list[dict]:
    """A row a part:

    seconds of both (medians), their ratio, the largest difference, equal labels, megabytes at most
    of both.
    """
    torch.set_num_threads(THREADS)
    return [_row("walk", f"dense matrix, {SQUARINGS} squarings"), _crf_row()]


def _row(part: str, peer_name: str) -> dict:
    ours, peer = PARTS[part]()
    seconds, results = in_turn({"ours": ours, "peer": peer}, clock=time.perf_counter)
    difference, labels = (
        (results["ours"] - results["peer"]).abs(),
        (results[name].argmax(dim=-3) for name in results),
    )
    return {
        "name": part,
        "peer": peer_name,
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "ratio": seconds["peer"] / seconds["ours"],
        "max_abs_diff": difference.max().item(),
        "equal_labels": float(torch.eq(*labels).double().mean()),
        "ours_peak_mb": peak_of(__file__, part, "ours"),
        "peer_peak_mb": peak_of(__file__, part, "peer"),
    }


def _crf_row() -> dict:
    part, peer = "crf_two_alphas", f"pydensecrf2, called for alpha {ALPHAS[0]} and {ALPHAS[1]}"
    if find_spec("pydensecrf"):
        row = _row(part, peer)
    else:
        ours, _ = PARTS[part]()
        seconds, _ = in_turn({"ours": ours}, clock=time.perf_counter)
        row = {
            "name": part,
            "peer": f"{peer}: not installed",
            "ours_s": seconds["ours"],
            "peer_s": None,
        }
        row |= {
            "ratio": None,
            "ours_peak_mb": peak_of(__file__, part, "ours"),
            "peer_peak_mb": None,
        }
    image, cam = _scene()
    # All images of one size share a lattice.
    seen = {"ours": lambda: dense_crf.refine(image, cam, ALPHAS)}
    cached, _ = in_turn(seen, clock=time.perf_counter)
    ratio = row["peer_s"] / cached["ours"] if row["peer_s"] else None
    return row | {"ours_size_seen_s": cached["ours"], "ratio_size_seen": ratio, "threads": THREADS}


# --- the two parts, each a pair of functions that make (..., L, h, w) ----------------------------


def _walks(size: tuple[int, int] = SIZE) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    image, cam = _scene(size)
    grid = tuple(-(-side // CELL) for side in size)
    colours = (
        F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].float(), grid, mode="area")
        / 32
    )
    affinity = sparse_affinity(pair_affinity(colours)[0], grid)
    scores = dense_crf.with_background(F.interpolate(cam[None], grid, mode="area")[0], 19)
    return lambda: propagate(affinity, scores, beta=BETA, steps=2**SQUARINGS), lambda: dense_walk(
        affinity, scores
    )


def dense_walk(affinity: SparseAffinity, scores: Tensor) -> Tensor:
    """T as a dense matrix, squared, then applied to all scores at once."""
    matrix = torch.eye(scores[0].numel())
    matrix[affinity.index_from, affinity.index_to] = matrix[
        affinity.index_to, affinity.index_from
    ] = affinity.value
    transition = matrix**BETA
    transition = transition / transition.sum(dim=0, keepdim=True)
    for _ in range(SQUARINGS):
        transition = transition @ transition
    return (scores.flatten(1) @ transition).reshape(scores.shape)


def _crfs(size: tuple[int, int] = SIZE) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    image, cam = _scene(size)

    def ours() -> Tensor:
        dense_crf._spatial_lattice.cache_clear()  # as for the first image of its size
        return torch.stack(dense_crf.refine(image, cam, ALPHAS))

    return ours, lambda: torch.stack(
        [library_crf(image, dense_crf.with_background(cam, alpha)) for alpha in ALPHAS]
    )


def library_crf(image: np.ndarray, scores: Tensor) -> Tensor:
    """The C++ library with the reference's numbers."""
    from pydensecrf.densecrf import DenseCRF2D

    crf = DenseCRF2D(image.shape[1], image.shape[0], len(scores))
    crf.setUnaryEnergy(np.ascontiguousarray(dense_crf.unary_of(scores).flatten(1).numpy()))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    return torch.from_numpy(np.array(crf.inference(10))).reshape(scores.shape)


PARTS = {"walk": _walks, "crf_two_alphas": _crfs}


def _scene(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, Tensor]:
    """The first collage of three classes, cut to size, with camera noise; CAMs are its masks, blurred: (3, H, W) in 0..1."""
    scene = next(
        scene
        for scene in Collages(SceneSpec("val", count=200, size=max(SIZE)))
        if scene.tags.sum() == 3
    )
    image, mask = (array[: size[0], : size[1]] for array in (scene.image, scene.mask))
    noisy = image + CAMERA_NOISE * np.random.default_rng(0).standard_normal(image.shape)
    masks = torch.from_numpy(
        np.stack([mask == label + 1 for label in np.flatnonzero(scene.tags)])
    ).float()
    coarse = F.interpolate(masks[None], (12, 16), mode="area")
    return np.clip(noisy, 0, 255).astype(np.uint8), F.interpolate(coarse, size, mode="bilinear")[
        0
    ].clamp(0, 1)


if __name__ == "__main__":
    part, who = sys.argv[1:]
    small, full = (PARTS[part](size)[("ours", "peer").index(who)] for size in (SMALL, SIZE))
    print_peak(full, warm=small)

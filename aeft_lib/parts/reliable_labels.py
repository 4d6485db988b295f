"""Reliable labels: the small part of a CAM that two CRFs and the CAM itself are sure of (RRM).

From the authors' code of RRM (Zhang et al., AAAI 2020; zbf1991/RRM).
"""

import torch
from torch import Tensor

from aeft_lib.maps.labels import VOID
from aeft_lib.parts.in_step import posterior
from aeft_lib.refinement.dense_crf import with_background

LOW, HIGH = 4.0, 32.0  # powers of the background
CERTAIN, FLOOR, KEPT_FROM = 0.8, 0.1, 0.6  # posterior; of a CAM; its rank within the class's region


@torch.no_grad()
def reliable_labels(picture: Tensor, cam: Tensor, classes: Tensor) -> Tensor:
    """The labels of one image, (H, W) uint8, most of them void.

    picture: (3, H, W) uint8 RGB.  cam: (K', H, W) in 0..1, of the present classes.
    classes: (K',) int64.
    """
    scores = torch.stack([with_background(cam, power) for power in (LOW, HIGH)])
    low, high = posterior(picture, scores)
    rows = decide(low, high, scores[1])
    names = torch.cat([classes.new_zeros(1), classes + 1]).to(torch.uint8)
    return torch.where(rows == VOID, VOID, names[rows.masked_fill(rows == VOID, 0)])


def decide(low: Tensor, high: Tensor, scores: Tensor) -> Tensor:
    """Rows (H, W) int64 of the scores that are reliable, 0 the background, else `VOID`.

    low, high: posteriors (1 + K', H, W) of both CRFs.  scores: the CAMs, with the background of
    power 32 first.
    """
    winner = low.argmax(dim=0)
    rows = torch.where(winner == 0, VOID, winner)
    rows = rows.masked_fill(high.argmax(dim=0) == 0, 0)
    certain = torch.cat([high[:1], low[1:]]).amax(dim=0) >= CERTAIN
    return rows.masked_fill(~(certain & high_in_cam(scores, winner)), VOID)


def high_in_cam(scores: Tensor, winner: Tensor) -> Tensor:
    """Where a pixel is among the highest 40 % of its region in the CAM, (H, W) bool.

    The region of a class is where its score is the largest; of its n scores above 0.1, those count
    that are higher than number floor(0.6 n), in rising order from 0.  Background counts above 0.8.
    winner: (H, W), the classes that are looked at.
    """
    region, kept = scores.argmax(dim=0), torch.zeros_like(winner, dtype=torch.bool)
    for row in winner.unique().tolist():
        own = scores[row]
        if row == 0:
            kept |= own > CERTAIN
            continue
        inside = region == row
        values = own[inside & (own > FLOOR)].sort().values
        if len(values):
            kept |= inside & (own > values[int(KEPT_FROM * len(values))])
    return kept

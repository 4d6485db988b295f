"""IRNet, its semantic part (Ahn, Cho and Kwak, CVPR 2019): edges learned from pairs of pixels.

AffinityNet learns features, and two pixels belong together where these are near.  IRNet learns
edges, and they belong together where no edge lies between them (`refinement.path_affinity`).  Pairs
are labelled by the confident labels of the seeds, and weigh as AffinityNet's::

    L = L_bg / 4 + L_fg / 4 + L_neg / 2
    L_bg, L_fg = mean of -log(a + 1e-5),      L_neg = mean of -log(1 + 1e-5 - a)

The rest of the method is `parts.edge_refiner`.  Numbers: the code of the authors.

Not here: the displacement branch, which tells instances apart.  It reads the same frozen maps by
layers of its own, so its loss gives no gradient to the edges; the authors say so too.  Kept of the
harness, the same for every row: classifier, CAM head, seeds and segmentation network.  Labels are
brought to the grid by the middle pixel of each cell, as the release does by its nearest rule.
"""

from dataclasses import dataclass

from torch import Tensor

from aeft_lib.engine.fields import whole
from aeft_lib.maps.labels import VOID
from aeft_lib.refinement import affinity
from aeft_lib.refinement.edge_net import at_quarter
from aeft_lib.refinement.path_affinity import RADIUS, fitting_radius, path_affinity


@dataclass(frozen=True)
class PairLoss:
    """IRNet's loss (`stages.train_edges.EdgeLoss`).  radius: of the pairs, in grid cells."""

    radius: int = RADIUS

    def __post_init__(self) -> None:
        whole(self, "radius", least=2)

    def targets(self, labels: Tensor) -> Tensor:
        """The label map itself."""
        return labels

    def reduced(self, targets: Tensor) -> Tensor:
        """Nearest to a quarter, (..., H / 4, W / 4)."""
        return at_quarter(targets)

    def described(self, targets: Tensor) -> dict[str, float]:
        """``known``: the part of the grid that is not void."""
        return {"known": float((targets != VOID).float().mean())}

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums and counts of the three kinds of pairs, (1, 3) each; on small grids fewer pairs."""
        radius = fitting_radius(tuple(logits.shape[-2:]), self.radius)
        pairs = path_affinity(logits.sigmoid(), radius)
        sums, counts = affinity.loss_sums(pairs, affinity.pair_labels(targets, radius))
        return {"sums": sums[None], "counts": counts[None]}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Background, foreground and negative pairs of the whole batch."""
        means = affinity.mean_loss(measures["sums"].sum(dim=0), measures["counts"].sum(dim=0))
        return {
            "background": means.background / 4,
            "foreground": means.foreground / 4,
            "negative": means.negative / 2,
        }

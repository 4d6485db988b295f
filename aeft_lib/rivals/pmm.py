"""PMM, pseudo-mask matters (Li et al., ICCV 2021): label maps by proportion, and a loss for noise.

Three parts, each of its own, on the seeds of any classifier; AffinityNet is not needed.

`Ppmg`, proportional pseudo-mask generation, labels an image.  Each class's CAM v is raised where it
varies much (coefficient of variation smoothing, CVS), a CRF of two labels cuts the class out, and
where classes overlap a pixel goes to the one for which it is the larger part::

    CoV = 0.3 std(v | v > .05) / mean(v | v > .05),       u = v^(1 - CoV), 0 where v < .05
    F   = [posterior of u against (1 - u)^power > .5],    I = v / (1 + sum v F)
    label = argmax over [1 where no F, else 0;  I F]

`Pus`, the pretended under-fitting strategy, trains the segmenter: once the mean loss of a batch is
below beta, the pixels that still disagree are taken for wrong labels, and their loss is capped::

    l <- min(l, k)    where  mean l < beta

Its seeds are read in windows (`stages.multi_crop`), its classifier is trained on windows
(`parts.windows`), and a second network learns from the first (`stages.by_network`): parts of their
own too.

Departures from the authors' release.  Its quirks are switches: maps in half precision, pixels that
the CRF adds where v = 0 fall to the background, void pixels count in the mean.  Power 11 is the
release's; where a profile chooses powers by its rule, so here, without masks.  Its second network
learns from predictions that are filtered by the tags, of the last epoch; there from unfiltered
ones, of the epoch that is best on masks.  Not here: the auxiliary head (`LargeFov` has none).  The
release's numbers come from CAMs of a ScaleNet101, ours from the harness's backbone: another,
fairer, experiment.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.fields import choice, number, whole
from aeft_lib.engine.samples import Batch
from aeft_lib.maps.labels import VOID
from aeft_lib.maps.seeds import Seed
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.choose_background import BackgroundSpec, choose_background
from aeft_lib.stages.label_seeds import LabelMakerSpec, label_seeds
from aeft_lib.stages.method import Workshop

EPS = 1e-5
FLOOR = 0.05  # of a CAM; what is lower is noise
POWER = 11.0
GAUSSIAN = (3.0, 10.0)  # of the two-label CRFs: pixels, weight
IMPORTANCE = ("share", "score")
PUS = ("clamp", "pow", "ignore")


# --- label maps by proportion ---------------------------------------------------------------------


@dataclass(frozen=True)
class Ppmg:
    """The label maker, and the refiner around it.

    smoothing: factor of the coefficient of variation; 0 leaves CVS out.
    importance: a class's weight at a pixel is the pixel's "share" of the class, or its "score", the
        CAM (which leaves the proportion out).
    iterations: of the CRF.
    half_precision, zero_importance: quirks of the release, see the module.
    """

    smoothing: float = 0.3
    importance: str = "share"
    iterations: int = 10
    half_precision: bool = False
    zero_importance: bool = False

    def __post_init__(self) -> None:
        number(self, "smoothing")
        # The exponent stays positive: the deviation is at most 2.1 times the mean above the floor.
        if self.smoothing > 0.4:
            raise ValueError(f"smoothing must be at most 0.4, got {self.smoothing}")
        choice(self, importance=IMPORTANCE, half_precision=(False, True))
        choice(self, zero_importance=(False, True))
        whole(self, "iterations")

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds, background, labels``: there are no scores that a threshold could cut."""
        powers = None if workshop.numbers.powers is None else (POWER,) * 3
        spec = BackgroundSpec(workshop.thresholds, powers)
        inputs = {"seeds": workshop.seeds("train")}
        background = workshop.obtain(choose_background, spec, inputs)
        inputs = {"seeds": workshop.seeds(split), "background": background}
        labels = workshop.obtain(label_seeds, LabelMakerSpec(workshop.scenes(split), self), inputs)
        return inputs | {"labels": labels}

    def label(
        self, image: np.ndarray, seed: Seed, background: Mapping[str, float]
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The label map of an image (see `label_seeds.LabelMaker`), and what decided it.

        ``cov``: mean CoV of the classes.  Parts of the pixels: ``overlap``, claimed by several
        classes; ``outweighed``, of which a class gets one where another's CAM is higher;
        ``without_score``, claimed where the CAM is 0.
        """
        smoothed, cov = smooth(seed.cam, self.smoothing, half=self.half_precision)
        scores = two_labels(smoothed, background["middle"])
        crf = DenseCRF(image, gaussian=GAUSSIAN, device=seed.cam.device)
        inside = crf.infer(unary_of(scores), iterations=self.iterations)[:, 1] > 0.5
        rows = self.decide(seed.cam, inside)
        labels = torch.cat([seed.class_ids.new_zeros(1), seed.class_ids + 1])[rows.cpu()]
        overlap, plain = inside.sum(dim=0) > 1, (seed.cam * inside).argmax(dim=0) + 1
        parts = {
            "overlap": overlap,
            "outweighed": overlap & (rows != plain),
            "without_score": (inside & (seed.cam == 0)).any(dim=0),
        }
        numbers = {name: float(part.float().mean()) for name, part in parts.items()}
        return labels.to(torch.uint8).numpy(), {"cov": float(cov.float().mean())} | numbers

    def decide(self, maps: Tensor, inside: Tensor) -> Tensor:
        """The winner of every pixel, (H, W) int64: 0 background, k + 1 the map k.

        maps: (K', H, W), before CVS.  inside: (K', H, W) bool, F.  The first of equals wins.

        The second class is lower, and smaller: the pixel is more of it.

        >>> maps = torch.tensor([[[0.5, 8.5]], [[0.4, 2.6]]])
        >>> Ppmg().decide(maps, torch.ones(2, 1, 2, dtype=torch.bool)).tolist()
        [[2, 1]]
        >>> Ppmg(importance="score").decide(maps, torch.ones(2, 1, 2, dtype=torch.bool)).tolist()
        [[1, 1]]
        """
        weights = maps if self.zero_importance else maps + EPS
        if self.importance == "share":
            weights = weights / (1 + (maps * inside).sum(dim=(1, 2), keepdim=True))
        nobody = ~inside.any(dim=0, keepdim=True)
        return torch.cat([nobody.to(weights.dtype), weights * inside]).argmax(dim=0)


def smooth(maps: Tensor, factor: float = 0.3, *, half: bool = False) -> tuple[Tensor, Tensor]:
    """CVS: (K', H, W) in 0..1, smoothed, and the (K',) coefficients, times their factor.

    half: in float16, as the release.  A map without a value above the floor has CoV 0.

    >>> smoothed, cov = smooth(torch.tensor([[[0.1, 0.5, 0.9]]]))
    >>> [round(u, 3) for u in smoothed.flatten().tolist()], round(cov.item(), 3)
    ([0.157, 0.573, 0.919], 0.196)
    """
    maps = maps.half() if half else maps
    large = maps > FLOOR
    values, count = maps.to(torch.promote_types(maps.dtype, torch.float32)), large.sum(dim=(1, 2))
    mean = (values * large).sum(dim=(1, 2)) / count.clamp(min=1)
    spread = ((values - mean[:, None, None]).square() * large).sum(dim=(1, 2))
    deviation = (spread / count.clamp(min=1)).sqrt().to(maps.dtype)
    cov = factor * deviation / mean.to(maps.dtype).clamp(min=EPS)
    kept = torch.where(maps >= FLOOR, maps, torch.zeros_like(maps))
    return kept ** (1 - cov[:, None, None]), cov


def two_labels(smoothed: Tensor, power: float) -> Tensor:
    """Scores (K', 2, H, W) in 0..1 of every class's own CRF: its background, then itself."""
    return torch.stack([(1 - smoothed) ** power, smoothed], dim=1).float()


# --- a loss for noisy labels ----------------------------------------------------------------------


@dataclass(frozen=True)
class Pus(LargeFov):
    """The segmenter, trained with PUS.

    kind: what becomes of the loss l of a pixel: "clamp", min(l, k); "pow", (l + 1e-9)^k; "ignore",
        0 where l > k.
    beta: the mean below which it does; 0 never.  k: its bound.  Both 0.5 on VOC, 0.8 on COCO.
    void_in_mean: quirk of the release, see the module.
    """

    kind: str = "clamp"
    beta: float = 0.5
    k: float = 0.5
    void_in_mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, kind=PUS, void_in_mean=(False, True))
        number(self, "beta")
        number(self, "k", positive=True)

    def measure(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Of every sample, (B,) each: sums of the loss, as it is and under PUS, and counts."""
        loss = pixel_loss(network(batch.images).float(), batch.labels)
        counted = torch.ones_like(loss) if self.void_in_mean else (batch.labels != VOID).to(loss)
        over = (loss > self.k).to(loss)
        if self.kind == "clamp":
            softened = loss.clamp(max=self.k)
        elif self.kind == "pow":
            softened = (loss + 1e-9) ** self.k
        else:
            softened = loss * (1 - over)
        measures = {"summed": loss, "softened": softened * counted, "counted": counted}
        measures["over"] = over
        return {name: pixels.flatten(1).sum(dim=1) for name, pixels in measures.items()}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the batch; logged too: whether PUS acted, and on what part of the pixels.

        The mean of ``pus_acted`` over an epoch is the share of its steps.
        """
        names = ("summed", "softened", "over")
        counted = measures["counted"].sum().clamp(min=1)
        plain, softened, over = (measures[name].sum() / counted for name in names)
        acts = plain.detach() < self.beta
        return {
            "segmentation": torch.where(acts, softened, plain),
            "pus_acted": acts.to(plain.dtype),
            "pus_pixels": (acts * over).detach(),
        }


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel, (B, H, W); 0 where it is void.

    logits: (B, K + 1, H, W).  labels: (B, H, W) integer, 0 background, class + 1, 255 void.
    Raises ValueError for another shape, and on a CPU for a label beyond K.
    """
    shape = (len(logits), *logits.shape[2:])
    if logits.ndim != 4 or labels.shape != shape or labels.is_floating_point():
        rule = "logits (B, K + 1, H, W) and integer labels (B, H, W) are needed"
        given = f"{tuple(logits.shape)} and {labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"{rule}, got {given}")
    try:
        return F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="none")
    except IndexError as error:
        rule = f"labels must lie in 0..{logits.shape[1] - 1} or be void ({VOID})"
        raise ValueError(f"{rule}: {error}") from error

"""OC-CSE (Kweon et al., ICCV 2021): class-specific erasing judged by a frozen ordinary classifier.

The learner's CAM erases *one* randomly drawn class of an image; a fixed classifier judges the rest:
the erased class must be gone, and the others must still be there::

    M = relu(up(f[t])) / (max + 1e-5),      x^ = x (1 - M)
    L = BCE(GAP f(x), y) + w BCE(judge(x^), y - t),      w = 0.3 + 0.7 p

x is normalised, so zero is the mean colour.  The second term's gradient runs through the judge,
whose weights stay, and through x^ into f[t] alone.  The judge's input is never augmented again.

Departures from the authors' release.  `mask_max` is "batch" there: an image whose peak is a third
of the batch's is erased by a third; it is "image" here, as in the paper.  The optimiser has new
layers at 1x the rate and weight decay as momentum there, the profile's schedule here.  The
checkpoint is chosen on masks there, the last epoch here.  The weight's ramp, 0.3 to 1.0 over 15
epochs, runs over the progress of the profile's schedule.  With `mask_max` "batch" the maximum is of
the samples that go through together: of a part, or of a rank, where a batch is cut.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.fields import choice, number
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.paper import losses
from aeft_lib.paper.classifier import CamClassifier, CamMethod

EPS = 1e-5
MASK_MAXIMA = ("image", "batch")


@dataclass(frozen=True)
class OcCse(CamMethod):
    """The learner.  first_weight, last_weight: of the judge's term, at the start and at the end.

    mask_max: the mask's maximum is taken over each "image", or over the "batch" (the release).
    """

    first_weight: float = 0.3
    last_weight: float = 1.0
    mask_max: str = "image"
    needs = ("images", "noise")

    def __post_init__(self) -> None:
        number(self, "first_weight", "last_weight")
        choice(self, mask_max=MASK_MAXIMA)

    def measure(self, network: CamClassifier, batch: Batch, *, oc: nn.Module) -> dict[str, Tensor]:
        """Logits of the learner, and of the judge `oc` on what is left after the erasing."""
        output = forward(network, batch)
        drawn = draw_class(batch.tags, batch.noise[:, 0])
        mask = erasing_mask(output.cam, drawn, batch.images.shape[-2:], per=self.mask_max)
        mask = mask * batch.tags.bool().any(dim=1)[:, None, None, None]  # no tag, nothing to erase
        left = oc(batch.images * (1 - mask)).logits
        return {"logits": output.logits, "tags": batch.tags, "drawn": drawn, "left": left}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both terms; logged too: what the judge still sees of the erased and the kept classes.

        ``p_erased`` and ``p_kept`` are mean probabilities, the mechanism itself, without a mask.
        """
        tags, drawn, left = (measures[name] for name in ("tags", "drawn", "left"))
        kept = remaining_tags(tags, drawn)
        weight = self.first_weight + (self.last_weight - self.first_weight) * measures["progress"]
        judged = left.detach().sigmoid()
        erased = F.one_hot(drawn, tags.shape[1]).to(judged.dtype) * tags.to(judged.dtype)
        return {
            "classification": losses.classification(measures["logits"], tags),
            "judged": weight * losses.classification(left, kept),
            "p_erased": _logged_mean(judged, erased),
            "p_kept": _logged_mean(judged, kept.to(judged.dtype)),
        }


def draw_class(tags: Tensor, noise: Tensor) -> Tensor:
    """One tagged class of every image, (B,) int64, each as likely; class 0 without any tag.

    tags: (B, K), 0 or 1.  noise: (B,) in 0..1, decides.

    >>> draw_class(torch.tensor([[0, 1, 1], [0, 0, 1]]), torch.tensor([0.6, 0.6])).tolist()
    [2, 2]
    """
    present = tags.bool()
    count = present.sum(dim=1)
    place = (noise * count).long().clamp(max=(count - 1).clamp(min=0))
    ranked = present.long().cumsum(dim=1) - 1
    return ((ranked == place[:, None]) & present).long().argmax(dim=1)


def erasing_mask(cam: Tensor, drawn: Tensor, size: tuple[int, int], *, per: str) -> Tensor:
    """M, (B, 1, H, W) in 0..1, with its gradient: the drawn class's CAM, over its maximum.

    cam: (B, K, h, w) signed, up-sampled bilinearly *before* the ReLU.  drawn: (B,) classes.
    per: the maximum is over each "image", or over the "batch".
    """
    chosen = cam[torch.arange(len(cam), device=cam.device), drawn][:, None]
    full = F.interpolate(chosen, size=size, mode="bilinear", align_corners=False).relu()
    peak = full.amax(dim=(1, 2, 3), keepdim=True) if per == "image" else full.max()
    return full / (peak + EPS)


def remaining_tags(tags: Tensor, drawn: Tensor) -> Tensor:
    """The tags without the erased class, (B, K).

    >>> remaining_tags(torch.tensor([[1, 1, 0]]), torch.tensor([1])).tolist()
    [[1, 0, 0]]
    """
    return tags * (1 - F.one_hot(drawn, tags.shape[1])).to(tags.dtype)


def _logged_mean(values: Tensor, where: Tensor) -> Tensor:
    """A mean without gradient, over the entries that count; 0 where none does."""
    return (values * where).sum() / where.sum().clamp(min=1)

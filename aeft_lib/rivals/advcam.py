"""AdvCAM (Lee et al., CVPR 2021): an image climbs towards a class, and its CAMs are added up.

The reverse of an adversarial attack.  For every image, scale and tagged class c, on the pair x of
the plain and the mirrored image::

    y_k     = mean over pixels of relu(z_k),   z the signed CAM of x
    A       = attribution of c, plain + mirrored back;   it is accumulated
    L       = sum over the pair (y_c - sum_{k != c} y_k)  -  weight * |A - A0| where A / max A > tau
    x      <- clamp(x + rate dL/dx / max |dL/dx|, min x, max x)

Regions that tell little of the class come up, and the last term holds back those that tell most.
The network stays as it is; pairs are independent of each other, so they go through it together.

The release's A is Grad-CAM with a normaliser of its own.  In closed form, which needs no second
backward pass, ``A_b = relu(z_c)_b n_b / ((n_0 + n_1) C)``, n_b the pixels of view b where z_c is
positive, C the number of positive weights of c in the 1x1 head; so its weight 7, on a *sum* over
pixels, means something else for every head and map.  `attribution` "grad_cam" is that.  "relu" does
not depend on the head: A = relu(z_c), and the *mean* over pixels at weight 7 / 2, which is what the
release has on a map of 32x32 cells with C = 1024.

Departures.  Rates are in units of ImageNet's normalisation, and are scaled to the range that the
backbone's input has.  A laptop climbs at scale 1 alone, in 8 steps that reach as far as 27.
`weigh` "sum" is the release, where the factor that was meant for scale 0.5 has no effect; "mean"
gives every scale the same weight, so that without a step the seed is the plain CAM.  Equations as a
third party's page has them and as the authors' code computes them; the paper was not at hand.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from aeft_lib.engine.batches import together
from aeft_lib.engine.device import batch_pixels
from aeft_lib.engine.fields import NO_RESULT, choice, fraction, number, whole
from aeft_lib.engine.samples import Batch
from aeft_lib.parts.climbing import Climb, accumulate, mean_numbers, merged, plain_logits, views
from aeft_lib.parts.pixel_steps import (
    TINY,
    amplification,
    attribution,
    drift,
    gain,
    of_class,
    positive_weights,
    stepped,
)
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.image_reader import EachReading, Picture
from aeft_lib.stages.method import Method
from aeft_lib.stages.read_each import EachSpec, Others

STEPS, BRIEF_STEPS = 27, 8
# Of ImageNet's normalised values: (1 - 0.406) / 0.225 + 0.485 / 0.229.
IMAGENET_RANGE = 4.758
ATTRIBUTIONS, SUPPRESSED, WEIGHED = ("relu", "grad_cam"), ("others", "absent"), ("mean", "sum")


@dataclass(frozen=True)
class AdvCam:
    """The reader.

    scales: of its passes; climbed: those at which the image climbs, the others are read as they
        are.  () and 0 steps: by `fitted`.
    steps: T, as many maps are added up.  reach: T times the rate.
    weight: of the mask term.  threshold: tau.
    suppress: classes that are pushed down, all "others" (the release) or those "absent".
    half_small: scales below 1 take half the steps, see `steps_at`.  clamped: after every step.
    attribution, weigh: see the module.
    at_once: pairs that go through the network together; 0: as many as have the pixels of a batch
        of the device, at least one.
    """

    scales: tuple[float, ...] = ()
    climbed: tuple[float, ...] = ()
    steps: int = 0
    reach: float = 27 * 0.08
    weight: float = 7.0
    threshold: float = 0.5
    suppress: str = "others"
    attribution: str = "relu"
    weigh: str = "mean"
    half_small: bool = True
    clamped: bool = True
    at_once: int = field(default=0, metadata=NO_RESULT)
    names = ("amplification_ratio", "amplified_rest", "amplified_peak", "target_rise")
    draws = False

    def __post_init__(self) -> None:
        whole(self, "steps", "at_once")
        number(self, "reach", "weight")
        fraction(self, "threshold")
        choice(self, suppress=SUPPRESSED, attribution=ATTRIBUTIONS, weigh=WEIGHED)
        choice(self, half_small=(False, True), clamped=(False, True))
        if self.scales and (1 not in self.scales or not set(self.climbed) <= set(self.scales)):
            raise ValueError(
                "scales must contain 1, where tags are scored, and those climbed, "
                f"got {self.scales} and {self.climbed}"
            )

    def fitted(self, scales: Sequence[float], *, brief: bool) -> "AdvCam":
        """See `image_reader.ImageReader`: 8 steps at scale 1, or the release's 27 at all."""
        scales = self.scales or tuple(scales)
        climbed = self.climbed or ((1.0,) if brief else scales)
        steps = self.steps or (BRIEF_STEPS if brief else STEPS)
        return replace(self, scales=scales, climbed=climbed, steps=steps)

    def inputs(
        self, obtain: Callable[..., Artefact], spec: EachSpec, classifier: Artefact
    ) -> dict[str, Artefact]:
        """None: it chooses nothing beforehand."""
        return {}

    def steps_at(self, scale: float) -> int:
        """How many maps are added up at a scale.

        The release's rule for scale 0.5: half of more than 10, all of fewer than 6, else 5.
        """
        if scale not in self.climbed:
            return 1
        if scale >= 1 or not self.half_small or self.steps < 6:
            return self.steps
        return self.steps // 2 if self.steps > 10 else 5

    def rate(self, network: nn.Module) -> float:
        """The length of a step, in units of the network's input."""
        ends = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 1, 1)
        ends = network.backbone.normalise(ends)
        span = float(ends.max() - ends.min())
        return self.reach / max(1, self.steps) * span / IMAGENET_RANGE

    def read(
        self,
        method: Method,
        network: nn.Module,
        pictures: Sequence[Picture],
        others: Others | None,
        chosen: Mapping[str, float],
    ) -> list[EachReading]:
        """See `image_reader.ImageReader`; pairs of several classes and pictures climb together."""
        images, size = [picture.image for picture in pictures], pictures[0].image.shape[:2]
        ids = [picture.tags.nonzero()[:, 0] for picture in pictures]
        counts, logits = [len(own) for own in ids], plain_logits(method, network, images)
        if not sum(counts):
            return [EachReading(torch.zeros(0, *size), own, {}) for own in logits]
        where = torch.arange(len(ids)).repeat_interleave(torch.tensor(counts))
        tags, sums, lines = torch.stack([p.tags for p in pictures])[where], [], []
        for scale in self.scales:
            seen = views(images, scale, network)
            parts = []
            for own in torch.arange(len(where)).split(self._pairs(seen)):
                given = (seen[where[own].to(seen.device)], torch.cat(ids)[own], tags[own])
                pixels = self.pixels(method, network, *given, scale)
                climb = accumulate(pixels, self.steps_at(scale))
                parts.append(self.weighed(climb, scale))
                lines += pixels.numbers() if scale == 1 else []
            sums.append(torch.cat(parts))
        cams = merged(sums, size).cpu().split(counts)
        numbers = [lines[sum(counts[:i]) :][:n] for i, n in enumerate(counts)]
        return [
            EachReading(cam.clone(), own, mean_numbers(of))
            for cam, own, of in zip(cams, logits, numbers, strict=True)
        ]

    def _pairs(self, seen: Tensor) -> int:
        """Of views (B, 2, 3, H, W)."""
        return self.at_once or together(seen.shape[-2:], batch_pixels("fp32"))

    def pixels(
        self,
        method: Method,
        network: nn.Module,
        pairs: Tensor,
        class_ids: Tensor,
        tags: Tensor,
        scale: float,
    ) -> "Pixels":
        """The climber of pairs (N, 2, 3, H, W), each with its class and tags, on their device."""
        class_ids, tags, weights = class_ids.to(pairs.device), tags.to(pairs.device), None
        if self.attribution == "grad_cam":
            weights = positive_weights(network.head)[class_ids]
        rate = self.rate(network)
        return Pixels(self, method, network, pairs, class_ids, tags, scale, rate, weights)

    def weighed(self, climb: Climb, scale: float) -> Tensor:
        """The accumulated maps of a scale, (N, h, w), as they go into the merge."""
        return climb.sums[scale] / (climb.counts[scale] if self.weigh == "mean" else 1)


class Pixels:
    """Pairs of views that climb (`parts.climbing.Climber`), N of them, each towards its class.

    views: (N, 2, 3, H, W), now.  gradient: of the last step, alike.
    targets: y_c of the states read, (N, 2) each.
    """

    def __init__(
        self,
        numbers: AdvCam,
        method: Method,
        network: nn.Module,
        pairs: Tensor,
        class_ids: Tensor,
        tags: Tensor,
        scale: float,
        rate: float,
        weights: Tensor | None,
    ) -> None:
        self.of, self.method, self.network = numbers, method, network
        self.views, self.class_ids, self.scale, self.rate = pairs, class_ids, scale, rate
        self.weights, self.targets = weights, []
        self.competing = ~tags.bool() if numbers.suppress == "absent" else torch.ones_like(tags)
        self.first: Tensor | None = None
        self.gradient: Tensor | None = None

    def read(self, step: int) -> Iterator[tuple[float, Tensor]]:
        """A, (N, h, w), of the pairs as they are."""
        self.leaf = self.views.detach().requires_grad_()
        flat = self.leaf.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        self.maps = self.method.cam(self.network, Batch(images=flat)).unflatten(0, (-1, 2))
        self.attributed = attribution(self.maps, self.class_ids, self.weights)
        self.total = self.attributed[:, 0] + self.attributed[:, 1].flip(-1)
        self.latest = self.total.detach()
        self.first = self.latest if self.first is None else self.first
        self.targets.append(of_class(self.maps.detach().relu(), self.class_ids).mean(dim=(2, 3)))
        yield self.scale, self.latest

    def ends(self, step: int, scale: float, maps: Tensor) -> str:
        """Never."""
        return ""

    def move(self, step: int) -> str:
        """The step; the sum over pairs has the gradient of each."""
        gained = gain(self.maps, self.class_ids, self.competing)
        held = drift(self.total, self.first, self.of.threshold)
        held = held.mean(dim=(1, 2)) / 2 if self.weights is None else held.sum(dim=(1, 2))
        loss = (gained - self.of.weight * held).sum()
        (self.gradient,) = torch.autograd.grad(loss, self.leaf)
        self.views = stepped(self.views, self.gradient, self.rate, clamped=self.of.clamped)
        del self.leaf, self.maps, self.attributed, self.total  # the graph of this state
        return ""

    def numbers(self) -> list[dict[str, float]]:
        """Of every pair: how parts of its map grew, and y_c of the last state against the first."""
        rise = (self.targets[-1].sum(dim=1) + TINY) / (self.targets[0].sum(dim=1) + TINY)
        parts = zip(self.first, self.latest, rise.tolist(), strict=True)
        return [amplification(*maps) | {"target_rise": rose} for *maps, rose in parts]

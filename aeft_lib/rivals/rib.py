"""RIB (Lee et al., NeurIPS 2021): the classifier is trained further on every image that is read.

A sigmoid is a bottleneck: once a tag is certain, no gradient asks for the rest of the object.  For
ten steps, each time from the same weights, the loss is the logits themselves::

    L = - sum over rows, over their tags k, of logit_k

The rows are views of the image, plain and mirrored at the scales from 1 on, with its tags, and some
other training images that share no class with it, with theirs.  Logits of tagged classes are pooled
by GNDP, which leaves the peak out::

    logit_c = 1/hw sum over positions of m_c where m_c / max m_c < cut       (max m_c is a constant)

The CAMs before every step are added up.  It stops at once where what fires covers too much of the
image (the map that showed it stays in its sum), or where the image's logits have grown too large.

Departures from the authors' release.  A laptop adapts the last convolution and the head (there: the
last two stages), with 6 others (there: 20 random views).  The release's rate and its bound on
logits are for its own network: here both follow from a rule that reads tags (`choose_rate`).  Norms
stay frozen.  GNDP looks at 20 classes there (`pooled_classes`), so on COCO most are pooled by their
mean.  Images have weights of their own, so each goes through the network alone, but all its rows of
one size together.  Read in the authors' code; the paper was not at hand.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.data.views import ViewSpec
from aeft_lib.engine.fields import choice, fraction, number, whole
from aeft_lib.parts.adapting import PARTS, Adaptable, adaptable, put_back
from aeft_lib.parts.climbing import Climb, accumulate, merged, plain_logits, views
from aeft_lib.parts.peakless import cover, gndp
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.image_reader import EachReading, Picture
from aeft_lib.stages.loading import load_network, ready
from aeft_lib.stages.method import Method
from aeft_lib.stages.read_each import EachSpec, Others, drawn_by, pictures_of

RATE = 8e-6  # the release's on VOC; 5e-6 on COCO
OTHERS, BRIEF_OTHERS = 20, 6
LARGEST = 600.0  # of the image's six rows of logits, 1000 on COCO
COVER, LARGE = "cover", "logits"
POOLINGS, MEANS, LOSSES = ("gndp", "gap"), ("all", "kept"), ("logits", "bce")


@dataclass(frozen=True)
class Rib:
    """The reader.  What is 0 or "" or () by default is set by `fitted`.

    scales: of its passes, those from 1 on are pooled.  steps: CAMs that are added up.
    rate: of the backbone, ten times it for the head; 0: by `choose_rate`.
    others: so many a step.  adapts: the "last" block and the head, or all that was "trained".
    cut: of GNDP.  pooling: "gap" leaves GNDP out.  mean: over "all" positions (the release), or
        those "kept".  pooled_classes: GNDP's, the first so many; 0: all.
    loss: "logits", or "bce", which has the bottleneck.
    fires, covers: where the union of what is above `fires` of its peak is more than `covers` of the
        image, it stops.  largest: so does it where |the sum of the image's logits| is above; 0:
        never.
    decay: weight decay, which the release has as momentum too (`decay_as_momentum`).
    """

    scales: tuple[float, ...] = ()
    steps: int = 10
    rate: float = 0.0
    others: int = 0
    adapts: str = ""
    cut: float = 0.4
    pooling: str = "gndp"
    mean: str = "all"
    pooled_classes: int = 0
    loss: str = "logits"
    fires: float = 0.3
    covers: float = 0.7
    largest: float = 0.0
    decay: float = 1e-4
    decay_as_momentum: bool = True
    names = ("states", "cover", "stopped_by_cover", "stopped_by_logits", "target_rise")
    draws = True

    def __post_init__(self) -> None:
        whole(self, "steps", "others", "pooled_classes")
        number(self, "rate", "cut", "largest", "decay")
        fraction(self, "fires", "covers")
        choice(self, adapts=("", *PARTS), pooling=POOLINGS, mean=MEANS, loss=LOSSES)
        choice(self, decay_as_momentum=(False, True))
        if self.scales and 1 not in self.scales:
            raise ValueError(f"scales must contain 1, where tags are scored, got {self.scales}")

    def fitted(self, scales: Sequence[float], *, brief: bool) -> "Rib":
        """See `image_reader.ImageReader`, and the module's departures."""
        return replace(
            self,
            # Scale 1 first: what it shows can end a step.
            scales=tuple(sorted(self.scales or scales, key=lambda scale: scale != 1)),
            rate=self.rate or (0.0 if brief else RATE),
            others=self.others or (BRIEF_OTHERS if brief else OTHERS),
            adapts=self.adapts or ("last" if brief else "trained"),
            largest=self.largest or (0.0 if brief else LARGEST),
        )

    def inputs(
        self, obtain: Callable[..., Artefact], spec: EachSpec, classifier: Artefact
    ) -> dict[str, Artefact]:
        """The ``rate``, chosen on the training scenes, where the reader has none."""
        if self.rate:
            return {}
        chosen = RateSpec(self, spec.others, spec.others, classifier.spec.data, spec.view)
        return {"rate": obtain(choose_rate, chosen, {"classifier": classifier})}

    def read(
        self,
        method: Method,
        network: nn.Module,
        pictures: Sequence[Picture],
        others: Others | None,
        chosen: Mapping[str, float],
    ) -> list[EachReading]:
        """See `image_reader.ImageReader`; one picture after the other."""
        part, reader = adaptable(network, self.adapts), self._with(chosen)
        return [reader._read(method, network, part, p, others) for p in pictures]

    def _with(self, chosen: Mapping[str, float]) -> "Rib":
        """Itself with the numbers that `choose_rate` gave, where it had none."""
        return replace(self, **{name: chosen[name] for name in ("rate", "largest") if chosen})

    def _read(
        self, method: Method, network: nn.Module, part: Adaptable, picture: Picture, others: Others
    ) -> EachReading:
        size, (logits,) = picture.image.shape[:2], plain_logits(method, network, [picture.image])
        if not picture.tags.any():
            return EachReading(torch.zeros(0, *size), logits, {})
        inputs = self.inputs_of(network, part, picture)
        climb, weights = self.climb(network, part, picture, inputs, others, self.rate)
        cam = merged([climb.sums[scale] for scale in self.scales], size).cpu()
        return EachReading(cam, logits, weights.numbers(climb))

    def inputs_of(
        self, network: nn.Module, part: Adaptable, picture: Picture
    ) -> dict[float, Tensor]:
        """What the part reads of a picture, (2, C, h, w) by scale, which no step changes."""
        image = [picture.image]
        return {s: _before(network, part, views(image, s, network)[0]) for s in self.scales}

    def climb(
        self,
        network: nn.Module,
        part: Adaptable,
        picture: Picture,
        inputs: Mapping[float, Tensor],
        others: Others,
        rate: float,
        states: int = 0,
    ) -> tuple[Climb, "Weights"]:
        """The states of one picture, and what moved; afterwards the network is as it was.

        states: so many; 0: all.
        """
        where = next(network.parameters()).device

        def rows(step: int) -> tuple[Tensor | None, Tensor]:
            chosen = others.draw(picture, step, self.others)
            read = _inputs_of(network, part, others, chosen, (picture.index, step))
            return read, others.tags[chosen].to(where)

        with put_back([*part.body, *part.head]):
            weights = Weights(self, part, inputs, picture.tags.to(where), rows, rate)
            return accumulate(weights, states or self.steps), weights


def _before(network: nn.Module, part: Adaptable, images: Tensor) -> Tensor:
    """What the part reads of images (B, 3, H, W)."""
    with torch.no_grad():
        images = images.contiguous(memory_format=torch.channels_last)
        return part.before(network.backbone.trunk(images))


def _inputs_of(
    network: nn.Module,
    part: Adaptable,
    others: Others,
    chosen: Sequence[int],
    path: tuple[int, ...],
) -> Tensor | None:
    """What the part reads of other scenes; whole scenes go through what is before it once."""
    if not chosen:
        return None
    normalise = network.backbone.normalise
    if others.view is not None:
        return _before(network, part, others.images(chosen, path, normalise))
    kept = others.kept.setdefault(part.name, {})
    for index in set(chosen) - kept.keys():
        kept[index] = _before(network, part, others.images([index], path, normalise))[0].half()
    return torch.stack([kept[index] for index in chosen]).float()


class Weights:
    """The weights of a part as they adapt to an image (`parts.climbing.Climber`).

    inputs: of the part by scale, (2, C, h, w), plain and mirrored.  tags: (K,).
    rows: the step -> inputs (B, C, h, w) and tags (B, K) of others, None where there are none.
    losses, targets: of the steps taken.  cover: of the last state.
    """

    def __init__(
        self,
        numbers: Rib,
        part: Adaptable,
        inputs: Mapping[float, Tensor],
        tags: Tensor,
        rows: Callable[[int], tuple[Tensor | None, Tensor]],
        rate: float,
    ) -> None:
        self.of, self.part, self.inputs, self.rows = numbers, part, inputs, rows
        self.tags, self.ids, self.rate = tags, tags.nonzero()[:, 0], rate
        self.losses, self.targets, self.cover = [], [], 0.0
        groups = [(own, rate * times) for own, times in ((part.body, 1), (part.head, 10)) if own]
        self.optimiser = torch.optim.SGD(
            [{"params": own, "lr": first, "first": first} for own, first in groups],
            lr=rate,
            momentum=numbers.decay if numbers.decay_as_momentum else 0.0,
            weight_decay=numbers.decay,
        )

    def read(self, step: int) -> Iterator[tuple[float, Tensor]]:
        """Positive maps of the tagged classes, plain + mirrored back; scale 1 comes first."""
        self.pooled = []
        for scale, pair in self.inputs.items():
            with torch.set_grad_enabled(scale >= 1):
                maps = self.part.cam(pair)
            if scale >= 1:
                self.pooled.append(maps)
            positive = maps.detach()[:, self.ids].relu()
            yield scale, positive[0] + positive[1].flip(-1)

    def ends(self, step: int, scale: float, maps: Tensor) -> str:
        """By what the maps of scale 1 cover, once a step was taken."""
        if scale != 1:
            return ""
        self.cover = cover(maps, self.of.fires)
        return COVER if step and self.cover > self.of.covers else ""

    def move(self, step: int) -> str:
        """A step on the image's rows and the others'."""
        own = torch.cat([self._logits(maps, self.tags.expand(2, -1)) for maps in self.pooled])
        tags = self.tags.expand_as(own)
        target = (own * tags).sum()
        loss = self._loss(own, tags)
        inputs, others = self.rows(step)
        if inputs is not None:
            loss = loss + self._loss(self._logits(self.part.cam(inputs), others), others)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = group["first"] * (1 - step / max(1, self.of.steps)) ** 0.9
        self.optimiser.step()
        self.losses.append(loss.item())
        self.targets.append(target.item())
        return LARGE if self.of.largest and abs(self.targets[-1]) > self.of.largest else ""

    def numbers(self, climb: Climb) -> dict[str, float]:
        """How many states were read, what the last covered, why it stopped, how logits rose."""
        rise = self.targets[-1] - self.targets[0] if self.targets else 0.0
        return {
            "states": float(climb.counts[1.0]),
            "cover": self.cover,
            "stopped_by_cover": float(climb.reason == COVER),
            "stopped_by_logits": float(climb.reason == LARGE),
            "target_rise": rise,
        }

    def _logits(self, maps: Tensor, tags: Tensor) -> Tensor:
        if self.of.pooling == "gap":
            return maps.mean(dim=(2, 3))
        classes = self.of.pooled_classes or maps.shape[1]
        return gndp(maps, tags, self.of.cut, classes=classes, mean=self.of.mean)

    def _loss(self, logits: Tensor, tags: Tensor) -> Tensor:
        tags = tags.to(logits.dtype)
        if self.of.loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, tags, reduction="sum")
        return -(logits * tags).sum()


# --- the rate, without masks ----------------------------------------------------------------------


@dataclass(frozen=True)
class RateSpec:
    """reader: whose rate it is.  scenes: of the training, and what it draws from.

    images: so many, evenly spread.  early: a stop before this step is too early.  at_most: the part
    of images that may stop so.  ladder: (first rate, factor, rungs).  times: of an image's logits
    at the first step their bound, about that of the release.
    """

    reader: Rib
    scenes: SceneSet
    others: SceneSet
    data: str
    view: ViewSpec | None = None
    images: int = 40
    early: int = 5
    at_most: float = 0.05
    ladder: tuple[float, float, int] = (RATE, 3.0, 10)
    times: float = 100.0


def choose_rate(spec: RateSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """The largest rate of a ladder at which few training images stop early: ``rate``.

    By bisection, on the assumption that more images stop at a higher rate.  Tags are read, no mask.
    ``largest``: the bound on |the sum of an image's logits|, `times` the median at the first step,
    where the reader has none.  ``early_stops``: the part of images that stop at the rate.
    """
    classifier, count = inputs["classifier"], len(spec.scenes.open())
    network = ready(load_network, classifier)
    others, part = drawn_by(spec, classifier), adaptable(network, spec.reader.adapts)
    indices = range(0, count, max(1, count // spec.images))[: spec.images]
    tagged = [p for batch in pictures_of(spec.scenes, indices) for p in batch if p.tags.any()]
    read = [(p, spec.reader.inputs_of(network, part, p)) for p in tagged]
    first = [
        abs(spec.reader.climb(network, part, picture, given, others, 0.0, 2)[1].targets[0])
        for picture, given in read
    ]
    largest = spec.reader.largest or spec.times * float(np.median(first or [0.0]))
    reader = replace(spec.reader, largest=largest)

    def early(rung: int) -> float:
        """The part of images that stop; where too many do, of those seen until that is clear."""
        rate, stops = spec.ladder[0] * spec.ladder[1] ** rung, 0
        for picture, given in read:
            climb, _ = reader.climb(network, part, picture, given, others, rate, spec.early)
            stops += bool(climb.reason)
            if stops >= spec.at_most * len(read):
                break
        return stops / max(1, len(read))

    low, high, known = 0, spec.ladder[2] - 1, {}
    while low < high:
        middle = (low + high + 1) // 2
        known[middle] = early(middle)
        low, high = (middle, high) if known[middle] < spec.at_most else (low, middle - 1)
    share = known[low] if low in known else early(low)
    rate = spec.ladder[0] * spec.ladder[1] ** low
    return {"rate": rate, "largest": largest, "early_stops": share}

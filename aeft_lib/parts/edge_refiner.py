"""From seeds to pseudo-labels by edges: the refiner of IRNet, and of the methods built on it.

Confident labels of the seeds teach a network edges; the seeds flow where no edge stops them; a
threshold cuts label maps from the result.  IRNet and BES differ in the loss, BES, CDA, AdvCAM and
RIB in numbers::

                 t_fg   t_bg   power   beta   background
    IRNet, CDA   .30    .05    1       10     .25
    BES          .30    .07    1        5     .25
    AdvCAM       .35    .15    1.5     10     .25
    RIB          .35    .17    1.3     10     .27

Where a profile chooses background powers by its rule, thresholds are chosen without masks too: the
two of the confident labels keep the release's distance, in logits, around Otsu's of the seeds, and
the last is Otsu's of the walked scores.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from aeft_lib.engine.fields import fraction, number, whole
from aeft_lib.engine.schedule import Schedule
from aeft_lib.networks.levels import LevelsSpec
from aeft_lib.parts.confident_labels import ConfidentLabels, HardCrf
from aeft_lib.refinement.background import power_at
from aeft_lib.refinement.path_affinity import WALK_RADIUS
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.choose_background import BackgroundSpec, choose_background
from aeft_lib.stages.label_seeds import LabelMakerSpec, label_seeds
from aeft_lib.stages.method import Workshop
from aeft_lib.stages.spread_powers import SpreadSpec, spread_powers
from aeft_lib.stages.train_edges import EdgeLoss, EdgeSpec, RescaledCrop, train_edges
from aeft_lib.stages.walk_edges import EdgeWalkSpec, walk_edges
from aeft_lib.stages.write_labels import LabelSpec, write_labels

# Of the release, on crops of photos; weight decay is passed as momentum too (a quirk of theirs).
SCHEDULE = Schedule(
    epochs=3,
    batch_size=32,
    lr=0.1,
    head_lr=0.1,
    weight_decay=1e-4,
    warmup_steps=0,
    optimiser="sgd",
    momentum=1e-4,
)


@dataclass(frozen=True)
class EdgeRefiner:
    """loss: of the edges.  thresholds: of the confident labels, sure of foreground, of background.

    power: of the CAMs before the walk.  beta, steps, radius: of the walk.
    background: the score below which the result is background.
    schedule, view: of the edges' training where the profile trains on crops of photos; elsewhere
        the profile's schedule of AffinityNet, on whole scenes.
    suppress_edges: cells of an edge start with ``cam (1 - edge)``.
    joint_maximum: the result is divided by the maximum of all classes; False: each by its own.
    scales: at which edges are found; the paper has several, its code one.
    last_crf: reach in pixels of a CRF on the last label map (`HardCrf`); 0 leaves it out.
    """

    loss: EdgeLoss
    thresholds: tuple[float, float] = (0.30, 0.05)
    power: float = 1.0
    beta: float = 10.0
    steps: int = 256
    radius: int = WALK_RADIUS
    background: float = 0.25
    schedule: Schedule = SCHEDULE
    view: RescaledCrop = RescaledCrop()
    suppress_edges: bool = True
    joint_maximum: bool = True
    scales: tuple[float, ...] = (1.0,)
    last_crf: float = 0.0

    def __post_init__(self) -> None:
        given = (0.0, *reversed(self.thresholds), 1.0)
        if len(self.thresholds) != 2 or any(a >= b for a, b in pairwise(given)):
            rule = "two numbers between 0 and 1, the foreground's the higher and first"
            raise ValueError(f"thresholds must be {rule}, got {self.thresholds}")
        number(self, "power", "beta", positive=True)
        number(self, "last_crf")
        whole(self, "steps")
        whole(self, "radius", least=2)
        fraction(self, "background")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive, at least one, got {self.scales}")

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds, background, confident, edges, labels``, and the last ``scores``.

        With a last CRF, whose labels no threshold cuts, those are called ``walked``.
        """
        obtain, background = workshop.obtain, self._background(workshop)
        scenes, train = workshop.scenes(split), workshop.scenes("train")
        inputs = {"seeds": workshop.seeds("train"), "background": background}
        confident = obtain(label_seeds, LabelMakerSpec(train, ConfidentLabels()), inputs)
        edges = obtain(train_edges, self._training(workshop), {"labels": confident})
        made = {"seeds": workshop.seeds(split), "background": background}
        made |= {"confident": confident, "edges": edges}

        def walked(of: str) -> Artefact:
            inputs = {"seeds": workshop.seeds(of), "edges": edges}
            return obtain(walk_edges, self._walk(workshop, of), inputs)

        fixed = workshop.numbers.powers is not None
        tried = (self.background,) if fixed else workshop.thresholds
        chosen_on = {"seeds": walked(split if fixed else "train")}
        cut = obtain(choose_background, BackgroundSpec(tried), chosen_on)
        scores = walked(split)
        if self.last_crf:
            inputs = {"seeds": scores, "background": cut}
            maker = LabelMakerSpec(scenes, HardCrf(self.last_crf))
            return made | {"walked": scores, "labels": obtain(label_seeds, maker, inputs)}
        inputs = {"scores": scores, "background": cut}
        labels = obtain(write_labels, LabelSpec("seeds.npz", by_threshold=True), inputs)
        return made | {"scores": scores, "labels": labels}

    def _background(self, workshop: Workshop) -> Artefact:
        """Powers that cross at both thresholds, chosen on the training scenes."""
        obtain, inputs = workshop.obtain, {"seeds": workshop.seeds("train")}
        high, low = self.thresholds
        logits = [math.log(t / (1 - t)) for t in (low, high)]
        if workshop.numbers.powers is not None:
            middle = 1 / (1 + math.exp(-sum(logits) / 2))
            powers = tuple(power_at(t) for t in (high, middle, low))
            return obtain(choose_background, BackgroundSpec(workshop.thresholds, powers), inputs)
        background = obtain(choose_background, BackgroundSpec(workshop.thresholds), inputs)
        spread = SpreadSpec((logits[1] - logits[0]) / 2)
        return obtain(spread_powers, spread, {"background": background})

    def _training(self, workshop: Workshop) -> EdgeSpec:
        numbers, photos = workshop.numbers, workshop.numbers.view is not None
        return EdgeSpec(
            scenes=workshop.scenes("train"),
            backbone=LevelsSpec(workshop.backbone),
            loss=self.loss,
            schedule=self.schedule if photos else numbers.schedule,
            seed=workshop.repeat,
            view=self.view if photos else None,
            compute=workshop.compute,
        )

    def _walk(self, workshop: Workshop, split: str) -> EdgeWalkSpec:
        """Images are padded to the side of the crops that the edges were trained on."""
        names = ("power", "beta", "steps", "radius", "suppress_edges", "joint_maximum", "scales")
        return EdgeWalkSpec(
            workshop.scenes(split),
            least=self.view.crop if workshop.numbers.view is not None else 0,
            **{name: getattr(self, name) for name in names},
        )

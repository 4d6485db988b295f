"""The parts of a profile: phases of its trainings, refinement, segmentation, scenes.

Frozen dataclasses that check themselves; their values stand in `profiles`.
"""

import math
from dataclasses import dataclass, fields, replace
from itertools import pairwise, product
from typing import Any

from aeft_lib.data.scene import SceneSet
from aeft_lib.data.views import ViewSpec
from aeft_lib.engine.device import INFERENCE_PRECISIONS, inference_precision
from aeft_lib.engine.fields import number, whole
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import PLAIN, Compute
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.paper.gpp import scaled_levels

SCENE_SET = ("split", "count", "size", "seed")  # fields of controlled collages that are no knobs
# Quirks of the reference that live in its optimiser; those in its loss: `triplet.LOSS_QUIRKS`.
OPTIMISER_QUIRKS = ("sgd_momentum", "schedule_length", "head_lr")
WEIGHT_DECAY = 5e-4  # the paper's; the reference passes it as SGD's momentum too


@dataclass(frozen=True)
class SecondPhase:
    """The steps after a warm start: SGD, as in the paper.

    epochs, steps_per_epoch: an epoch is just the grain at which progress is measured.
    batch_size: of triplets; an anchor finds its negative among them.
    rate: learning rate without momentum; with momentum 0.9 a tenth of it goes as far.
    loss_scale: what the paper's weights of attract and repel are multiplied by, where there are
        fewer steps for them to act in.
    decay_from: steps before this phase, where both phases share one poly schedule; 0: its own.
    decay_too_long: length of the schedule with the quirk `schedule_length`; 0: four times too long.
    quirks: of the reference's optimiser.  sgd_momentum: weight decay passed as momentum.
        head_lr: new layers at the backbone's rate instead of ten times it.  schedule_length: a poly
        schedule four times too long, as if batches were still the first phase's (8 against 32).
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    rate: float
    loss_scale: float = 1.0
    decay_from: int = 0
    decay_too_long: int = 0
    quirks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.quirks) - set(OPTIMISER_QUIRKS)):
            raise ValueError(f"unknown quirks {unknown}; there are {', '.join(OPTIMISER_QUIRKS)}")

    def schedule(self) -> Schedule:
        """The schedule with these quirks; without any it is the corrected one."""
        momentum = WEIGHT_DECAY if "sgd_momentum" in self.quirks else 0.9
        rate = self.rate if "sgd_momentum" in self.quirks else self.rate / 10
        own = self.epochs * self.steps_per_epoch
        too_long = self.decay_too_long or 4 * own
        together = self.decay_from + own if self.decay_from else 0
        return Schedule(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=rate,
            head_lr=rate if "head_lr" in self.quirks else 10 * rate,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=0,
            optimiser="sgd",
            momentum=momentum,
            decay_steps=too_long if "schedule_length" in self.quirks else together,
            steps_per_epoch=self.steps_per_epoch,
            decay_from=self.decay_from,
        )


@dataclass(frozen=True)
class Refinement:
    """From seeds to pseudo-labels; defaults are the reference's.

    schedule: of AffinityNet.
    powers: of the background (low, middle, high); None: by the rule of `refinement.background`.
    beta, steps: of the random walk.  crf_iterations: of the CRF on seeds.
    last_crf_iterations: of the one after the walk.
    view: random crops that AffinityNet is trained on; None: whole scenes.
    """

    schedule: Schedule
    powers: tuple[float, float, float] | None = None
    beta: float = 8
    steps: int = 64
    crf_iterations: int = 10
    last_crf_iterations: int = 1
    view: ViewSpec | None = None

    def __post_init__(self) -> None:
        if self.powers is not None:
            low, middle, high = self.powers
            if not 0 < low <= middle <= high < math.inf:
                raise ValueError(
                    "background powers must be positive and increase from low to high, "
                    f"got {self.powers}"
                )
        number(self, "beta", positive=True)
        whole(self, "steps", "crf_iterations", "last_crf_iterations")


@dataclass(frozen=True)
class Segmentation:
    """The last network.

    scales: of its test passes, each plain and mirrored.  hidden: channels of its head (512).
    crop: side of a training view of a photo; 0 where scenes are of one size.
    """

    schedule: Schedule
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    crf_iterations: int = 10
    hidden: int = 512
    crop: int = 0

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"test scales must be positive, and at least one, got {self.scales}")


@dataclass(frozen=True)
class Condition:
    """One level of the controlled collages, and what of `ControlledTraining` is other for it.

    knobs: (name, value) of those that are turned, see `data.controlled`; none is the base level.
    epochs, size: None as the profile has them.
    """

    knobs: tuple[tuple[str, float], ...] = ()
    epochs: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        whole(self, *(n for n in ("epochs", "size") if getattr(self, n) is not None), least=1)


@dataclass(frozen=True)
class ControlledTraining:
    """Trainings on controlled collages: scene sets at the base level, schedule, trained stages."""

    train: SceneSet
    val: SceneSet
    schedule: Schedule
    trained_stages: int


@dataclass(frozen=True)
class Profile:
    """One scale of the same experiments.

    train, val: scene sets; classifiers see the tags of `train`; seeds and segmentation are scored
        on `val` (unseen scenes).  scored: scenes that seeds are scored on where that is not `val`.
    backbone: of all networks.  schedule: of classifiers.
    erasing: the second phase, in which a trained GPP classifier is trained further.
    refinement, segmentation: the numbers of the second half, see there.
    seed_scales: passes of the seed inference, each plain and mirrored.
    thresholds: background scores that are tried.
    repeats: how many a study runs unless told otherwise.
    long_from: from how many repeats on `aeft reproduce` runs the long studies too; below, notebooks
        read their committed tables.
    view: random views of photos that classifiers are trained on; None: whole scenes of one size,
        whose frozen features are cached once for all rows and repeats.
    controlled: trainings on controlled collages (`under`); None where scenes are photos.
    curve: at so many equal parts of a training on views the seeds are scored, for curves over steps
        and for the rule of `saturation`, which needs a multiple of 4; 0: at its end alone.
    compute: how steps are computed; erasing_compute: those of the second phase, where they need
        more memory.
    inference: precision in which networks are read, unless ``AEFT_PRECISION`` says otherwise:
        "fp32", "bf16", or "auto", what the machine has (`device.inference_precision`).
    segmenter_inference: the same of segmentation networks; in bf16 their label maps lose more than
        0.11 points of mIoU (``aeft bench precision``).
    """

    name: str
    train: SceneSet
    val: SceneSet
    backbone: BackboneSpec
    schedule: Schedule
    erasing: SecondPhase
    refinement: Refinement
    segmentation: Segmentation
    seed_scales: tuple[float, ...]
    thresholds: tuple[float, ...]
    repeats: int
    long_from: int = 1
    view: ViewSpec | None = None
    compute: Compute = PLAIN
    erasing_compute: Compute | None = None
    inference: str = "auto"
    segmenter_inference: str = "fp32"
    scored: SceneSet | None = None
    controlled: ControlledTraining | None = None
    curve: int = 0

    def __post_init__(self) -> None:
        if self.curve and (self.cached or self.curve < 0 or self.curve % 4):
            problem = f"curve must be a multiple of 4, and needs a view, got {self.curve}"
            raise self._error(problem)
        if self.cached and not (self.train.size and self.val.size):
            raise self._error("without random views all scenes must be of one size")
        if 1.0 not in self.seed_scales:
            scales = self.seed_scales
            raise self._error(f"seed_scales {scales} must contain 1.0, where tags are scored")
        if any(a >= b for a, b in pairwise((0, *self.thresholds, 1))):
            raise self._error(f"thresholds must increase between 0 and 1, got {self.thresholds}")
        count, steps = self.train.count, self.erasing.steps_per_epoch
        for phase in self.phases if count else ():
            if phase.batch_size > count:
                raise self._error(f"{count} scenes cannot fill a batch of {phase.batch_size}")
        if count and steps > count // self.erasing.batch_size:
            raise self._error(
                f"{count} scenes do not hold {steps} batches of {self.erasing.batch_size}, "
                "the steps of an epoch of the second phase"
            )

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"profile {self.name}: {problem}")

    @property
    def phases(self) -> tuple[Schedule | SecondPhase, ...]:
        """All trainings: classifier, second phase, AffinityNet, segmentation network."""
        later = (self.refinement.schedule, self.segmentation.schedule)
        return (self.schedule, self.erasing, *later)

    @property
    def cached(self) -> bool:
        """Whether classifiers read cached features of whole scenes, not random views of photos."""
        return self.view is None

    @property
    def precision(self) -> str:
        """In which networks are read on this machine.  Raises ValueError for an unknown one."""
        return inference_precision(self.inference)

    @property
    def segmenter_precision(self) -> str:
        """In which segmentation networks are read on this machine.  Raises as `precision`."""
        return inference_precision(self.segmenter_inference)

    @property
    def on_other_machines(self) -> tuple["Profile", ...]:
        """The profile as machines have it that read networks in other precisions than this one."""
        if self.inference != "auto":
            return ()
        names = ("inference", "segmenter_inference")
        here = (self.precision, self.segmenter_precision)
        pairs = [pair for pair in product(INFERENCE_PRECISIONS, repeat=2) if pair != here]
        return tuple(replace(self, **dict(zip(names, pair, strict=True))) for pair in pairs)

    @property
    def map_side(self) -> int:
        """Cells along one side of the CAM of a training view."""
        return (self.view.crop if self.view else self.train.size) // self.backbone.stride

    @property
    def levels(self) -> tuple[int, ...]:
        """The counterparts of the paper's 2, 4, 8, 16 bins on this map."""
        return scaled_levels(self.map_side)

    @property
    def num_classes(self) -> int:
        """K, without background; raises ValueError where the data is missing."""
        return len(self.train.open().classes)

    def scenes(self, split: str) -> SceneSet:
        """The scene set of "train", "val", or "scored", the one that seeds are scored on."""
        sets = {"train": self.train, "val": self.val, "scored": self.scored or self.val}
        return sets[split]

    def scaled(self, scale: float) -> "Profile":
        """The same profile on scenes whose side is `scale` times as long."""
        if not self.cached:
            raise self._error("its scenes have sizes of their own: other maps need whole scenes")
        resized = {n: getattr(self, n) for n in ("train", "val")}
        resized = {n: replace(s, size=round(s.size * scale)) for n, s in resized.items()}
        return replace(self, **resized)

    def under(self, condition: Condition, repeat: int) -> "Profile":
        """The same profile on controlled collages, which the repeat draws.

        So an interval over repeats covers the draw of scenes too.
        Raises ValueError where the profile's scenes are photos, or a knob cannot be so.
        """
        if self.controlled is None:
            raise self._error("it has no collages to turn knobs of: choose laptop or smoke")
        numbers, knobs = self.controlled, dict(condition.knobs)
        known = [f.name for f in fields(numbers.train) if f.name not in SCENE_SET]
        if unknown := sorted(set(knobs) - set(known)):
            raise ValueError(f"unknown knob {', '.join(unknown)}; there are {', '.join(known)}")
        changes = {"seed": repeat, "size": condition.size or numbers.train.size} | knobs
        epochs = condition.epochs or numbers.schedule.epochs
        return replace(
            self,
            train=replace(numbers.train, **changes),
            val=replace(numbers.val, **changes),
            backbone=replace(self.backbone, trained_stages=numbers.trained_stages),
            schedule=replace(numbers.schedule, epochs=epochs),
            seed_scales=(1.0,),
        )


@dataclass(frozen=True)
class Setting:
    """A row's changes of its profile.

    condition: controlled collages in place of the profile's scenes.
    scale: of its scenes against the profile's, above 1: the same scenes on a finer map.
    trained_stages: of the backbone; None as the profile has it.
    phase: (field, value) of the second phase.
    longer, second_longer: so many times the profile's epochs of the first and the second phase.
    """

    condition: Condition | None = None
    scale: float = 1.0
    trained_stages: int | None = None
    phase: tuple[tuple[str, Any], ...] = ()
    longer: int = 1
    second_longer: int = 1

    def applied(self, profile: Profile, repeat: int) -> Profile:
        """The profile of a row with this setting.  Raises ValueError where it has no such thing."""
        if self.condition:
            profile = profile.under(self.condition, repeat)
        if self.scale != 1:
            profile = profile.scaled(self.scale)
        if self.trained_stages is not None:
            backbone = profile.backbone
            if not hasattr(backbone, "trained_stages"):
                kind = type(backbone).__name__
                raise ValueError(f"profile {profile.name}: {kind} has no trained_stages to set")
            backbone = replace(backbone, trained_stages=self.trained_stages)
            profile = replace(profile, backbone=backbone)
        if self.longer == 1:
            return profile
        epochs = self.longer * profile.schedule.epochs
        return replace(profile, schedule=replace(profile.schedule, epochs=epochs))

    def second_phase(self, phase: SecondPhase) -> SecondPhase:
        """The profile's second phase with this setting's fields."""
        phase = replace(phase, epochs=self.second_longer * phase.epochs)
        return replace(phase, **dict(self.phase))


AS_PROFILED = Setting()  # nothing is other

"""``aeft explain``: the artefacts of a study on a profile, those in the store, the others' cost.

Nothing is computed.  Work and memory are counted, not guessed: operations and the tensors that
autograd keeps, on the networks themselves, with tensors without contents.  Hours are that work at
a stated rate.  A training step is three forward passes (four with checkpointing, one more in
parts), and twice that with a masked image, or as often as its method says; a frozen judge is a view
more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aeft_lib import paths
from aeft_lib.data import coco, voc
from aeft_lib.data.coco import CocoSpec
from aeft_lib.data.scene import SceneSet
from aeft_lib.data.voc import VocSpec
from aeft_lib.engine.step import PLAIN, PRECISIONS, Compute
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.gpp import GlobalAveragePooling
from aeft_lib.parts.merge_masks import MergeSpec
from aeft_lib.rivals import icd, rrm
from aeft_lib.rivals.advcam import AdvCam
from aeft_lib.stages import store
from aeft_lib.stages.cache_features import FeatureSpec
from aeft_lib.stages.infer_seeds import SeedSpec
from aeft_lib.stages.multi_crop import MultiCrop, windows
from aeft_lib.stages.predict_labels import PredictionSpec
from aeft_lib.stages.predict_logits import LogitSpec
from aeft_lib.stages.read_each import EachSpec
from aeft_lib.stages.train_affinity import AffinitySpec
from aeft_lib.stages.train_classifier import JUDGE, ClassifierSpec
from aeft_lib.stages.train_composed import ComposedSpec
from aeft_lib.stages.train_edges import EdgeSpec
from aeft_lib.stages.train_on_views import ViewsSpec
from aeft_lib.stages.train_segmenter import SegmenterSpec
from aeft_lib.stages.walk_edges import EdgeWalkSpec
from aeft_lib.studies.pipeline import artefacts
from aeft_lib.studies.rows import Row, Study
from aeft_lib.studies.settings import Profile

COCO_CLASSES = 80
PHOTO = (375, 500)  # VOC's usual size, where scenes have their own
# Of a GPU that is kept busy: an A100 in bf16 reaches about this on such convolutions; not measured.
TFLOPS = 60.0
# Of a core that other jobs share caches with: 3.8 images of a training of EfficientNet-Lite0 (five
# stages, 256 px, new collages) a second of its time were measured; an idle core has more, and
# ResNet38d several times as much.
CORE_GFLOPS = 25.0
CORE = f"at {CORE_GFLOPS:.0f} GFLOP/s a core, about what EfficientNet-Lite0 gets on a busy machine"
MEMORIES = (4, 8, 12, 24)  # of GPUs, in GB, that `choices` speaks of
TAGS_OF = 100  # scenes whose tags are counted; a set that is not there has one tag a scene
SHARE = 0.75  # of a device's memory that what is counted may take
# What reads a whole image in one pass, not mirrored.
READ_ONCE = icd.ReadSpec | rrm.ReadSpec | MergeSpec


@dataclass(frozen=True)
class PublishedSet:
    """A scene set that is not there yet, at its published size: enough to lay a study out.

    It stands in for a `SceneSet` and is its own `Scenes`, without any image.
    """

    split: str
    count: int
    size: int
    classes: tuple[str, ...]
    fingerprint: str = ""
    truth: str = ""

    def open(self) -> "PublishedSet":
        """Itself."""
        return self

    def __len__(self) -> int:
        return self.count


def with_data(profile: Profile) -> tuple[Profile, str]:
    """The profile with published sizes in place of data that is not there, and a line about it.

    Raises ValueError where data is missing whose size nobody published.
    """
    changes = {}
    for name in ("train", "val", "scored"):
        if spec := getattr(profile, name):
            try:
                spec.open()
            except ValueError:
                changes[name] = _published(spec)
                if changes[name] is None:
                    raise
    if not changes:
        return profile, ""
    sizes = ", ".join(f"{item.split} {item.count:,}" for item in dict.fromkeys(changes.values()))
    note = f"the data is not here: counted with published sizes ({sizes} images)"
    return replace(profile, **changes), note


def _published(spec: SceneSet) -> PublishedSet | None:
    if isinstance(spec, VocSpec):
        count, classes = voc.SPLITS[spec.split], spec.classes
    elif isinstance(spec, CocoSpec):
        count, classes = coco.SPLITS[spec.split], tuple(f"class {i}" for i in range(COCO_CLASSES))
    else:
        return None
    return PublishedSet(spec.split, spec.count or count, spec.size, classes)


@dataclass(frozen=True)
class Planned:
    """One artefact of the plan.

    pflop: 10^15 operations.  memory: bytes of weights, gradients, momentum and activations, on each
    GPU of one.  disk: bytes of weights, or of cached features.  None: not a network's, or unknown.
    """

    stage: str
    key: str
    there: bool
    images: int
    pflop: float | None = None
    memory: int | None = None
    disk: int | None = None


def plan(profile: Profile, rows: Sequence[Row], repeats: Sequence[int]) -> list[Planned]:
    """The artefacts that rows and repeats need, each once, in the order they would be made.

    Raises ValueError where the profile's data is missing.
    """
    return merged(needs(profile, rows, repeats))


def merged(needed: Mapping[str, Sequence[Planned]]) -> list[Planned]:
    """The artefacts of all rows of `needs`, each once."""
    return list({item.key: item for of_row in needed.values() for item in of_row}.values())


def needs(
    profile: Profile, rows: Sequence[Row], repeats: Sequence[int]
) -> dict[str, list[Planned]]:
    """The artefacts that each row needs, by its name; what rows share stands in each of them.

    Errors as `plan`.
    """
    planned: dict[str, Planned] = {}
    asked: dict[str, dict[str, Planned]] = {row.name: {} for row in rows}

    def obtain(
        row: Row, stage: store.Stage, spec: Any, inputs: store.Inputs | None = None
    ) -> store.Artefact:
        key, name = store.key_for(stage, spec, inputs), stage.__name__
        there = store.find(name, key, spec)
        if key not in planned:
            cost = _cost(profile, spec, frozenset(inputs or ()))
            planned[key] = Planned(name, key, there is not None, *cost)
        asked[row.name][key] = planned[key]
        empty = {"summary": {}, "spec": {}}
        return there or store.Artefact(name, key, paths.runs() / name / key, empty, spec)

    for repeat in repeats:
        for row in rows:
            artefacts(profile, row, repeat, partial(obtain, row))
    return {name: list(of_row.values()) for name, of_row in asked.items()}


def table(planned: Sequence[Planned]) -> pd.DataFrame:
    """One line a stage: artefacts, how many are there; of the missing images, PFLOP, hours, GB."""
    lines = []
    for stage in dict.fromkeys(item.stage for item in planned):
        of_stage = [item for item in planned if item.stage == stage]
        missing = [item for item in of_stage if not item.there]
        lines.append(
            {
                "stage": stage,
                "artefacts": len(of_stage),
                "there": len(of_stage) - len(missing),
                "images": sum(item.images for item in missing),
                **_totals(missing),
            }
        )
    return pd.DataFrame(lines)


def row_table(needed: Mapping[str, Sequence[Planned]]) -> pd.DataFrame:
    """One line a row: its trainings, and what all that it needs takes, shared or not, there or not.

    needed: of `needs`.
    """
    lines = [
        {
            "row": name,
            "trainings": sum(item.stage.startswith("train_") for item in items),
            **_totals(items),
        }
        for name, items in needed.items()
    ]
    return pd.DataFrame(lines)


def _totals(items: Sequence[Planned]) -> dict[str, float | None]:
    """PFLOP, hours, GB of artefacts together; None where nothing is known."""
    work, memory, disk = (
        [value for item in items if (value := getattr(item, name)) is not None]
        for name in ("pflop", "memory", "disk")
    )
    return {
        "PFLOP": sum(work) if work else None,
        "GPU hours": sum(work) * 1e3 / TFLOPS / 3600 if work else None,
        "GB on a GPU": max(memory) / 1e9 if memory else None,
        "GB on disk": sum(disk) / 1e9 if disk else None,
    }


def core_hours(profile: Profile, planned: Sequence[Planned]) -> float:
    """Hours of one core for what is missing; 0 for a backbone whose rate was not measured."""
    if not isinstance(profile.backbone, EfficientNetLiteSpec):
        return 0.0
    work = sum(item.pflop or 0.0 for item in planned if not item.there)
    return work * 1e6 / CORE_GFLOPS / 3600


def budget(profile: Profile, chosen: Sequence[tuple[Study, range]]) -> pd.DataFrame:
    """A line a study and their sum: rows, repeats, trainings that are missing, hours.

    chosen: studies, each with its repeats.  What two of them share counts for the first.
    """
    lines, seen = [], set()
    for study, repeats in chosen:
        planned = [item for item in plan(profile, study.rows, repeats) if item.key not in seen]
        seen |= {item.key for item in planned}
        missing = [item for item in planned if not item.there]
        work = sum(item.pflop or 0.0 for item in missing)
        lines.append(
            {
                "study": study.name,
                "rows": len(study.rows),
                "repeats": len(repeats),
                "trainings": sum(item.stage.startswith("train_") for item in missing),
                "core hours": core_hours(profile, missing) or None,
                "GPU hours": work * 1e3 / TFLOPS / 3600,
            }
        )
    table = pd.DataFrame(lines)
    total = table[["trainings", "core hours", "GPU hours"]].sum().to_dict() | {"study": "together"}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


class Forward(NamedTuple):
    """One image's way through backbone and CAM head.

    flops: operations.  saved: bytes kept for the backward pass.  features: bytes out of the trunk.
    parameters, trained: numbers of the network, and those that are trained.
    """

    flops: int
    saved: int
    features: int
    parameters: int
    trained: int


class Load(NamedTuple):
    """What a step takes through the network: a batch, views of each image, their size (H, W)."""

    batch: int
    views: int
    size: tuple[int, int]


@lru_cache(maxsize=32)
def forward(
    backbone: BackboneSpec, size: tuple[int, int], compute: Compute = PLAIN, together: int = 1
) -> Forward:
    """Count one image (H, W); a multiply-add is two operations.  No weights are needed.

    together: images of one pass; ``saved`` is of all, since folded weights are kept but once.
    """
    with torch.device("meta"):
        bare = replace(backbone, weights="none").build()
        bare.checkpointing = compute.checkpointing
        pooling = GlobalAveragePooling()
        network = CamClassifier(backbone=bare, pooling=pooling, num_classes=20).train()
        network = network.to(PRECISIONS[compute.precision] or torch.float32)
        image = torch.empty(1, 3, *size, dtype=next(network.parameters()).dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = bare.trunk(image)
            network.cam(features)
        batch = features.expand(together, -1, -1, -1).contiguous()
        saved = saved_bytes(lambda: network.from_trunk(batch).logits, network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in network.parameters())
    return Forward(counter.get_total_flops(), saved, 2 * features.numel(), parameters, trained)


def saved_bytes(run: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `run`, without the network's tensors."""
    own = {id(t) for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            kept[id(base)] = base
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(t.numel() * t.element_size() for t in kept.values())


def _cost(
    profile: Profile, spec: Any, inputs: frozenset[str]
) -> tuple[int, float | None, int | None, int | None]:
    """Images that a stage takes through a network, the PFLOP of that, its memory and its disk.

    inputs: their names; cached features and stored logits spare the network a pass.
    """
    cached = bool({"features", "logits"} & inputs)
    scenes = getattr(spec, "scenes", None)
    if scenes is None:
        return 0, None, None, None
    count = len(scenes.open())
    whole = (scenes.size, scenes.size) if scenes.size else PHOTO
    if isinstance(spec, ClassifierSpec | ViewsSpec | AffinitySpec | SegmenterSpec):
        judges = sum(name.startswith(JUDGE) for name in inputs)
        return _training(profile, spec, count, _view(spec) or whole, judges)
    if isinstance(spec, EdgeSpec | EdgeWalkSpec):
        return _edges(profile, spec, count, _view(spec) or whole)
    if isinstance(spec, EachSpec):
        image = forward(profile.backbone, whole)
        return count, count * _states(spec) * image.flops / 1e15, None, None
    inferred = FeatureSpec | SeedSpec | LogitSpec | PredictionSpec | READ_ONCE
    if not isinstance(spec, inferred) or (cached and isinstance(spec, SeedSpec | PredictionSpec)):
        return count, None, None, None
    image, passes = forward(profile.backbone, whole), _passes(spec, whole)
    disk = round(count * passes * image.features) if isinstance(spec, FeatureSpec) else None
    return count, count * passes * image.flops / 1e15, None, disk


def _edges(
    profile: Profile, spec: EdgeSpec | EdgeWalkSpec, count: int, size: tuple[int, int]
) -> tuple[int, float, None, None]:
    """Forward passes through the frozen backbone; the head on its maps is not counted."""
    if isinstance(spec, EdgeSpec):
        steps = spec.schedule.epochs * spec.schedule.epoch_steps(count)
        images = passes = steps * spec.schedule.batch_size
    else:
        size = tuple(max(spec.least, side) for side in size)
        images, passes = count, 2 * count * sum(scale**2 for scale in spec.scales)
    return images, passes * forward(profile.backbone, size).flops / 1e15, None, None


def _states(spec: EachSpec) -> float:
    """Passes of an image in which it is optimised; a gradient is three, as of a training step.

    AdvCAM's states are of an image, a class and a scale, of RIB's each has all scales and other
    images; both are mirrored too.  A bound from above for RIB, whose images may stop early; what
    its last block alone takes is not counted.
    """
    reader, scenes = spec.reader, spec.scenes.open()
    if isinstance(reader, AdvCam):
        few = range(min(len(scenes), TAGS_OF)) if hasattr(scenes, "tags") else ()
        classes = np.mean([np.sum(scenes.tags(index)) for index in few]) if few else 1.0
        states = sum(scale**2 * reader.steps_at(scale) for scale in reader.scales)
        return 6 * float(classes) * states
    pair = 2 * sum(scale**2 for scale in reader.scales)
    return 3 * reader.steps * (pair + reader.others) if reader.adapts == "trained" else pair


def _passes(spec: Any, size: tuple[int, int]) -> float:
    """Passes of a whole image (H, W), by pixels, in which it is read; most mirror each too."""
    if isinstance(spec, READ_ONCE):
        return 1.0
    reader = getattr(spec, "reader", None)
    if isinstance(reader, MultiCrop):
        crop = reader.crop or round(0.9 * max(size))
        numbers = {"crop": crop, "stride": reader.stride or round(0.6 * max(size))}
        count = sum(len(windows(size, scale, **numbers)) for scale in reader.scales)
        return 1 + 2 * count * crop**2 / (size[0] * size[1])
    scales = getattr(spec, "scales", None) or getattr(reader, "scales", (1.0,))
    return 2 * sum(scale**2 for scale in scales)


def _training(
    profile: Profile, spec: Any, count: int, size: tuple[int, int], judges: int
) -> tuple[int, float, int, int]:
    """As `_cost`.  A judge takes an image forward and back to its pixels, and is never stepped."""
    schedule, compute = spec.schedule, spec.compute
    together = -(-schedule.batch_size // compute.parts)
    image = forward(profile.backbone, size, compute, together)
    trained = getattr(spec, "method", None) or getattr(spec, "segmenter", None)
    erased = getattr(trained, "attract", "off") != "off"
    # Views of a scene, by their pixels: the masked image too, or what a method says.
    views = getattr(trained, "passes", 2 if erased else 1) + judges
    composed = 2 if isinstance(spec, ComposedSpec) else 1  # a scene beside each
    images = composed * schedule.epochs * schedule.epoch_steps(count) * schedule.batch_size
    passes = views * (3 + compute.checkpointing + (compute.parts > 1))
    memory = _memory(image, views) + 4 * judges * image.parameters
    return images, images * passes * image.flops / 1e15, memory, 4 * image.trained


def cheapest(backbone: BackboneSpec, load: Load, compute: Compute, memory: float) -> Compute:
    """`compute` with the least work that fits into a device's memory, in bytes.

    Nothing is computed twice where that fits; else blocks are checkpointed; else the batch goes
    through in parts too, as few as fit.  Fits: at most `SHARE` of the memory by count, the rest is
    for convolutions' workspaces.  Raises ValueError where nothing fits.
    """
    plain = replace(compute, parts=1, checkpointing=False)
    tried = [
        plain,
        *(replace(plain, parts=n, checkpointing=True) for n in range(1, load.batch + 1)),
    ]
    for candidate in tried:
        together = -(-load.batch // candidate.parts)
        needed = _memory(forward(backbone, load.size, candidate, together), load.views)
        if needed <= SHARE * memory:
            return candidate
    least = needed / SHARE / 1e9
    raise ValueError(f"{memory / 1e9:.3g} GB hold no step, one image at a time needs {least:.1f}")


def loads(profile: Profile) -> dict[str, tuple[Load, Compute]]:
    """The trainings of a profile on random views: what a step takes, and how it is computed."""
    first, erasing = profile.compute, profile.erasing_compute or profile.compute
    crops = {
        "classifier": (profile.schedule.batch_size, 1, profile.view.crop, first),
        "second phase": (profile.erasing.batch_size, 2, profile.view.crop, erasing),
        "AffinityNet": (
            profile.refinement.schedule.batch_size,
            1,
            profile.refinement.view.crop,
            first,
        ),
        "segmenter": (
            profile.segmentation.schedule.batch_size,
            1,
            profile.segmentation.crop,
            first,
        ),
    }
    return {n: (Load(b, views, (side, side)), c) for n, (b, views, side, c) in crops.items()}


def choices(profile: Profile) -> pd.DataFrame:
    """What `cheapest` chooses for each training, one column a memory of `MEMORIES`."""
    lines = []
    for name, (load, compute) in loads(profile).items():
        line = {"training": name}
        for size in MEMORIES:
            chosen = cheapest(profile.backbone, load, compute, size * 1e9)
            words = ["checkpointing"] if chosen.checkpointing else []
            words += [f"parts={chosen.parts}"] if chosen.parts > 1 else []
            line[f"{size} GB"] = ", ".join(words) or "plain"
        lines.append(line)
    return pd.DataFrame(lines)


def _memory(counted: Forward, views: float) -> int:
    """Bytes of weights, gradients, momentum, and what a pass over each view keeps."""
    return round(4 * counted.parameters + 8 * counted.trained + views * counted.saved)


def _view(spec: Any) -> tuple[int, int] | None:
    view = getattr(spec, "view", None)
    side = view.crop if view else getattr(spec, "crop", 0)
    return (side, side) if side else None

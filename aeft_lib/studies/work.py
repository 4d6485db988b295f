"""What stages cost: operations and memory, counted on the networks with tensors without contents.

A training step is three forward passes (four with checkpointing, one more in parts), and twice that
with a masked image, or as often as its method says; a frozen judge is a view more.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aeft_lib.engine.step import PLAIN, PRECISIONS, Compute
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.gpp import GlobalAveragePooling
from aeft_lib.parts.merge_masks import MergeSpec
from aeft_lib.rivals import icd, rrm
from aeft_lib.rivals.advcam import AdvCam
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
from aeft_lib.studies.settings import Profile

PHOTO = (375, 500)  # VOC's usual size, where scenes have their own
MEMORIES = (4, 8, 12, 24)  # of GPUs, in GB, that `choices` speaks of
TAGS_OF = 100  # scenes whose tags are counted; a set that is not there has one tag a scene
SHARE = 0.75  # of a device's memory that what is counted may take
# What reads a whole image in one pass, not mirrored.
READ_ONCE = icd.ReadSpec | rrm.ReadSpec | MergeSpec


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


def cost(
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

"""``aeft explain``: what a study would run on a profile, what of it is there, and what the rest costs; nothing is computed.

Work and memory are counted, not guessed: operations and the tensors that autograd keeps, on the networks themselves, with
tensors that have no contents.  Hours are that work at a rate that is said.  A training step is three forward passes (four with
checkpointing, one more in parts), and twice that with a masked image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aeft_lib.engine.step import PLAIN, PRECISIONS, Compute
from aeft_lib.networks.registry import BackboneSpec, build_backbone
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.gpp import GlobalAveragePooling
from aeft_lib.stages import store
from aeft_lib.stages.cache_features import FeatureSpec
from aeft_lib.stages.infer_seeds import PhotoSeedSpec
from aeft_lib.stages.predict_labels import PredictionSpec
from aeft_lib.stages.train_affinity import AffinitySpec
from aeft_lib.stages.train_classifier import ClassifierSpec
from aeft_lib.stages.train_segmenter import SegmenterSpec
from aeft_lib.stages.train_triplet import TripletSpec
from aeft_lib.studies.rows import AnyRow
from aeft_lib.studies.settings import Profile

PHOTO = (375, 500)  # VOC's usual size, where scenes have their own
TFLOPS = 60.0  # of a GPU that is kept busy: an A100 in bf16 reaches about this on such convolutions; not measured here


@dataclass(frozen=True)
class Planned:
    """One artefact of the plan.

    pflop: 10^15 operations.  memory: bytes of weights, gradients, momentum and activations, on each GPU of one.  disk: bytes of
    weights, or of cached features.  None: not a network's, or not known before.
    """

    stage: str
    key: str
    there: bool
    images: int
    pflop: float | None = None
    memory: int | None = None
    disk: int | None = None


def plan(profile: Profile, rows: Sequence[AnyRow], seeds: Sequence[int]) -> list[Planned]:
    """The artefacts that rows and seeds need, each once, in the order they would be made.

    Raises ValueError where the profile's data is missing.
    """
    found: dict[str, Planned] = {}

    def obtain(stage: store.Stage, spec: Any, inputs: Mapping[str, store.Artefact] | None = None) -> store.Artefact:
        key = store.key_of(stage, spec, {name: artefact.key for name, artefact in (inputs or {}).items()})
        there = store.find(stage.__name__, key)
        if key not in found:
            found[key] = Planned(stage.__name__, key, there is not None, *_cost(profile, spec))
        return there or store.Artefact(
            stage.__name__, key, store.paths.runs() / stage.__name__ / key, {"summary": {}, "spec": {}}
        )

    for seed in seeds:
        for row in rows:
            row.artefacts(profile, seed, obtain)
    return list(found.values())


def table(planned: Sequence[Planned]) -> pd.DataFrame:
    """One line a stage: artefacts, how many are there, and of the missing ones images, PFLOP, hours at `TFLOPS`, GB."""
    lines = []
    for stage in dict.fromkeys(one.stage for one in planned):
        of_stage = [one for one in planned if one.stage == stage]
        missing = [one for one in of_stage if not one.there]
        work, memory, disk = ([getattr(one, name) for one in missing] for name in ("pflop", "memory", "disk"))
        work, memory, disk = ([value for value in values if value is not None] for values in (work, memory, disk))
        lines.append(
            {
                "stage": stage,
                "artefacts": len(of_stage),
                "there": len(of_stage) - len(missing),
                "images": sum(one.images for one in missing),
                "PFLOP": sum(work) if work else None,
                "GPU hours": sum(work) * 1e3 / TFLOPS / 3600 if work else None,
                "GB on a GPU": max(memory) / 1e9 if memory else None,
                "GB on disk": sum(disk) / 1e9 if disk else None,
            }
        )
    return pd.DataFrame(lines)


class Forward(NamedTuple):
    """One image's way through backbone and CAM head: operations, bytes kept for the backward pass, bytes out of the trunk.

    parameters, trained: how many numbers the network has, and how many of them are trained.
    """

    flops: int
    saved: int
    features: int
    parameters: int
    trained: int


@lru_cache(maxsize=32)
def forward(backbone: BackboneSpec, size: tuple[int, int], compute: Compute = PLAIN) -> Forward:
    """Count one image (H, W); a multiply-add is two operations.  Nothing is computed, and no weights are needed."""
    spec = BackboneSpec(backbone.name, backbone.trained_stages, backbone.output_stride, "none")
    with torch.device("meta"):
        bare = build_backbone(spec, checkpointing=compute.checkpointing)
        network = CamClassifier(backbone=bare, pooling=GlobalAveragePooling(), num_classes=20).train()
        network = network.to(PRECISIONS[compute.precision] or torch.float32)
        image = torch.empty(1, 3, *size, dtype=next(network.parameters()).dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = bare.trunk(image)
            network.cam(features)
        saved = saved_bytes(lambda: network.from_trunk(features).logits, network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in network.parameters())
    return Forward(counter.get_total_flops(), saved, 2 * features.numel(), parameters, trained)


def saved_bytes(run: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `run`, each tensor once, the network's own left out."""
    own = {id(t) for t in (*network.parameters(), *network.buffers())}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            seen[id(base)] = base
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(t.numel() * t.element_size() for t in seen.values())


def _cost(profile: Profile, spec: Any) -> tuple[int, float | None, int | None, int | None]:
    """Images that a stage of this spec takes through a network, the PFLOP of that, its memory and its disk."""
    scenes = getattr(spec, "scenes", None) or getattr(getattr(spec, "warm_start", None), "scenes", None)
    if scenes is None:
        return 0, None, None, None
    count = len(scenes.open())
    whole = (scenes.size, scenes.size) if scenes.size else PHOTO
    if isinstance(spec, ClassifierSpec | TripletSpec | AffinitySpec | SegmenterSpec):
        return _training(profile, spec, count, _view(spec) or whole)
    if not isinstance(spec, FeatureSpec | PhotoSeedSpec | PredictionSpec):
        return count, None, None, None
    one = forward(profile.backbone, whole)
    passes = 2 * sum(scale**2 for scale in spec.scales)
    disk = round(count * passes * one.features) if isinstance(spec, FeatureSpec) else None
    return count, count * passes * one.flops / 1e15, None, disk


def _training(profile: Profile, spec: Any, count: int, size: tuple[int, int]) -> tuple[int, float, int, int]:
    one, schedule, compute = forward(profile.backbone, size, spec.compute), spec.schedule, spec.compute
    looks = 2 if isinstance(spec, TripletSpec) and spec.triplet.attract != "off" else 1  # at the image, and at the masked one
    images = schedule.epochs * schedule.epoch_steps(count) * schedule.batch_size
    passes = looks * (3 + compute.checkpointing + (compute.parts > 1))
    together = -(-schedule.batch_size // compute.parts)
    memory = 4 * one.parameters + 8 * one.trained + looks * together * one.saved
    return images, images * passes * one.flops / 1e15, memory, 4 * one.trained


def _view(spec: Any) -> tuple[int, int] | None:
    view = getattr(spec, "view", None) or getattr(getattr(spec, "warm_start", None), "view", None)
    side = view.crop if view else getattr(spec, "crop", 0)
    return (side, side) if side else None

"""Stage `train_classifier`: image tags in, a network that can be read as CAMs out.  No mask is within its reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aeft_lib import losses, trained, training
from aeft_lib.backbones.efficientnet_lite import EfficientNetLite0
from aeft_lib.classifier import CamClassifier
from aeft_lib.devices import device
from aeft_lib.gpp import GlobalAveragePooling, PyramidPooling
from aeft_lib.runs import Artefact
from aeft_lib.stages import fitting
from aeft_lib.stages.features import load_features, scale_name


@dataclass(frozen=True)
class PoolingSpec:
    """fusion: "gap", or one of `gpp.FUSIONS` with its levels; prediction: one of `gpp.PREDICTIONS`."""

    fusion: str
    levels: tuple[int, ...] = ()
    prediction: str = "sign_preserving"


@dataclass(frozen=True)
class ClassifierSpec:
    """All that decides the weights, next to the features and tags it is trained on."""

    pooling: PoolingSpec
    num_classes: int
    trained_stages: int
    schedule: training.Schedule
    seed: int


def build_network(spec: ClassifierSpec) -> CamClassifier:
    """The network before training: ImageNet trunk, head and gates drawn from the spec's seed."""

    def make() -> CamClassifier:
        return CamClassifier(
            backbone=EfficientNetLite0(trained_stages=spec.trained_stages),
            pooling=build_pooling(spec.pooling, spec.num_classes),
            num_classes=spec.num_classes,
        )

    return trained.build(make, spec.seed)


def build_pooling(spec: PoolingSpec, num_classes: int) -> nn.Module:
    """GAP or a pyramid, as the spec says."""
    if spec.fusion == "gap":
        return GlobalAveragePooling()
    return PyramidPooling(num_classes=num_classes, levels=spec.levels, fusion=spec.fusion, prediction=spec.prediction)


def train_classifier(spec: ClassifierSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Train on ``inputs["features"]`` (scale 1); write ``weights.safetensors`` (trained tensors) and ``log.csv``."""
    cache = load_features(inputs["features"])
    features, tags = cache[scale_name(1.0)], cache["tags"]
    if tags.shape[1] != spec.num_classes:
        raise ValueError(f"the data has K={tags.shape[1]} classes, the network K={spec.num_classes}")
    network = build_network(spec).to(device())

    def batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mirrored = torch.randint(2, (len(indices),), generator=generator)
        picked = features[indices, mirrored].to(device(), non_blocking=True).float()
        return picked.contiguous(memory_format=torch.channels_last), tags[indices].to(device(), non_blocking=True)

    def terms(net: nn.Module, picked: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"classification": losses.classification(net.from_trunk(picked[0]).logits, picked[1])}

    course = {"n_samples": len(tags), "batch": batch, "losses": terms, "schedule": spec.schedule, "seed": spec.seed}
    last = fitting.fit(network, folder, **course)
    return {"loss": last["classification"], "device": last["device"]}


def load_network(artefact: Artefact, weights: str = fitting.WEIGHTS) -> CamClassifier:
    """The trained network of a `train_classifier` artefact, or of a stage that went on from one, in eval mode."""
    written = artefact.record["spec"].get("warm_start", artefact.record["spec"])
    pooling = written["pooling"] | {"levels": tuple(written["pooling"]["levels"])}
    spec = ClassifierSpec(**written | {"pooling": PoolingSpec(**pooling), "schedule": training.Schedule(**written["schedule"])})
    network = build_network(spec)
    trained.load_trained(network, artefact.folder / weights)
    return network.eval()

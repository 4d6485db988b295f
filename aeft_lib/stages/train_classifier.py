"""Stage `train_classifier`: image tags in, a network that can be read as CAMs out.  No mask is within its reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from aeft_lib.data.augment import ViewSpec
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.step import PLAIN, Compute
from aeft_lib.networks import state
from aeft_lib.networks.registry import BackboneSpec, build_backbone
from aeft_lib.paper import triplet
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.gpp import GlobalAveragePooling, PyramidPooling
from aeft_lib.stages import fitting
from aeft_lib.stages.sources import open_source
from aeft_lib.stages.store import Artefact


@dataclass(frozen=True)
class PoolingSpec:
    """fusion: "gap", or one of `gpp.FUSIONS` with its levels; prediction and gate_gain: see `gpp.PyramidPooling`."""

    fusion: str
    levels: tuple[int, ...] = ()
    prediction: str = "sign_preserving"
    gate_gain: float = 1.0


@dataclass(frozen=True)
class NetworkSpec:
    """What a classifier is made of; its random weights come from a seed."""

    pooling: PoolingSpec
    num_classes: int
    backbone: BackboneSpec


@dataclass(frozen=True)
class ClassifierSpec:
    """All that decides the weights.

    view: random views of the scenes; None: whole scenes, from ``inputs["features"]``.  data: fingerprint of the scenes.
    keep_epochs: write the weights of every epoch, for curves over time.
    """

    network: NetworkSpec
    scenes: SceneSet
    schedule: loop.Schedule
    seed: int
    data: str = ""
    view: ViewSpec | None = None
    compute: Compute = PLAIN
    keep_epochs: bool = False


def build_network(spec: NetworkSpec, seed: int, *, checkpointing: bool = False) -> CamClassifier:
    """The network before training: ImageNet backbone, head and gates drawn from the seed."""

    def make() -> CamClassifier:
        return CamClassifier(
            backbone=build_backbone(spec.backbone, checkpointing=checkpointing),
            pooling=build_pooling(spec.pooling, spec.num_classes),
            num_classes=spec.num_classes,
        )

    return state.build(make, seed)


def build_pooling(spec: PoolingSpec, num_classes: int) -> nn.Module:
    """GAP or a pyramid, as the spec says."""
    if spec.fusion == "gap":
        return GlobalAveragePooling()
    course = {"prediction": spec.prediction, "gate_gain": spec.gate_gain}
    return PyramidPooling(num_classes=num_classes, levels=spec.levels, fusion=spec.fusion, **course)


@ranks.collective
def train_classifier(spec: ClassifierSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Train on tags alone; write ``weights.safetensors`` (trained tensors), ``log.csv``; on demand ``epoch_1.safetensors``"""
    network = build_network(spec.network, spec.seed, checkpointing=spec.compute.checkpointing).to(device())
    course = (triplet.CLASSIFICATION, spec.schedule, spec.compute)
    last = train_on(network, spec, inputs, folder, *course, keep_epochs=spec.keep_epochs)
    return {"loss": last["classification"], "device": last["device"]}


def train_on(
    network: CamClassifier,
    spec: ClassifierSpec,
    inputs: Mapping[str, Artefact],
    folder: Path,
    loss: triplet.Triplet,
    schedule: loop.Schedule,
    compute: Compute,
    *,
    keep_epochs: bool = False,
) -> dict[str, float | str]:
    """Train a classifier on the scenes of its spec, in either phase; what is written and returned: `fitting.fit`."""

    def after_epoch(epoch: int) -> None:
        if keep_epochs and ranks.is_main():
            state.save_trained(network, folder / f"epoch_{epoch}.safetensors")

    pairs = loss.attract != "off" or loss.repel_weight > 0
    source = open_source(spec.scenes, spec.view, inputs, network.backbone.normalise, pairs=pairs)
    if source.tags.shape[1] != spec.network.num_classes:
        raise ValueError(f"the data has K={source.tags.shape[1]} classes, the network K={spec.network.num_classes}")
    course = {"schedule": schedule, "compute": compute, "seed": spec.seed, "objective": triplet.objective(loss)}
    return fitting.fit(network, folder, n_samples=len(source.tags), batch=source, after_epoch=after_epoch, **course)


def load_network(artefact: Artefact, weights: str = fitting.WEIGHTS) -> CamClassifier:
    """The trained network of a `train_classifier` artefact, or of a stage that went on from one, in eval mode."""
    spec = artefact.record["spec"].get("warm_start", artefact.record["spec"])
    written = spec["network"]
    pooling = PoolingSpec(**written["pooling"] | {"levels": tuple(written["pooling"]["levels"])})
    network = build_network(NetworkSpec(pooling, written["num_classes"], BackboneSpec(**written["backbone"])), spec["seed"])
    state.load_trained(network, artefact.folder / weights)
    return network.eval()

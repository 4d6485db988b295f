"""Small trained weights that come with the package: classifiers, AffinityNet, segmentation network.

They are the laptop's first repeat, made by `shipping`, ``aeft weights --write``.  A file
holds what training changed; frozen tensors come with the ImageNet weights.

Tensors that start from ImageNet are kept as their way from there, in int8 steps of each output
channel's longest way / 127; all others in half precision.  In half precision throughout the files
would be half as large again, in this form they stay under 20 MB.  The way is short, so that its
step errs by about as much as half precision does on the whole weight
(tests/studies/test_shipped.py).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from aeft_lib.networks import state
from aeft_lib.stages import store
from aeft_lib.stages.affinity_nets import build_affinity_net
from aeft_lib.stages.artefact import Artefact, Inputs, Stage
from aeft_lib.stages.cache_features import cache_features
from aeft_lib.stages.keys import decisive
from aeft_lib.stages.loading import WEIGHTS, build_network, build_segmenter
from aeft_lib.stages.predict_logits import normalised
from aeft_lib.stages.train_classifier import train_classifier
from aeft_lib.studies import pipeline
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

FOLDER = Path(__file__).with_name("weights")
MANIFEST = "manifest.json"
PROFILE, REPEAT = "laptop", 0
CLASSIFIERS = ("gap", "gated", "attract_soft_repel")
SEGMENTER, REFINED = "segment_aeft", "aeft_pseudo"  # of the last, AffinityNet is kept
ROWS = (*CLASSIFIERS, SEGMENTER, REFINED)  # in the order in which they have to fit
MOST_BYTES = 20_000_000  # of all files together
STEP = ".step"  # ends the name of a tensor's steps, one an output channel
PROBES = 4  # unseen scenes whose outputs stand in the manifest
FEATURES = 10  # of AffinityNet's that stand there
REMEDY = "write it anew: make weights"


@dataclass(frozen=True)
class ShippedSpec:
    """Weights of this file, for the network of this training."""

    training: Any
    sha256: str


def encoded(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors as they are kept; start: those of the untrained network, by name."""
    kept: dict[str, Tensor] = {}
    for name, tensor in trained.items():
        if not name.startswith("backbone."):
            kept[name] = tensor.half()
            continue
        way = tensor - start[name]
        step = way.abs().flatten(1).amax(dim=1).clamp(min=1e-12) / 127
        kept[name] = (way / _beside(step, way)).round().to(torch.int8)
        kept[name + STEP] = step
    return {name: tensor.contiguous() for name, tensor in kept.items()}


def decoded(kept: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `encoded`, in fp32."""
    tensors = {name: t for name, t in kept.items() if not name.endswith(STEP)}
    for name, tensor in tensors.items():
        tensors[name] = tensor.float()
        if tensor.dtype == torch.int8:
            tensors[name] = start[name] + tensor.float() * _beside(kept[name + STEP], tensor)
    return tensors


def _beside(step: Tensor, tensor: Tensor) -> Tensor:
    """A number an output channel, for the whole tensor (O, ...)."""
    return step.reshape(-1, *(1,) * (tensor.ndim - 1))


def manifest() -> dict[str, Any]:
    """What stands in the manifest: ``classes``, ``trained_on``, and ``networks`` by row."""
    return json.loads((FOLDER / MANIFEST).read_text(encoding="utf-8"))


def known() -> list[str]:
    """The rows whose networks come with the package."""
    return list(manifest()["networks"])


def entry(row: str) -> dict[str, Any]:
    """A network's part of the manifest.  Raises ValueError for a row without one."""
    networks = manifest()["networks"]
    if row not in networks:
        there = f"the package brings trained weights of {', '.join(networks)}, not of {row}"
        raise ValueError(f"{there}: train it, by `train = True` in a notebook or make reproduce")
    return networks[row]


def training(profile: Profile, row: Row) -> Any:
    """The spec of the training behind a row's network.

    Raises ValueError where it is not the one that the shipped weights are of.
    """
    spec = last_training(profile, row)
    if json.loads(json.dumps(decisive(spec))) != entry(row.name)["training"]:
        raise ValueError(f"the weights of {row.name} are of other settings or data: {REMEDY}")
    return spec


def last_training(profile: Profile, row: Row) -> Any:
    """The spec of a row's last training, from a pass through its stages that runs none."""
    specs: dict[str, Any] = {}

    def note(stage: Stage, spec: Any, inputs: Inputs | None = None) -> Artefact:
        specs[stage.__name__] = spec  # the last one stays: a warm start comes before
        return Artefact(stage.__name__, "", Path(), {}, spec)

    pipeline.products(profile, replace(row, keep_epochs=False), REPEAT, note)
    return specs[f"train_{product(row)}"]


def product(row: Row) -> str:
    """The network that is kept of a row: ``classifier``, ``affinity`` or ``segmenter``."""
    return "segmenter" if row.segmenter else "affinity" if row.refiner else "classifier"


def read(row: str, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors of a row's file, in fp32.  start: of the untrained network, by name.

    Raises ValueError, naming the file and the remedy, where it is missing or damaged.
    """
    known = entry(row)
    file = FOLDER / known["file"]
    if not file.is_file():
        raise ValueError(f"{file} is missing: {REMEDY}")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != known["sha256"]:
        raise ValueError(f"{file} is damaged, its sha256 is not the manifest's: {REMEDY}")
    try:
        return decoded(load(content), start)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file} does not fit its network ({error}): {REMEDY}") from error


def network(profile: Profile, row: Row) -> nn.Module:
    """A row's network with the shipped weights, in eval mode.

    Raises ValueError as `training` and `read` do.
    """
    built = untrained(training(profile, row))
    state.load_trained_state(built, read(row.name, built.state_dict()))
    return built.eval()


def untrained(spec: Any) -> nn.Module:
    """The network of a training's spec, before the training."""
    if hasattr(spec, "segmenter"):
        return build_segmenter(spec)
    return build_affinity_net(spec) if hasattr(spec, "radius") else build_network(spec)


def artefacts(profile: Profile, row: Row) -> pipeline.Artefacts:
    """What a row that ends in seeds makes with the shipped weights: as `pipeline.artefacts`.

    It trains nothing.  Its results have keys of their own and never stand in for trained ones.
    Raises ValueError for a row without shipped weights.
    """
    if row.segmenter or row.refiner:
        raise ValueError(f"row {row.name} needs trainings: set train = True, or make reproduce")
    specs: list[tuple[str, Any]] = []
    start: Row | None = row
    while start is not None:
        specs.append((start.name, training(profile, start)))
        start = start.starts_from

    def obtain(stage: Stage, spec: Any, inputs: Inputs | None = None) -> Artefact:
        if stage is cache_features and spec.scenes == profile.train:
            return Artefact(stage.__name__, "", Path(), {}, spec)  # nothing is trained on them
        if stage is not train_classifier:
            return store.obtain(stage, spec, inputs)
        name = next(name for name, known in specs if known == spec)
        files = store.obtain(unpack_weights, ShippedSpec(spec, entry(name)["sha256"]))
        return Artefact(stage.__name__, files.key, files.folder, files.record, spec)

    return pipeline.artefacts(profile, replace(row, keep_epochs=False), REPEAT, obtain)


def unpack_weights(
    spec: ShippedSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Stage: the shipped weights as a training would have left them."""
    row = next(name for name in known() if entry(name)["sha256"] == spec.sha256)
    tensors = read(row, untrained(spec.training).state_dict())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return {"tensors": len(tensors)}


def outputs(network: nn.Module, images: Sequence[Any]) -> Tensor:
    """What tells one network from another, (N, K) or (N, K + 1): see `answer`."""
    with torch.inference_mode():
        return answer(network, normalised(network, images))


def answer(network: nn.Module, pictures: Tensor) -> Tensor:
    """Of normalised pictures (N, 3, H, W): logits, mean coarse logits, or ten mean features."""
    if hasattr(network, "coarse"):
        return network.coarse(pictures).mean(dim=(2, 3))
    if hasattr(network, "f9"):
        return network(pictures)[:, :FEATURES].mean(dim=(2, 3))
    return network(pictures).logits


def probes(profile: Profile) -> list[Any]:
    """The images whose `outputs` stand in the manifest: the first unseen scenes."""
    scenes = profile.val.open()
    return [scenes.image(index) for index in range(PROBES)]

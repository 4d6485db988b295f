"""Small trained weights that come with the package: three classifiers, one segmentation network.

They are the laptop's first repeat, made by ``aeft weights --write`` (``make weights``).  A file
holds what training changed; frozen tensors come with the ImageNet weights.

Tensors that start from ImageNet are kept as their way from there, in int8 steps of each output
channel's longest way / 127; all others in half precision.  In half precision throughout the four
files would have 29 MB, in this form they have under 20.  The way is short, so that its step errs
by about as much as half precision does on the whole weight (tests/studies/test_shipped.py).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from aeft_lib import paths
from aeft_lib.networks import state
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.keys import decisive
from aeft_lib.stages.loading import WEIGHTS, build_network, build_segmenter, loaded
from aeft_lib.stages.predict_logits import normalised
from aeft_lib.studies import catalogue, pipeline, profiles, run
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

FOLDER = Path(__file__).with_name("weights")
MANIFEST = "manifest.json"
PROFILE, REPEAT = "laptop", 0
CLASSIFIERS, SEGMENTER = ("gap", "gated", "attract_soft_repel"), "segment_aeft"
ROWS = (*CLASSIFIERS, SEGMENTER)
STEP = ".step"  # ends the name of a tensor's steps, one an output channel
PROBES = 4  # unseen scenes whose outputs stand in the manifest
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
        there = f"the package brings trained weights of {', '.join(networks)}"
        raise ValueError(f"{there}, not of {row}: train it with {command(row)}")
    return networks[row]


def command(row: str) -> str:
    """The command that trains a row's first repeat."""
    study = catalogue.study_of(row).name
    return f"aeft run {study} --profile {PROFILE} --row {row} --repeat {REPEAT}"


def training(row: str) -> Any:
    """The spec of the training behind a row's network.

    Raises ValueError where it is not the one that the shipped weights are of.
    """
    profile, chosen = profiles.get(PROFILE), catalogue.row(row)
    spec = _training(profile, chosen)
    if json.loads(json.dumps(decisive(spec))) != entry(row)["training"]:
        raise ValueError(f"the weights of {row} are of other settings or data: {REMEDY}")
    return spec


def _training(profile: Profile, row: Row) -> Any:
    if row.segmenter:
        return pipeline.segmenter_spec(profile, row, REPEAT)
    return pipeline.classifier_spec(profile, replace(row, keep_epochs=False), REPEAT)


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


def network(row: str) -> nn.Module:
    """A row's network with the shipped weights, in eval mode.  Raises ValueError as `read` does."""
    built = _untrained(training(row))
    state.load_trained_state(built, read(row, built.state_dict()))
    return built.eval()


def _untrained(spec: Any) -> nn.Module:
    return build_segmenter(spec) if hasattr(spec, "segmenter") else build_network(spec)


def artefacts(row: Row) -> pipeline.Artefacts:
    """What a row that ends in seeds makes with the shipped weights: as `pipeline.artefacts`.

    It trains nothing.  Its results have keys of their own and never stand in for trained ones.
    Raises ValueError for a row without shipped weights.
    """
    if row.segmenter or row.refiner:
        raise ValueError(f"row {row.name} needs trainings: {command(row.name)}")
    spec, profile = training(row.name), profiles.get(PROFILE)
    files = store.obtain(unpack_weights, ShippedSpec(spec, entry(row.name)["sha256"]))
    classifier = Artefact("train_classifier", files.key, files.folder, files.record, spec)
    reader = row.reader.fitted(profile.seed_scales)
    seeds = pipeline.seeds(profile, reader, classifier, row.scored_on, store.obtain)
    made = {"classifier": classifier, "seeds": seeds}
    plain = replace(row, keep_epochs=False)
    return made | pipeline.measures(profile, plain, REPEAT, made, store.obtain)


def unpack_weights(
    spec: ShippedSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Stage: the shipped weights as a training would have left them."""
    row = next(name for name in known() if entry(name)["sha256"] == spec.sha256)
    tensors = read(row, _untrained(spec.training).state_dict())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return {"tensors": len(tensors)}


def outputs(network: nn.Module, images: Sequence[Any]) -> Tensor:
    """What tells one network from another, (N, K) or (N, K + 1): logits, or mean coarse logits."""
    with torch.inference_mode():
        pictures = normalised(network, images)
        if hasattr(network, "coarse"):
            return network.coarse(pictures).mean(dim=(2, 3))
        return network(pictures).logits


def probes() -> list[Any]:
    """The images whose `outputs` stand in the manifest: the first unseen scenes."""
    scenes = profiles.get(PROFILE).val.open()
    return [scenes.image(index) for index in range(PROBES)]


def write() -> list[str]:
    """Write the files and the manifest anew from the store; returns a line a network.

    A network that the store lacks stays as it is.  Raises ValueError where the store has none.
    """
    profile = profiles.get(PROFILE)
    scenes, entries, lines = profile.train.open(), {}, []
    for name in ROWS:
        try:
            made = pipeline.artefacts(profile, catalogue.row(name), REPEAT, store.lookup)
        except LookupError:
            lines.append(f"{name}: not in the store, left as it was; train it with {command(name)}")
            continue
        entries[name] = _write(name, profile, made)
        lines.append(f"{name}: {entries[name]['bytes'] / 1e6:.1f} MB")
    if not entries:
        raise ValueError(f"nothing to write; {'; '.join(lines)}")
    old = manifest()["networks"] if (FOLDER / MANIFEST).is_file() else {}
    networks = {name: (old | entries)[name] for name in ROWS if name in old | entries}
    content = {
        "made_by": "aeft weights --write",
        "profile": PROFILE,
        "repeat": REPEAT,
        "classes": list(scenes.classes),
        "trained_on": f"{len(scenes)} collages of {profile.train.size} px",
        "networks": networks,
    }
    paths.write_text(FOLDER / MANIFEST, json.dumps(content, indent=1) + "\n")
    return lines


def _write(name: str, profile: Profile, made: pipeline.Artefacts) -> dict[str, Any]:
    """Write one file; its part of the manifest."""
    row = catalogue.row(name)
    artefact = made["segmenter" if row.segmenter else "classifier"]
    trained = loaded(_untrained, artefact)
    start = _untrained(artefact.spec).state_dict()
    content = save(encoded(state.trained_state(trained), start))
    file = FOLDER / f"{name}.safetensors"
    with paths.replacing(file) as aside:
        aside.write_bytes(content)
    return {
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "command": command(name),
        "commit": store.commit(),
        "made_on": artefact.record["machine"],
        "key": artefact.key,
        "training": json.loads(json.dumps(decisive(_training(profile, row)))),
        "numbers": run.numbers(made),
        "outputs": outputs(trained, probes()).tolist(),
    }

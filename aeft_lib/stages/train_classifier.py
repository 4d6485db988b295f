"""Stage `train_classifier`: image tags in, a network that can be read as CAMs out.

The spec's method, the paper's or a rival's, has the network and the loss.  A warm start makes it a
second phase.  It reads no mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from aeft_lib.data.augment import ViewSpec, training_view
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device, placed
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import PLAIN, Compute, Objective
from aeft_lib.networks import state
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.loading import WEIGHTS, build_network, load_network
from aeft_lib.stages.method import Method
from aeft_lib.stages.sources import InMemory, OnDisk, load_images, load_tags

WARM_START = "warm_start"  # input: a trained classifier of the same network
JUDGE = "judge_"  # inputs: trained classifiers that the method asks, by name


@dataclass(frozen=True)
class ClassifierSpec:
    """All that decides the weights, besides a warm start and judges.

    num_classes: K, without background.  data: fingerprint of the scenes.
    view: random views of the scenes; None: whole scenes, from ``inputs["features"]``.
    keep_epochs: write the weights of every epoch, for curves over time.
    """

    method: Method
    num_classes: int
    backbone: BackboneSpec
    scenes: SceneSet
    schedule: Schedule
    seed: int
    data: str = ""
    view: ViewSpec | None = None
    compute: Compute = PLAIN
    keep_epochs: bool = False


@ranks.collective
def train_classifier(
    spec: ClassifierSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train on tags; write ``weights.safetensors`` (trained tensors), logs,
    ``epoch_1.safetensors``.

    inputs: ``features`` where there is no view; ``warm_start``; ``judge_<name>`` for each judge.
    """
    network = build_network(spec)
    if WARM_START in inputs:
        state.load_trained(network, inputs[WARM_START].folder / WEIGHTS)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    source = _source(spec, inputs, network.backbone.normalise)

    def after_epoch(epoch: int) -> None:
        if spec.keep_epochs and ranks.is_main():
            state.save_trained(network, folder / f"epoch_{epoch}.safetensors")

    rows = loop.fit(
        network,
        n_samples=source.count,
        batch=source,
        objective=Objective(partial(spec.method.measure, **_judges(inputs)), spec.method.combine),
        schedule=spec.schedule,
        seed=spec.seed,
        compute=spec.compute,
        after_epoch=after_epoch,
        **fitting.options(folder),
    )
    return fitting.finish(network, folder, rows)


def _judges(inputs: Mapping[str, Artefact]) -> dict[str, nn.Module]:
    """Trained classifiers by name, frozen: gradients reach the pixels that they are given."""
    names = [name for name in inputs if name.startswith(JUDGE)]
    named = {name.removeprefix(JUDGE): inputs[name] for name in names}
    return {
        name: load_network(artefact).requires_grad_(False).to(device())
        for name, artefact in named.items()
    }


def _source(
    spec: ClassifierSpec, inputs: Mapping[str, Artefact], normalise: fitting.Normalise
) -> InMemory | OnDisk:
    """Random views of photos where there is a view, else cached features of whole scenes."""
    needs, noise = spec.method.needs, "noise" in spec.method.needs
    if spec.view:
        opened, tags = spec.scenes.open(), load_tags(spec.scenes)

        def photo(index: int, generator: torch.Generator) -> Batch:
            image = opened.image(index)
            view = training_view(image, generator, spec.view, normalise, where=device())
            return Batch(images=view, tags=tags[index])

        source = OnDisk(len(tags), photo, noise=noise)
    else:
        names = (scale_name(1.0), "tags")
        features, tags = load_features(inputs["features"], names=names).values()
        features = placed(features)
        images = placed(load_images(spec.scenes)) if "images" in needs else None

        def whole(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
            mirrored = torch.randint(2, (len(indices),), generator=generator)[wanted]
            chosen, pixels = indices[wanted], None
            if images is not None:
                plain = normalise(images[chosen.to(images.device)])
                flipped = mirrored.to(images.device)[:, None, None, None] == 1
                pixels = torch.where(flipped, plain.flip(-1), plain)
            place = (chosen.to(features.device), mirrored.to(features.device))
            return Batch(images=pixels, features=features[place], tags=tags[chosen])

        source = InMemory(len(tags), whole, noise=noise)
    if tags.shape[1] != spec.num_classes:
        k = tags.shape[1]
        raise ValueError(f"the data has K={k} classes, the network K={spec.num_classes}")
    return source

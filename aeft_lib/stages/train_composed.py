"""Stage `train_composed`: as `train_classifier`, with a composed scene beside each training scene.

A batch is half as many scenes as the schedule says, and the same number of scenes composed from
them, so an epoch has twice the steps.  It reads no mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.data.augment import training_view
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device, placed
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import Objective
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.composer import COMPOSITION, Composer
from aeft_lib.stages.loading import build_network
from aeft_lib.stages.sources import InMemory, OnDisk, load_tags
from aeft_lib.stages.train_classifier import ClassifierSpec


@dataclass(frozen=True, kw_only=True)
class ComposedSpec(ClassifierSpec):
    """composer: of the scene beside each."""

    composer: Composer


@ranks.collective
def train_composed(
    spec: ComposedSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train on tags; write ``weights.safetensors`` and logs.

    inputs: those of the composer; ``features`` where there is no view: then each scene has one
    composed scene, drawn from (seed, index).  With a view one is drawn anew for every sample.
    The summary has that of ``composition`` besides.
    """
    network = build_network(spec)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    source = _on_disk(spec, inputs, network) if spec.view else _in_memory(spec, inputs, network)
    count = source.count // 2

    def batch(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        both = torch.stack([indices, indices + count], dim=1).flatten()
        return source(both, generator, slice(2 * wanted.start, 2 * wanted.stop))

    rows = loop.fit(
        network,
        n_samples=count,
        batch=batch,
        objective=Objective(spec.method.measure, spec.method.combine),
        schedule=halved(spec.schedule, count, short_decay=spec.composer.short_decay),
        seed=spec.seed,
        compute=spec.compute,
        **fitting.options(folder),
    )
    return inputs[COMPOSITION].summary | fitting.finish(network, folder, rows)


def halved(schedule: Schedule, n_samples: int, *, short_decay: bool = False) -> Schedule:
    """The schedule for batches of half as many scenes.

    short_decay: the rate decays over the steps that whole batches would take, and stays as it was.

    >>> plain = Schedule(5, 16, lr=0.1, head_lr=1.0, weight_decay=0.0, warmup_steps=0)
    >>> halved(plain, 160).batch_size, halved(plain, 160, short_decay=True).decay_steps
    (8, 50)
    """
    steps = schedule.epochs * schedule.epoch_steps(n_samples)
    decay = steps if short_decay else schedule.decay_steps
    half = max(1, schedule.batch_size // 2)
    per_epoch = 2 * schedule.steps_per_epoch
    return replace(schedule, batch_size=half, decay_steps=decay, steps_per_epoch=per_epoch)


def stream(seed: int, index: int) -> np.random.Generator:
    """The random numbers of the scene composed from scene `index`."""
    return np.random.default_rng([seed, index])


def _in_memory(spec: ComposedSpec, inputs: Mapping[str, Artefact], network: nn.Module) -> InMemory:
    """Cached features of whole scenes, and after them those of the composed ones."""
    names = (scale_name(1.0), "tags")
    features, tags = load_features(inputs["features"], names=names).values()
    compose = spec.composer.opened(spec.scenes.open(), inputs)
    made, drawn = [], []
    for index in range(len(tags)):
        image, own = compose(index, stream(spec.seed, index))
        made.append(_trunk(network, image))
        drawn.append(torch.from_numpy(own))
    features, tags = (
        placed(torch.cat([features, torch.stack(made)])),
        torch.cat([tags, torch.stack(drawn)]),
    )

    def whole(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        mirrored = torch.randint(2, (len(indices),), generator=generator)[wanted]
        place = (indices[wanted].to(features.device), mirrored.to(features.device))
        return Batch(features=features[place], tags=tags[indices[wanted]])

    return InMemory(len(tags), whole)


@torch.no_grad()
def _trunk(network: nn.Module, image: np.ndarray) -> Tensor:
    """Features (2, C, h, w) of an image, plain and mirrored, as `cache_features` keeps them."""
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].to(device())
    plain = network.backbone.normalise(picture)
    both = torch.cat([plain, plain.flip(-1)]).contiguous(memory_format=torch.channels_last)
    return network.backbone.trunk(both).half().cpu()


def _on_disk(spec: ComposedSpec, inputs: Mapping[str, Artefact], network: nn.Module) -> OnDisk:
    """Random views of photos, and of what is composed from them."""
    opened, tags, normalise = spec.scenes.open(), load_tags(spec.scenes), network.backbone.normalise
    compose = spec.composer.opened(opened, inputs)

    def photo(index: int, generator: torch.Generator) -> Batch:
        if index < len(tags):
            image, own = opened.image(index), tags[index]
        else:
            seed = int(torch.randint(2**62, (), generator=generator))
            image, drawn = compose(index - len(tags), np.random.default_rng(seed))
            own = torch.from_numpy(drawn)
        view = training_view(image, generator, spec.view, normalise, where=device())
        return Batch(images=view, tags=own)

    return OnDisk(2 * len(tags), photo)

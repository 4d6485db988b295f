"""Stage `train_labelled`: as `train_classifier`, with labels of the scenes besides their tags.

The labels come from an artefact (`stages.labeller`).  It reads no mask.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from aeft_lib.data.augment import training_view
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device, placed
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.step import Objective
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.labeller import FILE, LABELS
from aeft_lib.stages.loading import build_network
from aeft_lib.stages.sources import InMemory, OnDisk, load_tags, same_count


@ranks.collective
def train_labelled(
    spec: Any, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train by a `ClassifierSpec`; write ``weights.safetensors`` and logs.

    The summary has that of the labels besides.
    inputs: ``labels``; ``features`` where there is no view.  A batch has its tags, and its labels
    as ``labels``, (B, M) uint8.
    Raises ValueError where there are more or fewer labels than scenes.
    """
    network = build_network(spec)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    source = _source(spec, inputs, network.backbone.normalise)
    labels = load_file(inputs[LABELS].folder / FILE)[LABELS]
    same_count(source.count, len(labels), "labels")
    rows = loop.fit(
        network,
        n_samples=source.count,
        batch=partial(_labelled, source, labels),
        objective=Objective(spec.method.measure, spec.method.combine),
        schedule=spec.schedule,
        seed=spec.seed,
        compute=spec.compute,
        **fitting.options(folder),
    )
    return inputs[LABELS].summary | fitting.finish(network, folder, rows)


def _source(
    spec: Any, inputs: Mapping[str, Artefact], normalise: fitting.Normalise
) -> InMemory | OnDisk:
    """Random views of photos where there is a view, else cached features of whole scenes."""
    if spec.view:
        opened, tags = spec.scenes.open(), load_tags(spec.scenes)

        def photo(index: int, generator: torch.Generator) -> Batch:
            view = training_view(
                opened.image(index), generator, spec.view, normalise, where=device()
            )
            return Batch(images=view, tags=tags[index])

        return OnDisk(len(tags), photo)
    names = (scale_name(1.0), "tags")
    features, tags = load_features(inputs["features"], names=names).values()
    features = placed(features)

    def whole(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        mirrored = torch.randint(2, (len(indices),), generator=generator)[wanted]
        place = (indices[wanted].to(features.device), mirrored.to(features.device))
        return Batch(features=features[place], tags=tags[indices[wanted]])

    return InMemory(len(tags), whole)


def _labelled(
    source: InMemory | OnDisk,
    labels: Tensor,
    indices: Tensor,
    generator: torch.Generator,
    wanted: slice,
) -> Batch:
    return source(indices, generator, wanted)._replace(labels=labels[indices[wanted]])

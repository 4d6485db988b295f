"""Stage `train_on_views`: `train_classifier` on random views, of new scenes where they have no end.

The weights are kept at equal parts of the training, whatever an epoch is: curves over steps are
read from them.  It reads no mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from aeft_lib.data.augment import ViewSpec, training_view
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import PLAIN, Compute, Objective
from aeft_lib.networks import state
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import WEIGHTS, build_network, load_network
from aeft_lib.stages.method import Method
from aeft_lib.stages.sources import OnDisk, load_tags

WARM_START, JUDGE = "warm_start", "judge_"  # inputs, as of `train_classifier`


@dataclass(frozen=True)
class ViewsSpec:
    """As `ClassifierSpec`, always with a view.

    points: at so many equal parts of the training its weights are kept, as
    ``epoch_1.safetensors``, ``epoch_2.safetensors``, ...; they must divide the epochs.
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
    points: int = 1

    def __post_init__(self) -> None:
        if self.view is None:
            raise ValueError("a training on views needs a view, got None")
        if self.points < 1 or self.schedule.epochs % self.points:
            counts = f"{self.points} points do not divide {self.schedule.epochs} epochs"
            raise ValueError(f"{counts}, so none would lie at an equal part of the training")


@ranks.collective
def train_on_views(
    spec: ViewsSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train on tags; write ``weights.safetensors``, logs, and the weights at every point.

    inputs: ``warm_start``, ``judge_<name>`` for each judge.
    """
    network = build_network(spec)
    if WARM_START in inputs:
        state.load_trained(network, inputs[WARM_START].folder / WEIGHTS)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    judges = {
        name.removeprefix(JUDGE): load_network(artefact).requires_grad_(False).to(device())
        for name, artefact in inputs.items()
        if name.startswith(JUDGE)
    }
    grain = spec.schedule.epochs // spec.points

    def after_epoch(epoch: int) -> None:
        if epoch % grain == 0 and ranks.is_main():
            state.save_trained(network, folder / f"epoch_{epoch // grain}.safetensors")

    source = view_source(spec, network.backbone.normalise)
    rows = loop.fit(
        network,
        n_samples=source.count,
        batch=source,
        objective=Objective(partial(spec.method.measure, **judges), spec.method.combine),
        schedule=spec.schedule,
        seed=spec.seed,
        compute=spec.compute,
        after_epoch=after_epoch,
        **fitting.options(folder),
    )
    return fitting.finish(network, folder, rows)


def view_source(spec: ViewsSpec, normalise: fitting.Normalise) -> OnDisk:
    """Random views of the scenes, or of new ones where the set can compose them.

    Each sample has a random stream of its own, drawn from (repeat, epoch, step) and its place in
    the batch, so a resumed training sees what it would have seen.
    Raises ValueError where the data has another number of classes than the network.
    """
    scenes = spec.scenes.open()
    if len(scenes.classes) != spec.num_classes:
        k = len(scenes.classes)
        raise ValueError(f"the data has K={k} classes, the network K={spec.num_classes}")
    composed = getattr(scenes, "composed", None)
    tags = None if composed else load_tags(spec.scenes)

    def sample(index: int, generator: torch.Generator) -> Batch:
        if composed:
            scene = composed(generator)
            image, own = scene.image, torch.from_numpy(scene.tags)
        else:
            image, own = scenes.image(index), tags[index]
        view = training_view(image, generator, spec.view, normalise, where=device())
        return Batch(images=view, tags=own)

    return OnDisk(len(scenes), sample, noise="noise" in spec.method.needs)

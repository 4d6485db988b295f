"""Stage `read_each`: seeds by a reader that optimises for every image, in its pixels or in weights.

What `infer_seeds` writes, and what the reader says of every image in numbers, without a mask.
Random numbers of an image follow from (repeat, image) alone, so neither order nor the number of
processes changes a seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from aeft_lib.data.augment import ViewSpec, training_view
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.batches import image_batches
from aeft_lib.engine.device import batch_pixels, device
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, SeedWriter
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.image_reader import ImageReader, Picture
from aeft_lib.stages.loading import load_network, ready
from aeft_lib.stages.reading import LOGITS
from aeft_lib.stages.sources import load_tags

SEEDS, MECHANISM = "seeds.npz", "mechanism.csv"


class Others:
    """Training images that a reader may draw, none of which shares a class with the image read.

    view: random views are drawn; None: whole scenes.
    kept: by a reader's name for it and by index, what is computed once of a whole scene.
    """

    def __init__(self, scenes: SceneSet, view: ViewSpec | None, repeat: int) -> None:
        self.scenes, self.view, self.repeat = scenes.open(), view, repeat
        self.tags = load_tags(scenes)
        self.kept: dict[str, dict[int, Tensor]] = {}

    def draw(self, picture: Picture, step: int, count: int) -> list[int]:
        """Scenes for a step, each once, fewer than `count` where there are not so many."""
        foreign = ~(self.tags & picture.tags).any(dim=1) & self.tags.any(dim=1)
        known = foreign.nonzero()[:, 0].numpy()
        stream = np.random.default_rng([self.repeat, picture.index, step])
        return stream.choice(known, size=min(count, len(known)), replace=False).tolist()

    def images(
        self, chosen: Sequence[int], path: tuple[int, ...], normalise: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The scenes as the network takes them, (B, 3, H, W).  path: of the random views."""
        if self.view is None:
            pictures = np.stack([self.scenes.image(i) for i in chosen])
            return normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device()))
        seeds = np.random.SeedSequence([self.repeat, *path]).generate_state(len(chosen))
        streams = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        return torch.stack(
            [
                training_view(self.scenes.image(i), stream, self.view, normalise, device())
                for i, stream in zip(chosen, streams, strict=True)
            ]
        )


@dataclass(frozen=True)
class EachSpec:
    """data: fingerprint of the scenes.  others, view: of what the reader draws, where it does."""

    scenes: SceneSet
    reader: ImageReader
    data: str
    others: SceneSet | None = None
    view: ViewSpec | None = None


@ranks.collective
def read_each(spec: EachSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``classifier``, whose seed is the repeat; all other inputs are the reader's own.

    Writes ``seeds.npz`` and ``logits.safetensors`` as `infer_seeds` does, and ``mechanism.csv``, a
    line an image that has a tag; the summary has the means.
    """
    classifier, chosen = inputs["classifier"], {}
    for name in sorted(inputs.keys() - {"classifier"}):
        chosen |= inputs[name].summary
    readings = over_images(_read, len(spec.scenes.open()), spec, classifier, chosen)
    all_logits, all_tags, lines = [], [], []
    with SeedWriter(folder / SEEDS) as writer:
        for index, (tags, cam, logits, numbers) in enumerate(readings):
            name = f"{index:05d}"
            writer.add(name, Seed(tags.nonzero()[:, 0], cam))
            all_logits.append(logits.tolist())
            all_tags.append(tags.tolist())
            lines += [{"name": name, **numbers}] if numbers else []
    if not all_tags:  # not the main rank
        return {"images": 0}
    tensors = {"logits": torch.tensor(all_logits), "tags": torch.tensor(all_tags)}
    save_file(tensors, folder / LOGITS)
    table = pd.DataFrame(lines, columns=["name", *spec.reader.names])
    table.to_csv(folder / MECHANISM, index=False, float_format="%.6g")
    return {"images": len(all_tags)} | {n: float(table[n].mean()) for n in spec.reader.names}


def pictures_of(scenes: SceneSet, indices: Sequence[int]) -> Iterator[list[Picture]]:
    """Batches of pictures of one size."""
    opened = scenes.open()
    for part, images in image_batches(opened.image, indices, batch_pixels("fp32")):
        tags = [torch.from_numpy(opened.tags(index)) for index in part]
        yield [Picture(*given) for given in zip(part, images, tags, strict=True)]


def _read(
    indices: range, spec: EachSpec, classifier: Artefact, chosen: Mapping[str, float]
) -> list[tuple[Tensor, Tensor, Tensor, Mapping[str, float]]]:
    """Tags, CAM, logits and numbers of these scenes.

    In fp32 on every machine: bf16 would round small steps away.
    """
    network, method = ready(load_network, classifier), classifier.spec.method
    k = len(spec.scenes.open().classes)
    if k != network.num_classes:
        raise ValueError(f"the data has K={k} classes, the classifier K={network.num_classes}")
    others = drawn_by(spec, classifier)
    read = {}
    for pictures in pictures_of(spec.scenes, indices):
        readings = spec.reader.read(method, network, pictures, others, chosen)
        read |= {p.index: (p.tags, *r) for p, r in zip(pictures, readings, strict=True)}
    return [read[index] for index in indices]


def drawn_by(spec: EachSpec, classifier: Artefact) -> Others | None:
    """What the reader of a spec draws from, kept by the process for its shards."""
    if not spec.reader.draws:
        return None
    return _others(spec.others, spec.view, classifier.spec.seed, classifier.folder)


@lru_cache(maxsize=1)
def _others(scenes: SceneSet, view: ViewSpec | None, repeat: int, _folder: Path) -> Others:
    return Others(scenes, view, repeat)

"""Stage `infer_with_maps`: as `infer_seeds`, for a classifier that reads a scene's label map too.

The method is told the maps of a batch by `Told`, so every reader that takes plain and mirrored
views in turns will do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aeft_lib.engine import ranks
from aeft_lib.engine.batches import batches, image_batches
from aeft_lib.engine.device import batch_pixels, device
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.labels import read_label_map
from aeft_lib.maps.seeds import Seed, SeedWriter
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import PREFIX, load_features
from aeft_lib.stages.loading import load_network, ready
from aeft_lib.stages.map_source import MAPS, with_statistics
from aeft_lib.stages.method import Method, Reading
from aeft_lib.stages.reading import LOGITS
from aeft_lib.stages.sources import same_count
from aeft_lib.stages.write_labels import label_files

SEEDS = "seeds.npz"
Read = tuple[Seed, Tensor, Tensor]
Reader = Callable[[Method, nn.Module, list[Tensor]], list[Reading]]


class Told:
    """A method that is told the label maps of a batch, (B, H, W) uint8, for plain and mirrored."""

    def __init__(self, method: Method, maps: Tensor) -> None:
        self.method, self.both = method, torch.stack([maps, maps.flip(-1)], dim=1).flatten(0, 1)

    def cam(self, network: nn.Module, batch: Batch) -> Tensor:
        """The signed CAM (2 B, K, h, w).

        Raises ValueError where a reader does not take plain and mirrored views in turns.
        """
        given = batch.images if batch.features is None else batch.features
        if len(given) != len(self.both):
            counts = f"{len(given)} views of {len(self.both) // 2} label maps"
            raise ValueError(f"a reader must take plain and mirrored views in turns, got {counts}")
        return self.method.cam(network, batch._replace(labels=self.both))


@ranks.collective
def infer_with_maps(spec: Any, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``classifier`` by a `SeedSpec`; write what `infer_seeds` writes.

    inputs: ``maps`` and ``statistics`` too; ``features`` are read in place of the images, if any.
    Raises ValueError where there are more or fewer label maps than scenes.
    """
    files = label_files(inputs[MAPS])
    count = same_count(len(spec.scenes.open()), len(files), "label maps")
    most = 1 if "features" in inputs else 0
    given = (spec, inputs["classifier"], inputs)
    readings = over_images(_read, count, *given, at_most=most)
    rows: list[tuple[list[float], list[bool]]] = []
    with SeedWriter(folder / SEEDS) as writer:
        for index, (seed, logits, tags) in enumerate(readings):
            writer.add(f"{index:05d}", seed)
            rows.append((logits.tolist(), tags.tolist()))
    if rows:  # on the main rank
        logits, tags = (torch.tensor(column) for column in zip(*rows, strict=True))
        save_file({"logits": logits, "tags": tags}, folder / LOGITS)
    return {"images": len(rows)}


@torch.inference_mode()
def _read(
    indices: range, spec: Any, classifier: Artefact, inputs: Mapping[str, Artefact]
) -> list[Read]:
    """Seed, logits and tags of these scenes."""
    network, method = ready(load_network, classifier), classifier.spec.method
    with_statistics(network, inputs)
    files, classes, found = label_files(inputs[MAPS]), network.num_classes, {}
    for part, tags, size, read in _batches(indices, spec, inputs.get("features")):
        maps = [read_label_map(files[i], num_classes=classes, size=size) for i in part]
        told = Told(method, torch.from_numpy(np.stack(maps)).to(device()))
        class_ids = [own.nonzero()[:, 0] for own in tags]
        readings = read(told, network, class_ids)
        for index, ids, own, (cam, logits) in zip(part, class_ids, tags, readings, strict=True):
            found[index] = (Seed(ids, cam), logits, own)
    return [found[index] for index in indices]


def _batches(
    indices: range, spec: Any, features: Artefact | None
) -> Iterator[tuple[Sequence[int], list[Tensor], tuple[int, int], Reader]]:
    """Batches of scenes of one size: indices, tags, size, and their readings by a method."""
    reader, pixels = spec.reader, batch_pixels(spec.precision)
    if features is not None:
        size = (spec.scenes.size,) * 2
        for part in batches(indices, size, pixels):
            cache = load_features(features, slice(part.start, part.stop))
            tags = list(cache.pop("tags"))
            scales = {float(name.removeprefix(PREFIX)): maps for name, maps in cache.items()}
            yield part, tags, size, _reading(reader.from_features, scales, size, spec.precision)
        return
    scenes = spec.scenes.open()
    for part, images in image_batches(scenes.image, indices, pixels):
        tags = [torch.from_numpy(scenes.tags(index)) for index in part]
        size = images[0].shape[:2]
        yield part, tags, size, _reading(reader.from_images, images, precision=spec.precision)


def _reading(read: Callable[..., list[Reading]], given: Any, *rest: Any, **options: Any) -> Reader:
    """What reads a batch, once method, network and classes are known."""
    return lambda told, network, ids: read(told, network, given, ids, *rest, **options)

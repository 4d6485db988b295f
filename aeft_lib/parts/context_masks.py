"""Where CONTA's context map (`parts.context_map`) comes from: masks, and their means by class.

A row's seeds become pseudo-labels, a segmentation network learns from them, and what it predicts of
every scene are the masks that the next round's classifier reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.fields import choice
from aeft_lib.maps.labels import read_label_map
from aeft_lib.parts.context_map import class_shares
from aeft_lib.stages.artefact import Artefact, Inputs, Stage
from aeft_lib.stages.by_network import ByNetwork
from aeft_lib.stages.infer_with_maps import infer_with_maps
from aeft_lib.stages.map_source import MAPS, STATISTICS, STATISTICS_FILE
from aeft_lib.stages.method import Workshop
from aeft_lib.stages.sources import load_tags, same_count
from aeft_lib.stages.train_with_maps import WARM_START, train_with_maps
from aeft_lib.stages.write_labels import label_files

MEMBERS = ("tags", "predicted")
BUFFER = "context.confounders"  # where a network has its `ContextMap` as ``context``


@dataclass(frozen=True)
class ConfounderSpec:
    """scenes: the training scenes.  num_classes: K.  side: of the contexts, in cells.

    members: the images of a class are those with its "tags", or where it is "predicted".
    shuffled: each mask is given to the class of another at random; every class keeps its number of
        masks.  seed: of that draw.  data: fingerprint of the scenes.
    """

    scenes: SceneSet
    num_classes: int
    side: int
    members: str = "tags"
    shuffled: bool = False
    seed: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        choice(self, members=MEMBERS, shuffled=(False, True))


def average_masks(
    spec: ConfounderSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``maps``; write C as the network's buffer, and say how much of a cell a mask covers.

    ``empty_classes``: classes without a mask; their context is 0.
    Raises ValueError where there are more or fewer label maps than scenes.
    """
    files, tags = label_files(inputs[MAPS]), load_tags(spec.scenes)
    same_count(len(tags), len(files), "label maps")
    masks, owners = [], []
    for file, own in zip(files, tags, strict=True):
        labels = torch.from_numpy(read_label_map(file, num_classes=spec.num_classes))
        shares = class_shares(labels[None], spec.num_classes, spec.side)[0]
        inside = own if spec.members == "tags" else shares.amax(dim=(1, 2)) > 0
        masks.append(shares[inside])
        owners.append(inside.nonzero()[:, 0])
    classes = torch.cat(owners)
    if spec.shuffled:
        generator = torch.Generator().manual_seed(spec.seed)
        classes = classes[torch.randperm(len(classes), generator=generator)]
    confounders = class_means(torch.cat(masks), classes, spec.num_classes)
    save_file({BUFFER: confounders}, folder / STATISTICS_FILE)
    empty = int((confounders.amax(dim=(1, 2)) == 0).sum())
    return {"coverage": float(confounders.mean()), "empty_classes": empty}


def class_means(masks: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """c_k, (K, h, w): the mean of the masks of each class, 0 for a class without one.

    masks: (P, h, w).  classes: (P,) int64, of which class each is.
    """
    total = masks.new_zeros(num_classes, *masks.shape[1:]).index_add_(0, classes, masks)
    return total / classes.bincount(minlength=num_classes).clamp(min=1)[:, None, None]


# --- rounds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContextMasks:
    """Masks that a network predicts from a row's seeds, and their confounders (`MapSource`).

    masks: from seeds to the network's predictions; its ``tags`` is the switch of the same name.
    class_members: `ConfounderSpec.members`.  shuffled: the control "classes shuffled".
    restart: the classifier of a round starts anew; False: where the last round's ended.
    """

    masks: ByNetwork
    class_members: str = "tags"
    restart: bool = True
    shuffled: bool = False
    cached = True

    def __post_init__(self) -> None:
        choice(self, class_members=MEMBERS, restart=(False, True), shuffled=(False, True))

    def for_training(self, workshop: Workshop) -> tuple[Stage, Inputs]:
        """`train_with_maps`, with the masks of the training scenes."""
        inputs = self._inputs(workshop, "train")
        warm = {} if self.restart else {WARM_START: workshop.classifier}
        return train_with_maps, inputs | warm

    def for_seeds(self, workshop: Workshop, split: str) -> tuple[Stage, Inputs]:
        """`infer_with_maps`: the network predicts the split first, then CAMs are read."""
        return infer_with_maps, self._inputs(workshop, split)

    def _inputs(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """Masks of the split, and the confounders, which are of the training scenes."""
        scenes = workshop.scenes("train")
        learned = self.masks.refine(workshop, "train")["labels"]
        opened = scenes.open()
        spec = ConfounderSpec(
            scenes,
            len(opened.classes),
            workshop.map_side,
            members=self.class_members,
            shuffled=self.shuffled,
            seed=workshop.repeat if self.shuffled else 0,
            data=opened.fingerprint,
        )
        statistics = workshop.obtain(average_masks, spec, {MAPS: learned})
        masks = learned if split == "train" else self.masks.refine(workshop, split)["labels"]
        return {MAPS: masks, STATISTICS: statistics}

"""``aeft explain``: the artefacts of a study on a profile, those in the store, the others' cost.

Nothing is computed.  Work and memory are counted, not guessed (`studies.work`); hours are that work
at a stated rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from aeft_lib import paths
from aeft_lib.data import coco, voc
from aeft_lib.data.coco import CocoSpec
from aeft_lib.data.scene import SceneSet
from aeft_lib.data.voc import VocSpec
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.stages import store
from aeft_lib.studies.pipeline import artefacts
from aeft_lib.studies.rows import Row, Study
from aeft_lib.studies.settings import Profile
from aeft_lib.studies.work import cost as cost_of

COCO_CLASSES = 80
# Of a GPU that is kept busy: an A100 in bf16 reaches about this on such convolutions; not measured.
TFLOPS = 60.0
# Of a core that other jobs share caches with: 3.8 images of a training of EfficientNet-Lite0 (five
# stages, 256 px, new collages) a second of its time were measured; an idle core has more, and
# ResNet38d several times as much.
CORE_GFLOPS = 25.0
CORE = f"at {CORE_GFLOPS:.0f} GFLOP/s a core, about what EfficientNet-Lite0 gets on a busy machine"


@dataclass(frozen=True)
class PublishedSet:
    """A scene set that is not there yet, at its published size: enough to lay a study out.

    It stands in for a `SceneSet` and is its own `Scenes`, without any image.
    """

    split: str
    count: int
    size: int
    classes: tuple[str, ...]
    fingerprint: str = ""
    truth: str = ""

    def open(self) -> "PublishedSet":
        """Itself."""
        return self

    def __len__(self) -> int:
        return self.count


def with_data(profile: Profile) -> tuple[Profile, str]:
    """The profile with published sizes in place of data that is not there, and a line about it.

    Raises ValueError where data is missing whose size nobody published.
    """
    changes = {}
    for name in ("train", "val", "scored"):
        if spec := getattr(profile, name):
            try:
                spec.open()
            except ValueError:
                changes[name] = _published(spec)
                if changes[name] is None:
                    raise
    if not changes:
        return profile, ""
    sizes = ", ".join(f"{item.split} {item.count:,}" for item in dict.fromkeys(changes.values()))
    note = f"the data is not here: counted with published sizes ({sizes} images)"
    return replace(profile, **changes), note


def _published(spec: SceneSet) -> PublishedSet | None:
    if isinstance(spec, VocSpec):
        count, classes = voc.SPLITS[spec.split], spec.classes
    elif isinstance(spec, CocoSpec):
        count, classes = coco.SPLITS[spec.split], tuple(f"class {i}" for i in range(COCO_CLASSES))
    else:
        return None
    return PublishedSet(spec.split, spec.count or count, spec.size, classes)


@dataclass(frozen=True)
class Planned:
    """One artefact of the plan.

    pflop: 10^15 operations.  memory: bytes of weights, gradients, momentum and activations, on each
    GPU of one.  disk: bytes of weights, or of cached features.  None: not a network's, or unknown.
    """

    stage: str
    key: str
    there: bool
    images: int
    pflop: float | None = None
    memory: int | None = None
    disk: int | None = None


def plan(profile: Profile, rows: Sequence[Row], repeats: Sequence[int]) -> list[Planned]:
    """The artefacts that rows and repeats need, each once, in the order they would be made.

    Raises ValueError where the profile's data is missing.
    """
    return merged(needs(profile, rows, repeats))


def merged(needed: Mapping[str, Sequence[Planned]]) -> list[Planned]:
    """The artefacts of all rows of `needs`, each once."""
    return list({item.key: item for of_row in needed.values() for item in of_row}.values())


def needs(
    profile: Profile, rows: Sequence[Row], repeats: Sequence[int]
) -> dict[str, list[Planned]]:
    """The artefacts that each row needs, by its name; what rows share stands in each of them.

    Errors as `plan`.
    """
    planned: dict[str, Planned] = {}
    asked: dict[str, dict[str, Planned]] = {row.name: {} for row in rows}

    def obtain(
        row: Row, stage: store.Stage, spec: Any, inputs: store.Inputs | None = None
    ) -> store.Artefact:
        key, name = store.key_for(stage, spec, inputs), stage.__name__
        there = store.find(name, key, spec)
        if key not in planned:
            cost = cost_of(profile, spec, frozenset(inputs or ()))
            planned[key] = Planned(name, key, there is not None, *cost)
        asked[row.name][key] = planned[key]
        empty = {"summary": {}, "spec": {}}
        return there or store.Artefact(name, key, paths.runs() / name / key, empty, spec)

    for repeat in repeats:
        for row in rows:
            artefacts(profile, row, repeat, partial(obtain, row))
    return {name: list(of_row.values()) for name, of_row in asked.items()}


def table(planned: Sequence[Planned]) -> pd.DataFrame:
    """One line a stage: artefacts, how many are there; of the missing images, PFLOP, hours, GB."""
    lines = []
    for stage in dict.fromkeys(item.stage for item in planned):
        of_stage = [item for item in planned if item.stage == stage]
        missing = [item for item in of_stage if not item.there]
        lines.append(
            {
                "stage": stage,
                "artefacts": len(of_stage),
                "there": len(of_stage) - len(missing),
                "images": sum(item.images for item in missing),
                **_totals(missing),
            }
        )
    return pd.DataFrame(lines)


def row_table(needed: Mapping[str, Sequence[Planned]]) -> pd.DataFrame:
    """One line a row: its trainings, and what all that it needs takes, shared or not, there or not.

    needed: of `needs`.
    """
    lines = [
        {
            "row": name,
            "trainings": sum(item.stage.startswith("train_") for item in items),
            **_totals(items),
        }
        for name, items in needed.items()
    ]
    return pd.DataFrame(lines)


def _totals(items: Sequence[Planned]) -> dict[str, float | None]:
    """PFLOP, hours, GB of artefacts together; None where nothing is known."""
    work, memory, disk = (
        [value for item in items if (value := getattr(item, name)) is not None]
        for name in ("pflop", "memory", "disk")
    )
    return {
        "PFLOP": sum(work) if work else None,
        "GPU hours": sum(work) * 1e3 / TFLOPS / 3600 if work else None,
        "GB on a GPU": max(memory) / 1e9 if memory else None,
        "GB on disk": sum(disk) / 1e9 if disk else None,
    }


def core_hours(profile: Profile, planned: Sequence[Planned]) -> float:
    """Hours of one core for what is missing; 0 for a backbone whose rate was not measured."""
    if not isinstance(profile.backbone, EfficientNetLiteSpec):
        return 0.0
    work = sum(item.pflop or 0.0 for item in planned if not item.there)
    return work * 1e6 / CORE_GFLOPS / 3600


def budget(profile: Profile, chosen: Sequence[tuple[Study, range]]) -> pd.DataFrame:
    """A line a study and their sum: rows, repeats, trainings that are missing, hours.

    chosen: studies, each with its repeats.  What two of them share counts for the first.
    """
    lines, seen = [], set()
    for study, repeats in chosen:
        planned = [item for item in plan(profile, study.rows, repeats) if item.key not in seen]
        seen |= {item.key for item in planned}
        missing = [item for item in planned if not item.there]
        work = sum(item.pflop or 0.0 for item in missing)
        lines.append(
            {
                "study": study.name,
                "rows": len(study.rows),
                "repeats": len(repeats),
                "trainings": sum(item.stage.startswith("train_") for item in missing),
                "core hours": core_hours(profile, missing) or None,
                "GPU hours": work * 1e3 / TFLOPS / 3600,
            }
        )
    table = pd.DataFrame(lines)
    total = table[["trainings", "core hours", "GPU hours"]].sum().to_dict() | {"study": "together"}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)

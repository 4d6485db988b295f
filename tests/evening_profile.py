"""A profile with the lines of ``evening`` and the size of a test: views of new collages, a curve."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from aeft_lib.data.augment import ViewSpec
from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.compositions import CompositionSpec
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.studies import run, saturation
from aeft_lib.studies.profiles import EVENING
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


def evening_profile(**changes) -> Profile:
    """`EVENING` at 64 px with a frozen backbone, four epochs of two steps a phase."""
    small = {
        "name": "evening-test",
        "train": CompositionSpec("train", 8, 64),
        "val": SceneSpec("val", 6, 64),
        "backbone": EfficientNetLiteSpec(trained_stages=0),
        "view": ViewSpec(64, (51, 102)),
        "schedule": replace(EVENING.schedule, epochs=4, batch_size=4, steps_per_epoch=2),
        "erasing": replace(EVENING.erasing, epochs=4, batch_size=4, steps_per_epoch=1),
        "seed_scales": (1.0,),
        "inference": "fp32",
        "curve": 4,
    }
    return replace(EVENING, **small | changes)


def curve_table(profile: Profile, rows: Sequence[Row], repeats: Sequence[int]) -> pd.DataFrame:
    """The curves of rows and repeats that are finished: ``row, label, repeat``, and its columns.

    Computes nothing; empty where nothing is finished.
    """
    parts = []
    for row in rows:
        for repeat in repeats:
            try:
                steps = saturation.curve(run.read(profile, row, repeat)["curve"])
            except LookupError:
                continue
            parts.append(steps.assign(row=row.name, label=row.label, repeat=repeat))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

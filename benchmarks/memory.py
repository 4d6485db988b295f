"""``aeft bench memory``: the peak memory of every stage at 200 and at 2,000 scenes.

Every stage runs in a process of its own, in a store of its own, on the rows that end in a
segmentation network and in epochs.  Scenes are small (96 px), so that what would grow with their
number can be seen beside what a process has anyhow.  Named exceptions: `train_segmenter` and the
triplet keep the images in memory on purpose, 28 kB a scene of this size and a byte a pixel of
labels; classifiers keep one scale of the cached features.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

from aeft_lib.engine.shards import start_worker
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact
from aeft_lib.studies import catalogue, profiles
from aeft_lib.studies.pipeline import artefacts
from aeft_lib.studies.settings import Profile

FEW, MANY = 200, 2000
ROWS = ("segment_aeft", "attract_soft_repel")


def benchmarks() -> list[dict]:
    """A row a stage: megabytes at both numbers of scenes, and bytes a scene of their difference."""
    few, many = _peaks(FEW), _peaks(MANY)
    return [
        {
            "name": f"memory.{stage}",
            "scenes": [FEW, MANY],
            "peak_mb": [few[stage], many[stage]],
            "bytes_a_scene": round(1e6 * (many[stage] - few[stage]) / (MANY - FEW)),
        }
        for stage in few
    ]


def _peaks(count: int) -> dict[str, int]:
    """The largest peak of each stage, in MB, with so many scenes in every split."""
    profile = _profile(count)
    peaks: dict[str, int] = {}

    def in_a_process(
        stage: Any, spec: Any, inputs: Mapping[str, Artefact] | None = None
    ) -> Artefact:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=start_worker) as pool:
            artefact = pool.submit(store.obtain, stage, spec, inputs).result()
        name = stage.__name__
        peaks[name] = max(peaks.get(name, 0), artefact.record["peak_memory_mb"])
        return artefact

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("AEFT_RUNS")
        os.environ["AEFT_RUNS"] = folder
        try:
            for row in ROWS:
                artefacts(profile, catalogue.row(row), 0, in_a_process)
        finally:
            del os.environ["AEFT_RUNS"]
            if before is not None:
                os.environ["AEFT_RUNS"] = before
    return peaks


def _profile(count: int) -> Profile:
    """Smoke with so many scenes, and as many steps whatever their number."""
    smoke = profiles.get("smoke")
    sets = {name: replace(getattr(smoke, name), count=count) for name in ("train", "val")}
    steps = {"steps_per_epoch": 2}
    refinement = replace(smoke.refinement, schedule=replace(smoke.refinement.schedule, **steps))
    segmentation = replace(
        smoke.segmentation, schedule=replace(smoke.segmentation.schedule, **steps)
    )
    schedule = replace(smoke.schedule, **steps)
    return replace(
        smoke, schedule=schedule, refinement=refinement, segmentation=segmentation, **sets
    )

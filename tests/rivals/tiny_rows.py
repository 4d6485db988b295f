"""The smoke profile with half of its scenes at two thirds of their size, a step or two a training.

For rows that have a CRF in every step: what they share is trained once for a test file's store.
"""

from dataclasses import replace

from aeft_lib.data.collages import SceneSpec
from aeft_lib.stages import store
from aeft_lib.studies import catalogue, pipeline
from aeft_lib.studies.profiles import SMOKE

TINY = replace(
    SMOKE,
    name="tiny",
    train=SceneSpec("train", 16, 64),
    val=SceneSpec("val", 4, 64),
    schedule=replace(SMOKE.schedule, epochs=1),
    segmentation=replace(
        SMOKE.segmentation, schedule=replace(SMOKE.segmentation.schedule, epochs=1), hidden=16
    ),
)


def made(name: str) -> dict[str, store.Artefact]:
    """All artefacts of a row of the study `rivals`, in this process."""
    return pipeline.artefacts(TINY, catalogue.get("rivals").row(name), 0)

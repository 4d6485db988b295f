"""``aeft score``: a published checkpoint through this code's seeds and evaluation."""

import hashlib
from dataclasses import replace
from pathlib import Path

from aeft_lib.data.voc import VocSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.rivals.published import Published
from aeft_lib.stages.build_classifier import build_classifier
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_seeds
from aeft_lib.stages.store import obtain
from aeft_lib.stages.train_classifier import ClassifierSpec
from aeft_lib.studies.pipeline import seeds
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


def score(profile: Profile, file: Path) -> dict[str, float]:
    """The numbers of the seeds that a checkpoint gives on the profile's scored scenes, in percent.

    Network, seeds and evaluation are artefacts of the store.
    Raises ValueError where the file is missing or no classifier of ours, the profile has another
    backbone or no VOC, or its data is missing; before anything runs.
    """
    scored = profile.scenes("scored")
    if not isinstance(scored, VocSpec) or not isinstance(profile.backbone, ResNet38dSpec):
        kinds = f"{type(scored).__name__} and {type(profile.backbone).__name__}"
        problem = f"profile {profile.name} has {kinds}; a published checkpoint is of VOC, ResNet38d"
        raise ValueError(f"{problem}: choose --profile voc")
    if not file.is_file():
        raise ValueError(f"no file {file}")
    scenes = scored.open()
    method = Published(
        digest=hashlib.sha256(file.read_bytes()).hexdigest(), file=str(file.absolute())
    )
    spec = ClassifierSpec(
        method=method.fitted(profile.map_side),
        num_classes=len(scenes.classes),
        backbone=replace(profile.backbone, weights="none"),  # all of them are in the file
        scenes=scored,
        schedule=profile.schedule,
        seed=0,
    )
    classifier = obtain(build_classifier, spec)
    read = seeds(profile, Row("published", "published", method), classifier, "scored", obtain)
    scoring = EvaluationSpec(scored, profile.thresholds, scenes.truth)
    return obtain(evaluate_seeds, scoring, {"seeds": read}).summary

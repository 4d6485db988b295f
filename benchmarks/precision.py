"""``aeft bench precision``: what bf16 does to the seeds of trained classifiers, fp32 beside it.

The classifiers are those of the store: repeat 0 of the laptop's ablations, as `aeft reproduce`
leaves them.  Their seeds are read in both precisions, features too, and scored alike, so that no
training amplifies what rounding does.
The rule: bf16 reads networks as long as the 95 % interval of its mean difference to fp32 lies
within ±`BOUND` points of mIoU.  Single classifiers may differ by more.
"""

import os
from dataclasses import replace

import torch

from aeft_lib import paths
from aeft_lib.engine.device import PRECISION, has_bf16
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_seeds
from aeft_lib.studies import catalogue, pipeline, profiles
from aeft_lib.studies.effects import effect
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

PROFILE = profiles.LAPTOP
STUDIES = ("gap_vs_gpp", "pyramid_ablation", "triplet_ablation", "ours_ablation")
METRICS = ("miou", "miou_maskless")
BOUND = 0.11


def benchmarks() -> list[dict]:
    """A row a trained classifier: bf16 - fp32 in points of each metric; then one of their means."""
    if not has_bf16(torch.device("cpu")):
        raise ValueError("this CPU has no instructions for bf16: there is nothing to compare")
    if asked := os.environ.get(PRECISION):
        raise ValueError(f"{PRECISION}={asked} would read both sides alike: unset it")
    rows = {row.name: row for name in STUDIES for row in catalogue.get(name).rows}
    differences = {name: _difference(row) for name, row in rows.items() if _is_trained(row)}
    if len(differences) < 2:
        command = f"aeft run {STUDIES[1]} --profile {PROFILE.name} --repeats 1"
        raise ValueError(
            f"the store {paths.runs()} has no trained classifiers: run `{command}` first"
        )
    lines = [{"name": f"precision.{name}", **found} for name, found in differences.items()]
    return [*lines, *(_mean(metric, differences) for metric in METRICS)]


def _is_trained(row: Row) -> bool:
    try:
        pipeline.classifiers(PROFILE, row, 0, store.lookup)
    except LookupError:
        return False
    return True


def _difference(row: Row) -> dict[str, float]:
    classifier = pipeline.classifiers(PROFILE, row, 0, store.lookup)["classifier"]
    half, full = (_scores(PROFILE, row, classifier, p) for p in ("bf16", "fp32"))
    return {metric: half[metric] - full[metric] for metric in METRICS}


def _scores(profile: Profile, row: Row, classifier: Artefact, precision: str) -> dict:
    read = replace(row.setting.applied(profile, 0), inference=precision)
    seeds = pipeline.seeds(read, row, classifier, row.scored_on, store.obtain)
    scenes = read.scenes(row.scored_on)
    spec = EvaluationSpec(scenes, read.thresholds, scenes.open().truth)
    return store.obtain(evaluate_seeds, spec, {"seeds": seeds}).summary


def _mean(metric: str, differences: dict[str, dict[str, float]]) -> dict:
    values = [found[metric] for found in differences.values()]
    mean = effect(values)
    return {
        "name": f"precision.mean.{metric}",
        "classifiers": len(values),
        "mean": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "largest": max(values, key=abs),
        "within_bound": max(abs(mean.low), abs(mean.high)) <= BOUND,
    }

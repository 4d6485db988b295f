"""``aeft bench precision``: what bf16 does to the seeds of trained classifiers, fp32 beside it.

The classifiers are those of the store: repeat 0 of the laptop's ablations, as `aeft reproduce`
leaves them.  They learned from features that the frozen trunk cached in bf16.  Two differences:

- `network`: the network in bf16 - in fp32, both on the features that it learned from.
- `features`: the network in fp32, on those features - on features in fp32, which it never saw.

Each is scored alike, and no training amplifies what rounding does.  The rule: bf16 reads networks
as long as every classifier's `network` lies within ±`BOUND` points of mIoU, and caches features as
long as the 95 % interval of the mean of `features` does.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from aeft_lib import paths
from aeft_lib.engine.device import PRECISION, has_bf16
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact, Inputs, Stage
from aeft_lib.stages.cache_features import cache_features
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_seeds
from aeft_lib.studies import catalogue, pipeline, profiles
from aeft_lib.studies.effects import effect
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

PROFILE = profiles.LAPTOP
STUDIES = ("gap_vs_gpp", "pyramid_ablation", "triplet_ablation", "ours_ablation")
METRICS = ("miou", "miou_maskless")
BOUND = 0.11
Rule = Callable[[list[float]], bool]


def _each_within(values: list[float]) -> bool:
    return max(map(abs, values)) <= BOUND


def _mean_within(values: list[float]) -> bool:
    mean = effect(values)
    return max(abs(mean.low), abs(mean.high)) <= BOUND


RULES: dict[str, Rule] = {
    f"{part}_{metric}": rule
    for part, rule in (("network", _each_within), ("features", _mean_within))
    for metric in METRICS
}


def benchmarks() -> list[dict]:
    """A row a trained classifier: each difference in points of each metric; then one of their means."""
    if not has_bf16(torch.device("cpu")):
        raise ValueError("this CPU has no instructions for bf16: there is nothing to compare")
    if asked := os.environ.get(PRECISION):
        raise ValueError(f"{PRECISION}={asked} would read both sides alike: unset it")
    rows = {row.name: row for name in STUDIES for row in catalogue.get(name).rows}
    differences = {name: _differences(row) for name, row in rows.items() if _is_trained(row)}
    if len(differences) < 2:
        command = f"aeft run {STUDIES[1]} --profile {PROFILE.name} --repeats 1"
        raise ValueError(
            f"the store {paths.runs()} has no trained classifiers: run `{command}` first"
        )
    lines = [{"name": f"precision.{name}", **found} for name, found in differences.items()]
    return [*lines, *(_mean(name, rule, differences) for name, rule in RULES.items())]


def _is_trained(row: Row) -> bool:
    try:
        pipeline.classifiers(PROFILE, row, 0, store.lookup)
    except LookupError:
        return False
    return True


def _differences(row: Row) -> dict[str, float]:
    classifier = pipeline.classifiers(PROFILE, row, 0, store.lookup)["classifier"]
    half, network, full = (
        _scores(PROFILE, row, classifier, *precisions)
        for precisions in (("bf16", "bf16"), ("fp32", "bf16"), ("fp32", "fp32"))
    )
    pairs = {"network": (half, network), "features": (network, full)}
    return {
        f"{part}_{metric}": less_exact[metric] - exact[metric]
        for part, (less_exact, exact) in pairs.items()
        for metric in METRICS
    }


def _scores(
    profile: Profile, row: Row, classifier: Artefact, network: str, features: str
) -> dict[str, float]:
    def obtain(stage: Stage, spec: Any, *inputs: Inputs) -> Artefact:
        spec = replace(spec, precision=features) if stage is cache_features else spec
        return store.obtain(stage, spec, *inputs)

    read = replace(row.setting.applied(profile, 0), inference=network)
    seeds = pipeline.seeds(read, row, classifier, row.scored_on, obtain)
    scenes = read.scenes(row.scored_on)
    spec = EvaluationSpec(scenes, read.thresholds, scenes.open().truth)
    return obtain(evaluate_seeds, spec, {"seeds": seeds}).summary


def _mean(name: str, within: Rule, differences: dict[str, dict[str, float]]) -> dict:
    values = [found[name] for found in differences.values()]
    mean = effect(values)
    return {
        "name": f"precision.mean.{name}",
        "classifiers": len(values),
        "mean": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "largest": max(values, key=abs),
        "within_bound": within(values),
    }

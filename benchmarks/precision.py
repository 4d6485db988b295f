"""``aeft bench precision``: what bf16 does to trained networks when they are read, fp32 beside it.

The networks are those of the store: classifiers and segmentation networks of repeat 0 of the
laptop's ablations, as `aeft reproduce` leaves them.  Classifiers learned from features that the
frozen trunk cached in bf16.  Differences, in points of the mIoU of seeds and of label maps:

- `classifier`: in bf16 - in fp32, both on the features that it learned from.
- `features`: a classifier in fp32, on those features - on features in fp32, which it never saw.
- `segmenter`: in bf16 - in fp32.

No training amplifies what rounding does.  The rule: classifiers are read in bf16 where `classifier`
lies within ±`BOUND` points for every one, segmentation networks where `segmenter` does, and
features are cached in bf16 where the 95 % interval of the mean of `features` does.
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
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_seeds
from aeft_lib.stages.infer_seeds import infer_seeds
from aeft_lib.stages.predict_logits import predict_logits
from aeft_lib.studies import catalogue, pipeline, profiles
from aeft_lib.studies.effects import effect
from aeft_lib.studies.rows import Row

PROFILE = profiles.LAPTOP
HALF = replace(PROFILE, inference="bf16", segmenter_inference="bf16")
STUDIES = ("gap_vs_gpp", "pyramid_ablation", "triplet_ablation", "ours_ablation", "segmentation")
METRICS = ("miou", "miou_maskless")
BOUND = 0.11
Rule = Callable[[list[float]], bool]


def _each_within(values: list[float]) -> bool:
    return max(map(abs, values)) <= BOUND


def _mean_within(values: list[float]) -> bool:
    mean = effect(values)
    return max(abs(mean.low), abs(mean.high)) <= BOUND


PARTS = (("classifier", _each_within), ("features", _mean_within), ("segmenter", _each_within))
RULES: dict[str, Rule] = {f"{part}_{metric}": rule for part, rule in PARTS for metric in METRICS}


def benchmarks() -> list[dict]:
    """A row a trained network: each difference in points; then one of the mean of each."""
    if not has_bf16(torch.device("cpu")):
        raise ValueError("this CPU has no instructions for bf16: there is nothing to compare")
    if asked := os.environ.get(PRECISION):
        raise ValueError(f"{PRECISION}={asked} would read both sides alike: unset it")
    rows = {row.name: row for name in STUDIES for row in catalogue.get(name).rows}
    learned = [row for row in rows.values() if row.segmenter or not row.refiner]
    differences = {row.name: _differences(row) for row in learned if _is_trained(row)}
    if len(differences) < 2:
        command = f"aeft run {STUDIES[1]} --profile {PROFILE.name} --repeats 1"
        raise ValueError(f"the store {paths.runs()} has no trained networks: run `{command}` first")
    lines = [{"name": f"precision.{name}", **found} for name, found in differences.items()]
    of_part = {name: [d[name] for d in differences.values() if name in d] for name in RULES}
    means = [_mean(name, RULES[name], values) for name, values in of_part.items() if values[1:]]
    return [*lines, *means]


def _is_trained(row: Row) -> bool:
    try:
        pipeline.artefacts(PROFILE, row, 0, store.lookup)
    except LookupError:
        return False
    return True


def _differences(row: Row) -> dict[str, float]:
    half = pipeline.artefacts(HALF, row, 0, store.obtain)["evaluation"].summary
    exact = _in_fp32(row)
    if row.segmenter:
        pairs = {"segmenter": (half, exact)}
    else:
        pairs = {"classifier": (half, exact), "features": (exact, _on_features_in_fp32(row))}
    return {
        f"{part}_{metric}": one[metric] - other[metric]
        for part, (one, other) in pairs.items()
        for metric in METRICS
    }


def _in_fp32(row: Row) -> dict[str, float]:
    """The scores of a row whose last network is read in fp32."""
    last = predict_logits if row.segmenter else infer_seeds

    def obtain(stage: Stage, spec: Any, *inputs: Inputs) -> Artefact:
        return store.obtain(
            stage, replace(spec, precision="fp32") if stage is last else spec, *inputs
        )

    return pipeline.artefacts(PROFILE, row, 0, obtain)["evaluation"].summary


def _on_features_in_fp32(row: Row) -> dict[str, float]:
    classifier = pipeline.classifiers(PROFILE, row, 0, store.lookup)["classifier"]
    read = replace(row.setting.applied(PROFILE, 0), inference="fp32")
    seeds = pipeline.seeds(read, row, classifier, row.scored_on, store.obtain)
    scenes = read.scenes(row.scored_on)
    spec = EvaluationSpec(scenes, read.thresholds, scenes.open().truth)
    return store.obtain(evaluate_seeds, spec, {"seeds": seeds}).summary


def _mean(name: str, within: Rule, values: list[float]) -> dict:
    mean = effect(values)
    return {
        "name": f"precision.mean.{name}",
        "networks": len(values),
        "mean": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "largest": max(values, key=abs),
        "within_bound": within(values),
    }

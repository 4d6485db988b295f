"""Which stages a row takes: passes that rows share, and the precision of what is read.

Nothing is computed: artefacts are named by their keys alone.
"""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aeft_lib.engine import device as devices
from aeft_lib.engine.step import Compute
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.stages import store
from aeft_lib.stages.cache_features import cache_features
from aeft_lib.stages.infer_seeds import infer_seeds
from aeft_lib.stages.keys import decisive
from aeft_lib.stages.predict_logits import predict_logits
from aeft_lib.studies import catalogue
from aeft_lib.studies.pipeline import artefacts, with_fast_steps
from aeft_lib.studies.profiles import LAPTOP, SMOKE
from aeft_lib.studies.rows import GAP
from aeft_lib.studies.settings import Profile

SEGMENTATION = catalogue.get("segmentation")
READ_ALONE = ("segment_aeft", "segment_aeft_crf", "segment_aeft_tags")


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv(devices.PRECISION, raising=False)
    monkeypatch.setenv("AEFT_DEVICE", "cpu")


def planned(profile: Profile, row: Any) -> dict[str, tuple[Any, store.Artefact, dict]]:
    """Spec, artefact and inputs of every stage of a row, the last one of its name."""
    made = {}

    def obtain(stage: store.Stage, spec: Any, inputs: dict | None = None) -> store.Artefact:
        summary = {"summary": {"low": 1.0, "middle": 1.0, "high": 1.0, "threshold": 0.5}}
        name, key = stage.__name__, store.key_for(stage, spec, inputs)
        artefact = store.Artefact(name, key, Path(key), summary, spec)
        made[name] = (spec, artefact, inputs or {})
        return artefact

    artefacts(profile, row, 0, obtain)
    return made


def test_rows_that_read_one_network_in_three_ways_share_its_passes():
    stages = [planned(SMOKE, SEGMENTATION.row(name)) for name in READ_ALONE]
    for shared in ("train_segmenter", "predict_logits"):
        assert len({made[shared][1].key for made in stages}) == 1
    assert len({made["predict_labels"][1].key for made in stages}) == 3
    for made in stages:
        spec, _, inputs = made["predict_labels"]
        assert inputs == {"logits": made["predict_logits"][1]}
        assert spec.scales == made["predict_logits"][0].scales


def test_bf16_stands_in_the_specs_of_what_is_read_and_changes_its_key(monkeypatch):
    row = SEGMENTATION.row("segment_aeft")
    monkeypatch.setenv(devices.PRECISION, "fp32")
    exact = planned(SMOKE, row)
    monkeypatch.setenv(devices.PRECISION, "bf16")
    fast = planned(SMOKE, row)
    for stage in (cache_features, infer_seeds, predict_logits):
        (spec, artefact, inputs), (other, changed, _) = (x[stage.__name__] for x in (exact, fast))
        assert (spec.precision, other.precision) == ("fp32", "bf16")
        assert replace(other, precision="fp32") == spec
        assert store.key_for(stage, other, inputs) != artefact.key != changed.key
        assert "precision" not in decisive(spec)
    labels = fast["predict_labels"]
    assert labels[0].precision == "fp32"  # it reads logits
    assert labels[1].key != exact["predict_labels"][1].key


@pytest.mark.parametrize(("flags", "laptop"), [("avx2", "fp32"), ("avx2 amx_bf16", "bf16")])
def test_smoke_is_fp32_everywhere_and_laptop_what_the_machine_has(monkeypatch, flags, laptop):
    monkeypatch.setattr(devices, "_cpu_info", lambda field: flags)
    assert SMOKE.precision == "fp32"
    assert planned(SMOKE, GAP)["infer_seeds"][0].precision == "fp32"
    assert LAPTOP.precision == laptop
    assert planned(LAPTOP, GAP)["cache_features"][0].precision == laptop
    assert (
        planned(LAPTOP, SEGMENTATION.row("segment_aeft"))["predict_logits"][0].precision == "fp32"
    )


@pytest.mark.parametrize(("flags", "here"), [("avx2", "fp32"), ("avx2 amx_bf16", "bf16")])
def test_results_of_other_machines_are_those_in_all_other_precisions(monkeypatch, flags, here):
    monkeypatch.setattr(devices, "_cpu_info", lambda field: flags)
    precisions = itertools.product(("fp32", "bf16"), repeat=2)
    others = [(p.precision, p.segmenter_precision) for p in LAPTOP.on_other_machines]
    assert sorted([(here, "fp32"), *others]) == sorted(precisions)
    assert SMOKE.on_other_machines == ()


def test_an_unknown_precision_is_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setenv(devices.PRECISION, "fp8")
    with pytest.raises(ValueError, match="AEFT_PRECISION must be one of fp32, bf16, auto"):
        planned(SMOKE, GAP)


@pytest.mark.parametrize(
    ("changes", "flags", "precision"),
    [
        ({}, "amx_bf16", "fp32"),
        ({"backbone": ResNet38dSpec()}, "amx_bf16", "bf16"),
        ({"backbone": ResNet38dSpec()}, "avx2", "fp32"),
        ({"backbone": ResNet38dSpec(), "inference": "fp32"}, "amx_bf16", "fp32"),
        ({"backbone": ResNet38dSpec(), "compute": Compute("fp16")}, "amx_bf16", "fp16"),
    ],
    ids=str,
)
def test_steps_of_resnet38d_alone_take_bf16_where_the_cpu_has_it(
    monkeypatch, changes, flags, precision
):
    monkeypatch.setattr(devices, "_cpu_info", lambda field: flags)
    profile = replace(LAPTOP, **changes, erasing_compute=Compute(parts=2))
    fitted = with_fast_steps(profile)
    assert fitted.compute.precision == precision
    second = "bf16" if precision != "fp32" else "fp32"
    assert fitted.erasing_compute == Compute(second, parts=2)
    untouched = {"compute": profile.compute, "erasing_compute": profile.erasing_compute}
    assert replace(fitted, **untouched) == profile

"""Benchmarks compare like with like, and `precision` decides by its rule; seconds are not tested."""

import runpy
import sys

import pytest
import torch

from aeft_lib import paths
from aeft_lib.engine.device import PRECISION

FOLDER = paths.ROOT / "benchmarks"
SIDES = ("ours", "peer")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
    sys.modules.pop("measure", None)


@pytest.mark.parametrize("name", ["classifier_step", "triplet_step"])
def test_both_sides_of_a_training_step_have_the_same_losses(benchmark, name):
    step = benchmark("training")["_step"]
    ours, theirs = (
        {n: t.detach() for n, t in step(name, who, size=64)[0]().items()} for who in SIDES
    )
    # 2^-24 rounding x 4 operations a norm x 60 layers, margin 10: 1.4e-4, where 1e-6 is seen.  A bias
    # of one norm that is 0.01 off moves classification by 8e-4.
    torch.testing.assert_close(ours, theirs, rtol=2**-24 * 4 * 60 * 10, atol=0)


def test_what_a_step_saves_counts_each_storage_once(benchmark):
    weight, images = torch.ones(8, requires_grad=True), torch.ones(4, 8)

    def step():
        return {"loss": (images * weight).sum() + (images[:2] * weight).sum()}

    # Both products keep the images, for the gradient of the weight; the second as a view of them.
    assert benchmark("training")["_saved_bytes"](step) == images.nbytes


@pytest.mark.parametrize(
    ("rule", "values", "within"),
    [
        ("classifier_miou", [0.11, -0.11], True),
        ("classifier_miou", [0.0, 0.0, -0.12], False),
        ("segmenter_miou_maskless", [0.0, 0.12], False),
        # Mean 0.05, sd 0.01: ± 2.78 x 0.01 / sqrt 5 at 95 %.
        ("features_miou", [0.04, 0.04, 0.05, 0.06, 0.06], True),
        # A mean of 0 whose interval is wider than the bound.
        ("features_miou", [-0.3, 0.3], False),
    ],
)
def test_precision_decides_by_its_rule(benchmark, rule, values, within):
    assert benchmark("precision")["RULES"][rule](values) is within


@pytest.mark.parametrize(
    ("has", "asked", "message"),
    [(False, "", "no instructions for bf16"), (True, "fp32", "would read both sides alike: unset")],
)
def test_precision_needs_both_precisions(benchmark, monkeypatch, has, asked, message):
    monkeypatch.setenv(PRECISION, asked)
    found = benchmark("precision")["benchmarks"]
    monkeypatch.setitem(found.__globals__, "has_bf16", lambda where: has)
    with pytest.raises(ValueError, match=message):
        found()


def test_precision_names_the_run_that_fills_an_empty_store(benchmark, monkeypatch, tmp_path):
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path))
    monkeypatch.delenv(PRECISION, raising=False)
    found = benchmark("precision")["benchmarks"]
    monkeypatch.setitem(found.__globals__, "has_bf16", lambda where: True)
    with pytest.raises(ValueError, match="run `aeft run pyramid_ablation --profile laptop"):
        found()

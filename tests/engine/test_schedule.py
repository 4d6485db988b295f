"""The course of the learning rates and the optimiser:

by hand, beyond the end, golden parity, refusals.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from aeft_lib.engine.schedule import Schedule, make_optimiser


def schedule(**changes) -> Schedule:
    plain = {
        "epochs": 4,
        "batch_size": 6,
        "lr": 0.05,
        "head_lr": 0.1,
        "weight_decay": 0.01,
        "warmup_steps": 2,
    }
    return Schedule(**plain | changes)


def tiny() -> nn.ModuleDict:
    """The names that `make_optimiser` looks at, one frozen part."""
    backbone = nn.Sequential(nn.Conv2d(2, 4, 1).requires_grad_(False), nn.Conv2d(4, 4, 3))
    return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(4, 3)})


# --- the course ----------------------------------------------------------------------------------


def test_schedule_by_hand():
    plain = schedule(warmup_steps=4, poly_power=0.9)
    assert plain.factor(0, 100) == pytest.approx(0.25)
    assert plain.factor(1, 100) == pytest.approx(0.5 * 0.99**0.9)
    assert plain.factor(3, 100) == pytest.approx(0.97**0.9)
    assert plain.factor(50, 100) == pytest.approx(0.5**0.9)
    assert plain.factor(99, 100) == pytest.approx(0.01**0.9)
    assert schedule(warmup_steps=0).factor(0, 10) == 1
    assert schedule(warmup_steps=0, poly_power=1.0).factor(5, 10) == 0.5


def test_beyond_the_end_of_its_course_the_rate_stays_as_it_was():
    short = schedule(warmup_steps=0, poly_power=1.0, decay_steps=4)
    assert [short.factor(step, 7) for step in range(7)] == [1, 0.75, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert schedule(warmup_steps=0, poly_power=1.0).factor(9, 4) == 0.25


def test_a_course_longer_than_the_run_is_cut_off():
    long = schedule(warmup_steps=0, poly_power=1.0, decay_steps=16)
    assert [long.factor(step, 4) for step in range(4)] == [1, 15 / 16, 14 / 16, 13 / 16]


def test_two_phases_that_share_a_course_are_one_course():
    whole = schedule(warmup_steps=0)
    first, second = (replace(whole, decay_steps=12, decay_from=taken) for taken in (0, 5))
    factors = [first.factor(step, 5) for step in range(5)] + [
        second.factor(step, 7) for step in range(7)
    ]
    assert factors == [whole.factor(step, 12) for step in range(12)]
    assert (
        second.factor(7, 7) == second.factor(8, 7) == whole.factor(11, 12)
    )  # beyond the end of both
    assert replace(whole, decay_from=3).factor(2, 10) == whole.factor(
        5, 10
    )  # a course as long as the run


def test_warm_up_is_of_the_phase_whatever_was_taken_of_the_course():
    second = schedule(warmup_steps=4, poly_power=1.0, decay_steps=20, decay_from=10)
    assert [second.factor(step, 6) for step in range(6)] == pytest.approx(
        [0.5 / 4, 0.45 / 2, 0.4 * 3 / 4, 0.35, 0.3, 0.25]
    )


@pytest.mark.parametrize(("asked", "steps"), [(0, 3), (1, 1), (2, 2), (3, 3), (4, 3)])
def test_steps_of_an_epoch(asked, steps):
    assert schedule(batch_size=6, steps_per_epoch=asked).epoch_steps(20) == steps


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", -1e-3),
        ("head_lr", 0),
        ("optimiser", "adam"),
    ],
)
def test_schedule_refuses(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        schedule(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", math.nan),
        ("lr", math.inf),
        ("epochs", 2.5),
        ("epochs", True),
        ("epochs", "3"),
        ("batch_size", 4.0),
        ("warmup_steps", -1),
        ("decay_steps", -1),
        ("decay_steps", 2.0),
        ("decay_from", -1),
        ("decay_from", 2.0),
        ("decay_from", True),
        ("steps_per_epoch", -1),
        ("steps_per_epoch", True),
        ("weight_decay", -0.1),
        ("poly_power", -1.0),
        ("momentum", -0.9),
    ],
)
def test_schedule_refuses_what_would_fail_or_lie_later(name, value):
    with pytest.raises(ValueError, match=name):
        schedule(**{name: value})


# --- the optimiser -------------------------------------------------------------------------------


def test_optimiser_has_backbone_and_rest_and_nothing_frozen():
    network = tiny()
    for kind, expected in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimiser = make_optimiser(network, schedule(optimiser=kind))
        assert isinstance(optimiser, expected)
        backbone, rest = optimiser.param_groups
        assert (backbone["lr"], rest["lr"], rest["weight_decay"]) == (0.05, 0.1, 0.01)
        assert {id(p) for p in backbone["params"]} == {
            id(p) for p in network.backbone[1].parameters()
        }
        assert {id(p) for p in rest["params"]} == {id(p) for p in network.head.parameters()}
    network.backbone.requires_grad_(False)
    (rest,) = make_optimiser(network, schedule()).param_groups
    assert rest["lr"] == 0.1


# --- golden parity of both -----------------------------------------------------------------------


class Scalar(nn.Module):
    """One float64 weight that starts at 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))


def golden_courses(golden, golden_meta):
    """Of every case and group of the recorded run:

    name, group, schedule with the recorded momentum, recorded numbers.
    """
    vectors, length = golden("poly_sgd"), golden_meta("poly_sgd")["max_step"]
    cases = sorted(key.split("/")[0] for key in vectors if key.endswith("/param_f64"))
    assert cases, "the golden file holds no case"
    for case in cases:
        recorded = {
            key.removeprefix(f"{case}/"): array
            for key, array in vectors.items()
            if key.startswith(f"{case}/")
        }
        for group, rate in enumerate(recorded["lr_f64"][0]):
            course = Schedule(
                epochs=1,
                batch_size=1,
                lr=float(rate),
                head_lr=float(rate),
                weight_decay=float(recorded["group_wd_f64"][group]),
                warmup_steps=0,
                optimiser="sgd",
                momentum=float(recorded["momentum_f64"][group]),
                decay_steps=length,
            )
            yield f"{case}, group {group}", group, course, recorded


def descend(course: Schedule, recorded, group: int) -> tuple[list[float], list[float]]:
    """The rates and the weights of a descent into the recorded parabola, with the recorded number of steps."""
    scalar, steps = Scalar(), len(recorded["lr_f64"])
    optimiser = make_optimiser(scalar, course)
    rates, weights = [], [scalar.weight.item()]
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = course.head_lr * course.factor(step, steps)
        optimiser.zero_grad()
        (
            0.5
            * float(recorded["curvature_f64"])
            * (scalar.weight - float(recorded["target_f64"][group])) ** 2
        ).backward()
        optimiser.step()
        rates.append(optimiser.param_groups[0]["lr"])
        weights.append(scalar.weight.item())
    return rates, weights


def test_golden_rates_and_weights(golden, golden_meta):
    for name, group, course, recorded in golden_courses(golden, golden_meta):
        rates, weights = descend(course, recorded, group)
        assert rates == pytest.approx(recorded["lr_f64"][:, group].tolist(), abs=1e-10), name
        assert weights == pytest.approx(recorded["param_f64"][:, group].tolist(), abs=1e-10), name


def test_golden_momentum_is_the_weight_decay_even_in_groups_without_any(golden, golden_meta):
    """The reference's quirk `sgd_momentum`:

    neither the momentum it meant, nor none, gives its numbers.
    """
    for name, group, course, recorded in golden_courses(golden, golden_meta):
        assert course.momentum == recorded["wd_f64"], name
        assert course.weight_decay in (recorded["wd_f64"], 0), name
        for momentum in (0.0, 0.9):
            _, weights = descend(replace(course, momentum=momentum), recorded, group)
            assert abs(recorded["param_f64"][:, group] - weights).max() > 1e-6, name

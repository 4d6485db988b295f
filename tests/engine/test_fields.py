"""The four validators: what passes, what is refused, and that the message has the bad value."""

import math
import re
from types import SimpleNamespace

import pytest

from aeft_lib.engine.fields import choice, fraction, number, whole


def owner(value: object) -> SimpleNamespace:
    """Something with a good field and the one under test."""
    return SimpleNamespace(good=1, x=value)


def refused(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


NO_NUMBERS = [True, False, None, "1", "", (1,), [1], 1j]


# --- whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 2**70])
def test_whole_numbers_pass(value):
    whole(owner(value), "good", "x")


@pytest.mark.parametrize("value", [-1, 0.0, 1.0, 1.5, math.nan, math.inf, *NO_NUMBERS])
def test_what_is_not_whole_is_refused(value):
    with refused(f"x must be a whole number, at least 0, got {value!r}"):
        whole(owner(value), "good", "x")


@pytest.mark.parametrize("value", [3, 5, 7])
def test_whole_bounds_are_included(value):
    whole(owner(value), "x", least=3, most=7)


@pytest.mark.parametrize("value", [2, 8, -3, 5.0, True])
def test_beyond_whole_bounds(value):
    with refused(f"x must be a whole number, 3 to 7, got {value!r}"):
        whole(owner(value), "x", least=3, most=7)


def test_a_bool_is_no_whole_number_even_within_bounds():
    with refused("x must be a whole number, 0 to 1, got True"):
        whole(owner(True), "x", most=1)


def test_whole_without_an_upper_bound_names_the_lower():
    with refused("x must be a whole number, at least 1, got 0"):
        whole(owner(0), "x", least=1)


def test_a_bound_of_zero_is_a_bound():
    with refused("x must be a whole number, 0 to 0, got 1"):
        whole(owner(1), "x", most=0)


# --- number ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, 1e300, 5e-324])
def test_numbers_pass(value):
    number(owner(value), "good", "x")


@pytest.mark.parametrize("value", [-1, -5e-324, math.nan, math.inf, -math.inf, *NO_NUMBERS])
def test_what_is_no_number_is_refused(value):
    with refused(f"x must be a finite number and not negative, got {value!r}"):
        number(owner(value), "good", "x")


@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, math.nan, math.inf, *NO_NUMBERS])
def test_positive_leaves_zero_out(value):
    with refused(f"x must be a finite number and positive, got {value!r}"):
        number(owner(value), "good", "x", positive=True)
    number(owner(5e-324), "x", positive=True)


# --- fraction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 0.0, 0.5, 1.0])
def test_fractions_pass(value):
    fraction(owner(value), "good", "x")


@pytest.mark.parametrize("value", [-0.1, 1.1, 2, math.nan, math.inf, -math.inf, *NO_NUMBERS])
def test_what_is_no_fraction_is_refused(value):
    with refused(f"x must lie in 0..1, got {value!r}"):
        fraction(owner(value), "good", "x")


def test_a_fraction_may_have_another_end():
    fraction(owner(0.25), "x", most=0.25)
    with refused("x must lie in 0..0.25, got 0.3"):
        fraction(owner(0.3), "x", most=0.25)


# --- choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["soft", "rigid", 8, False])
def test_choices_pass(value):
    choice(owner(value), x=("soft", "rigid", 8, False))


@pytest.mark.parametrize("value", ["", "Soft", "sof", None, 1, 0, True, math.nan, ("soft",)])
def test_unknown_choices_are_refused(value):
    with refused(f"x must be one of soft, rigid, got {value!r}"):
        choice(owner(value), x=("soft", "rigid"))


@pytest.mark.parametrize(("value", "allowed"), [(1, (True, False)), (True, (0, 1)), (8.0, (8, 16))])
def test_equal_values_of_another_type_are_no_choice(value, allowed):
    with refused(f"x must be one of {allowed[0]}, {allowed[1]}, got {value!r}"):
        choice(owner(value), x=allowed)


def test_nan_is_no_choice_even_of_itself():
    with refused("x must be one of nan, got nan"):
        choice(owner(math.nan), x=(math.nan,))


# --- all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [whole, number, fraction])
def test_every_named_field_is_checked_and_the_first_bad_is_named(check):
    both = SimpleNamespace(a=1, b=-1, c=-2)
    check(both, "a")
    with pytest.raises(ValueError, match=r"^b must .*, got -1$"):
        check(both, "a", "b", "c")
    with pytest.raises(ValueError, match=r"^c must .*, got -2$"):
        check(both, "c", "b")


def test_every_choice_is_checked():
    both = SimpleNamespace(a="x", b="y")
    choice(both, a=("x",), b=("y", "z"))
    with refused("b must be one of z, got 'y'"):
        choice(both, a=("x",), b=("z",))

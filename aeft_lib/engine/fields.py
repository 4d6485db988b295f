"""Checks of fields, one call a rule; the error names the field, the rule and the bad value.

Own code: it is four short rules, and pydantic would wrap each message in three lines of its own.
"""

import math
from collections.abc import Sequence
from typing import Any

# Metadata of a field that says how something is computed, not what: keys leave it out.
NO_RESULT = {"result": False}


def whole(owner: Any, *names: str, least: int = 0, most: int | None = None) -> None:
    """Raises ValueError where a field is no int (a bool is none) from `least` to `most`."""
    for name in names:
        value = getattr(owner, name)
        ends = value < least or (most is not None and value > most) if _is(value, int) else True
        if ends:
            limits = f"at least {least}" if most is None else f"{least} to {most}"
            raise ValueError(f"{name} must be a whole number, {limits}, got {value!r}")


def number(owner: Any, *names: str, positive: bool = False) -> None:
    """Raises ValueError where a field is not finite, negative, or 0 but must be `positive`."""
    for name in names:
        value = getattr(owner, name)
        real = _is(value, int | float) and math.isfinite(value)
        if not real or value < 0 or (positive and value == 0):
            kind = "positive" if positive else "not negative"
            raise ValueError(f"{name} must be a finite number and {kind}, got {value!r}")


def fraction(owner: Any, *names: str, most: float = 1.0) -> None:
    """Raises ValueError where a field is no number from 0 to `most`."""
    for name in names:
        value = getattr(owner, name)
        if not _is(value, int | float) or not 0 <= value <= most:
            raise ValueError(f"{name} must lie in 0..{most:g}, got {value!r}")


def choice(owner: Any, **allowed: Sequence[Any]) -> None:
    """Raises ValueError where a field, ``name=values``, is none of its values, type included."""
    for name, values in allowed.items():
        value = getattr(owner, name)
        if not any(value == known and type(value) is type(known) for known in values):
            raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {value!r}")


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

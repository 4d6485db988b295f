"""A row laid out: which stages it runs, on which specs and inputs; nothing is computed."""

from types import SimpleNamespace

from aeft_lib.stages import store
from aeft_lib.studies import catalogue
from aeft_lib.studies.pipeline import artefacts
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


def named(stage, spec, inputs=None) -> SimpleNamespace:
    """In place of `store.obtain`: what an artefact is called and made of."""
    key = store.key_for(stage, spec, inputs)
    made = {"stage": stage.__name__, "spec": spec, "inputs": inputs or {}, "key": key}
    return SimpleNamespace(**made, summary={})


def laid_out(profile: Profile, row: Row, repeat: int = 0) -> dict[str, SimpleNamespace]:
    """The artefacts of a row by name, as `artefacts` gives them."""
    return artefacts(profile, row, repeat, named)


def planned(profile: Profile, row: str) -> dict[str, list]:
    """The specs of the stages that a row of the study `rivals` asks for, by stage."""
    asked: dict[str, list] = {}

    def obtain(stage, spec, inputs=None):
        asked.setdefault(stage.__name__, []).append(spec)
        return named(stage, spec, inputs)

    artefacts(profile, catalogue.get("rivals").row(row), 0, obtain)
    return asked

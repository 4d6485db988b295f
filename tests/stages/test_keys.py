"""Keys: what an artefact depends on, and what it does not.

The code is edited in a copy of the package, so the specs are the real ones; their keys are taken
before and after.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path

import pytest

from aeft_lib.data.augment import ViewSpec
from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.voc import VocSpec
from aeft_lib.engine.fields import NO_RESULT
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import Compute
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.paper.classifier import Classification
from aeft_lib.paper.gpp import Gap, Pyramid
from aeft_lib.paper.triplet import Triplet
from aeft_lib.rivals.occse import OcCse
from aeft_lib.stages import keys
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_seeds
from aeft_lib.stages.infer_seeds import SeedSpec, infer_seeds
from aeft_lib.stages.reading import MultiScale
from aeft_lib.stages.train_affinity import AffinitySpec, train_affinity
from aeft_lib.stages.train_classifier import ClassifierSpec, train_classifier
from aeft_lib.stages.train_segmenter import SegmenterSpec, train_segmenter

SCENES, LITE = SceneSpec("train", 32, 96), EfficientNetLiteSpec()
SCHEDULE = Schedule(2, 8, lr=3e-4, head_lr=1e-3, weight_decay=1e-2, warmup_steps=2)
GAP = ClassifierSpec(Classification(Gap()), 6, LITE, SCENES, SCHEDULE, seed=0)
PHOTOS = VocSpec("train_aug")
VOC = replace(GAP, method=Classification(Pyramid()), backbone=ResNet38dSpec(), scenes=PHOTOS)
# Real specs, each with its stage.
ASKED = {
    "gap": (train_classifier, GAP),
    "triplet": (train_classifier, replace(GAP, method=Triplet())),
    "occse": (train_classifier, replace(GAP, method=OcCse())),
    "voc": (train_classifier, replace(VOC, view=ViewSpec())),
    "seeds": (infer_seeds, SeedSpec(SCENES, MultiScale((1.0,)), "")),
    "affinity": (train_affinity, AffinitySpec(SCENES, LITE, SCHEDULE, 0)),
    "segmenter": (train_segmenter, SegmenterSpec(LargeFov(8), 6, LITE, SCENES, SCHEDULE, 0)),
    "scores": (evaluate_seeds, EvaluationSpec(SCENES, (0.5,))),
}
METHODS = {"gap", "triplet", "occse", "voc"}
TRAINED = METHODS | {"affinity", "segmenter"}
EVERY = set(ASKED)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the package, which keys read in place of the real one."""
    folder = tmp_path / "aeft_lib"
    shutil.copytree(keys.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys, "PACKAGE", folder)
    keys.forget()
    yield folder
    monkeypatch.undo()
    keys.forget()


def all_keys() -> dict[str, str]:
    """The keys of all that is asked for, as a new process would see them."""
    keys.forget()
    return {name: keys.key_of(stage, spec, {}) for name, (stage, spec) in ASKED.items()}


def edit(package: Path, name: str, old: str, new: str) -> None:
    file = package / name
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{name} has no {old!r}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def append(package: Path, name: str, code: str) -> None:
    with (package / name).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{code}\n")


def changed(before: dict[str, str]) -> set[str]:
    """The names whose keys are other than before."""
    return {name for name, key in all_keys().items() if key != before[name]}


# --- which modules count -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        # What a spec brings counts for the specs that name it.
        ("data/coco.py", set()),
        ("data/folder.py", set()),
        ("data/controlled.py", set()),
        ("data/voc.py", {"voc"}),
        ("data/collages.py", EVERY - {"voc"}),
        ("networks/resnet38d.py", {"voc"}),
        ("networks/generic.py", set()),
        ("networks/efficientnet_lite.py", TRAINED - {"voc"}),
        ("networks/segmenter.py", {"segmenter"}),
        ("paper/triplet.py", {"triplet"}),
        ("paper/erasing.py", {"triplet"}),
        ("paper/gpp.py", METHODS),
        ("rivals/occse.py", {"occse"}),
        ("rivals/ours.py", set()),
        ("stages/psa.py", set()),
        # The stage's own code, and what it reaches.
        ("stages/train_classifier.py", METHODS),
        ("stages/infer_seeds.py", {"seeds"}),
        ("stages/evaluate.py", {"scores"}),
        ("engine/loop.py", TRAINED),
        ("maps/evaluation.py", {"scores"}),
        # Who asks, draws or keeps has no say.
        ("studies/profiles.py", set()),
        ("studies/catalogue.py", set()),
        ("studies/pipeline.py", set()),
        ("lab/session.py", set()),
        ("cli.py", set()),
        ("__init__.py", set()),
        *((f"{name}.py", set()) for name in ("paths", "stages/store", "stages/keys")),
        ("stages/artefact.py", set()),
    ],
)
def test_code_counts_for_what_names_or_reaches_it(package, module, expected):
    before = all_keys()
    append(package, module, "EDITED = 1")
    assert changed(before) == expected


def test_gap_reaches_neither_the_triplet_nor_other_data_nor_rivals():
    stage, spec = ASKED["gap"]
    named = {stage.__module__, *keys.spec_modules(spec)}
    reached = set().union(*map(keys.reachable_modules, named))
    others = {"paper.triplet", "paper.erasing", "data.coco", "data.voc", "data.folder"}
    assert not {f"aeft_lib.{name}" for name in others} & reached
    readers = (r"(rivals|studies|lab|refinement|cli|paths)\b", r"maps\.(seeds|evaluation)")
    assert not [name for name in reached if re.match(rf"aeft_lib\.({'|'.join(readers)})", name)]
    needed = {"paper.gpp", "paper.classifier", "paper.losses", "data.collages", "engine.loop"}
    needed |= {"networks.efficientnet_lite", "stages.train_classifier", "stages.cache_features"}
    assert {f"aeft_lib.{name}" for name in needed} <= reached


def test_the_code_of_inputs_counts_by_their_keys_alone():
    """Seeds name no method: the classifier's key brings it."""
    stage, spec = ASKED["seeds"]
    assert keys.key_of(stage, spec, {"classifier": "a"}) != keys.key_of(stage, spec, {})
    reached = keys.reachable_modules(stage.__module__)
    assert not [name for name in reached if name.startswith(("aeft_lib.paper", "aeft_lib.rivals"))]


def test_no_module_hides_from_the_key_by_the_form_of_its_import():
    for file in keys.PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from \.|import aeft_lib)", text, re.M), file.name


# --- which edits count -------------------------------------------------------------------------

GAP_CLASS = "class GlobalAveragePooling"
MARGIN = "    margin: float = 0.5\n"


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("paper/gpp.py", GAP_CLASS, f"# because\n\n\n{GAP_CLASS}"),
        ("paper/losses.py", '"""L_cls: binary', '"""L_cls, as ever: binary'),
        (
            "paper/losses.py",
            "def attract_soft(positive: Tensor,",
            "def attract_soft(\n    positive: Tensor,",
        ),
        *(
            ("paper/triplet.py", MARGIN, f"{MARGIN}    extra: {kind} = {off}\n")
            for kind, off in (
                ("int | None", "None"),
                ("bool", "False"),
                ("int", "0"),
                ("float", "0.0"),
                ("str", '""'),
                ("tuple[int, ...]", "()"),
            )
        ),
        (
            "engine/schedule.py",
            "    decay_from: int = 0\n",
            "    decay_from: int = 0\n    nesterov: bool = False\n",
        ),
        (
            "paper/triplet.py",
            "from torch import Tensor\n\nfrom aeft",
            "from torch import Tensor\nfrom aeft",
        ),
    ],
)
def test_layout_words_and_fields_that_are_off_do_not_count(package, module, old, new):
    before = all_keys()
    edit(package, module, old, new)
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        # A class that a spec names, its default, a new field that is on.
        (
            "paper/triplet.py",
            '"positive_logits": positive.logits',
            '"positive_logits": anchor.logits',
            {"triplet"},
        ),
        ("paper/triplet.py", MARGIN, "    margin: float = 0.4\n", {"triplet"}),
        ("paper/triplet.py", "    min_hard: int = 0\n", "    min_hard: int = 4\n", {"triplet"}),
        ("paper/triplet.py", MARGIN, f"{MARGIN}    extra: float = 0.1\n", {"triplet"}),
        ("paper/triplet.py", MARGIN, f"{MARGIN}    extra: bool = True\n", {"triplet"}),
        ("rivals/occse.py", "first_weight: float = 0.3", "first_weight: float = 0.4", {"occse"}),
        ("data/voc.py", "    size: int = 0\n", "    size: int = 256\n", {"voc"}),
        ("networks/resnet38d.py", '("b2", 64, 128,', '("b2", 64, 129,', {"voc"}),
        # A base class, and a function that the class calls.
        ("paper/classifier.py", "    needs = ()\n", '    needs = ("images",)\n', METHODS),
        ("paper/losses.py", "difference.abs().mean()", "difference.mean()", METHODS),
        # The stage.
        ("stages/train_classifier.py", 'WARM_START = "warm_start"', 'WARM_START = "warm"', METHODS),
    ],
)
def test_code_counts(package, module, old, new, expected):
    before = all_keys()
    edit(package, module, old, new)
    assert changed(before) == expected


# --- imports count by what they bind -----------------------------------------------------------


def renamed(package: Path, old: str, new: str) -> None:
    """Move a module, ``room.name`` to ``room.name``, and every import of it."""
    home, name = (part for part in old.split("."))
    place, called = (part for part in new.split("."))
    (package / home / f"{name}.py").rename(package / place / f"{called}.py")
    alias = called if called == name else f"{called} as {name}"
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        text = re.sub(
            rf"\bfrom aeft_lib\.{home}\.{name} import",
            f"from aeft_lib.{place}.{called} import",
            text,
        )
        lines = []
        for line in text.splitlines():
            match = re.fullmatch(rf"(\s*)from aeft_lib\.{home} import (.*)", line)
            names = match[2].split(", ") if match else []
            if name in names:
                names.remove(name)
                lines += (
                    [f"{match[1]}from aeft_lib.{home} import {', '.join(names)}"] if names else []
                )
                line = f"{match[1]}from aeft_lib.{place} import {alias}"
            lines.append(line)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert not re.search(rf"aeft_lib\.{home}\.{name}\b", "\n".join(lines)), file


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("engine.loop", "engine.training"),  # reached by trainings
        ("engine.samples", "networks.batch"),
        ("networks.state", "engine.weights_on_disk"),
        ("data.coco", "data.microsoft"),  # reached by nothing that is asked for
        ("maps.labels", "data.labels"),
    ],
)
def test_a_module_that_is_reached_may_be_renamed_and_moved(package, old, new):
    before = all_keys()
    renamed(package, old, new)
    assert changed(before) == set()


def test_a_module_that_a_spec_names_may_be_renamed_and_moved(package, monkeypatch):
    before = all_keys()
    renamed(package, "paper.gpp", "networks.pyramids")
    for kind in (Gap, Pyramid):
        monkeypatch.setattr(kind, "__module__", "aeft_lib.networks.pyramids")
    assert changed(before) == set()
    append(package, "networks/pyramids.py", "EDITED = 1")
    assert changed(before) == METHODS  # it was read there


def test_a_stage_may_be_renamed_and_moved(package, monkeypatch):
    before = all_keys()
    renamed(package, "stages.train_classifier", "stages.classification")
    for kind in (ClassifierSpec, train_classifier):
        monkeypatch.setattr(kind, "__module__", "aeft_lib.stages.classification")
    assert changed(before) == set()
    append(package, "stages/classification.py", "EDITED = 1")
    assert changed(before) == METHODS


def small(package: Path, uses: str) -> str:
    """The key of a stage of one file, which imports from another of two functions."""
    (package / "stages" / "parts.py").write_text(
        "def f():\n    return 1\n\n\ndef g():\n    return 2\n"
    )
    (package / "stages" / "more.py").write_text("def f():\n    return 3\n")
    (package / "stages" / "small.py").write_text(uses)
    keys.forget()

    def stage() -> None:
        pass

    stage.__module__ = "aeft_lib.stages.small"
    return keys.key_of(stage, None, {})


BODY = "\n\ndef small():\n    return f() - g()\n"
PARTS = "from aeft_lib.stages.parts import"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{PARTS} f, g", f"{PARTS} f as g, g as f"),  # aliases swapped
        (f"{PARTS} f, g", f"{PARTS} g\nfrom aeft_lib.stages.more import f"),  # from elsewhere
        ("from math import exp as f, log as g", "from math import log as f, exp as g"),
        ("from math import exp as f, log as g", "from cmath import exp as f, log as g"),
        ("import math as f, cmath as g", "import cmath as f, math as g"),
        (
            "from aeft_lib.stages import more as g, parts as f",
            "from aeft_lib.stages import more as f, parts as g",
        ),
    ],
)
def test_imports_count_by_what_a_name_stands_for(package, before, after):
    assert small(package, before + BODY) != small(package, after + BODY)


@pytest.mark.parametrize(
    "after", [f"{PARTS} g, f", f"{PARTS} g\n{PARTS} f", f"{PARTS} (\n    f as f,\n    g,\n)"]
)
def test_the_order_and_layout_of_imports_do_not_count(package, after):
    assert small(package, f"{PARTS} f, g" + BODY) == small(package, after + BODY)


def test_swapped_aliases_in_the_library_are_seen(package):
    before = all_keys()
    edit(
        package,
        "paper/classifier.py",
        "import Gap, PooledPrediction, Pyramid",
        "import Gap as Pyramid, PooledPrediction, Pyramid as Gap",
    )
    assert changed(before) == METHODS


# --- code alone --------------------------------------------------------------------------------


def bare(package: Path, code: str) -> str:
    (package / "stages" / "small.py").write_text(code)
    keys.forget()
    return keys._parsed("aeft_lib.stages.small").bare


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 1  # because\n\n"),
        ("def f(a, b):\n    return a", "def f(a,\n      b):\n    '''Doc.'''\n    return a"),
        ("class A:\n    x = 1", 'class A:\n    """Doc."""\n\n    x = 1'),
        ("def f():\n    pass", 'def f():\n    """Only a docstring."""'),
        ("x = 'a'", '"""Module."""\nx = "a"'),
        ("if x:\n    pass", "if x:\n    import os"),
    ],
)
def test_explanations_do_not_count_as_code(package, before, after):
    assert bare(package, before) == bare(package, after)


DATACLASS = "@dataclass(frozen=True)\nclass A:\n    x: int = 1\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 1.0"),
        ("def f(a=1):\n    return a", "def f(a=2):\n    return a"),
        ("def f():\n    '''Doc.'''\n    return 1", "def f():\n    '''Doc.'''\n    return 2"),
        ("x = '''text'''", "x = '''other'''"),
        ("x = f'{1}'", "x = f'{2}'"),
        # Not a field of a dataclass: a class attribute, a global, a local.
        ("class A:\n    x: int = 0", "class A:\n    pass"),
        ("x: int = 0", ""),
        ("def f():\n    x: int = 0\n    return x", "def f():\n    return x"),
        (DATACLASS, DATACLASS + "    needs = ()\n"),
        # A field without a default, or one that is on.
        (DATACLASS, DATACLASS + "    y: int = 2\n"),
        (DATACLASS, DATACLASS.replace("    x", "    y: int\n    x")),
    ],
)
def test_all_else_counts_as_code(package, before, after):
    assert bare(package, before) != bare(package, after)


# --- the spec ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """The least that a stage can be told."""

    value: int = 1
    levels: tuple[int, ...] = (2, 4)
    made: tuple[int, ...] = field(default_factory=lambda: (5, 6))
    speed: int = field(default=0, metadata=NO_RESULT)
    inner: object = None


def stage() -> None:
    """Outside the package, so its code does not count."""


def other() -> None:
    """As `stage`, by another name."""


def test_key_depends_on_stage_spec_and_inputs():
    different = [
        keys.key_of(stage, Spec(), {}),
        keys.key_of(other, Spec(), {}),
        keys.key_of(stage, Spec(value=2), {}),
        keys.key_of(stage, Spec(levels=(2, 4, 8)), {}),
        keys.key_of(stage, Spec(levels=(4, 2)), {}),
        keys.key_of(stage, Spec(made=(5,)), {}),
        keys.key_of(stage, Spec(inner=Spec()), {}),
        keys.key_of(stage, Spec(inner=(Spec(), Spec(value=2))), {}),
        keys.key_of(stage, Spec(), {"a": "0" * 16}),
        keys.key_of(stage, Spec(), {"a": "1" * 16}),
        keys.key_of(stage, Spec(), {"b": "0" * 16}),
    ]
    assert len(set(different)) == len(different)
    at_default = Spec(value=1, levels=(2, 4), made=(5, 6))
    assert keys.key_of(stage, at_default, {}) == different[0]
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in different)


def test_a_field_that_changes_no_result_does_not_count():
    assert keys.key_of(stage, Spec(speed=9), {}) == keys.key_of(stage, Spec(), {})
    for faster in (Compute(lookahead=4), Compute(checkpoint_every=7)):
        spec = replace(GAP, compute=faster)
        assert keys.key_of(train_classifier, spec, {}) == keys.key_of(train_classifier, GAP, {})
    spec = replace(GAP, compute=Compute(parts=2))
    assert keys.key_of(train_classifier, spec, {}) != keys.key_of(train_classifier, GAP, {})


def test_a_new_field_counts_once_it_is_turned_on():
    longer = make_dataclass("Spec", [("extra", int, field(default=0))], bases=(Spec,), frozen=True)
    assert keys.decisive(longer()) == keys.decisive(Spec())
    assert keys.decisive(longer(extra=1)) == keys.decisive(Spec()) | {"extra": 1}


def test_classes_with_the_same_fields_are_told_apart():
    """EfficientNet and ResNet38d may both be asked for with nothing but defaults."""
    twin = make_dataclass("Twin", [], bases=(Spec,), frozen=True)
    assert keys.key_of(stage, twin(), {}) != keys.key_of(stage, Spec(), {})
    inner = [keys.key_of(stage, Spec(inner=kind()), {}) for kind in (Gap, Pyramid, LargeFov)]
    assert len(set(inner)) == 3


def test_people_see_every_field_and_class():
    shown = keys.described(GAP)
    assert shown["class"] == "ClassifierSpec"
    assert shown["method"] == {"class": "Classification", "pooling": {"class": "Gap"}}
    assert shown["schedule"]["poly_power"] == 0.9
    assert shown["compute"]["lookahead"] == 0
    assert shown["view"] is None

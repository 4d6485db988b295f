"""The rooms of the library: who may import whom, how deep chains are, what each package says."""

import ast
from functools import cache
from pathlib import Path

import pytest

import aeft_lib

HOME = Path(aeft_lib.__file__).parent
MODULES = {
    ".".join(("aeft_lib", *file.relative_to(HOME).with_suffix("").parts)): file
    for file in HOME.rglob("*.py")
    if file.name != "__init__.py"
}
BELOW = {"maps": 0, "engine": 0, "networks": 1, "refinement": 1, "data": 1, "paper": 1}
BELOW |= {"stages": 2, "parts": 3, "rivals": 4, "studies": 5, "lab": 6}
LONGEST_CHAIN = 10
# What stages may know of rooms whose members their specs bring.
OPEN_TO_STAGES = {"networks": {"backbone", "state"}, "data": {"scene", "augment", "images"}}


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of ours that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(names & MODULES.keys() - {module})


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else ""


@cache
def longest(module: str) -> tuple[str, ...]:
    return (module, *max(map(longest, imports(module)), key=len, default=()))


ARROWS = [(a, b) for a in MODULES for b in imports(a) if room(a) != room(b) and room(a)]


def test_imports_go_downwards_only():
    inside = [(a, b) for a, b in ARROWS if room(b)]
    assert not [(a, b) for a, b in inside if BELOW[room(b)] >= BELOW[room(a)]]
    assert not [(a, b) for a, b in ARROWS if b == "aeft_lib.cli"]


def test_the_papers_room_knows_the_engine_alone():
    assert {room(b) for a, b in ARROWS if room(a) == "paper"} == {"engine"}


def test_stages_import_no_method_no_network_and_no_data_set():
    for a, b in ARROWS:
        if room(a) == "stages" and room(b) in ("paper", "rivals", "networks", "data"):
            assert b.split(".")[-1] in OPEN_TO_STAGES.get(room(b), ()), f"{a} imports {b}"


def test_rivals_never_import_each_other():
    rivals = [module for module in MODULES if room(module) == "rivals"]
    assert rivals
    assert not [(a, b) for a in rivals for b in imports(a) if room(b) == "rivals"]


def test_chains_are_short():
    chain = max(map(longest, MODULES), key=len)
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_the_root_is_a_hall():
    assert {module for module in MODULES if not room(module)} == {"aeft_lib.cli", "aeft_lib.paths"}
    assert set(aeft_lib.__all__) == {
        *("PyramidPooling", "CamClassifier", "erase", "attract_soft", "repel")
    }


@pytest.mark.parametrize("package", [HOME, *(HOME / name for name in BELOW)], ids=lambda p: p.name)
def test_every_package_says_what_lives_there(package):
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    assert len(ast.get_docstring(tree).splitlines()) >= 3

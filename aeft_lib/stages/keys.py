"""The key of an artefact: its spec, its inputs, and the code behind both.

The code that counts is the stage's module, the modules that define the classes in its spec, and
those that these reach by imports.  Its place does not count: modules may be renamed and moved.  Nor
do comments, docstrings and layout, nor a new field that is off (None, False, 0, "", ()).
"""

import ast
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]
# They keep results and make none.
STORE = ("aeft_lib.paths", *(f"aeft_lib.stages.{name}" for name in ("artefact", "store", "keys")))
BODIES = ("body", "orelse", "finalbody")


def key_of(stage: Callable, spec: Any, inputs: Mapping[str, str]) -> str:
    """16 hex digits that name the result of `stage` for a spec and input keys, by today's code."""
    parts = {
        "stage": stage.__name__,
        "spec": decisive(spec),
        "inputs": dict(inputs),
        "code": code_hash(frozenset({stage.__module__, *spec_modules(spec)})),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def decisive(spec: Any) -> Any:
    """A spec as plain data, without fields at their default or marked `fields.NO_RESULT`."""
    if dataclasses.is_dataclass(spec):
        fields = [f for f in dataclasses.fields(spec) if f.metadata.get("result", True)]
        values = {f.name: getattr(spec, f.name) for f in fields if not _at_default(spec, f)}
        named = {name: decisive(value) for name, value in values.items()}
        return {"class": type(spec).__qualname__} | named
    if isinstance(spec, tuple | list):
        return [decisive(item) for item in spec]
    return spec


def described(spec: Any) -> Any:
    """A spec as plain data for people: every field, and the class of everything in it."""
    if dataclasses.is_dataclass(spec):
        values = {f.name: described(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
        return {"class": type(spec).__qualname__} | values
    return [described(item) for item in spec] if isinstance(spec, tuple | list) else spec


def spec_modules(spec: Any) -> Iterator[str]:
    """The modules that define the classes of a spec and of the dataclasses in it."""
    if dataclasses.is_dataclass(spec):
        yield from (base.__module__ for base in type(spec).__mro__)
        for field in dataclasses.fields(spec):
            yield from spec_modules(getattr(spec, field.name))
    elif isinstance(spec, tuple | list):
        for item in spec:
            yield from spec_modules(item)


@cache
def code_hash(modules: frozenset[str]) -> str:
    """Hash of the code of these modules and of every module of ours that they reach."""
    reached = set().union(*(reachable_modules(module) for module in modules))
    # A package without code of its own may come and go with the modules in it.
    codes = [code for code in map(_code, reached) if code]
    digests = sorted(hashlib.sha256(code.encode()).hexdigest() for code in codes)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@cache
def reachable_modules(module: str) -> frozenset[str]:
    """`module` and what its imports lead to, inside the package; others count by their version."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in reached and name not in STORE and _file(name) is not None:
            reached.add(name)
            waiting += (target for node in _parsed(name).imports for target in _targets(node))
    return frozenset(reached)


def forget() -> None:
    """Drop what is cached of the code: for tests that change it."""
    for kept in (code_hash, reachable_modules, _code, _parsed):
        kept.cache_clear()


class _Parsed(NamedTuple):
    """A module's imports, wherever they stand, and its code without them.

    The code has no docstrings and no fields that are off either.
    """

    imports: tuple[ast.Import | ast.ImportFrom, ...]
    bare: str


@cache
def _code(module: str) -> str:
    """A module without layout, docstrings and paths: its imports, sorted, and its bare code."""
    parsed = _parsed(module)
    imports = sorted({line for node in parsed.imports for line in _imported(node)})
    return "\n".join([*imports, parsed.bare])


@cache
def _parsed(module: str) -> _Parsed:
    return _parsed_text(_file(module).read_text(encoding="utf-8"))


@cache
def _parsed_text(text: str) -> _Parsed:
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    for node in nodes:
        for name in BODIES:
            body = getattr(node, name, None)
            if isinstance(body, list):
                kept = [part for part in body if _counts(node, part)]
                needed = body and name == "body" and not isinstance(node, ast.Module)
                setattr(node, name, kept or ([ast.Pass()] if needed else []))
    imports = tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
    return _Parsed(imports, ast.unparse(tree))


def _counts(owner: ast.AST, part: ast.AST) -> bool:
    """Whether a statement is code: no import, no docstring, no field that is off."""
    if isinstance(part, ast.Import | ast.ImportFrom):
        return False
    if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
        return not isinstance(part.value.value, str)
    return not (isinstance(owner, ast.ClassDef) and _is_dataclass(owner) and _is_off(part))


def _is_dataclass(owner: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in owner.decorator_list)


def _is_off(part: ast.AST) -> bool:
    """Whether a statement is a field whose default is off: ``name: type = None``."""
    value = part.value if isinstance(part, ast.AnnAssign) else None
    if isinstance(value, ast.Tuple):
        return not value.elts
    return isinstance(value, ast.Constant) and value.value in (None, False, 0, "")


def _imported(node: ast.AST) -> Iterable[str]:
    """The names that an import binds, each with its module's code in place of a path of ours."""
    if isinstance(node, ast.Import):
        yield from (f"import {alias.name} as {alias.asname}" for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            bound, module = alias.asname or alias.name, f"{node.module}.{alias.name}"
            if _file(module) is not None:
                yield f"{bound} is {_digest(module)}"
            elif _file(node.module) is not None:
                yield f"{bound} is {alias.name} of {_digest(node.module)}"
            else:
                yield f"from {node.module} import {alias.name} as {bound}"


def _digest(module: str) -> str:
    """A digest of a module's bare code; modules that keep results count by their place alone."""
    if module in STORE:
        return module
    return hashlib.sha256(_parsed(module).bare.encode()).hexdigest()


def _targets(node: ast.AST) -> Iterable[str]:
    """The modules that an import statement may lead to."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(name: str | None) -> Path | None:
    """The file of a module or package of ours; None for anything else, the package itself too."""
    if not name or name.split(".")[0] != PACKAGE.name or "." not in name:
        return None
    stem = PACKAGE.joinpath(*name.split(".")[1:])
    files = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _at_default(spec: Any, field: dataclasses.Field) -> bool:
    """Whether a field holds its default, or what differs from it by no result."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        return False
    value = getattr(spec, field.name)
    return value == default or decisive(value) == decisive(default)

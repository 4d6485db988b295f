"""The parameters of a notebook: what its tagged cell defines, and what papermill was given."""

import ast
from collections.abc import Sequence

from aeft_lib.studies.names import unknown

INJECTED = "# Parameters\n"  # how the cell begins that papermill puts after the tagged one


def assigned_names(code: str) -> list[str]:
    """The names that a cell assigns.  Raises SyntaxError where it is not Python."""
    names: list[str] = []
    for node in ast.parse(code).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def check(cells: Sequence[str]) -> None:
    """Refuse what papermill was given and the notebook does not have; papermill only warns.

    cells: the source of those that ran, in order.  The injected one follows the tagged one.
    Raises ValueError naming the parameters there are.
    """
    for defining, injected in zip(("", *cells), cells, strict=False):
        if not injected.startswith(INJECTED):
            continue
        known = assigned_names(defining)
        for name in assigned_names(injected):
            if name not in known:
                raise unknown(f"this notebook has no parameter {name!r}", name, known)

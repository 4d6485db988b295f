"""Where things stand: the checkout, the embedded data, the stage store, the committed figures."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLLAGES = ROOT / "data" / "collages"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"


def runs() -> Path:
    """The stage store: ``AEFT_RUNS`` where it is set, else ``runs/`` in the checkout."""
    return Path(os.environ.get("AEFT_RUNS") or ROOT / "runs").expanduser()

"""Writes the weights that come with the package, see `shipped`: ``aeft weights --write``."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from aeft_lib import paths
from aeft_lib.networks import state
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact, Inputs, Stage
from aeft_lib.stages.evaluate_epochs import evaluate_epochs
from aeft_lib.stages.keys import decisive
from aeft_lib.stages.loading import loaded
from aeft_lib.studies import catalogue, profiles, run, shipped
from aeft_lib.studies.pipeline import Artefacts, artefacts
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


def command(row: str) -> str:
    """The command that trains a row's first repeat."""
    study = catalogue.study_of(row).name
    return f"aeft run {study} --profile {shipped.PROFILE} --row {row} --repeat {shipped.REPEAT}"


def write() -> list[str]:
    """Write the files and the manifest anew from the store; returns a line a network.

    A network that the store lacks stays as it is.  Raises ValueError where the store has none.
    """
    profile, file = profiles.get(shipped.PROFILE), shipped.FOLDER / shipped.MANIFEST
    commit = store.commit()  # before the first file changes the checkout
    scenes, entries, lines = profile.train.open(), {}, []
    for row in map(catalogue.row, shipped.ROWS):
        try:
            made = artefacts(profile, row, shipped.REPEAT, _stored)
        except LookupError:
            remedy = f"left as it was; train it with {command(row.name)}"
            lines.append(f"{row.name}: not in the store, {remedy}")
            continue
        entries[row.name] = _write(profile, row, made, commit)
        lines.append(f"{row.name}: {entries[row.name]['bytes'] / 1e6:.1f} MB")
    if not entries:
        raise ValueError(f"nothing to write; {'; '.join(lines)}")
    networks = (shipped.manifest()["networks"] if file.is_file() else {}) | entries
    networks = {name: networks[name] for name in shipped.ROWS if name in networks}
    lines += _drop_what_does_not_fit(networks)
    content = {
        "made_by": "aeft weights --write",
        "profile": shipped.PROFILE,
        "repeat": shipped.REPEAT,
        "classes": list(scenes.classes),
        "trained_on": f"{len(scenes)} collages of {profile.train.size} px",
        "networks": networks,
    }
    paths.write_text(file, json.dumps(content, indent=1) + "\n")
    return lines


def _drop_what_does_not_fit(networks: dict[str, dict[str, Any]]) -> list[str]:
    """Remove networks, and their files, beyond `shipped.MOST_BYTES`; returns a line for each."""
    lines, total = [], 0
    for name, entry in list(networks.items()):
        if total + entry["bytes"] <= shipped.MOST_BYTES:
            total += entry["bytes"]
            continue
        del networks[name]
        (shipped.FOLDER / entry["file"]).unlink(missing_ok=True)
        most = f"{shipped.MOST_BYTES / 1e6:.0f} MB that files may have together"
        lines.append(f"{name}: left out, it does not fit into the {most}")
    return lines


def _stored(stage: Stage, spec: Any, inputs: Inputs | None = None) -> Artefact:
    """What the store has, but for the curves over epochs, which nothing here reads."""
    if stage is evaluate_epochs:
        return Artefact(stage.__name__, "", Path(), {}, spec)
    return store.lookup(stage, spec, inputs)


def _write(profile: Profile, row: Row, made: Artefacts, commit: str) -> dict[str, Any]:
    """Write one file; its part of the manifest."""
    artefact = made[shipped.product(row)]
    trained = loaded(shipped.untrained, artefact)
    start = shipped.untrained(artefact.spec).state_dict()
    content = save(shipped.encoded(state.trained_state(trained), start))
    name = f"{row.name}.safetensors"
    with paths.replacing(shipped.FOLDER / name) as aside:
        aside.write_bytes(content)
    background = {"background": made["background"].summary} if "background" in made else {}
    return background | {
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "command": command(row.name),
        "commit": commit,
        "made_on": artefact.record["machine"],
        "key": artefact.key,
        "training": decisive(shipped.last_training(profile, row)),
        "numbers": run.numbers(made),
        "outputs": shipped.outputs(trained, shipped.probes(profile)).tolist(),
    }

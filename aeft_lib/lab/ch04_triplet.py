"""Chapter 4: one triplet with its maps and embeddings, the second phase, and effects of quirks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aeft_lib.data.scene import Scene
from aeft_lib.lab import figures
from aeft_lib.lab.cams import displayed
from aeft_lib.lab.session import Session, batch_of
from aeft_lib.paper import erasing
from aeft_lib.paper.classifier import CamClassifier, CamOutput
from aeft_lib.paper.triplet import REFERENCE, Triplet, metric_space
from aeft_lib.studies import catalogue

METRICS = ["miou", "precision", "recall"]


class TripletCase(NamedTuple):
    """One triplet, ready to be drawn.

    output: of the anchor, batch of one.  erased: its masked image.  positive: that image as RGB in
    0..1, (H, W, 3).  region: its residual region (1, K, h, w) bool.
    embeddings: name -> (K,): e_A, e_P, a, n, and n in the anchor's classes.
    """

    anchor: Scene
    negative: Scene
    output: CamOutput
    erased: erasing.Erasure
    positive: np.ndarray
    region: Tensor
    embeddings: dict[str, np.ndarray]


def triplet(
    session: Session, anchor: int, negative: int, row: str = "gated", settings: Triplet = REFERENCE
) -> TripletCase:
    """The triplet of two scored scenes as the trained classifier of a row sees it."""
    scenes = session.scenes
    return triplet_case(session.network(row), scenes[anchor], scenes[negative], settings)


def first_negative(session: Session, anchor: int) -> int:
    """The first scored scene that shares no class with the anchor.

    Raises ValueError where every scene shares one.
    """
    tags = [session.scenes.tags(index) for index in range(len(session.scenes))]
    apart = (i for i, other in enumerate(tags) if not (other & tags[anchor]).any())
    if (found := next(apart, None)) is None:
        raise ValueError(f"every scored scene shares a class with scene {anchor}")
    return found


def triplet_case(
    network: CamClassifier, anchor: Scene, negative: Scene, settings: Triplet
) -> TripletCase:
    """Mask, positive and embeddings of one anchor and one negative, which may differ in size.

    Raises ValueError where they share a class.
    """
    tags, others = (torch.from_numpy(scene.tags)[None] for scene in (anchor, negative))
    if (tags & others).any():
        names = f"{anchor.name} and {negative.name}"
        raise ValueError(f"{names} share a class: not an anchor and its negative")
    with torch.inference_mode():
        image = batch_of(network, anchor.image)
        output, other = network(image), network(batch_of(network, negative.image))
        limits = {"threshold": settings.erase_threshold, "keep": settings.keep}
        erased = erasing.erase(image, output.cam, tags, **limits)
        silent = settings.residual_threshold
        region = erasing.residual_region(output.cam, tags, threshold=silent)
        outputs = (output, network(erased.images), other)
        maps, masked, theirs = (metric_space(out, settings.space) for out in outputs)
        whole = erasing.region_embeddings(theirs)
        embeddings = {
            "e_A": erasing.embeddings(maps, tags),
            "e_P": erasing.embeddings(masked, tags),
            "a": erasing.region_embeddings(maps, region) * tags,
            "n": whole * others,
            "n in the anchor's classes": whole * tags,
        }
        positive = displayed(network, erased.images)
    values = {name: e[0].numpy() for name, e in embeddings.items()}
    return TripletCase(anchor, negative, output, erased, positive, region, values)


def triplet_pictures(case: TripletCase) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """For `ch04_figures.triplet_diagram`: eight pictures, the last are labels, and both pairs."""
    image, classes = case.anchor.image, np.flatnonzero(case.anchor.tags)
    tagged = case.region[0, torch.from_numpy(classes)].all(dim=0).numpy()
    pictures = {
        "anchor": image,
        "its CAM": figures.overlay(image, case.erased.foreground[0, 0].numpy()),
        "mask m": figures.overlay(image, case.erased.mask[0, 0].numpy()),
        "positive": case.positive,
        "anchor again": image,
        "residual region": figures.overlay(image, figures.stretched(tagged * 1.0, image)),
        "negative": case.negative.image,
        "its mask (truth)": case.negative.mask,
    }
    lines = []
    for pair, names in {"attract": ("e_A", "e_P"), "repel": ("a", "n")}.items():
        for name in names:
            for class_id, value in enumerate(case.embeddings[name].tolist()):
                line = {"pair": pair, "embedding": name, "class": class_id, "value": value}
                lines.append(line)
    return pictures, pd.DataFrame(lines)


def embedding_sizes(session: Session, rows: Sequence[str], scenes: int = 20) -> pd.DataFrame:
    """How much of the tagged classes the GPP space holds: means over the first scenes.

    ``row, label, repeat``; ``e_A`` of the anchor, ``e_P`` of its positive (ring mask), and their
    ``ratio``.  Rows that cannot be read are left out, and a line says so.
    """
    lines, indices = [], range(min(scenes, len(session.scenes)))
    for row in map(catalogue.row, session.known(rows)):
        for repeat in range(session.n_repeats):
            network = session.network(row.name, repeat)
            sizes = [_embedding_sizes(network, session.scenes[index]) for index in indices]
            means = dict(zip(("e_A", "e_P"), np.mean(sizes, axis=0), strict=True))
            lines.append({"row": row.name, "label": row.label, "repeat": repeat} | means)
    table = pd.DataFrame(lines, columns=["row", "label", "repeat", "e_A", "e_P"])
    return table.assign(ratio=table["e_P"] / table["e_A"])


def _embedding_sizes(network: CamClassifier, scene: Scene) -> tuple[float, float]:
    """The sum over the tagged classes of e_A, and of e_P of the masked image."""
    tags = torch.from_numpy(scene.tags)[None]
    with torch.inference_mode():
        image = batch_of(network, scene.image)
        whole = network(image)
        limits = {"threshold": REFERENCE.erase_threshold, "keep": REFERENCE.keep}
        erased = erasing.erase(image, whole.cam, tags, **limits)
        maps = [metric_space(out, REFERENCE.space) for out in (whole, network(erased.images))]
        e_a, e_p = (erasing.embeddings(m, tags).sum().item() for m in maps)
    return e_a, e_p


def progress(session: Session, rows: Sequence[str]) -> pd.DataFrame:
    """What the second phase does to seeds over its steps, in percent, at scale 1 alone.

    ``row, label, repeat, step``; precision, recall: at the warm start's best threshold, the same
    for all rows of a repeat; miou_best: at its own best.
    Random views of photos keep no epochs, and some rows no weights: the committed table is shown,
    and a line says so.
    Raises ValueError for a row that keeps none on cached scenes.
    """
    if not session.profile.cached:
        print("committed table over_expansion.csv of the laptop: no epochs of random views")
        return session.committed("over_expansion")
    if (committed := session.instead(rows, "over_expansion")) is not None:
        return committed
    lines = []
    for row in map(catalogue.row, rows):
        for repeat in range(session.n_repeats):
            artefacts = session.artefacts(row.name, repeat)
            if "epochs" not in artefacts:
                raise ValueError(
                    f"row {row.name} keeps no epochs: give it keep_epochs=True in catalogue.py"
                )
            curves = pd.read_csv(artefacts["epochs"].folder / "epochs.csv")
            names = {"row": row.name, "label": row.label, "repeat": repeat}
            steps = session.profile.erasing.steps_per_epoch
            steps = dict(row.setting.phase).get("steps_per_epoch", steps)
            lines += [names | line for line in _progress(curves, steps)]
    return pd.DataFrame(lines)


def _progress(curves: pd.DataFrame, steps_per_epoch: int) -> list[dict[str, float]]:
    """The lines of one row and repeat, an epoch each."""
    start = curves[curves["epoch"] == 0]
    threshold, lines = start.loc[start["miou"].idxmax(), "threshold"], []
    for epoch, curve in curves.groupby("epoch"):
        at = curve[curve["threshold"] == threshold].iloc[0]
        line = at[["precision", "recall"]].to_dict()
        line |= {"step": int(epoch) * steps_per_epoch, "miou_best": curve["miou"].max()}
        lines.append(line)
    return lines


def log(session: Session, row: str, repeat: int = 0) -> pd.DataFrame:
    """The training log of a row's last phase: one line an epoch."""
    return pd.read_csv(session.artefacts(row, repeat)["classifier"].folder / "log.csv")


def without_negative(session: Session, rows: Sequence[str]) -> str:
    """How many anchors of these rows' trainings had no negative, in words."""
    asked = "anchors without a negative, all steps and repeats"
    if not session.train:
        return f"{asked}: the package brings no training log (train = True)"
    repeats = range(session.n_repeats)
    counts = [log(session, row, n)["without_negative"].sum() for row in rows for n in repeats]
    return f"{asked}: {int(sum(counts))}"


def quirk_effects(table: pd.DataFrame) -> pd.DataFrame:
    """What correcting each quirk alone changes, in points, for mIoU, precision and recall.

    ``quirk, start, repeat, miou, precision, recall``
    start "reference": without the quirk minus with it.
    start "corrected": the corrected method minus it with the quirk.
    """
    pairs = {("mask_gradient", "reference"): ("detached", "reference")}
    for quirk in catalogue.MEASURED_QUIRKS:
        pairs.setdefault((quirk, "reference"), (f"without_{quirk}", "detached"))
        pairs[quirk, "corrected"] = ("corrected", f"with_{quirk}")
    parts = []
    for quirk in catalogue.MEASURED_QUIRKS:
        for start in ("reference", "corrected"):
            part = _paired(table, *pairs[quirk, start]).reset_index()
            parts.append(part.assign(quirk=quirk, start=start))
    return pd.concat(parts, ignore_index=True)


def setting_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Rigid and soft erasing under every setting: mean paired difference to classification alone.

    The baseline has the same rate, steps and map.
    """
    rows, lines = {row.name: row for row in catalogue.get("erasing_settings").rows}, {}
    for name, row in rows.items():
        if not name.startswith("gpp_only"):
            own = f"gpp_only_{name.split('_')[-1]}"
            lines[row.label] = _paired(table, name, own if own in rows else "gpp_only").mean()
    return pd.DataFrame(lines).T.dropna()


def _paired(table: pd.DataFrame, more: str, less: str) -> pd.DataFrame:
    """Row `more` minus row `less` in points, by repeat, for the repeats that both have."""
    wide = table.set_index(["row", "repeat"])[METRICS]
    rows = wide.index.get_level_values("row")
    sides = [wide[rows == name].droplevel("row") for name in (more, less)]
    return (sides[0] - sides[1]).dropna()

"""What notebook 4 looks at: one triplet with its maps and embeddings, and effects computed from study tables."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aeft_lib.data.collages import Scene
from aeft_lib.lab import figures
from aeft_lib.paper import erasing
from aeft_lib.paper.classifier import CamClassifier, CamOutput
from aeft_lib.paper.triplet import Triplet, metric_space
from aeft_lib.studies import catalogue, run

METRICS = ["miou", "precision", "recall"]


class TripletCase(NamedTuple):
    """One triplet, ready to be drawn.

    output: of the anchor, batch of one.  erased: its masked image.  region: its residual region (1, K, h, w) bool.
    embeddings: name -> (K,): e_A, e_P, a, n, and n in the anchor's classes.
    """

    anchor: Scene
    negative: Scene
    output: CamOutput
    erased: erasing.Erasure
    region: Tensor
    embeddings: dict[str, np.ndarray]


def triplet_case(network: CamClassifier, anchor: Scene, negative: Scene, settings: Triplet) -> TripletCase:
    """Mask, positive and embeddings of one anchor and one negative.  Raises ValueError where they share a class."""
    both = torch.from_numpy(np.stack([anchor.tags, negative.tags]))
    if not erasing.disjoint(both)[0, 1]:
        raise ValueError(f"{anchor.name} and {negative.name} share a class: not an anchor and its negative")
    tags = both[:1]
    with torch.inference_mode():
        images = network.backbone.normalise(torch.from_numpy(np.stack([anchor.image, negative.image])).permute(0, 3, 1, 2))
        outputs = network(images)
        first = CamOutput(*(None if part is None else part[:1] for part in outputs))
        erased = erasing.erase(images[:1], first.cam, tags, threshold=settings.erase_threshold, keep=settings.keep)
        positive = network(erased.images)
        region = erasing.residual_region(first.cam, tags, threshold=settings.residual_threshold)
        maps, masked = (metric_space(output, settings.space) for output in (outputs, positive))
        whole = erasing.region_embeddings(maps)
        found = {
            "e_A": erasing.embeddings(maps[:1], tags),
            "e_P": erasing.embeddings(masked, tags),
            "a": erasing.region_embeddings(maps[:1], region) * tags,
            "n": whole[1:] * both[1:],
            "n in the anchor's classes": whole[1:] * tags,
        }
    return TripletCase(anchor, negative, first, erased, region, {name: e[0].numpy() for name, e in found.items()})


def triplet_pictures(case: TripletCase) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """What `figures.triplet_diagram` wants: eight pictures (the last one labels) and the embeddings of both pairs."""
    image, classes = case.anchor.image, np.flatnonzero(case.anchor.tags)
    tagged = case.region[0, torch.from_numpy(classes)].all(dim=0).numpy()
    pictures = {
        "anchor": image,
        "its CAM": figures.overlay(image, case.erased.foreground[0, 0].numpy()),
        "mask m": figures.overlay(image, case.erased.mask[0, 0].numpy()),
        "positive": _displayed(case.erased.images),
        "anchor again": image,
        "residual region": figures.overlay(image, figures.stretched(tagged.astype(float), image)),
        "negative": case.negative.image,
        "its mask (truth)": case.negative.mask,
    }
    lines = []
    for pair, names in {"attract": ("e_A", "e_P"), "repel": ("a", "n")}.items():
        for name in names:
            values = enumerate(case.embeddings[name].tolist())
            lines += [{"pair": pair, "embedding": name, "class": c, "value": value} for c, value in values]
    return pictures, pd.DataFrame(lines)


def embedding_sizes(network: CamClassifier, scene: Scene, settings: Triplet) -> tuple[float, float]:
    """The sum over the tagged classes of e_A, and of e_P of the masked image."""
    tags = torch.from_numpy(scene.tags)[None]
    with torch.inference_mode():
        images = network.backbone.normalise(torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None])
        whole = network(images)
        erased = erasing.erase(images, whole.cam, tags, threshold=settings.erase_threshold, keep=settings.keep)
        maps = (metric_space(output, settings.space) for output in (whole, network(erased.images)))
        e_a, e_p = (erasing.embeddings(m, tags).sum().item() for m in maps)
    return e_a, e_p


def quirk_effects(table: pd.DataFrame) -> pd.DataFrame:
    """What correcting one quirk changes, in points: ``quirk, start, seed, miou, precision, recall``.

    start "reference": without the quirk minus with it.  start "corrected": the corrected method minus it with the quirk.
    """
    pairs = {("mask_gradient", "reference"): ("detached", "reference")}
    for quirk in catalogue.MEASURED_QUIRKS:
        pairs.setdefault((quirk, "reference"), (f"without_{quirk}", "detached"))
        pairs[quirk, "corrected"] = ("corrected", f"with_{quirk}")
    ordered = [(quirk, start) for quirk in catalogue.MEASURED_QUIRKS for start in ("reference", "corrected")]
    parts = [_paired(table, *pairs[key]).reset_index().assign(quirk=key[0], start=key[1]) for key in ordered]
    return pd.concat(parts, ignore_index=True)


def setting_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Rigid and soft erasing under every setting: mean paired difference to classification alone on the same course and map."""
    lines = {}
    for row in run.get("erasing_settings").rows:
        if row.triplet.attract != "off":
            baseline = f"gpp_only_{row.name.split('_')[-1]}" if row.phase or row.scale != 1 else "gpp_only"
            lines[row.label] = _paired(table, row.name, baseline).mean()
    return pd.DataFrame(lines).T.dropna()


def _paired(table: pd.DataFrame, more: str, less: str) -> pd.DataFrame:
    """Row `more` minus row `less` in points, by seed, for the seeds that both have."""
    wide = table.set_index(["row", "seed"])[METRICS]
    sides = [wide[wide.index.get_level_values("row") == name].droplevel("row") for name in (more, less)]
    return (sides[0] - sides[1]).dropna()


def _displayed(images: Tensor) -> np.ndarray:
    """The first of a batch of normalised images as RGB in 0..1."""
    return ((images[0] * 128 + 127) / 255).clamp(0, 1).permute(1, 2, 0).numpy()

"""Chapter 2: the GPP layer on one scene, and rows side by side, scene by scene."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, no_grad

from aeft_lib.lab import figures
from aeft_lib.lab.session import Session
from aeft_lib.maps.cam_fit import tagged_iou
from aeft_lib.maps.labels import label_map
from aeft_lib.paper import gpp


def pyramid_pictures(
    pooling: gpp.PyramidPooling, cam: Tensor, class_id: int
) -> dict[str, Mapping[str, np.ndarray] | np.ndarray]:
    """The maps of `gpp_pyramid` for one class of a CAM (1, K, h, w): levels, fused maps, detail.

    Levels are named by their bins on this map, and the paper's: "P1 (paper P2)".
    """
    here = gpp.scaled_levels(cam.shape[-1])
    paper = dict(zip(here, gpp.PAPER_LEVELS, strict=True)) if here == pooling.levels else {}
    with no_grad():
        pooled = pooling(cam)

    def name(sign: str, level: int) -> str:
        theirs = paper.get(level, level)
        return f"{sign}{level}" + (f" (paper {sign}{theirs})" if theirs != level else "")

    def named(sign: str, levels: Sequence[int], maps: Sequence[Tensor]) -> dict[str, np.ndarray]:
        pairs = zip(levels, maps, strict=True)
        return {name(sign, level): p[0, class_id].numpy() for level, p in pairs}

    detail = (pooled.fused[-1] - pooled.pyramid[-1])[0, class_id].abs().numpy()
    return {
        "levels": named("P", pooling.levels, pooled.pyramid),
        "fused": named("P̂", pooling.levels[1:], pooled.fused),
        "detail": detail,
    }


def scene_scores(session: Session, row: str, repeat: int = 0) -> pd.DataFrame:
    """Per scene: mean IoU over its tagged classes at the row's best threshold, in percent."""
    threshold = session.artefacts(row, repeat)["evaluation"].summary["threshold"]
    lines = []
    for index, seed in enumerate(session.seeds(row, repeat)):
        predicted = label_map(*seed, threshold)
        iou = tagged_iou(predicted, session.scenes.mask(index), seed.class_ids.tolist())
        lines.append({"scene": index, "iou": 100 * iou})
    return pd.DataFrame(lines)


def gains(session: Session, more: str, less: str, name: str) -> pd.Series:
    """Mean IoU of row `more` minus that of `less` by scene, in points: the largest first.

    name: of the committed table with ``scene, iou_gain``, where a row cannot be read.
    """
    table = session.instead([more, less], name)
    if table is None:
        scores = [scene_scores(session, row).set_index("scene")["iou"] for row in (more, less)]
        gain = (scores[0] - scores[1]).rename("iou_gain")
    else:
        gain = table.set_index("scene")["iou_gain"]
    return gain.sort_values(ascending=False, kind="stable")


def comparison(
    session: Session, rows: Sequence[str], indices: Sequence[int], repeat: int = 0
) -> list[list[np.ndarray]]:
    """Rows of `figures.picture_grid`: image, truth, then CAM and seed of every row of a study."""
    seeds = {row: session.seeds(row, repeat) for row in rows}
    summaries = {row: session.artefacts(row, repeat)["evaluation"].summary for row in rows}
    pictures = []
    for scene, index in ((session.scenes[index], index) for index in indices):
        line = [scene.image, scene.mask]
        for row in rows:
            seed = seeds[row][index]
            line.append(figures.overlay(scene.image, seed.cam.amax(dim=0).numpy()))
            line.append(label_map(*seed, summaries[row]["threshold"]))
        pictures.append(line)
    return pictures


def gpp_pyramid(
    image: np.ndarray,
    mask: np.ndarray,
    levels: Mapping[str, np.ndarray],
    fused: Mapping[str, np.ndarray],
    detail: np.ndarray,
) -> Figure:
    """The poster's picture of the layer for one class: signed maps (h, w) on one scale.

    Orange speaks for the class, blue against it (the poster: red and green).
    levels: name -> pooled map P_r.  fused: name -> gated map, below the level that enters it.
    detail: |P^ - P_finest|, beside the object, on a scale of its own.
    """
    scale = figures.signed_scale([*levels.values(), *fused.values()])
    top = [image, *(figures.signed_colours(m, scale) for m in levels.values())]
    bright = np.clip(detail / max(detail.max(), 1e-6), 0, 1)
    added = plt.get_cmap(figures.CAM_COLOURS)(bright)[..., :3]
    object_ = np.repeat(mask[..., None] * 1.0, 3, axis=2)
    bottom = [object_, added, *(figures.signed_colours(m, scale) for m in fused.values())]
    columns = max(len(top), len(bottom))
    width = figures.TEXT_WIDTH
    figure, axes = plt.subplots(2, columns, figsize=(width, 2 * width / columns + 0.25))
    names = (["image", *levels], ["object", "|P̂ − P|", *fused])
    for row, (pictures, titles) in enumerate(zip((top, bottom), names, strict=True)):
        for column in range(columns):
            axes[row, column].axis("off")
            if column < len(pictures):
                figures.show(axes[row, column], pictures[column])
                axes[row, column].set_title(titles[column], fontsize=6)
    figures.signed_bar(figure, scale)
    return figure

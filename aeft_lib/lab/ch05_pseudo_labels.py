"""Chapter 5: rows of label maps, or without a training what the package's weights give."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from aeft_lib import paths
from aeft_lib.lab import ch05_case, ch05_untrained, figures, label_rows, tables, untrained
from aeft_lib.lab.ch05_case import RefinementCase, refinement_case
from aeft_lib.lab.session import Session
from aeft_lib.maps import evaluation
from aeft_lib.maps.labels import label_map
from aeft_lib.maps.seeds import Seed, read_seeds
from aeft_lib.refinement import dense_crf
from aeft_lib.stages.affinity_nets import load_affinity_net
from aeft_lib.stages.artefact import Artefact
from aeft_lib.studies import catalogue

ROW, SEED = "aeft_pseudo", "aeft_seed"
KEPT = ("seeds", "posteriors", "scores", "labels")
STEPS = (1, 16)  # of the walk from one cell
NOT_MEASURED = "not measured: nothing was stored (train = True stores it)"


def label_maps(session: Session, row: str, repeat: int = 0) -> list[np.ndarray]:
    """The label maps (H, W) uint8 of a row that has some, see `Session.label_maps`."""
    return session.label_maps(row, repeat)


def label_scores(session: Session, row: str, repeat: int = 0) -> pd.DataFrame:
    """Per scene of a row of label maps: mean IoU over its tagged classes (%), and how many."""
    return label_rows.scores(session.label_maps(row, repeat), session.scenes_of(row))


def label_comparison(
    session: Session, rows: Sequence[str], indices: Sequence[int], repeat: int = 0
) -> list[list[np.ndarray]]:
    """Rows of `figures.picture_grid`: image, truth, then the label map of every row of a study."""
    maps = {row: session.label_maps(row, repeat) for row in rows}
    scenes = session.scenes_of(rows[0])
    return [[scenes[i].image, scenes[i].mask, *(maps[row][i] for row in rows)] for i in indices]


def gains(session: Session, row: str = ROW, seed: str = SEED) -> pd.DataFrame:
    """What refinement adds to the seed of every scene: index ``scene``; ``iou, classes, gain``."""
    committed = session.instead([row, seed], "refinement_grid")
    if committed is not None:
        return committed.set_index("scene")
    table = label_scores(session, row).set_index("scene")
    return table.assign(gain=table["iou"] - label_scores(session, seed)["iou"])


def middle_scene(gains: pd.DataFrame) -> int:
    """Of the scenes with two classes the one where refinement gains the median; else of all.

    gains: of `gains`.
    """
    two = gains[gains["classes"] == 2]
    ranked = (two if len(two) else gains).sort_values("gain", kind="stable")
    return int(ranked.index[len(ranked) // 2])


def refinement(session: Session, index: int, row: str = ROW, repeat: int = 0) -> RefinementCase:
    """One training scene on the way of a row from its seed to its pseudo-label."""
    scenes = session.training_scenes
    if not session.has(row, repeat):
        (case,) = ch05_untrained.cases(session.profile, scenes, [index])
        if case.affinity is None:
            print(ch05_untrained.NO_AFFINITY)
        return case
    artefacts = session.artefacts(row, repeat)
    file = artefacts["seeds"].folder / "seeds.npz"
    seed = next(seed for _, seed in read_seeds(file, [f"{index:05d}"]))
    network = load_affinity_net(artefacts["affinity"])
    return refinement_case(scenes[index], seed, artefacts["background"].summary, network)


def background(session: Session, row: str = ROW) -> pd.DataFrame:
    """The threshold and the powers of the background: ``repeat, threshold, low, middle, high``."""
    if not session.has(row):
        return pd.DataFrame([{"repeat": 0, **ch05_untrained.background()}])
    lines = []
    for repeat in range(session.n_repeats):
        chosen = session.artefacts(row, repeat)["background"].summary
        lines.append({"repeat": repeat, **chosen})
    return pd.DataFrame(lines)


def affinity_figure(
    session: Session, case: RefinementCase, cell: tuple[int, int]
) -> tuple[Figure, pd.DataFrame]:
    """Which cells take up the score of one cell, after one step and after more; its numbers."""
    if case.affinity is None:
        return _committed(session, "affinity")
    image = case.scene.image
    reach = [figures.stretched(ch05_case.spread(case, *cell, steps), image) for steps in STEPS]
    pictures = [image, ch05_case.grid_picture(case), *(figures.overlay(image, m) for m in reach)]
    titles = ("image", "what both CRFs know", "1 step", "16 steps")
    figure = figures.picture_grid([pictures], titles, classes=session.class_names)
    return figure, ch05_case.spread_table(case, cell, (1, 4, 16, 64))


def walk_figure(
    session: Session, case: RefinementCase, steps: Sequence[int]
) -> tuple[Figure, pd.DataFrame]:
    """The strongest class's score above, the labels below, over the steps of the walk."""
    if case.affinity is None:
        return _committed(session, "random_walk")
    titles = [f"{count} step{'s' if count > 1 else ''}" for count in steps]
    titles[0] = "seed, on the grid" if steps[0] == 0 else titles[0]
    rows = ch05_case.walk_pictures(case, steps)
    figure = figures.picture_grid(rows, titles, classes=session.class_names)
    return figure, ch05_case.walk_table(case, steps)


def side_by_side(
    session: Session, titles: Mapping[str, str], indices: Sequence[int]
) -> tuple[list[list[np.ndarray]], list[str]]:
    """Image, truth and the label maps of rows, a line of pictures a scene; the columns' titles.

    titles: row -> title.  A row that cannot be read is left out.
    """
    first = ["image", "truth"]
    if all(map(session.has, titles)):
        return label_comparison(session, list(titles), indices), [*first, *titles.values()]
    lines, rows = [], list(titles)
    for case in ch05_untrained.cases(session.profile, session.training_scenes, indices):
        maps = ch05_untrained.label_maps(case, session.profile)
        rows = [row for row in titles if row in maps]
        lines.append([case.scene.image, case.scene.mask, *(maps[row] for row in rows)])
    if others := [row for row in titles if row not in rows]:
        print(untrained.left_out(map(catalogue.row, others)))
    return lines, [*first, *(titles[row] for row in rows)]


def told_size(session: Session) -> str:
    """Kilobytes a scene that each step keeps, as Markdown."""
    if not session.has(ROW):
        return NOT_MEASURED
    sizes = store_size(session, ROW)
    times = sizes["two CRFs in float32"] / sizes["posteriors"]
    table = sizes.rename_axis("kept").rename("kilobytes a scene").to_frame()
    told = f"The posteriors of two CRFs take {times:.0f} times less than in float32."
    return f"{tables.grid_text(table)}\n\n{told}"


def told_quantisation(session: Session) -> str:
    """What steps of 1/255 cost in mIoU, a line a power."""
    if not session.has(ROW):
        return NOT_MEASURED
    kept, lines = quantisation(session, ROW), []
    for power in ("low", "high"):
        stored, exact = kept[f"{power} stored"], kept[f"{power} float"]
        lines.append(f"{power}: {stored:.1f}, difference below 0.05: {abs(stored - exact) < 0.05}")
    return "\n".join(lines)


def _committed(session: Session, name: str) -> tuple[Figure, pd.DataFrame]:
    """A committed picture and its numbers, and a line that says so."""
    print(f"committed picture {name}.png ({ch05_untrained.NO_AFFINITY})")
    picture = plt.imread(paths.FIGURES / f"{name}.png")
    height = figures.TEXT_WIDTH * picture.shape[0] / picture.shape[1]
    figure, axis = plt.subplots(figsize=(figures.TEXT_WIDTH, height))
    figures.show(axis, picture)
    axis.axis("off")
    return figure, session.committed(name)


def store_size(session: Session, row: str, repeat: int = 0) -> pd.Series:
    """Kilobytes a scene that each artefact of a refined row keeps, and two CRFs in float32."""
    artefacts, scenes = session.artefacts(row, repeat), session.scenes_of(row)
    sizes = {name: _bytes_of(artefacts[name]) / len(scenes) / 1e3 for name in KEPT}
    maps = np.mean([1 + scenes.tags(index).sum() for index in range(len(scenes))])
    pixels = scenes.image(0)[..., 0].size
    return pd.Series(sizes | {"two CRFs in float32": 2 * maps * pixels * 4 / 1e3})


def quantisation(session: Session, row: str, scenes: int = 40, repeat: int = 0) -> pd.Series:
    """mIoU (percent) of label maps from two CRFs, as stored and as computed, on the first scenes.

    Index: ``low stored, low float, high stored, high float``, the background powers that
    AffinityNet's labels come from.
    """
    artefacts, numbers = session.artefacts(row, repeat), {}
    training = session.training_scenes
    indices = range(min(scenes, len(training)))
    masks = [training.mask(index) for index in indices]
    seeds = _first(artefacts["seeds"], "seeds", len(indices))
    for power in ("low", "high"):
        alpha = artefacts["background"].summary[power]
        stored = _first(artefacts["posteriors"], power, len(indices))
        maps = {"stored": [label_map(*seed) for seed in stored], "float": []}
        for index, seed in enumerate(seeds):
            exact = dense_crf.refine(training.image(index), seed.cam, [alpha])[0]
            maps["float"].append(label_map(seed.class_ids, exact[1:]))
        for kind, labels in maps.items():
            counts = evaluation.confusion(labels, masks, num_classes=session.num_classes)
            numbers[f"{power} {kind}"] = float(counts.miou)
    return pd.Series(numbers)


def _first(artefact: Artefact, file: str, count: int) -> list[Seed]:
    names = [f"{index:05d}" for index in range(count)]
    return [seed for _, seed in read_seeds(artefact.folder / f"{file}.npz", names)]


def _bytes_of(artefact: Artefact) -> int:
    return sum((artefact.folder / name).stat().st_size for name in artefact.record["files"])

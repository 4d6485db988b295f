"""The experiments as data: a study is a question, its rows and their published counterparts; running it fills a table.

Rows that are in the stage store are read, the others are computed, side by side on the cores at hand.  Every computation
runs in a process of its own with one thread, so results do not depend on how many run at once.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from aeft_lib import paths, runs
from aeft_lib.data.collages import load_pack
from aeft_lib.profiles import OPTIMISER_QUIRKS, PAPER_LEVELS, Profile
from aeft_lib.stages.classifier import ClassifierSpec, PoolingSpec, train_classifier
from aeft_lib.stages.epochs import EpochsSpec, evaluate_epochs
from aeft_lib.stages.evaluation import EvaluationSpec, evaluate_seeds
from aeft_lib.stages.features import FeatureSpec, cache_features
from aeft_lib.stages.seeds import SeedSpec, infer_seeds
from aeft_lib.stages.triplet import TripletSpec, train_triplet
from aeft_lib.triplet import CORRECTED, LOSS_QUIRKS, REFERENCE, Triplet


@dataclass(frozen=True)
class Row:
    """One line of a table.

    label: as the poster prints it.  fusion, prediction: of the pooling layer.
    levels: which of the profile's four levels it pools, as positions.  published: the id of its number in published.toml.
    scaled: False takes the paper's bins as printed, those that fit the map, instead of the profile's scaled ones.
    triplet: what the second phase adds to classification, None where there is no second phase.
    quirks: of the reference's optimiser, kept in the second phase.  keep_epochs: evaluate after every epoch of it.
    phase: fields of the profile's second phase that are other for this row.
    """

    name: str
    label: str
    fusion: str
    levels: tuple[int, ...] = (0, 1, 2, 3)
    prediction: str = "sign_preserving"
    published: str | None = None
    scaled: bool = True
    triplet: Triplet | None = None
    quirks: tuple[str, ...] = ()
    keep_epochs: bool = False
    phase: tuple[tuple[str, float], ...] = ()

    def pooling(self, profile: Profile) -> PoolingSpec:
        """The row's pooling layer on the profile's feature map."""
        printed = tuple(level for level in PAPER_LEVELS if level <= profile.map_side)
        levels = tuple(profile.levels[i] for i in self.levels) if self.scaled else printed
        return PoolingSpec(self.fusion, levels, self.prediction)


@dataclass(frozen=True)
class Study:
    """A question and the rows that answer it.

    common: the row whose best threshold is tried on every row (columns ``*_common``), so that precision and recall can be
        compared without a threshold that follows the row.
    long: too many rows for a first reproduction on two cores (see `Profile.long_from`).
    most_seeds: how many seeds a reproduction gives it, whatever it was asked for; 0 is no bound.
    """

    name: str
    question: str
    rows: tuple[Row, ...]
    common: str | None = None
    long: bool = False
    most_seeds: int = 0

    def seeds(self, asked: int) -> range:
        """The seeds of a reproduction that was asked for so many."""
        return range(min(asked, self.most_seeds or asked))

    def row(self, name: str) -> Row:
        """Raises ValueError naming the rows there are."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"study {self.name} has no row {name!r}; there are {', '.join(r.name for r in self.rows)}")


GAP = Row("gap", "GAP", "gap", levels=(), published="known.gap_seed")
GATED = Row("gated", "G", "gated", published="table1.G")
SINGLE_LEVELS = tuple(
    Row(f"level{level}", f"{level}×{level}", "single", levels=(i,), published=f"table1.{level}x{level}")
    for i, level in enumerate((2, 4, 8, 16))
)
# The poster's second table has the reference's triplet with a detached mask: a gradient through the mask doubles the cost of a
# step, and what it does is a row of the quirks.
SOFT_REPEL = replace(REFERENCE, mask_gradient=False)
OFF = replace(SOFT_REPEL, attract="off", repel_weight=0.0)
SOFT = replace(SOFT_REPEL, repel_weight=0.0)
RIGID = replace(SOFT, attract="rigid")
# Not the paper's.  Three changes of the reference's triplet: a true triplet, as corrected; only the peak is erased, so the
# positive is a whole scene; and the anchor stands still, so that the distance is closed by finding the rest of the object, not
# by forgetting what was found.  Weights by tags alone, the rule of the profile's loss_scale: of 1, 2 and 5 times the
# reference's, the largest at which tagging does not collapse (mAP 81.4 at five; larger was not tried).
OURS = replace(CORRECTED, keep="all", anchor_gradient=False, attract_weight=0.5, repel_weight=0.375)
STRONG = replace(SOFT_REPEL, attract_weight=OURS.attract_weight, repel_weight=OURS.repel_weight)
NOTHING_ADDED = replace(CORRECTED, attract="off", repel_weight=0.0)  # the fair baseline: same optimiser, same samples


def _second(name: str, label: str, triplet: Triplet, **rest: Any) -> Row:
    """A row that goes on from the gated classifier, by default with the reference's optimiser."""
    return Row(name, label, "gated", triplet=triplet, **{"quirks": OPTIMISER_QUIRKS} | rest)


def _with_quirks(name: str, label: str, quirks: Iterable[str]) -> Row:
    """The whole method with these quirks of the reference, and all others corrected."""
    quirks = set(quirks)
    loss = replace(CORRECTED, **{field: value for field, value in LOSS_QUIRKS.items() if field in quirks})
    return _second(name, label, loss, quirks=tuple(quirk for quirk in OPTIMISER_QUIRKS if quirk in quirks))


QUIRKS = (*OPTIMISER_QUIRKS, *LOSS_QUIRKS)
# Measured one by one.  `missing_negative` has no row: every anchor finds a negative here (logged as ``without_negative``).
MEASURED_QUIRKS = tuple(quirk for quirk in QUIRKS if quirk != "missing_negative")
# The others are taken away from the reference with a detached mask, at half the cost.
DETACHED = set(QUIRKS) - {"mask_gradient"}
TAKEN_AWAY = tuple(quirk for quirk in MEASURED_QUIRKS if quirk in DETACHED)
TRIPLET_ROWS = (
    _second("gpp_only", "GPP only", OFF, published="table2.gpp_only", keep_epochs=True),
    _second(
        "attract_rigid",
        "attract (rigid)",
        RIGID,
        published="table2.attract_rigid",
        keep_epochs=True,
    ),
    _second("attract_soft", "attract (soft)", SOFT, published="table2.attract_soft", keep_epochs=True),
    _second("repel_only", "repel", replace(SOFT_REPEL, attract="off")),
    _second("attract_soft_repel", "soft + repel", SOFT_REPEL, published="table2.attract_soft_repel", keep_epochs=True),
    _second("attract_soft_repel_cam", "soft + repel, in the CAM", replace(SOFT_REPEL, space="cam")),
    _second("soft_repel_strong", "soft + repel, ours' weights", STRONG),
    _second("ours", "ours", OURS, quirks=(), keep_epochs=True),
)


def _settings(tag: str, label: str, phase: tuple[tuple[str, float], ...] = (), **changes: float) -> tuple[Row, ...]:
    """Soft and rigid erasing with other settings, and their baseline where it is another one."""
    rows = [
        _second(f"rigid_{tag}", f"rigid, {label}", replace(RIGID, **changes), phase=phase),
        _second(f"soft_{tag}", f"soft, {label}", replace(SOFT, **changes), phase=phase),
    ]
    if phase:
        rows.insert(0, _second(f"gpp_only_{tag}", f"GPP only, {label}", OFF, phase=phase))
    return tuple(rows)


STUDIES = {
    study.name: study
    for study in (
        Study("gap_vs_gpp", "Do CAMs trained with GPP fit objects better than CAMs trained with GAP?", (GAP, GATED)),
        Study(
            "pyramid_ablation",
            "Which part of the GPP layer does the work: the levels, the gates, their direction, the negative evidence?",
            (
                GAP,
                *SINGLE_LEVELS,
                Row("average", "A", "average", published="table1.A"),
                Row("inverse", "$G_I$", "inverse", published="table1.G_I"),
                GATED,
                Row("gated_unscaled", "G, bins as printed", "gated", scaled=False),
                Row("positive_only", "G, positive only", "gated", prediction="positive_only"),
                Row("attention_off", "G, attention off", "gated", prediction="attention_off"),
            ),
        ),
        Study(
            "triplet_ablation",
            "What do attract (soft or rigid) and repel do to seeds, at the same number of further steps?",
            TRIPLET_ROWS,
            common="gpp_only",
        ),
        Study(
            "ours_ablation",
            "Is it the triplet that makes ours better, or its optimiser, and which part of it?",
            (
                _second("gpp_only_corrected", "GPP only, corrected optimiser", NOTHING_ADDED, quirks=()),
                TRIPLET_ROWS[-1],
                _second("ours_anchor_moves", "ours, anchor moves", replace(OURS, anchor_gradient=True), quirks=()),
                _second("ours_ring", "ours, ring mask", replace(OURS, keep="ring"), quirks=()),
                _second("ours_own_tags", "ours, own-tag negatives", replace(OURS, repel_target="own_tags"), quirks=()),
            ),
            common="ours",
        ),
        Study(
            "quirks",
            "What does each quirk of the reference do, taken away from the reference, or put into the corrected method?",
            (
                _with_quirks("reference", "reference", QUIRKS),
                replace(TRIPLET_ROWS[4], name="detached", label="reference, mask_gradient corrected", published=None),
                *(_with_quirks(f"without_{q}", f"reference, {q} corrected", DETACHED - {q}) for q in TAKEN_AWAY),
                _with_quirks("corrected", "corrected", ()),
                *(_with_quirks(f"with_{q}", f"corrected, {q} as the reference", {q}) for q in MEASURED_QUIRKS),
            ),
            common="reference",
            long=True,
            most_seeds=2,
        ),
        Study(
            "erasing_settings",
            "Do the claims about rigid and soft erasing depend on the erasing threshold, the rate or the number of steps?",
            (
                *TRIPLET_ROWS[:3],
                *_settings("low", "t_H 0.4", erase_threshold=0.4),
                *_settings("high", "t_H 0.8", erase_threshold=0.8),
                *_settings("slow", "rate / 3", phase=(("rate", 0.01),)),
                *_settings("long", "60 steps", phase=(("epochs", 12),)),
            ),
            common="gpp_only",
            long=True,
            most_seeds=1,
        ),
    )
}


def row(name: str) -> Row:
    """The row of this name, whatever study it is in.  Raises ValueError where there is none."""
    return study_of(name).row(name)


def study_of(row: str) -> Study:
    """The largest study that has this row.  Raises ValueError where none has."""
    having = [study for study in STUDIES.values() if any(known.name == row for known in study.rows)]
    if not having:
        raise ValueError(f"no study has a row {row!r}")
    return max(having, key=lambda study: len(study.rows))


def get(name: str) -> Study:
    """The study of this name.  Raises ValueError naming the studies there are."""
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; there are {', '.join(STUDIES)}")
    return STUDIES[name]


Obtain = Callable[..., runs.Artefact]


def features(profile: Profile, split: str, obtain: Obtain = runs.obtain) -> runs.Artefact:
    """The cached trunk features of a split, shared by every row and seed."""
    scenes, scales = (profile.train, (1.0,)) if split == "train" else (profile.val, profile.seed_scales)
    return obtain(cache_features, FeatureSpec(scenes, profile.trained_stages, scales, load_pack().checksum))


def artefacts(profile: Profile, row: Row, seed: int, obtain: Obtain = runs.obtain) -> dict[str, runs.Artefact]:
    """One row with one seed from tags to numbers: its classifier, seeds and evaluation, and its epochs where they are kept.

    Rows with a second phase share one warm start: the whole first phase, as the study of poster table 1 trains it.
    """
    spec = ClassifierSpec(
        pooling=row.pooling(profile),
        num_classes=profile.num_classes,
        trained_stages=profile.trained_stages,
        schedule=profile.schedule,
        seed=seed,
    )
    train = features(profile, "train", obtain)
    classifier = warm_start = obtain(train_classifier, spec, {"features": train})
    if row.triplet:
        phase = replace(profile.erasing, **dict(row.phase))
        course, loss = phase.schedule(row.quirks), phase.scaled(row.triplet)
        second = TripletSpec(spec, profile.train, loss, course, row.keep_epochs)
        classifier = obtain(train_triplet, second, {"classifier": warm_start, "features": train})
    inputs = {"classifier": classifier, "features": features(profile, "val", obtain)}
    seeds = obtain(infer_seeds, SeedSpec(profile.seed_scales, profile.val.size), inputs)
    found = {"classifier": classifier, "seeds": seeds}
    if row.keep_epochs:
        spec_of_epochs = EpochsSpec(profile.val, profile.thresholds)
        found["epochs"] = obtain(evaluate_epochs, spec_of_epochs, inputs | {"warm_start": warm_start})
    return found | {"evaluation": obtain(evaluate_seeds, EvaluationSpec(profile.val, profile.thresholds), {"seeds": seeds})}


def run(study: Study, profile: Profile, seeds: Sequence[int], *, rows: Sequence[Row] = (), workers: int = 0) -> pd.DataFrame:
    """The study's table: one line per row and seed, ``row, label, seed`` and the numbers of `evaluate_seeds` (percent).

    rows: only these.  workers: processes; 0 is one per core.
    What is finished stays in the store whatever happens to the rest; errors of a row carry its name and seed.
    Raises ValueError for seeds that are none, before anything runs.
    """
    jobs = [(row, seed) for seed in check_seeds(seeds) for row in (rows or study.rows)]
    found = {job: stored(profile, *job) for job in jobs}
    if missing := [job for job in jobs if found[job] is None]:
        found |= _compute(study, profile, missing, workers or cores())
    lines = [{"row": row.name, "label": row.label, "seed": seed, **found[row, seed]} for row, seed in jobs]
    return at_common_threshold(study, profile, pd.DataFrame(lines))


def at_common_threshold(study: Study, profile: Profile, table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``miou_common, precision_common, recall_common``: every row at its seed's best threshold of row `common`.

    Unchanged for a study without such a row; seeds that lack it get NaN.
    """
    if study.common is None or table.empty:
        return table
    best = table[table["row"] == study.common].set_index("seed")["threshold"]
    numbers = []
    for line in table.itertuples():
        found = artefacts(profile, study.row(line.row), line.seed, obtain=_lookup)["evaluation"]
        curve = pd.read_csv(found.folder / "curve.csv").set_index("threshold")
        at = curve.index[np.abs(curve.index - best.get(line.seed, np.nan)).argmin()] if line.seed in best else None
        numbers.append(curve.loc[at].to_dict() if at is not None else {})
    at_common = pd.DataFrame(numbers, index=table.index, columns=["miou", "precision", "recall"])
    return table.join(at_common.add_suffix("_common"))


def left_out(study: Study, profile: Profile, n_seeds: int) -> bool:
    """Whether a long study is too much for so few seeds, and there is a committed table to show in its place."""
    return study.long and n_seeds < profile.long_from and (paths.FIGURES / f"{study.name}.csv").is_file()


def check_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list.  Raises ValueError where one is no whole number from 0 to 2^32 - 1, or stands twice."""
    checked = list(seeds)
    if any(not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32 for seed in checked):
        raise ValueError(f"seeds must be whole numbers from 0 to {2**32 - 1}, got {checked}")
    if len(set(checked)) < len(checked):
        raise ValueError(f"every seed counts once, got {checked}")
    return checked


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stored(profile: Profile, row: Row, seed: int) -> dict[str, Any] | None:
    """The numbers of a row and seed where the store has them, else None; computes nothing."""
    try:
        return artefacts(profile, row, seed, obtain=_lookup)["evaluation"].summary
    except LookupError:
        return None


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds of every number, one line per row in the study's order, and ``n``.  sd of one seed is NaN."""
    numbers = [column for column in table.columns if column not in ("row", "label", "seed")]
    grouped = table.groupby(["row", "label"], sort=False)[numbers]
    summary = grouped.mean().join(grouped.std().add_suffix("_sd"))
    return summary.assign(n=grouped.size()).reset_index()


def track(items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    """A progress bar for people; silent under ``AEFT_QUIET`` (papermill, tests), where it would land in stored outputs."""
    return tqdm(items, total=total, desc=title, leave=False, disable=bool(os.environ.get("AEFT_QUIET")))


def _lookup(stage: runs.Stage, spec: Any, inputs: dict[str, runs.Artefact] | None = None) -> runs.Artefact:
    key = runs.key_of(stage, spec, {name: artefact.key for name, artefact in (inputs or {}).items()})
    artefact = runs.find(stage.__name__, key)
    if artefact is None:
        raise LookupError(f"{stage.__name__} {key}")
    return artefact


def _compute(study: Study, profile: Profile, jobs: list[tuple[Row, int]], workers: int) -> dict[tuple[Row, int], dict]:
    """Run jobs in processes of one thread each; shared features first.  Nothing is begun after an error or Ctrl-C."""
    runs.check_writable()
    found: dict[tuple[Row, int], dict] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            for future in [pool.submit(features, profile, split) for split in ("train", "val")]:
                future.result()
            for job, future in track(_in_turn(pool, profile, jobs, workers), len(jobs), f"{study.name} on {profile.name}"):
                found[job] = future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died: out of memory, or a script without `if __name__ == '__main__':`; "
                "finished rows are kept, run again to go on"
            ) from error
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return found


def _in_turn(
    pool: ProcessPoolExecutor, profile: Profile, jobs: list[tuple[Row, int]], workers: int
) -> Iterator[tuple[tuple[Row, int], Future]]:
    """Finished jobs as they come; a job is handed over only when a worker is free for it."""
    waiting: dict[Future, tuple[Row, int]] = {}
    left = list(jobs)
    while left or waiting:
        while left and len(waiting) < workers:
            job = left.pop(0)
            waiting[pool.submit(_job, profile, *job)] = job
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(future), future


def _start_worker() -> None:
    """One thread for the arithmetic, and an end as soon as the parent's: an orphan would hold a gigabyte for nothing."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _job(profile: Profile, row: Row, seed: int) -> dict[str, Any]:
    try:
        return artefacts(profile, row, seed)["evaluation"].summary
    except Exception as error:
        if hasattr(error, "add_note"):  # Python 3.10 has no notes
            error.add_note(f"in row {row.name}, seed {seed}, profile {profile.name}")
        raise

"""What every notebook holds: a profile, a number of repeats, and the store's tables and networks.

Everything here reads through `studies`; a notebook never touches the store, a path or a training
loop itself.  What a single notebook asks stands in that chapter's module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from matplotlib.figure import Figure

from aeft_lib import paths
from aeft_lib.data.photos import Photos
from aeft_lib.data.scene import Scenes, missing_masks
from aeft_lib.engine import memory
from aeft_lib.lab import figures, parameters, untrained
from aeft_lib.maps.labels import read_label_map
from aeft_lib.maps.seeds import Seed, read_seeds
from aeft_lib.paper.classifier import CamClassifier, CamOutput
from aeft_lib.stages import store
from aeft_lib.stages.loading import load_network
from aeft_lib.stages.write_labels import label_files
from aeft_lib.studies import (
    catalogue,
    collected,
    labels,
    league,
    objects,
    pipeline,
    profiles,
    report,
    report_page,
    run,
    saturation,
    shipped,
)
from aeft_lib.studies.published import published
from aeft_lib.studies.rows import Row, Study
from aeft_lib.studies.settings import Profile


@dataclass(frozen=True)
class Session:
    """A profile and the repeats 0 .. n_repeats-1.  Make it with `open_session`.

    train: whether rows that the store lacks are trained; else the weights that come with the
    package take their place.
    """

    profile: Profile
    n_repeats: int
    train: bool = True

    @property
    def scenes(self) -> Scenes:
        """The scenes that seeds are scored on."""
        return self.profile.scenes("scored").open()

    @property
    def training_scenes(self) -> Scenes:
        """The scenes that classifiers are trained on and pseudo-labels are made for."""
        return self.profile.train.open()

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names in the order of the CAM's channels; the background is not among them."""
        return self.scenes.classes

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.class_names)

    @property
    def pictures(self) -> str:
        """What the scenes are: "collages" or "photos"."""
        return "photos" if isinstance(self.training_scenes, Photos) else "collages"

    @property
    def figures_folder(self) -> Path:
        """``figures/`` for what may stand beside the committed results, else one in ``runs/``."""
        if self.profile.name == "laptop" and self.n_repeats >= profiles.COMMITTED_REPEATS:
            return paths.FIGURES
        repeats = f"{self.n_repeats}repeats" if self.train else "shipped"
        return paths.runs() / "figures" / f"{self.profile.name}-{repeats}"

    def label(self, row: Row) -> str:
        """A row's label on this profile's map."""
        return labels.of_row(row, self.profile)

    def provenance(self) -> str:
        """One line: what the numbers of this session depend on."""
        p, data = self.profile, self.training_scenes.fingerprint[:8]
        source = {"collages": "photo pack", "photos": "data"}[self.pictures]
        size = f"{p.train.size} px" if p.train.size else "their own size"
        return (
            f"profile {p.name}: {len(self.training_scenes)} + {len(self.scenes)} {self.pictures} "
            f"of {size}, {p.map_side}x{p.map_side} map, levels {p.levels}, "
            f"{self.n_repeats} repeat(s), {source} {data}{self._weights}"
        )

    @property
    def _weights(self) -> str:
        if self.train:
            return ""
        return "; rows that the store lacks: the package's trained weights (train = True trains)"

    def table(self, study: str) -> pd.DataFrame:
        """The study's long table, a line per row and repeat (percent); computes what is missing.

        A study that does not fit the scenes, or is too long for so few repeats, is not computed:
        its committed table is read, and a line of output says so.
        Without training, rows that the store lacks are read off the package's weights; a study with
        a row that neither has is its committed table too.
        """
        chosen = catalogue.get(study)
        if run.left_out(chosen, self.profile, self.n_repeats):
            return self._as_committed(chosen, f"aeft run {study} computes it")
        if self._lacks(chosen):
            return self._as_committed(chosen, f"{untrained.REMEDY} the rows it lacks")
        if not self.train:
            lines = [
                {"row": row.name, "label": self.label(row), "repeat": repeat}
                | run.numbers(self.artefacts(row.name, repeat))
                for repeat in chosen.repeats(self.n_repeats)
                for row in chosen.rows
            ]
            return pd.DataFrame(lines)
        return run.run_study(chosen, self.profile, chosen.repeats(self.n_repeats))

    def _as_committed(self, study: Study, remedy: str) -> pd.DataFrame:
        """A study's committed table, and a line that says so.

        A table of means over repeats has no column ``repeat``, but their number ``n``.
        """
        file = run.committed_table(study)
        table = self.committed(file.stem)
        table = table[table["row"].isin([row.name for row in study.rows])]
        whose = "" if self.profile.name in ("smoke", "laptop") else " of the laptop"
        count = table["repeat"].nunique() if "repeat" in table else table["n"].max()
        print(f"committed table {file.name}{whose}, {count} repeats ({remedy})")
        return table

    def _lacks(self, study: Study) -> bool:
        """Whether a row of a study would have to be trained, and is not to be."""
        repeats = study.repeats(self.n_repeats)
        return not all(self.has(row.name, repeat) for row in study.rows for repeat in repeats)

    def has(self, row: str, repeat: int = 0) -> bool:
        """Whether a row can be read: the session trains, or store or package has it."""
        return self.train or untrained.can_read(self.profile, catalogue.row(row), repeat)

    def known(self, rows: Sequence[str]) -> list[str]:
        """Those of `rows` that can be read; a line of output names the others."""
        kept = [row for row in rows if self.has(row)]
        if others := [row for row in rows if row not in kept]:
            print(untrained.left_out(map(catalogue.row, others)))
        return kept

    def instead(self, rows: Sequence[str], name: str) -> pd.DataFrame | None:
        """The committed table of this name where one of `rows` cannot be read, else None.

        A line of output says so.
        """
        if all(map(self.has, rows)):
            return None
        print(f"committed table {name}.csv ({untrained.REMEDY} the rows it lacks)")
        return self.committed(name)

    @property
    def _is_committed(self) -> bool:
        """Whether what the session writes replaces the committed results."""
        return self.figures_folder == paths.FIGURES

    def stored_table(self, study: str) -> pd.DataFrame:
        """As `table`, but only what the store has; for the committed report the ledger too."""
        lines, chosen = [], catalogue.get(study)
        if not chosen.fits(self.profile):
            return pd.DataFrame()
        # Photos of their own sizes have no rows on another map.
        rows = [row for row in chosen.rows if self.profile.cached or row.setting.scale == 1]
        for repeat in chosen.repeats(self.n_repeats):
            for row in rows:
                found = run.stored(self.profile, row, repeat, evidence=self._is_committed)
                if "miou" in (numbers := found or {}):  # without masks there is nothing to compare
                    names = {"row": row.name, "label": self.label(row), "repeat": repeat}
                    lines.append(names | numbers)
        known = (chosen, self.profile, pd.DataFrame(lines))
        return saturation.marked(run.at_common_threshold(*known, evidence=self._is_committed))

    @staticmethod
    def committed(name: str) -> pd.DataFrame:
        """A table as it stands in the committed ``figures/``."""
        return paths.read_table(paths.FIGURES / f"{name}.csv")

    def artefacts(self, row: str, repeat: int = 0) -> dict[str, store.Artefact]:
        """What a row has made in a repeat, by name; computed where the store lacks it.

        Raises ValueError without training, for a row without weights in the package.
        """
        chosen = catalogue.row(row)
        if self._is_shipped(chosen, repeat):
            return shipped.artefacts(self.profile, chosen)
        self._finish(chosen, repeat)
        return pipeline.artefacts(self.profile, chosen, repeat)

    def _is_shipped(self, row: Row, repeat: int) -> bool:
        """Whether the package's weights stand for a row, which nothing is to train."""
        return not (self.train or untrained.in_store(self.profile, row, repeat))

    def at_hand(self, row: str) -> bool:
        """Whether all that a row made can be read without training: in the store, or shipped."""
        chosen = catalogue.row(row)
        if self._is_shipped(chosen, 0):
            return row in shipped.known()
        try:
            pipeline.artefacts(self.profile, chosen, 0, store.lookup)
        except LookupError:
            return False
        return True

    def _finish(self, row: Row, repeat: int) -> None:
        """Compute a row where neither store nor ledger has it."""
        if run.stored(self.profile, row, repeat) is None:
            study = catalogue.study_of(row.name)
            run.run_study(study, self.profile, [repeat], rows=[row])

    def network(self, row: str, repeat: int = 0) -> CamClassifier:
        """The trained classifier of a row."""
        return load_network(self.artefacts(row, repeat)["classifier"])

    def output(self, network: CamClassifier, index: int) -> CamOutput:
        """The classifier on a scored scene: signed CAM (1, K, h, w), logits, attention."""
        with torch.inference_mode():
            return network(batch_of(network, self.scenes.image(index)))

    def seeds(self, row: str, repeat: int = 0) -> list[Seed]:
        """The seeds of a row, scene by scene."""
        file = self.artefacts(row, repeat)["seeds"].folder / "seeds.npz"
        return [seed for _, seed in read_seeds(file)]

    def label_maps(self, row: str, repeat: int = 0) -> list[np.ndarray]:
        """The label maps (H, W) uint8 of a row that has some, scene by scene.

        They are pseudo-labels, or what a segmentation network predicts.
        """
        files = label_files(self.artefacts(row, repeat)["labels"])
        return [read_label_map(file, num_classes=self.num_classes) for file in files]

    def scenes_of(self, row: str) -> Scenes:
        """The scenes whose label maps a row makes."""
        chosen = catalogue.row(row)
        return self.profile.scenes("val" if chosen.segmenter else chosen.scored_on).open()

    def curves(self, rows: Sequence[str]) -> pd.DataFrame:
        """mIoU, precision and recall at every threshold, for rows and repeats."""
        return self._stacked(rows, "curve.csv")

    def classes(self, rows: Sequence[str]) -> pd.DataFrame:
        """IoU, precision and recall per class of seeds or label maps, for rows and repeats."""
        return self._stacked(rows, "classes.csv")

    def summary(self, table: pd.DataFrame) -> pd.DataFrame:
        """Mean and sd over the repeats of a study's table, a line a row; ``n`` repeats.

        A committed table that holds them already stays as it is.
        """
        return run.summarise(table) if "repeat" in table else table

    def verdicts(self, study: str) -> str:
        """The claims that rest on a study, as Markdown: published, ours, and the verdict."""
        built, ids = self._report_on(study), self._claims_of(study)
        lines = [claim for claim in built["claims"] if claim["id"] in ids]
        return self._origin(study) + report_page.markdown({"claims": lines})

    def conclusions(self, study: str) -> str:
        """What the table of a study says of its claims, a sentence each, as Markdown."""
        told = report_page.conclusions(self._report_on(study), self._claims_of(study))
        return self._origin(study) + told

    def _report_on(self, study: str) -> dict:
        """The report with a study's table; the committed one where rows are lacking."""
        if self._lacks(catalogue.get(study)):
            return report.load(paths.FIGURES)
        return self.report({study: self.table(study)})

    def _origin(self, study: str) -> str:
        lacks = self._lacks(catalogue.get(study))
        return f"*As in the committed report: {untrained.REMEDY} the rows.*\n\n" if lacks else ""

    def report(
        self,
        tables: Mapping[str, pd.DataFrame] | None = None,
        *,
        carry_over: bool = True,
        costs: bool = False,
    ) -> dict:
        """The report over all studies that the store holds for these repeats; computes nothing.

        tables: of studies, in place of the store's.  costs: with those of other methods, which
        takes seconds.
        Where it may replace the committed report, lines that this store cannot make stay as they
        were committed, if they are to be carried over.
        """
        tables = tables or {}
        stored = {name: self.stored_table(name) for name in self._studies() if name not in tables}
        for study in catalogue.STUDIES.values():
            if study.apart and study.name in stored:
                known = (stored[study.name], study, self.profile, study.rows)
                stored[study.name] = collected.with_committed(*known)
        tables = {name: t for name, t in (stored | dict(tables)).items() if not t.empty}
        options = {"short": report.is_short(self.profile), "over_objects": self._over_objects}
        options |= {"costs": self._costs()} if costs else {}
        built = report.build(tables, self.profile.name, **options)
        if not (self._is_committed and carry_over):
            return built
        return report.carry_over(built, paths.FIGURES)

    def _studies(self) -> list[str]:
        """Those that the profile can compute; one with curves has studies of its own."""
        of_curves = bool(self.profile.curve)
        return [n for n, s in catalogue.STUDIES.items() if (s.needs == "curves") == of_curves]

    def _costs(self) -> dict[str, float]:
        """Of the rows that the report names of other methods, see `league.costs_of`.

        None on a profile with curves, where other methods have no rows.
        """
        if self.profile.curve:
            return {}
        numbers, rows = published()["numbers"].items(), catalogue.rows_by_name()
        named = [n["row"] for name, n in numbers if name.startswith("rival.") and "row" in n]
        return league.costs_of(self.profile, [rows[name] for name in named], rows["gap"])

    def _over_objects(
        self, more: str, less: str, metric: str, repeats: Sequence[int]
    ) -> objects.Interval | None:
        rows = (catalogue.row(more), catalogue.row(less))
        read = partial(run.read, evidence=self._is_committed)
        return objects.of_rows(self.profile, *rows, metric, repeats, read)

    @staticmethod
    def _claims_of(study: str) -> list[str]:
        return [claim["id"] for claim in published()["claims"] if claim["study"] == study]

    def save(self, figure: Figure, name: str, table: pd.DataFrame) -> None:
        """Keep a figure and its numbers in the session's figures folder."""
        figures.save(figure, name, table, self.figures_folder)

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table alone."""
        figures.save_table(name, table, self.figures_folder)

    def _stacked(self, rows: Sequence[str], file: str) -> pd.DataFrame:
        parts = []
        for row in map(catalogue.row, rows):
            for repeat in range(self.n_repeats):
                part = pd.read_csv(self._measured(row, repeat).folder / file)
                parts.append(part.assign(row=row.name, label=self.label(row), repeat=repeat))
        return pd.concat(parts, ignore_index=True)

    def _measured(self, row: Row, repeat: int) -> store.Artefact:
        """The evaluation of a row, from the store, the ledger or the package's weights."""
        if self._is_shipped(row, repeat):
            return shipped.artefacts(self.profile, row)["evaluation"]
        self._finish(row, repeat)
        return run.read(self.profile, row, repeat)["evaluation"]


def open_session(profile: str = "", repeats: int = 0, train: bool = True) -> Session:
    """A session on a profile ("" is AEFT_PROFILE, else laptop); repeats: 0 is the profile's number.

    train: False reads the package's weights, of the laptop's first repeat, where the store lacks a
    row; other profiles have none and train.

    Raises ValueError for an unknown profile, a wrong number of repeats, missing data, scored scenes
    without masks, or a parameter of papermill's that the notebook does not have; StoreError where
    the store cannot be written.  All of it before long work starts.
    """
    parameters.check(cells_run())
    chosen = profiles.get(profile)
    train = train or chosen.name != shipped.PROFILE
    session = Session(chosen, profiles.repeats(chosen, repeats), train)
    if not train and session.n_repeats > 1:
        given = f"repeats = {session.n_repeats}"
        raise ValueError(f"the package's weights are of one repeat: set train = True for {given}")
    figures.use_small_outputs()
    memory.keep_freed()
    check_masks(chosen, ("scored",))
    store.check_writable()
    return session


def cells_run() -> list[str]:
    """The source of the cells that this kernel has run, in order; none outside IPython."""
    shell = get_ipython()
    return list(shell.user_ns.get("In", ())) if shell else []


def check_masks(profile: Profile, splits: Sequence[str]) -> None:
    """Raises ValueError where scenes that notebooks compare with their masks have none."""
    for split in splits:
        if missing := missing_masks(profile.scenes(split)):
            rest = "`aeft run STUDY` and `aeft predict` work without"
            problem = f"notebooks compare with masks, and {missing}"
            raise ValueError(f"profile {profile.name}: {problem}; {rest}")


def batch_of(network: CamClassifier, image: np.ndarray) -> torch.Tensor:
    """An image (H, W, 3) uint8 as the network's backbone takes it: (1, 3, H, W), normalised."""
    return network.backbone.normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])

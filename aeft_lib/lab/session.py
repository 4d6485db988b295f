"""What a notebook holds: one profile, a number of seeds, and ways to ask the store for tables, maps and pictures.

Everything here reads through `studies`; a notebook never touches the store, a path or a training loop itself.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aeft_lib import paths
from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.scene import Scene, Scenes
from aeft_lib.lab import ch04_triplet, ch05_pseudo_labels, figures
from aeft_lib.maps import evaluation
from aeft_lib.maps.cam_fit import object_fits
from aeft_lib.maps.labels import label_map, read_label_map
from aeft_lib.maps.seeds import Seed, read_seeds
from aeft_lib.paper import gpp
from aeft_lib.paper.classifier import CamClassifier, CamOutput
from aeft_lib.paper.triplet import REFERENCE, Triplet
from aeft_lib.refinement import dense_crf
from aeft_lib.stages import store
from aeft_lib.stages.train_affinity import load_affinity_net
from aeft_lib.stages.train_classifier import load_network
from aeft_lib.stages.write_labels import label_files
from aeft_lib.studies import profiles, report, run
from aeft_lib.studies.settings import Profile

ROWS = run.get("pyramid_ablation")


@dataclass(frozen=True)
class Session:
    """A profile and the seeds 0 .. n_seeds-1.  Make one with `open_session`."""

    profile: Profile
    n_seeds: int

    @property
    def scenes(self) -> Scenes:
        """The scenes that seeds are scored on."""
        return self.profile.scenes("scored").open()

    @property
    def training_scenes(self) -> Scenes:
        """The scenes that classifiers are trained on and pseudo-labels are made for."""
        return self.profile.train.open()

    @property
    def figures_folder(self) -> Path:
        """``figures/`` for what may stand beside the committed results, else a folder of its own under ``runs/``."""
        if self.profile.name == "laptop" and self.n_seeds >= profiles.COMMITTED_SEEDS:
            return paths.FIGURES
        return paths.runs() / "figures" / f"{self.profile.name}-{self.n_seeds}seeds"

    def provenance(self) -> str:
        """One line: what the numbers of this session depend on."""
        p, data = self.profile, self.training_scenes.fingerprint[:8]
        kind, source = ("collages", "photo pack") if isinstance(p.train, SceneSpec) else ("photos", "data")
        size = f"{p.train.size} px" if p.train.size else "their own size"
        return (
            f"profile {p.name}: {len(self.training_scenes)} + {len(self.scenes)} {kind} of {size}, "
            f"{p.map_side}x{p.map_side} map, levels {p.levels}, {self.n_seeds} seed(s), {source} {data}"
        )

    def table(self, study: str) -> pd.DataFrame:
        """The study's long table, one line per row and seed (percent); computes what the store lacks.

        A long study on few seeds is not computed: its committed table is read, and said so.
        """
        chosen = run.get(study)
        if run.left_out(chosen, self.profile, self.n_seeds):
            committed = run.committed_table(chosen)
            table = self.committed(committed.stem)
            table = table[table["row"].isin([row.name for row in chosen.rows])]
            whose = "" if self.profile.name in ("smoke", "laptop") else " of the laptop"
            print(f"committed table {committed.name}{whose}, {table['seed'].nunique()} seeds (aeft run {study} computes it)")
            return table
        return run.run(chosen, self.profile, chosen.seeds(self.n_seeds))

    @staticmethod
    def committed(name: str) -> pd.DataFrame:
        """A table as it stands in the committed ``figures/``."""
        return pd.read_csv(paths.FIGURES / f"{name}.csv")

    def network(self, row: str, seed: int = 0) -> CamClassifier:
        """The trained classifier of a row."""
        return load_network(self.artefacts(row, seed)["classifier"])

    def seeds(self, row: str, seed: int = 0) -> list[Seed]:
        """The seeds of a row, scene by scene."""
        return [item for _, item in read_seeds(self.artefacts(row, seed)["seeds"].folder / "seeds.npz")]

    def curves(self, rows: Sequence[str]) -> pd.DataFrame:
        """mIoU, precision and recall at every threshold, for rows and seeds."""
        return self._stacked(rows, "curve.csv")

    def classes(self, rows: Sequence[str]) -> pd.DataFrame:
        """IoU, precision and recall per class at the best threshold, for rows and seeds."""
        return self._stacked(rows, "classes.csv")

    def cam_fit(self, rows: Sequence[str]) -> pd.DataFrame:
        """How each object's CAM fits it: ``row, label, seed, scene, class, area, spill, coverage`` (see `object_fits`)."""
        masks = [scene.mask for scene in map(self.scenes.__getitem__, range(len(self.scenes)))]
        lines = []
        for row in map(run.row, rows):
            for seed in range(self.n_seeds):
                for index, item in enumerate(self.seeds(row.name, seed)):
                    fits = object_fits(item, masks[index])
                    lines += [{"row": row.name, "label": row.label, "seed": seed, "scene": index, **fit} for fit in fits]
        return pd.DataFrame(lines)

    def extreme_cases(self, row: str, seed: int = 0) -> dict[str, int]:
        """Scene numbers of an imprecise and a sparse CAM by a stated rule, among lone objects that fill 5-40 % of their scene.

        imprecise: the largest spill among the better covered half; sparse: the least coverage among the less spilling half.
        """
        alone = self.cam_fit([row]).query("seed == @seed").groupby("scene").filter(lambda group: len(group) == 1)
        fits = alone.query("0.05 <= area <= 0.4").fillna({"spill": 1.0, "coverage": 0.0})
        covered = fits[fits["coverage"] >= fits["coverage"].median()]
        tight = fits[fits["spill"] <= fits["spill"].median()]
        return {
            "imprecise": int(covered.loc[covered["spill"].idxmax(), "scene"]),
            "sparse": int(tight.loc[tight["coverage"].idxmin(), "scene"]),
        }

    def course(self, rows: Sequence[str]) -> pd.DataFrame:
        """What the second phase did to seeds over its steps: ``row, label, seed, step`` and percentages, scale 1 only.

        precision, recall: at the best threshold of the warm start, one for all rows of a seed.  miou_best: at its own best.
        """
        lines = []
        for row in map(run.row, rows):
            for seed in range(self.n_seeds):
                found = self.artefacts(row.name, seed)
                if "epochs" not in found:
                    raise ValueError(f"row {row.name} keeps no epochs: give it keep_epochs=True in catalogue.py")
                curves = pd.read_csv(found["epochs"].folder / "epochs.csv")
                start = curves[curves["epoch"] == 0]
                at = start.loc[start["miou"].idxmax(), "threshold"]
                for epoch, curve in curves.groupby("epoch"):
                    numbers = curve[curve["threshold"] == at].iloc[0][["precision", "recall"]].to_dict()
                    step = int(epoch) * dict(row.phase).get("steps_per_epoch", self.profile.erasing.steps_per_epoch)
                    numbers |= {"step": step, "miou_best": curve["miou"].max()}
                    lines.append({"row": row.name, "label": row.label, "seed": seed, **numbers})
        return pd.DataFrame(lines)

    def log(self, row: str, seed: int = 0) -> pd.DataFrame:
        """The training log of a row's last phase: one line an epoch."""
        return pd.read_csv(self.artefacts(row, seed)["classifier"].folder / "log.csv")

    def triplet(
        self, anchor: int, negative: int, row: str = "gated", settings: Triplet = REFERENCE
    ) -> ch04_triplet.TripletCase:
        """The triplet of two validation scenes as the trained classifier of a row sees it."""
        return ch04_triplet.triplet_case(self.network(row), self.scenes[anchor], self.scenes[negative], settings)

    def embedding_sizes(self, rows: Sequence[str], scenes: int = 20) -> pd.DataFrame:
        """How much of the tagged classes the GPP space holds, whole and masked: mean over the first scenes and all seeds.

        Index: label.  Columns: e_A of the anchor, e_P of its positive (ring mask), and their ratio.
        """
        lines = {}
        for row in map(run.row, rows):
            sizes = []
            for seed in range(self.n_seeds):
                network = self.network(row.name, seed)
                for index in range(min(scenes, len(self.scenes))):
                    sizes.append(ch04_triplet.embedding_sizes(network, self.scenes[index], REFERENCE))
            lines[row.label] = np.mean(sizes, axis=0)
        table = pd.DataFrame(lines, index=["e_A", "e_P"]).T
        return table.assign(ratio=table["e_P"] / table["e_A"])

    def label_maps(self, row: str, seed: int = 0) -> list[np.ndarray]:
        """The label maps (H, W) uint8 of a row that ends in some: pseudo-labels, or a segmentation network's predictions."""
        files = label_files(self.artefacts(row, seed)["labels"])
        return [read_label_map(file, num_classes=self.profile.num_classes) for file in files]

    def label_scores(self, row: str, seed: int = 0) -> pd.DataFrame:
        """Per scene of a row of label maps: mean IoU over its tagged classes, in percent."""
        scenes = self._scenes_of(row)
        lines = []
        for index, labels in enumerate(self.label_maps(row, seed)):
            mask, tags = scenes[index].mask, np.flatnonzero(scenes[index].tags)
            ious = [_iou(labels == c + 1, mask == c + 1) for c in tags]
            lines.append({"scene": index, "iou": 100 * float(np.mean(ious)), "classes": len(tags)})
        return pd.DataFrame(lines)

    def label_comparison(self, rows: Sequence[str], indices: Sequence[int], seed: int = 0) -> list[list[np.ndarray]]:
        """Picture rows for `figures.picture_grid`: image, truth, then the label map of every row, scene by scene."""
        maps, scenes = {row: self.label_maps(row, seed) for row in rows}, self._scenes_of(rows[0])
        return [[scenes[i].image, scenes[i].mask, *(maps[row][i] for row in rows)] for i in indices]

    def refinement(self, index: int, row: str = "aeft_pseudo", seed: int = 0) -> ch05_pseudo_labels.RefinementCase:
        """One training scene on the way of a row from its seed to its pseudo-label."""
        found = self.artefacts(row, seed)
        item = next(s for _, s in read_seeds(found["seeds"].folder / "seeds.npz", [f"{index:05d}"]))
        network = load_affinity_net(found["affinity"])
        return ch05_pseudo_labels.refinement_case(self.training_scenes[index], item, found["background"].summary, network)

    def background(self, row: str) -> pd.DataFrame:
        """The threshold and the background powers that each seed's CAMs were given: ``seed, threshold, low, middle, high``."""
        return pd.DataFrame([{"seed": n, **self.artefacts(row, n)["background"].summary} for n in range(self.n_seeds)])

    def label_classes(self, rows: Sequence[str]) -> pd.DataFrame:
        """IoU, precision and recall per class of label maps, for rows and seeds."""
        return self._stacked(rows, "classes.csv")

    def store_size(self, row: str, seed: int = 0) -> pd.Series:
        """Kilobytes a scene that each artefact of a refined row keeps, and what two CRFs would take in float32."""
        found, scenes = self.artefacts(row, seed), self._scenes_of(row)
        kept = {name: found[name] for name in ("seeds", "posteriors", "scores", "labels")}
        sizes = {name: _bytes_of(artefact) / len(scenes) / 1e3 for name, artefact in kept.items()}
        rows_a_scene = np.mean([1 + scenes[i].tags.sum() for i in range(len(scenes))])
        return pd.Series(sizes | {"two CRFs in float32": 2 * rows_a_scene * scenes.image(0)[..., 0].size * 4 / 1e3})

    def quantisation(self, row: str, scenes: int = 40, seed: int = 0) -> pd.Series:
        """mIoU (percent) of the first training scenes' label maps from two CRFs, as stored and as they were computed.

        Index: ``low stored, low float, high stored, high float``, the background powers that AffinityNet's labels come from.
        """
        found, numbers = self.artefacts(row, seed), {}
        names = [f"{i:05d}" for i in range(min(scenes, len(self.training_scenes)))]
        seeds = [item for _, item in read_seeds(found["seeds"].folder / "seeds.npz", names)]
        masks = [self.training_scenes[i].mask for i in range(len(names))]
        for power in ("low", "high"):
            alpha = found["background"].summary[power]
            stored = [item for _, item in read_seeds(found["posteriors"].folder / f"{power}.npz", names)]
            exact = [dense_crf.refine(self.training_scenes[i].image, item.cam, [alpha])[0] for i, item in enumerate(seeds)]
            maps = {"stored": [label_map(*item) for item in stored]}
            maps["float"] = [label_map(item.class_ids, q[1:]) for item, q in zip(seeds, exact, strict=True)]
            for kind, labels in maps.items():
                counts = evaluation.confusion(labels, masks, num_classes=self.profile.num_classes)
                numbers[f"{power} {kind}"] = float(counts.miou)
        return pd.Series(numbers)

    def verdicts(self, study: str) -> str:
        """The claims that rest on a study as a Markdown table: the paper's difference, ours over the seeds, the verdict."""
        ids = {claim["id"] for claim in report.published()["claims"] if claim["study"] == study}
        built = report.build({study: self.table(study)}, self.profile.name)
        return report.markdown({"claims": [claim for claim in built["claims"] if claim["id"] in ids]})

    def case(self, index: int, row: str, seed: int = 0) -> dict[str, np.ndarray]:
        """A scene with its first class's object, CAM and seed at the row's best threshold, as `figures.cam_problems` wants."""
        scene = self.scenes[index]
        item = next(s for i, s in enumerate(self.seeds(row, seed)) if i == index)
        threshold = self.artefacts(row, seed)["evaluation"].summary["threshold"]
        label = int(item.class_ids[0]) + 1
        predicted = label_map(*item, threshold)
        cam = item.cam[0].numpy()
        return {"image": scene.image, "truth": scene.mask == label, "cam": cam, "predicted": predicted == label}

    def output(self, network: CamClassifier, index: int) -> CamOutput:
        """The classifier on one validation scene: signed CAM (1, K, h, w), logits, attention."""
        return run_network(network, self.scenes[index])

    def gates(self, row: str = "gated") -> pd.DataFrame:
        """Mean gate weights over the first 40 validation scenes: ``seed, step, sign, side, weight``."""
        lines = []
        for seed in range(self.n_seeds):
            network = self.network(row, seed)
            maps = [network.pooling.gate_maps(self.output(network, i).cam) for i in range(min(40, len(self.scenes)))]
            for step, name in enumerate(step_names(network.pooling)):
                for sign in ("positive", "negative"):
                    mean = torch.stack([getattr(m[step], sign).mean(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
                    for side, weight in zip(("first map", "next level"), mean.tolist(), strict=True):
                        lines.append({"seed": seed, "step": name, "sign": sign, "side": side, "weight": weight})
        return pd.DataFrame(lines)

    def comparison(self, rows: Sequence[str], indices: Sequence[int], seed: int = 0) -> list[list[np.ndarray]]:
        """Picture rows for `figures.picture_grid`: image, truth, then CAM and seed of every row, scene by scene."""
        stored = {row: self.seeds(row, seed) for row in rows}
        cut = {row: self.artefacts(row, seed)["evaluation"].summary["threshold"] for row in rows}
        pictures = []
        for index in indices:
            scene = self.scenes[index]
            line = [scene.image, scene.mask]
            for row in rows:
                item = stored[row][index]
                line += [figures.overlay(scene.image, item.cam.amax(dim=0).numpy()), label_map(*item, cut[row])]
            pictures.append(line)
        return pictures

    def scene_scores(self, row: str, seed: int = 0) -> pd.DataFrame:
        """Per scene: mean IoU over its tagged classes at the row's best threshold, in percent."""
        threshold = self.artefacts(row, seed)["evaluation"].summary["threshold"]
        lines = []
        for index, item in enumerate(self.seeds(row, seed)):
            mask, predicted = self.scenes[index].mask, label_map(*item, threshold)
            ious = [_iou(predicted == c + 1, mask == c + 1) for c in item.class_ids.tolist()]
            lines.append({"scene": index, "iou": 100 * float(np.mean(ious))})
        return pd.DataFrame(lines)

    def report(self) -> dict:
        """The report over all studies that the store holds for these seeds; computes nothing.

        Where it may replace the committed report, lines that this store cannot make stay as they were committed.
        """
        tables = {name: self.stored_table(name) for name in run.STUDIES}
        built = report.build({name: table for name, table in tables.items() if not table.empty}, self.profile.name)
        return report.carry_over(built, paths.FIGURES) if self.figures_folder == paths.FIGURES else built

    def stored_table(self, study: str) -> pd.DataFrame:
        """As `table`, but only what is in the store."""
        lines, chosen = [], run.get(study)
        if not chosen.fits(self.profile):
            return pd.DataFrame()
        for seed in chosen.seeds(self.n_seeds):
            for row in chosen.rows:
                if numbers := run.stored(self.profile, row, seed):
                    lines.append({"row": row.name, "label": row.label, "seed": seed, **numbers})
        return run.at_common_threshold(chosen, self.profile, pd.DataFrame(lines))

    def save(self, figure: Figure, name: str, table: pd.DataFrame) -> None:
        """Keep a figure and its numbers in the session's figures folder."""
        figures.save(figure, name, table, self.figures_folder)

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table alone."""
        self.figures_folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(self.figures_folder / f"{name}.csv", index=False, float_format="%.4f")

    def _scenes_of(self, row: str) -> Scenes:
        """The scenes whose label maps a row makes."""
        return self.profile.scenes(getattr(run.row(row), "split", "val")).open()

    def artefacts(self, row: str, seed: int) -> dict[str, store.Artefact]:
        """What a row has made with a seed, by name; computed where the store lacks it."""
        chosen = run.row(row)
        if run.stored(self.profile, chosen, seed) is None:
            run.run(run.study_of(row), self.profile, [seed], rows=[chosen])
        return run.artefacts(self.profile, chosen, seed)

    def _stacked(self, rows: Sequence[str], file: str) -> pd.DataFrame:
        parts = []
        for row in map(run.row, rows):
            for seed in range(self.n_seeds):
                part = pd.read_csv(self.artefacts(row.name, seed)["evaluation"].folder / file)
                parts.append(part.assign(row=row.name, label=row.label, seed=seed))
        return pd.concat(parts, ignore_index=True)


def open_session(profile: str = "", seeds: int = 0) -> Session:
    """A session on a profile ("" is AEFT_PROFILE, else laptop) with so many seeds (0 is the profile's own number).

    Raises ValueError for an unknown profile or a number of seeds that is none, StoreError where the store cannot be written.
    """
    chosen = profiles.get(profile)
    session = Session(chosen, profiles.seeds(chosen, seeds))
    figures.use_inline_jpeg()
    session.scenes  # noqa: B018  (missing data is said before long work starts)
    store.check_writable()
    return session


def run_network(network: CamClassifier, scene: Scene) -> CamOutput:
    """A classifier on one scene, batch of one."""
    images = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return network(network.backbone.normalise(images))


def step_names(pooling: gpp.PyramidPooling) -> list[str]:
    """What every fusion step joins, as in "1→2" for levels 1 and 2 of a coarse-to-fine layer."""
    levels = pooling.levels if pooling.fusion == "gated" else pooling.levels[::-1]
    return [f"{a}→{b}" for a, b in itertools.pairwise(levels)]


def pyramid_pictures(pooling: gpp.PyramidPooling, cam: Tensor, class_id: int) -> dict[str, Mapping[str, np.ndarray]]:
    """The maps of `figures.gpp_pyramid` for one class of a CAM (1, K, h, w): pooled levels, fused maps, what gates add."""
    with torch.no_grad():
        pooled = pooling(cam)
    levels = {f"P{level}": p[0, class_id].numpy() for level, p in zip(pooling.levels, pooled.pyramid, strict=True)}
    fused = {f"P̂{level}": p[0, class_id].numpy() for level, p in zip(pooling.levels[1:], pooled.fused, strict=True)}
    detail = 4 * (pooled.fused[-1] - pooled.pyramid[-1])[0, class_id].abs().numpy()
    return {"levels": levels, "fused": fused, "detail": detail}


def _bytes_of(artefact: store.Artefact) -> int:
    return sum((artefact.folder / name).stat().st_size for name in artefact.record["files"])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))

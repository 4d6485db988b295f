"""Rows of studies: what stands in one line of a table, and the stages that lead to its numbers.

Every row has ``name``, ``label``, ``published`` (the id of its number in published.toml, or None) and
``artefacts(profile, seed, obtain)``, which goes from tags to numbers and returns its artefacts by name, ``evaluation`` among
them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from aeft_lib.paper.triplet import Triplet
from aeft_lib.stages import store
from aeft_lib.stages.cache_features import FeatureSpec, cache_features
from aeft_lib.stages.choose_background import BackgroundSpec, choose_background
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_labels, evaluate_scores, evaluate_seeds
from aeft_lib.stages.evaluate_epochs import EpochsSpec, evaluate_epochs
from aeft_lib.stages.infer_seeds import PhotoSeedSpec, SeedSpec, infer_photo_seeds, infer_seeds
from aeft_lib.stages.measure_objects import ObjectsSpec, measure_objects
from aeft_lib.stages.predict_labels import PredictionSpec, predict_labels
from aeft_lib.stages.refine_by_crf import CrfSpec, refine_by_crf
from aeft_lib.stages.train_affinity import AffinitySpec, train_affinity
from aeft_lib.stages.train_classifier import ClassifierSpec, NetworkSpec, PoolingSpec, train_classifier
from aeft_lib.stages.train_segmenter import SegmenterSpec, train_segmenter
from aeft_lib.stages.train_triplet import TripletSpec, train_triplet
from aeft_lib.stages.walk_seeds import WalkSpec, walk_seeds
from aeft_lib.stages.write_labels import LabelSpec, TruthSpec, true_labels, write_labels
from aeft_lib.studies.settings import PAPER_LEVELS, Condition, Profile

Obtain = Callable[..., store.Artefact]
Found = dict[str, store.Artefact]


@dataclass(frozen=True)
class Row:
    """A classifier, read as seeds of unseen scenes.

    label: as the poster prints it.  fusion, prediction: of the pooling layer.
    levels: which of the profile's four levels it pools, as positions.  published: the id of its number in published.toml.
    scaled: False takes the paper's bins as printed, those that fit the map, instead of the profile's scaled ones.
    triplet: what the second phase adds to classification, None where there is no second phase.
    quirks: of the reference's optimiser, kept in the second phase.  keep_epochs: evaluate after every epoch of the last phase.
    phase: fields of the profile's second phase that are other for this row.
    scale: of its scenes against the profile's, above 1: the same scenes on a finer map.
    condition: controlled collages, drawn by the seed, in place of the profile's scenes.  gate_gain: see `gpp`.
    trained_stages: of the backbone; None as the profile has it.
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
    scale: float = 1.0
    condition: Condition | None = None
    gate_gain: float = 1.0
    trained_stages: int | None = None

    def pooling(self, profile: Profile) -> PoolingSpec:
        """The row's pooling layer on the profile's feature map."""
        printed = tuple(level for level in PAPER_LEVELS if level <= profile.map_side)
        levels = tuple(profile.levels[i] for i in self.levels) if self.scaled else printed
        return PoolingSpec(self.fusion, levels, self.prediction, self.gate_gain)

    def profile(self, profile: Profile, seed: int) -> Profile:
        """The profile with the scenes, map and course of this row."""
        found = (profile.under(self.condition, seed) if self.condition else profile).scaled(self.scale)
        if self.trained_stages is None:
            return found
        return replace(found, backbone=replace(found.backbone, trained_stages=self.trained_stages))

    def artefacts(self, profile: Profile, seed: int, obtain: Obtain) -> Found:
        """From tags to the numbers of its seeds: ``classifier, seeds, evaluation``, and ``epochs`` where they are kept.

        On controlled collages ``objects`` too, see `objects`.
        """
        profile = self.profile(profile, seed)
        scored = profile.scenes("scored")
        found = _classifiers(profile, self, seed, obtain)
        seeds = found["seeds"] = _seeds(profile, found["classifier"], "scored", obtain)
        if self.keep_epochs and profile.cached:
            inputs = found | {"features": features(profile, "scored", obtain)}
            inputs.pop("seeds")
            inputs = inputs if self.triplet else {name: inputs[name] for name in ("classifier", "features")}
            found["epochs"] = obtain(evaluate_epochs, EpochsSpec(scored, profile.thresholds, scored.open().truth), inputs)
        del found["warm_start"]
        spec = EvaluationSpec(scored, profile.thresholds, scored.open().truth)
        found["evaluation"] = obtain(evaluate_seeds, spec, {"seeds": seeds})
        return found | ({"objects": objects(profile, found, obtain)} if self.condition else {})


@dataclass(frozen=True)
class RefinedRow:
    """Seeds of scenes whose tags are known, refined, and the label maps that come out.

    base: the classifier they come from.  crf, walk: which refinement; both: the walk, then the CRF on its result.
    split: the "train" scenes, where pseudo-labels are made, or the unseen "val" (with their tags, which no other row has).
    """

    name: str
    label: str
    base: Row
    crf: bool = False
    walk: bool = False
    split: str = "train"
    published: str | None = None

    def artefacts(self, profile: Profile, seed: int, obtain: Obtain) -> Found:
        """``seeds, background, scores, labels, evaluation``; where there is a walk, ``posteriors`` and ``affinity`` too."""
        numbers, scenes = profile.refinement, profile.scenes(self.split)
        classifier = _classifiers(profile, self.base, seed, obtain)["classifier"]
        seeds = _seeds(profile, classifier, self.split, obtain)
        background = _background(profile, classifier, obtain)
        inputs = {"seeds": seeds, "background": background}
        found, file = dict(inputs), "middle.npz"
        if self.walk:
            found |= _affinity(profile, classifier, seed, obtain)
            inputs["affinity"] = found["affinity"]
            last = numbers.last_crf_iterations if self.crf else 0
            scores = obtain(walk_seeds, WalkSpec(scenes, numbers.beta, numbers.steps, last), inputs)
        elif self.crf:
            scores = obtain(refine_by_crf, CrfSpec(scenes, ("middle",), numbers.crf_iterations), inputs)
        else:
            file, scores = "seeds.npz", seeds
        refined = self.walk or self.crf
        label_inputs = {"scores": scores} if refined else {"scores": scores, "background": background}
        labels = obtain(write_labels, LabelSpec(file, by_threshold=not refined), label_inputs)
        spec = EvaluationSpec(scenes, profile.thresholds, scenes.open().truth)
        evaluation = obtain(evaluate_scores, spec, {"scores": scores, "labels": labels})
        return found | {"scores": scores, "labels": labels, "evaluation": evaluation}


@dataclass(frozen=True)
class SegmentationRow:
    """A segmentation network on unseen scenes, without their tags.

    teacher: the row whose label maps it learns from; None: the true masks, the fully supervised ceiling.
    crf: a dense CRF on what it predicts.  tags_known: an oracle takes the classes away that are not there.
    """

    name: str
    label: str
    teacher: RefinedRow | None
    crf: bool = False
    tags_known: bool = False
    published: str | None = None

    def artefacts(self, profile: Profile, seed: int, obtain: Obtain) -> Found:
        """``teacher`` (label maps), ``segmenter``, ``labels`` (predicted), ``evaluation``."""
        if self.teacher is None:
            teacher = obtain(true_labels, TruthSpec(profile.train, profile.train.open().truth))
        else:
            teacher = self.teacher.artefacts(profile, seed, obtain)["labels"]
        numbers = profile.segmentation
        course = (numbers.schedule, seed, numbers.crop, profile.compute, numbers.hidden)
        train, val = profile.train.open(), profile.val.open()
        spec = SegmenterSpec(profile.train, profile.num_classes, profile.backbone, *course, data=train.fingerprint)
        segmenter = obtain(train_segmenter, spec, {"labels": teacher})
        last_crf = numbers.crf_iterations if self.crf else 0
        prediction = PredictionSpec(profile.val, numbers.scales, last_crf, self.tags_known, val.fingerprint)
        labels = obtain(predict_labels, prediction, {"segmenter": segmenter})
        evaluation = obtain(evaluate_labels, EvaluationSpec(profile.val, truth=val.truth), {"labels": labels})
        return {"teacher": teacher, "segmenter": segmenter, "labels": labels, "evaluation": evaluation}


AnyRow = Row | RefinedRow | SegmentationRow


def features(profile: Profile, split: str, obtain: Obtain = store.obtain) -> store.Artefact:
    """The cached trunk features of a split, shared by every row and seed."""
    scenes = profile.scenes(split)
    return obtain(cache_features, FeatureSpec(scenes, profile.backbone, profile.seed_scales, scenes.open().fingerprint))


def objects(profile: Profile, found: Found, obtain: Obtain = store.obtain) -> store.Artefact:
    """What the seeds of a `Row` make of every object of the scenes they are scored on."""
    scored = profile.scenes("scored")
    inputs = {name: found[name] for name in ("seeds", "evaluation")}
    return obtain(measure_objects, ObjectsSpec(scored, scored.open().truth), inputs)


def _classifiers(profile: Profile, row: Row, seed: int, obtain: Obtain) -> Found:
    """The row's ``classifier``, and the ``warm_start`` it went on from (itself, where there is no second phase).

    Rows with a second phase share one warm start: the whole first phase, as the study of poster table 1 trains it.
    """
    spec = ClassifierSpec(
        network=NetworkSpec(row.pooling(profile), profile.num_classes, profile.backbone),
        scenes=profile.train,
        schedule=profile.schedule,
        seed=seed,
        data=profile.train.open().fingerprint,
        view=profile.view,
        compute=profile.compute,
        keep_epochs=row.keep_epochs and row.triplet is None and profile.cached,
    )
    inputs = {"features": features(profile, "train", obtain)} if profile.cached else {}
    classifier = warm_start = obtain(train_classifier, spec, inputs)
    if row.triplet:
        phase = replace(profile.erasing, **dict(row.phase))
        course, loss = phase.schedule(row.quirks), phase.scaled(row.triplet)
        compute = profile.erasing_compute or profile.compute
        second = TripletSpec(spec, loss, course, compute, row.keep_epochs and profile.cached)
        classifier = obtain(train_triplet, second, inputs | {"classifier": warm_start})
    return {"classifier": classifier, "warm_start": warm_start}


def _seeds(profile: Profile, classifier: store.Artefact, split: str, obtain: Obtain) -> store.Artefact:
    scenes = profile.scenes(split)
    if profile.cached:
        inputs = {"classifier": classifier, "features": features(profile, split, obtain)}
        return obtain(infer_seeds, SeedSpec(profile.seed_scales, scenes.size), inputs)
    spec = PhotoSeedSpec(scenes, profile.seed_scales, scenes.open().fingerprint)
    return obtain(infer_photo_seeds, spec, {"classifier": classifier})


def _background(profile: Profile, classifier: store.Artefact, obtain: Obtain) -> store.Artefact:
    """Chosen on the training scenes, whatever is refined with it."""
    spec = BackgroundSpec(profile.thresholds, profile.refinement.powers)
    return obtain(choose_background, spec, {"seeds": _seeds(profile, classifier, "train", obtain)})


def _affinity(profile: Profile, classifier: store.Artefact, seed: int, obtain: Obtain) -> Found:
    """AffinityNet (``affinity``), trained on two CRFs (``posteriors``) of the training scenes' seeds."""
    numbers, seeds = profile.refinement, _seeds(profile, classifier, "train", obtain)
    inputs = {"seeds": seeds, "background": _background(profile, classifier, obtain)}
    posteriors = obtain(refine_by_crf, CrfSpec(profile.train, ("low", "high"), numbers.crf_iterations), inputs)
    spec = AffinitySpec(profile.train, profile.backbone, numbers.schedule, seed, numbers.view, profile.compute)
    return {"posteriors": posteriors, "affinity": obtain(train_affinity, spec, {"posteriors": posteriors})}

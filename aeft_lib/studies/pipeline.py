"""From a row to its numbers: which stages run, on which inputs, in which order."""

from collections.abc import Callable
from dataclasses import replace

from aeft_lib.engine.device import device
from aeft_lib.engine.step import Compute
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import FeatureSpec, cache_features
from aeft_lib.stages.evaluate import (
    EvaluationSpec,
    evaluate_labels,
    evaluate_scores,
    evaluate_seeds,
)
from aeft_lib.stages.evaluate_epochs import EpochsSpec, evaluate_epochs
from aeft_lib.stages.infer_seeds import SeedSpec, infer_seeds
from aeft_lib.stages.measure_objects import ObjectsSpec, measure_objects
from aeft_lib.stages.method import Reader, Workshop
from aeft_lib.stages.predict_labels import PredictionSpec, predict_labels
from aeft_lib.stages.predict_logits import LogitSpec, predict_logits
from aeft_lib.stages.store import obtain as obtain_artefact
from aeft_lib.stages.train_classifier import JUDGE, WARM_START, ClassifierSpec, train_classifier
from aeft_lib.stages.train_segmenter import SegmenterSpec, train_segmenter
from aeft_lib.stages.write_labels import TruthSpec, true_labels
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

Obtain = Callable[..., Artefact]
Artefacts = dict[str, Artefact]


def artefacts(
    profile: Profile, row: Row, repeat: int, obtain: Obtain = obtain_artefact
) -> Artefacts:
    """One row with one repeat from tags to numbers: its artefacts by name, ``evaluation`` last.

    ``classifier`` and ``seeds`` where it ends in seeds, ``epochs`` where they are kept, ``objects``
    on controlled collages; with a refiner what that names, ``scores`` and ``labels``; with a
    segmenter ``teacher`` (label maps), ``segmenter``, ``labels`` (predicted).
    """
    profile = with_fast_steps(row.setting.applied(profile, repeat))
    if row.method is None:
        spec = TruthSpec(profile.train, profile.train.open().truth)
        return _segmentation(profile, row, repeat, obtain(true_labels, spec), obtain)
    inputs = classifiers(profile, row, repeat, obtain)
    if row.refiner is None:
        return _seeds(profile, row, inputs, obtain)
    reader = row.reader.fitted(profile.seed_scales)
    workshop = Workshop(
        obtain=obtain,
        seeds=lambda split: seeds(profile, reader, inputs["classifier"], split, obtain),
        scenes=profile.scenes,
        numbers=profile.refinement,
        thresholds=profile.thresholds,
        backbone=profile.backbone,
        compute=profile.compute,
        repeat=repeat,
    )
    made = row.refiner.refine(workshop, "train" if row.segmenter else row.scored_on)
    if row.segmenter:
        return _segmentation(profile, row, repeat, made["labels"], obtain)
    inputs = {name: made[name] for name in ("scores", "labels")}
    spec = _evaluation(profile, row.scored_on)
    return made | {"evaluation": obtain(evaluate_scores, spec, inputs)}


def with_fast_steps(profile: Profile) -> Profile:
    """The profile with training steps in bf16 where that is faster: ResNet38d on a CPU.

    By the rule of inference (`device.inference_precision`): AMX or AVX512-BF16, or the user's
    word.  EfficientNet-Lite0 gains nothing, its depthwise convolutions wait for memory.
    """
    resnet38d, cpu = isinstance(profile.backbone, ResNet38dSpec), device().type == "cpu"
    if not (resnet38d and cpu and profile.precision == "bf16"):
        return profile

    def faster(compute: Compute | None) -> Compute | None:
        plain = compute is not None and compute.precision == "fp32"
        return replace(compute, precision="bf16") if plain else compute

    changes = {name: faster(getattr(profile, name)) for name in ("compute", "erasing_compute")}
    return replace(profile, **changes)


def features(profile: Profile, split: str, obtain: Obtain = obtain_artefact) -> Artefact:
    """The cached trunk features of a split, shared by every row and repeat."""
    scenes = profile.scenes(split)
    given = (profile.backbone, profile.seed_scales, scenes.open().fingerprint, profile.precision)
    return obtain(cache_features, FeatureSpec(scenes, *given))


def objects(profile: Profile, made: Artefacts, obtain: Obtain = obtain_artefact) -> Artefact:
    """What seeds make of every object of the scenes they are scored on."""
    scored = profile.scenes("scored")
    inputs = {name: made[name] for name in ("seeds", "evaluation")}
    return obtain(measure_objects, ObjectsSpec(scored, scored.open().truth), inputs)


def classifiers(profile: Profile, row: Row, repeat: int, obtain: Obtain) -> Artefacts:
    """The row's ``classifier``, and the ``warm_start`` it started from, where there was one.

    Rows with a second phase share one warm start: the whole first phase of the row they start from.
    """
    second, phase = row.starts_from is not None, row.setting.second_phase(profile.erasing)
    strength = phase.loss_scale if second else 1.0
    compute = (profile.erasing_compute or profile.compute) if second else profile.compute
    spec = ClassifierSpec(
        method=row.method.fitted(profile.map_side, strength),
        num_classes=profile.num_classes,
        backbone=profile.backbone,
        scenes=profile.train,
        schedule=phase.schedule() if second else profile.schedule,
        seed=repeat,
        data=profile.train.open().fingerprint,
        view=profile.view,
        compute=compute,
        keep_epochs=row.keep_epochs and profile.cached,
    )
    inputs = {"features": features(profile, "train", obtain)} if profile.cached else {}
    made = {}
    if second:
        earlier = classifiers(profile, row.starts_from, repeat, obtain)
        made[WARM_START] = inputs[WARM_START] = earlier["classifier"]
    for name, judge in row.judges:
        trained = classifiers(profile, judge, repeat, obtain)["classifier"]
        inputs[f"{JUDGE}{name}"] = trained
    return {"classifier": obtain(train_classifier, spec, inputs)} | made


def seeds(
    profile: Profile, reader: Reader, classifier: Artefact, split: str, obtain: Obtain
) -> Artefact:
    """The seeds of a split's scenes, from cached features where there are some."""
    scenes, inputs = profile.scenes(split), {"classifier": classifier}
    if profile.cached:
        inputs["features"] = features(profile, split, obtain)
    spec = SeedSpec(scenes, reader, scenes.open().fingerprint, profile.precision)
    return obtain(infer_seeds, spec, inputs)


def _seeds(profile: Profile, row: Row, inputs: Artefacts, obtain: Obtain) -> Artefacts:
    """The end of a row without a refiner: its seeds, scored at every threshold."""
    reader, split = row.reader.fitted(profile.seed_scales), row.scored_on
    made = {"classifier": inputs["classifier"]}
    made["seeds"] = seeds(profile, reader, made["classifier"], split, obtain)
    spec = _evaluation(profile, split)
    if row.keep_epochs and profile.cached:
        epochs = EpochsSpec(spec.scenes, spec.thresholds, spec.truth, profile.precision)
        scored = inputs | {"features": features(profile, split, obtain)}
        made["epochs"] = obtain(evaluate_epochs, epochs, scored)
    made["evaluation"] = obtain(evaluate_seeds, spec, {"seeds": made["seeds"]})
    if row.setting.condition:
        made["objects"] = objects(profile, made, obtain)
    return made


def _segmentation(
    profile: Profile, row: Row, repeat: int, teacher: Artefact, obtain: Obtain
) -> Artefacts:
    """The end of a row with a segmenter: trained on the teacher's labels, scored without tags."""
    numbers, scored = profile.segmentation, profile.scenes(row.scored_on)
    spec = SegmenterSpec(
        segmenter=row.segmenter.fitted(numbers.hidden),
        num_classes=profile.num_classes,
        backbone=profile.backbone,
        scenes=profile.train,
        schedule=numbers.schedule,
        seed=repeat,
        crop=numbers.crop,
        compute=profile.compute,
        data=profile.train.open().fingerprint,
    )
    segmenter = obtain(train_segmenter, spec, {"labels": teacher})
    labels = _predictions(profile, row, segmenter, obtain)
    spec = EvaluationSpec(scored, truth=scored.open().truth)
    evaluation = obtain(evaluate_labels, spec, {"labels": labels})
    products = {"teacher": teacher, "segmenter": segmenter, "labels": labels}
    return products | {"evaluation": evaluation}


def _predictions(profile: Profile, row: Row, segmenter: Artefact, obtain: Obtain) -> Artefact:
    """Label maps of the scored scenes, as the row reads the network.

    Where scenes have one size, rows of one network share its passes; photos of many sizes would
    need gigabytes (voc) to hundreds of them (coco).
    """
    numbers, scored = profile.segmentation, profile.scenes(row.scored_on)
    data, inputs, precision = scored.open().fingerprint, {"segmenter": segmenter}, profile.precision
    if profile.cached:
        spec = LogitSpec(scored, numbers.scales, data, precision)
        inputs = {"logits": obtain(predict_logits, spec, inputs)}
        precision = "fp32"  # of what follows; the logits have their own
    iterations = numbers.crf_iterations if row.prediction.crf else 0
    given = (iterations, row.prediction.tags_known, data, precision)
    return obtain(predict_labels, PredictionSpec(scored, numbers.scales, *given), inputs)


def _evaluation(profile: Profile, split: str) -> EvaluationSpec:
    scenes = profile.scenes(split)
    return EvaluationSpec(scenes, profile.thresholds, scenes.open().truth)

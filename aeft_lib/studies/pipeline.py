"""From a row to its numbers: which stages run, on which inputs, in which order."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from aeft_lib.data.scene import missing_masks
from aeft_lib.engine.device import device
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import Compute
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.networks.tapped import TappedSpec
from aeft_lib.rivals.sccam import count_tags
from aeft_lib.stages.artefact import Artefact, Inputs, Stage
from aeft_lib.stages.cache_features import FeatureSpec, cache_features
from aeft_lib.stages.count_images import ImagesSpec, count_images
from aeft_lib.stages.evaluate import (
    EvaluationSpec,
    evaluate_labels,
    evaluate_scores,
    evaluate_seeds,
)
from aeft_lib.stages.evaluate_epochs import EpochsSpec, evaluate_epochs
from aeft_lib.stages.evaluate_steps import StepsSpec, evaluate_steps
from aeft_lib.stages.infer_seeds import SeedSpec, infer_seeds
from aeft_lib.stages.labeller import LABELS
from aeft_lib.stages.measure_objects import ObjectsSpec, measure_objects
from aeft_lib.stages.method import Method, Workshop
from aeft_lib.stages.read_each import EachSpec, read_each
from aeft_lib.stages.store import key_for
from aeft_lib.stages.store import obtain as obtain_artefact
from aeft_lib.stages.train_classifier import JUDGE, WARM_START, ClassifierSpec, train_classifier
from aeft_lib.stages.train_composed import ComposedSpec, train_composed
from aeft_lib.stages.train_labelled import train_labelled
from aeft_lib.stages.train_on_maps import MAPS, train_on_maps
from aeft_lib.stages.train_on_views import ViewsSpec, train_on_views
from aeft_lib.stages.write_labels import TruthSpec, true_labels
from aeft_lib.studies import segmentation
from aeft_lib.studies.ledger import MECHANISM
from aeft_lib.studies.rows import Logged, Row, passes_of, probe
from aeft_lib.studies.settings import Profile

Obtain = Callable[..., Artefact]
Artefacts = dict[str, Artefact]


def artefacts(
    profile: Profile, row: Row, repeat: int, obtain: Obtain = obtain_artefact
) -> Artefacts:
    """One row with one repeat from tags to numbers: its `products`, and what is measured on them.

    ``mechanism_<number>`` of seeds; ``evaluation``; ``epochs`` where they are kept, ``curve`` over
    the steps where the profile has one; ``objects`` on controlled collages, ``images`` (counts of
    each) on all others.  All but the first need masks, and are left out where a scene that the row
    is scored on has none.
    """
    made, given = products(profile, row, repeat, obtain), profile
    profile = with_fast_steps(row.setting.applied(profile, repeat))
    made |= _mechanisms(profile, row, repeat, made, obtain)
    if masks_to_score(given, row, repeat):
        return made
    return made | _measures(profile, row, repeat, made, obtain)


def laid_out(profile: Profile, row: Row, repeat: int) -> Artefacts:
    """As `artefacts`, by stage and key alone: nothing is read, computed, or has a folder."""
    return artefacts(profile, row, repeat, _named)


def keyed(profile: Profile, row: Row, repeat: int) -> Artefacts:
    """As `laid_out`, with the keys that the store has: tags are counted where keys need them.

    The number of sub-categories does, which `laid_out` takes from its paper.
    """

    def counted(stage: Stage, spec: Any, inputs: Inputs | None = None) -> Artefact:
        made = _named(stage, spec, inputs)
        if stage is not count_tags:
            return made
        return replace(made, record=made.record | {"summary": count_tags(spec, {}, made.folder)})

    return artefacts(profile, row, repeat, counted)


def parts(profile: Profile, row: Row, repeat: int) -> list[Artefact]:
    """Everything that a row is made of, each once, in the order of its stages; as `laid_out`."""
    made: Artefacts = {}

    def noted(*asked: Any) -> Artefact:
        part = _named(*asked)
        return made.setdefault(part.key, part)

    artefacts(profile, row, repeat, noted)
    return list(made.values())


def _named(stage: Stage, spec: Any, inputs: Inputs | None = None) -> Artefact:
    key, empty = key_for(stage, spec, inputs), {"summary": {}, "spec": {}}
    return Artefact(stage.__name__, key, Path(stage.__name__, key), empty, spec)


def products(
    profile: Profile, row: Row, repeat: int, obtain: Obtain = obtain_artefact
) -> Artefacts:
    """What a row makes with one repeat, by name; masks are read for the true labels alone.

    ``classifier`` and ``seeds`` where it ends in seeds; with a refiner what that names, ``seeds``
    and ``labels`` among it, ``scores`` where labels are cut from such; with a segmenter ``seeds``,
    ``teacher`` (label maps), ``segmenter``, ``labels`` (predicted).
    Raises ValueError where it learns from true masks and a training scene has none.
    """
    if missing := masks_to_learn(profile, row, repeat):
        raise ValueError(f"row {row.name} learns from true masks, and {missing}")
    profile = with_fast_steps(row.setting.applied(profile, repeat))
    if row.method is None:
        spec = TruthSpec(profile.train, profile.train.open().truth)
        taught = {"labels": obtain(true_labels, spec)}
        return segmentation.learned(profile, row, repeat, taught, obtain)
    shop = workshop(profile, row, repeat, obtain)
    if row.refiner is None:
        return {"classifier": shop.classifier, "seeds": shop.seeds(row.scored_on)}
    made = row.refiner.refine(shop, "train" if row.segmenter else row.scored_on)
    if row.segmenter is None:
        return made
    ends = segmentation.learned(profile, row, repeat, made, obtain)
    return {"seeds": made["seeds"]} | ends


def workshop(profile: Profile, row: Row, repeat: int, obtain: Obtain) -> Workshop:
    """What a row's seeds are refined with; the row's classifier is obtained."""
    classifier = classifiers(profile, row, repeat, obtain)["classifier"]
    return Workshop(
        obtain=obtain,
        seeds=cache(lambda split: seeds(profile, row, classifier, split, obtain)),
        scenes=profile.scenes,
        numbers=profile.refinement,
        thresholds=profile.thresholds,
        backbone=profile.backbone,
        compute=profile.compute,
        repeat=repeat,
        classifier=classifier,
        map_side=profile.map_side,
        training=partial(segmentation.training, profile, repeat),
        predicted=partial(segmentation.predicted, profile, repeat, obtain),
    )


def masks_to_learn(profile: Profile, row: Row, repeat: int) -> str:
    """The masks that a row learns from and that are missing, in words; "" where none is."""
    if row.method is not None:
        return ""
    return missing_masks(row.setting.applied(profile, repeat).train)


def masks_to_score(profile: Profile, row: Row, repeat: int) -> str:
    """The masks that a row is scored with and that are missing, in words; "" where none is."""
    return missing_masks(row.setting.applied(profile, repeat).scenes(row.scored_on))


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


def features(
    profile: Profile, split: str, obtain: Obtain = obtain_artefact, *, taps: bool = False
) -> Artefact:
    """The cached trunk features of a split, shared by every row and repeat.

    taps: with what a refinement head reads, for the rows whose method needs it.
    """
    scenes, backbone = profile.scenes(split), _backbone(profile, taps)
    given = (backbone, profile.seed_scales, scenes.open().fingerprint, profile.precision)
    return obtain(cache_features, FeatureSpec(scenes, *given))


def _backbone(profile: Profile, taps: bool) -> BackboneSpec:
    return TappedSpec(profile.backbone) if taps else profile.backbone


def _mechanisms(
    profile: Profile, row: Row, repeat: int, made: Artefacts, obtain: Obtain
) -> Artefacts:
    """An artefact for every number of the row's mechanisms, as ``mechanism_<number>``."""
    scenes, numbers, parts = profile.scenes(row.scored_on), {}, made
    if "classifier" in {getattr(mechanism, "part", "") for mechanism in row.mechanisms} - set(made):
        parts = classifiers(profile, row, repeat, obtain) | made
    for mechanism in row.mechanisms:
        if isinstance(mechanism, Logged):
            measured = parts[mechanism.part]
        else:
            measured = mechanism.measure(obtain, scenes, made["classifier"], profile.precision)
        numbers |= {f"{MECHANISM}{name}": measured for name in mechanism.names}
    return numbers


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
    schedule = phase.schedule() if second else _lengthened(profile, row.as_long_as)
    compute = (profile.erasing_compute or profile.compute) if second else profile.compute
    cached = _features_of(profile, row, "train", obtain)
    method = row.method.fitted(profile.map_side, strength)
    if row.taught_by:
        method = row.taught_by[0].taught(method, obtain, profile.train, cached)
    spec = ClassifierSpec(
        method=method,
        num_classes=profile.num_classes,
        backbone=_backbone(profile, _needs_taps(row)),
        scenes=profile.train,
        schedule=schedule,
        seed=repeat,
        data=profile.train.open().fingerprint,
        view=profile.view,
        compute=compute,
        keep_epochs=row.keep_epochs and profile.cached,
    )
    inputs = {"features": cached} if cached else {}
    made, stage = {}, train_classifier
    if second:
        earlier = classifiers(profile, row.starts_from, repeat, obtain)
        made[WARM_START] = inputs[WARM_START] = earlier["classifier"]
    for name, judge in row.judges:
        trained = classifiers(profile, judge, repeat, obtain)["classifier"]
        inputs[f"{JUDGE}{name}"] = trained
    if row.taught_by:
        labeller, teacher = row.taught_by
        earlier = classifiers(profile, teacher, repeat, obtain)["classifier"]
        read = _features_of(profile, teacher, "train", obtain)
        inputs[LABELS] = labeller.label(obtain, profile.train, earlier, read)
        stage = train_labelled
    elif row.reads:
        source, maker = row.reads
        stage, more = source.for_training(workshop(profile, maker, repeat, obtain))
        inputs = (inputs if source.cached else {}) | more
    elif row.composed_by:
        composer, teacher = row.composed_by
        shop = workshop(profile, teacher, repeat, obtain)
        labels = teacher.refiner.refine(shop, teacher.scored_on)["labels"]
        inputs |= composer.prepared(obtain, profile.train, labels)
        stage, spec = train_composed, ComposedSpec(**vars(spec), composer=composer)
    elif MAPS in row.method.needs:
        stage, given = train_on_maps, (profile.train, profile.backbone, profile.precision)
        inputs[MAPS] = method.maps(obtain, *given)
    elif profile.curve:
        fields = {name: value for name, value in vars(spec).items() if name != "keep_epochs"}
        stage, spec = train_on_views, ViewsSpec(**fields, points=profile.curve)
    return {"classifier": obtain(stage, spec, inputs)} | made


def _lengthened(profile: Profile, as_long_as: Method | float) -> Schedule:
    """The profile's schedule of classifiers, with as many epochs as give as many passes in all."""
    epochs = math.ceil(passes_of(as_long_as, profile) * profile.schedule.epochs)
    return replace(profile.schedule, epochs=epochs)


def _features_of(profile: Profile, row: Row, split: str, obtain: Obtain) -> Artefact | None:
    """The features that a row's classifier reads, where they are cached."""
    return features(profile, split, obtain, taps=_needs_taps(row)) if profile.cached else None


def _needs_taps(row: Row) -> bool:
    return "taps" in row.method.needs


def seeds(profile: Profile, row: Row, classifier: Artefact, split: str, obtain: Obtain) -> Artefact:
    """The seeds of a split's scenes, from cached features where there are some and they will do.

    A reader that optimises for every image is brief on scenes that are squared for a laptop, and
    draws whole ones there.
    """
    scenes, inputs = profile.scenes(split), {"classifier": classifier}
    if hasattr(row.reader, "draws"):
        brief = bool(scenes.size)
        reader = row.reader.fitted(profile.seed_scales, brief=brief)
        view = None if brief else profile.view
        drawn = {"others": profile.train, "view": view} if reader.draws else {}
        spec = EachSpec(scenes, reader, scenes.open().fingerprint, **drawn)
        return obtain(read_each, spec, inputs | reader.inputs(obtain, spec, classifier))
    reader = row.reader.fitted(profile.seed_scales)
    needs_images = getattr(reader, "needs_images", False)
    if not needs_images and (cached := _features_of(profile, row, split, obtain)):
        inputs["features"] = cached
    stage = infer_seeds
    if row.reads:
        source, maker = row.reads
        shop = workshop(profile, maker, classifier.spec.seed, obtain)
        stage, more = source.for_seeds(shop, split)
        inputs |= more
    spec = SeedSpec(scenes, reader, scenes.open().fingerprint, profile.precision)
    return obtain(stage, spec, inputs)


def _measures(
    profile: Profile, row: Row, repeat: int, made: Artefacts, obtain: Obtain
) -> Artefacts:
    """Everything that compares what a row made with masks."""
    scenes = profile.scenes(row.scored_on)
    truth = scenes.open().truth
    measures, images = {}, ImagesSpec(scenes, truth)
    if row.segmenter or row.refiner:
        labels = {"labels": made["labels"]}
        if row.segmenter or "scores" not in made:
            spec = EvaluationSpec(scenes, truth=truth)
            measures["evaluation"] = obtain(evaluate_labels, spec, labels)
        else:
            spec = EvaluationSpec(scenes, profile.thresholds, truth)
            inputs = {"scores": made["scores"]} | labels
            measures["evaluation"] = obtain(evaluate_scores, spec, inputs)
        return measures | {"images": obtain(count_images, images, labels)}
    spec = EvaluationSpec(scenes, profile.thresholds, truth)
    if profile.curve or (row.keep_epochs and profile.cached):
        given = (scenes, profile.thresholds, truth, profile.precision)
        inputs = {"classifier": made["classifier"]}
        if row.starts_from is not None:
            earlier = classifiers(profile, row.starts_from, repeat, obtain)
            inputs[WARM_START] = earlier["classifier"]
        # A curve is read at scale 1, so features of the others are not needed.
        read = replace(profile, seed_scales=(1.0,)) if profile.curve else profile
        inputs["features"] = features(read, row.scored_on, obtain, taps=_needs_taps(row))
        epochs = obtain(evaluate_epochs, EpochsSpec(*given), inputs)
        if profile.curve:
            steps = StepsSpec(scenes, probe(row.method))
            measures["curve"] = obtain(evaluate_steps, steps, inputs | {"epochs": epochs})
        else:
            measures["epochs"] = epochs
    measures["evaluation"] = obtain(evaluate_seeds, spec, {"seeds": made["seeds"]})
    if row.setting.condition:  # whose repeats draw scenes of their own
        measures["objects"] = objects(profile, made | measures, obtain)
    else:
        inputs = {"seeds": made["seeds"], "evaluation": measures["evaluation"]}
        measures["images"] = obtain(count_images, images, inputs)
    return measures

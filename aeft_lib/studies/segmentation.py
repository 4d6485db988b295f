"""The last networks of rows: trained on label maps, and read as label maps of a split."""

from collections.abc import Callable, Mapping

from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.method import Segmenter
from aeft_lib.stages.predict_labels import PredictionSpec, predict_labels
from aeft_lib.stages.predict_logits import LogitSpec, predict_logits
from aeft_lib.stages.train_segmenter import SegmenterSpec, train_segmenter
from aeft_lib.stages.train_tagged_segmenter import TAGS, WARM_START, schedule_of
from aeft_lib.stages.train_tagged_segmenter import train_segmenter as train_tagged_segmenter
from aeft_lib.studies.rows import Prediction, Row
from aeft_lib.studies.settings import Profile

Obtain = Callable[..., Artefact]


def learned(
    profile: Profile, row: Row, repeat: int, taught: Mapping[str, Artefact], obtain: Obtain
) -> dict[str, Artefact]:
    """The end of a row with a segmenter: trained on a refiner's labels, read without tags.

    taught: what the refiner made, ``labels`` among it.
    Raises ValueError where the segmenter starts from what the refiner does not make.
    """
    try:
        segmenter = _segmenter(profile, row.segmenter, repeat, taught, obtain)
    except ValueError as error:
        raise ValueError(f"row {row.name}: {error}") from error
    labels = _predictions(profile, row.scored_on, row.prediction, segmenter, obtain)
    return {"teacher": taught["labels"], "segmenter": segmenter, "labels": labels}


def predicted(
    profile: Profile,
    repeat: int,
    obtain: Obtain,
    segmenter: Segmenter,
    teacher: Artefact,
    split: str,
    *,
    tags_known: bool,
    crf: bool,
) -> Artefact:
    """`Workshop.predicted`."""
    trained = _segmenter(profile, segmenter, repeat, {"labels": teacher}, obtain)
    return _predictions(profile, split, Prediction(crf, tags_known), trained, obtain)


def training(profile: Profile, repeat: int, segmenter: Segmenter) -> SegmenterSpec:
    """`Workshop.training`: how the profile trains a segmenter on the training scenes."""
    numbers = profile.segmentation
    segmenter = segmenter.fitted(numbers.hidden)
    return SegmenterSpec(
        segmenter=segmenter,
        num_classes=profile.num_classes,
        backbone=profile.backbone,
        scenes=profile.train,
        schedule=schedule_of(segmenter, numbers.schedule),
        seed=repeat,
        crop=numbers.crop,
        compute=profile.compute,
        data=profile.train.open().fingerprint,
    )


def _segmenter(
    profile: Profile,
    segmenter: Segmenter,
    repeat: int,
    taught: Mapping[str, Artefact],
    obtain: Obtain,
) -> Artefact:
    """A segmentation network, trained on label maps of the training scenes."""
    spec = training(profile, repeat, segmenter)
    inputs = {"labels": taught["labels"]}
    if start := getattr(spec.segmenter, "starts_from", ""):
        if start not in taught:
            raise ValueError(
                f"its segmenter starts from {start!r}, which its refiner does not make"
            )
        inputs[WARM_START] = taught[start]
    knows_tags = TAGS in getattr(spec.segmenter, "needs", ())
    return obtain(train_tagged_segmenter if knows_tags else train_segmenter, spec, inputs)


def _predictions(
    profile: Profile, split: str, prediction: Prediction, segmenter: Artefact, obtain: Obtain
) -> Artefact:
    """Label maps of a split's scenes, as the network is read.

    Where scenes have one size, rows of one network share its passes; photos of many sizes would
    need gigabytes (voc) to hundreds of them (coco).
    """
    numbers, scenes = profile.segmentation, profile.scenes(split)
    data, inputs = scenes.open().fingerprint, {"segmenter": segmenter}
    precision = profile.segmenter_precision
    if profile.cached:
        spec = LogitSpec(scenes, numbers.scales, data, precision)
        inputs = {"logits": obtain(predict_logits, spec, inputs)}
        precision = "fp32"  # of what follows; the logits have their own
    iterations = numbers.crf_iterations if prediction.crf else 0
    given = (iterations, prediction.tags_known, data, precision)
    return obtain(predict_labels, PredictionSpec(scenes, numbers.scales, *given), inputs)

"""The last networks of rows: trained on label maps, and read as label maps of a split."""

from collections.abc import Callable

from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.method import Segmenter
from aeft_lib.stages.predict_labels import PredictionSpec, predict_labels
from aeft_lib.stages.predict_logits import LogitSpec, predict_logits
from aeft_lib.stages.train_segmenter import SegmenterSpec, train_segmenter
from aeft_lib.studies.rows import Prediction, Row
from aeft_lib.studies.settings import Profile

Obtain = Callable[..., Artefact]


def learned(
    profile: Profile, row: Row, repeat: int, teacher: Artefact, obtain: Obtain
) -> dict[str, Artefact]:
    """The end of a row with a segmenter: trained on the teacher's labels, read without tags."""
    segmenter = _segmenter(profile, row.segmenter, repeat, teacher, obtain)
    labels = _predictions(profile, row.scored_on, row.prediction, segmenter, obtain)
    return {"teacher": teacher, "segmenter": segmenter, "labels": labels}


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
    trained = _segmenter(profile, segmenter, repeat, teacher, obtain)
    return _predictions(profile, split, Prediction(crf, tags_known), trained, obtain)


def _segmenter(
    profile: Profile, segmenter: Segmenter, repeat: int, teacher: Artefact, obtain: Obtain
) -> Artefact:
    """A segmentation network, trained on label maps of the training scenes."""
    numbers = profile.segmentation
    spec = SegmenterSpec(
        segmenter=segmenter.fitted(numbers.hidden),
        num_classes=profile.num_classes,
        backbone=profile.backbone,
        scenes=profile.train,
        schedule=numbers.schedule,
        seed=repeat,
        crop=numbers.crop,
        compute=profile.compute,
        data=profile.train.open().fingerprint,
    )
    return obtain(train_segmenter, spec, {"labels": teacher})


def _predictions(
    profile: Profile, split: str, prediction: Prediction, segmenter: Artefact, obtain: Obtain
) -> Artefact:
    """Label maps of a split's scenes, as the network is read.

    Where scenes have one size, rows of one network share its passes; photos of many sizes would
    need gigabytes (voc) to hundreds of them (coco).
    """
    numbers, scenes = profile.segmentation, profile.scenes(split)
    data, inputs, precision = scenes.open().fingerprint, {"segmenter": segmenter}, profile.precision
    if profile.cached:
        spec = LogitSpec(scenes, numbers.scales, data, precision)
        inputs = {"logits": obtain(predict_logits, spec, inputs)}
        precision = "fp32"  # of what follows; the logits have their own
    iterations = numbers.crf_iterations if prediction.crf else 0
    given = (iterations, prediction.tags_known, data, precision)
    return obtain(predict_labels, PredictionSpec(scenes, numbers.scales, *given), inputs)

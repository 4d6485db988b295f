"""The last network on the smoke profile: training, predictions, scores, refusals, who reads masks.

One store for the whole file; it all runs in this process with one thread.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_label_stages import (
    FEW,
    PSEUDO,
    SIZE,
    artefacts,
    as_tensor,
    assert_table_agrees,
    headline,
    pixels,
    spec_of_affinity,
)

from aeft_lib.data.collages import Collages
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.networks.state import save_trained
from aeft_lib.refinement import dense_crf
from aeft_lib.stages import store
from aeft_lib.stages.choose_background import BackgroundSpec, choose_background
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_labels, evaluate_scores
from aeft_lib.stages.keys import reachable_modules
from aeft_lib.stages.loading import build_segmenter, load_segmenter
from aeft_lib.stages.predict_labels import (
    PredictionSpec,
    multi_scale_probabilities,
    predict,
    predict_labels,
)
from aeft_lib.stages.predict_logits import LogitSpec, coarse_passes, load_passes, predict_logits
from aeft_lib.stages.refine_by_crf import CrfSpec, refine_by_crf
from aeft_lib.stages.train_affinity import train_affinity
from aeft_lib.stages.train_segmenter import SegmenterSpec, train_segmenter
from aeft_lib.stages.walk_seeds import WalkSpec, walk_seeds
from aeft_lib.stages.write_labels import (
    LabelSpec,
    TruthSpec,
    label_files,
    true_labels,
    write_labels,
)
from aeft_lib.studies import catalogue, run
from aeft_lib.studies.profiles import SMOKE

SCALES, FEW_UNSEEN = (1.0, 1.5), replace(SMOKE.val, count=2)
SPEC = SegmenterSpec(
    segmenter=LargeFov(hidden=32),
    num_classes=SMOKE.num_classes,
    backbone=SMOKE.backbone,
    scenes=SMOKE.train,
    schedule=SMOKE.segmentation.schedule,
    seed=0,
)

pytestmark = pytest.mark.usefixtures("stored")


@pytest.fixture
def segmenter(stored) -> store.Artefact:
    """As if trained: a head of large random weights, which predicts every class somewhere."""
    folder = stored / "segmenter"
    if not folder.exists():
        folder.mkdir()
        network = build_segmenter(SPEC)
        with torch.no_grad():
            for layer in (network.head.conv6, network.head.conv7):
                layer.weight *= 20
        save_trained(network, folder / "weights.safetensors")
    return store.Artefact("train_segmenter", "large", folder, {}, SPEC)


@pytest.fixture
def predicted(segmenter):
    """The predictions of that segmenter on the unseen scenes."""
    return lambda **options: store.obtain(
        predict_labels, PredictionSpec(SMOKE.val, (1.0,), **options), {"segmenter": segmenter}
    )


# --- segmenter and predictions --------------------------------------------------------------------


def test_segmenter_has_the_same_weights_again(tmp_path):
    made = run.artefacts(SMOKE, catalogue.get("segmentation").row("segment_aeft"), 0)
    assert made["teacher"].key == artefacts(PSEUDO)["labels"].key
    assert SPEC.segmenter == LargeFov().fitted(SMOKE.segmentation.hidden)
    torch.manual_seed(7)
    summary = train_segmenter(SPEC, {"labels": made["teacher"]}, tmp_path)
    assert summary == made["segmenter"].summary
    for name in ("weights.safetensors", "log.csv", "steps.jsonl"):
        assert (tmp_path / name).read_bytes() == (made["segmenter"].folder / name).read_bytes()


def test_segmenter_learns(tmp_path):
    schedule = replace(SPEC.schedule, epochs=3, head_lr=0.01, warmup_steps=0)
    truth = store.obtain(true_labels, TruthSpec(SMOKE.train))
    summary = train_segmenter(replace(SPEC, schedule=schedule), {"labels": truth}, tmp_path)
    log = pd.read_csv(tmp_path / "log.csv")
    assert summary["segmentation"] == pytest.approx(log["segmentation"].iloc[-1])
    assert summary["segmentation"] < 0.8 * log["segmentation"].iloc[0]


def test_every_unseen_scene_has_a_prediction(predicted):
    labels = predicted()
    assert [file.name for file in label_files(labels)] == [
        f"{i:05d}.png" for i in range(SMOKE.val.count)
    ]
    assert pixels(labels).shape == (SMOKE.val.count, *SIZE)
    assert len(np.unique(pixels(labels))) > 2
    assert_table_agrees(labels)


@pytest.fixture
def logits(segmenter) -> store.Artefact:
    return store.obtain(predict_logits, LogitSpec(SMOKE.val, SCALES), {"segmenter": segmenter})


@pytest.mark.parametrize(
    "options", [{}, {"crf_iterations": 2}, {"tags_known": True}], ids=["plain", "crf", "tags"]
)
def test_stored_logits_make_the_label_maps_of_the_network(segmenter, logits, tmp_path, options):
    """The same passes, stored in fp32: nothing is rounded on the way."""
    spec = PredictionSpec(SMOKE.val, SCALES, **options)
    for name, inputs in (("network", {"segmenter": segmenter}), ("stored", {"logits": logits})):
        (tmp_path / name).mkdir()
        predict_labels(spec, inputs, tmp_path / name)
    network, stored = (
        store.Artefact("predict_labels", name, tmp_path / name, {})
        for name in ("network", "stored")
    )
    assert (pixels(network) == pixels(stored)).all()
    assert len(np.unique(pixels(stored))) > 2


@pytest.mark.parametrize("index", [0, 3, 7])
def test_logits_of_a_batch_are_those_of_the_scene_alone(segmenter, logits, index):
    """Both are off from float64 by their rounding alone, of one size but for the order of sums."""
    network = load_segmenter(segmenter)
    image = as_tensor(Collages(SMOKE.val)[index].image)
    alone = coarse_passes(network, image, SCALES)
    exact = coarse_passes(network.double(), image.double(), SCALES)
    for batched, own, truth in zip(load_passes(logits, index, SCALES), alone, exact, strict=True):
        assert batched.shape == own.shape == truth.shape
        error = (own - truth).abs().max()
        assert 0 < error < 1e-4 * truth.abs().max()
        assert (batched - truth).abs().max() <= 10 * error


def test_bf16_is_used_where_the_spec_says_so(segmenter, logits, tmp_path):
    """Eight bits a rounding: further than fp32 rounds, and the same map."""
    predict_logits(
        LogitSpec(FEW_UNSEEN, SCALES, precision="bf16"), {"segmenter": segmenter}, tmp_path
    )
    half = store.Artefact("predict_logits", "bf16", tmp_path, {})
    for index in range(FEW_UNSEEN.count):
        for ours, exact in zip(
            load_passes(half, index, SCALES), load_passes(logits, index, SCALES), strict=True
        ):
            apart = (ours - exact).abs().max() / exact.abs().max()
            assert 2**-16 < apart < 0.5


def test_a_photo_is_predicted_as_its_probabilities_say(segmenter):
    network, image = load_segmenter(segmenter), Collages(SMOKE.val)[3].image
    scores = multi_scale_probabilities(network, as_tensor(image), SCALES)[0]
    assert (predict(network, image, SCALES) == scores.argmax(dim=0).numpy()).all()
    crf = dense_crf.DenseCRF(image).infer(dense_crf.unary_of(scores), iterations=2)
    assert (predict(network, image, SCALES, 2) == crf.argmax(dim=0).numpy()).all()


def test_known_tags_leave_tagged_classes_alone(predicted):
    free, told = pixels(predicted()), pixels(predicted(tags_known=True))
    surplus = 0
    for scene, without, with_tags in zip(Collages(SMOKE.val), free, told, strict=True):
        tagged = [0, *(scene.tags.nonzero()[0] + 1)]
        assert np.isin(with_tags, tagged).all()
        assert (with_tags == without)[np.isin(without, tagged)].all()
        surplus += (~np.isin(without, tagged)).sum()
    assert surplus


def test_predictions_are_scored_as_they_are(predicted):
    made = store.obtain(evaluate_labels, EvaluationSpec(SMOKE.val), {"labels": predicted()})
    expected = headline(pixels(predicted()), SMOKE.val)
    expected |= {f"{name}_maskless": value for name, value in expected.items()}
    assert {name: made.summary[name] for name in expected} == pytest.approx(expected)
    truth = store.obtain(true_labels, TruthSpec(SMOKE.val))
    occurring = np.unique(pixels(truth))
    assert store.obtain(evaluate_labels, EvaluationSpec(SMOKE.val), {"labels": truth}).summary[
        "miou"
    ] == pytest.approx(10 * len(occurring))


# --- who reads masks ------------------------------------------------------------------------------


def test_no_stage_before_evaluation_reads_a_mask(tmp_path, request, segmenter):
    made = artefacts(PSEUDO)
    as_seeds = {"scores": made["seeds"], "background": made["background"]}
    blind = request.getfixturevalue("blind")  # after the artefacts, which evaluation reads
    choose_background(BackgroundSpec(SMOKE.thresholds), made, tmp_path)
    refine_by_crf(CrfSpec(FEW, ("low", "high")), made, tmp_path)
    train_affinity(spec_of_affinity(), made, tmp_path)
    walk_seeds(WalkSpec(FEW), made, tmp_path)
    write_labels(LabelSpec("seeds.npz", by_threshold=True), as_seeds, tmp_path)
    train_segmenter(SPEC, made, tmp_path)
    predict_labels(PredictionSpec(FEW, (1.0,), tags_known=True), {"segmenter": segmenter}, tmp_path)
    for stage, spec in (
        (true_labels, TruthSpec(FEW)),
        (evaluate_labels, EvaluationSpec(SMOKE.train)),
    ):  # who reads them is caught
        with pytest.raises(blind):
            stage(spec, made, tmp_path)


@pytest.mark.parametrize(
    "stage",
    [
        "cache_features",
        "infer_seeds",
        "predict_labels",
        "predict_logits",
        "psa",
        "refine_by_crf",
        "train_affinity",
        "train_classifier",
        "train_segmenter",
        "walk_seeds",
    ],
)
def test_no_training_reaches_the_code_that_scores_masks(stage):
    reached = reachable_modules(f"aeft_lib.stages.{stage}")
    assert f"aeft_lib.stages.{stage}" in reached
    scoring = {f"aeft_lib.stages.{name}" for name in ("evaluate", "evaluate_epochs")}
    assert not reached & (scoring | {"aeft_lib.stages.measure_objects"})
    assert ("aeft_lib.maps.evaluation" in reached) == (stage == "psa")  # see choose_background


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [24, 40])
@pytest.mark.parametrize(
    "stage", [train_segmenter, train_affinity, evaluate_labels, evaluate_scores]
)
def test_other_numbers_of_images_and_label_maps_are_refused(tmp_path, stage, count):
    scenes = replace(SMOKE.train, count=count)
    specs = {
        train_segmenter: replace(SPEC, scenes=scenes),
        train_affinity: spec_of_affinity(scenes),
        evaluate_labels: EvaluationSpec(scenes),
        evaluate_scores: EvaluationSpec(scenes, SMOKE.thresholds),
    }
    with pytest.raises(ValueError, match=rf"{count} .* 32|shorter|longer"):
        stage(specs[stage], artefacts(PSEUDO), tmp_path)


def test_labels_of_another_size_or_of_more_classes_are_refused(tmp_path):
    made = artefacts(PSEUDO)
    with pytest.raises(
        ValueError, match=r"00000\.png: the label map is \(96, 96\), its image \(64, 64\)"
    ):
        train_segmenter(replace(SPEC, scenes=replace(SMOKE.train, size=64)), made, tmp_path)
    with pytest.raises(ValueError, match=r"is outside 0\.\.1 and is not void"):
        train_segmenter(replace(SPEC, num_classes=1), made, tmp_path)
    assert not list(tmp_path.iterdir())

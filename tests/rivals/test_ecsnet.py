"""ECS-Net (reconstruction): numbers of the reconstruction, limit cases of its rule, and whole rows.

No number of ECS-Net's own exists.  The golden file says only that the equations are as written.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from golden_cases import Case, TinyBackbone, check_parts, tiny_refined
from golden_networks import assert_stats
from torch import Tensor

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.maps.labels import VOID
from aeft_lib.networks.tapped import Tapped
from aeft_lib.paper import losses
from aeft_lib.paper.erasing import max_norm
from aeft_lib.parts.pixel_correlation import PixelCorrelation
from aeft_lib.parts.refined import RefinedClassifier
from aeft_lib.rivals.ecsnet import (
    DILATIONS,
    OVERLAYS,
    EcsNet,
    Overlaid,
    erased,
    label_sums,
    reliable_labels,
    scaled_maps,
)
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE

MAPS, STORED = 1e-9, 2e-7  # float64; stats are stored in float32
B, K = 4, 5


@pytest.fixture
def case(golden_rivals) -> Case:
    return Case(golden_rivals("ecs"))


def thresholds(case: Case) -> dict[str, float]:
    names = ("erase_threshold", "reliable", "quiet")
    return dict(zip(names, case["thresholds_te_hi_lo_f64"].tolist(), strict=True))


def score_of(case: Case) -> Tensor:
    size = case["image_f64"].shape[-2:]
    return scaled_maps(case["cam_f64"], case["tags"], size).amax(dim=1)


# --- the reconstruction's numbers -----------------------------------------------------------------


def test_golden_score_map(case, assert_near):
    score, limit = score_of(case), thresholds(case)["erase_threshold"]
    assert_near(score, case["score_map_f64"], MAPS, "S")
    assert torch.equal(score < limit, case["kept"].bool())


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_golden_erased_images(case, kind):
    images, limit = case["image_f64"], thresholds(case)["erase_threshold"]
    ours = erased(images, score_of(case), threshold=limit, kind=kind)
    arrays = {key: tensor.numpy() for key, tensor in case.tensors.items()}
    assert_stats(ours, arrays, f"erased_{kind}", STORED)


def labels_of(case: Case, **changes: float) -> Tensor:
    size = case["image_f64"].shape[-2:]
    maps = scaled_maps(case["cam_erased_f64"], case["tags"], size)
    return reliable_labels(maps, score_of(case), **thresholds(case) | changes)


def test_golden_labels(case):
    assert torch.equal(labels_of(case), case["label"])


def test_golden_maps_and_labels_in_float32(case, assert_near):
    """Labels but where a map lies within rounding of a threshold."""
    size, tags, limits = case["image_f64"].shape[-2:], case["tags"], thresholds(case)
    maps, others = (
        scaled_maps(case[name].float(), tags, size) for name in ("cam_f64", "cam_erased_f64")
    )
    score = maps.amax(dim=1)
    assert_near(score, case["score_map_f64"], 1e-5, "S")
    near = torch.zeros_like(score, dtype=torch.bool)
    for limit in limits.values():
        for values in (score, others.amax(dim=1)):
            near |= (values - limit).abs() < 1e-5
    labels = reliable_labels(others, score, **limits)
    assert torch.equal(labels[~near], case["label"][~near])
    assert near.float().mean() < 0.01


def test_golden_loss_and_gradient(case, assert_near):
    refined = case["refined_logit_f64"].requires_grad_()
    sums, counts = label_sums(refined, case["label"], case["tags"])
    loss = sums.sum() / counts.sum()
    assert_near(loss, case["ce_f64"], MAPS, "CE")
    (gradient,) = torch.autograd.grad(loss, refined)
    assert_near(gradient, case["grad_refined_f64"], MAPS, "gradient")
    absent = F.pad(~case["tags"].bool(), (1, 0), value=False)
    assert not gradient[absent].any()


def test_golden_labels_tell_wrong_rules_apart(case):
    """Without the erased part kept out, or with the quiet part alone for the background."""
    assert not torch.equal(labels_of(case, erase_threshold=1.1), case["label"])
    assert not torch.equal(labels_of(case, quiet=0.2), case["label"])


# --- the rule -------------------------------------------------------------------------------------


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_tagged_class_is_scaled_and_others_are_nowhere():
    cam, tags = random_maps(2, 3, 4, 5) - 0.2, torch.tensor([[1, 0, 1], [0, 1, 0]])
    maps = scaled_maps(cam, tags, (8, 10))
    assert not maps[tags == 0].any()
    # A range of at least 0.5 over itself and 1e-5.
    assert maps[tags == 1].amax(dim=(1, 2)).min() > 1 - 2e-5
    assert maps[tags == 1].amin(dim=(1, 2)).max() == 0
    assert not scaled_maps(-cam.abs(), tags, (8, 10)).any()


def test_what_is_erased_has_no_object_and_thresholds_beyond_the_range_no_label():
    maps, score = random_maps(2, K, 6, 7), random_maps(2, 6, 7, seed=1)
    given = {"erase_threshold": 0.6, "reliable": 0.5, "quiet": 0.3}
    labels = reliable_labels(maps, score, **given)
    best, winner = maps.max(dim=1)
    is_object = (labels > 0) & (labels != VOID)
    assert torch.equal(is_object, (best >= 0.5) & (score < 0.6))
    assert torch.equal(labels[is_object].long(), winner[is_object] + 1)
    none = reliable_labels(maps, score, **given | {"reliable": 1.1, "quiet": -0.1})
    assert (none == VOID).all()


def test_an_image_in_which_a_pass_sees_nothing_has_no_label():
    """Else all of it were background, and the class would fall further below it."""
    maps, score = random_maps(3, K, 6, 7) / 5, random_maps(3, 6, 7, seed=1) / 5
    maps[1], score[2] = 0, 0
    labels = reliable_labels(maps, score, erase_threshold=0.6, reliable=0.5, quiet=0.2)
    assert (labels[0] == 0).any()
    assert (labels[1:] == VOID).all()


def test_without_suppression_every_pixel_that_was_not_erased_has_a_label():
    maps, score = random_maps(2, 1, 6, 7), random_maps(2, 6, 7, seed=1)
    labels = reliable_labels(maps, score, erase_threshold=0.6, reliable=0.3, quiet=0.3)
    low = score <= 0.3
    assert (labels[low] != VOID).all()
    assert torch.equal(labels[low] > 0, maps[:, 0][low] >= 0.3)


def test_soft_erasing_dims_and_hard_erasing_cuts():
    images, score = torch.ones(1, 3, 1, 3), torch.tensor([[[0.25, 0.6, 1.0]]])
    soft = erased(images, score, threshold=0.6, kind="soft")
    hard = erased(images, score, threshold=0.6, kind="hard")
    torch.testing.assert_close(soft[0, 0, 0], torch.tensor([0.75, 0.4, 0.0]))
    assert hard[0, 1, 0].tolist() == [1.0, 0.0, 0.0]


def test_gradient_of_the_loss():
    labels = torch.tensor([[[0, 1, VOID], [2, 2, 0]]], dtype=torch.uint8)
    refined = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    tags = torch.tensor([[1, 1, 0]])
    assert torch.autograd.gradcheck(lambda r: label_sums(r, labels, tags)[0], refined)
    nothing = label_sums(refined, torch.full_like(labels, VOID), tags)
    assert [n.item() for n in nothing] == [0.0, 0.0]


def test_loss_by_hand():
    """One pixel of class 0 whose logits are 0 and log 3: three to one, the third class is absent."""
    refined = torch.tensor([0.0, math.log(3), 9.0]).reshape(1, 3, 1, 1)
    loss, count = label_sums(refined, torch.ones(1, 1, 1), torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(-math.log(0.75), rel=1e-6)
    assert count.item() == 1


# --- the method -----------------------------------------------------------------------------------


def tiny(classes: int = K) -> RefinedClassifier:
    torch.manual_seed(0)
    return tiny_refined(PixelCorrelation(tap_channels=(6, 8), widths=(5, 7)), classes)


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(B, 3, 24, 32, generator=generator).to(dtype)
    tags = torch.eye(K, dtype=torch.bool)[:B]
    tags[:, 4] = True
    return Batch(images=images, tags=tags)


def terms_of(
    method: EcsNet, network: RefinedClassifier, progress: float = 0.5
) -> dict[str, Tensor]:
    measures = method.measure(network, batch())
    return method.combine(measures | {"progress": torch.tensor(progress)})


def reached(loss: Tensor, network: RefinedClassifier) -> set[str]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    options = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad(loss, parameters, **options)
    return {name for name, g in zip(names, gradients, strict=True) if g.any()}


def test_labels_train_refinement_and_classifier_and_classification_the_classifier():
    network = tiny()
    every = {name for name, _ in network.named_parameters()}
    assert reached(terms_of(EcsNet(), network)["labels"], network) == every
    plain = {name for name in every if "refinement" not in name}
    for name in ("classification", "erased"):
        assert reached(terms_of(EcsNet(), network)[name], network) == plain
    assert reached(terms_of(EcsNet(refine="none"), network)["labels"], network) == plain


def test_without_labels_it_is_classification_of_both_passes():
    """Thresholds beyond the range leave no label; a threshold above 1 erases nothing."""
    network = tiny()
    method = EcsNet(erase="hard", erase_threshold=1.1, reliable=1.1, quiet=-0.1)
    terms = terms_of(method, network)
    assert terms["labels"] == terms["labelled"] == terms["labelled_objects"] == 0
    expected = losses.classification(network(batch().images).logits, batch().tags)
    assert terms["classification"] == terms["erased"] == expected
    assert terms["p_tag"] == terms["p_tag_erased"]


def test_with_nothing_erased_the_label_is_the_cam_itself():
    """Self-training: F' is F."""
    network = tiny()
    method = EcsNet(erase="hard", erase_threshold=1.1)
    size = batch().images.shape[-2:]
    maps = scaled_maps(network(batch().images).cam, batch().tags, size)
    score = maps.amax(dim=1)
    labels = reliable_labels(maps, score, erase_threshold=1.1, reliable=0.5, quiet=0.1)
    assert torch.equal((labels > 0) & (labels != VOID), score >= 0.5)
    refined = method.refined(network, network(batch().images), batch().tags)
    sums, counts = label_sums(refined, labels, batch().tags)
    ours = terms_of(method, network)
    assert ours["labels"].item() == pytest.approx((sums.sum() / counts.sum()).item(), rel=1e-5)
    assert ours["labelled"].item() == pytest.approx((labels != VOID).float().mean().item())


def test_labels_count_from_a_third_of_the_training_on():
    network = tiny()
    early, late = (terms_of(EcsNet(), network, progress) for progress in (0.33, 0.34))
    assert early["labels"] == 0
    assert late["labels"] > 0
    assert early["labelled"] == late["labelled"] > 0, "what is not trained is logged all the same"
    assert terms_of(EcsNet(weight=0.0), network)["labels"] == 0
    assert "erased" not in terms_of(EcsNet(erased_classification=False), network)


@pytest.mark.parametrize("tagged", [(1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_class_is_enough(tagged, overlay):
    """It is told from the background; without a tag nothing is labelled, and nothing fails."""
    torch.manual_seed(0)
    method = EcsNet(overlay=overlay)
    network = method.build(Tapped(TinyBackbone((16, 16, 16))), 1)
    samples = batch()._replace(tags=torch.tensor(tagged).bool()[:, None])
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    stepper = Stepper(network, optimiser, Objective(method.measure, method.combine), PLAIN)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    terms = stepper.step(samples, progress=0.5)
    assert all(term.isfinite() for term in terms.values())
    assert (terms["labels"] > 0) == (terms["labelled"] > 0) == any(tagged)
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert any("refinement" in name for name in moved) == any(tagged)
    assert {"head.fc8.weight", "head.fc9.weight"} <= moved
    cam = method.cam(network, samples)
    assert cam.shape[:2] == (B, 1)
    assert cam.flatten(1).any(dim=1).tolist() == [bool(tag) for tag in tagged]


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("erase", ["soft", "hard"])
def test_parts_have_the_loss_and_the_gradient_of_the_whole(parts, erase):
    method, samples = EcsNet(erase=erase), batch(torch.float64)
    check_parts(lambda: tiny().double(), method, samples, parts, progress=0.5)


def test_half_precision_is_finite_and_near():
    """Labels are of float32 maps, so bf16 moves the loss by its eight bits, not by its epsilon."""
    network = tiny()
    plain = terms_of(EcsNet(), network)
    with torch.autocast("cpu", torch.bfloat16):
        halved = terms_of(EcsNet(), network)
    assert all(term.isfinite() for term in halved.values())
    assert halved["classification"].item() == pytest.approx(
        plain["classification"].item(), rel=0.02
    )


def test_a_dilated_overlay_is_the_class_layer_at_several_rates():
    torch.manual_seed(0)
    head, features = Overlaid(in_channels=6, num_classes=3, hidden=8), torch.randn(1, 6, 24, 24)
    single = [head(features, (rate,)) for rate in DILATIONS]
    torch.testing.assert_close(head(features, DILATIONS), sum(single) / len(single))
    assert torch.equal(head(features), single[0])
    hidden = head.fc8(features).relu()
    assert torch.equal(single[0], head.fc9(hidden))
    network = EcsNet(overlay="dilated").build(Tapped(TinyBackbone((16, 16, 16))), K)
    terms = terms_of(EcsNet(overlay="dilated"), network)
    assert sum(terms.values()).isfinite()


def test_seeds_are_read_of_the_refined_cam():
    network, method = tiny(), EcsNet()
    output = network(batch().images)
    refined, logits = method.read(network, batch())
    assert torch.equal(refined, method.refined(network, output, batch().tags)[:, 1:])
    assert torch.equal(method.cam(network, batch()), refined)
    assert torch.equal(logits, output.logits)
    assert torch.equal(method.read(network, batch(), refined=False)[0], output.cam)
    # A weighted mean of maps in 0..1, and the background is the rest.
    assert refined.min() >= 0
    assert refined.max() <= method.sharpness
    assert not refined[batch().tags == 0].any()
    plain = EcsNet(refine="none", sharpness=1.0).refined(network, output, batch().tags)
    rest = 1 - max_norm(output.cam) * batch().tags[:, :, None, None]
    torch.testing.assert_close(plain[:, 0], rest.amin(dim=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("erase", "black"),
        ("overlay", ""),
        ("refine", True),
        ("erased_classification", 1),
        ("erase_threshold", -0.1),
        ("reliable", float("nan")),
        ("weight", -1.0),
        ("sharpness", 0.0),
        ("starts_at", 1.5),
        ("quiet", 0.7),
        ("quiet", float("nan")),
    ],
)
def test_wrong_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must .*got {value!r}"):
        EcsNet(**{field: value})


# --- whole rows -----------------------------------------------------------------------------------


def test_rows_run_and_log_their_labels(stored):
    study, few = catalogue.get("rivals"), replace(SMOKE, train=replace(SMOKE.train, count=16))
    for name in ("ecsnet", "ecsnet_off"):
        made = pipeline.artefacts(few, study.row(name), 0)
        numbers = run.numbers(made)
        assert 0 < numbers["miou"] < 100
        assert 0 <= numbers["labelled_objects"] <= numbers["labelled"] < 1
        assert 0 < numbers["p_tag_erased"] < 1
        log = pd.read_csv(made["classifier"].folder / "log.csv")
        assert {"classification", "erased", "labels"} <= set(log.columns)
        assert np.isfinite(log.to_numpy()).all()
        assert name == "ecsnet" or not log["labels"].any()


def test_every_row_is_called_a_reconstruction():
    rows = [row for row in catalogue.get("rivals").rows if "ecsnet" in row.name]
    assert len(rows) == 7
    assert all("ECS-Net (reconstruction)" in row.label for row in rows)

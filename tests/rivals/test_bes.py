"""BES: the original's pooling, boundary labels and loss, what would prove it wrong, whole rows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from label_maps import agreement
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.maps.labels import VOID, label_map
from aeft_lib.maps.seeds import Seed
from aeft_lib.paper.classifier import Classification
from aeft_lib.parts.boundary import (
    BACKGROUND,
    BETWEEN,
    BOUNDARY,
    CLAMP,
    FOREGROUND,
    BoundaryLoss,
    window_shares,
)
from aeft_lib.parts.confident_labels import ConfidentLabels, HardCrf, rows_at
from aeft_lib.refinement.background import power_at
from aeft_lib.refinement.edge_net import at_quarter
from aeft_lib.refinement.edge_walk import enlarged, walk
from aeft_lib.rivals import bes
from aeft_lib.rivals.bes import Bes, attention_pool
from aeft_lib.stages import store
from aeft_lib.studies import catalogue, pipeline, plan
from aeft_lib.studies.profiles import SMOKE, VOC
from aeft_lib.studies.rivals_irn import BES as REFINER

# tests/golden_rivals/README.md
ON_MAPS, GRADIENT = 1e-5, 1e-4
TIES, CRF_PIXELS, LABEL_PIXELS = 0.999, 0.995, 0.999
# The original's labels in ours.
CODES = {0: BACKGROUND, 50: FOREGROUND, 100: BETWEEN, 150: BOUNDARY, 200: VOID, 255: VOID}

# As few scenes as fill a batch, and small ones: whole rows in seconds.
PROFILE = replace(
    SMOKE, train=replace(SMOKE.train, count=16, size=64), val=replace(SMOKE.val, size=64)
)


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("bes").items()}


def in_ours(theirs: Tensor) -> Tensor:
    """The original's boundary labels in our codes."""
    assert set(theirs.unique().tolist()) <= CODES.keys()
    ours = torch.full_like(theirs, VOID)
    for code, label in CODES.items():
        ours[theirs == code] = label
    return ours


# --- attention pooling ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_golden_attention_pooling(case, assert_near, kind):
    scales = [name.removeprefix("pool/logits_k") for name in case if "logits_k" in name]
    assert scales
    for scale in scales:
        x = case["pool/x"].to(kind, copy=True).requires_grad_()
        pooled, _ = attention_pool(x, float(scale))
        logits = F.conv2d(pooled[..., None, None], case["pool/weight"].to(kind)).flatten(1)
        assert_near(logits, case[f"pool/logits_k{scale}"], ON_MAPS, f"logits, k = {scale}")
        (logits * case["pool/R"].to(kind)).sum().backward()
        assert_near(x.grad, case[f"pool/grad_k{scale}"], ON_MAPS, f"gradient, k = {scale}")


def test_two_cells_by_hand():
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 2).requires_grad_()
    pooled, weights = attention_pool(x, math.log(3))
    pooled.sum().backward()
    assert pooled.item() == pytest.approx(0.75, abs=1e-15)
    assert weights.flatten().tolist() == pytest.approx([0.25, 0.75], abs=1e-15)
    assert x.grad.flatten().tolist() == pytest.approx([0.25, 0.75], abs=1e-15)
    assert not weights.requires_grad


def test_no_scale_is_the_mean_and_a_large_one_the_maximum():
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    mean, weights = attention_pool(x, 0.0)
    torch.testing.assert_close(mean, x.mean(dim=(2, 3)))
    torch.testing.assert_close(weights, torch.full((2, 5, 12), 1 / 12).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(attention_pool(x, 1e6)[0], x.amax(dim=(2, 3)))


def test_every_channel_has_its_own_attention():
    x = torch.zeros(1, 2, 1, 2)
    x[0, 0, 0, 0] = x[0, 1, 0, 1] = 1.0
    weights = attention_pool(x, 10.0)[1][0]
    assert weights.argmax(dim=-1).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"x must be \(B, C, h, w\), got shape \(2, 3\)"):
        attention_pool(torch.zeros(2, 3), 1.0)


class Cells(nn.Module):
    """A backbone of one convolution, whose features may be cached."""

    out_channels = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 4, stride=4)

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def tail(self, features: Tensor) -> Tensor:
        return self.layer(features)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    tags = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    return Batch(images=torch.rand(2, 3, 16, 24, generator=generator), tags=tags)


def test_without_attention_the_classifier_is_gap(batch):
    torch.manual_seed(0)
    method = Bes(attention_scale=0.0)
    network = method.build(Cells(), 3).double()
    batch = batch._replace(images=batch.images.double())
    ours, plain = method.measure(network, batch), Classification().measure(network, batch)
    # The mean stands before the last, linear layer instead of after it.
    torch.testing.assert_close(ours["logits"], plain["logits"])
    terms = method.combine(ours)
    expected = Classification().combine(plain)["classification"]
    torch.testing.assert_close(terms["classification"], expected)
    assert terms["attention_peak"].item() == pytest.approx(1.0)
    cached = Batch(features=batch.images, tags=batch.tags)
    assert torch.equal(method.measure(network, cached)["logits"], ours["logits"])


def test_attention_is_used_in_training_and_not_to_read_cams(batch):
    torch.manual_seed(0)
    strong, none = Bes(attention_scale=5.0), Bes(attention_scale=0.0)
    network = strong.build(Cells(), 3)
    logits = [method.measure(network, batch)["logits"] for method in (strong, none)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert torch.equal(strong.cam(network, batch), none.cam(network, batch))
    terms = strong.combine(strong.measure(network, batch))
    assert terms["attention_peak"] > 1.01
    assert not terms["attention_peak"].requires_grad
    assert terms["classification"].requires_grad


@pytest.mark.parametrize("scale", [-1.0, math.inf, None])
def test_wrong_attention_scales_are_refused(scale):
    with pytest.raises(ValueError, match="attention_scale must be"):
        Bes(attention_scale=scale)


# --- boundary labels ------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "name"), [(13, "label"), (5, "label_window5")])
def test_golden_boundary_labels(case, window, name):
    """Exact but for ties, which the original rounds in float32."""
    theirs = in_ours(case[f"boundary/{name}"])
    ours = BoundaryLoss(window=window).targets(case["boundary/conf"])
    assert agreement(ours, theirs) >= TIES
    assert set(ours.unique().tolist()) == set(theirs.unique().tolist())


def test_golden_boundary_labels_on_the_grid(case):
    theirs = in_ours(case["boundary/label"])
    assert torch.equal(BoundaryLoss().reduced(theirs), in_ours(case["boundary/reduced"]))


def test_golden_labels_from_an_image_and_its_cams(case):
    powers = dict(zip(("low", "high"), map(power_at, bes.THRESHOLDS), strict=True))
    seed = Seed(case["crf/class_ids"], case["crf/cam"])
    conf, _ = ConfidentLabels().label(case["crf/image"].numpy(), seed, powers)
    assert agreement(conf, case["crf/conf"]) >= CRF_PIXELS
    ours = BoundaryLoss().targets(torch.from_numpy(conf))
    assert agreement(ours, in_ours(case["crf/label"])) >= CRF_PIXELS
    # Without the CRF between: exact but for ties.
    given = BoundaryLoss().targets(case["crf/conf"])
    assert agreement(given, in_ours(case["crf/label"])) >= TIES


def halves(left: int, right: int, *, width: int = 40, at: int = 20) -> Tensor:
    labels = torch.full((26, width), left, dtype=torch.uint8)
    labels[:, at:] = right
    return labels


def test_a_line_between_halves_is_two_columns():
    """Where it is, 6 columns of 13 are one side's; 5 and 8 beside it are neither's."""
    made = BoundaryLoss().targets(halves(0, 3))
    columns = [sorted(set(column.tolist())) for column in made.T]
    assert all(len(column) == 1 for column in columns)
    assert [i for i, (label,) in enumerate(columns) if label == BOUNDARY] == [19, 20]
    assert [label for (label,) in columns if label == VOID] == []
    assert {label for (label,) in columns[:19]} == {BACKGROUND}
    assert {label for (label,) in columns[21:]} == {FOREGROUND}


def test_a_line_between_classes_is_a_boundary_of_its_own():
    labels = halves(2, 5)
    made = BoundaryLoss().targets(labels)
    assert [i for i in range(40) if made[13, i] == BETWEEN] == [19, 20]
    without = BoundaryLoss(boundary_between_classes=False).targets(labels)
    assert not (without == BETWEEN).any()
    assert torch.equal(without[made != BETWEEN], made[made != BETWEEN])


def test_void_counts_in_the_window():
    """An unsure strip between two halves: neither fills enough of a window for a boundary."""
    labels = halves(0, 3)
    labels[:, 17:23] = VOID
    made = BoundaryLoss().targets(labels)
    shares = window_shares(labels, 13)
    assert shares.area[13, 20] == 169
    assert (shares.background + shares.first)[13, 20] == 7 * 13
    assert made[13, 20] == VOID
    assert BoundaryLoss().targets(torch.full((20, 20), VOID, dtype=torch.uint8)).eq(VOID).all()


def test_windows_at_the_border_have_what_lies_inside():
    labels = torch.arange(30).reshape(5, 6).to(torch.uint8) % 3
    shares = window_shares(labels, 3)
    for y in range(5):
        for x in range(6):
            inside = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            counts = [int((inside == label).sum()) for label in (0, 1, 2)]
            found = [int(s[y, x]) for s in shares]
            assert found == [counts[0], *sorted(counts[1:], reverse=True), inside.numel()]


@pytest.mark.parametrize("window", [9, 13])
def test_a_window_that_is_too_small_sees_no_straight_line(window):
    """It does where d > 1 / window: 13, not 9."""
    seen = bool((BoundaryLoss(window=window).targets(halves(0, 3)) == BOUNDARY).any())
    assert seen == (window * BoundaryLoss().near > 1)
    if not seen:
        wider = BoundaryLoss(window=window, near=1.3 / window).targets(halves(0, 3))
        assert (wider == BOUNDARY).any()


def test_half_of_all_lines_vanish_on_the_grid_and_none_with_the_maximum():
    kept = {"nearest": 0, "max": 0}
    for at in range(16, 24):
        for reduce in kept:
            loss = BoundaryLoss(reduce=reduce)
            targets = loss.targets(halves(0, 3, at=at)[:24])
            kept[reduce] += bool((loss.reduced(targets) == BOUNDARY).any())
    assert kept == {"nearest": 4, "max": 8}


def test_the_maximum_changes_boundaries_alone():
    targets = BoundaryLoss().targets(halves(0, 3, at=17)[:24])
    nearest, most = (BoundaryLoss(reduce=how).reduced(targets) for how in ("nearest", "max"))
    assert torch.equal(nearest, at_quarter(targets))
    assert torch.equal(most[most != BOUNDARY], nearest[most != BOUNDARY])
    both = BoundaryLoss(reduce="max").reduced(torch.stack([targets, targets]))
    assert torch.equal(both, torch.stack([most, most]))
    numbers = BoundaryLoss().described(both)
    assert numbers["boundary"] == pytest.approx((most == BOUNDARY).float().mean().item())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 12}, "window must be odd, got 12"),
        ({"window": 1}, "window must be a whole number, at least 3"),
        ({"large": 0.6}, "large must lie in 0..0.5"),
        ({"near": -0.1}, "near must lie in 0..0.5"),
        ({"boundary_weight": "p"}, "boundary_weight must be one of sqrt, none"),
        ({"reduce": "mean"}, "reduce must be one of nearest, max"),
        ({"boundary_between_classes": 1}, "boundary_between_classes must be one of"),
    ],
)
def test_wrong_losses_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BoundaryLoss(**wrong)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_golden_loss_and_gradient(case, assert_near, kind):
    logits = case["loss/logits"][:, 0].to(kind).requires_grad_()
    loss = BoundaryLoss()
    measures = loss.measure(logits, in_ours(case["loss/label"]))
    names = ("bg_ground", "fg_ground", "boundary")
    counts = [int(case[f"loss/n_{name}"]) for name in names]
    assert measures["counts"][0].tolist() == counts
    terms = loss.combine(measures)
    for name, ours, factor in zip(names, terms.values(), (2, 2, 1), strict=True):
        assert_near(factor * ours, case[f"loss/loss_{name}"], ON_MAPS, name)
    assert_near(sum(terms.values()), case["loss/loss"], ON_MAPS, "loss")
    sum(terms.values()).backward()
    assert_near(logits.grad, case["loss/grad_logits"][:, 0], GRADIENT, "gradient")


def total(loss: BoundaryLoss, logits: Tensor, targets: Tensor) -> Tensor:
    return sum(loss.combine(loss.measure(logits, targets)).values())


def test_gradients_agree_with_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 5, generator=generator).double().requires_grad_()
    targets = torch.randint(4, (1, 4, 5), generator=generator)
    loss = BoundaryLoss(boundary_weight="none")
    assert torch.autograd.gradcheck(lambda x: total(loss, x, targets), logits)


def test_the_root_is_a_weight_without_gradient():
    """-log p sqrt(p): of p = 1/4 the loss is log 4 / 2 over 1 + 1, its gradient -(1 - p) / 2."""
    logit = torch.tensor([[[math.log(1 / 3)]]], dtype=torch.float64, requires_grad=True)
    value = total(BoundaryLoss(), logit, torch.tensor([[[BOUNDARY]]]))
    value.backward()
    assert value.item() == pytest.approx(math.log(4) / 2 / 2)
    assert logit.grad.item() == pytest.approx(-0.75 / 2 / 2)


def test_beyond_the_clamp_there_is_no_gradient():
    """All logits lie beyond it."""
    limit = math.log((1 - CLAMP) / CLAMP)
    logits = torch.tensor([[[-limit - 1, limit + 1, limit + 1]]], requires_grad=True)
    targets = torch.tensor([[[BOUNDARY, BACKGROUND, FOREGROUND]]])
    total(BoundaryLoss(), logits, targets).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_void_alone_costs_nothing_and_parts_add_up():
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    void = torch.full((2, 4, 4), VOID)
    assert total(BoundaryLoss(), logits, void).item() == 0.0
    targets = torch.arange(32).reshape(2, 4, 4) % 4
    loss = BoundaryLoss()
    parts = [loss.measure(logits[i : i + 1], targets[i : i + 1]) for i in range(2)]
    joined = loss.combine({name: torch.cat([p[name] for p in parts]) for name in parts[0]})
    torch.testing.assert_close(sum(joined.values()), total(loss, logits, targets))
    with pytest.raises(ValueError, match="logits and targets must have one shape"):
        loss.measure(logits, targets[:1])


# --- label maps -----------------------------------------------------------------------------------


def test_golden_label_maps_without_and_with_the_last_crf(case):
    given = {name.removeprefix("final/"): value for name, value in case.items()}
    image, ids = given["image"].numpy(), case["final/class_ids"]
    cam, edge = case["final/cam"].double(), case["final/edge"][0].double()
    walked = walk(cam, edge, beta=REFINER.beta, steps=REFINER.steps)
    scores = enlarged(walked, tuple(case["final/pred"].shape))
    plain = label_map(ids, scores, REFINER.background)
    assert agreement(plain, case["final/pred"]) >= LABEL_PIXELS
    refined, numbers = HardCrf(bes.REACH).label(
        case["final/image"].numpy(), Seed(ids, scores), {"threshold": REFINER.background}
    )
    assert agreement(refined, case["final/pred_crf"]) >= CRF_PIXELS
    assert numbers["changed"] == pytest.approx((refined != plain).mean())
    assert image.dtype == np.uint8
    assert torch.equal(rows_at(scores, REFINER.background).bool(), torch.from_numpy(plain).bool())


# --- whole rows -----------------------------------------------------------------------------------


def made(name: str) -> dict[str, store.Artefact]:
    """A row on the smoke profile, in this process."""
    return pipeline.artefacts(PROFILE, catalogue.get("rivals").row(name), 0)


def laid_out(name: str) -> dict[str, store.Artefact]:
    return pipeline.laid_out(PROFILE, catalogue.get("rivals").row(name), 0)


def test_rows_begin_with_the_seeds_of_affinity_net_or_with_their_own(stored):
    row, own = made("bes"), made("bes_seed")
    keys = {name: laid_out(name)["seeds"].key for name in ("psa", "bes", "bes_whole")}
    assert row["seeds"].key == keys["bes"] == keys["psa"] != keys["bes_whole"]
    assert own["seeds"].key == laid_out("bes_seed")["seeds"].key
    peak = own["mechanism_attention_peak"].summary["attention_peak"]
    assert 1.0 < peak < 1.1  # k = 1e-3
    assert 0 < row["evaluation"].summary["miou_maskless"] < 100
    assert 0 <= row["mechanism_boundary"].summary["boundary"] < 0.5
    assert 0 < row["mechanism_edge"].summary["edge"] < 1


def test_at_paper_scale_the_numbers_are_the_release_own():
    asked: dict[str, list] = {}

    def obtain(stage, spec, inputs=None):
        asked.setdefault(stage.__name__, []).append(spec)
        return store.Artefact(stage.__name__, stage.__name__, None, {"summary": {}}, spec)

    row = catalogue.get("rivals").row("bes_crf")
    pipeline.artefacts(plan.with_data(VOC)[0], row, 0, obtain)
    edges, walked = asked["train_edges"][0], asked["walk_edges"][0]
    assert edges.schedule == replace(REFINER.schedule, batch_size=16)
    assert edges.loss == BoundaryLoss()
    assert (walked.beta, walked.steps) == (5, 256)
    assert asked["label_seeds"][-1].maker == HardCrf(20.0)

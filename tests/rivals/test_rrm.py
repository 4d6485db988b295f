"""RRM: numbers of the original, reliable labels, the dense energy, a step, and the rows."""

import numpy as np
import one_step
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from golden_networks import assert_stats
from tiny_rows import TINY, made
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper
from aeft_lib.maps.labels import VOID
from aeft_lib.networks.resnet38d import normalise
from aeft_lib.parts.dense_energy import Halved, dense_energy, filtered, halved, kernel_of
from aeft_lib.parts.in_step import as_taken, posterior
from aeft_lib.parts.reliable_labels import CERTAIN, HIGH, LOW, decide, high_in_cam, reliable_labels
from aeft_lib.refinement.dense_crf import with_background
from aeft_lib.rivals.rrm import Reliable, Rrm, RrmNetwork
from aeft_lib.studies import run

FORWARD, LATTICE = 1e-5, 1e-6  # tests/golden_rivals/README.md
CRF = 1e-3  # absolute, ten iterations: tests/refinement/test_dense_crf.py
KINDS = ("joint_published", "joint_visible")


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {k: torch.from_numpy(np.asarray(a)) for k, a in golden_rivals("rrm").items()}


# --- the original's numbers -----------------------------------------------------------------------


def posteriors(case: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both CRFs of a golden image, and the scores of the second."""
    cam = case[f"{name}/norm_cam"]
    scores = torch.stack([with_background(cam, power) for power in (LOW, HIGH)])
    low, high = posterior(case[f"{name}/image"].permute(2, 0, 1), scores)
    return low, high, scores[1]


@pytest.mark.parametrize("name", ["labels_one", "labels_two"])
def test_golden_posteriors(case, name):
    classes = torch.cat([torch.zeros(1, dtype=torch.int64), case[f"{name}/classes"] + 1])
    arrays = {k: v.numpy() for k, v in case.items()}
    for power, own in zip((4, 32), posteriors(case, name)[:2], strict=True):
        assert_stats(own, arrays, f"{name}/crf{power}", CRF)
        winner = classes[own.argmax(dim=0)]
        best = own.topk(2, dim=0).values
        decided = best[0] - best[1] > 2 * CRF
        assert decided.float().mean() > 0.9
        theirs = case[f"{name}/crf{power}_argmax"].long()
        assert torch.equal(winner[decided], theirs[decided])


@pytest.mark.parametrize("name", ["labels_one", "labels_two"])
def test_golden_labels(case, name):
    """The rule's own maps decide; posteriors of another library differ in at most 2 % of them."""
    image = case[f"{name}/image"].permute(2, 0, 1)
    ours = reliable_labels(image, case[f"{name}/norm_cam"], case[f"{name}/classes"])
    theirs = case[f"{name}/label"]
    assert (ours == theirs).float().mean() >= 0.98


def seen(case: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Halved]:
    """The coarse logits, with gradient, and what the energy sees of them."""
    coarse = case["joint/seg_logit"].to(dtype).requires_grad_()
    labels = case["joint/label"]
    full = F.interpolate(coarse, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    valid = case["joint/valid"].permute(2, 0, 1)
    return coarse, halved(full, case["joint/image_chw"], labels, valid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_gate(case, assert_near, dtype):
    _, own = seen(case, dtype)
    assert_near(own.gate, case["joint/gate"], FORWARD, "gate")
    largest = own.probabilities.amax(dim=1)
    inside = largest > 0  # theirs is before padding is taken away
    assert 0 < inside.float().mean() < 1
    expected = case["joint/prob_half_stat_max"]
    assert_near(largest[inside], expected[inside], FORWARD, "largest")


def widths(case: dict[str, Tensor], kind: str) -> dict[str, float]:
    _, s_rgb, s_xy, scale = case[f"{kind}/weight_srgb_sxy_scale_f64"].tolist()
    return {"s_xy": s_xy * scale, "s_rgb": s_rgb}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_filter(case, assert_near, kind):
    _, own = seen(case)
    pairs = zip(own.probabilities, own.pictures, strict=True)
    width = widths(case, kind)
    ours = torch.stack([filtered(kernel_of(picture, **width), s) for s, picture in pairs])
    # Both are float32 sums over all pixels of an image.
    assert_near(ours, case[f"{kind}/filter_lattice"], 4 * LATTICE, "lattice")
    exact = case[f"{kind}/filter_exact"]
    joint = torch.stack([ours.flatten(), exact.flatten()])
    assert torch.corrcoef(joint)[0, 1] > 0.98
    assert 0.4 < (ours.sum() / exact.sum()) < 0.6
    gated = own.gate[:, None] * ours
    assert_near(gated, case[f"{kind}/gated_filter"], FORWARD, "gated")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_golden_energy_and_its_defined_gradient(case, assert_near, kind, dtype):
    coarse, own = seen(case, dtype)
    energy = dense_energy(own, **widths(case, kind)).mean()
    weight = case[f"{kind}/weight_srgb_sxy_scale_f64"][0]
    assert_near(energy, case[f"{kind}/energy_unweighted"], FORWARD, "energy")
    assert_near(weight * energy, case[f"{kind}/energy"], FORWARD, "weighted")
    energy.backward()
    assert_near(coarse.grad, case[f"{kind}/grad_energy"], FORWARD, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_golden_gradient_is_not_the_exact_one(case, kind):
    coarse, own = seen(case)
    dense_energy(own, **widths(case, kind), gradient="exact").mean().backward()
    theirs = case[f"{kind}/grad_energy"]
    assert (coarse.grad - theirs).abs().max() > 100 * FORWARD * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_cross_entropy(case, assert_near, dtype):
    coarse = case["joint/seg_logit"].to(dtype).requires_grad_()
    labels = case["joint/label"]
    method = Reliable(energy=0.0)
    sums = method.losses(coarse, labels, case["joint/image_chw"], torch.ones_like(labels).bool())
    terms = method._cross_entropy(sums, "nan")
    loss = terms["background"] + terms["objects"]
    assert_near(loss, case["joint/ce"], FORWARD, "loss")
    assert_near(torch.autograd.grad(loss, coarse)[0], case["joint/grad_ce"], FORWARD, "gradient")


def test_gradients_of_the_cross_entropies():
    """Each of both means, through the up-sampling; the void pixels count in neither."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 3, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, VOID], dtype=torch.uint8)
    labels = labels[torch.randint(4, (2, 5, 6), generator=g)]
    pictures, method = torch.zeros(2, 3, 5, 6, dtype=torch.uint8), Reliable(energy=0.0)

    def terms(coarse: Tensor) -> tuple[Tensor, ...]:
        sums = method.losses(coarse, labels, pictures, torch.ones(2, 5, 6))
        return tuple(method._cross_entropy(sums, "zero").values())

    assert torch.autograd.gradcheck(terms, coarse)
    found = terms(coarse)
    full = F.interpolate(coarse, size=(5, 6), mode="bilinear").log_softmax(dim=1)
    kinds = (labels == 0, (labels == 1) | (labels == 2))
    for loss, kind in zip(found, kinds, strict=True):
        own = -full.gather(1, labels.masked_fill(~kind, 0).long()[:, None])[:, 0][kind]
        torch.testing.assert_close(loss, own.mean())


MULTIPLIERS = (1, 2, 10, 20)  # of the groups: weights, biases, and both of new layers


def check_optimiser(case: dict[str, Tensor], name: str, rates: list[list[float]]) -> None:
    """Four scalars, each to its own goal, with our rates (N, 4) and momentum: the original's."""
    base, decay, _ = case[f"{name}/base_lr_wd_maxstep_f64"].tolist()
    schedule = Schedule(
        1, 1, lr=base, head_lr=base, weight_decay=decay, warmup_steps=0, optimiser="sgd"
    )
    momentum = Reliable(momentum="released").scheduled(schedule).momentum
    assert case[f"{name}/momentum_f64"].tolist() == [momentum] * 4
    ours = torch.tensor(rates, dtype=torch.float64)
    torch.testing.assert_close(ours, case[f"{name}/lr_f64"], rtol=1e-10, atol=0)
    weights = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(4)]
    groups = [
        {"params": [w], "lr": base, "weight_decay": d}
        for w, d in zip(weights, (decay, 0, decay, 0), strict=True)
    ]
    optimiser, after = torch.optim.SGD(groups, momentum=momentum), []
    for own in rates:
        for group, rate in zip(optimiser.param_groups, own, strict=True):
            group["lr"] = rate
        optimiser.zero_grad()
        sum((w - 0.2 * i) ** 2 / 2 for i, w in enumerate(weights, start=1)).backward()
        optimiser.step()
        after.append(torch.stack([w.detach() for w in weights]))
    torch.testing.assert_close(torch.stack(after), case[f"{name}/param_f64"], rtol=1e-10, atol=0)


def poly(base: float, steps: int) -> list[float]:
    """The rates of a training of the harness."""
    schedule = Schedule(1, 1, lr=base, head_lr=base, weight_decay=0.0, warmup_steps=0)
    return [base * schedule.factor(step, steps) for step in range(steps)]


def test_golden_optimiser_from_a_trained_classifier(case):
    """The poly schedule of the harness, with weight decay in the momentum's place.

    Beyond its length the original keeps its last rate.
    """
    base, _, longest = case["optim_from_weights/base_lr_wd_maxstep_f64"].tolist()
    rates = poly(base, int(longest))
    rates += rates[-1:] * (len(case["optim_from_weights/lr_f64"]) - len(rates))
    check_optimiser(case, "optim_from_weights", [[rate * m for m in MULTIPLIERS] for rate in rates])


def test_golden_optimiser_from_imagenet(case):
    """Two trainings in a row: of the classifier, then of all losses at one rate for all layers."""
    base, _, longest = case["optim_from_init/base_lr_wd_maxstep_f64"].tolist()
    first, second = poly(base, int(longest) // 2), poly(7e-4, int(longest) // 2)
    second += second[-1:] * (len(case["optim_from_init/lr_f64"]) - int(longest))
    rates = [[rate * m for m in MULTIPLIERS] for rate in first]
    check_optimiser(case, "optim_from_init", rates + [[rate] * 4 for rate in second])


# --- reliable labels ------------------------------------------------------------------------------


def test_of_ten_values_three_stay():
    """floor(0.6 * 10) = 6: those above the seventh in rising order."""
    scores = torch.zeros(2, 1, 10)
    scores[1, 0] = torch.linspace(0.2, 0.9, 10)
    kept = high_in_cam(scores, torch.ones(1, 10, dtype=torch.int64))
    assert kept[0].tolist() == [False] * 7 + [True] * 3
    # Values up to 0.1 are not counted: of the five others one stays.
    scores[1, 0, :5] = torch.linspace(0.02, 0.1, 5)
    assert high_in_cam(scores, torch.ones(1, 10, dtype=torch.int64)).sum() == 1


def test_a_class_without_any_high_cam_is_void():
    scores = torch.full((2, 2, 3), 0.05)
    scores[1] = 0.09
    assert not high_in_cam(scores, torch.ones(2, 3, dtype=torch.int64)).any()
    low = torch.zeros(2, 2, 3)
    low[1] = 1
    assert (decide(low, low, scores) == VOID).all()


def test_the_rule_by_hand():
    """One row of: sure object, object that is not certain, background of both, of the first alone."""
    low = torch.tensor([[[0.1, 0.3, 0.9, 0.9, 0.1]], [[0.9, 0.7, 0.1, 0.1, 0.9]]])
    high = torch.tensor([[[0.1, 0.3, 0.9, 0.1, 0.1]], [[0.9, 0.7, 0.1, 0.9, 0.9]]])
    scores = torch.tensor([[[0.0, 0.0, 0.9, 0.9, 0.0]], [[0.9, 0.8, 0.1, 0.1, 0.2]]])
    # Two of the region's values, 0.8 and 0.2, do not lie above number floor(0.6 * 3) = 1.
    assert decide(low, high, scores).tolist() == [[1, VOID, 0, VOID, VOID]]
    assert CERTAIN == 0.8


def test_labels_are_few_and_more_precise_than_their_crf():
    """A disc whose CAM is a wide bump beside it: what is certain and high is right more often."""
    side, g = 48, torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inside = (y - 24) ** 2 + (x - 24) ** 2 < 12**2
    picture = 90 + 40 * inside + 30 * torch.rand(side, side, generator=g)
    picture = picture.round().to(torch.uint8).expand(3, -1, -1).contiguous()
    cam = torch.exp(-((y - 20.0) ** 2 + (x - 20.0) ** 2) / (2 * 14**2))[None]
    ours = reliable_labels(picture, cam, torch.tensor([4]))
    crf = posterior(picture, with_background(cam, LOW)).argmax(dim=0)

    def precision(objects: Tensor) -> float:
        return (inside & objects).sum().item() / objects.sum().item()

    reliable = ours == 5
    assert reliable.any()
    assert precision(reliable) > precision(crf == 1)
    assert reliable.sum() < (crf == 1).sum()
    assert set(ours.unique().tolist()) <= {0, 5, VOID}
    # The price is recall: the CRF has every pixel of the disc.
    assert (inside & reliable).sum() < (inside & (crf == 1)).sum()


def test_an_image_without_a_tag_is_background():
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    none = torch.zeros(0, dtype=torch.int64)
    assert not reliable_labels(picture, torch.zeros(0, 8, 8), none).any()


# --- the dense energy -----------------------------------------------------------------------------


def probabilities(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).softmax(dim=1).to(dtype)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).float()


WIDTHS = {"s_xy": 4.0, "s_rgb": 60.0}


def test_where_all_is_void_the_energy_is_the_plain_sum():
    s, pictures = probabilities(2, 3, 6, 7), noise(2, 3, 6, 7)
    gate = torch.ones(2, 6, 7)
    ours = dense_energy(Halved(s, pictures, gate), **WIDTHS)
    for own, picture, energy in zip(s, pictures, ours, strict=True):
        product = (own * filtered(kernel_of(picture, **WIDTHS), own)).sum()
        assert energy.item() == pytest.approx(-product.item(), rel=1e-6)
    # No segmentation has less energy than one that is certain of the same class everywhere.
    constant = torch.zeros_like(s)
    constant[:, 1] = 1
    assert (dense_energy(Halved(constant, pictures, gate), **WIDTHS) < ours).all()


def test_what_is_labelled_and_certain_has_no_energy():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    logits = torch.full((1, 2, 8, 8), -200.0)
    logits[:, 0] = 200.0
    logits.requires_grad_()
    pictures = noise(1, 3, 8, 8).to(torch.uint8)
    own = halved(logits, pictures, labels, torch.ones(1, 8, 8))
    assert not own.gate.any()
    energy = dense_energy(own, **WIDTHS).sum()
    energy.backward()
    assert energy.item() == 0
    assert not logits.grad.any()
    # Void pixels have the whole gate, padding is of no class.
    own = halved(logits, pictures, torch.full_like(labels, VOID), torch.zeros(1, 8, 8))
    assert (own.gate == 1).all()
    assert not own.probabilities.any()


def test_two_flat_colours_become_two_regions():
    """The right side is undecided: the gradient fills each side, and does not cross the edge."""
    pictures = torch.zeros(1, 3, 8, 16)
    pictures[..., 8:] = 255
    logits = torch.zeros(1, 2, 8, 16)
    logits[0, 0, :, :8], logits[0, 1, 3:5, 12:14] = 2.0, 0.5
    logits.requires_grad_()
    s = logits.softmax(dim=1)
    dense_energy(Halved(s, pictures, torch.ones(1, 8, 16)), s_xy=20.0, s_rgb=15.0).sum().backward()
    fall = -logits.grad[0, 1] + logits.grad[0, 0]  # a step raises class 1 where it is positive
    assert (fall[:, 8:] > 0).all()
    assert (fall[:, :8] < 0).all()
    # The far side does not count: the same left side beside any right side has the same gradient.
    with torch.no_grad():
        other = logits.clone()
        other[..., 8:] = -other[..., 8:]
    other.requires_grad_()
    dense_energy(
        Halved(other.softmax(dim=1), pictures, torch.ones(1, 8, 16)), s_xy=20.0, s_rgb=15.0
    ).sum().backward()
    torch.testing.assert_close(other.grad[..., :8], logits.grad[..., :8])


def test_defined_and_exact_gradients():
    """With an even gate both are one, and the exact one is that of differences."""
    s, picture = probabilities(1, 3, 5, 6), noise(1, 3, 5, 6)
    kernel = kernel_of(picture[0], **WIDTHS)
    for gate, same in ((torch.ones(1, 5, 6), True), (noise(1, 5, 6, seed=3) / 255, False)):
        slopes = []
        for kind in ("defined", "exact"):
            own = s.clone().requires_grad_()
            dense_energy(Halved(own, picture, gate), **WIDTHS, gradient=kind).sum().backward()
            slopes.append(own.grad)
        expected = -2 * gate[:, None] * filtered(kernel, s[0])
        torch.testing.assert_close(slopes[0], expected)
        assert torch.allclose(*slopes) == same
    # The kernel as a matrix: the exact gradient is that of its symmetric part.
    eye = torch.eye(30).reshape(30, 5, 6)
    matrix = filtered(kernel, eye).flatten(1).double()
    flat, weights = s[0].flatten(1).double().requires_grad_(), gate.flatten().double()
    symmetric = (matrix + matrix.T) / 2
    exact = -(weights * flat * (flat @ symmetric)).sum()
    (slope,) = torch.autograd.grad(exact, flat)
    skew = (matrix - matrix.T).abs().max() / matrix.max()
    error = (slope.reshape_as(s[0]) - slopes[1][0].double()).abs().max() / slope.abs().max()
    assert error < 2 * skew + 1e-5


def test_an_unknown_gradient_is_refused():
    own = Halved(probabilities(1, 2, 3, 3), noise(1, 3, 3, 3), torch.ones(1, 3, 3))
    with pytest.raises(ValueError, match="gradient must be one of defined, exact, got 'own'"):
        dense_energy(own, **WIDTHS, gradient="own")


def test_images_are_as_they_were_taken():
    pictures = noise(2, 3, 4, 5).to(torch.uint8)
    assert torch.equal(as_taken(normalise(pictures), normalise), pictures)


# --- the network and its steps --------------------------------------------------------------------


class TinyBackbone(nn.Module):
    """Two convolutions of stride 8."""

    stride, out_channels = 8, 10

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 8, padding=1), nn.Conv2d(6, 10, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.b(self.a(images).relu()).relu()

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5


def tiny(method: Reliable) -> RrmNetwork:
    torch.manual_seed(0)
    return method.fitted(8).build(TinyBackbone(), 3)


def batch(count: int = 4, side: int = 32) -> Batch:
    labels = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    labels[..., : side // 8] = VOID
    tags = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]])[:count].bool()
    return Batch(images=noise(count, 3, side, side) / 255 - 0.5, tags=tags, labels=labels)


def test_without_the_energy_it_is_cross_entropy():
    method = Reliable(energy=0.0, label_side=16)
    terms = method.combine(method.measure(tiny(method).eval(), batch()))
    assert terms["energy"].item() == terms["force"].item() == 0.0
    with_energy = Reliable(label_side=16, energy=1e-3)
    network = tiny(with_energy).eval()
    measures = with_energy.measure(network, batch())
    others = with_energy.combine(measures)
    for name in ("classification", "background", "objects"):
        torch.testing.assert_close(others[name], terms[name])
    assert others["energy"] < 0
    assert others["force"] > 0


def test_the_weight_grows_with_the_pairs_that_are_missing():
    """A half of the sides has 16 times fewer pairs."""
    method, labels = Reliable(energy=1.0), torch.zeros(1, 32, 32, dtype=torch.uint8)
    pictures = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    coarse = torch.zeros(1, 2, 4, 4)
    energies = []
    for side in (32, 16):
        cut = labels[:, :side, :side].fill_(VOID), pictures[..., :side, :side]
        energies.append(method.losses(coarse, *cut, torch.ones(1, side, side))["energy"].item())
    # The kernel is as wide in parts of the image, so the sums differ by the lattice alone.
    assert energies[1] == pytest.approx(energies[0], rel=0.5)


@pytest.mark.parametrize("kept", [False, True])
def test_padding_is_void_but_for_the_quirk(kept):
    method = Reliable(energy=0.0, label_side=16, padding_labels=kept)
    network, own = tiny(method).eval(), batch()
    features = network.backbone(own.images)
    valid = own.labels[:, 0] != VOID
    pictures = as_taken(own.images, network.backbone.normalise)
    labels = method.labels(network, features, own, pictures, valid)
    assert bool((labels[~valid] == VOID).all()) == (not kept)
    assert (labels[3, :, 4:] == 0).all()  # no tag


def test_labels_carry_no_gradient_and_all_heads_learn():
    method = Reliable(label_side=16, energy=1e-3)
    network = tiny(method)
    terms = method.combine(method.measure(network, batch()))
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_parts_have_the_loss_of_the_whole():
    method = Reliable(label_side=16, energy=1e-3)
    schedule = Schedule(1, 4, lr=1e-3, head_lr=1e-2, weight_decay=0.0, warmup_steps=0)
    found = []
    for compute in (PLAIN, Compute(parts=2)):
        network = tiny(method)
        network.dropout.p = 0.0
        objective = Objective(method.measure, method.combine)
        step = Stepper(network, make_optimiser(network, schedule), objective, compute)
        found.append(step.step(batch()))
    for name in ("classification", "background", "objects", "energy", "labelled"):
        # Sums of some thousand pixels in another order.
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-4, atol=1e-6)


def test_a_step_of_resnet38d():
    method = Reliable(label_side=32, scales=(1.0, 0.5)).fitted(16)
    torch.manual_seed(0)
    network = method.build(one_step.resnet38d(), 3)
    terms, moved = one_step.step(network, method, batch(2, one_step.SIDE))
    assert all(value.isfinite() for value in terms.values())
    assert {name.split(".")[0] for name in moved} == {"head", "segmentation"}


# --- the values and the rows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reliable(energy=-1.0), "energy must be a finite number"),
        (lambda: Reliable(s_xy=0.0), "s_xy must be a finite number and positive"),
        (lambda: Reliable(scales=(0.5, 1.0)), "scales must be positive and begin with 1"),
        (lambda: Reliable(scales=()), "scales must be positive and begin with 1"),
        (lambda: Reliable(gradient="own"), "gradient must be one of defined, exact"),
        (lambda: Reliable(empty=0), "empty must be one of zero, nan"),
        (lambda: Reliable(label_side=-1), "label_side must be a whole number"),
        (lambda: Rrm(tags_known=1), "tags_known must be one of"),
        (lambda: Rrm(iterations=-1), "iterations must be a whole number"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("stored")
def test_rows():
    one, maps, two = (made(name) for name in ("rrm", "rrm_pseudo", "rrm_segmentation"))
    assert one["network"].key == maps["network"].key
    assert two["teacher"].key == maps["labels"].key
    assert one["labels"].summary["images"] == TINY.val.count
    log = pd.read_csv(one["network"].folder / "log.csv")
    expected = {"classification", "background", "objects", "energy", "labelled", "force"}
    assert expected <= set(log.columns)
    assert (log["energy"] < 0).all()
    assert log["labelled"].between(0, 1).all()
    last = log.iloc[-1][["labelled", "force"]]
    assert last.to_dict().items() <= run.numbers(one).items()
    assert not {"labelled", "force"} & set(run.numbers(two))  # its teacher's
    for row in (one, maps, two):
        assert row["evaluation"].summary["miou"] > 0

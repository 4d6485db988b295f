"""ICD: numbers of the original, its losses by hand, superpixels, the claim in miniature, the rows."""

import math
import zlib
from types import SimpleNamespace

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
from aeft_lib.networks import state
from aeft_lib.parts.discriminator import (
    bottom_up,
    memberships,
    moved,
    projected,
    signs,
    smoothed,
    top_down,
    warm_up,
)
from aeft_lib.parts.discriminator_network import CentredNorm, IcdClassifier
from aeft_lib.parts.superpixels import Superpixels, joined, mean_features
from aeft_lib.rivals.icd import Icd, IcdLabels, at_image, decide, settled
from aeft_lib.studies import run

ON_MAPS, GRADIENT = 1e-5, 1e-4  # tests/golden_rivals/README.md
OUTPUTS, DELTAS = 1e-4, 5e-3
CLASSES = 20


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    arrays = golden_rivals("icd")
    return {
        k: torch.from_numpy(np.asarray(a)) if a.dtype.kind != "U" else a for k, a in arrays.items()
    }


# --- the original's numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_bottom_up(case, assert_near, dtype):
    w, features = (case[f"bu/{name}"].to(dtype).requires_grad_() for name in ("w", "feat"))
    score = projected(features.detach(), w)
    assert_near(score, case["bu/score"], ON_MAPS, "score")
    bottom_up(score, case["bu/label"]).sum().backward()
    assert_near(w.grad, case["bu/grad_w"], GRADIENT, "gradient")
    assert features.grad is None
    assert case["bu/grad_feat_absmax"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_signs(case, assert_near, dtype):
    """Three batches in training, and one that only reads the pair."""
    pair = torch.zeros_like(case["sign/t0/moving_after"], dtype=dtype)
    for t in range(3):
        score, cam = (case[f"sign/t{t}/{n}"].to(dtype) for n in ("score", "cam"))
        pair = moved(pair, score, cam, case[f"sign/t{t}/label"])
        assert_near(pair, case[f"sign/t{t}/moving_after"], ON_MAPS, "pair")
        assert torch.equal(signs(pair).float(), case[f"sign/t{t}/sign"])
    assert_near(pair, case["sign/t3/moving_after"], ON_MAPS, "kept")
    given = [case[f"sign/t3/{n}"].to(dtype) for n in ("score", "cam", "label")]
    read = SimpleNamespace(training=False, moving=pair.clone())
    assert torch.equal(Icd._sign(read, *given).float(), case["sign/t3/sign"])
    assert torch.equal(read.moving, pair)
    trained = SimpleNamespace(training=True, moving=pair.clone())
    Icd._sign(trained, *given)
    assert (trained.moving - pair).abs().max() > 100 * ON_MAPS * pair.abs().max()


@pytest.mark.parametrize("name", ["sp_same", "sp_big"])
def test_golden_superpixels(case, assert_near, name):
    score, parts = case[f"{name}/score"], case[f"{name}/superpixel"]
    owners = memberships(parts, tuple(score.shape[-2:]), int(parts.max()) + 1)
    assert_near(
        smoothed(score, owners, case[f"{name}/label"]), case[f"{name}/refined"], ON_MAPS, name
    )
    hot = F.one_hot(parts.long()).permute(0, 3, 1, 2).float()
    own = F.interpolate(hot, size=score.shape[-2:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(owners, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_top_down(case, assert_near, dtype):
    logit = case["td/logit"].to(dtype).requires_grad_()
    assert_near(logit.sigmoid(), case["td/prob"], ON_MAPS, "probability")
    top_down(logit, case["td/target_score"].to(dtype), case["td/label"]).sum().backward()
    assert_near(logit.grad, case["td/grad_logit"], ON_MAPS, "gradient")


def test_golden_warm_up(case):
    """Eleven calls, of which the last are beyond the warm-up; U steps long, U not in the file."""
    expected = case["td/warmup_scales_f64"].tolist()
    length = next(i for i, scale in enumerate(expected) if scale == 1)
    ours = [warm_up(step / length) for step in range(len(expected))]
    assert ours == pytest.approx(expected, rel=1e-12)


def test_golden_classification(case, assert_near):
    logit = case["cls/logit"].requires_grad_()
    assert_near(logit.sigmoid(), case["cls/prob"], ON_MAPS, "probability")
    loss = F.binary_cross_entropy_with_logits(logit, case["cls/label"], reduction="none")
    loss.sum(dim=1).sum().backward()
    assert_near(logit.grad, case["cls/grad_logit"], ON_MAPS, "gradient")


def test_golden_rates(case):
    """The poly of the harness, a step an epoch."""
    rates = case["lr_epoch_f64"]
    schedule = Schedule(len(rates), 1, float(rates[0]), 1.0, weight_decay=0.0, warmup_steps=0)
    ours = [schedule.lr * schedule.factor(e, len(rates)) for e in range(len(rates))]
    assert ours == pytest.approx(rates.tolist(), rel=1e-12)


@pytest.mark.parametrize("name", ["seed_one", "seed_two"])
def test_golden_seeds(case, name):
    image, classes = case[f"{name}/image"].numpy(), case[f"{name}/classes"]
    canvas = int(case[f"{name}/infer_size"])
    maps = [at_image(case[f"{name}/{n}"], image.shape[:2], canvas) for n in ("icd", "cam")]
    rows = decide(*maps)
    names = torch.cat([torch.zeros(1, dtype=torch.int64), classes + 1])
    ours = torch.where(rows == VOID, VOID, names[rows.masked_fill(rows == VOID, 0)])
    theirs = case[f"{name}/seed"].long()
    # A pixel at a threshold may fall to either side, by another library's up-sampling.
    assert (ours != theirs).float().mean() <= 1e-3
    after = settled(image, theirs, CLASSES)
    assert (after == case[f"{name}/seed_crf"].long()).float().mean() >= 0.98


def test_golden_labels_of_the_maker(case):
    for name in ("seed_one", "seed_two"):
        image, classes = case[f"{name}/image"].numpy(), case[f"{name}/classes"]
        given = (case[f"{name}/icd"], case[f"{name}/cam"], classes, CLASSES)
        canvas = int(case[f"{name}/infer_size"])
        for crf, key, least in ((False, "seed", 0.999), (True, "seed_crf", 0.98)):
            ours = IcdLabels(crf=crf, canvas=canvas, unsure="void").label(image, *given)
            assert (ours == case[f"{name}/{key}"].numpy()).mean() >= least


def test_golden_unaries(case):
    label = torch.tensor([[3, VOID]])
    seen = []

    def infer(_, unary: Tensor, *, iterations: int) -> Tensor:
        seen.append(unary)
        return unary.neg().exp()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aeft_lib.refinement.dense_crf.DenseCRF.infer", infer)
        after = settled(np.zeros((1, 2, 3), dtype=np.uint8), label, CLASSES)
    for name in ("seed_one", "seed_two"):
        sure, other = case[f"{name}/unary_values"].tolist()
        assert seen[0][3, 0, 0].item() == pytest.approx(sure, rel=1e-5)
        assert seen[0][0, 0, 0].item() == pytest.approx(other, rel=1e-5)
    assert seen[0][:, 0, 1].tolist() == pytest.approx([math.log(CLASSES + 1)] * (CLASSES + 1))
    assert after.tolist() == [[3, VOID]]  # 1 / 21 is below 0.1


def test_golden_joined_superpixels(case):
    parts, features = case["merge/superpixel"].numpy(), case["merge/features"].numpy()
    ours = joined(parts, features, int(case["merge/max_number"]))
    theirs = case["merge/merged_as_written"].numpy()
    assert len(np.unique(theirs)) == int(case["merge/max_number"])
    pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(theirs))  # the same parts
    assert np.array_equal(ours, theirs)


class Stub(nn.Module):
    """The VGG of two golden steps: one convolution."""

    stride, out_channels = 1, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv5_3 = nn.Conv2d(3, 8, 3, padding=1)

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def tail(self, features: Tensor) -> Tensor:
        return self.conv5_3(features).relu()


THEIRS = {
    "backbone.conv5_3.weight": "conv5_3_weight",
    "backbone.conv5_3.bias": "conv5_3_bias",
    "backbone.directions": "icd_bu_weight",
    "icd6.weight": "fc6_ft_weight",
    "icd6.bias": "fc6_ft_bias",
    "icd7.weight": "fc7_ft_weight",
    "icd7.bias": "fc7_ft_bias",
    "icd8.weight": "conv_ft_weight",
    "norm.shift": "feat_bn_beta",
} | {f"fc{n}.{k}": f"fc{n}_{k}" for n in (6, 7, 8) for k in ("weight", "bias")}


def stub(case: dict) -> IcdClassifier:
    network = IcdClassifier(backbone=Stub(), num_classes=case["step/label"].shape[1], width=1024)
    network.pool, network.dropout = nn.MaxPool2d(3, 1, 1), nn.Identity()
    names = case["step/param_names"].tolist()
    deviations = dict(zip(names, case["step/param_std_f64"].tolist(), strict=True))
    weights = dict(network.named_parameters())
    for ours, theirs in THEIRS.items():
        source = theirs.replace("_ft", "") if theirs.startswith("fc") else theirs
        generator = np.random.Generator(
            np.random.PCG64(zlib.crc32(f"{case['step/salt']}{source}".encode("ascii")))
        )
        n = generator.standard_normal(tuple(weights[ours].shape)) * deviations[source]
        weights[ours].data = torch.from_numpy(n.astype(np.float32))
    return network


def test_golden_steps(case, assert_near):
    """Two whole steps of the optimiser, after the warm-up."""
    network, method = (
        stub(case),
        Icd(superpixels=Superpixels(count=int(case["step/superpixel"].max()) + 1)),
    )
    rate, arrays = float(case["step/lr"]), {k: np.asarray(v) for k, v in case.items()}
    groups = [
        {
            "params": [p],
            "lr": rate * (10 if name.startswith(("fc8", "icd8")) else 1),
            "weight_decay": 5e-4 if THEIRS[name].endswith("_weight") else 0.0,
        }
        for name, p in network.named_parameters()
        if name in THEIRS
    ]
    optimiser = torch.optim.SGD(groups, momentum=0.9)
    images = case["step/image_rgb"].float() - 127
    parts = case["step/superpixel"][:, None]
    batch = Batch(images=images, tags=case["step/label"], labels=parts)
    for step in ("s0", "s1"):
        before = {n: p.detach().clone() for n, p in network.named_parameters()}
        measures = method.measure(network, batch)
        with torch.no_grad():
            kept = network.norm.mean.clone(), network.norm.variance.clone()
            output = network(images)
            network.norm.mean.copy_(kept[0])
            network.norm.variance.copy_(kept[1])
            s = projected(output.features, network.backbone.directions)
        signed = s * signs(network.moving.detach())[:, None, None]
        assert_near(output.logits.sigmoid(), case[f"step/{step}/cam_prob"], OUTPUTS, "CAM")
        assert_near(signed, case[f"step/{step}/bu_signed"], OUTPUTS, "bottom-up")
        assert_near(output.icd.sigmoid(), case[f"step/{step}/td_prob"], OUTPUTS, "top-down")
        assert_near(network.moving, case[f"step/{step}/moving"], OUTPUTS, "pair")
        optimiser.zero_grad()
        terms = method.combine(measures | {"progress": torch.ones(())})
        sum(terms.values()).backward()
        optimiser.step()
        for ours, theirs in THEIRS.items():
            change = (dict(network.named_parameters())[ours] - before[ours]).detach()
            expected = case[f"step/{step}/delta_norm/{theirs}"].item()
            assert change.norm().item() == pytest.approx(expected, rel=DELTAS), theirs
            assert_stats(change, arrays, f"step/{step}/delta/{theirs}", DELTAS)


# --- by hand --------------------------------------------------------------------------------------


def test_a_principal_direction_has_no_gradient():
    """Pixels (2, 0) and (-2, 0) along (1, 0): the loss is -20."""
    w = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    pixels = torch.tensor([[2.0, -2.0], [0.0, 0.0]], dtype=torch.float64).reshape(1, 2, 1, 2)
    loss = bottom_up(projected(pixels, w), torch.ones(1, 1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(-20)
    assert w.grad.abs().max() == 0
    two = torch.tensor([[1.0, 1.0]])
    s = projected(pixels, torch.eye(2, dtype=torch.float64))
    assert bottom_up(s, two).item() == 0  # two tags do not train w
    assert bottom_up(s, two, single_tag_only=False).item() == pytest.approx(-20)


def random(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def test_gradients_are_those_of_differences():
    tags = torch.tensor([[1, 0], [0, 1], [1, 1]])
    f, w, t = random(3, 4, 3, 2), random(2, 4, seed=1), random(3, 2, 3, 2, seed=2)
    refined = random(3, 2, 3, 2, seed=3)
    assert torch.autograd.gradcheck(
        lambda own: bottom_up(projected(f, own), tags), w.requires_grad_()
    )
    assert torch.autograd.gradcheck(lambda own: top_down(own, refined, tags), t.requires_grad_())


def test_signs_by_hand():
    assert signs(torch.tensor([[0.02, 0.05]])).tolist() == [-1]
    assert signs(torch.zeros(1, 2)).tolist() == [1]
    pair, s = torch.tensor([[0.5, 0.5], [0.2, 0.1]]), torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)
    cam = torch.tensor([0.8, 0.2]).reshape(1, 1, 1, 2)
    after = moved(pair, s.expand(1, 2, 1, 2), cam.expand(1, 2, 1, 2), torch.tensor([[1, 0]]))
    torch.testing.assert_close(after, torch.tensor([[0.45 + 0.08, 0.45 + 0.02], [0.2, 0.1]]))


def test_superpixels_by_hand():
    """1-D, one class: two positive of three, then one of three."""
    s = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 0.5]).reshape(1, 1, 1, 6)
    parts = torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.uint8).reshape(1, 1, 6)
    out = smoothed(s, memberships(parts, (1, 6), 2), torch.ones(1, 1))
    third = 2 / 3
    assert out.flatten().tolist() == pytest.approx([third] * 3 + [-third] * 3)
    # A cell of no superpixel has no value.
    parts[..., 5] = VOID
    out = smoothed(s, memberships(parts, (1, 6), 2), torch.ones(1, 1))
    assert out.flatten()[3:].tolist() == pytest.approx([-1, -1, 0])


def test_turning_a_direction_changes_nothing_once_the_pair_has_settled():
    s, cam, tags = random(4, 2, 5, 5), random(4, 2, 5, 5, seed=1), torch.ones(4, 2)
    pairs = [torch.zeros(2, 2, dtype=torch.float64) for _ in range(2)]
    for _ in range(3):
        pairs = [
            moved(pair, sign * s, cam, tags) for pair, sign in zip(pairs, (1, -1), strict=True)
        ]
    torch.testing.assert_close(pairs[0], pairs[1].flip(1))
    first, second = (
        signs(pair)[:, None, None] * s * sign for pair, sign in zip(pairs, (1, -1), strict=True)
    )
    torch.testing.assert_close(first, second)


def test_a_map_of_the_image_itself_needs_no_corner_rule():
    parts = torch.randint(
        4, (2, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    owners = memberships(parts, (5, 6), 4)
    assert torch.equal(owners.argmax(dim=1).to(torch.uint8), parts)
    assert (owners.sum(dim=1) == 1).all()


def test_seeds_by_hand():
    icd = torch.tensor([[[2.0, 2.0, -1.0, 1.0, -1.0]], [[-1.0, 4.0, -1.0, 2.0, 4.0]]])
    cam = torch.tensor([[[1.0, 0.2, 1.0, -1.0, 0.0]], [[0.0, 0.4, 1.0, -1.0, 1.0]]])
    # The first alone; the CAM decides; nobody; no CAM at all; the second alone.
    assert decide(icd, cam).tolist() == [[1, 2, 0, VOID, 2]]
    assert decide(icd, cam, needs_cam=False).tolist() == [[1, 2, 0, 1, 2]]
    assert (
        decide(icd, cam, conflicts="icd", needs_cam=False)[0, 1] == 1
    )  # both are at their largest
    assert decide(icd[:1], cam[:1]).tolist() == [[1, 1, 0, 1, 0]]
    assert not decide(icd[:0], cam[:0]).any()


def test_void_becomes_background_where_maps_are_scored():
    icd, cam = torch.ones(2, 1, 1), -torch.ones(2, 1, 1)
    given = (np.zeros((4, 4, 3), dtype=np.uint8), icd, cam, torch.tensor([1, 3]), 5)
    assert (IcdLabels(crf=False, unsure="void").label(*given) == VOID).all()
    assert not IcdLabels(crf=False).label(*given).any()


def test_the_claim_in_miniature():
    """Two clusters of features, and a CAM that touches a tenth of one: the seed is all of it."""
    inside = torch.zeros(10, 10, dtype=torch.bool)
    inside[2:7, 3:9] = True
    f = torch.where(inside, 1.0, -0.6) * torch.tensor([0.8, -0.6, 0.0])[:, None, None]
    f = (f + 0.05 * random(3, 10, 10).float())[None]
    cam = torch.zeros(1, 1, 10, 10)
    cam[0, 0, 3, 4:7] = 1.0
    w = torch.tensor([[-0.3, 0.2, 0.9]], requires_grad=True)
    optimiser = torch.optim.SGD([w], 0.1)
    for _ in range(100):
        optimiser.zero_grad()
        bottom_up(
            projected(f - f.mean(dim=(2, 3), keepdim=True), w), torch.ones(1, 1)
        ).sum().backward()
        optimiser.step()
    s = projected(f - f.mean(dim=(2, 3), keepdim=True), w.detach())
    s = s * signs(moved(torch.zeros(1, 2), s, cam, torch.ones(1, 1)))[:, None, None]
    parts = torch.arange(100, dtype=torch.uint8).reshape(1, 10, 10)
    refined = smoothed(s, memberships(parts, (10, 10), 100), torch.ones(1, 1))
    t = torch.zeros(1, 1, 10, 10, requires_grad=True)
    for _ in range(20):
        (slope,) = torch.autograd.grad(top_down(t, refined, torch.ones(1, 1)).sum(), t)
        t = (t - 100 * slope).detach().requires_grad_()
    seed = decide(t[0].detach(), cam[0])
    assert torch.equal(seed == 1, inside)
    assert (cam[0, 0] > 0)[inside].float().mean() <= 0.1


# --- superpixels of an image ----------------------------------------------------------------------


def test_the_most_alike_are_joined_first():
    parts = np.repeat(np.arange(4), 4).reshape(4, 4)
    features = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.05], [-1.0, 0.0]])
    assert joined(parts, features, 3)[:, 0].tolist() == [0, 1, 0, 2]
    assert joined(parts, features, 4)[:, 0].tolist() == [0, 1, 2, 3]
    assert joined(parts, features, 1).max() == 0
    with pytest.raises(ValueError, match="4 superpixels have 3 features"):
        joined(parts, features[:3], 2)


def test_mean_features_are_those_of_the_enlarged_map():
    maps = random(3, 2, 3).float()
    parts = np.arange(24).reshape(4, 6) % 5
    full = F.interpolate(maps[None], size=(4, 6), mode="bilinear", align_corners=False)[0]
    ours = mean_features(parts, maps)
    for j in range(5):
        expected = full[:, torch.from_numpy(parts == j)].mean(dim=1)
        torch.testing.assert_close(torch.from_numpy(ours[j]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["graph", "slic"])
def test_superpixels_follow_the_edges_of_an_image(kind):
    g = np.random.default_rng(0)
    image = g.integers(90, 110, (48, 64, 3))
    image[:, 32:] += 100
    parts = Superpixels(kind=kind).divide(image.astype(np.uint8))
    assert parts.shape == (48, 64)
    assert parts.min() == 0
    assert len(np.unique(parts)) == parts.max() + 1 > 1
    crossing = [
        j for j in range(parts.max() + 1) if len({x // 32 for x in np.nonzero(parts == j)[1]}) > 1
    ]
    of_crossing = np.isin(parts, crossing).mean()
    assert of_crossing < 0.1


# --- the network ----------------------------------------------------------------------------------


class TinyBackbone(nn.Module):
    """Two convolutions of stride 8."""

    out_channels, stride = 10, 8

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 8, padding=1), nn.Conv2d(6, 10, 3, padding=1)

    def trunk(self, images: Tensor) -> Tensor:
        return self.a(images).relu()

    def tail(self, features: Tensor) -> Tensor:
        return self.b(features).relu()


def tiny(method: Icd) -> IcdClassifier:
    torch.manual_seed(0)
    return method.build(TinyBackbone(), 3)


SMALL = Icd(superpixels=Superpixels(count=8), width=16)


def batch(count: int = 4, side: int = 32) -> Batch:
    g = torch.Generator().manual_seed(0)
    parts = torch.randint(8, (count, 1, 4, 4), generator=g).float()
    parts = F.interpolate(parts, size=(side, side)).to(torch.uint8)
    tags = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])[:count]
    return Batch(images=torch.randn(count, 3, side, side, generator=g), tags=tags, labels=parts)


def test_bottom_up_trains_the_directions_alone_and_top_down_not():
    network = tiny(SMALL)
    named = {n: p for n, p in network.named_parameters()}
    measures = SMALL.measure(network, batch())
    reached = {}
    for term in ("bottom_up", "top_down", "classification"):
        slopes = torch.autograd.grad(
            measures[term].sum(), list(named.values()), retain_graph=True, allow_unused=True
        )
        reached[term] = {n for n, s in zip(named, slopes, strict=True) if s is not None and s.any()}
    assert reached["bottom_up"] == {"backbone.directions"}
    assert "backbone.a.weight" in reached["top_down"]
    assert not {n for n in reached["top_down"] if n.startswith("fc") or n == "backbone.directions"}
    assert not {n for n in reached["classification"] if n.startswith(("icd", "norm"))}


def test_the_branches_begin_as_copies():
    network = tiny(SMALL)
    for own, other in ((network.icd6, network.fc6), (network.icd7, network.fc7)):
        assert torch.equal(own.weight, other.weight)
        assert own.weight.data_ptr() != other.weight.data_ptr()


@pytest.mark.exact
def test_statistics_and_the_pair_are_stored_and_never_stepped(tmp_path):
    network = tiny(SMALL)
    schedule = Schedule(1, 4, lr=1e-2, head_lr=1e-2, weight_decay=0.5, warmup_steps=0)
    objective = Objective(SMALL.measure, SMALL.combine)
    stepper = Stepper(network, make_optimiser(network, schedule), objective, PLAIN)
    terms = stepper.step(batch())
    assert all(value.isfinite() for value in terms.values())
    assert network.moving.any()
    # After a step from 1 the variance is 0.9 + 0.1 v, whatever the weight decay.
    assert (network.norm.variance >= 0.9).all()
    assert (network.norm.mean != 0).any()
    state.save_trained(network, tmp_path / "w.safetensors")
    other = tiny(SMALL)
    state.load_trained(other, tmp_path / "w.safetensors")
    assert torch.equal(other.moving, network.moving)
    assert torch.equal(other.norm.variance, network.norm.variance)
    shown = batch().images
    torch.testing.assert_close(other.eval()(shown).icd, network.eval()(shown).icd)


def test_parts_update_the_statistics_once_each():
    """A batch in two parts has statistics of its own for each, as on the release's two GPUs."""
    schedule = Schedule(1, 4, lr=1e-9, head_lr=1e-9, weight_decay=0.0, warmup_steps=0)
    network = tiny(SMALL)
    objective = Objective(SMALL.measure, SMALL.combine)
    Stepper(network, make_optimiser(network, schedule), objective, Compute(parts=2)).step(batch())
    assert (network.norm.variance >= 0.81).all()
    alone = tiny(SMALL)
    for half in (slice(2), slice(2, 4)):
        alone.norm(alone._maps(alone.backbone.trunk(batch().images[half])).relu())
    torch.testing.assert_close(network.norm.variance, alone.norm.variance)


def test_centred_norm_is_a_batch_norm_without_a_scale():
    own, plain = CentredNorm(4).train(), nn.BatchNorm2d(4, affine=False).train()
    x = random(3, 4, 5, 6).float()
    torch.testing.assert_close(own(x), plain(x), rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_sum_over_classes_and_warms_up():
    network = tiny(SMALL).eval()
    measures = SMALL.measure(network, batch())
    late, early = (SMALL.combine(measures | {"progress": torch.tensor(p)}) for p in (0.5, 0.0))
    expected = math.exp(-10) * late["top_down"].item()
    assert early["top_down"].item() == pytest.approx(expected, rel=1e-5)
    per_class = F.binary_cross_entropy_with_logits(
        network(batch().images).logits, batch().tags.float(), reduction="none"
    )
    assert late["classification"].item() == pytest.approx(
        per_class.sum(dim=1).mean().item(), rel=1e-5
    )


# --- the values and the rows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Icd(width=0), "width must be a whole number"),
        (lambda: Icd(Superpixels()), "the CAM of ICD has global average pooling"),
        (lambda: Icd(single_tag_only=1), "single_tag_only must be one of"),
        (lambda: IcdLabels(canvas=-1), "canvas must be a whole number"),
        (lambda: IcdLabels(unsure="mean"), "unsure must be one of background, void"),
        (lambda: IcdLabels(conflicts="cam"), "conflicts must be one of cam_times_icd, icd"),
        (lambda: Superpixels(count=0), "count must be a whole number"),
        (lambda: Superpixels(count=255), "count must be a whole number"),
        (lambda: Superpixels(kind="quick"), "kind must be one of graph, slic"),
        (lambda: Superpixels(blur=-1.0), "blur must be a finite number"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_step_of_resnet38d():
    """VGG's map has a stride of 8 as well: the new layers have 3 x 3 cells."""
    method = Icd(superpixels=Superpixels(count=8), width=16)
    torch.manual_seed(0)
    network = method.build(one_step.resnet38d(), 3)
    assert network.fc6.kernel_size == (3, 3)
    terms, moved = one_step.step(network, method, batch(2, one_step.SIDE))
    assert all(value.isfinite() for value in terms.values())
    assert {"fc6", "fc7", "fc8", "norm", "icd8", "moving"} <= {n.split(".")[0] for n in moved}
    del network.backbone.directions  # the backbone is shared by tests


@pytest.mark.usefixtures("stored")
def test_rows():
    before, after, cam = (made(name) for name in ("icd", "icd_pseudo", "icd_cam"))
    trained = cam["classifier"]
    assert trained.stage == "train_on_maps"
    log = pd.read_csv(trained.folder / "log.csv")
    expected = {"classification", "bottom_up", "top_down", "turned"}
    assert expected <= set(log.columns)
    assert (log["bottom_up"] <= 0).all()
    assert before["labels"].key != after["labels"].key
    assert before["labels"].summary["images"] == TINY.val.count
    assert after["labels"].summary["images"] == TINY.train.count
    for row in (before, after, cam):
        assert row["evaluation"].summary["miou"] > 0
    assert run.numbers(before)["turned"] == run.numbers(cam)["turned"] == log["turned"].iloc[-1]


def test_a_photo_larger_than_the_canvas_is_refused():
    from aeft_lib.rivals.icd import _on_canvas

    image = np.full((20, 30, 3), 7, dtype=np.uint8)
    assert _on_canvas(image, 0).shape == (1, 3, 20, 30)
    square = _on_canvas(image, 40)
    assert square.shape == (1, 3, 40, 40)
    assert (square[0, 0, 20:] == 127).all()
    with pytest.raises(ValueError, match=r"a photo of \(20, 30\) pixels is larger than canvas=25"):
        _on_canvas(image, 25)

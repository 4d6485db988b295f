"""SSDD: numbers of the original, the rule of the merge, what the detector can foresee, and the rows."""

import math
from dataclasses import replace

import numpy as np
import one_step
import pandas as pd
import pytest
import torch
from golden_networks import assert_stats, drawn
from tiny_rows import TINY, made
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper
from aeft_lib.maps.labels import VOID
from aeft_lib.parts.difference import (
    Detector,
    FixedNorm,
    balanced,
    difference_sums,
    flagged,
    merge,
    one_hot,
)
from aeft_lib.parts.difference_network import (
    DifferenceNetwork,
    at_size,
    crf_masks,
    tagged_argmax,
    tagged_scores,
    with_background,
)
from aeft_lib.parts.in_step import posterior
from aeft_lib.parts.merge_masks import MergeSpec, differences
from aeft_lib.rivals.ssdd import Cosine, Dynamic, Ssdd, Static
from aeft_lib.stages.psa import Psa
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE

FORWARD, NORMS, CRF = 1e-5, 1e-3, 1e-3  # tests/golden_rivals/README.md; the CRF's is absolute
BIAS = {"bias": 0.4}
# The original's names of a detector's layers.
NAMES = {
    "conv1ab": "features",
    "conv1c": "mask",
    "conv1abc.conv1": "reduce.conv",
    "conv1abc.bn1": "reduce.norm",
    "conv1abc.conv2": "middle.conv",
    "conv1abc.bn2": "middle.norm",
    "conv1abc.conv3": "expand.conv",
    "conv1abc.bn3": "expand.norm",
    "conv1abc.downsample": "shortcut.conv",
    "conv1abc.bnd": "shortcut.norm",
    "pred_abc": "decide",
}


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    arrays = golden_rivals("ssdd")
    return {
        k: torch.from_numpy(np.asarray(a)) if a.dtype.kind != "U" else a for k, a in arrays.items()
    }


def our_name(name: str) -> str:
    """A detector's parameter, of the original's name without its first part."""
    layer, kind = name.rsplit(".", 1)
    for theirs in sorted(NAMES, key=len, reverse=True):
        if layer == theirs or layer.startswith(f"{theirs}."):
            rest = layer[len(theirs) :].replace(".conv1", ".conv").replace(".bn1", ".norm")
            return f"{NAMES[theirs]}{rest}.{kind}"
    raise KeyError(name)


def filled(detector: Detector, names: dict[str, str], salt: str) -> Detector:
    """The detector with golden weights, all of it with gradients; names: ours to the original's."""
    for name, parameter in detector.named_parameters():
        theirs = names[name]
        weight = torch.from_numpy(drawn(theirs, tuple(parameter.shape), salt))
        parameter.data = weight * 6 if name.startswith("decide") else weight
        parameter.requires_grad_(True)
    return detector


def detector(channels: tuple[int, int], norm: str = "fixed", classes: int = 21, width: int = 256):
    return Detector(channels=channels, classes=classes, width=width, norm=norm)


# --- the original's numbers -----------------------------------------------------------------------


def test_golden_flags(case):
    flags = flagged(case["mask_K"], case["mask_A"], case["label"])
    assert torch.equal(flags, case["flags"].bool())
    sums = one_hot(case["mask_K"], case["flags"].shape[1]).sum(dim=(2, 3))
    assert torch.equal(sums.float(), case["onehot_sum"])


@pytest.mark.parametrize("name", ["dynamic", "static_train", "static_use", "default"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_merges(case, name, dtype):
    """Exact: the smallest |w| is 2e-4, and a sum of probabilities and biases is off by 1e-6."""
    probable = [case[f"logit_{mask}"].to(dtype).sigmoid() for mask in "KA"]
    bias, bg_bias = case[f"merge_{name}/bias_f64"].tolist()
    masks = (case["mask_K"], case["mask_A"])
    ours = merge(*masks, *probable, case["flags"].bool(), bias=bias, bg_bias=bg_bias)
    assert torch.equal(ours, case[f"merge_{name}/mask"])
    exchanged = merge(*masks, *probable[::-1], case["flags"].bool(), bias=bias, bg_bias=bg_bias)
    assert not torch.equal(exchanged, ours)  # the released order is seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_losses(case, assert_near, dtype):
    masks = (case["mask_K"], case["mask_A"])
    logits = case["logit_K"].to(dtype).requires_grad_()
    sums = difference_sums(logits, *masks)
    together = balanced({k: v.sum() for k, v in sums.items()}, empty="nan")
    (slope,) = torch.autograd.grad(together, logits)
    assert_near(together, case["balanced_bce/loss"], FORWARD, "whole batch")
    assert_near(slope, case["balanced_bce/grad"], FORWARD, "gradient")
    kept = ~case["flags"].bool().any(dim=1)
    for flags, expected in (
        (kept, case["dd_loss/loss"]),
        (~kept & False, case["dd_loss/all_flagged"]),
    ):
        loss = of_images(Static(), logits, masks, flags)
        if flags.any():
            (slope,) = torch.autograd.grad(loss, logits)
            assert_near(slope, case["dd_loss/grad"], FORWARD, "gradient")
            assert_near(loss, expected, FORWARD, "images")
        else:
            assert loss.item() == expected.item()


def of_images(method: Static, logits: Tensor, masks: tuple[Tensor, Tensor], kept: Tensor) -> Tensor:
    sums = difference_sums(logits, *masks)
    return method.of_images({f"k_{key}": v for key, v in sums.items()} | {"kept": kept}, "k")


def test_golden_loss_without_a_difference_is_the_quirk(case):
    same = (case["mask_K"], case["mask_K"])
    sums = {k: v.sum() for k, v in difference_sums(case["logit_K"], *same).items()}
    assert case["balanced_bce/no_difference"].isnan()
    assert balanced(sums, empty="nan").isnan()
    assert balanced(sums, empty="zero").isfinite()


def test_golden_detector(case, assert_near):
    features = torch.cat([case["net/seg_features"], case["net/low_features"]], dim=1)
    names = {our_name(n.split(".", 1)[1]): n for n in case["net/grad_names"].tolist()}
    channels = (case["net/seg_features"].shape[1], case["net/low_features"].shape[1])
    own = filled(detector(channels, classes=classes(case)), names, str(case["net/salt"]))
    (logit,) = own(features, [case["mask_K"]])
    assert_near(logit, case["net/logit"], FORWARD, "logit")
    logit.sum().backward()
    norms = {names[name]: p.grad.norm().item() for name, p in own.named_parameters()}
    assert set(norms) == set(case["net/grad_names"].tolist())
    for name, norm in zip(
        case["net/grad_names"].tolist(), case["net/grad_norm"].tolist(), strict=True
    ):
        assert norms[name] == pytest.approx(norm, rel=NORMS), name


def test_golden_shapes_of_the_detector(case):
    """Of every parameter, trained or not; the original's say so as text."""
    channels = (case["net/seg_features"].shape[1], case["net/low_features"].shape[1])
    own = detector(channels, classes=classes(case))
    ours = {name: str(tuple(p.shape)) for name, p in own.named_parameters()}
    names = [our_name(name.split(".", 1)[1]) for name in case["net/grad_names"].tolist()]
    assert ours == dict(zip(names, case["net/param_shapes"].tolist(), strict=True))


def test_golden_fixed_norms_divide_by_the_root_of_1_001():
    norm, x = (
        FixedNorm(3).train(),
        torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
    )
    torch.testing.assert_close(norm(x), x / math.sqrt(1.001))
    assert not any(p.requires_grad for p in norm.parameters())


def test_golden_readout(case):
    logits, tags = case["readout/logit"].float(), case["readout/tags_bg"][:, 1:]
    assert torch.equal(with_background(tags), case["readout/tags_bg"])
    assert torch.equal(tagged_argmax(logits, tags), case["readout/mask"])
    arrays = {k: np.asarray(v) for k, v in case.items()}
    assert_stats(tagged_scores(logits, tags), arrays, "readout/prob", FORWARD)


def test_golden_crf_on_the_classes_of_the_tags(case):
    logits, tags = case["readout/logit"].float(), case["readout/tags_bg"]
    pictures = case["readout/image"].permute(0, 3, 1, 2)
    full = torch.zeros_like(logits)
    for own, y, picture, dense in zip(logits, tags, pictures, full, strict=True):
        classes = y.nonzero()[:, 0]
        dense[classes] = posterior(picture, own[classes].softmax(dim=0), iterations=3)
    assert_stats(full, {k: np.asarray(v) for k, v in case.items()}, "readout/crf", CRF)
    masks = crf_masks(logits, tags[:, 1:], pictures, 3)
    assert (masks == case["readout/crf_mask"]).float().mean() >= 0.999


def blocky(seed: int, shape: tuple[int, ...], cell: int, noise: float) -> Tensor:
    """The recipe of the golden vectors: coarse cells, and noise on them."""
    g = np.random.Generator(np.random.PCG64(seed))
    height, width = (-(-side // cell) for side in shape[-2:])
    coarse = g.standard_normal((*shape[:-2], height, width))
    full = np.kron(coarse, np.ones((cell, cell)))[..., : shape[-2], : shape[-1]]
    return torch.from_numpy((full + noise * g.standard_normal(shape)).astype(np.float32))


HIGH, LOW = 512, 128  # channels of the features that the golden recipe draws


def classes(case: dict) -> int:
    return case["flags"].shape[1]


def dynamic_features(case: dict) -> list[Tensor]:
    """What each of both detectors reads."""
    count, *size = case["dyn/seed"].shape
    *seeds, last = case["dyn/feature_seeds"].tolist()
    low = at_size(blocky(last, (count, LOW, *(2 * side for side in size)), 6, 0.3), tuple(size))
    high = (blocky(seed, (count, HIGH, *size), 6, 0.3) for seed in seeds)
    return [torch.cat([own, low], dim=1) for own in high]


def dynamic_detector(case: dict, i: int) -> tuple[Detector, dict[str, str]]:
    """One of both, and the original's names of its parameters."""
    theirs = case["dyn/grad_names"].tolist()
    theirs = [n for n in theirs if n.startswith((f"dd_head{i}.", f"dd{i}."))]
    names = {our_name(name.split(".", 1)[1]): name for name in theirs}
    own = detector((HIGH, LOW), classes=classes(case))
    return filled(own, names, f"{case['net/salt']}dyn."), names


def test_golden_dynamic_wiring(case, assert_near):
    """Its losses, their gradients, and whom they reach."""
    both, names = zip(*(dynamic_detector(case, i) for i in (0, 1)), strict=True)
    logits = [case[f"dyn/logit_{head}"].clone().requires_grad_() for head in ("main", "sub")]
    tags, given = case["dyn/label"], (case["dyn/seed"], case["dyn/mask_crf"])
    for own, head in zip(logits, ("main", "sub"), strict=True):
        assert torch.equal(tagged_argmax(own, tags), case[f"dyn/mask_{head}"])
    method, seen = Dynamic(norm="fixed", empty="nan"), dynamic_features(case)
    measures = method.losses(nn.ModuleList(both), logits, seen, *given, tags)
    terms = method.combine(measures)
    assert_near(terms["segmentation"], case["dyn/loss_seg"], FORWARD, "segmentation")
    assert_near(terms["difference"], case["dyn/loss_dd"], FORWARD, "difference")
    weights = [p for own in both for p in own.parameters()]
    options = {"retain_graph": True, "allow_unused": True}
    reached = torch.autograd.grad(terms["segmentation"], [*logits, *weights], **options)
    for slope, head in zip(reached, ("main", "sub"), strict=False):
        assert_near(slope, case[f"dyn/grad_seg_{head}"], FORWARD, head)
    assert not any(slope is not None for slope in reached[2:])
    terms["difference"].backward()
    assert all(own.grad is None for own in logits)
    norms = case["dyn/grad_norm"].tolist()
    expected = dict(zip(case["dyn/grad_names"].tolist(), norms, strict=True))
    for own, theirs in zip(both, names, strict=True):
        for name, p in own.named_parameters():
            assert p.grad.norm().item() == pytest.approx(expected[theirs[name]], rel=NORMS)


def test_golden_masks_and_logits_of_the_dynamic_wiring(case, assert_near):
    pairs = (("dyn/mask_main", "dyn/mask_crf"), ("dyn/seed", "dyn/refined0"))
    for i, (pair, seen) in enumerate(zip(pairs, dynamic_features(case), strict=True)):
        masks = [case[name] for name in pair]
        with torch.no_grad():
            logits = dynamic_detector(case, i)[0](seen, masks)
        for logit, which in zip(logits, (f"dyn/dd{i}0", f"dyn/dd{i}1"), strict=True):
            assert_near(logit, case[which], FORWARD, which)
        flags = flagged(*masks, case["dyn/label"])
        assert torch.equal(flags, case[f"dyn/flags{i}"].bool())
        merged = merge(*masks, *(x.sigmoid() for x in logits), flags, **BIAS)
        assert torch.equal(merged, case[f"dyn/refined{i}"])


def test_golden_norms_are_not_trained(case):
    own = detector((HIGH, LOW))
    trained = {name for name, p in own.named_parameters() if p.requires_grad}
    theirs = {our_name(name.split(".", 1)[1]) for name in case["dyn/optimised"].tolist()}
    assert trained == theirs


def test_golden_rates(case):
    """Epochs 0, 5, .. of 41, at their start and in their middle, of two steps each."""
    rates, epochs = case["lr_f64"], 41
    schedule = Cosine(epochs, 2, lr=1e-3, head_lr=1e-2, weight_decay=2e-4, warmup_steps=0)
    ours = [
        [schedule.lr * schedule.factor(2 * epoch + half, 2 * epochs) for half in (0, 1)]
        for epoch in range(0, epochs, 5)
    ]
    # Two roundings of a cosine, a sum and a product.
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), rates, rtol=1e-12, atol=0)


# --- the rule of the merge ------------------------------------------------------------------------


def masks(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)[None, None]


def even(mask: Tensor, d: float) -> Tensor:
    return torch.full((1, 1, *mask.shape[-2:]), d)


NONE = torch.zeros(1, 7, dtype=torch.bool)


@pytest.mark.parametrize(
    ("d_k", "d_a", "bias", "takes_a"),
    [
        (0.7, 0.2, 0.4, True),
        (0.1, 0.6, 0.4, False),
        (0.0, 1.0, 1.0, True),
        (1.0, 0.0, -1.01, False),
    ],
)
def test_merge_by_hand(d_k, d_a, bias, takes_a):
    k, a = masks(1, 2, 0), masks(2, 2, 3)
    out = merge(k, a, even(k, d_k), even(a, d_a), NONE, bias=bias)
    assert torch.equal(out, a if takes_a else k)


def test_equal_masks_stay_whatever_is_detected():
    k = masks(0, 1, 2, 5)
    for d_k, d_a in ((0.0, 1.0), (1.0, 0.0)):
        assert torch.equal(merge(k, k, even(k, d_k), even(k, d_a), NONE, **BIAS), k)


def test_a_class_that_is_lost_keeps_what_either_mask_has():
    """100 pixels of class 5 in K and 40 in A."""
    k, a = torch.zeros(1, 1, 150, dtype=torch.uint8), torch.zeros(1, 1, 150, dtype=torch.uint8)
    k[..., :100], a[..., 80:120] = 5, 5
    tags = torch.zeros(1, 6)
    tags[0, 4] = 1
    flags = flagged(k, a, tags)
    assert flags.nonzero().tolist() == [[0, 5]]
    for d_k, d_a in ((0.0, 1.0), (0.59, 0.0), (1.0, 0.0)):
        out = merge(k, a, even(k, d_k), even(a, d_a), flags, **BIAS)
        assert (out[a == 5] == 5).all()
        lost = out[(k == 5) & (a != 5)] != 5
        assert bool(lost.all() if d_k - d_a >= 0.6 else not lost.any())
    # Half of the pixels is enough, and a class without a tag is never flagged.
    a[..., 70:120] = 5
    assert not flagged(k, a, tags).any()
    assert not flagged(k, torch.zeros_like(k), torch.zeros(1, 6)).any()


def test_the_bias_of_the_background_favours_it():
    k, a = masks(0, 1), masks(1, 0)
    # Of equal probabilities, w is -0.1 where K is background and 0.1 where A is.
    out = merge(k, a, even(k, 0.5), even(a, 0.5), NONE, bias=0.0, bg_bias=0.1)
    assert out.tolist() == [[[0, 0]]]
    assert merge(k, a, even(k, 0.5), even(a, 0.5), NONE, bias=0.2, bg_bias=0.1).tolist() == [
        [[1, 0]]
    ]


# --- the loss -------------------------------------------------------------------------------------


def test_loss_by_hand():
    """One pixel of four differs: half of log 2, and half of the mean over the others."""
    logits = torch.tensor([0.0, 0.0, 0.0, 20.0]).reshape(1, 1, 1, 4)
    sums = difference_sums(logits, masks(1, 1, 0, 0), masks(2, 1, 0, 0))
    agree = (2 * math.log(2) + 20) / 3
    assert balanced(sums, empty="zero").item() == pytest.approx((math.log(2) + agree) / 2, rel=1e-6)
    # A saturated sigmoid would say 100 or less; logits do not.
    far = difference_sums(torch.full((1, 1, 1, 1), 200.0), masks(0), masks(0))
    assert far["agrees"].item() == pytest.approx(200.0)


def test_void_pixels_do_not_count():
    sums = difference_sums(torch.zeros(1, 1, 1, 3), masks(1, VOID, 0), masks(2, 1, VOID))
    assert (sums["n_differs"].item(), sums["n_agrees"].item()) == (1, 0)


def test_gradient_of_the_loss():
    g = torch.Generator().manual_seed(0)
    k, a = (torch.randint(3, (2, 3, 4), generator=g, dtype=torch.uint8) for _ in range(2))
    logits = torch.randn(2, 1, 3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([True, True])
    assert torch.autograd.gradcheck(lambda x: of_images(Static(), x, (k, a), kept), logits)


def test_gradient_of_the_dynamic_losses():
    """In both heads' logits and both detectors' features; masks and merges are constants."""
    g = torch.Generator().manual_seed(0)
    options, tags = {"generator": g, "dtype": torch.float64}, torch.tensor([[1, 1], [1, 0]])
    logits = [torch.randn(2, 3, 2, 3, **options) for _ in range(2)]
    seen = [torch.randn(2, 2, 2, 3, **options) for _ in range(2)]
    seed, advised = (torch.randint(3, (2, 2, 3), generator=g, dtype=torch.uint8) for _ in range(2))
    seed[:, 0, 0] = VOID
    torch.manual_seed(0)
    both = nn.ModuleList(detector((2, 0), "group", 3, width=4) for _ in range(2)).double()
    method = Dynamic()

    def terms(*given: Tensor) -> tuple[Tensor, ...]:
        measures = method.losses(both, given[:2], given[2:], seed, advised, tags)
        assert measures["kept"].any()
        combined = method.combine(measures)
        return combined["segmentation"], combined["difference"]

    given = [x.requires_grad_() for x in (*logits, *seen)]
    found = [torch.autograd.grad(t, given, allow_unused=True) for t in terms(*given)]
    reached = [[slope is not None and bool(slope.any()) for slope in of] for of in found]
    assert reached == [[True, True, False, False], [False, False, True, True]]
    assert torch.autograd.gradcheck(terms, given)


# --- what can be foreseen -------------------------------------------------------------------------


def trained(k: Tensor, a: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """d(K) and d(A) of the last pair, by a small detector that learned from the others."""
    torch.manual_seed(0)
    own = detector((features.shape[1], 0), norm="group", classes=2, width=16)
    optimiser = torch.optim.Adam(own.parameters(), lr=1e-2)
    for _ in range(60):
        logits = own(features[:-1], [k[:-1], a[:-1]])
        kept = torch.ones(len(k) - 1, dtype=torch.bool)
        losses = [of_images(Static(), x, (k[:-1], a[:-1]), kept) for x in logits]
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
    with torch.no_grad():
        return tuple(x.sigmoid() for x in own(features[-1:], [k[-1:], a[-1:]]))


def scenes(count: int, side: int = 16) -> tuple[Tensor, Tensor]:
    """Dark stripes (B, 1, h, w), and a mask of a square that lies across their edges."""
    g = torch.Generator().manual_seed(0)
    dark = torch.zeros(count, 1, side, side)
    mask = torch.zeros(count, side, side, dtype=torch.uint8)
    for i in range(count):
        x, y = torch.randint(2, 8, (2,), generator=g).tolist()
        dark[i, 0, :, x : x + 6] = 1
        mask[i, y : y + 6, x : x + 3] = 1
    return dark, mask


def test_a_systematic_change_is_taken_and_noise_is_not():
    """A that fills the dark part beside K can be foreseen from K; salt on K cannot."""
    dark, k = scenes(17)
    grown = torch.maximum(k, (k.amax(dim=2, keepdim=True) * dark[:, 0].to(torch.uint8)))
    d_k, d_a = trained(k, grown, dark)
    flags = torch.zeros(1, 2, dtype=torch.bool)
    differs = k[-1:] != grown[-1:]
    out = merge(k[-1:], grown[-1:], d_k, d_a, flags, **BIAS)
    assert differs.any()
    assert (out == grown[-1:])[differs].float().mean() > 0.9
    g = torch.Generator().manual_seed(1)
    salt = (torch.rand(k.shape, generator=g) < 0.08).to(torch.uint8)
    noisy = k ^ salt
    d_k, d_a = trained(k, noisy, dark)
    differs = k[-1:] != noisy[-1:]
    out = merge(k[-1:], noisy[-1:], d_k, d_a, flags, **BIAS)
    assert (d_a - d_k)[:, 0][differs].mean() > 0.2
    assert (out == k[-1:])[differs].float().mean() > (out == noisy[-1:])[differs].float().mean()


# --- the network and its steps --------------------------------------------------------------------


class TinyBackbone(nn.Module):
    """Three convolutions: a tap of stride 8, and features."""

    stride, tap_channels, out_channels = 8, (6, 8, 10), 10

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 8, padding=1), nn.Conv2d(6, 8, 1)
        self.c = nn.Conv2d(8, 10, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.taps(images)[-1]

    def taps(self, images: Tensor) -> tuple[Tensor, ...]:
        a = self.a(images).relu()
        b = self.b(a).relu()
        return a, b, self.c(b).relu()

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5


def tiny(method: Static, classes: int = 3) -> DifferenceNetwork:
    torch.manual_seed(0)
    return method.fitted(8).build(TinyBackbone(), classes)


def batch(maps: int, count: int = 4, side: int = 32) -> Batch:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count, maps, 4, 4), generator=g).float()
    labels = torch.nn.functional.interpolate(labels, size=(side, side)).to(torch.uint8)
    labels[:, :, :4] = VOID
    tags = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])[:count].bool()
    return Batch(
        images=torch.rand(count, 3, side, side, generator=g) - 0.5, tags=tags, labels=labels
    )


@pytest.mark.parametrize("method", [Static(), Dynamic()])
def test_neither_loss_reaches_the_others_weights(method):
    network = tiny(method)
    measures = method.measure(network, batch(1 if method.heads == 2 else 2))
    terms = method.combine(measures)
    named = dict(network.named_parameters())
    for term in ("segmentation", "difference"):
        slopes = torch.autograd.grad(
            terms[term], list(named.values()), retain_graph=True, allow_unused=True
        )
        reached = {
            n for n, slope in zip(named, slopes, strict=True) if slope is not None and slope.any()
        }
        of_detectors = {name for name in reached if name.startswith("detectors.")}
        assert reached
        assert of_detectors == (reached if term == "difference" else set())


@pytest.mark.parametrize("method", [Static(), Dynamic()])
def test_parts_have_the_loss_of_the_whole(method):
    whole, network = batch(1 if method.heads == 2 else 2), tiny(method)
    schedule = Schedule(1, 4, lr=1e-3, head_lr=1e-2, weight_decay=0.0, warmup_steps=0)
    found = []
    for compute in (PLAIN, Compute(parts=2)):
        network.load_state_dict(tiny(method).state_dict())
        optimiser = make_optimiser(network, schedule)
        step = Stepper(network, optimiser, Objective(method.measure, method.combine), compute)
        found.append(step.step(whole))
    for name, value in found[0].items():
        # Sums of some thousand pixels in another order.
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_a_step_of_resnet38d():
    """64 pixels, one step of the dynamic stage: all losses are finite, both heads learn."""
    method = Dynamic().fitted(16)
    torch.manual_seed(0)
    network = method.build(one_step.resnet38d(), 3)
    terms, moved = one_step.step(network, method, batch(1, 2, one_step.SIDE))
    assert all(value.isfinite() for value in terms.values())
    assert {name.split(".")[0] for name in moved} == {"head", "others", "detectors"}


def test_maps_are_averaged_or_enlarged():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert at_size(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert at_size(maps, (8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("alignment", ["corrected", "released"])
def test_released_maps_of_mirrored_images_are_never_mirrored_back(alignment):
    network, g = tiny(Static()).eval(), torch.Generator().manual_seed(3)
    image = torch.randint(256, (32, 32, 3), generator=g, dtype=torch.uint8).numpy()
    k, a = (torch.randint(3, (1, 32, 32), generator=g, dtype=torch.uint8) for _ in range(2))
    spec = MergeSpec(None, 0.1, 0.1, alignment=alignment)
    plain = MergeSpec(None, 0.1, 0.1)
    same = [
        torch.equal(
            differences(network, image, k, a, spec, index)[0],
            differences(network, image, k, a, plain, index)[0],
        )
        for index in range(4)
    ]
    assert all(same) == (alignment == "corrected")


def test_the_released_order_exchanges_the_maps():
    network, image = tiny(Static()).eval(), np.zeros((32, 32, 3), dtype=np.uint8)
    k, a = (torch.full((1, 32, 32), n, dtype=torch.uint8) for n in (0, 1))
    kinds = [MergeSpec(None, 0.1, 0.1, order=order) for order in ("corrected", "released")]
    first, second = (differences(network, image, k, a, spec, 0) for spec in kinds)
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[1], second[0])
    squashed = differences(
        network, image[:16], k[:, :16], a[:, :16], MergeSpec(None, 0.1, 0.1, square=True), 0
    )
    assert squashed[0].shape == (1, 1, 16, 32)


# --- the values and the rows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Static(norm="batch"), "norm must be one of group, fixed, got 'batch'"),
        (lambda: Static(empty="one"), "empty must be one of zero, nan"),
        (lambda: Static(momentum=0.9), "momentum must be one of corrected, released"),
        (lambda: Dynamic(iterations=-1), "iterations must be a whole number"),
        (lambda: Ssdd(Psa(walk=True), order="wrong"), "order must be one of corrected, released"),
        (lambda: Ssdd(Psa(walk=True), square=1), "square must be one of"),
        (lambda: Ssdd(Psa(crf=True)), "teacher must be a walk without a CRF"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_schedule_has_the_courses_of_the_stage():
    plain = SMOKE.segmentation.schedule
    assert Static().scheduled(plain).epochs == plain.epochs
    assert Dynamic().scheduled(plain).epochs == 2 * plain.epochs
    assert Dynamic(momentum="released").scheduled(plain).momentum == 0.0
    first, last = (
        Dynamic().scheduled(plain).factor(step, 100) for step in (plain.warmup_steps, 99)
    )
    assert first > last > 0


pytestmark = pytest.mark.usefixtures("stored")


def test_rows_of_the_static_stage():
    static, advice, released = (made(f"ssdd_{name}") for name in ("pseudo", "advice", "released"))
    assert len({row["detector"].key for row in (static, advice, released)}) == 1
    assert len({row["labels"].key for row in (static, advice, released)}) == 3
    assert 0 < static["labels"].summary["differs"] < 1
    assert 0 <= static["labels"].summary["taken"] <= 1
    assert advice["labels"].summary["taken"] == 1  # a bias of 3 is beyond every difference
    assert static["evaluation"].summary["miou"] > 0
    assert run.numbers(advice)["taken"] == 1


def test_the_row_of_the_dynamic_stage():
    static, dynamic = made("ssdd_pseudo"), made("ssdd_segmentation")
    assert static["labels"].key == dynamic["teacher"].key
    assert dynamic["segmenter"].record["inputs"]["warm_start"] == static["detector"].key
    log = pd.read_csv(dynamic["segmenter"].folder / "log.csv")
    assert {"segmentation", "difference", "differs", "seed_changed"} <= set(log.columns)
    assert len(log) == 2 * TINY.segmentation.schedule.epochs
    assert dynamic["evaluation"].summary["miou"] > 0
    logged = log.iloc[-1][["differs", "seed_changed"]]
    assert logged.to_dict().items() <= run.numbers(dynamic).items()


def test_a_start_that_the_refiner_does_not_make_is_refused():
    row = replace(catalogue.get("rivals").row("pmm_segment"), segmenter=Dynamic())
    message = "row pmm_segment: its segmenter starts from 'detector', which its refiner does not"
    with pytest.raises(ValueError, match=message):
        pipeline.laid_out(TINY, row, 0)

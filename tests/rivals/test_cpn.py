"""CPN: numbers of the original, what is hidden, regions, limit cases of its losses, and the row.

A tiny network stands in for the backbone: three convolutions, and one 1x1 convolution to the CAM.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from golden_cases import (
    FORWARD,
    ON_MAPS,
    Case,
    check_parts,
    check_steps,
    refined_name,
    tiny_refined,
)
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.paper import losses
from aeft_lib.paper.erasing import max_norm
from aeft_lib.parts.map_losses import only_maxima, resized
from aeft_lib.parts.pixel_correlation import correlated, stretched_maps
from aeft_lib.parts.refined import RefinedClassifier, RefinedMaps
from aeft_lib.rivals import cpn
from aeft_lib.rivals.cpn import (
    REFERENCE,
    Cpn,
    RegionCorrelation,
    attention,
    complementarity,
    draw_hidden,
    grid_cells,
    halved,
    lowest_of,
    regions,
    tagged,
    visible_share,
)
from aeft_lib.rivals.cpn_pixels import PixelsAlone
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import LAPTOP, SMOKE, VOC

FLOAT32 = torch.finfo(torch.float32).eps
B, K = 4, 5


def tiny(method: Cpn, classes: int) -> RefinedClassifier:
    torch.manual_seed(0)
    refinement = RegionCorrelation(
        tap_channels=(6, 8), keys=method.prcm_keys, scale=method.prcm_scale
    )
    # The original's widths here are no powers of two.
    for name, sizes in (("f8_3", (6, 5)), ("f8_4", (8, 7)), ("f9", (15, 9)), ("f10", (15, 9))):
        setattr(refinement, name, nn.Conv2d(*sizes, 1, bias=False))
    return tiny_refined(refinement, classes, unused=int(method.background_channel))


@dataclass(frozen=True)
class Shown(Cpn):
    """With given visible pixels in place of a draw."""

    def _visible(self, noise: Tensor, size: tuple[int, int]) -> Tensor:
        return VISIBLE[0]


VISIBLE: list[Tensor] = []


def shown(method: Cpn, visible: Tensor) -> Shown:
    VISIBLE[:] = [visible]
    return Shown(**vars(method))


def golden_refinement(
    case: Case, keys: str = "reinterpreted", scale: str = "maps"
) -> RegionCorrelation:
    layer = tiny(replace(REFERENCE, prcm_keys=keys, prcm_scale=scale), 20).refinement
    layer.f9.weight.data = case["prcm/w_f9"].clone()
    layer.f10.weight.data = case["prcm/w_f10"].clone()
    return layer


@pytest.fixture
def case(golden_rivals) -> Case:
    return Case(golden_rivals("cpn"))


# --- the original's numbers -----------------------------------------------------------------------


def test_golden_maxima_over_all_channels(case):
    assert torch.equal(only_maxima(case["max_onehot/x"]), case["max_onehot/out"])


def test_golden_refinement_and_its_gradients(case, assert_near):
    layer, stack = golden_refinement(case), case["prcm/f"].clone().requires_grad_()
    maps = case["prcm/cam"]
    out = layer.correlated(maps, stack)
    assert_near(regions(maps, stack)[..., None], case["prcm/regions"], FORWARD, "regions")
    assert_near(correlated(maps, layer.f9(stack)), case["prcm/pcm"], FORWARD, "PCM")
    keys = layer.f10(case["prcm/regions"]).relu()[..., 0]
    p = attention(layer.f9(stack).relu(), keys, layout="reinterpreted", scale="maps")
    assert_near(p, case["prcm/p"], FORWARD, "P")
    assert_near(out, case["prcm/out"], FORWARD, "r")
    given = (stack, layer.f9.weight, layer.f10.weight)
    gradients = torch.autograd.grad((out * case["prcm/R"]).sum(), given)
    for ours, name in zip(gradients, ("f", "w_f9", "w_f10"), strict=True):
        assert_near(ours, case[f"prcm/grad_{name}"], ON_MAPS, f"gradient in {name}")


@pytest.mark.parametrize("corrected", [("transposed", "maps"), ("reinterpreted", "features")])
def test_golden_refinement_has_both_quirks(case, corrected):
    out = golden_refinement(case, *corrected).correlated(case["prcm/cam"], case["prcm/f"])
    assert (out - case["prcm/out"]).abs().max() > 10 * FORWARD * case["prcm/out"].abs().max()


@pytest.mark.parametrize("draw", ["0", "1"])
def test_golden_hiding(case, assert_near, draw):
    visible = ~torch.isin(case["hide/labels"], case[f"hide/{draw}/drawn"])
    assert torch.equal(visible, case[f"hide/{draw}/visible"])
    pair = halved(case["hide/img"][None], visible[None])
    for half, name in zip(pair, ("img1", "img2"), strict=True):
        assert torch.equal(half[0], case[f"hide/{draw}/{name}"])
    share = visible_share(visible[None])
    assert_near(share[0], case[f"hide/{draw}/rate1"], FORWARD, "w1")
    assert_near(1 - share[0], case[f"hide/{draw}/rate2"], FORWARD, "w2")
    assert len(case[f"hide/{draw}/drawn"]) == (case["hide/labels"].max() + 1) // 2


def test_golden_forward(case, assert_near):
    network = case.fill(tiny(REFERENCE, 20), refined_name)
    images = case["forward/img"]
    with torch.no_grad():
        output = network(images)
        refined = REFERENCE.refined(network, output, None)
    size = images.shape[-2:]
    assert_near(resized(output.cam, size), case["forward/cam"][:, 1:], FORWARD, "C")
    assert_near(resized(refined, size), case["forward/cam_rv"], FORWARD, "R")


def test_golden_losses_and_their_gradients(case, assert_near):
    tags, names = case["losses/label"], ("", "1", "2")
    views = [
        tuple(case[f"losses/{kind}{i}"].clone().requires_grad_() for kind in ("cam", "rv"))
        for i in names
    ]
    classified = [losses.classification(c[:, 1:].mean(dim=(2, 3)), tags) for c, _ in views]
    lowest = [lowest_of(r, tags).mean() for _, r in views]
    for i in (1, 2):
        assert_near(classified[i], case[f"losses/loss_cls{i}"], FORWARD, "BCE of the pair")
    for ours, i in zip(lowest, names, strict=True):
        assert_near(ours, case[f"losses/loss_rvmin{i}"], FORWARD, "L_min")
    cls = sum(classified) / 3 + sum(lowest) / 3
    assert_near(cls, case["losses/loss_cls"], FORWARD, "L_cls")
    terms = complementarity([(c[:, 1:], r) for c, r in views], case["losses/rate1"], tags)
    means = {name: term.mean() for name, term in terms.items()}
    for ours, theirs in (
        ("tcp", "loss_tcp"),
        ("tcp_refined", "loss_tcp_improved"),
        ("cpcr_1", "loss_cpcr1_ohem"),
        ("cpcr_2", "loss_cpcr2_ohem"),
    ):
        assert_near(means[ours], case[f"losses/{theirs}"], FORWARD, theirs)
    assert_near(means["tcp"] + means["tcp_refined"], case["losses/loss_tcp_all"], FORWARD, "tcp")
    assert_near(means["cpcr_1"] + means["cpcr_2"], case["losses/loss_cpcr"], FORWARD, "cpcr")
    loss = cls + sum(means.values())
    assert_near(loss, case["losses/loss"], FORWARD, "L")
    leaves = {
        f"{kind}{i}": leaf
        for pair, i in zip(views, names, strict=True)
        for kind, leaf in zip(("cam", "rv"), pair, strict=True)
    }
    gradients = torch.autograd.grad(loss, tuple(leaves.values()))
    for name, ours in zip(leaves, gradients, strict=True):
        assert_near(ours, case[f"losses/grad_{name}"], ON_MAPS, f"gradient in {name}")


def test_golden_steps(case, assert_near):
    method = shown(REFERENCE, case["step/visible"][:, 0].bool())
    assert_near(visible_share(VISIBLE[0]), case["step/rate1"], FORWARD, "w1")
    network = case.fill(tiny(REFERENCE, 20), refined_name)
    losses = {
        "loss_cls": lambda terms: terms["classification"] + terms["l_min"],
        "loss_tcp_all": lambda terms: terms["complementary"],
        "loss_cpcr": lambda terms: terms["refinement"],
        "loss": lambda terms: sum(terms.values()) - terms["complementarity_error"],
    }
    batch = Batch(images=case["step/img"], tags=case["step/label"], noise=torch.zeros(2, 2))
    options = {"losses": losses, "our_name": refined_name, "assert_near": assert_near}
    check_steps(case, network, method, batch, **options)


# --- what is hidden -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [((96, 96), 3), ((256, 256), 8), ((100, 70), 7)])
def test_cells_cover_the_image_in_nearly_equal_parts(size, grid):
    cells = grid_cells(size, grid)
    numbers, pixels = cells.unique(return_counts=True)
    assert cells.shape == size
    assert numbers.tolist() == list(range(1, grid**2 + 1))
    smallest, largest = ((side // grid, -(-side // grid)) for side in size)
    assert pixels.min() >= smallest[0] * largest[0]
    assert pixels.max() <= smallest[1] * largest[1]


def test_half_is_hidden_and_each_superpixel_once():
    for count in (4, 9, 64):
        hidden = draw_hidden(count, 3, "half")
        assert len(hidden.unique()) == len(hidden) == (count + 1) // 2
        assert 1 <= hidden.min() <= hidden.max() <= count


def test_the_releases_draw_hides_about_39_percent():
    """w1 = (1 - 1/(L+1))^floor((L+1)/2) on average: 0.607 of 300 superpixels."""
    count, draws = 300, 200
    shares = [
        1 - len(set(draw_hidden(count, seed, "with_replacement").tolist()) - {0}) / count
        for seed in range(draws)
    ]
    expected = (1 - 1 / (count + 1)) ** ((count + 1) // 2)
    # A share's variance is at most a coin's for each superpixel; four standard errors of the mean.
    assert abs(np.mean(shares) - expected) < 4 * 0.5 / (count * draws) ** 0.5


def test_halves_sum_to_the_image_exactly():
    images = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    visible = Cpn(grid=4)._visible(torch.tensor([0.1, 0.5, 0.9]), (8, 12))
    first, second = halved(images, visible)
    assert torch.equal(first + second, images)
    assert not (first * second).any()
    assert visible_share(visible).tolist() == [0.5, 0.5, 0.5]
    assert not torch.equal(visible[0], visible[1])


def test_an_image_smaller_than_its_grid_has_a_superpixel_a_pixel():
    """Superpixels without a pixel may be hidden too, which shows in the shares alone."""
    cells = grid_cells((3, 5), 17)
    assert len(cells.unique()) == 15
    images = torch.randn(1, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    visible = Cpn()._visible(torch.tensor([0.4]), (3, 5))
    first, second = halved(images, visible)
    assert torch.equal(first + second, images)
    assert 0 < visible_share(visible).item() < 1


def test_one_pixel_is_all_in_one_half_and_its_losses_are_finite():
    visible = Cpn()._visible(torch.tensor([0.4]), (1, 1))
    share = visible_share(visible)
    assert share.item() in (0, 1)
    maps = [(c[:1, :, :1, :1], r[:1, :, :1, :1]) for c, r in maps_of()]
    terms = complementarity(maps, share, TAGS[:1])
    assert all(term.isfinite().all() for term in terms.values())


def test_a_draw_is_a_function_of_the_samples_own_noise():
    method, noise = Cpn(grid=4), torch.tensor([0.3, 0.7, 0.3])
    visible = method._visible(noise, (8, 8))
    assert torch.equal(visible[0], visible[2])
    assert torch.equal(method._visible(noise[1:], (8, 8)), visible[1:])


def test_draws_of_a_few_hidings_repeat():
    noise = torch.rand(40, generator=torch.Generator().manual_seed(0))
    masks = replace(Cpn(grid=8), hidings=3)._visible(noise, (16, 16)).flatten(1)
    assert len(masks.unique(dim=0)) == 3


def test_the_grid_fits_the_map():
    grids = {p.name: Cpn().fitted(p.map_side).grid for p in (SMOKE, LAPTOP, VOC)}
    assert grids == {"smoke": 3, "laptop": 8, "voc": 17}
    assert Cpn(grid=2).fitted(16).grid == 2


# --- regions --------------------------------------------------------------------------------------


def test_attention_of_a_region_sums_to_one_and_is_flat_without_a_key():
    queries = torch.rand(2, 6, 3, 4, dtype=torch.float64)
    keys = torch.rand(2, 6, 5, dtype=torch.float64)
    for layout in ("transposed", "reinterpreted"):
        for scale in ("features", "maps"):
            p = attention(queries, keys, layout=layout, scale=scale)
            # 12 numbers are summed.
            torch.testing.assert_close(
                p.sum(dim=(2, 3)), torch.ones(2, 5).double(), rtol=1e-14, atol=0
            )
    flat = attention(queries, torch.zeros_like(keys), layout="transposed", scale="features")
    assert (flat == 1 / 12).all()


def test_without_keys_the_refinement_is_pixel_correlation_and_an_even_share():
    layer = tiny(Cpn(), K).refinement.double()
    layer.f10.weight.data.zero_()
    maps, stack = torch.rand(2, K + 1, 3, 4).double(), torch.randn(2, 15, 3, 4).double()
    expected = correlated(maps, layer.f9(stack)) + maps / 12
    torch.testing.assert_close(layer.correlated(maps, stack), expected, rtol=1e-14, atol=0)


def test_transposed_keys_follow_their_region():
    """Another order of the maps is another order of P; the release's layout mixes them up."""
    queries, keys = torch.rand(1, 6, 2, 2).double(), torch.rand(1, 6, 3).double()
    order = torch.tensor([2, 0, 1])
    for layout, same in (("transposed", True), ("reinterpreted", False)):
        p, turned = (
            attention(queries, k, layout=layout, scale="maps") for k in (keys, keys[..., order])
        )
        assert torch.allclose(p[:, order], turned, rtol=1e-12) == same


# --- losses ---------------------------------------------------------------------------------------


def maps_of(views: int = 3, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, K, 3, 4), (2, K + 1, 3, 4))
    return [
        tuple(torch.randn(shape, generator=generator, dtype=dtype) + 0.3 for shape in shapes)
        for _ in range(views)
    ]


TAGS = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]])
SHARE = torch.tensor([0.25, 0.5], dtype=torch.float64)


def test_hand_worked_maxima():
    z = torch.tensor([[0.2, -0.1, 0.2], [-0.1, 0.0, -0.3]])
    kept = only_maxima(z[..., None, None])[..., 0, 0]
    assert torch.equal(kept, torch.tensor([[0.2, 0.0, 0.2], [0.0, 0.0, 0.0]]))


def test_nothing_hidden_leaves_nothing_to_learn_from_the_first_term():
    """w1 = 1, and x1 = x: c1 = c, and c2 = 0."""
    views = maps_of()
    views[1] = views[0]
    terms = complementarity(views, torch.ones(2), TAGS)
    assert not terms["tcp"].any()
    assert not terms["tcp_refined"].any()


def test_hand_worked_sum_of_the_pair():
    """c = (1, 0, ...), c1 = .25 (1, 0, ...), c2 = .75 (0, 1, ...): mean |c1 + c2 - c| = .75."""
    whole = torch.tensor([1.0, 0.0]).double().repeat(4).reshape(1, 1, 2, 4)
    other = whole.flip(-1)
    both = [(m, torch.cat([m, m], dim=1)) for m in (whole, whole, other)]
    terms = complementarity(both, torch.tensor([0.25]), torch.tensor([[1]]))
    # norm(1) is 1 - 1e-5 over 1 + 1e-5, so everything is smaller by 2e-5.
    assert terms["tcp"].item() == pytest.approx(0.75, rel=2.1e-5)
    assert terms["tcp_refined"].item() == pytest.approx(0.75, rel=2.1e-5)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_of_a_linear_cam_the_pair_covers_all_that_the_whole_does(threshold):
    """Each half is over its own peak, which is no higher: the half without the peak is raised.

    Of a 1x1 convolution the halves' maps are parts of the whole's, and w1 = w2 = 1/2.
    """
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    weight = torch.rand(K, 3, 1, 1, generator=generator, dtype=torch.float64)
    visible = Cpn(grid=4)._visible(torch.rand(3, generator=generator), (16, 16))
    share, tags = visible_share(visible).double(), torch.ones(3, K)
    assert share.tolist() == [0.5, 0.5, 0.5]
    views = zip((images, *halved(images, visible)), (torch.ones(3), share, 1 - share), strict=True)
    c, c_1, c_2 = (tagged(F.conv2d(view, weight), tags, w) for view, w in views)
    union = 2 * (c_1 + c_2)  # the peak of a half is its share
    # `max_norm` has its 1e-5 twice, here over peaks of more than 1/2.
    whole, pair = c > threshold + 1e-4, union > threshold - 1e-4
    assert not (whole & ~pair).any()
    assert pair.sum() > whole.sum()


def test_only_the_whole_scene_learns_from_the_first_term_and_all_from_the_second():
    views = [tuple(m.requires_grad_() for m in pair) for pair in maps_of()]
    terms = complementarity(views, SHARE, TAGS)
    leaves = [m for pair in views for m in pair]

    def reached(name: str) -> list[bool]:
        options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        return [bool(g.any()) for g in torch.autograd.grad(terms[name].sum(), leaves, **options)]

    assert reached("tcp") == [True, False, False, False, False, False]
    assert reached("tcp_refined") == [False, True, False, True, False, True]
    assert reached("cpcr_1") == [False] * 5 + [True]
    assert reached("cpcr_2") == [False] * 3 + [True] + [False] * 2


@pytest.mark.parametrize("name", ["tcp", "tcp_refined", "cpcr_1", "cpcr_2"])
def test_gradients_of_every_term(name):
    """float64, away from ties: values are random."""
    views = [tuple(m.requires_grad_() for m in pair) for pair in maps_of()]
    learns = {"tcp": [(0, 0)], "tcp_refined": [(0, 1), (1, 1), (2, 1)]}
    places = learns.get(name, [(2, 1)] if name == "cpcr_1" else [(1, 1)])

    def term(*leaves: Tensor) -> Tensor:
        given = [list(pair) for pair in views]
        for (view, kind), leaf in zip(places, leaves, strict=True):
            given[view][kind] = leaf
        return complementarity(given, SHARE, TAGS)[name]

    assert torch.autograd.gradcheck(term, tuple(views[v][k] for v, k in places))


@pytest.mark.parametrize("layout", ["transposed", "reinterpreted"])
def test_gradients_of_the_refinement(layout):
    layer = tiny(replace(Cpn(), prcm_keys=layout), 3).refinement.double()
    stack = torch.rand(1, 15, 2, 3, dtype=torch.float64, requires_grad=True)
    maps = torch.rand(1, 4, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: layer.correlated(maps, x), (stack,))


def test_a_tagged_class_that_never_fires_and_one_class_are_finite():
    views = [tuple(m.requires_grad_() for m in pair) for pair in maps_of()]
    views = [(torch.cat([-c[:, :1].abs(), c[:, 1:]], dim=1), r) for c, r in views]
    for count in (1, K):
        given = [(c[:, :count], r[:, : count + 1]) for c, r in views]
        terms = complementarity(given, SHARE, TAGS[:, :count])
        assert all(term.isfinite().all() for term in terms.values())
        gradient = torch.autograd.grad(sum(t.sum() for t in terms.values()), views[0][1])[0]
        assert gradient.isfinite().all()
        views = [tuple(m.detach().requires_grad_() for m in pair) for pair in views]


# --- steps ----------------------------------------------------------------------------------------


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(3)
    tags = torch.eye(K)[:B].int()
    tags[1:, 4] = 1
    images = torch.randn(B, 3, 24, 32, generator=generator).to(dtype)
    return Batch(images=images, tags=tags, noise=torch.rand(B, B, generator=generator))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("method", [Cpn(grid=3), replace(REFERENCE, grid=3)])
def test_parts_have_the_loss_and_the_gradient_of_the_whole(parts, method):
    check_parts(lambda: tiny(method, K).double(), method, batch(torch.float64), parts)


def test_without_its_losses_it_is_plain_classification_of_three_views():
    method = Cpn(grid=3, complementary=0.0, refinement=0.0)
    network = tiny(method, K)
    terms = method.combine(method.measure(network, batch()))
    gradients = torch.autograd.grad(
        sum(terms.values()),
        list(network.refinement.parameters()),
        materialize_grads=True,
        allow_unused=True,
    )
    assert not any(g.any() for g in gradients)
    visible = method._visible(batch().noise[:, 0], (24, 32))
    views = (batch().images, *halved(batch().images, visible))
    expected = sum(losses.classification(network(x).logits, batch().tags) for x in views) / 3
    # 60 logits, each a sum of some hundred products.
    assert terms["classification"].item() == pytest.approx(expected.item(), rel=1000 * FLOAT32)


def test_the_error_that_is_logged_is_of_tagged_classes():
    method, network = Cpn(grid=3), tiny(Cpn(), K)
    measures = method.measure(network, batch())
    logged = method.combine(measures)["complementarity_error"]
    assert not logged.requires_grad
    visible = method._visible(batch().noise[:, 0], (24, 32))
    share = visible_share(visible)[:, None, None, None]
    with torch.no_grad():
        c, c_1, c_2 = (
            max_norm(network(x).cam) for x in (batch().images, *halved(batch().images, visible))
        )
    errors = (share * c_1 + (1 - share) * c_2 - c).abs().mean(dim=(2, 3))
    expected = errors[batch().tags.bool()].mean()
    assert logged.item() == pytest.approx(expected.item(), rel=1000 * FLOAT32)


# --- the value ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", ["prcm_keys", "prcm_scale", "hide_draw", "logit_from", "compared_at", "l_min"]
)
def test_an_unknown_switch_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be one of .*, got 'no'"):
        Cpn(**{field: "no"})


@pytest.mark.parametrize(("field", "value"), [("grid", 1), ("grid", 2.0), ("hidings", -1)])
def test_wrong_counts_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number"):
        Cpn(**{field: value})


@pytest.mark.parametrize("field", ["complementary", "refinement"])
def test_wrong_weights_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be a finite number"):
        Cpn(**{field: -1.0})


def test_tags_keep_absent_classes_out_of_the_refinement():
    cam = torch.rand(1, 2, 2, 2)
    assert not stretched_maps(cam, torch.tensor([[1, 0]]))[0, 2].any()


def test_pixels_alone_are_read_as_if_regions_weighed_nothing(monkeypatch):
    method, network = Cpn(), tiny(Cpn(), K).eval()
    images, ids = [np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)], [1, 3]

    def read(reader: RefinedMaps) -> Tensor:
        with torch.inference_mode():
            return reader.from_images(method, network, images, [torch.tensor(ids)])[0].cam

    pixels = read(PixelsAlone((1.0,)))
    for weight, same in ((0.0, True), (1.0, False)):
        monkeypatch.setattr(cpn, "attention", lambda *_, w=weight, **__: torch.tensor(w))
        whole = read(RefinedMaps((1.0,)))
        assert torch.allclose(pixels, whole, rtol=0, atol=100 * FLOAT32) == same


# --- a whole row ----------------------------------------------------------------------------------


def test_the_row_runs_and_logs_its_mechanism(stored):
    study = catalogue.get("rivals")
    table = run.run_study(study, SMOKE, [0], rows=[study.row("cpn")], workers=1)
    assert 0 < table["miou"].item() < 100
    assert 0 < table["complementarity_error"].item() < 1
    made = pipeline.artefacts(SMOKE, study.row("cpn"), 0, run.store.lookup)
    log = pd.read_csv(made["classifier"].folder / "log.csv")
    assert {"classification", "complementary", "refinement"} <= set(log.columns)

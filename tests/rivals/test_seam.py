"""SEAM: numbers of the original, limit cases of its parts, what its losses reach, and whole rows.

A tiny network stands in for the backbone: three convolutions, and one 1x1 convolution to the CAM.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from golden_cases import (
    FORWARD,
    ON_MAPS,
    Case,
    TinyBackbone,
    check_parts,
    check_steps,
    refined_name,
    tiny_refined,
)
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.maps.evaluation import sweep
from aeft_lib.networks.tapped import Tapped
from aeft_lib.paper.erasing import max_norm
from aeft_lib.parts.map_losses import foreground_maxima, lowest_mean, resized
from aeft_lib.parts.pixel_correlation import PixelCorrelation, correlated, stretched_maps
from aeft_lib.parts.refined import RefinedClassifier, RefinedMaps, stretched
from aeft_lib.rivals.seam import (
    REFERENCE,
    Seam,
    consistency,
    lowest_of,
    present,
    smaller,
    tagged,
    target,
)
from aeft_lib.stages import store
from aeft_lib.stages.cache_features import load_features
from aeft_lib.stages.loading import load_network
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE

B, K = 4, 5


def tiny(classes: int, unused: int = 0) -> RefinedClassifier:
    torch.manual_seed(0)
    refinement = PixelCorrelation(tap_channels=(6, 8), widths=(5, 7))
    return tiny_refined(refinement, classes, unused)


def golden_network(case: Case) -> RefinedClassifier:
    network = tiny(20, unused=1)
    network.refinement.f9 = nn.Conv2d(15, 9, 1, bias=False)  # the original's width is free
    return case.fill(network, refined_name)


@pytest.fixture
def case(golden_rivals) -> Case:
    return Case(golden_rivals("seam"))


# --- the original's numbers -----------------------------------------------------------------------


def test_golden_norms_and_maxima(case, assert_near):
    assert_near(max_norm(case["max_norm/x"]), case["max_norm/out"], FORWARD, "norm")
    assert torch.equal(foreground_maxima(case["max_onehot/x"]), case["max_onehot/out"])


def test_golden_lowest_quarter(case, assert_near):
    maps = case["lmin/x"].requires_grad_()
    loss = lowest_mean(maps).mean()
    assert_near(loss, case["lmin/loss"], FORWARD, "L_min")
    assert_near(torch.autograd.grad(loss, maps)[0], case["lmin/grad"], ON_MAPS, "gradient")


def test_golden_correlation(case, assert_near):
    stack, weight = (case[f"pcm/{name}"].requires_grad_() for name in ("f", "w_f9"))
    out = correlated(case["pcm/cam"], F.conv2d(stack, weight))
    assert_near(out, case["pcm/out"], FORWARD, "r")
    gradients = torch.autograd.grad((out * case["pcm/R"]).sum(), (stack, weight))
    for ours, name in zip(gradients, ("f", "w_f9"), strict=True):
        assert_near(ours, case[f"pcm/grad_{name}"], ON_MAPS, f"gradient in {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_forward(case, assert_near, dtype):
    network, images = golden_network(case).to(dtype), case["forward/img"].to(dtype)
    output, size = network(images), images.shape[-2:]
    maps, stack = stretched_maps(output.cam), network.refinement.stack(output.taps)
    assert_near(resized(output.cam, size), case["forward/cam"][:, 1:], FORWARD, "C")
    assert_near(maps, case["forward/pcm_in_cam"], FORWARD, "m")
    assert_near(stack, case["forward/pcm_in_f"], FORWARD, "stack")
    refined = resized(network.refined(maps, output), size)
    assert_near(refined, case["forward/cam_rv"], FORWARD, "R")
    read = REFERENCE.cam(network, Batch(images=images))
    assert_near(resized(read, size), case["forward/cam_rv"][:, 1:], FORWARD, "what seeds read")


def given(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """C_1, R_1, C_2, R_2 as leaves."""
    names = ("cam1", "rv1", "cam2", "rv2")
    return [case[f"losses/{name}"].to(dtype).requires_grad_() for name in names]


def test_golden_targets(case, assert_near):
    c_1, r_1, c_2, r_2 = given(case)
    tags, size = case["losses/label"], c_2.shape[-2:]
    for number, c, r in ((1, c_1, r_1), (2, c_2, r_2)):
        o = target(tagged(max_norm(c[:, 1:]), tags, size))
        # Shrinking adds four products in float32: an ulp or two, not the choice of the maximum.
        assert torch.equal(o > 0, case[f"losses/onehot{number}"] > 0)
        assert_near(o, case[f"losses/onehot{number}"], FORWARD, f"o_{number}")
        small = resized(max_norm(r), size) * present(tags, r)[:, :, None, None]
        assert_near(small, case[f"losses/cam_rv{number}_small"], FORWARD, f"r_{number}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_losses_and_their_gradient(case, assert_near, dtype):
    c_1, r_1, c_2, r_2 = maps = given(case, dtype)
    tags = case["losses/label"]
    own = consistency((c_1[:, 1:], r_1), (c_2[:, 1:], r_2), tags)
    lowest = [lowest_of(r, tags) for r in (r_1, r_2)]
    measures = own | {
        "l_min": sum(lowest) / 2,
        "logits": c_1[:, 1:].mean(dim=(2, 3)),
        "logits_2": c_2[:, 1:].mean(dim=(2, 3)),
        "tags": tags,
    }
    terms = REFERENCE.combine(measures)
    expected = {
        "equivariance": case["losses/loss_er"],
        "refinement": case["losses/loss_ecr"],
        "l_min": (case["losses/loss_rvmin1"] + case["losses/loss_rvmin2"]) / 2,
        "classification": (case["losses/loss_cls1"] + case["losses/loss_cls2"]) / 2,
    }
    for name, value in expected.items():
        assert_near(terms[name], value, FORWARD, name)
    for number in (1, 2):
        assert_near(own[f"ecr_{number}"].mean(), case[f"losses/loss_ecr{number}"], FORWARD, "ecr")
        assert_near(lowest[number - 1].mean(), case[f"losses/loss_rvmin{number}"], FORWARD, "min")
    assert terms.keys() - expected.keys() == {"equivariance_error"}
    assert not terms["equivariance_error"].requires_grad
    total = sum(terms[name] for name in expected)
    assert_near(total, case["losses/loss"], FORWARD, "loss")
    gradients = torch.autograd.grad(total, maps)
    for ours, name in zip(gradients, ("cam1", "rv1", "cam2", "rv2"), strict=True):
        assert_near(ours, case[f"losses/grad_{name}"], ON_MAPS, f"gradient in {name}")


def test_golden_steps(case, assert_near):
    network = golden_network(case)
    losses = {
        "loss_cls": lambda terms: terms["classification"] + terms["l_min"],
        "loss_er": lambda terms: terms["equivariance"],
        "loss_ecr": lambda terms: terms["refinement"],
        "loss": lambda terms: sum(terms.values()) - terms["equivariance_error"],
    }
    batch = Batch(images=case["step/img"], tags=case["step/label"])
    options = {"losses": losses, "our_name": refined_name, "assert_near": assert_near}
    check_steps(case, network, REFERENCE, batch, **options)
    assert not network.head.weight.grad[0].any(), "nothing trains the background's channel"


def test_golden_merge_of_passes(case, assert_near):
    size, tags = case["infer/cam"].shape[-2:], case["infer/label"]
    ids = case["infer/channels"][1:] - 1
    total = 0
    for i in range(4):
        maps = F.interpolate(case[f"infer/map_{i}"], size=size, mode="bilinear")[0, 1:]
        maps = maps * tags[ids, None, None]
        total = total + (maps.flip(-1) if i % 2 else maps)
    assert torch.equal(ids, case["infer/class_ids"])
    merged = stretched(total.relu())
    assert_near(merged, case["infer/cam"], FORWARD, "merged")
    silent = case["infer/class_ids"].tolist().index(7)
    assert (merged[silent] == -1).all(), "the release's quirk"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda c, size: F.interpolate(max_norm(c), size, mode="bilinear"), id="align"),
        pytest.param(lambda c, size: max_norm(resized(c, size)), id="shrunk first"),
    ],
)
def test_golden_numbers_tell_wrong_orders_apart(case, wrong):
    c_1, _, c_2, _ = given(case)
    tags = case["losses/label"][:, :, None, None]
    shrunk = wrong(c_1[:, 1:], c_2.shape[-2:]) * tags
    er = (shrunk - max_norm(c_2[:, 1:]) * tags).abs().mean()
    assert abs(er / case["losses/loss_er"] - 1) > 10 * FORWARD


# --- the losses -----------------------------------------------------------------------------------


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def test_two_views_that_agree_have_no_equivariance_loss():
    """C_2 is the shrunken norm of C_1; its own norm moves it by the two 1e-5 of `max_norm`."""
    peak = random_maps(B, K, 8, 8).abs() + 0.1
    tags = torch.ones(B, K)
    c_1 = F.pad(peak, (1, 1, 1, 1))  # a border of 0 and shared corners: minimum 0 in both
    c_1[:, :, 0, 0] = 10.0
    c_2 = resized(max_norm(c_1), (4, 4))
    r = torch.rand(B, K + 1, 10, 10).double()
    er = consistency((c_1, r), (c_2, resized(r, (4, 4))), tags)["er"]
    assert er.max() < 3e-5
    assert consistency((c_1, r), (c_2.flip(-1), resized(r, (4, 4))), tags)["er"].min() > 1e-2


def test_targets_are_constants_and_maps_of_other_classes_do_not_count():
    c_1, c_2 = (random_maps(1, K, n, n, seed=n).requires_grad_() for n in (8, 4))
    r_1, r_2 = (random_maps(1, K + 1, n, n, seed=n).abs().requires_grad_() for n in (8, 4))
    tags = torch.tensor([[1, 0, 0, 1, 0]])
    own = consistency((c_1, r_1), (c_2, r_2), tags)
    absent = tags[0] == 0
    for r, name in ((r_1, "ecr_1"), (r_2, "ecr_2")):
        leaves = (c_1, c_2, r)
        *in_c, in_r = torch.autograd.grad(
            own[name].sum(), leaves, allow_unused=True, retain_graph=True
        )
        assert in_c == [None, None]
        assert not in_r[:, 1:][:, absent].any()
        assert in_r.any()
    for gradient in torch.autograd.grad(own["er"].sum(), (c_1, c_2)):
        assert not gradient[:, absent].any()
        assert gradient[:, ~absent].any()


def test_gradients_of_the_consistency():
    """Finite differences in float64: maps are random, so no two values tie."""
    tags = torch.tensor([[1, 0, 1]])
    maps = [random_maps(1, n, *size, seed=n + size[0]) for n, size in ((3, (6, 6)), (3, (4, 4)))]
    maps += [random_maps(1, 4, *size, seed=size[0]).abs() + 0.1 for size in ((6, 6), (4, 4))]
    leaves = [m.requires_grad_() for m in maps]

    def total(c_1: Tensor, c_2: Tensor, r_1: Tensor, r_2: Tensor) -> Tensor:
        return sum(consistency((c_1, r_1), (c_2, r_2), tags).values())

    def losses(c_1: Tensor, c_2: Tensor, r_1: Tensor, r_2: Tensor) -> tuple[Tensor, ...]:
        return consistency((c_1, r_1), (c_2, r_2), tags)["er"], total(c_1, c_2, r_1, r_2)

    # The targets are constants, so only the first loss is differentiated in C.
    assert torch.autograd.gradcheck(lambda a, b: losses(a, b, *leaves[2:])[0], leaves[:2])
    assert torch.autograd.gradcheck(
        lambda a, b: total(*[m.detach() for m in leaves[:2]], a, b), leaves[2:]
    )


def test_a_tagged_class_that_never_fires_is_finite_everywhere():
    c_1, c_2 = (-random_maps(2, K, n, n).abs() for n in (8, 4))
    r_1, r_2 = (torch.zeros(2, K + 1, n, n).double() for n in (8, 4))
    own = consistency((c_1, r_1), (c_2, r_2), torch.ones(2, K))
    assert own["er"].tolist() == [0.0, 0.0]
    assert all(value.isfinite().all() for value in own.values())
    maps = stretched_maps(c_1)
    assert (maps[:, 0] == 1).all()
    assert not maps[:, 1:].any()


# --- what trains what -----------------------------------------------------------------------------


def batch(dtype: torch.dtype = torch.float32, k: int = K) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(B, 3, 40, 48, generator=generator).to(dtype)
    tags = torch.arange(k).remainder(B) == torch.arange(B)[:, None]
    tags[:, 0] = True
    return Batch(images=images, tags=tags)


def gradients(method: Seam, term: str, network: RefinedClassifier) -> dict[str, float]:
    """The largest gradient of a term in every parameter."""
    terms = method.combine(method.measure(network, batch()))
    names, parameters = zip(*network.named_parameters(), strict=True)
    grads = torch.autograd.grad(terms[term], parameters, allow_unused=True, materialize_grads=True)
    return {name: grad.abs().max().item() for name, grad in zip(names, grads, strict=True)}


def refinement_layers(reached: dict[str, float]) -> set[str]:
    return {name for name, size in reached.items() if size > 0 and "refinement" in name}


@pytest.mark.parametrize("method", [Seam(), REFERENCE], ids=["corrected", "reference"])
def test_the_refinement_loss_trains_the_refinement_alone(method):
    network = tiny(K)
    reached = gradients(method, "refinement", network)
    assert len(refinement_layers(reached)) == 3
    assert {name for name, size in reached.items() if size > 0} == refinement_layers(reached)
    for term in ("equivariance", "classification"):
        reached = gradients(method, term, network)
        assert not refinement_layers(reached)
        assert any(reached.values())


def test_the_lowest_quarter_trains_the_refinement_alone():
    reached = gradients(REFERENCE, "l_min", tiny(K))
    assert len(refinement_layers(reached)) == 3
    assert {name for name, size in reached.items() if size > 0} == refinement_layers(reached)


def test_the_lowest_quarter_pulls_neither_the_background_nor_an_untagged_class():
    r = (random_maps(2, K + 1, 4, 4).abs() + 0.1).requires_grad_()
    tags = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]])
    (pull,) = torch.autograd.grad(lowest_of(r, tags).sum(), r)
    assert not pull[:, 0].any()
    assert torch.equal(pull[:, 1:].amax(dim=(2, 3)) > 0, tags.bool())
    assert (pull != 0).sum(dim=(1, 2, 3)).tolist() == [4, 4]  # a quarter of 16, a class each


def test_the_lowest_quarter_moves_the_best_threshold_and_not_the_best_miou():
    """A step down on L_min; an object of 13 pixels, and one of them is darker than the rest."""
    flat = torch.tensor([0.2, 0.3, 0.45, 0.25, *torch.linspace(0.52, 0.96, 12).tolist()])
    mask = np.array([0, 0, 0, *[1] * 13], dtype=np.uint8).reshape(4, 4)
    maps = flat.reshape(1, 1, 4, 4).requires_grad_()
    lowest = lowest_of(F.pad(maps, (0, 0, 0, 0, 1, 0)), torch.ones(1, 1)).sum()
    (pull,) = torch.autograd.grad(lowest, maps)
    after = maps.detach() - 0.6 * pull
    thresholds = [0.11, 0.21, 0.31, 0.41, 0.51, 0.61]
    before, then = (sweep([m.detach()[0]], [mask], thresholds) for m in (maps, after))
    assert then.miou.max() == before.miou.max() < 100
    assert (before.thresholds[before.best], then.thresholds[then.best]) == (0.51, 0.31)


def test_switched_off_it_is_classification_of_two_views():
    network, samples = tiny(K), batch()
    terms = Seam(equivariance=0.0, refinement=0.0).combine(Seam().measure(network, samples))
    small = smaller(samples.images.shape[-2:], 0.3, 4)
    both = [network(x).logits for x in (samples.images, resized(samples.images, small))]
    expected = sum(F.binary_cross_entropy_with_logits(x, samples.tags.float()) for x in both)
    assert terms["classification"].item() == pytest.approx(expected.item() / 2)
    assert terms["equivariance"] == terms["refinement"] == 0
    assert terms["equivariance_error"] > 0, "what is not trained is logged all the same"


def test_the_logged_error_is_of_tagged_classes():
    measures = {
        "logits": torch.zeros(2, 4),
        "logits_2": torch.zeros(2, 4),
        "tags": torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]),
        "er": torch.tensor([0.1, 0.2]),
        "ecr_1": torch.tensor([0.0, 0.2]),
        "ecr_2": torch.tensor([0.4, 0.0]),
    }
    terms = Seam(equivariance=2.0, refinement=0.5).combine(measures)
    assert terms["classification"].item() == pytest.approx(np.log(2))
    assert terms["equivariance"].item() == pytest.approx(0.3)
    assert terms["refinement"].item() == pytest.approx(0.15)
    assert terms["equivariance_error"].item() == pytest.approx(0.15 / 0.25)  # a quarter is tagged


def test_tags_keep_absent_classes_out_of_the_refinement():
    """A class without a tag changes R of the others in the release, not as corrected."""
    network, samples = tiny(K), batch()
    shown = samples._replace(tags=torch.eye(K)[:1].expand(B, -1))
    loud = torch.zeros(K)
    loud[1:] = 5.0

    def read(method: Seam, extra: Tensor) -> Tensor:
        output = network(samples.images)
        output = output._replace(cam=output.cam + extra[:, None, None])
        return method.refined(network, output, shown.tags)[:, :2]

    quiet, louder = (read(Seam(), extra) for extra in (torch.zeros(K), loud))
    assert torch.equal(quiet, louder)
    quiet, louder = (read(REFERENCE, extra) for extra in (torch.zeros(K), loud))
    assert not torch.equal(quiet, louder)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("method", [Seam(), REFERENCE], ids=["corrected", "reference"])
def test_parts_have_the_loss_and_the_gradient_of_the_whole(parts, method):
    check_parts(lambda: tiny(K).double(), method, batch(torch.float64), parts)


def test_one_class():
    network = tiny(1)
    terms = Seam().combine(Seam().measure(network, batch(k=1)))
    assert sum(terms.values()).isfinite()
    assert Seam().cam(network, batch(k=1)).shape[1] == 1


# --- the value ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_from", "mean"),
        ("compared_at", ""),
        ("l_min", 1),
        ("tags_in_refinement", "on"),
        ("background_channel", None),
        ("second_view", 0.0),
        ("second_view", 1.5),
        ("equivariance", -1.0),
        ("refinement", float("nan")),
    ],
)
def test_wrong_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must .*got {value!r}"):
        Seam(**{field: value})


@pytest.mark.parametrize(("side", "expected"), [(56, 0.3), (16, 0.5), (20, 0.4), (6, 0.5)])
def test_the_second_view_leaves_eight_cells_or_half(side, expected):
    assert Seam().fitted(side).second_view == pytest.approx(expected)
    assert Seam().fitted(side).passes == pytest.approx(1 + expected**2)


def test_the_second_view_is_rounded_down():
    assert smaller((448, 448), 0.3, 8) == (134, 134)


def test_an_image_smaller_than_a_cell_is_refused():
    samples = batch()._replace(images=torch.zeros(B, 3, 12, 40))
    with pytest.raises(ValueError, match=r"12 x 40 pixels at 0.3 .* smaller than a cell of 4"):
        Seam().measure(tiny(K), samples)


def test_the_release_has_a_channel_that_nothing_reads():
    backbone = Tapped(TinyBackbone((16, 16, 16)))
    network = REFERENCE.build(backbone, K)
    assert network.head.fc9.out_channels == K + 1
    assert network(torch.zeros(1, 3, 16, 16)).cam.shape[1] == K
    assert Seam().build(backbone, K).head.fc9.out_channels == K


# --- whole rows -----------------------------------------------------------------------------------

ROWS = ("gap", "seam", "seam_raw")


@pytest.fixture
def table(stored) -> pd.DataFrame:
    """Rows on the smoke profile, computed by whichever test comes first."""
    study = catalogue.get("rivals")
    return run.run_study(study, SMOKE, [0], rows=[study.row(n) for n in ROWS], workers=1)


def made(name: str) -> dict[str, store.Artefact]:
    return pipeline.artefacts(SMOKE, catalogue.get("rivals").row(name), 0, store.lookup)


def test_rows_run_and_have_their_mechanism(table):
    assert table["row"].tolist() == list(ROWS)
    assert table["miou"].between(0, 100, inclusive="neither").all()
    assert table["equivariance_error"].between(0, 1, inclusive="neither").all()
    log = pd.read_csv(made("seam")["classifier"].folder / "log.csv")
    terms = {"classification", "equivariance", "refinement", "equivariance_error"}
    assert len(log) == SMOKE.schedule.epochs
    assert terms <= set(log.columns)


def test_both_readings_are_of_one_training(table):
    seam, raw = made("seam"), made("seam_raw")
    assert seam["classifier"].key == raw["classifier"].key
    assert seam["seeds"].key != raw["seeds"].key
    # The tags' logits are the classifier's, whatever maps are read.
    by_row = table.set_index("row")["tag_map"]
    assert by_row["seam"] == by_row["seam_raw"]


def test_gap_at_the_same_cost_has_as_many_passes():
    rows = catalogue.get("rivals")
    gap, longer = (
        pipeline.classifiers(SMOKE, rows.row(name), 0, spy)["classifier"].spec
        for name in ("gap", "gap_as_seam")
    )
    passes = Seam().fitted(SMOKE.map_side).passes
    assert gap.schedule.epochs * passes <= longer.schedule.epochs < gap.schedule.epochs * passes + 1
    assert replace(longer, schedule=gap.schedule) == gap


def spy(stage, spec, inputs=None) -> store.Artefact:
    return store.Artefact(stage.__name__, "", None, {}, spec)


def test_the_reader_takes_cached_features_or_photos(table):
    """Photos of a scene's size at scale 1 are its cached features, up to half precision."""
    classifier = made("seam")["classifier"]
    network = load_network(classifier)
    scenes, reader = SMOKE.val.open(), RefinedMaps((1.0,))
    features = pipeline.features(SMOKE, "val", store.lookup, taps=True)
    maps = {1.0: load_features(features, slice(0, 2), names=["scale_1.0"])["scale_1.0"]}
    ids = [torch.from_numpy(scenes.tags(i)).nonzero()[:, 0] for i in range(2)]
    images = [scenes.image(i) for i in range(2)]
    with torch.inference_mode():
        method = classifier.spec.method
        cached = reader.from_features(method, network, maps, ids, images[0].shape[:2])
        direct = reader.from_images(method, network, images, ids)
    for one, other in zip(cached, direct, strict=True):
        assert one.cam.min() >= 0
        assert one.cam.max() <= 1
        # Half precision: 2^-11 of features, through two layers and a norm; not the choice of maxima.
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=2e-2)

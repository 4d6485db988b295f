"""PMM: numbers of the original, its hand-worked cases, the loss for noisy labels, and whole rows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from golden_cases import TinyBackbone
from torch import Tensor

from aeft_lib.data.collages import Collages
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.step import split
from aeft_lib.maps.labels import VOID
from aeft_lib.maps.seeds import Seed, read_seeds
from aeft_lib.networks.segmenter import LargeFov, segmentation_loss
from aeft_lib.refinement.dense_crf import DenseCRF, unary_of, with_background
from aeft_lib.rivals import pmm
from aeft_lib.rivals.pmm import (
    FLOOR,
    GAUSSIAN,
    POWER,
    PUS,
    Ppmg,
    Pus,
    pixel_loss,
    smooth,
    two_labels,
)
from aeft_lib.stages import store
from aeft_lib.stages.choose_background import choose_background
from aeft_lib.stages.label_seeds import LabelMakerSpec, label_seeds
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE

ON_MAPS = 1e-5  # forward values, losses, and gradients on given maps: tests/golden_rivals/README.md
CRF = 1e-3  # ten iterations, see tests/refinement/test_dense_crf.py
HALF = 2.0**-11  # a rounding to float16, relative
REFERENCE = Ppmg(zero_importance=True)
PROFILE = SMOKE


# --- the original's numbers -----------------------------------------------------------------------


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("pmm").items()}


def rows_of(masks: Tensor) -> Tensor:
    """The winner of every pixel of the original's masks (1 + K', H, W), 0 or 1 each."""
    assert torch.equal(masks.sum(dim=0), torch.ones_like(masks[0]))
    return masks.argmax(dim=0)


def test_golden_coefficients_of_variation(case, assert_near):
    _, cov = smooth(case["cam"])
    assert_near(cov, case["cov/f32"], ON_MAPS, "CoV")
    assert_near(smooth(case["cam"].double())[1], case["cov/f32"], ON_MAPS, "in float64")
    assert cov[case["cam"].amax(dim=(1, 2)) < FLOOR].tolist() == [0.0]


def test_golden_coefficients_in_half_precision(case, assert_near):
    """Mean, deviation, product and quotient are rounded once each, in both versions."""
    _, cov = smooth(case["cam"], half=True)
    assert cov.dtype == torch.float16
    assert_near(cov, case["cov/f16"], 2 * 4 * HALF, "CoV")


def test_golden_scores_of_the_two_label_crfs(case, assert_near):
    ours = two_labels(smooth(case["cam"])[0], POWER)
    assert_near(ours, case["ppmg/f32/scores"], ON_MAPS, "scores")


def test_golden_scores_in_half_precision(case):
    """u is off by a few roundings, the background by the power times that, and by its own.

    Both cut at the floor after the rounding: a pixel that it lifts over the floor jumps.
    """
    theirs = case["ppmg/f16/scores"]
    error = (two_labels(smooth(case["cam"], half=True)[0], POWER) - theirs).abs()
    assert error[:, 1].max() <= 4 * HALF
    assert error[:, 0].max() <= POWER * (4 + 1) * HALF
    single = two_labels(smooth(case["cam"])[0], POWER)
    assert (single - theirs).abs().max() > 0.5


@pytest.mark.parametrize("half", [False, True])
def test_golden_label_maps(case, half):
    """Posteriors, then the masks wherever these bounds decide the label."""
    image = case["image"].numpy()
    scores = two_labels(smooth(case["cam"], half=half)[0], POWER)
    ours = DenseCRF(image, gaussian=GAUSSIAN).infer(unary_of(scores))[:, 1]
    theirs = case["ppmg/f32/posterior_fg"]
    # In half precision u is off by a few roundings, and the background by 11 times that; the CRF
    # multiplies by up to 20, see tests/refinement/test_dense_crf.py.
    bound = 20 * 2 * POWER * HALF if half else CRF
    assert (ours - theirs).abs().max() <= bound
    kind = "f16" if half else "f32"
    assert torch.equal(
        case[f"ppmg/{kind}/keys"], torch.cat([torch.zeros(1), case["class_ids"] + 1])
    )
    decided = ((theirs - 0.5).abs() > bound).all(dim=0)
    assert decided.float().mean() > 0.8
    rows = Ppmg(zero_importance=True).decide(case["cam"], ours > 0.5)
    assert torch.equal(rows[decided], rows_of(case[f"ppmg/{kind}/masks"])[decided])


def test_golden_label_map_is_what_the_maker_returns(case):
    """The whole maker on the image, with the quirk: the same but where the CRF is at its edge."""
    seed = Seed(case["class_ids"], case["cam"])
    labels, numbers = REFERENCE.label(case["image"].numpy(), seed, {"middle": POWER})
    keys = case["ppmg/f32/keys"]
    theirs = keys[rows_of(case["ppmg/f32/masks"])].numpy()
    decided = ((case["ppmg/f32/posterior_fg"] - 0.5).abs() > CRF).all(dim=0).numpy()
    assert labels.dtype == np.uint8
    assert (labels == theirs)[decided].all()
    assert numbers["cov"] == pytest.approx(case["cov/f32"].mean().item(), rel=1e-4)


def test_golden_masks_from_given_posteriors(case):
    """Exact: no CRF.  Posteriors of exactly a half are not inside."""
    inside = case["given/posterior_fg"] > 0.5
    expected = rows_of(case["given/masks"])
    assert torch.equal(REFERENCE.decide(case["cam"], inside), expected)
    # The corrected rule differs, and just where a class has no CAM: those fall to the background.
    corrected = Ppmg().decide(case["cam"], inside)
    changed = corrected != expected
    assert changed.any()
    assert (expected[changed] == 0).all()
    assert (inside & (case["cam"] == 0)).any(dim=0)[changed].all()


def test_golden_keys_are_the_labels_of_the_maker(case, monkeypatch):
    """The whole maker on the given posteriors."""
    inside = case["given/posterior_fg"]
    crf = SimpleNamespace(infer=lambda *_, **__: torch.stack([1 - inside, inside], dim=1))
    monkeypatch.setattr(pmm, "DenseCRF", lambda *_, **__: crf)
    seed = Seed(case["class_ids"], case["cam"])
    labels, numbers = REFERENCE.label(case["image"].numpy(), seed, {"middle": POWER})
    expected = case["given/keys"][rows_of(case["given/masks"])]
    assert torch.equal(torch.from_numpy(labels).long(), expected)
    assert numbers["without_score"] > 0


def test_golden_masks_tell_the_proportion_from_the_score(case):
    inside = case["given/posterior_fg"] > 0.5
    plain = Ppmg(importance="score", zero_importance=True).decide(case["cam"], inside)
    assert not torch.equal(plain, rows_of(case["given/masks"]))


def test_golden_joint_crf(case):
    cam = case["cam"][: len(case["crf_alpha11/keys"]) - 1]
    crf = DenseCRF(case["image"].numpy(), gaussian=GAUSSIAN)
    ours = crf.infer(unary_of(with_background(cam, POWER)))
    assert (ours - case["crf_alpha11/posterior"]).abs().max() <= CRF


@pytest.mark.parametrize("level", ["low", "high"])
@pytest.mark.parametrize("kind", ["off", *PUS])
def test_golden_loss_and_gradient(case, assert_near, level, kind):
    options = {"beta": 0.0} if kind == "off" else {"kind": kind}
    logits = case[f"pus/{level}/logits"].requires_grad_()
    loss = loss_of(Pus(**options, void_in_mean=True), logits, case["pus/labels"])["segmentation"]
    loss.backward()
    assert_near(loss, case[f"pus/{level}/{kind}/loss"], ON_MAPS, "loss")
    assert_near(logits.grad, case[f"pus/{level}/{kind}/grad"], ON_MAPS, "gradient")


def test_golden_loss_tells_void_pixels_in_the_mean_apart(case):
    logits, labels = case["pus/low/logits"], case["pus/labels"]
    corrected = loss_of(Pus(), logits, labels)["segmentation"]
    assert abs(corrected - case["pus/low/clamp/loss"]) > 100 * ON_MAPS


# --- smoothing ------------------------------------------------------------------------------------


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_smoothing_by_hand():
    smoothed, cov = smooth(torch.tensor([[[0.1, 0.5, 0.9]]], dtype=torch.float64))
    assert cov.item() == pytest.approx(0.3 * (0.32 / 3) ** 0.5 / 0.5)
    exponent = 1 - cov.item()
    assert smoothed.flatten().tolist() == pytest.approx([x**exponent for x in (0.1, 0.5, 0.9)])


def test_a_constant_map_stays():
    maps = torch.full((2, 3, 4), 0.4, dtype=torch.float64)
    smoothed, cov = smooth(maps)
    # The mean of 12 equal values is off by 12 roundings at most, and so is the deviation.
    assert cov.abs().max() < 1e-14
    torch.testing.assert_close(smoothed, maps)


def test_smoothing_keeps_the_order_and_raises_all_that_counts():
    maps = random_maps(3, 8, 9)
    smoothed, cov = smooth(maps)
    assert ((cov > 0) & (cov < 1)).all()
    counts = (maps >= FLOOR) & (maps < 1)
    assert (smoothed[counts] > maps[counts]).all()
    assert (smoothed[maps < FLOOR] == 0).all()
    for old, new in zip(maps.flatten(1), smoothed.flatten(1), strict=True):
        kept = old >= FLOOR
        assert torch.equal(old[kept].argsort(), new[kept].argsort())


def test_without_its_factor_nothing_is_smoothed():
    maps = random_maps(2, 5, 6)
    smoothed, cov = smooth(maps, 0.0)
    assert torch.equal(smoothed, torch.where(maps >= FLOOR, maps, 0))
    assert not cov.any()


def test_a_map_that_never_rises_has_no_variation():
    smoothed, cov = smooth(torch.full((1, 4, 4), 0.03))
    assert not cov.any()
    assert not smoothed.any()
    assert all(t.isfinite().all() for t in smooth(torch.zeros(2, 3, 3), half=True))


# --- proportion -----------------------------------------------------------------------------------


def masses(*pairs: tuple[float, float]) -> Tensor:
    """Maps (K', 1, 2): the first pixel has the value, both together the mass."""
    return torch.tensor([[[value, mass - value]] for value, mass in pairs])


def test_the_smaller_object_gains():
    """0.5 of a mass of 9 is 0.05, 0.4 of 3 is 0.1; the CAM alone would give the other."""
    maps, inside = masses((0.5, 9.0), (0.4, 3.0)), torch.ones(2, 1, 2, dtype=torch.bool)
    assert Ppmg().decide(maps, inside)[0, 0] == 2
    assert Ppmg(importance="score").decide(maps, inside)[0, 0] == 1
    # What is outside of F has no mass.
    inside[0, 0, 1] = False
    assert Ppmg().decide(maps, inside)[0, 0] == 1


def test_where_no_class_is_there_is_background():
    maps = random_maps(3, 4, 5)
    for maker in (Ppmg(), REFERENCE):
        assert not maker.decide(maps, torch.zeros(3, 4, 5, dtype=torch.bool)).any()


def test_a_single_class_has_its_own_crf():
    image = (255 * random_maps(12, 16, 3)).to(torch.uint8).numpy()
    cam = F.interpolate(random_maps(1, 1, 3, 4).float(), size=(12, 16), mode="nearest")[0]
    scores = two_labels(smooth(cam)[0], 2.0)
    inside = DenseCRF(image, gaussian=GAUSSIAN).infer(unary_of(scores))[0, 1] > 0.5
    assert 0 < inside.float().mean() < 1
    labels, numbers = Ppmg().label(image, Seed(torch.tensor([4]), cam), {"middle": 2.0})
    # The same operations: equal unless a posterior is within rounding of a half.
    assert (labels == 5 * inside.numpy().astype(np.uint8)).mean() > 0.99
    assert (numbers["overlap"], numbers["outweighed"]) == (0.0, 0.0)


def test_a_class_that_never_fires_gets_no_pixel():
    image = np.full((8, 8, 3), 127, dtype=np.uint8)
    cam = torch.stack([torch.zeros(8, 8), torch.full((8, 8), 0.9)])
    labels, numbers = Ppmg().label(image, Seed(torch.tensor([0, 3]), cam), {"middle": 2.0})
    assert (labels == 4).all()
    assert numbers["overlap"] == 0.0


def test_pixels_without_score_are_the_quirk():
    maps = torch.tensor([[[0.8, 0.0, 0.0]]])
    inside = torch.tensor([[[True, True, False]]])
    assert REFERENCE.decide(maps, inside).tolist() == [[1, 0, 0]]
    assert Ppmg().decide(maps, inside).tolist() == [[1, 1, 0]]


def test_smoothing_takes_no_pixel_away():
    """u is v or more, so the foreground gains in both scores, and a CRF of two labels follows.

    CRFs are sums of non-negative weights, here to 1e-5, as their posteriors of golden scores are.
    """
    image = (255 * random_maps(24, 32, 3)).to(torch.uint8).numpy()
    cam = F.interpolate(random_maps(1, 3, 4, 5).float(), size=(24, 32), mode="bilinear")[0]
    crf = DenseCRF(image, gaussian=GAUSSIAN)
    with_it, without = (
        crf.infer(unary_of(two_labels(smooth(cam, factor)[0], 2.0)))[:, 1] for factor in (0.3, 0.0)
    )
    assert (with_it - without).min() > -1e-5
    assert (with_it - without).mean() > 0.01


def scene() -> tuple[np.ndarray, Tensor, np.ndarray]:
    """A large object and a small one beside it, the CAMs of both, and the mask.

    The large one's CAM spills over the small one, where it is the higher of the two.
    """
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[4:20, 2:22], mask[8:16, 22:28] = 1, 2
    image = np.array([[30, 30, 30], [220, 40, 40], [40, 60, 220]], dtype=np.uint8)[mask]
    large, small = torch.from_numpy(mask > 0), torch.from_numpy(mask == 2)
    return image, torch.stack([0.6 * large, 0.5 * small]), mask


def joint(image: np.ndarray, cam: Tensor, power: float) -> Tensor:
    """Posteriors of the harness's CRF of all classes."""
    return DenseCRF(image, gaussian=GAUSSIAN).infer(unary_of(with_background(cam, power)))


def test_it_finds_a_small_object_that_the_joint_crf_gives_to_a_large_one():
    image, cam, mask = scene()
    labels, numbers = Ppmg().label(image, Seed(torch.tensor([0, 1]), cam), {"middle": 4.0})
    assert (labels == mask).all()
    assert numbers["outweighed"] == (mask == 2).mean()
    posteriors = joint(image, cam, 4.0)
    assert (posteriors[1] - posteriors[2])[mask == 2].min() > 0.1


def test_of_one_class_it_is_the_joint_crf_whose_background_has_the_power():
    """A constant map is not smoothed, so both have the same scores; the same class, cut out."""
    image, cam, mask = scene()
    labels, _ = Ppmg().label(image, Seed(torch.tensor([0]), cam[:1]), {"middle": 4.0})
    posteriors = joint(image, cam[:1], 4.0)
    assert ((posteriors[1] - 0.5).abs() > CRF).all()
    assert torch.equal(torch.from_numpy(labels).bool(), posteriors[1] > 0.5)
    assert (labels == (mask > 0)).all()


# --- the loss for noisy labels --------------------------------------------------------------------


def loss_of(method: Pus, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Terms of a batch whose logits are given."""
    batch = Batch(images=logits.detach(), labels=labels)
    return method.combine(method.measure(lambda _: logits, batch))


def losses(*values: float) -> tuple[Tensor, Tensor]:
    """Logits (1, 2, 1, n) and labels of pixels that have these losses."""
    p = torch.tensor(values, dtype=torch.float64).neg().exp()
    logits = torch.stack([p.log(), (1 - p).log()])[None, :, None]
    return logits.requires_grad_(), torch.zeros(1, 1, len(values), dtype=torch.uint8)


def test_pus_by_hand():
    """A mean of 0.4 is below 0.5: the third pixel is capped, and teaches nothing."""
    logits, labels = losses(0.1, 0.2, 0.9)
    terms = loss_of(Pus(), logits, labels)
    terms["segmentation"].backward()
    assert terms["segmentation"].item() == pytest.approx((0.1 + 0.2 + 0.5) / 3, rel=1e-6)
    assert (terms["pus_acted"].item(), terms["pus_pixels"].item()) == (1.0, pytest.approx(1 / 3))
    assert (logits.grad.abs().amax(dim=(0, 1, 2)) > 0).tolist() == [True, True, False]


def test_pus_leaves_a_larger_mean_as_it_is():
    logits, labels = losses(0.1, 0.2, 1.3)
    terms = loss_of(Pus(), logits, labels)
    assert terms["segmentation"].item() == pytest.approx(1.6 / 3, rel=1e-6)
    assert (terms["pus_acted"].item(), terms["pus_pixels"].item()) == (0.0, 0.0)


def test_pus_acts_below_its_mean_and_not_at_it():
    logits, labels = losses(0.1, 0.2, 1.2)
    mean = loss_of(Pus(beta=0.0), logits, labels)["segmentation"].item()
    assert mean == pytest.approx(0.5, rel=1e-6)
    acted = [
        loss_of(Pus(beta=beta), logits, labels)["pus_acted"].item() for beta in (mean, 1.001 * mean)
    ]
    assert acted == [0.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "expected"), [("ignore", 0.3), ("pow", 0.1**0.5 + 0.2**0.5 + 0.9**0.5)]
)
def test_other_kinds_by_hand(kind, expected):
    logits, labels = losses(0.1, 0.2, 0.9)
    loss = loss_of(Pus(kind=kind), logits, labels)["segmentation"].item()
    assert loss == pytest.approx(expected / 3, rel=1e-6)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (4, 4, 5, 6) whose mean loss is low, and labels with void."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0, 1, 2, 3, VOID])
    labels = values[torch.randint(5, (4, 5, 6), generator=generator)]
    hot = F.one_hot(labels.clamp(max=3), 4).permute(0, 3, 1, 2)
    noise = torch.randn(4, 4, 5, 6, generator=generator, dtype=torch.float64)
    return (3 * hot + noise).to(dtype), labels


def test_without_a_beta_it_is_cross_entropy(assert_near):
    logits, labels = problem()
    terms = loss_of(Pus(beta=0.0), logits.requires_grad_(), labels)
    assert terms["pus_acted"].item() == 0.0
    ours = torch.autograd.grad(terms["segmentation"], logits)[0]
    plain = segmentation_loss(logits.float(), labels)  # the loss is computed in float32
    theirs = torch.autograd.grad(plain, logits)[0]
    assert_near(terms["segmentation"], plain, 1e-6, "loss")  # sums of 120 terms, in another order
    assert_near(ours, theirs, 1e-6, "gradient")


@pytest.mark.parametrize("void_in_mean", [False, True])
@pytest.mark.parametrize("kind", PUS)
def test_gradients_are_those_of_differences(kind, void_in_mean, monkeypatch):
    logits, labels = problem()
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)  # stay in float64
    method = Pus(kind=kind, void_in_mean=void_in_mean)
    known = pixel_loss(logits, labels)[labels != VOID]
    assert (known - method.k).abs().min() > 1e-4  # no kink within the steps of 1e-6
    assert known.mean() < method.beta - 1e-4

    def loss(given: Tensor) -> Tensor:
        return loss_of(method, given, labels)["segmentation"]

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("kind", PUS)
def test_parts_have_the_loss_of_the_whole(kind):
    logits, labels = problem(torch.float32)
    method, whole = Pus(kind=kind), Batch(images=logits, labels=labels)
    parts = [method.measure(lambda images: images, part) for part in split(whole, 3)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    ours, theirs = method.combine(joined), loss_of(method, logits, labels)
    assert ours["pus_acted"].item() == 1.0
    # Each sample is summed alone either way.
    assert ours["segmentation"].item() == pytest.approx(theirs["segmentation"].item(), rel=1e-6)


@pytest.mark.parametrize("kind", PUS)
def test_one_class_beside_the_background(kind):
    torch.manual_seed(0)
    network = Pus(kind=kind, hidden=4).build(TinyBackbone(), 1)
    images, labels = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[:, :8], labels[:, 8:10] = 1, VOID
    method = Pus(kind=kind, beta=1.0)  # the first loss is log 2
    terms = method.combine(method.measure(network, Batch(images=images, labels=labels)))
    assert terms["segmentation"].isfinite()
    assert terms["pus_acted"] == 1
    gradients = torch.autograd.grad(terms["segmentation"], list(network.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", PUS)
def test_a_batch_of_void_has_no_loss(kind):
    logits, labels = problem()
    logits.requires_grad_()
    loss = loss_of(Pus(kind=kind), logits, torch.full_like(labels, VOID))["segmentation"]
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_wrong_labels_and_shapes_are_refused():
    logits, labels = problem()
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3 or be void"):
        pixel_loss(logits, torch.full_like(labels, 4))
    for bad in (labels[:2], labels.float(), labels[..., :3]):
        with pytest.raises(ValueError, match="integer labels"):
            pixel_loss(logits, bad)


# --- the values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": -0.1}, "smoothing must be a finite number"),
        ({"smoothing": 0.5}, "smoothing must be at most 0.4, got 0.5"),
        ({"importance": "cam"}, "importance must be one of share, score, got 'cam'"),
        ({"iterations": -1}, "iterations must be a whole number"),
        ({"half_precision": 1}, "half_precision must be one of"),
        ({"zero_importance": "yes"}, "zero_importance must be one of"),
    ],
)
def test_wrong_label_makers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ppmg(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "off"}, "kind must be one of clamp, pow, ignore, got 'off'"),
        ({"beta": -1.0}, "beta must be a finite number"),
        ({"beta": float("nan")}, "beta must be a finite number"),
        ({"k": 0.0}, "k must be a finite number and positive"),
        ({"void_in_mean": None}, "void_in_mean must be one of"),
        ({"hidden": -1}, "hidden must be a whole number"),
    ],
)
def test_wrong_losses_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pus(**options)


def test_the_segmenter_with_its_loss_is_the_harness_own():
    assert Pus().fitted(32) == Pus(hidden=32)
    assert isinstance(Pus(), LargeFov)


# --- whole rows -----------------------------------------------------------------------------------


def made(name: str) -> dict[str, store.Artefact]:
    """A row on the smoke profile, in this process."""
    return pipeline.artefacts(PROFILE, catalogue.get("rivals").row(name), 0)


def test_label_maps_of_the_row_and_its_mechanism(stored):
    row = made("pmm")
    labels, evaluation = row["labels"], row["evaluation"].summary
    assert "scores" not in row
    assert labels.summary["images"] == PROFILE.train.count
    assert 0 < labels.summary["foreground"] < 1
    assert evaluation["miou"] == evaluation["miou_maskless"] > 0
    table = pd.read_csv(labels.folder / "mechanism.csv")
    assert list(table.columns) == ["name", "cov", "overlap", "outweighed", "without_score"]
    tagged = sum(scene.tags.any() for scene in Collages(PROFILE.train))
    assert len(table) == tagged
    assert table["cov"].between(0, 0.64).all()  # 0 where no class fires; see Ppmg's bound
    assert table["cov"].mean() > 0
    assert (table["outweighed"] <= table["overlap"]).all()
    # Written with five places.
    assert labels.summary["cov"] == pytest.approx(table["cov"].mean(), abs=1e-5)
    logged = {name: labels.summary[name] for name in table.columns[1:]}
    assert logged.items() <= run.numbers(row).items()


def test_rows_share_their_seeds_and_differ_by_their_part(stored):
    rows = [made(name) for name in ("pmm", "pmm_no_cvs", "pmm_score")]
    assert len({row["seeds"].key for row in rows}) == 1
    assert len({row["labels"].key for row in rows}) == 3
    assert rows[1]["labels"].summary["cov"] == 0.0
    assert rows[2]["labels"].summary["outweighed"] == 0.0


def test_no_mask_is_read_for_label_maps(stored, blind, tmp_path):
    row = made_without_scores("pmm")
    inputs = {name: row[name] for name in ("seeds", "background")}
    spec = LabelMakerSpec(PROFILE.train, Ppmg())
    assert label_seeds(spec, inputs, tmp_path)["images"] == PROFILE.train.count


def made_without_scores(name: str) -> dict[str, store.Artefact]:
    return pipeline.products(PROFILE, catalogue.get("rivals").row(name), 0)


def test_scenes_without_a_tag_are_background(stored, tmp_path, monkeypatch):
    row = made_without_scores("pmm")
    inputs = {name: row[name] for name in ("seeds", "background")}
    seeds = list(read_seeds(inputs["seeds"].folder / "seeds.npz"))
    empty = Seed(torch.zeros(0, dtype=torch.int64), seeds[0][1].cam[:0])
    monkeypatch.setattr("aeft_lib.stages.label_seeds.read_seeds", lambda *_: [(seeds[0][0], empty)])
    monkeypatch.setattr(
        "aeft_lib.stages.label_seeds.over_images", lambda f, _, *rest: f(range(1), *rest)
    )
    summary = label_seeds(LabelMakerSpec(PROFILE.train, Ppmg()), inputs, tmp_path)
    assert summary == {"images": 1, "foreground": 0.0}


def test_network_with_pus_logs_how_often_it_acted(stored):
    plain, pus = made("pmm_segment"), made("pmm_pus")
    assert plain["teacher"].key == pus["teacher"].key
    assert plain["segmenter"].key != pus["segmenter"].key
    log = pd.read_csv(pus["segmenter"].folder / "log.csv")
    assert {"segmentation", "pus_acted", "pus_pixels"} <= set(log.columns)
    assert log["pus_acted"].between(0, 1).all()
    assert log.iloc[-1][["pus_acted", "pus_pixels"]].to_dict().items() <= run.numbers(pus).items()


@pytest.mark.parametrize(("profile", "expected"), [(SMOKE, None), (None, (POWER,) * 3)])
def test_power_is_the_release_where_the_profile_has_powers_of_its_own(profile, expected):
    asked = []
    powers = SMOKE.refinement.powers if profile else (2.0, 19.0, 21.0)

    def obtain(stage, spec, inputs):
        asked.append((stage, spec))
        return SimpleNamespace(summary={})

    workshop = SimpleNamespace(
        numbers=SimpleNamespace(powers=powers),
        thresholds=SMOKE.thresholds,
        seeds=lambda split: split,
        scenes=lambda split: SMOKE.train,
        obtain=obtain,
    )
    Ppmg().refine(workshop, "train")
    assert asked[0][0] is choose_background
    assert asked[0][1].powers == expected
    assert asked[1][1] == LabelMakerSpec(SMOKE.train, Ppmg())

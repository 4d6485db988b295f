"""OC-CSE: numbers of the original, limit cases of erasing, the draw of a class, and a whole row.

Tiny networks stand in for the backbone: three convolutions, and one 1x1 convolution to the CAM.
"""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule, make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper, split
from aeft_lib.paper.classifier import CamOutput, Classification
from aeft_lib.rivals.occse import OcCse, draw_class, erasing_mask, remaining_tags
from aeft_lib.stages import store
from aeft_lib.stages import train_classifier as classifier_stage
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE

FORWARD, ON_MAPS, THROUGH_NETWORK, WEIGHTS = 1e-5, 1e-5, 5e-5, 1e-6  # tests/golden_rivals/README.md
REFERENCE = OcCse(mask_max="batch")
B, K = 6, 5


class Tiny(nn.Module):
    """Three convolutions and the CAM's: images at stride 4.  Its tensors have the golden names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        shapes = {name: weights[f"trunk.{name}.weight"].shape for name in "abc"}
        self.trunk = nn.ModuleDict(
            {
                name: nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
                for (name, (c_out, c_in, *_)), stride in zip(shapes.items(), (4, 1, 1), strict=True)
            }
        )
        classes, channels = weights["fc8.weight"].shape[:2]
        self.fc8 = nn.Conv2d(channels, classes, 1, bias=False)
        self.load_state_dict(weights)

    def forward(self, images: Tensor) -> CamOutput:
        features = images
        for layer in self.trunk.values():
            features = layer(features).relu()
        cam = self.fc8(features)
        return CamOutput(cam, cam.mean(dim=(2, 3)), None)


class Given(nn.Module):
    """A network whose CAM is given, whatever the images are."""

    def __init__(self, cam: Tensor) -> None:
        super().__init__()
        self.cam = nn.Parameter(cam.clone())

    def forward(self, images: Tensor) -> CamOutput:
        return CamOutput(self.cam, self.cam.mean(dim=(2, 3)), None)


class Constant(nn.Module):
    """A judge that does not look.  joined: its logits hang on the pixels, by a factor of 0."""

    def __init__(self, logits: Tensor, joined: bool) -> None:
        super().__init__()
        self.logits, self.joined = logits, joined

    def forward(self, images: Tensor) -> CamOutput:
        zero = images.sum() * 0 if self.joined else 0.0
        return CamOutput(None, self.logits.expand(len(images), -1) + zero, None)


def frozen(judge: nn.Module) -> nn.Module:
    return judge.eval().requires_grad_(False)


def noise_that_draws(tags: Tensor, targets: Tensor) -> Tensor:
    """(B, B) whose first column draws these tagged classes: the middle of each one's share."""
    present = tags.bool()
    rows = torch.arange(len(tags))
    assert present[rows, targets].all(), "a target must be one of the image's tags"
    rank = present.cumsum(dim=1)[rows, targets] - 1
    noise = torch.full((len(tags), len(tags)), 0.123)
    noise[:, 0] = (rank + 0.5) / present.sum(dim=1)
    return noise


def gradient_of(terms: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The gradient of the terms' sum, by parameter; zeros where it does not reach."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(
        sum(terms.values()),
        parameters,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(names, gradients, strict=True))


# --- the original's numbers -----------------------------------------------------------------------


class Case:
    """The golden arrays as tensors, by key; a prefix gives the keys below it."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    @property
    def batch(self) -> Batch:
        tags = self["given/label"]
        noise = noise_that_draws(tags, self["given/target"])
        return Batch(images=self["given/img"], tags=tags, noise=noise)

    @property
    def judge(self) -> Tiny:
        return frozen(Tiny(self.below("cl/w/")))

    @property
    def learner(self) -> Tiny:
        return Tiny(self.below("er/w/"))


@pytest.fixture
def case(golden_rivals) -> Case:
    return Case(golden_rivals("occse"))


def progress_of(weight: Tensor, method: OcCse = REFERENCE) -> Tensor:
    """The progress at which the ramp has the weight that the original's epoch has."""
    return (weight - method.first_weight) / (method.last_weight - method.first_weight)


def test_golden_mask_and_masked_image(case, assert_near):
    cam, images = case["given/cam_er"], case["given/img"]
    mask = erasing_mask(cam, case["given/target"], images.shape[-2:], per="batch")
    assert_near(mask, case["given/mask"], FORWARD, "mask")
    assert_near(images * (1 - mask), case["given/img_masked"], FORWARD, "masked image")


def test_golden_logits_of_the_judge(case, assert_near):
    measures = REFERENCE.measure(Given(case["given/cam_er"]), case.batch, oc=case.judge)
    assert torch.equal(measures["drawn"], case["given/target"])
    assert_near(measures["left"], case["given/out_cl"], FORWARD, "judge's logits")
    assert_near(case.judge(case["given/img_masked"]).logits, case["given/out_cl"], FORWARD, "alone")


@pytest.mark.parametrize("when", ["given", "given_late"])
def test_golden_terms_and_gradient_in_the_cam(case, assert_near, when):
    network = Given(case["given/cam_er"])
    measures = REFERENCE.measure(network, case.batch, oc=case.judge)
    progress = progress_of(case[f"{when}/weight"])
    terms = REFERENCE.combine(measures | {"progress": progress})
    assert_near(terms["classification"], case[f"{when}/loss_all"], FORWARD, "first term")
    assert_near(terms["judged"], case[f"{when}/loss_select"], FORWARD, "second term")
    ours = gradient_of(terms, network)["cam"]
    assert_near(ours, case[f"{when}/grad_cam_er"], ON_MAPS, "gradient in the CAM")


def test_golden_epochs_lie_on_the_ramp(case):
    """The original's 0.3 + 0.05 e over its 15 epochs is ours over the progress e / 14."""
    for when in ("given", "given_late"):
        expected = case[f"{when}/epoch"].double() / 14
        assert progress_of(case[f"{when}/weight"]).item() == pytest.approx(expected.item())


def test_golden_split_of_the_tags(case):
    label, mask, remain = (case[f"split/{name}"] for name in ("label", "mask", "remain"))
    assert torch.equal(label, mask + remain)
    assert mask.sum(dim=1).eq(1).all()
    drawn = draw_class(label, noise_that_draws(label, mask.argmax(dim=1))[:, 0])
    assert torch.equal(drawn, mask.argmax(dim=1))
    assert torch.equal(remaining_tags(label, drawn), remain)


def test_golden_steps_of_the_learner(case, assert_near):
    steps = sorted({key.split("/")[0] for key in case.below("step/")}, key=int)
    learner, judge = case.learner, case.judge
    schedule = Schedule(
        epochs=1,
        batch_size=len(case["given/img"]),
        lr=0.01,
        head_lr=0.01,
        weight_decay=5e-4,
        momentum=5e-4,
        warmup_steps=0,
        optimiser="sgd",
        decay_steps=20,
    )
    optimiser = make_optimiser(learner, schedule)
    objective = Objective(partial(REFERENCE.measure, oc=judge), REFERENCE.combine)
    stepper = Stepper(learner, optimiser, objective, PLAIN)
    for step in steps:
        golden = Case(case.below(f"step/{step}/"))
        with torch.no_grad():
            cam = learner(case.batch.images).cam
        size = case.batch.images.shape[-2:]
        mask = erasing_mask(cam, case["given/target"], size, per="batch")
        assert_near(mask.amax(dim=(1, 2, 3)), golden["mask_max"], FORWARD, f"{step} mask_max")
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * schedule.factor(int(step), len(steps))
        terms = stepper.step(case.batch, progress=progress_of(golden["weight"]).item())
        assert_near(terms["classification"], golden["loss_all"], FORWARD, f"{step} first term")
        assert_near(terms["judged"], golden["loss_select"], FORWARD, f"{step} second term")
        for name, weight in learner.named_parameters():
            label = f"step {step}, {name}"
            assert_near(weight.grad, golden[f"grad/{name}"], THROUGH_NETWORK, f"{label}: gradient")
            assert_near(weight, golden[f"w/{name}"], WEIGHTS, f"{label}: weight")
    theirs = case.below("cl/w/")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in judge.state_dict().items())


def test_golden_numbers_tell_the_two_maxima_apart(case):
    """A mask of each image's own maximum is not the original's: the test above has power."""
    cam, size = case["given/cam_er"], case["given/img"].shape[-2:]
    mask = erasing_mask(cam, case["given/target"], size, per="image")
    assert (mask - case["given/mask"]).abs().max() > 100 * FORWARD


# --- the mask -------------------------------------------------------------------------------------


def peaks(*values: float) -> Tensor:
    """One class, one image a value: a 3x3 map with this peak in its middle, negative elsewhere."""
    cam = torch.full((len(values), 1, 3, 3), -0.1)
    cam[:, 0, 1, 1] = torch.tensor(values)
    return cam


def mask_of(cam: Tensor, per: str, scale: int = 3) -> Tensor:
    size = (cam.shape[2] * scale, cam.shape[3] * scale)  # odd: a cell's middle is a pixel's
    return erasing_mask(cam, torch.zeros(len(cam), dtype=torch.int64), size, per=per)


@pytest.mark.parametrize(("per", "expected"), [("batch", (1.0, 0.5)), ("image", (1.0, 1.0))])
def test_peaks_of_two_and_one(per, expected):
    mask = mask_of(peaks(2.0, 1.0), per)
    # The maximum m gives m / (m + 1e-5): at most 1e-5 below for m = 1, and 1e-7 of float32.
    torch.testing.assert_close(
        mask.amax(dim=(1, 2, 3)), torch.tensor(expected), rtol=0, atol=1.1e-5
    )
    assert mask[:, 0, 4, 4].tolist() == mask.amax(dim=(1, 2, 3)).tolist()


@pytest.mark.parametrize("per", ["image", "batch"])
def test_mask_is_in_0_to_1_with_one_full_pixel(per):
    """Peaks lie inside the map, and an odd factor puts a pixel on each cell's middle: no ties."""
    inner = torch.rand(4, K, 5, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    cam = F.pad(inner, (1, 1, 1, 1), value=-1.0)
    mask = erasing_mask(cam, torch.tensor([0, 4, 2, 2]), (21, 24), per=per)
    assert mask.shape == (4, 1, 21, 24)
    assert mask.min() == 0
    assert mask.max() < 1
    # A peak of at least 0.5 becomes 0.5 / (0.5 + 1e-5) or more; others are lower by 1e-4 or more.
    full = (mask > 1 - 3e-5).sum(dim=(1, 2, 3)).tolist()
    assert full == [1, 1, 1, 1] if per == "image" else sorted(full) == [0, 0, 0, 1]


def test_the_cam_is_enlarged_before_its_negative_part_is_cut():
    """Between a cell of 1 and one of -1 half the way is positive, not all of it."""
    cam = torch.tensor([[[[1.0, -1.0]]]])
    mask = erasing_mask(cam, torch.tensor([0]), (1, 8), per="image")[0, 0, 0]
    assert (mask > 0).tolist() == [True] * 4 + [False] * 4


def test_mask_takes_the_drawn_class_alone():
    cam = torch.randn(2, K, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    drawn = torch.tensor([3, 1])
    for per in ("image", "batch"):
        (erasing_mask(cam, drawn, (8, 8), per=per) * weights).sum().backward()
    reached = cam.grad.abs().sum(dim=(2, 3)) > 0
    expected = torch.zeros(2, K, dtype=torch.bool)
    expected[torch.arange(2), drawn] = True
    assert torch.equal(reached, expected)


def test_gradient_of_the_mask_includes_its_maximum():
    """Twice the map is the same mask, so the gradient along the map itself is (nearly) zero."""
    cam = peaks(2.0).double().requires_grad_()
    mask_of(cam, "image").sum().backward()
    along = (cam.grad * cam).sum() / (cam.grad.abs() * cam.abs()).sum()
    assert abs(along) < 1e-4


# --- both terms -----------------------------------------------------------------------------------


def random_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "trunk.a.weight": (6, 3, 3, 3),
        "trunk.b.weight": (8, 6, 3, 3),
        "trunk.c.weight": (10, 8, 3, 3),
        "fc8.weight": (K, 10, 1, 1),
    }
    return {
        name: torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5
        for name, shape in shapes.items()
    }


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    """Images of one to three tags, and their own noise."""
    generator = torch.Generator().manual_seed(3)
    tags = torch.eye(K).roll(1, 0).repeat(2, 1)[:B].bool()
    tags[1:, 0] = True
    tags[3:, 4] = True
    images = torch.randn(B, 3, 24, 32, generator=generator).to(dtype)
    return Batch(images=images, tags=tags, noise=torch.rand(B, B, generator=generator))


def terms_of(
    method: OcCse, network: nn.Module, samples: Batch, judge: nn.Module, progress: float = 0.5
) -> dict[str, Tensor]:
    measures = method.measure(network, samples, oc=judge)
    return method.combine(measures | {"progress": torch.tensor(progress)})


@pytest.mark.parametrize("per", ["image", "batch"])
def test_a_map_without_a_positive_value_erases_nothing_and_learns_nothing_from_the_judge(per):
    samples, judge = batch(), frozen(Tiny(random_weights(1)))
    cam = torch.randn(B, K, 6, 8, generator=torch.Generator().manual_seed(4))
    drawn = draw_class(samples.tags, samples.noise[:, 0])
    silent = 2
    cam[silent, drawn[silent]] = -cam[silent, drawn[silent]].abs()
    cam[silent, drawn[silent], 0, 0] = 0.0
    network = Given(cam)
    mask = erasing_mask(network.cam, drawn, samples.images.shape[-2:], per=per)
    assert torch.equal((samples.images * (1 - mask))[silent], samples.images[silent])
    judged = terms_of(OcCse(mask_max=per), network, samples, judge)["judged"]
    gradient = gradient_of({"judged": judged}, network)["cam"]
    assert gradient.isfinite().all()
    reached = gradient.abs().amax(dim=(1, 2, 3)) > 0
    assert reached.tolist() == [i != silent for i in range(B)]


def test_nothing_is_erased_in_an_image_without_a_tag():
    samples, seen = batch(), []
    samples = samples._replace(tags=samples.tags.clone())
    untagged = 3
    samples.tags[untagged] = 0

    def judge(images: Tensor) -> CamOutput:
        seen.append(images.detach())
        return CamOutput(None, images.mean(dim=(2, 3))[:, :1].expand(-1, K), None)

    network = Given(1 + torch.rand(B, K, 6, 8, generator=torch.Generator().manual_seed(4)))
    terms = terms_of(OcCse(), network, samples, judge)
    changed = (seen[0] != samples.images).flatten(1).any(dim=1)
    assert changed.tolist() == [i != untagged for i in range(B)]
    gradient = gradient_of({"judged": terms["judged"]}, network)["cam"][untagged]
    assert not gradient.any()


def test_maps_all_without_a_positive_value_are_a_whole_image_each():
    samples, judge = batch(), frozen(Tiny(random_weights(1)))
    network = Given(-torch.rand(B, K, 6, 8, generator=torch.Generator().manual_seed(5)))
    for per in ("image", "batch"):
        measures = OcCse(mask_max=per).measure(network, samples, oc=judge)
        assert torch.equal(measures["left"], judge(samples.images).logits)
        terms = terms_of(OcCse(mask_max=per), network, samples, judge)
        assert not gradient_of({"judged": terms["judged"]}, network)["cam"].any()


def test_gradient_of_the_second_term_reaches_the_drawn_class_alone():
    samples, judge = batch(), frozen(Tiny(random_weights(1)))
    cam = torch.randn(B, K, 6, 8, generator=torch.Generator().manual_seed(6))
    network = Given(cam)
    judged = terms_of(OcCse(), network, samples, judge)["judged"]
    reached = gradient_of({"judged": judged}, network)["cam"].abs().amax(dim=(2, 3)) > 0
    expected = torch.zeros(B, K, dtype=torch.bool)
    expected[torch.arange(B), draw_class(samples.tags, samples.noise[:, 0])] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("per", ["image", "batch"])
def test_gradients_are_those_of_differences(per):
    """In the CAM, through the mask, its maximum and the judge, in float64; nothing ties."""
    samples = Batch(*(None if t is None else t[2:4] for t in batch(torch.float64)))
    judge = frozen(Tiny(random_weights(1)).double())
    generator = torch.Generator().manual_seed(6)
    cam = torch.randn(2, K, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()

    def terms(given: Tensor) -> tuple[Tensor, Tensor]:
        output = CamOutput(given, given.mean(dim=(2, 3)), None)
        of = terms_of(OcCse(mask_max=per), lambda _: output, samples, judge)
        return of["classification"], of["classification"] + of["judged"]

    assert torch.autograd.gradcheck(terms, cam)


class Channels(nn.Module):
    """A judge whose logit of class k is the mean of the image's channel k."""

    def forward(self, images: Tensor) -> CamOutput:
        return CamOutput(None, images.mean(dim=(2, 3)), None)


@pytest.mark.parametrize(("tags", "spill"), [((1, 1, 0), -1), ((1, 0, 0), 0)])
def test_a_map_grows_over_its_class_and_shrinks_over_another_that_is_there(tags, spill):
    """Class 0 fills the left half; class 1, where it is there, the right one, else nothing does.

    Its peak lies on the left, and its map spills over the right.
    """
    image = torch.zeros(1, 3, 6, 8)
    image[:, 0, :, :4] = 1.0
    image[:, 1, :, 4:] = float(tags[1])
    cam = torch.full((1, 3, 6, 8), 0.5)
    cam[:, 0, 2, 1] = 1.0
    labels, network = torch.tensor([tags]), Given(cam)
    samples = Batch(images=image, tags=labels, noise=torch.zeros(1, 1))
    judged = terms_of(OcCse(), network, samples, frozen(Channels()))["judged"]
    downhill = -gradient_of({"judged": judged}, network)["cam"][0, 0].sign()
    downhill[2, 1] = 1.0  # the peak is part of every pixel's mask
    assert (downhill[:, :4] == 1).all()
    assert (downhill[:, 4:] == spill).all()


@pytest.mark.exact
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("per", ["image", "batch"])
def test_a_judge_that_does_not_look_leaves_the_gap_classifier(per, joined):
    """The first term and its gradient, bit for bit, are those of plain classification."""
    network, samples = Tiny(random_weights(0)), batch()
    judge = frozen(Constant(torch.linspace(-1, 1, K), joined))
    ours = terms_of(OcCse(mask_max=per), network, samples, judge)
    plain = Classification().combine(Classification().measure(network, samples))
    assert torch.equal(ours["classification"], plain["classification"])
    gradients, expected = gradient_of(ours, network), gradient_of(plain, network)
    for name in expected:
        assert expected[name].any()
        assert torch.equal(gradients[name], expected[name]), name


def test_a_judge_that_looks_does_change_the_gradient():
    network, samples = Tiny(random_weights(0)), batch()
    gradients = gradient_of(
        terms_of(OcCse(), network, samples, frozen(Tiny(random_weights(1)))), network
    )
    plain = gradient_of(
        Classification().combine(Classification().measure(network, samples)), network
    )
    assert all(not torch.equal(gradients[name], plain[name]) for name in plain)


def test_the_judge_gets_no_gradient_and_keeps_its_weights():
    network, judge = Tiny(random_weights(0)), frozen(Tiny(random_weights(1)))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    objective = Objective(partial(OcCse().measure, oc=judge), OcCse().combine)
    network.train()
    Stepper(network, optimiser, objective, PLAIN).step(batch())
    assert not judge.training
    assert all(p.grad is None for p in judge.parameters())
    before = random_weights(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in judge.state_dict().items())


def measured(tags: list[list[int]], drawn: list[int], seen: list[list[float]]) -> dict[str, Tensor]:
    """Measures in which the judge gives these probabilities."""
    left = torch.tensor(seen).logit().requires_grad_()
    logits = torch.zeros_like(left, requires_grad=True)
    labels = torch.tensor(tags).bool()
    return {"logits": logits, "tags": labels, "drawn": torch.tensor(drawn), "left": left}


def test_terms_by_hand():
    """Tag 0 is erased from one image, where tag 1 is kept; from the other, its only tag."""
    measures = measured([[1, 1, 0], [0, 0, 1]], [0, 2], [[0.2, 0.7, 0.5], [0.5, 0.5, 0.4]])
    terms = OcCse().combine(measures | {"progress": torch.tensor(0.0)})
    assert terms["classification"].item() == pytest.approx(np.log(2))
    likelihood = [0.8, 0.7, 0.5, 0.5, 0.5, 0.6]
    assert terms["judged"].item() == pytest.approx(-0.3 * np.log(likelihood).mean())
    assert terms["p_erased"].item() == pytest.approx((0.2 + 0.4) / 2)
    assert terms["p_kept"].item() == pytest.approx(0.7)
    assert not terms["p_erased"].requires_grad
    assert not terms["p_kept"].requires_grad


def test_without_a_kept_class_its_probability_is_logged_as_0():
    measures = measured([[1, 0]], [0], [[0.25, 0.5]])
    terms = OcCse().combine(measures | {"progress": torch.tensor(0.0)})
    assert terms["p_kept"].item() == 0.0
    assert terms["p_erased"].item() == pytest.approx(0.25)


@pytest.mark.parametrize("per", ["image", "batch"])
def test_of_one_class_nothing_is_kept(per):
    """The judge's target is 0 everywhere; an image without the tag is not erased."""
    one = {n: w[:1] if n == "fc8.weight" else w for n, w in random_weights(0).items()}
    other = {n: w[:1] if n == "fc8.weight" else w for n, w in random_weights(1).items()}
    network, judge = Tiny(one), frozen(Tiny(other))
    samples = batch()._replace(tags=torch.tensor([[1]] * (B - 1) + [[0]]))
    method = OcCse(mask_max=per)
    measures = method.measure(network, samples, oc=judge)
    assert not measures["drawn"].any()
    terms = method.combine(measures | {"progress": torch.tensor(1.0)})
    expected = F.softplus(measures["left"]).mean().item()
    assert terms["judged"].item() == pytest.approx(expected, rel=1e-6)
    assert terms["p_kept"] == 0
    assert all(gradient.isfinite().all() for gradient in gradient_of(terms, network).values())
    untouched = judge(samples.images[-1:]).logits
    torch.testing.assert_close(measures["left"][-1:], untouched, rtol=1e-5, atol=1e-6)


def test_weight_runs_over_the_progress():
    measures = measured([[1, 1, 0]], [1], [[0.2, 0.7, 0.5]])
    judged = [
        OcCse().combine(measures | {"progress": torch.tensor(p)})["judged"].item()
        for p in (0.0, 0.5, 1.0)
    ]
    assert np.divide(judged, judged[2]) == pytest.approx([0.3, 0.65, 1.0])
    level = OcCse(first_weight=2.0, last_weight=2.0)
    late = level.combine(measures | {"progress": torch.tensor(0.9)})["judged"].item()
    assert late == pytest.approx(2 * judged[2])


# --- the draw -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_the_erased_tag_is_0_and_the_others_stay(dtype):
    tags = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]).to(dtype)
    kept = remaining_tags(tags, torch.tensor([2, 1, 3]))
    assert kept.dtype == dtype
    assert kept.to(torch.int64).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("count", range(1, K + 1))
def test_every_tag_has_an_equal_share_of_the_noise(count):
    """On a fine grid of noise each of the image's tags is drawn equally often, in their order."""
    present = (
        torch.randperm(K, generator=torch.Generator().manual_seed(count))[:count].sort().values
    )
    tags = torch.zeros(count * 100, K, dtype=torch.bool)
    tags[:, present] = True
    noise = (torch.arange(count * 100) + 0.5) / (count * 100)
    assert torch.equal(draw_class(tags, noise), present.repeat_interleave(100))


def test_draws_are_uniform():
    """Counts of a binomial: within 5 sd, which fails by chance once in a million."""
    n, tags = 6000, torch.tensor([[0, 1, 0, 1, 1]])
    noise = torch.rand(n, generator=torch.Generator().manual_seed(7))
    counts = draw_class(tags.expand(n, -1), noise).bincount(minlength=K)
    assert counts[tags[0] == 0].tolist() == [0, 0]
    assert (counts[tags[0] == 1] - n / 3).abs().max() < 5 * (n * (1 / 3) * (2 / 3)) ** 0.5


def test_noise_at_its_ends_and_images_without_a_tag():
    tags = torch.tensor([[0, 1, 0, 1]]).expand(3, -1)
    below_1 = 1 - torch.finfo(torch.float32).eps / 2
    assert draw_class(tags, torch.tensor([0.0, below_1, 1.0])).tolist() == [1, 3, 3]
    assert draw_class(torch.zeros(2, 4), torch.tensor([0.0, 0.9])).tolist() == [0, 0]


def test_a_draw_hangs_on_the_image_own_noise_alone():
    samples = batch()
    network, judge = Tiny(random_weights(0)), frozen(Tiny(random_weights(1)))

    def drawn(part: Batch) -> Tensor:
        return OcCse().measure(network, part, oc=judge)["drawn"]

    whole = drawn(samples)
    for parts in range(2, B + 1):
        assert torch.equal(torch.cat([drawn(part) for part in split(samples, parts)]), whole)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(8))
    shuffled = Batch(*(None if t is None else t[order] for t in samples))
    assert torch.equal(drawn(shuffled), whole[order])
    torch.manual_seed(1)  # the global stream has no say
    assert torch.equal(drawn(samples), whole)
    others = samples.noise.clone()
    others[0, 0] = 1 - others[0, 0]
    assert torch.equal(drawn(samples._replace(noise=others))[1:], whole[1:])


# --- steps in parts -------------------------------------------------------------------------------


def step(parts: int, per: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms and gradients of one step in float64."""
    network, judge = (Tiny(random_weights(seed)).double() for seed in (0, 1))
    method = OcCse(mask_max=per)
    objective = Objective(partial(method.measure, oc=frozen(judge)), method.combine)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    stepper = Stepper(network, optimiser, objective, Compute(parts=parts))
    terms = stepper.step(batch(torch.float64), progress=0.4)
    return terms, {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("parts", [2, 3, B])
def test_parts_have_the_loss_and_the_gradient_of_the_whole(parts):
    whole, part = step(1, "image"), step(parts, "image")
    assert part[0].keys() == whole[0].keys()
    for name, term in whole[0].items():
        assert part[0][name].item() == pytest.approx(term.item(), rel=1e-10), name
    for name, gradient in whole[1].items():
        largest = gradient.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(part[1][name], gradient, rtol=0, atol=1e-9 * largest, msg=name)


def test_with_the_maximum_of_the_batch_parts_have_their_own():
    """As the module says: only the first term is that of the whole batch."""
    whole, part = step(1, "batch")[0], step(2, "batch")[0]
    assert part["classification"].item() == pytest.approx(whole["classification"].item(), rel=1e-10)
    assert part["judged"].item() != pytest.approx(whole["judged"].item(), rel=1e-6)


# --- the value ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["rows", "", None, 1, True])
def test_a_wrong_maximum_is_refused(value):
    with pytest.raises(ValueError, match=f"mask_max must be one of image, batch, got {value!r}"):
        OcCse(mask_max=value)


@pytest.mark.parametrize("name", ["first_weight", "last_weight"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.3", None])
def test_wrong_weights_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        OcCse(**{name: value})


def test_the_method_for_another_map_keeps_its_numbers():
    method = OcCse(first_weight=0.1, last_weight=0.2, mask_max="batch")
    assert method.fitted(6, 3.0) == method


# --- a whole row ----------------------------------------------------------------------------------


@pytest.fixture
def table(stored) -> pd.DataFrame:
    """The row on the smoke profile, computed by whichever test comes first."""
    study = catalogue.get("rivals")
    return run.run_study(study, SMOKE, [0], rows=[study.row("occse")], workers=1)


def made(name: str) -> dict[str, store.Artefact]:
    """The stored artefacts of a row."""
    return pipeline.artefacts(SMOKE, catalogue.get("rivals").row(name), 0, store.lookup)


def test_the_row_runs_and_logs_what_the_judge_sees(table):
    assert table[["row", "repeat"]].values.tolist() == [["occse", 0]]
    assert 0 < table["miou"].item() < 100
    log = pd.read_csv(made("occse")["classifier"].folder / "log.csv")
    assert len(log) == SMOKE.schedule.epochs
    assert {"classification", "judged", "p_erased", "p_kept"} <= set(log.columns)
    probabilities = log[["p_erased", "p_kept"]].to_numpy()
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_the_judge_is_the_gap_row_frozen_and_in_eval_mode(table, tmp_path, monkeypatch):
    """The same training once more, in this process, with an eye on the judge at every step."""
    judges, states = [], []
    measure = OcCse.measure

    def watched(method: OcCse, network: nn.Module, samples: Batch, *, oc: nn.Module) -> dict:
        assert network.training
        assert not any(module.training for module in oc.modules())
        assert not any(p.requires_grad for p in oc.parameters())
        if not judges:
            states.append({name: tensor.clone() for name, tensor in oc.state_dict().items()})
        judges.append(oc)
        return measure(method, network, samples, oc=oc)

    monkeypatch.setattr(OcCse, "measure", watched)
    occse = made("occse")["classifier"]
    gap = pipeline.classifiers(SMOKE, catalogue.GAP, 0, store.lookup)["classifier"]
    features = pipeline.features(SMOKE, "train", store.lookup)
    inputs = {"features": features, f"{classifier_stage.JUDGE}oc": gap}
    classifier_stage.train_classifier(occse.spec, inputs, tmp_path)
    steps = SMOKE.schedule.epochs * (SMOKE.train.count // SMOKE.schedule.batch_size)
    assert len(judges) == steps
    assert len(set(map(id, judges))) == 1
    after = judges[0].state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in states[0].items())
    theirs = load_file(gap.folder / "weights.safetensors")
    assert theirs
    assert all(tensor.shape == after[name].shape for name, tensor in theirs.items())
    # The judge's weights are the GAP row's, up to the noise of tests/noise.py.
    for name, tensor in theirs.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_learner_starts_where_the_gap_row_started_and_ends_elsewhere(table):
    occse = made("occse")["classifier"]
    gap = pipeline.classifiers(SMOKE, catalogue.GAP, 0, store.lookup)["classifier"]
    first, second = (classifier_stage.build_network(a.spec).state_dict() for a in (occse, gap))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    ours, theirs = (load_file(a.folder / "weights.safetensors") for a in (occse, gap))
    assert ours.keys() == theirs.keys()
    assert all(not torch.equal(ours[name], theirs[name]) for name in ours)

"""AdvCAM: numbers of the original, its limit cases, batches of images, and the row."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from golden_cases import Softplus
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.networks import efficientnet_lite, resnet38d
from aeft_lib.paper.classifier import CamClassifier, Classification
from aeft_lib.parts.climbing import accumulate, merged, strided
from aeft_lib.parts.pixel_steps import (
    amplification,
    attribution,
    drift,
    gain,
    positive_weights,
    stepped,
)
from aeft_lib.rivals.advcam import IMAGENET_RANGE, AdvCam, Pixels
from aeft_lib.stages.image_reader import Picture
from aeft_lib.stages.read_each import MECHANISM
from aeft_lib.stages.relu_first import ReluFirst
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE

FIRST, LATER = 1e-5, 1e-4  # tests/golden_rivals/README.md
RATE, TAU = 0.08, 0.5
CASES = {  # steps, weight of the mask term
    "default": (27, 7.0),
    "no_mask": (27, 0.0),
    "weak_mask": (27, 0.03),
    "short": (5, 7.0),
    "mid": (8, 7.0),
}
FOLLOWED = ("default", "no_mask", "weak_mask")


class Toy(Softplus):
    def cam(self, _: object, batch: Batch) -> Tensor:
        """As a method: of itself, whatever network it is given."""
        return self(batch.images)


class Followed(Pixels):
    """Notes what is compared with the original: of the pairs of the first class."""

    attributions: list[Tensor]

    def read(self, step):
        yield from super().read(step)
        if step == 0:
            self.attributions, self.positions, self.slopes = [], [], []
            self.first_maps = self.maps.detach()
        self.attributions.append(self.attributed.detach()[0])

    def move(self, step):
        reason = super().move(step)
        self.positions.append(self.views[0])
        self.slopes.append(self.gradient[0])
        return reason


class Case:
    """The golden arrays as tensors, perhaps in float64, and climbs on them."""

    def __init__(self, arrays: dict, dtype: torch.dtype) -> None:
        tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}
        self.of = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
        self.toy, self.scales = Toy(self.of).to(dtype), tuple(self.of["scales"].tolist())

    def reader(self, name: str) -> AdvCam:
        steps, weight = CASES[name]
        return AdvCam(
            scales=self.scales,
            climbed=self.scales,
            steps=steps,
            weight=weight,
            attribution="grad_cam",
            weigh="sum",
        )

    def pixels(self, name: str, i: int) -> Followed:
        """Of every tagged class at the i-th scale."""
        ids, image = self.of["class_ids"], self.of[f"image_{i}"]
        pairs = torch.stack([image, image.flip(-1)]).expand(len(ids), -1, -1, -1, -1)
        tags, weights = self.of["label"].expand(len(ids), -1), positive_weights(self.toy.head)[ids]
        given = (self.toy, self.toy, pairs, ids, tags, self.scales[i], RATE, weights)
        return Followed(self.reader(name), *given)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["single", "double"])
def case(request, golden_rivals) -> Case:
    return Case(golden_rivals("advcam"), request.param)


# --- the original's numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_golden_maps(case, assert_near, name):
    """Sums over all steps, which a single step hardly moves."""
    reader, sums = case.reader(name), []
    for i, scale in enumerate(case.scales):
        climb = accumulate(case.pixels(name, i), reader.steps_at(scale))
        sums.append(reader.weighed(climb, scale))
    size = tuple(case.of["hw"].tolist())
    assert_near(merged(sums, size), case.of[f"{name}/high_res"], LATER, "high_res")
    assert_near(strided(sums, size), case.of[f"{name}/cam"], LATER, "strided")
    assert all(maps.isfinite().all() for maps in sums)


@pytest.mark.parametrize("name", FOLLOWED)
def test_golden_steps(case, assert_near, name):
    """After many steps a ReLU at a tie may turn a step in float32: float64 has the last state."""
    pixels, golden = case.pixels(name, 0), case.of
    steps = case.reader(name).steps
    accumulate(pixels, steps)
    pixels.move(steps - 1)  # the original takes it too
    assert_near(pixels.first_maps[0], golden[f"{name}/logit_map_0"], FIRST, "logits")
    assert_near(pixels.slopes[0][0], golden[f"{name}/grad_0"], FIRST, "gradient")
    targets = torch.stack(pixels.targets)[:, 0]
    assert_near(targets[0], golden[f"{name}/y_target"][0], FIRST, "first target")
    assert_near(targets, golden[f"{name}/y_target"], LATER, "targets")
    noted = sorted(int(k.rpartition("_")[2]) for k in golden if k.startswith(f"{name}/x_after_"))
    assert noted[-1] == steps
    if targets.dtype == torch.float32:
        noted = [step for step in noted if step < steps]
    assert len(noted) >= 2
    for step in noted:
        bound, label = (FIRST, LATER)[step > 1], f"after {step}"
        assert_near(pixels.positions[step - 1][0], golden[f"{name}/x_after_{step}"], bound, label)
        theirs = golden[f"{name}/attribution_{step - 1}"]
        assert_near(pixels.attributions[step - 1], theirs, bound, label)
    if targets.dtype == torch.float64:
        last = golden[f"{name}/flip_x_after_last"]
        assert_near(pixels.positions[steps - 1][1], last, LATER, "the mirrored view")


def test_golden_mask_holds_back_what_tells_most(case):
    """The stronger the mask term, the less the peak grows; the rest grows more than the peak."""
    peaks = {}
    for name in ("no_mask", "weak_mask", "default"):
        pixels = case.pixels(name, 0)
        accumulate(pixels, 27)
        lines = [n for n in pixels.numbers() if math.isfinite(n["amplification_ratio"])]
        peaks[name] = [line["amplified_peak"] for line in lines]
        assert lines
        assert all(line["amplification_ratio"] > 1 for line in lines)
    for weaker, stronger in (("no_mask", "weak_mask"), ("weak_mask", "default")):
        assert all(a > b for a, b in zip(peaks[weaker], peaks[stronger], strict=True))


# --- the parts, by hand ---------------------------------------------------------------------------


def test_the_hand_worked_step():
    pair = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1)
    slope = torch.tensor([2.0, -4.0]).reshape(1, 2, 1, 1, 1)
    moved = stepped(pair, slope, 0.08).flatten()
    torch.testing.assert_close(moved, torch.tensor([0.04, 0.92]))
    back = stepped(pair, -slope, 0.08).flatten()
    assert back.tolist() == [0.0, 1.0], "no value leaves the range of the pair"
    free = stepped(pair, -slope, 0.08, clamped=False).flatten()
    torch.testing.assert_close(free, torch.tensor([-0.04, 1.08]))
    assert stepped(pair, 0 * slope, 0.08).flatten().tolist() == [0.0, 1.0]


def test_each_pair_steps_by_its_own_gradient():
    pairs, slopes = torch.rand(3, 2, 3, 4, 4), torch.randn(3, 2, 3, 4, 4)
    slopes[1] *= 1e-6
    together = stepped(pairs, slopes, 0.1)
    for i in range(3):
        assert torch.equal(together[i : i + 1], stepped(pairs[i : i + 1], slopes[i : i + 1], 0.1))


def test_other_present_classes_are_pushed_down_unless_absent_ones_alone():
    maps = torch.tensor([3.0, 1.0, 0.5]).reshape(1, 1, 3, 1, 1).expand(1, 2, 3, 1, 1)
    ids, tags = torch.tensor([0]), torch.tensor([[1, 1, 0]])
    assert gain(maps, ids, torch.ones(1, 3)).item() == 2 * (3 - 1 - 0.5)
    assert gain(maps, ids, 1 - tags).item() == 2 * (3 - 0.5)


def test_drift_counts_the_peak_alone():
    total = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])
    held = drift(total, torch.zeros_like(total), TAU)
    assert held.flatten().tolist() == [4.0, 3.0, 0.0, 0.0]  # half of the maximum is not above it
    assert not drift(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), TAU).any()


def test_closed_form_of_the_release():
    """Half of the view's pixels fire, a quarter of the mirrored one's; three positive weights."""
    maps = torch.full((1, 2, 1, 2, 4), -1.0)
    maps[0, 0, 0, 0], maps[0, 1, 0, 0, :2] = 2.0, 6.0
    read = attribution(maps, torch.tensor([0]), torch.tensor([3.0]))
    expected = torch.tensor([2.0 * 4 / (6 * 3), 6.0 * 2 / (6 * 3)])
    torch.testing.assert_close(read.amax(dim=(2, 3))[0], expected)
    nowhere = attribution(-maps.abs(), torch.tensor([0]), torch.tensor([3.0]))
    assert not nowhere.any()
    assert torch.equal(attribution(maps, torch.tensor([0])), maps[:, :, 0].relu())


def test_gradients_of_both_terms():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 3, 3, 4, generator=generator, dtype=torch.float64)
    maps = (maps + 0.1 * maps.sign()).requires_grad_()  # away from the kinks
    ids, competing = torch.tensor([0, 2]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda x: gain(x, ids, competing), maps)
    first = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)

    def held(x: Tensor) -> Tensor:
        views = attribution(x, ids)
        return drift(views[:, 0] + views[:, 1].flip(-1), first, TAU).mean(dim=(1, 2))

    assert torch.autograd.gradcheck(held, maps)


def test_a_map_that_is_nowhere_has_no_ratio():
    numbers = amplification(torch.zeros(2, 2), torch.ones(2, 2))
    assert all(math.isnan(value) for value in numbers.values())
    # Nothing below half of the peak at first.
    numbers = amplification(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 5.0]]))
    assert math.isnan(numbers["amplification_ratio"])
    assert numbers["amplified_peak"] == 1.5


def test_grad_cam_needs_a_head_of_one_layer():
    with pytest.raises(ValueError, match='"grad_cam" needs a head of one 1x1 convolution'):
        positive_weights(nn.Linear(2, 2))


# --- a small classifier ---------------------------------------------------------------------------

SIZE, K, SCALES = (32, 48), 4, (0.5, 1.0)


class Doubles(nn.Module):
    """A backbone whose features are the image, in -1..1 and float64, at a quarter of its size."""

    out_channels = 3

    def trunk(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 4)

    def tail(self, features: Tensor) -> Tensor:
        return features

    def normalise(self, images: Tensor) -> Tensor:
        return (images.double() - 127) / 128


@pytest.fixture
def network() -> CamClassifier:
    torch.manual_seed(0)
    return Classification().build(Doubles(), K).double().eval()


@pytest.fixture
def pictures(rng) -> list[Picture]:
    """One, no and two tags."""
    tags = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    images = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in tags]
    return [Picture(*given) for given in zip(range(3), images, tags, strict=True)]


def read(network: CamClassifier, pictures: list[Picture], **options: object) -> list:
    reader = AdvCam(**options).fitted(SCALES, brief=True)
    return reader.read(Classification(), network, pictures, None, {})


@pytest.mark.parametrize("options", [{"steps": 1}, {"reach": 0.0}, {"reach": 0.0, "steps": 27}])
def test_without_a_step_it_is_the_plain_cam(network, pictures, options):
    ids = [picture.tags.nonzero()[:, 0] for picture in pictures]
    with torch.no_grad():
        images = [picture.image for picture in pictures]
        plain = ReluFirst(SCALES).from_images(Classification(), network, images, ids)
    for ours, theirs in zip(read(network, pictures, **options), plain, strict=True):
        assert ours.cam.shape == theirs.cam.shape
        # The plain one is in float32: a cast, a bilinear value of four products, four of them
        # added, both sides of a division are 1.4e-6; CPUs differ in the order of their sums.
        assert not len(ours.cam) or (ours.cam - theirs.cam).abs().max() <= 1e-5
        torch.testing.assert_close(ours.logits.float(), theirs.logits.float())


def test_a_batch_is_read_as_its_images_are_alone(network, pictures):
    for backwards, at_once in ((False, 8), (True, 2)):
        given = pictures[::-1] if backwards else pictures
        together = read(network, given, at_once=at_once)
        for picture, ours in zip(given, together, strict=True):
            (alone,) = read(network, [picture], at_once=1)
            assert ours.numbers.keys() == alone.numbers.keys()
            # Eight steps of the same float64 numbers, summed in another order.
            torch.testing.assert_close(ours.cam.double(), alone.cam.double(), rtol=0, atol=1e-9)
            for name, value in alone.numbers.items():
                assert ours.numbers[name] == pytest.approx(value, rel=1e-7, nan_ok=True)


def test_an_image_without_tags_has_no_map_and_no_numbers(network, pictures):
    (alone,) = read(network, pictures[1:2])
    assert alone.cam.shape == (0, *SIZE)
    assert alone.numbers == {}
    assert alone.logits.shape == (K,)


def test_the_target_rises_until_the_clamp_binds():
    """One class, whose map is a positive sum of pixels: each step adds the rate to every pixel."""

    class Sum(nn.Module):
        def cam(self, _: object, batch: Batch) -> Tensor:
            return batch.images.sum(dim=1, keepdim=True)

    pairs = torch.full((1, 2, 3, 2, 2), 0.5, dtype=torch.float64)
    pairs[..., 0, 0] = 1.0  # so the clamp is at 1
    pixels = Pixels(
        AdvCam(weight=0.0), Sum(), None, pairs, torch.tensor([0]), torch.ones(1, 1), 1.0, 0.1, None
    )
    accumulate(pixels, 9)
    targets = torch.stack(pixels.targets)[:, 0, 0]
    expected = [3 * (1 + 3 * min(1.0, 0.5 + 0.1 * t)) / 4 for t in range(9)]
    assert targets.tolist() == pytest.approx(expected, abs=1e-10)


def test_the_network_keeps_its_weights_and_has_no_gradient(network, pictures):
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    read(network, pictures)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


# --- the values -----------------------------------------------------------------------------------


def test_rates_follow_the_range_of_the_input_and_the_number_of_steps():
    class Of(nn.Module):
        def __init__(self, normalise) -> None:
            super().__init__()
            self.backbone = type("Backbone", (), {"normalise": staticmethod(normalise)})

    paper = AdvCam().fitted((0.5, 1.0, 1.5, 2.0), brief=False)
    # Four digits of the range stand in the module.
    assert paper.rate(Of(resnet38d.normalise)) == pytest.approx(RATE, rel=1e-4)
    laptop = AdvCam().fitted(SCALES, brief=True)
    expected = RATE * 27 / 8 * (255 / 128) / IMAGENET_RANGE
    assert laptop.rate(Of(efficientnet_lite.normalise)) == pytest.approx(expected, rel=1e-6)


def test_a_laptop_climbs_at_scale_1_alone():
    reader = AdvCam().fitted((0.5, 1.0), brief=True)
    assert [reader.steps_at(scale) for scale in reader.scales] == [1, 8]
    full = AdvCam().fitted((0.5, 1.0, 2.0), brief=False)
    assert [full.steps_at(scale) for scale in full.scales] == [13, 27, 27]


@pytest.mark.parametrize(
    ("steps", "small"), [(27, 13), (11, 5), (10, 5), (8, 5), (6, 5), (5, 5), (3, 3)]
)
def test_the_rule_of_small_scales(steps, small):
    reader = AdvCam(steps=steps).fitted((0.5, 1.0), brief=False)
    assert [reader.steps_at(scale) for scale in (0.5, 1.0)] == [small, steps]
    plain = AdvCam(steps=steps, half_small=False).fitted((0.5, 1.0), brief=False)
    assert plain.steps_at(0.5) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be a whole number"),
        ({"reach": float("nan")}, "reach must be a finite number"),
        ({"weight": -1.0}, "weight must be a finite number"),
        ({"threshold": 1.5}, "threshold must lie in 0..1"),
        ({"suppress": "all"}, "suppress must be one of others, absent"),
        ({"attribution": "cam"}, "attribution must be one of relu, grad_cam"),
        ({"weigh": 1}, "weigh must be one of mean, sum"),
        ({"clamped": 1}, "clamped must be one of"),
        ({"scales": (0.5,)}, "scales must contain 1"),
        ({"scales": (1.0,), "climbed": (2.0,)}, "and those climbed"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdvCam(**options)


# --- the row --------------------------------------------------------------------------------------


def test_the_row_runs_and_logs_its_mechanism(stored):
    study = catalogue.get("rivals")
    made = pipeline.artefacts(SMOKE, study.row("advcam"), 0)
    plain = pipeline.laid_out(SMOKE, study.row("psa_seed"), 0)
    assert plain["classifier"].key == made["classifier"].key
    assert made["seeds"].summary["images"] == SMOKE.val.count
    numbers = run.numbers(made)
    assert 0 < numbers["miou"] < 100
    assert set(AdvCam.names) <= numbers.keys()
    table = pd.read_csv(made["seeds"].folder / MECHANISM)
    assert list(table.columns) == ["name", *AdvCam.names]
    assert len(table) == sum(SMOKE.val.open().tags(i).any() for i in range(SMOKE.val.count))

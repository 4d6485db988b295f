"""RIB: numbers of the original, GNDP by hand, weights of an image, the rate, and the row."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_cases import Softplus
from torch import Tensor, nn

from aeft_lib.data.views import ViewSpec
from aeft_lib.paper.classifier import Classification
from aeft_lib.parts.adapting import Adaptable, adaptable
from aeft_lib.parts.climbing import accumulate, merged, strided
from aeft_lib.parts.peakless import cover, gndp
from aeft_lib.rivals.rib import COVER, LARGE, RATE, RateSpec, Rib, Weights, choose_rate
from aeft_lib.stages import store
from aeft_lib.stages.image_reader import Picture
from aeft_lib.stages.loading import load_network
from aeft_lib.stages.read_each import EachSpec, Others, _read, pictures_of, read_each
from aeft_lib.stages.relu_first import ReluFirst
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE

POOLED, STEPS_BOUND = 1e-6, 1e-4  # tests/golden_rivals/README.md
STEPS, LOOKED = 10, 20
# What stops a case, and how it pools; the original's other numbers are the reader's own.
CASES = {
    "gentle": {},
    "gap": {"pooling": "gap"},
    "exploding": {"covers": 0.9},
    "stopped": {},
    "no_step": {},
    "explodes_at_once": {"covers": 0.2},
}


class Toy(Softplus):
    def part(self) -> Adaptable:
        body = [self.conv.weight, self.conv.bias]
        return Adaptable(lambda x: x, self.forward, body, [self.head.weight])


class Followed(Weights):
    """Notes the head after every step."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.heads = []

    def move(self, step):
        reason = super().move(step)
        self.heads.append(self.part.head[0].detach().clone())
        return reason


class Case:
    """The golden arrays as tensors, perhaps in float64, and the climb of a case."""

    def __init__(self, arrays: dict, dtype: torch.dtype) -> None:
        tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}
        self.of = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
        self.scales, self.toy = tuple(self.of["scales"].tolist()), Toy(self.of).to(dtype)

    def climb(self, name: str):
        """The climb and what moved, as far as the original went."""
        options = {"covers": 1.0, "largest": self._largest(name)} | CASES[name]
        reader = Rib(scales=self.scales, **options)
        pairs = [self.of[f"image_{i}"] for i in range(len(self.scales))]
        inputs = {
            scale: torch.stack([image, image.flip(-1)])
            for scale, image in zip(self.scales, pairs, strict=True)
        }
        k = self.of["others_label"].shape[2]
        tags = torch.zeros(k, dtype=self.toy.head.weight.dtype)
        tags[self.of["class_ids"]] = 1

        def rows(step: int) -> tuple[Tensor, Tensor]:
            return self.of["others"][step], self.of["others_label"][step]

        rate = float(self.of[f"{name}/lr_f64"])
        weights = Followed(reader, self.toy.part(), inputs, tags, rows, rate)
        climb = accumulate(weights, STEPS)
        if not climb.reason:
            weights.move(STEPS - 1)  # the original takes it too
        return climb, weights

    def _largest(self, name: str) -> float:
        """A bound that the logits of the step that stopped exceed, and no earlier ones; 0: none."""
        if name != "stopped":
            return 0.0
        sizes = self.of[f"{name}/target_loss"].abs()
        return float(sizes[:-1].max() + sizes[-1]) / 2


@pytest.fixture(params=[torch.float32, torch.float64], ids=["single", "double"])
def case(request, golden_rivals) -> Case:
    return Case(golden_rivals("rib"), request.param)


# --- the original's numbers -----------------------------------------------------------------------


def test_golden_pooling(case, assert_near):
    x, tags = case.of["pool/x"], case.of["pool/labels"]
    shared = torch.zeros_like(tags)
    shared[:, case.of["pool/shared_ids"]] = 1
    per_image = gndp(x, tags, 0.4, classes=LOOKED)
    assert_near(per_image, case.of["pool/per_image_th0.4"], POOLED, "per image")
    for cut in (0.4, 0.5):
        ours = gndp(x, shared, cut, classes=LOOKED)
        assert_near(ours, case.of[f"pool/shared_th{cut}"], POOLED, f"shared, cut {cut}")
    assert_near(gndp(x, torch.zeros_like(tags), 0.4), case.of["pool/gap"], POOLED, "GAP")
    beyond = tags[:, LOOKED:].bool()
    assert beyond.any(), "a class that the original does not look at is tagged"
    corrected = gndp(x, tags, 0.4)
    assert torch.equal(corrected[:, :LOOKED], per_image[:, :LOOKED])
    assert (corrected[:, LOOKED:] != per_image[:, LOOKED:])[beyond].any()


def test_golden_gradient_of_the_pooling(case, assert_near):
    x = case.of["pool/x"].clone().requires_grad_()
    shared = torch.zeros_like(case.of["pool/labels"])
    shared[:, case.of["pool/shared_ids"]] = 1
    (gndp(x, shared, 0.4, classes=LOOKED) * case.of["pool/R"]).sum().backward()
    assert_near(x.grad, case.of["pool/grad_shared_th0.4"], POOLED, "gradient")


@pytest.mark.parametrize("name", CASES)
def test_golden_loop(case, assert_near, name):
    climb, weights = case.climb(name)
    golden = {k.split("/")[1]: t for k, t in case.of.items() if k.startswith(f"{name}/")}
    assert climb.stopped_in == golden["stopped_in_step"]
    reasons = {"exploding": COVER, "explodes_at_once": COVER, "stopped": LARGE}
    assert climb.reason == reasons.get(name, "")
    assert_near(weights.losses, golden["loss"], STEPS_BOUND, "losses")
    assert_near(weights.targets, golden["target_loss"], STEPS_BOUND, "targets")
    rows, after = case.of["watched_rows"], golden["classifier_after"]
    assert len(after) - len(weights.heads) == (climb.reason == COVER)  # noted once more there
    for step, theirs in enumerate(after):
        ours = weights.heads[min(step, len(weights.heads) - 1)][rows]
        assert_near(ours, theirs, STEPS_BOUND, f"head after {step}")
    conv = weights.part.body[0]
    assert_near(conv, golden["conv_weight_last"], STEPS_BOUND, "convolution")
    sums = [climb.sums[scale] for scale in case.scales]
    for i, maps in enumerate(sums):
        assert_near(maps, golden[f"sum_{i}"], STEPS_BOUND, f"sum {i}")
    size = tuple(case.of["hw"].tolist())
    assert_near(merged(sums, size), golden["high_res"], STEPS_BOUND, "high_res")
    assert_near(strided(sums, size), golden["cam"], STEPS_BOUND, "strided")


def test_golden_without_a_step_the_sums_are_the_plain_maps(case, assert_near):
    climb, _ = case.climb("no_step")
    with torch.no_grad():
        pair = torch.stack([case.of["image_0"], case.of["image_0"].flip(-1)])
        maps = case.toy(pair)[:, case.of["class_ids"]].relu()
    assert_near(climb.sums[1.0], STEPS * (maps[0] + maps[1].flip(-1)), STEPS_BOUND, "ten times")


# --- GNDP, cover and the loss by hand -------------------------------------------------------------


def of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("values", "cut", "mean", "logit"),
    [
        ((1, 2, 4), 0.4, "all", 1 / 3),
        ((1, 2, 4), 0.4, "kept", 1.0),
        ((1, 2, 4), 0.6, "all", 3 / 3),
        ((1, 2, 4), 1.01, "all", 7 / 3),
        ((1, 2, 4), 0.0, "kept", 0.0),
        ((-1, 2, 4), 0.4, "all", -1 / 3),
        # Negative everywhere: m / max is 4, 2, 1, none is below the cut.
        ((-4, -2, -1), 0.4, "all", 0.0),
        ((0, 0, 0), 0.4, "all", 0.0),
        ((0, -1, -2), 0.4, "all", -1.0),
    ],
)
def test_hand_worked_pooling(values, cut, mean, logit):
    assert gndp(of(*values), torch.ones(1, 1), cut, mean=mean).item() == pytest.approx(logit)
    plain = sum(values) / 3
    assert gndp(of(*values), torch.zeros(1, 1), cut, mean=mean).item() == pytest.approx(plain)


def test_a_flatter_map_has_a_smaller_logit():
    """So the target can fall while weights grow."""
    flat, peaked = of(1, 2.1, 2, 4), of(1, 2.1, 2, 8)
    assert gndp(flat, torch.ones(1, 1), 0.4) < gndp(peaked, torch.ones(1, 1), 0.4)


def test_gradient_of_the_pooling():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    tags = torch.tensor([[1, 0, 1], [0, 1, 1]])
    for mean in ("all", "kept"):
        assert torch.autograd.gradcheck(lambda x: gndp(x, tags, 0.4, mean=mean), maps)  # noqa: B023


def test_cover_is_of_the_union():
    maps = torch.tensor([[[4.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 2.0, 0.0]]])
    assert cover(maps, 0.3) == 0.5
    assert cover(torch.zeros(2, 2, 2), 0.3) == 0


def simple(reader: Rib, rate: float) -> Weights:
    """One class of two, seen in two rows; no others."""
    torch.manual_seed(0)
    head = nn.Conv2d(3, 2, 1, bias=False).double()
    part = Adaptable(lambda x: x, head, [], [head.weight])
    pair = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    none = (None, torch.zeros(0, 2))
    return Weights(reader, part, {1.0: pair}, torch.tensor([1, 0]), lambda step: none, rate)


def test_the_loss_falls_every_step_and_the_target_rises():
    weights = simple(Rib(covers=1.0, pooling="gap"), 1e-3)
    accumulate(weights, STEPS)
    assert all(b < a for a, b in zip(weights.losses, weights.losses[1:], strict=False))
    assert all(b > a for a, b in zip(weights.targets, weights.targets[1:], strict=False))
    assert weights.losses == pytest.approx([-target for target in weights.targets])


def test_a_step_on_logits_is_the_mean_of_the_features():
    """No sigmoid: the gradient of the logit does not shrink as the tag becomes certain."""
    weights = simple(Rib(pooling="gap", decay=0.0), 0.5)
    before, pair = weights.part.head[0].detach().clone(), weights.inputs[1.0]
    list(weights.read(0))
    weights.move(0)
    moved = (weights.part.head[0].detach() - before).flatten(1)
    expected = 10 * 0.5 * pair.mean(dim=(2, 3)).sum(dim=0)  # ten times the rate, two rows
    torch.testing.assert_close(moved[0], expected)
    assert not moved[1].any()


def test_with_the_sigmoid_a_certain_tag_asks_for_less():
    moves = {}
    for loss in ("logits", "bce"):
        weights = simple(Rib(pooling="gap", loss=loss, decay=0.0), 0.5)
        with torch.no_grad():
            weights.part.head[0][0] += 30
        before = weights.part.head[0].detach().clone()
        list(weights.read(0))
        weights.move(0)
        moves[loss] = (weights.part.head[0].detach() - before)[0].abs().max().item()
    assert moves["bce"] < 1e-6 * moves["logits"]


def recalls(**options) -> list[float]:
    """Of a planted object, after 1 to 10 states, at 0.3 of the peak; nothing beside it fires.

    Rows of 8 x 8 cells are its peak, of which the tag is certain already (40), two rows that fire
    less (8 and 2), and background of faint features; each kind has a channel of its own.
    """
    kinds = torch.tensor([0, 1, 2, 3, 3, 3, 3, 3])
    values = torch.tensor([2**0.5, 1, 1, 0.1], dtype=torch.float64)
    x = (F.one_hot(kinds) * values).T[:, :, None].expand(-1, -1, 8)
    reader, found = Rib(covers=1.0, decay=0.0, **options), []
    none = (None, torch.zeros(0, 1))
    for states in range(1, STEPS + 1):
        head = nn.Conv2d(4, 1, 1, bias=False).double()
        head.weight.data = (torch.tensor([40.0, 8, 2, 0]) / values).reshape(1, 4, 1, 1)
        part, pair = Adaptable(lambda x: x, head, [], [head.weight]), torch.stack([x, x])
        weights = Weights(reader, part, {1.0: pair}, torch.ones(1), lambda step: none, 2.0)
        maps = accumulate(weights, states).sums[1.0][0]
        fires = maps > 0.3 * maps.max()
        assert not fires[kinds == 3].any()
        found.append(fires[kinds < 3].double().mean().item())
    return found


def test_recall_rises_with_the_states_more_than_by_the_mean_and_not_with_a_sigmoid():
    """The claims on a planted case: GNDP finds all of the object, GAP a part more, BCE nothing."""
    claimed, mean, sigmoid = (
        recalls(**options)
        for options in ({}, {"pooling": "gap"}, {"pooling": "gap", "loss": "bce"})
    )
    for rising in (claimed, mean):
        assert rising == sorted(rising)
    assert (claimed[0], claimed[-1]) == pytest.approx((1 / 3, 1))
    assert (mean[0], mean[-1]) == pytest.approx((1 / 3, 2 / 3))
    assert sigmoid == pytest.approx([1 / 3] * STEPS)
    assert all(own >= other for own, other in zip(claimed, mean, strict=True))


# --- whole images ---------------------------------------------------------------------------------

SPEC = EachSpec(SMOKE.val, Rib(rate=1e-3).fitted((1.0,), brief=True), "", SMOKE.train)
FEW = replace(SPEC, scenes=replace(SMOKE.val, count=3))


@pytest.fixture
def classifier(stored) -> store.Artefact:
    return pipeline.classifiers(SMOKE, catalogue.GAP, 0, store.obtain)["classifier"]


def test_weights_of_an_image_do_not_depend_on_another(classifier):
    together = _read(range(3), FEW, classifier, {})
    alone = [_read(range(i, i + 1), FEW, classifier, {})[0] for i in (2, 0, 1)]
    for (_, cam, logits, numbers), other in zip(
        together, [alone[1], alone[2], alone[0]], strict=True
    ):
        assert torch.equal(cam, other[1])
        assert torch.equal(logits, other[2])
        assert numbers == other[3]


def test_another_repeat_draws_others_and_the_same_one_the_same(classifier):
    _, picture = others_and_picture()
    drawn = {repeat: Others(SMOKE.train, None, repeat) for repeat in (0, 1)}
    first, again = (drawn[0].draw(picture, 3, 6) for _ in range(2))
    assert first == again
    assert first != drawn[1].draw(picture, 3, 6)
    assert first != drawn[0].draw(picture, 4, 6)


def others_and_picture() -> tuple[Others, Picture]:
    others = Others(SMOKE.train, None, 0)
    picture = next(p for part in pictures_of(SMOKE.val, range(2)) for p in part)
    return others, picture


def test_others_share_no_class_and_come_once_each():
    others, picture = others_and_picture()
    drawn = others.draw(picture, 0, 20)
    assert len(set(drawn)) == len(drawn)
    assert drawn
    for index in drawn:
        tags = torch.from_numpy(SMOKE.train.open().tags(index))
        assert tags.any()
        assert not (tags & picture.tags).any()
    everything = picture._replace(tags=torch.ones_like(picture.tags))
    assert others.draw(everything, 0, 20) == []


def test_random_views_of_others_follow_from_their_path():
    scenes = Others(SMOKE.train, ViewSpec(crop=64, long_side=(64, 96)), 0)
    first, again, other = (
        scenes.images([1, 2], path, lambda x: x.float()) for path in ((5, 0), (5, 0), (5, 1))
    )
    assert first.shape == (2, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_network_is_put_back(classifier):
    network = load_network(classifier)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    others, picture = others_and_picture()
    FEW.reader.read(classifier.spec.method, network, [picture], others, {})
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


@pytest.mark.parametrize("adapts", ["last", "trained"])
def test_without_a_step_it_is_the_plain_cam(classifier, adapts):
    """Ten times the same map; the plain one adds its passes after they were enlarged."""
    network, (others, picture) = load_network(classifier), others_and_picture()
    reader = Rib(rate=1e-30, adapts=adapts).fitted((1.0,), brief=True)
    method: Classification = classifier.spec.method
    (ours,) = reader.read(method, network, [picture], others, {})
    # What is kept of others is that of this part: a second reading finds it, another part its own.
    other = replace(reader, adapts="trained" if adapts == "last" else "last")
    other.read(method, network, [picture], others, {})
    assert set(others.kept) == {"last", "trained"}
    with torch.no_grad():
        ids = [picture.tags.nonzero()[:, 0]]
        (plain,) = ReluFirst((1.0,)).from_images(method, network, [picture.image], ids)
    # Bilinear values of four products, ten additions, both sides of a division; the 1e-5 in it
    # is a tenth of itself here.
    peak = network.from_trunk(network.backbone.trunk(_plain(network, picture))).cam.max().item()
    bound = 2 * (7 + 10) * 2**-24 + 1e-5 / peak + 5e-6  # CPUs differ in the order of sums
    assert (ours.cam - plain.cam).abs().max() <= bound
    assert ours.numbers["stopped_by_cover"] in (0.0, 1.0)


def _plain(network: nn.Module, picture: Picture) -> Tensor:
    return network.backbone.normalise(torch.from_numpy(picture.image.copy()).permute(2, 0, 1)[None])


def test_an_image_without_tags_has_no_map(classifier):
    network, (others, picture) = load_network(classifier), others_and_picture()
    picture = picture._replace(tags=torch.zeros_like(picture.tags))
    (read,) = FEW.reader.read(classifier.spec.method, network, [picture], others, {})
    assert read.cam.shape == (0, SMOKE.val.size, SMOKE.val.size)
    assert read.numbers == {}


# --- the rate -------------------------------------------------------------------------------------


def test_the_rate_is_the_largest_at_which_few_stop_early(classifier, tmp_path):
    """What it finds is compared with every rung."""
    reader = replace(FEW.reader, rate=0.0, covers=0.55)
    ladder = (1e-3, 10.0, 4)
    spec = RateSpec(reader, SMOKE.train, SMOKE.train, "", images=4, at_most=0.3, ladder=ladder)
    summary = choose_rate(spec, {"classifier": classifier}, tmp_path)
    network = load_network(classifier)
    others, part = Others(SMOKE.train, None, 0), adaptable(network, "last")
    pictures = [p for b in pictures_of(SMOKE.train, range(0, 32, 8)) for p in b if p.tags.any()]
    given = [(p, reader.inputs_of(network, part, p)) for p in pictures]
    first = [abs(reader.climb(network, part, *g, others, 0.0, 2)[1].targets[0]) for g in given]
    assert summary["largest"] == pytest.approx(100 * statistics.median(first))
    reader, shares = replace(reader, largest=summary["largest"]), []
    for rung in range(ladder[2]):
        rate = ladder[0] * ladder[1] ** rung
        climbs = [reader.climb(network, part, *g, others, rate, 5)[0] for g in given]
        shares.append(sum(climb.reason in (COVER, LARGE) for climb in climbs) / len(pictures))
    few = [rung for rung, share in enumerate(shares) if share < 0.3]
    assert summary["rate"] == ladder[0] * ladder[1] ** max(few, default=0)
    if few:
        assert summary["early_stops"] == shares[max(few)]


def test_a_rate_may_be_bound_by_logits_alone(classifier, tmp_path):
    """Nothing covers more than the whole image; half the logits stop every image at once."""
    reader = replace(FEW.reader, rate=0.0, covers=1.0)
    given = {"images": 4, "ladder": (1e-3, 10.0, 4)}
    spec = RateSpec(reader, SMOKE.train, SMOKE.train, "", times=0.5, **given)
    summary = choose_rate(spec, {"classifier": classifier}, tmp_path)
    assert (summary["rate"], summary["early_stops"]) == (1e-3, 1 / 4)  # the first one decides
    own = RateSpec(replace(reader, largest=1e9), SMOKE.train, SMOKE.train, "", **given)
    found = choose_rate(own, {"classifier": classifier}, tmp_path)
    assert (found["largest"], found["early_stops"]) == (1e9, 0.0)


def test_what_was_chosen_is_used_and_no_more():
    chosen = {"rate": 0.5, "largest": 7.0, "early_stops": 0.1}
    assert Rib()._with(chosen) == Rib(rate=0.5, largest=7.0)
    assert Rib(rate=0.25)._with({}) == Rib(rate=0.25)


def test_no_mask_is_read(classifier, blind, tmp_path):
    chosen = FEW.reader.inputs(store.obtain, FEW, classifier)
    assert chosen == {}  # it has a rate
    assert read_each(FEW, {"classifier": classifier}, tmp_path)["images"] == 3
    asked = replace(FEW.reader, rate=0.0)
    spec = RateSpec(asked, SMOKE.train, SMOKE.train, "", images=4, ladder=(RATE, 3.0, 2))
    assert choose_rate(spec, {"classifier": classifier}, tmp_path)["rate"] >= RATE


# --- the values -----------------------------------------------------------------------------------


def test_a_laptop_adapts_the_last_block_and_the_paper_two_stages():
    brief = Rib().fitted((0.5, 1.0), brief=True)
    assert (brief.scales, brief.others, brief.adapts) == ((1.0, 0.5), 6, "last")
    assert brief.rate == brief.largest == 0.0
    full = Rib().fitted((0.5, 1.0, 1.5, 2.0), brief=False)
    assert (full.scales, full.others, full.adapts) == ((1.0, 0.5, 1.5, 2.0), 20, "trained")
    assert (full.rate, full.largest) == (8e-6, 600.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"rate": -1.0}, "rate must be a finite number"),
        ({"largest": float("inf")}, "largest must be a finite number"),
        ({"covers": 1.2}, "covers must lie in 0..1"),
        ({"pooling": "max"}, "pooling must be one of gndp, gap"),
        ({"mean": ""}, "mean must be one of all, kept"),
        ({"adapts": "head"}, "adapts must be one of"),
        ({"loss": "hinge"}, "loss must be one of logits, bce"),
        ({"scales": (0.5,)}, "scales must contain 1"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Rib(**options)


# --- the row --------------------------------------------------------------------------------------


def test_the_row_runs_and_logs_its_mechanism(stored):
    """With a rung of the ladder: that the rate is chosen has a test of its own."""
    study = catalogue.get("rivals")
    row = replace(study.row("rib"), reader=Rib(rate=RATE * 27))
    made = pipeline.artefacts(SMOKE, row, 0)
    plain = pipeline.classifiers(SMOKE, catalogue.GAP, 0, store.lookup)["classifier"]
    assert made["classifier"].key == plain.key
    numbers = run.numbers(made)
    assert 0 < numbers["miou"] < 100
    assert 1 <= numbers["states"] <= STEPS
    assert 0 <= numbers["cover"] <= 1
    assert set(Rib.names) <= numbers.keys()


def test_the_rate_of_the_row_is_chosen_on_the_training_scenes():
    asked = []

    def obtain(stage, spec, inputs=None):
        asked.append((stage.__name__, spec, inputs))
        return store.Artefact(stage.__name__, "", None, {"summary": {}}, spec)

    pipeline.products(SMOKE, catalogue.get("rivals").row("rib"), 0, obtain)
    (name, chosen, _), (last, _, inputs) = asked[-2:]
    assert (name, last) == ("choose_rate", "read_each")
    assert chosen.scenes == SMOKE.train
    assert set(inputs) == {"classifier", "rate"}

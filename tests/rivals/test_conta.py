"""CONTA: the class layer on a context map as golden numbers, the host as a limit case, and rounds."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from golden_cases import Case, TinyBackbone, check_parts
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.step import PLAIN, Objective, Stepper
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.paper.classifier import Classification
from aeft_lib.parts.context_map import PROJECTIONS, QUERIES
from aeft_lib.rivals.conta import PLACES, Conta, ContextClassifier, evenness
from aeft_lib.stages import store
from aeft_lib.stages.by_network import ByNetwork
from aeft_lib.stages.psa import Psa
from aeft_lib.studies import catalogue, pipeline, run
from aeft_lib.studies.profiles import SMOKE
from aeft_lib.studies.rivals_rounds import CONTA, CONTA_1
from aeft_lib.studies.rows import Row

EXACT = 1e-10  # float64, relative to the largest absolute value: the golden files' README
B, K, SIDE = 4, 5, 6


# --- golden numbers -------------------------------------------------------------------------------


@pytest.fixture
def case(golden_rivals) -> Case:
    return Case(golden_rivals("conta"))


class Through(torch.nn.Module):
    """A backbone that hands its input on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def tail(self, features: Tensor) -> Tensor:
        return features


class OneLayer(torch.nn.Module):
    """A class layer as the golden one: fc8 is the layer, and the ReLU after it takes nothing.

    Twice the class maps, of both signs, so that their positive parts are all there is.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        classes, channels = weight.shape
        self.fc8 = torch.nn.Conv2d(channels, 2 * classes, 1, bias=False)
        self.fc9 = torch.nn.Conv2d(2 * classes, classes, 1, bias=False)
        self.fc8.weight.data = torch.cat([weight, -weight])[..., None, None].clone()
        eye = torch.eye(classes, dtype=weight.dtype)
        self.fc9.weight.data = torch.cat([eye, -eye], dim=1)[..., None, None]


def golden_network(case: Case) -> ContextClassifier:
    """M as the last channel of one class layer, whose weight is the golden one."""
    weight, confounders = case["head/weight_f64"], case["confounders_f64"]
    classes, channels = weight.shape
    side = confounders.shape[1]
    network = Conta(side=side).build(Through(channels - 1), classes).double()
    network.head = OneLayer(weight[:, :-1])
    both = torch.cat([weight[:, -1], -weight[:, -1]])
    network.joined = torch.nn.Conv2d(1, 2 * classes, 1, bias=False)
    network.joined.weight.data = both[:, None, None, None].clone()
    network.context.confounders.copy_(confounders)
    network.context.query.weight.data = case["W1_f64"].clone()
    network.context.key.weight.data = case["W2_f64"].clone()
    return network


def test_golden_class_layer_on_a_context_map(case, assert_near):
    network, tags = golden_network(case), case["head/tags"]
    batch = Batch(features=case["head/features_f64"], tags=tags, labels=case["masks"][: len(tags)])
    method = Conta(side=case["confounders_f64"].shape[1])
    output = network.with_context(batch)
    assert_near(output.cam, case["head/cam_f64"], EXACT, "CAM")
    assert_near(output.logits, case["head/logits_f64"], EXACT, "logits")
    loss = method.combine(method.measure(network, batch))["classification"]
    assert_near(loss, case["head/loss_f64"], EXACT, "loss")
    layer, joined = network.head.fc8.weight, network.joined.weight
    given = (layer, joined, network.context.query.weight, network.context.key.weight)
    of_layer, of_joined, of_query, of_key = torch.autograd.grad(loss, given)
    # The weights stand twice, with both signs.
    halves = torch.cat([of_layer, of_joined], dim=1)[..., 0, 0].chunk(2)
    assert_near(halves[0] - halves[1], case["head/grad_weight_f64"], EXACT, "gradient in the layer")
    assert_near(of_query, case["head/grad_W1_f64"], EXACT, "gradient in W1")
    assert_near(of_key, case["head/grad_W2_f64"], EXACT, "gradient in W2")


# --- the classifier -------------------------------------------------------------------------------


METHOD = Conta(side=SIDE)


def tiny(method: Conta = METHOD) -> ContextClassifier:
    torch.manual_seed(0)
    network = method.build(TinyBackbone(), K)
    network.context.confounders.copy_(
        torch.rand(K, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    )
    return network


def moved(network: ContextClassifier) -> ContextClassifier:
    """With a context map that has a say."""
    torch.nn.init.normal_(network.joined.weight)
    return network


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(B, 3, 24, 24, generator=generator).to(dtype)
    tags = torch.eye(K, dtype=torch.bool)[:B]
    labels = torch.randint(K + 1, (B, 3, 3), generator=generator, dtype=torch.uint8)
    labels = labels.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    return Batch(images=images, tags=tags, labels=labels)


@pytest.mark.parametrize("place", PLACES)
def test_a_round_begins_as_the_host_bit_for_bit(place):
    """The same draws, and a channel of weight 0: the same CAM, logits, loss and gradient."""
    method = Conta(side=SIDE, joined_at=place)
    torch.manual_seed(0)
    host = Classification().build(TinyBackbone(), K)
    network = tiny(method)
    own = dict(network.named_parameters())
    for name, tensor in host.named_parameters():
        assert torch.equal(tensor, own[name]), name
    output, expected = network.with_context(batch()), host(batch().images)
    assert torch.equal(output.cam, expected.cam)
    assert torch.equal(network(batch().images).cam, expected.cam)
    terms = method.combine(method.measure(network, batch()))
    plain = Classification().combine(Classification().measure(host, batch()))
    assert torch.equal(terms["classification"], plain["classification"])
    assert terms["context_share"] == 0
    terms["classification"].backward()
    plain["classification"].backward()
    for name, tensor in host.named_parameters():
        assert torch.equal(tensor.grad, own[name].grad), name
    assert own["joined.weight"].grad.any(), "the channel learns from the first step on"


def test_without_its_context_it_is_the_host_whatever_the_channel_weighs():
    method = Conta(side=SIDE, context=False)
    network = moved(tiny(method))
    expected = network(batch().images)
    assert torch.equal(method.cam(network, batch()), expected.cam)
    terms = method.combine(method.measure(network, batch()))
    assert (terms["context_share"], terms["context_spread"].item()) == (0, pytest.approx(1))
    parameters = [network.joined.weight, network.context.query.weight]
    reached = torch.autograd.grad(terms["classification"], parameters, allow_unused=True)
    assert reached == (None, None)
    assert not torch.equal(Conta(side=SIDE).cam(network, batch()), expected.cam)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_switch_trains_what_it_says(place, query, projection):
    method = Conta(side=SIDE, mask_query=query, projection=projection, joined_at=place)
    network = moved(tiny(method))
    terms = method.combine(method.measure(network, batch()))
    assert terms["context_share"] > 0
    assert 0 < terms["context_spread"] <= 1 + 1e-6
    terms["classification"].backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    projections = {"context.query.weight", "context.key.weight"}
    assert reached & projections == (projections if projection == "learned" else set())
    assert {"joined.weight", "head.fc8.weight", "backbone.a.weight"} <= reached


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_of_one_class_the_map_is_its_context_whatever_the_image(query, projection):
    """Softmax over one context is 1: a step trains all but the projections."""
    method = Conta(side=SIDE, mask_query=query, projection=projection)
    torch.manual_seed(0)
    network = moved(method.build(TinyBackbone(), 1))
    confounders = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    network.context.confounders.copy_(confounders)
    samples = batch()
    samples = samples._replace(tags=samples.tags[:, :1], labels=samples.labels.clamp(max=1))
    context, alpha = network.context(samples.labels)
    assert torch.equal(alpha, torch.ones(B, 1))
    assert torch.equal(context[:, 0], confounders.expand(B, -1, -1))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    stepper = Stepper(network, optimiser, Objective(method.measure, method.combine), PLAIN)
    terms = stepper.step(samples)
    assert all(term.isfinite() for term in terms.values())
    assert terms["context_spread"] == 0 < terms["context_share"]
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if not name.startswith("context.")}


def test_mirrored_scenes_have_mirrored_maps_where_contexts_are_even():
    """A view and its map turn together: contexts that are symmetric give the CAM, turned."""
    network = moved(tiny(Conta(side=SIDE, projection="none")))
    confounders = network.context.confounders
    confounders.copy_((confounders + confounders.flip(-1)) / 2)
    samples = batch()
    turned = samples._replace(labels=samples.labels.flip(-1))
    both = [network.context(s.labels)[0] for s in (samples, turned)]
    torch.testing.assert_close(both[1], both[0].flip(-1))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("place", PLACES)
def test_parts_have_the_loss_and_the_gradient_of_the_whole(parts, place):
    method = Conta(side=SIDE, joined_at=place)
    samples = batch(torch.float64)
    check_parts(lambda: moved(tiny(method)).double(), method, samples, parts)


@pytest.mark.parametrize("place", PLACES)
def test_half_precision_is_finite_and_near(place):
    method = Conta(side=SIDE, joined_at=place)
    network = moved(tiny(method))
    plain = method.combine(method.measure(network, batch()))
    with torch.autocast("cpu", torch.bfloat16):
        halved = method.combine(method.measure(network, batch()))
    for name, term in plain.items():
        # Eight bits, through three layers.
        assert halved[name].item() == pytest.approx(term.item(), rel=0.05), name


def test_spread_of_weights():
    assert evenness(torch.full((1, 8), 1 / 8)).item() == pytest.approx(1)
    assert evenness(F.one_hot(torch.tensor([2]), 8).float()).item() == 0
    assert evenness(torch.ones(1, 1)).item() == 0


def test_wrong_values_and_missing_maps_are_refused():
    for field, value in (
        ("mask_query", "all"),
        ("projection", None),
        ("joined_at", "stages"),
        ("context", 1),
    ):
        with pytest.raises(ValueError, match=f"{field} must be one of .*got {value!r}"):
            Conta(**{field: value})
    with pytest.raises(ValueError, match="side must be a whole number"):
        Conta(side=-1)
    with pytest.raises(ValueError, match="side is 0"):
        Conta().build(TinyBackbone(), K)
    with pytest.raises(ValueError, match="needs the batch's label maps"):
        Conta(side=SIDE).cam(tiny(), batch()._replace(labels=None))
    assert Conta().fitted(16).side == 16


# --- whole rows -----------------------------------------------------------------------------------

SMALL = replace(SMOKE, train=replace(SMOKE.train, count=16))
MASKS = ByNetwork(Psa(), LargeFov())  # pseudo-labels at a threshold: no CRF, no AffinityNet


def cheap(row: Row) -> Row:
    """The row with masks that are made in less time, in all its rounds."""
    if not row.reads:
        return row
    source, before = row.reads
    return replace(row, reads=(replace(source, masks=MASKS), cheap(before)))


@pytest.fixture
def rows(stored) -> dict[str, dict[str, store.Artefact]]:
    """Two rounds on a few scenes, the control and GAP, computed by the test that is first."""
    study = catalogue.get("rivals")
    names = ("gap", "conta_round1", "conta", "conta_iterate")
    return {name: pipeline.artefacts(SMALL, cheap(study.row(name)), 0) for name in names}


def test_rounds_run_and_log_what_the_map_does(rows):
    for name in ("conta_round1", "conta"):
        numbers = run.numbers(rows[name])
        assert 0 < numbers["miou"] < 100
        assert 0 <= numbers["context_spread"] <= 1 + 1e-6
        # A network of two epochs may see no object at all, and then there is no context.
        assert numbers["context_share"] >= 0


@pytest.mark.exact
def test_iterating_alone_is_the_host_once_more(rows):
    """Nothing but M passes from round to round: weights and seeds are GAP's, bit for bit."""
    own, theirs = (
        load_file(rows[name]["classifier"].folder / "weights.safetensors")
        for name in ("conta_iterate", "gap")
    )
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())
    control, gap = (run.numbers(rows[name]) for name in ("conta_iterate", "gap"))
    for name in ("miou", "precision", "recall", "tag_map", "threshold"):
        assert control[name] == gap[name], name


def test_masks_of_a_round_are_predicted_from_the_seeds_of_the_last(rows):
    """The second round's maps come from the first round's classifier, not from the host's."""
    keys = []
    for name in ("conta_round1", "conta"):
        asked: dict[str, set] = {}

        def obtain(stage, spec, inputs=None, asked=asked):
            found = store.lookup(stage, spec, inputs)
            asked.setdefault(stage.__name__, set()).add(found.key)
            return found

        pipeline.products(SMALL, cheap(catalogue.get("rivals").row(name)), 0, obtain)
        keys.append(asked)
    first, second = keys
    for stage in ("train_segmenter", "average_masks", "train_with_maps"):
        assert len(first[stage]) == 1, stage
        assert len(second[stage]) == 2, stage
        assert first[stage] < second[stage], stage


def test_rows_follow_each_other():
    study = catalogue.get("rivals")
    rows = [study.row(name) for name in ("conta", "conta_round1", "gap")]
    for later, earlier in pairwise(rows):
        assert later.reads[1] == replace(earlier, mechanisms=())
    assert study.row("conta_pseudo").reads == CONTA.reads
    assert CONTA.reads[1] == CONTA_1


def test_a_row_is_taught_or_reads_maps():
    taught = catalogue.get("rivals").row("sccam_round1").taught_by
    with pytest.raises(ValueError, match="row conta is taught by a labeller and reads maps"):
        replace(CONTA, taught_by=taught)

"""One step of the triplet on a network of a few weights:

which terms, what they weigh, where gradients go, no waiting.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from aeft_lib.engine.samples import Batch
from aeft_lib.paper import erasing, losses
from aeft_lib.paper.classifier import CamClassifier, CamOutput
from aeft_lib.paper.gpp import GlobalAveragePooling, PyramidPooling
from aeft_lib.paper.triplet import (
    CORRECTED,
    FIRST_RELEASE,
    FIRST_RELEASE_PARTS,
    LOSS_QUIRKS,
    REFERENCE,
    Triplet,
)

K, N = 3, 6
COUNTS = {"hard", "without_negative"}
OFF = Triplet(attract="off", repel_weight=0)
SOFT, RIGID = Triplet(repel_weight=0), Triplet(attract="rigid", repel_weight=0)
REPEL = Triplet(attract="off", margin=10)  # every anchor with a negative is hard


class Backbone(nn.Module):
    """A frozen trunk, 16 x 16 pixels to a 4 x 4 map, and a trained tail."""

    out_channels = 4

    def __init__(self):
        super().__init__()
        self._trunk = nn.Conv2d(3, 4, 4, stride=4).requires_grad_(False)
        self._tail = nn.Conv2d(4, 4, 1)

    def trunk(self, images):
        return self._trunk(images)

    def tail(self, features):
        return self._tail(features).relu()


@pytest.fixture
def network() -> CamClassifier:
    torch.manual_seed(0)
    return CamClassifier(
        backbone=Backbone(),
        pooling=PyramidPooling(num_classes=K, levels=(1, 2, 4)),
        num_classes=K,
        hidden=8,
    )


@pytest.fixture
def batch(network) -> Batch:
    """Six images; the fourth has every tag, so it alone has no negative."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(N, 3, 16, 16, generator=generator)
    tags = torch.tensor(
        [[1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.bool
    )
    return Batch(
        images, network.backbone.trunk(images), tags, torch.rand(N, N, generator=generator)
    )


def terms(network: CamClassifier, batch: Batch, method: Triplet) -> dict[str, torch.Tensor]:
    """The terms of one batch in one piece."""
    return method.combine(method.measure(network, batch))


def watched_cams(network: CamClassifier) -> list[torch.Tensor]:
    """The CAMs of the passes to come, in their order: the anchor's, then the positive's."""
    cams = []
    network.pooling.register_forward_hook(lambda module, inputs, output: cams.append(inputs[0]))
    return cams


def gradients(network: CamClassifier, batch: Batch, method: Triplet) -> dict[str, torch.Tensor]:
    network.zero_grad()
    sum(terms(network, batch, method).values()).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


# --- golden parity -------------------------------------------------------------------------------


class Recorded:
    """Stands for a network:

    gives what the reference's gave, for the anchors (their features) and for the masked images.
    """

    def __init__(self, case):
        self.case = case

    def from_trunk(self, features):
        return CamOutput(self.case["cam"], self.case["logits"], self.case["gpp"])

    def __call__(self, images):
        return CamOutput(None, None, self.case["gpp_masked"])


@pytest.mark.parametrize(
    ("version", "method"),
    [("golden_losses", REFERENCE), ("golden_first_release", FIRST_RELEASE)],
    ids=["released", "first_release"],
)
def test_golden_step_of_both_public_losses(request, assert_near, version, method):
    weights_1 = replace(method, attract_weight=1, repel_weight=1)
    cases = request.getfixturevalue(version).items()
    whole = {name: case for name, case in cases if "grad_gpp" in case}
    assert whole
    for name, case in whole.items():
        leaves = {
            key: case[key].clone().requires_grad_()
            for key in ("cam", "logits", "gpp", "gpp_masked")
        }
        noise = torch.eye(len(case["label"]))[case["n_idx"]]  # makes the recorded pairs
        features = torch.empty(len(noise), 0)  # Recorded has seen them
        seen = terms(
            Recorded(case | leaves),
            Batch(case["images"], features, case["label"], noise),
            weights_1,
        )
        for term, theirs in (
            ("classification", "L_cls"),
            ("attract", "L_attract"),
            ("repel", "L_repel"),
        ):
            assert_near(seen[term], case[theirs], 1e-5, f"{name}/{theirs}")
        assert seen["hard"] == len(case["hard"])
        assert seen["without_negative"] == 0
        sum(seen.values()).backward()
        for key in ("logits", "gpp", "gpp_masked"):
            assert_near(leaves[key].grad, case[f"grad_{key}"], 1e-5, f"{name}/grad_{key}")
        assert leaves["cam"].grad is None


# --- the two public losses -----------------------------------------------------------------------


def test_halved_attention_halves_one_attraction_and_leaves_the_other(golden_losses):
    """A common shrinking of both CAMs pays in the released loss alone.  Halving is exact."""
    case = golden_losses["a"]
    halved = case | {name: case[name] / 2 for name in ("gpp", "gpp_masked")}
    for method, factor in ((REFERENCE, 0.5), (FIRST_RELEASE, 1.0)):
        plain, shrunk = (
            terms(
                Recorded(inputs),
                Batch(case["images"], torch.empty(len(case["label"]), 0), case["label"]),
                replace(method, repel_weight=0),
            )["attract"]
            for inputs in (case, halved)
        )
        # Powers of two pass through sums, roots and quotients without rounding.
        assert shrunk == factor * plain > 0


def test_every_part_of_the_first_release_changes_its_own_term(network, batch):
    reference = replace(REFERENCE, min_hard=0, margin=10, attract_weight=1)
    plain = terms(network, batch, reference)
    for part, fields in FIRST_RELEASE_PARTS.items():
        seen = terms(network, batch, replace(reference, **fields))
        changed = "repel" if part == "repel" else "attract"
        assert seen[changed] != plain[changed], part
        assert all(torch.equal(seen[n], plain[n]) for n in seen.keys() - {changed, "hard"}), part


def test_the_first_release_is_its_parts_and_its_weight():
    differing = {
        name for name in vars(REFERENCE) if getattr(FIRST_RELEASE, name) != getattr(REFERENCE, name)
    }
    parts = set().union(*FIRST_RELEASE_PARTS.values())
    assert differing == parts | {"attract_weight"}
    assert FIRST_RELEASE.attract_weight == FIRST_RELEASE.repel_weight == 0.15


# --- terms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names", "passes"),
    [
        (OFF, {"classification"}, 1),
        (SOFT, {"classification", "attract"}, 2),
        (RIGID, {"classification", "attract"}, 2),
        (REPEL, {"classification", "repel"} | COUNTS, 1),
        (CORRECTED, {"classification", "attract", "repel"} | COUNTS, 2),
    ],
    ids=["off", "soft", "rigid", "repel", "corrected"],
)
def test_settings_decide_which_terms_there_are_and_whether_a_second_pass_is_needed(
    network, batch, settings, names, passes
):
    cams = watched_cams(network)
    assert terms(network, batch, settings).keys() == names
    assert len(cams) == passes


@pytest.mark.parametrize(
    "settings",
    [OFF, CORRECTED, REFERENCE, RIGID, FIRST_RELEASE],
    ids=["off", "corrected", "reference", "rigid", "first_release"],
)
def test_images_without_cached_features_have_the_same_terms_and_gradients(network, batch, settings):
    plain = batch._replace(features=None)
    for name, term in terms(network, batch, settings).items():
        assert torch.equal(term, terms(network, plain, settings)[name]), name
    ours, theirs = gradients(network, plain, settings), gradients(network, batch, settings)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_multiply_their_own_term(network, batch):
    light = terms(
        network, batch, replace(REPEL, attract="soft", attract_weight=0.1, repel_weight=0.2)
    )
    heavy = terms(
        network, batch, replace(REPEL, attract="soft", attract_weight=0.3, repel_weight=0.8)
    )
    for name, ratio in (("classification", 1), ("attract", 3), ("repel", 4)):
        assert light[name] > 0
        torch.testing.assert_close(heavy[name], ratio * light[name])


@pytest.mark.parametrize(("asked", "counted"), [(0, 6), (2, 2), (6, 6), (8, 6)])
def test_only_the_first_samples_are_classified(network, batch, asked, counted):
    seen = terms(network, batch, replace(OFF, classification_samples=asked))
    logits = network.from_trunk(batch.features).logits
    assert torch.equal(
        seen["classification"], losses.classification(logits[:counted], batch.tags[:counted])
    )


def test_rigid_classifies_the_masked_images_all_of_them(network, batch):
    masked = erasing.erase(
        batch.images, network.from_trunk(batch.features).cam, batch.tags, threshold=0.6
    ).images
    seen = terms(network, batch, replace(RIGID, attract_weight=0.5, classification_samples=2))
    assert torch.equal(
        seen["attract"], 0.5 * losses.classification(network(masked).logits, batch.tags)
    )


def test_soft_compares_the_masked_images_with_the_whole_ones(network, batch):
    for space, maps in (("gpp", 2), ("cam", 0)):
        anchor = network.from_trunk(batch.features)
        positive = network(
            erasing.erase(batch.images, anchor.cam, batch.tags, threshold=0.3, keep="all").images
        )
        e_p, e_a = (erasing.embeddings(output[maps], batch.tags) for output in (positive, anchor))
        seen = terms(
            network,
            batch,
            replace(SOFT, space=space, erase_threshold=0.3, keep="all", attract_weight=1),
        )
        assert torch.equal(seen["attract"], (e_p - e_a).abs().mean())
        assert seen["attract"] > 0


@pytest.mark.parametrize("settings", [SOFT, REPEL], ids=["soft", "repel"])
def test_without_a_pyramid_embeddings_live_in_the_cam_or_nowhere(network, batch, settings):
    network.pooling = GlobalAveragePooling()
    assert terms(network, batch, replace(settings, space="cam"))["classification"].isfinite()
    with pytest.raises(
        ValueError, match='embeddings in the "gpp" space need a pyramid: GAP has no attention'
    ):
        terms(network, batch, settings)
    assert terms(network, batch, RIGID)["attract"] > 0  # compares no embeddings


def test_min_hard_switches_repel_off(network, batch):
    every, few, many = (terms(network, batch, replace(REPEL, min_hard=n)) for n in (0, 4, 5))
    assert every["hard"] == few["hard"] == many["hard"] == 5
    assert every["repel"] == few["repel"] > 0
    assert many["repel"] == 0


@pytest.mark.parametrize(("missing", "count"), [("leave_out", 1), ("borrow", 0)])
def test_counts_are_numbers_without_gradient(network, batch, missing, count):
    seen = terms(network, batch, replace(REPEL, missing_negative=missing))
    assert (seen["without_negative"].item(), seen["hard"].item()) == (count, N - count)
    assert not any(seen[name].requires_grad for name in COUNTS)
    assert all(seen[name].requires_grad for name in seen.keys() - COUNTS)


@pytest.mark.parametrize(
    ("target", "distance"),
    [("anchor_tags", (3 / 4 - 1 / 2) ** 2), ("own_tags", (1 / 2) ** 2 + (5 / 8) ** 2)],
)
def test_repel_targets_by_hand(target, distance):
    """a = 1/2 over the three quiet cells of the tagged map; n = 3/4 in the anchor's class, 5/8 in its own."""
    peak, tagged, other = torch.tensor(
        [[4.0, 0, 0, 0], [1.0, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 1.0]]
    ).view(3, 2, 2)
    gpp = torch.stack([torch.stack([tagged, other]), torch.stack([other, tagged])])
    recorded = Recorded({"cam": peak.expand(2, 2, 2, 2), "logits": torch.zeros(2, 2), "gpp": gpp})
    pair = Batch(None, torch.empty(2, 0), torch.eye(2), torch.rand(2, 2))
    seen = terms(recorded, pair, replace(REPEL, repel_target=target, margin=1, repel_weight=1))
    assert seen["repel"].item() == pytest.approx(1 - distance, abs=1e-4)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [OFF, SOFT, RIGID, REPEL, CORRECTED, REFERENCE, FIRST_RELEASE],
    ids=lambda s: s.attract,
)
def test_the_trunk_is_left_alone_and_all_else_is_trained(network, batch, settings):
    seen = gradients(network, batch, settings)
    assert seen.keys() == {name for name, _ in network.named_parameters() if "_trunk" not in name}
    assert all(gradient.isfinite().all() for gradient in seen.values())


def test_gradient_through_the_mask_changes_what_is_learnt(network, batch):
    for settings in (SOFT, RIGID):
        detached, through = (
            gradients(network, batch, replace(settings, mask_gradient=flag))
            for flag in (False, True)
        )
        assert not torch.allclose(
            detached["head.fc9.weight"], through["head.fc9.weight"], rtol=1e-4, atol=0
        )


@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        (RIGID, False),  # knows the anchor's CAM from the mask alone
        (replace(RIGID, mask_gradient=True), True),
        (SOFT, True),
        (replace(SOFT, anchor_gradient=False), False),
        (replace(SOFT, anchor_gradient=False, space="cam"), False),
        (replace(SOFT, anchor_gradient=False, mask_gradient=True), True),
    ],
)
def test_attraction_reaches_the_anchors_cam_as_itself_or_through_an_attached_mask(
    network, batch, settings, reached
):
    cams = watched_cams(network)
    attract = terms(network, batch, settings)["attract"]
    towards_anchor, towards_positive = torch.autograd.grad(attract, cams, allow_unused=True)
    assert (towards_anchor is not None) == reached
    assert not reached or towards_anchor.abs().sum() > 0
    assert towards_positive.abs().sum() > 0
    same = terms(network, batch, replace(settings, anchor_gradient=True, mask_gradient=False))[
        "attract"
    ]
    assert torch.equal(attract, same)  # gradients differ, the loss does not


# --- the device is never waited for --------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Fails at whatever needs a value, or the number of true entries, on the host."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        picks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        if picks or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            raise AssertionError(f"waited in {name}")
        return function(*arguments, **options or {})


WAITS = {
    "item": lambda x: x.sum().item(),
    "mask": lambda x: x[x > 0],
    "assignment": lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    "nonzero": lambda x: x.nonzero(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_the_watch_sees_waiting(wait):
    with NoWaiting(), pytest.raises(AssertionError, match="waited in"):
        wait(torch.ones(3))


@pytest.mark.parametrize(
    "settings", [CORRECTED, REFERENCE, RIGID, FIRST_RELEASE], ids=lambda s: s.keep
)
def test_a_step_waits_for_nothing(network, batch, settings):
    with NoWaiting():
        gradients(network, batch, settings)


# --- settings ------------------------------------------------------------------------------------


def test_presets_differ_in_the_quirks_and_in_nothing_else():
    differing = {
        name for name in vars(CORRECTED) if getattr(CORRECTED, name) != getattr(REFERENCE, name)
    }
    assert differing == set(LOSS_QUIRKS)


@pytest.mark.parametrize(
    "name",
    [
        "attract",
        "space",
        "keep",
        "attract_scale",
        "distance",
        "repel_scale",
        "repel_target",
        "missing_negative",
    ],
)
@pytest.mark.parametrize("value", ["none", "", None, True])
def test_unknown_choices_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got {value!r}"):
        Triplet(**{name: value})


@pytest.mark.parametrize("name", ["attract_weight", "repel_weight", "margin"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1", None])
def test_weights_that_are_none_are_refused(name, value):
    with pytest.raises(
        ValueError, match=f"{name} must be a finite number and not negative, got {value!r}"
    ):
        Triplet(**{name: value})


@pytest.mark.parametrize(("low", "high"), [(0.2, 1.0), (0.2, 1.5), (0.6, 0.6), (0.7, 0.6)])
def test_thresholds_out_of_order_are_refused(low, high):
    with pytest.raises(
        ValueError,
        match=f"thresholds must obey 0 < residual_threshold < erase_threshold < 1, got {low} and {high}",
    ):
        Triplet(residual_threshold=low, erase_threshold=high)


@pytest.mark.parametrize("name", ["residual_threshold", "erase_threshold"])
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf, True, "0.5", None])
def test_thresholds_that_are_none_are_refused(name, value):
    message = f"{name} must be a finite number and positive, got {value!r}"
    with pytest.raises(ValueError, match=message):
        Triplet(**{name: value})


@pytest.mark.parametrize("name", ["min_hard", "classification_samples"])
@pytest.mark.parametrize("value", [-1, 1.0, True, "4"])
def test_counts_that_are_none_are_refused(name, value):
    with pytest.raises(
        ValueError, match=f"{name} must be a whole number, at least 0, got {value!r}"
    ):
        Triplet(**{name: value})

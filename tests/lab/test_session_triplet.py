"""A triplet of two scenes, ready to be drawn: what it holds is what a training step compares."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aeft_lib.data.collages import Scene
from aeft_lib.engine.samples import Batch
from aeft_lib.lab import ch04_triplet, figures
from aeft_lib.networks.efficientnet_lite import normalise
from aeft_lib.paper import erasing, gpp, losses, triplet
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.triplet import CORRECTED, REFERENCE

K = 3
EMBEDDINGS = ["e_A", "e_P", "a", "n", "n in the anchor's classes"]


class Patches(nn.Module):
    """A backbone that averages 16 x 16 pixels."""

    out_channels = 3
    normalise = staticmethod(normalise)

    def trunk(self, images):
        return F.avg_pool2d(images, 16)

    def tail(self, features):
        return features


@pytest.fixture
def network() -> CamClassifier:
    torch.manual_seed(0)
    pooling = gpp.PyramidPooling(num_classes=K, levels=(1, 2, 4))
    return CamClassifier(backbone=Patches(), pooling=pooling, num_classes=K).eval()


def scene(number: int, *classes: int) -> Scene:
    """A scene of noise, coarse enough for patches to differ."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    tags = np.isin(np.arange(K), classes)
    return Scene(
        coarse.repeat(16, axis=0).repeat(16, axis=1),
        np.full((64, 64), classes[0] + 1, np.uint8),
        tags,
        f"s{number}",
    )


ANCHOR, NEGATIVE = scene(1, 0, 1), scene(2, 2)


@pytest.mark.parametrize("repel_target", triplet.REPEL_TARGETS)
@pytest.mark.parametrize("keep", erasing.KEEPS)
@pytest.mark.parametrize("space", triplet.SPACES)
def test_a_triplet_has_the_embeddings_that_a_training_step_compares(
    network, space, keep, repel_target
):
    settings = replace(
        CORRECTED,
        space=space,
        keep=keep,
        repel_target=repel_target,
        attract_weight=1.0,
        repel_weight=1.0,
    )
    images = normalise(
        torch.from_numpy(np.stack([ANCHOR.image, NEGATIVE.image])).permute(0, 3, 1, 2)
    )
    tags = torch.from_numpy(np.stack([ANCHOR.tags, NEGATIVE.tags]))
    batch = Batch(images, network.backbone.trunk(images), tags, torch.rand(2, 2))
    step = settings.combine(settings.measure(network, batch))
    # Each of the two is the other's negative.
    pairs = ((ANCHOR, NEGATIVE), (NEGATIVE, ANCHOR))
    both = [ch04_triplet.triplet_case(network, *pair, settings).embeddings for pair in pairs]
    assert [list(e) for e in both] == [EMBEDDINGS] * 2
    attract = np.mean([np.abs(e["e_P"] - e["e_A"]) for e in both])
    assert step["attract"].item() == pytest.approx(attract, rel=1e-4)
    assert attract > 0
    n = "n" if repel_target == "own_tags" else "n in the anchor's classes"
    distances = np.array([np.square(e["a"] - e[n]).sum() for e in both])
    hard = distances < settings.margin
    repel = (settings.margin - distances)[hard].sum() / max(hard.sum(), 1)
    assert (step["repel"].item(), step["hard"].item()) == (
        pytest.approx(repel, rel=1e-4),
        hard.sum(),
    )


def test_a_triplet_has_the_mask_and_the_region_of_its_thresholds(network):
    settings = replace(REFERENCE, erase_threshold=0.7, residual_threshold=0.4, space="cam")
    case = ch04_triplet.triplet_case(network, ANCHOR, NEGATIVE, settings)
    images, tags = (
        normalise(torch.from_numpy(ANCHOR.image.copy()).permute(2, 0, 1)[None]),
        torch.tensor([[1, 1, 0]]),
    )
    with torch.no_grad():
        cam = network(images).cam
        erased = erasing.erase(images, cam, tags, threshold=0.7)
        region = erasing.residual_region(cam, tags, threshold=0.4)
        e_a, e_p = (erasing.embeddings(maps, tags)[0] for maps in (cam, network(erased.images).cam))
    for ours, theirs in zip(
        (*case.erased, case.region, case.output.cam), (*erased, region, cam), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    distance = losses.attract_soft(
        *(torch.from_numpy(case.embeddings[name])[None] for name in ("e_P", "e_A"))
    )
    assert distance.item() == pytest.approx((e_p - e_a).abs().sum().item() / K)


def test_embeddings_are_zero_in_classes_they_do_not_have(network):
    embeddings = ch04_triplet.triplet_case(network, ANCHOR, NEGATIVE, REFERENCE).embeddings
    assert all(embeddings[name][2] == 0 for name in EMBEDDINGS if name != "n")
    assert embeddings["n"][:2].tolist() == [0, 0]
    assert embeddings["n"][2] != 0
    assert embeddings["n in the anchor's classes"][:2].all()


@pytest.mark.parametrize(
    "other",
    [scene(2, 1), scene(2, 1, 2), scene(1, 0, 1)],
    ids=["a class", "a class of two", "itself"],
)
def test_scenes_that_share_a_class_are_no_triplet(network, other):
    with pytest.raises(
        ValueError, match=rf"s1 and {other.name} share a class: not an anchor and its negative"
    ):
        ch04_triplet.triplet_case(network, ANCHOR, other, REFERENCE)


def test_a_network_without_a_pyramid_has_triplets_in_its_cam_alone():
    network = CamClassifier(
        backbone=Patches(), pooling=gpp.GlobalAveragePooling(), num_classes=K
    ).eval()
    assert (
        ch04_triplet.triplet_case(
            network, ANCHOR, NEGATIVE, replace(REFERENCE, space="cam")
        ).output.attention
        is None
    )
    with pytest.raises(ValueError, match='choose space="cam"'):
        ch04_triplet.triplet_case(network, ANCHOR, NEGATIVE, REFERENCE)


def test_pictures_of_a_triplet_are_its_maps_over_its_images(network):
    case = ch04_triplet.triplet_case(network, ANCHOR, NEGATIVE, REFERENCE)
    pictures, bars = ch04_triplet.triplet_pictures(case)
    titles = [
        "anchor",
        "its CAM",
        "mask m",
        "positive",
        "anchor again",
        "residual region",
        "negative",
        "its mask (truth)",
    ]
    assert list(pictures) == titles
    assert pictures["negative"] is NEGATIVE.image
    assert (pictures["its mask (truth)"] == 3).all()
    mask = case.erased.mask[0, 0].numpy()
    np.testing.assert_allclose(pictures["mask m"], figures.overlay(ANCHOR.image, mask))
    residual = case.region[0, 0] & case.region[0, 1]  # the third class is not tagged
    big = residual.float().numpy().repeat(16, axis=0).repeat(16, axis=1)
    np.testing.assert_allclose(pictures["residual region"], figures.overlay(ANCHOR.image, big))
    assert 0 < big.mean() < 1
    grey = 127 / 255  # what is erased, and in part what is dimmed
    shown = grey + (ANCHOR.image / 255 - grey) * mask[..., None]
    np.testing.assert_allclose(pictures["positive"], shown, atol=1e-5)
    assert list(bars) == ["pair", "embedding", "class", "value"]
    assert bars["pair"].tolist() == ["attract"] * 2 * K + ["repel"] * 2 * K
    assert bars["embedding"].tolist() == ["e_A"] * K + ["e_P"] * K + ["a"] * K + ["n"] * K
    assert bars["class"].tolist() == [0, 1, 2] * 4
    assert (
        bars["value"].tolist()
        == np.concatenate([case.embeddings[name] for name in EMBEDDINGS[:4]]).tolist()
    )

"""AffinityNet as a row of its own: its merge of passes, its constants, and whole rows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laid_out import planned
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.maps.seeds import EPS
from aeft_lib.paper.classifier import Classification
from aeft_lib.paper.gpp import Gap, GlobalAveragePooling, Pyramid
from aeft_lib.refinement.background import crossing, powers_around
from aeft_lib.rivals import psa
from aeft_lib.stages.psa import Psa, _half_distance
from aeft_lib.stages.reading import MultiScale
from aeft_lib.stages.relu_first import ReluFirst
from aeft_lib.studies import catalogue, pipeline, plan, run
from aeft_lib.studies.profiles import SMOKE, VOC

ON_MAPS = 1e-5  # tests/golden_rivals/README.md


class Given(nn.Module):
    """A network whose signed CAM is the cached features."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling, self.anchor = GlobalAveragePooling(), nn.Parameter(torch.zeros(1))


class AsGiven:
    """Its method."""

    def cam(self, _: nn.Module, batch: Batch) -> Tensor:
        return batch.features


def read(reader: MultiScale, passes: list[Tensor], size: tuple[int, int], ids: Tensor) -> tuple:
    """Seed and tag logits from signed maps (K, h, w), in pairs of plain and mirrored."""
    scales = (1.0, 0.5, 1.5, 2.0)[: len(passes) // 2]
    pairs = (torch.stack(passes[i : i + 2])[None] for i in range(0, len(passes), 2))
    features = dict(zip(scales, pairs, strict=True))
    return replace(reader, scales=scales).from_features(AsGiven(), Given(), features, [ids], size)[
        0
    ]


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("psa").items()}


def passes_of(case: dict[str, Tensor]) -> list[Tensor]:
    count = sum(key.startswith("score_") for key in case)
    assert count == 8
    return [case[f"score_{i}"][0] for i in range(count)]


def test_golden_merge_of_eight_passes(case, assert_near):
    rows = torch.arange(len(case["class_ids"]))
    cam, _ = read(psa.READER, passes_of(case), tuple(case["hw"].tolist()), rows)
    assert_near(cam, case["cam"], ON_MAPS, "seed")


def test_golden_merge_is_not_that_of_the_paper(case):
    rows = torch.arange(len(case["class_ids"]))
    cam, _ = read(MultiScale(), passes_of(case), tuple(case["hw"].tolist()), rows)
    assert (cam - case["cam"]).abs().mean() > 0.01


# --- the reader -----------------------------------------------------------------------------------


def test_a_negative_cell_takes_nothing_from_its_neighbours():
    """One pass of the cells 1 and -1: positive up to the middle of the second, not to the edge."""
    maps = torch.tensor([[[1.0, -1.0]]])
    cells = [maps, maps.flip(-1)]
    ours, _ = read(ReluFirst(), cells, (1, 8), torch.tensor([0]))
    paper, _ = read(MultiScale(), cells, (1, 8), torch.tensor([0]))
    assert (ours[0, 0] > 0).tolist() == [True] * 6 + [False] * 2
    assert (paper[0, 0] > 0).tolist() == [True] * 4 + [False] * 4


def test_maps_without_a_negative_cell_are_read_as_the_paper_does():
    generator = torch.Generator().manual_seed(0)
    passes = [torch.rand(4, 5, 6, generator=generator) for _ in range(4)]
    ids = torch.tensor([1, 3])
    ours, theirs = (read(r, passes, (20, 24), ids) for r in (ReluFirst(), MultiScale()))
    # The same operations; ReLU changes no bit.
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_tag_logits_are_those_of_the_signed_map():
    passes = [torch.full((2, 3, 3), -1.0), torch.full((2, 3, 3), 5.0)]
    passes[0][1] = 2.0
    cam, logits = read(ReluFirst(), passes, (6, 6), torch.tensor([0, 1]))
    assert logits.tolist() == [-1.0, 2.0]
    assert cam.shape == (2, 6, 6)


def test_images_are_read_like_their_features():
    class Cells(nn.Module):
        out_channels = 3

        def trunk(self, images: Tensor) -> Tensor:
            return F.avg_pool2d(images, 4)

        def tail(self, features: Tensor) -> Tensor:
            return features

        def normalise(self, images: Tensor) -> Tensor:
            return (images.float() - 127) / 128

    torch.manual_seed(0)
    method = Classification(Gap())
    network = method.build(Cells(), 3).eval()
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    ids, reader = torch.tensor([0, 2]), ReluFirst((1.0,))
    with torch.inference_mode():
        cam, logits = reader.from_images(method, network, [picture], [ids])[0]
        plain = network.backbone.normalise(torch.from_numpy(picture).permute(2, 0, 1)[None])
        signed = [network(view).cam for view in (plain, plain.flip(-1))]
    full = [F.interpolate(maps.relu(), size=(16, 24), mode="bilinear") for maps in signed]
    total = (full[0] + full[1].flip(-1))[0, ids]
    torch.testing.assert_close(cam, total / (total.amax(dim=(1, 2), keepdim=True) + EPS))
    torch.testing.assert_close(logits, signed[0].mean(dim=(2, 3))[0])


def test_a_pyramid_is_refused():
    network = Given()
    network.pooling = Pyramid("single", (2,)).build(3)
    with pytest.raises(ValueError, match="global average pooling, got PyramidPooling"):
        ReluFirst((1.0,)).from_features(Classification(), network, {}, [], (4, 4))


# --- the constants --------------------------------------------------------------------------------


def test_powers_keep_their_distance_around_the_threshold():
    spread = _half_distance(psa.POWERS[0], psa.POWERS[-1])
    low, _, high = (crossing(power) for power in powers_around(0.3, spread))

    def logit(t: float) -> float:
        return math.log(t / (1 - t))

    assert logit(low) - logit(0.3) == pytest.approx(logit(0.3) - logit(high))
    given = [logit(crossing(power)) for power in (psa.POWERS[0], psa.POWERS[-1])]
    assert logit(low) - logit(high) == pytest.approx(given[0] - given[1])


def test_at_paper_scale_the_numbers_are_the_release_own():
    profile, _ = plan.with_data(VOC)
    asked = planned(profile, "psa")
    assert asked["choose_background"][0].powers == psa.POWERS
    assert "spread_powers" not in asked
    walk = asked["walk_seeds"][0]
    assert (walk.beta, walk.steps, walk.crf_iterations) == (8, 256, 0)


def test_on_a_laptop_the_rule_gives_the_powers():
    asked = planned(SMOKE, "psa")
    assert asked["choose_background"][0].powers is None
    assert asked["spread_powers"][0].spread == pytest.approx(0.76, abs=0.005)
    assert asked["walk_seeds"][0].steps == 256


def test_the_paper_refinement_asks_for_what_it_always_did():
    asked = planned(SMOKE, "gap_crf")
    assert "spread_powers" not in asked
    assert Psa(crf=True) == Psa(True, False, (), 0)


@pytest.mark.parametrize(
    "powers", [(4.0, 16.0), (16.0, 4.0, 32.0), (0.0, 1.0, 2.0), (1.0, 2.0, math.inf), (-1.0,) * 3]
)
def test_wrong_powers_are_refused(powers):
    with pytest.raises(ValueError, match="powers must be three positive numbers"):
        Psa(powers=powers)


@pytest.mark.parametrize("steps", [-1, 2.5, True, None])
def test_wrong_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps must be a whole number"):
        Psa(steps=steps)


# --- whole rows -----------------------------------------------------------------------------------


def test_rows_run_and_share_their_classifier_with_gap(stored):
    study = catalogue.get("rivals")
    made = {
        n: pipeline.artefacts(SMOKE, study.row(n), 0) for n in ("gap", "psa_seed", "psa", "psa_crf")
    }
    gap, seed, walked, crf = made.values()
    assert seed["classifier"].key == gap["classifier"].key
    assert seed["seeds"].key != gap["seeds"].key
    assert seed["evaluation"].summary["tag_map"] == pytest.approx(
        gap["evaluation"].summary["tag_map"]
    )
    assert walked["background"].key == crf["background"].key
    assert walked["posteriors"].key == crf["scores"].key
    powers = walked["background"].summary
    expected = powers_around(powers["threshold"], _half_distance(4.0, 32.0))._asdict()
    assert {name: powers[name] for name in expected} == pytest.approx(expected)
    for row in (walked, crf):
        assert 0 < row["evaluation"].summary["miou_maskless"] < 100
    assert run.numbers(walked)["known"] == walked["affinity"].summary["known"] > 0

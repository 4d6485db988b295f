"""IRNet: the original's labels, loss, head and label maps, what would prove it wrong, whole rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from label_maps import agreement
from laid_out import planned
from torch import Tensor

from aeft_lib.data.collages import Collages
from aeft_lib.maps import evaluation
from aeft_lib.maps.labels import VOID, label_map, read_label_map
from aeft_lib.maps.seeds import EPS, combine_scales, read_seeds
from aeft_lib.networks.levels import LevelsSpec
from aeft_lib.networks.resnet50 import ResNet50Spec
from aeft_lib.parts.edge_refiner import EdgeRefiner
from aeft_lib.refinement import affinity
from aeft_lib.refinement.background import crossing
from aeft_lib.refinement.edge_net import at_quarter, grid_of
from aeft_lib.refinement.edge_walk import enlarged, walk
from aeft_lib.refinement.path_affinity import path_affinity
from aeft_lib.rivals.irnet import PairLoss
from aeft_lib.stages import store
from aeft_lib.stages.train_edges import EdgeSpec, RescaledCrop, _crops, rescaled, train_edges
from aeft_lib.stages.walk_edges import EdgeWalkSpec, scores_of
from aeft_lib.stages.write_labels import TruthSpec, label_files
from aeft_lib.stages.write_labels import true_labels as write_truth
from aeft_lib.studies import catalogue, pipeline, plan
from aeft_lib.studies.profiles import SMOKE, VOC, VOC_RESNET50

# tests/golden_rivals/README.md
ON_MAPS, GRADIENT = 1e-5, 1e-4
LABEL_PIXELS = 0.999
THRESHOLDS = EdgeRefiner(PairLoss()).thresholds

# As few scenes as fill a batch, and small ones: whole rows in seconds.
PROFILE = replace(
    SMOKE, train=replace(SMOKE.train, count=16, size=64), val=replace(SMOKE.val, size=64)
)


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("irnet").items()}


def part(case: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.split("/")[1]: value for key, value in case.items() if key.split("/")[0] == name}


# --- the original's CAMs --------------------------------------------------------------------------


def test_golden_cams_at_a_quarter_and_at_image_size(case, assert_near):
    """Its merge is `combine_scales` on maps without their negative part."""
    given = part(case, "cam")
    rows, size = given["class_ids"], given["hw"].tolist()
    features = [given[f"features_{i}"] for i in range(len(given["scales"]))]
    passes = [F.conv2d(maps, given["weight"]).relu()[:, rows].split(1) for maps in features]
    passes = [one for pair in passes for one in pair]
    assert torch.equal(rows, given["label"][0].nonzero()[:, 0])
    assert_near(combine_scales(passes, size=grid_of(size))[0], given["strided"], ON_MAPS, "strided")
    padded = tuple(side + -side % 16 for side in size)
    whole = combine_scales([maps.double() for maps in passes], size=padded)[0]
    # The sum over passes, from its quotient by its maximum + EPS; then the same of what is cropped.
    total = whole * EPS / (1 - whole.amax(dim=(1, 2), keepdim=True))
    total = total[:, : size[0], : size[1]]
    full = total / (total.amax(dim=(1, 2), keepdim=True) + EPS)
    assert_near(full, given["high_res"], ON_MAPS, "high_res")
    empty = [not bool(maps.any()) for maps in given["strided"]]
    assert sum(empty) >= 1
    assert [not bool(maps.any()) for maps in full] == empty


# --- the loss -------------------------------------------------------------------------------------


def of_original(case: dict[str, Tensor], values: Tensor) -> Tensor:
    """Our offsets in the original's order."""
    steps = [tuple(step) for step in case["path10/offsets"].tolist()]
    order = [affinity.offsets(10).index(step) for step in steps]
    return values[:, order]


def test_golden_pairs_and_affinities(case, assert_near):
    given = part(case, "loss")
    labels = affinity.pair_labels(given["label"], 10)
    for ours, name in zip(labels, ("bg_pos", "fg_pos", "neg"), strict=True):
        assert torch.equal(of_original(case, ours), given[name].bool()), name
    ours = path_affinity(given["edge_logits"][:, 0].sigmoid(), 10)
    assert_near(of_original(case, ours), given["affinity"], ON_MAPS, "affinity")


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_golden_loss_and_gradient(case, assert_near, kind):
    given = part(case, "loss")
    logits = given["edge_logits"].to(kind).requires_grad_()
    loss = PairLoss()
    terms = loss.combine(loss.measure(logits[:, 0], given["label"]))
    background, foreground, negative = terms["background"], terms["foreground"], terms["negative"]
    assert_near(4 * background, given["bg_pos_aff_loss"], ON_MAPS, "background")
    assert_near(4 * foreground, given["fg_pos_aff_loss"], ON_MAPS, "foreground")
    assert_near(2 * background + 2 * foreground, given["pos_aff_loss"], ON_MAPS, "positive")
    assert_near(2 * negative, given["neg_aff_loss"], ON_MAPS, "negative")
    # Their total has the displacement branch too.
    rest = (given["dp_fg_loss"] + given["dp_bg_loss"]) / 2
    assert_near(sum(terms.values()) + rest, given["total_loss"], ON_MAPS, "total")
    sum(terms.values()).backward()
    assert_near(logits.grad, given["grad_edge_logits"], GRADIENT, "gradient")


def test_parts_of_a_batch_add_up(case):
    given = part(case, "loss")
    logits, loss = given["edge_logits"][:, 0].double(), PairLoss()
    whole = loss.combine(loss.measure(logits, given["label"]))
    parts = [loss.measure(logits[i : i + 1], given["label"][i : i + 1]) for i in range(2)]
    joined = loss.combine({name: torch.cat([p[name] for p in parts]) for name in parts[0]})
    for name, value in whole.items():
        torch.testing.assert_close(joined[name], value)


def test_a_line_of_edges_is_where_two_labels_meet():
    """The loss is least for an edge between them, of three places on a line."""
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    labels[..., 6:] = 1
    loss, found = PairLoss(radius=3), {}
    for place in (3, 5, 6, 9):
        logits = torch.full((1, 12, 12), -6.0)
        logits[..., place] = 6.0
        found[place] = sum(loss.combine(loss.measure(logits, labels)).values()).item()
    assert max(found[5], found[6]) < min(found[3], found[9])


def test_gradients_of_the_loss_agree_with_differences():
    generator = torch.Generator().manual_seed(0)
    # Sigmoids of logits a tenth apart: a step of 1e-6 changes no maximum.
    logits = torch.randperm(49, generator=generator).reshape(1, 7, 7).double() / 10 - 2.4
    labels = torch.randint(3, (1, 7, 7), generator=generator)
    loss = PairLoss(radius=3)

    def total(logits: Tensor) -> Tensor:
        return sum(loss.combine(loss.measure(logits, labels)).values())

    assert torch.autograd.gradcheck(total, logits.requires_grad_())


def test_void_alone_costs_nothing():
    logits = torch.randn(1, 8, 8, requires_grad=True)
    labels = torch.full((1, 8, 8), VOID, dtype=torch.uint8)
    terms = PairLoss().combine(PairLoss().measure(logits, labels))
    assert sum(terms.values()).item() == 0.0
    assert PairLoss().described(labels) == {"known": 0.0}


@pytest.mark.parametrize("radius", [1, 2.5, None])
def test_wrong_radii_are_refused(radius):
    with pytest.raises(ValueError, match="radius must be a whole number, at least 2"):
        PairLoss(radius=radius)


# --- label maps -----------------------------------------------------------------------------------


def test_golden_label_map(case):
    given = part(case, "label")
    refiner = EdgeRefiner(PairLoss())
    edge, cam = given["edge"][0].double(), given["cam"].double()
    walked = walk(cam, edge, beta=refiner.beta, steps=refiner.steps)
    scores = enlarged(walked, tuple(given["hw"].tolist()))
    ours = label_map(given["class_ids"], scores, refiner.background)
    assert agreement(ours, given["pred"]) > LABEL_PIXELS
    # Where the score is clear of the threshold and of another class by the walk's tolerance.
    rows = torch.cat([torch.full_like(scores[:1], refiner.background), scores])
    first, second = rows.topk(2, dim=0).values
    clear = (first - second > 1e-3).numpy()
    assert (ours == given["pred"].numpy())[clear].all()


def test_scores_of_a_seed_are_walked_on_the_grid_and_keep_their_size():
    edge, cam = torch.zeros(3, 4), torch.zeros(1, 10, 15)
    cam[0, :4, :4] = 0.5
    spec = EdgeWalkSpec(SMOKE.train, steps=0)
    scores = scores_of(cam, edge, spec)
    assert scores.shape == (1, 10, 15)
    assert scores.max() == 1.0  # the CAM's own maximum
    assert scores[0, 0, 0] == 1.0
    squared = scores_of(cam, edge, replace(spec, power=2.0))
    torch.testing.assert_close(squared, scores)  # 0 and 1 alone on the grid
    assert scores_of(cam, torch.ones(3, 4), spec).max() == 0.0
    # A class that never fires stays empty, and does not touch the other.
    both = scores_of(torch.cat([cam, torch.zeros_like(cam)]), edge, replace(spec, steps=4))
    torch.testing.assert_close(both[:1], scores_of(cam, edge, replace(spec, steps=4)))
    assert not both[1].any()


# --- the refiner ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"thresholds": (0.05, 0.30)}, "thresholds must be two numbers between 0 and 1"),
        ({"thresholds": (0.3, 0.3)}, "thresholds must be two numbers between 0 and 1"),
        ({"thresholds": (1.0, 0.3)}, "thresholds must be two numbers between 0 and 1"),
        ({"thresholds": (0.3, 0.2, 0.1)}, "thresholds must be two numbers between 0 and 1"),
        ({"power": 0.0}, "power must be"),
        ({"beta": -1.0}, "beta must be"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"radius": 1}, "radius must be a whole number, at least 2"),
        ({"background": 1.5}, "background must lie in 0..1"),
        ({"scales": ()}, "scales must be positive, at least one"),
        ({"scales": (0.0, 1.0)}, "scales must be positive, at least one"),
        ({"last_crf": -1.0}, "last_crf must be"),
    ],
)
def test_wrong_refiners_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EdgeRefiner(PairLoss(), **wrong)


def test_at_paper_scale_the_numbers_are_the_release_own():
    asked = planned(plan.with_data(VOC)[0], "irnet")
    background, cut = asked["choose_background"]
    low, _, high = map(crossing, background.powers)
    assert (low, high) == pytest.approx(THRESHOLDS)
    assert "spread_powers" not in asked
    assert cut.thresholds == (0.25,)
    edges = asked["train_edges"][0]
    assert (edges.view.crop, edges.view.scales) == (512, (0.5, 1.5))
    schedule = edges.schedule
    assert (schedule.epochs, schedule.batch_size, schedule.head_lr) == (3, 32, 0.1)
    assert schedule.momentum == schedule.weight_decay == 1e-4
    # 3 epochs of 10,582 photos, 330 batches each, as the release counts them.
    assert schedule.epochs * schedule.epoch_steps(10582) == 990
    walked = asked["walk_edges"][0]
    assert (walked.beta, walked.steps, walked.radius, walked.least) == (10, 256, 5, 512)


def test_the_family_own_backbone_and_classifier_at_paper_scale():
    asked = planned(plan.with_data(VOC_RESNET50)[0], "irnet")
    classifier, edges = asked["train_classifier"][0], asked["train_edges"][0]
    assert classifier.backbone == ResNet50Spec()
    assert edges.backbone == LevelsSpec(ResNet50Spec())
    schedule = classifier.schedule
    assert schedule.epochs * schedule.epoch_steps(10582) == 3305  # as the release counts them
    assert schedule.head_lr == 10 * schedule.lr == 1.0
    assert (classifier.view.crop, classifier.view.jitter_probability) == (512, 0.0)


def test_on_a_laptop_rules_without_masks_give_the_thresholds():
    asked = planned(SMOKE, "irnet")
    # Half the distance of .30 and .05 in logits.
    assert asked["spread_powers"][0].spread == pytest.approx(1.05, abs=0.005)
    assert all(spec.powers is None for spec in asked["choose_background"])
    assert asked["choose_background"][-1].thresholds == SMOKE.thresholds
    edges = asked["train_edges"][0]
    assert edges.view is None
    assert edges.schedule == SMOKE.refinement.schedule
    assert all(spec.least == 0 for spec in asked["walk_edges"])


# --- training -------------------------------------------------------------------------------------


def true_labels(tmp_path) -> store.Artefact:
    """The masks of the training scenes as label maps."""
    folder = tmp_path / "truth"
    folder.mkdir()
    write_truth(TruthSpec(SMOKE.train), {}, folder)
    return store.Artefact("true_labels", "", folder, {"summary": {}})


@pytest.fixture
def spec() -> EdgeSpec:
    return planned(SMOKE, "irnet")["train_edges"][0]


def test_fewer_label_maps_than_scenes_are_refused(spec, stored, tmp_path):
    truth = true_labels(tmp_path)
    label_files(truth)[0].unlink()
    with pytest.raises(ValueError, match="there are 32 images and 31 label maps"):
        train_edges(spec, {"labels": truth}, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": 510}, "crop must be a multiple of 4, got 510"),
        ({"crop": 0}, "crop must be a whole number"),
        ({"scales": (1.5, 0.5)}, "scales must be positive and in order"),
        ({"scales": (0.0, 1.0)}, "scales must be positive and in order"),
    ],
)
def test_wrong_crops_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RescaledCrop(**wrong)


def test_a_photo_and_its_labels_are_rescaled_together():
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[:, 30:] = 7
    image = np.repeat(labels[..., None] * 30, 3, axis=2)
    picture, maps = rescaled(image, labels, torch.Generator().manual_seed(0), (0.5, 1.5))
    assert picture.shape == (3, *maps.shape)
    assert set(maps.unique().tolist()) == {0, 7}
    inside = abs(torch.arange(maps.shape[1]) - maps.shape[1] / 2) > 4
    assert torch.equal(picture[0, :, inside] > 100, maps[:, inside] == 7)
    same = rescaled(image, labels, torch.Generator().manual_seed(0), (1.0, 1.0))[1]
    assert torch.equal(same, torch.from_numpy(labels))


def test_crops_of_photos_have_void_where_the_photo_ends(spec, stored, tmp_path):
    view = replace(spec, view=RescaledCrop(128, (0.5, 0.6)))
    source, _ = _crops(view, label_files(true_labels(tmp_path)), lambda images: images.float() + 1)
    batch = source(torch.arange(4), torch.Generator().manual_seed(0), slice(4))
    assert batch.images.shape == (4, 3, 128, 128)
    assert batch.labels.shape == (4, 32, 32)
    outside = at_quarter(batch.images.abs().sum(dim=1)) == 0
    assert torch.equal(outside, batch.labels == VOID)
    assert 0.5 < outside.float().mean() < 1


# --- whole rows -----------------------------------------------------------------------------------


def made(name: str) -> dict[str, store.Artefact]:
    """A row on the smoke profile, in this process."""
    return pipeline.artefacts(PROFILE, catalogue.get("rivals").row(name), 0)


def test_rows_run_from_the_seeds_of_affinity_net(stored):
    row = made("irnet")
    assert row["seeds"].key == laid_out("psa")["seeds"].key
    numbers = row["evaluation"].summary
    assert 0 < numbers["miou_maskless"] < 100
    confident = row["confident"].summary
    assert confident["t_background"] < row["background"].summary["threshold"]
    assert confident["t_foreground"] > row["background"].summary["threshold"]
    assert row["mechanism_unsure"].summary["unsure"] == confident["unsure"]
    assert 0 < row["mechanism_known"].summary["known"] < 1
    assert 0 < row["mechanism_edge"].summary["edge"] < 1
    # Scores of the walk, one a tagged class; the largest of an image is 1.
    scenes = Collages(PROFILE.train)
    for index, (name, seed) in enumerate(read_seeds(row["scores"].folder / "seeds.npz")):
        tags = torch.from_numpy(scenes.tags(index)).nonzero()[:, 0]
        assert name == f"{index:05d}"
        assert torch.equal(seed.class_ids, tags)
        if len(tags) and seed.cam.any():
            assert seed.cam.max() == 1.0


def test_labels_are_cut_at_the_threshold_of_the_walked_scores(stored):
    row = made("irnet")
    scores = [tuple(seed) for _, seed in read_seeds(row["scores"].folder / "seeds.npz")]
    top = evaluation.top_histogram([cam for _, cam in scores], PROFILE.thresholds)
    threshold = PROFILE.thresholds[evaluation.otsu(top, PROFILE.thresholds)]
    for file, (ids, cam) in zip(label_files(row["labels"]), scores, strict=True):
        assert (
            read_label_map(file, num_classes=PROFILE.num_classes) == label_map(ids, cam, threshold)
        ).all()


def laid_out(name: str) -> dict[str, store.Artefact]:
    return pipeline.laid_out(PROFILE, catalogue.get("rivals").row(name), 0)


def test_ablations_share_seeds_labels_and_edges():
    names = ("irnet", "irnet_no_walk", "irnet_from_all", "irnet_per_class", "irnet_scales")
    rows = [laid_out(name) for name in (*names, "irnet_crf")]
    for shared in ("seeds", "background", "confident", "edges"):
        assert len({row[shared].key for row in rows}) == 1
    assert len({row["labels"].key for row in rows}) == len(rows)
    assert {laid_out(name)["seeds"].key for name in ("psa", "psa_crf")} == {rows[0]["seeds"].key}


def test_a_last_crf_takes_the_walked_scores_and_leaves_none(stored):
    row, plain = made("irnet_crf"), made("irnet")
    assert "scores" not in row
    assert row["walked"].key == plain["scores"].key
    assert 0 < row["labels"].summary["changed"] < 1
    assert row["mechanism_edge"].key == plain["mechanism_edge"].key


def test_no_mask_is_read_for_label_maps(stored, blind):
    row = catalogue.get("rivals").row("irnet")
    assert pipeline.products(PROFILE, row, 0)["labels"].summary["images"] == PROFILE.train.count

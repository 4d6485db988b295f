"""SC-CAM: numbers of the original, clusters and labels, the second head, and rounds.

A tiny network stands in for the backbone: three convolutions, and a 1x1 convolution for each head.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from golden_cases import FORWARD, Case, TinyBackbone, check_parts, check_steps
from safetensors.torch import load_file
from sklearn.metrics import mutual_info_score
from test_psa import read
from torch import Tensor, nn

from aeft_lib.data import cutouts
from aeft_lib.data.collages import CLASSES, Pack, load_pack
from aeft_lib.data.controlled import ControlledCollages, ControlledSpec
from aeft_lib.engine.samples import Batch
from aeft_lib.maps.labels import label_map
from aeft_lib.paper import losses
from aeft_lib.paper.gpp import Gap
from aeft_lib.rivals.sccam import (
    ScCam,
    SubCategories,
    SubclassClassifier,
    TagSpec,
    batch_average_precision,
    cluster_accuracy,
    clustered,
    count_tags,
    sub_labels,
)
from aeft_lib.stages import store
from aeft_lib.stages.loading import build_network
from aeft_lib.stages.reading import MultiScale
from aeft_lib.stages.relu_first import ReluFirst
from aeft_lib.studies import catalogue, ledger, pipeline, run
from aeft_lib.studies.profiles import SMOKE

GOLDEN_K = 10


class OneLayer(nn.Conv2d):
    """A head of one convolution, as in the original; the classifier asks fc8 for its type."""

    @property
    def fc8(self) -> nn.Module:
        return self


def tiny(classes: int, k: int) -> SubclassClassifier:
    torch.manual_seed(0)
    backbone, pooling = TinyBackbone(), Gap().build(classes)
    network = SubclassClassifier(
        backbone=backbone, pooling=pooling, num_classes=classes, subclasses=k
    )
    network.head = OneLayer(10, classes, 1, bias=False)
    network.sub_head = OneLayer(10, classes * k, 1, bias=False)
    return network


def our_name(golden: str) -> str:
    """The parameter of `tiny` that has the original's name."""
    if golden.startswith("trunk."):
        return golden.replace("trunk.", "backbone.")
    return {"fc8_20.weight": "head.weight", "fc8_200.weight": "sub_head.weight"}[golden]


@pytest.fixture
def case(golden_rivals) -> Case:
    return Case(golden_rivals("sccam"))


def inertia(features: Tensor, clusters: Tensor) -> float:
    """The sum of squared distances to the means of their clusters."""
    parts = [features[clusters == c].double() for c in clusters.unique()]
    return sum((part - part.mean(dim=0)).square().sum().item() for part in parts)


# --- the original's numbers -----------------------------------------------------------------------


def test_golden_labels(case):
    order, tags, clusters = (case[f"labels/{n}"] for n in ("image_order", "tags", "clusters"))
    assert torch.equal(clusters >= 0, tags.bool())
    assert torch.equal(sub_labels(clusters, GOLDEN_K)[order].long(), case["labels/sub"])
    assert torch.equal(tags[order], case["labels/parent"])


def test_golden_order_has_an_image_once_for_every_label(case):
    """The original's list goes class by class; each image is kept where it first stands."""
    tags, order = case["labels/tags"], case["labels/merged_order"].tolist()
    assert order == [image for has in tags.T for image in has.nonzero()[:, 0].tolist()]
    assert list(dict.fromkeys(order)) == case["labels/image_order"].tolist()
    z = sub_labels(case["labels/clusters"], GOLDEN_K)
    assert torch.equal(z.sum(dim=1), case["labels/merged_order"].bincount(minlength=len(z)))


def test_golden_separated_clouds(case):
    features, labels = case["kmeans/separated/x"], case["kmeans/separated/labels"]
    own = clustered(features, torch.ones(len(features), 1), 4)[:, 0]
    names = set(zip(own.tolist(), labels.tolist(), strict=True))
    assert len(names) == 4, "the same clusters up to their names"
    for ours, theirs in names:
        centre, golden = features[own == ours].mean(dim=0), case["kmeans/separated/centres"][theirs]
        assert (centre - golden).abs().max() <= FORWARD * golden.abs().max()
    assert inertia(features, own) == pytest.approx(
        case["kmeans/separated/inertia"].item(), rel=FORWARD
    )


def test_golden_overlapping_clouds(case):
    features = case["kmeans/overlapping/x"]
    own = clustered(features, torch.ones(len(features), 1), 10)[:, 0]
    golden = case["kmeans/overlapping/inertia"].item()
    theirs = inertia(features, case["kmeans/overlapping/labels"])
    assert theirs == pytest.approx(golden, rel=FORWARD)
    assert inertia(features, own) <= 1.02 * golden


def test_golden_one_start_is_worse_than_the_best_of_ten(case):
    """The bound above tells the number of restarts."""
    features = case["kmeans/overlapping/x"]
    own = clustered(features, torch.ones(len(features), 1), 10, restarts=1)[:, 0]
    bound = 1.02 * case["kmeans/overlapping/inertia"].item()
    assert case["kmeans/overlapping/inertia_one_start"] > bound
    assert inertia(features, own) > bound


def test_golden_forward(case, assert_near):
    network, images = case.fill(tiny(20, GOLDEN_K), our_name), case["forward/img"]
    with torch.no_grad():
        output = network(images)
        features = network.backbone.tail(images)
        sub_cam = network.sub_head(features)
    assert_near(output.logits, case["forward/x_20"], FORWARD, "logits")
    assert_near(output.sub_logits, case["forward/x_200"], FORWARD, "sub-logits")
    assert_near(features.mean(dim=(2, 3)), case["forward/feature"], FORWARD, "feature")
    assert_near(output.cam.relu(), case["forward/cam_20"], FORWARD, "CAM")
    assert_near(sub_cam.relu(), case["forward/cam_200"], FORWARD, "sub-CAM")


def test_golden_steps(case, assert_near):
    network = case.fill(tiny(20, GOLDEN_K), our_name)
    losses = {
        "loss_20": lambda terms: terms["classification"],
        "loss_200": lambda terms: terms["sub_classification"] / 5,
        "loss": lambda terms: terms["classification"] + terms["sub_classification"],
    }
    batch = Batch(
        images=case["forward/img"],
        tags=case["step/y_20"],
        labels=case["step/y_200"].to(torch.uint8),
    )
    options = {"losses": losses, "our_name": our_name, "assert_near": assert_near}
    check_steps(case, network, ScCam(subclasses=GOLDEN_K), batch, **options)


def test_golden_merge_of_passes(case, assert_near):
    """The release's ReLU is before up-sampling; it is a reader of the harness, not the default."""
    scores, size = [case[f"infer/score20_{i}"][0] for i in range(4)], case["infer/cam"].shape[-2:]
    ids = torch.arange(len(case["infer/class_ids"]))
    merged, _ = read(ReluFirst(), scores, size, ids)
    assert_near(merged, case["infer/cam"], FORWARD, "merged")
    labels = label_map(case["infer/class_ids"], merged, 0.15)
    assert (torch.as_tensor(labels) != case["infer/label_map_t15"]).float().mean() < 1e-3
    after, _ = read(MultiScale(), scores, size, ids)
    assert (after - case["infer/cam"]).abs().max() > 100 * FORWARD


def test_golden_maps_of_the_second_head(case, assert_near):
    """The release divides a class's ten maps by their joint maximum, for analysis; we do not.

    Maxima of the sums are above 3, so 1e-5 added to each counts 4e-6.
    """
    scores, golden = [case[f"infer/score200_{i}"][0] for i in range(4)], case["infer/cam_sub"]
    ours, _ = read(ReluFirst(), scores, golden.shape[1:], torch.arange(len(golden)))
    ours = ours * golden.amax(dim=(1, 2), keepdim=True)
    assert_near(ours, golden, 2 * FORWARD, "sub-CAMs")
    merged = ours.unflatten(0, (-1, GOLDEN_K)).amax(dim=1)
    assert_near(merged, case["infer/cam_merged"], 2 * FORWARD, "merged")


# --- clusters and labels --------------------------------------------------------------------------


def clouds(k: int, images: int, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Features around k distant centres, and the centre of each."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.arange(images) % k
    features = 10 * torch.eye(k, 6)[centre] + spread * torch.randn(images, 6, generator=generator)
    return features, centre


def test_four_separated_clouds_are_found_in_every_class():
    features, centre = clouds(4, 40)
    tags = torch.stack([torch.ones(40), (torch.arange(40) >= 8).float()], dim=1)
    clusters = clustered(features, tags, 4)
    for c in range(2):
        has = tags[:, c] == 1
        pairs = set(zip(clusters[has, c].tolist(), centre[has].tolist(), strict=True))
        assert len(pairs) == 4
        assert (clusters[~has, c] == -1).all()


def test_clusters_are_the_same_each_time():
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(2))
    first, second = (clustered(features, torch.ones(60, 1), 5) for _ in range(2))
    assert torch.equal(first, second)


def test_one_cluster_makes_labels_of_tags():
    tags = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]])
    assert torch.equal(sub_labels(clustered(torch.randn(3, 4), tags, 1), 1).int(), tags.int())


def test_there_are_as_many_labels_as_tags():
    tags = torch.randint(2, (50, 4), generator=torch.Generator().manual_seed(3))
    labels = sub_labels(clustered(torch.randn(50, 6), tags, 3), 3)
    assert torch.equal(labels.unflatten(1, (4, 3)).sum(dim=2), tags)


def test_equal_features_leave_clusters_empty():
    """Two features that differ make two clusters of three; no warning, no error."""
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 1)
    labels = sub_labels(clustered(features, torch.ones(8, 1), 3), 3)
    assert sorted(labels.sum(dim=0).tolist()) == [0, 4, 4]


def test_a_class_without_images_is_left_out():
    tags = torch.tensor([[1, 0]] * 6)
    labels = sub_labels(clustered(clouds(2, 6)[0], tags, 2), 2)
    assert labels[:, 2:].sum() == 0


def test_fewer_images_than_clusters_are_refused():
    tags = torch.tensor([[1, 1], [1, 0], [1, 0]])
    with pytest.raises(ValueError, match="class 1 has 1 images for k=2 clusters"):
        clustered(torch.randn(3, 4), tags, 2)


def test_features_that_are_not_finite_are_refused():
    features = torch.randn(4, 3)
    features[2, 1] = float("nan")
    with pytest.raises(ValueError, match="features must be finite"):
        clustered(features, torch.ones(4, 1), 2)


def test_clusters_tell_cut_outs_apart():
    """One object a scene, of a pack of eleven a class: more is shared than by chance.

    Chance: the same clusters dealt anew among the images of each class.
    """
    pack = load_pack()
    recorded = {key: cutouts._Recorded(images) for key, images in pack.cutouts.items()}
    spec = ControlledSpec("train", 108, 96, object_area=0.5)
    scenes = ControlledCollages(spec, Pack(recorded, pack.backgrounds, pack.checksum))
    images, tags, shown = [], [], []
    for scene in map(scenes.__getitem__, range(len(scenes))):
        images.append(scene.image)
        tags.append(scene.tags)
        shown.append(recorded["train", CLASSES[scene.tags.argmax()]].last)
    tags, shown, backbone = np.stack(tags), np.array(shown), SMOKE.backbone.build().eval()
    pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        parts = (backbone.normalise(part) for part in pictures.split(27))
        maps = torch.cat([backbone.tail(backbone.trunk(part)) for part in parts])
    features = maps.mean(dim=(2, 3))
    clusters = clustered(features, torch.from_numpy(tags), 3, restarts=3).numpy()

    def told(dealt: Callable) -> float:
        """Mutual information of clusters and cut-outs, summed over the classes."""
        pairs = ((shown[has], clusters[has, c]) for c, has in enumerate(tags.T))
        return sum(mutual_info_score(cut, dealt(own)) for cut, own in pairs)

    rng = np.random.default_rng(0)
    assert told(np.array) > max(told(rng.permutation) for _ in range(50))


# --- k --------------------------------------------------------------------------------------------


def counted(summary: dict) -> Callable:
    """An `obtain` that finds these counts, or a plan's, which finds none."""
    return lambda stage, spec, inputs=None: store.Artefact(
        stage.__name__, "", None, {"summary": summary}, spec
    )


@pytest.mark.parametrize(
    ("fewest", "images", "k"), [(90, 30, 3), (90, 8, 11), (89, 30, 2), (3, 30, 1)]
)
def test_k_leaves_enough_images_in_the_rarest_class(fewest, images, k):
    obtain = counted({"rarest": 0, "fewest": fewest})
    method = SubCategories(images=images).taught(ScCam(), obtain, SMOKE.train, None)
    assert method == ScCam(subclasses=k)


def test_more_clusters_than_images_are_refused_before_a_training():
    name = SMOKE.train.open().classes[2]
    obtain = counted({"rarest": 2, "fewest": 4})
    with pytest.raises(ValueError, match=f"k=5 clusters of class {name}, which has 4 images"):
        SubCategories(k=5).taught(ScCam(), obtain, SMOKE.train, None)


def test_a_plan_has_the_authors_k():
    assert SubCategories().taught(ScCam(), counted({}), SMOKE.train, None).subclasses == 10


def test_tags_of_scenes_are_counted(tmp_path):
    scenes = replace(SMOKE.train, count=6)
    tags = np.stack([scenes.open().tags(i) for i in range(6)]).sum(axis=0)
    summary = count_tags(TagSpec(scenes, ""), {}, tmp_path)
    assert summary["fewest"] == min(tags[tags > 0]) == tags[summary["rarest"]]


# --- the second head ------------------------------------------------------------------------------


def test_hand_worked_precision_and_accuracy():
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    labels = torch.tensor([[1, 0, 0, 1]])
    assert batch_average_precision(logits, labels).item() == 0.75  # (1/1 + 2/4) / 2
    assert cluster_accuracy(logits, labels, 2).item() == 0.5
    nothing = torch.zeros(1, 4, dtype=torch.uint8)
    assert batch_average_precision(logits, nothing) == cluster_accuracy(logits, nothing, 2) == 0


def test_other_names_of_clusters_leave_the_loss_of_a_permuted_head():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    order = torch.tensor([2, 0, 1, 4, 5, 3])  # within each class
    given = {"logits": logits[:, :2], "tags": labels[:, :2]}
    method = ScCam(subclasses=3)
    terms, turned = (
        method.combine(given | {"sub_logits": a, "sub_tags": b})
        for a, b in ((logits, labels), (logits[:, order], labels[:, order]))
    )
    for name, term in terms.items():
        assert turned[name].item() == pytest.approx(term.item(), rel=1e-14), name


def test_gradient_of_both_terms():
    tags, labels = torch.tensor([[1, 0]]), torch.tensor([[1, 0, 0, 0]])

    def total(logits: Tensor, sub_logits: Tensor) -> Tensor:
        measures = {"logits": logits, "tags": tags, "sub_logits": sub_logits, "sub_tags": labels}
        return sum(ScCam(subclasses=2).combine(measures).values())

    leaves = [torch.randn(1, n, dtype=torch.float64, requires_grad=True) for n in (2, 4)]
    assert torch.autograd.gradcheck(total, leaves)


def test_a_sub_logit_weighs_half_a_logit_with_ten_sub_categories():
    """5 / (10 K) against 1 / K."""
    logits, sub_logits = torch.zeros(1, 3).requires_grad_(), torch.zeros(1, 30).requires_grad_()
    terms = ScCam(subclasses=10).combine(
        {
            "logits": logits,
            "tags": torch.zeros(1, 3),
            "sub_logits": sub_logits,
            "sub_tags": torch.zeros(1, 30),
        }
    )
    parent, sub = torch.autograd.grad(sum(terms.values()), (logits, sub_logits))
    assert (parent / 2 - sub[:, :3]).abs().max() < 1e-6 * parent.abs().max()


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_have_the_loss_and_the_gradient_of_the_whole(parts):
    generator = torch.Generator().manual_seed(5)
    tags = torch.randint(2, (6, 4), generator=generator)
    batch = Batch(
        images=torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64),
        tags=tags,
        labels=sub_labels(torch.where(tags == 1, 1, -1), 3),
    )

    check_parts(lambda: tiny(4, 3).double(), ScCam(subclasses=3), batch, parts)


def test_one_class_of_two_sub_categories():
    """k-means of the only class, and a step of both heads."""
    tags, (features, centre) = torch.tensor([[1]] * 8), clouds(2, 8)
    z = sub_labels(clustered(features, tags, 2), 2)
    assert z.sum(dim=1).eq(1).all()
    assert len(set(zip(z[:, 0].tolist(), centre.tolist(), strict=True))) == 2
    method, network = ScCam(subclasses=2), tiny(1, 2)
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    terms = method.combine(method.measure(network, Batch(images=images, tags=tags, labels=z)))
    assert all(term.isfinite() for term in terms.values())
    total = terms["classification"] + terms["sub_classification"]
    gradients = torch.autograd.grad(total, list(network.parameters()))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_one_sub_category_is_one_more_head_on_the_same_start():
    """The parent's term does not know the second head, which then learns the tags too."""
    method, batch = ScCam(subclasses=1), Batch(images=torch.randn(2, 3, 8, 8), tags=torch.eye(2))
    network = method.build(TinyBackbone(), 2)
    terms = method.combine(method.measure(network, batch._replace(labels=batch.tags)))
    output = network(batch.images)
    assert terms["classification"] == losses.classification(output.logits, batch.tags)
    assert terms["sub_classification"] == 5 * losses.classification(output.sub_logits, batch.tags)
    assert terms["sub_accuracy"] == 1


# --- the values -----------------------------------------------------------------------------------


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="sub_weight must be a finite number"):
        ScCam(sub_weight=-1.0)
    with pytest.raises(ValueError, match="subclasses must be a whole number"):
        ScCam(subclasses=-1)
    with pytest.raises(ValueError, match="k must be a whole number"):
        SubCategories(k=2.5)
    with pytest.raises(ValueError, match="restarts must be a whole number"):
        SubCategories(restarts=0)
    with pytest.raises(ValueError, match="subclasses is 0"):
        ScCam().build(TinyBackbone(), 2)


# --- whole rows -----------------------------------------------------------------------------------


def trained(k: int) -> tuple[store.Artefact, store.Artefact]:
    """A GAP classifier on the smoke profile, and a round of k sub-categories after it."""
    row = catalogue.get("rivals").row("sccam_round1")
    row = replace(row, taught_by=(SubCategories(k=k), row.taught_by[1]))
    gap = pipeline.classifiers(SMOKE, catalogue.GAP, 0, store.obtain)["classifier"]
    return gap, pipeline.classifiers(SMOKE, row, 0, store.obtain)["classifier"]


@pytest.fixture
def two(stored) -> tuple[store.Artefact, store.Artefact]:
    return trained(2)


def test_a_round_trains_anew_on_labels_from_the_classifier_before(two):
    gap, after = two
    labeller, features = SubCategories(k=2), pipeline.features(SMOKE, "train", store.lookup)
    labels = labeller.label(store.lookup, SMOKE.train, gap, features)
    z = load_file(labels.folder / "labels.safetensors")["labels"]
    tags = torch.stack([torch.from_numpy(SMOKE.train.open().tags(i)) for i in range(len(z))])
    assert torch.equal(z.unflatten(1, (-1, 2)).sum(dim=2), tags.long())
    assert after.spec.method == ScCam(subclasses=2)
    assert {name: after.summary[name] for name in labels.summary} == labels.summary
    sizes = z.sum(dim=0)
    assert labels.summary["smallest_cluster"] == sizes.min()
    assert labels.summary["largest_cluster"] == sizes.max()
    # From ImageNet weights, where the GAP classifier started.
    first, second = (build_network(a.spec).state_dict() for a in (gap, after))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    log = pd.read_csv(after.folder / "log.csv")
    shares = log[["sub_ap", "sub_accuracy"]].to_numpy()
    assert ((shares > 0) & (shares <= 1)).all()


def test_clusters_of_photos_are_those_of_cached_features(two, tmp_path):
    """The same scenes through the whole network: the cache's half precision moves features only."""
    gap, _ = two
    labeller = SubCategories(k=2)
    cached = pipeline.features(SMOKE, "train", store.lookup)
    z = [
        load_file(
            labeller.label(store.obtain, SMOKE.train, gap, features).folder / "labels.safetensors"
        )["labels"]
        for features in (cached, None)
    ]
    assert z[0].shape == z[1].shape
    assert torch.equal(*(x.unflatten(1, (-1, 2)).sum(dim=2) for x in z))


def test_rounds_follow_each_other():
    study = catalogue.get("rivals")
    rows = [study.row(name) for name in ("sccam", "sccam_round2", "sccam_round1")]
    for later, earlier in pairwise(rows):
        assert later.taught_by == (SubCategories(), earlier)
    assert rows[-1].taught_by[1] == catalogue.GAP


def test_the_row_runs_and_logs_its_mechanism_which_a_ledger_keeps(stored, tmp_path, monkeypatch):
    study = catalogue.get("rivals")
    row = study.row("sccam_round1")
    table = run.run_study(study, SMOKE, [0], rows=[row], workers=1)
    assert 0 < table["miou"].item() < 100
    assert 0 < table["sub_ap"].item() <= 1
    assert table["smallest_cluster"].item() >= 1
    monkeypatch.setattr(ledger, "home", lambda: tmp_path / "ledger")
    run.keep(SMOKE, row, 0)
    assert run.stale(SMOKE, [(row, 0)]) == []  # its keys follow from the number of tags
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "empty"))
    assert run.stored(SMOKE, row, 0)["miou"] == table["miou"].item()

"""The context map: Eq. 3 and confounders as golden numbers, its limit cases, and its gradient."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from aeft_lib.maps.labels import VOID, write_label_map
from aeft_lib.parts.context_map import (
    PROJECTIONS,
    QUERIES,
    ContextMap,
    class_shares,
    context_map,
    similarity,
)
from aeft_lib.parts.context_masks import (
    BUFFER,
    ConfounderSpec,
    ContextMasks,
    average_masks,
    class_means,
)
from aeft_lib.stages.by_network import ByNetwork
from aeft_lib.stages.map_source import MAPS, STATISTICS, STATISTICS_FILE
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_with_maps import WARM_START

EXACT = 1e-10  # float64, relative to the largest absolute value: the golden files' README
K, SIDE = 4, 6


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("conta").items()}


def golden_map(
    case: dict[str, Tensor], query: str, dtype: torch.dtype = torch.float64
) -> ContextMap:
    """The module with the golden projections and confounders."""
    confounders = case["confounders_f64"]
    classes, side = confounders.shape[:2]
    layer = ContextMap(num_classes=classes, side=side, mask_query=query, projection="learned")
    layer = layer.to(torch.float64)
    layer.confounders.copy_(confounders)
    layer.query.weight.data = case["W1_f64"].clone()
    layer.key.weight.data = case["W2_f64"].clone()
    return layer.to(dtype)


# --- golden numbers -------------------------------------------------------------------------------


def test_golden_confounders(case, assert_near):
    masks, tags = case["masks"], case["tags"].bool()
    classes, side = case["confounders_f64"].shape[:2]
    shares = class_shares(masks, classes, side, torch.float64)
    image, owner = tags.nonzero(as_tuple=True)
    ours = class_means(shares[image, owner], owner, classes)
    assert_near(ours, case["confounders_f64"], EXACT, "C")


@pytest.mark.parametrize(("query", "name"), [("objects", "foreground"), ("index", "index")])
def test_golden_equation_3(case, assert_near, query, name):
    layer, prefix = golden_map(case, query), f"eq3_{name}"
    given = case[f"{prefix}/query_f64"]
    masks, weights = layer._queries(case["masks"][: len(given)])
    assert_near(masks[:, 0], given, EXACT, "x")
    assert (weights == 1).all()
    keys = layer.key(layer.confounders.flatten(1))
    own = similarity(layer.query(given.flatten(1)), keys)
    assert_near(own, case[f"{prefix}/similarity_f64"], EXACT, "similarity")
    assert_near(own.softmax(dim=1), case[f"{prefix}/alpha_f64"], EXACT, "alpha")
    context, alpha = layer(case["masks"][: len(given)])
    assert_near(alpha, case[f"{prefix}/alpha_f64"], EXACT, "alpha of the module")
    assert_near(context[:, 0], case[f"{prefix}/M_f64"], EXACT, "M")
    prior = context_map(alpha, layer.confounders, case["prior_f64"])
    assert_near(prior, case[f"{prefix}/M_f64"], EXACT, "M with its prior")


def test_golden_equation_3_in_float32(case, assert_near):
    given = case["eq3_foreground/M_f64"]
    context, _ = golden_map(case, "objects", torch.float32)(case["masks"][: len(given)])
    # Sums of 64 products, and a softmax of logits below 10.
    assert_near(context[:, 0], given, 1e-5, "M")


def test_golden_zero_projection(case, assert_near):
    layer = golden_map(case, "objects")
    for projection in (layer.query, layer.key):
        projection.weight.data.zero_()
    given = case["eq3_zero_projection/M_f64"]
    context, alpha = layer(case["masks"][: len(given)])
    assert_near(context[:, 0], given, EXACT, "M")
    assert (alpha == 1 / alpha.shape[1]).all()


def test_golden_function_of_the_repository(case, assert_near):
    """With its biases it is another map; without them, Eq. 3."""
    layer, query = golden_map(case, "objects"), case["eq3_foreground/query_f64"].flatten(1)
    assert_near(case["repo/M_no_bias_f64"], case["eq3_foreground/M_f64"], EXACT, "no bias")
    keys = F.linear(layer.confounders.flatten(1), layer.key.weight, case["repo/bias_key_f64"])
    queries = F.linear(query, layer.query.weight, case["repo/bias_query_f64"])
    alpha = similarity(queries, keys).softmax(dim=1)
    assert_near(context_map(alpha, layer.confounders), case["repo/M_f64"], EXACT, "with biases")


def test_golden_weighted_geometric_mean(case, assert_near):
    """NWGM of sigmoids is the sigmoid of the mean score: why the sum may move inside."""
    scores = case["nwgm/scores_f64"]
    yes, no = (F.logsigmoid(sign * scores).mean(dim=1).exp() for sign in (1, -1))
    assert_near(yes / (yes + no), case["nwgm/value_f64"], EXACT, "NWGM")
    assert_near(scores.mean(dim=1).sigmoid(), case["nwgm/value_f64"], EXACT, "sigmoid")


# --- limit cases ----------------------------------------------------------------------------------


def labels_of(*images: list[int]) -> Tensor:
    """Images of four quarters of one label each, (B, 8, 8)."""
    quarters = torch.tensor(images, dtype=torch.uint8).reshape(-1, 2, 2)
    return quarters.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def layer_of(query: str = "objects", projection: str = "learned", classes: int = K) -> ContextMap:
    torch.manual_seed(0)
    layer = ContextMap(num_classes=classes, side=SIDE, mask_query=query, projection=projection)
    layer.confounders.copy_(torch.rand(classes, SIDE, SIDE))
    return layer.double()


def test_even_weights_and_one_full_context_give_a_quarter():
    confounders = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])
    assert (context_map(torch.full((3, 2), 0.5), confounders) == 0.25).all()


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_an_image_without_objects_has_the_even_mean_of_all_contexts(query, projection):
    layer = layer_of(query, projection)
    context, alpha = layer(labels_of([0, 0, 0, 0], [VOID] * 4))
    torch.testing.assert_close(alpha, torch.full((2, K), 1 / K).double())
    torch.testing.assert_close(context[:, 0], (layer.confounders.mean(dim=0) / K).expand(2, -1, -1))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_exchanged_contexts_change_nothing(projection):
    """P is even, so the map does not know which context is whose."""
    layer, labels = layer_of(projection=projection), labels_of([1, 0, 2, 0], [0, 3, 3, 0])
    before, _ = layer(labels)
    layer.confounders.copy_(layer.confounders[torch.tensor([2, 0, 3, 1])].clone())
    torch.testing.assert_close(layer(labels)[0], before, rtol=1e-12, atol=0)


def test_a_map_is_faint():
    layer = layer_of()
    context, _ = layer(labels_of([1, 0, 2, 0]))
    assert context.max() <= layer.confounders.max() / K


def test_queries_by_hand():
    labels = labels_of([1, 0, 4, VOID])
    objects, _ = layer_of("objects")._queries(labels)
    index, _ = layer_of("index")._queries(labels)
    classes, weights = layer_of("classes")._queries(labels)
    corner = (slice(None), slice(None), slice(0, 1), slice(0, 1))
    assert (objects[corner].item(), index[corner].item()) == (1.0, 0.25)
    assert (objects[0, 0, -1, 0], index[0, 0, -1, 0]) == (1.0, 1.0)
    assert objects[0, 0, 0, -1] == objects[0, 0, -1, -1] == 0
    assert weights.tolist() == [[0.5, 0.0, 0.0, 0.5]]
    assert classes[0, 0, 0, 0] == classes[0, 3, -1, 0] == 1
    assert not classes[0, 1:3].any()


def test_the_mean_over_queries_is_that_of_images_of_one_class():
    layer = layer_of("classes")
    both, _ = layer(labels_of([1, 0, 4, 0]))
    single = [layer(labels_of(image))[0] for image in ([1, 0, 0, 0], [0, 0, 4, 0])]
    torch.testing.assert_close(both, sum(single) / 2)


def test_a_frozen_projection_is_not_trained_and_none_has_no_weights():
    assert all(p.requires_grad for p in layer_of().parameters())
    frozen = layer_of(projection="frozen")
    assert len(list(frozen.parameters())) == 2
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not list(layer_of(projection="none").parameters())
    assert "confounders" not in dict(frozen.named_parameters())


def test_gradient_of_the_projections():
    layer = layer_of()
    masks = torch.rand(2, 1, SIDE**2, dtype=torch.float64)

    def total(first: Tensor, second: Tensor) -> Tensor:
        keys = layer.confounders.flatten(1) @ second.T
        alpha = similarity(masks[:, 0] @ first.T, keys).softmax(dim=1)
        return context_map(alpha, layer.confounders)

    weights = [torch.randn(K, SIDE**2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(total, weights)


# --- confounders ----------------------------------------------------------------------------------


class FourScenes:
    """Scenes of these tags."""

    classes, fingerprint = ("a", "b", "c"), "four"

    def __init__(self, tags: list[list[int]]) -> None:
        self.own = np.array(tags, dtype=bool)

    def open(self) -> "FourScenes":
        return self

    def __len__(self) -> int:
        return len(self.own)

    def tags(self, index: int) -> np.ndarray:
        return self.own[index]


TAGS = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
MASKS = labels_of([1, 0, 0, 0], [1, 1, 2, 0], [2, 2, 2, 2], [0, 0, 3, 0])


@pytest.fixture
def maps(tmp_path) -> Artefact:
    folder = tmp_path / "maps"
    (folder / "labels").mkdir(parents=True)
    for i, labels in enumerate(MASKS):
        write_label_map(folder / "labels" / f"{i:05d}.png", labels.numpy())
    return Artefact("maps", "", folder, {"summary": {}}, None)


def averaged(maps: Artefact, folder, tags: list[list[int]] = TAGS, **options) -> tuple:
    spec = ConfounderSpec(FourScenes(tags), 3, 2, **options)
    summary = average_masks(spec, {MAPS: maps}, folder)
    return load_file(folder / STATISTICS_FILE)[BUFFER], summary


def test_masks_are_averaged_over_the_images_of_a_class(maps, tmp_path):
    """Scene 3 has the tag of class 0, of which nothing is predicted: it counts as 0."""
    means, summary = averaged(maps, tmp_path)
    torch.testing.assert_close(means[0], torch.tensor([[2 / 3, 1 / 3], [0.0, 0.0]]))
    torch.testing.assert_close(means[1], torch.tensor([[0.5, 0.5], [1.0, 0.5]]))
    assert not means[2].any()
    assert summary["empty_classes"] == 1
    assert summary["coverage"] == pytest.approx(means.mean().item())


def test_predicted_members_are_where_the_class_is_seen(maps, tmp_path):
    means, summary = averaged(maps, tmp_path, members="predicted")
    torch.testing.assert_close(means[0], torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(means[2], torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert summary["empty_classes"] == 0


def test_shuffled_masks_keep_their_number_and_lose_their_class(maps, tmp_path):
    """The sum over all masks stays: each class has as many as before."""
    plain, _ = averaged(maps, tmp_path)
    counts = torch.tensor(TAGS).sum(dim=0)
    drawn = []
    for seed in range(8):
        mixed, _ = averaged(maps, tmp_path, shuffled=True, seed=seed)
        drawn.append(mixed)
        sums = [(c * counts[:, None, None]).sum(dim=0) for c in (plain, mixed)]
        torch.testing.assert_close(*sums)
    assert len({tuple(c.flatten().tolist()) for c in drawn}) > 1
    assert torch.equal(averaged(maps, tmp_path, shuffled=True, seed=3)[0], drawn[3])


def test_another_number_of_label_maps_is_refused(maps, tmp_path):
    with pytest.raises(ValueError, match="3 images and 4 label maps"):
        averaged(maps, tmp_path, TAGS[:3])


def test_no_images_of_a_class_make_an_empty_context():
    means = class_means(torch.ones(2, 1, 1), torch.tensor([1, 1]), 3)
    assert means.flatten().tolist() == [0.0, 1.0, 0.0]


# --- where masks come from ------------------------------------------------------------------------


class Named:
    """A refiner that names its label maps."""

    def refine(self, workshop, split: str) -> dict[str, str]:
        return {"seeds": "seeds", "labels": f"pseudo-labels of {split}"}


def asked(source: ContextMasks, split: str = "train") -> tuple:
    """What a source asks for: its stage, its inputs, and the spec of its statistics."""
    specs = []

    def obtain(stage, spec, inputs):
        specs.append(spec)
        return f"{stage.__name__} of {inputs[MAPS]}"

    def predicted(segmenter, labels, split, *, tags_known, crf):
        return f"{segmenter} from {labels}, {split}, tags {tags_known}, crf {crf}"

    workshop = SimpleNamespace(
        obtain=obtain,
        scenes=lambda split: FourScenes(TAGS),
        predicted=predicted,
        map_side=5,
        repeat=7,
        classifier="classifier",
    )
    if split == "train":
        return *source.for_training(workshop), specs
    return *source.for_seeds(workshop, split), specs


def test_masks_are_predicted_of_the_split_and_contexts_are_of_training_scenes():
    stage, inputs, specs = asked(ContextMasks(ByNetwork(Named(), "network")))
    train = "network from pseudo-labels of train, train, tags True, crf False"
    assert stage.__name__ == "train_with_maps"
    assert inputs == {MAPS: train, STATISTICS: f"average_masks of {train}"}
    stage, more, others = asked(ContextMasks(ByNetwork(Named(), "network", tags=False)), "scored")
    assert stage.__name__ == "infer_with_maps"
    assert more[MAPS] == "network from pseudo-labels of train, scored, tags False, crf False"
    assert "train, train, tags False" in more[STATISTICS]
    assert (specs[0].side, specs[0].members, specs[0].shuffled) == (5, "tags", False)
    assert specs[0].seed == others[0].seed == 0


def test_switches_reach_the_statistics_and_the_start():
    masks = ByNetwork(Named(), "network", crf=True)
    source = ContextMasks(masks, class_members="predicted", restart=False, shuffled=True)
    _, inputs, specs = asked(source)
    assert inputs[WARM_START] == "classifier"
    assert "crf True" in inputs[MAPS]
    assert (specs[0].members, specs[0].shuffled, specs[0].seed) == ("predicted", True, 7)


@pytest.mark.parametrize(
    ("field", "value"), [("class_members", "all"), ("restart", None), ("shuffled", 1)]
)
def test_wrong_sources_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be one of .*got {value!r}"):
        ContextMasks(ByNetwork(Named(), "network"), **{field: value})
    with pytest.raises(ValueError, match="members must be one of tags, predicted, got 'all'"):
        ConfounderSpec(None, 3, 2, members="all")
    with pytest.raises(ValueError, match="tags must be one of"):
        ByNetwork(Named(), "network", tags="known")

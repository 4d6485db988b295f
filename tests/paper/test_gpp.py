"""The pooling layers:

golden parity, limit cases, hand-worked numbers, gradients, symmetries, refusals.
"""

import re

import pytest
import torch
import torch.nn.functional as F

from aeft_lib.paper import gpp
from aeft_lib.paper.gpp import (
    ROOT_EPS,
    GlobalAveragePooling,
    PyramidPooling,
    SignedGate,
    normalised_prediction,
    pool_level,
    scaled_levels,
    sign_preserving_prediction,
    square_root_prediction,
)


def random_cam(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def pyramid_pooling(cam: torch.Tensor, **options) -> PyramidPooling:
    """A layer with seeded gates for this CAM's K and type."""
    torch.manual_seed(0)
    return PyramidPooling(num_classes=cam.shape[1], **options).to(cam.dtype)


def silence_gates(layer: PyramidPooling) -> PyramidPooling:
    """Zero weights: every gate is sigmoid(0) = 1/2."""
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    return layer


# --- golden parity -------------------------------------------------------------------------------


def numbers(keys, pattern: str) -> list[int]:
    """The numbers that stand for the one group of `pattern` in the names, ascending."""
    return sorted({int(found[1]) for key in keys if (found := re.fullmatch(pattern, key))})


def golden_cases(vectors) -> list[str]:
    cases = sorted(key.removesuffix("/cam") for key in vectors if key.endswith("/cam"))
    assert cases, "the golden file holds no case"
    return cases


def golden_layer(vectors, case: str) -> tuple[PyramidPooling, list[int]]:
    """The layer that a golden case describes, and the indices of its gates."""
    levels, gates = numbers(vectors, f"{case}/P(\\d+)"), numbers(vectors, f"{case}/gate(\\d+)_p")
    assert len(levels) == len(gates) + 1 >= 2
    layer = PyramidPooling(num_classes=vectors[f"{case}/cam"].shape[1], levels=levels)
    for gate, index in zip(layer.gates, gates, strict=True):
        for convolution, sign in ((gate.positive, "p"), (gate.negative, "n")):
            weight = torch.from_numpy(vectors[f"w/gconv{index}.att_{sign}"])
            convolution.load_state_dict({"weight": weight})
    return layer, gates


def test_golden_levels_gates_fused_maps_and_logits(golden, assert_near):
    vectors = golden("gpp_layer")
    for case in golden_cases(vectors):
        layer, indices = golden_layer(vectors, case)
        cam = torch.from_numpy(vectors[f"{case}/cam"])
        pooled, gates = layer(cam), layer.gate_maps(cam)
        for level, ours in zip(layer.levels, pooled.pyramid, strict=True):
            assert_near(ours, vectors[f"{case}/P{level}"], 1e-5, f"{case}/P{level}")
        for index, fused, gate in zip(indices, pooled.fused, gates, strict=True):
            assert_near(fused, vectors[f"{case}/G{index}"], 1e-5, f"{case}/G{index}")
            assert_near(
                gate.positive, vectors[f"{case}/gate{index}_p"], 1e-5, f"{case}/gate{index}_p"
            )
            assert_near(
                gate.negative, vectors[f"{case}/gate{index}_n"], 1e-5, f"{case}/gate{index}_n"
            )
        assert pooled.attention is pooled.fused[-1]
        assert_near(pooled.logits, vectors[f"{case}/logits"], 1e-5, f"{case}/logits")


def test_golden_gradients_of_cam_and_gates(golden, assert_near):
    vectors = golden("gpp_layer")
    for case in golden_cases(vectors):
        layer, indices = golden_layer(vectors, case)
        cam = torch.from_numpy(vectors[f"{case}/cam"]).requires_grad_()
        (layer(cam).logits * torch.from_numpy(vectors[f"{case}/R"])).sum().backward()
        assert_near(cam.grad, vectors[f"{case}/grad_cam"], 1e-4, f"{case}/grad_cam")
        for index, gate in zip(indices, layer.gates, strict=True):
            for convolution, sign in ((gate.positive, "p"), (gate.negative, "n")):
                name = f"{case}/grad_w/gconv{index}.att_{sign}"
                assert_near(convolution.weight.grad, vectors[name], 1e-4, name)


# --- levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 11), (10, 13), (5, 3), (16, 16), (1, 9)])
def test_a_level_is_adaptive_pooling_stretched_back_also_above_the_map_size(size):
    cam = random_cam(2, 3, *size)
    for level in (1, 2, 3, 4, 8, 16):
        theirs = F.interpolate(
            F.adaptive_avg_pool2d(cam, level), size=size, mode="bilinear", align_corners=False
        )
        torch.testing.assert_close(pool_level(cam, level), theirs, rtol=0, atol=1e-13)


def test_a_level_by_hand():
    cam = torch.tensor([[[[1.0, 3.0, 5.0, 7.0]]]])
    assert pool_level(cam, 1).flatten().tolist() == [4, 4, 4, 4]
    assert pool_level(cam, 2).flatten().tolist() == [
        2,
        3,
        5,
        6,
    ]  # bins 2 and 6 at cells 0.5 and 2.5, clamped outside


def test_a_level_of_a_constant_map_is_that_map():
    cam = torch.full((1, 2, 9, 14), -1.5, dtype=torch.float64)
    for level in (1, 2, 5, 16, 40):
        torch.testing.assert_close(pool_level(cam, level), cam)


@pytest.mark.parametrize("side", range(4, 41))
def test_scaled_levels_increase_and_fit_the_map(side):
    levels = scaled_levels(side)
    assert len(levels) == 4
    assert 1 <= levels[0] < levels[1] < levels[2] < levels[3] <= side


def test_scaled_levels_keep_the_papers_cells_per_bin():
    assert scaled_levels(40) == (2, 4, 8, 16)
    assert scaled_levels(80) == (4, 8, 16, 32)
    assert scaled_levels(20, (4, 8), paper_side=20) == (4, 8)


def test_levels_above_the_map_are_pooled_not_refused():
    cam = random_cam(1, 2, 3, 4)
    pooled = pyramid_pooling(cam, levels=(2, 16))(cam)
    assert pooled.pyramid[1].shape == cam.shape
    assert pooled.logits.isfinite().all()


# --- limit cases and hand-worked numbers ---------------------------------------------------------


def test_gap_by_hand():
    cam = torch.tensor([[[[2.0, -1.0]], [[0.0, 3.0]]]])
    pooled = GlobalAveragePooling()(cam)
    assert pooled.logits.tolist() == [[0.5, 1.5]]
    assert pooled[1:] == (None, (), ())


def test_attention_of_the_cams_own_sign_is_gap():
    cam = random_cam(3, 4, 6, 5)
    torch.testing.assert_close(
        sign_preserving_prediction(cam, cam.sign()), GlobalAveragePooling()(cam).logits
    )


def test_attention_of_the_other_sign_silences_the_cam():
    cam = random_cam(3, 4, 6, 5)
    assert (sign_preserving_prediction(cam, -cam) == 0).all()


def test_prediction_by_hand():
    cam = torch.tensor([[[[2.0, -1.0], [3.0, -4.0]]]])
    attention = torch.tensor([[[[0.5, -2.0], [-1.0, 1.0]]]])  # agrees in the first row alone
    assert sign_preserving_prediction(cam, attention).item() == pytest.approx((2 * 0.5 - 1 * 2) / 4)


def test_single_level_as_fine_as_the_map_attends_with_the_cam_itself():
    cam = random_cam(2, 3, 6, 6)
    pooled = pyramid_pooling(cam, levels=(6,), fusion="single")(cam)
    torch.testing.assert_close(pooled.attention, cam, rtol=0, atol=0)
    torch.testing.assert_close(pooled.logits, (cam * cam.abs()).mean(dim=(2, 3)))
    assert pooled.fused == ()


def test_a_silent_gate_gives_a_quarter_of_the_sum_and_half_of_the_same_map():
    x, y = random_cam(2, 3, 5, 4), random_cam(2, 3, 5, 4, seed=1)
    gate = silence_gates(SignedGate(num_classes=3).double())
    torch.testing.assert_close(gate(x, y), (x + y) / 4)
    torch.testing.assert_close(gate(x, x), x / 2)


def test_open_gates_give_the_mean_of_both_maps():
    x = random_cam(1, 2, 5, 5).abs() + 1
    gate = SignedGate(num_classes=2).double()
    torch.nn.init.constant_(gate.positive.weight, 100.0)
    torch.testing.assert_close(gate(x, 3 * x), 2 * x)


def test_gates_read_each_sign_alone():
    x, y = random_cam(1, 2, 5, 5), random_cam(1, 2, 5, 5, seed=1)
    gate = SignedGate(num_classes=2).double()
    assert torch.equal(gate.gates(x, y).positive, gate.gates(x.relu(), y.relu()).positive)
    assert torch.equal(gate.gates(x, y).negative, gate.gates(-(-x).relu(), -(-y).relu()).negative)
    torch.testing.assert_close(
        gate.gates(x.relu(), y.relu()).negative, torch.full((1, 2, 5, 5), 0.5).double()
    )


def test_fusion_order_of_gated_and_inverse():
    cam = random_cam(1, 2, 8, 8)
    gated = silence_gates(pyramid_pooling(cam, levels=(1, 2, 4, 8)))(cam)
    p1, p2, p4, p8 = gated.pyramid
    torch.testing.assert_close(gated.attention, (((p1 + p2) / 4 + p4) / 4 + p8) / 4)
    inverse = silence_gates(pyramid_pooling(cam, levels=(1, 2, 4, 8), fusion="inverse"))(cam)
    torch.testing.assert_close(inverse.attention, (((p8 + p4) / 4 + p2) / 4 + p1) / 4)
    assert [len(pooled.fused) for pooled in (gated, inverse)] == [3, 3]


@pytest.mark.parametrize("fusion", ["gated", "inverse"])
def test_gate_maps_are_the_gates_that_the_fusion_used(fusion):
    cam = random_cam(2, 2, 8, 8)
    layer = pyramid_pooling(cam, levels=(1, 2, 4), fusion=fusion)
    pooled, gates = layer(cam), layer.gate_maps(cam)
    levels = pooled.pyramid if fusion == "gated" else pooled.pyramid[::-1]
    carried = levels[0]
    for (a, b), level, fused in zip(gates, levels[1:], pooled.fused, strict=True):
        positive = carried.relu() * a[:, :1] + level.relu() * a[:, 1:]
        negative = (-carried).relu() * b[:, :1] + (-level).relu() * b[:, 1:]
        torch.testing.assert_close(fused, (positive - negative) / 2)
        carried = fused


def test_average_fusion_is_the_mean_of_the_levels():
    cam = random_cam(2, 3, 8, 8)
    layer = pyramid_pooling(cam, levels=(1, 2, 4), fusion="average")
    pooled = layer(cam)
    torch.testing.assert_close(
        pooled.attention, sum(pool_level(cam, level) for level in (1, 2, 4)) / 3
    )
    assert list(layer.parameters()) == []
    assert layer.gate_maps(cam) == ()


def test_positive_only_is_the_positive_half_of_the_prediction():
    cam = random_cam(2, 3, 8, 8)
    both = pyramid_pooling(cam, levels=(1, 2, 4))(cam)
    half = pyramid_pooling(cam, levels=(1, 2, 4), prediction="positive_only")(cam)
    torch.testing.assert_close(half.attention, both.attention)
    torch.testing.assert_close(half.logits, sign_preserving_prediction(cam.relu(), both.attention))
    negative_half = sign_preserving_prediction(-(-cam).relu(), both.attention)
    torch.testing.assert_close(half.logits + negative_half, both.logits)


def test_attention_off_averages_the_fused_pyramid():
    cam = random_cam(2, 3, 8, 8)
    pooled = pyramid_pooling(cam, levels=(1, 2, 4), prediction="attention_off")(cam)
    torch.testing.assert_close(pooled.logits, pooled.attention.mean(dim=(2, 3)))
    off = pyramid_pooling(cam, levels=(4,), fusion="single", prediction="attention_off")(cam)
    torch.testing.assert_close(
        off.logits, cam.mean(dim=(2, 3))
    )  # levels that divide the map keep its mean


# --- square root, normalised, and the gain of gates: not the paper's -----------------------------


def test_square_root_and_normalised_predictions_by_hand():
    cam = torch.tensor([[[[2.0, -1.0], [3.0, -4.0]]]], dtype=torch.float64)
    attention = torch.tensor(
        [[[[0.5, -2.0], [-1.0, 1.0]]]], dtype=torch.float64
    )  # agrees in the first row alone
    root = ((2 * 0.5 + ROOT_EPS) ** 0.5 - (1 * 2 + ROOT_EPS) ** 0.5) / 4
    assert square_root_prediction(cam, attention).item() == pytest.approx(root)
    assert normalised_prediction(cam, attention).item() == pytest.approx(
        (2 * 0.5 - 1 * 2) / (0.5 + 2 + 1 + 1), rel=1e-6
    )


def test_normalised_with_the_same_attention_everywhere_is_gap_of_what_agrees():
    cam = random_cam(3, 4, 6, 5)
    for value in (0.2, 3.0):
        attention = torch.full_like(cam, value)
        positive = normalised_prediction(cam.abs(), attention)
        torch.testing.assert_close(
            positive, GlobalAveragePooling()(cam.abs()).logits, rtol=1e-5, atol=0
        )
        torch.testing.assert_close(
            normalised_prediction(cam, attention), cam.relu().mean(dim=(2, 3)), rtol=1e-5, atol=0
        )
        torch.testing.assert_close(
            normalised_prediction(cam, -attention),
            -(-cam).relu().mean(dim=(2, 3)),
            rtol=1e-5,
            atol=0,
        )


def test_normalised_with_attention_of_the_cams_own_sign_is_gap_and_its_height_does_not_count():
    cam, attention = random_cam(3, 4, 6, 5), random_cam(3, 4, 6, 5, seed=1)
    torch.testing.assert_close(
        normalised_prediction(cam, cam.sign()),
        GlobalAveragePooling()(cam).logits,
        rtol=1e-5,
        atol=0,
    )
    higher = normalised_prediction(cam, 7 * attention)
    torch.testing.assert_close(higher, normalised_prediction(cam, attention), rtol=1e-5, atol=0)


def test_normalised_is_a_weighted_mean():
    """One position that has all attention decides alone; no logit is beyond the CAM's ends."""
    cam, peak = random_cam(1, 3, 4, 4).abs(), torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    peak[..., 2, 1] = 0.3
    torch.testing.assert_close(normalised_prediction(cam, peak), cam[..., 2, 1], rtol=1e-5, atol=0)
    mean = normalised_prediction(cam, random_cam(1, 3, 4, 4, seed=1).abs())
    assert (mean > cam.amin(dim=(2, 3))).all()
    assert (mean < cam.amax(dim=(2, 3))).all()


def test_square_root_with_the_cam_as_attention_is_gap():
    cam = random_cam(3, 4, 6, 5)
    bound = ROOT_EPS**0.5  # what a root loses where its product is large
    torch.testing.assert_close(
        square_root_prediction(cam, cam), GlobalAveragePooling()(cam).logits, rtol=0, atol=bound
    )
    assert (square_root_prediction(cam, cam) - GlobalAveragePooling()(cam).logits).abs().max() > 0


@pytest.mark.parametrize("predict", [square_root_prediction, normalised_prediction])
def test_attention_of_the_other_sign_or_none_silences_our_predictions_too(predict):
    cam = random_cam(3, 4, 6, 5)
    for attention in (-cam, torch.zeros_like(cam)):
        assert (predict(cam, attention) == 0).all()


@pytest.mark.parametrize(
    "predict", [sign_preserving_prediction, square_root_prediction, normalised_prediction]
)
def test_negated_cam_and_attention_give_the_negated_logit_and_agreement_raises_it(predict):
    cam, attention = random_cam(3, 4, 6, 5), random_cam(3, 4, 6, 5, seed=1)
    torch.testing.assert_close(
        predict(-cam, -attention), -predict(cam, attention), rtol=0, atol=1e-15
    )
    assert (predict(cam.abs(), attention.abs()) > predict(cam, attention).abs()).all()


@pytest.mark.parametrize(
    ("prediction", "factor"), [("sign_preserving", 4), ("square_root", 2), ("normalised", 2)]
)
def test_twice_the_cam_is_twice_the_logit_where_the_papers_is_four_times(prediction, factor):
    cam = 1000 * random_cam(
        2, 3, 8, 8
    )  # so large that the constants which keep gradients finite do not count
    for options in (
        {"fusion": "average", "levels": (1, 2, 4)},
        {"fusion": "single", "levels": (8,)},
    ):
        layer = pyramid_pooling(
            cam, prediction=prediction, **options
        )  # its attention doubles with the CAM
        once, twice = layer(cam).logits, layer(2 * cam).logits
        torch.testing.assert_close(
            twice, factor * once, rtol=0, atol=1e-4 * once.abs().max().item()
        )


@pytest.mark.parametrize(
    ("prediction", "predict"),
    [("square_root", square_root_prediction), ("normalised", normalised_prediction)],
)
@pytest.mark.parametrize("fusion", gpp.FUSIONS)
def test_a_layer_predicts_with_the_named_function_from_the_attention_of_the_papers(
    fusion, prediction, predict
):
    cam, levels = random_cam(2, 3, 8, 8), (4,) if fusion == "single" else (1, 2, 4)
    ours = pyramid_pooling(cam, levels=levels, fusion=fusion, prediction=prediction)(cam)
    papers = pyramid_pooling(cam, levels=levels, fusion=fusion)(cam)
    assert torch.equal(ours.attention, papers.attention)
    assert torch.equal(ours.logits, predict(cam, papers.attention))
    assert not torch.allclose(ours.logits, papers.logits)


def test_a_gain_of_two_with_silent_gates_is_the_plain_mean():
    x, y = random_cam(2, 3, 5, 4), random_cam(2, 3, 5, 4, seed=1)
    torch.testing.assert_close(
        silence_gates(SignedGate(num_classes=3, gain=2.0).double())(x, y), (x + y) / 2
    )


def test_a_gain_multiplies_what_a_gate_joins_and_not_the_gates():
    x, y = random_cam(2, 3, 5, 4), random_cam(2, 3, 5, 4, seed=1)
    papers, ours = SignedGate(num_classes=3).double(), SignedGate(num_classes=3, gain=3.0).double()
    ours.load_state_dict(papers.state_dict())
    torch.testing.assert_close(ours(x, y), 3 * papers(x, y))
    for one, two in zip(ours.gates(x, y), papers.gates(x, y), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("fusion", ["gated", "inverse"])
def test_gates_that_begin_open_fuse_to_means(fusion):
    cam = random_cam(1, 2, 8, 8)
    pooled = silence_gates(pyramid_pooling(cam, levels=(1, 2, 4), fusion=fusion, gate_gain=2.0))(
        cam
    )
    first, second, third = pooled.pyramid if fusion == "gated" else pooled.pyramid[::-1]
    torch.testing.assert_close(pooled.attention, ((first + second) / 2 + third) / 2)
    halved = silence_gates(pyramid_pooling(cam, levels=(1, 2, 4), fusion=fusion))(cam)
    torch.testing.assert_close(halved.fused[0], pooled.fused[0] / 2)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", [*gpp.PREDICTIONS, *gpp.VARIANTS])
@pytest.mark.parametrize("fusion", gpp.FUSIONS)
def test_gradients_are_right(fusion, prediction):
    cam = random_cam(1, 2, 4, 5).requires_grad_()
    layer = pyramid_pooling(
        cam, levels=(2,) if fusion == "single" else (1, 2, 3), fusion=fusion, prediction=prediction
    )
    names, weights = (
        zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())
    )

    def logits(cam, *weights):
        return torch.func.functional_call(
            layer, dict(zip(names, weights, strict=True)), (cam,)
        ).logits

    assert torch.autograd.gradcheck(logits, (cam, *weights))


@pytest.mark.parametrize("predict", [square_root_prediction, normalised_prediction])
def test_gradients_of_our_predictions_are_right_away_from_0(predict):
    def away(seed: int) -> torch.Tensor:
        numbers = random_cam(2, 3, 4, 5, seed=seed)
        return (numbers + 0.1 * numbers.sign()).requires_grad_()

    assert torch.autograd.gradcheck(predict, (away(0), away(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction", [*gpp.PREDICTIONS, *gpp.VARIANTS])
def test_gradients_at_0_are_finite(prediction, dtype):
    """Of a CAM that is 0 everywhere, or at single positions, and of the attention that comes with it."""
    whole = torch.zeros(1, 2, 6, 6, dtype=dtype)
    holes = random_cam(1, 2, 6, 6, dtype=dtype)
    holes[..., ::2, :] = 0
    for cam in (whole, holes):
        cam.requires_grad_()
        layer = pyramid_pooling(cam, levels=(6,), fusion="single", prediction=prediction)
        layer(cam).logits.sum().backward()
        assert cam.grad.isfinite().all()
        assert cam.grad.abs().max() <= 100


@pytest.mark.parametrize("predict", [square_root_prediction, normalised_prediction])
def test_gradients_where_only_one_of_cam_and_attention_is_0_are_finite(predict):
    for silent in (0, 1):
        maps = [random_cam(1, 2, 4, 4), random_cam(1, 2, 4, 4, seed=1)]
        maps[silent] = torch.zeros_like(maps[silent])
        cam, attention = (x.requires_grad_() for x in maps)
        predict(cam, attention).sum().backward()
        assert cam.grad.isfinite().all()
        assert attention.grad.isfinite().all()


def test_inference_mode_first_does_not_poison_training():
    gpp._level_matrix.cache_clear()
    cam = random_cam(1, 2, 6, 7, dtype=torch.float32)
    layer = pyramid_pooling(cam, levels=(2, 3))
    with torch.inference_mode():
        seen = layer(cam).logits.clone()
    trained = layer(cam.requires_grad_())
    trained.logits.sum().backward()
    assert cam.grad.abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())
    torch.testing.assert_close(trained.logits, seen)


# --- compiled ------------------------------------------------------------------------------------


def test_a_compiled_layer_has_its_matrices_as_constants_and_no_break():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    layer = pyramid_pooling(random_cam(1, 2, 4, 4, dtype=torch.float32), levels=(1, 2, 4))
    compiled = torch.compile(layer, backend=backend, fullgraph=True)  # which refuses a break
    for size in ((6, 7), (8, 8), (9, 10)):
        cam = random_cam(2, 2, *size, dtype=torch.float32)
        # The same operations in the same order.
        torch.testing.assert_close(compiled(cam).logits, layer(cam).logits, rtol=0, atol=0)
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    assert len(graphs) == 3
    assert sum(node.op == "get_attr" for node in nodes) == 6 + 3 + 6  # rows and columns, a level
    values = [node.meta.get("example_value") for node in nodes]
    types = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    assert types == {torch.float32}


# --- symmetries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fusion", "levels"), [("single", (3,)), ("average", (1, 2, 3))])
def test_class_permutation_and_mirroring_of_layers_without_gates(fusion, levels):
    cam = random_cam(2, 5, 6, 7)
    layer = pyramid_pooling(cam, levels=levels, fusion=fusion)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(layer(cam[:, order]).logits, layer(cam).logits[:, order])
    for axes in ((2,), (3,), (2, 3)):
        torch.testing.assert_close(layer(cam.flip(axes)).logits, layer(cam).logits)


def test_class_permutation_of_the_gated_layer_permutes_its_gate_channels():
    cam = random_cam(2, 3, 6, 7)
    layer, permuted = (pyramid_pooling(cam, levels=(1, 2, 3)) for _ in range(2))
    order = [2, 0, 1]
    channels = [*order, *(3 + i for i in order)]
    permuted.load_state_dict(
        {name: weight[:, channels] for name, weight in layer.state_dict().items()}
    )
    torch.testing.assert_close(permuted(cam[:, order]).logits, layer(cam).logits[:, order])


def test_negated_cam_with_swapped_gates_gives_negated_logits():
    cam = random_cam(2, 3, 6, 7)
    layer, swapped = (pyramid_pooling(cam, levels=(1, 2, 3)) for _ in range(2))
    for ours, theirs in zip(layer.gates, swapped.gates, strict=True):
        theirs.positive, theirs.negative = ours.negative, ours.positive
    torch.testing.assert_close(swapped(-cam).logits, -layer(cam).logits)


def test_images_of_a_batch_do_not_see_each_other():
    cam = random_cam(3, 2, 6, 7)
    layer = pyramid_pooling(cam, levels=(1, 2, 3))
    torch.testing.assert_close(layer(cam).logits[1:2], layer(cam[1:2]).logits)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "gates"}, "fusion must be one of gated, average, inverse, single, got 'gates'"),
        ({"prediction": "both"}, "prediction must be one of .*, got 'both'"),
        ({"levels": (2, 8, 4)}, r"strictly increasing .* got \(2, 8, 4\)"),
        ({"levels": (2, 2)}, r"strictly increasing .* got \(2, 2\)"),
        ({"levels": ()}, r"levels must be positive .* got \(\)"),
        ({"levels": (0, 2)}, r"levels must be positive .* got \(0, 2\)"),
        ({"levels": (-1, 2)}, r"levels must be positive .* got \(-1, 2\)"),
        ({"levels": (2, 4), "fusion": "single"}, "exactly one level, got fusion='single'"),
        ({"levels": (2,), "fusion": "gated"}, "exactly one level, got fusion='gated'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"prediction": "root"}, "prediction must be one of .*square_root, normalised, got 'root'"),
        ({"gate_gain": 0}, "gate_gain must be positive and finite, got 0"),
        ({"gate_gain": -1.0}, r"gate_gain must be positive and finite, got -1\.0"),
        ({"gate_gain": float("nan")}, "gate_gain must be positive and finite, got nan"),
        ({"gate_gain": float("inf")}, "gate_gain must be positive and finite, got inf"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidPooling(**({"num_classes": 3} | options))


@pytest.mark.parametrize(
    ("cam", "message"),
    [
        (
            torch.zeros(3, 4, 4),
            r"floating \(B, K, h, w\) tensor, got torch.float32 of shape \(3, 4, 4\)",
        ),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "got torch.int64"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), "got torch.bool"),
    ],
)
def test_what_is_no_cam_is_refused_by_both_layers(cam, message):
    for layer in (GlobalAveragePooling(), PyramidPooling(num_classes=3)):
        with pytest.raises(ValueError, match=message):
            layer(cam)


def test_a_cam_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="cam has K=4 classes, this layer was built for K=3"):
        PyramidPooling(num_classes=3)(torch.zeros(1, 4, 8, 8))

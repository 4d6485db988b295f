"""The dense CRF:

golden parity, the C++ library as oracle where it is installed, an exact one, limit cases, refusals.
"""

import warnings

import numpy as np
import pytest
import torch

from aeft_lib.refinement import dense_crf
from aeft_lib.refinement.dense_crf import CLIP, DenseCRF, Lattice, refine, unary_of, with_background

NUM_LABELS = 21  # of the CRF after the random walk: VOC's 20 classes and the background
# Ten iterations multiply a relative change of the scores by about 5 (measured, to 20 where an image
# is all noise); the lattice of the C++ library and ours differ by 1e-5 after one iteration.
TOLERANCE = 1e-3
# One iteration: a relative 1e-6 of a negative logarithm up to 11.5, through two softmaxes of slope
# 1/4 with kernels of weight 13 between them, 1e-6 x 11.5 x (1 + 13 / 4) / 4, and a margin of 10.
ONCE = 1e-4
ODD_SIZES = [
    (1, 1),
    (1, 7),
    (9, 1),
    (2, 2),
    (1, 130),
    (33, 47),
    (30, 31),
]  # the last two: H·W is 3 and 2 over a multiple of 4


def blocky(rng: np.random.Generator, *size: int, cell: int = 8) -> np.ndarray:
    """Values 0..1 that are constant on cells, (..., H, W)."""
    *lead, h, w = size
    coarse = rng.random((*lead, -(-h // cell), -(-w // cell)))
    return coarse.repeat(cell, axis=-2).repeat(cell, axis=-1)[..., :h, :w]


def random_image(rng: np.random.Generator, h: int, w: int, *, noise: float = 0.1) -> np.ndarray:
    smooth = blocky(rng, 3, h, w).transpose(1, 2, 0)
    return (255 * np.clip(smooth + noise * rng.standard_normal(smooth.shape), 0, 1)).astype(
        np.uint8
    )


def random_cam(rng: np.random.Generator, k: int, h: int, w: int) -> torch.Tensor:
    return torch.from_numpy(blocky(rng, k, h, w)).float()


def decided(scores: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Pixels (H, W) whose label is the same whatever moves every score by at most `tolerance`."""
    first, second = scores.topk(2, dim=0).values
    return first - second > 2 * tolerance


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The part of pixels with the same label."""
    return (ours.argmax(dim=0) == theirs.argmax(dim=0)).double().mean().item()


# --- golden parity -------------------------------------------------------------------------------


def test_golden_posteriors_for_every_alpha(golden):
    vectors = golden("crf")
    prefixes = sorted(
        key.removesuffix("image") for key in vectors if key == "image" or key.endswith("/image")
    )
    assert prefixes, "the golden file holds no case"
    for prefix in prefixes:
        stem = f"{prefix}posterior_alpha"
        alphas = [int(key.removeprefix(stem)) for key in vectors if key.startswith(stem)]
        assert alphas, "the case holds no posterior"
        cam = torch.from_numpy(vectors[f"{prefix}cam"])
        for alpha, ours in zip(alphas, refine(vectors[f"{prefix}image"], cam, alphas), strict=True):
            theirs = torch.from_numpy(vectors[f"{stem}{alpha}"])
            assert (ours - theirs).abs().max() <= TOLERANCE, alpha
            sure = decided(theirs, TOLERANCE)
            assert (ours.argmax(dim=0) == theirs.argmax(dim=0))[sure].all(), alpha
            assert sure.double().mean() >= 0.999, alpha


def test_golden_iteration_after_the_random_walk(golden):
    vectors = golden("crf")
    prefixes = sorted(key.removesuffix("rw_scores") for key in vectors if key.endswith("rw_scores"))
    assert prefixes, "the golden file holds no case"
    for prefix in prefixes:
        case = {
            key.removeprefix(prefix): array
            for key, array in vectors.items()
            if key.startswith(prefix)
        }
        present, absent = (
            case["rw_present"],
            np.setdiff1d(np.arange(NUM_LABELS), case["rw_present"]),
        )
        scores = torch.zeros(NUM_LABELS, *case["image"].shape[:2])
        scores[present] = torch.from_numpy(case["rw_scores"])
        ours = DenseCRF(case["image"]).infer(unary_of(scores), iterations=1)
        rows = {
            "rw_posterior_t1": ours[present],
            "rw_posterior_t1_absent_max": ours[absent].amax(0),
        }
        for name, posterior in rows.items():
            assert np.abs(posterior.numpy() - case[name]).max() <= TOLERANCE
        sure = decided(ours, TOLERANCE).numpy()
        assert (ours.argmax(dim=0).numpy() == case["rw_argmax_t1"])[sure].all()
        assert sure.mean() >= 0.999
        assert (scores.argmax(dim=0).numpy() == case["rw_argmax_t0"]).all()


# --- oracles -------------------------------------------------------------------------------------


def library_posterior(
    image: np.ndarray, unary: torch.Tensor, *, iterations: int = 10
) -> torch.Tensor:
    """What the C++ library makes of it; the test is skipped where it is not installed (``pip install .[oracle]``)."""
    library = pytest.importorskip("pydensecrf.densecrf")
    (h, w), labels = image.shape[:2], len(unary)
    crf = library.DenseCRF2D(w, h, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1).numpy()))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    return torch.from_numpy(np.array(crf.inference(iterations)).reshape(labels, h, w))


@pytest.mark.parametrize(("h", "w"), ODD_SIZES)
@pytest.mark.parametrize(
    "brightness", [0, 0.2, 1]
)  # black, dark (near the lattice's origin), as it is
def test_library_agrees_at_odd_sizes(rng, h, w, brightness):
    image = (brightness * random_image(rng, h, w, noise=0.3)).astype(np.uint8)
    unary = unary_of(with_background(random_cam(rng, 2, h, w), 2))
    for iterations, tolerance in ((1, ONCE), (10, TOLERANCE)):
        ours, theirs = (
            DenseCRF(image).infer(unary, iterations=iterations),
            library_posterior(image, unary, iterations=iterations),
        )
        assert (ours - theirs).abs().max() <= tolerance


def exact_posterior(
    image: np.ndarray, unary: torch.Tensor, *, iterations: int = 10
) -> torch.Tensor:
    """Mean field with the Gaussians themselves, as dense n x n matrices; no lattice.

    A pixel sends no message to itself.
    """
    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w]
    places = torch.from_numpy(np.stack([x, y], axis=-1).reshape(-1, 2)).double()
    colours = torch.from_numpy(image.reshape(-1, 3).astype(np.float64))
    kernels = []
    for features, weight in ((places / 3, 3), (torch.cat([places / 80, colours / 13], dim=1), 10)):
        kernel = (-0.5 * torch.cdist(features, features) ** 2).exp()
        root = kernel.sum(dim=1).rsqrt()
        kernels.append(weight * root[:, None] * kernel * root)
    flat = unary.reshape(len(unary), -1).T.double()
    q = (-flat).softmax(dim=1)
    for _ in range(iterations):
        q = (sum(kernels) @ q - flat).softmax(dim=1)
    return q.T.reshape(unary.shape)


def test_the_lattice_is_near_the_exact_gaussian(rng):
    agreements, differences = [], []
    for _ in range(4):
        image, unary = (
            random_image(rng, 24, 32),
            unary_of(with_background(random_cam(rng, 2, 24, 32), 2)),
        )
        ours, exact = DenseCRF(image).infer(unary), exact_posterior(image, unary)
        agreements.append(agreement(ours, exact))
        differences.append((ours - exact).abs().mean().item())
    assert np.mean(agreements) >= 0.95
    assert np.mean(differences) <= 0.03


# --- the lattice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_every_point_splats_its_whole_weight_on_d_plus_1_vertices(d):
    points = 4 * torch.randn(50, d, generator=torch.Generator().manual_seed(d))
    weights = dense_crf._enclosing_simplex(points)[2]
    bound = 1e-5  # float32, coordinates up to about 20: 20 x 6e-8 x a margin of 10
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(50), rtol=0, atol=bound)
    assert (weights >= -bound).all()
    lattice = Lattice(points)
    splat, slice_ = matrices(lattice)
    torch.testing.assert_close(
        splat, slice_.T * (1 + 2.0**-d)
    )  # one another's transpose, but for the lattice's scale
    assert (splat >= -bound).all()
    assert ((splat != 0).sum(dim=0) <= d + 1).all()
    assert (splat[-1] == 0).all()  # the row of absent neighbours


def matrices(lattice: Lattice) -> tuple[torch.Tensor, torch.Tensor]:
    """splat (M + 1, N) and slice (N, M + 1), dense."""
    (starts, points, weights), index = lattice.splat, lattice.index.long()
    slice_ = torch.zeros(len(index), len(starts) - 1).scatter_add_(1, index, lattice.weights)
    rows = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    splat = torch.zeros_like(slice_.T)
    return splat.index_put_((rows, points.long()), weights, accumulate=True), slice_


@pytest.mark.parametrize("d", [1, 2, 5])
def test_neighbours_are_one_another_s_and_one_step_apart(d):
    features = 2 * torch.randn(400, d, generator=torch.Generator().manual_seed(d))
    simplices = dense_crf._simplices(features)
    numbering = dense_crf._numbering(simplices.nearest)
    keys, index, _ = dense_crf._vertices(simplices, numbering)
    places = vertex_coordinates(simplices, index, len(keys))
    assert len(places.unique(dim=0)) == len(keys)
    for axis, (before, after) in enumerate(dense_crf._neighbours(keys, numbering)):
        step = torch.ones(d + 1, dtype=torch.int64)
        step[axis] = -d
        row = {tuple(place): i for i, place in enumerate(places.tolist())}
        for sign, rows in ((1, after), (-1, before)):
            moved = (places + sign * step).tolist()
            assert rows.tolist() == [row.get(tuple(place), len(keys)) for place in moved] + [
                len(keys)
            ]


def vertex_coordinates(simplices, index: torch.Tensor, count: int) -> torch.Tensor:
    """(M, d + 1) int64, by the definition: one after the other, from the points' simplices."""
    d = len(simplices.nearest)
    nearest = torch.cat([simplices.nearest, -simplices.nearest.sum(dim=0, keepdim=True)]).long()
    places = torch.zeros(count, d + 1, dtype=torch.int64)
    for point in range(len(index)):
        for colour in range(d + 1):
            place = (d + 1) * nearest[:, point] + colour
            place[simplices.order[d + 1 - colour :, point].long()] -= d + 1
            places[index[point, colour]] = place
    return places


def test_keys_of_32_and_of_64_bits_number_the_same_vertices():
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    near = dense_crf._simplices(features)
    small = dense_crf._numbering(near.nearest)
    assert small.cells < 2**31
    large = small._replace(radix=small.radix * 2**35, cells=small.cells * 2**35)
    assert all(key.dtype == torch.int32 for key in dense_crf._keys(near, small))
    (keys, index, _), (wide, same, _) = (dense_crf._vertices(near, n) for n in (small, large))
    assert torch.equal(index, same)
    assert torch.equal(keys * 2**35, wide)
    for narrow, long in zip(
        *(dense_crf._neighbours(k, n) for k, n in ((keys, small), (wide, large))), strict=True
    ):
        assert all(map(torch.equal, narrow, long))


def test_blocks_of_pixels_do_not_show(rng, monkeypatch):
    image, cam = random_image(rng, 9, 11), random_cam(rng, 2, 9, 11)
    (whole,) = refine(image, cam, [2], iterations=1)
    monkeypatch.setattr(dense_crf, "BLOCK", 32)
    dense_crf._spatial_lattice.cache_clear()
    (parts,) = refine(image, cam, [2], iterations=1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=ONCE)


def test_points_far_from_each_other_do_not_mix_and_equal_ones_mix_fully():
    near, far = Lattice(torch.tensor([[0.0], [0.0]])), Lattice(torch.tensor([[0.0], [1000.0]]))
    values = torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(near.apply(values), torch.tensor([[0.5], [0.5]]))
    torch.testing.assert_close(far.apply(values), values)


def test_lattice_refusals():
    with pytest.raises(
        ValueError,
        match=r"features must be a finite \(N, d\) float tensor, got torch.float32 \(3,\)",
    ):
        Lattice(torch.zeros(3))
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        Lattice(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be a finite"):
        Lattice(torch.full((3, 2), float("nan")))
    with pytest.raises(
        ValueError, match=r"the lattice is too large, .* the standard deviations are too small"
    ):
        Lattice(torch.tensor([[0.0] * 5, [1e6] * 5]))


# --- limit cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), ODD_SIZES)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_posteriors_of_constant_images_and_odd_sizes_are_distributions(rng, h, w, grey):
    image = np.full((h, w, 3), grey, dtype=np.uint8)
    for posterior in refine(image, random_cam(rng, 2, h, w), [2, 21]):
        assert posterior.shape == (3, h, w)
        assert (posterior >= 0).all()
        torch.testing.assert_close(posterior.sum(dim=0), torch.ones(h, w), rtol=0, atol=1e-5)


def test_no_iteration_is_the_softmax_of_the_scores(rng):
    unary = unary_of(with_background(random_cam(rng, 2, 6, 7), 2))
    torch.testing.assert_close(
        DenseCRF(random_image(rng, 6, 7)).infer(unary, iterations=0), (-unary).softmax(dim=0)
    )


def test_one_pixel_hears_itself_only():
    unary = torch.tensor([0.2, 1.0]).reshape(2, 1, 1)
    posterior = DenseCRF(np.zeros((1, 1, 3), np.uint8)).infer(unary, iterations=1)
    q = (-unary).softmax(dim=0)
    torch.testing.assert_close(
        posterior, (13 * q - unary).softmax(dim=0)
    )  # both kernels are 1 there, their weights 3 and 10


def test_a_label_alone_is_certain(rng):
    assert (DenseCRF(random_image(rng, 5, 6)).infer(torch.rand(1, 5, 6)) == 1).all()


def test_uniform_scores_stay_uniform(rng):
    posterior = DenseCRF(random_image(rng, 9, 8)).infer(torch.zeros(4, 9, 8))
    even = torch.full((4, 9, 8), 0.25)
    torch.testing.assert_close(posterior, even, rtol=0, atol=1e-5)  # 13 x 6e-8 x a margin of 10


def test_the_order_of_labels_does_not_matter(rng):
    crf, unary = DenseCRF(random_image(rng, 10, 12)), unary_of(random_cam(rng, 3, 10, 12))
    turned, plain = (crf.infer(maps, iterations=1) for maps in (unary.flip(0), unary))
    torch.testing.assert_close(turned, plain.flip(0), rtol=0, atol=ONCE)


def test_noise_on_a_flat_image_is_smoothed_and_colour_edges_are_kept():
    image = np.zeros((20, 24, 3), np.uint8)
    image[:, 12:] = 255
    cam = torch.full((1, 20, 24), 0.2)
    cam[:, :, 12:] = 0.8
    cam[0, 5, 5], cam[0, 15, 18] = 0.8, 0.2  # two wrong pixels
    label = refine(image, cam, [1])[0].argmax(dim=0)
    assert (label == torch.arange(24) // 12).all()


def test_alphas_share_a_lattice_and_give_what_each_gives_alone(rng):
    image, cam = random_image(rng, 16, 20), random_cam(rng, 2, 16, 20)
    alphas = [2, 19, 21]
    for alpha, together in zip(alphas, refine(image, cam, alphas, iterations=1), strict=True):
        (alone,) = refine(image, cam, [alpha], iterations=1)
        torch.testing.assert_close(together, alone, rtol=0, atol=ONCE)


def test_no_warning_and_the_image_may_be_read_only(rng):
    image = random_image(rng, 8, 9)
    image.flags.writeable = False
    dense_crf._spatial_lattice.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = refine(image[:, ::-1], random_cam(rng, 1, 8, 9), [2])[0]
    assert ours.isfinite().all()


def test_a_lattice_made_in_inference_mode_serves_outside_of_it(rng):
    image, cam = random_image(rng, 7, 9), random_cam(rng, 1, 7, 9)
    dense_crf._spatial_lattice.cache_clear()
    with torch.inference_mode():
        refine(image, cam, [2])
    cam.requires_grad_()
    refine(image, cam, [2])[0].square().sum().backward()
    assert cam.grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees(rng):
    image, cam = random_image(rng, 30, 41), random_cam(rng, 2, 30, 41)
    for here, there in zip(
        refine(image, cam, [2, 21]), refine(image, cam.cuda(), [2, 21]), strict=True
    ):
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=TOLERANCE)


# --- scores --------------------------------------------------------------------------------------


def test_background_by_hand():
    cam = torch.tensor([[[0.0, 0.5, 1.0]], [[0.0, 0.25, 0.75]]])
    torch.testing.assert_close(
        with_background(cam, 2), torch.cat([torch.tensor([[[1.0, 0.25, 0.0]]]), cam])
    )


def test_an_image_without_a_class_is_background():
    scores = with_background(torch.zeros(0, 3, 4, dtype=torch.float64), 2)
    assert scores.dtype == torch.float64
    assert torch.equal(scores, torch.ones(1, 3, 4, dtype=torch.float64))
    assert with_background(
        torch.zeros(0, 3, 4, device="meta"), 2
    ).is_meta  # nothing made on the CPU


def test_unary_is_clipped_at_both_ends():
    assert unary_of(torch.tensor([0.0, 1.0, 2.0])).tolist() == pytest.approx(
        [-np.log(CLIP), 0, 0], rel=1e-6
    )


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive and finite, got {alpha}"):
        with_background(torch.zeros(1, 2, 2), alpha)


def test_cam_refusals():
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"a CAM must lie in 0..1, got .*" + f"{value}"):
            with_background(torch.full((1, 2, 2), value), 2)
    with pytest.raises(ValueError, match=r"cam must be \(K', H, W\), got shape \(2, 2\)"):
        with_background(torch.zeros(2, 2), 2)


def test_image_refusals():
    for shape, dtype in (
        ((4, 5), np.uint8),
        ((4, 5, 4), np.uint8),
        ((4, 5, 3), np.float32),
        ((0, 5, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8 RGB, got"):
            DenseCRF(np.zeros(shape, dtype))
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"gaussian must hold positive numbers, got \(0, 3\)"):
        DenseCRF(image, gaussian=(0, 3))
    with pytest.raises(
        ValueError, match=r"bilateral must hold positive numbers, got \(80, nan, 10\)"
    ):
        DenseCRF(image, bilateral=(80, float("nan"), 10))


def test_unary_refusals():
    crf = DenseCRF(np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"unary must be \(L, 4, 5\) like the image, got \(2, 5, 4\)"
    ):
        crf.infer(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="unary holds NaN or infinity"):
        crf.infer(torch.full((2, 4, 5), float("nan")))
    with pytest.raises(ValueError, match="unary holds NaN or infinity"):
        crf.infer(-torch.zeros(2, 4, 5).log())
    with pytest.raises(ValueError, match="iterations must not be negative, got -1"):
        crf.infer(torch.zeros(2, 4, 5), iterations=-1)

"""Seeds:

golden parity of the merge over scales and mirror images, its limit cases, and the uint8 store.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aeft_lib.maps.evaluation import sweep
from aeft_lib.maps.seeds import EPS, Seed, SeedReader, combine_scales, read_seeds, write_seeds


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_cam(seed: int, k: int, side: int = 96) -> torch.Tensor:
    """Smooth maps as CAMs are:

    few cells stretched to image size, positive part, the largest near 1; float32.
    """
    cells = random_scores(1, k, 8, 8, seed=seed).float()
    maps = F.interpolate(cells, size=(side, side), mode="bicubic")[0].relu()
    return maps / (maps.amax(dim=(1, 2), keepdim=True) + EPS)


def test_golden_merge_of_scales_and_mirror_images(golden, assert_near):
    vectors = golden("msf_merge")
    cases = sorted(key.removesuffix("hw") for key in vectors if key == "hw" or key.endswith("/hw"))
    assert cases, "the golden file holds no case"
    for case in cases:
        passes = sorted(
            int(found[1]) for key in vectors if (found := re.fullmatch(rf"{case}score_(\d+)", key))
        )
        ours = combine_scales(
            [torch.from_numpy(vectors[f"{case}score_{i}"]) for i in passes],
            size=tuple(vectors[f"{case}hw"].tolist()),
            tags=torch.from_numpy(vectors[f"{case}label"]),
            mirrored=[i % 2 == 1 for i in passes],
        )
        class_ids = vectors[f"{case}class_ids"]
        assert_near(ours[0, class_ids], vectors[f"{case}cam"], 1e-5, f"{case}cam")
        others = np.setdiff1d(np.arange(ours.shape[1]), class_ids)
        assert (ours[0, others] == 0).all()


# --- combine_scales: limit cases -----------------------------------------------------------------


def test_one_pass_is_upsampled_then_rectified_then_normalised():
    score = random_scores(2, 3, 5, 7)
    full = F.interpolate(score, size=(20, 30), mode="bilinear", align_corners=False).relu()
    expected = full / (full.amax(dim=(2, 3), keepdim=True) + EPS)
    torch.testing.assert_close(combine_scales([score], size=(20, 30)), expected)


def test_rectified_after_upsampling_not_before():
    score = torch.tensor([[[[-3.0, 1.0]]]])  # between the cells: -3, -2, 0, 1
    cam = combine_scales([score], size=(1, 4))
    torch.testing.assert_close(cam, torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]]), rtol=0, atol=2e-5)


def test_two_passes_by_hand():
    plain, mirrored = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[2.0, 1.0]]]])
    cam = combine_scales([plain, mirrored], size=(1, 2))  # [1, 0] + [1, 2] = [2, 2]
    assert cam.flatten().tolist() == pytest.approx([2 / (2 + EPS)] * 2)
    cam = combine_scales([plain, mirrored], size=(1, 2), mirrored=[False, False])  # [3, 1]
    assert cam.flatten().tolist() == pytest.approx([3 / (3 + EPS), 1 / (3 + EPS)])


def test_a_mirrored_image_gives_the_mirrored_cam():
    scores = [random_scores(1, 2, 4, 6, seed=seed) for seed in range(4)]
    turned = [scores[i].flip(-1) for i in range(4)]
    torch.testing.assert_close(
        combine_scales(turned, size=(9, 12)), combine_scales(scores, size=(9, 12)).flip(-1)
    )


def test_a_pass_and_its_exact_mirror_image_change_nothing():
    score = random_scores(1, 2, 4, 6)
    both = combine_scales([score, score.flip(-1)], size=(9, 12))
    torch.testing.assert_close(both, combine_scales([score], size=(9, 12)), rtol=0, atol=1e-4)


def test_a_class_that_never_fires_is_zero_and_every_other_reaches_one():
    scores = [random_scores(1, 3, 4, 6, seed=seed) for seed in range(2)]
    for score in scores:
        score[:, 1] = -score[:, 1].abs()
    cam = combine_scales(scores, size=(16, 24))
    assert (cam[:, 1] == 0).all()
    assert 0 <= cam.min() <= cam.max() <= 1
    torch.testing.assert_close(
        cam.amax(dim=(2, 3))[0, [0, 2]], torch.ones(2).double(), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_tags_silence_the_other_classes_and_leave_the_tagged_ones(dtype):
    scores = [random_scores(2, 3, 4, 6, seed=seed) for seed in range(2)]
    tags = torch.tensor([[1, 0, 1], [0, 1, 0]]).to(dtype)
    cam, untagged = (
        combine_scales(scores, size=(8, 8), tags=tags),
        combine_scales(scores, size=(8, 8)),
    )
    kept = tags.bool()
    torch.testing.assert_close(cam[kept], untagged[kept])
    assert (cam[~kept] == 0).all()


@pytest.mark.parametrize(("n", "mirrored"), [(0, None), (2, [False]), (1, [False, True]), (0, [])])
def test_combine_scales_refuses_no_passes_or_other_flags(n, mirrored):
    with pytest.raises(ValueError, match=f"needs passes and one flag each, got {n} and"):
        combine_scales([torch.zeros(1, 1, 2, 2)] * n, size=(4, 4), mirrored=mirrored)


# --- the store -----------------------------------------------------------------------------------


def named_seeds(n: int = 3) -> list[tuple[str, Seed]]:
    return [
        (f"{9 - i:05d}", Seed(torch.tensor([1, 4 + i]), smooth_cam(i, 2, 24 + i))) for i in range(n)
    ]


def test_the_store_returns_every_seed_in_the_order_written(tmp_path):
    written = named_seeds()
    assert write_seeds(tmp_path / "seeds.npz", iter(written)) == 3
    found = list(read_seeds(tmp_path / "seeds.npz"))
    assert [name for name, _ in found] == ["00009", "00008", "00007"]
    for (_, before), (_, after) in zip(written, found, strict=True):
        assert torch.equal(after.class_ids, before.class_ids)
        assert after.class_ids.dtype == torch.int64
        assert after.cam.dtype == torch.float32
        torch.testing.assert_close(after.cam, before.cam, rtol=0, atol=1 / 510 + 1e-6)


def test_a_second_trip_through_the_store_changes_nothing(tmp_path):
    write_seeds(tmp_path / "a.npz", named_seeds())
    write_seeds(tmp_path / "b.npz", read_seeds(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_named_seeds_come_in_the_order_asked_for(tmp_path):
    write_seeds(tmp_path / "seeds.npz", named_seeds())
    assert [name for name, _ in read_seeds(tmp_path / "seeds.npz", ["00007", "00009"])] == [
        "00007",
        "00009",
    ]


def test_a_name_that_is_not_there_is_a_key_error(tmp_path):
    write_seeds(tmp_path / "seeds.npz", named_seeds())
    with pytest.raises(KeyError, match="12345"):
        list(read_seeds(tmp_path / "seeds.npz", ["00008", "12345"]))


def test_a_reader_gives_any_seed_at_any_time(tmp_path):
    write_seeds(tmp_path / "seeds.npz", named_seeds())
    stored = dict(read_seeds(tmp_path / "seeds.npz"))
    with SeedReader(tmp_path / "seeds.npz") as reader:
        assert reader.names == ["00009", "00008", "00007"]
        for name in ("00007", "00009", "00007"):
            assert torch.equal(reader[name].class_ids, stored[name].class_ids)
            assert torch.equal(reader[name].cam, stored[name].cam)
        with pytest.raises(KeyError, match="12345"):
            reader["12345"]


def test_threads_share_a_reader(tmp_path):
    write_seeds(tmp_path / "seeds.npz", named_seeds(10))
    stored = dict(read_seeds(tmp_path / "seeds.npz"))
    asked = [f"{i:05d}" for i in (9, 3, 0, 7, 5)] * 40
    with SeedReader(tmp_path / "seeds.npz") as reader, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(reader.__getitem__, asked))
    for name, seed in zip(asked, found, strict=True):
        assert torch.equal(seed.class_ids, stored[name].class_ids)
        assert torch.equal(seed.cam, stored[name].cam)


def test_no_seeds_make_an_empty_store(tmp_path):
    assert write_seeds(tmp_path / "seeds.npz", []) == 0
    assert list(read_seeds(tmp_path / "seeds.npz")) == []


def test_the_store_is_a_tenth_of_float32(tmp_path):
    cam = smooth_cam(0, 2, 256)
    write_seeds(tmp_path / "seeds.npz", [("a", Seed(torch.tensor([0, 1]), cam))])
    assert (tmp_path / "seeds.npz").stat().st_size < cam.numel() * 4 / 10


@pytest.mark.parametrize("seed", range(4))
def test_the_store_moves_the_best_miou_by_less_than_a_twentieth_of_a_point(tmp_path, seed):
    class_ids, images = torch.tensor([0, 2]), range(100 * seed, 100 * seed + 8)
    seeds = [(str(i), Seed(class_ids, smooth_cam(i, 2))) for i in images]
    masks = []
    for i, (_, exact) in zip(
        images, seeds, strict=True
    ):  # masks that the CAMs fit about as well as real ones do
        top, winner = (exact.cam + 0.3 * smooth_cam(i + 1000, 2)).max(dim=0)
        masks.append(torch.where(top > 0.45, class_ids[winner] + 1, 0))
    write_seeds(tmp_path / "seeds.npz", seeds)
    exact, stored = (
        sweep((tuple(s) for _, s in source), masks, np.arange(1, 100) / 100, num_classes=3)
        for source in (seeds, read_seeds(tmp_path / "seeds.npz"))
    )
    assert (exact.predicted != stored.predicted).any()
    assert abs(exact.miou.max() - stored.miou.max()) < 0.05


def test_thresholds_between_the_stored_steps_see_no_difference(tmp_path):
    part = 0.4 * random_scores(1, 96, 96).tanh().float()  # of a step; rounding turns at 0.5
    seed = Seed(torch.tensor([0]), (((smooth_cam(0, 1) * 255).round() + part) / 255).clamp(0, 1))
    write_seeds(tmp_path / "seeds.npz", [("a", seed)])
    mask = (smooth_cam(1, 1)[0] > 0.5).long()
    ((_, stored),) = read_seeds(tmp_path / "seeds.npz")
    thresholds = (np.arange(255) + 0.5) / 255
    exact, coarse = (sweep([tuple(s)], [mask], thresholds, num_classes=1) for s in (seed, stored))
    np.testing.assert_array_equal(exact.tp, coarse.tp)
    np.testing.assert_array_equal(exact.predicted, coarse.predicted)


# --- files that are no seeds ---------------------------------------------------------------------


def npz(file, **arrays) -> None:
    np.savez(file, **{name.replace("__", "/"): array for name, array in arrays.items()})


IDS, CAM = np.array([1, 4]), np.zeros((2, 3, 5), np.uint8)


@pytest.mark.parametrize(
    "arrays",
    [
        {"a__cam": CAM},
        {"a__cam": CAM, "a__class_ids": IDS.astype(np.int32)},
        {"a__cam": CAM.astype(float), "a__class_ids": IDS},
        {"a__cam": CAM[0], "a__class_ids": IDS},
        {"a__cam": CAM, "a__class_ids": IDS[:1]},
        {"a__cam": CAM.astype("U1"), "a__class_ids": IDS},
        {"a__cam": CAM.astype(object), "a__class_ids": IDS},
    ],
    ids=range(7),
)
def test_arrays_that_are_no_seeds_are_refused_by_name(tmp_path, arrays):
    npz(tmp_path / "seeds.npz", **arrays)
    with pytest.raises(ValueError, match=r"seeds\.npz: not a readable file of seeds \(.*; compute"):
        list(read_seeds(tmp_path / "seeds.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"junk" * 50])
def test_what_is_no_archive_is_refused_by_name(tmp_path, content):
    (tmp_path / "seeds.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"seeds\.npz: not a readable file of seeds"):
        SeedReader(tmp_path / "seeds.npz")


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "seeds.npy", CAM)
    with pytest.raises(ValueError, match=r"seeds\.npy: .*\(no archive of arrays\)"):
        SeedReader(tmp_path / "seeds.npy")

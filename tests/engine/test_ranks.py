"""Two processes under torchrun (gloo) against one: the same weights, every image once, one writer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from photo_profile import CLASSES, SPLITS
from photo_sets import make_voc
from safetensors.torch import load_file

from aeft_lib import paths
from aeft_lib.engine import ranks
from aeft_lib.maps.seeds import read_seeds

JOB = Path(__file__).with_name("distributed_job.py")


def run(stored: Path, voc: Path, ranks: int, negatives: str = "gathered") -> str:
    """The job's output."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    paths_ = os.pathsep.join([str(JOB.parents[1]), str(paths.ROOT)])
    added = {
        "AEFT_VOC_ROOT": str(voc),
        "AEFT_RUNS": str(stored),
        "PYTHONPATH": paths_,
        "OMP_NUM_THREADS": "1",
        "AEFT_QUIET": "1",
    }
    done = subprocess.run(
        [sys.executable, *launcher, str(JOB), negatives], env=os.environ | added, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    """The same row by one process, by two, and by two that seek negatives in their own halves."""
    home = tmp_path_factory.mktemp("ranks")
    make_voc(home / "voc", SPLITS, classes=CLASSES)
    made = {}
    for name, number, negatives in (("one", 1, "gathered"), ("two", 2, "gathered"), ("apart", 2, "rank")):
        assert f"ranks {number} " in run(home / name, home / "voc", number, negatives)
        made[name] = home / name
    return made


def weights(stored: Path, stage: str) -> dict[str, torch.Tensor]:
    (file,) = stored.glob(f"{stage}/*/weights.safetensors")
    return load_file(file)


@pytest.mark.parametrize("stage", ["train_classifier", "train_triplet"])
def test_two_processes_give_the_weights_of_one(stores, stage):
    one, two = weights(stores["one"], stage), weights(stores["two"], stage)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6, msg=name)


def test_negatives_within_a_rank_are_another_loss(stores):
    one, apart = weights(stores["one"], "train_triplet"), weights(stores["apart"], "train_triplet")
    assert any(not torch.allclose(apart[name], one[name], rtol=1e-5, atol=1e-6) for name in one)


def test_every_image_is_inferred_and_refined_once_in_order(stores):
    for stage, file in (("infer_photo_seeds", "seeds.npz"), ("refine_by_crf", "middle.npz")):
        (mine,), (theirs,) = (stores[name].glob(f"{stage}/*/{file}") for name in ("one", "two"))
        one, two = list(read_seeds(mine)), list(read_seeds(theirs))
        assert [name for name, _ in two] == [name for name, _ in one] == [f"{i:05d}" for i in range(SPLITS["train_aug"])]
        for (_, a), (_, b) in zip(one, two, strict=True):
            assert a.class_ids.tolist() == b.class_ids.tolist()
            assert (a.cam - b.cam).abs().max() <= 2 / 255


def test_nothing_half_made_is_left(stores):
    assert not list(stores["two"].rglob("*.partial"))
    assert not list(stores["two"].rglob("checkpoint*"))


def test_a_batch_must_divide_over_the_ranks(monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 3)
    monkeypatch.setattr(ranks, "rank", lambda: 2)
    assert ranks.part(9) == slice(6, 9)
    with pytest.raises(ValueError, match="a batch of 8 does not divide over 3 processes"):
        ranks.part(8)


def test_alone_everything_is_the_identity():
    tensor = {"x": torch.ones(2, requires_grad=True)}
    assert ranks.gather(tensor) is tensor
    assert ranks.together("value") == ["value"]
    assert ranks.same("value") == "value"
    assert ranks.is_main()
    ranks.barrier()
    ranks.sum_gradients([])

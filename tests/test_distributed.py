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

from aeft_lib import distributed, paths
from aeft_lib.seeds import read_seeds

JOB = Path(__file__).with_name("distributed_job.py")


def run(store: Path, voc: Path, ranks: int, negatives: str = "gathered") -> str:
    """The job's output."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    paths_ = os.pathsep.join([str(JOB.parent), str(paths.ROOT)])
    added = {
        "AEFT_VOC_ROOT": str(voc),
        "AEFT_RUNS": str(store),
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
    for name, ranks, negatives in (("one", 1, "gathered"), ("two", 2, "gathered"), ("apart", 2, "rank")):
        assert f"ranks {ranks} " in run(home / name, home / "voc", ranks, negatives)
        made[name] = home / name
    return made


def weights(store: Path, stage: str) -> dict[str, torch.Tensor]:
    (file,) = store.glob(f"{stage}/*/weights.safetensors")
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
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    assert distributed.part(9) == slice(6, 9)
    with pytest.raises(ValueError, match="a batch of 8 does not divide over 3 processes"):
        distributed.part(8)


def test_alone_everything_is_the_identity():
    tensor = {"x": torch.ones(2, requires_grad=True)}
    assert distributed.gather(tensor) is tensor
    assert distributed.together("value") == ["value"]
    assert distributed.same("value") == "value"
    assert distributed.is_main()
    distributed.barrier()
    distributed.sum_gradients([])

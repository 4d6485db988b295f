"""Two processes under torchrun (gloo) against one: same weights, every image once, one writer."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from photo_profile import CLASSES, SPLITS
from photo_sets import make_voc
from safetensors.torch import load_file

from aeft_lib import paths
from aeft_lib.engine import ranks
from aeft_lib.maps.seeds import Seed, read_seeds

JOB = Path(__file__).with_name("distributed_job.py")
# Gradients are sums of about 1e5 float32 terms, whose order depends on the number of processes, and
# so do the convolutions of a batch on some CPUs.  At the job's small rates nothing amplifies that:
# 5e-7 was seen, where training moves weights by about 1e-3; times a margin of 8.
ROUNDING = 4e-6
# The second phase erases pixels above a threshold, so rounding erases some more or fewer: 5e-5 was
# seen; times a margin of 5.
ERASED = 2.4e-4
NAMES = [f"{i:05d}" for i in range(SPLITS["train_aug"])]


def run(stored: Path, voc: Path, ranks: int, negatives: str = "gathered") -> str:
    """The job's output."""
    launcher = (
        []
        if ranks == 1
        else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    )
    paths_ = os.pathsep.join([str(JOB.parents[1]), str(paths.ROOT)])
    added = {
        "AEFT_VOC_ROOT": str(voc),
        "AEFT_RUNS": str(stored),
        "PYTHONPATH": paths_,
        "OMP_NUM_THREADS": "1",
        "AEFT_QUIET": "1",
    }
    done = subprocess.run(
        [sys.executable, *launcher, str(JOB), negatives],
        env=os.environ | added,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    """The same row by one process, by two, and by two that seek negatives in their own halves."""
    home = tmp_path_factory.mktemp("ranks")
    make_voc(home / "voc", SPLITS, classes=CLASSES)
    made = {}
    for name, number, negatives in (
        ("one", 1, "gathered"),
        ("two", 2, "gathered"),
        ("apart", 2, "rank"),
    ):
        assert f"ranks {number} " in run(home / name, home / "voc", number, negatives)
        made[name] = home / name
    shutil.copytree(home / "one", home / "again")  # with the seeds of one process,
    shutil.rmtree(home / "again" / "refine_by_crf")  # which two refine
    run(home / "again", home / "voc", 2)
    return made | {"again": home / "again"}


def weights(stored: Path, phase: int) -> dict[str, torch.Tensor]:
    """Of the first or the second phase; the second has the first as its warm start."""
    for record in stored.glob("train_classifier/*/record.json"):
        if ("warm_start" in json.loads(record.read_text())["inputs"]) == (phase == 2):
            return load_file(record.with_name("weights.safetensors"))
    raise LookupError(f"no phase {phase} in {stored}")


def stored_maps(stored: Path, stage: str, name: str) -> list[tuple[str, Seed]]:
    (file,) = stored.glob(f"{stage}/*/{name}")
    return list(read_seeds(file))


@pytest.mark.parametrize(("phase", "bound"), [(1, ROUNDING), (2, ERASED)])
def test_two_processes_give_the_weights_of_one(stores, phase, bound):
    assert len(list(stores["one"].glob("train_classifier/*/weights.safetensors"))) == 2
    one, two = weights(stores["one"], phase), weights(stores["two"], phase)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=bound, msg=name)


def test_negatives_within_a_rank_are_another_loss(stores):
    one, apart = weights(stores["one"], 2), weights(stores["apart"], 2)
    assert max((apart[name] - one[name]).abs().max() for name in one) > 100 * ROUNDING


def test_every_image_is_inferred_once_in_order(stores):
    one, two = (stored_maps(stores[name], "infer_seeds", "seeds.npz") for name in ("one", "two"))
    assert [name for name, _ in two] == [name for name, _ in one] == NAMES
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert a.class_ids.tolist() == b.class_ids.tolist()
        assert a.cam.shape == b.cam.shape
        # Weights differ by rounding, CAMs by far less than a step of 1/255: they round to
        # neighbouring steps at most.
        steps = [(cam * 255).round() for cam in (a.cam, b.cam)]
        assert (steps[0] - steps[1]).abs().max() <= 1


def test_every_image_is_refined_once_in_order(stores):
    """A CRF amplifies, so it is compared on the same seeds, and there the bytes are the same."""
    maps = [stored_maps(stores[name], "refine_by_crf", "middle.npz") for name in ("one", "again")]
    for (name, a), (other, b), expected in zip(*maps, NAMES, strict=True):
        assert name == other == expected
        assert a.class_ids.tolist() == b.class_ids.tolist()
        assert torch.equal(a.cam, b.cam)


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


WAITING = """
import os, time
from aeft_lib.engine import ranks

ranks.start()
os.write(1, f"{os.getpid()}\\n".encode())
time.sleep(3600)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ranks_end_with_a_killed_torchrun(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    added = {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, *launcher, tmp_path / "waiting.py"],
        env=os.environ | added,
        stdout=subprocess.PIPE,
        text=True,
    )
    ranks_ = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 120
    while any(map(alive, ranks_)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    """Nobody may be there to collect what has ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

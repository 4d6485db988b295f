"""The GPU path without a GPU: what `pretend_gpu` finds in steps, in a whole row, and in faults.

One process runs all of it (`pretend_gpu_job`); the tests read what it wrote down.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pretend_gpu
import pytest
from pretend_gpu_job import FAULTS, STEPS

from aeft_lib import paths

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def pretended(tmp_path_factory):
    """events: kind -> (phase, what, where, how often); operations, convolutions; errors; row."""
    if problem := pretend_gpu.missing():
        pytest.skip(f"no GPU can be pretended here: {problem}")
    folder = tmp_path_factory.mktemp("pretended")
    places = {"PYTHONPATH": os.pathsep.join([str(HERE), str(paths.ROOT)])}
    places |= {"AEFT_RUNS": str(folder / "runs"), "AEFT_QUIET": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, str(HERE / "pretend_gpu_job.py")],
        env=pretend_gpu.environment(folder) | places,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def events(pretended: dict, kind: str, *, fault: bool = False) -> list[tuple[str, str, str]]:
    """Phase, what and where of this kind, of the planted faults or of all else."""
    found = pretended["events"].get(kind, [])
    return [tuple(at[:3]) for at in found if ("fault" in at[0]) == fault]


def test_all_of_it_ran_on_the_device(pretended):
    """A step has hundreds of operations; the rows' steps are those of all their trainings."""
    phases = [*(f"step: {name}" for name in STEPS), "step: row", "step: views"]
    assert all(pretended["operations"][phase] > 100 for phase in phases)
    assert 0 <= pretended["row"]["miou"] <= 100


@pytest.mark.parametrize("kind", ["mixed", "no kernel"])
def test_no_devices_are_mixed_and_every_operation_has_a_kernel(pretended, kind):
    assert events(pretended, kind) == []


def test_no_step_waits_for_the_device(pretended):
    """But for the scaler of fp16, which is torch's: it reads whether a gradient was infinite."""
    waits = [at for at in events(pretended, "wait") if at[0].startswith("step:")]
    assert {(phase, where) for phase, _, where in waits} == {("step: fp16", "grad_scaler.py")}


def test_autocast_chooses_the_type_of_the_convolutions(pretended):
    types = {name: pretended["convolutions"][f"step: {name}"] for name in STEPS}
    expected = {"bf16": ["torch.bfloat16"], "fp16": ["torch.float16"]}
    assert types == {name: expected.get(name, ["torch.float32"]) for name in STEPS}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(pretended, fault):
    """A CPU tensor, a number that is read, and an operation without a CUDA kernel, in a step."""
    found = events(pretended, fault, fault=True)
    assert [phase for phase, _, _ in found] == [f"step: fault {fault}"]
    assert "pretend_gpu_job.py" in found[0][2]
    others = set(FAULTS) - {fault}
    assert not [
        at for kind in others for at in events(pretended, kind, fault=True) if fault in at[0]
    ]
    assert (fault in pretended["errors"]) == (fault == "mixed")  # it alone ends in an error on CUDA

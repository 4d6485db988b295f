"""Which precision networks are read in, and what is told of the machine."""

import pytest
import torch

from aeft_lib.engine import device as devices
from aeft_lib.engine.device import batch_pixels, inference_precision, machine

AMX, AVX512, AVX2 = "avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "avx2 avx512_bf16", "avx2 fma"


@pytest.fixture
def cpu(monkeypatch):
    """A CPU with these flags, and no choice in the environment."""
    monkeypatch.delenv(devices.PRECISION, raising=False)
    monkeypatch.setenv("AEFT_DEVICE", "cpu")

    def pretend(flags: str) -> None:
        fields = {"flags": flags, "model name": "Pretended CPU"}
        monkeypatch.setattr(devices, "_cpu_info", lambda field: fields[field])

    return pretend


@pytest.mark.parametrize(
    ("flags", "precision"),
    [(AMX, "bf16"), (AVX512, "bf16"), (AVX2, "fp32"), ("avx2 avx512f", "fp32"), ("", "fp32")],
)
def test_auto_takes_bf16_where_the_cpu_has_instructions_for_it(cpu, flags, precision):
    cpu(flags)
    assert inference_precision() == inference_precision("auto") == precision


@pytest.mark.parametrize("there", [True, False])
def test_auto_asks_torch_about_a_gpu(cpu, monkeypatch, there):
    cpu(AMX if not there else AVX2)  # of which nothing hangs
    monkeypatch.setenv("AEFT_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there)
    assert inference_precision() == ("bf16" if there else "fp32")


def test_a_profile_chooses_and_the_environment_comes_before_it(cpu, monkeypatch):
    cpu(AMX)
    assert inference_precision("fp32") == "fp32"
    cpu(AVX2)
    assert inference_precision("bf16") == "bf16"
    monkeypatch.setenv(devices.PRECISION, "fp32")
    assert inference_precision("bf16") == "fp32"
    monkeypatch.setenv(devices.PRECISION, "auto")
    assert inference_precision("bf16") == "fp32"


@pytest.mark.parametrize("asked", ["fp16", "BF16", "half"])
def test_another_precision_is_refused(cpu, monkeypatch, asked):
    cpu(AVX2)
    monkeypatch.setenv(devices.PRECISION, asked)
    rule = f"AEFT_PRECISION must be one of fp32, bf16, auto, got '{asked}'"
    with pytest.raises(ValueError, match=rule):
        inference_precision("fp32")


def test_a_machine_is_told_by_device_threads_and_instructions(cpu):
    cpu(AMX)
    capability = torch.backends.cpu.get_cpu_capability()
    told = {"device": "Pretended CPU", "threads": torch.get_num_threads()}
    assert machine() == told | {"isa": f"{capability} + AMX"}
    cpu(AVX2)
    assert machine()["isa"] == capability


@pytest.mark.parametrize(
    ("where", "precision", "images"),
    [("cpu", "fp32", 1), ("cpu", "bf16", 8), ("cuda", "fp32", 8), ("cuda", "bf16", 8)],
)
def test_batches_are_small_where_a_cache_bounds_them(monkeypatch, where, precision, images):
    monkeypatch.setenv("AEFT_DEVICE", where)
    assert batch_pixels(precision) == images * 256 * 256

"""A pretended GPU: code runs as if on CUDA, with real numbers, on a machine that has no GPU.

Two parts.  A stub of the CUDA runtime, preloaded, lets torch believe in a GPU, so device guards,
generators, autocast and the threads of autograd work; no kernel ever runs.  Every tensor asked for
on cuda is an `OnGpu`: its device is cuda:0, its numbers lie in a CPU tensor, and `Pretend`, a
dispatch mode, computes there and writes down what a GPU would object to.

It proves: which tensors meet on which device, by CUDA's rules; what waits for the device; which
operation has no CUDA kernel in this build of torch; that branches for CUDA, autocast and the scaled
loss run.  It does not prove: types inside a kernel, numbers on CUDA, memory, speed, several GPUs,
compiled kernels.  Only a GPU proves these.
"""

import os
import re
import shutil
import subprocess
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
STUB = HERE / "pretend_gpu_stub.c"
LIBRARIES = ("c10_cuda", "torch_cuda", "torch_cuda_linalg", "torch_python")
DRIVER = "int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 1; return 0; }"
# Their CUDA kernels hand a number or a size to the host, and wait for it.
WAITS = ("_local_scalar_dense", "nonzero", "_unique", "_unique2", "unique_dim", "equal", "histc")
WAITS += ("unique_consecutive", "bincount", "masked_select", "is_nonzero", "repeat_interleave")
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


# --- the stub -----------------------------------------------------------------------------------


def missing() -> str:
    """What this machine lacks to pretend a GPU, and the remedy; "" where it lacks nothing."""
    if not sys.platform.startswith("linux"):
        return "a GPU is pretended on Linux alone: run this test there"
    if torch.version.cuda is None:
        return "this torch is built without CUDA: install PyPI's own torch wheel, which has it"
    absent = [tool for tool in ("cc", "nm") if shutil.which(tool) is None]
    return f"no {' and no '.join(absent)}: install gcc and binutils" if absent else ""


def environment(folder: Path) -> dict[str, str]:
    """Compile the stub into a folder; variables that a process with a pretended GPU starts with.

    Raises CalledProcessError where it cannot be compiled.
    """
    source, libraries = STUB.read_text(), Path(torch.__file__).parent / "lib"
    files = [libraries / f"lib{name}.so" for name in LIBRARIES]
    nm = ["nm", "-D", "--undefined-only", *(file for file in files if file.is_file())]
    imported = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    wanted = set(re.findall(r" U ((?:__)?cuda\w+)", imported))
    rest = sorted(wanted - set(re.findall(r"((?:__)?cuda\w+)\(", source)))
    source += "".join(f"int {name}(void) {{ return 0; }}\n" for name in rest)
    for name, code in (("libcudart_stub.so", source), ("libcuda.so.1", DRIVER)):
        command = ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", folder / name]
        subprocess.run(command, input=code, text=True, check=True)
    preloaded = {"LD_PRELOAD": str(folder / "libcudart_stub.so"), "LD_LIBRARY_PATH": str(folder)}
    return os.environ | preloaded | {"AEFT_DEVICE": "cuda"}


# --- tensors and operations ---------------------------------------------------------------------


class OnGpu(Tensor):
    """A tensor that says it lies on cuda:0; `held` has its numbers, on the CPU.

    A sparse matrix says that it is dense; `held` knows.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        dense = held.layout == torch.strided
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride() if dense else (held.shape[1], 1),
            storage_offset=held.storage_offset() if dense else 0,
            dtype=held.dtype,
            device="cuda:0",
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Pretend.active.run(func, args, kwargs or {})

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, **_: Any):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")


class Pretend(TorchDispatchMode):
    """Within it cuda is pretended.  events: kind -> how often what happened, where, in which phase.

    Kinds: "mixed" devices (an error follows, as on a GPU), "no kernel", "wait" for the device,
    "pageable" copies to the device of more than one number, "pinned" ones.
    operations: phase -> how many.  convolutions: phase -> the types of number they had.
    """

    active: "Pretend"

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[str, Counter] = defaultdict(Counter)
        self.phase, self.operations = "", Counter()
        self.convolutions: dict[str, set[str]] = defaultdict(set)
        self.kernels: dict[tuple[str, str], bool] = {}

    def __enter__(self) -> "Pretend":
        Pretend.active = self
        # cuDNN's own batch norm has no CPU kernel to compute with.
        torch.backends.cudnn.enabled = False
        # A parameter cannot become an `OnGpu`: network.to("cuda") puts new ones in their place.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    @contextmanager
    def named(self, phase: str) -> Iterator[None]:
        """What happens within is written down under this name."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._can_decompose():  # in inference mode composite operations arrive whole
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Check an operation by CUDA's rules, then compute it on the CPU."""
        flat, structure = pytree.tree_flatten((args, kwargs))
        device = kwargs.get("device")
        asked = torch.device(device).type if device is not None else ""
        gpu = any(map(_on_gpu, flat))
        if not gpu and asked != "cuda":
            return func(*args, **kwargs)
        self.check(func, args, kwargs, flat)
        plain = [_plain(x) for x in flat]
        inner_args, inner = pytree.tree_unflatten(plain, structure)
        inner |= {"device": torch.device("cpu")} if asked == "cuda" else {}
        result = func(*inner_args, **inner)
        if gpu and asked == "cpu":
            return result
        if asked == "cuda" and not gpu and result is plain[0]:
            result = result.clone()  # a copy to the device is another tensor
        known = {id(p): x for p, x in zip(plain, flat, strict=True) if isinstance(x, OnGpu)}
        # A view is as normal as its tensor, in inference mode too.
        normal = func.is_view and not all(x.is_inference() for x in known.values())

        def wrapped(tensor: Tensor) -> Tensor:
            if isinstance(tensor, OnGpu):  # of an operation that is made of others
                return tensor
            if id(tensor) in known:  # an operation in place returns its argument
                return known[id(tensor)]
            with torch.inference_mode(False) if normal else nullcontext():
                return OnGpu(tensor)

        if isinstance(result, Tensor):
            return wrapped(result)
        return pytree.tree_map_only(Tensor, wrapped, result)

    def check(self, func: Any, args: tuple, kwargs: dict[str, Any], flat: list) -> None:
        """Write down what a GPU would object to.  Raises RuntimeError where CUDA would."""
        name = func._schema.name.removeprefix("aten::")
        gpu = [x for x in flat if _on_gpu(x)]
        cpu = [x for x in flat if isinstance(x, Tensor) and not _on_gpu(x)]
        self.operations[self.phase] += 1
        if name in COPIES:
            return self._copied(name, args, kwargs)
        if name == "convolution":
            self.convolutions[self.phase].add(str(gpu[0].dtype))
        if gpu and not self._has_kernel(func, gpu):
            self.note("no kernel", f"{name}.{func._overloadname}")
        if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in flat):
            self.note("mixed", f"{name}: a CPU generator")
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        indices = pytree.tree_leaves(args[1]) if name in INDEXING else []
        if gpu and any(x.ndim and all(x is not index for index in indices) for x in cpu):
            self.note("mixed", f"{name}: {[tuple(x.shape) for x in cpu]} on the CPU")
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        mask = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)
        if gpu and (name in WAITS or mask):
            self.note("wait", f"{name} by a mask" if mask else name)

    def _copied(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or "cpu")
        to_gpu = target.type == "cuda"
        if _on_gpu(source) and not to_gpu and (name == "copy_" or kwargs.get("device")):
            self.note("wait", f"{name} to the host")
        elif to_gpu and not _on_gpu(source) and source.numel() > 1:
            self.note("pinned" if source.is_pinned() else "pageable", str(source.dtype))

    def _has_kernel(self, func: Any, tensors: list[Tensor]) -> bool:
        sparse = any(_plain(x).layout == torch.sparse_csr for x in tensors)
        key = ("SparseCsrCUDA" if sparse else "CUDA", func.name())
        if key not in self.kernels:
            known = torch._C._dispatch_has_computed_kernel_for_dispatch_key
            self.kernels[key] = known(key[1], key[0])
        return self.kernels[key]

    def note(self, kind: str, what: str) -> None:
        """Count what happened, with the line of ours that asked for it."""
        self.events[kind][self.phase, what, _where()] += 1


def _on_gpu(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == "cuda"


def _plain(x: Any) -> Any:
    """What the CPU computes with instead."""
    if isinstance(x, OnGpu):
        return x.held
    if _on_gpu(x):  # torch.tensor(1.0, device="cuda") passes no mode; it is 0-dim or short
        return x.cpu()
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return None if isinstance(x, torch.Generator) and x.device.type == "cuda" else x


def _where() -> str:
    """The innermost line of the package or of a test; torch's own scaler and optimisers by name."""
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if file.endswith("grad_scaler.py"):
            return "grad_scaler.py"
        if f"{os.sep}aeft_lib{os.sep}" in file or (file.startswith(str(HERE)) and file != __file__):
            return f"{file.removeprefix(str(HERE.parent))}:{line}"
    return "torch"

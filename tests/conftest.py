"""What several test modules share: the golden vectors and the measure that compares with them.

``--noise=1e-6`` disturbs weights and the inputs of what amplifies, see `noise`.  A test marked
``exact`` works with numbers at a tie or compares bits on purpose; it is skipped then.
"""

import json
import os
from pathlib import Path

import noise
import numpy as np
import pytest
import torch

from aeft_lib.data.collages import Collages


def pytest_addoption(parser) -> None:
    parser.addoption("--noise", type=float, default=0.0, help="relative noise, see tests/noise.py")


# Files that train, the longest first: the two processes begin with them, so that neither is left
# with one alone at the end.
LONG = (
    "test_notebooks_on_photos",
    "test_solutions",
    "test_notebooks_untrained",
    "test_campaign",
    "test_ranks",
    "test_run",
    "test_condition_views",
    "test_paper_scale",
    "test_pretend_gpu",
    "test_segmenter_stages",
    "test_book",
)


def pytest_collection_modifyitems(config, items) -> None:
    last = len(LONG)
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, last))
    if config.getoption("noise"):
        noise.install(config.getoption("noise"))
        skipped = pytest.mark.skip(reason="exact: not under noise")
        for item in items:
            if item.get_closest_marker("exact"):
                item.add_marker(skipped)


def golden_folder() -> Path:
    """``AEFT_GOLDEN`` where that is set, else tests/golden."""
    return Path(os.environ.get("AEFT_GOLDEN") or Path(__file__).with_name("golden"))


def loaded(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def golden():
    """Load ``<name>.npz`` of the reference as a dict of arrays."""
    return lambda name: loaded(golden_folder() / f"{name}.npz")


@pytest.fixture
def golden_rivals():
    """The same of another method: ``AEFT_GOLDEN_RIVALS`` where set, else tests/golden_rivals."""
    folder = os.environ.get("AEFT_GOLDEN_RIVALS") or Path(__file__).with_name("golden_rivals")
    return lambda name: loaded(Path(folder) / f"{name}.npz")


@pytest.fixture
def golden_meta():
    """The section of ``meta.json`` that says how a golden file was made."""

    def load(name: str) -> dict:
        return json.loads((golden_folder() / "meta.json").read_text())[name]

    return load


@pytest.fixture
def golden_losses(golden):
    """The cases of ``losses.npz``, each a dict of tensors; those that store only what differs have the inputs of a."""
    cases: dict[str, dict[str, torch.Tensor]] = {}
    for key, array in golden("losses").items():
        case, name = key.split("/")
        cases.setdefault(case, {})
        if array.dtype.kind != "U":  # an error message
            cases[case][name] = torch.from_numpy(array)
    assert cases, "the golden file holds no case"
    for case in cases.values():
        for name in ("images", "cam", "logits", "gpp", "gpp_masked"):
            case.setdefault(name, cases["a"][name])
    return cases


@pytest.fixture
def golden_first_release(golden, golden_losses):
    """The cases of ``losses_first_release.npz``, with the inputs of ``losses.npz``."""
    inputs = ("label", "images", "cam", "logits", "gpp", "gpp_masked")
    cases: dict[str, dict[str, torch.Tensor]] = {}
    for key, array in golden("losses_first_release").items():
        case, name = key.split("/")
        cases.setdefault(case, {k: golden_losses[case][k] for k in inputs})
        cases[case][name] = torch.from_numpy(array)
    assert cases, "the golden file holds no case"
    return cases


@pytest.fixture
def assert_near():
    """Compare with a golden array; the tolerance is relative to its largest absolute value."""

    def compare(ours, theirs, tolerance: float, name: str) -> None:
        ours, theirs = (torch.as_tensor(x).detach().double() for x in (ours, theirs))
        assert ours.shape == theirs.shape, name
        worst, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
        assert worst <= tolerance * largest, (
            f"{name}: differs by {worst:.3g}, allowed {tolerance} of {largest:.3g}"
        )

    return compare


@pytest.fixture
def rng():
    """Random numbers that are the same everywhere."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A test file's own store."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def close_figures():
    """Figures that a test drew are closed after it."""
    from matplotlib import pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def stored(shared, monkeypatch):
    """A test reads its file's store with one thread, in silence; a file asks for it with ``pytestmark``."""
    monkeypatch.setenv("AEFT_RUNS", str(shared))
    monkeypatch.setenv("AEFT_QUIET", "1")
    monkeypatch.delenv("AEFT_PROFILE", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield shared
    torch.set_num_threads(threads)


class MaskRead(AssertionError):
    """A mask was read by what must learn from tags alone."""


class Blind:
    """A scene that shows what a tag learner may see, and neither its mask nor itself unpacked."""

    def __init__(self, scene) -> None:
        self.image, self.tags, self.name = scene.image, scene.tags, scene.name

    def refuse(self, *_):
        raise MaskRead(self.name)

    mask = property(refuse)
    __getitem__ = __iter__ = refuse


@pytest.fixture
def blind(monkeypatch):
    """From now on no collage shows its mask: who reads one gets the error that this returns."""
    render = Collages.__getitem__
    monkeypatch.setattr(Collages, "__getitem__", lambda self, index: Blind(render(self, index)))
    return MaskRead


def real_folder(variable: str, marker: str) -> Path:
    """The folder of real photos that a variable names; skips where it is not there."""
    root = os.environ.get(variable)
    if not root or not (Path(root) / marker).exists():
        pytest.skip(
            f"{variable} names no folder with {marker}: real photos are not part of the checkout"
        )
    return Path(root)


@pytest.fixture
def real_voc() -> Path:
    return real_folder("AEFT_VOC_ROOT", "VOCdevkit/VOC2012")


@pytest.fixture
def real_coco() -> Path:
    return real_folder("AEFT_COCO_ROOT", "annotations")

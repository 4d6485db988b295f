"""The weights doctor:

the authors' names, MXNet's, wrappers, another K, damage, and a pickle in disguise.
"""

import pickle

import pytest
import torch
from golden_networks import theirs
from safetensors.torch import save_file

from aeft_lib.cli import main
from aeft_lib.networks import state
from aeft_lib.networks.checkpoints import load_checkpoint, own_names, read_tensors
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.paper.classifier import CamClassifier, Classification
from aeft_lib.paper.gpp import Pyramid, PyramidPooling

K = 3


def paper_network(seed: int) -> CamClassifier:
    method, spec = Classification(Pyramid()), ResNet38dSpec(weights="none")
    return state.build(lambda: method.build(spec.build(), K), seed)


@pytest.fixture(scope="module")
def resnet() -> CamClassifier:
    return paper_network(seed=1)


def small(num_classes: int = K, seed: int = 0) -> CamClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = EfficientNetLiteSpec(trained_stages=0, weights="none").build()
        pooling = PyramidPooling(num_classes=num_classes, levels=(1, 2), fusion="gated")
        return CamClassifier(backbone=backbone, pooling=pooling, num_classes=num_classes, hidden=8)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(p, q)
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_the_authors_checkpoint_fills_every_tensor(resnet, tmp_path):
    """Their names, as the golden layout has them, inside the wrapper that DataParallel leaves."""
    tensors = {f"module.{theirs(name)}": tensor for name, tensor in resnet.state_dict().items()}
    torch.save(tensors, tmp_path / "aeft.pth")
    other = paper_network(seed=2)
    assert not same(other, resnet)
    found = load_checkpoint(other, tmp_path / "aeft.pth")
    assert found.missing == found.unused == ()
    assert same(other, resnet)


@pytest.mark.parametrize(
    ("published", "own"),
    [
        ("gconv1.att_p.0.weight", "pooling.gates.0.positive.weight"),
        ("gconv3.att_n.weight", "pooling.gates.2.negative.weight"),
        ("fc8.weight", "head.fc8.weight"),
        ("arg:res4b2_branch2a_weight", "backbone.b4_2.conv_branch2a.weight"),
        ("aux:bn7_moving_var", "backbone.bn7.running_var"),
        ("conv1a.weight", "backbone.conv1a.weight"),
    ],
)
def test_names(published, own):
    assert own in own_names(published)


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_wrappers_and_prefixes(tmp_path, wrapper):
    state = {f"net_main.{name}": tensor for name, tensor in small(seed=1).state_dict().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "x.pth")
    network = small(seed=2)
    load_checkpoint(network, tmp_path / "x.pth")
    assert same(network, small(seed=1))


def test_what_is_missing_and_what_is_left_over_is_said(tmp_path):
    state = {name: t for name, t in small().state_dict().items() if not name.startswith("pooling")}
    state = {name: t.contiguous() for name, t in state.items()} | {"fc.bias": torch.zeros(2)}
    save_file(state, tmp_path / "x.safetensors")
    found = load_checkpoint(small(), tmp_path / "x.safetensors")
    assert found.unused == ("fc.bias",)
    assert set(found.missing) == {
        "pooling.gates.0.positive.weight",
        "pooling.gates.0.negative.weight",
    }
    assert "not in the network: 1, fc.bias" in found.text()
    assert "not in the file: 2, pooling.gates.0.negative.weight" in found.text()


def test_a_checkpoint_of_another_k_is_refused_and_nothing_is_loaded(tmp_path):
    torch.save(small(num_classes=5, seed=1).state_dict(), tmp_path / "k5.pth")
    network = small(seed=2)
    with pytest.raises(
        ValueError, match=r"head\.fc9\.weight is \(5, 8, 1, 1\).*other classes than these K=3"
    ):
        load_checkpoint(network, tmp_path / "k5.pth")
    assert same(network, small(seed=2))


class Malice:
    """A pickle that would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.parametrize(
    "save", [lambda x, f: torch.save(x, f), lambda x, f: f.write_bytes(pickle.dumps(x))]
)
def test_a_pickle_in_disguise_is_not_opened(tmp_path, save):
    save({"fc8.weight": Malice(str(tmp_path / "ran"))}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"x\.pth is not opened: it is no checkpoint of tensors alone"
    ):
        read_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"junk" * 100, b"PK\x03\x04" + b"x" * 50], ids=["empty", "junk", "half a zip"]
)
@pytest.mark.parametrize("suffix", [".pth", ".params", ".safetensors"])
def test_damaged_files_are_named(tmp_path, content, suffix):
    file = tmp_path / f"broken{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="broken"):
        read_tensors(file)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"state_dict": {"lr": 0.1}}])
def test_tensors_without_names_are_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_tensors(tmp_path / "x.pth")


def test_a_foreign_network_and_a_missing_file(tmp_path, capsys):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError,
        match=r"holds 1 tensors and none fits this network; its first is 'layer\.weight'",
    ):
        load_checkpoint(small(), tmp_path / "x.pth")
    assert main(["weights", str(tmp_path / "none.pth")]) == 1
    assert "no file" in capsys.readouterr().err

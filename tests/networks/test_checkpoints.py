"""The weights doctor:

the authors' names, MXNet's, wrappers, another K, damage, and a pickle in disguise.
"""

import pickle

import numpy as np
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


# --- a way forward -------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_what_numpy_left_beside_the_tensors_is_passed_over(tmp_path, zipped):
    content = {"state_dict": small(seed=1).state_dict(), "best": np.float64(0.5)}
    content |= {"random": np.arange(3), "kind": np.dtype("f4"), "last": np.int64(3)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    network = small(seed=2)
    load_checkpoint(network, tmp_path / "x.pth")
    assert same(network, small(seed=1))


@pytest.mark.parametrize("wrapper", ["model_state_dict", "network", "teacher"])
def test_other_wrappers_and_an_only_dict_of_tensors_are_opened(tmp_path, wrapper):
    torch.save({"epoch": 3, wrapper: small(seed=1).state_dict()}, tmp_path / "x.pth")
    network = small(seed=2)
    load_checkpoint(network, tmp_path / "x.pth")
    assert same(network, small(seed=1))


def test_of_several_dicts_the_keys_are_named_and_how_to_save_each(tmp_path):
    state = {"fc.weight": torch.ones(2)}
    torch.save({"epoch": 3, "teacher": state, "student": state}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds several networks") as caught:
        read_tensors(tmp_path / "x.pth")
    said = str(caught.value)
    assert "content['teacher'] (1 tensors), content['student'] (1 tensors); save" in said
    run_recipe(said)
    assert read_tensors(tmp_path / "x.safetensors").keys() == state.keys()


@pytest.mark.parametrize("other", ["model_ema", "net", 3])
@pytest.mark.parametrize("inner", [False, True], ids=["plain", "wrapped"])
def test_of_two_versions_none_is_taken_in_silence(tmp_path, other, inner):
    """They have the same names, bar a wrapper's prefix."""
    weights = torch.ones(2, 2)
    states = {"model": {"fc.weight": weights}, other: {"module.fc.weight": 2 * weights}}
    if inner:
        states = {key: {"state_dict": state} for key, state in states.items()}
    torch.save(states | {"optimizer": {"state": {0: {"exp_avg": weights}}}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds several networks: ") as caught:
        read_tensors(tmp_path / "x.pth")
    assert f"content[{other!r}]" in str(caught.value)
    run_recipe(str(caught.value))
    assert read_tensors(tmp_path / "x.safetensors")["fc.weight"].equal(weights)


def test_tensors_of_other_names_beside_a_wrapper_do_not_count(tmp_path):
    content = {"state_dict": {"fc.weight": torch.ones(2)}, "normalise": {"mean": torch.ones(3)}}
    torch.save(content, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth").keys() == {"fc.weight"}


@pytest.mark.parametrize("form", ["module.backbone.{}", "{}"])
def test_two_tensors_of_one_name_are_refused_unless_they_are_equal(tmp_path, form):
    """Each form is read: the last one would decide."""
    own = next(n for n in small().state_dict() if n.startswith("backbone."))
    state = {n: tensor.clone() for n, tensor in small(seed=1).state_dict().items()}
    twin = form.format(own.removeprefix("backbone."))
    state[twin] = state[own].clone()
    torch.save(state, tmp_path / "x.pth")
    network = small(seed=2)
    load_checkpoint(network, tmp_path / "x.pth")
    assert same(network, small(seed=1))
    state[twin] += 1
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: '.*' and '.*' are both '.*', and differ; save"):
        load_checkpoint(network, tmp_path / "x.pth")


def run_recipe(said: str) -> None:
    """The three lines of Python that a message ends with."""
    lines = [line.strip() for line in said.splitlines()[1:]]
    assert len(lines) == 3
    exec("\n".join(lines), {})


def test_a_torchscript_archive_is_told_how_to_save_its_tensors(tmp_path, capsys):
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match=r"x\.pt is not opened: it is a TorchScript archive") as e:
        read_tensors(tmp_path / "x.pt")
    run_recipe(str(e.value))
    assert set(read_tensors(tmp_path / "x.safetensors")) == {"weight", "bias"}
    assert main(["weights", str(tmp_path / "x.pt")]) == 1
    assert "save_file" in capsys.readouterr().err


def test_a_whole_network_is_told_what_it_needs_and_how_to_save_its_tensors(tmp_path):
    torch.save({"state_dict": {"fc": Malice(str(tmp_path / "ran"))}}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"would run code, with [\w.]*open; if you trust"
    ) as caught:
        read_tensors(tmp_path / "x.pth")
    assert "weights_only=False" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_part_of_the_backbone_is_not_usable_and_nothing_is_loaded(tmp_path):
    name = next(name for name in small().state_dict() if name.startswith("backbone."))
    torch.save({name: small(seed=1).state_dict()[name]}, tmp_path / "x.pth")
    network = small(seed=2)
    with pytest.raises(ValueError, match=r"x\.pth is not usable: 1 of \d+ tensors of the backbone"):
        load_checkpoint(network, tmp_path / "x.pth")
    assert same(network, small(seed=2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_usable_and_nothing_is_loaded(tmp_path, value):
    state = {name: tensor.clone() for name, tensor in small(seed=1).state_dict().items()}
    state["head.fc9.weight"].view(-1)[0] = value
    torch.save(state, tmp_path / "x.pth")
    network = small(seed=2)
    with pytest.raises(ValueError, match=r"not usable: 1 of \d+ tensors hold NaN .*head\.fc9\.w"):
        load_checkpoint(network, tmp_path / "x.pth")
    assert same(network, small(seed=2))


UNUSABLE = {
    "zeros alone": lambda tensor: torch.zeros_like(tensor),
    "integers": lambda tensor: (127 * tensor).to(torch.int8),
    r"values beyond 1e\+18": lambda tensor: torch.full_like(tensor, 1e30),
    r"values beyond 1e\+18, which": lambda tensor: tensor.double() * 1e200,
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_weights_that_compute_nothing_are_not_usable(tmp_path, fault):
    state = {name: tensor.clone() for name, tensor in small(seed=1).state_dict().items()}
    state["head.fc9.weight"] = UNUSABLE[fault](state["head.fc9.weight"])
    torch.save(state, tmp_path / "x.pth")
    network = small(seed=2)
    with pytest.raises(ValueError, match=rf"1 of \d+ tensors hold {fault}.*, first head\.fc9\.w"):
        load_checkpoint(network, tmp_path / "x.pth")
    assert same(network, small(seed=2))


def test_half_precision_is_usable(tmp_path):
    state = {name: tensor.half() for name, tensor in small(seed=1).state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    assert not load_checkpoint(small(seed=2), tmp_path / "x.pth").missing


@pytest.mark.parametrize("suffix", [".pth", ".params", ".safetensors"])
def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path, suffix):
    file = tmp_path / f"x{suffix}"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"pointer of Git LFS, not the file itself.*git lfs pull"):
        read_tensors(file)


def test_a_folder_is_told_to_name_its_file(tmp_path, capsys):
    assert main(["weights", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == f"aeft: {tmp_path} is a folder: name the file of weights in it\n"


@pytest.mark.parametrize("kind", ["sparse", "complex", "meta"])
def test_tensors_of_another_kind_are_no_weights(tmp_path, kind):
    plain = torch.ones(2, 2)
    tensor = {"sparse": plain.to_sparse(), "complex": plain + 1j, "meta": plain.to("meta")}[kind]
    torch.save({"fc.weight": tensor}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_tensors(tmp_path / "x.pth")


def test_a_dict_that_holds_itself_has_an_end(tmp_path):
    content = {"epoch": 3}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth"):
        read_tensors(tmp_path / "x.pth")


def test_safetensors_are_known_by_their_bytes(tmp_path):
    save_file({"fc.weight": torch.ones(2)}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth").keys() == {"fc.weight"}

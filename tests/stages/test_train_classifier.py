"""Stage `train_classifier` on a dozen scenes: a second phase from a warm start, judges, progress.

The same weights twice, resumed, blind to masks, epoch by epoch.  One store for the whole file holds
features and the warm start; everything runs in this process with one thread.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from aeft_lib.data.collages import SceneSpec
from aeft_lib.engine import loop
from aeft_lib.paper.classifier import Classification
from aeft_lib.paper.triplet import CORRECTED, Triplet
from aeft_lib.stages import store
from aeft_lib.stages.cache_features import FeatureSpec, cache_features
from aeft_lib.stages.evaluate import EvaluationSpec, evaluate_seeds
from aeft_lib.stages.evaluate_epochs import EpochsSpec, evaluate_epochs
from aeft_lib.stages.infer_seeds import SeedSpec, infer_seeds
from aeft_lib.stages.loading import load_network
from aeft_lib.stages.reading import MultiScale
from aeft_lib.stages.train_classifier import ClassifierSpec, train_classifier
from aeft_lib.studies import catalogue
from aeft_lib.studies.profiles import SMOKE
from aeft_lib.studies.settings import SecondPhase

TRAIN, VAL = SceneSpec("train", 12, 96), SceneSpec("val", 4, 96)
THRESHOLDS = (0.2, 0.4, 0.6)
FIRST = ClassifierSpec(
    method=catalogue.GATED.method.fitted(SMOKE.map_side),
    num_classes=SMOKE.num_classes,
    backbone=SMOKE.backbone,
    scenes=TRAIN,
    schedule=replace(SMOKE.schedule, epochs=1, batch_size=4),
    seed=3,
)
TRIPLET = CORRECTED.fitted(SMOKE.map_side)
PHASE = replace(
    FIRST,
    method=TRIPLET,
    schedule=SecondPhase(epochs=2, steps_per_epoch=2, batch_size=6, rate=0.3).schedule(),
)


pytestmark = pytest.mark.usefixtures("stored")


def features(scenes: SceneSpec) -> store.Artefact:
    return store.obtain(
        cache_features, FeatureSpec(scenes, SMOKE.backbone, (1.0,), scenes.open().fingerprint)
    )


@pytest.fixture
def inputs(stored) -> dict[str, store.Artefact]:
    """What a second phase reads, computed by whichever test comes first."""
    train = features(TRAIN)
    first = store.obtain(train_classifier, FIRST, {"features": train})
    return {"warm_start": first, "features": train}


def trained(inputs, folder: Path, **changes) -> dict[str, torch.Tensor]:
    """The weights after a second phase in a folder of its own."""
    folder.mkdir(exist_ok=True)
    train_classifier(replace(PHASE, **changes), inputs, folder)
    return load_file(folder / "weights.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


# --- a second phase -------------------------------------------------------------------------------


def test_the_same_weights_twice(inputs, tmp_path):
    torch.manual_seed(1)
    first = trained(inputs, tmp_path / "first")
    torch.manual_seed(2)  # the global generator has no say
    assert same(first, trained(inputs, tmp_path / "again"))
    assert (tmp_path / "first" / "log.csv").read_bytes() == (
        tmp_path / "again" / "log.csv"
    ).read_bytes()


def test_it_goes_on_from_the_warm_start_and_changes_every_weight(inputs, tmp_path):
    before = load_file(inputs["warm_start"].folder / "weights.safetensors")
    still = trained(
        inputs, tmp_path / "still", schedule=replace(PHASE.schedule, lr=1e-30, head_lr=1e-30)
    )
    after = trained(inputs, tmp_path / "after")
    assert before.keys() == still.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(still[name], before[name], rtol=1e-5, atol=0)
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.exact
def test_its_first_step_starts_from_the_weights_of_the_first_phase(inputs, tmp_path, monkeypatch):
    """Bit for bit, and whatever the seed: without a warm start the same spec draws others."""
    before, starts = load_file(inputs["warm_start"].folder / "weights.safetensors"), []
    measure = Triplet.measure

    def recorded(method, network, batch):
        starts.append({name: p.detach().clone() for name, p in network.named_parameters()})
        return measure(method, network, batch)

    monkeypatch.setattr(Triplet, "measure", recorded)
    for folder, seed in (("same", 3), ("other", 4)):
        trained(inputs, tmp_path / folder, seed=seed)
    trained({"features": inputs["features"]}, tmp_path / "cold")
    same_seed, other_seed, cold = starts[0], starts[4], starts[8]
    for name, tensor in before.items():
        assert torch.equal(same_seed[name], tensor), name
        assert torch.equal(other_seed[name], tensor), name
    assert not torch.equal(cold["head.fc9.weight"], before["head.fc9.weight"])


def test_a_warm_start_of_another_network_is_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint and network differ in \d+ tensors"):
        trained(inputs, tmp_path, method=catalogue.GAP.method)


def test_settings_of_the_method_and_seed_decide_the_weights(inputs, tmp_path):
    plain = trained(inputs, tmp_path / "plain")
    rigid = trained(inputs, tmp_path / "rigid", method=replace(TRIPLET, attract="rigid"))
    other = trained(inputs, tmp_path / "other", seed=4)
    assert not same(plain, rigid)
    assert not same(plain, other)


class Killed(BaseException):
    """Stands for the end of a process."""


def test_killed_after_an_epoch_it_resumes_to_the_same_weights_log_and_epoch_files(
    inputs, tmp_path, monkeypatch
):
    whole = trained(inputs, tmp_path / "whole", keep_epochs=True)
    save, saved = loop.save_checkpoint, []

    def save_and_die(*words):
        save(*words)
        saved.append(words)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            trained(inputs, tmp_path / "resumed", keep_epochs=True)
    assert len(saved) == 1
    left = {"checkpoint.safetensors", "steps.jsonl", "epoch_1.safetensors"}
    assert {file.name for file in (tmp_path / "resumed").iterdir()} == left
    assert same(whole, trained(inputs, tmp_path / "resumed", keep_epochs=True))
    files = {file.name for file in (tmp_path / "whole").iterdir()}
    assert files == {
        "weights.safetensors",
        "log.csv",
        "steps.jsonl",
        "epoch_1.safetensors",
        "epoch_2.safetensors",
    }
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "resumed" / name
        ).read_bytes()


def test_epoch_files_are_written_on_demand_alone_and_the_last_is_the_result(inputs, tmp_path):
    plain, kept = (
        trained(inputs, tmp_path / "plain"),
        trained(inputs, tmp_path / "kept", keep_epochs=True),
    )
    assert {file.name for file in (tmp_path / "plain").iterdir()} == {
        "weights.safetensors",
        "log.csv",
        "steps.jsonl",
    }
    assert same(plain, kept)
    first, last = (load_file(tmp_path / "kept" / f"epoch_{epoch}.safetensors") for epoch in (1, 2))
    assert same(last, kept)
    assert not same(first, kept)


def test_log_and_summary_tell_the_terms(inputs, tmp_path):
    summary = train_classifier(PHASE, inputs, tmp_path)
    log = pd.read_csv(tmp_path / "log.csv")
    assert list(log) == [
        "epoch",
        "lr",
        "classification",
        "attract",
        "repel",
        "hard",
        "without_negative",
    ]
    assert log["epoch"].tolist() == [1, 2]
    assert summary.keys() == {*log} - {"epoch"} | {"device"}
    assert summary["attract"] == pytest.approx(log["attract"].iloc[-1])


def test_steps_are_those_of_both_epochs_and_the_last_says_what_the_log_says(inputs, tmp_path):
    trained(inputs, tmp_path, schedule=replace(PHASE.schedule, steps_per_epoch=1))
    log = pd.read_csv(tmp_path / "log.csv")
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in steps] == [(1, 2), (2, 2)]
    for line, (_, row) in zip(
        steps, log.iterrows(), strict=True
    ):  # an epoch of one step is its own mean
        assert line | {"epoch": row["epoch"]} == pytest.approx(
            row.to_dict() | {"step": line["step"], "steps": 2}
        )


def test_images_and_features_of_a_batch_show_the_same_picture(inputs, tmp_path, monkeypatch):
    """Mirrored or not: what the trunk makes of images is what the cache holds, rounded."""
    seen, measure = [], Triplet.measure

    def recorded(method, network, batch):
        seen.append((network.backbone.trunk(batch.images), batch))
        return measure(method, network, batch)

    monkeypatch.setattr(Triplet, "measure", recorded)
    trained(inputs, tmp_path)
    assert len(seen) == 4
    for ours, batch in seen:
        torch.testing.assert_close(
            ours, batch.features.float(), rtol=0, atol=5e-3 * ours.abs().max().item()
        )
        assert (ours - batch.features.flip(-1)).abs().max() > 0.1 * ours.abs().max()
        assert batch.noise.shape == (6, 6)


# --- judges and progress --------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged(Classification):
    """Learns what its judge says of the images, and records what it is given."""

    needs = ("images",)
    given = []  # noqa: RUF012 (of the class, so no field and no part of a key)

    def measure(self, network, batch, **judges):
        (said,) = (judge(batch.images).logits for judge in judges.values())
        self.given.append((judges, said))
        return super().measure(network, batch) | {"said": said}

    def combine(self, measures):
        self.given.append(measures["progress"])
        apart = (measures["logits"] - measures["said"]).square().mean()
        return super().combine(measures) | {"judged": measures["progress"] * apart}


@pytest.fixture
def judged(inputs, tmp_path):
    """What a method was given in two epochs of two steps: judges and what they said; progress."""
    Judged.given.clear()
    method = Judged(FIRST.method.pooling)
    trained(
        {"features": inputs["features"], "judge_critic": inputs["warm_start"]},
        tmp_path,
        method=method,
    )
    yield Judged.given[::2], Judged.given[1::2]
    Judged.given.clear()


def test_judges_come_by_name_frozen_in_eval_mode_and_stay_as_they_were(inputs, judged):
    steps, _ = judged
    assert len(steps) == 4
    expected = load_network(inputs["warm_start"]).state_dict()
    for judges, said in steps:
        assert list(judges) == ["critic"]
        assert not any(module.training for module in judges["critic"].modules())
        assert not any(p.requires_grad or p.grad is not None for p in judges["critic"].parameters())
        assert not said.requires_grad
        state = judges["critic"].state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name].cpu(), expected[name]) for name in expected)


def test_gradients_reach_the_pixels_that_a_judge_is_given(judged):
    judge = judged[0][0][0]["critic"]
    pixels = torch.zeros(1, 3, 96, 96).to(next(judge.parameters())).requires_grad_()
    judge(pixels).logits.sum().backward()
    assert pixels.grad.abs().max() > 0


def test_combine_is_told_the_part_of_the_training_that_is_done(judged):
    _, progress = judged
    assert [float(value) for value in progress] == [0, 0.25, 0.5, 0.75]
    assert {value.shape for value in progress} == {torch.Size(())}


def test_a_judge_is_part_of_the_key(inputs):
    other = replace(inputs["warm_start"], key="0" * 16)
    cached = {"features": inputs["features"]}
    given = [cached | {"judge_critic": judge} for judge in (inputs["warm_start"], other)]
    keys = [store.key_for(train_classifier, PHASE, taken) for taken in (cached, *given)]
    assert len(set(keys)) == 3


# --- who reads masks ------------------------------------------------------------------------------


def test_training_reads_no_mask(inputs, tmp_path, blind):
    assert trained(inputs, tmp_path)
    with pytest.raises(blind):  # what does read them is caught
        evaluate_epochs(EpochsSpec(VAL, THRESHOLDS), {"features": inputs["features"]}, tmp_path)


# --- evaluate_epochs ------------------------------------------------------------------------------


def curve_of(classifier: store.Artefact) -> pd.DataFrame:
    """A classifier's curve as the stages of every study make it."""
    given = {"classifier": classifier, "features": features(VAL)}
    seeds = store.obtain(
        infer_seeds, SeedSpec(VAL, MultiScale((1.0,)), VAL.open().fingerprint), given
    )
    return pd.read_csv(
        store.obtain(evaluate_seeds, EvaluationSpec(VAL, THRESHOLDS), {"seeds": seeds}).folder
        / "curve.csv"
    )


def test_epochs_go_from_the_warm_start_to_the_final_weights(inputs):
    final = store.obtain(train_classifier, replace(PHASE, keep_epochs=True), inputs)
    given = {"warm_start": inputs["warm_start"], "classifier": final, "features": features(VAL)}
    made = store.obtain(evaluate_epochs, EpochsSpec(VAL, THRESHOLDS), given)
    assert made.summary == {"epochs": 2}
    table = pd.read_csv(made.folder / "epochs.csv")
    assert list(table) == ["threshold", "miou", "precision", "recall", "epoch"]
    assert table["epoch"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    curves = [
        table[table["epoch"] == epoch].drop(columns="epoch").reset_index(drop=True)
        for epoch in range(3)
    ]
    # The store rounds seeds to 1/255, an epoch's seeds are never stored: no other epoch comes near.
    for epoch, classifier in ((0, inputs["warm_start"]), (2, final)):
        apart = [(curve - curve_of(classifier)).abs().max()["miou"] for curve in curves]
        assert all(3 * apart[epoch] < apart[other] for other in {0, 1, 2} - {epoch})


def test_without_epoch_files_only_the_warm_start_is_scored(inputs, tmp_path):
    final = store.obtain(train_classifier, PHASE, inputs)
    given = {"warm_start": inputs["warm_start"], "classifier": final, "features": features(VAL)}
    assert evaluate_epochs(EpochsSpec(VAL, THRESHOLDS), given, tmp_path) == {"epochs": 0}

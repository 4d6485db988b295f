"""The trained weights that come with the package: true to their training, small, never damaged."""

import json
import shutil

import pytest
import torch

from aeft_lib.lab.session import Session, open_session
from aeft_lib.networks import state
from aeft_lib.stages.loading import loaded
from aeft_lib.studies import catalogue, pipeline, run, shipped, shipping
from aeft_lib.studies.profiles import LAPTOP, SMOKE

pytestmark = pytest.mark.usefixtures("stored")
HALF = 2.0**-11  # half precision rounds by this part of a number at most
KNOWN = shipped.known()


def kept(row: str) -> dict[str, torch.Tensor]:
    return shipped.load((shipped.FOLDER / shipped.entry(row)["file"]).read_bytes())


def error_bounds(row: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How far each stored tensor may lie from the trained one, by how it is kept."""
    stored, bounds = kept(row), {}
    for name, tensor in tensors.items():
        if stored[name].dtype == torch.int8:
            step = stored[name + shipped.STEP]
            bounds[name] = (step / 2).reshape(-1, *(1,) * (tensor.ndim - 1)).expand_as(tensor)
        else:
            bounds[name] = HALF * tensor.abs() + 2.0**-25
    return bounds


def test_the_package_brings_all_classifiers_in_less_than_20_mb():
    assert set(shipped.CLASSIFIERS) <= set(KNOWN) <= set(shipped.ROWS)
    files = {shipped.entry(row)["file"] for row in KNOWN}
    assert files | {shipped.MANIFEST} == {file.name for file in shipped.FOLDER.iterdir()}
    assert sum(file.stat().st_size for file in shipped.FOLDER.iterdir()) < 20e6
    assert shipped.MOST_BYTES == 20e6
    assert shipped.manifest()["classes"] == list(LAPTOP.train.open().classes)
    for row in KNOWN:
        assert shipped.entry(row)["command"] == shipping.command(row)
        assert shipped.training(LAPTOP, catalogue.row(row)).seed == shipped.REPEAT


def test_what_is_kept_is_near_to_what_was_trained(rng):
    start = {"backbone.a": torch.randn(6, 4, 3, 3), "head.b": torch.randn(5, 7)}
    trained = {name: t + 0.01 * torch.randn_like(t) for name, t in start.items()}
    trained["backbone.a"][2] = start["backbone.a"][2]  # a channel that did not move
    stored = shipped.encoded(trained, start)
    back = shipped.decoded(stored, start)
    assert {name: t.shape for name, t in back.items()} == {n: t.shape for n, t in trained.items()}
    way = (trained["backbone.a"] - start["backbone.a"]).abs()
    limit = way.flatten(1).amax(dim=1) / 127 / 2 + 4 * torch.finfo(torch.float32).eps
    wrong = (back["backbone.a"] - trained["backbone.a"]).abs().flatten(1).amax(dim=1)
    assert (wrong <= limit + 1e-6).all()
    assert torch.equal(back["backbone.a"][2], start["backbone.a"][2])
    assert ((back["head.b"] - trained["head.b"]).abs() <= HALF * trained["head.b"].abs()).all()


def reach(network, row: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (K,) of the first probe, and how far rounding of the weights moves them.

    To first order an output moves by gradient x rounding.  Roundings are independent and uniform,
    so their sum has the sd sqrt(sum (gradient x bound)^2 / 3); ten of them are never exceeded.
    """
    network.requires_grad_(False)
    trained = {name: p for name, p in network.named_parameters() if name in kept(row)}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    (image, *_) = shipped.probes(LAPTOP)
    picture = shipped.normalised(network, [image])
    out = shipped.answer(network, picture)
    limits = []
    bounds = error_bounds(row, {name: p.detach() for name, p in trained.items()})
    for value in out[0]:
        slopes = torch.autograd.grad(value, list(trained.values()), retain_graph=True)
        moved = [((s * bounds[n]) ** 2).sum() / 3 for s, n in zip(slopes, trained, strict=True)]
        limits.append(10 * float(torch.stack(moved).sum().sqrt()))
    return out[0].detach(), torch.tensor(limits)


@pytest.mark.parametrize("row", KNOWN)
def test_shipped_weights_give_the_trained_networks_outputs(row):
    network = shipped.network(LAPTOP, catalogue.row(row))
    before = torch.tensor(shipped.entry(row)["outputs"][0])
    after, limits = reach(network, row)
    assert ((after - before).abs() <= limits).all(), (after - before, limits)
    # The bound tells weights apart: with a last layer off by a tenth it is left.
    assert limits.max() < 0.02 * before.abs().max()
    last = [
        p
        for name, p in network.named_parameters()
        if name.endswith(("fc9.weight", "conv7.weight", "f9.weight"))
    ]
    with torch.no_grad():
        last[0].mul_(1.1)
    other = shipped.outputs(network, shipped.probes(LAPTOP))[0]
    assert ((other - before).abs() > limits).any()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of weights that a test may damage."""
    folder = tmp_path / "weights"
    shutil.copytree(shipped.FOLDER, folder)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    return folder


def test_damaged_and_missing_files_are_refused_with_a_remedy(own):
    file = own / shipped.entry("gap")["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"gap\.safetensors is damaged, .*: make weights"):
        shipped.network(LAPTOP, catalogue.row("gap"))
    file.write_bytes(content[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        shipped.network(LAPTOP, catalogue.row("gap"))
    file.unlink()
    with pytest.raises(ValueError, match=r"gap\.safetensors is missing: .*make weights"):
        shipped.network(LAPTOP, catalogue.row("gap"))


def test_weights_of_other_settings_and_of_other_rows_are_refused(own):
    content = json.loads((own / shipped.MANIFEST).read_text())
    content["networks"]["gap"]["training"]["schedule"]["epochs"] += 1
    (own / shipped.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the weights of gap are of other settings or data"):
        shipped.network(LAPTOP, catalogue.row("gap"))
    with pytest.raises(ValueError, match="not of level2: train it"):
        shipped.network(LAPTOP, catalogue.row("level2"))


@pytest.fixture
def smoke_weights(tmp_path, monkeypatch):
    """The package's weights, written from a store of the smoke profile."""
    monkeypatch.setattr(shipped, "PROFILE", "smoke")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    run.run_study(catalogue.get("gap_vs_gpp"), SMOKE, [0], rows=[catalogue.row("gap")], workers=1)
    return shipping.write()


def test_weights_are_written_from_the_store_and_others_stay(smoke_weights, monkeypatch, tmp_path):
    assert [line.split(":")[0] for line in smoke_weights] == list(shipped.ROWS)
    assert "not in the store, left as it was; train it with aeft run" in smoke_weights[1]
    assert shipped.known() == ["gap"]
    made = pipeline.artefacts(SMOKE, catalogue.row("gap"), 0)
    trained = state.trained_state(loaded(shipped.untrained, made["classifier"]))
    bounds, eps = error_bounds("gap", trained), torch.finfo(torch.float32).eps
    for name, tensor in shipped.network(SMOKE, catalogue.row("gap")).state_dict().items():
        if name in trained:  # a step is rounded to half of it, then the sum in fp32
            limit = bounds[name] + 4 * eps * trained[name].abs()
            assert ((tensor - trained[name]).abs() <= limit).all(), name
    before = shipped.manifest()
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="nothing to write; gap: not in the store"):
        shipping.write()
    assert shipped.manifest() == before


def test_what_does_not_fit_is_left_out_with_its_file(smoke_weights, monkeypatch):
    file = shipped.FOLDER / shipped.entry("gap")["file"]
    networks = {name: {"bytes": 60, "file": f"{name}.bin"} for name in ("a", "b", "c")}
    networks["c"] = {"bytes": 40, "file": file.name}
    monkeypatch.setattr(shipped, "MOST_BYTES", 70)
    assert [line.split(":")[0] for line in shipping._drop_what_does_not_fit(networks)] == ["b", "c"]
    assert list(networks) == ["a"]
    assert not file.exists()


def test_a_session_that_does_not_train_reads_the_shipped_weights(
    smoke_weights, monkeypatch, tmp_path
):
    trained = Session(SMOKE, 1).artefacts("gap")
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "fresh"))

    def refuse(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr(run, "_compute", refuse)
    session = open_session("smoke", train=False)
    assert not session.train
    made = session.artefacts("gap")
    assert made["classifier"].key != trained["classifier"].key
    assert made["seeds"].key != trained["seeds"].key
    assert (session.output(session.network("gap"), 0).cam > 0).any()
    table = session.stored_table("gap_vs_gpp")
    assert table.empty  # never taken for a trained row
    with pytest.raises(ValueError, match="brings trained weights of gap, not of gated"):
        session.artefacts("gated")
    with pytest.raises(ValueError, match="of one repeat: set train = True for repeats = 2"):
        open_session("smoke", 2, train=False)

"""Trainings and seeds with label maps beside the images, and label maps by a network.

True masks stand in for the maps that a row would have made, so that there is something to see.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from photo_profile import photo_profile
from photo_sets import make_voc
from safetensors.torch import load_file, save_file
from torch import Tensor

from aeft_lib.data.scene import opened
from aeft_lib.data.views import ViewSpec
from aeft_lib.engine.samples import Batch
from aeft_lib.maps.labels import VOID, write_label_map
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.parts.context_masks import BUFFER, ConfounderSpec, average_masks
from aeft_lib.rivals.conta import Conta
from aeft_lib.stages import train_with_maps as stage
from aeft_lib.stages.by_network import ByNetwork
from aeft_lib.stages.infer_seeds import SeedSpec
from aeft_lib.stages.infer_with_maps import Told, infer_with_maps
from aeft_lib.stages.loading import load_network
from aeft_lib.stages.map_source import MAPS, STATISTICS, STATISTICS_FILE, with_statistics
from aeft_lib.stages.psa import Psa
from aeft_lib.stages.reading import MultiScale
from aeft_lib.stages.store import Artefact, obtain
from aeft_lib.stages.train_classifier import ClassifierSpec
from aeft_lib.stages.train_with_maps import WARM_START, paired_view, train_with_maps
from aeft_lib.stages.write_labels import TruthSpec, label_files, true_labels
from aeft_lib.studies import catalogue, pipeline, profiles
from aeft_lib.studies.rows import Row

SMOKE = replace(profiles.SMOKE, train=replace(profiles.SMOKE.train, count=16))
pytestmark = pytest.mark.usefixtures("stored")


def inputs_of(profile) -> dict[str, Artefact]:
    """True masks of the training scenes, and their confounders."""
    scenes, side = profile.train, profile.map_side
    maps = obtain(true_labels, TruthSpec(scenes, scenes.open().truth))
    spec = ConfounderSpec(scenes, profile.num_classes, side)
    return {MAPS: maps, STATISTICS: obtain(average_masks, spec, {MAPS: maps})}


def spec_of(profile) -> ClassifierSpec:
    return ClassifierSpec(
        method=Conta().fitted(profile.map_side),
        num_classes=profile.num_classes,
        backbone=profile.backbone,
        scenes=profile.train,
        schedule=profile.schedule,
        seed=0,
        view=profile.view,
        compute=profile.compute,
    )


def trained(profile=SMOKE, **more: Artefact) -> Artefact:
    inputs = inputs_of(profile) | more
    if profile.cached:
        inputs["features"] = pipeline.features(profile, "train", obtain)
    return obtain(train_with_maps, spec_of(profile), inputs)


# --- training -------------------------------------------------------------------------------------


def test_a_map_beside_each_scene_is_read_and_learned_from():
    classifier = trained()
    assert classifier.summary["context_share"] > 0
    assert 0 < classifier.summary["context_spread"] <= 1 + 1e-6
    weights = load_file(classifier.folder / "weights.safetensors")
    assert weights["joined.weight"].any()
    assert BUFFER not in weights, "contexts come with the maps"


def test_a_sample_and_its_map_are_mirrored_together(monkeypatch):
    seen: list[Batch] = []
    measure = Conta.measure

    def watched(method: Conta, network, batch: Batch) -> dict[str, Tensor]:
        seen.append(batch)
        return measure(method, network, batch)

    monkeypatch.setattr(Conta, "measure", watched)
    inputs = inputs_of(SMOKE) | {"features": pipeline.features(SMOKE, "train", obtain)}
    cached = stage.load_features(inputs["features"], names=["scale_1.0"])["scale_1.0"]
    scenes = SMOKE.train.open()
    masks = torch.stack([torch.from_numpy(scenes.mask(i)) for i in range(len(scenes))])

    def run(folder) -> None:
        train_with_maps(spec_of(SMOKE), inputs, folder)

    run(_made(inputs[MAPS].folder.parent / "watched"))
    turns = set()
    for batch in seen:
        for features, labels in zip(batch.features, batch.labels, strict=True):
            place = (cached == features).flatten(2).all(dim=2).nonzero()
            index, mirrored = place[0].tolist()
            turns.add(mirrored)
            expected = masks[index].flip(-1) if mirrored else masks[index]
            assert torch.equal(labels, expected)
    assert turns == {0, 1}


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.exact  # weights as they are in the file
def test_a_warm_start_fills_what_it_has(tmp_path):
    gap = pipeline.classifiers(SMOKE, catalogue.GAP, 0, obtain)["classifier"]
    start = load_file(gap.folder / "weights.safetensors")
    spec = spec_of(replace(SMOKE, schedule=replace(SMOKE.schedule, lr=1e-12, head_lr=1e-12)))
    inputs = inputs_of(SMOKE) | {"features": pipeline.features(SMOKE, "train", obtain)}
    train_with_maps(spec, inputs | {WARM_START: gap}, tmp_path)
    after = load_file(tmp_path / "weights.safetensors")
    assert after.keys() > start.keys()
    for name, tensor in start.items():
        # Eight steps of AdamW move a weight by about the rate each.
        torch.testing.assert_close(after[name], tensor, rtol=1e-9, atol=1e-9)


def test_statistics_that_do_not_fit_are_refused(tmp_path):
    network = Conta(side=6).build(SMOKE.backbone.build(), 3)
    given = Artefact("average_masks", "", tmp_path, {"summary": {}}, None)
    for name, shape, problem in (
        (BUFFER, (3, 5, 5), r"a buffer context.confounders of \(3, 5, 5\), .* one of \(3, 6, 6\)"),
        ("context.other", (3, 6, 6), "none of this name"),
    ):
        save_file({name: torch.zeros(shape)}, tmp_path / STATISTICS_FILE)
        with pytest.raises(ValueError, match=problem):
            with_statistics(network, {STATISTICS: given})


def test_another_number_of_maps_is_refused(tmp_path):
    spec = replace(spec_of(SMOKE), scenes=SMOKE.val)
    inputs = inputs_of(SMOKE) | {"features": pipeline.features(SMOKE, "val", obtain)}
    with pytest.raises(ValueError, match="8 images and 16 label maps"):
        train_with_maps(spec, inputs, tmp_path)


# --- views of photos ------------------------------------------------------------------------------


def test_a_view_and_its_map_are_cut_alike():
    """The map is painted into the photo: where it is cut, the photo shows the same."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (5, 4), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    image = np.stack([labels * 100] * 3, axis=-1)
    plain = {"jitter_probability": 0.0, "long_side": (60, 120), "crop": 64}

    def normalise(pictures: Tensor) -> Tensor:
        return pictures.float() / 100 + 1  # padding is 0

    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        view, own = paired_view(image, labels, generator, ViewSpec(**plain), normalise)
        assert view.shape == (3, 64, 64)
        shown = view[0].round().long() - 1
        assert torch.equal(own == VOID, view[0] == 0)
        # Bicubic resizing blurs the edges of 20 cells; away from them it is the label.
        agree = (shown == own.long()) | (own == VOID)
        assert agree.float().mean() > 0.75


def test_photos_are_trained_on_and_read(tmp_path, monkeypatch):
    opened.cache_clear()
    make_voc(
        tmp_path / "voc", {"train": 4, "train_aug": 12, "val": 4}, classes=("cat", "cow", "dog")
    )
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "voc"))
    profile = photo_profile()
    classifier = trained(profile)
    assert classifier.summary["context_share"] > 0
    reader = MultiScale((0.5, 1.0))
    spec = SeedSpec(profile.train, reader, "")
    seeds = obtain(infer_with_maps, spec, inputs_of(profile) | {"classifier": classifier})
    assert seeds.summary["images"] == 12
    opened.cache_clear()


# --- seeds ----------------------------------------------------------------------------------------


def seeds_of(artefact: Artefact) -> list[Tensor]:
    return [seed.cam for _, seed in read_seeds(artefact.folder / "seeds.npz")]


def test_seeds_depend_on_the_maps_and_agree_with_and_without_a_cache(tmp_path):
    classifier, inputs = trained(), inputs_of(SMOKE)
    spec = SeedSpec(SMOKE.train, MultiScale((1.0,)), "")
    features = pipeline.features(SMOKE, "train", obtain)
    given = inputs | {"classifier": classifier}
    direct = obtain(infer_with_maps, spec, given)
    cached = obtain(infer_with_maps, spec, given | {"features": features})
    names = [path.name for path in sorted(direct.folder.iterdir())]
    assert names == ["logits.safetensors", "record.json", "seeds.npz"]
    for own, other in zip(seeds_of(direct), seeds_of(cached), strict=True):
        # Half precision of features, 2^-11, through two layers and a norm, and steps of 1/255.
        assert (own - other).abs().max() < 2e-2
    empty = Artefact("maps", "empty", _made(tmp_path / "empty"), {"summary": {}}, None)
    _made(empty.folder / "labels")
    for file in label_files(inputs[MAPS]):
        write_label_map(empty.folder / "labels" / file.name, np.zeros((96, 96), dtype=np.uint8))
    unseen = obtain(infer_with_maps, spec, given | {"features": features, MAPS: empty})
    apart = [load_file(a.folder / "logits.safetensors")["logits"] for a in (cached, unseen)]
    assert not torch.equal(*apart), "the map counts"


def test_plain_and_mirrored_views_have_their_own_map():
    network = load_network(trained())
    with_statistics(network, inputs_of(SMOKE))
    torch.nn.init.normal_(network.joined.weight)
    maps = torch.zeros(2, 96, 96, dtype=torch.uint8)
    maps[:, :, :40] = 1
    features = torch.rand(4, *_shape())
    told = Told(Conta(side=6), maps)
    with torch.no_grad():
        ours = told.cam(network, Batch(features=features))
        for i, labels in enumerate((maps[:1], maps[:1].flip(-1))):
            alone = Conta(side=6).cam(network, Batch(features=features[i : i + 1], labels=labels))
            torch.testing.assert_close(ours[i : i + 1], alone)
        with pytest.raises(ValueError, match="in turns, got 3 views of 2 label maps"):
            told.cam(network, Batch(features=features[:3]))


def _shape() -> tuple[int, ...]:
    features = pipeline.features(SMOKE, "train", obtain)
    return tuple(stage.load_features(features, names=["scale_1.0"])["scale_1.0"].shape[2:])


# --- label maps by a network ----------------------------------------------------------------------


def test_a_network_predicts_each_split_from_one_training():
    row = Row("by", "by", catalogue.GAP.method, refiner=ByNetwork(Psa(), LargeFov()))
    made = {
        split: pipeline.products(SMOKE, replace(row, scored_on=split), 0)
        for split in ("train", "val")
    }
    assert made["train"]["teacher"].key == made["val"]["teacher"].key
    assert made["train"]["labels"].stage == made["val"]["labels"].stage == "predict_labels"
    assert len(label_files(made["train"]["labels"])) == SMOKE.train.count
    assert len(label_files(made["val"]["labels"])) == SMOKE.val.count
    assert made["train"]["labels"].spec.tags_known
    untold = replace(row.refiner, tags=False, crf=True)
    other = pipeline.products(SMOKE, replace(row, refiner=untold, scored_on="val"), 0)["labels"]
    assert not other.spec.tags_known
    assert other.spec.crf_iterations == SMOKE.segmentation.crf_iterations

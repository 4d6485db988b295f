"""The feature cache: what half precision and mirroring do to a CAM."""

import torch

from aeft_lib.data.collages import Collages, SceneSpec
from aeft_lib.networks.efficientnet_lite import EfficientNetLite0, normalise
from aeft_lib.paper import gpp
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.stages.cache_features import rescale


def test_half_precision_features_change_a_cam_by_less_than_one_percent():
    torch.manual_seed(0)
    network = CamClassifier(
        backbone=EfficientNetLite0(trained_stages=2),
        pooling=gpp.GlobalAveragePooling(),
        num_classes=9,
    )
    scene = Collages(SceneSpec("val", 1, 128))[0]
    images = normalise(torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None])
    with torch.no_grad():
        features = network.backbone.trunk(images)
        exact, cached = network.cam(features), network.cam(features.half())
    change = ((exact - cached).abs().max() / exact.abs().max()).item()
    assert 0 < change < 0.01


def test_rescale_rounds_sides_and_keeps_scale_one():
    images = torch.rand(1, 3, 75, 100)
    assert rescale(images, 1.0) is images
    assert rescale(images, 0.5).shape[-2:] == (
        38,
        50,
    )  # Python rounds 37.5 to even, as the reference does

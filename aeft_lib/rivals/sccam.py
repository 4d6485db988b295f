"""SC-CAM (Chang et al., CVPR 2020): a second head tells sub-categories of each class apart.

Telling kinds of a class apart is harder than telling classes apart, so the network must look beyond
the most telling part.  A round clusters the features of a trained classifier and trains another,
from ImageNet weights again::

    features   GAP of the backbone's last map, eval mode, whole image, neither mirrored nor scaled
    clusters   k-means of each class, over all images that have it
    labels     z in {0, 1}^(K k): bit c k + cluster for every tag c
    training   L = BCE(GAP f_p, y) + 5 BCE(GAP f_s, z)

Round 1 clusters the features of an ordinary GAP classifier; three rounds are run.  Seeds are read
of the parent head f_p.

Departures from the authors' release.  There, seeds are read with the ReLU before up-sampling (the
reader `stages.relu_first.ReluFirst`), here as everywhere in the harness (a row's reader decides).
Its optimiser has weight decay as momentum, and its training of 61 epochs is cut after 30, 40 and 50
epochs in rounds 1, 2 and 3; here a round is a whole schedule of the profile.  Both heads have the
harness's two layers, and no dropout.

On a small data set k is smaller than the authors' 10, by a rule that reads no mask: the largest k
that leaves 30 images to a cluster on average in the rarest class.  On VOC a cluster has 82.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.batches import batches, image_batches
from aeft_lib.engine.device import batch_pixels, device
from aeft_lib.engine.fields import number, whole
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.paper import losses
from aeft_lib.paper.classifier import CamClassifier, CamHead, CamMethod
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.labeller import FILE, LABELS
from aeft_lib.stages.loading import load_network, ready
from aeft_lib.stages.sources import load_tags

AUTHORS_K = 10


class SubclassOutput(NamedTuple):
    """cam: (B, K, h, w) signed, of the parent head.  logits: (B, K).  attention: as `CamOutput`.

    sub_logits: (B, K k), those of class c at c k to c k + k - 1.
    """

    cam: Tensor
    logits: Tensor
    attention: Tensor | None
    sub_logits: Tensor


class SubclassClassifier(CamClassifier):
    """A `CamClassifier` with a second head of `subclasses` maps a class, on the same features."""

    def __init__(
        self, *, backbone: nn.Module, pooling: nn.Module, num_classes: int, subclasses: int
    ) -> None:
        super().__init__(backbone=backbone, pooling=pooling, num_classes=num_classes)
        channels, count = backbone.out_channels, num_classes * subclasses
        self.sub_head = CamHead(in_channels=channels, num_classes=count)

    def from_trunk(self, features: Tensor) -> SubclassOutput:
        """Features of the frozen trunk -> CAM, logits, and the second head's logits by GAP."""
        features = self.backbone.tail(features.to(self.head.fc8.weight.dtype))
        cam = self.head(features)
        pooled = self.pooling(cam)
        sub_logits = self.sub_head(features).mean(dim=(2, 3))
        return SubclassOutput(cam, pooled.logits, pooled.attention, sub_logits)


@dataclass(frozen=True)
class ScCam(CamMethod):
    """sub_weight: of the second head's loss.  subclasses: k; 0: `SubCategories` sets it."""

    sub_weight: float = 5.0
    subclasses: int = 0

    def __post_init__(self) -> None:
        number(self, "sub_weight")
        whole(self, "subclasses")

    def build(self, backbone: nn.Module, num_classes: int) -> SubclassClassifier:
        """The network; its random weights begin as a GAP classifier's.

        Raises ValueError where the number of sub-categories is not set.
        """
        if not self.subclasses:
            raise ValueError("subclasses is 0: SubCategories.taught sets it, or a number from 1 on")
        pooling = self.pooling.build(num_classes)
        return SubclassClassifier(
            backbone=backbone, pooling=pooling, num_classes=num_classes, subclasses=self.subclasses
        )

    def measure(self, network: SubclassClassifier, batch: Batch) -> dict[str, Tensor]:
        """Logits of both heads; batch: with sub-category labels (B, K k) as ``labels``."""
        output = forward(network, batch)
        given = {"tags": batch.tags, "sub_tags": batch.labels}
        return {"logits": output.logits, "sub_logits": output.sub_logits} | given

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both terms; logged too: the mechanism, whether the second head learns its clusters.

        ``sub_ap``: its average precision over all entries of a batch.  ``sub_accuracy``: of the
        tagged classes, the share whose strongest sub-category is the image's own; 1 / k is chance.
        """
        logits, z = measures["sub_logits"], measures["sub_tags"]
        return {
            "classification": losses.classification(measures["logits"], measures["tags"]),
            "sub_classification": self.sub_weight * losses.classification(logits, z),
            "sub_ap": batch_average_precision(logits.detach(), z),
            "sub_accuracy": cluster_accuracy(logits.detach(), z, self.subclasses),
        }


def batch_average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Average precision over all entries, a scalar in 0..1; 0 where no label is set.

    logits, labels: (B, M).  The precision at the place of every label set, as the mean.

    >>> logits, labels = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 1]])
    >>> round(batch_average_precision(logits, labels).item(), 4)
    0.8333
    """
    order = logits.flatten().argsort(descending=True, stable=True)
    ranked = labels.flatten()[order].to(logits.dtype)
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1, device=ranked.device)
    return (precision * ranked).sum() / ranked.sum().clamp(min=1)


def cluster_accuracy(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Of the classes that have a label, the share whose largest logit has it; 0 without any.

    logits, labels: (B, K k).

    >>> cluster_accuracy(torch.tensor([[3.0, 2.0, 1.0, 2.0]]), torch.tensor([[1, 0, 1, 0]]), 2)
    tensor(0.5000)
    """
    own, strongest = labels.unflatten(1, (-1, k)), logits.unflatten(1, (-1, k)).argmax(dim=2)
    right = own.gather(2, strongest[..., None])[..., 0].sum()
    return right.to(logits.dtype) / own.sum().clamp(min=1)


@dataclass(frozen=True)
class SubCategories:
    """Labels of sub-categories, from the features of a trained classifier (`Labeller`).

    k: of every class; 0: by the rule, the largest that leaves `images` images to a cluster on
        average in the rarest class.  restarts: of k-means, of which the best is kept.
    """

    k: int = 0
    images: int = 30
    restarts: int = 10

    def __post_init__(self) -> None:
        whole(self, "k")
        whole(self, "images", "restarts", least=1)

    def taught(
        self,
        method: ScCam,
        obtain: Callable[..., Artefact],
        scenes: SceneSet,
        features: Artefact | None,
    ) -> ScCam:
        """The method with as many sub-categories as the scenes have.

        Raises ValueError where a class has fewer images than clusters.
        """
        return replace(method, subclasses=self._k(obtain, scenes, features))

    def label(
        self,
        obtain: Callable[..., Artefact],
        scenes: SceneSet,
        classifier: Artefact,
        features: Artefact | None,
    ) -> Artefact:
        """The artefact of `cluster_features`."""
        k = self._k(obtain, scenes, features)
        spec = ClusterSpec(scenes, k, self.restarts, scenes.open().fingerprint)
        return obtain(cluster_features, spec, {"classifier": classifier} | _cached(features))

    def _k(
        self, obtain: Callable[..., Artefact], scenes: SceneSet, features: Artefact | None
    ) -> int:
        opened = scenes.open()
        counted = obtain(count_tags, TagSpec(scenes, opened.fingerprint), _cached(features)).summary
        if not counted:  # a plan, which computes nothing
            return self.k or AUTHORS_K
        fewest, rarest = counted["fewest"], counted["rarest"]
        if self.k > fewest:
            raise ValueError(
                f"k={self.k} clusters of class {opened.classes[rarest]}, which has {fewest} images:"
                f" ask for {fewest} or fewer, or leave k to the rule (0)"
            )
        return self.k or max(1, fewest // self.images)


def _cached(features: Artefact | None) -> dict[str, Artefact]:
    return {} if features is None else {"features": features}


@dataclass(frozen=True)
class TagSpec:
    """data: fingerprint of the scenes."""

    scenes: SceneSet
    data: str


def count_tags(spec: TagSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, int]:
    """The ``rarest`` class of those that have images, and how many it has, the ``fewest``.

    Raises ValueError where no image has a tag.
    """
    counts = _tags(spec.scenes, inputs).sum(dim=0)
    if not counts.any():
        raise ValueError(f"no image of {spec.scenes} has a tag: there is no class to cluster")
    rarest = int(torch.where(counts > 0, counts, counts.max() + 1).argmin())
    return {"rarest": rarest, "fewest": int(counts[rarest])}


def _tags(scenes: SceneSet, inputs: Mapping[str, Artefact]) -> Tensor:
    """The tags (N, K) of all scenes, from their cached features where there are some."""
    if "features" in inputs:
        return load_features(inputs["features"], names=["tags"])["tags"]
    return load_tags(scenes)


@dataclass(frozen=True)
class ClusterSpec:
    """k: clusters of every class.  restarts: of k-means.  data: fingerprint of the scenes."""

    scenes: SceneSet
    k: int
    restarts: int
    data: str


def cluster_features(
    spec: ClusterSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Cluster what ``classifier`` makes of the scenes, from ``features`` where there are some.

    Writes ``labels.safetensors``: labels (N, K k) uint8.  They are kept, because k-means on another
    number of threads may end elsewhere.
    The summary has the sizes of clusters, of all classes together.
    """
    read = dict(pair for part in _pooled(spec, inputs) for pair in zip(*part, strict=True))
    pooled = torch.stack([read[index] for index in sorted(read)])
    tags = _tags(spec.scenes, inputs)
    clusters = clustered(pooled, tags, spec.k, restarts=spec.restarts)
    labels = sub_labels(clusters, spec.k)
    save_file({LABELS: labels}, folder / FILE)
    sizes = labels.sum(dim=0).unflatten(0, (-1, spec.k))[tags.bool().any(dim=0)]
    return {
        "subclasses": spec.k,
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
        "empty_clusters": int((sizes == 0).sum()),
    }


@torch.inference_mode()
def _pooled(
    spec: ClusterSpec, inputs: Mapping[str, Artefact]
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of scenes, and their features (B, C) after global average pooling."""
    backbone, scenes = ready(load_network, inputs["classifier"]).backbone, spec.scenes.open()
    every = range(len(scenes))
    if "features" in inputs:
        name = scale_name(1.0)
        for part in batches(every, (spec.scenes.size,) * 2, batch_pixels("fp32")):
            cached = load_features(inputs["features"], slice(part.start, part.stop), names=[name])
            plain = cached[name][:, 0].to(device()).float()
            yield list(part), backbone.tail(plain).mean(dim=(2, 3)).cpu()
        return
    for indices, images in image_batches(scenes.image, every, batch_pixels("fp32")):
        pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device())
        maps = backbone.tail(backbone.trunk(backbone.normalise(pictures)))
        yield indices, maps.mean(dim=(2, 3)).cpu()


def clustered(features: Tensor, tags: Tensor, k: int, *, restarts: int = 10) -> Tensor:
    """The cluster of every image in every class that it has, (N, K) int64 in 0..k-1; -1 elsewhere.

    features: (N, C).  tags: (N, K), 0 or 1; a class without images is left out.
    Clusters stay empty where fewer than k features of a class differ.
    Raises ValueError where a class has some, but fewer than k images, or features are not finite.
    """
    from sklearn.cluster import KMeans  # slow to import, so not with the module
    from sklearn.exceptions import ConvergenceWarning

    if not features.isfinite().all():
        raise ValueError("features must be finite to be clustered: train the classifier again")
    clusters = torch.full(tags.shape, -1, dtype=torch.int64)
    for number_of, has in enumerate(tags.bool().T):
        images = int(has.sum())
        if 0 < images < k:
            raise ValueError(f"class {number_of} has {images} images for k={k} clusters: lower k")
        if images:
            means = KMeans(k, n_init=restarts, max_iter=300, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # features that are equal
                found = means.fit_predict(features[has].numpy())
            clusters[has, number_of] = torch.from_numpy(found).long()
    return clusters


def sub_labels(clusters: Tensor, k: int) -> Tensor:
    """z, (N, K k) uint8: bit c k + cluster for every class with a cluster.

    clusters: (N, K) in 0..k-1, or -1.

    >>> sub_labels(torch.tensor([[1, -1], [0, 2]]), 3).tolist()
    [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]]
    """
    return (clusters[..., None] == torch.arange(k)).flatten(1).to(torch.uint8)

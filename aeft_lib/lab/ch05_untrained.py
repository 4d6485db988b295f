"""Chapter 5 without a training: single scenes refined by the weights that come with the package.

The powers of the background were chosen on the seeds of all training scenes; they are read from
what was kept of that.  Where the package brings no AffinityNet, a scene has no affinity, and what
the walk makes of it is left out.
"""

from collections.abc import Sequence

import numpy as np
import torch

from aeft_lib import paths
from aeft_lib.data.scene import Scenes
from aeft_lib.lab.cams import shipped_reader
from aeft_lib.lab.ch05_case import RefinementCase, labels_of, refinement_case, walked
from aeft_lib.maps.labels import label_map
from aeft_lib.maps.seeds import Seed
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.refinement.background import Powers
from aeft_lib.studies import catalogue, shipped
from aeft_lib.studies.settings import Profile

AEFT = "attract_soft_repel"  # the row whose seeds are refined
NO_AFFINITY = "the package brings no AffinityNet: train = True trains it"
Maps = dict[str, np.ndarray]


def cases(profile: Profile, scenes: Scenes, indices: Sequence[int]) -> list[RefinementCase]:
    """Some scenes of the profile on the way from their seeds to pseudo-labels."""
    reader, powers = shipped_reader(profile, catalogue.row(AEFT)), background()
    network, made = affinity_net(profile), []
    for index in indices:
        scene = scenes[index]
        ids = torch.from_numpy(np.flatnonzero(scene.tags))
        seed = Seed(ids, reader.cams(scene.image, ids))
        made.append(refinement_case(scene, seed, powers, network))
    return made


def affinity_net(profile: Profile) -> AffinityNet | None:
    """The package's AffinityNet, where it brings one."""
    if shipped.REFINED not in shipped.known():
        return None
    return shipped.network(profile, catalogue.row(shipped.REFINED))


def background() -> dict[str, float]:
    """Threshold and powers of the background of the first repeat, as `choose_background` has them.

    From the manifest of the weights, else from the committed table.
    """
    if shipped.REFINED in shipped.known():
        return shipped.entry(shipped.REFINED)["background"]
    table = paths.read_table(paths.FIGURES / "background_powers.csv").set_index("power")
    powers = table["alpha"][list(Powers._fields)].to_dict()
    return {"threshold": float(table["crossing"]["middle"])} | powers


def label_maps(case: RefinementCase, profile: Profile) -> Maps:
    """The label maps (H, W) of a scene by the row that makes such; without affinity the first two.

    The random walk, and the CRF after it, have the profile's numbers.
    """
    maps = {
        "aeft_seed": label_map(*case.seed, case.threshold),
        "aeft_crf": labels_of(case, case.posteriors["middle"]),
    }
    if case.affinity is None:
        return maps
    numbers = profile.refinement
    for row, iterations in (("aeft_walk", 0), ("aeft_pseudo", numbers.last_crf_iterations)):
        options = {"beta": numbers.beta, "crf_iterations": iterations}
        maps[row] = labels_of(case, walked(case, numbers.steps, **options))
    return maps

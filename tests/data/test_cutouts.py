"""Which cut-outs collages show: against the pixels of the pack itself."""

import numpy as np
from PIL import Image

from aeft_lib.data import cutouts
from aeft_lib.data.collages import CLASSES, Collages, Pack, SceneSpec, load_pack

SPEC = SceneSpec("val", 30, size=64)


def test_every_tag_has_a_cutout_of_its_class_and_no_scene_another():
    scenes = Collages(SPEC)
    for index, names in enumerate(cutouts.shown(SPEC)):
        tagged = [name for name, tag in zip(CLASSES, scenes.tags(index), strict=True) if tag]
        assert [name.split("/")[0] for name in names] == tagged
    assert max(map(len, cutouts.shown(SPEC))) > 1


def test_a_scene_changes_with_the_cutouts_it_shows_and_with_no_other():
    pack, names = load_pack(), cutouts.shown(SPEC)
    shown = {name for of_scene in names for name in of_scene}
    chosen = max(shown, key=lambda name: sum(name in of_scene for of_scene in names))
    name, number = chosen.split("/")
    images = dict(pack.cutouts)
    inverted = np.array(images["val", name][int(number)])
    inverted[..., :3] = 255 - inverted[..., :3]
    of_class = list(images["val", name])
    of_class[int(number)] = Image.fromarray(inverted)
    changed = Pack(images | {("val", name): tuple(of_class)}, pack.backgrounds, pack.checksum)
    before, after = Collages(SPEC), Collages(SPEC, changed)
    differs = [not np.array_equal(before.image(i), after.image(i)) for i in range(SPEC.count)]
    assert differs == [chosen in of_scene for of_scene in names]
    assert any(differs)
    assert not all(differs)

"""Which cut-outs a collage shows, so that objects and not scenes can be drawn anew."""

from functools import lru_cache

from PIL import Image

from aeft_lib.data.collages import CLASSES, Collages, Pack, SceneSpec, load_pack


class _Recorded(tuple):
    """The cut-outs of a class; it remembers the number of the last that was taken."""

    last: int | None = None

    def __getitem__(self, number: int) -> Image.Image:
        self.last = number
        return super().__getitem__(number)


@lru_cache(maxsize=4)
def shown(spec: SceneSpec) -> tuple[tuple[str, ...], ...]:
    """By scene the cut-outs that can be seen in it, as ``bird/3``.

    Scenes are rendered to find out: a cut-out that found no place was drawn and is not there.
    """
    pack = load_pack()
    recorded = {key: _Recorded(images) for key, images in pack.cutouts.items()}
    scenes = Collages(spec, Pack(recorded, pack.backgrounds, pack.checksum))
    names = []
    for index in range(len(scenes)):
        tags = scenes.tags(index)
        seen = [name for name, tag in zip(CLASSES, tags, strict=True) if tag]
        names.append(tuple(f"{name}/{recorded[spec.split, name].last}" for name in seen))
    return tuple(names)

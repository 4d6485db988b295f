"""Collages under control: one knob is turned, the rest of a scene stays, pixel by pixel."""

from functools import lru_cache

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from aeft_lib.data import controlled
from aeft_lib.data.collages import CLASSES, MIN_VISIBLE_PIXELS, SPLITS, Pack, load_pack
from aeft_lib.data.controlled import CLUTTER_AREA, KNOBS, ControlledCollages, ControlledSpec
from aeft_lib.data.scene import Scene
from aeft_lib.studies.conditions import CONDITIONS
from aeft_lib.studies.levels import BASE_LEVELS, LEVELS

SIZE, COUNT = 64, 16
PLACES = [(20 * i, 255, 20 * i) for i in range(1, 11)]  # green
SURFACES = [(255, 20 * i, 255) for i in range(1, 4)]  # magenta
EDGE = 3  # pixels to both sides of an object's edge that may be half transparent


def disc(colour: tuple[int, int, int]) -> Image.Image:
    """A cut-out that is compact and opaque, so that all but its edge is exactly what was pasted."""
    picture = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((0, 0, 59, 59), fill=(*colour, 255))
    return picture


# Two cut-outs a class, red where the split is train and blue where it is val; flat backgrounds.
PLAIN = Pack(
    {
        (split, name): tuple(
            disc((200, 0, tint) if split == "train" else (0, tint, 200))
            for tint in (20 * k, 20 * k + 10)
        )
        for split in SPLITS
        for k, name in enumerate(CLASSES)
    },
    {
        split: tuple(Image.new("RGB", (50, 40), c) for c in colours)
        for split, colours in (("train", PLACES), ("val", SURFACES))
    },
    "",
)


@lru_cache
def plain(split: str = "train", **knobs: float) -> tuple[Scene, ...]:
    """Scenes of discs before flat colours."""
    data = ControlledCollages(ControlledSpec(split, COUNT, SIZE, **knobs), PLAIN)
    return tuple(data[i] for i in range(COUNT))


@lru_cache
def scenes(split: str = "train", seed: int = 0, **knobs: float) -> tuple[Scene, ...]:
    """Scenes of the embedded pack."""
    data = ControlledCollages(ControlledSpec(split, COUNT, SIZE, seed, **knobs))
    return tuple(data[i] for i in range(COUNT))


def pairs(first: dict[str, float], second: dict[str, float]) -> list[tuple[Scene, Scene]]:
    return list(zip(plain(**first), plain(**second), strict=True))


def changed(first: Scene, second: Scene) -> np.ndarray:
    """(H, W) bool: pixels of another colour."""
    return (first.image != second.image).any(axis=2)


def of_colours(image: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """(H, W) bool: pixels that have one of these colours, but for the rings of bicubic edges."""
    return np.any(
        [(np.abs(image.astype(int) - colour) <= 8).all(axis=2) for colour in colours], axis=0
    )


def inner(region: np.ndarray) -> np.ndarray:
    """What of a region is clear of its edge."""
    return ndimage.binary_erosion(region, iterations=EDGE)


def near(region: np.ndarray) -> np.ndarray:
    """A region and what its edge may colour."""
    return ndimage.binary_dilation(region, iterations=EDGE)


def place(scene: Scene) -> tuple[int, ...]:
    """The most frequent colour of the background."""
    colours, counts = np.unique(scene.image[scene.mask == 0], axis=0, return_counts=True)
    return tuple(colours[counts.argmax()].tolist())


def same(first: Scene, second: Scene) -> bool:
    return all(
        np.array_equal(ours, theirs) for ours, theirs in zip(first[:3], second[:3], strict=True)
    )


# --- scenes ---------------------------------------------------------------------------------------


def test_scenes_have_the_stated_shapes_types_and_names():
    data = ControlledCollages(ControlledSpec("val", 3, 80, seed=7))
    scene = data[2]
    assert (scene.image.shape, scene.image.dtype) == ((80, 80, 3), np.uint8)
    assert (scene.mask.shape, scene.mask.dtype) == ((80, 80), np.uint8)
    assert (scene.tags.shape, scene.tags.dtype) == ((9,), bool)
    assert scene.name == "val_7_00002"
    assert len(data) == len(list(data)) == 3
    for ours, theirs in zip((data.image(2), data.mask(2), data.tags(2)), scene[:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)


ALL_AT_ONCE = {"object_area": 0.1, "objects": 3, "context": 0.5, "clutter": 4, "occlusion": 0.3}


@pytest.mark.parametrize("knobs", [{}, ALL_AT_ONCE], ids=["base", "all"])
def test_a_scene_is_the_same_whenever_and_in_whatever_set_it_is_drawn(knobs):
    alone = ControlledCollages(ControlledSpec("train", 500, SIZE, **knobs))[
        4
    ]  # no other was drawn before
    assert same(alone, scenes(**knobs)[4])
    assert same(alone, ControlledSpec("train", 5, SIZE, **knobs).open()[4])


@pytest.mark.parametrize("other", [("train", 5, 0), ("train", 4, 1), ("val", 4, 0)])
def test_another_index_seed_or_split_is_another_scene(other):
    split, index, seed = other
    ours, theirs = scenes()[4], scenes(split, seed)[index]
    assert not np.array_equal(ours.mask > 0, theirs.mask > 0)
    assert not np.array_equal(ours.image, theirs.image)


def test_other_seeds_give_other_classes_places_and_clutter():
    drawn = [
        [ControlledCollages(ControlledSpec("train", 12, SIZE, seed), PLAIN)[i] for i in range(12)]
        for seed in range(3)
    ]
    for pick in (lambda scene: scene.tags.argmax(), place):
        first, second, third = ([pick(scene) for scene in of_seed] for of_seed in drawn)
        assert first != second != third != first
    cluttered = [scenes(seed=seed, clutter=3) for seed in (0, 1)]
    assert not any(same(first, second) for first, second in zip(*cluttered, strict=True))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", CONDITIONS)
def test_at_every_level_of_the_studies_tags_are_the_classes_of_the_mask_and_as_many_as_asked(
    level, split
):
    knobs = dict(CONDITIONS[level].knobs)
    for scene in scenes(split, **knobs):
        assert set(np.unique(scene.mask).tolist()) - {0} == set(
            (np.flatnonzero(scene.tags) + 1).tolist()
        )
        assert scene.tags.sum() == knobs.get("objects", 1)


def test_a_class_that_others_hide_has_neither_tag_nor_label():
    crowded = scenes(objects=9, object_area=0.11, occlusion=0.9)
    assert any(1 <= scene.tags.sum() < 9 for scene in crowded)
    for scene in crowded:
        labels, pixels = np.unique(scene.mask[scene.mask > 0], return_counts=True)
        assert (labels - 1).tolist() == np.flatnonzero(scene.tags).tolist()
        assert pixels.min() >= MIN_VISIBLE_PIXELS * SIZE**2


# --- pairing: objects -----------------------------------------------------------------------------


def test_the_base_level_of_a_knob_is_what_a_set_has_unless_told_otherwise():
    for knob in KNOBS:
        assert all(same(first, second) for first, second in pairs({}, {knob: BASE_LEVELS[knob]})), (
            knob
        )


def centre(scene: Scene) -> np.ndarray:
    """(y, x) of the middle of the object."""
    return np.argwhere(scene.mask).mean(axis=0)


def test_a_larger_object_is_the_same_cut_out_before_the_same_background():
    for first, second in pairs({"object_area": 0.07}, {"object_area": 0.35}):
        assert np.array_equal(first.tags, second.tags)
        assert not changed(first, second)[~near((first.mask > 0) | (second.mask > 0))].any()
        colours = [scene.image[inner(scene.mask > 0)].mean(axis=0) for scene in (first, second)]
        np.testing.assert_allclose(*colours, atol=1.5)  # cut-outs of a class are 10 apart


def test_a_larger_object_stands_where_the_same_draw_puts_it():
    """The centre is s * room + width / 2 for a share s of the room: linear in sqrt(area)."""
    sides = np.sqrt([0.03, 0.15, 0.35])
    for small, middle, large in zip(
        *(plain(object_area=area) for area in (0.03, 0.15, 0.35)), strict=True
    ):
        part = (sides[1] - sides[0]) / (sides[2] - sides[0])
        expected = centre(small) + part * (centre(large) - centre(small))
        np.testing.assert_allclose(centre(middle), expected, atol=1)


@pytest.mark.parametrize("area", [0.03, 0.07, 0.15, 0.35, 0.5])
def test_compact_objects_have_the_area_asked_for(area):
    """As the side of a square, since cut-outs have sides of whole pixels."""
    for scene in plain(object_area=area):
        assert np.sqrt((scene.mask > 0).sum()) == pytest.approx(SIZE * np.sqrt(area), abs=0.75)


def test_long_objects_have_as_much_of_the_area_as_the_frame_allows():
    short = []
    for area in (0.03, *LEVELS["object_area"], 0.15):
        for split in SPLITS:
            for scene in scenes(split, object_area=area):
                share = (scene.mask > 0).mean() / area
                assert share < 1.1
                rows, columns = ((scene.mask > 0).any(axis=axis).sum() for axis in (1, 0))
                if share < 0.85:
                    short.append(max(rows, columns))
    assert short
    assert min(short) > 0.7 * SIZE  # turned by up to 15 degrees, the corners of its stamp are empty


@pytest.mark.parametrize("more", [2, 3])
def test_more_objects_leave_the_first_one_and_the_background_where_they_were(more):
    for first, second in pairs({}, {"objects": more}):
        (label,) = np.flatnonzero(first.tags) + 1
        others = (second.mask > 0) & (second.mask != label)
        assert second.tags.sum() == more
        assert np.array_equal(second.mask == label, (first.mask == label) & ~others)
        assert not changed(first, second)[~near(others)].any()


def test_a_third_object_leaves_the_second_where_it_was():
    for first, second in pairs({"objects": 2}, {"objects": 3}):
        (added,) = np.flatnonzero(first.tags != second.tags) + 1
        assert np.array_equal(second.mask, np.where(second.mask == added, added, first.mask))


def test_objects_stand_where_they_hide_little_of_one_another(monkeypatch):
    def hidden() -> float:
        """Part of the first object behind the second, mean over scenes."""
        crowded = ControlledCollages(ControlledSpec("train", COUNT, SIZE, objects=2), PLAIN)
        whole = [scene.mask > 0 for scene in plain()]
        return np.mean(
            [
                1 - (whole[i] & (crowded.mask(i) == plain()[i].mask)).sum() / whole[i].sum()
                for i in range(COUNT)
            ]
        )

    chosen = hidden()
    monkeypatch.setattr(controlled, "PLACEMENTS", 1)
    assert chosen < 0.06
    assert chosen < hidden() / 3


def test_every_class_comes_first_sometime():
    data = ControlledCollages(ControlledSpec("train", 60, 32), PLAIN)
    assert {int(data.tags(i).argmax()) for i in range(60)} == set(range(len(CLASSES)))


# --- pairing: context and clutter -----------------------------------------------------------------


@pytest.mark.parametrize(
    "level", [{"context": 1.0}, {"context": 0.5}, {"clutter": 1}, {"clutter": 12}], ids=str
)
def test_context_and_clutter_change_no_mask_no_tag_and_nothing_of_an_object(level):
    scene_pairs = pairs({"objects": 2}, {"objects": 2} | level)
    for first, second in scene_pairs:
        assert np.array_equal(first.mask, second.mask)
        assert np.array_equal(first.tags, second.tags)
        assert not any(
            changed(first, second)[inner(first.mask == label)].any()
            for label in np.flatnonzero(first.tags) + 1
        )
    assert sum(changed(first, second).any() for first, second in scene_pairs) >= COUNT / 4
    for first, second in zip(scenes(objects=2), scenes(objects=2, **level), strict=True):
        assert np.array_equal(first.mask, second.mask)


def test_full_context_ties_the_background_to_the_first_class():
    for split in SPLITS:
        drawn = [
            (scene.tags.argmax(), place(scene))
            for scene in (
                ControlledCollages(ControlledSpec(split, 40, 32, context=1.0), PLAIN)[i]
                for i in range(40)
            )
        ]
        assert (
            len(set(drawn))
            == len({label for label, _ in drawn})
            == len({colour for _, colour in drawn})
            > 5
        )
        assert all(colour == PLACES[label] for label, colour in drawn)


def test_context_looks_at_the_first_class_whatever_else_is_there():
    for first, second in pairs({"context": 1.0}, {"context": 1.0, "objects": 3}):
        assert place(first) == place(second) == PLACES[first.tags.argmax()]


def test_without_context_backgrounds_say_nothing_of_the_class():
    drawn = [(scene.tags.argmax(), place(scene)) for scene in plain()]
    assert len({colour for _, colour in drawn}) > 4
    assert sum(colour == PLACES[label] for label, colour in drawn) < COUNT / 3


def test_context_levels_are_nested():
    """Every scene is that without context or that with all of it; a tied scene stays tied."""
    tied = []
    for levels in zip(
        *(plain(context=context) for context in (0.0, 0.25, 0.5, 0.75, 1.0)), strict=True
    ):
        assert all(same(scene, levels[0]) or same(scene, levels[-1]) for scene in levels)
        tied.append([same(scene, levels[-1]) for scene in levels])
        assert tied[-1] == sorted(tied[-1])
    assert 0 < np.mean(tied, axis=0)[2] < 1


def test_clutter_is_behind_the_objects_and_made_of_surfaces_that_are_no_place():
    for bare, cluttered in pairs({}, {"clutter": 1}):
        assert not of_colours(bare.image, SURFACES).any()
        assert of_colours(cluttered.image, SURFACES)[inner(changed(bare, cluttered))].all()
    for scene in plain(clutter=12):
        clutter = of_colours(scene.image, SURFACES)
        assert clutter.any()
        assert not clutter[inner(scene.mask > 0)].any()


def test_clutter_is_as_large_and_as_much_as_stated():
    small = {"object_area": 0.03}  # hides little of it
    shares = {
        n: [changed(*pair).mean() for pair in pairs(small, small | {"clutter": n})] for n in (1, 6)
    }
    for n, parts in shares.items():
        assert max(parts) < n * 1.25 * CLUTTER_AREA  # and its soft edge
    assert np.median(shares[1]) > 0.9 * CLUTTER_AREA
    assert np.median(shares[6]) > 6 * 0.6 * CLUTTER_AREA  # they overlap


def test_more_clutter_is_added_to_what_is_there():
    for none, some, more in zip(plain(), plain(clutter=6), plain(clutter=12), strict=True):
        first, both = changed(none, some), changed(none, more)
        assert not (first & ~both).any()
        assert both.sum() > first.sum()


# --- pairing: occlusion ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("objects", [1, 3])
def test_occlusion_hides_the_part_asked_for_of_every_object(part, objects):
    for first, second in pairs({"objects": objects}, {"objects": objects, "occlusion": part}):
        assert np.array_equal(first.tags, second.tags)
        for label in np.flatnonzero(first.tags) + 1:
            before, after = (scene.mask == label for scene in (first, second))
            assert not (after & ~before).any()
            assert 1 - after.sum() / before.sum() == pytest.approx(part, abs=0.04)


@pytest.mark.parametrize("objects", [1, 3])
def test_occlusion_leaves_the_rest_of_the_picture_equal(objects):
    for first, second in pairs({"objects": objects}, {"objects": objects, "occlusion": 0.5}):
        covered = changed(first, second)
        assert not covered[second.mask > 0].any()
        assert covered[(first.mask > 0) & (second.mask == 0)].all()
        assert of_colours(second.image, SURFACES)[covered].all()
        boxes = np.zeros_like(covered)
        for rows, columns in filter(None, ndimage.find_objects(first.mask)):
            boxes[rows, columns] = True
        assert not covered[~boxes].any()


def test_occlusion_levels_are_nested_and_cut_along_a_straight_edge():
    for quarter, half in pairs({"occlusion": 0.25}, {"occlusion": 0.5}):
        assert not ((half.mask > 0) & (quarter.mask == 0)).any()
    for none, half in pairs({}, {"occlusion": 0.5}):
        hidden, seen = np.argwhere((none.mask > 0) & (half.mask == 0)), np.argwhere(half.mask)
        angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        normals = np.stack([np.sin(angles), np.cos(angles)])
        gaps = (seen @ normals).min(axis=0) - (hidden @ normals).max(axis=0)
        assert gaps.max() > -1  # some line has all of one on its one side


def test_occluders_come_from_all_sides():
    sides = set()
    for none, half in pairs({}, {"occlusion": 0.5}):
        down, right = np.argwhere((none.mask > 0) & (half.mask == 0)).mean(axis=0) - centre(none)
        sides.add((down > 0, right > 0))
    assert len(sides) == 4


def test_occlusion_of_real_cut_outs_leaves_what_is_seen_equal():
    for first, second in zip(scenes(objects=2), scenes(objects=2, occlusion=0.5), strict=True):
        assert not changed(first, second)[second.mask > 0].any()
        assert np.array_equal(first.mask[second.mask > 0], second.mask[second.mask > 0])
        assert (second.mask > 0).sum() == pytest.approx((first.mask > 0).sum() / 2, rel=0.06)


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_cut_outs_and_silhouettes_of_the_other_split_have_no_say(split):
    pack = load_pack()
    own = {key: items for key, items in pack.cutouts.items() if key[0] == split}
    data = ControlledCollages(
        ControlledSpec(split, 4, SIZE, **ALL_AT_ONCE), Pack(own, pack.backgrounds, "")
    )
    for i in range(4):
        assert same(data[i], scenes(split, **ALL_AT_ONCE)[i])


def test_both_splits_show_their_own_cut_outs_before_the_same_places():
    for split, strong, weak in (("train", 0, 2), ("val", 2, 0)):
        for scene in plain(split):
            objects = scene.image[inner(scene.mask > 0)].astype(int)
            assert (objects[:, strong] > objects[:, weak]).all()
            assert place(scene) in PLACES


def test_splits_draw_their_own_scenes_even_from_the_same_shapes():
    assert not any(
        np.array_equal(first.mask > 0, second.mask > 0)
        for first, second in zip(plain("train"), plain("val"), strict=True)
    )


# --- refusals -------------------------------------------------------------------------------------


WRONG = [
    ({"split": "test"}, r"split must be one of train, val, got 'test'"),
    *(
        ({"count": value}, rf"count must be a whole number, at least 1, got {value!r}$")
        for value in (0, True, 2.0, "3")
    ),
    *(
        ({"size": value}, rf"size must be a whole number, at least 32, got {value!r}$")
        for value in (31, 64.0, None)
    ),
    *(
        ({"seed": value}, rf"seed must be a whole number, at least 0, got {value!r}$")
        for value in (-1, False, 0.0)
    ),
    *(
        ({"objects": value}, rf"objects must be a whole number, 1 to 9, got {value!r}$")
        for value in (0, 10, -1, 1.0, True, "2", float("nan"))
    ),
    *(
        ({"clutter": value}, rf"clutter must be a whole number, 0 to 40, got {value!r}$")
        for value in (-1, 41, 1.5, False, "6", None)
    ),
    *(
        ({name: value}, rf"{name} must lie in 0\.\.{high}, got {value!r}$")
        for name, high, above in (
            ("object_area", "0.8", 0.81),
            ("context", "1", 1.01),
            ("occlusion", "0.9", 0.91),
        )
        for value in (-0.1, above, float("nan"), float("inf"), True, "0.5", None)
    ),
    (
        {"object_area": 0},
        r"object_area=0 with occlusion=0\.0 leaves no visible object: 0\.0000 .* is below 0\.00",
    ),
    (
        {"object_area": 0.001},
        r"object_area=0\.001 with occlusion=0\.0 leaves no visible object: 0\.0010",
    ),
    (
        {"object_area": 0.015, "occlusion": 0.9},
        r"object_area=0\.015 with occlusion=0\.9 leaves no visible object: 0\.0015",
    ),
    (
        {"objects": 3, "object_area": 0.35},
        r"3 objects of object_area=0\.35 do not fit into one scene",
    ),
    ({"objects": 9}, r"9 objects of object_area=0\.15 do not fit into one scene"),
]


@pytest.mark.parametrize(
    ("options", "message"), WRONG, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_a_set_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ControlledSpec(**({"split": "train", "count": 5, "size": SIZE} | options))


@pytest.mark.parametrize(
    "options",
    [
        {"object_area": 0.8},
        {"objects": 9, "object_area": 0.11},
        {"objects": 2, "object_area": 0.5},
        {"context": 1},
        {"context": 0},
        {"clutter": 40},
        {"occlusion": 0.9},
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_scenes(options):
    scene = ControlledCollages(ControlledSpec("val", 1, 32, **options))[0]
    assert scene.tags.any()


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_the_set_is_refused(index):
    with pytest.raises(IndexError, match=f"scene {index} of 5"):
        ControlledCollages(ControlledSpec("train", 5, SIZE))[index]


@pytest.mark.parametrize(
    "knobs",
    [
        {"object_area": 0.0045},
        {"object_area": 0.042, "occlusion": 0.9},
        {"objects": 6, "occlusion": 0.9},
    ],
    ids=str,
)
def test_what_is_not_refused_always_has_an_object(knobs):
    scenes = ControlledCollages(ControlledSpec("train", 40, 96, **knobs))
    assert all(scenes.tags(index).any() for index in range(40))

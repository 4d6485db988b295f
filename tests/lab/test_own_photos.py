"""``aeft predict``: what it overwrites, at which size photos are read, how much memory that needs.

Maps are compared with a stated network: the softmax of colours averaged over a square.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from torch import nn

from aeft_lib import cli, paths
from aeft_lib.data.images import read_image, read_resized, resized
from aeft_lib.lab import outputs, own_photos
from aeft_lib.lab.cams import CamReader, likely
from aeft_lib.lab.own_photos import Reader, labels_at
from aeft_lib.maps.labels import read_label_map, write_label_map
from aeft_lib.stages import store
from aeft_lib.stages.predict_labels import predict
from aeft_lib.stages.reading import MultiScale
from aeft_lib.studies import catalogue, pipeline
from aeft_lib.studies.profiles import LAPTOP, PHOTOS, SMOKE

pytestmark = pytest.mark.usefixtures("stored")
CLASSES = ("red", "green")
SIDE, SQUARE = 96, 15


class Colours(nn.Module):
    """Logits (B, 3, H, W): 1.6 for the background, red and green averaged over a square, in 0..4."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.sizes = self, []
        self.strength = nn.Parameter(torch.tensor(4.0))

    def normalise(self, images):
        return images.float() / 255

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        blurred = F.avg_pool2d(
            images, SQUARE, stride=1, padding=SQUARE // 2, count_include_pad=False
        )
        return self.strength * torch.cat([torch.full_like(blurred[:, :1], 0.4), blurred[:, :2]], 1)


def reader(**changes) -> Reader:
    plain = Reader(Colours(), CLASSES, SIDE, True, (1.0, 1.5), 0, "16 photos of 96 px")
    return replace(plain, **changes)


def waves(height: int, width: int) -> np.ndarray:
    """Two waves over the picture, flat at its border: the same scene at every size."""
    across = np.cos(2 * np.pi * 1.5 * (np.arange(width) + 0.5) / width)[None, :]
    along = np.cos(2 * np.pi * (np.arange(height) + 0.5) / height)[:, None]
    image = np.zeros((height, width, 3))
    image[..., 0], image[..., 1] = 127.5 * (1 + across), 127.5 * (1 + along)
    return image.round().astype(np.uint8)


def saved(file: Path, image: np.ndarray, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, **options)
    return file


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("squares", [True, False])
def test_a_photo_gives_the_same_map_at_three_sizes(tmp_path, squares):
    asked = reader(squares=squares)
    sizes = {0.5: (48, 72), 1: (96, 144), 3: (288, 432)}
    files = {s: saved(tmp_path / f"{s}.png", waves(*size)) for s, size in sizes.items()}
    read = {s: read_resized(file, asked.size(sizes[s])) for s, file in files.items()}
    scores = {s: asked.scores(image) for s, image in read.items()}
    # Saving and resizing round by half a level each.  Of a wave of 48 pixels, the shortest here, the
    # cubic kernel loses the third order, and at the border, which cuts it, a quarter of the second.
    turn = 2 * np.pi / 48
    levels = 2 * (0.5 + 0.5 + 127.5 * (turn**3 + turn**2 / 4))
    for s in (0.5, 3):
        assert np.abs(read[s].astype(int) - read[1]).max() <= levels
        # A softmax moves by half of what its logits move by at most.
        assert (scores[s] - scores[1]).abs().max() <= 4 * levels / 255 / 2 * 1.01
    assert set(asked.network.sizes) == {
        tuple(round(side * scale) for side in asked.size((96, 144))) for scale in asked.scales
    }
    # The middle of every third pixel of the large photo is the middle of one of the plain photo.
    plain, large = (asked.label_map(files[s]) for s in (1, 3))
    assert (plain.shape, large.shape) == (sizes[1], sizes[3])
    assert len(np.unique(plain)) == 3
    top = F.interpolate(scores[1][None], size=sizes[1], mode="bilinear")[0].topk(2, dim=0).values
    sure = (top[0] - top[1]).numpy() > 2 * 4 * levels / 255 / 2
    assert sure.mean() > 0.5
    assert (plain == large[1::3, 1::3])[sure].all()


def test_at_its_own_size_the_large_photo_would_be_read_otherwise(tmp_path):
    """What the size is for: the stated network sees a square of 15 pixels, whatever they show."""
    checks = np.zeros((SIDE, SIDE, 3), np.uint8)
    checks[np.add.outer(np.arange(SIDE) // 4, np.arange(SIDE) // 4) % 2 == 0] = (255, 0, 0)
    large = np.kron(checks, np.ones((3, 3, 1), np.uint8))
    network = Colours()
    at_own_size = predict(network, large, (1.0,))
    asked = reader(network=network, scales=(1.0,))
    file = saved(tmp_path / "large.png", large)
    # Red is 72 of 225 pixels around the middle of a large black square, and about half of the
    # pixels around any place of the photo at the size of the training.
    assert (at_own_size == 0).mean() > 0.05
    assert (asked.label_map(file) == 1).all()


def test_photos_are_squared_where_training_squared_them_and_keep_their_shape_elsewhere():
    assert reader(squares=True).size((375, 500)) == (96, 96)
    assert reader(squares=False).size((375, 500)) == (72, 96)
    assert reader(squares=False).size((4000, 3)) == (96, 1)
    assert reader(squares=False, side=500).size((375, 500)) == (
        375,
        500,
    )  # a photo of VOC, as it is


def test_the_side_is_that_of_the_training_scenes(tmp_path):
    class Scenes:
        names = ("a", "b", "c")

        def __len__(self):
            return 3

        def image_file(self, name):
            side = {"a": 40, "b": 60, "c": 90}[name]
            return saved(tmp_path / f"{name}.png", np.zeros((side, 30, 3), np.uint8))

    assert own_photos.usual_side(Scenes(), replace(PHOTOS.train, size=0)) == 60
    assert own_photos.usual_side(Scenes(), PHOTOS.train) == 256
    assert own_photos.usual_side(Scenes(), LAPTOP.train) == 256


@pytest.mark.parametrize("strip", [1, 5000, 2**24])
@pytest.mark.parametrize("size", [(7, 9), (33, 40), (90, 131), (12, 300)])
def test_labels_by_strips_are_those_of_the_whole(size, strip):
    scores = torch.rand(4, 12, 10, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    labels = torch.from_numpy(labels_at(scores, size, strip)).long()
    # Two orders of the same four products: a few roundings of numbers below 1.
    lost = whole.amax(dim=0) - whole.gather(0, labels[None])[0]
    assert lost.max() <= 10 * 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_is_resized_as_it_stands_upright(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    for suffix, options in (("png", {}), ("jpg", {"quality": 95})):
        file = saved(tmp_path / f"a.{suffix}", waves(60, 90), exif=exif, **options)
        whole = read_image(file)
        assert whole.shape == ((90, 60, 3) if turn > 4 else (60, 90, 3))
        assert np.array_equal(read_resized(file, (40, 50)), resized(whole, (40, 50)))


def test_a_large_jpeg_is_decoded_at_a_smaller_scale_and_looks_the_same(tmp_path):
    file = saved(tmp_path / "a.jpg", waves(900, 1350), quality=95)
    small, whole = read_resized(file, (48, 72)), resized(read_image(file), (48, 72))
    # Both are the mean colours of the same squares; the waves move by 7 levels a pixel there.
    assert np.abs(small.astype(int) - whole).max() <= 7


MEMORY = """
import sys, torch
from pathlib import Path
sys.path[:0] = {folders!r}
from test_own_photos import reader
from aeft_lib.lab import outputs, own_photos
torch.set_num_threads(1)
for name in ("small.jpg", "small.png", "large.jpg", "large.png"):
    labels = reader(scales=(1.0,)).label_map(Path(name))
    own_photos.write(Path(name + own_photos.SUFFIX), labels, Path(name))
    outputs.shares(labels, ("red", "green"))
    (peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(name, int(peak.split()[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_scores_of_a_large_photo(tmp_path):
    size = {"small": (1000, 1500), "large": (3000, 4000)}
    for name, (height, width) in size.items():
        for suffix in ("jpg", "png"):
            picture = Image.new("RGB", (width, height), (200, 30, 30))
            picture.save(tmp_path / f"{name}.{suffix}")
    code = MEMORY.format(folders=[str(paths.ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    peaks = {name: int(peak) for name, peak in map(str.split, done.stdout.splitlines())}
    pixels = 3000 * 4000 - 1000 * 1500
    kept = 32e6  # what the allocator holds on to, whatever the photo's size
    # Bytes a pixel: labels 1, Pillow's image of them 1, its copy with a palette 1, their bytes 1,
    # and half of that again.  Scores of three labels alone would be 12, several times over.
    assert peaks["large.jpg"] - peaks["small.png"] <= 6 * pixels + kept
    # A PNG is decoded whole, 4 bytes a pixel, and twice while it is turned or resized.
    assert peaks["large.png"] - peaks["small.png"] <= 12 * pixels + kept


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with two photos, from which the command is called; the network is the stated one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_photos, "open_reader", lambda *_: reader())
    saved(tmp_path / "cat.png", waves(60, 90))
    saved(tmp_path / "dog.jpg", waves(50, 40))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def called(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["predict", *words, "--profile", "smoke"])
    return code, *capsys.readouterr()


def test_a_photo_beside_its_map_stays_as_it_is(photos, capsys):
    before = contents(photos)
    code, out, _ = called(capsys, "cat.png", "dog.jpg", "--out", ".")
    assert code == 0
    after = contents(photos)
    assert {name: after[name] for name in before} == before
    pictures = {f"{name}.{kind}.png" for name in ("cat", "dog") for kind in ("labels", "overlay")}
    assert set(after) - set(before) == pictures
    assert "no CAM pictures: segment_aeft learned from masks" in out
    assert "trained on 16 photos of 96 px" in out
    assert "it knows red, green; it takes everything else for background" in out
    assert "cat.png -> cat.labels.png: " in out
    labels = read_label_map(photos / "cat.labels.png", num_classes=2, size=(60, 90))
    assert f"background {(labels == 0).mean():.1%}" in out
    assert f"red {(labels == 1).mean():.1%}" in out


def test_what_predict_wrote_is_written_anew_and_not_read_as_a_photo(photos, capsys):
    assert called(capsys, "cat.png", "--out", ".")[0] == 0
    first = (photos / "cat.labels.png").read_bytes()
    saved(photos / "cat.png", waves(30, 30))
    code, out, _ = called(capsys, *sorted(map(str, photos.glob("*.png"))), "--out", ".")
    assert code == 0
    assert (photos / "cat.labels.png").read_bytes() != first
    assert "cat.labels.labels" not in out
    assert not (photos / "cat.labels.labels.png").exists()
    code, _, err = called(capsys, "cat.labels.png", "--out", ".")
    assert (code, "label maps that aeft predict wrote" in err) == (1, True)


@pytest.mark.parametrize("suffix", ["labels", "overlay", "cam"])
@pytest.mark.parametrize("kind", ["photo", "label map", "text", "folder", "link", "dangling link"])
def test_a_name_that_something_else_has_is_refused_before_any_work(
    photos, capsys, monkeypatch, kind, suffix
):
    taken = photos / f"dog.{suffix}.png"
    if kind == "photo":
        saved(taken, waves(20, 20))
    elif kind == "label map":
        write_label_map(taken, np.zeros((4, 4), np.uint8))  # drawn by hand, perhaps
    elif kind == "text":
        taken.write_text("mine")
    elif kind == "folder":
        taken.mkdir()
    else:
        taken.symlink_to(photos / ("cat.png" if kind == "link" else "nowhere"))
    before = contents(photos)
    monkeypatch.setattr(own_photos, "open_reader", None)
    code, out, err = called(capsys, "cat.png", "dog.jpg", "--out", ".")
    assert (code, out, contents(photos)) == (1, "", before)
    assert err == (
        f"aeft: {taken.name} is there and was not written by aeft predict: "
        "choose another --out, or move it\n"
    )


@pytest.mark.parametrize(
    ("images", "words", "message"),
    [
        (["none.jpg"], [], "none.jpg is not there"),
        (["a"], [], "a is a folder: name the photos in it"),
        (["text.jpg"], [], "text.jpg: not a readable image"),
        (
            ["a/x.jpg", "b/x.png"],
            [],
            "a/x.jpg and b/x.png would both be written to predictions/x.labels.png",
        ),
        (["a/x.jpg", "b/X.jpg"], [], "would both be written"),
        (["a/x.jpg"], ["--out", "text.jpg"], "--out text.jpg is a file"),
    ],
)
def test_photos_are_checked_before_any_work(photos, capsys, monkeypatch, images, words, message):
    for name in ("a/x.jpg", "b/x.png", "b/X.jpg"):
        saved(photos / name, waves(40, 40))
    (photos / "text.jpg").write_text("no picture")
    monkeypatch.setattr(own_photos, "open_reader", None)
    code, out, err = called(capsys, *images, *words)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (photos / "predictions").exists()


def test_a_map_that_cannot_be_written_leaves_nothing_half(photos, monkeypatch):
    def fail(file, *_, **__):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(own_photos, "write_label_map", fail)
    before = contents(photos)
    with pytest.raises(OSError, match="disk full"):
        own_photos.write(photos / "cat.labels.png", np.zeros((4, 4), np.uint8), photos / "cat.png")
    assert contents(photos) == before


def test_a_map_of_another_photo_and_an_edited_one_are_left_alone(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = saved(tmp_path / "a" / "x.png", waves(40, 40))
    other = saved(tmp_path / "b" / "x.png", waves(40, 44))
    output = own_photos.planned([first], tmp_path / "maps")[first]
    output.parent.mkdir()
    labels = np.zeros((40, 40), np.uint8)
    own_photos.write(output, labels, first)
    assert own_photos.planned([first], output.parent) == {first: output}
    with pytest.raises(ValueError, match=r"x\.labels\.png is the label map of another photo"):
        own_photos.planned([other], output.parent)
    text = PngImagePlugin.PngInfo()
    for name, value in outputs.signature(output).items():
        if isinstance(value, str):
            text.add_text(name, value)
    labels[3, 3] = 1
    own_photos.write_label_map(output, labels, pnginfo=text)
    with pytest.raises(ValueError, match=r"x\.labels\.png was edited since aeft predict wrote it"):
        own_photos.planned([first], output.parent)


class Reds(nn.Module):
    """A signed CAM (B, 2, h, w): how red and how green a place is, above the mean of the photo."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.pooling = self, lambda cam: SimpleNamespace(logits=cam.mean(dim=(2, 3)))
        self.nothing = nn.Parameter(torch.zeros(()))

    def normalise(self, images):
        return images.float() / 255

    def forward(self, images):
        cam = images[:, :2] - 0.4
        return SimpleNamespace(cam=cam, logits=cam.mean(dim=(2, 3)))

    def cam(self, network, batch):
        return network(batch.images).cam


def test_cams_of_the_likely_classes_stand_beside_a_map(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30, 0], image[20:, :, 1] = 250, 20
    photo = saved(tmp_path / "x.png", image)
    network = Reds()
    classifier = CamReader(network, network, MultiScale((1.0,)))
    asked = reader(classifier=classifier)
    logits = classifier.logits(image)
    assert logits.tolist() == pytest.approx([250 / 255 / 2 - 0.4, 20 / 255 / 2 - 0.4], abs=1e-5)
    assert likely(logits).tolist() == [0]
    assert likely(logits - 1).tolist() == [0]  # none above 0: the largest
    (cam,) = classifier.cams(image, likely(logits))
    assert (cam[:, :25].min() > 0.99, cam[:, 35:].max() == 0) == (True, True)
    output = own_photos.planned([photo], tmp_path)[photo]
    labels = asked.label_map(photo)
    own_photos.write(output, labels, photo)
    written = own_photos.write_pictures(output, labels, photo, asked)
    assert [file.name for file in written] == ["x.overlay.png", "x.cam.png"]
    assert all(own_photos.written_here(file) for file in written)
    assert own_photos.planned([photo, *written], tmp_path) == {photo: output}
    saved(written[1], image)
    with pytest.raises(
        ValueError, match=r"x\.cam\.png is there and was not written by aeft predict"
    ):
        own_photos.planned([photo], tmp_path)


def test_a_large_photo_is_shown_small():
    assert own_photos.shown_size((3000, 4000)) == (480, 640)
    assert own_photos.shown_size((30, 4000)) == (5, 640)
    assert own_photos.shown_size((200, 100)) == (200, 100)


def test_a_name_too_long_for_its_map_is_refused_before_any_work(tmp_path):
    photo = saved(tmp_path / f"{'n' * 230}.png", waves(40, 40))
    with pytest.raises(ValueError, match="the name is too long"):
        own_photos.planned([photo], tmp_path)


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "gap"], "row gap has no segmentation network; there are segment_truth"),
        (["--row", "segment_aef"], "(did you mean segment_aeft"),
        (["--repeat", "7"], "row segment_aeft, repeat 7 is not in the store, make it with: aeft"),
        (["--repeat", "-1"], "repeats must be whole numbers"),
    ],
)
def test_rows_that_cannot_predict_are_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "x.png", waves(40, 40))
    code, out, err = called(capsys, "x.png", *words)
    assert (code, out) == (1, "")
    assert message in err
    assert not (tmp_path / "predictions").exists()


def test_a_row_reads_photos_as_it_reads_its_own_scenes(tmp_path, monkeypatch):
    """A scene of the training size has the map that the study scored; a CRF row has its CRF."""
    row = catalogue.row("segment_truth")
    made = pipeline.products(SMOKE, row, 0)
    asked = own_photos.open_reader(SMOKE, row.name, 0)
    assert (asked.side, asked.squares, asked.scales) == (96, False, SMOKE.segmentation.scales)
    image = SMOKE.val.open().image(0)
    file = saved(tmp_path / "scene.png", image)
    scored = read_label_map(
        made["labels"].folder / "labels" / "00000.png", num_classes=9, size=(96, 96)
    )
    assert np.array_equal(asked.label_map(file), scored)
    lookup = store.lookup

    def trained_on_truth(*inputs):
        return made if inputs[1].name.startswith("segment_aeft") else lookup(*inputs)

    monkeypatch.setattr(own_photos, "products", trained_on_truth)
    monkeypatch.setattr(own_photos, "_stored_cams", lambda *_: None)
    with_crf = own_photos.open_reader(SMOKE, "segment_aeft_crf", 0)
    assert with_crf.crf_iterations == SMOKE.segmentation.crf_iterations
    with pytest.raises(ValueError, match="row segment_aeft_tags is told the tags"):
        own_photos.open_reader(SMOKE, "segment_aeft_tags", 0)

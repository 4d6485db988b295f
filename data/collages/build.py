"""Rebuild the photo pack (cut-outs with alpha, backgrounds, manifest) from two Debian packages.

`selection.csv` holds the human decision: which files, in which class, split and group. This script
reads the named files, checks their sha256, shrinks them and writes WebP files and `manifest.csv`.

    python build.py --packages DIR

DIR holds either the unpacked packages (`usr/share/tuxpaint/...`) or the two `.deb` files. The
result is the same byte for byte on every run with the same Pillow (and its bundled libwebp).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFilter, ImageOps

HERE = Path(__file__).resolve().parent
CLASSES = ("bird", "hoofed", "rodent", "insect", "fish", "flower", "fruit", "vehicle", "instrument")
CUTOUT_SIDE, CUTOUT_QUALITY = 192, 80
BACKGROUND_SIDE, BACKGROUND_QUALITY = 320, 75
ALPHA_FLOOR = 8  # fainter alpha is dust: it becomes fully transparent before the crop
AR_MAGIC, AR_HEADER = b"!<arch>\n", 60


class BuildError(Exception):
    """A problem that the caller can mend; the message says how."""


@dataclass(frozen=True)
class Item:
    """One row of `selection.csv`."""

    kind: str
    cls: str
    name: str
    split: str
    group: str
    trim: int
    source_package: str
    source_version: str
    source_path: str
    source_sha256: str
    credit: str

    @property
    def file(self) -> str:
        """Path of the finished picture inside the pack."""
        folder = f"cutouts/{self.cls}" if self.kind == "cutout" else "backgrounds"
        return f"{folder}/{self.name}.webp"


@dataclass(frozen=True)
class Record:
    """One row of `manifest.csv`; field order is column order (`cls` is written as `class`)."""

    file: str
    kind: str
    cls: str
    split: str
    group: str
    width: int
    height: int
    sha256: str
    source_package: str
    source_version: str
    source_path: str
    credit: str


def read_selection(path: Path) -> list[Item]:
    """Read and check `selection.csv`."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    items = []
    for row in rows:
        row["cls"] = row.pop("class")
        items.append(Item(**{**row, "trim": int(row["trim"])}))
    check_selection(items)
    return items


def check_selection(items: list[Item]) -> None:
    """Refuse unknown values, double names or sources, and groups that cross the split."""
    for item in items:
        known = (
            item.cls in CLASSES
            if item.kind == "cutout"
            else (item.kind, item.cls) == ("background", "")
        )
        if not known or item.split not in ("train", "val"):
            raise BuildError(f"selection.csv: bad kind, class or split for {item.name!r}")
    for field in ("name", "source_path", "source_sha256"):
        value, count = Counter(getattr(item, field) for item in items).most_common(1)[0]
        if count > 1:
            raise BuildError(f"selection.csv: {field} {value!r} occurs {count} times")
    pairs = {(item.group, item.split) for item in items}
    crossing = [group for group, count in Counter(group for group, _ in pairs).items() if count > 1]
    if crossing:
        raise BuildError(f"selection.csv: groups in both splits: {', '.join(sorted(crossing))}")


def remedy(item: Item) -> str:
    """Say which Debian package brings the source of `item`."""
    return (
        f"It belongs to the Debian package {item.source_package}, version {item.source_version}. Get exactly "
        f"that version (for instance `apt-get download {item.source_package}={item.source_version}` on a "
        "Debian release that carries it, or Debian's archive of old packages), then pass the folder with "
        "the .deb files, or with the result of `dpkg-deb -x`, as --packages."
    )


def find_share(folder: Path) -> Path | None:
    """Find the `share` folder that holds an unpacked `tuxpaint` folder, if there is one."""
    for share in (folder / "usr" / "share", folder / "share", folder, folder.parent):
        if (share / "tuxpaint" / "stamps").is_dir() and (
            share != folder.parent or folder.name == "tuxpaint"
        ):
            return share
    return None


def open_data_tar(deb: BinaryIO, name: str) -> tarfile.TarFile:
    """Open the `data.tar.*` member of a .deb (an `ar` archive)."""
    if deb.read(len(AR_MAGIC)) != AR_MAGIC:
        raise BuildError(f"{name} is not a Debian package")
    while len(header := deb.read(AR_HEADER)) == AR_HEADER:
        member, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        if member in ("data.tar", "data.tar.gz", "data.tar.xz", "data.tar.bz2"):
            return tarfile.open(fileobj=io.BytesIO(deb.read(size)))
        deb.seek(size + size % 2, io.SEEK_CUR)
    raise BuildError(
        f"cannot read the contents of {name}: unpack it with `dpkg-deb -x` and pass the result"
    )


def members_of(deb: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield path (below usr/share) and bytes of the wanted files in one .deb."""
    with deb.open("rb") as handle, open_data_tar(handle, deb.name) as tar:
        for info in tar:
            path = info.name.removeprefix("./").removeprefix("usr/share/")
            if path in wanted and (data := tar.extractfile(info)) is not None:
                yield path, data.read()


def read_debs(folder: Path, items: list[Item]) -> dict[str, bytes]:
    """Read all sources out of the .deb files in `folder`."""
    packages = sorted({item.source_package for item in items})
    wanted = {item.source_path for item in items}
    found: dict[str, bytes] = {}
    for deb in sorted(path for package in packages for path in folder.glob(f"{package}_*.deb")):
        found.update(members_of(deb, wanted))
    return found


def read_sources(folder: Path, items: list[Item]) -> dict[str, bytes]:
    """Read every source file, unpacked or from .deb files; absent files are left out."""
    share = find_share(folder)
    if share is None:
        return read_debs(folder, items)
    paths = [item.source_path for item in items]
    return {path: (share / path).read_bytes() for path in paths if (share / path).is_file()}


def verify(item: Item, sources: dict[str, bytes]) -> bytes:
    """Return the bytes of the source of `item`, or fail with the remedy."""
    data = sources.get(item.source_path)
    if data is None:
        raise BuildError(f"usr/share/{item.source_path} is missing. {remedy(item)}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != item.source_sha256:
        raise BuildError(
            f"usr/share/{item.source_path} differs: sha256 is {digest}, selection.csv wants "
            f"{item.source_sha256}. {remedy(item)}"
        )
    return data


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale down so that the long side is at most `side`; never enlarge."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def clean_alpha(image: Image.Image, trim: int) -> Image.Image:
    """Drop dust in the alpha channel and peel `trim` pixels (white halos) off the outline."""
    image = ImageOps.expand(image, border=trim)
    alpha = np.asarray(image.getchannel("A"))
    mask = Image.fromarray(np.where(alpha > ALPHA_FLOOR, alpha, 0).astype(np.uint8))
    image.putalpha(mask.filter(ImageFilter.MinFilter(2 * trim + 1)) if trim else mask)
    return image


def make_cutout(data: bytes, trim: int) -> bytes:
    """Crop to the alpha bounding box, shrink, and encode as WebP with lossless alpha."""
    image = clean_alpha(Image.open(io.BytesIO(data)).convert("RGBA"), trim)
    image = shrink(image.crop(image.getchannel("A").getbbox()), CUTOUT_SIDE)
    return encode(image, CUTOUT_QUALITY)


def make_background(data: bytes) -> bytes:
    """Shrink a photograph and encode it as WebP without alpha."""
    return encode(
        shrink(Image.open(io.BytesIO(data)).convert("RGB"), BACKGROUND_SIDE), BACKGROUND_QUALITY
    )


def encode(image: Image.Image, quality: int) -> bytes:
    """Encode as lossy WebP; the alpha channel stays exact."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, alpha_quality=100, method=6)
    return buffer.getvalue()


def build_item(item: Item, data: bytes, out: Path) -> Record:
    """Write one picture and return its manifest row."""
    webp = make_cutout(data, item.trim) if item.kind == "cutout" else make_background(data)
    target = out / item.file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(webp)
    with Image.open(io.BytesIO(webp)) as image:
        width, height = image.size
    own = {key: value for key, value in asdict(item).items() if key in Record.__dataclass_fields__}
    digest = hashlib.sha256(webp).hexdigest()
    return Record(file=item.file, width=width, height=height, sha256=digest, **own)


def write_manifest(records: list[Record], path: Path) -> None:
    """Write `manifest.csv`, sorted by file."""
    rows = [asdict(record) for record in sorted(records, key=lambda record: record.file)]
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow("class" if key == "cls" else key for key in rows[0])
        writer.writerows(row.values() for row in rows)


def remove_stale(out: Path, keep: set[str]) -> None:
    """Delete pictures of an earlier selection."""
    for folder in ("cutouts", "backgrounds"):
        for path in (out / folder).rglob("*.webp"):
            if path.relative_to(out).as_posix() not in keep:
                path.unlink()


def report(records: list[Record], out: Path) -> None:
    """Print counts per class and split, and the size of the pack."""
    counts = Counter((record.cls or "background", record.split) for record in records)
    for name in (*CLASSES, "background"):
        print(f"{name:<11} train {counts[name, 'train']:>3}  val {counts[name, 'val']:>3}")
    size = sum((out / record.file).stat().st_size for record in records)
    print(
        f"{len(records)} pictures, {size / 1e6:.2f} MB; list the new manifest with: python -m aeft_lib.paths"
    )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--packages", type=Path, required=True, help="unpacked packages or the .deb files"
    )
    parser.add_argument(
        "--selection", type=Path, default=HERE / "selection.csv", help="the choice of files"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="output folder (default: this script's own)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Build the pack; return 0, or 1 after printing what to do."""
    args = parse_args(argv)
    try:
        items = read_selection(args.selection)
        sources = read_sources(args.packages, items)
        verified = [(item, verify(item, sources)) for item in items]
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    records = [build_item(item, data, args.out) for item, data in verified]
    remove_stale(args.out, {record.file for record in records})
    write_manifest(records, args.out / "manifest.csv")
    report(records, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Unpacking: bad paths, links, devices and damage are refused before anything is written; a kill leaves no half file."""

import gzip
import io
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from aeft_lib.data.prepare import unpack as module
from aeft_lib.data.prepare.unpack import unpack

FILES = {
    "a/one.txt": b"one",
    "a/b/two.bin": np.random.default_rng(0).bytes(30_000),
    "three": b"",
    "a/ümlaut é.txt": b"three",
}
KINDS = ("x.tar", "x.tar.gz", "x.tgz", "x.zip")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("AEFT_QUIET", "1")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "outer" / "root"


def add_to_tar(archive, name: str, content: bytes = b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def packed(file: Path, files: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    """An archive with these files, and a folder of its own."""
    items = files.items() if isinstance(files, dict) else files
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/", "")
            for name, content in items:
                archive.writestr(name, content)
        return file
    with tarfile.open(file, "w" if file.suffix == ".tar" else "w:gz") as archive:
        add_to_tar(archive, "a", type=tarfile.DIRTYPE)
        for name, content in items:
            add_to_tar(archive, name, content)
    return file


def found(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


# --- what is good ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KINDS, "X.ZIP"])
def test_every_file_is_there(tmp_path, root, name):
    file = packed(tmp_path / "x.zip", FILES).rename(tmp_path / name) if name == "X.ZIP" else packed(tmp_path / name, FILES)
    assert unpack(file, root) == len(FILES)
    assert found(root) == FILES


@pytest.mark.parametrize("name", KINDS)
def test_names_may_begin_with_a_dot_and_a_slash(tmp_path, root, name):
    assert unpack(packed(tmp_path / name, {"./a/one.txt": b"one"}), root) == 1
    assert found(root) == {"a/one.txt": b"one"}


@pytest.mark.parametrize("name", KINDS)
def test_files_of_the_same_size_are_left_others_are_written(tmp_path, root, name):
    file = packed(tmp_path / name, FILES)
    unpack(file, root)
    (root / "a/one.txt").write_bytes(b"ONE")
    (root / "a/b/two.bin").write_bytes(b"half")
    (root / "mine.txt").write_bytes(b"mine")
    assert unpack(file, root) == len(FILES)
    assert found(root) == {**FILES, "a/one.txt": b"ONE", "mine.txt": b"mine"}


@pytest.mark.parametrize("name", KINDS)
def test_a_kill_leaves_no_half_file_and_the_next_call_goes_on(tmp_path, root, name, monkeypatch):
    file, copy, copied = packed(tmp_path / name, FILES), module._copy, []

    def killed(file, one, content, out):
        copied.append(one.name)
        if len(copied) == 2:
            out.write(content.read(100))
            raise KeyboardInterrupt
        copy(file, one, content, out)

    monkeypatch.setattr(module, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(file, root)
    assert found(root) == {"a/one.txt": b"one"}
    assert unpack(file, root) == len(FILES)
    assert found(root) == FILES
    assert copied.count("a/one.txt") == 1


def test_an_archive_without_files(tmp_path, root):
    assert unpack(packed(tmp_path / "x.tar", {}), root) == 0


def test_a_full_disk_is_told_before(tmp_path, root, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(30_000))
    with pytest.raises(RuntimeError, match=r"8 bytes too few are free to unpack x\.tar \(30008 bytes\)"):
        unpack(packed(tmp_path / "x.tar", {"one": FILES["a/b/two.bin"], "two": b"12345678"}), root)
    assert not found(root)


# --- what is refused before anything is written ----------------------------------------------------------------------

OUTSIDE = ["../x", "a/../../x", "/x", "//x/y", "..", "..\\x", "\\x", "C:\\x", "c:x", "a/../b"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("member", OUTSIDE)
def test_what_would_leave_the_folder(tmp_path, root, name, member):
    file = packed(tmp_path / name, [("good.txt", b"good"), (member, b"bad")])
    with pytest.raises(ValueError, match=r"x\.[a-z.]+: member .* would leave the folder") as error:
        unpack(file, root)
    assert repr(member) in str(error.value)
    assert [path.name for path in tmp_path.rglob("*")] == [name]


TYPES = [
    ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "symbolic link"),
    ({"type": tarfile.SYMTYPE, "linkname": "good.txt"}, "symbolic link"),
    ({"type": tarfile.LNKTYPE, "linkname": "good.txt"}, "hard link"),
    ({"type": tarfile.CHRTYPE}, "device"),
    ({"type": tarfile.BLKTYPE}, "device"),
    ({"type": tarfile.FIFOTYPE}, "device"),
]


@pytest.mark.parametrize(("fields", "kind"), TYPES)
def test_what_is_no_file_in_a_tar(tmp_path, root, fields, kind):
    file = tmp_path / "x.tar"
    with tarfile.open(file, "w") as archive:
        add_to_tar(archive, "good.txt", b"good")
        add_to_tar(archive, "bad", **fields)
    with pytest.raises(ValueError, match=rf"x\.tar: member 'bad' is a {kind}; only files and folders are unpacked"):
        unpack(file, root)
    assert not root.exists()


@pytest.mark.parametrize(
    ("mode", "kind"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "device"), (stat.S_IFCHR, "device")]
)
def test_what_is_no_file_in_a_zip(tmp_path, root, mode, kind):
    member = zipfile.ZipInfo("bad")
    member.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("good.txt", b"good")
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match=rf"x\.zip: member 'bad' is a {kind}"):
        unpack(tmp_path / "x.zip", root)
    assert not root.exists()


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("x", "x/y", "member 'x' is a file and a folder"),
        ("x/y", "x", "member 'x' is a file and a folder"),
        ("b/x", "b/X/y", "member 'b/x' is a file and a folder"),
        ("x", "a", "member 'a' is a file and a folder"),
        ("b/x", "b/x", "member 'b/x' stands twice"),
        ("b/x", "b//./x", "member 'b//./x' stands twice"),
        ("b/x", "B/X", "member 'B/X' stands twice, or in two spellings"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_get_into_each_others_way(tmp_path, root, name, first, second, text):
    with pytest.raises(ValueError, match=text):
        unpack(packed(tmp_path / name, [(first, b"1"), (second, b"2")]), root)
    assert not root.exists()


def test_a_link_that_leads_out_of_the_folder(tmp_path, root):
    (tmp_path / "elsewhere").mkdir()
    root.mkdir(parents=True)
    (root / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"member 'a/.*' would leave .*root, where a folder above it is a link"):
        unpack(packed(tmp_path / "x.tar", FILES), root)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_root_itself_may_be_a_link(tmp_path, root):
    (tmp_path / "big disk").mkdir()
    root.parent.mkdir()
    root.symlink_to(tmp_path / "big disk")
    unpack(packed(tmp_path / "x.tar", FILES), root)
    assert found(tmp_path / "big disk") == FILES


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kept", [0, 1, 100, 512, 600, 5_000, 20_000, -100])
def test_an_archive_that_was_cut_off(tmp_path, root, name, kept):
    file = packed(tmp_path / name, FILES)
    content = file.read_bytes().rstrip(b"\0") if name == "x.tar" else file.read_bytes()  # its end is zeros
    file.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"x\.[a-z.]+: damaged, cut off or no archive \(.*\); fetch it again"):
        unpack(file, root)
    assert not root.exists()


def test_a_cut_between_two_members_is_found_unless_a_checksum_vouches(tmp_path, root):
    file = packed(tmp_path / "x.tar", {"one": b"1", "two": b"2"})
    file.write_bytes(file.read_bytes()[: 512 + 2 * 512])  # folder, head and content of the first
    with pytest.raises(ValueError, match="no end mark at byte 1536"):
        unpack(file, root)
    assert not root.exists()
    assert unpack(file, root, whole=True) == 1


def test_a_damaged_head_in_the_middle(tmp_path, root):
    file = packed(tmp_path / "x.tar", {"one": b"1", "two": b"2"})
    content = bytearray(file.read_bytes())
    content[1536 + 150] ^= 1  # in the checksum of the second head
    file.write_bytes(content)
    with pytest.raises(ValueError, match="no end mark at byte 1536"):
        unpack(file, root)


def test_a_damaged_gzip_checksum(tmp_path, root):
    file = packed(tmp_path / "x.tgz", FILES)
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tgz: damaged.*CRC"):
        unpack(file, root)
    assert not root.exists()


def test_a_damaged_member_of_a_zip_leaves_no_half_file(tmp_path, root):
    file = packed(tmp_path / "x.zip", FILES)
    content = bytearray(file.read_bytes())
    content[15_000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.zip: member 'a/b/two\.bin' is damaged \(.*\); fetch it again"):
        unpack(file, root)
    assert found(root) == {"a/one.txt": b"one"}


def test_a_zip_with_a_password(tmp_path, root):
    file = packed(tmp_path / "x.zip", {"one": b"1"})
    content = file.read_bytes()
    at = content.rindex(b"PK\1\2") + 8
    file.write_bytes(content[:at] + bytes([content[at] | 1]) + content[at + 1 :])
    with pytest.raises(ValueError, match=r"x\.zip: member 'one' cannot be read .*password"):
        unpack(file, root)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("content", [b"", b"not an archive" * 100, gzip.compress(b"no tar in here"), b"<html>Not found</html>"])
def test_what_is_no_archive(tmp_path, root, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged, cut off or no archive"):
        unpack(tmp_path / name, root)
    assert not root.exists()


@pytest.mark.parametrize(("name", "text"), [("absent.tar", "no archive"), ("x.rar", "not an archive that is known here")])
def test_what_is_not_there_or_of_another_kind(tmp_path, root, name, text):
    with pytest.raises(ValueError, match=text):
        unpack(tmp_path / name, root)

"""Writing: a kill at any moment leaves the old file or the new one.  Reading: only what is listed."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aeft_lib import paths

KILLED = """
import os, signal, sys
from pathlib import Path
from aeft_lib import paths

calls = {name: getattr(owner, name) for owner, name in ((paths, "sync"), (Path, "replace"))}
left = int(sys.argv[2])

def counted(call):
    def step(*words):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words)
    return step

paths.sync, Path.replace = counted(calls["sync"]), counted(calls["replace"])
with paths.replacing(Path(sys.argv[1])) as aside:
    aside.write_text("new, and longer")
"""


def killed_after(file: Path, steps: int) -> int:
    command = [sys.executable, "-c", KILLED, str(file), str(steps)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(paths.ROOT)}).returncode


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    file, seen = tmp_path / "report.json", []
    for steps in range(4):
        file.write_text("old")
        code = killed_after(file, steps)
        seen.append((code, file.read_text()))
    kill = -signal.SIGKILL
    assert seen == [(kill, "old"), (kill, "old"), (kill, "new, and longer"), (0, "new, and longer")]
    paths.write_text(file, "again")
    assert file.read_text() == "again"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def half() -> None:
        with paths.replacing(file) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    paths.write_text(tmp_path / "link", "ä\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == "ä\n".encode()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with paths.replacing(tmp_path / "a") as aside:
            aside.unlink()  # as libraries do that write aside by themselves
            aside.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# --- committed files -------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of two listed files."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "SUMS", tmp_path / "SHA256SUMS")
    (tmp_path / "figures").mkdir()
    for name in ("a.csv", "report.json"):
        (tmp_path / "figures" / name).write_bytes(b"1.25\n")
    paths.list_committed()
    return tmp_path


def test_every_flipped_bit_of_a_committed_file_is_seen(checkout):
    file = checkout / "figures" / "a.csv"
    whole = file.read_bytes()
    assert paths.read_committed(file) == whole
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.csv is damaged or was edited.*git checkout"):
            paths.read_committed(file)


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped", "of another file"])
def test_a_damaged_list_refuses(checkout, damage):
    sums, text = checkout / "SHA256SUMS", (checkout / "SHA256SUMS").read_text()
    if damage == "missing":
        sums.unlink()
    else:
        flipped = ("0" if text[0] != "0" else "1") + text[1:]
        other = text.replace("a.csv", "b.csv")
        sums.write_text({"empty": "", "flipped": flipped, "of another file": other}[damage])
    with pytest.raises(ValueError, match="SHA256SUMS"):
        paths.read_committed(checkout / "figures" / "a.csv")


def test_writing_lists_the_new_digest_and_keeps_the_others(checkout):
    file = checkout / "figures" / "a.csv"
    paths.write_committed(file, b"2.5\n")
    assert paths.read_committed(file) == b"2.5\n"
    assert paths.read_committed(checkout / "figures" / "report.json") == b"1.25\n"
    digest = hashlib.sha256(b"2.5\n").hexdigest()
    assert (checkout / "SHA256SUMS").read_text().splitlines()[0] == f"{digest}  figures/a.csv"
    assert len((checkout / "SHA256SUMS").read_text().splitlines()) == 2


@pytest.mark.parametrize("kill", range(3))
def test_a_kill_between_file_and_list_leaves_what_can_be_read(checkout, monkeypatch, kill):
    """The list names both, old and new, while the file is replaced."""
    file, replace, calls = checkout / "figures" / "a.csv", Path.replace, []

    def killed(self, target):
        if len(calls) == kill:
            raise KeyboardInterrupt
        calls.append(target)
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            paths.write_committed(file, b"2.5\n")
    assert paths.read_committed(file) == (b"2.5\n" if kill == 2 else b"1.25\n")


def test_files_elsewhere_are_not_listed(checkout, tmp_path_factory):
    file = tmp_path_factory.mktemp("elsewhere") / "a.csv"
    paths.write_committed(file, b"1\n")
    assert paths.read_committed(file) == b"1\n"
    paths.write_committed(checkout / "figures" / "a.txt", b"1\n")
    assert "a.txt" not in (checkout / "SHA256SUMS").read_text()


def test_all_that_is_committed_and_read_is_as_listed():
    files = [file for pattern in paths.COMMITTED for file in paths.ROOT.glob(pattern)]
    assert len(files) > 40
    for file in files:
        paths.read_committed(file)
    assert len(paths.SUMS.read_text().splitlines()) == len(files)


# --- what stands in the way -----------------------------------------------------------------------


def test_a_folder_in_the_place_of_a_file_is_refused_and_stays(tmp_path):
    (tmp_path / "report.md" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"report\.md is a folder, a file is to be written there"):
        paths.write_text(tmp_path / "report.md", "text")
    (tmp_path / "file").write_text("mine")
    paths.check_outputs([tmp_path / "new" / "deep" / "a.md", tmp_path / "file"])
    with pytest.raises(ValueError, match=r"file is no folder, a\.md is to stand in one: move it"):
        paths.check_outputs([tmp_path / "file" / "deep" / "a.md"])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "report.md"]


@pytest.mark.parametrize("code", paths.FULL)
@pytest.mark.parametrize("call", ["write_bytes", "sync", "replace"])
def test_a_disk_that_is_full_leaves_the_old_file_and_is_named_with_it(
    tmp_path, monkeypatch, call, code
):
    """A write's own error names no file, and a rename's names the one aside."""
    file = tmp_path / "a.md"
    file.write_text("old")

    def full(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(*((paths, "sync") if call == "sync" else (Path, call)), full)
        with pytest.raises(OSError, match=r"a\.md'$") as caught:
            paths.write_text(file, "new")
    assert (caught.value.errno, file.read_text()) == (code, "old")
    assert list(tmp_path.iterdir()) == [file]

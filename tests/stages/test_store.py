"""The stage store, with stages of three lines: records, damage, swaps, failures, a full disk.

What a key is made of is tested in test_keys.py.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aeft_lib import paths
from aeft_lib.engine import checkpoint
from aeft_lib.engine.step import PLAIN, Compute
from aeft_lib.stages import store
from aeft_lib.stages.store import StoreError


@dataclass(frozen=True)
class Spec:
    """The least that a stage can be told."""

    value: int = 1
    levels: tuple[int, ...] = (2, 4)


class Counter:
    """A stage that counts how often it ran; `error` is raised after the first file."""

    __name__ = "count"
    __module__ = "outside_the_package"

    def __init__(self):
        self.calls = 0
        self.error = None

    def __call__(self, spec, inputs, folder):
        self.calls += 1
        (folder / "value.txt").write_text(str(spec.value))
        if self.error:
            raise self.error
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "more.bin").write_bytes(bytes(range(256)) * 16)
        return {"value": spec.value, "third": 1 / 3}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """An empty store; what this process has verified so far is forgotten, as in a new process."""
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(store, "_verified", set())
    return tmp_path / "runs"


@pytest.fixture
def count():
    return Counter()


def other_process(monkeypatch):
    """Forget what was verified: checksums are taken once a process."""
    monkeypatch.setattr(store, "_verified", set())


def names(folder: Path) -> set[str]:
    """What stands in a stage's folder, without locks."""
    return {f.name for f in folder.iterdir() if f.suffix != ".lock"}


# --- built once, found again -------------------------------------------------------------------


def test_built_once_and_found_again(stored, count, monkeypatch):
    first = store.obtain(count, Spec())
    other_process(monkeypatch)
    second = store.obtain(count, Spec())
    assert count.calls == 1
    assert second.folder == first.folder == stored / "count" / first.key
    assert second.summary == first.summary == {"value": 1, "third": 1 / 3}
    assert (second.folder / "value.txt").read_text() == "1"
    assert names(stored / "count") == {first.key}


def test_record_says_where_the_result_comes_from(stored, count):
    source = store.obtain(count, Spec(value=7))
    artefact = store.obtain(count, Spec(), {"source": source})
    record = json.loads((artefact.folder / "record.json").read_text())
    assert (record["stage"], record["key"]) == ("count", artefact.key)
    assert record["spec_class"] == "Spec"
    assert record["spec"] == {"class": "Spec", "value": 1, "levels": [2, 4]}
    assert record["inputs"] == {"source": source.key}
    assert {"python", "torch", "timm", "numpy"} <= record["versions"].keys()
    assert record["seconds"] >= 0
    assert record["peak_memory_mb"] > 1
    assert record["commit"] == store.commit() != ""
    assert record["machine"]
    assert (record["threads"], record["precision"]) == (torch.get_num_threads(), "fp32")
    assert record["isa"].startswith(torch.backends.cpu.get_cpu_capability())
    assert record["device"]
    assert set(record["files"]) == {"value.txt", "deep/more.bin"}
    assert all(len(checksum) == 64 for checksum in record["files"].values())


@dataclass(frozen=True)
class Read(Spec):
    """Of a network that is read."""

    precision: str = "fp32"


@dataclass(frozen=True)
class Trained(Spec):
    """Of a network that is trained."""

    compute: Compute = PLAIN


@pytest.mark.parametrize(
    ("spec", "precision"),
    [
        (Read(), "fp32"),
        (Read(precision="bf16"), "bf16"),
        (Trained(), "fp32"),
        (Trained(compute=Compute("fp16")), "fp16"),
    ],
    ids=str,
)
def test_a_record_tells_the_precision_that_its_network_computed_in(stored, count, spec, precision):
    made = store.obtain(count, spec)
    assert made.record["precision"] == precision
    # What scores it has no network of its own; the next reads one in a precision of its own.
    scored = store.obtain(
        count, Spec(value=2), {"seeds": made, "masks": store.obtain(count, Spec())}
    )
    assert scored.record["precision"] == precision
    assert store.obtain(count, Spec(value=3), {"score": scored}).record["precision"] == precision
    assert store.obtain(count, Read(value=4), {"score": scored}).record["precision"] == "fp32"


# --- damage ------------------------------------------------------------------------------------


def flip_a_byte(folder):
    file = folder / "deep" / "more.bin"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(bytes(content))


DAMAGES = {
    "a flipped byte": (flip_a_byte, "does not match its checksum"),
    "truncated": (
        lambda f: os.truncate(f / "deep" / "more.bin", 100),
        "does not match its checksum",
    ),
    "empty": (lambda f: os.truncate(f / "value.txt", 0), "does not match its checksum"),
    "deleted": (lambda f: (f / "value.txt").unlink(), "value.txt is missing"),
    "a folder in its place": (
        lambda f: ((f / "value.txt").unlink(), (f / "value.txt").mkdir()),
        "value.txt is missing",
    ),
    "no record": (lambda f: (f / "record.json").unlink(), "record.json cannot be read"),
    "an empty record": (lambda f: os.truncate(f / "record.json", 0), "record.json cannot be read"),
    "half a record": (lambda f: os.truncate(f / "record.json", 200), "record.json cannot be read"),
    "a record of bytes": (
        lambda f: (f / "record.json").write_bytes(b"\xff\xfe\x00"),
        "record.json cannot be read",
    ),
    "a record of another form": (
        lambda f: (f / "record.json").write_text("[]"),
        "record.json cannot be read",
    ),
    "a record without files": (
        lambda f: (f / "record.json").write_text("{}"),
        "record.json cannot be read",
    ),
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "record.json cannot be read"),
    "a file in its place": (
        lambda f: (shutil.rmtree(f), f.write_text("mine")),
        "record.json cannot be read",
    ),
    "a link to nowhere": (
        lambda f: (shutil.rmtree(f), f.symlink_to(f.with_name("gone"))),
        "record.json cannot be read",
    ),
    "a pipe as record": (
        lambda f: ((f / "record.json").unlink(), os.mkfifo(f / "record.json")),
        "record.json cannot be read",
    ),
    "a record that is nested without end": (
        lambda f: (f / "record.json").write_text("[" * 100_000),
        "record.json cannot be read",
    ),
    "a record without its checksum": (
        lambda f: without(f, "checksum"),
        "record.json cannot be read .*checksum",
    ),
    "a record without a file": (
        lambda f: without(f, "files", "value.txt"),
        "record.json does not match its checksum",
    ),
    "a file too many": (lambda f: (f / "other.npz").write_bytes(b"1"), "other.npz is not its own"),
    "a hidden file too many": (
        lambda f: (f / "deep" / "._more.bin").write_bytes(b"1"),
        r"deep/\._more.bin is not its own",
    ),
    "a folder too many": (lambda f: (f / "deep" / "x.npz").mkdir(), "deep/x.npz is not its own"),
}


def without(folder: Path, *fields: str) -> None:
    """Delete a field of an artefact's record."""
    record = json.loads((folder / "record.json").read_text())
    owner = record
    for name in fields[:-1]:
        owner = owner[name]
    del owner[fields[-1]]
    (folder / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_said_set_aside_and_mended(stored, count, monkeypatch, name):
    damage, problem = DAMAGES[name]
    first = store.obtain(count, Spec())
    kept = store.obtain(count, Spec(value=2))
    damage(first.folder)
    other_process(monkeypatch)
    with pytest.warns(UserWarning, match=problem) as caught:
        again = store.obtain(count, Spec())
    message = str(caught[0].message)
    assert first.key in message
    assert "count" in message
    assert count.calls == 3
    assert again.summary == first.summary
    assert (again.folder / "value.txt").read_text() == "1"
    assert (again.folder / "deep" / "more.bin").read_bytes() == bytes(range(256)) * 16
    aside = names(stored / "count") - {first.key, kept.key}
    assert len(aside) == 1
    assert aside.pop() in message
    other_process(monkeypatch)
    assert store.obtain(count, Spec(value=2)).summary == {"value": 2, "third": 1 / 3}
    assert count.calls == 3


def test_record_whose_files_are_a_list_is_damage(stored, count, monkeypatch):
    first = store.obtain(count, Spec())
    (first.folder / "record.json").write_text('{"files": []}')
    other_process(monkeypatch)
    with pytest.warns(UserWarning, match="set aside"):
        store.obtain(count, Spec())


def test_number_that_was_changed_in_the_record_is_damage(stored, count, monkeypatch):
    first = store.obtain(count, Spec())
    record = first.folder / "record.json"
    record.write_text(record.read_text().replace('"value": 1', '"value": 9'))
    other_process(monkeypatch)
    with pytest.warns(UserWarning, match="set aside"):
        assert store.obtain(count, Spec()).summary["value"] == 1


def test_what_a_desktop_leaves_in_every_folder_is_no_damage(stored, count, monkeypatch):
    first = store.obtain(count, Spec())
    for place in (first.folder, first.folder / "deep"):
        (place / ".DS_Store").write_bytes(b"view")
    other_process(monkeypatch)
    assert store.obtain(count, Spec()).key == first.key
    assert count.calls == 1


# --- what may not be read ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["record.json", "value.txt"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_unreadable_is_not_damaged(stored, count, monkeypatch, name, code):
    """It names file and remedy, and sets nothing aside: the file may be another user's."""
    first = store.obtain(count, Spec())
    other_process(monkeypatch)
    opened = Path.open

    def refuse(self, *words, **options):
        if self.name == name:
            raise OSError(code, os.strerror(code), str(self))
        return opened(self, *words, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        for ask in (store.obtain, store.lookup):
            with pytest.raises(StoreError, match=rf"{name}.*AEFT_RUNS"):
                ask(count, Spec())
    assert names(stored / "count") == {first.key}
    assert store.obtain(count, Spec()).key == first.key
    assert count.calls == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("closed", ["", "record.json", "value.txt", "deep"])
def test_closed_to_this_user_is_not_damaged(stored, count, monkeypatch, closed):
    first = store.obtain(count, Spec())
    other_process(monkeypatch)
    place = first.folder / closed
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        with pytest.raises(StoreError, match=r"no permission for .*chmod -R g\+rwX"):
            store.obtain(count, Spec())
    finally:
        place.chmod(mode)
    assert names(stored / "count") == {first.key}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_files_follow_the_umask_whatever_a_library_sets(stored, umask, mode):
    def private(spec, inputs, folder):
        save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
        (folder / "a.safetensors").chmod(0o600)
        (folder / "b.txt").write_text("b")
        return {}

    before = os.umask(umask)
    try:
        folder = store.obtain(private, Spec()).folder
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == dict.fromkeys(
        ("a.safetensors", "b.txt", "record.json"), mode
    )


# --- more damage -------------------------------------------------------------------------------


def test_two_damages_within_a_second(stored, count, monkeypatch):
    monkeypatch.setattr(store.time, "strftime", lambda _: "20000101-000000")
    for calls in (1, 2, 3):
        with pytest.warns(UserWarning, match="set aside") if calls > 1 else _nothing():
            artefact = store.obtain(count, Spec())
        assert count.calls == calls
        flip_a_byte(artefact.folder)
        other_process(monkeypatch)


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


# --- an artefact in another one's place --------------------------------------------------------


class Other(Counter):
    """Another stage, whose files have the same names."""

    __name__ = "other"


@dataclass(frozen=True)
class Twin(Spec):
    """A spec of another class with the same fields."""


SWAPPED = ("a", "b", "with input", "other a", "twin")


def several() -> dict[str, store.Artefact]:
    """Artefacts of two stages, with other values, inputs and classes of spec."""
    count, other = Counter(), Other()
    a = store.obtain(count, Spec(1))
    made = {
        "a": a,
        "b": store.obtain(count, Spec(2)),
        "with input": store.obtain(count, Spec(1), {"a": a}),
        "other a": store.obtain(other, Spec(3)),
        "twin": store.obtain(count, Twin(4)),
    }
    assert len({artefact.folder for artefact in made.values()}) == len(made)
    return made


def swap(one: Path, two: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


@pytest.mark.parametrize("restarted", [False, True], ids=["same process", "other process"])
@pytest.mark.parametrize("pair", tuple(combinations(SWAPPED, 2)), ids="-".join)
def test_swapped_artefacts_are_seen_set_aside_and_recomputed(stored, monkeypatch, pair, restarted):
    made = several()
    one, two = (made[name] for name in pair)
    swap(one.folder, two.folder)
    if restarted:
        other_process(monkeypatch)
    with pytest.warns(UserWarning, match=r"record\.json is of .*set aside as") as caught:
        again = several()
    assert len(caught) == 2
    messages = sorted(str(warning.message) for warning in caught)
    expected = sorted(f"{a.stage} {a.key}: record.json is of" for a in (one, two))
    assert [text[: len(start)] for text, start in zip(messages, expected, strict=True)] == expected
    for name, artefact in again.items():
        assert artefact.summary == made[name].summary, name
        value = str(artefact.summary["value"])
        assert (artefact.folder / "value.txt").read_text() == value, name
    other_process(monkeypatch)
    assert {name: artefact.record for name, artefact in several().items()} == {
        name: artefact.record for name, artefact in again.items()
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("key", "0" * 16, "record.json is of key '0000000000000000', not "),
        ("stage", "other", "record.json is of stage 'other', not 'count'"),
        ("spec_class", "Twin", "record.json is of spec_class 'Twin', not 'Spec'"),
    ],
)
def test_a_whole_record_of_something_else_is_seen(stored, count, field, value, message):
    """Its checksum is right, so it is not damaged: it is another one's."""
    first = store.obtain(count, Spec())
    record = {name: item for name, item in first.record.items() if name != "checksum"}
    record[field] = value
    record["checksum"] = store._record_checksum(record)
    store.write_json(first.folder / "record.json", record)
    with pytest.warns(UserWarning, match=message):
        assert store.obtain(count, Spec()).record[field] == first.record[field]
    assert count.calls == 2


@pytest.mark.parametrize("field", ["key", "stage", "spec_class"])
def test_a_record_that_does_not_name_itself_is_refused(stored, count, field):
    first = store.obtain(count, Spec())
    record = {n: item for n, item in first.record.items() if n not in ("checksum", field)}
    record["checksum"] = store._record_checksum(record)
    store.write_json(first.folder / "record.json", record)
    with pytest.warns(UserWarning, match=rf"record\.json cannot be read .*{field}"):
        store.obtain(count, Spec())
    assert count.calls == 2


def test_a_lookup_does_not_use_a_swapped_artefact(stored, count):
    one, two = store.obtain(count, Spec(1)), store.obtain(count, Spec(2))
    swap(one.folder, two.folder)
    for value in (1, 2):
        with pytest.warns(UserWarning, match="is of key"), pytest.raises(LookupError):
            store.lookup(count, Spec(value))
    assert count.calls == 2
    assert store.find("count", one.key) is store.find("count", two.key) is None


def test_an_artefact_knows_the_spec_that_it_was_asked_for(stored, count):
    assert store.obtain(count, Spec(2)).spec == Spec(2)  # built
    assert store.obtain(count, Spec(2)).spec == store.lookup(count, Spec(2)).spec == Spec(2)


# --- failures of a stage -----------------------------------------------------------------------


def test_stage_that_raises_leaves_nothing_finished_and_harms_nothing(stored, count, monkeypatch):
    kept = store.obtain(count, Spec(value=2))
    count.error = ValueError("the data are odd")
    with pytest.raises(ValueError, match=r"^the data are odd$"):
        store.obtain(count, Spec())
    key = store.key_for(count, Spec())
    assert names(stored / "count") == {kept.key, f"{key}.partial"}
    assert store.find("count", key) is None
    other_process(monkeypatch)
    assert store.find("count", kept.key).summary == kept.summary
    count.error = None
    assert store.obtain(count, Spec()).summary == {"value": 1, "third": 1 / 3}
    assert names(stored / "count") == {kept.key, key}


def test_a_stage_finds_what_a_killed_build_left(stored):
    """Its checkpoint and what this vouches for, cut to what it was; nothing else."""
    seen = []
    network = torch.nn.Linear(2, 1)
    state = (network, torch.optim.SGD(network.parameters()), torch.amp.GradScaler(enabled=False))

    def count(spec, inputs, folder):
        seen.append({f.name: f.read_text() for f in folder.iterdir() if f.suffix == ".txt"})
        seen[-1]["checkpoint"] = checkpoint.resume(folder / checkpoint.NAME, *state)[0]
        if len(seen) == 1:
            (folder / "log.txt").write_text("1")
            checkpoint.save_checkpoint(folder / checkpoint.NAME, *state, [{"epoch": 1}])
            (folder / "log.txt").write_text("12")
            (folder / "later.txt").write_text("2")
            (folder / "x.npz").mkdir()
            (folder / "x.npz" / "y").write_text("2")
            raise KeyboardInterrupt
        (folder / checkpoint.NAME).unlink()
        return {}

    with pytest.raises(KeyboardInterrupt):
        store.obtain(count, Spec())
    assert set(store.obtain(count, Spec()).record["files"]) == {"log.txt"}
    assert seen == [{"checkpoint": []}, {"log.txt": "1", "checkpoint": [{"epoch": 1}]}]


@pytest.mark.parametrize("left", ["a file", "a folder with a damaged log"])
def test_leftovers_without_a_checkpoint_are_removed(stored, count, left):
    partial = stored / "count" / f"{store.key_for(count, Spec())}.partial"
    if left == "a file":
        partial.parent.mkdir(parents=True)
        partial.write_text("mine")
    else:
        (partial / "value.txt").mkdir(parents=True)
        (partial / "steps.jsonl").write_bytes(b"\xff{")
        (partial / "deep").symlink_to(stored)
    assert set(store.obtain(count, Spec()).record["files"]) == {"value.txt", "deep/more.bin"}


def test_killed_between_record_and_rename(stored, count, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            store.obtain(count, Spec())
    built = store.obtain(count, Spec())
    other_process(monkeypatch)
    assert "record.json" not in built.record["files"]
    assert store.find("count", built.key) is not None


# --- two processes -----------------------------------------------------------------------------

TWO = """
import sys, time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from aeft_lib.stages import store

@dataclass(frozen=True)
class Spec:
    value: int = 1

def slow(spec, inputs, folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(1.0)
    (folder / "value.txt").write_text("1")
    return {"value": 1}

Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
print(store.obtain(slow, Spec()).folder)
"""


def test_two_processes_that_want_the_same_build_it_once(stored, tmp_path):
    script, log, go = tmp_path / "two.py", tmp_path / "log.txt", tmp_path / "go"
    script.write_text(TWO)
    ready = [tmp_path / "ready1", tmp_path / "ready2"]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, script, log, flag, go],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for flag in ready
    ]
    while not all(flag.exists() for flag in ready):
        assert all(process.poll() is None for process in started)
    go.touch()
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert log.read_text() == "built\n"
    assert said[0] == said[1] != ""
    assert (Path(said[0]) / "value.txt").read_text() == "1"


def test_other_process_set_the_damaged_one_aside_first(stored, count, monkeypatch):
    first = store.obtain(count, Spec())
    flip_a_byte(first.folder)
    other_process(monkeypatch)
    damage = store._damage

    def slower(folder, spec):
        problem = damage(folder, spec)
        if problem and folder.is_dir():
            folder.rename(folder.with_name("taken by the other process"))
        return problem

    monkeypatch.setattr(store, "_damage", slower)
    assert store.obtain(count, Spec()).summary == first.summary  # the other process has said it


# --- a store that cannot be written ------------------------------------------------------------


def test_a_linked_leftover_is_dropped_and_what_it_leads_to_stays(stored, count, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    partial = stored / "count" / f"{store.key_for(count, Spec())}.partial"
    partial.parent.mkdir(parents=True)
    partial.symlink_to(mine, target_is_directory=True)
    artefact = store.obtain(count, Spec())
    assert not artefact.folder.is_symlink()
    assert [file.name for file in mine.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["stage", "lock", "lock of a damaged one", "lock without end"])
def test_what_stands_in_the_way_in_the_store_is_named_and_stays(stored, count, monkeypatch, kind):
    key = store.key_for(count, Spec())
    lock = stored / "count" / f"{key}.lock"
    if kind == "stage":
        stored.mkdir()
        (place := stored / "count").write_text("mine")
    else:
        if kind == "lock of a damaged one":
            flip_a_byte(store.obtain(count, Spec()).folder)
            other_process(monkeypatch)
            lock.unlink(missing_ok=True)
        place = lock
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(place.name) if kind == "lock without end" else place.mkdir()
    before = count.calls
    what = "folder" if place.is_dir() else "file"
    with pytest.raises(StoreError, match=rf"the {what} {place} stands in the way; move it away"):
        store.obtain(count, Spec())
    assert count.calls == before
    assert os.path.lexists(place)


@pytest.mark.parametrize("below", ["", "store", "deep/store"])
def test_store_that_is_a_file_or_below_one(tmp_path, monkeypatch, count, below):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "file" / below))
    with pytest.raises(StoreError, match="AEFT_RUNS"):
        store.check_writable()
    with pytest.raises(StoreError, match=r"file.*AEFT_RUNS"):
        store.obtain(count, Spec())
    assert count.calls == 0
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_read_only_store_is_refused_before_work(stored, monkeypatch, count, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"cannot write to the store.*AEFT_RUNS"):
        store.obtain(count, Spec())
    assert count.calls == 0


def test_full_disk_is_refused_before_work(stored, monkeypatch, count):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"is full.*AEFT_RUNS"):
        store.obtain(count, Spec())
    assert count.calls == 0


def test_little_space_is_refused_before_work(stored, monkeypatch, count):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 2**20, 2**20))
    with pytest.raises(StoreError, match=r"has 1 MB left, a study needs 200.*AEFT_RUNS"):
        store.obtain(count, Spec())
    assert count.calls == 0
    assert list(stored.iterdir()) == []


def test_little_space_does_not_keep_from_reading(stored, monkeypatch, count):
    store.obtain(count, Spec())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 0))
    other_process(monkeypatch)
    assert store.obtain(count, Spec()).summary["value"] == 1
    assert count.calls == 1


def test_disk_that_fills_up_during_a_stage(stored, count, monkeypatch):
    kept = store.obtain(count, Spec(value=2))
    count.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StoreError, match=r"is full.*AEFT_RUNS"):
        store.obtain(count, Spec())
    other_process(monkeypatch)
    assert store.find("count", kept.key) is not None
    assert store.find("count", store.key_for(count, Spec())) is None
    count.error = None
    assert store.obtain(count, Spec()).summary["value"] == 1


def test_disk_that_fills_up_under_safetensors(stored, count):
    from safetensors import SafetensorError

    count.error = SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )
    with pytest.raises(StoreError, match=r"is full.*AEFT_RUNS"):
        store.obtain(count, Spec())


def test_missing_file_of_a_stage_is_not_blamed_on_the_store(stored, count):
    count.error = FileNotFoundError(errno.ENOENT, "No such file", "weights.bin")
    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        store.obtain(count, Spec())


def test_unreadable_file_elsewhere_is_not_blamed_on_the_store(stored, count, tmp_path):
    count.error = PermissionError(
        errno.EACCES, "Permission denied", str(tmp_path / "photos" / "a.jpg")
    )
    with pytest.raises(PermissionError, match=r"a\.jpg"):
        store.obtain(count, Spec())


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "record.json"
    store.write_json(file, {"a": 1})

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    store.write_json(file, {"a": 3})
    assert json.loads(file.read_text()) == {"a": 3}


def test_store_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path / "ein Ort für Läufe"))
    store.check_writable()
    assert paths.runs().is_dir()
    for unset in ("", None):
        monkeypatch.delenv("AEFT_RUNS") if unset is None else monkeypatch.setenv("AEFT_RUNS", unset)
        assert paths.runs() == paths.ROOT / "runs"

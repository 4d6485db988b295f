"""The command line: ``aeft run``, ``explain``, ``reproduce``, ``report``, ``predict``, ``export``, ``data``, ``weights``, ...

Errors are one line.  Under torchrun all processes run one command together.
"""

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeft_lib import paths
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.stages import store
from aeft_lib.studies import profiles, run
from aeft_lib.studies.rows import SegmentationRow


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error that the message explains, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "×" shows "?" and not a traceback
    arguments = _parser().parse_args(argv)
    try:
        ranks.start()
        arguments.command(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        print(f"aeft: {error}{notes}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("aeft: stopped; what was finished is in the store, run the command again to go on", file=sys.stderr)
        return 130
    finally:
        ranks.stop()
    return 0


def run_study(arguments: argparse.Namespace) -> None:
    """``aeft run STUDY``: compute or read a study, print its table."""
    study, profile = run.get(arguments.study), profiles.get(arguments.profile)
    rows = [study.row(arguments.row)] if arguments.row else []
    if arguments.seed is not None and arguments.seeds:
        raise ValueError("--seed picks one seed and --seeds says how many: give one of them")
    seeds = range(profiles.seeds(profile, arguments.seeds)) if arguments.seed is None else [arguments.seed]
    table = run.run(study, profile, seeds, rows=rows, workers=arguments.workers)
    if not ranks.is_main():
        return
    shown = ["label", "n", "miou", "miou_sd", "precision", "recall", "miou_maskless", "tag_map"]
    summary = run.summarise(table)
    print(summary[[column for column in shown if column in summary]].round(1).to_string(index=False))


def reproduce(arguments: argparse.Namespace) -> None:
    """``aeft reproduce``: every study, then every notebook, then the report."""
    from aeft_lib.lab.notebooks import plan
    from aeft_lib.lab.notebooks import reproduce as run_notebooks

    profile = profiles.get(arguments.profile)
    n_seeds = profiles.seeds(profile, arguments.seeds)
    if arguments.publish and (profile.name != "laptop" or n_seeds < profiles.COMMITTED_SEEDS):
        wanted = f"--profile laptop --seeds {profiles.COMMITTED_SEEDS}"
        raise ValueError(f"--publish writes over the committed notebooks, which are of {wanted}; got {profile.name}, {n_seeds}")
    choice = {"only": arguments.only, "start": arguments.start, "publish": arguments.publish}
    plan({"profile": profile.name, "seeds": n_seeds}, **choice)  # refuse before the studies what would fail after them
    store.check_writable()
    chosen = []
    for study in [] if arguments.only else run.STUDIES.values():
        if run.left_out(study, profile, n_seeds):
            why = f"below {profile.long_from} seeds" if study.fits(profile) else f"because it needs {study.needs}"
            print(f"study {study.name}: left out {why}, its committed table is shown", flush=True)
            continue
        chosen.append((study, study.seeds(n_seeds)))
        print(f"study {study.name}: {len(study.rows)} rows x {len(chosen[-1][1])} seed(s) on {profile.name}", flush=True)
    run.prepare(chosen, profile, workers=arguments.workers)
    folder = run_notebooks(profile=profile.name, seeds=n_seeds, **choice)
    print(f"notebooks with outputs: {folder}")
    write_report(profile, n_seeds)


def report(arguments: argparse.Namespace) -> None:
    """``aeft report``: claims and verdicts from what is in the store."""
    profile = profiles.get(arguments.profile)
    write_report(profile, profiles.seeds(profile, arguments.seeds))


def write_report(profile: profiles.Profile, n_seeds: int) -> None:
    """Write the report where it belongs; the README's block too, where it is the committed one."""
    from aeft_lib.lab.session import Session
    from aeft_lib.studies import report as reports

    store.check_writable()
    session = Session(profile, n_seeds)
    built = session.report()
    for file in reports.write(built, session.figures_folder):
        print(file)
    if session.figures_folder == paths.FIGURES:
        reports.update_readme(built)


def export(arguments: argparse.Namespace) -> None:
    """``aeft export``: what a row's network predicts, as a submission to VOC's server, written and checked."""
    from aeft_lib.lab.session import Session
    from aeft_lib.maps import submission

    profile, file = profiles.get(arguments.profile), Path(arguments.out)
    if file.suffix != ".zip" or not file.parent.is_dir():
        raise ValueError(f"--out must name a .zip in a folder that is there, got {file}")
    _network_row(profile, arguments.row, arguments.seed)
    maps = Session(profile, arguments.seed + 1).label_maps(arguments.row, arguments.seed)
    scenes = profile.val.open()
    count = submission.write(file, list(zip(scenes.names, maps, strict=True)), num_classes=profile.num_classes, split="val")
    sizes = {name: scenes.image(index).shape[:2] for index, name in enumerate(scenes.names)}
    if problems := submission.check(file, sizes, num_classes=profile.num_classes, split="val"):
        raise RuntimeError(f"{file} would be refused: " + "; ".join(problems[:5]))
    print(f"{file}: {count} label maps, checked")


def predict(arguments: argparse.Namespace) -> None:
    """``aeft predict IMAGE...``: label maps of any photos, by the segmentation network of a row, as palette PNGs."""
    from aeft_lib.data.images import read_image
    from aeft_lib.maps.labels import write_label_map
    from aeft_lib.stages.predict_labels import predict as label_map_of
    from aeft_lib.stages.train_segmenter import load_segmenter

    profile, folder = profiles.get(arguments.profile), Path(arguments.out)
    images = {Path(file).stem: read_image(Path(file)) for file in arguments.images}
    if len(images) < len(arguments.images):
        raise ValueError("two images have the same name without suffix, and would be written to one file")
    found = _network_row(profile, arguments.row, arguments.seed)
    network = load_segmenter(found["segmenter"]).to(device())
    folder.mkdir(parents=True, exist_ok=True)
    classes = profile.train.open().classes
    for name, image in images.items():
        labels = label_map_of(network, image, profile.segmentation.scales)
        write_label_map(folder / f"{name}.png", labels)
        seen = [classes[i - 1] for i in sorted(set(labels.ravel().tolist()) - {0})]
        print(f"{folder / name}.png: {', '.join(seen) or 'background alone'}")


def _network_row(profile: profiles.Profile, name: str, seed: int) -> dict[str, store.Artefact]:
    """The artefacts of a row that has a segmentation network; ValueError where it has none, or is not in the store."""
    row = run.row(name)
    if not isinstance(row, SegmentationRow):
        names = [known.name for known in run.get("segmentation").rows if isinstance(known, SegmentationRow)]
        raise ValueError(f"row {row.name} has no segmentation network; there are {', '.join(names)}")
    run.check_seeds([seed])
    if run.stored(profile, row, seed) is None:
        command = f"aeft run segmentation --profile {profile.name} --row {row.name} --seed {seed}"
        raise ValueError(f"row {row.name}, seed {seed} is not in the store, make it with: {command}")
    return run.artefacts(profile, row, seed)


def bench(arguments: argparse.Namespace) -> None:
    """``aeft bench NAME``: print ``{"benchmarks": [...], "machine": ...}``."""
    files = {file.stem: file for file in sorted((paths.ROOT / "benchmarks").glob("[a-z]*.py"))}
    if arguments.name not in files:
        raise ValueError(f"unknown benchmark {arguments.name!r}; there are {', '.join(files)}")
    rows = runpy.run_path(str(files[arguments.name]))["benchmarks"]()
    print(json.dumps({"benchmarks": rows, "machine": store.environment()["machine"]}, indent=1))


def explain(arguments: argparse.Namespace) -> None:
    """``aeft explain STUDY``: what would run, what of it is there, and the work that is left."""
    from aeft_lib.studies import plan as explaining

    study, profile = run.get(arguments.study), profiles.get(arguments.profile)
    rows = [study.row(arguments.row)] if arguments.row else study.rows
    seeds = range(profiles.seeds(profile, arguments.seeds))
    planned = explaining.plan(profile, rows, seeds)
    print(f"{study.name} on {profile.name}: {len(rows)} rows x {len(seeds)} seed(s), on {device()}, store {paths.runs()}")
    print(explaining.table(planned).to_string(index=False, float_format="{:,.1f}".format, na_rep="-"))
    print(f"GPU hours: the PFLOP at {explaining.TFLOPS:.0f} TFLOP/s; '-': work that is not a network's (CRF, walk, scores)")


def weights(arguments: argparse.Namespace) -> None:
    """``aeft weights FILE``: the doctor of published weights."""
    from aeft_lib.data.folder import MAX_CLASSES
    from aeft_lib.networks.checkpoints import load_checkpoint
    from aeft_lib.networks.registry import BackboneSpec
    from aeft_lib.stages.train_classifier import NetworkSpec, PoolingSpec, build_network

    if not 1 <= arguments.classes <= MAX_CLASSES:
        raise ValueError(f"--classes must be 1 to {MAX_CLASSES}, got {arguments.classes}")
    backbone = BackboneSpec(arguments.backbone, weights="none")
    pooling = PoolingSpec("gated", profiles.PAPER_LEVELS)
    network = build_network(NetworkSpec(pooling, arguments.classes, backbone), seed=0)
    print(f"{arguments.file} into {arguments.backbone} with GPP, K={arguments.classes}:")
    print(load_checkpoint(network, Path(arguments.file)).text())


def data_fetch(arguments: argparse.Namespace) -> None:
    """``aeft data fetch voc|coco``: download, verify, unpack."""
    from aeft_lib.data.prepare.fetch import fetch

    root = {"voc": paths.voc_root, "coco": paths.coco_root}[arguments.what]()
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".probe").touch()
        (root / ".probe").unlink()
    except OSError as error:
        remedy = f"point AEFT_{arguments.what.upper()}_ROOT at a folder that can be written"
        raise ValueError(f"cannot write to {root} ({error}): {remedy}") from error
    for line in fetch(arguments.what, root, local=[Path(file) for file in arguments.local]):
        print(line)
    data_check(argparse.Namespace(what=arguments.what, deep=False))


def data_check(arguments: argparse.Namespace) -> None:
    """``aeft data check WHAT``: the data doctor; an error where something is wrong."""
    if arguments.what == "collages":
        return _check_collages()
    from aeft_lib.data.prepare.doctor import check

    findings = check(arguments.what, deep=arguments.deep)
    print(findings.text())
    if not findings.ok:
        raise ValueError(f"{len(findings.problems)} problem(s) in {arguments.what}, see above")


def _check_collages() -> None:
    """Verify the embedded pack file by file."""
    from aeft_lib.data.collages import load_pack

    pack = load_pack()
    for split, backgrounds in pack.backgrounds.items():
        names = sorted(name for where, name in pack.cutouts if where == split)
        counts = {name: len(pack.cutouts[split, name]) for name in names}
        print(f"{split}: {sum(counts.values())} cut-outs {counts}, {len(backgrounds)} backgrounds")


class _Whole(argparse.ArgumentParser):
    """A parser that takes no abbreviated option: ``--seed`` is not ``--seeds``."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = _Whole(prog="aeft", description="Reproducible companion to AEFT (ECCV 2022).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Whole)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default="", help=f"one of {', '.join(profiles.PROFILES)} (default laptop)")
    common.add_argument("--seeds", type=int, default=0, help="how many seeds (default: the profile's own number)")
    working = argparse.ArgumentParser(add_help=False)
    working.add_argument("--workers", type=int, default=0, help="processes side by side (default: one per core; one on a GPU)")

    one = commands.add_parser("run", parents=[common, working], help="compute a study, or one row of it, and print its table")
    one.add_argument("study", help=f"one of {', '.join(run.STUDIES)}")
    one.add_argument("--row", default="", help="only this row (a job of a cluster array)")
    one.add_argument("--seed", type=int, help="only this seed, counted from 0")
    one.set_defaults(command=run_study)

    all_ = commands.add_parser("reproduce", parents=[common, working], help="all studies, notebooks, figures and the report")
    all_.add_argument("--only", nargs="*", default=[], metavar="NOTEBOOK", help="only these notebooks")
    all_.add_argument("--from", dest="start", metavar="NOTEBOOK", help="go on from this notebook")
    all_.add_argument("--publish", action="store_true", help="copy the executed notebooks over the committed ones")
    all_.set_defaults(command=reproduce)

    server = commands.add_parser("export", help="predictions of a segmentation network as a VOC server's zip, checked")
    server.add_argument("row", help="a row of the study segmentation that has a network")
    server.add_argument("--profile", default="", help=f"one of {', '.join(profiles.PROFILES)} (default laptop)")
    server.add_argument("--seed", type=int, default=0, help="of the row, counted from 0")
    server.add_argument("--out", default="submission.zip", metavar="FILE.zip")
    server.set_defaults(command=export)

    will = commands.add_parser("explain", parents=[common], help="what a study would run, and what that costs")
    will.add_argument("study", help=f"one of {', '.join(run.STUDIES)}")
    will.add_argument("--row", default="", help="only this row")
    will.set_defaults(command=explain)

    doctor = commands.add_parser("weights", help="which tensors of a published file find their place in a network")
    doctor.add_argument("file", help="a .params of MXNet, a PyTorch checkpoint, or safetensors")
    doctor.add_argument("--backbone", default="resnet38d", help="its name (default resnet38d)")
    doctor.add_argument("--classes", type=int, default=20, help="K, without background (default 20)")
    doctor.set_defaults(command=weights)

    maps = commands.add_parser("predict", help="label maps of any photos by a row's segmentation network, as palette PNGs")
    maps.add_argument("images", nargs="+", metavar="IMAGE")
    maps.add_argument("--row", default="segment_aeft", help="of the study segmentation (default segment_aeft)")
    maps.add_argument("--profile", default="", help=f"one of {', '.join(profiles.PROFILES)} (default laptop)")
    maps.add_argument("--seed", type=int, default=0, help="of the row, counted from 0")
    maps.add_argument("--out", default="predictions", metavar="FOLDER")
    maps.set_defaults(command=predict)

    commands.add_parser("report", parents=[common], help="claims and verdicts from the store").set_defaults(command=report)
    timing = commands.add_parser("bench", help="timings of two implementations, side by side, as JSON")
    timing.add_argument("name")
    timing.set_defaults(command=bench)
    _add_data(commands)
    return parser


def _add_data(commands: Any) -> None:
    """``aeft data check`` and ``aeft data fetch``."""
    data = commands.add_parser("data", help="the data at hand").add_subparsers(
        required=True, metavar="WHAT", parser_class=_Whole
    )
    check = data.add_parser("check", help="verify it")
    check.add_argument("what", metavar="WHAT", help="collages, voc, coco, or a folder of your own photos")
    check.add_argument("--deep", action="store_true", help="decode every photo and mask instead of their headers")
    check.set_defaults(command=data_check)
    bring = data.add_parser("fetch", help="download, verify and unpack it; called again it goes on")
    bring.add_argument("what", choices=["voc", "coco"])
    bring.add_argument("--from", dest="local", nargs="*", default=[], metavar="ARCHIVE", help="archives that are at hand")
    bring.set_defaults(command=data_fetch)


if __name__ == "__main__":
    sys.exit(main())

"""The command line, ``aeft COMMAND``; errors are one line.

Under torchrun all processes run one command together.  Torch takes seconds to import, so a command
imports what it needs when it runs: help and wrong words answer at once.
"""

import argparse
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeft_lib import paths

if TYPE_CHECKING:
    from aeft_lib.studies.settings import Profile

# What help lists, without the modules that define them; tests compare.
PROFILES = ("smoke", "laptop", "evening", "evening-voc", "evening-fine", "voc-lite", "photos")
PROFILES += ("voc", "voc-corrected", "voc-resnet50", "coco")
STUDIES = (
    *("gap_vs_gpp", "pyramid_ablation", "triplet_ablation", "ours_ablation", "quirks"),
    *("erasing_settings", "refinement", "segmentation", "rivals", "rivals_grid", "pasting"),
    *("conditions", "conditions_brief", "mechanism", "settings", "erasing_strength", "photo_depth"),
    *("pooling_over_steps", "triplet_versions", "levels_over_steps", "longer_trainings"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 1 after an error that was explained, or 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without "×" shows "?"
            stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        print(f"aeft: {error}{notes}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        message = "finished results are in the store, run the command again to resume"
        print(f"aeft: stopped; {message}", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from aeft_lib.engine import memory, ranks

    memory.keep_freed()
    try:
        ranks.start()
        arguments.command(arguments)
    finally:
        ranks.stop()


def run_study(arguments: argparse.Namespace) -> None:
    """``aeft run STUDY``: compute or read a study, print its table."""
    from aeft_lib.engine import ranks
    from aeft_lib.studies import catalogue, ledger, profiles, run

    study, profile = catalogue.get(arguments.study), profiles.get(arguments.profile)
    rows = list(study.rows) if arguments.row is None else [study.row(arguments.row)]
    if arguments.repeat is not None and arguments.repeats:
        raise ValueError("--repeat picks one repeat and --repeats says how many: give one of them")
    repeats = [arguments.repeat]
    if arguments.repeat is None:
        repeats = range(profiles.repeats(profile, arguments.repeats))
    table = run.run_study(study, profile, repeats, rows=rows, workers=arguments.workers)
    if not ranks.is_main():
        return
    jobs = [(row, repeat) for row in rows for repeat in repeats]
    if arguments.keep:
        for job in jobs:
            run.keep(profile, *job)
        print(f"kept {len(jobs)} row(s) x repeat(s) in {ledger.home() / profile.name}")
    shown = ["label", "n", "miou", "miou_sd", "precision", "recall", "miou_maskless", "tag_map"]
    summary = run.summarise(table)
    shown += ["tag_gain", "saturated", "miou_present"]
    shown = [column for column in shown if column in summary]
    print(summary[shown].round(1).to_string(index=False))
    for line in run.remarks(profile, jobs, table):
        print(line)


def reproduce(arguments: argparse.Namespace) -> None:
    """``aeft reproduce``: every study, then every notebook, then the report."""
    from aeft_lib.lab.notebooks import checked_home, plan
    from aeft_lib.lab.notebooks import reproduce as run_notebooks
    from aeft_lib.lab.session import Session, check_masks
    from aeft_lib.studies import catalogue, profiles, publish, report_page, run

    profile = profiles.get(arguments.profile)
    n_repeats = profiles.repeats(profile, arguments.repeats)
    committed = profiles.COMMITTED_REPEATS
    if arguments.publish and (profile.name != "laptop" or n_repeats < committed):
        raise ValueError(
            "--publish writes over the committed notebooks, which are of --profile laptop "
            f"--repeats {committed}; got {profile.name}, {n_repeats}"
        )
    if arguments.publish:
        publish.check_current()
        # The kernels write what the book shows in place of widgets.
        os.environ["AEFT_FRAMES"] = str(paths.ROOT / "docs" / "static" / "frames")
    choice = {"only": arguments.only, "start": arguments.start, "publish": arguments.publish}
    # Refuse before the studies what would fail after them.
    parameters = {"profile": profile.name, "repeats": n_repeats}
    sources = plan(parameters, **choice)
    check_masks(profile, ("train", "scored"))
    checked_home(parameters, sources)
    report_page.outputs(Session(profile, n_repeats).figures_folder)
    chosen = []
    for study in [] if arguments.only else catalogue.STUDIES.values():
        if run.left_out(study, profile, n_repeats):
            reason = f"below {profile.long_from} repeats"
            reason = reason if study.fits(profile) else f"because it needs {study.needs}"
            reason = f"at any repeats (aeft run {study.name})" if study.apart else reason
            there = run.committed_table(study).is_file()
            shown = ", its committed table is shown" if there else ""
            print(f"study {study.name}: left out {reason}{shown}", flush=True)
            continue
        repeats = study.repeats(n_repeats)
        chosen.append((study, repeats))
        size = f"{len(study.rows)} rows x {len(repeats)} repeat(s)"
        print(f"study {study.name}: {size} on {profile.name}", flush=True)
    run.prepare(chosen, profile, workers=arguments.workers)
    choice["workers"] = arguments.workers
    folder = run_notebooks(profile=profile.name, repeats=n_repeats, **choice)
    print(f"notebooks with outputs: {folder}")
    write_report(profile, n_repeats, carry_over=not arguments.publish)


def report(arguments: argparse.Namespace) -> None:
    """``aeft report``: claims and verdicts from what is in the store."""
    from aeft_lib.studies import profiles

    profile = profiles.get(arguments.profile)
    n_repeats = profiles.repeats(profile, arguments.repeats)
    write_report(profile, n_repeats, decided=arguments.verdicts)


def write_report(
    profile: "Profile", n_repeats: int, *, decided: bool = False, carry_over: bool = True
) -> None:
    """Write the report where it belongs; the README's block too, where it is the committed one.

    decided: raise ValueError, and write nothing, where a verdict needs more repeats.
    carry_over: keep committed lines that this store cannot make, though of another commit.
    """
    from aeft_lib.lab.session import Session
    from aeft_lib.stages import store
    from aeft_lib.studies import readme, report_page, verdicts

    store.check_writable()
    session = Session(profile, n_repeats)
    report_page.outputs(session.figures_folder)  # refused before the work
    built = session.report(carry_over=carry_over, costs=True)
    if decided:
        verdicts.check_repeats(built)
    for file in report_page.write(built, session.figures_folder):
        print(file)
    if session.figures_folder == paths.FIGURES:
        readme.update(built)


def export(arguments: argparse.Namespace) -> None:
    """``aeft export``: a network's predictions as a submission to VOC's server."""
    from aeft_lib.lab.own_photos import network_row
    from aeft_lib.maps import submission
    from aeft_lib.maps.labels import read_label_map
    from aeft_lib.stages.write_labels import label_files
    from aeft_lib.studies import profiles

    profile, file = profiles.get(arguments.profile), Path(arguments.out)
    if file.suffix != ".zip" or not file.parent.is_dir():
        raise ValueError(f"--out must name a .zip in a folder that is there, got {file}")
    if file.exists() and not submission.is_submission(file):
        raise ValueError(f"{file} is there and is no submission: choose another --out, or move it")
    made = network_row(profile, arguments.row, arguments.repeat)
    scenes, classes = profile.val.open(), profile.num_classes
    files = label_files(made["labels"])
    maps = (read_label_map(label_file, num_classes=classes) for label_file in files)
    named = zip(scenes.names, maps, strict=True)
    count = submission.write(file, named, num_classes=classes, split="val")
    print(f"{file}: {count} label maps")


def score(arguments: argparse.Namespace) -> None:
    """``aeft score CHECKPOINT``: a published checkpoint's seeds, beside the poster's."""
    from aeft_lib.stages import store
    from aeft_lib.studies import profiles
    from aeft_lib.studies import score as scores
    from aeft_lib.studies.published import published

    profile = profiles.get(arguments.profile or "voc")
    store.check_writable()
    numbers = scores.score(profile, Path(arguments.checkpoint))
    print(f"{arguments.checkpoint}: seeds on {len(profile.scenes('scored').open())} images")
    for suffix, told in (("", "at its best threshold"), ("_maskless", "chosen without masks")):
        at = {name: numbers[f"{name}{suffix}"] for name in ("miou", "precision", "recall")}
        shown = ", ".join(f"{name} {value:.1f}" for name, value in at.items())
        print(f"{shown} at {numbers[f'threshold{suffix}']:.2f}, {told}")
    print(f"tag mAP {numbers['tag_map']:.1f}")
    if "absent" in numbers:
        present = f"the others' mIoU is {numbers['miou_present']:.1f}"
        print(f"{numbers['absent']} classes are in no mask and count as 0: {present}")
    theirs = published()["numbers"]["table2.attract_soft_repel"]["value"]
    print(f"published for AEFT (poster, table 2): mIoU {theirs} at its best threshold")


def predict(arguments: argparse.Namespace) -> None:
    """``aeft predict IMAGE...``: label maps of any photos, overlays and CAMs, as PNGs."""
    from aeft_lib.lab import outputs, own_photos
    from aeft_lib.studies import profiles

    if not arguments.out:
        raise ValueError("--out is empty: name a folder")
    profile, folder = profiles.get(arguments.profile), Path(arguments.out)
    planned = own_photos.planned([Path(file) for file in arguments.images], folder)
    reader = own_photos.open_reader(profile, arguments.row, arguments.repeat)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{arguments.row}, repeat {arguments.repeat}: trained on {reader.trained_on}")
    print(f"it knows {', '.join(reader.classes)}; it takes everything else for background")
    if reader.classifier is None:
        print(f"no CAM pictures: {arguments.row} learned from masks, without a classifier")
    failed = []
    for photo, output in planned.items():
        try:
            labels = reader.label_map(photo)
        except ValueError as error:  # the others need not wait for it
            failed.append(str(error))
            continue
        own_photos.write(output, labels, photo)
        beside = own_photos.write_pictures(output, labels, photo, reader)
        print(f"{photo} -> {output}: {outputs.shares(labels, reader.classes)}", flush=True)
        print(f"  beside it {', '.join(file.name for file in beside)}", flush=True)
    if failed:
        raise ValueError(f"{len(failed)} of {len(planned)} photos failed: {'; '.join(failed)}")


def demo(arguments: argparse.Namespace) -> None:
    """``aeft demo [PHOTO...]``: pictures of scenes and photos by the package's own networks."""
    from aeft_lib.lab import demo as shown

    if not arguments.out:
        raise ValueError("--out is empty: name a folder")
    for line in shown.run([Path(file) for file in arguments.photos], Path(arguments.out)):
        print(line, flush=True)


def bench(arguments: argparse.Namespace) -> None:
    """``aeft bench NAME``: print ``{"benchmarks": [...], "machine": ...}``."""
    from aeft_lib.stages import store
    from aeft_lib.studies.names import unknown

    files = _benchmarks()
    if arguments.name not in files:
        raise unknown(f"unknown benchmark {arguments.name!r}", arguments.name, files)
    sys.path.append(str(files[arguments.name].parent))  # they share a module
    rows = runpy.run_path(str(files[arguments.name]))["benchmarks"]()
    print(json.dumps({"benchmarks": rows, "machine": store.environment()["machine"]}, indent=1))


def _benchmarks() -> dict[str, Path]:
    """The files of the benchmarks by name; none outside a checkout."""
    files = sorted((paths.ROOT / "benchmarks").glob("[a-z]*.py"))
    return {
        file.stem: file for file in files if "def benchmarks(" in file.read_text(encoding="utf-8")
    }


def explain(arguments: argparse.Namespace) -> None:
    """``aeft explain STUDY``: what would run, what the store has of it, and the work left.

    Without a study: a line for each that needs this profile, and the sum.
    """
    from aeft_lib.engine.device import device
    from aeft_lib.studies import catalogue, plan, profiles, work

    profile = profiles.get(arguments.profile)
    if not arguments.study:
        return _explain_all(profile, arguments)
    study = catalogue.get(arguments.study)
    rows = study.rows if arguments.row is None else [study.row(arguments.row)]
    repeats = range(profiles.repeats(profile, arguments.repeats))
    profile, assumed = plan.with_data(profile)
    needed = plan.needs(profile, rows, repeats)
    planned = plan.merged(needed)
    size, place = f"{len(rows)} rows x {len(repeats)} repeat(s)", f"on {device()}"
    print(f"{study.name} on {profile.name}: {size}, {place}, store {paths.runs()}")
    print(study.question)
    numbers = {"float_format": "{:,.1f}".format, "na_rep": "-"}
    print(plan.table(planned).to_string(index=False, **numbers))
    if len(rows) > 1:
        print("Each row with all that it needs, whether it shares that or has it:")
        print(plan.row_table(needed).to_string(index=False, **numbers))
    print(
        f"GPU hours: the PFLOP at {plan.TFLOPS:.0f} TFLOP/s; '-': work that is not a network's "
        "(CRF, walk, scores)"
    )
    if hours := plan.core_hours(profile, planned):
        print(f"on cores without a GPU: {hours:.1f} core hours, {plan.CORE}")
    if profile.refinement.view:
        print(f"Compute by a GPU's memory; {profile.name} is set for {profiles.GPU_GB} GB:")
        print(work.choices(profile).to_string(index=False))
    if assumed:
        print(assumed)


def _explain_all(profile: "Profile", arguments: argparse.Namespace) -> None:
    """The budget of a profile: what is shared by two studies counts for the first."""
    from aeft_lib.studies import catalogue, plan, profiles

    if arguments.row:
        raise ValueError("--row picks one row of a study: name the study")
    fitting = [study for study in catalogue.STUDIES.values() if study.fits(profile)]
    needed = [study for study in fitting if study.needs == "curves"] if profile.curve else fitting
    profile, assumed = plan.with_data(profile)
    count = profiles.repeats(profile, arguments.repeats)
    budget = plan.budget(profile, [(study, study.repeats(count)) for study in needed])
    print(f"{profile.name}: what is not in the store, {plan.CORE}")
    print(budget.to_string(index=False, float_format="{:,.1f}".format, na_rep="-"))
    if assumed:
        print(assumed)


def weights(arguments: argparse.Namespace) -> None:
    """``aeft weights FILE``: the doctor of published weights; ``--write``: the package's own."""
    if arguments.write == bool(arguments.file):
        raise ValueError("name a FILE to look into, or give --write alone")
    if arguments.write:
        from aeft_lib.studies import shipping

        for line in shipping.write():
            print(line)
        return
    from aeft_lib.data.folder import MAX_CLASSES
    from aeft_lib.networks.checkpoints import load_checkpoint
    from aeft_lib.paper.classifier import Classification
    from aeft_lib.paper.gpp import Pyramid

    if not 1 <= arguments.classes <= MAX_CLASSES:
        raise ValueError(f"--classes must be 1 to {MAX_CLASSES}, got {arguments.classes}")
    backbone = backbone_spec(arguments.backbone).build()
    network = Classification(Pyramid()).build(backbone, arguments.classes)
    print(f"{arguments.file} into {arguments.backbone} with GPP, K={arguments.classes}:")
    print(load_checkpoint(network, Path(arguments.file)).text())


def backbone_spec(name: str) -> Any:
    """The spec of a backbone without weights, by name.  Raises ValueError naming all names."""
    from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
    from aeft_lib.networks.generic import TORCHVISION, TimmSpec, TorchvisionSpec
    from aeft_lib.networks.resnet38d import ResNet38dSpec

    if name.startswith("timm:"):
        return TimmSpec(name.removeprefix("timm:"), weights="none")
    specs = {"resnet38d": ResNet38dSpec(weights="none")}
    specs |= {"efficientnet_lite0": EfficientNetLiteSpec(weights="none")}
    specs |= {known: TorchvisionSpec(known, weights="none") for known in TORCHVISION}
    if name not in specs:
        names = ", ".join(specs)
        raise ValueError(f"unknown backbone {name!r}; there are {names} and timm:NAME")
    return specs[name]


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
    """``aeft data check WHAT``: the data doctor.  Raises ValueError where it finds problems."""
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
    """A parser without abbreviated options: ``--seed`` is not ``--seeds``."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = _Whole(prog="aeft", description="Reproducible companion to AEFT (ECCV 2022).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Whole)
    for add in (_add_studies, _add_networks, _add_report, _add_bench, _add_data):
        add(commands)
    return parser


def _add_studies(commands: Any) -> None:
    """``aeft run``, ``reproduce`` and ``explain``."""
    studies = f"one of {', '.join(STUDIES)}"
    help_ = "compute a study, or one row of it, and print its table"
    study = commands.add_parser("run", parents=[_common(), _working()], help=help_)
    study.add_argument("study", help=studies)
    study.add_argument("--row", help="only this row (a job of a cluster array)")
    only = "only this repeat, counted from 0"
    study.add_argument("--repeat", "--seed", type=int, help=only)
    kept = "write the finished rows' small tables to figures/ledger, to be committed"
    study.add_argument("--keep", action="store_true", help=kept)
    study.set_defaults(command=run_study)

    help_ = "all studies, notebooks, figures and the report"
    everything = commands.add_parser("reproduce", parents=[_common(), _working()], help=help_)
    option = everything.add_argument
    option("--only", nargs="*", default=[], metavar="NOTEBOOK", help="only these notebooks")
    option("--from", dest="start", metavar="NOTEBOOK", help="resume at this notebook")
    publish = "copy the executed notebooks over the committed ones"
    option("--publish", action="store_true", help=publish)
    everything.set_defaults(command=reproduce)

    help_ = "what a study would run, and what that costs"
    plan = commands.add_parser("explain", parents=[_common()], help=help_)
    all_of = "; none: a line for each study of the profile"
    plan.add_argument("study", nargs="?", default="", help=studies + all_of)
    plan.add_argument("--row", help="only this row")
    plan.set_defaults(command=explain)


def _add_networks(commands: Any) -> None:
    """``aeft export``, ``weights``, ``score``, ``demo`` and ``predict``."""
    help_ = "predictions of a segmentation network as a VOC server's zip"
    server = commands.add_parser("export", parents=[_single()], help=help_)
    server.add_argument("row", help="a row of the study segmentation that has a network")
    server.add_argument("--out", default="submission.zip", metavar="FILE.zip")
    server.set_defaults(command=export)

    help_ = "which tensors of a published file find their place in a network"
    doctor = commands.add_parser("weights", help=help_)
    kinds = "a .params of MXNet, a PyTorch checkpoint, or safetensors"
    doctor.add_argument("file", nargs="?", help=kinds)
    own = "write the weights that come with the package anew, from the store"
    doctor.add_argument("--write", action="store_true", help=own)
    doctor.add_argument("--backbone", default="resnet38d", help="its name (default resnet38d)")
    classes = "K, without background (default 20)"
    doctor.add_argument("--classes", type=int, default=20, help=classes)
    doctor.set_defaults(command=weights)

    help_ = "seeds of a published checkpoint: its mIoU beside the poster's"
    checkpoint = commands.add_parser("score", help=help_)
    file = "the authors' PyTorch file of the classifier, or safetensors"
    checkpoint.add_argument("checkpoint", help=file)
    checkpoint.add_argument("--profile", default="", help="voc (default) or voc-corrected")
    checkpoint.set_defaults(command=score)

    help_ = "CAMs, seed, pseudo-label and prediction of scenes and photos, as pictures and a page"
    show = commands.add_parser("demo", help=help_)
    show.add_argument("photos", nargs="*", metavar="PHOTO")
    out = "of the pictures and index.html (default demo); no other file is overwritten"
    show.add_argument("--out", default="demo", metavar="FOLDER", help=out)
    show.set_defaults(command=demo)

    help_ = "label maps of any photos by a row's segmentation network, with overlays and CAMs"
    maps = commands.add_parser("predict", parents=[_single()], help=help_)
    maps.add_argument("images", nargs="+", metavar="IMAGE")
    row = "of the study segmentation (default segment_aeft)"
    maps.add_argument("--row", default="segment_aeft", help=row)
    names = "NAME.labels.png, NAME.overlay.png, NAME.cam.png"
    out = f"of {names} (default predictions); no other file is overwritten"
    maps.add_argument("--out", default="predictions", metavar="FOLDER", help=out)
    maps.set_defaults(command=predict)


def _add_report(commands: Any) -> None:
    """``aeft report``."""
    help_ = "claims and verdicts from the store"
    verdicts = commands.add_parser("report", parents=[_common()], help=help_)
    few = "refuse, and write nothing, where a claim has fewer repeats than its verdict needs"
    verdicts.add_argument("--verdicts", action="store_true", help=few)
    verdicts.set_defaults(command=report)


def _add_bench(commands: Any) -> None:
    """``aeft bench``."""
    help_ = "timings, memory and precision, side by side, as JSON"
    timing = commands.add_parser("bench", help=help_)
    timing.add_argument("name", help=f"one of {', '.join(_benchmarks())}")
    timing.set_defaults(command=bench)


def _add_data(commands: Any) -> None:
    """``aeft data check`` and ``aeft data fetch``."""
    data = commands.add_parser("data", help="the data at hand")
    data = data.add_subparsers(required=True, metavar="WHAT", parser_class=_Whole)
    check = data.add_parser("check", help="verify it")
    what = "collages, voc, coco, or a folder of your own photos"
    check.add_argument("what", metavar="WHAT", help=what)
    deep = "decode every photo and mask instead of their headers"
    check.add_argument("--deep", action="store_true", help=deep)
    check.set_defaults(command=data_check)
    fetch = data.add_parser("fetch", help="download, verify and unpack it; again, to resume")
    fetch.add_argument("what", choices=["voc", "coco"])
    local = {"dest": "local", "metavar": "ARCHIVE", "help": "archives that are at hand"}
    fetch.add_argument("--from", nargs="*", default=[], **local)
    fetch.set_defaults(command=data_fetch)


# --- options that commands share -----------------------------------------------------------------


def _profile() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    names = f"one of {', '.join(PROFILES)} (default laptop)"
    options.add_argument("--profile", default="", help=names)
    return options


def _common() -> argparse.ArgumentParser:
    """Profile and repeats; the second names are those of earlier versions."""
    options = argparse.ArgumentParser(add_help=False, parents=[_profile()])
    number = "how many repeats (default: the profile's own number)"
    options.add_argument("--repeats", "--seeds", type=int, default=0, help=number)
    return options


def _single() -> argparse.ArgumentParser:
    """Profile and one repeat."""
    options = argparse.ArgumentParser(add_help=False, parents=[_profile()])
    place = "of the row, counted from 0"
    options.add_argument("--repeat", "--seed", type=int, default=0, help=place)
    return options


def _working() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    processes = "processes side by side (default: one per core; one on a GPU)"
    options.add_argument("--workers", type=int, default=0, help=processes)
    return options


if __name__ == "__main__":
    sys.exit(main())

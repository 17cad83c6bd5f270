"""constraints.txt holds the one list of pins; pyproject.toml, conda, Binder and badges agree with it."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
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
BROUGHT_BY = {
    "dask": "distributed",
    "ipython": "ipykernel",
    "llvmlite": "numba",
    "nbformat": "papermill",
    "numcodecs": "zarr",
    "psutil": "distributed",
    "requests": "pooch",
    "traitlets": "ipykernel",
}
"""Imported packages that a declared dependency itself requires."""

CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PIN_LINES = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
PINS: dict[str, str] = {canonicalize_name(name): version for name, version in (line.split("==") for line in PIN_LINES)}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


DEPENDENCIES = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}


def conda_environment(path: str) -> tuple[dict[str, str], list[str]]:
    """Versions that conda installs, by name, and the lines for pip, from an environment.yml."""
    content = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    conda = [line for line in content["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in content["dependencies"] if isinstance(line, dict)]
    return {name: version for name, _, version in (line.partition("=") for line in conda)}, pip


def test_each_package_is_pinned_once_and_in_order() -> None:
    names = [canonicalize_name(Requirement(line).name) for line in PIN_LINES]
    assert names == sorted(set(names))
    # A local suffix (torch 2.13.0+cpu) exists on one index only, and pip would find nothing on another.
    assert not [line for line in PIN_LINES if not re.fullmatch(r"[\w.-]+==\w+(\.\w+)*", line)]


def test_each_requirement_is_pinned_at_a_version_it_accepts() -> None:
    assert len(DEPENDENCIES) <= 31
    for name, requirement in [*DEPENDENCIES.items(), *EXTRAS["dev"].items(), *EXTRAS["site"].items()]:
        assert name in PINS, f"constraints.txt has no pin for {name}"
        assert requirement.specifier.contains(PINS[name]), f"{requirement} does not accept its pin {PINS[name]}"
        assert any(part.operator == ">=" for part in requirement.specifier), f"{name} has no lower bound"


def test_installed_environment_agrees_with_the_pins() -> None:
    found = {canonicalize_name(one.name): Version(one.version).public for one in importlib.metadata.distributions()}
    missing = (set(DEPENDENCIES) | set(EXTRAS["dev"])) - set(found)  # Others are needed on some platforms only.
    wrong = [f"{name} {found[name]}" for name in PINS if name in found and Version(found[name]) != Version(PINS[name])]
    assert not missing and not wrong, f"run `make venv`; missing: {missing}; installed: {wrong}"


def test_what_the_package_imports_is_a_declared_dependency_or_brought_by_one() -> None:
    providers = importlib.metadata.packages_distributions()
    declared = set(DEPENDENCIES) | set(EXTRAS["itkwidgets"]) | set(BROUGHT_BY)
    for path in sorted((ROOT / "transvert").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"transvert", "google"}:
                packages = {canonicalize_name(package) for package in providers.get(top, [top])}
                assert packages & declared, f"{path.name} imports {top}, which pyproject.toml does not ask for"
    for name, bringer in BROUGHT_BY.items():
        assert bringer in DEPENDENCIES
        lines = importlib.metadata.requires(bringer) or []
        assert name in requirements([line for line in lines if "extra" not in line])


def test_conda_and_binder_install_the_dependencies_with_their_pins() -> None:
    conda, pip = conda_environment("environment.yml")
    assert conda == {"python": PYTHON, "pip": ""} and pip == ["-c constraints.txt", "-e .[dev]"]
    conda, pip = conda_environment("binder/environment.yml")
    assert conda == {"python": PYTHON, "pip": "", "pytorch-cpu": PINS["torch"]}
    options = [line for line in pip if line.startswith("-")]
    assert options == ["-c ../constraints.txt"]  # pip reads the path from the folder of environment.yml.
    asked = requirements([line for line in pip if line not in options])
    assert all(not requirement.specifier for requirement in asked.values()), "only constraints.txt names versions"
    assert set(asked) == set(DEPENDENCIES) - {"torch", "jupyterlab"}


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
    unwanted = ("ipynb_checkpoints", ".pt", "tests/", "benchmarks/")
    assert not [name for name in packed if any(part in name for part in unwanted)]


def test_versions_and_addresses_agree() -> None:
    assert PROJECT["requires-python"] == f">={PYTHON}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHON
    assert f"python{PYTHON}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    repository = PROJECT["urls"]["Repository"]
    (version,) = re.findall(r'__version__ = "(.+)"', (ROOT / "transvert" / "__init__.py").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == repository and citation["version"] == version
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda path: path.name)
def test_badges_lead_to_this_repository(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        assert set(re.findall(r"notebooks(?:/|%2F)([\w-]+\.ipynb)", text.partition("\n## ")[0])) == {path.name}
    own = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    badges = re.findall(r"(?:colab\.research\.google\.com/github|mybinder\.org/v2/gh)/([\w.-]+/[\w.-]+)", text)
    assert set(badges) == {own}, "there is no Colab or Binder badge, or one leads elsewhere"

"""The cell that prepares Colab, run in an environment that has everything but this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = "https://github.com/transvert/transvert"
PACKED = ("transvert", "data_manifests", "params", "notebooks", "pyproject.toml", "README.md", "LICENSE")
REPORT = """
import json, importlib.metadata, importlib.util
found = importlib.util.find_spec("transvert")
if found:
    from transvert import io
    assert len(list(io.share_folder("notebooks").glob("*.ipynb"))) == 4
print(json.dumps([found.origin if found else "", importlib.metadata.version("torch")]))
"""


def colab_cell(path: Path) -> str:
    """The source of the cell."""
    cells = nbformat.read(path, as_version=4).cells
    (source,) = [c.source for c in cells if c.cell_type == "code" and '"google.colab" in sys.modules' in c.source]
    return source


@pytest.mark.skipif(shutil.which("git") is None, reason="the cell fetches the package with git")
def test_the_cell_installs_the_package_beside_what_is_there(tmp_path: Path) -> None:
    """The public address leads to a copy of this checkout; no other package may be fetched."""
    assert len({colab_cell(path) for path in NOTEBOOKS}) == 1
    public = tmp_path / "public"
    public.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, public / name)
    who = ("-c", "user.name=t", "-c", "user.email=t@e.org", "-c", "init.defaultBranch=main")
    for words in (("init",), ("add", "--all"), ("commit", "--message", "all")):
        subprocess.run(["git", *who, *words], cwd=public, check=True, capture_output=True)

    place = tmp_path / "colab"
    venv.create(place, with_pip=True)
    (packages,) = place.glob("lib/*/site-packages")
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))  # As Colab has its packages.
    for old in packages.glob("setuptools*"):  # A new environment's copy would hide the one that torch has.
        shutil.rmtree(old)
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment |= {
        "PATH": f"{place / 'bin'}{os.pathsep}{environment['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the other way round.
        "PIP_NO_COMPILE": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{public.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }

    def run(first: str) -> list[str]:
        script = tmp_path / "cell.ipy"
        script.write_text(f"{first}\n{colab_cell(NOTEBOOKS[0])}\n{REPORT}")
        command = [place / "bin" / "python", "-m", "IPython", "--no-banner", script]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    nothing, torch = run("")
    assert nothing == "", "outside Colab the cell installs nothing"
    package, same = run("import google.colab")
    assert package.startswith(str(place)) and same == torch

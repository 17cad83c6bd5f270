"""The pages that readers get without Jupyter: every module and link of them, and what the figures say to the blind."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
ADDRESS = "https://github.com/transvert/transvert"


def load(name: str) -> ModuleType:
    """A script of docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api, stage = load("api"), load("stage")


def picture(grey: int = 0) -> Any:
    """An output that shows a pixel."""
    file = io.BytesIO()
    Image.new("L", (1, 1), grey).save(file, "PNG")
    return nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(file.getvalue()).decode()})


def undescribed(path: Path) -> list[str]:
    """The first lines of a notebook's cells that show a picture without a text in its place."""
    return [cell for cell, text in stage.figure_texts(stage.read_notebook(path)) if not text.strip()]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one notebook and one module, with all else that the site shows."""
    root = tmp_path / "repository"
    files = {
        "README.md": "# Front\n\n[![Try](https://e.org/a.svg)](https://e.org) [![Run](https://e.org/b.svg)](https://e.org)\n"
        "\n![Curve](docs/curve.png) [one](notebooks/one.ipynb) [code](transvert/mean.py) [set](params/set.yaml)\n",
        "CONTRIBUTING.md": "# Contributing\n\n[Back](README.md#front)\n",
        "CHANGELOG.md": "# Changelog\n",
        "data_manifests/README.md": "# Data\n\n[Front](../README.md), [folder](../params)\n",
        "benchmarks/README.md": "# Benchmarks\n\n[speed](speed.md)\n",
        "benchmarks/speed.md": "# Speed\n\n[all](README.md)\n",
        "params/set.yaml": "run: set\n",
        "pyproject.toml": f'[project.urls]\nRepository = "{ADDRESS}"\n',
        "tests/test_structure.py": 'ORDER = [\n    "mean",\n    "__main__",\n]\n',
        "transvert/mean.py": '"""Means, as `mean` makes them.\n\n| a | b |\n|---|---|\n| `x*` | |y| |\n"""\n\n'
        'def mean(values: list[float], *, start: float = 0.0) -> float:\n    """The mean.\n\n    Args:\n        values: any\n'
        "            number.\n        start: what `mean` adds.\n\n    Returns:\n        mm.\n\n    Raises:\n"
        '        InputError: none\n            given.\n    """\n    return start\n\n\ndef _hidden() -> None:\n    """No."""\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "docs").mkdir()
    Image.new("L", (2, 2)).save(root / "docs" / "curve.png")
    figure = nbformat.v4.new_code_cell("draw()", outputs=[picture()], metadata={"alt": "A <dark> point."})
    pair = nbformat.v4.new_code_cell("draw_two()", outputs=[picture(1), picture(2)], metadata={"alt": "Left.\nRight."})
    text = nbformat.v4.new_markdown_cell("# One\n\n[Module](../transvert/mean.py), [front](../README.md)")
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (root / "notebooks").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=[text, figure, pair], metadata=metadata), root / "notebooks" / "one.ipynb"
    )
    return root


def test_every_link_of_this_repository_leads_somewhere_and_every_module_has_a_page(tmp_path: Path) -> None:
    stage.gather(ROOT, tmp_path / "pages")  # raises on a link to nothing
    modules = api.order(ROOT / "tests" / "test_structure.py")
    assert "drr" in modules and "__main__" not in modules
    index = (tmp_path / "pages" / "api" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\w+)\]", index, re.MULTILINE) == modules
    for module in modules:
        page = (tmp_path / "pages" / "api" / f"{module}.md").read_text(encoding="utf-8")
        tree = ast.parse((ROOT / "transvert" / f"{module}.py").read_text(encoding="utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        shown = re.findall(r"^::::\{py:function\} (\w+)", page, re.MULTILINE)
        assert shown == [name for name in functions if not name.startswith("_")]
    for path in (tmp_path / "pages").rglob("*.md"):
        assert not re.search(r"!\[[^]]*\]\(http", path.read_text(encoding="utf-8")), f"{path.name} loads a picture"


def test_links_and_badges(small: Path) -> None:
    front = (small / "README.md").read_text(encoding="utf-8")
    staged = {"README.md", "notebooks/one.ipynb", "data_manifests/README.md"}
    text = stage.relink(front, "README.md", small, staged)
    assert "[Try](https://e.org) · [Run](https://e.org)" in text
    assert "(docs/curve.png)" in text and "(notebooks/one.ipynb)" in text and "(api/mean.md)" in text
    assert f"({ADDRESS}/blob/main/params/set.yaml)" in text
    folder = stage.relink("[a](../params) [b](../README.md#front)", "data_manifests/README.md", small, staged)
    assert folder == f"[a]({ADDRESS}/tree/main/params) [b](../index.md#front)"
    assert stage.relink("[a](#here) [b](mailto:a@b.c)", "README.md", small, staged) == "[a](#here) [b](mailto:a@b.c)"
    with pytest.raises(ValueError, match="notebooks/one.ipynb links to no.md, which does not exist"):
        stage.relink("[x](no.md)", "notebooks/one.ipynb", small, staged)


def test_a_docstring_is_told_by_its_sections() -> None:
    doc = "Adds.\n\nArgs:\n    a, b: numbers\n        of mm.\n    **more: as in `add`.\n\nRaises:\n    InputError: one\n        that is not: finite."
    assert api.markdown(doc, "sums", {"transvert.sums.add"}) == (
        "Adds.\n\n:param a, b: numbers\n    of mm.\n:param **more: as in {py:obj}`add <transvert.sums.add>`.\n"
        ":raises InputError: one\n    that is not: finite."
    )
    assert api.markdown("See `sums` and `none`.", "other", {"transvert.sums"}) == (
        "See {py:obj}`sums <transvert.sums>` and `none`."
    )


def test_a_class_is_told_by_what_it_is_made_with() -> None:
    source = (
        "@dataclass(frozen=True)\nclass Point:\n    '''A point.'''\n    x: float\n    far: list = field(default_factory=list)\n"
        "    @property\n    def y(self) -> float:\n        '''mm.'''\n    @y.setter\n    def y(self, value): ...\n"
        "    @staticmethod\n    def of(x: Annotated[float, Option(help='mm')]) -> Point:\n        '''Makes one.'''\n"
    )
    page = api.page("points", ast.parse(source), set())
    assert "::::{py:class} Point(x: float, far: list = ...)" in page
    assert page.count(" Point.y") == 1 and ":::{py:property} Point.y\n" in page
    assert (
        ":::{py:method} Point.of(x: float) -> Point\n:module: transvert.points\n\nMakes one.\n\n:param x: mm\n" in page
    )


def test_imported_types_are_told_by_their_full_names() -> None:
    source = (
        "from transvert.column import Bone\nfrom transvert import film\nimport numpy as np\n"
        "def bend(one: Bone, other: list[film.Film], by: np.ndarray) -> Bone | None: ...\n"
    )
    page = api.page("chain", api.with_full_names(ast.parse(source)), set())
    assert (
        "bend(one: transvert.column.Bone, other: list[transvert.film.Film], by: np.ndarray) "
        "-> transvert.column.Bone | None\n" in page
    )


def test_figures_get_the_text_of_their_output_or_a_line_of_their_cell() -> None:
    own, other = picture(), picture()
    own.metadata = {"image/png": {"alt": "Its own."}}
    cells = [
        nbformat.v4.new_code_cell("a()\nb()", outputs=[picture(), other], metadata={"alt": "First.\nSecond."}),
        nbformat.v4.new_code_cell("c()", outputs=[own], metadata={"alt": "The cell's."}),
        nbformat.v4.new_code_cell("d()", outputs=[picture(), picture()], metadata={"alt": "Of both."}),
        nbformat.v4.new_code_cell("e()", outputs=[picture()]),
        nbformat.v4.new_code_cell("f()"),
    ]
    assert stage.figure_texts({"cells": cells}) == [
        ("a()", "First."),
        ("a()", "Second."),
        ("c()", "Its own."),
        ("d()", "Of both."),
        ("d()", "Of both."),
        ("e()", ""),
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_figure_has_a_text_for_the_blind(path: Path) -> None:
    assert not undescribed(path)


def test_a_figure_without_a_text_is_found(small: Path) -> None:
    path = small / "notebooks" / "one.ipynb"
    assert not undescribed(path)
    notebook = nbformat.read(path, as_version=4)
    del notebook.cells[1].metadata["alt"]
    nbformat.write(notebook, path)
    assert undescribed(path) == ["draw()"]


def test_the_hook_keeps_outputs_and_texts_and_drops_widget_state(tmp_path: Path) -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (entry,) = [hook["entry"] for hook in local["hooks"] if hook["id"] == "nbstripout"]
    cell = nbformat.v4.new_code_cell(
        "draw()", outputs=[picture()], metadata={"alt": "A point.", "tags": ["parameters"]}
    )
    cell.execution_count = 3
    path = tmp_path / "one.ipynb"
    saved = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    nbformat.write(saved, path)
    name, *options = entry.split()
    assert name == "nbstripout"
    subprocess.run([sys.executable, "-m", "nbstripout", *options, str(path)], check=True)
    left = nbformat.read(path, as_version=4)
    assert "widgets" not in left.metadata
    assert left.cells == saved.cells


def test_the_site_builds_without_a_warning_and_needs_no_web(small: Path, tmp_path: Path) -> None:
    for package in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: `make site` installs it and builds the whole site.")
    pages, out = tmp_path / "pages", tmp_path / "site"
    stage.gather(small, pages)
    options = ["--fail-on-warning", "--keep-going", "-c", str(SITE)]
    command = [sys.executable, "-m", "sphinx", *options, str(pages), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in out.rglob("*.html")}
    for name, text in html.items():
        assert not re.search(r"<(script|link|img|iframe)\b[^>]*(src|href)=\"(https?:)?//", text), (
            f"{name} loads from the web"
        )
    shown = re.findall(r'<img[^>]*alt="([^"]*)"', html["notebooks/one.html"])
    assert shown == ["A &lt;dark&gt; point.", "Left.", "Right."]
    assert 'href="../api/mean.html"' in html["notebooks/one.html"]
    assert 'id="transvert.mean.mean"' in html["api/mean.html"] and "_hidden" not in html["api/mean.html"]
    assert 'href="#transvert.mean.mean"' in html["api/mean.html"]
    assert '<section id="set">' in html["params.html"]


def test_notebooks_are_read_as_they_lie_in_git(small: Path) -> None:
    """Sources are lists of lines there, and stay what they were."""
    path = small / "notebooks" / "one.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert isinstance(cells[0]["source"], list)
    assert stage.read_notebook(path)["cells"][0]["source"] == "".join(cells[0]["source"])

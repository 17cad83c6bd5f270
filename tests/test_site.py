"""The pages that readers get without Jupyter: their links, their API pages, and texts for figures."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
ADDRESS = "https://github.com/transvert/transvert"
spec = importlib.util.spec_from_file_location("stage", SITE / "stage.py")
stage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stage)

MODULE = '''"""Means.

    python -m mean

| a | b |
|---|---|
| `x*` | |y| |
"""


def mean(values: list[float], *, start: float = 0.0) -> float:
    """The mean.

    Args:
        values: any
            number.

    Raises:
        ValueError: none given.
    """
    return start


def _hidden() -> None:
    """No."""
'''
SETTINGS = f"""[project.urls]
Repository = "{ADDRESS}"
[[tool.importlinter.contracts]]
layers = ["mean"]
"""


def picture(grey: int = 0) -> Any:
    """An output that shows a pixel."""
    file = io.BytesIO()
    Image.new("L", (1, 1), grey).save(file, "PNG")
    return nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(file.getvalue()).decode()})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one notebook and one module, with everything else that the site shows."""
    root = tmp_path / "repository"
    badges = "[![Try](https://e.org/a.svg)](https://e.org) [![Run](https://e.org/b.svg)](https://e.org)"
    links = "![Curve](docs/curve.png) [one](notebooks/one.ipynb) [code](transvert/mean.py) [set](params/set.yaml)"
    files = {
        "README.md": f"# Front\n\n{badges}\n\n{links}\n",
        "CONTRIBUTING.md": "# Contributing\n\n[Back](README.md#front)\n",
        "CHANGELOG.md": "# Changelog\n",
        "docs/guide.md": "# Guide\n\n[Front](../README.md)\n",
        "data_manifests/README.md": "# Data\n\n[Front](../README.md), [folder](../params)\n",
        "benchmarks/README.md": "# Benchmarks\n\n[speed](speed/drr.md)\n",
        "benchmarks/speed/drr.md": "# Speed\n\n[all](../README.md)\n",
        "params/set.yaml": "run: set\n",
        "pyproject.toml": SETTINGS,
        "transvert/__init__.py": "",
        "transvert/mean.py": MODULE,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    Image.new("L", (2, 2)).save(root / "docs" / "curve.png")
    figure = nbformat.v4.new_code_cell("draw()", outputs=[picture()], metadata={"alt": "A <dark> point."})
    pair = nbformat.v4.new_code_cell("draw_two()", outputs=[picture(1), picture(2)], metadata={"alt": "Left.\nRight."})
    text = nbformat.v4.new_markdown_cell("# One\n\n[Module](../transvert/mean.py), [front](../README.md)")
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (root / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[text, figure, pair], metadata=metadata)
    nbformat.write(notebook, root / "notebooks" / "one.ipynb")
    return root


def test_every_link_of_this_repository_leads_somewhere_and_every_module_has_a_page(tmp_path: Path) -> None:
    stage.gather(ROOT, tmp_path / "pages")  # raises on a link to nothing
    files = (ROOT / "transvert").rglob("*.py")
    modules = {".".join(path.relative_to(ROOT / "transvert").with_suffix("").parts) for path in files}
    pages = {path.stem for path in (tmp_path / "pages" / "api").glob("*.md")} - {"index"}
    assert pages == {name for name in modules if not name.endswith("__init__")} and "drr.projector" in pages
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        texts = stage.figure_texts(stage.read_notebook(path))
        assert not [cell for cell, text in texts if not text.strip()], "a figure has no alternative text"
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


def test_figures_get_the_text_of_their_output_or_a_line_of_their_cell() -> None:
    own = picture()
    own.metadata = {"image/png": {"alt": "Its own."}}
    texts = {"a()\nb()": "First.\nSecond.", "c()": "Both."}
    cells = [
        nbformat.v4.new_code_cell(c, outputs=[picture(), picture()], metadata={"alt": a}) for c, a in texts.items()
    ]
    cells.append(nbformat.v4.new_code_cell("d()", outputs=[own, picture()], metadata={}))
    found = [*(("a()", "First."), ("a()", "Second."), ("c()", "Both."), ("c()", "Both."))]
    assert stage.figure_texts({"cells": cells}) == [*found, ("d()", "Its own."), ("d()", "")]


def test_the_hook_keeps_outputs_and_texts_and_drops_widget_state(tmp_path: Path) -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (entry,) = [hook["entry"] for hook in local["hooks"] if hook["id"] == "nbstripout"]
    metadata = {"alt": "A point.", "tags": ["parameters"]}
    cell = nbformat.v4.new_code_cell("draw()", outputs=[picture()], metadata=metadata, execution_count=3)
    path = tmp_path / "one.ipynb"
    saved = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    nbformat.write(saved, path)
    subprocess.run([sys.executable, "-m", *entry.split(), str(path)], check=True)
    left = nbformat.read(path, as_version=4)
    assert "widgets" not in left.metadata and left.cells == saved.cells


def test_the_site_builds_without_a_warning_and_needs_no_web(small: Path, tmp_path: Path) -> None:
    for package in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: `make site` installs it and builds the whole site.")
    pages, out = tmp_path / "pages", tmp_path / "site"
    stage.gather(small, pages)
    options = ["--fail-on-warning", "--keep-going", "-c", str(SITE)]
    command = [sys.executable, "-m", "sphinx", *options, str(pages), str(out)]
    # In its folder, so that autodoc imports its package.
    done = subprocess.run(command, cwd=small, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in out.rglob("*.html")}
    outside = re.compile(r"<(script|link|img|iframe)\b[^>]*(src|href)=\"(https?:)?//")
    assert not [name for name, text in html.items() if outside.search(text)], "loads from the web"
    shown = re.findall(r'<img[^>]*alt="([^"]*)"', html["notebooks/one.html"])
    assert shown == ["A &lt;dark&gt; point.", "Left.", "Right."]
    assert 'href="../api/mean.html"' in html["notebooks/one.html"]
    page = html["api/mean.html"]
    assert 'id="transvert.mean.mean"' in page and 'href="#transvert.mean.mean"' in page and "_hidden" not in page
    assert "</span>python -m mean" in page and "|---|---|" in page and '<section id="set">' in html["params.html"]

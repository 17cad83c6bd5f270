"""Gathers the site's pages into one folder for Sphinx: python docs/site/stage.py FOLDER.

Pages keep their places in the repository, so that links between them hold. A link to a module leads to its API page,
a link to any other file leads to the repository, and a link to nothing is an error.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FRONT = "README.md"
PROJECT_PAGES = ["data_manifests/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PICTURES = (".png", ".svg", ".jpg")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
BADGE = re.compile(r"\[!\[([^]]*)\]\(https?://[^)]*\)\]")


def matching(root: Path, pattern: str) -> list[str]:
    """The repository's files that match a pattern, as paths from its root."""
    return [path.relative_to(root).as_posix() for path in sorted(root.glob(pattern))]


def settings(root: Path) -> dict[str, Any]:
    """The content of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def modules(root: Path) -> list[str]:
    """Dotted names of the package's modules below `transvert`, from the lowest layer of imports to the highest."""
    layers = settings(root)["tool"]["importlinter"]["contracts"][0]["layers"][::-1]
    files = [Path(path).relative_to("transvert").with_suffix("") for path in matching(root, "transvert/**/*.py")]
    names = [file.parts for file in files if file.name != "__init__"]
    return [".".join(name) for name in sorted(names, key=lambda name: (layers.index(name[0]), name))]


def relink(text: str, page: str, root: Path, staged: set[str]) -> str:
    """Markdown as the site shows it: badges as text, and links that hold.

    Args:
        text: the Markdown.
        page: its place in the repository, such as "benchmarks/README.md".
        root: the repository.
        staged: the paths of all pages.

    Raises:
        ValueError: a link to a file that does not exist.
    """

    def resolve(match: re.Match[str]) -> str:
        path, _, place = match[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        folder = os.path.dirname(page)
        target = os.path.normpath(os.path.join(folder, path)).replace(os.sep, "/")
        if not (root / target).exists():
            raise ValueError(f"{page} links to {path}, which does not exist.")
        module = re.fullmatch(r"transvert/((?:\w+/)*[a-z]\w*)\.py", target)
        if target == FRONT:
            target = "index.md"
        elif module:
            target = f"api/{module[1].replace('/', '.')}.md"
        elif target not in staged and not target.endswith(PICTURES):
            kind = "tree" if (root / target).is_dir() else "blob"
            return f"{match[1]}{settings(root)['project']['urls']['Repository']}/{kind}/main/{target}{match[3]}"
        relative = os.path.relpath(target, folder or ".").replace(os.sep, "/")
        return match[1] + relative + (f"#{place}" if place else "") + match[3]

    return LINK.sub(resolve, BADGE.sub(r"[\1]", re.sub(r"\)\s+\[!\[", ") · [![", text)))


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook as JSON, each Markdown source as one string."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def figure_texts(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    """Each picture in a notebook's outputs: its cell's first line, and its alternative text or "".

    As in nbconvert, the text is `metadata["image/png"]["alt"]` of the output, or else `metadata["alt"]` of the cell,
    which stays when the cell runs again. If a cell draws several pictures, each has a line of it.
    """
    found = []
    for cell in notebook["cells"]:
        pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        lines = cell["metadata"].get("alt", "").splitlines()
        for n, output in enumerate(pictures):
            shared = lines[n] if len(lines) == len(pictures) else " ".join(lines)
            text = output.get("metadata", {}).get("image/png", {}).get("alt") or shared
            found.append(("".join(cell["source"]).partition("\n")[0], text))
    return found


def parameter_sets(root: Path) -> str:
    """A page that shows params/."""
    parts = ["# Parameter sets", "`transvert reproduce NAME` or `papermill -f params/NAME.yaml` runs one."]
    for path in sorted((root / "params").glob("*.yaml")):
        parts.append(f"## {path.stem}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts) + "\n"


def toctree(entries: list[str], caption: str = "") -> str:
    """A part of the site's table of contents."""
    options = ":hidden:\n" + (f":caption: {caption}\n" if caption else "")
    return f"\n```{{toctree}}\n{options}\n" + "\n".join(entries) + "\n```\n"


def write_api(root: Path, out: Path) -> None:
    """Writes a page for each module, which Sphinx fills from its docstrings, and an index of them."""
    out.mkdir()
    rows = []
    for name in modules(root):
        source = root / "transvert" / (name.replace(".", "/") + ".py")
        doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        summary = " ".join(doc.partition("\n\n")[0].split())
        rows.append(f"| [{name}]({name}.md) | {summary} |")
        directive = f".. automodule:: transvert.{name}\n   :members:\n"
        (out / f"{name}.md").write_text(f"# {name}\n\n```{{eval-rst}}\n{directive}```\n", encoding="utf-8")
    text = "# API\n\nA module imports only modules above it or in its own folder.\n\n| module | |\n|---|---|\n"
    (out / "index.md").write_text(text + "\n".join(rows) + "\n" + toctree(modules(root)), encoding="utf-8")


def gather(root: Path, out: Path) -> None:
    """Writes all pages and their pictures into `out`, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copytree(root / "docs", out / "docs", ignore=shutil.ignore_patterns("site"))
    notebooks, guides = matching(root, "notebooks/*.ipynb"), matching(root, "docs/*.md")
    benchmarks = [page for page in matching(root, "benchmarks/**/*.md") if page != "benchmarks/README.md"]
    staged = {FRONT, "benchmarks/README.md", *PROJECT_PAGES, *notebooks, *guides, *benchmarks}
    for page in sorted(staged):
        target = out / ("index.md" if page == FRONT else page)
        target.parent.mkdir(parents=True, exist_ok=True)
        if page in notebooks:
            notebook = read_notebook(root / page)
            notebook["metadata"].setdefault("language_info", {"name": "python"})["pygments_lexer"] = "ipython3"
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = relink(cell["source"], page, root, staged)
            text = json.dumps(notebook)
        else:
            text = relink((root / page).read_text(encoding="utf-8"), page, root, staged)
        target.write_text(text, encoding="utf-8")
    for picture in {path for kind in PICTURES for path in matching(root, f"benchmarks/**/*{kind}")}:
        shutil.copy(root / picture, out / picture)
    (out / "params.md").write_text(parameter_sets(root), encoding="utf-8")
    write_api(root, out / "api")
    with (out / "index.md").open("a", encoding="utf-8") as front:
        front.write(toctree(notebooks, "Notebooks"))
        front.write(toctree([*guides, "params.md"], "Guides"))
        front.write(toctree(["benchmarks/README.md", *PROJECT_PAGES], "Project"))
        front.write(toctree(["api/index.md"], "Package"))
    with (out / "benchmarks" / "README.md").open("a", encoding="utf-8") as index:
        index.write(toctree([page.removeprefix("benchmarks/") for page in benchmarks]))


if __name__ == "__main__":
    gather(ROOT, Path(sys.argv[1]))

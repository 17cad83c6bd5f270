"""Gathers the site's pages into one folder, where Sphinx finds them: python docs/site/stage.py FOLDER.

They lie there as they lie in the repository, so that links between them hold as they are. What the site does not have
is linked in the repository, a module to its API page, and a link to nothing is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import api

ROOT = Path(__file__).parents[2]
FRONT = "README.md"
GUIDES = ["data_manifests/README.md", "benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PICTURES = (".png", ".svg", ".jpg")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
BADGE = re.compile(r"\[!\[([^]]*)\]\(https?://[^)]*\)\]")


def matching(root: Path, pattern: str) -> list[str]:
    """The repository's files of a pattern, as paths from its root."""
    return [path.relative_to(root).as_posix() for path in sorted(root.glob(pattern))]


def repository(root: Path) -> str:
    """The repository's address."""
    content = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return content["project"]["urls"]["Repository"]


def relink(text: str, page: str, root: Path, staged: set[str]) -> str:
    """Markdown as the site shows it: badges without their pictures, which lie elsewhere, and links that hold.

    Args:
        text: the Markdown.
        page: where it stands in the repository, such as "benchmarks/README.md".
        root: of the repository.
        staged: the paths of all pages.

    Raises:
        ValueError: a link to a file that is not there.
    """

    def resolve(match: re.Match[str]) -> str:
        path, _, place = match[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        folder = os.path.dirname(page)
        target = os.path.normpath(os.path.join(folder, path)).replace(os.sep, "/")
        if not (root / target).exists():
            raise ValueError(f"{page} links to {path}, which does not exist.")
        module = re.fullmatch(r"transvert/([a-z]\w*)\.py", target)
        if target == FRONT:
            target = "index.md"
        elif module:
            target = f"api/{module[1]}.md"
        elif target not in staged and not target.endswith(PICTURES):
            kind = "tree" if (root / target).is_dir() else "blob"
            return f"{match[1]}{repository(root)}/{kind}/main/{target}{match[3]}"
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
    """Of each picture that a notebook's cells put out: its cell's first line, and its alternative text or "".

    As in nbconvert, the text is `metadata["image/png"]["alt"]` of the output, else `metadata["alt"]` of the cell, which
    stays when the cell is run again. Where a cell draws several pictures, each has a line of it.
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


def gather(root: Path, out: Path) -> None:
    """Writes all pages and their pictures into `out`, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copytree(root / "docs", out / "docs", ignore=shutil.ignore_patterns("site"))
    notebooks, tables = matching(root, "notebooks/*.ipynb"), matching(root, "benchmarks/*.md")
    tables = [page for page in tables if page not in GUIDES]
    staged = {FRONT, *GUIDES, *notebooks, *tables}
    for page in sorted(staged):
        target = out / ("index.md" if page == FRONT else page)
        target.parent.mkdir(exist_ok=True)
        if page in notebooks:
            notebook = read_notebook(root / page)
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = relink(cell["source"], page, root, staged)
            text = json.dumps(notebook)
        else:
            text = relink((root / page).read_text(encoding="utf-8"), page, root, staged)
        target.write_text(text, encoding="utf-8")
    (out / "params.md").write_text(parameter_sets(root), encoding="utf-8")
    api.write(root / "transvert", root / "tests" / "test_structure.py", out / "api")
    with (out / "index.md").open("a", encoding="utf-8") as front:
        front.write(toctree(notebooks, "Notebooks"))
        front.write(toctree([*GUIDES[:2], "params.md", *GUIDES[2:]], "Guides"))
        front.write(toctree(["api/index.md"], "Package"))
    with (out / "benchmarks" / "README.md").open("a", encoding="utf-8") as benchmarks:
        benchmarks.write(toctree([Path(page).name for page in tables]))


if __name__ == "__main__":
    gather(ROOT, Path(sys.argv[1]))

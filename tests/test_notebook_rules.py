"""Rules that let each notebook be read alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

ABSOLUTE_PATH = re.compile(
    r"""(?<![\w/.:<-])/(?:home|root|Users|tmp|private|var|opt|usr|etc|mnt|srv|work|workspace|content|data)/"""
    r"""|["']/\w[\w.-]*/|\b[A-Za-z]:\\+Users|file://"""
)


pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parse(cell: NotebookNode) -> ast.Module:
    """A cell's syntax tree; lines that only IPython knows (%magic, !command) become the calls they stand for."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


@pytest.mark.filterwarnings("error")
def test_notebook_is_valid_and_fit_for_git(path: Path, notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000, "a notebook stays below 1 MB: draw smaller figures"
    assert "widgets" not in notebook.metadata, "saved widget state breaks the repository's preview: nbstripout drops it"
    assert notebook.metadata.kernelspec.name == "python3"
    errors = [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]
    assert not errors, "the notebook was saved with an error in it"


def test_notebook_cells_and_functions_are_short(notebook: NotebookNode) -> None:
    assert len(notebook.cells) <= 40
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 20, f"more than 20 lines:\n{cell.source}"
        for node in ast.walk(parse(cell)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert len(ast.unparse(node).splitlines()) <= 5, f"{node.name} belongs in the package"


def test_notebook_parameters_are_annotated_and_explained(path: Path, notebook: NotebookNode) -> None:
    (tagged,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    names = []
    for statement in parse(tagged).body:
        assert isinstance(statement, ast.AnnAssign) and statement.value is not None, ast.unparse(statement)
        names.append(ast.unparse(statement.target))
    # papermill reads the lines with a pattern of its own: `a: str | None = ...`, for one, it does not see.
    seen = papermill.inspect_notebook(str(path))
    assert list(seen) == names
    for name, parameter in seen.items():
        assert parameter["inferred_type_name"] in ("str", "int", "float", "bool"), name
        assert parameter["help"], f"{name} has no comment at the end of its line"


def test_notebook_prepares_colab_before_it_needs_the_package(notebook: NotebookNode) -> None:
    sources = [cell.source for cell in code_cells(notebook)]
    guards = [i for i, source in enumerate(sources) if '"google.colab" in sys.modules' in source]
    uses = [i for i, source in enumerate(sources) if re.search(r"^\s*(import|from) transvert\b", source, re.MULTILINE)]
    assert guards and uses and guards[0] < uses[0]
    for source in sources:
        assert not re.search(r"pip.*install.*\btorch\b", source), "Colab's own torch fits its GPU: don't reinstall it"


def test_notebook_names_no_absolute_path(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        shown = [str(text) for one in outputs for kind, text in one.get("data", {}).items() if kind.startswith("text/")]
        for text in (cell.source, *shown, *(one.get("text", "") for one in outputs)):
            assert not (found := ABSOLUTE_PATH.search(text)), f"{found.group()!r} in:\n{text[:500]}"


def test_own_films_leave_a_notebook_before_it_is_committed(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / ".ci" / "strip_own_films.py")]
    assert subprocess.run([*command, str(path)], capture_output=True, check=False).returncode == 0, (
        "it names someone's films"
    )
    text = path.read_text(encoding="utf-8")
    edited = text.replace('ap_film: str = \\"\\"', 'ap_film: str = \\"/scans/Doe_Jane.dcm\\"', 1)
    (tmp_path / "own.ipynb").write_text(edited, encoding="utf-8")
    done = subprocess.run([*command, str(tmp_path / "own.ipynb")], capture_output=True, text=True, check=False)
    assert done.returncode == (edited != text) and ("named own films" in done.stdout) == (edited != text)
    stripped = (tmp_path / "own.ipynb").read_text(encoding="utf-8")
    assert "Doe_Jane" not in stripped and (edited == text or '"image/png"' not in stripped)
    assert [c["id"] for c in json.loads(stripped)["cells"]] == [c["id"] for c in json.loads(text)["cells"]]

"""Rules that let each notebook be read alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parse(cell: NotebookNode) -> ast.Module:
    """A cell's syntax tree; lines that only IPython knows (%magic, !command) become the calls they stand for."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def texts(notebook: NotebookNode) -> Iterator[str]:
    """Everything a reader sees as text: sources, printed output, and displayed text and HTML."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


@pytest.mark.filterwarnings("error")
def test_notebook_is_valid_and_fit_for_git(path: Path, notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000, "a notebook stays below 1 MB: draw smaller figures"
    assert "widgets" not in notebook.metadata, "saved widget state breaks the repository's preview: nbstripout drops it"
    assert notebook.metadata.kernelspec.name == "python3"
    errors = [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]
    assert not errors, "the notebook was saved with an error in it"


def test_notebook_opens_with_title_and_badges(notebook: NotebookNode) -> None:
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "https://colab.research.google.com/github/" in first.source
    assert "https://mybinder.org/v2/gh/" in first.source


def test_notebook_cells_and_functions_are_short(notebook: NotebookNode) -> None:
    assert len(notebook.cells) <= 40
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 20, f"more than 20 lines:\n{cell.source}"
        for node in ast.walk(parse(cell)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert len(ast.unparse(node).splitlines()) <= 5, f"{node.name} belongs in the package"


def test_notebook_parameters_are_annotated_and_explained(path: Path, notebook: NotebookNode) -> None:
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged 'parameters'"
    names = []
    for statement in parse(tagged[0]).body:
        assert isinstance(statement, ast.AnnAssign) and statement.value is not None, ast.unparse(statement)
        names.append(ast.unparse(statement.target))
    # papermill reads the lines with a pattern of its own: `a: str | None = ...`, for one, it does not see.
    seen = papermill.inspect_notebook(str(path))
    assert list(seen) == names
    for name, parameter in seen.items():
        assert parameter["inferred_type_name"] != "None", f"papermill sees no type for {name}"
        assert parameter["help"], f"{name} has no comment at the end of its line"


def test_notebook_prepares_colab_before_it_needs_the_package(notebook: NotebookNode) -> None:
    sources = [cell.source for cell in code_cells(notebook)]
    guards = [i for i, source in enumerate(sources) if '"google.colab" in sys.modules' in source]
    uses = [i for i, source in enumerate(sources) if re.search(r"^\s*(import|from) transvert\b", source, re.MULTILINE)]
    assert guards and uses and guards[0] < uses[0]
    for source in sources:
        assert not re.search(r"pip.*install.*\btorch\b", source), "Colab's own torch fits its GPU: don't reinstall it"


def test_notebook_names_no_absolute_path(notebook: NotebookNode) -> None:
    for text in texts(notebook):
        assert not (found := ABSOLUTE_PATH.search(text)), f"{found.group()!r} in:\n{text[:500]}"

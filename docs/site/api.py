"""API pages out of the modules' sources: docstrings are Markdown with Google's sections. Nothing is imported."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

FIELDS = {"Args": "param", "Attributes": "ivar", "Raises": "raises", "Returns": "returns", "Yields": "yields"}
LONGEST_VALUE = 80
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def order(structure_test: Path) -> list[str]:
    """The public modules in the order in which they build on one another, as tests/test_structure.py keeps it."""
    for node in ast.parse(structure_test.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    raise ValueError(f"{structure_test} has no ORDER.")


def summary(tree: ast.Module) -> str:
    """A module's first sentence, on one line."""
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())


def public(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt, str]]:
    """Name, statement and docstring of what a module or class defines for others, in the source's order."""
    for place, node in enumerate(body):
        if isinstance(node, Definition):
            name, doc = node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name, doc = ast.unparse(target), following_string(body, place)
            if not doc and not name.isupper():  # An alias of a type, or a part of a class that its docstring tells.
                continue
        else:
            continue
        again = any(ast.unparse(d).endswith((".setter", "overload")) for d in getattr(node, "decorator_list", []))
        if re.fullmatch(r"[A-Za-z]\w*", name) and not again:
            yield name, node, doc


def following_string(body: list[ast.stmt], place: int) -> str:
    """The string that stands below an assignment to say what it is."""
    after = body[place + 1] if place + 1 < len(body) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return inspect.cleandoc(after.value.value)
    return ""


def page(name: str, tree: ast.Module, known: set[str]) -> str:
    """One module's page.

    Args:
        name: the module, without its package.
        tree: its source.
        known: the full names that have a place in the API, to which backticks link.
    """
    parts = [
        f"# {name}",
        f":::{{py:module}} transvert.{name}\n:::",
        markdown(ast.get_docstring(tree) or "", name, known),
    ]
    parts += [entry(label, node, doc, name, known) for label, node, doc in public(tree.body)]
    return "\n\n".join(filter(None, parts)) + "\n"


def entry(label: str, node: ast.stmt, doc: str, scope: str, known: set[str], method: bool = False) -> str:
    """A definition as a directive of Sphinx's Python domain, a class with its methods inside."""
    fence = ":::" if method else "::::"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        own = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        known = {full for full in known if full.rpartition(".")[2] not in own}
    content = [markdown(doc, scope, known), options(node)]
    if isinstance(node, ast.ClassDef):
        kind, head = "class", label + signature_of_class(node)
        members = [part for part in public(node.body) if isinstance(part[1], ast.FunctionDef | ast.AsyncFunctionDef)]
        content += [entry(f"{label}.{member}", part, text, scope, known, True) for member, part, text in members]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        kind = "property" if "property" in decorators else "method" if method else "function"
        arguments = without_annotated(node.args)
        if method and "staticmethod" not in decorators and arguments.args:
            del arguments.args[0]
        returns = f" -> {ast.unparse(node.returns)}" if node.returns and kind != "property" else ""
        head = label if kind == "property" else f"{label}({ast.unparse(arguments)}){returns}"
    else:
        kind, head = "data", label
        value = ast.unparse(node.value) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value else ""
        content += [f"`{value}`"] if value and len(value) <= LONGEST_VALUE and "`" not in value else []
    body = "\n\n".join(filter(None, content))
    return f"{fence}{{py:{kind}}} {head}\n:module: transvert.{scope}\n\n{body}\n{fence}"


def signature_of_class(node: ast.ClassDef) -> str:
    """What a class is made with: a dataclass by its fields, any other by its __init__."""
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        told = [f"{ast.unparse(f.target)}: {ast.unparse(f.annotation)}" + default(f.value) for f in fields]
        return f"({', '.join(told)})"
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = without_annotated(item.args)
            del arguments.args[0]
            return f"({ast.unparse(arguments)})"
    return ""


def default(value: ast.expr | None) -> str:
    """A field's default as a signature shows it."""
    if value is None:
        return ""
    text = ast.unparse(value)
    return " = ..." if text.startswith("field(") or len(text) > LONGEST_VALUE else f" = {text}"


def options(node: ast.stmt) -> str:
    """What a function of the command line says of its options, as a field list."""
    arguments = [part for part in ast.walk(node) if isinstance(part, ast.arg) and part.annotation is not None]
    helps = [(a.arg, k.value) for a in arguments for k in ast.walk(a) if isinstance(k, ast.keyword) and k.arg == "help"]
    return "\n".join(f":param {name}: {ast.literal_eval(text)}" for name, text in helps)


def without_annotated(arguments: ast.arguments) -> ast.arguments:
    """A copy of arguments in which the command line's `Annotated[int, ...]` is `int`."""
    copy = ast.parse(f"def f({ast.unparse(arguments)}): pass").body[0]
    assert isinstance(copy, ast.FunctionDef)
    for argument in [*copy.args.posonlyargs, *copy.args.args, *copy.args.kwonlyargs]:
        kind = argument.annotation
        if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Annotated":
            assert isinstance(kind.slice, ast.Tuple)
            argument.annotation = kind.slice.elts[0]
    return copy.args


def markdown(doc: str, scope: str, known: set[str]) -> str:
    """A docstring as Markdown, its sections as field lists and its names as links."""
    text, *sections = re.split(rf"^({'|'.join(FIELDS)}):\n", doc, flags=re.MULTILINE)
    listed = [fields(FIELDS[title], section) for title, section in zip(sections[::2], sections[1::2], strict=True)]
    return link("\n\n".join(filter(None, [text.strip(), "\n".join(listed)])), scope, known)


def fields(kind: str, section: str) -> str:
    """A section as a field list: `name: text` lines, or for what is returned one text."""
    text = textwrap.dedent(section).strip()
    if kind in ("returns", "yields"):
        return f":{kind}: " + text.replace("\n", "\n    ")
    items = re.split(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): ", text, flags=re.MULTILINE)
    lines = [f":{kind} {items[n]}: " + indented(items[n + 1]) for n in range(1, len(items), 2)]
    return "\n".join(lines) if lines else f":{kind}: " + text.replace("\n", "\n    ")


def indented(text: str) -> str:
    """A field's text, its later lines below its first."""
    first, _, rest = text.strip().partition("\n")
    return first + ("\n" + "\n".join("    " + line.strip() for line in rest.splitlines()) if rest else "")


def link(text: str, scope: str, known: set[str]) -> str:
    """Turns backticked names of the API into links; lines of code (four spaces after an empty line) stay."""

    def target(match: re.Match[str]) -> str:
        name = match[1]
        for full in (f"transvert.{scope}.{name}", f"transvert.{name}", name):
            if full in known:
                return f"{{py:obj}}`{name} <{full}>`"
        return match[0]

    return re.sub(r"(?<![`\w}])`([A-Za-z_][\w.]*)`(?!`)", target, text)


class _FullNames(ast.NodeTransformer):
    """Puts what a module has imported from the package by its full name."""

    def __init__(self, tree: ast.Module) -> None:
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        own = [node for node in imports if node.module.partition(".")[0] == "transvert"]
        self._full = {a.asname or a.name: f"{node.module}.{a.name}" for node in own for a in node.names}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(self._full.get(node.id, node.id), mode="eval").body


def with_full_names(tree: ast.Module) -> ast.Module:
    """A module whose annotations name the package's types in full: two modules may each have one of the same name."""
    named = _FullNames(tree)
    for node in ast.walk(tree):
        for part in ("annotation", "returns"):
            if getattr(node, part, None) is not None:
                setattr(node, part, named.visit(getattr(node, part)))
    return tree


def names(modules: dict[str, ast.Module]) -> set[str]:
    """The full names of all modules, and of what they define for others."""
    found = set()
    for module, tree in modules.items():
        found.add(f"transvert.{module}")
        for name, node, _ in public(tree.body):
            found.add(f"transvert.{module}.{name}")
            if isinstance(node, ast.ClassDef):
                functions = [part for part in public(node.body) if isinstance(part[1], Definition)]
                found |= {f"transvert.{module}.{name}.{member}" for member, _, _ in functions}
    return found


def write(package: Path, structure_test: Path, out: Path) -> list[str]:
    """Writes a page a module and index.md, which lists them; returns the modules in their order."""
    modules = {n: ast.parse((package / f"{n}.py").read_text(encoding="utf-8")) for n in order(structure_test)}
    known = names(modules)
    out.mkdir(parents=True)
    for name, tree in modules.items():
        (out / f"{name}.md").write_text(page(name, with_full_names(tree), known), encoding="utf-8")
    rows = [f"| [{name}]({name}.md) | {summary(tree)} |" for name, tree in modules.items()]
    intro = (
        "# API\n\nData flows one way: a module imports only what stands before it here.\n\n| module | |\n|---|---|\n"
    )
    tree = "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(modules) + "\n```\n"
    (out / "index.md").write_text(intro + "\n".join(rows) + tree, encoding="utf-8")
    return list(modules)

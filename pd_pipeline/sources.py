"""Which code files an out depends on, found from the import statements of its modules."""

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pd_pipeline.errors import PipelineError

PACKAGE = Path(__file__).parent
REGISTRY = PACKAGE / "families" / "registry.py"
"""Excluded: an out depends on the entry point of its own family, not on the table of all families."""
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields of a statement with statements in it."""


def forget() -> None:
    """Clear the caches, so that every edit and every new file is seen."""
    for cached in (import_closure, _module_file):
        cached.cache_clear()


@lru_cache(maxsize=256)
def import_closure(modules: tuple[str, ...]) -> frozenset[Path]:
    """The files of this package that `modules` import, directly or indirectly, and `modules` themselves.

    Only files that a stage really uses are included. Task families are imported by name at run time; `Graph.code`
    adds them.
    """
    found: set[Path] = set()
    todo = [_module_file(module) for module in modules]
    while todo:
        file = todo.pop()
        if file is None or file in found or file == REGISTRY:
            continue
        found.add(file)
        todo += [_module_file(name) for name in imported_names(file) if name.startswith("pd_pipeline")]
    return frozenset(found)


def local_closure(source: Path, root: Path) -> set[Path]:
    """A source file of the project at `root`, and what it imports from this package and from the project's files.

    These are modules and packages below `root`, with the `__init__.py` of every package on the way to them.
    """
    found: set[Path] = set()
    todo = [source]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        names = imported_names(file)
        found |= {file, *import_closure(tuple(name for name in names if name.startswith("pd_pipeline")))}
        packages = (folder / "__init__.py" for folder in file.parents if root in folder.parents)
        beside = [*packages, *(path for name in names for path in _files_of(name, file, root))]
        todo += [path for path in beside if path.is_file() and PACKAGE not in path.parents]
    return found


def _files_of(name: str, importing: Path, root: Path) -> Iterator[Path]:
    """The files that an imported name may be in: below `root` or, with dots in front, relative to what imports it."""
    relative = name.lstrip(".")
    level = len(name) - len(relative)
    base = importing.parents[level - 1] if 0 < level <= len(importing.parents) else root
    path = base.joinpath(*relative.split("."))
    if relative:
        yield from (path.with_suffix(".py"), path / "__init__.py")


def imported_names(file: Path) -> tuple[str, ...]:
    """Every module, and every name from a module, that a file imports; relative ones start with their dots.

    Raises PipelineError for invalid Python.
    """
    about = file.stat()
    return _names(file, (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino))


@lru_cache(maxsize=4096)
def _names(file: Path, stamp: tuple[int, ...]) -> tuple[str, ...]:
    """A file is parsed again only once its `stamp` changed: all of them take a second, and graphs are loaded often."""
    try:
        return tuple(_imports(ast.parse(file.read_bytes(), str(file))))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise PipelineError(f"{file}: not valid Python: {error}") from None


def _imports(tree: ast.Module) -> Iterator[str]:
    """Names that `tree` imports at run time, not those under `TYPE_CHECKING`."""
    todo: list[ast.AST] = [*tree.body]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        for block in _BLOCKS:  # statements alone: no expression imports anything, and most nodes are expressions
            todo += getattr(node, block, ())
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if node.module:
                yield module
            yield from (f"{module}{'.' if node.module else ''}{alias.name}" for alias in node.names)


@lru_cache(maxsize=4096)
def _module_file(module: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None

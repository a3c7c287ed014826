"""Array shapes in signatures are checked while tests run; `install` it before sparks is imported.

`jaxtyping.install_import_hook` does so for every function and argument. This one leaves alone all
that names no array: wrong arguments must reach sparks' own error messages, and a patched run of a
tiny model takes 10 ms in place of 31.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped

_ARRAYS = ("Float[", "Float32[", "Int[", "Bool[")
_CONTAINERS = ("list[", "dict[", "Mapping[", "Sequence[", "Iterable[")
"""Beartype draws the item that it looks at from Python's own random numbers, which tests of an
untouched training would see; hints of containers are left out."""
_NAME = f"__import__({__name__!r}).checked"


def install(package: str) -> None:
    """Check array shapes in all modules of `package` that are imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


def checked(item: Any) -> Any:
    """The function, or the dataclass, with its arrays checked at every call."""
    return jaxtyped(item, typechecker=_check_arrays)


def _check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    annotations = function.__annotations__
    function.__annotations__ = {
        name: kind for name, kind in annotations.items() if _names_array(repr(kind))
    }
    return beartype(function)


def _names_array(text: str) -> bool:
    return any(name in text for name in _ARRAYS) and not any(name in text for name in _CONTAINERS)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != self._package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        tree = ast.fix_missing_locations(_Decorate().visit(ast.parse(data)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def path_stats(self, path: Any) -> Any:
        raise OSError("no cached bytecode: it must not be found outside the tests")


class _Decorate(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if self._any_array(item.annotation for item in arguments) or self._any_array(
            [node.returns]
        ):
            node.decorator_list.append(self._decorator())
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        fields = [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
        if node.decorator_list and self._any_array(fields):
            node.decorator_list.insert(0, self._decorator())
        return node

    def _any_array(self, annotations: Any) -> bool:
        return any(item is not None and _names_array(ast.unparse(item)) for item in annotations)

    def _decorator(self) -> ast.expr:
        return ast.parse(_NAME, mode="eval").body

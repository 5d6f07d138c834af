"""Documented Python objects and the public names people use for them, read from source code that is never run.

`posixpath.join` is known as `os.path.join`, `json.decoder.JSONDecoder` as `json.JSONDecoder`: a name is followed
through the `from ... import ...` of the modules that hand it on.
"""

import ast
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MAX_SOURCE_BYTES = 4 << 20  # larger files are generated tables

_STAR = "*"

# Where the public module is another one than the file's. A private name here is handed on by whoever imports it.
MODULE_NAMES = {
    "posixpath": "os.path",
    "posix": "_posix",
    "nt": "_posix",
    "genericpath": "_genericpath",
    "_pyio": "_io",
    "_pydecimal": "_decimal",
    "_pydatetime": "_datetime",
}


@dataclass
class Module:
    """What one source file says: its documented objects and the names it hands on.

    documented: qualified name inside the module ("" is the module itself) to docstring.
    imported: name here to (module, name there); (module, "*") under "*n" for the n-th star import.
    """

    name: str
    is_package: bool
    documented: dict[str, str] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    exported: list[str] | None = None

    def top_level(self) -> list[str]:
        """Names of the classes and functions defined here."""
        return [name for name in self.documented if name and "." not in name]


def read_module(file: Path, name: str, is_package: bool) -> Module | None:
    """Parses one source file. None when it is not readable as Python or too large to be written by hand."""
    try:
        if file.stat().st_size > _MAX_SOURCE_BYTES:
            return None
        source = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences in somebody else's source
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    module = Module(MODULE_NAMES.get(name, name), is_package)
    if docstring := ast.get_docstring(tree):
        module.documented[""] = docstring
    instances: dict[str, str] = {}
    for statement in _flat(tree.body):
        match statement:
            case ast.ImportFrom():
                _read_import(statement, module)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=cls))):
                instances[name] = cls
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute(value=ast.Name(id=made), attr=method)):
                # `choice = _inst.choice`: people call the function, not the method it is bound to.
                bound = f"{instances.get(made)}.{method}"
                if bound in module.documented and not name.startswith("_"):
                    module.documented[name] = module.documented.pop(bound)
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign():
                _read_all(statement, module)
            case _:
                _read_definition(statement, "", module)
    return module


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, including those under `if`, `try` and `with`."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _flat(statement.body)
            yield from _flat(getattr(statement, "orelse", ()))
            for handler in getattr(statement, "handlers", ()):
                yield from _flat(handler.body)
        else:
            yield statement


def _read_definition(statement: ast.stmt, prefix: str, module: Module) -> None:
    if not isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if statement.name == "__init__" and prefix:
        qualname = prefix[:-1]  # its docstring is about making an instance of the class
    elif statement.name.startswith("_"):
        return
    else:
        qualname = prefix + statement.name
    try:
        docstring = ast.get_docstring(statement)
    except TypeError:
        docstring = None
    known = module.documented.get(qualname, "")
    module.documented[qualname] = f"{known}\n\n{docstring}" if known and docstring else known or docstring or ""
    if isinstance(statement, ast.ClassDef):
        for inner in _flat(statement.body):
            _read_definition(inner, f"{qualname}.", module)


def _read_import(statement: ast.ImportFrom, module: Module) -> None:
    source = statement.module or ""
    if statement.level:
        parts = module.name.split(".")
        drop = statement.level - module.is_package
        base = parts[: len(parts) - drop] if drop else parts
        source = ".".join([*base, source]) if source else ".".join(base)
    source = MODULE_NAMES.get(source, source)
    for alias in statement.names:
        name = alias.asname or alias.name
        if name == _STAR:
            module.imported[f"{_STAR}{len(module.imported)}"] = (source, _STAR)
        elif not name.startswith("_"):
            module.imported[name] = (source, alias.name)


def _read_all(statement: ast.Assign | ast.AugAssign | ast.AnnAssign, module: Module) -> None:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
        names = [node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)]
        module.exported = [*(module.exported or []), *(name for name in names if isinstance(name, str))]


def public_names(modules: dict[str, Module]) -> dict[tuple[str, str], str]:
    """The shortest public dotted name of every module and top-level object that has one.

    Keys are (module, name), with an empty name for the module itself.
    """
    best: dict[tuple[str, str], str] = {}

    def offer(origin: tuple[str, str], public: str) -> None:
        if any(part.startswith("_") for part in public.split(".")):
            return
        if origin not in best or (public.count("."), public) < (best[origin].count("."), best[origin]):
            best[origin] = public

    exports = _Exports(modules)
    for module in modules.values():
        offer((module.name, ""), module.name)
        for name in module.top_level():
            offer((module.name, name), f"{module.name}.{name}")
        for name, origin in exports.of(module).items():
            offer(origin, f"{module.name}.{name}")
    return best


class _Exports:
    """Which names each module hands on from others, chains of imports followed."""

    def __init__(self, modules: dict[str, Module]):
        self._modules = modules
        self._known: dict[str, dict[str, tuple[str, str]]] = {}
        self._owners: dict[str, list[str]] = {}
        for module in modules.values():
            for name in module.top_level():
                self._owners.setdefault(name, []).append(module.name)

    def of(self, module: Module) -> dict[str, tuple[str, str]]:
        """Name in `module` to (defining module, name there)."""
        if module.name not in self._known:
            self._known[module.name] = {}  # what a circle of imports sees
            self._known[module.name] = self._find(module)
        return self._known[module.name]

    def _find(self, module: Module) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        for name, (source_name, source_object) in module.imported.items():
            source = self._modules.get(source_name)
            if source is None:
                continue
            onward = {n: (source_name, n) for n in source.top_level()} | self.of(source)
            if source_object == _STAR:
                found |= {n: origin for n, origin in onward.items() if source.exported is None or n in source.exported}
            elif source_object in onward and _is_offered(name, module, source_name):
                found[name] = onward[source_object]
        if module.is_package and module.exported:  # names that a package loads when they are first used
            for name in module.exported:
                inside = [owner for owner in self._owners.get(name, ()) if owner.startswith(f"{module.name}.")]
                if name not in found and name not in module.documented and len(inside) == 1:
                    found[name] = (inside[0], name)
        return found


def _is_offered(name: str, module: Module, source: str) -> bool:
    """Whether `from source import name` hands the name on, rather than only using it."""
    if module.exported is not None and name in module.exported:
        return True
    return (module.is_package and source.startswith(f"{module.name}.")) or source == f"_{module.name}"

"""Documented objects of the standard library's modules that are written in C and have no source to parse.

These are parts of the interpreter: importing one runs no Python file, and half of them are loaded already.
"""

import importlib

from engine.data.api_sources import MODULE_NAMES, Module

# A name that starts with "_" is an implementation whose public module is found like that of a Python source.
_MODULES = (
    *("builtins", "cmath", "math", "time", "itertools", "sys", "gc", "array", "select", "zlib", "unicodedata"),
    *("binascii", "mmap", "atexit", "marshal", "fcntl", "resource", "termios", "pwd", "grp", "syslog", "posix", "nt"),
    *("_collections", "_struct", "_csv", "_sqlite3", "_ssl", "_socket", "_signal", "_weakref"),
)


def compiled_modules() -> list[Module]:
    """The modules this platform has, in a fixed order."""
    modules = []
    for name in _MODULES:
        try:
            loaded = importlib.import_module(name)
        except ImportError:
            continue
        module = Module(MODULE_NAMES.get(name, name), is_package=False)
        if not module.name.startswith("_"):
            module.documented[""] = loaded.__doc__ or ""
        for key, value in sorted(vars(loaded).items()):
            # `site` adds names to builtins that are not always there.
            if key != "open" and not getattr(value, "__module__", name).startswith("_sitebuiltins"):
                _read(key, value, module)
        modules.append(module)
    return modules


def _read(qualname: str, value: object, module: Module) -> None:
    """Records a class or function with its members, unless it is known under another name."""
    name = qualname.rpartition(".")[2]
    if name.startswith("_") or not callable(value) or getattr(value, "__name__", None) != name:
        return
    module.documented[qualname] = value.__doc__ if isinstance(value.__doc__, str) else ""
    if isinstance(value, type):
        for key, member in sorted(vars(value).items()):
            if not isinstance(member, type):
                _read(f"{qualname}.{key}", member, module)

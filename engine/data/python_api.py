"""The built-in corpus, the Python API finder: from a sentence in plain words to the object that does it.

A text is a passage of a docstring; its labels are the documented object's qualified name, its module and its top
package. The name itself, split into words, is a train text too. Test texts are summaries: of every other object with
enough to say, the first sentence is held out, and what is left of its docstring is all that training sees of it.

    dataset = ensure_python_api(Path("data/python-api"), scope="stdlib")

Python sources are parsed, never run. The same installed packages give the same corpus, byte for byte.
"""

import hashlib
import math
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePath
from typing import Literal

from engine.data.api_compiled import compiled_modules
from engine.data.api_sources import Module, public_names, read_module
from engine.data.docstrings import normalised, passages
from engine.data.store import Dataset, DatasetWriter
from engine.errors import DataError, EnvironmentProblem

Scope = Literal["stdlib", "installed"]
Progress = Callable[[int, int], None]

_BUILDER = "1"  # raise it when the same sources would give another corpus
_MIN_PASSAGES_TO_HOLD_OUT = 3
_SAME_WORDS = 0.6  # of two texts' words in common: near copies, which a test must not reward
_MAX_SHARING = 4  # a passage that more objects share says nothing about any of them

_SKIPPED_FOLDERS = {
    *("__pycache__", "test", "tests", "site-packages", "dist-packages", "lib-dynload"),
    *("vendor", "_vendor", "vendored", "_vendored", "third_party", "extern"),
}
_SKIPPED_STDLIB = {
    *("antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "msilib", "ntpath", "nturl2path"),
    *("pydoc_data", "sre_compile", "sre_constants", "sre_parse", "this", "turtledemo"),
}
_TEST_FILE = re.compile(r"test_.*|.*_test|conftest|setup")
_BETTER_NAMES = {"io.open": "builtins.open"}


@dataclass(frozen=True)
class ApiObject:
    """A documented object. labels: its public name, module and top package. passages: as in its docstring."""

    name: str
    labels: tuple[str, ...]
    passages: tuple[str, ...]


@dataclass
class _Instance:
    uid: str
    text: str
    labels: list[str]
    sharing: int = 1  # how many objects have this passage


def ensure_python_api(directory: Path, scope: Scope = "stdlib", progress: Progress | None = None) -> Dataset:
    """The corpus in `directory`, built when it is missing, damaged or made from other packages than now installed.

    Raises what `build_python_api` raises.
    """
    try:
        dataset = Dataset.open(directory)
        if dataset.meta["sources"] == _sources(scope):
            return dataset
    except DataError:
        pass
    return build_python_api(directory, scope=scope, progress=progress, overwrite=True)


def build_python_api(
    output: Path, *, scope: Scope = "stdlib", progress: Progress | None = None, overwrite: bool = False
) -> Dataset:
    """Builds the corpus into the dataset directory `output`.

    scope: the standard library alone, or with it every installed package.
    progress: called with (source files read, all source files).

    `meta["details"]` of the result counts documented objects and source files. Raises EnvironmentProblem when there
    are no Python sources, and ConfigError when `output` is taken and `overwrite` is false.
    """
    with DatasetWriter(output, f"python-api-{scope}", _sources(scope), overwrite) as writer:
        files = sorted(source_files(scope), key=lambda file: file[1])
        if not files:
            raise EnvironmentProblem(f"{sysconfig.get_path('stdlib')}: this Python has no source files to read")
        modules = {module.name: module for module in compiled_modules()}
        for done, (file, name, is_package) in enumerate(files, 1):
            if module := read_module(file, name, is_package):
                modules[module.name] = module
            if progress:
                progress(done, len(files))
        objects = documented_objects(modules)
        train, test = corpus(objects)
        names = sorted({label for instance in train for label in instance.labels})
        ids = {name: number for number, name in enumerate(names)}
        for split, instances in (("train", train), ("test", test)):
            for instance in instances:
                writer.add(split, instance.uid, instance.text, [ids[label] for label in instance.labels])
        return writer.finish(names, details={"objects": len(objects), "source_files": len(files)})


def _sources(scope: Scope) -> dict[str, str]:
    """What decides the content of the corpus."""
    version = f"{sys.implementation.name} {sys.version.split()[0]} {sys.platform}"
    sources = {"corpus": f"python-api {_BUILDER}", "scope": scope, "python": version}
    if scope == "installed":
        sources |= {name: distribution.version for name, distribution in _distributions()}
    return sources


def _distributions() -> list[tuple[str, metadata.Distribution]]:
    """Installed distributions by name, in order. Of several of one name, the one that would be imported."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(name, distribution)
    return sorted(found.items())


def source_files(scope: Scope) -> Iterator[tuple[Path, str, bool]]:
    """Python files to read: (file, module name, whether the module is a package)."""
    standard = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in os.walk(standard):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_STDLIB | _SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py") and name[:-3] not in _SKIPPED_STDLIB:
                file = Path(folder, name)
                yield from _module(file, file.relative_to(standard))
    if scope == "installed":
        for _, distribution in _distributions():
            for relative in distribution.files or ():
                if relative.suffix == ".py":
                    yield from _module(Path(distribution.locate_file(relative)), relative)


def _module(file: Path, relative: PurePath) -> Iterator[tuple[Path, str, bool]]:
    """The module that `file` is, if it is one that people import."""
    *folders, stem = relative.with_suffix("").parts
    is_package = stem == "__init__"
    parts = folders if is_package else [*folders, stem]
    wanted = (
        all(part.isidentifier() for part in parts)
        and not _SKIPPED_FOLDERS.intersection(folders)
        and not _TEST_FILE.fullmatch(stem)
        and stem != "__main__"
    )
    if wanted and parts:
        yield file, ".".join(parts), is_package


def documented_objects(modules: dict[str, Module]) -> list[ApiObject]:
    """Every public object with prose in its docstring, by name. Docstrings of one object are put together."""
    public = public_names(modules)
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for module in modules.values():
        for qualname, docstring in module.documented.items():
            top, _, rest = qualname.partition(".")
            name = public.get((module.name, top))
            if not docstring or name is None:
                continue
            home = name.rpartition(".")[0] if top else name
            name = f"{name}.{rest}" if rest else name
            labels = [name, home, name.partition(".")[0]]
            if better := _BETTER_NAMES.get(name):
                labels = [better, better.rpartition(".")[0], *labels]
            known_labels, known_passages = found.setdefault(labels[0], ({}, {}))
            known_labels |= dict.fromkeys(labels)
            known_passages |= dict.fromkeys(passages(docstring))
    return [ApiObject(name, tuple(labels), tuple(texts)) for name, (labels, texts) in sorted(found.items()) if texts]


def corpus(objects: list[ApiObject]) -> tuple[list[_Instance], list[_Instance]]:
    """Train and test instances. A passage that several objects have is one instance with the labels of all.

    No two instances say the same (compared in lower case, without punctuation), no test text is a near copy of any
    other text, and every test label is in train.
    """
    instances: dict[str, _Instance] = {}
    for item in objects:
        for number, text in enumerate([*item.passages, _name_in_words(item.name)]):
            instance = instances.get(normalised(text))
            if instance is None:
                instances[normalised(text)] = _Instance(f"{item.name}#{number}", text, list(item.labels))
            elif item.name not in instance.labels:
                instance.sharing += 1
                instance.labels = list(dict.fromkeys([*instance.labels, *item.labels]))
    kept = {key: instance for key, instance in instances.items() if key and instance.sharing <= _MAX_SHARING}
    summaries = [key for item in objects if (key := _held_out(item, instances))]
    held_out = set(summaries) - near_copies(summaries, kept)
    train = [instance for key, instance in kept.items() if key not in held_out]
    return train, [instance for key, instance in kept.items() if key in held_out]


def _held_out(item: ApiObject, instances: dict[str, _Instance]) -> str | None:
    """The normalised summary of the object, if it is one of those whose summary may become a test text."""
    own = [key for text in item.passages if instances[key := normalised(text)].sharing == 1]
    summary = normalised(item.passages[0])
    chosen = hashlib.sha256(item.name.encode()).digest()[0] % 2 == 0
    return summary if chosen and summary in own and len(own) >= _MIN_PASSAGES_TO_HOLD_OUT else None


def near_copies(candidates: Iterable[str], texts: Iterable[str], similarity: float = _SAME_WORDS) -> set[str]:
    """The candidates that share most words with another one of `texts` (all as `normalised` gives them).

    Two texts are near copies when their common words are at least the share `similarity` of all their words. Then
    they have one of their rarest words in common, so only texts that do are compared.
    """
    words = {text: frozenset(text.split()) for text in texts}
    frequency = Counter(word for text in words.values() for word in text)
    rarest: dict[str, list[str]] = {}
    for text, own in words.items():
        ordered = sorted(own, key=lambda word: (frequency[word], word))
        rarest[text] = ordered[: len(own) - math.ceil(similarity * len(own)) + 1]
    having: dict[str, list[str]] = {}
    for text, prefix in rarest.items():
        for word in prefix:
            having.setdefault(word, []).append(text)

    def is_copy(text: str) -> bool:
        own = words[text]
        others = (words[other] for word in rarest[text] for other in having[word] if other != text)
        return any(len(own & other) >= similarity * len(own | other) for other in others)

    return {text for text in candidates if is_copy(text)}


def _name_in_words(name: str) -> str:
    """`pathlib.Path.read_text` as "pathlib path read text"."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()

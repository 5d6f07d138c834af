import sys
from pathlib import Path

import pytest

from engine.data import python_api
from engine.data.api_sources import public_names, read_module
from engine.data.docstrings import normalised
from engine.data.python_api import ApiObject, build_python_api, corpus, ensure_python_api, near_copies, source_files
from engine.data.store import Dataset
from engine.errors import EnvironmentProblem

SOURCES = {
    "shelf/__init__.py": '''
"""Keep books in good order. Shelves are made of wood and of iron."""
from ._impl import Shelf, helper as _helper
from .tools import *
from json import loads
__all__ = ["Shelf", "Lazy"]
''',
    "shelf/_impl.py": '''
class Shelf:
    """A row of books on a wall."""
    def __init__(self, width):
        """The width is given in whole metres."""
    def add(self, book):
        """Put one more book at the end. The shelf may be full already. It then falls down with all books."""
    def _hidden(self):
        """Nobody should ever see this text."""
    class Place:
        """One place on the long shelf."""
def private_helper():
    """Only the package itself uses this."""
''',
    "shelf/tools.py": '''
__all__ = ["saw"]
def saw(board):
    """Cut a board into two pieces."""
def drill(board):
    """Make a hole in a board."""
''',
    "shelf/lazily.py": 'class Lazy:\n    """Loaded when it is first used."""\n',
    "shelf/broken.py": "def broken(:\n",
    "shelf/latin.py": b'"""caf\xe9 without any declaration of it"""\n',
    "shelf/tests/test_it.py": '"""This is about tests and is left out."""\n',
    "dice.py": '''
class Dice:
    def roll(self):
        """Return a number from one to six."""
_inst = Dice()
roll = _inst.roll
''',
    "posixpath.py": 'def join(a, b):\n    """Join two parts of a path."""\n',
    "idlelib/editor.py": '"""The editor is not an interface that people import."""\n',
}


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A small standard library, in place of the real one."""
    root = tmp_path / "lib"
    for name, content in SOURCES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(python_api.sysconfig, "get_path", lambda name: str(root))
    return root


@pytest.fixture
def objects(tree) -> dict[str, ApiObject]:
    modules = {}
    for file, name, is_package in source_files("stdlib"):
        if module := read_module(file, name, is_package):
            modules[module.name] = module
    return {item.name: item for item in python_api.documented_objects(modules)}


def test_objects_are_known_by_their_public_names(objects):
    assert sorted(objects) == [
        "dice.roll",
        "os.path.join",
        "shelf",
        "shelf.Lazy",
        "shelf.Shelf",
        "shelf.Shelf.Place",
        "shelf.Shelf.add",
        "shelf.saw",
        "shelf.tools.drill",
    ]


def test_labels_are_the_object_its_module_and_its_package(objects):
    assert objects["shelf.Shelf.add"].labels == ("shelf.Shelf.add", "shelf")
    assert objects["shelf.tools.drill"].labels == ("shelf.tools.drill", "shelf.tools", "shelf")
    assert objects["os.path.join"].labels == ("os.path.join", "os.path", "os")
    assert objects["shelf"].labels == ("shelf",)


def test_the_docstring_of_a_constructor_belongs_to_the_class(objects):
    assert objects["shelf.Shelf"].passages == ("A row of books on a wall.", "The width is given in whole metres.")


@pytest.mark.parametrize(
    "source", ["def broken(:", b"\xff\xfe\x00", b"# coding: no-such-thing\n", "x = " + "(" * 1000 + ")" * 1000]
)
def test_sources_that_are_not_python_are_passed_over(tmp_path, source):
    file = tmp_path / "bad.py"
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    assert read_module(file, "bad", False) is None


def test_a_circle_of_imports_ends(tmp_path):
    (tmp_path / "a.py").write_text("from b import *\n")
    (tmp_path / "b.py").write_text('from a import *\ndef f():\n    "Do something with it all."\n')
    modules = {name: read_module(tmp_path / f"{name}.py", name, False) for name in "ab"}
    assert public_names(modules)["b", "f"] in ("a.f", "b.f")


def _object(name: str, *texts: str) -> ApiObject:
    return ApiObject(name, (name, name.partition(".")[0]), texts)


def test_a_passage_of_several_objects_is_one_text_with_all_their_labels():
    train, test = corpus([_object("a.f", "The same text for both."), _object("b.g", "the same text, for both")])
    assert not test
    assert [(i.text, i.labels) for i in train if "text" in i.text] == [
        ("The same text for both.", ["a.f", "a", "b.g", "b"])
    ]


def test_what_everybody_says_is_left_out():
    train, _ = corpus([_object(f"m.f{i}", "See the manual for all of it.", f"Number {i} of them.") for i in range(6)])
    assert not [i for i in train if "manual" in i.text]


def test_the_name_is_a_text_too():
    train, _ = corpus([_object("pathlib.PurePath.read_text2", "Some text about it.")])
    assert [i.text for i in train] == ["Some text about it.", "pathlib pure path read text 2"]


def test_near_copies_share_most_words():
    texts = ["a b c d e", "a b c d f", "a b x y z", "p q r", "q r p"]
    assert near_copies(texts, texts) == {"a b c d e", "a b c d f", "p q r", "q r p"}


def test_near_copies_are_those_that_comparing_all_pairs_finds(objects):
    import itertools

    texts = [" ".join(words) for words in itertools.combinations("one two three four five six seven".split(), 4)][::3]
    sets = {text: set(text.split()) for text in texts}
    expected = {a for a in texts for b in texts if a != b and len(sets[a] & sets[b]) >= 0.6 * len(sets[a] | sets[b])}
    assert near_copies(texts, texts) == expected


def test_the_corpus_is_built_once_and_again_when_it_is_stale(tree, tmp_path, monkeypatch):
    calls = []
    built = ensure_python_api(tmp_path / "corpus", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == built.meta["details"]["source_files"]
    assert "shelf.Shelf.add" in built.label_names()
    count = len(calls)
    again = ensure_python_api(tmp_path / "corpus", progress=lambda done, total: calls.append((done, total)))
    assert (len(calls), again.digest) == (count, built.digest)

    (tree / "added.py").write_text('def f():\n    """Something that is quite new here."""\n')
    monkeypatch.setattr(python_api, "_BUILDER", "next")
    assert "added.f" in ensure_python_api(tmp_path / "corpus").label_names()
    (tmp_path / "corpus" / "train.parquet").write_bytes(b"damaged")
    assert "added.f" in Dataset.open(ensure_python_api(tmp_path / "corpus").path, verify=True).label_names()


def test_a_python_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(python_api.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="has no source files"):
        build_python_api(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_installed_packages_are_read_from_their_file_lists(tree):
    names = {name: (file, package) for file, name, package in source_files("installed")}
    assert names["numpy.linalg"][1]
    assert names["numpy.linalg"][0].is_file()
    assert not [name for name in names if ".tests." in name]


def test_nothing_is_imported(tree, tmp_path):
    (tree / "explosive.py").write_text('"""A module that must not run."""\nraise SystemExit("it ran")\n')
    before = set(sys.modules)
    dataset = build_python_api(tmp_path / "out")
    assert "explosive" in dataset.label_names()
    assert not {"explosive", "shelf", "dice"} & (set(sys.modules) - before)


def test_the_standard_library_gives_a_corpus(stdlib_corpus):
    dataset = Dataset.open(stdlib_corpus.path, verify=True)
    assert dataset.meta["details"]["objects"] > 5000
    assert 10_000 < len(dataset.train) < 45_000
    assert len(dataset.test) > 300
    known = set(dataset.label_names())
    wanted = {"builtins.open", "io", "os.path.join", "json.loads", "pathlib.Path.read_text", "random.choice"}
    wanted |= {"time.sleep", "os.mkdir", "collections.abc.Mapping", "collections.deque", "math.sqrt"}
    assert wanted <= known
    assert not [name for name in known if any(part.startswith("_") for part in name.split("."))]


def test_the_standard_library_corpus_is_the_same_every_time(stdlib_corpus, tmp_path):
    assert build_python_api(tmp_path / "again").digest == stdlib_corpus.digest


def test_no_test_text_is_in_train_and_every_test_label_is(stdlib_corpus):
    train, test = stdlib_corpus.train, stdlib_corpus.test
    seen = {normalised(text) for text in train.texts()}
    assert len(seen) == len(train), "no text comes twice"
    assert not [text for text in test.texts() if normalised(text) in seen]
    assert (train.labels.counts(stdlib_corpus.n_labels)[test.labels.ids] > 0).all()
    assert (test.labels.sizes() > 0).all()
    assert (stdlib_corpus.label_frequency() > 0).all(), "every label can be learnt"

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.docstrings import normalised, passages


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Create a directory.", ["Create a directory."]),
        ("Too short.", []),
        ("", []),
        ("   \n  ", []),
        (
            "Open a file and return it. The file is closed when the object goes away. See also io for more things.",
            ["Open a file and return it.", "The file is closed when the object goes away."],
        ),
        (
            "Join path components. Ok. A short one is joined with what comes after it.",
            ["Join path components.", "Ok. A short one is joined with what comes after it."],
        ),
        (
            "Use it for files, e.g. Large ones, or etc. and more. It also reads them back again later.",
            ["Use it for files, e.g. Large ones, or etc. and more.", "It also reads them back again later."],
        ),
    ],
)
def test_sentences_are_passages(docstring, expected):
    assert passages(docstring) == expected


def test_code_and_doctests_are_left_out():
    docstring = """
    Count the elements of a list.

    >>> count([1, 2])
    2

    Elements may be of any kind. The following example shows how it is used with words::

        count(["some words are", "given here in a list of strings"])

    for word in sorted(words):
        print the word that was found in here

    The result is a new mapping of them all.
    """
    assert passages(docstring) == [
        "Count the elements of a list.",
        "Elements may be of any kind.",
        "The result is a new mapping of them all.",
    ]


def test_sections_about_parameters_are_left_out():
    google = """
    Return the value of a setting.

    Args:
        name: the name of the setting that is wanted here
        default: what is returned when there is none of it

    Settings are read only once a day.
    """
    numpy = """
    Return the value of a setting.

    Settings are read only once a day.

    Parameters
    ----------
    name : str
        The name of the setting that is wanted here.

    Returns
    -------
    str
        The value of the setting as it was read.
    """
    sphinx = """
    Return the value of a setting.

    :param name: the name of the setting that is wanted here
        and which goes on in this line
    :returns: the value of the setting as it was read
    Settings are read only once a day.
    """
    expected = ["Return the value of a setting.", "Settings are read only once a day."]
    assert passages(google) == passages(numpy) == passages(sphinx) == expected


@pytest.mark.parametrize(
    ("line", "prose"),
    [
        ("find(sub[, start]) -> int\n\nReturn the lowest index in it.", "Return the lowest index in it."),
        ("sleep(seconds)\n\nDelay execution for some seconds.", "Delay execution for some seconds."),
        ("D.items() -> a set-like object of pairs", "a set-like object of pairs"),
        ("partial(func, *args) - new function with fewer arguments", "new function with fewer arguments"),
        ("string, format -> new datetime parsed from it", "new datetime parsed from it"),
    ],
)
def test_signatures_are_left_out(line, prose):
    assert passages(line) == [prose]


def test_markup_becomes_plain_text():
    docstring = "Return a :class:`~collections.deque` of *all* ``items`` in `the guide <https://example.org/x>`_ here."
    assert passages(docstring) == ["Return a collections.deque of all items in the guide here."]


def test_items_of_a_list_are_passages_of_their_own():
    docstring = """
    Manage the state of a queue.

    - put an element at the end of it
    * take an element from its front
    close() -- wait until nothing is left in it

    =====  ==========================
    'r'    open the file for reading
    'a'    write at the end of the file
    =====  ==========================
    """
    assert passages(docstring) == [
        "Manage the state of a queue.",
        "put an element at the end of it",
        "take an element from its front",
        "wait until nothing is left in it",
        "open the file for reading",
        "write at the end of the file",
    ]


def test_notes_are_kept_and_other_directives_left_out():
    docstring = """
    Remove a tree of folders.

    .. note:: This cannot be undone by anybody.

    .. versionadded:: 3.2
       The function was added to this module.
    """
    assert passages(docstring) == ["Remove a tree of folders.", "This cannot be undone by anybody."]


def test_a_passage_is_bounded_and_not_repeated():
    found = passages("Summary of the object. " + "word " * 500 + ". The same thing again in here. " * 3)
    assert all(len(passage.split()) <= 60 for passage in found)
    assert len(found) == len(set(found))


@given(st.text(max_size=400))
def test_any_text_gives_clean_lines(text):
    for passage in passages(text):
        assert passage == " ".join(passage.split())
        assert len(normalised(passage).split()) >= 1


def test_comparison_ignores_case_and_punctuation():
    assert normalised("Open a File, `now`!") == normalised("open a file now") == "open a file now"

"""Counts in sentences."""

import pytest

from engine.words import counted


@pytest.mark.parametrize(("count", "said"), [(0, "0 texts"), (1, "1 text"), (2000, "2,000 texts")])
def test_one_is_singular(count, said):
    assert counted(count, "text") == said

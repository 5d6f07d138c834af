"""A server of the random model."""

from __future__ import annotations

import pytest

from served import running


@pytest.fixture(scope="session")
def port(random_model):
    with running(random_model) as (_, port):
        yield port

"""A random model, and a server of it."""

from __future__ import annotations

import pytest

from random_model import make_bundle
from served import running


@pytest.fixture(scope="session")
def random_model(tiny_encoder, tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("served") / "model", tiny_encoder, 120)


@pytest.fixture(scope="session")
def port(random_model):
    with running(random_model) as (_, port):
        yield port

"""pytest, as trial does it: the tests run in a directory of their own, and leave nothing elsewhere."""

import pytest


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pytest_unconfigure(config):
    """Let the reactor end its threads, as trial does; Python would wait for them for ever."""
    from twisted.internet import reactor

    reactor.fireSystemEvent("shutdown")

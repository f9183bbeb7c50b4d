"""One server for the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.serving.live_server import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("videos")) as found:
        yield found

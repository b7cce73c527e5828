"""Take what stands before a file of tests begins out of the garbage collector's list.

Guards and samplers look for models in the list of all objects. It is to be as short as in a script of a user, not ten
times as long, for libraries and thousands of collected tests, in each of thousands of tests.
"""

import gc
from collections.abc import Iterator

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Freeze what was imported and collected."""
    _freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Freeze what the tests of a file have imported, when its last one is over."""
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        _freeze()
    return result


def _freeze() -> None:
    gc.collect()
    gc.freeze()

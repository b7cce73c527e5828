"""What a worker of Ray raised, in the words that the same error has here."""

import traceback

import pytest
from trained_apart import task

from evengrad.nouns import SettingError
from evengrad.trial._plan import Plan
from evengrad.trial._ray import OnRay, _connect

exceptions = pytest.importorskip("ray.exceptions", reason="needs the extra ray")


class Raising:
    """A Ray whose tasks have raised."""

    exceptions = exceptions

    def __init__(self, error):
        self.error = error

    def get(self, reference):
        raise self.error


def fails():
    raise KeyError("width")


def test_an_error_in_a_worker_is_told_by_its_kind_and_its_place_in_the_users_code():
    try:
        fails()
    except KeyError as err:
        text, cause = "ray::_train() (pid=7)\n" + traceback.format_exc(), err.with_traceback(None)
    engine = object.__new__(OnRay)
    engine._ray = Raising(exceptions.RayTaskError("_train", text, cause).as_instanceof_cause())
    found = engine._result(None, Plan(task=task(), label="", seed=0, steps=1, stage="baseline", until=1))
    line = fails.__code__.co_firstlineno + 1
    assert found.trial.error.startswith("KeyError: 'width' (")
    assert found.trial.error.endswith(f"test_ray_words.py, line {line}, in fails)")


class NotStarting:
    """A Ray of which no part comes up, as its `node.py` says it."""

    def is_initialized(self):
        return False

    def init(self, address, **settings):
        if address == "auto":
            raise ConnectionError("no running Ray instance")
        raise Exception("The current node timed out during startup.")


def test_a_ray_that_does_not_start_on_this_machine_is_a_setting_that_cannot_be_used():
    with pytest.raises(SettingError, match=r"engine 'ray'.*The current node timed out during startup"):
        _connect(NotStarting(), None)

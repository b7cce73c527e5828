"""What goes to another process and back: it arrives as it was, or there is a reason why it cannot go."""

import importlib.util
import subprocess
import sys
import threading

import cloudpickle
import pytest
import torch
from torch import nn

import evengrad
from evengrad import nouns
from evengrad.cli._load import load_task
from evengrad.trial._shipped import can_be_shipped, packed, unpacked

ERRORS = [
    kind
    for name in nouns.__all__
    if isinstance(kind := getattr(nouns, name), type) and issubclass(kind, nouns.EvengradError)
]

READER = """
import sys
from evengrad.trial._shipped import unpacked
print(unpacked(sys.stdin.buffer.read())())
"""

FILE = """
import torch
from torch import nn
import evengrad

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)
    def forward(self, data):
        return FACTOR * self.inner(data)

FACTOR = 3.0

def task():
    inputs = torch.eye(4)
    return evengrad.Task(
        model=Scaled, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss=nn.functional.mse_loss, train=lambda: [(inputs, torch.ones(4, 2))],
        validate=lambda model: -float((model(inputs) - 1).abs().mean()), steps=3, name=__name__,
    )
"""


def elsewhere(function, everything=False):
    """Call a function in a fresh interpreter that knows nothing of this one."""
    done = subprocess.run(
        [sys.executable, "-c", READER], input=packed(function, everything=everything), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def task(**changes):
    settings = {
        "model": lambda: nn.Linear(2, 1),
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        "loss": nn.functional.mse_loss,
        "train": lambda: [(torch.ones(1, 2), torch.ones(1, 1))],
        "validate": lambda model: 0.0,
        "steps": 3,
    }
    return evengrad.Task(**(settings | changes))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_arrives_with_its_class_and_all_that_it_says(kind):
    error = kind("Task.model", came="nothing", wanted="a model", advice="return one")
    there = unpacked(packed(error))
    assert type(there) is kind
    assert vars(there) == vars(error) == {
        "what": "Task.model", "came": "nothing", "wanted": "a model", "advice": "return one"
    }  # fmt: skip
    assert str(there) == str(error)


def test_every_class_of_error_is_among_those_that_are_tried():
    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert {kind for kind in below(nouns.EvengradError) if kind.__module__.startswith("evengrad.")} == set(ERRORS)


def test_a_closure_and_the_tensor_in_it_arrive_in_a_fresh_interpreter():
    numbers = torch.arange(5.0)

    def odd():
        return (2 * numbers).add(1).tolist()

    assert elsewhere(odd) == "[1.0, 3.0, 5.0, 7.0, 9.0]"


def test_parts_of_one_tensor_travel_once_and_share_their_memory():
    whole = torch.zeros(100_000)
    parts = whole.split(100)
    data = packed(lambda: parts)
    assert len(data) < 10 * whole.nbytes  # a plain pickle writes all of it 1,000 times
    first, second, *_ = unpacked(data)()
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_the_task_of_a_file_arrives_where_the_file_cannot_be_imported(tmp_path):
    path = tmp_path / "some_training.py"
    path.write_text(FILE)
    found = load_task(f"{path}:task")
    sys.path.remove(str(tmp_path))
    assert elsewhere(lambda: found.model()(torch.zeros(1, 4)).shape) == "torch.Size([1, 2])"
    assert elsewhere(lambda: found.name) == "_evengrad_task_some_training"


def test_a_module_that_can_be_imported_travels_by_name_and_by_value_only_when_all_do(tmp_path, monkeypatch):
    path = tmp_path / "neighbour_of_a_task.py"
    path.write_text("import sys\n\ndef answer():\n    return 'neighbour_of_a_task' in sys.modules\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("neighbour_of_a_task")
    assert b"neighbour_of_a_task" in packed(module.answer)
    assert len(packed(module.answer)) < len(packed(module.answer, everything=True))
    assert elsewhere(module.answer, everything=True) == "False"


def test_packing_leaves_the_registry_of_cloudpickle_as_it_was(tmp_path):
    path = tmp_path / "another_training.py"
    path.write_text(FILE)
    found = load_task(f"{path}:task")
    sys.path.remove(str(tmp_path))
    packed(found, everything=True)
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_the_function_that_cannot_be_shipped_is_named():
    lock = threading.Lock()
    generator = (number for number in range(3))
    assert can_be_shipped(task()) == ""
    assert can_be_shipped(task(validate=lambda model: lock.locked())).startswith("Task.validate: ")
    assert "lock" in can_be_shipped(task(validate=lambda model: lock.locked()))
    assert can_be_shipped(task(train=lambda: generator)).startswith("Task.train: ")


class Unpackable:
    def __reduce__(self):
        raise KeyError("no way to pack this")


def test_where_the_users_code_fails_to_be_packed_is_said():
    held = Unpackable()
    words = can_be_shipped(task(validate=lambda model: held))
    line = Unpackable.__reduce__.__code__.co_firstlineno + 1
    assert words.startswith("Task.validate: KeyError: 'no way to pack this' (")
    assert words.endswith(f"test_shipped.py, line {line}, in __reduce__)")

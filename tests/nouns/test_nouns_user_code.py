"""What user code raises, in one line that says where in it."""

import importlib.util
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from evengrad.nouns import TaskError, called, in_words, made


def module_of(path, text):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(function, *args):
    with pytest.raises(TaskError, match="it: got ") as caught:
        called("it", partial(function, *args), wanted="no error")
    return caught.value.came


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_innermost_place_of_the_users_own_is_said(here):
    text = "def outer(data):\n    return inner(data)\n\ndef inner(data):\n    return data['x']\n"
    own = module_of(here / "own.py", text)
    assert said(own.outer, {}) == "KeyError: 'x' (own.py, line 5, in inner)"


def test_a_place_inside_of_torch_is_not_said_where_the_user_has_one(here):
    own = module_of(here / "own.py", "def loss(layer, data):\n    return layer(data)\n")
    assert said(own.loss, nn.Linear(2, 2), torch.zeros(1, 3)).endswith(" (own.py, line 2, in loss)")


def test_a_place_inside_of_torch_is_said_where_the_user_has_none():
    words = said(nn.CrossEntropyLoss(), torch.zeros(2, 3), torch.zeros(1, dtype=torch.long))
    assert "(torch/nn/functional.py, line " in words
    assert words.endswith(", in cross_entropy)")


def test_no_place_inside_of_evengrad_is_said():
    assert said(made, int, "it", str) == "int"
    assert said(len, 1) == "TypeError: object of type 'int' has no len()"


def test_a_path_below_the_working_directory_is_relative_and_one_elsewhere_is_a_name(here, tmp_path_factory):
    (here / "parts").mkdir()
    text = "def fails():\n    raise ValueError\n"
    assert said(module_of(here / "parts" / "own.py", text).fails) == "ValueError (parts/own.py, line 2, in fails)"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "other.py"
    assert said(module_of(elsewhere, text).fails) == "ValueError (other.py, line 2, in fails)"


def test_a_mistake_in_the_syntax_is_where_it_stands(here):
    (here / "wrong.py").write_text("x = 1\ndef task(:\n")
    own = module_of(here / "own.py", "import runpy\ndef load():\n    runpy.run_path('wrong.py')\n")
    assert said(own.load) == "SyntaxError: invalid syntax (wrong.py, line 2)"


class Rows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise KeyError(f"row {index}")


def test_the_place_in_a_worker_of_a_data_loader_is_said():
    words = said(lambda: list(DataLoader(Rows(), num_workers=1, multiprocessing_context="fork")))
    line = Rows.__getitem__.__code__.co_firstlineno + 1
    assert words.startswith("KeyError: KeyError: 'row 0' (")
    assert words.endswith(f"test_nouns_user_code.py, line {line}, in __getitem__)")


def test_it_is_one_line_of_at_most_300_characters_that_steers_no_terminal(here):
    name = "b" * 200
    own = module_of(here / "own.py", f"def {name}(text):\n    raise ValueError(text)\n")
    words = said(getattr(own, name), "red \x1b[31m\n" * 100)
    assert len(words) == 300
    assert words.isprintable()
    assert words.startswith("ValueError: red ?[31m red ?[31m ")
    assert f" (own.py, line 2, in {name[:40]})" in words


def test_an_error_that_cannot_say_anything_is_told_by_its_kind(here):
    text = "class Mute(Exception):\n    def __str__(self):\n        return 1\n\ndef fails():\n    raise Mute\n"
    assert said(module_of(here / "own.py", text).fails) == "Mute (own.py, line 6, in fails)"


def test_without_a_working_directory_a_file_has_a_name(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    own = module_of(tmp_path / "own.py", "def fails():\n    raise ValueError\n")
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert said(own.fails) == "ValueError (own.py, line 2, in fails)"


def test_what_was_being_done_stands_behind_the_kind():
    assert in_words(ZeroDivisionError("no"), when="while it was copied") == "ZeroDivisionError while it was copied: no"


def test_what_a_factory_made_instead_is_named_and_told_from_what_was_wanted():
    with pytest.raises(TaskError, match=r"it: got Linear, want a function that makes an Optimizer$"):
        made(lambda: nn.Linear(1, 1), "it", torch.optim.Optimizer)
    own = type("Optimizer", (), {"__module__": "own"})
    with pytest.raises(TaskError, match=r"it: got own\.Optimizer, want a function that makes an Optimizer$"):
        made(own, "it", torch.optim.Optimizer)
    with pytest.raises(TaskError, match=r"it: got NoneType, want a function that makes a Module$"):
        made(lambda: None, "it", nn.Module)

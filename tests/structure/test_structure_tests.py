"""The rules for tests: each can fail, and says which error it expects."""

import pytest
from house_source import PROJECT
from house_tests import empty_test_problems, match_problems, same_name_problems

TESTS = PROJECT / "tests"


def test_every_test_can_fail():
    assert empty_test_problems(TESTS) == []


def test_every_expected_error_is_named_by_its_message():
    assert match_problems(TESTS) == []


def test_every_test_file_has_a_name_of_its_own():
    assert same_name_problems(TESTS) == []


@pytest.mark.parametrize(
    "body",
    ["f()", "x = 1", "with open(p): f()", "helper()", "with Quiet(): f()", "@given(s)\n    def inner(x): f(x)"],
)
def test_a_test_that_cannot_fail_is_found(tree, body):
    helpers = "def helper():\n    return 1\n\nclass Quiet: ...\n\n"
    root = tree({"test_a.py": f"{helpers}def test_nothing():\n    {body}\n", "conftest.py": "def test_x(): f()\n"})
    assert empty_test_problems(root) == ["test_a.py:6: test_nothing asserts nothing"]


@pytest.mark.parametrize(
    "body",
    [
        "assert x",
        "with pytest.raises(ValueError, match='a'): f()",
        "torch.testing.assert_close(a, b)",
        "check_same(a, b)",
        "close(a)",
        "indirectly(a)",
        "with NoReads(): f()",
    ],
)
def test_a_test_that_can_fail_is_let_through(tree, body):
    functions = "def close(a):\n    assert a\ndef indirectly(a):\n    close(a)\n"
    helpers = f"{functions}class NoReads:\n    def f(self):\n        assert 1\n"
    assert empty_test_problems(tree({"test_a.py": f"{helpers}class TestA:\n  def test_it():\n    {body}\n"})) == []


@pytest.mark.parametrize("name", ["pytest.raises", "pytest.warns"])
def test_an_expected_error_without_a_message_is_found(tree, name):
    text = f"def test_a():\n    with {name}(ValueError): f()\n    with {name}(ValueError, match='a'): f()\n"
    assert match_problems(tree({"test_a.py": text})) == [f"test_a.py:2: {name} without match="]


def test_two_files_of_one_name_are_found(tree):
    root = tree({"clip/test_a.py": "", "guard/test_a.py": "", "clip/conftest.py": "", "guard/conftest.py": ""})
    assert same_name_problems(root) == ["clip/test_a.py and guard/test_a.py have the same name"]

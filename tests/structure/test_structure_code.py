"""The rules for files, classes and functions: the package keeps them, and a file that does not is found."""

import house_code as code
import pytest
from house_source import FOLDERS, PACKAGE

CHECKS = [
    code.all_problems,
    code.dataclass_problems,
    code.final_problems,
    code.left_over_problems,
    code.name_problems,
    code.parameter_problems,
    code.private_torch_problems,
    code.safety_problems,
    code.swallow_problems,
]

FAULTS = [
    (code.length_problems, "a/_a.py", "'A.'\n" * 401, "401: 401 lines, more than 400: two ideas"),
    (code.docstring_problems, "_a.py", "import os\n", "1: no docstring"),
    (
        code.docstring_problems,
        "_a.py",
        "'''A sentence\nof two lines.'''",
        "1: the docstring's first sentence is not a line of its own",
    ),
    (
        code.docstring_problems,
        "_a.py",
        "'''\nA sentence.'''",
        "1: the docstring's first sentence is not a line of its own",
    ),
    (code.name_problems, "clip/norms.py", "", "1: a public module: name it _norms.py"),
    (code.name_problems, "clip/_utils.py", "", "1: `_utils` says nothing of what is in it"),
    (code.name_problems, "common/_a.py", "", "1: `common` says nothing of what is in it"),
    (
        code.all_problems,
        "__init__.py",
        "from a import b, c\n__all__ = ['c', 'b']\n",
        "2: __all__ is not sorted, or names something twice",
    ),
    (
        code.all_problems,
        "__init__.py",
        "from a import b\n__all__ = ['b', 'b']\n",
        "2: __all__ is not sorted, or names something twice",
    ),
    (
        code.all_problems,
        "__init__.py",
        "from a import b as c\n__all__ = ['b', 'c']\n",
        "2: __all__ names b, which is not there",
    ),
    (code.all_problems, "__init__.py", "from a import b\n", "1: names without an __all__"),
    (code.all_problems, "_a.py", "from os import *\n", "1: imports *"),
    (
        code.private_torch_problems,
        "clip/_a.py",
        "torch._foreach_mul_(grads, 2.0)\n",
        "1: torch._foreach_mul_ is private to torch",
    ),
    (
        code.private_torch_problems,
        "clip/_a.py",
        "from torch._dynamo import reset\n",
        "1: torch._dynamo.reset is private to torch",
    ),
    (code.private_torch_problems, "clip/_a.py", "\ntorch._C.Node.f()\n", "2: torch._C is private to torch"),
    (code.parameter_problems, "_a.py", "def f(a, b, c, d, e, g): ...\n", "1: f has 6 positional parameters"),
    (
        code.parameter_problems,
        "_a.py",
        "class A:\n    def f(self, a, b, c, d, e, /, g): ...\n",
        "2: f has 6 positional parameters",
    ),
    (
        code.parameter_problems,
        "_a.py",
        "class A:\n    @staticmethod\n    def f(a, b, c, d, e, g): ...\n",
        "3: f has 6 positional parameters",
    ),
    (
        code.dataclass_problems,
        "_a.py",
        "@dataclass(frozen=True, kw_only=True)\nclass A:\n    a: int\n",
        "2: A has no slots",
    ),
    (
        code.dataclass_problems,
        "_a.py",
        "@dataclass(slots=True, kw_only=True)\nclass A:\n    a: int\n",
        "2: A is not frozen",
    ),
    (
        code.dataclass_problems,
        "_a.py",
        "@dataclass(frozen=True, slots=True)\nclass A:\n    a: int\n    b: int\n",
        "2: A takes 2 fields by position",
    ),
    (code.dataclass_problems, "_a.py", "@dataclasses.dataclass\nclass _A:\n    a: int\n", "2: _A has no slots"),
    (code.final_problems, "_a.py", "class A(AbstractRule): ...\n", "1: A is neither abstract nor final"),
    (code.final_problems, "_a.py", "class A(x.AbstractThing[int]): ...\n", "1: A is neither abstract nor final"),
    (code.left_over_problems, "_a.py", "print(1)\n", "1: print: use logging, or return text"),
    (code.left_over_problems, "_a.py", "sys.stderr.write('a')\n", "1: sys.stderr.write: use logging, or return text"),
    (code.left_over_problems, "_a.py", "a = 1\n# TODO: two\n", "2: TODO: do it, or open an issue"),
    (code.swallow_problems, "_a.py", "try:\n    f()\nexcept:\n    g()\n", "3: except without a class"),
    (
        code.swallow_problems,
        "_a.py",
        "try:\n    f()\nexcept (OSError, Exception):\n    pass\n",
        "3: any error is passed over",
    ),
    (code.swallow_problems, "_a.py", "with contextlib.suppress(Exception):\n    f()\n", "1: any error is passed over"),
    (code.safety_problems, "_a.py", "import pickle\n", "1: pickle runs what it reads"),
    (
        code.safety_problems,
        "_a.py",
        "def f():\n    from urllib.request import urlopen\n",
        "2: urllib.request.urlopen talks to the network",
    ),
    (code.safety_problems, "_a.py", "torch.load(path)\n", "1: torch.load runs what it reads"),
    (code.safety_problems, "_a.py", "torch.load(path, weights_only=False)\n", "1: torch.load runs what it reads"),
    (code.safety_problems, "_a.py", "exec(text)\n", "1: exec runs what it reads"),
    (code.safety_problems, "_a.py", "os.environ.get('EVENGRAD_HOME')\n", "1: os.environ listens to the environment"),
    (code.safety_problems, "_a.py", "os.environ['CI'] = '1'\n", "1: os.environ listens to the environment"),
    (code.safety_problems, "_a.py", "os.getenv('HOME')\n", "1: os.getenv listens to the environment"),
    (code.safety_problems, "_a.py", "from os import environ\n", "1: os.environ listens to the environment"),
]

KEPT = [
    (code.docstring_problems, "_a.py", "'''A sentence.\n\nAnd more.'''"),
    (code.name_problems, "integrations/keras.py", ""),
    (code.all_problems, "__init__.py", "'''Nothing is exported.'''"),
    (code.all_problems, "__init__.py", "if TYPE_CHECKING:\n    from a import A\ndef b(): ...\n__all__ = ['A', 'b']\n"),
    (code.private_torch_problems, "measure/_a.py", "torch._foreach_mul_(grads, 2.0)\n"),
    (code.private_torch_problems, "clip/_a.py", "torch.compiler.f(torch.__version__, model._modules)\n"),
    (code.private_torch_problems, "clip/_a.py", "from torch.nn.modules.batchnorm import _BatchNorm\n"),
    (code.parameter_problems, "_a.py", "class A:\n    def f(self, a, b, c, d, e, *, g, h): ...\n"),
    (
        code.dataclass_problems,
        "_a.py",
        "@dataclass(frozen=True, slots=True)\nclass A:\n    a: int\n    _: KW_ONLY\n    b: int\n",
    ),
    (code.dataclass_problems, "_a.py", "@dataclass(slots=True, kw_only=True)\nclass _Sum:\n    a: int\n"),
    (code.final_problems, "_a.py", "@final\nclass A(AbstractRule): ...\nclass AbstractB(AbstractRule): ...\n"),
    (code.left_over_problems, "cli/_a.py", "print(1)\n"),
    (code.swallow_problems, "_a.py", "try:\n    f()\nexcept Exception:\n    return False\nexcept OSError:\n    pass\n"),
    (
        code.safety_problems,
        "_a.py",
        "os.environ.get('NO_COLOR')\nos.getenv('CI')\nos.environ['CI']\n'CI' in os.environ\n",
    ),
    (code.safety_problems, "_a.py", "torch.load(path, weights_only=True)\nmodel.eval()\nimport urllib.parse\n"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_rule(check):
    assert check(PACKAGE) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_file_of_the_project_is_short_and_says_what_it_holds(folder):
    assert code.length_problems(folder) == []
    assert code.docstring_problems(folder) == []


@pytest.mark.parametrize(("check", "name", "text", "problem"), FAULTS)
def test_a_fault_is_found_where_it_is(tree, check, name, text, problem):
    assert check(tree({"fine/_fine.py": "'''Fine.'''\n", name: text})) == [f"{name}:{problem}"]


@pytest.mark.parametrize(("check", "name", "text"), KEPT)
def test_what_keeps_the_rule_is_let_through(tree, check, name, text):
    assert check(tree({name: text})) == []


def test_every_check_has_been_seen_to_fail():
    every = {getattr(code, name) for name in dir(code) if name.endswith("_problems")}
    assert {check for check, *_ in FAULTS} == every
    assert {*CHECKS, code.length_problems, code.docstring_problems} == every

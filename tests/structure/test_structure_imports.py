"""The rows of the house: who may import whom, and what stays free of torch."""

import subprocess
import sys
import tomllib
from textwrap import dedent

import pytest
from house_imports import (
    DEPENDENCIES,
    NEIGHBOURS,
    ROWS,
    TORCH_FREE,
    layer_problems,
    library_problems,
    torch_problems,
)
from house_source import PACKAGE, PROJECT, modules

import evengrad


def run(code: str) -> str:
    """Run code in a fresh Python, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_part_imports_from_lower_rows_only():
    assert layer_problems(PACKAGE) == []


def test_the_rows_are_those_of_the_parts_that_there_are():
    parts = {module.part for module in modules(PACKAGE)} - {""}
    assert parts <= set(ROWS)
    assert set(ROWS) - parts <= {"integrations"}
    assert all(ROWS[one] == ROWS[other] for one, other in NEIGHBOURS)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("measure/_a.py", "from evengrad.clip import ALL\n", "`measure` on row 2 imports evengrad.clip.ALL on row 3"),
        ("clip/_a.py", "import evengrad.probe\n", "`clip` on row 3 imports evengrad.probe on row 3"),
        ("report/_a.py", "\nfrom evengrad import trial\n", "`report` on row 3 imports evengrad.trial on row 4"),
        ("checkup/_a.py", "from evengrad import trial\n", "`checkup` on row 4 imports evengrad.trial on row 4"),
        ("guard/_a.py", "from ..checkup import x\n", "`guard` on row 4 imports evengrad.checkup.x on row 4"),
        (
            "reference/_a.py",
            "from evengrad.nouns import SettingError\n",
            "`reference` on row 1 imports evengrad.nouns.SettingError on row 1",
        ),
        ("reference/_a.py", "import evengrad\n", "imports evengrad: name a part"),
        ("nouns/_a.py", "def f():\n    import evengrad.runlog\n", "`nouns` on row 1 imports evengrad.runlog on row 2"),
        (
            "probe/_a.py",
            "if TYPE_CHECKING:\n    import evengrad.guard\n",
            "`probe` on row 3 imports evengrad.guard on row 4",
        ),
        ("clip/_a.py", "f('x')\nimport_module('evengrad.guard')\n", "`clip` on row 3 imports evengrad.guard on row 4"),
        ("clip/_a.py", "import_module(name)\n", "imports by a name that is made at run time"),
        ("treat/_a.py", "from evengrad import Guard\n", "imports evengrad.Guard: name a part"),
        ("cli/_a.py", "import evengrad.integrations\n", "`cli` on row 5 imports evengrad.integrations on row 5"),
        ("extras/_a.py", "", "`extras` stands on no row: give it one"),
        ("_a.py", "", "a module outside of every part"),
    ],
)
def test_an_import_against_the_rows_is_found(tree, name, text, problem):
    line = 1 + next((n for n, part in enumerate(text.splitlines()) if "import" in part), 0)
    assert layer_problems(tree({name: text})) == [f"{name}:{line}: {problem}"]


def test_imports_along_the_rows_are_let_through(tree):
    root = tree(
        {
            "__init__.py": "from evengrad.trial import repair\nimport_module(name)\n",
            "__main__.py": "from evengrad.cli import main\n",
            "trial/_a.py": "from evengrad.checkup import checkup\nfrom evengrad import report\nfrom . import _b\n",
            "cli/_a.py": "import evengrad\nfrom evengrad.guard import Guard\nimport_module(name)\n",
        }
    )
    assert layer_problems(root) == []


def test_the_torch_free_parts_never_import_torch():
    assert torch_problems(PACKAGE) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("runlog/_a.py", "import torch.nn\n", "1: `runlog` needs torch.nn at run time"),
        ("diagnose/_a.py", "def f():\n    from torch import nn\n", "2: `diagnose` needs torch.nn at run time"),
        (
            "report/_a.py",
            "from evengrad.measure import Norms\n",
            "1: `report` needs evengrad.measure.Norms at run time",
        ),
        ("nouns/_a.py", "import numpy\n", "1: `nouns` needs numpy: want the standard library only"),
        ("reference/_a.py", "import torch\n", "1: `reference` needs torch at run time"),
        (
            "reference/_a.py",
            "import numpy\nimport rich.text\n",
            "2: `reference` needs rich.text: want numpy and the standard library only",
        ),
        ("nouns/_a.py", "if not TYPE_CHECKING:\n    import torch\n", "2: `nouns` needs torch at run time"),
        ("nouns/_a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch\n", "4: `nouns` needs torch at run time"),
    ],
)
def test_torch_in_a_torch_free_part_is_found(tree, name, text, problem):
    assert torch_problems(tree({name: text})) == [f"{name}:{problem}"]


def test_torch_for_a_type_checker_and_in_other_parts_is_let_through(tree):
    root = tree(
        {
            "nouns/_a.py": "import os\nif TYPE_CHECKING:\n    from torch import nn\n",
            "clip/_a.py": "import torch\n",
            "reference/_a.py": "import math\nfrom numpy.typing import NDArray\nfrom evengrad.reference._b import f\n",
        }
    )
    assert torch_problems(root) == []


def test_logs_rules_and_reports_work_where_torch_cannot_be_imported():
    parts = ", ".join(f"evengrad.{part}" for part in sorted(TORCH_FREE))
    code = f"import sys; sys.modules['torch'] = None; import evengrad, {parts}; print(evengrad.explain('EG101')[:5])"
    assert run(code) == "EG101"


def test_the_reference_works_with_numpy_alone():
    others = sorted(set(DEPENDENCIES) - {"numpy"})
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys({others}))
        import evengrad.reference as reference
        parts = {{name.split(".")[1] for name in sys.modules if name.startswith("evengrad.")}}
        print(parts, reference.norm([3, 4]))
    """
    assert run(dedent(code)) == "{'reference'} 5.0"


def test_importing_evengrad_imports_nothing_else():
    heavy = ["torch", "numpy", "rich", "nanoarrow", "plotly", "jinja2", "tyro"]
    assert run(f"import sys, evengrad; print([name for name in {heavy} if name in sys.modules])") == "[]"
    assert run("import sys, evengrad; print([name for name in sys.modules if name.startswith('evengrad.')])") == "[]"


def test_every_public_name_is_there_and_in_dir():
    assert all(getattr(evengrad, name) is not None for name in evengrad.__all__)
    assert dir(evengrad) == sorted([*evengrad.__all__, "__version__", "clip", "reference"])
    assert evengrad.clip.ByGlobalNorm is evengrad.ByGlobalNorm
    assert evengrad.reference.norm is not None
    assert evengrad.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = evengrad.Nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["checkup", "diagnose"])
def test_a_function_stays_a_function_after_the_room_of_its_name_was_imported(name):
    assert run(f"import evengrad, evengrad.{name}; print(callable(evengrad.{name}))") == "True"
    assert run(f"from evengrad.{name} import {name}; import evengrad; print(evengrad.{name} is {name})") == "True"


def test_every_library_is_declared_and_known_in_its_place_only():
    assert library_problems(PACKAGE) == []
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(DEPENDENCIES.values()) == sorted(one.split(">=")[0] for one in project["dependencies"])


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("clip/_a.py", "import scipy\n", "scipy is not a dependency"),
        ("runlog/_b.py", "from nanoarrow import ipc\n", "nanoarrow is known in runlog/_arrow.py only"),
        ("trial/_a.py", "import tyro\n", "tyro is known in cli/ only"),
    ],
)
def test_a_library_out_of_place_is_found(tree, name, text, problem):
    assert library_problems(tree({name: text})) == [f"{name}:1: {problem}"]

"""Let the tests of the house import the rules beside them, and build small trees to try them on."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

Tree = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write files below a folder `evengrad`, each with a docstring of its own unless it begins with one."""

    def write(files: Mapping[str, str]) -> Path:
        root = tmp_path / "evengrad"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return root

    return write

"""The pages and settings that the rules of the house rest on."""

import tomllib
from pathlib import Path

import pytest
from house_pages import HEADINGS, constraint_problems, decision_problems, link_problems
from house_source import PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((PROJECT / "docs" / "decisions").glob("*.md")),
]
WHOLE = "\n".join(HEADINGS)


def decisions(folder: Path, index: str, **pages: str) -> Path:
    (folder / "README.md").write_text(index, encoding="utf-8")
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


def project(folder: Path, constraints: str) -> Path:
    settings = (
        '[project]\nname = "a"\ndependencies = ["torch>=2.6"]\noptional-dependencies = {dev = ["a[x]", "Rich"]}\n'
    )
    (folder / "pyproject.toml").write_text(settings, encoding="utf-8")
    (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
    return folder


def test_every_decision_has_its_four_parts_and_a_line_in_the_index():
    assert decision_problems(PROJECT / "docs" / "decisions") == []


@pytest.mark.parametrize(
    ("name", "text", "index", "problem"),
    [
        ("0001-a", WHOLE.replace("## Evidence", "## Proof"), "[a](0001-a.md)", "0001-a.md: no line '## Evidence'"),
        ("0001-a", WHOLE, "nothing", "0001-a.md: not in README.md"),
        ("0002-a", WHOLE, "[a](0002-a.md)", "0002-a.md: want 0001-title-in-small-letters.md"),
    ],
)
def test_a_decision_that_lacks_something_is_found(tmp_path, name, text, index, problem):
    assert decision_problems(decisions(tmp_path, index, **{name: text})) == [problem]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_every_link_leads_somewhere(page):
    assert link_problems(page) == []


def test_a_link_to_nothing_is_found(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("[a](b.md#c) [d](a.md) [e](https://example.org/f.md) [g](#h)", encoding="utf-8")
    assert link_problems(page) == ["a.md: no file b.md"]


def test_every_dependency_has_one_version_that_the_tests_run_with():
    assert constraint_problems(PROJECT) == []


@pytest.mark.parametrize(
    ("constraints", "problem"),
    [
        ("torch==2.13.0\n", "constraints.txt: no exact version of rich"),
        ("torch==2.13.0+cpu\nrich==15.0.0\n", "constraints.txt: torch==2.13.0+cpu is a local build"),
        ("torch>=2.6\nrich==15.0.0\n", "constraints.txt: no exact version of torch"),
    ],
)
def test_a_version_that_is_not_exact_or_local_is_found(tmp_path, constraints, problem):
    assert constraint_problems(project(tmp_path, constraints)) == [problem]


def test_every_page_speaks_of_the_same_version():
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_makefile_uses_the_versions_as_constraints_and_never_as_requirements():
    recipe = (PROJECT / "Makefile").read_text(encoding="utf-8")
    assert "-c constraints.txt" in recipe
    assert "-r constraints.txt" not in recipe


def test_examples_in_docstrings_run_and_warnings_are_errors():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    pytest_settings = settings["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in pytest_settings["addopts"]
    assert {"tests", "src"} <= set(pytest_settings["testpaths"])
    assert pytest_settings["filterwarnings"][0] == "error"
    assert settings["tool"]["mypy"]["strict"] is True

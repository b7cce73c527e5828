"""What pages and settings of the project must have."""

import re
import tomllib
from pathlib import Path

HEADINGS = ("## Context", "## Choice", "## Evidence", "## Consequences")


def decision_problems(folder: Path) -> list[str]:
    """Report decision pages that lack a part, share a number, or are not in the index."""
    index = (folder / "README.md").read_text(encoding="utf-8")
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    problems = []
    for number, page in enumerate(pages, start=1):
        lines = page.read_text(encoding="utf-8").splitlines()
        if not re.fullmatch(rf"{number:04d}-[a-z0-9-]+\.md", page.name):
            problems.append(f"{page.name}: want {number:04d}-title-in-small-letters.md")
        if f"({page.name})" not in index:
            problems.append(f"{page.name}: not in README.md")
        problems += [f"{page.name}: no line {heading!r}" for heading in HEADINGS if heading not in lines]
    return problems


def link_problems(page: Path) -> list[str]:
    """Report links of a page to files that are not there."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    return [f"{page.name}: no file {target}" for target in local if not (page.parent / target).exists()]


def constraint_problems(root: Path) -> list[str]:
    """Report dependencies without an exact version in constraints.txt, and builds that only one machine has."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project.get("optional-dependencies", {}).values() for one in extra),
    ]
    names = {re.split(r"[\[<>=!~; ]", one)[0].lower() for one in wanted} - {project["name"]}
    pinned = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line):
            pinned[match[1].lower()] = match[2]
    problems = [f"constraints.txt: no exact version of {name}" for name in sorted(names - set(pinned))]
    problems += [
        f"constraints.txt: {name}=={version} is a local build" for name, version in pinned.items() if "+" in version
    ]
    return problems

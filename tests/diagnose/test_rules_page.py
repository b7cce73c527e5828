"""The page of all rules in the docs is what the rules themselves say; run this file to write it anew."""

import inspect
import re
from pathlib import Path

from evengrad.diagnose import rules

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"
TOLD = {
    "harm": "a run in which it speaks at the end is sick",
    "always": "told wherever in a run it speaks",
    "cause": "told only in a run that another rule has found sick",
}
HEAD = """# The rules

Every rule with its page, as `evengrad explain CODE` prints it. How they make one story: [diagnose.md](diagnose.md).

"""


def page():
    """Write the page from the rules."""
    rows = ["| code | symptom | family | told |", "| --- | --- | --- | --- |"]
    rows += [f"| [{one.code}](#{one.code.lower()}) | {one.symptom} | {one.family} | {one.tells} |" for one in rules.ALL]
    told = "\n".join(f"- *{tells}*: {meaning}." for tells, meaning in TOLD.items())
    parts = [HEAD + "\n".join(rows), told]
    for one in rules.ALL:
        text = inspect.getdoc(type(one)) or ""
        title, _, rest = text.partition("\n\n")
        rest = re.sub(
            r"^(\w[\w ]*):\n((?:    .*\n?|\n)+)", lambda match: _section(match[1], match[2]), rest, flags=re.M
        )
        parts.append(f'<a id="{one.code.lower()}"></a>\n\n## {one.code} {title}\n\n{rest.strip()}')
    return "\n\n".join(parts) + "\n"


def _section(name, body):
    return f"**{name}.** {inspect.cleandoc(body)}\n\n"


def test_the_page_says_what_the_rules_say():
    assert PAGE.read_text(encoding="utf-8") == page(), f"python {Path(__file__).name} writes it anew"


def test_every_rule_is_told_in_a_way_that_is_explained():
    assert {rule.tells for rule in rules.ALL} <= set(TOLD)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

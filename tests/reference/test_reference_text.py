"""The page that teaches with the reference runs, and prints what it says it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from evengrad import reference

PAGE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+")


def transcript(page: str) -> list[tuple[str, str]]:
    """Run the blocks in their order, in one namespace: what each printed, and what the page says it prints."""
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(page)]
    following = [*blocks[1:], ("", "")]
    namespace: dict[str, object] = {}
    results = []
    for (kind, code), (next_kind, text) in zip(blocks, following, strict=True):
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, namespace)
            results.append((printed.getvalue(), text if next_kind == "text" else ""))
    return results


def figures_without_code(page: str) -> list[str]:
    """Find the figures of the prose that stand in no output; titles of papers and inline code do not count."""
    printed = {float(one) for kind, text in BLOCK.findall(page) if kind == "text" for one in NUMBER.findall(text)}
    prose = re.sub(r"arXiv:\S+|`[^`\n]+`", "", BLOCK.sub("", page))
    return [one for one in NUMBER.findall(prose) if float(one) not in printed]


def test_every_block_prints_what_stands_below_it():
    results = transcript(PAGE)
    assert len(results) > 10
    for printed, stated in results:
        assert printed == stated


def test_every_figure_in_the_prose_is_printed_by_a_block():
    assert figures_without_code(PAGE) == []


def test_every_method_of_the_reference_is_named_on_the_page():
    helpers = {"norm", "total_norm", "squared_norms", "fans", "he_std", "xavier_std", "activation_gain", "activate"}
    helpers |= {"batch_norm_eval", "batch_norm_backward", "central_differences", "mean_squared_error"}
    methods = {name for name in reference.__all__ if name[0].islower()} - helpers
    assert [name for name in sorted(methods) if not re.search(rf"\b{name}\b", PAGE)] == []


@pytest.mark.parametrize("line", ["print(2.25)", "x = 1"])
def test_an_output_that_is_not_printed_is_noticed(line):
    ((printed, stated),) = transcript(f"```python\n{line}\n```\n\n```text\n2.50\n```\n")
    assert printed != stated


def test_a_print_without_an_output_below_it_is_noticed():
    assert transcript("```python\nprint(1)\n```\n\nWords.\n") == [("1\n", "")]


def test_a_figure_that_nothing_prints_is_noticed():
    page = "```text\n2.50 1e-08\n```\nIt is 2.5, not 2.6, and 1e-8, see arXiv:1412.6980 and `eps=1e-9`.\n"
    assert figures_without_code(page) == ["2.6"]

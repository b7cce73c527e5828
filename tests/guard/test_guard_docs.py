"""The page about the guard and the guard's part of the README run, and print what they say they print."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from evengrad import Event, Guard, Rollback, clip
from evengrad.clip import transforms

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guard.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)
SECTION = re.compile(r"\n## Guard a training\n.*?(?=\n## )", re.DOTALL)
NAMES = {"model", "optimizer", "batches", "loss_function", "scheduler", "scaler"}


def theirs() -> dict[str, object]:
    """Return what the pages call the reader's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    return {
        "model": model,
        "optimizer": optimizer,
        "batches": [(torch.randn(5, 3), torch.randn(5, 2)) for _ in range(8)],
        "loss_function": nn.functional.mse_loss,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
    }


def blocks(page: str) -> list[tuple[str, str]]:
    """Find the blocks of Python, and the text that each is said to print."""
    found = [(match[1], match[2]) for match in BLOCK.finditer(page)]
    following = [*found[1:], ("", "")]
    pairs = zip(found, following, strict=True)
    return [(code, text if kind == "text" else "") for (name, code), (kind, text) in pairs if name == "python"]


def printed(code: str) -> str:
    """Run a block by itself, with what is the reader's own; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, theirs())
    return out.getvalue()


def guard_section(readme: str) -> str:
    """Cut out the README's part about the guard."""
    (found,) = SECTION.findall(readme)
    return str(found)


def unnamed(names: set[str], page: str) -> list[str]:
    """Find the names that do not stand on a page as code."""
    return sorted(name for name in names if not re.search(rf"`{name}\b|\b{name}=", page))


@pytest.mark.parametrize(("code", "stated"), blocks(PAGE))
def test_every_block_runs_and_prints_what_stands_below_it(code, stated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert printed(code) == stated


def test_every_block_of_the_readme_about_the_guard_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(guard_section(README))
    assert found
    for code, stated in found:
        assert printed(code) == stated


def test_there_are_blocks_with_and_without_an_output():
    found = blocks(PAGE)
    assert len([text for _, text in found if text]) >= 5
    assert len([text for _, text in found if not text]) >= 5


def test_the_page_says_which_names_are_the_readers_own():
    assert unnamed(NAMES, PAGE.split("```")[0]) == []
    assert set(theirs()) == NAMES


def test_every_policy_and_every_transform_is_on_the_page():
    public = {one for one in transforms.__all__ if one.endswith("_")}
    kinds = {kind.__name__ for kind in (*clip.ALL, *transforms.ALL)}
    assert unnamed(kinds | public, PAGE) == []


def test_every_transform_stands_in_the_table_with_when_it_acts_and_whether_it_needs_the_host():
    for kind in transforms.ALL:
        (row,) = re.findall(rf"^\| `{kind.__name__}\(.*$", PAGE, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        inherited = "Leave the gradients alone" in str(kind.before_.__doc__)
        assert cells[3] == ("after" if inherited else "before")
        assert cells[4] == ("yes" if kind.needs_host else "no")


def test_every_file_that_the_page_speaks_of_is_there():
    links = re.findall(r"\]\(([^)#\s]+)", PAGE)
    programs = re.findall(r"python (benchmarks/\w+\.py)", PAGE)
    assert len(links) > 3
    assert len(programs) > 3
    assert [one for one in links if not (ROOT / "docs" / one).exists()] == []
    assert [one for one in programs if not (ROOT / one).exists()] == []


def test_every_setting_of_a_guard_is_on_the_page():
    settings = {one for one in inspect.signature(Guard).parameters if one not in NAMES}
    assert unnamed(settings | set(Event.__dataclass_fields__), PAGE) == []


def test_every_setting_of_a_rollback_on_the_page_is_one():
    (call,) = re.findall(r"evengrad\.Rollback\((.*?)\)", PAGE)
    assert set(re.findall(r"(\w+)=", call)) <= set(Rollback.__dataclass_fields__)


@pytest.mark.parametrize("line", ["print(2.25)", "x = 1"])
def test_an_output_that_is_not_printed_is_noticed(line):
    ((code, stated),) = blocks(f"```python\n{line}\n```\n\n```text\n2.50\n```\n")
    assert printed(code) != stated


def test_a_print_without_an_output_below_it_is_noticed():
    ((code, stated),) = blocks("```python\nprint(1)\n```\n\nWords.\n")
    assert (printed(code), stated) == ("1\n", "")


def test_a_block_that_fails_is_noticed():
    with pytest.raises(NameError, match="guard"):
        printed("guard.step")


def test_a_name_that_is_missing_is_noticed():
    assert unnamed({"Sign", "ByValue", "apply"}, "`Sign()`, ByValue, `apply=`") == ["ByValue"]


def test_the_section_ends_at_the_next_one():
    assert guard_section("# a\n\n## Guard a training\n\nwords\n\n## Check\n") == "\n## Guard a training\n\nwords\n"

"""The demo: three stories from sick to proved, and one page that tells them."""

from __future__ import annotations

from pathlib import Path

import torch

from evengrad import report
from evengrad.cli._show import Progress, say
from evengrad.cli._streams import write_out
from evengrad.cli.stories import exploding_digits, forgetful_network, vanishing_digits
from evengrad.nouns import RunLogError
from evengrad.trial import Repair, repair

STORIES = (("vanishing", vanishing_digits), ("exploding", exploding_digits), ("forgetful", forgetful_network))


def demo(folder: Path, *, as_json: bool) -> int:
    """Repair the three tasks, print what happened, and write the page; 0 if all three were cured.

    Raises:
        KeyboardInterrupt: A repair was interrupted; what was found is told and written first.
        RunLogError: The folder or standard output cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise RunLogError(str(folder), came=f"{type(err).__name__}: {err}", wanted="a folder to write to") from err
    page = folder / "report.html"
    report.check_target(page)
    torch.set_num_threads(1)  # on networks this small more threads only wait for each other
    results: list[Repair] = []
    for name, make_task in STORIES:
        task = make_task()
        if not as_json:
            write_out(f"\n{len(results) + 1} of {len(STORIES)}: {task.name}\n")
        with Progress(quiet=as_json) as progress:
            results.append(repair(task, log=folder / name, progress=progress))
        if not as_json:
            say(results[-1], as_json=False)
        if results[-1].interrupted:
            break
    stories = tuple(result.story for result in results)
    try:
        if as_json:
            say({"stories": stories, "report": str(page)}, as_json=True)
        else:
            write_out(f"\n{''.join(_line(result) for result in results)}")
    finally:
        report.write(stories, page, title="evengrad demo")
    if not as_json:
        write_out(f"\nwrote {page}\n")
    if results[-1].interrupted:
        raise KeyboardInterrupt
    return 0 if all(one.verdict.outcome == "cured" for one in results) else 1


def _line(result: Repair) -> str:
    return f"{result.verdict.said}: {result.task.name}: {result.verdict.message}\n"

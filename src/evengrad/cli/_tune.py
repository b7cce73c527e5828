"""The command tune: load, sweep, tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evengrad import report
from evengrad.cli._load import named_task
from evengrad.cli._show import Progress, say
from evengrad.trial import POLICIES, Tuning, tune

if TYPE_CHECKING:
    from evengrad.cli._commands import Tune


def tuned(command: Tune) -> Tuning:
    """Sweep as the command says, tell the result, and write the page.

    Raises:
        EvengradError: As `tune`; also where the page or standard output cannot be written.
    """
    if command.output is not None:
        report.check_target(command.output)
    task = named_task(command.task)
    with Progress(quiet=command.json) as progress:
        result = tune(
            task,
            trials=command.trials,
            seeds=command.seeds,
            budget=command.budget,
            sweep=_listed(command.sweep),
            log=command.log,
            seed=command.seed,
            progress=progress,
            engine=command.engine,
            address=command.address,
            policies=_listed(command.policies) or POLICIES,
        )
    try:
        say(result.story if command.json else str(result), as_json=command.json)
    finally:
        if command.output is not None:
            result.report(command.output)
    return result


def _listed(names: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in names.split(",") if part.strip())

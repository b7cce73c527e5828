"""The diagnosis of a run directory, once or beside the training that writes it; torch is not needed."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from evengrad.cli._show import say
from evengrad.diagnose import Choice, Diagnosis, Told
from evengrad.nouns import NotARunError, Record, SettingError, TornLogWarning
from evengrad.runlog import Follower, read

OK, FINDINGS = 0, 1
LEAST_S = 0.1
MOST_NAMED = 8


def diagnosed(directory: Path, choice: Choice, *, rank: int, as_json: bool) -> int:
    """Judge the log as it is, and say it.

    Raises:
        NotARunError: The directory is something else.
        NewerRunError: It was written by a newer evengrad.
        RunLogError: It cannot be read, or has no such rank.
        UnknownRuleError: No rule has such a code.
    """
    choice.check()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLogWarning)  # the note says it
        record = read(directory, rank=rank)
    _want_a_run(directory, record)
    found = Diagnosis(findings=choice.findings_of(record), record=record)
    say(_plain(found) if as_json else str(found), as_json=as_json)
    return FINDINGS if found.findings else OK


def followed(directory: Path, choice: Choice, *, rank: int, every_s: float, as_json: bool) -> int:
    """Judge the log each time it has grown, until the run has ended.

    A log that is not there yet is an error: a name that was mistyped must not wait for ever. What was killed does not
    say that it has ended: Ctrl-C ends the watch.

    Raises:
        SettingError: `every_s` is too small.
        NotARunError, NewerRunError, RunLogError, UnknownRuleError: As for `diagnosed`.
    """
    if not every_s >= LEAST_S:  # NaN too
        raise SettingError("every_s", came=repr(every_s), wanted=f"seconds, {LEAST_S} or more")
    choice.check()
    log, told, found = Follower(directory, rank=rank), Told(), None
    while True:
        record = log.poll()
        if record is not None:
            found = Diagnosis(findings=choice.findings_of(record), record=record)
            _say_news(found, told, as_json=as_json)
            if record.complete:
                break
        time.sleep(every_s)
    if not as_json:
        say(found.headline, as_json=False)
    return FINDINGS if found.findings else OK


def _want_a_run(directory: Path, record: Record) -> None:
    """Refuse the folder of a repair, whose trainings have logs of their own; silence about it would look like health.

    Raises:
        NotARunError: It is one.
    """
    runs = sorted(path.parent.name for path in directory.glob("*/meta.json"))
    if record.readings or not runs:
        return
    raise NotARunError(
        str(directory),
        came="the folder of a repair, which holds runs",
        wanted=f"one of them: {', '.join(runs[:MOST_NAMED])}",
        advice=f"what the repair found: evengrad report {directory}",
    )


def _say_news(found: Diagnosis, told: Told, *, as_json: bool) -> None:
    news = told.news(found.findings)
    for finding in news:
        if as_json:
            say({"step": _last_step(found.record), "finding": finding}, as_json=True)
        else:
            say(f"{finding}\n", as_json=False)


def _last_step(record: Record) -> int:
    return record.readings[-1].step if record.readings else 0


def _plain(found: Diagnosis) -> dict[str, object]:
    record = found.record
    return {
        "run": record.source,
        "readings": len(record.readings),
        "complete": record.complete,
        "note": record.note,
        "findings": found.findings,
    }

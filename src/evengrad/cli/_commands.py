"""The commands and their options, as tyro reads them; each returns its exit status."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, final

import tyro

from evengrad.cli._show import JSON, Progress, say
from evengrad.cli._streams import write_err

OK, FINDINGS = 0, 1
Quiet = Annotated[bool, tyro.conf.arg(help=JSON)]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """Three networks that do not learn: each is diagnosed, cured and proved; writes report.html."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = Path("evengrad-demo")
    """Folder for report.html and the run logs."""
    json: Quiet = False

    def run(self) -> int:
        """Tell the three stories; torch runs on one thread, since networks this small are slower on several."""
        from evengrad.cli._demo import demo

        return demo(self.output, as_json=self.json)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Checkup:
    """Examine the fresh model of a task on one batch: layers, findings, causes. Exit status 1 if there are findings."""

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE:TASK")]
    """A Python file or a module, a colon, and the name of a Task or of a function that returns one."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """Also write the checkup as an HTML page."""
    seed: int = 0
    """Seed of the model's weights."""
    counterfactuals: bool = True
    """Try treatments on copies to find the cause."""
    json: Quiet = False

    def run(self) -> int:
        """Build the model under the seed and look at its first training batch."""
        from evengrad import report
        from evengrad.cli._checkup import checkup_of

        if self.output is not None:
            report.check_target(self.output)
        with Progress(quiet=self.json) as progress:
            found = checkup_of(self.task, seed=self.seed, counterfactuals=self.counterfactuals, progress=progress)
        try:
            say({"findings": found.findings, "reading": found.reading} if self.json else str(found), as_json=self.json)
        finally:
            if self.output is not None:
                title = f"Checkup of {self.task}"
                report.write(report.story_of_record(found.record, found.findings, title=title), self.output)
        return FINDINGS if found.findings else OK


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """Train a task, diagnose it, try cures in paired trials, and say what was proved. Exit status 1 if it was sick."""

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE:TASK")]
    """A Python file or a module, a colon, and the name of a Task or of a function that returns one."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """Also write the report as an HTML page."""
    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep run logs and the story here, for `evengrad report`."""
    patch: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the cure as a unified diff of the task's source, or as code to paste where there is no such diff."""
    budget: int | None = None
    """The most optimizer steps, all trials together; by default what the search takes, 5 to 16 trainings."""
    seeds: int = 3
    """How many seeds confirm the winner; one is never enough for the verdict cured."""
    seed: int = 0
    """Seed of the search."""
    engine: Literal["auto", "local", "here", "ray"] = "auto"
    """Where trials run: local, in processes of their own; here, in this one; ray, on a cluster; auto, local or here."""
    address: str | None = None
    """Of the Ray cluster; by default one that is running, else one of this machine."""
    workers: int | None = None
    """Processes of engine local; by default one for each processor."""
    memory_gib: float | None = None
    """Memory that each of them may have; by default its share of the machine's."""
    time_s: float | None = None
    """Seconds that one training may take; by default twenty times what the untreated one takes, and a minute."""
    json: Quiet = False

    def run(self) -> int:
        """Load the task and repair it; Ctrl-C leaves what was found so far and makes the exit status 130."""
        from evengrad import report
        from evengrad.cli._load import named_task
        from evengrad.cli._patch import as_file
        from evengrad.trial import repair

        for target in (self.output, self.patch):
            if target is not None:
                report.check_target(target)
        task = named_task(self.task)
        with Progress(quiet=self.json) as progress:
            result = repair(
                task,
                budget=self.budget,
                seeds=self.seeds,
                seed=self.seed,
                engine=self.engine,
                address=self.address,
                workers=self.workers,
                memory_bytes=None if self.memory_gib is None else round(self.memory_gib * 2**30),
                time_s=self.time_s,
                log=self.log,
                progress=progress,
            )
        try:
            say(result.story if self.json else str(result), as_json=self.json)
        finally:
            if self.output is not None:
                result.report(self.output)
            if self.patch is not None and result.patch:
                self.patch.write_text(as_file(result), encoding="utf-8", newline="")
            elif self.patch is not None:
                write_err(f"evengrad: no cure, so {self.patch} was not written")
        if result.interrupted:
            raise KeyboardInterrupt
        return OK if result.verdict.outcome == "was not sick" else FINDINGS


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Tune:
    """Sweep clip policies and thresholds, and say which suits a task, and whether it needs any. Exit status 0."""

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE:TASK")]
    """A Python file or a module, a colon, and the name of a Task or of a function that returns one."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """Also write the report, with the curve of metric against threshold, as an HTML page."""
    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep the journal and the story here, for `evengrad report`; a sweep that was killed goes on from there."""
    trials: int = 20
    """Trainings of the sweep, the one without clipping included; more of them make a sweep in --log longer."""
    seeds: int = 3
    """Seeds that confirm the best, not used for choosing."""
    budget: int | None = None
    """The most optimizer steps, all trainings together; by default only --trials counts."""
    policies: Annotated[str, tyro.conf.arg(metavar="NAMES")] = ""
    """Sweep only these policies, with commas between, such as ByGlobalNorm,ByZScore."""
    sweep: Annotated[str, tyro.conf.arg(metavar="NAMES")] = ""
    """What else to sweep, with commas between: lr, gain (of the initial weights), weights (a bound of their norm)."""
    seed: int = 0
    """Seed of the sweep."""
    engine: Literal["auto", "local", "here", "ray"] = "here"
    """Where trainings run, as for repair; here, one after the other, chooses each setting knowing all before it."""
    address: str | None = None
    """Of the Ray cluster; by default one that is running, else one of this machine."""
    json: Quiet = False

    def run(self) -> int:
        """Load the task and sweep; Ctrl-C leaves what was found so far and makes the exit status 130."""
        from evengrad.cli._tune import tuned

        result = tuned(self)
        if result.interrupted:
            raise KeyboardInterrupt
        return OK


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Guard an unmodified training script: python -m evengrad run [options] script.py args..., also under torchrun.

    Options come before the script; everything after it belongs to the script. Exit status: the script's own.
    """

    script: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCRIPT")]
    """A Python file, or -m and the name of a module, as for python itself."""
    args: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ARGS...")] = ()
    """What the script gets."""
    clip: Annotated[str, tyro.conf.arg(metavar="off|NORM")] = "adaptive"
    """The gradient norm to clip at; off only skips steps whose gradients are not finite."""
    log: Annotated[Path | None, tyro.conf.arg(aliases=["--run-log"], metavar="DIR")] = None
    """Write a run log here, for `evengrad report`; further optimizers write to DIR-2, DIR-3, ... Say --run-log under
    torchrun, which would take --log for an option of its own."""
    max_consecutive_skips: int = 100
    """More skipped steps in a row end the script with an error."""

    def run(self) -> int:
        """Run the script; `main` does so itself, before tyro is imported."""
        from evengrad.cli._main import main

        return main(["run", str(self.script), *self.args])


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Write the report of a run directory as one HTML page, without torch. Exit status 1 if there are findings."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory, as given to Guard(log=...) or to repair --log."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = Path("report.html")
    """The page."""
    json: Quiet = False

    def run(self) -> int:
        """Tell the story that a repair left, or diagnose the readings of a plain run."""
        from evengrad import report
        from evengrad.cli._report import story_of

        report.check_target(self.output)
        story = story_of(self.run_directory)
        try:
            say(story if self.json else report.text(story), as_json=self.json)
        finally:
            path = report.write(story, self.output)
        if not self.json:
            say(f"wrote {path}", as_json=False)
        return FINDINGS if story.findings or (story.verdict and story.verdict.outcome != "was not sick") else OK


Codes = Annotated[str, tyro.conf.arg(metavar="CODES")]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnose:
    """Say what is wrong in a run, and what follows from what; also beside the training. Exit status 1 if anything is.

    Torch is not needed. With --json and --follow each change is a line of its own.
    """

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory, as given to Guard(log=...), to run --log or to repair --log."""
    select: Codes = ""
    """Tell only these: codes or their beginnings with commas between, such as EG101,EG7."""
    ignore: Codes = ""
    """Do as if these rules were not there."""
    rank: int = 0
    """Whose readings, in a distributed run."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Go on beside a training and tell each finding once, and again when its severity changes, until the run ends."""
    every_s: float = 5.0
    """Seconds between two looks at the log, with --follow."""
    json: Quiet = False

    def run(self) -> int:
        """Judge the log as it is now, or as it grows."""
        from evengrad.cli._diagnose import diagnosed, followed
        from evengrad.diagnose import Choice

        choice = Choice(select=_listed(self.select), ignore=_listed(self.ignore))
        if self.follow:
            return followed(self.run_directory, choice, rank=self.rank, every_s=self.every_s, as_json=self.json)
        return diagnosed(self.run_directory, choice, rank=self.rank, as_json=self.json)


def _listed(codes: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in codes.split(",") if part.strip())


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Explain:
    """Print the page of a rule: what it sees, why that hurts, what cures it, when it is wrong, and its source."""

    code: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CODE")] = ""
    """The code in a finding, such as EG101; without one every rule is listed."""
    json: Quiet = False

    def run(self) -> int:
        """Print the page, or the list."""
        from evengrad.diagnose import explain, rules

        if self.code:
            text = explain(self.code)
            say({"code": text.split()[0], "page": text} if self.json else text, as_json=self.json)
            return OK
        titles = {rule.code: explain(rule.code).splitlines()[0] for rule in rules.ALL}
        say(titles if self.json else "\n".join(titles.values()), as_json=self.json)
        return OK

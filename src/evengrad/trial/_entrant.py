"""A candidate and how far its training has got."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean

from evengrad.nouns import Trial
from evengrad.treat import AbstractTreatment
from evengrad.trial._candidates import Candidate, parts_of
from evengrad.trial._course import Course, is_flat
from evengrad.trial._engine import Failure
from evengrad.trial._judge import loss_at_end

# Of these the loss is another function afterwards, so that losses do not compare.
OTHER_LOSS = frozenset({"NormalizeTarget"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Entrant:
    """A candidate and how far it has got.

    Args:
        candidate: What is tried.
        place: In the order in which all were proposed.
        trial: So far; None before the first step.
        course: What was read on the way; None before the first step and where it came to nothing.
        apart: The trials of which `trial` is the mean.
    """

    candidate: Candidate
    place: int = 0
    trial: Trial | None = None
    course: Course | None = None
    apart: tuple[Trial, ...] = ()

    @property
    def treatment(self) -> AbstractTreatment:
        """What is tried."""
        return self.candidate.treatment

    @property
    def alive(self) -> bool:
        """Whether its training went through so far."""
        return self.trial is not None and not self.trial.error

    @property
    def learns(self) -> bool:
        """Whether its loss is below that of the best constant prediction, or nobody knows."""
        return self.course is None or not is_flat(self.course.record)

    @property
    def same_loss(self) -> bool:
        """Whether its loss is the function that the untreated training has."""
        return not OTHER_LOSS & {part.name for part in parts_of(self.treatment)}

    def after(self, result: Course | Failure) -> Entrant:
        """Take what came of training on."""
        return replace(self, trial=result.trial, course=None if isinstance(result, Failure) else result)

    def beside(self, second: Trial) -> Entrant:
        """Take the mean with a trial of another seed; failed where one of them has."""
        first = self.trial
        if first is None or first.metric is None or second.metric is None:
            return replace(self, trial=second if first is None or second.metric is None else first)
        both = replace(
            first,
            metric=mean((first.metric, second.metric)),
            findings=tuple(dict.fromkeys((*first.findings, *second.findings))),
            losses=(mean((loss_at_end(first), loss_at_end(second))),),
        )
        return replace(self, trial=both, apart=(first, second))


def metric_at(trial: Trial, step: int) -> float | None:
    """Take the metric that was measured last up to a step."""
    return next((metric for at, metric in reversed(trial.metrics) if at <= step), None)

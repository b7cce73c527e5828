"""Comparing trials, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, median

from evengrad.nouns import Finding, Outcome, Trial, Verdict
from evengrad.trial._bootstrap import interval_of_mean

# Metrics closer than this share of the better half's spread are taken as equal, and the smaller change wins.
EQUAL_FRAC = 0.02
# A gain below this share of the metric itself is none, however steady: no metric is known that finely.
LEAST_GAIN_FRAC = 0.01
TAIL_FRAC = 0.1  # of the losses, over which their noise is averaged


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """What a training reaches that learns no more than the untreated one: a metric or loss no better shows nothing.

    Args:
        metric: The better of the untreated training at its end and a fresh model; None if unknown.
        loss: Of the untreated training at its end; infinite if unknown.
    """

    metric: float | None = None
    loss: float = float("inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A trial of one rung, to be ranked.

    Args:
        trial: So far.
        effort: Of its treatment.
        same_loss: Whether its loss is the same function as that of the others.
        learns: Whether its loss is below that of the best constant prediction, or nobody knows.
    """

    trial: Trial
    effort: int
    same_loss: bool = True
    learns: bool = True


def ranked(standings: Sequence[Standing], floor: Floor | None = None, *, bold: bool = False) -> list[int]:
    """Rank the trials of one rung: finished before failed, metric, fewest findings, loss, effort, place.

    What counts as equal is measured by the spread between the best and the median, not by the worst: a single candidate
    that is far off would make all others equal. Metrics and losses that are no better than the floor are equal too, and
    so are the metrics of all whose loss is that of a constant: who has only learnt the mean faster has shown nothing.
    Among equals that have shown something the smaller change wins; among those that have not, the place in the list, or
    the larger change where it is time to be bold.

    Args:
        standings: In the order in which they were proposed.
        floor: What shows nothing.
        bold: Whether the larger change has more hope among those that have shown nothing.

    Returns:
        Indices, the best first.
    """
    floor = floor or Floor()
    flat = max((one.trial.metric for one in standings if not one.learns and one.trial.metric is not None), default=0.0)
    metrics = [_known(one, flat, floor.metric) for one in standings if one.trial.metric is not None]
    losses = [loss for one in standings if one.same_loss and isfinite(loss := min(loss_at_end(one.trial), floor.loss))]
    best, step = max(metrics, default=0.0), _step(metrics, max)
    least, loss_step = min(losses, default=0.0), _step(losses, min)

    def key(index: int) -> tuple[bool, float, int, float, int, int]:
        trial, effort = standings[index].trial, standings[index].effort
        if trial.metric is None:
            return (True, 0.0, len(trial.findings), 0.0, effort, index)
        behind = round((best - _known(standings[index], flat, floor.metric)) / step)
        loss = min(loss_at_end(trial), floor.loss) if standings[index].same_loss else least
        loss_behind = round((loss - least) / loss_step) if isfinite(loss) else 0
        shown = standings[index].learns and (floor.metric is None or trial.metric > floor.metric + step)
        change = effort if shown else -effort if bold else 0
        return (False, behind, len(trial.findings), loss_behind, change, index)

    return sorted(range(len(standings)), key=key)


def _known(standing: Standing, flat: float, floor: float | None) -> float:
    """Take the metric for what it shows: that of all who learn nothing is the same, and nothing is below the floor."""
    metric = flat if not standing.learns or standing.trial.metric is None else standing.trial.metric
    return metric if floor is None else max(metric, floor)


def _step(values: Sequence[float], best_of: Callable[[Sequence[float]], float]) -> float:
    """Say how near two values are the same."""
    if not values:
        return 1.0
    best = best_of(values)
    return max(EQUAL_FRAC * abs(best - median(values)), LEAST_GAIN_FRAC / 2 * abs(best), 1e-12)


def loss_at_end(trial: Trial) -> float:
    """Average the last tenth of the losses; not finite where there is none."""
    tail = trial.losses[-max(1, round(TAIL_FRAC * len(trial.losses))) :]
    return mean(tail) if tail else float("nan")


def largest_symptom(trial: Trial, codes: frozenset[str]) -> float:
    """Size of the largest of the symptoms that were found in the untreated training, in decades."""
    return max((size for code, size in trial.symptoms if code in codes), default=0.0)


def judge(
    before: Sequence[Trial],
    after: Sequence[Trial],
    findings: Sequence[Finding],
    *,
    untrained: Sequence[float | None],
) -> Verdict:
    """Compare paired trials, one pair per confirming seed.

    The metric has improved if on every seed the treated training beats both the untreated one and the untrained model,
    the smallest of these gains is larger than what the seed alone changes in the treated metric (its range over
    seeds) and than 1 % of the metric, and the bootstrap interval of the mean gain lies above zero. Where a disease
    comes with some seeds only, at least two must be sick, and on the others nothing may be lost, to 1 %. The pathology
    has improved if on every seed the treated training has no finding at all and the symptoms found before are smaller,
    where they have a size. *Cured* needs both, a finding before and at least two seeds; *improved* the metric.

    Args:
        before: Untreated trials, one per seed.
        after: Treated trials, same seeds, same order.
        findings: What was found in the untreated training.
        untrained: The metric of the fresh model of each seed.
    """
    codes = frozenset(finding.code for finding in findings)
    symptoms_before = tuple(largest_symptom(trial, codes) for trial in before)
    symptoms_after = tuple(largest_symptom(trial, codes) for trial in after)
    healthy = [
        not trial.findings and (size_after < size_before or size_before == 0.0)
        for trial, size_before, size_after in zip(after, symptoms_before, symptoms_after, strict=True)
    ]
    gains = [gain for gain in _gains(before, after, untrained) if gain is not None]
    outcome: Outcome = "not cured"
    if beats_chance(before, after, untrained):
        outcome = "cured" if all(healthy) and len(after) > 1 and findings else "improved"
    return Verdict(
        outcome=outcome,
        label=after[0].label if after else "",
        metric_before=tuple(trial.metric for trial in before),
        metric_after=tuple(trial.metric for trial in after),
        symptoms_before=symptoms_before,
        symptoms_after=symptoms_after,
        seeds=tuple(trial.seed for trial in after),
        gain=mean(gains) if gains else None,
        gain_interval=interval_of_mean(gains) if len(gains) > 1 else None,
        message=_message(before, after, (symptoms_before, symptoms_after), codes),
    )


def beats_chance(before: Sequence[Trial], after: Sequence[Trial], untrained: Sequence[float | None]) -> bool:
    """Tell whether the gain of every sick pair is larger than what the seed alone changes, and no other loses."""
    if not before or hopeless(before, after, untrained):
        return False
    sick = sick_of(before)
    gains = _gains(before, after, untrained)
    gained = [gain for gain, is_sick in zip(gains, sick, strict=True) if is_sick and gain is not None]
    if len(gained) > 1 and interval_of_mean(gained)[0] <= 0.0:
        return False
    return sum(sick) >= min(2, len(before))  # of a disease that comes with some seeds only, one seed proves nothing


def hopeless(before: Sequence[Trial], after: Sequence[Trial], untrained: Sequence[float | None]) -> bool:
    """Tell whether more seeds cannot make it good: one has failed, a sick one has not gained, or another has lost."""
    reached = [trial.metric for trial in after if trial.metric is not None]
    if len(reached) < len(after):
        return True
    least = LEAST_GAIN_FRAC * max((abs(value) for value in reached), default=0.0)
    noise = max(max(reached, default=0.0) - min(reached, default=0.0), least)
    pairs = zip(_gains(before, after, untrained), sick_of(before), strict=True)
    return any(gain is not None and gain <= (noise if is_sick else -least) for gain, is_sick in pairs)


def sick_of(before: Sequence[Trial]) -> list[bool]:
    """Tell which untreated trainings are sick; all where none is, as they are to be improved then."""
    sick = [bool(trial.findings) or trial.metric is None for trial in before]
    return sick if any(sick) else [True] * len(before)


def _gains(before: Sequence[Trial], after: Sequence[Trial], untrained: Sequence[float | None]) -> list[float | None]:
    return [_gain(one, two, fresh) for one, two, fresh in zip(before, after, untrained, strict=True)]


def _gain(before: Trial, after: Trial, untrained: float | None) -> float | None:
    """Gain over the better of the untreated and the untrained model; None when both failed and anything is a gain."""
    floor = [value for value in (before.metric, untrained) if value is not None]
    return None if not floor or after.metric is None else after.metric - max(floor)


def _message(
    before: Sequence[Trial],
    after: Sequence[Trial],
    symptoms: tuple[Sequence[float], Sequence[float]],
    codes: frozenset[str],
) -> str:
    if not after:
        return "nothing was confirmed"
    new = sorted({code for trial in after for code in trial.findings} - codes)
    left = sorted({code for trial in after for code in trial.findings} & codes)
    seeds = f"{len(after)} seeds that were" if len(after) > 1 else "one seed that was"
    return (
        f"{after[0].label}: metric {spread([trial.metric for trial in before])} before, "
        f"{spread([trial.metric for trial in after])} after, on {seeds} not used for choosing"
        + (f"; largest symptom {mean(symptoms[0]):.1f} decades before, {mean(symptoms[1]):.1f} after" if codes else "")
        + (f"; still {', '.join(left)}" if left else "")
        + (f"; but now {', '.join(new)}" if new else "")
        + ("; one seed proves little" if len(after) == 1 else "")
    )


def spread(metrics: Sequence[float | None]) -> str:
    """Say a metric over seeds: mean and range, or that the trainings failed.

    Example:
        >>> spread([0.5, 0.7]), spread([None, None]), spread([0.5, None])
        ('0.600 (0.500 to 0.700)', 'failed', '0.500, 1 of 2 failed')
    """
    known = [value for value in metrics if value is not None]
    if not known:
        return "failed"
    failed = len(metrics) - len(known)
    said = f"{mean(known):.3f}"
    if len(known) > 1:
        said += f" ({min(known):.3f} to {max(known):.3f})"
    return said + (f", {failed} of {len(metrics)} failed" if failed else "")

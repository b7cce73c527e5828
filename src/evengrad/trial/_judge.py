"""Comparing trials, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, log2
from statistics import mean, median, stdev

from evengrad.nouns import Finding, Outcome, Trial, Verdict
from evengrad.trial._bootstrap import interval_of_mean
from evengrad.trial._control import DOUBT_FRAC
from evengrad.trial._told import lost_to, message, sizes_of, spread

# Metrics closer than this share of the better half's spread are taken as equal, and the smaller change wins.
EQUAL_FRAC = 0.02
# A gain below this share of the metric itself is none, however steady: no metric is known that finely.
LEAST_GAIN_FRAC = 0.01
NOT_LEARNING = "EG804"
MANY_SEEDS = 5  # from here on the mean and its interval decide, and not the worst of all seeds
FEWEST_SICK = 2  # pairs of a proof: of a disease that comes with some seeds only, one seed proves nothing
RANGE_OF_THREE = 1.69  # of three draws from a normal distribution, in standard deviations
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
    so are the metrics of all whose loss is that of a constant, and of these losses only a double one is larger: who has
    only learnt the mean faster has shown nothing. Among equals that have shown something the smaller change wins; among
    those that have not, the place in the list, or the larger change where it is time to be bold.

    Args:
        standings: In the order in which they were proposed.
        floor: What shows nothing.
        bold: Whether the larger change has more hope among those that have shown nothing.

    Returns:
        Indices, the best first.
    """
    floor = floor or Floor()
    flats = [one.trial.metric for one in standings if not one.learns and one.trial.metric is not None]
    flat = median(flats) if flats else 0.0  # one that is lucky does not lift all others above those that learn
    metrics = [_known(one, flat, floor.metric) for one in standings if one.trial.metric is not None]
    losses = [loss for one in standings if one.same_loss and isfinite(loss := min(loss_at_end(one.trial), floor.loss))]
    best, step = max(metrics, default=0.0), _step(metrics, max)
    least, loss_step = min(losses, default=0.0), _step(losses, min)

    def key(index: int) -> tuple[bool, float, int, bool, float, int, int]:
        standing = standings[index]
        trial, effort = standing.trial, standing.effort
        if trial.metric is None:
            return (True, 0.0, len(trial.findings), False, 0.0, effort, index)
        behind = round((best - _known(standing, flat, floor.metric)) / step)
        loss = min(loss_at_end(trial), floor.loss) if standing.same_loss else least
        loss_behind = 0 if not isfinite(loss) else round((loss - least) / loss_step)
        if not standing.learns:
            loss_behind = _doublings(loss, least)
        shown = standing.learns and (floor.metric is None or trial.metric > floor.metric + step)
        change = effort if shown else -effort if bold else 0
        return (False, behind, _ailing(standing), not standing.learns, loss_behind, change, index)

    return sorted(range(len(standings)), key=key)


def _known(standing: Standing, flat: float, floor: float | None) -> float:
    """Take the metric for what it shows: that of all who learn nothing is the same, and nothing is below the floor."""
    metric = flat if not standing.learns or standing.trial.metric is None else standing.trial.metric
    return metric if floor is None else max(metric, floor)


def _ailing(standing: Standing) -> int:
    """Count findings; of one that learns nothing it is known already that it does not."""
    return sum(code != NOT_LEARNING or standing.learns for code in standing.trial.findings)


def _doublings(loss: float, least: float) -> int:
    """Say how many times the least loss has to double: who has learnt no more than a constant is nearer or further."""
    return max(0, round(log2(loss / least))) if isfinite(loss) and 0.0 < least < loss else 0


def _step(values: Sequence[float], best_of: Callable[[Sequence[float]], float]) -> float:
    """Say how near two values are the same."""
    if not values:
        return 1.0
    best = best_of(values)
    return max(EQUAL_FRAC * abs(best - median(values)), LEAST_GAIN_FRAC / 2 * abs(best), 1e-12)


def loss_at_end(trial: Trial) -> float:
    """Average the last tenth of the losses; not finite where there is none."""
    return tail_mean(trial.losses)


def tail_mean(losses: Sequence[float]) -> float:
    """Average the last tenth of some losses; NaN of none.

    Example:
        >>> tail_mean([9.0] * 18 + [1.0, 3.0])
        2.0
    """
    tail = losses[-max(1, round(TAIL_FRAC * len(losses))) :]
    return mean(tail) if tail else float("nan")


def largest_symptom(trial: Trial, codes: frozenset[str]) -> float:
    """Size of the largest of the symptoms that were found in the untreated training, in decades."""
    return max((size for code, size in trial.symptoms if code in codes), default=0.0)


def judge(
    before: Sequence[Trial],
    after: Sequence[Trial],
    findings: Sequence[Finding],
    *,
    floors: Sequence[float | None],
    control: Sequence[Trial] = (),
) -> Verdict:
    """Compare paired trials, one pair per confirming seed.

    The metric has improved if on every seed the treated training beats the untreated one and both fresh models, treated
    and not, by more than what the seed alone changes in the treated metric and than 1 % of the metric. With five seeds
    and more it is the mean gain that has to, and the bootstrap interval of it that has to lie above that 1 %. Where a
    disease comes with some seeds only, the sick ones must gain, two at least, and no other may lose 1 %. Where
    there is a control, every treated training must beat it in the same way. The pathology has improved if on every seed
    the treated training has no finding at all and the symptoms found before are smaller, where they have a size.
    *Cured* needs both, at least two seeds on which the untreated training is sick, seeds that are not all the same
    training, and where they are few a mean gain larger than what the seed alone changes in sick untreated trainings:
    else it is these seeds that were bad. *Improved* needs the metric.

    Args:
        before: Untreated trials, one per seed.
        after: Treated trials, same seeds, same order.
        findings: What was found in the untreated training.
        floors: What fresh models reach, for each seed; None where they have no metric.
        control: Treated trials on shuffled targets, same seeds; empty where none was needed.
    """
    codes = frozenset(finding.code for finding in findings)
    largest = [[largest_symptom(trial, codes) for trial in trials] for trials in (before, after)]
    healthy = [
        not trial.findings and (size_after < size_before or size_before == 0.0)
        for trial, size_before, size_after in zip(after, *largest, strict=True)
    ]
    sizes = sizes_of(before, after, codes)
    gains = [gain for gain in gains_of(before, after, floors) if gain is not None]
    bad_seeds = _bad_seeds(before, after, floors)
    outcome: Outcome = "not cured"
    if beats_chance(before, after, floors) and (not control or _beats_control(after, control)):
        proved = sum(map(is_sick, before)) > 1 and not same_training(after) and not bad_seeds
        outcome = "cured" if all(healthy) and proved and findings else "improved"
    text = message(before, after, sizes, codes) + _doubts(after, control)
    if outcome == "improved" and bad_seeds:
        text += "; untreated the metric differs by as much from seed to seed, so that more seeds would tell more"
    text += lost_to(_deciding(before, after, floors)) if outcome == "not cured" else ""
    return Verdict(
        outcome=outcome,
        label=after[0].label if after else "",
        metric_before=tuple(trial.metric for trial in before),
        metric_after=tuple(trial.metric for trial in after),
        metric_fresh=tuple(floors),
        symptoms_before=sizes[0],
        symptoms_after=sizes[1],
        seeds=tuple(trial.seed for trial in after),
        gain=mean(gains) if gains else None,
        gain_interval=interval_of_mean(gains) if len(gains) > 1 else None,
        message=text,
    )


def beats_chance(before: Sequence[Trial], after: Sequence[Trial], floors: Sequence[float | None]) -> bool:
    """Tell whether the gains of the sick pairs are larger than what the seed alone changes, and no other loses."""
    gains = gains_of(before, after, floors)
    known = [gain for gain, sick in zip(gains, sick_of(before), strict=True) if sick and gain is not None]
    if not known or hopeless(before, after, floors):
        return False
    if len(after) >= MANY_SEEDS and (interval_of_mean(known)[0] <= _least(after) or mean(known) <= _noise(after)):
        return False
    noise = _noise(after)
    gained = [_diverged(one) if gain is None else gain > noise for one, gain in zip(before, gains, strict=True)]
    return sum(gained) >= min(FEWEST_SICK, len(before))


def hopeless(before: Sequence[Trial], after: Sequence[Trial], floors: Sequence[float | None]) -> bool:
    """Tell whether more seeds cannot make it good: one has failed, a sick one has not gained, or another has lost."""
    if any(trial.metric is None for trial in after):
        return True
    many = len(after) >= MANY_SEEDS
    pairs = zip(before, after, floors, sick_of(before), strict=True)
    for one, two, floor, sick in pairs:
        gain = _gain(one, two, floor)
        if gain is None and not _diverged(one):
            return True  # nothing to compare with
        least = -float("inf") if many and sick else _noise(after) if sick else -_least(after)
        if gain is not None and gain <= least:
            return True
    return False


def gains_of(before: Sequence[Trial], after: Sequence[Trial], floors: Sequence[float | None]) -> list[float | None]:
    """List the gain of each pair over the best of the untreated and the fresh models; None where it is not known."""
    return [_gain(one, two, floor) for one, two, floor in zip(before, after, floors, strict=True)]


def sick_of(before: Sequence[Trial]) -> list[bool]:
    """Tell which untreated trainings are sick; all where none is, as they are to be improved then."""
    sick = [is_sick(trial) for trial in before]
    return sick if any(sick) else [True] * len(before)


def is_sick(trial: Trial) -> bool:
    """Tell whether a rule speaks of an untreated training, or it did not go through."""
    return bool(trial.findings) or trial.metric is None


def _bad_seeds(before: Sequence[Trial], after: Sequence[Trial], floors: Sequence[float | None]) -> bool:
    """Tell whether few sick untreated trainings differ by more than the gain: better ones may be as common."""
    if len(after) >= MANY_SEEDS:  # the interval of the mean has told then
        return False
    rows = zip(gains_of(before, after, floors), before, floors, sick_of(before), strict=True)
    known = [
        (gain, one.metric if floor is None else max(one.metric, floor))
        for gain, one, floor, sick in rows
        if sick and gain is not None and one.metric is not None
    ]
    return bool(known) and mean(gain for gain, _ in known) <= _noise_of([metric for _, metric in known])


def same_training(trials: Sequence[Trial]) -> bool:
    """Tell whether all seeds gave the same training to the bit, so that they are one."""
    return len(trials) > 1 and bool(trials[0].losses) and len({trial.losses for trial in trials}) == 1


def _beats_control(after: Sequence[Trial], control: Sequence[Trial]) -> bool:
    reached = [trial.metric for trial in control if trial.metric is not None]
    if not reached:
        return True  # on shuffled targets it does not even train
    noise = max(_noise(after), _noise(control))
    return all(trial.metric is not None and trial.metric - max(reached) > noise for trial in after)


def _noise(trials: Sequence[Trial]) -> float:
    """Say what the seed alone changes: the range of three seeds, or what it would be of as many as there are.

    At most a quarter of the metric: a gain of that size on every seed is one, however unlike they are.
    """
    return _noise_of([trial.metric for trial in trials if trial.metric is not None])


def _noise_of(metrics: Sequence[float]) -> float:
    least = _least_of(metrics)
    if len(metrics) < 2:
        return least
    range_ = max(metrics) - min(metrics) if len(metrics) <= 3 else RANGE_OF_THREE * stdev(metrics)
    return max(min(range_, DOUBT_FRAC * max(map(abs, metrics))), least)


def _least(trials: Sequence[Trial]) -> float:
    return _least_of([trial.metric for trial in trials if trial.metric is not None])


def _least_of(metrics: Sequence[float]) -> float:
    return LEAST_GAIN_FRAC * max(map(abs, metrics), default=0.0)


def _diverged(trial: Trial) -> bool:
    return trial.metric is None and not (trial.losses and isfinite(trial.losses[-1]))


def _gain(before: Trial, after: Trial, floor: float | None) -> float | None:
    """Gain over the best of the untreated and the fresh models; None when all failed."""
    known = [value for value in (before.metric, floor) if value is not None]
    return None if not known or after.metric is None else after.metric - max(known)


def _deciding(before: Sequence[Trial], after: Sequence[Trial], floors: Sequence[float | None]) -> list[float]:
    """List the floors of sick pairs that would have gained over the untreated training alone."""
    noise = _noise(after)
    return [
        floor
        for one, two, floor, sick in zip(before, after, floors, sick_of(before), strict=True)
        if sick
        and floor is not None
        and two.metric is not None
        and two.metric - floor <= noise
        and (one.metric is None or two.metric - one.metric > noise)
    ]


def _doubts(after: Sequence[Trial], control: Sequence[Trial]) -> str:
    said = ""
    if control:
        than = "better" if _beats_control(after, control) else "no better"
        said += f"; {than} than the same training on shuffled targets ({spread([trial.metric for trial in control])})"
    if same_training(after):
        said += "; all seeds gave the same training, so they prove no more than one"
    return said

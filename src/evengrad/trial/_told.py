"""What paired trials showed, in words, and the sizes that they may name."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import mean

from evengrad.nouns import Trial

Sizes = tuple[float | None, ...]
"""Of the largest found symptom of each trial, in decades: infinite for not finite, None where there is none to name."""


def sizes_of(before: Sequence[Trial], after: Sequence[Trial], codes: frozenset[str]) -> tuple[Sizes, Sizes]:
    """Give the sizes that can be named; none at all where no symptom has one, as those of a loss that does not fall."""
    two = [tuple(_largest(trial, codes) for trial in trials) for trials in (before, after)]
    named = any(size for sizes in two for size in sizes)
    first, second = (sizes if named else (None,) * len(sizes) for sizes in two)
    return first, second


def _largest(trial: Trial, codes: frozenset[str]) -> float | None:
    return max((size for code, size in trial.sizes if code in codes), default=None)


def message(before: Sequence[Trial], after: Sequence[Trial], sizes: tuple[Sizes, Sizes], codes: frozenset[str]) -> str:
    """Say what came of the pairs.

    Args:
        before: Untreated trials.
        after: Treated trials, same seeds.
        sizes: Of their symptoms.
        codes: What was found in the untreated training.
    """
    if not after:
        return "nothing was confirmed"
    new = sorted({code for trial in after for code in trial.findings} - codes)
    left = sorted({code for trial in after for code in trial.findings} & codes)
    seeds = f"{len(after)} seeds that were" if len(after) > 1 else "one seed that was"
    return (
        f"{after[0].label}: metric {spread([trial.metric for trial in before])} before, "
        f"{spread([trial.metric for trial in after])} after, on {seeds} not used for choosing"
        + _of_symptoms(*sizes)
        + (f"; still {', '.join(left)}" if left else "")
        + (f"; but now {', '.join(new)}" if new else "")
        + ("; one seed proves little" if len(after) == 1 else "")
    )


def _of_symptoms(before: Sizes, after: Sizes) -> str:
    if all(size is None for size in (*before, *after)):
        return ""
    return f"; largest symptom {_in_words(before)} before, {_in_words(after)} after"


def _in_words(sizes: Sizes) -> str:
    """Say a size over seeds.

    Example:
        >>> _in_words((7.0, 8.0)), _in_words((float("inf"), 5.0)), _in_words((0.0, None)), _in_words((None,))
        ('7.5 decades', 'not finite on 1 of 2 seeds, else 5.0 decades', 'none', 'not measured')
    """
    known = [size for size in sizes if size is not None]
    if not known:
        return "not measured"
    finite = [size for size in known if isfinite(size)]
    if not finite:
        return "not finite"
    said = f"{mean(finite):.1f} decades" if any(finite) else "none"
    lost = len(known) - len(finite)
    return f"not finite on {lost} of {len(known)} seeds, else {said}" if lost else said


def lost_to(floors: Sequence[float]) -> str:
    """Say the floors that decided against a treatment; empty where there are none."""
    if not floors:
        return ""
    return f"; not clearly better than fresh models, untrained, which reach {spread(sorted(set(floors)))}"


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
    said = _number(mean(known))
    if len(known) > 1:
        said += f" ({_number(min(known))} to {_number(max(known))})"
    return said + (f", {failed} of {len(metrics)} failed" if failed else "")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"

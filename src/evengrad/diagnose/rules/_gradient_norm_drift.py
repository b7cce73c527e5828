"""EG106: the gradient norm drifts upwards over the run while the loss does not fall."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._norms import largest_parameters, log_norms, spread_of
from evengrad.diagnose._proposals import CLIPPING, SMALLER_STEPS, cure
from evengrad.diagnose._trend import OF_A_MEDIAN, trend_of
from evengrad.nouns import Cure, Evidence, Reading, Record

# Norms rise slowly in healthy runs too: as the loss falls, its landscape gets steeper until the step size limits it
# (Cohen et al. 2021), which is a factor of a few. Ten times is beyond that.
THRESHOLD_DECADES = 1.0
SIGNIFICANT_SIGMAS = 4.0
PARTS = 5
FEWEST_NORMS = 50
MOST_NORMS = 1000
# Medians of neighbouring parts may go down by this much within a drift: a quarter of what it has to be.
MOST_BACK_DECADES = 0.25


@final
class GradientNormDrift(AbstractRunRule):
    """Gradient norm drift: the norm of the gradient rises over the run and the loss does not fall.

    Sees:
        The norm of all gradients together, its median in five parts of the run. The rule speaks when it rises by ten
        times (1 decade) from its lowest part to the last, on and on and beyond its noise, while the loss has not come
        down.

    Hurts:
        The weights drift to where the loss is steep. The next large batch gradient throws them further, and a spike
        or a divergence follows; with clipping, each step becomes mostly the direction of outliers.

    Cure:
        A smaller or decaying learning rate (ScaleLearningRate), clipped gradients (ClipGradients), weight decay,
        normalisation (AddNormalization).

    False alarms:
        Games between networks, reinforcement learning and fine-tuning may have rising norms without harm; so it is
        told only in a run that another rule has found sick. Fewer than 50 norms, and runs without losses, are not
        judged.

    Source:
        Takase et al. 2023, Spike No More, arXiv 2312.16903; Cohen et al. 2021, arXiv 2103.00065.
    """

    code: ClassVar[str] = "EG106"
    symptom: ClassVar[str] = "gradient norm drift"
    source: ClassVar[str] = "Takase et al. 2023, Spike No More: Stabilizing the Pre-training of Large Language Models"
    family: ClassVar[str] = "norm-drift"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Compare the medians of five parts of the run."""
        norms = log_norms(record.readings)
        trend = trend_of(record)
        if len(norms) < FEWEST_NORMS or trend is None:
            return None
        thinned = norms[:: (len(norms) // MOST_NORMS) | 1]
        parts = [thinned[len(thinned) * k // PARTS : len(thinned) * (k + 1) // PARTS] for k in range(PARTS)]
        sizes = [median(norm for _, norm in part) for part in parts]
        lowest = min(range(PARTS), key=lambda index: sizes[index])
        drift = sizes[-1] - sizes[lowest]
        error = _error_of(parts[lowest], parts[-1])
        if drift < THRESHOLD_DECADES or drift < SIGNIFICANT_SIGMAS * error or not _goes_on(sizes[lowest:]):
            return Sign(decades=max(drift, 0.0))
        if trend.fell or trend.still_falling:
            return Sign(decades=drift)
        return _told(drift, (sizes[lowest], sizes[-1]), parts[lowest], record)

    def cures(self) -> tuple[Cure, ...]:
        """Propose smaller steps, then normalisation."""
        return (*SMALLER_STEPS[:1], *CLIPPING, cure("ConstrainWeights"), cure("AddNormalization"))


def _goes_on(sizes: Sequence[float]) -> bool:
    """Tell whether the medians rise from part to part: one part out of line is no drift."""
    return len(sizes) > 2 and all(later >= earlier - MOST_BACK_DECADES for earlier, later in pairwise(sizes))


def _error_of(first: Sequence[tuple[int, float]], last: Sequence[tuple[int, float]]) -> float:
    """Standard error of the difference of two medians."""
    errors = [OF_A_MEDIAN * spread_of([norm for _, norm in part]) / sqrt(len(part)) for part in (first, last)]
    return sqrt(errors[0] ** 2 + errors[1] ** 2)


def _told(drift: float, ends: tuple[float, float], lowest: Sequence[tuple[int, float]], record: Record) -> Sign:
    readings: Sequence[Reading] = record.readings
    start, last = readings[lowest[0][0]], readings[-1]
    named = next((one for one in reversed(readings) if one.grad_norms), last)
    return Sign(
        decades=drift,
        speaks=True,
        where=largest_parameters(named, record) or ("optimizer",),
        severity="warning",
        when=(start.step, last.step),
        message=(
            f"the gradient norm drifts from {10 ** ends[0]:.1e} up to {10 ** ends[1]:.1e} over the run, by "
            f"{drift:.1f} decades, and the loss does not fall"
        ),
        evidence=(
            Evidence(name="lowest median of the gradient norm over a fifth of the run", value=10 ** ends[0]),
            Evidence(name="median of the last fifth", value=10 ** ends[1]),
        ),
    )

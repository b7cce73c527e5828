"""EG604: clipping makes nearly every step so small that the weights hardly move."""

from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._movement import is_of_adams_kind, sampled, typical_ratio
from evengrad.diagnose._proposals import cure
from evengrad.diagnose._trend import trend_of
from evengrad.nouns import Cure, Evidence, Reading, Record, Setup, without_last_look

# A clip that acts at all but a few steps is no guard against outliers but a learning rate.
ACTING_FRAC = 0.95
# Steps that are ten times smaller than asked for.
THROTTLED = 0.1
FEWEST_STEPS = 50
# What clips outside of the guard shows in a norm that is the same number at nearly every step: `clip_grad_norm_` leaves
# it within 1e-6 over the norm. Batches scatter it by more than a hundredth; so that this is known of them, their loss
# has to scatter ten times as much as the norm may.
SAME_FRAC = 0.9
SAME = 1e-3
NOISE = 10.0 * SAME
# With all its steps in one direction a run has moved its weights by less than a tenth of their size: the largest noise
# that a rounding to one digit would make.
SHORT_WAY = 0.1


@final
class ClippingThrottles(AbstractRunRule):
    """Clipping throttles: nearly every gradient is clipped, far below its norm, and the weights hardly move.

    Sees:
        The factor that clipping lets through. The rule speaks when it acts at 95 % of the steps or more and lets a
        tenth or less through (the median), and when all steps together, had they gone in one direction, would have
        moved the weights by less than a tenth of their size. For optimizers of Adam's kind, for which the scale of the
        gradient cancels, only when clipping has brought the gradient's elements below epsilon. Clipping outside of the
        guard, whose factor nobody knows, is known by a gradient norm that is the same number to a thousandth at 90 %
        of the steps, while the loss differs from batch to batch.

    Hurts:
        The threshold has become the learning rate: every step has the same, small length whatever the gradient says.

    Cure:
        A larger threshold (ClipGradients at the usual norm), or an adaptive one that follows the gradient's usual
        norm (the default of `evengrad.Guard`). Where gradients are huge for a reason, that reason.

    False alarms:
        A clip that acts at every step with steps of a useful size is normalised descent, and works. Runs of fewer
        than 50 steps are not judged; told only in a run that does not learn. With the whole data in each step the norm
        is the same by itself where nothing moves: without noise in the loss nothing is said of clipping outside.

    Source:
        Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063, section 3.2; Zhang et al. 2020, Why gradient clipping
        accelerates training, arXiv 1905.11881.
    """

    code: ClassVar[str] = "EG604"
    symptom: ClassVar[str] = "clipping throttles"
    source: ClassVar[str] = "Zhang et al. 2020, Why Gradient Clipping Accelerates Training, arXiv 1905.11881"
    family: ClassVar[str] = "clipping"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Take all steps for the factor, the sampled ones for what is left of the steps."""
        steps = [one for one in record.readings if not one.skipped and isfinite(one.total_norm or 0.0)]
        if len(steps) < FEWEST_STEPS or record.setup is None or not record.setup.optimizer:
            return None
        clipping = _by_the_guard(steps) or _before_the_guard(steps, record)
        if clipping is None:
            return Sign(decades=0.0)
        ratios = [ratio for one in sampled(record) if (ratio := typical_ratio(one)) is not None]
        if not ratios:
            return None
        way = fmean(ratios) * len(steps)
        if way >= SHORT_WAY or not _feels_scale(clipping.acting, record.setup):
            return Sign(decades=0.0)
        count = len(without_last_look(steps))
        return Sign(
            decades=1.0,
            speaks=True,
            where=("optimizer",),
            severity="warning",
            message=(
                f"{len(clipping.acting)} of {count} gradients were clipped{clipping.how}, and all steps together "
                f"could have moved the weights by {way:.2g} of their size at the most"
            ),
            evidence=(
                clipping.number,
                Evidence(name="gradients clipped", value=100 * len(clipping.acting) / count, unit="%"),
                Evidence(name="step over weights, mean", value=fmean(ratios)),
            ),
            when=(clipping.acting[0].step, clipping.acting[-1].step),
            cause=clipping.cause,
            cures=(cure("ClipGradients", max_norm=_typical(steps)),),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose another threshold; `judge` knows which."""
        return (cure("ClipGradients", max_norm=1.0),)


def _typical(steps: list[Reading]) -> float:
    """Take the median norm, in two digits: half of all gradients pass, and the others lose less than half a step."""
    return float(f"{median(one.total_norm or 0.0 for one in steps):.2g}") or 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clipping:
    """The steps at which something clips, and what is known of it."""

    acting: list[Reading]
    how: str
    number: Evidence
    cause: str


def _by_the_guard(steps: list[Reading]) -> _Clipping | None:
    acting = [one for one in steps if one.scale < 1.0]
    scale = median(one.scale for one in steps)
    if len(acting) < ACTING_FRAC * len(steps) or not 0.0 < scale <= THROTTLED:
        return None
    return _Clipping(
        acting=acting,
        how=f", to {scale:.2g} of their norm (median)",
        number=Evidence(name="factor that clipping lets through, median", value=scale),
        cause=f"a clipping threshold {1 / scale:.2g} times below the usual gradient norm: raise it",
    )


def _before_the_guard(steps: list[Reading], record: Record) -> _Clipping | None:
    """Know what clips outside by a norm that is always the same, while batches differ."""
    known = [(one, one.total_norm) for one in steps if one.scale == 1.0 and one.total_norm is not None]
    if len(known) < SAME_FRAC * len(steps):
        return None
    norm = median(norm for _, norm in known)
    acting = [one for one, same in known if abs(same - norm) <= SAME / 2 * norm]
    trend = trend_of(record)
    if norm <= 0.0 or len(acting) < SAME_FRAC * len(steps) or trend is None:
        return None
    if min(trend.start_noise, trend.end_noise) < NOISE * max(abs(trend.start), abs(trend.end)):
        return None
    return _Clipping(
        acting=acting,
        how=f" before the guard has seen them, to a norm of {norm:.2g}",
        number=Evidence(name="gradient norm at nearly every step", value=norm),
        cause=f"a clipping threshold of {norm:.2g}, far below the usual gradient norm: raise it",
    )


def _feels_scale(acting: list[Reading], setup: Setup) -> bool:
    """Tell whether a smaller gradient makes a smaller step: not for Adam, as long as it is above epsilon."""
    if not is_of_adams_kind(setup.optimizer):
        return True
    count = sum(setup.numels)
    sizes = [one.total_norm * one.scale / sqrt(count) for one in acting if one.total_norm is not None and count]
    return bool(sizes) and setup.eps is not None and median(sizes) < setup.eps

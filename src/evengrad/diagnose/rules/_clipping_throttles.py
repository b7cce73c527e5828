"""EG604: clipping makes nearly every step so small that the weights hardly move."""

from math import isfinite, sqrt
from statistics import fmean, median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._movement import is_of_adams_kind, sampled, typical_ratio
from evengrad.nouns import Cure, Evidence, Reading, Record, Setup

# A clip that acts at all but a few steps is no guard against outliers but a learning rate.
ACTING_FRAC = 0.95
# Steps that are ten times smaller than asked for.
THROTTLED = 0.1
FEWEST_STEPS = 50
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
        gradient cancels, only when clipping has brought the gradient's elements below epsilon.

    Hurts:
        The threshold has become the learning rate: every step has the same, small length whatever the gradient says.

    Cure:
        A larger threshold, or an adaptive one that follows the gradient's usual norm (the default of
        `evengrad.Guard`). Where gradients are huge for a reason, that reason.

    False alarms:
        A clip that acts at every step with steps of a useful size is normalised descent, and works. Runs of fewer
        than 50 steps are not judged; told only in a run that does not learn.

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
        acting = [one for one in steps if one.scale < 1.0]
        scale = median(one.scale for one in steps)
        if len(acting) < ACTING_FRAC * len(steps) or scale > THROTTLED or scale <= 0.0:
            return Sign(decades=0.0)
        ratios = [ratio for one in sampled(record) if (ratio := typical_ratio(one)) is not None]
        if not ratios:
            return None
        way = fmean(ratios) * len(steps)
        if way >= SHORT_WAY or not _feels_scale(acting, record.setup):
            return Sign(decades=0.0)
        return Sign(
            decades=1.0,
            speaks=True,
            where=("optimizer",),
            severity="warning",
            message=(
                f"{len(acting)} of {len(steps)} gradients were clipped, to {scale:.2g} of their norm (median), and all "
                f"steps together could have moved the weights by {way:.2g} of their size at the most"
            ),
            evidence=(
                Evidence(name="factor that clipping lets through, median", value=scale),
                Evidence(name="gradients clipped", value=100 * len(acting) / len(steps), unit="%"),
                Evidence(name="step over weights, mean", value=fmean(ratios)),
            ),
            when=(acting[0].step, acting[-1].step),
            cause=f"a clipping threshold {1 / scale:.2g} times below the usual gradient norm: raise it",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the cure is another threshold."""
        return ()


def _feels_scale(acting: list[Reading], setup: Setup) -> bool:
    """Tell whether a smaller gradient makes a smaller step: not for Adam, as long as it is above epsilon."""
    if not is_of_adams_kind(setup.optimizer):
        return True
    count = sum(setup.numels)
    sizes = [one.total_norm * one.scale / sqrt(count) for one in acting if one.total_norm is not None and count]
    return bool(sizes) and setup.eps is not None and median(sizes) < setup.eps

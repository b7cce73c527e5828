"""EG607: half-precision weights that the steps do not change any more."""

from collections.abc import Sequence
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._level import has_ended
from evengrad.diagnose._movement import HALVES, resolution_of, sampled
from evengrad.diagnose._proposals import EVERYTHING_TRAINED, cure
from evengrad.diagnose._trend import Trend, trend_of
from evengrad.diagnose.rules._learning_rate_too_low import MOST_FALLEN, MOST_FALLEN_SO_FAR, is_lost_in_rounding
from evengrad.nouns import Cure, Evidence, Reading, Record

STILL_FRAC = 0.9
# Without a loss to tell the harm: what is left of the steps is less than the rounding of shares in a sample.
STILL_FRAC_ALONE = 0.99
FEWEST_SAMPLES = 3
FEWEST_STEPS = 50
# Where a schedule has brought the learning rate down to a tenth, weights may come to rest.
RATE_LEFT = 0.1


@final
class WeightsStandStill(AbstractRunRule):
    """Weights stand still: they are kept in half precision, and the steps are rounded away.

    Sees:
        For weights in bfloat16 or float16 the share of elements with a gradient that a step has left as they were to
        the bit, the median over all weight matrices. The rule speaks when it is nine in ten or more at nine in ten of
        the sampled steps, while the learning rate is at its height and the loss has not come down, or by less than a
        fifth in a run that has ended (a fiftieth in one that goes on).

    Hurts:
        A number of bfloat16 changes only by steps of more than a 512th of itself. Smaller ones are lost, every time,
        and do not add up: the optimizer works and nothing moves.

    Cure:
        Weights in float32 with half precision in the computation only (`torch.autocast`), or an optimizer that keeps a
        float32 copy, sums what was rounded away, or rounds stochastically (KeepInFloat32). A larger learning rate
        helps only by chance.

    False alarms:
        A loss that falls shows that enough gets through. Fewer than 50 steps, a warm-up that is not over, a schedule
        that has ended, elements without a gradient and float32 are not counted: float32 loses steps only where the
        learning rate is far too low (EG602).

    Source:
        Zamirai et al. 2020, Revisiting BFloat16 training, arXiv 2010.06192, section 3.
    """

    code: ClassVar[str] = "EG607"
    symptom: ClassVar[str] = "weights stand still"
    source: ClassVar[str] = "Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192"
    family: ClassVar[str] = "stale-weights"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Take the sampled steps at the height of the learning rate, and what the loss did."""
        readings = sampled(record)
        peak = max((max(one.lrs, default=0.0) for one in readings), default=0.0)
        high = [one for one in readings if one.lrs and max(one.lrs) >= RATE_LEFT * peak > 0.0]
        known = [(one, frac) for one in high if (frac := _still_frac(one)) is not None]
        if len(known) < FEWEST_SAMPLES or is_lost_in_rounding(record, readings):
            return None
        trend = trend_of(record)
        if _is_young(trend, readings):
            return None
        least = STILL_FRAC_ALONE if trend is None else STILL_FRAC
        still = [one for one, frac in known if frac >= least]
        if 10 * len(still) < 9 * len(known) or (trend is not None and _learns(trend, record)):
            return Sign(decades=0.0)
        return _told(still, median(frac for _, frac in known))

    def cures(self) -> tuple[Cure, ...]:
        """Propose to train everything, and weights that hold small steps."""
        return (*EVERYTHING_TRAINED, cure("KeepInFloat32", parts="all"))


def _is_young(trend: Trend | None, readings: Sequence[Reading]) -> bool:
    if trend is None:
        return readings[-1].step - readings[0].step < FEWEST_STEPS - 1
    return trend.warming_up or trend.full_steps < FEWEST_STEPS


def _learns(trend: Trend, record: Record) -> bool:
    """Tell whether the loss has come down by as much as one may ask of this run."""
    return trend.fell and trend.fallen_frac > (MOST_FALLEN if has_ended(trend, record) else MOST_FALLEN_SO_FAR)


def _still_frac(reading: Reading) -> float | None:
    found = [
        one.still_frac
        for one in reading.weights
        if one.fan_in > 0 and one.dtype in HALVES and one.still_frac is not None
    ]
    return median(found) if found else None


def _told(still: Sequence[Reading], frac: float) -> Sign:
    names = [one.name for one in still[0].weights if (one.still_frac or 0.0) >= STILL_FRAC and one.fan_in > 0]
    dtype = next(one.dtype for one in still[0].weights if one.dtype in HALVES)
    return Sign(
        decades=1.0,
        speaks=True,
        where=tuple(names),
        message=(
            f"{frac:.0%} of the elements of the weights ({dtype}) are the same to the bit after each step: steps "
            f"below {resolution_of(dtype):.1g} of a weight are rounded away"
        ),
        evidence=(
            Evidence(name="elements that a step leaves as they are, median", value=100 * frac, unit="%"),
            Evidence(name=f"smallest step that {dtype} keeps, relative", value=resolution_of(dtype)),
            Evidence(name="learning rate", value=max(still[0].lrs)),
        ),
        when=(still[0].step, still[-1].step),
        cause=f"weights kept in {dtype}: keep them in float32 and compute in {dtype} under torch.autocast",
    )

"""EG802: the loss swings by its own size and comes no nearer."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._level import falls, is_young
from evengrad.diagnose._proposals import ANOTHER_OPTIMIZER, CLIPPING, SMALLER_STEPS, cure
from evengrad.diagnose._streams import of_all
from evengrad.diagnose._trend import Trend, losses_of, trend_of
from evengrad.diagnose._wording import figures
from evengrad.nouns import Cure, Evidence, Record

# A loss cannot swing by more around a level that it comes back to: below this share of the level it is noise.
SWING_FRAC = 0.5
SIGMAS = 2.0
# A step that is too long throws the loss to the other side of its valley each time: every second change is alike.
PERIOD_TWO = 0.5
GROWTH = 3.0


@final
class Oscillation(AbstractRunRule):
    """Oscillation: the loss swings by its own size around a level that is no better than a constant's.

    Sees:
        The second half of a run: a loss that is on average above that of the best constant prediction, while single
        losses scatter by more than half of their mean beyond what the same batches explain. Where the constant is not
        known: a loss that goes up and down in turn (each change like the one two steps before), by more than half of
        its level and three times more than in the first quarter, and that has not fallen.

    Hurts:
        The steps are longer than the valley is wide: each overshoots the lowest place that it aims at.

    Cure:
        A smaller learning rate (ScaleLearningRate), a larger batch, clipping (ClipGradients), the momentum
        that the optimizer has by default (SetOptimizer).

    False alarms:
        With small batches the loss of a healthy run scatters as much, but around a level below that of a constant. Two
        players that hold each other in balance swing for a reason: without a known form only the strict alternation of
        a step that is too long counts. At the edge of stability a loss alternates a little and falls: not told.

    Source:
        Cohen et al. 2021, Gradient descent on neural networks typically occurs at the edge of stability,
        arXiv 2103.00065; Zhang et al. 2021, AUTOTRAINER, arXiv 2301.08936.
    """

    code: ClassVar[str] = "EG802"
    symptom: ClassVar[str] = "oscillation"
    source: ClassVar[str] = "Cohen et al. 2021, Gradient Descent on Neural Networks at the Edge of Stability"
    family: ClassVar[str] = "oscillation"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Hold the swing against the level."""
        return of_all(self._of_one, record)

    def _of_one(self, record: Record) -> Sign | None:
        trend = trend_of(record)
        if trend is None or is_young(trend):
            return None
        if falls(trend) or not (_around_constant(trend) if trend.level is not None else _alternates(trend, record)):
            return Sign(decades=0.0)
        swing = trend.level.swing if trend.level is not None else trend.end_noise / abs(trend.end)
        level = (
            f", {figures(trend.level.ratio)} times that of the best constant prediction"
            if trend.level is not None
            else ""
        )
        return Sign(
            decades=0.0,
            speaks=True,
            where=("loss",),
            severity="warning",
            when=((trend.first_step + trend.last_step) // 2, trend.last_step),
            message=(
                f"the loss swings by {figures(100 * swing)}% of its level of {trend.end:.3g}{level}, "
                "and comes no nearer"
            ),
            evidence=(
                Evidence(name="swing of the loss, of its level", value=100 * swing, unit="%"),
                Evidence(name="likeness of every second change", value=trend.period_two),
                Evidence(name="loss at the start", value=trend.start),
                Evidence(name="lowest loss, smoothed", value=trend.best),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose shorter steps."""
        return (*SMALLER_STEPS, *CLIPPING, cure("SetOptimizer"), *ANOTHER_OPTIMIZER)


def _around_constant(trend: Trend) -> bool:
    level = trend.level
    return level is not None and level.swing >= SWING_FRAC and level.ratio - SIGMAS * level.error >= 1.0


def _alternates(trend: Trend, record: Record) -> bool:
    return (
        trend.from_start
        and not trend.fell
        and trend.period_two >= PERIOD_TWO
        and trend.end_noise >= SWING_FRAC * abs(trend.end) > 0.0
        and trend.end_noise >= GROWTH * trend.start_noise
        and all(loss >= 0.0 for _, loss in losses_of(record))
    )

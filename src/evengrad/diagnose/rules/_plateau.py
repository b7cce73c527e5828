"""EG801: the loss came down to where a constant prediction has it, and stays there."""

from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._level import came_down, is_young, stuck_at_constant
from evengrad.diagnose._proposals import ANOTHER_OPTIMIZER, LARGER_STEPS, SMALLER_STEPS, cure
from evengrad.diagnose._streams import of_all
from evengrad.diagnose._trend import Trend, losses_of, trend_of
from evengrad.diagnose._wording import figures
from evengrad.nouns import Cure, Evidence, Record


@final
class Plateau(AbstractRunRule):
    """Plateau: the loss came down to that of the best constant prediction, and stays there.

    Sees:
        A loss that has fallen from its start beyond noise, does not fall any more, and lies where the best constant
        prediction has it on the same batches (see EG804): what was learnt is the mean of the target or the frequency of
        the classes, and nothing of the inputs. At least 100 steps are asked for, counted at the largest learning rate.

    Hurts:
        Further steps change nothing: what should carry the input to the output does not.

    Cure:
        What the finding at the root of the story says. If this one is the root: the learning rate, the data, and
        whether the model can represent the answer (ScaleLearningRate, SwapOptimizer, UseGatedCell, SwapActivation).

    False alarms:
        A run that has converged is a plateau too, at a loss below that of a constant: it is not told, however far it is
        from what was hoped for. Losses without a known form are not judged.

    Source:
        Ainsworth and Shin 2021, Plateau phenomenon in gradient descent training of ReLU networks, arXiv 2007.07213.
    """

    code: ClassVar[str] = "EG801"
    symptom: ClassVar[str] = "plateau"
    source: ClassVar[str] = "Ainsworth and Shin 2021, Plateau Phenomenon in Gradient Descent Training of ReLU Networks"
    family: ClassVar[str] = "plateau"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Look for a fall that has ended at the constant."""
        return of_all(self._of_one, record)

    def _of_one(self, record: Record) -> Sign | None:
        trend = trend_of(record)
        if trend is None or trend.level is None or is_young(trend):
            return None
        if not (stuck_at_constant(trend) and came_down(trend)):
            return Sign(decades=0.0)
        since = _since(trend, record)
        return Sign(
            decades=0.0,
            speaks=True,
            where=("loss",),
            when=(since, trend.last_step),
            message=(
                f"the loss came down from {trend.start:.4g} to {trend.end:.4g} within {since - trend.first_step} steps "
                f"and stays there, at {figures(trend.level.ratio)} times the loss of the best constant prediction: "
                "nothing is learnt of the input"
            ),
            evidence=(
                Evidence(name="loss over that of the best constant prediction", value=trend.level.ratio),
                Evidence(name="loss at the start", value=trend.start),
                Evidence(name="loss at the end", value=trend.end),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose other steps, then another optimizer, then functions that pass more."""
        return (
            *LARGER_STEPS[:1],
            *ANOTHER_OPTIMIZER,
            cure("AddOutputActivation"),
            cure("UseGatedCell", kind="gru"),
            *SMALLER_STEPS[:1],
            *LARGER_STEPS[1:],
            cure("AddActivation", kind="relu"),
            cure("SwapActivation", to="tanh"),
            cure("AddNormalization"),
        )


def _since(trend: Trend, record: Record) -> int:
    """First step after the highest loss of the first quarter at which the loss was where it stays, up to noise."""
    told = [(step, loss) for step, loss in losses_of(record) if isfinite(loss)]
    early = [loss for _, loss in told[: max(len(told) // 4, 1)]]
    top = early.index(max(early))
    reached = trend.end + max(0.05 * (trend.start - trend.end), trend.end_noise)
    return next((step for step, loss in told[top:] if loss <= reached), trend.last_step)

"""EG804: the loss stays where a constant prediction has it."""

from dataclasses import replace
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._constant import Level
from evengrad.diagnose._level import at_constant, came_down, falls, has_ended, is_young, never_moved, stuck_at_constant
from evengrad.diagnose._movement import sampled, way_of
from evengrad.diagnose._proposals import ANOTHER_OPTIMIZER, FRESH_WEIGHTS, LARGER_STEPS, SMALLER_STEPS, cure
from evengrad.diagnose._streams import of_all
from evengrad.diagnose._trend import Trend, trend_of
from evengrad.diagnose._wording import figures
from evengrad.diagnose.rules._learning_rate_too_low import NOWHERE
from evengrad.nouns import Cure, Evidence, Record, Severity

# While a run goes on it may yet learn: deep and recurrent networks stay at the constant for hundreds of steps before
# they do. Twice the steps of a run that is over are asked for then, and it is a warning.
FEWEST_STEPS_LIVE = 200


@final
class NotLearning(AbstractRunRule):
    """Not learning: the loss is no better than that of the best constant prediction.

    Sees:
        The loss of the second half of a run against the loss of the best constant prediction on the same batches, which
        knows nothing of the inputs. The rule speaks after 100 steps (counted at the largest learning rate; 200 and with
        a warning only, while the run goes on) when the loss is surely less than 5 % better, not significantly better at
        all, and has stopped falling. A run that has ended is judged from 30 steps on, and also if its loss was still
        falling. A loss that has come down to where a constant has it is told as a plateau, EG801. Where the constant is
        not known, a loss without noise (all data in each step) that has not moved by a hundredth, with an error that is
        not small against the output.

    Hurts:
        Whatever the run costs, nothing is learnt from the inputs.

    Cure:
        What the finding at the root of the story says. If this one is the root, nothing in the gradients explains it:
        look at the data and the labels (do they belong together, is anything shuffled apart), at the learning rate and
        the number of steps (where all of them together are next to nothing, that is said instead), and at whether the
        model can represent the answer. Overfit a single batch first.

    False alarms:
        Losses that have no level to compare with, as those of games (GAN, reinforcement), are not judged: only a loss
        whose form is known and that stands alone. A learning rate that still warms up and a run that has been better in
        between keep the rule silent. Where the inputs say nothing of the target the statement is right, though nobody
        is to blame.

    Source:
        Karpathy 2019, A recipe for training neural networks (verify the loss at init, the input-independent baseline).
    """

    code: ClassVar[str] = "EG804"
    symptom: ClassVar[str] = "not learning"
    source: ClassVar[str] = "Karpathy 2019, A Recipe for Training Neural Networks"
    family: ClassVar[str] = "not-learning"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Hold the loss against the constant."""
        return of_all(self._of_one, record)

    def _of_one(self, record: Record) -> Sign | None:
        trend = trend_of(record)
        if trend is None:
            return None
        ended = has_ended(trend, record)
        over = record.complete and record.source != "guard"
        if not ended and (is_young(trend) or (not over and trend.full_steps < FEWEST_STEPS_LIVE)):
            return None
        sign = _judged(trend, record, ended=ended)
        if sign is None or not sign.speaks:
            return sign
        severity: Severity = "critical" if over else "warning"
        return replace(sign, severity=severity, cause=sign.cause or _short_way(record))

    def cures(self) -> tuple[Cure, ...]:
        """Propose another optimizer, then other steps, then functions that pass more."""
        return (
            *ANOTHER_OPTIMIZER,
            *LARGER_STEPS[:1],
            *FRESH_WEIGHTS[:1],
            cure("AddOutputActivation"),
            cure("UseGatedCell", kind="gru"),
            *LARGER_STEPS[1:],
            *SMALLER_STEPS[:1],
            cure("AddActivation", kind="relu"),
            cure("SwapActivation", to="tanh"),
            cure("AddNormalization"),
        )


def _judged(trend: Trend, record: Record, *, ended: bool) -> Sign | None:
    if trend.level is None:
        return _not_moved(trend) if never_moved(trend, record) else None
    if stuck_at_constant(trend):
        return Sign(decades=0.0) if came_down(trend) and not is_young(trend) else _told(trend, trend.level)
    if ended and at_constant(trend):
        return _told(trend, trend.level, falling=falls(trend))
    return Sign(decades=0.0)


def _told(trend: Trend, level: Level, *, falling: bool = False) -> Sign:
    how = "it was still falling when the run ended" if falling else "it does not fall beyond noise"
    sign = _sign(
        trend,
        f"after {trend.steps} steps the loss of {trend.end:.4g} is {figures(level.ratio)} times that of the best "
        f"constant prediction, which knows nothing of the input; {how}",
        Evidence(name="loss over that of the best constant prediction", value=level.ratio),
        Evidence(name="standard error of that", value=level.error),
    )
    return replace(sign, cause="too few or too short steps") if falling else sign


def _short_way(record: Record) -> str:
    """Say that the steps are next to nothing, if they are: then the data are not to blame."""
    rates = [max(one.lrs) for one in record.readings if one.lrs]
    if rates and not any(rates):
        return "a learning rate of 0"
    way = way_of(sampled(record))
    if way is None or way.length > NOWHERE:
        return ""
    return f"steps that are too short: all {way.steps} together are {figures(way.length)} of the size of the weights"


def _not_moved(trend: Trend) -> Sign:
    return _sign(trend, f"after {trend.steps} steps the loss is where it began: {trend.start:.4g}, now {trend.end:.4g}")


def _sign(trend: Trend, message: str, *evidence: Evidence) -> Sign:
    start = Evidence(name="loss at the start", value=trend.start)
    end = Evidence(name="loss at the end", value=trend.end)
    return Sign(
        decades=0.0,
        speaks=True,
        where=("loss",),
        when=((trend.first_step + trend.last_step) // 2, trend.last_step),
        message=message,
        evidence=(*evidence, start, end),
    )

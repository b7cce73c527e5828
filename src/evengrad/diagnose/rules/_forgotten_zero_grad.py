"""EG603: the gradient of the step before is still there when the next one is added."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.nouns import Cure, Evidence, Record

# Once may be meant, or be a restart; a loop that forgets does so at every step, so that the last looks show it as well.
FEWEST_TIMES = 2
# No loop steps twice on the same gradient on purpose. Three times and a tenth of all that was looked at is no restart:
# it is a loop that forgets at times, such as one that clears once per pass.
FEWEST_TIMES_ANYWHERE = 3
FEWEST_FRAC = 0.1


@final
class ForgottenZeroGrad(AbstractRunRule):
    """Forgotten zero_grad: each step uses the sum of all gradients so far.

    Sees:
        Whether a backward has added to the gradient that the step before had used. The rule speaks when it was so at
        two sampled steps or more, the last two that were looked at among them; or at three or more anywhere in the
        run, a tenth of those that were looked at. Steps whose gradient is zero are not counted: no one can tell there.

    Hurts:
        The gradient is the sum over all steps, mostly of gradients at weights that are long gone. It grows with the
        number of steps, turns late, and the weights run past every minimum.

    Cure:
        `optimizer.zero_grad()` once for each step, before the backward or after the step. Nothing else helps.

    False alarms:
        Gradients that are accumulated over several backwards before one step are not counted: what counts is that a
        step has used them already. A single time is not told, nor two in the middle of a run.

    Source:
        The documentation of torch.optim.Optimizer.zero_grad; exact, no threshold.
    """

    code: ClassVar[str] = "EG603"
    symptom: ClassVar[str] = "forgotten zero_grad"
    source: ClassVar[str] = "torch.optim.Optimizer.zero_grad, documentation"
    family: ClassVar[str] = "zero-grad"
    tells: ClassVar[Tells] = "always"

    def judge(self, record: Record) -> Sign | None:
        """Judge by all steps that were looked at."""
        looked = [
            (reading.step, reading.leftover)
            for reading in record.readings
            if reading.leftover is not None and reading.total_norm != 0.0
        ]
        if not looked:
            return None
        times = [step for step, leftover in looked if leftover]
        to_the_end = len(times) >= FEWEST_TIMES and all(leftover for _, leftover in looked[-FEWEST_TIMES:])
        often = len(times) >= max(FEWEST_TIMES_ANYWHERE, FEWEST_FRAC * len(looked))
        if not to_the_end and not often:
            return Sign(decades=0.0)
        return Sign(
            decades=1.0,
            speaks=True,
            where=("optimizer",),
            message=(
                f"at {len(times)} of {len(looked)} steps that were looked at the backward has added to the gradient "
                f"that the step before had used"
            ),
            evidence=(
                Evidence(name="steps with a gradient left over", value=float(len(times))),
                Evidence(name="steps looked at", value=float(len(looked))),
            ),
            when=(times[0], times[-1]),
            cause="a mistake in the code: call optimizer.zero_grad() once for each step, before loss.backward()",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the cure is a line of code."""
        return ()

"""EG103: a recurrent layer's gradient does not reach the early time steps."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._profile import decades_between, finite_readings
from evengrad.diagnose._proposals import cure
from evengrad.diagnose._through_time import TimeProfile, drop_of, falls_towards_the_start, time_profiles
from evengrad.nouns import Cure, Evidence, Reading, Record

# The weight gradient of a recurrent layer is a sum over time steps, accumulated in float32: a share below its
# resolution (2^-23, 6.9 decades) is rounded away and cannot teach anything, whatever the optimizer does.
THRESHOLD_DECADES = 6.9
# What has gates is not judged at first, for gates open by themselves: a GRU that starts with 19 decades may learn the
# adding problem, while plain recurrent networks that start with 7.6 or more do not (benchmarks/thresholds.py;
# docs/decisions/0005).


@final
class VanishingThroughTime(AbstractRule):
    """Vanishing through time: early inputs of a recurrent layer leave no trace in its gradient.

    Sees:
        The gradient of the loss with respect to the input of each recurrent module at each time step; for cells that
        the model calls in a loop, at the output of each call. The rule speaks when the tenth of the time steps that
        is reached worst gets less than 2^-23 (6.9 decades) of what the best-reached step gets: float32 rounds such a
        share away when the weight gradient is summed over time. The weight gradients themselves look healthy, since
        the late steps make them up. LSTM and GRU, whose gates open during training, are not judged at the first
        reading of a run, and so not by a checkup. Other modules with weights that are called eight times or more in
        one forward count as the cell of a loop over time only where the gradient falls steadily towards the first
        calls, and at the first reading only where no gate can be in the loop.

    Hurts:
        Whatever happened in those time steps cannot be learnt. The network trains on the last few steps only.

    Cure:
        Recurrent weights at the edge of stability: orthogonal with gain 1, identity for ReLU, a forget-gate bias of 1
        (Reinitialize); a rectifier with identity weights (SwapActivation to relu and Reinitialize); a gated cell
        (UseGatedCell); shorter sequences.

    False alarms:
        A loss at every time step, as in a language model, feeds every step directly and keeps the rule silent. Padding
        at the end of a sequence that gets exactly no gradient is left out. Layers that are shared, but not over time
        (twin networks, one network for each token or for each block), keep it silent unless the gradient shrinks as
        steadily and by as much from call to call; what the first calls should teach is rounded away then too. A task
        whose answer truly depends only on the last steps, and a loop that only looks for a fixed point, are not hurt;
        the rule cannot know that.

    Source:
        Bengio, Simard and Frasconi 1994, doi:10.1109/72.279181; Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """

    code: ClassVar[str] = "EG103"
    symptom: ClassVar[str] = "vanishing through time"
    source: ClassVar[str] = "Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks"
    family: ClassVar[str] = "vanishing-time"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the recurrent module or cell that is worst off."""
        if not finite_readings(reading.layers):
            return None
        fresh = all(reading.step <= other.step for other in record.readings)
        judged = [one for one in time_profiles(reading) if max(one.grads) > 0.0]
        judged = [one for one in judged if one.known or falls_towards_the_start(one.grads)]
        if not judged:
            return None
        drops = [(drop_of(one.grads), one) for one in judged]
        lost = [item for item in drops if item[0] >= THRESHOLD_DECADES and not (fresh and item[1].gated)]
        if not lost:
            return Sign(decades=max(0.0, *(drop for drop, _ in drops)))
        worst, one = max(lost, key=lambda item: item[0])
        seen = "input" if not one.activations else "output"
        return Sign(
            decades=worst,
            speaks=True,
            where=tuple(other.name for _, other in lost),
            severity="warning" if one.gated else "critical",
            message=_message(worst, one),
            evidence=(
                Evidence(name=f"{seen} gradient of {one.name} at the first time step", value=one.grads[0]),
                Evidence(name=f"{seen} gradient of {one.name} at the last time step", value=one.grads[-1]),
                Evidence(name="time steps", value=float(len(one.grads))),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights that keep the signal first, then functions, then gates."""
        return (
            cure("Reinitialize"),
            cure("SwapActivation", to="relu"),
            cure("UseGatedCell", kind="gru"),
        )


def _message(drop: float, one: TimeProfile) -> str:
    profile, best = one.grads, max(one.grads)
    lost = sum(decades_between(value, best) >= THRESHOLD_DECADES for value in profile)
    what = f"reaches the inputs of `{one.name}`" if not one.activations else f"reaches the calls of `{one.name}`"
    return (
        f"the gradient that {what} falls by {drop:.1f} decades over {len(profile)} time "
        f"steps ({best:.1e} to {min(profile):.1e}), {drop / len(profile):.2f} per step; {lost} of {len(profile)} steps "
        "cannot be learnt from"
    )

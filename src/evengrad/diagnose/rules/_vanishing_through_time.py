"""EG103: a recurrent layer's gradient does not reach the early time steps."""

from math import ceil
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._profile import NEARLY_NOTHING, decades_between, finite_readings
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

# The weight gradient of a recurrent layer is a sum over time steps, accumulated in float32: a share below its
# resolution (2^-23, 6.9 decades) is rounded away and cannot teach anything, whatever the optimizer does.
THRESHOLD_DECADES = 6.9
# Gates open by themselves: a GRU that starts with 19 decades may learn the adding problem, while plain recurrent
# networks that start with 7.6 or more do not (benchmarks/thresholds.py; docs/decisions/0005).
GATED = frozenset({"LSTM", "GRU"})
FEWEST_STEPS = 8


@final
class VanishingThroughTime(AbstractRule):
    """Vanishing through time: early inputs of a recurrent layer leave no trace in its gradient.

    Sees:
        The gradient of the loss with respect to the input of each recurrent module at each time step. The rule
        speaks when the tenth of the time steps that is reached worst gets less than 2^-23 (6.9 decades) of what the
        best-reached step gets: float32 rounds such a share away when the weight gradient is summed over time. The
        weight gradients themselves look healthy, since the late steps make them up. LSTM and GRU, whose gates open
        during training, are not judged at the first reading of a run, and so not by a checkup.

    Hurts:
        Whatever happened in those time steps cannot be learnt. The network trains on the last few steps only.

    Cure:
        Recurrent weights at the edge of stability: orthogonal with gain 1, identity for ReLU, a forget-gate bias of 1
        (Reinitialize); a rectifier with identity weights (SwapActivation to relu and Reinitialize); a gated cell;
        shorter sequences.

    False alarms:
        A loss at every time step, as in a language model, feeds every step directly and keeps the rule silent. Padding
        at the end of a sequence that gets exactly no gradient is left out. A task whose answer truly depends only on
        the last steps is not hurt; the rule cannot know that.

    Source:
        Bengio, Simard and Frasconi 1994, doi:10.1109/72.279181; Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """

    code: ClassVar[str] = "EG103"
    symptom: ClassVar[str] = "vanishing through time"
    source: ClassVar[str] = "Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks"
    family: ClassVar[str] = "vanishing-time"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the recurrent module that is worst off."""
        if not finite_readings(reading.layers):
            return None
        fresh = all(reading.step <= other.step for other in record.readings)
        profiles = [(layer, reached(layer.time_grad_rms)) for layer in reading.layers]
        judged = [(layer, profile) for layer, profile in profiles if len(profile) >= FEWEST_STEPS and max(profile) > 0]
        if not judged:
            return None
        drops = [(_drop(profile), layer, profile) for layer, profile in judged]
        worst, layer, profile = max(drops, key=lambda item: item[0])
        where = tuple(
            one.name for drop, one, _ in drops if drop >= THRESHOLD_DECADES and not (fresh and one.kind in GATED)
        )
        if not where:
            return Sign(decades=max(worst, 0.0))
        worst, layer, profile = max((item for item in drops if item[1].name in where), key=lambda item: item[0])
        return Sign(
            decades=worst,
            speaks=True,
            where=where,
            severity="warning" if layer.kind in GATED else "critical",
            message=_message(worst, layer, profile),
            evidence=(
                Evidence(name=f"input gradient of {layer.name} at the first time step", value=profile[0]),
                Evidence(name=f"input gradient of {layer.name} at the last time step", value=profile[-1]),
                Evidence(name="time steps", value=float(len(profile))),
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose recurrent weights at the edge of stability, with and without a rectifier."""
        return (
            Cure(treatment="Reinitialize"),
            Cure(treatment="SwapActivation", settings=(("to", "relu"),)),
        )


def reached(profile: tuple[float, ...]) -> tuple[float, ...]:
    """Drop the time steps that no path leads to: exact zeros, unless the gradient was vanishing next to them.

    Example:
        >>> reached((1e-3, 1e-2, 1e-1, 0.0, 0.0))
        (0.001, 0.01, 0.1)
        >>> reached((0.0, 1e-42, 1e-20, 1e-1))
        (0.0, 1e-42, 1e-20, 0.1)
    """
    seen = [index for index, value in enumerate(profile) if value != 0.0]
    if not seen:
        return ()
    first, last = seen[0], seen[-1]
    start = 0 if profile[first] < NEARLY_NOTHING else first
    end = len(profile) if profile[last] < NEARLY_NOTHING else last + 1
    return profile[start:end]


def _drop(profile: tuple[float, ...]) -> float:
    worst_tenth = sorted(profile)[: ceil(len(profile) / 10)]
    return decades_between(max(worst_tenth), max(profile))


def _message(drop: float, layer: LayerReading, profile: tuple[float, ...]) -> str:
    best = max(profile)
    lost = sum(decades_between(value, best) >= THRESHOLD_DECADES for value in profile)
    return (
        f"the gradient that reaches the inputs of `{layer.name}` falls by {drop:.1f} decades over {len(profile)} time "
        f"steps ({best:.1e} to {min(profile):.1e}), {drop / len(profile):.2f} per step; {lost} of {len(profile)} steps "
        "cannot be learnt from"
    )

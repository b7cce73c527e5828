"""EG104: a recurrent layer's gradient, or its state, grows over the time steps."""

from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._profile import WIDEST_DECADES, without_call
from evengrad.diagnose._proposals import CLIPPING, SMALLER_STEPS, cure
from evengrad.diagnose._through_time import CELLS, MODULES, TimeProfile, growth_of, time_profiles
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record

# As for EG102: one learning rate serves all time steps, since they share the weights; where the early ones pull a
# thousand times harder, a rate that suits the late ones throws the weights away. Healthy networks stay far below:
# over 500 steps orthogonal tanh networks and identity rectifier networks measured 0.0 decades in their training, plain
# ones with gains of 1.1 and 1.2 at most 0.8; those that ended in NaN passed 3.8 and 6.9; docs/decisions/0015.
THRESHOLD_DECADES = 3.0
# What is called often without being a recurrent cell by its class may be shared over depth: only what one sum in
# float32 cannot hold together (2^-23, as for EG103) is called time then.
UNKNOWN_KIND_DECADES = 6.9


@final
class ExplodingThroughTime(AbstractRule):
    """Exploding through time: early inputs of a recurrent layer get a gradient that has grown over the steps.

    Sees:
        The gradient of the loss with respect to the input of each recurrent module at each time step, for cells that
        the model calls in a loop at the output of each call, and the size of their states. The rule speaks when the
        gradient grows by 1000 times (3 decades) from the last tenth of the steps back to an earlier one, or the
        states do from the first tenth on, and no single step makes up more than half of that. It also speaks when a
        recurrent module with finite weights makes NaN or infinity out of a finite input, or does so on the way back.

    Hurts:
        The weight gradient is a sum over time steps, and the exploded ones are all of it. It changes by orders of
        magnitude with every small change of the recurrent weights, so that one step in a steep direction throws them
        away: the loss jumps, or is NaN.

    Cure:
        Recurrent weights at the edge of stability: orthogonal with gain 1, identity for ReLU (Reinitialize); clipped
        gradients, which is what bounds the step (ClipGradients); a smaller learning rate (ScaleLearningRate); a
        bounded non-linearity (SwapActivation to tanh); gated cells (UseGatedCell), shorter sequences
        (TruncateBackprop).

    False alarms:
        A loss at every time step, as in a language model, gives early steps more than late ones, by the square root
        of the length at the most: 1.5 decades for a thousand steps. A step that the model reads out directly, by
        attention say, makes one leap and is not growth. Networks that read in both directions may hide their growth.

    Source:
        Bengio, Simard and Frasconi 1994, doi:10.1109/72.279181; Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """

    code: ClassVar[str] = "EG104"
    symptom: ClassVar[str] = "exploding through time"
    source: ClassVar[str] = "Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks"
    family: ClassVar[str] = "exploding-time"
    tells: ClassVar[Tells] = "harm"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge the recurrent module or cell whose gradient or state grows most."""
        if (overflown := _overflown(reading)) is not None:
            return _not_finite(overflown)
        if any(not layer.output_finite or not layer.grad_finite for layer in reading.layers):
            return None
        judged = [(*_growth(one), one) for one in time_profiles(reading)]
        if not judged:
            return None
        speaking = [item for item in judged if item[0] >= _threshold(item[2])]
        if not speaking:
            return Sign(decades=max(growth for growth, _, _ in judged))
        growth, what, one = max(speaking, key=lambda item: item[0])
        return _told(growth, what, one, tuple(other.name for _, _, other in speaking))

    def cures(self) -> tuple[Cure, ...]:
        """Propose weights at the edge first, then bounded gradients, smaller steps and gates."""
        return (
            cure("Reinitialize"),
            *CLIPPING,
            *SMALLER_STEPS[:1],
            cure("SwapActivation", to="tanh"),
            cure("UseGatedCell", kind="gru"),
        )


def _threshold(one: TimeProfile) -> float:
    return THRESHOLD_DECADES if one.known else UNKNOWN_KIND_DECADES


def _growth(one: TimeProfile) -> tuple[float, str]:
    """Measure growth back through the gradients and forward through the states; the larger one, and which it is."""
    back, forward = growth_of(one.grads), growth_of(one.activations[::-1]) if one.activations else 0.0
    return (back, "gradient") if back >= forward else (forward, "state")


def _overflown(reading: Reading) -> LayerReading | None:
    """Find a recurrent module whose own steps make what is not finite, forwards or backwards."""
    for layer in reading.layers:
        if layer.kind in MODULES | CELLS and layer.input_finite and not layer.output_finite:
            return layer if layer.weight_norm is not None and isfinite(layer.weight_norm) else None
        if not layer.output_finite:
            return None
    for layer in reversed(reading.layers):
        if not layer.grad_finite:
            return None
        if any(not isfinite(size) for size in layer.time_grad_rms):
            return layer
    return None


def _not_finite(layer: LayerReading) -> Sign:
    way = "forwards" if not layer.output_finite else "on its way back through time"
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=(without_call(layer.name),),
        message=f"`{layer.name}` ({layer.kind}) has finite weights and a finite input, and overflows {way}",
        evidence=(Evidence(name=f"largest finite output of {layer.name}", value=layer.activation_absmax),),
    )


def _told(growth: float, what: str, one: TimeProfile, where: tuple[str, ...]) -> Sign:
    profile: Sequence[float] = one.grads if what == "gradient" else one.activations
    low, high = min(profile), max(profile)
    if what == "gradient":
        text = f"the gradient of `{one.name}` grows by {growth:.1f} decades on its way back to the early time steps"
    else:
        text = f"the state of `{one.name}` grows by {growth:.1f} decades over the time steps"
    return Sign(
        decades=growth,
        speaks=True,
        where=where,
        message=f"{text} ({low:.1e} to {high:.1e} over {len(profile)} steps, {growth / len(profile):.2f} per step)",
        evidence=(
            Evidence(name=f"{what} of {one.name} at the first time step", value=profile[0]),
            Evidence(name=f"{what} of {one.name} at the last time step", value=profile[-1]),
            Evidence(name="time steps", value=float(len(profile))),
        ),
    )

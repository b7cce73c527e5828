"""EG201: a module makes NaN or infinity out of finite inputs."""

from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._onset import broken_by, came_out_of_nothing, no_epsilon
from evengrad.diagnose._profile import WIDEST_DECADES, without_call
from evengrad.diagnose._proposals import CLIPPING, NORMS_AND_SHORTCUTS, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, LayerReading, Reading, Record


@final
class NonFiniteForward(AbstractRule):
    """Non-finite forward: an activation is NaN or infinite.

    Sees:
        The outputs of all modules in the order of the forward pass. The first module whose output is not finite
        although its inputs were is named: everything after it is a consequence. Where the gradient of the step before
        was not finite and that step was done, the weights are at fault; where the data is finite and what the first
        module gets is not, the code between them.

    Hurts:
        The loss is NaN, so is every gradient, and one optimizer step later so is every weight. Nothing learnt so far
        can be saved then except by a checkpoint.

    Cure:
        If the activations grew towards the module: weights (Reinitialize), normalisation (AddNormalization), a
        bounded activation (SwapActivation). If it happened after some steps: a smaller learning rate
        (ScaleLearningRate), clipped gradients (ClipGradients). If the module takes a logarithm, a root or a quotient:
        keep its input away from zero.

    False alarms:
        A mask of minus infinity that is added to attention scores is finite again after the softmax; only outputs of
        modules and of non-linearities are looked at, not every operation. A module that returns such a mask on
        purpose would be named.

    Source:
        IEEE 754; Goodfellow, Bengio and Courville 2016, Deep Learning, section 4.1.
    """

    code: ClassVar[str] = "EG201"
    symptom: ClassVar[str] = "non-finite forward"
    source: ClassVar[str] = "Goodfellow, Bengio and Courville 2016, Deep Learning, section 4.1"
    family: ClassVar[str] = "non-finite"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Find the first producer."""
        bad = [layer for layer in reading.layers if not layer.output_finite]
        if not reading.layers:
            return None
        if not bad:
            return Sign(decades=0.0)
        producer = next((layer for layer in bad if layer.input_finite), None)
        at = reading.layers.index(producer or bad[0])
        reason, cause = _reason(producer, reading, record, at)
        nothing_grew = came_out_of_nothing(reading, record)
        return Sign(
            decades=WIDEST_DECADES,
            speaks=True,
            where=((producer or bad[0]).name,),
            message=f"{reason}; {len(bad)} of {len(reading.layers)} modules are not finite",
            evidence=_evidence(reading.layers, bad[0], len(bad)),
            cause=cause,
            cures=() if cause or nothing_grew else None,
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose what keeps activations bounded, then smaller steps."""
        return (
            cure("Reinitialize"),
            cure("SwapActivation", to="tanh"),
            cure("SwapActivation", to="selu"),
            *NORMS_AND_SHORTCUTS,
            *SMALLER_STEPS[:1],
            *CLIPPING,
        )


def _reason(producer: LayerReading | None, reading: Reading, record: Record, at: int) -> tuple[str, str]:
    """Say what is not finite first, and where that leaves no doubt what it comes from."""
    layer = reading.layers[at]
    broken = broken_by(reading, record)
    if broken is not None:
        return (
            f"`{layer.name}` ({layer.kind}) is the first module with a NaN or infinite output: the gradient of step "
            f"{broken} was not finite and that step was done, so the weights are not either",
            f"what made the gradient of step {broken} NaN or infinite",
        )
    if producer is None and at == 0:
        return _before_the_first(layer, reading)
    if producer is None:
        return (
            f"the input of `{layer.name}` is not finite: an operation between it and the {at} modules before made that",
            "",
        )
    if _weights_broken(producer, reading):
        return (
            f"`{producer.name}` ({producer.kind}) is the first module with a NaN or infinite output: its weights are, "
            "already",
            no_epsilon(record),
        )
    return (
        f"`{producer.name}` ({producer.kind}) makes NaN or infinity out of a finite input, the first module to do so",
        no_epsilon(record) if producer.weighted and reading.step > 0 else "",
    )


def _before_the_first(layer: LayerReading, reading: Reading) -> tuple[str, str]:
    """Tell data that is not finite from an operation in `forward` that makes it so, where the data was seen."""
    inputs = () if reading.ends is None else reading.ends.inputs
    what = f"the input of `{layer.name}`, the first module, is not finite"
    if any(tensor.finite_frac < 1.0 for tensor in inputs):
        return f"{what}: look at the data", "the data holds NaN or infinite numbers"
    if not inputs:
        return f"{what}: look at the data, and at what forward does before it", ""
    return (
        f"{what}, though what goes into the model is: the code in forward before `{layer.name}` made that",
        f"a mistake in the code: an operation in forward before `{layer.name}` is not defined for this batch; look for "
        "a quotient whose divisor can be zero (a norm, a standard deviation, a sum), a logarithm or a root",
    )


def _weights_broken(layer: LayerReading, reading: Reading) -> bool:
    """Tell whether the module's own weights are not finite, by its reading or by those of its parameters.

    Statistics of parameters are of the finite elements; a matrix of rms 0 that makes NaN has none, for zeros would not.
    """
    if layer.weight_norm is not None:
        return not isfinite(layer.weight_norm)
    module = without_call(layer.name)
    own = [one for one in reading.weights if one.name.rpartition(".")[0] == module]
    return any(not isfinite(one.weight_rms) or (one.fan_in > 0 and one.weight_rms == 0.0) for one in own)


def _evidence(layers: tuple[LayerReading, ...], first: LayerReading, count: int) -> tuple[Evidence, ...]:
    before = layers[: layers.index(first)]
    largest = max((layer.activation_absmax for layer in (*before, first)), default=0.0)
    return (
        Evidence(name="largest finite activation up to there", value=largest),
        Evidence(name="modules with a non-finite output", value=float(count)),
    )

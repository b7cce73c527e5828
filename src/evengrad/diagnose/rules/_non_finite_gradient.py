"""EG202: the gradient is NaN or infinite although the forward was finite."""

from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._loss_graph import risks
from evengrad.diagnose._onset import broken_by, came_out_of_nothing, of_the_last_graph, said_before
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import CLIPPING, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Evidence, ParameterReading, Reading, Record


@final
class NonFiniteGradient(AbstractRule):
    """Non-finite gradient: a parameter's gradient is NaN or infinite.

    Sees:
        The gradient norm of every parameter at every step: it is finite exactly when the gradient is (or so large,
        above 1e19, that its square overflows float32, which is no better). Where layers were sampled, the module at
        whose output the gradient is first not finite on its way back is named too, and where it comes out of a
        finite loss as NaN, what that loss takes (a root, a norm, a quotient). Where loss and gradient norm were
        ordinary until the step before, so that nothing had grown, that is said. Steps with a non-finite forward belong
        to EG201; those that were sampled and whose loss alone is not finite to EG203.

    Hurts:
        One step with such a gradient makes every weight NaN. Clipping does not help: it multiplies NaN by a number,
        or everything else by zero.

    Cure:
        Skip the step (a guard does), then remove the reason: a logarithm, root or division at zero in the loss, a
        slope that is infinite (sqrt at 0, norm of a zero vector), weights or learning rates so large that the product
        of slopes overflows (Reinitialize, ScaleLearningRate, ClipGradients).

    False alarms:
        Under dynamic loss scaling an overflow now and then is how the scale is found. Where a guard sees that it was
        the scaler who left a step out, the reading says so and holds no norms, and this rule does not judge it.

    Source:
        Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063; Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    code: ClassVar[str] = "EG202"
    symptom: ClassVar[str] = "non-finite gradient"
    source: ClassVar[str] = "Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks"
    family: ClassVar[str] = "non-finite"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """List the parameters whose gradient norm is not finite."""
        if not reading.grad_norms or any(not layer.output_finite for layer in reading.layers):
            return None
        if reading.layers and reading.loss is not None and not isfinite(reading.loss):
            return None
        if all(map(isfinite, reading.grad_norms)):
            return Sign(decades=0.0)
        count = sum(not isfinite(norm) for norm in reading.grad_norms)
        names = record.parameters or tuple(f"parameter {index}" for index in range(len(reading.grad_norms)))
        bad = tuple(name for name, norm in zip(names, reading.grad_norms, strict=False) if not isfinite(norm))
        cause = _cause(reading, record)
        end = _first_on_the_way_back(reading) + (", and the step was skipped" if reading.skipped else "")
        return Sign(
            decades=WIDEST_DECADES,
            speaks=True,
            where=bad,
            severity="warning" if reading.skipped else "critical",
            message=f"the gradient of {count} of {len(names)} parameters is NaN or infinite{end}",
            evidence=(
                Evidence(name="parameters with a non-finite gradient", value=float(count)),
                *_largest(reading.weights, frozenset(bad)),
            ),
            cause=cause,
            cures=() if cause else None,
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose smaller steps and bounded signals."""
        return (*SMALLER_STEPS, *CLIPPING, cure("Reinitialize"), cure("AddNormalization"))


def _largest(weights: tuple[ParameterReading, ...], bad: frozenset[str]) -> tuple[Evidence, ...]:
    """Give the largest finite element of these gradients: near the end of its dtype it has overflowed."""
    seen = [one for one in weights if one.name in bad and one.grad_absmax is not None]
    if not seen:
        return ()
    worst = max(seen, key=lambda one: one.grad_absmax or 0.0)
    return (Evidence(name=f"largest finite element of the gradient of {worst.name}", value=worst.grad_absmax or 0.0),)


def _cause(reading: Reading, record: Record) -> str:
    """Blame the loss where the gradient starts as NaN; what a loss that has not grown leaves open; or the weights."""
    broken = broken_by(reading, record)
    if broken is not None:
        return f"what made the gradient of step {broken} NaN or infinite: that step was done and broke the weights"
    if reading.loss is not None and isfinite(reading.loss):
        return _of_the_loss(reading) or _of_a_slope(reading, record)
    if not came_out_of_nothing(reading, record):
        return ""
    return (
        f"{said_before(reading, record)}: the batch of step {reading.step} is at fault (NaN or infinity in its data or "
        "target), or a logarithm, a root or a quotient that is not defined for it"
    )


def _of_the_loss(reading: Reading) -> str:
    """Blame a finite loss whose graph has a slope that may be infinite, where the gradient starts as NaN."""
    reached = [layer for layer in reading.layers if layer.grad_rms is not None]
    taken = risks(reading.ends)
    if not reached or reached[-1].grad_finite or not taken:
        return ""
    return (
        f"the gradient is not finite where it comes out of the loss, which takes {' and '.join(taken)}: at zero their "
        "slope is infinite, and times zero that is NaN; add a small number inside of them"
    )


def _of_a_slope(reading: Reading, record: Record) -> str:
    """Say of a loss that is finite and ordinary, and a gradient that is not, that only a slope can be at fault."""
    if not came_out_of_nothing(reading, record):
        return ""
    taken = of_the_last_graph(reading, record)
    there = f"; the loss takes {' and '.join(taken)}" if taken else ""
    return (
        f"{said_before(reading, record)}, and the loss is finite: the slope of an operation is not, such as of a root "
        f"or a norm at zero, or of an arc cosine at 1{there}; keep its input away from there"
    )


def _first_on_the_way_back(reading: Reading) -> str:
    """Name the module nearest to the loss whose gradient is not finite, where layers were sampled."""
    reached = [layer for layer in reading.layers if layer.grad_rms is not None]
    if not reached:
        return ""
    bad = [layer for layer in reached if not layer.grad_finite]
    if bad:
        return f"; on its way back it is first not finite at the output of `{bad[-1].name}`"
    largest = max(reached, key=lambda layer: layer.grad_norm or 0.0)
    return (
        f"; at the outputs of all layers it is finite, at most {largest.grad_norm:.1e} (`{largest.name}`): "
        "the weights' own gradients overflow"
    )

"""EG203: the loss is NaN or infinite although everything that the model computed is finite."""

from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._loss_graph import certain_cause, risks
from evengrad.diagnose._onset import broken_by, came_out_of_nothing, of_the_last_graph, said_before
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import CLIPPING, SMALLER_STEPS, cure
from evengrad.nouns import Cure, Ends, Evidence, Reading, Record, Severity


@final
class NonFiniteLoss(AbstractRule):
    """Non-finite loss: the loss is NaN or infinite although every module's output is finite.

    Sees:
        Steps whose layers were sampled: every output is finite and the loss is not. Where the graph of the loss was
        seen, the operations in it that are not defined everywhere are named (logarithm, root, quotient, norm, arc
        function, power), beside the range of the model's output and target. On other steps a loss that is not finite
        is told if the gradient is not either and the weights were sound: where loss and gradient norm were ordinary
        until then, the batch or such an operation is at fault and no growth.

    Hurts:
        The gradient of such a loss is NaN, and one optimizer step later so is every weight.

    Cure:
        Keep what goes into a logarithm, a quotient or a root away from zero; losses that take logits
        (`cross_entropy`, `binary_cross_entropy_with_logits`) do that by themselves, and where the softmax or
        sigmoid before a loss of probabilities is missing, AddOutputActivation puts it there. A mean over nothing, as
        where every label is ignored, is 0 / 0: leave such batches out. If the output has grown until its square
        overflows: a smaller learning rate (ScaleLearningRate), clipped gradients (ClipGradients), scaled targets.

    False alarms:
        A loss that is infinite on purpose for a hopeless sample; where the gradient is finite all the same, or the
        step was skipped, it is a warning. A NaN that stands for a loss that nobody knows is read as NaN.

    Source:
        IEEE 754; Goodfellow, Bengio and Courville 2016, Deep Learning, section 4.1.
    """

    code: ClassVar[str] = "EG203"
    symptom: ClassVar[str] = "non-finite loss"
    source: ClassVar[str] = "Goodfellow, Bengio and Courville 2016, Deep Learning, section 4.1"
    family: ClassVar[str] = "non-finite"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Judge a step whose layers were finite; one without layers, if its gradient is not finite either."""
        if reading.loss is None or any(not layer.output_finite for layer in reading.layers):
            return None
        if isfinite(reading.loss):
            return Sign(decades=0.0) if reading.layers else None
        if not reading.layers and (_is_harmless(reading) or broken_by(reading, record) is not None):
            return None
        return _seen(reading, record) if reading.layers else _not_seen(reading, record)

    def cures(self) -> tuple[Cure, ...]:
        """Propose smaller steps, for where the output has grown; the rest is a change of the code."""
        return (*SMALLER_STEPS, *CLIPPING, cure("Reinitialize"), cure("AddOutputActivation"))


def _seen(reading: Reading, record: Record) -> Sign:
    taken = risks(reading.ends)
    holds = f": it takes {' and '.join(taken)}" if taken else ""
    cause = certain_cause(reading.ends)
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=("loss",),
        severity=_severity(reading),
        message=f"the loss is {reading.loss} although the outputs of all modules are finite{holds}",
        evidence=_evidence(reading.ends),
        cause=cause,
        cures=() if came_out_of_nothing(reading, record) else None,
    )


def _not_seen(reading: Reading, record: Record) -> Sign:
    """Tell what loss and norm alone say: whether something had grown, or the batch or an operation is at fault."""
    nothing_grew = came_out_of_nothing(reading, record)
    taken = of_the_last_graph(reading, record) if nothing_grew else ()
    what = f", or what the loss takes: {' and '.join(taken)}" if taken else ""
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=("loss",),
        severity=_severity(reading),
        message=f"the loss is {reading.loss}" + (f"; {said_before(reading, record)}" if nothing_grew else ""),
        cause=(
            f"the batch of step {reading.step}: NaN or infinity in its data or target, or a logarithm, a root or a "
            f"quotient that is not defined for it{what}"
            if nothing_grew
            else ""
        ),
        cures=() if nothing_grew else None,
    )


def _severity(reading: Reading) -> Severity:
    """A step that was left out, or whose gradient is finite all the same, has not broken the weights."""
    harmless = bool(reading.grad_norms) and all(map(isfinite, reading.grad_norms))
    return "warning" if reading.skipped or harmless else "critical"


def _is_harmless(reading: Reading) -> bool:
    """Tell whether no gradient is known to be broken: then a NaN may stand for a loss that nobody knows."""
    total = reading.total_norm
    return all(map(isfinite, reading.grad_norms)) and (total is None or isfinite(total))


def _evidence(ends: Ends | None) -> tuple[Evidence, ...]:
    named = (("output", None if ends is None else ends.output), ("target", None if ends is None else ends.target))
    return tuple(
        Evidence(name=f"{side} of the {what}", value=value)
        for what, tensor in named
        if tensor is not None
        for side, value in (("minimum", tensor.minimum), ("maximum", tensor.maximum))
    )

"""EG502: a non-linearity between the last layer and the softmax."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._ends import CROSS_ENTROPIES, form_of
from evengrad.diagnose._places import last_layers
from evengrad.diagnose._proposals import FREE_OUTPUT
from evengrad.nouns import Cure, Ends, Evidence, Reading, Record

# A softmax looks at differences only, so a non-linearity that is bounded on one side alone (softplus, elu, gelu) can
# still give every distribution. A rectifier cannot come back from where it is flat, and what is bounded on both sides
# bounds the differences.
AGAINST_SOFTMAX = {
    "Relu": "ReLU",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Hardtanh": "hardtanh",
    "Hardsigmoid": "hardsigmoid",
}
# The sign of a single logit is what a sigmoid looks at: a non-linearity that is never far below zero says yes always.
AGAINST_SIGMOID = {
    "Relu": "ReLU",
    "Tanh": "tanh",
    "Hardtanh": "hardtanh",
    "Softplus": "softplus",
    "Elu": "ELU",
    "Celu": "CELU",
    "Gelu": "GELU",
    "Silu": "SiLU",
    "Mish": "Mish",
    "Hardswish": "hardswish",
}


@final
class ActivationOnLogits(AbstractRule):
    """Activation on the logits: what the softmax gets cannot be what it needs.

    Sees:
        The operations from the loss back to the last layer with weights. The rule speaks when the operation right
        below the softmax of a cross entropy, or below the sigmoid of a binary cross entropy with logits, is a
        non-linearity that takes something away: a rectifier, or one that is bounded on both sides. It is critical when
        the output shows it: logits that are the same for the whole batch.

    Hurts:
        Logits must be free to go both ways. A rectified logit that is negative for all samples has no slope, so its
        class is never learnt; bounded logits keep the probabilities away from 0 and 1, and the loss away from zero.

    Cure:
        A change of the code: no non-linearity behind the last layer (RemoveOutputActivation).

    False alarms:
        Logits that are capped softly, `c * tanh(x / c)`, have a multiplication between tanh and softmax, and are not
        told; nor is a rectifier in front of a pooling, as in SqueezeNet, nor a leaky one. Networks often learn
        something in spite of it, so without dead logits it does not make a run sick by itself.

    Source:
        Islam et al. 2019, doi:10.1145/3338906.3338955; Stack Overflow 47352366 (rectified logits).
    """

    code: ClassVar[str] = "EG502"
    symptom: ClassVar[str] = "activation on the logits"
    source: ClassVar[str] = "Islam et al. 2019, A Comprehensive Study on Deep Learning Bug Characteristics"
    family: ClassVar[str] = "activation-on-logits"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Look at the operation right below the softmax or the sigmoid."""
        form = form_of(reading.ends) if reading.ends is not None else None
        if reading.ends is None or form is None:
            return None
        what = _named(form.name, form.below)
        if what is None:
            return Sign(decades=0.0)
        dead_frac = _dead_frac(reading.ends, what)
        seen = f"; {dead_frac:.0%} of the logits are the same for the whole batch" if dead_frac > 0.0 else ""
        return Sign(
            decades=0.0,
            speaks=True,
            where=last_layers(reading),
            severity="critical" if dead_frac > 0.0 else "warning",
            message=f"a {what} stands between the last layer and the {form.name}: {_hurt(what)}{seen}",
            evidence=(Evidence(name="logits without a slope", value=100 * dead_frac, unit="%"),),
            cause=f"a mistake in the code: remove the {what} behind the last layer",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose to take the activation off the output."""
        return FREE_OUTPUT


def _named(form: str, below: tuple[str, ...]) -> str | None:
    """Name the non-linearity that feeds a softmax or a sigmoid; None when there is none that takes something away."""
    if form in CROSS_ENTROPIES and below:
        return AGAINST_SOFTMAX.get(below[0])
    if form == "binary cross entropy with logits" and below:
        return AGAINST_SIGMOID.get(below[0])
    if len(below) < 2:
        return None
    if below[0] == "Softmax":
        return AGAINST_SOFTMAX.get(below[1])
    return AGAINST_SIGMOID.get(below[1]) if below[0] == "Sigmoid" and form == "binary cross entropy" else None


def _dead_frac(ends: Ends, what: str) -> float:
    """Share of rectified logits that no sample of a batch of eight or more has above zero."""
    output = ends.output
    if what != "ReLU" or output is None or not output.shape or output.shape[0] < 8 or output.minimum != 0.0:
        return 0.0
    return output.constant_frac


def _hurt(what: str) -> str:
    if what == "ReLU":
        return "logits cannot be negative, and one that is zero for all samples never learns again"
    if what in {"sigmoid", "tanh", "hardtanh", "hardsigmoid"}:
        return "bounded logits keep the probabilities away from 0 and 1"
    return "logits cannot be far below zero, so the probability cannot be far below a half"

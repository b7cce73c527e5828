"""EG501: the loss takes a softmax of what is a softmax already."""

from math import exp, log
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._ends import CROSS_ENTROPIES, Form, form_of
from evengrad.diagnose._places import last_layers
from evengrad.diagnose._proposals import FREE_OUTPUT
from evengrad.nouns import Cure, Ends, Evidence, Reading, Record


@final
class SoftmaxTwice(AbstractRule):
    """Softmax twice: the loss squashes an output that is squashed already.

    Sees:
        The operations from the loss back to the last layer with weights. A cross entropy of torch takes the logarithm
        of a softmax itself; the rule speaks when the operation right below it is a softmax again. So it does for a
        sigmoid below a binary cross entropy that takes logits.

    Hurts:
        The second softmax sees numbers between 0 and 1, so no class can get more than e times the probability of
        another: with C classes the loss cannot fall below log(1 + (C - 1) / e), which is 1.46 for ten classes, and the
        gradient has to pass through two slopes that both vanish for a network that is sure.

    Cure:
        A change of the code: return the logits, and apply the softmax only where probabilities are read
        (RemoveOutputActivation).

    False alarms:
        A logarithm of a softmax applied twice changes nothing and is not told. A softmax in front of further weights,
        as in attention, is not next to the loss. A loss that is not torch's own is not judged. Networks often
        learn something in spite of it, so by itself it does not make a run sick.

    Source:
        The documentation of torch.nn.CrossEntropyLoss (the input is expected to contain the unnormalized logits);
        Islam et al. 2019, doi:10.1145/3338906.3338955, on the most frequent mistakes.
    """

    code: ClassVar[str] = "EG501"
    symptom: ClassVar[str] = "softmax twice"
    source: ClassVar[str] = "Islam et al. 2019, A Comprehensive Study on Deep Learning Bug Characteristics"
    family: ClassVar[str] = "softmax-twice"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Look at the operation right below the loss."""
        form = form_of(reading.ends) if reading.ends is not None else None
        if reading.ends is None or form is None:
            return None
        twice = _twice(form)
        if twice is None:
            return Sign(decades=0.0)
        what, instead = twice
        floor, classes = _floor(reading.ends, what)
        lost = f": with {classes} classes the loss cannot fall below {floor:.2f}" if what == "softmax" else ""
        return Sign(
            decades=0.0,
            speaks=True,
            where=last_layers(reading),
            severity="warning",
            message=f"the output is a {what} already when the {form.name} takes its own{lost}",
            evidence=(Evidence(name="lowest loss that can be reached", value=floor),),
            cause=f"a mistake in the code: remove the {what} before the loss{instead}",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose to take the activation off the output."""
        return FREE_OUTPUT


def _twice(form: Form) -> tuple[str, str] | None:
    """Name what is applied twice, and what may be used instead; None when nothing is."""
    first = form.below[0] if form.below else ""
    if form.name == "binary cross entropy with logits" and first == "Sigmoid":
        return "sigmoid", ", or use a binary cross entropy that takes probabilities"
    if form.name not in CROSS_ENTROPIES or first != "Softmax":
        return None
    return "softmax", ", or take the logarithm yourself and use nll_loss"


def _floor(ends: Ends, what: str) -> tuple[float, int]:
    """Lowest loss when no class can have more than e times the weight of another; and the number of classes."""
    classes = ends.softmax_size or (ends.output.features if ends.output is not None else 0) or 2
    return (log(1.0 + exp(-1.0)) if what == "sigmoid" else log(1.0 + (max(classes, 2) - 1) / exp(1.0))), classes

"""EG504: a hand-written backward gives a gradient that the forward does not have."""

import re
from math import isfinite, log10
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRule, Sign, Tells
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.nouns import Cure, Evidence, Reading, Record

# Functions whose name says that their gradient is meant to be another one than their forward has.
MEANT = re.compile(r"rever|revgrad|grl|scal|straight|through|quant|round|binar|sign|surrogate|spike|STE")


@final
class WrongCustomBackward(AbstractRule):
    """Wrong custom backward: the written gradient is not that of the forward.

    Sees:
        For each `torch.autograd.Function` of the user's, the ratio of the slope that its backward promises along a
        direction to the slope that is measured by moving its input both ways. Looked for in checkups only.

    Hurts:
        The steps do not go downhill. A wrong factor acts as a wrong learning rate for everything behind the function;
        a wrong sign climbs.

    Cure:
        A change of the code: compare the function with `torch.autograd.gradcheck` in float64.

    False alarms:
        What is meant to have another gradient than its forward has, as a straight-through estimator, a gradient
        reversal, a gradient scaling or the surrogate of a spike, is left out where the name of the function says so,
        and where the forward has no slope at all (a ratio that is not finite). By itself it does not make a run sick.

    Source:
        The documentation of torch.autograd.gradcheck; Nocedal and Wright 2006, section 8.1, on finite differences.
    """

    code: ClassVar[str] = "EG504"
    symptom: ClassVar[str] = "wrong custom backward"
    source: ClassVar[str] = "Nocedal and Wright 2006, Numerical Optimization, section 8.1"
    family: ClassVar[str] = "wrong-backward"
    tells: ClassVar[Tells] = "always"

    def sign(self, reading: Reading, record: Record) -> Sign | None:
        """Pass on what the probe has found."""
        if reading.ends is None:
            return None
        wrong = [one for one in reading.ends.wrong_backward if isfinite(one[2]) and not _meant(one[0])]
        if not wrong:
            return Sign(decades=0.0)
        function, parameter, ratio = wrong[0]
        return Sign(
            decades=min(abs(log10(abs(ratio))), WIDEST_DECADES) if ratio != 0.0 else WIDEST_DECADES,
            speaks=True,
            where=tuple(dict.fromkeys(name for _, name, _ in wrong if name)),
            severity="warning",
            message=(
                f"the backward of `{function}` gives {ratio:.3g} times the slope of its forward"
                + (f", so the gradient of `{parameter}` is wrong" if parameter else "")
            ),
            evidence=tuple(
                Evidence(name=f"gradient over what it should be, {name or of}", value=value)
                for of, name, value in wrong[:6]
            ),
            cause=f"a mistake in the code, unless it is meant so: check `{function}` with torch.autograd.gradcheck",
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing: the code has to change."""
        return ()


def _meant(function: str) -> bool:
    return MEANT.search(re.sub(r"[A-Z](?=[a-z])", lambda letter: letter[0].lower(), function)) is not None

"""EG111: gradients are cleared between backward and step."""

from math import isfinite
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose.rules._signal_cut import cleared
from evengrad.nouns import Cure, Evidence, Record, without_last_look

# One layer could be a coincidence of names; a cleared gradient is missing everywhere.
FEWEST_LAYERS = 2


@final
class GradientCleared(AbstractRunRule):
    """Gradient cleared: the backward has made gradients, and the optimizer finds none.

    Sees:
        Steps at which the gradient of every parameter is exactly zero, or none is there, in all readings of a run,
        although a gradient arrived at the outputs of two or more layers with biases: the gradient of a bias is the
        sum of that, so it has been there and is gone.

    Hurts:
        No step changes anything.

    Cure:
        A change of the code: `optimizer.zero_grad()` belongs before the backward or after the step, not between.

    False alarms:
        None known: a gradient that is zero by itself, by dead units or a cut, does not arrive at the outputs either.

    Source:
        Humbatova et al. 2020, Taxonomy of real faults in deep learning systems.
    """

    code: ClassVar[str] = "EG111"
    symptom: ClassVar[str] = "gradient cleared"
    source: ClassVar[str] = "Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems"
    family: ClassVar[str] = "zero-grad"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Compare the gradients at the outputs of layers with those of their biases."""
        known = (one for one in record.readings if one.grad_norms and all(map(isfinite, one.grad_norms)))
        measured = []
        for one in known:
            if any(one.grad_norms) and len(record.parameters) == len(one.grad_norms):
                return Sign(decades=0.0)
            measured.append(one)
        if not measured or any(len(record.parameters) != len(one.grad_norms) for one in measured):
            return None
        layers = cleared(measured, record)
        if len(layers) < FEWEST_LAYERS:
            return None
        return Sign(
            decades=WIDEST_DECADES,
            speaks=True,
            where=("optimizer",),
            when=(measured[0].step, measured[-1].step),
            message=(
                f"a gradient arrives at the outputs of {len(layers)} layers, and the optimizer finds that of all "
                f"{len(record.parameters)} parameters to be zero at each of {len(without_last_look(measured))} steps"
            ),
            evidence=(Evidence(name="layers that a gradient reaches", value=float(len(layers))),),
            cause=(
                "a mistake in the code: the gradients are cleared between backward and step; call zero_grad() before "
                "the backward or after the step"
            ),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing that a treatment can do: the code has to change."""
        return ()

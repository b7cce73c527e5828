"""EG109: weights that no optimizer holds."""

from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.nouns import Cure, Evidence, Record, Setup, Severity, shortened


@final
class NotInOptimizer(AbstractRunRule):
    """Not in the optimizer: weights that ask for a gradient and that no step ever changes.

    Sees:
        Parameters of the model that require a gradient and are in no optimizer, and modules or parameters that the
        model keeps where torch does not see them: in a plain list or dict instead of a `ModuleList`, `ModuleDict` or
        `ParameterList`.

    Hurts:
        They keep their first values. What is kept in a plain list is also missing from `model.to(device)` and from
        every checkpoint.

    Cure:
        A change of the code: make the optimizer from `model.parameters()` after the model is complete (a layer that
        is replaced later is not in it), and keep modules in `nn.ModuleList`.

    False alarms:
        Training only a head with an optimizer of its own, and hiding a teacher in a list, are done on purpose; so it
        is told only in a run that another rule has found sick.

    Source:
        Torch's documentation of `torch.nn.ModuleList` and `torch.optim`; Humbatova et al. 2020, Taxonomy of real faults
        in deep learning systems.
    """

    code: ClassVar[str] = "EG109"
    symptom: ClassVar[str] = "not in the optimizer"
    source: ClassVar[str] = "Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems"
    family: ClassVar[str] = "signal-cut"
    tells: ClassVar[Tells] = "cause"

    def judge(self, record: Record) -> Sign | None:
        """Look at what is known of the training before its first step."""
        setup = record.setup
        if setup is None or not record.readings:
            return None
        if not setup.left_out and not setup.unregistered:
            return Sign(decades=0.0)
        lost = (*setup.unregistered, *setup.left_out)
        modules = dict.fromkeys(name if name in setup.unregistered else _module_of(name) for name in lost)
        return Sign(
            decades=WIDEST_DECADES,
            speaks=True,
            where=tuple(modules),
            severity=_severity(setup, len(record.parameters)),
            when=(record.readings[0].step, record.readings[-1].step),
            message=_message(setup, len(record.parameters)),
            evidence=(
                Evidence(name="parameters in no optimizer", value=float(len(setup.left_out))),
                Evidence(name="modules or parameters that torch does not see", value=float(len(setup.unregistered))),
            ),
            cause=_cause(setup),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose nothing that a treatment can do: the code has to change."""
        return ()


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _severity(setup: Setup, trained: int) -> Severity:
    """What torch does not see is hardly ever meant so; a head trained alone leaves out much, a forgotten layer little.

    Only where nothing else is trained than a smaller part is it as bad.
    """
    return "critical" if setup.unregistered or len(setup.left_out) >= trained else "warning"


def _message(setup: Setup, trained: int) -> str:
    parts = []
    if setup.unregistered:
        parts.append(f"the model keeps {shortened(setup.unregistered)} where torch does not see them")
    if setup.left_out:
        count = len(setup.left_out)
        parts.append(
            f"{count} of {count + trained} parameters require a gradient and are in no optimizer: "
            f"{shortened(setup.left_out)}"
        )
    return "; ".join(parts)


def _cause(setup: Setup) -> str:
    """Name what to change."""
    if setup.unregistered:
        return (
            "a mistake in the code: modules in a plain list, tuple or dict are not registered; keep them in "
            "nn.ModuleList, nn.ModuleDict or nn.ParameterList"
        )
    return (
        "the optimizer was made from other parameters than the model has now: make it from model.parameters() after "
        "the last layer is in place, or freeze with requires_grad_(False) what is not to be trained"
    )

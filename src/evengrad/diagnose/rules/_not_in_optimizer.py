"""EG109: weights that no optimizer holds."""

from dataclasses import replace
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import EVERYTHING_TRAINED
from evengrad.diagnose._trend import trend_of
from evengrad.nouns import Cure, Evidence, Record, Setup, Severity, shortened


@final
class NotInOptimizer(AbstractRunRule):
    """Not in the optimizer: weights that ask for a gradient and that no step ever changes.

    Sees:
        Parameters of the model that require a gradient and are in no optimizer, and modules or parameters that the
        model keeps where torch does not see them: in a plain list or dict instead of a `ModuleList`, `ModuleDict` or
        `ParameterList`. Where their weights are as an initialisation draws them to the last digit, get a gradient,
        and have not been moved by anybody in 128 steps (or by the end of a run of 8 or more), it is a mistake: random
        weights are not kept on purpose while their gradient is computed.

    Hurts:
        They keep their first values, and the rest learns from random features. What is kept in a plain list is also
        missing from `model.to(device)` and from every checkpoint.

    Cure:
        A change of the code: make the optimizer from `model.parameters()` after the model is complete (a layer that
        is replaced later is not in it), and keep modules in `nn.ModuleList` (TrainEverything).

    False alarms:
        Training only a head with an optimizer of its own, and hiding a teacher in a list, are done on purpose, with
        trained weights; what looks trained is told only in a run that another rule has found sick. The other part of
        a game, which another optimizer trains, moves. A target that follows the weights gets no gradient. Weights of
        fewer than 64 elements and other initialisations than the usual ones are not judged.

    Source:
        Torch's documentation of `torch.nn.ModuleList` and `torch.optim`; Humbatova et al. 2020, Taxonomy of real faults
        in deep learning systems.
    """

    code: ClassVar[str] = "EG109"
    symptom: ClassVar[str] = "not in the optimizer"
    source: ClassVar[str] = "Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems"
    family: ClassVar[str] = "signal-cut"
    tells: ClassVar[Tells] = "always"

    def judge(self, record: Record) -> Sign | None:
        """Look at what is known of the training before its first step, and at what its steps have left as it was."""
        setup = record.setup
        if setup is None or not record.readings:
            return None
        untrained = _untrained(record, setup)
        if untrained:
            return _certain(untrained, record, setup)
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
            only_if_sick=True,
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose to train what the optimizer leaves out."""
        return EVERYTHING_TRAINED


def _untrained(record: Record, setup: Setup) -> tuple[str, ...]:
    """Name the weights as drawn that ask for a gradient; where the record has their gradient, those that get one."""
    places = {name: index for index, name in enumerate(record.parameters)}
    frozen = frozenset(setup.frozen)
    measured = [one for one in record.readings if len(one.grad_norms) == len(record.parameters)]
    return tuple(
        name
        for name in setup.untrained
        if name not in frozen and (name not in places or any(one.grad_norms[places[name]] for one in measured))
    )


def _certain(untrained: tuple[str, ...], record: Record, setup: Setup) -> Sign:
    hidden = frozenset(setup.untrained) - frozenset(setup.left_out)
    unseen = tuple(name for name in untrained if name in hidden)
    left = tuple(name for name in untrained if name not in hidden)
    parts = []
    if unseen:
        parts.append(f"{len(unseen)} weights are in modules where torch does not see them: {shortened(unseen)}")
    if left:
        parts.append(f"{len(left)} weights are in no optimizer: {shortened(left)}")
    only = replace(setup, unregistered=setup.unregistered if unseen else ())
    return Sign(
        decades=WIDEST_DECADES,
        speaks=True,
        where=tuple(dict.fromkeys(_module_of(name) for name in untrained)),
        severity="critical" if _stuck(record) else "warning",
        when=(record.readings[0].step, record.readings[-1].step),
        message=f"{'; '.join(parts)}. They are as they were drawn at random, and no step changes them",
        evidence=(Evidence(name="weights that nothing trains", value=float(len(untrained))),),
        cause=_cause(only),
    )


def _stuck(record: Record) -> bool:
    """Tell whether the run does not learn with what is left to it."""
    trend = trend_of(record)
    return trend is not None and trend.from_start and not trend.fell and not trend.still_falling


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

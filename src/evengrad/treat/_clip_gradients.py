"""Bound the gradient of each step."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median
from typing import Any, ClassVar, Literal, final

from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks

# A step whose gradient is this many times the median of those before it has exploded: ten times the average norm is
# the largest threshold that Pascanu et al. found useful.
EXPLODED = 10.0
USUAL_NORM = 1.0


def bound_from(norms: Iterable[float]) -> float:
    """Choose the bound of the norm from the norms of a training that was not clipped, in the order of its steps.

    The median of the norms before the first explosion, with two digits: half of the usual steps are let through as they
    are and the others shortened a little, while what is many times larger is cut to the usual size. An explosion is a
    norm that is not finite, or ten times the median of those before it. Steps without a gradient do not count.

    Raises:
        SettingError: No norm is positive and finite before the first one that is not finite.

    Example:
        >>> bound_from([3.0, 2.0, 2.5, 4e6, float("nan")])
        2.5

    Source:
        Pascanu et al. 2013, arXiv 1211.5063, section 3.2 (half to ten times the average norm); Seetharaman et al. 2020,
        arXiv 2007.14469 (a percentile of the norms seen).
    """
    calm: list[float] = []
    for norm in norms:
        if not isfinite(norm) or (calm and norm > EXPLODED * median(calm)):
            break
        if norm > 0:
            calm.append(norm)
    if not calm:
        raise SettingError("norms", came="none that is positive and finite at the start", wanted="some")
    return float(f"{median(calm):.2g}")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGradients(AbstractTreatment):
    """Bound the norm of all gradients together, in a copy of the task.

    Replaces the clipping that the task has. Keeps single huge gradients from throwing the weights away; does nothing
    against a forward pass that overflows.

    Args:
        max_norm: The largest norm that is let through. None for 1, which is what most published recipes use;
            `bound_from` chooses one from a record.
        policy: `norm` cuts at `max_norm`, as does None. `adaptive` cuts norms that are unusual against their own
            running mean, evengrad's default policy, which needs no number and skips steps that are not finite.

    Raises:
        SettingError: The norm is not a positive finite number, the policy is unknown, or it takes no norm.

    Example:
        >>> ClipGradients(max_norm=0.5).label
        'ClipGradients(max_norm=0.5)'

    Source:
        Pascanu et al. 2013, arXiv 1211.5063, algorithm 1; Kumar et al. 2025, arXiv 2504.02507 (adaptive).
    """

    max_norm: float | None = None
    policy: Literal["norm", "adaptive"] | None = None

    effort: ClassVar[int] = 1
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "single huge gradients"

    def __post_init__(self) -> None:
        if self.max_norm is not None and not (self.max_norm > 0 and isfinite(self.max_norm)):
            raise SettingError("max_norm", came=repr(self.max_norm), wanted="a positive finite number, or None")
        if self.policy not in {None, "norm", "adaptive"}:
            raise SettingError("policy", came=repr(self.policy), wanted="norm, adaptive or None")
        if self.policy == "adaptive" and self.max_norm is not None:
            raise SettingError("max_norm", came=repr(self.max_norm), wanted="None where the policy is adaptive")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no clipping."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no clipping."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Set the clipping of a copy of the task: `AbstractTreatment.treat_task`."""
        bound = "adaptive" if self.policy == "adaptive" else self.max_norm or USUAL_NORM
        if isinstance(task.clip, int | float | str) and task.clip == bound:
            raise TreatmentError(self.label, came=f"a task that clips at {task.clip}", wanted="another bound")
        before = "" if task.clip is None else f", instead of {task.clip!r}"[:200]
        said, code = _adaptive() if isinstance(bound, str) else _at(bound)
        return Treated(subject=replace(task, clip=bound), changes=(f"{said} at each step{before}",), code=code)


def _at(bound: float) -> tuple[str, str]:
    """Say and write clipping at a number."""
    return (
        f"the norm of all gradients together is clipped to {bound:g}",
        "# between loss.backward() and optimizer.step()\n"
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={bound!r})",
    )


def _adaptive() -> tuple[str, str]:
    """Say and write clipping by the default policy."""
    return (
        "the norm of all gradients together is clipped where it is unusual against its own running mean",
        "# once, after the optimizer is made: it clips and skips in each optimizer.step()\n"
        "import evengrad\n"
        "\n"
        "guard = evengrad.Guard(model, optimizer)",
    )

"""Several treatments, one after the other."""

from dataclasses import dataclass
from typing import Any, final

from torch import nn

from evengrad.nouns import SettingError, Task
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._add_output_activation import AddOutputActivation
from evengrad.treat._normalize_input import NormalizeInput
from evengrad.treat._on_a_copy import treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._remove_output_activation import RemoveOutputActivation

# One reads all of the training data, the others what the loss takes.
ASK_THE_TASK = (NormalizeInput, RemoveOutputActivation, AddOutputActivation)


@final
@dataclass(frozen=True, slots=True)
class Combined(AbstractTreatment):
    """Apply several treatments in their order to one copy.

    Put `SwapActivation` before `Reinitialize`, so that the weights are scaled for the new function, and
    `AddNormalization` before `AddResidual`, so that the norm is inside the block. One treatment that does not apply
    makes the whole fail.

    Args:
        treatments: At least two.

    Raises:
        SettingError: Fewer than two treatments, or something else among them.

    Example:
        >>> from evengrad.treat import Reinitialize, SwapActivation
        >>> both = Combined((SwapActivation(to="tanh"), Reinitialize()))
        >>> both.label, both.effort
        ("SwapActivation(to='tanh') + Reinitialize(scheme='auto')", 5)
    """

    treatments: tuple[AbstractTreatment, ...]

    def __post_init__(self) -> None:
        if len(self.treatments) < 2 or not all(isinstance(part, AbstractTreatment) for part in self.treatments):
            raise SettingError("treatments", came=repr(self.treatments)[:200], wanted="two or more treatments")

    @property
    def effort(self) -> int:
        """The sum of the efforts."""
        return sum(part.effort for part in self.treatments)

    @property
    def changes_model(self) -> bool:
        """Whether every part changes the model, so that `treat` works."""
        return all(part.changes_model for part in self.treatments)

    @property
    def blames(self) -> str:
        """What the parts blame, together."""
        return " and ".join(dict.fromkeys(part.blames for part in self.treatments))

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Apply all parts to one copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Apply all parts to one copy of the task, one by one where a part asks more of it than a batch."""
        if self.changes_model and not any(isinstance(part, ASK_THE_TASK) for part in self.treatments):
            return task_with_treated_model(self, task, seed)
        changes: list[str] = []
        code: list[str] = []
        for part in self.treatments:
            treated = part.treat_task(task, seed=seed)
            task = treated.subject
            changes += treated.changes
            code.append(treated.code)
        return Treated(subject=task, changes=tuple(changes), code="\n".join(code))

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Apply all parts, in place."""
        done = [part.change_(model, seed=seed, batch_input=batch_input) for part in self.treatments]
        return Change(
            changes=tuple(sentence for change in done for sentence in change.changes),
            code="\n".join(change.code for change in done),
        )

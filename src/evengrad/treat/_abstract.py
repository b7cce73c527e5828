"""What every treatment promises, and what it hands back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, final

from torch import nn

from evengrad.nouns import Setting, Task

Subject = TypeVar("Subject", nn.Module, Task)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What was done to a model: in words, and as code.

    Args:
        changes: One sentence for each kind of change, with the names of the modules.
        code: Python to paste after the line that makes `model` (or `optimizer`); uses `torch` and `nn`.
    """

    changes: tuple[str, ...]
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Treated(Generic[Subject]):
    """A changed copy and what was changed.

    Args:
        subject: The changed copy: a model or a task.
        changes: One sentence for each kind of change, with the names of the modules.
        code: The same change as Python to paste after the line that makes `model` (or `optimizer`); it uses `torch`
            and `torch.nn` as `nn`, and names modules by their dotted names only.
    """

    subject: Subject
    changes: tuple[str, ...]
    code: str


class AbstractTreatment(ABC):
    """Promise to change a copy of a model or a task, and to say what was changed.

    A treatment is a frozen dataclass whose fields are its settings. Nothing given to it is touched: not a weight, a
    buffer, a hook, a mode, or a random state.
    """

    __slots__ = ()

    @final
    @property
    def name(self) -> str:
        """The class name, as it stands in `evengrad.treat.ALL`."""
        return type(self).__name__

    @final
    @property
    def settings(self) -> tuple[tuple[str, Setting], ...]:
        """The settings that say something: not None, nor a truth value or the word `none` where it is the default."""
        given = ((field, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        return tuple(
            (field.name, value)
            for field, value in given
            if isinstance(value, str | int | float)
            and not (value == field.default and (isinstance(value, bool) or value == "none"))
        )

    @final
    @property
    def label(self) -> str:
        """The treatment as it would be called: `Reinitialize(scheme='he')`; combined ones joined by ` + `."""
        parts: tuple[AbstractTreatment, ...] = getattr(self, "treatments", ())
        if parts:
            return " + ".join(part.label for part in parts)
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.settings)})"

    @property
    @abstractmethod
    def effort(self) -> int:
        """Rank of how small the change is: 1 is the smallest."""

    @property
    @abstractmethod
    def changes_model(self) -> bool:
        """Whether `treat` works; otherwise only the training is changed, and only `treat_task` works."""

    @property
    @abstractmethod
    def blames(self) -> str:
        """What a success of this treatment shows to be the cause."""

    @abstractmethod
    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Change a copy of the model.

        Args:
            model: Left as it is, to the bit.
            seed: Where every random number of the treatment comes from; torch's global random state is not used.
            batch_input: The input of a batch: a tuple is spread over the model's arguments, a mapping over its keyword
                arguments (`output_of`). With it the true order of the forward pass is known, and the copy is run before
                it is handed out, in evaluation mode and, if the model itself runs in it on this batch, in training
                mode. Without it the copy is not run: a forward that reads `layer.weight` of a layer that was wrapped
                raises only when it is called.

        Raises:
            TreatmentError: Nothing in the model is to be changed, what would be kept is not finite, or the changed
                model does not run.

        Cost:
            Copies of the model: one, and with `batch_input` at most five forward passes on further copies, one at a
            time; a data-driven treatment runs a few more.
        """

    @abstractmethod
    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Change a copy of the task.

        A treated model has the weights that the untreated one would have had from the same `torch.manual_seed`, except
        those that the treatment draws, and leaves torch's global random state where `task.model()` left it.

        Args:
            task: Left as it is.
            seed: Seed of the model that is built to describe the change; the weights of a trial come from the seed
                that the trial gives to torch.

        Raises:
            TreatmentError: The treatment does not apply to what this task builds.
        """

    @abstractmethod
    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Change the model in place; `treat` hands over a copy.

        Raises:
            TreatmentError: Nothing in the model is to be changed.
        """

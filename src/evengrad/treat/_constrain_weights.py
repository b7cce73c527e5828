"""Hold the weights within a bound while they are trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, final, get_args

import torch
from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._bounds import BOUND_CODE, Per, bound_, bounded_weights
from evengrad.treat._on_a_copy import only_for_tasks
from evengrad.treat._on_a_task import built
from evengrad.treat._random_state import random_state_kept


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class BoundedStep:
    """Call the user's function after a step, then bring the weights back; can be pickled if that function can."""

    first: Callable[[nn.Module], None] | None
    max_norm: float
    per: Per

    def __call__(self, model: nn.Module) -> None:
        if self.first is not None:
            self.first(model)
        bound_(model, max_norm=self.max_norm, per=self.per)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConstrainWeights(AbstractTreatment):
    """Scale weights that have grown past a bound back to it after every optimizer step, in a copy of the task.

    per        | what is held                                       | at most
    `unit`     | the norm of the weights that lead into one unit    | max_norm
    `tensor`   | the Frobenius norm of one weight                   | max_norm * sqrt(its units)
    `spectral` | the largest singular value of one weight           | max_norm

    Bounded are the weights of dense, convolutional, recurrent and attention layers; a convolution counts as the matrix
    of its output channels, and the gates of a recurrent layer as one matrix. Biases, norms, embeddings, weights tied to
    one, parametrised weights and parameters of the user's own modules are left. A weight within the bound stays as it
    is to the bit, and so does one that was just brought back. Weights that are not finite stay so. `Task.after_step`
    of the user's own is called first.

    Args:
        max_norm: The bound. 3 is the lower end of what Srivastava et al. found to work, and more than any layer has
            that was just drawn for a relu: its units have a norm of sqrt(2), and a square one a largest singular value
            of 2 sqrt(2). So a healthy start is not touched, and only growth is.
        per: See the table.

    Raises:
        SettingError: The bound is not a positive finite number, or `per` is unknown.

    Example:
        >>> ConstrainWeights(per="spectral").label
        "ConstrainWeights(max_norm=3.0, per='spectral')"

    Cost:
        One pass over the weights after each step, without waiting for the device; `spectral` multiplies each weight
        with a vector 21 times instead.

    Source:
        Srivastava et al. 2014, JMLR 15:1929, section 5.1 (max-norm of units, 3 to 4); Miyato et al. 2018, arXiv
        1802.05957 (spectral norm by power iteration): they divide by the norm in each forward pass and go on with the
        vector of the step before. We only bring back what has grown, and start afresh from a fixed vector at each step
        so that there is no state to save: the norm found is at most a few percent too small.
    """

    max_norm: float = 3.0
    per: Per = "unit"

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "weights that grow without bound"

    def __post_init__(self) -> None:
        if not (self.max_norm > 0 and isfinite(self.max_norm)):
            raise SettingError("max_norm", came=repr(self.max_norm), wanted="a positive finite number")
        if self.per not in get_args(Per):
            raise SettingError("per", came=repr(self.per), wanted=f"one of {', '.join(get_args(Per))}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: the weights are held while they are trained."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: the weights are held while they are trained."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Hold the weights of a copy of the task: `AbstractTreatment.treat_task`."""
        held = task.after_step
        if isinstance(held, BoundedStep) and held.per == self.per and held.max_norm <= self.max_norm:
            raise TreatmentError(self.label, came=f"a bound of {held.max_norm!r} already", wanted="a smaller one")
        with random_state_kept():
            torch.manual_seed(seed)
            found = bounded_weights(built(task))
        if not found:
            raise TreatmentError(
                self.label, came="a model without free weights of dense or convolutional layers", wanted="some to hold"
            )
        what = {"unit": "norm of each unit", "tensor": "Frobenius norm over sqrt(units)", "spectral": "spectral norm"}
        names = shortened(tuple(one.name for one in found))
        pairs = [(one.name, one.groups) for one in found]
        return Treated(
            subject=replace(task, after_step=BoundedStep(first=held, max_norm=self.max_norm, per=self.per)),
            changes=(f"{names}: {what[self.per]} held to {self.max_norm:g} after each step",),
            code=BOUND_CODE[self.per].format(pairs=pairs, max_norm=float(self.max_norm)),
        )

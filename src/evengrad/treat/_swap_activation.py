"""Put another activation function between the layers."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from torch import nn

from evengrad.nouns import SettingError, Task, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._activations import MAKERS, activation_name, is_custom_activation
from evengrad.treat._forward_order import Place, followed_by_weighted, inside_torch, is_sequence, parent_of, places
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._surgery import HOOKS, alias_code, has_hooks, hooks_of, replace_everywhere_

Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SwapActivation(AbstractTreatment):
    """Replace the activation modules of a copy that stand between weighted layers.

    Left as they are: an activation after which no weighted layer comes (it belongs to the model's output), softmax,
    gated units, those inside torch's transformer layers, and functional calls in a `forward`, which no treatment can
    reach. A module of the user's own counts as an activation if it stands in an `nn.Sequential`, has no parameters,
    and treats each number by itself. `nn.RNN` and `nn.RNNCell` switch between tanh and relu. The weights stay:
    combine with `Reinitialize` to have them scaled for the new function. Forward and backward hooks of a module that is
    replaced go over to the new one.

    Args:
        to: The activation to put in, with torch's defaults. tanh, because among the functions tried on deep and narrow
            nets it loses the gradient least often.

    Raises:
        SettingError: The activation is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
        >>> treated = SwapActivation(to="tanh").treat(model)
        >>> treated.changes
        ('1: sigmoid replaced by tanh',)
        >>> print(treated.code)
        for name in ['1']:
            model.set_submodule(name, nn.Tanh())
    """

    to: Activation = "tanh"

    effort: ClassVar[int] = 3
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "the activation function"

    def __post_init__(self) -> None:
        if self.to not in MAKERS:
            raise SettingError("to", came=repr(self.to), wanted=f"one of {', '.join(MAKERS)}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Replace the activations of a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with other activations: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Replace the activations, in place."""
        order = places(model, batch_input)
        old = {place.name: kind for place in order if (kind := self._kind_to_swap(model, order, place))}
        recurrent = [name for name, module in model.named_modules() if self._can_switch(module)]
        if not old and not recurrent:
            raise nothing_found(
                self,
                f"an activation module between weighted layers that is not {self.to}",
                "give batch_input if it has one",
            )
        hooked = tuple(name for name in old if has_hooks(model.get_submodule(name)))
        aliases = {name: self._replace_(model, name) for name in old}
        _switch_(model, recurrent, self.to)
        return self._said(old, aliases, recurrent, hooked)

    def _replace_(self, model: nn.Module, name: str) -> tuple[str, ...]:
        new = MAKERS[self.to]()
        vars(new).update(hooks_of(model.get_submodule(name)))
        return replace_everywhere_(model, name, new)

    def _kind_to_swap(self, model: nn.Module, order: tuple[Place, ...], place: Place) -> str | None:
        if not place.name or inside_torch(model, place.name) or not followed_by_weighted(order, place.module):
            return None
        kind = activation_name(place.module)
        if kind is not None:
            return None if kind == self.to else kind
        after_weighted = any(earlier.weighted for earlier in order[: order.index(place)])
        in_sequence = is_sequence(parent_of(model, place.name))
        if after_weighted and in_sequence and is_custom_activation(place.module):
            return type(place.module).__name__
        return None

    def _can_switch(self, module: nn.Module) -> bool:
        other = {"relu": "tanh", "tanh": "relu"}.get(self.to)
        return isinstance(module, nn.RNN | nn.RNNCell) and module.nonlinearity == other

    def _said(
        self, old: dict[str, str], aliases: dict[str, tuple[str, ...]], recurrent: list[str], hooked: tuple[str, ...]
    ) -> Change:
        changes, code = [], []
        for kind in dict.fromkeys(old.values()):
            names = tuple(alias for name, found in old.items() if found == kind for alias in aliases[name])
            changes.append(f"{shortened(names)}: {kind} replaced by {self.to}")
        if old:
            new = type(MAKERS[self.to]()).__name__
            lines = [f"for name in {list(old)!r}:", f"    model.set_submodule(name, nn.{new}())"]
            if hooked:
                lines[1:] = [
                    f"    old, new = model.get_submodule(name), nn.{new}()",
                    f"    vars(new).update({{key: value for key, value in vars(old).items() if key in {HOOKS!r}}})",
                    "    model.set_submodule(name, new)",
                ]
                changes.append(f"{shortened(hooked)}: hooks go over to the new module")
            code.append("\n".join(lines) + alias_code(aliases))
        if recurrent:
            changes.append(f"{shortened(tuple(recurrent))}: recurrent nonlinearity switched to {self.to}")
            code.append(
                f"for name in {recurrent!r}:\n"
                "    layer = model.get_submodule(name)\n"
                f"    layer.nonlinearity = {self.to!r}\n"
                "    if hasattr(layer, 'mode'):\n"
                f"        layer.mode = {_mode(self.to)!r}"
            )
        return Change(changes=tuple(changes), code="\n".join(code))


def _switch_(model: nn.Module, names: list[str], to: str) -> None:
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.RNN):
            layer.mode = _mode(to)
        layer.nonlinearity = to  # type: ignore[assignment]


def _mode(to: str) -> str:
    return f"RNN_{to.upper()}"

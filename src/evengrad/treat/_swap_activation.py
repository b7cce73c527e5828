"""Put another activation function between the layers."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import nn

from evengrad.nouns import SettingError, Task, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._activation_calls import Call, calls_as_modules_, calls_code, give_back_, with_rewriting
from evengrad.treat._activations import activation_name, is_custom_activation, new_activation
from evengrad.treat._forward_order import Place, followed_by_weighted, inside_torch, is_sequence, parent_of, places
from evengrad.treat._gates import gates_of
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._self_normalizing import alpha_dropouts_, lecun_
from evengrad.treat._surgery import HOOKS, alias_code, has_hooks, hooks_of, replace_everywhere_
from evengrad.treat._transformer_activation import transformers_, transformers_with_another

Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "prelu"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SwapActivation(AbstractTreatment):
    """Replace the activations of a copy that stand between weighted layers.

    Modules are replaced where they are. With `batch_input`, functions that a `forward` calls (`torch.relu(x)`,
    `x.tanh()`, `functional.gelu(x)`) become modules too, where torch.fx can trace that forward: the model keeps its
    class and names, `call_relu` is the new child that stands for the call `relu`, and the forward is used only if it
    gives the same output to the bit before anything is swapped. `nn.RNN` and `nn.RNNCell` switch between tanh and
    relu, torch's transformer layers get another activation in their feed-forward part.

    Left as they are: an activation after which no weighted layer comes (it belongs to the model's output), softmax,
    gated units, and, seen with a batch only, what is multiplied with other values: gates of hand-written cells and of
    squeeze-and-excitation, attention weights. A module of the user's own counts as an activation if it has no
    parameters, treats each number by itself, and stands in an `nn.Sequential` or is seen in use on a batch. The weights
    stay: combine with `Reinitialize` to have them scaled for the new function. Forward and backward hooks of a module
    that is replaced go over to the new one.

    `selu` is of use with its own initialisation only, so that is part of it: the weights in front are drawn from
    LeCun's normal distribution (variance 1 / fan_in), biases are zero, and an `nn.Dropout` behind becomes an
    `nn.AlphaDropout`, which keeps mean and variance.

    Args:
        to: The activation to put in, with torch's defaults. tanh, because among the functions tried on deep and narrow
            nets it loses the gradient least often. `prelu` has one parameter per module, 0.25 at first.

    Raises:
        SettingError: The activation is unknown.

    Cost:
        With a forward of one's own that calls activations: five forward passes more than other treatments, two more
        for each such forward if one of them gives another output when traced.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
        >>> treated = SwapActivation(to="tanh").treat(model)
        >>> treated.changes
        ('1: sigmoid replaced by tanh',)
        >>> print(treated.code)
        for name in ['1']:
            model.set_submodule(name, nn.Tanh())

    Source:
        Klambauer et al. 2017, arXiv 1706.02515 (selu, its initialisation and dropout); He et al. 2015,
        arXiv 1502.01852 (prelu).
    """

    to: Activation = "tanh"

    effort: ClassVar[int] = 3
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "the activation function"

    def __post_init__(self) -> None:
        if self.to not in get_args(Activation):
            raise SettingError("to", came=repr(self.to), wanted=f"one of {', '.join(get_args(Activation))}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Replace the activations of a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with other activations: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Replace the activations, in place."""
        calls, untraced = ((), ()) if batch_input is None else calls_as_modules_(model, batch_input, whole=True)
        order = places(model, batch_input)
        old = self._to_swap(model, order, batch_input)
        give_back_(model, [call for call in calls if call.name not in old])
        calls = tuple(call for call in calls if call.name in old)
        recurrent = [name for name, module in model.named_modules() if self._can_switch(module)]
        transformers = transformers_with_another(model, self.to)
        if not old and not recurrent and not transformers:
            advice = "; ".join(untraced[:2]) if batch_input is not None else "give batch_input if it has one"
            raise nothing_found(self, f"an activation between weighted layers that is not {self.to}", advice)
        parts = [
            self._modules_(model, {name: kind for name, kind in old.items() if name not in {c.name for c in calls}}),
            self._calls_(model, calls),
            self._recurrent_(model, recurrent),
            transformers_(model, transformers, self.to),
        ]
        if self.to == "selu":
            generator = torch.Generator().manual_seed(seed % 2**63)
            parts += [
                lecun_(model, order, (*old, *(f"{name}.activation" for name in transformers)), generator),
                alpha_dropouts_(model, order, tuple(old)),
            ]
        code = "\n".join(part.code for part in parts if part.code)
        return Change(
            changes=tuple(sentence for part in parts for sentence in part.changes),
            code=with_rewriting(code) if calls else code,
        )

    def _to_swap(self, model: nn.Module, order: tuple[Place, ...], batch_input: Any) -> dict[str, str]:
        seen = batch_input is not None
        old = {place.name: kind for place in order if (kind := self._kind_to_swap(model, order, place, seen))}
        gates = gates_of(model, old, batch_input)
        return {name: kind for name, kind in old.items() if name not in gates}

    def _kind_to_swap(self, model: nn.Module, order: tuple[Place, ...], place: Place, seen: bool) -> str | None:
        if not place.name or inside_torch(model, place.name) or not followed_by_weighted(order, place.module):
            return None
        kind = activation_name(place.module)
        if kind is not None:
            return None if kind == self.to else kind
        after_weighted = any(earlier.weighted for earlier in order[: order.index(place)])
        placed = seen or is_sequence(parent_of(model, place.name))
        if after_weighted and placed and is_custom_activation(place.module):
            return type(place.module).__name__
        return None

    def _can_switch(self, module: nn.Module) -> bool:
        other = {"relu": "tanh", "tanh": "relu"}.get(self.to)
        return isinstance(module, nn.RNN | nn.RNNCell) and module.nonlinearity == other

    def _modules_(self, model: nn.Module, old: dict[str, str]) -> Change:
        if not old:
            return Change(changes=(), code="")
        hooked = tuple(name for name in old if has_hooks(model.get_submodule(name)))
        aliases = {name: self._replace_(model, name) for name in old}
        changes = []
        for kind in dict.fromkeys(old.values()):
            names = tuple(alias for name, found in old.items() if found == kind for alias in aliases[name])
            changes.append(f"{shortened(names)}: {kind} replaced by {self.to}")
        new = new_activation(self.to).code
        lines = [f"for name in {list(old)!r}:", f"    model.set_submodule(name, {new})"]
        if hooked:
            lines[1:] = [
                f"    old, new = model.get_submodule(name), {new}",
                f"    vars(new).update({{key: value for key, value in vars(old).items() if key in {HOOKS!r}}})",
                "    model.set_submodule(name, new)",
            ]
            changes.append(f"{shortened(hooked)}: hooks go over to the new module")
        return Change(changes=tuple(changes), code="\n".join(lines) + alias_code(aliases))

    def _replace_(self, model: nn.Module, name: str) -> tuple[str, ...]:
        new = new_activation(self.to).made(model)
        vars(new).update(hooks_of(model.get_submodule(name)))
        return replace_everywhere_(model, name, new)

    def _calls_(self, model: nn.Module, calls: tuple[Call, ...]) -> Change:
        if not calls:
            return Change(changes=(), code="")
        changes = []
        for owner, kind in dict.fromkeys((call.owner, call.kind) for call in calls):
            nodes = tuple(call.node for call in calls if call.owner == owner)
            where = f"{owner}.forward" if owner else "forward"
            changes.append(f"{where} ({kind}): {shortened(nodes)} replaced by modules, {self.to}")
        for call in calls:
            replace_everywhere_(model, call.name, new_activation(self.to).made(model))
        return Change(changes=tuple(changes), code=calls_code(calls, new_activation(self.to).code))

    def _recurrent_(self, model: nn.Module, names: list[str]) -> Change:
        if not names:
            return Change(changes=(), code="")
        mode = f"RNN_{self.to.upper()}"
        for name in names:
            layer = model.get_submodule(name)
            if isinstance(layer, nn.RNN):
                layer.mode = mode
            layer.nonlinearity = self.to  # type: ignore[assignment]
        code = (
            f"for name in {names!r}:\n"
            "    layer = model.get_submodule(name)\n"
            f"    layer.nonlinearity = {self.to!r}\n"
            "    if hasattr(layer, 'mode'):\n"
            f"        layer.mode = {mode!r}"
        )
        return Change(changes=(f"{shortened(tuple(names))}: recurrent nonlinearity switched to {self.to}",), code=code)

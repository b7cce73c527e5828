"""Put an activation between layers that have none between them."""

from dataclasses import dataclass
from typing import Any, ClassVar, final, get_args

from torch import nn
from torch.nn.utils import parametrize

from evengrad.nouns import SettingError, Task, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._activations import new_activation
from evengrad.treat._draws import Feedforward, is_feedforward
from evengrad.treat._forward_order import DROPOUTS, Place, inside_torch, is_sequence, places
from evengrad.treat._handed_on import handed_on
from evengrad.treat._on_a_copy import not_run, nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._surgery import alias_code, replace_everywhere_
from evengrad.treat._swap_activation import Activation

# What leaves a stack of linear layers linear, position by position or on average.
_LINEAR = (
    *DROPOUTS, nn.Identity, nn.Flatten, nn.Unflatten, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
Link = tuple[Place, Place, Place]  # a layer, the norm behind it or itself, and the layer that takes what comes out


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AddActivation(AbstractTreatment):
    """Put an activation behind each layer of a copy whose output the next layer takes as it is.

    A stack of linear layers is one linear layer; norms, dropout, average pooling and changes of shape between them
    change little of that. A layer becomes `nn.Sequential(layer, activation)`, so that `forward` stays as it is; where
    a norm follows the layer, the norm does. With `batch_input` it is seen which layer takes what; without it,
    neighbours in an `nn.Sequential` count. The weights stay: combine with `Reinitialize` to have them scaled for the
    function.

    Left as they are: the last layer, those of attention, and those that are linear on purpose: a low-rank pair (the
    width between is below those before and behind, and neither layer has a bias) and a depthwise convolution in front
    of a pointwise one.

    Args:
        kind: The activation, with torch's defaults; the default is what most networks have.

    Raises:
        SettingError: The activation is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> treated = AddActivation().treat(model)
        >>> treated.changes
        ('0: followed by a new relu',)
        >>> print(treated.code)
        for name in ['0']:
            layer = model.get_submodule(name)
            model.set_submodule(name, nn.Sequential(layer, nn.ReLU()))
    """

    kind: Activation = "relu"

    effort: ClassVar[int] = 3
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "layers without a non-linearity between them"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Activation):
            raise SettingError("kind", came=repr(self.kind), wanted=f"one of {', '.join(get_args(Activation))}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Put activations into a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with more activations: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Put activations in, in place."""
        links = _neighbours(model) if batch_input is None else _links(model, batch_input)
        names = tuple(dict.fromkeys(behind.name for first, behind, then in links if _wants(model, first, then)))
        if not names:
            raise nothing_found(self, "a layer whose output goes straight into the next one")
        new = new_activation(self.kind)
        aliases = {}
        for name in names:
            aliases[name] = replace_everywhere_(model, name, nn.Sequential(model.get_submodule(name), new.made(model)))
        every = tuple(alias for found in aliases.values() for alias in found)
        code = (
            f"for name in {list(names)!r}:\n"
            "    layer = model.get_submodule(name)\n"
            f"    model.set_submodule(name, nn.Sequential(layer, {new.code}))"
        )
        words = f"{shortened(every)}: followed by a new {self.kind}"
        return Change(changes=(words, *not_run(model, names, batch_input)), code=code + alias_code(aliases))


def _links(model: nn.Module, batch_input: Any) -> list[Link]:
    """Follow the input of each layer back to the layer that made it; every use of a layer must lead to another one."""
    record = handed_on(model, batch_input)
    links: list[Link] = []
    linked: dict[nn.Module, int] = {}
    for index, use in enumerate(record.uses):
        if not is_feedforward(use.place.module):
            continue
        behind, maker = None, record.maker(use.came, index)
        while maker is not None and isinstance(record.uses[maker].place.module, _LINEAR):
            behind = record.uses[maker].place if record.uses[maker].place.norm else None
            maker = record.maker(record.uses[maker].came, maker)
        if maker is not None and is_feedforward(record.uses[maker].place.module):
            first = record.uses[maker].place
            links.append((first, behind or first, use.place))
            linked[first.module] = linked.get(first.module, 0) + 1
    calls = [use.place.module for use in record.uses]
    return [link for link in links if calls.count(link[0].module) == linked[link[0].module]]


def _neighbours(model: nn.Module) -> list[Link]:
    known = {place.module: place for place in places(model)}
    links: list[Link] = []
    for sequence in model.modules():
        if not is_sequence(sequence):
            continue
        first: Place | None = None
        behind: Place | None = None
        for module in sequence.children():
            place = known.get(module)
            if place is not None and is_feedforward(module):
                if first is not None:
                    links.append((first, behind or first, place))
                first, behind = place, None
            elif not isinstance(module, _LINEAR):
                first = None
            elif place is not None and place.norm:
                behind = place
    return links


def _wants(model: nn.Module, first: Place, then: Place) -> bool:
    one, two = first.module, then.module
    if not is_feedforward(one) or not is_feedforward(two) or one is two:
        return False
    if not first.name or parametrize.is_parametrized(one) or inside_torch(model, first.name):
        return False
    return not (_in_attention(model, first.name) or _low_rank(one, two) or _separable(one, two))


def _in_attention(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    above = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts))]
    return any("attn" in word or "attention" in word for word in [name.lower(), *(_kind(each) for each in above)])


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()


def _low_rank(one: Feedforward, two: Feedforward) -> bool:
    (before, inner), (_, after) = _widths(one), _widths(two)
    return one.bias is None and two.bias is None and inner < before and inner < after


def _separable(one: Feedforward, two: Feedforward) -> bool:
    if isinstance(one, nn.Linear) or isinstance(two, nn.Linear):
        return False
    return 1 < one.groups == one.in_channels and all(size == 1 for size in two.kernel_size)


def _widths(layer: Feedforward) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels

"""Put a normalisation behind the layers."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final, get_args

from torch import nn
from torch.nn.utils import parametrize

from evengrad.nouns import SettingError, Task, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._draws import is_feedforward
from evengrad.treat._forward_order import DROPOUTS, Place, followed_by_weighted, inside_torch, places
from evengrad.treat._on_a_copy import not_run, nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._surgery import alias_code, replace_everywhere_

Kind = Literal["layer", "batch", "group", "rms"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AddNormalization(AbstractTreatment):
    """Put a normalisation behind each dense or convolutional layer of a copy that another weighted layer follows.

    A layer becomes `nn.Sequential(layer, norm)`, so that `forward` stays as it is. Layers that a norm already
    follows, that have a single output, or that torch's attention and transformer layers hold (which read their
    weights by attribute) are left as they are. The weights stay.

    Without `batch_input` the copy is not run: a forward of one's own that reads `layer.weight` then breaks unnoticed,
    and `changes` names the layers for which that may be.

    Args:
        kind: `layer`: LayerNorm over the features, for convolutions over channels and positions together. `batch`:
            BatchNorm; needs more than one sample per batch. `group`: GroupNorm with the most groups of at least four
            channels, up to 32. `rms`: RMSNorm, dense layers only. `batch` and `group` go
            behind a dense layer only if its output has two dimensions; without a batch it is taken to have two unless
            the model has recurrent, attention or embedding layers. The default is the one that does not depend on the
            other samples of the batch.

    Raises:
        SettingError: The kind is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> treated = AddNormalization().treat(model)
        >>> treated.changes
        ('0: followed by a new LayerNorm',)
        >>> print(treated.code)
        for name, norm in [('0', nn.LayerNorm(4))]:
            layer = model.get_submodule(name)
            model.set_submodule(name, nn.Sequential(layer, norm.to(layer.weight)))

    Source:
        Ba et al. 2016, arXiv 1607.06450 (layer); Ioffe and Szegedy 2015, arXiv 1502.03167 (batch); Wu and He 2018,
        arXiv 1803.08494 (group); Zhang and Sennrich 2019, arXiv 1910.07467 (rms).
    """

    kind: Kind = "layer"

    effort: ClassVar[int] = 4
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "activations whose scale nobody holds"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingError("kind", came=repr(self.kind), wanted=f"one of {', '.join(get_args(Kind))}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Put norms into a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with norms: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Put norms in, in place."""
        order = places(model, batch_input)
        new: dict[str, str] = {}
        aliases: dict[str, tuple[str, ...]] = {}
        for index, place in enumerate(order):
            call = None if place.name in new else self._norm_behind(model, order, index)
            if call is not None:
                new[place.name] = call
                aliases[place.name] = _wrap_(model, place, _made(call))
        if not new:
            raise nothing_found(self, "a dense or convolutional layer, followed by another and not by a norm")
        said = _said(new, aliases)
        return replace(said, changes=(*said.changes, *not_run(model, tuple(new), batch_input)))

    def _norm_behind(self, model: nn.Module, order: tuple[Place, ...], index: int) -> str | None:
        place = order[index]
        layer = place.module
        if not place.name or not is_feedforward(layer) or parametrize.is_parametrized(layer):
            return None
        if not layer.weight.is_floating_point() or inside_torch(model, place.name):
            return None
        if not followed_by_weighted(order, layer) or _norm_is_next(order, layer):
            return None
        if isinstance(layer, nn.Linear):
            return self._behind_dense(layer.out_features, place.output_dims or _likely_dims(model))
        return self._behind_convolution(layer.out_channels, layer.weight.dim() - 2)

    def _behind_dense(self, width: int, dims: int) -> str | None:
        if width < 2 or (self.kind in {"batch", "group"} and dims != 2):
            return None
        calls = {
            "layer": f"nn.LayerNorm({width})",
            "batch": f"nn.BatchNorm1d({width})",
            "group": f"nn.GroupNorm({_groups(width)}, {width})",
            "rms": f"nn.RMSNorm({width})",
        }
        return calls[self.kind]

    def _behind_convolution(self, channels: int, dims: int) -> str | None:
        calls = {
            "layer": f"nn.GroupNorm(1, {channels})",
            "batch": f"nn.BatchNorm{dims}d({channels})",
            "group": f"nn.GroupNorm({_groups(channels)}, {channels})",
        }
        return calls.get(self.kind)


def _likely_dims(model: nn.Module) -> int:
    """Guess the dimensions of a dense layer's output without a batch."""
    sequential = (nn.RNNBase, nn.MultiheadAttention, nn.Embedding)
    return 3 if any(isinstance(module, sequential) for module in model.modules()) else 2


def _groups(channels: int) -> int:
    """Choose the most groups of at least four channels, at most 32; one group when there is no such divisor."""
    fitting = [groups for groups in range(1, 33) if channels % groups == 0 and channels // groups >= 4]
    return max(fitting, default=1)


def _norm_is_next(order: tuple[Place, ...], layer: nn.Module) -> bool:
    for index, place in enumerate(order):
        if place.module is layer:
            behind = (later for later in order[index + 1 :] if not isinstance(later.module, DROPOUTS))
            following = next(behind, None)
            if following is not None and following.norm:
                return True
    return False


def _made(call: str) -> nn.Module:
    kind, _, numbers = call.removeprefix("nn.").removesuffix(")").partition("(")
    module: nn.Module = getattr(nn, kind)(*(int(number) for number in numbers.split(",")))
    return module


def _wrap_(model: nn.Module, place: Place, norm: nn.Module) -> tuple[str, ...]:
    layer = place.module
    norm.to(layer.get_parameter("weight"))
    return replace_everywhere_(model, place.name, nn.Sequential(layer, norm))


def _said(new: dict[str, str], aliases: dict[str, tuple[str, ...]]) -> Change:
    changes = []
    for kind in dict.fromkeys(call.partition("(")[0] for call in new.values()):
        names = tuple(alias for name, call in new.items() if call.startswith(f"{kind}(") for alias in aliases[name])
        changes.append(f"{shortened(names)}: followed by a new {kind.removeprefix('nn.')}")
    # Only a batch norm gives other numbers in training mode, the mode of a new module.
    mode = ".train(layer.training)" if any(call.startswith("nn.BatchNorm") for call in new.values()) else ""
    pairs = ", ".join(f"({name!r}, {call})" for name, call in new.items())
    code = (
        f"for name, norm in [{pairs}]:\n"
        "    layer = model.get_submodule(name)\n"
        f"    model.set_submodule(name, nn.Sequential(layer, norm.to(layer.weight){mode}))"
    )
    return Change(changes=tuple(changes), code=code + alias_code(aliases))

"""Put a gated cell in the place of a plain recurrent one."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._draws import Recurrent, fill_recurrent_, recurrent_code
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._surgery import HOOKS, alias_code, has_hooks, hooks_of, replace_everywhere_

Kind = Literal["gru", "lstm"]

HIDDEN_STATE_CODE = """\
class HiddenState(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def __getattr__(self, name):
        if name == 'layer':
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.layer, name)

    def forward(self, input, hx=None):
        output, (hidden, _) = self.layer(input, None if hx is None else (hx, torch.zeros_like(hx)))
        return output, hidden

"""


@final
class HiddenState(nn.Module):
    """Call an LSTM as if it were an `nn.RNN`: one state goes in and comes out, and the cell state starts at zero.

    Attributes that are not its own are those of the LSTM: `hidden_size`, `flatten_parameters` and the like.

    Example:
        >>> output, hidden = HiddenState(nn.LSTM(2, 3))(torch.zeros(5, 1, 2))
        >>> hidden.shape
        torch.Size([1, 1, 3])
    """

    def __init__(self, layer: nn.LSTM) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        if name == "layer":  # while a copy is made there is none yet
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.layer, name)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:  # noqa: A002
        """Run the LSTM; the arguments have the names of torch's, which may be given by keyword."""
        output, (hidden, _) = self.layer(input, None if hx is None else (hx, torch.zeros_like(hx)))
        return output, hidden


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class UseGatedCell(AbstractTreatment):
    """Replace the plain recurrent layers of a copy by gated ones, of the same sizes and with fresh weights.

    `nn.RNN` becomes `nn.GRU`, `nn.RNNCell` becomes `nn.GRUCell`: what goes in and comes out stays, initial states and
    packed sequences too. Sizes, layers, dropout, directions, dtype, device, mode and hooks are kept; the weights are
    drawn as `Reinitialize` draws them. A GRU has three times the weights. Left as they are: layers with parametrised
    weights, and classes of the user's own with another forward.

    Args:
        kind: `gru`, because its state is one tensor as that of the plain layer. `lstm` puts an adapter around each
            layer that hides the cell state; it starts at zero at every call, so that a state carried from batch to
            batch carries the hidden half only. An `nn.RNNCell` cannot hide one from step to step and is left.

    Raises:
        SettingError: The kind is unknown.

    Example:
        >>> treated = UseGatedCell().treat(nn.ModuleDict({"rnn": nn.RNN(3, 5)}))
        >>> treated.changes
        ('rnn: RNN replaced by GRU, weights drawn anew',)
        >>> treated.subject["rnn"]
        GRU(3, 5)

    Source:
        Cho et al. 2014, arXiv 1406.1078 (GRU); Hochreiter and Schmidhuber 1997 (LSTM); Jozefowicz et al. 2015 (forget
        gate of 1).
    """

    kind: Kind = "gru"

    effort: ClassVar[int] = 4
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "a recurrent cell without gates"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingError("kind", came=repr(self.kind), wanted=f"one of {', '.join(get_args(Kind))}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Replace the recurrent layers of a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with gated cells: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Replace the recurrent layers, in place."""
        plain = {name: module for name, module in model.named_modules() if name and _is_plain(module)}
        layers = {name: old for name, old in plain.items() if isinstance(old, nn.RNN)}
        cells = {name: old for name, old in plain.items() if isinstance(old, nn.RNNCell)}
        if cells and not layers and self.kind == "lstm":
            raise TreatmentError(
                self.label,
                came=f"cells, whose state the model carries itself: {shortened(tuple(cells))}",
                wanted="a whole layer, as nn.RNN",
                advice="use kind='gru', whose state is one tensor too",
            )
        if not plain:
            raise nothing_found(self, "a plain recurrent layer inside the model (nn.RNN, nn.RNNCell)")
        generator = torch.Generator().manual_seed(seed % 2**63)
        parts = [self._layers_(model, layers, generator)]
        parts.append(_left(cells) if self.kind == "lstm" else _cells_(model, cells, generator))
        return Change(
            changes=tuple(sentence for part in parts for sentence in part.changes),
            code="\n".join(part.code for part in parts if part.code),
        )

    def _layers_(self, model: nn.Module, layers: dict[str, nn.RNN], generator: torch.Generator) -> Change:
        aliases: dict[str, tuple[str, ...]] = {}
        if not layers:
            return Change(changes=(), code="")
        hooked = any(has_hooks(old) for old in layers.values())
        for name, old in layers.items():
            gated = _gated(old, self.kind)
            fill_recurrent_(gated, generator)
            new = HiddenState(gated) if isinstance(gated, nn.LSTM) else gated
            vars(new).update(hooks_of(old))
            aliases[name] = replace_everywhere_(model, name, new)
        kind = self.kind.upper()
        names = tuple(alias for found in aliases.values() for alias in found)
        words = f"{shortened(names)}: RNN replaced by {kind}, weights drawn anew"
        adapter = " behind an adapter that hides the cell state" if self.kind == "lstm" else ""
        return Change(changes=(words + adapter,), code=self._code(aliases, gated, hooked=hooked))

    def _code(self, aliases: dict[str, tuple[str, ...]], gated: Recurrent, *, hooked: bool) -> str:
        lstm = self.kind == "lstm"
        made = (
            f"nn.{self.kind.upper()}(\n"
            "        old.input_size, old.hidden_size, old.num_layers, bias=old.bias, batch_first=old.batch_first,\n"
            "        dropout=old.dropout, bidirectional=old.bidirectional)"
        )
        put = "HiddenState(new).train(old.training)" if lstm else "new"
        code = (HIDDEN_STATE_CODE + "\n" if lstm else "") + _replaced(list(aliases), made, put, hooked=hooked)
        drawn = tuple(f"{name}.layer" if lstm else name for name in aliases)
        return code + "\n" + recurrent_code(drawn, gated) + alias_code(aliases)


def _is_plain(module: nn.Module) -> bool:
    kind = nn.RNN if isinstance(module, nn.RNN) else nn.RNNCell
    if not isinstance(module, kind) or type(module).forward is not kind.forward or parametrize.is_parametrized(module):
        return False
    # not so with the old weight_norm, which computes a weight before each forward
    return not any(key.endswith(("_g", "_v", "_orig")) for key in module._parameters)


def _gated(old: nn.RNN, kind: Kind) -> nn.GRU | nn.LSTM:
    weight = old.get_parameter("weight_ih_l0")
    make: type[nn.GRU | nn.LSTM] = nn.GRU if kind == "gru" else nn.LSTM
    new = make(
        old.input_size,
        old.hidden_size,
        old.num_layers,
        bias=old.bias,
        batch_first=old.batch_first,
        dropout=old.dropout,
        bidirectional=old.bidirectional,
        device=weight.device,
        dtype=weight.dtype,
    )
    new.train(old.training)
    return new


def _cells_(model: nn.Module, cells: dict[str, nn.RNNCell], generator: torch.Generator) -> Change:
    aliases: dict[str, tuple[str, ...]] = {}
    if not cells:
        return Change(changes=(), code="")
    hooked = any(has_hooks(old) for old in cells.values())
    for name, old in cells.items():
        weight = old.weight_ih
        new = nn.GRUCell(old.input_size, old.hidden_size, old.bias, device=weight.device, dtype=weight.dtype)
        fill_recurrent_(new, generator)
        vars(new).update(hooks_of(old))
        aliases[name] = replace_everywhere_(model, name, new)
    names = tuple(alias for found in aliases.values() for alias in found)
    made = "nn.GRUCell(old.input_size, old.hidden_size, bias=old.bias)"
    return Change(
        changes=(f"{shortened(names)}: RNNCell replaced by GRUCell, weights drawn anew",),
        code=_replaced(list(aliases), made, "new", hooked=hooked)
        + "\n"
        + recurrent_code(tuple(aliases), new)
        + alias_code(aliases),
    )


def _left(cells: dict[str, nn.RNNCell]) -> Change:
    words = (f"{shortened(tuple(cells))}: left as they are; a cell has no place to hide a cell state",) if cells else ()
    return Change(changes=words, code="")


def _replaced(names: list[str], made: str, put: str, *, hooked: bool) -> str:
    hooks = f"    vars(new).update({{key: value for key, value in vars(old).items() if key in {HOOKS!r}}})\n"
    return (
        f"for name in {names!r}:\n"
        "    old = model.get_submodule(name)\n"
        f"    new = {made}\n"
        "    new = new.to(next(old.parameters())).train(old.training)\n"
        + (f"    new = {put}\n" if put != "new" else "")
        + (hooks if hooked else "")
        + "    model.set_submodule(name, new)"
    )

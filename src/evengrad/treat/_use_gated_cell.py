"""Put a gated cell in the place of a plain recurrent one."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._around import AbstractAround
from evengrad.treat._drawn_parts import joined
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._recurrent_draws import RecurrentDraw
from evengrad.treat._sequence_lengths import sequence_lengths
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
class HiddenState(AbstractAround):
    """Call an LSTM as if it were an `nn.RNN`: one state goes in and comes out, and the cell state starts at zero.

    Attributes that are not its own are those of the LSTM: `hidden_size`, `flatten_parameters` and the like.

    Example:
        >>> output, hidden = HiddenState(nn.LSTM(2, 3))(torch.zeros(5, 1, 2))
        >>> hidden.shape
        torch.Size([1, 1, 3])
    """

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
    drawn as `Reinitialize` draws them: hidden-to-hidden orthogonal, and with a batch, which shows how long the
    sequences are, gates that remember that long. A GRU has three times the weights. Left as they are: layers with
    parametrised weights, and classes of the user's own with another forward.

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
        gate of 1, without a batch); Tallec and Ollivier 2018, arXiv 1804.11188 (from the length). A GRU whose biases
        are zero loses more gradient than the plain layer that it replaces: the figures are with `Reinitialize`.
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
            raise nothing_found(self, "a plain recurrent layer inside it (nn.RNN, nn.RNNCell)")
        steps = _lengths(model, tuple(plain), batch_input)
        generator = torch.Generator().manual_seed(seed % 2**63)
        parts = [self._layers_(model, layers, steps, generator)]
        parts.append(_left(cells) if self.kind == "lstm" else _cells_(model, cells, steps, generator))
        return joined(parts)

    def _layers_(
        self, model: nn.Module, layers: dict[str, nn.RNN], steps: dict[str, int], generator: torch.Generator
    ) -> Change:
        new: dict[str, nn.Module] = {}
        code = []
        for name, old in layers.items():
            gated, draw = _gated(old, self.kind), RecurrentDraw(steps=steps.get(name))
            draw.fill_(gated, generator)
            new[name] = HiddenState(gated) if isinstance(gated, nn.LSTM) else gated
            code.append(draw.code((f"{name}.layer" if self.kind == "lstm" else name,), gated))
        kind = self.kind.upper()
        made = (
            f"nn.{kind}(\n"
            "        old.input_size, old.hidden_size, old.num_layers, bias=old.bias, batch_first=old.batch_first,\n"
            "        dropout=old.dropout, bidirectional=old.bidirectional)"
        )
        said = _put_(model, new, made, code)
        if self.kind == "gru" or not new:
            return said
        words = tuple(f"{sentence}, behind an adapter that hides the cell state" for sentence in said.changes)
        return Change(changes=words, code=f"{HIDDEN_STATE_CODE}\n{said.code}")


def _lengths(model: nn.Module, names: tuple[str, ...], batch_input: Any) -> dict[str, int]:
    return {} if batch_input is None else sequence_lengths(model, names, batch_input)


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


def _cells_(
    model: nn.Module, cells: dict[str, nn.RNNCell], steps: dict[str, int], generator: torch.Generator
) -> Change:
    new: dict[str, nn.Module] = {}
    code = []
    for name, old in cells.items():
        weight, draw = old.weight_ih, RecurrentDraw(steps=steps.get(name))
        gated = nn.GRUCell(old.input_size, old.hidden_size, old.bias, device=weight.device, dtype=weight.dtype)
        draw.fill_(gated, generator)
        new[name] = gated
        code.append(draw.code((name,), gated))
    return _put_(model, new, "nn.GRUCell(old.input_size, old.hidden_size, bias=old.bias)", code)


def _put_(model: nn.Module, new: dict[str, nn.Module], made: str, drawn: list[str]) -> Change:
    """Put the new modules in, with the hooks of the old ones, and say so."""
    if not new:
        return Change(changes=(), code="")
    hooked = any(has_hooks(model.get_submodule(name)) for name in new)
    plain = type(model.get_submodule(next(iter(new)))).__name__
    aliases: dict[str, tuple[str, ...]] = {}
    for name, module in new.items():
        vars(module).update(hooks_of(model.get_submodule(name)))
        aliases[name] = replace_everywhere_(model, name, module)
    names = tuple(alias for found in aliases.values() for alias in found)
    kind = made.removeprefix("nn.").partition("(")[0]
    adapter = any(isinstance(module, HiddenState) for module in new.values())
    code = _replaced(list(aliases), made, "HiddenState(new).train(old.training)" if adapter else "new", hooked=hooked)
    return Change(
        changes=(f"{shortened(names)}: {plain} replaced by {kind}, weights drawn anew",),
        code="\n".join([code, *drawn]) + alias_code(aliases),
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

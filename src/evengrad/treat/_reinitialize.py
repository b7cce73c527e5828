"""Draw the weights anew, scaled for the non-linearity that follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._activations import draw_before
from evengrad.treat._drawn_parts import attention_, joined, norms_, recurrent_, said_of_draws
from evengrad.treat._draws import Draw, Feedforward, Scheme, fan_in_of, in_half, is_feedforward
from evengrad.treat._fed_back import FedBack, fed_back
from evengrad.treat._forward_order import Place, places
from evengrad.treat._lsuv import scaled_to_unit_outputs_
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._recurrent_draws import Recurrent
from evengrad.treat._remember import is_forget_bias, recurrent_draws
from evengrad.treat._what_follows import sorted_out, what_follows
from evengrad.treat._zero_residual import zero_branches_

Choice = Literal["auto", "he", "xavier", "orthogonal", "delta_orthogonal"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Reinitialize(AbstractTreatment):
    """Draw the weights of a copy anew, each scaled for the non-linearity that follows it; biases become zero.

    What follows (`auto`)            | drawn          | gain
    relu, leaky, gelu, silu and kin  | He normal      | sqrt(2 / (1 + slope^2)), slope of the negative side
    tanh, hardtanh, softsign         | Xavier normal  | 5/3
    sigmoid, hardsigmoid             | Xavier normal  | 4, 6: one over the slope at zero
    selu                             | He normal      | 1 (LeCun)
    nothing, or the last layer       | Xavier normal  | 1
    something that cannot be seen    | He normal      | sqrt(2): between linear (1) and tanh (5/3)

    What follows is the next activation module before the next weighted one. With a batch the order of the forward
    pass is recorded, and a functional relu is recognised by the exact zeros that the next layer receives. Without a
    batch the order of registration counts, and only neighbours in an `nn.Sequential` are taken to have nothing
    between them.

    Recurrent layers: hidden-to-hidden weights orthogonal for each gate (the identity for a relu), input weights Xavier,
    biases zero except for the gate that keeps the state (`forget_bias`). With a batch, a dense layer that the forward
    pass uses three times or more and that receives what it gave before, as the hidden-to-hidden layer of a recurrent
    network written by hand, is drawn as one: orthogonal (the identity behind a relu), other inputs Xavier. Attention:
    Xavier for queries, keys and values apart. Norms are set back to scale 1, shift 0 and empty statistics. Embeddings,
    weights tied to one, parametrised weights and layers of other kinds are left as they are, and `changes` says so.
    Weights in half precision are drawn in float32 and rounded.

    Args:
        scheme: `auto` as in the table; or one scheme for all dense and convolutional layers, with the table's gains.
            `delta_orthogonal` gives a convolution an orthogonal matrix at the centre of its kernel, for each group, and
            zeros around it: it keeps the norm of an image where it has as many outputs as inputs or more; with fewer
            only that of as many directions. Dense layers are orthogonal then.
        data_driven: Draw orthogonal weights and scale them so that the output of each layer has a standard deviation of
            1 on `batch_input`. The code to paste has the gains that were found. A model with batch norms needs more
            than one sample, as they use the statistics of the batch. Recurrent layers are drawn as always.
        gain: One gain for all dense and convolutional layers instead of the table's.
        recurrent_gain: Gain of hidden-to-hidden weights; None for 1, and for dense layers that are fed back through a
            sigmoid the table's.
        zero_residual: Set the last layer of each residual branch to zero, or the scale of its norm if one comes last,
            so that each block starts as the identity. Branches are found in forwards that torch.fx can trace and in
            torch's transformer layers. One that ends in a relu is left, as no gradient would ever reach it.
        forget_bias: Bias of the gate that keeps the state, the forget gate of an LSTM and the update gate of a GRU: a
            number, or `chrono` for the logarithm of a time drawn evenly from 1 to the length of the sequences, with the
            negative for the input gate of an LSTM. None is `chrono` with a batch, which shows the length, and 1
            without.

    Raises:
        SettingError: The scheme is unknown, a gain is not a positive finite number, or `forget_bias` is neither a
            finite number nor `chrono`.

    Example:
        >>> treated = Reinitialize().treat(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> treated.changes
        ('0: weights drawn anew, He normal with gain 1.414 for the relu that follows; bias zero', \
'2: weights drawn anew, Xavier normal with gain 1; bias zero')
        >>> print(treated.code)
        for name in ['0']:
            layer = model.get_submodule(name)
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for name in ['2']:
            layer = model.get_submodule(name)
            nn.init.xavier_normal_(layer.weight, gain=1.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    Source:
        Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852, eq. 10; Klambauer et al. 2017, arXiv 1706.02515;
        Saxe et al. 2014, arXiv 1312.6120; Xiao et al. 2018, arXiv 1806.05393 (delta-orthogonal); Le et al. 2015, arXiv
        1504.00941 (identity); Jozefowicz et al. 2015 (forget gate of 1); Tallec and Ollivier 2018, arXiv 1804.11188
        (`chrono`); Mishkin and Matas 2016, arXiv 1511.06422 (data-driven); Goyal et al. 2017, arXiv 1706.02677, and
        Zhang et al. 2019, arXiv 1901.09321 (branches that start at zero). torch's `calculate_gain` gives 1 for a
        sigmoid, whose slope is at most 1/4; a gain of 4 makes up for it. Measured by
        `python benchmarks/treatments.py` on a net of twelve sigmoid layers, the first layer's gradient over the last
        one's: 1e-8 with gain 1 and 7e-6 with gain 4 at 5 units, 3e-8 and 2e-3 at 64 units. Decades that the gradient
        with respect to the input loses over 60 steps (64 units, inputs of standard deviation 1, median of five seeds):
        GRU 10.5 with a bias of 0, 6.1 with 1, 1.5 with `chrono`; LSTM 11.4, 5.1 and 1.5; over 200 steps GRU 36, 20 and
        1.8, LSTM 38, 17 and 1.7.
    """

    scheme: Choice = "auto"
    data_driven: bool = False
    gain: float | None = None
    recurrent_gain: float | None = None
    zero_residual: bool = False
    forget_bias: float | str | None = None

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "the initial weights"

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Choice):
            raise SettingError("scheme", came=repr(self.scheme), wanted=f"one of {', '.join(get_args(Choice))}")
        for name in ("gain", "recurrent_gain"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and isfinite(value)):
                raise SettingError(name, came=repr(value), wanted="a positive finite number")
        if not is_forget_bias(self.forget_bias):
            raise SettingError("forget_bias", came=repr(self.forget_bias), wanted="a finite number or 'chrono'")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Draw the weights of a copy anew: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task draw its weights anew: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Draw the weights anew, in place."""
        if self.data_driven and batch_input is None:
            raise TreatmentError(
                self.label, came="no batch", wanted="batch_input: the scale of the outputs is measured on it"
            )
        generator = torch.Generator().manual_seed(seed % 2**63)
        weighted, left_alone = sorted_out(model)
        if not weighted:
            raise nothing_found(self, "dense, convolutional, recurrent or attention layers whose weights are free")
        norms = norms_(model)
        recurrent = {name: layer for name, layer in weighted.items() if isinstance(layer, Recurrent)}
        draws = recurrent_draws(
            self.label, model, tuple(recurrent), batch_input, forget_bias=self.forget_bias, gain=self.recurrent_gain
        )
        parts = [
            recurrent_(recurrent, draws, generator),
            attention_(weighted, generator),
            self._feedforward_(model, weighted, generator, batch_input),
            norms,
        ]
        if self.zero_residual:
            parts.append(zero_branches_(model, self.label))
        if left_alone:
            parts.append(Change(changes=(f"{shortened(left_alone)}: left as they are",), code=""))
        return joined(parts)

    def _feedforward_(
        self, model: nn.Module, weighted: dict[str, nn.Module], generator: torch.Generator, batch_input: Any
    ) -> Change:
        layers = {name: layer for name, layer in weighted.items() if is_feedforward(layer)}
        order = places(model, batch_input)
        draws = {name: self._draw(model, order, name, layer) for name, layer in layers.items()}
        for name, (draw, _) in draws.items():
            draw.fill_(layers[name], generator)
        loops = {} if self.scheme in {"he", "xavier"} else fed_back(model, order, tuple(layers), batch_input)
        said_of_loops = self._fed_back_(model, loops, draws, generator)
        once = {name: layer for name, layer in layers.items() if name not in loops}
        if self.data_driven:
            return joined([said_of_loops, scaled_to_unit_outputs_(model, once, batch_input)])
        drawn: dict[tuple[Draw, str], list[str]] = {}
        for name in once:
            drawn.setdefault(draws[name], []).append(name)
        return joined([said_of_draws(drawn), said_of_loops])

    def _fed_back_(
        self,
        model: nn.Module,
        loops: Mapping[str, FedBack],
        draws: Mapping[str, tuple[Draw, str]],
        generator: torch.Generator,
    ) -> Change:
        parts = []
        for name, loop in loops.items():
            layer, follows = model.get_submodule(name), draws[name][1]
            gain = draw_before(None, follows)[1] if follows in {"sigmoid", "hardsigmoid"} else 1.0
            gain = gain if self.recurrent_gain is None else self.recurrent_gain
            if isinstance(layer, nn.Linear):
                loop.fill_(layer, gain, generator)
                parts.append(loop.said([name], gain))
        return joined(parts)

    def _draw(self, model: nn.Module, order: tuple[Place, ...], name: str, layer: Feedforward) -> tuple[Draw, str]:
        follows, activation = what_follows(model, order, name)
        if self.data_driven:
            return Draw(scheme="orthogonal", gain=1.0), follows  # its code is written when the gains are known
        scheme, gain = draw_before(activation, follows)
        chosen: Scheme = scheme if self.scheme == "auto" else self.scheme
        if chosen == "delta_orthogonal" and isinstance(layer, nn.Linear):
            chosen = "orthogonal"
        return Draw(
            scheme=chosen,
            gain=gain if self.gain is None else self.gain,
            fan_in=fan_in_of(layer) if chosen == "he" else None,
            half=chosen == "orthogonal" and in_half(layer),
        ), follows

"""Draw the weights anew, scaled for the non-linearity that follows."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import nn
from torch.nn.utils import parametrize

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._activations import Scheme, draw_before
from evengrad.treat._draws import (
    Draw,
    Recurrent,
    attention_code,
    fan_in_of,
    fill_attention_,
    fill_recurrent_,
    in_half,
    is_feedforward,
    recurrent_code,
    recurrent_words,
)
from evengrad.treat._forward_order import DROPOUTS, Place, in_one_sequence, parent_of, places
from evengrad.treat._lsuv import scaled_to_unit_outputs_
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model

Choice = Literal["auto", "he", "xavier", "orthogonal"]


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
    biases zero except the forget gate of an LSTM, which gets 1. Attention: Xavier for queries, keys and values apart.
    Norms are set back to scale 1, shift 0 and empty statistics. Embeddings, weights tied to one, parametrised weights
    and layers of other kinds are left as they are, and `changes` says so. Weights in half precision are drawn in
    float32 and rounded.

    Args:
        scheme: `auto` as in the table; or one scheme for all dense and convolutional layers, with the table's gains.
        data_driven: Draw orthogonal weights and scale them so that the output of each layer has a standard deviation of
            1 on `batch_input`. The code to paste has the gains that were found. A model with batch norms needs more
            than one sample, as they use the statistics of the batch.
        gain: One gain for all dense and convolutional layers instead of the table's.

    Raises:
        SettingError: The scheme is unknown, or the gain is not a positive finite number.

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
        Saxe et al. 2014, arXiv 1312.6120; Le et al. 2015, arXiv 1504.00941 (identity); Jozefowicz et al. 2015 (forget
        gate); Mishkin and Matas 2016, arXiv 1511.06422 (data-driven). torch's `calculate_gain` gives 1 for a sigmoid,
        whose slope is at most 1/4; a gain of 4 makes up for it. Measured on a net of twelve sigmoid
        layers, the first layer's gradient over the last one's: 1e-9 with gain 1 and 2e-5 with gain 4 at 5 units, 9e-9
        and 4e-4 at 64 units.
    """

    scheme: Choice = "auto"
    data_driven: bool = False
    gain: float | None = None

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "the initial weights"

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Choice):
            raise SettingError("scheme", came=repr(self.scheme), wanted=f"one of {', '.join(get_args(Choice))}")
        if self.gain is not None and not (self.gain > 0 and isfinite(self.gain)):
            raise SettingError("gain", came=repr(self.gain), wanted="a positive finite number")

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
        weighted, left_alone = _sorted_out(model)
        if not weighted:
            raise nothing_found(self, "dense, convolutional, recurrent or attention layers whose weights are free")
        norms = _reset_norms_(model)
        parts = [
            self._feedforward_(model, weighted, generator, batch_input),
            _recurrent_(weighted, generator),
            _attention_(weighted, generator),
            norms,
        ]
        if left_alone:
            parts.append(Change(changes=(f"{shortened(left_alone)}: left as they are",), code=""))
        return Change(
            changes=tuple(sentence for part in parts for sentence in part.changes),
            code="\n".join(part.code for part in parts if part.code),
        )

    def _feedforward_(
        self, model: nn.Module, weighted: dict[str, nn.Module], generator: torch.Generator, batch_input: Any
    ) -> Change:
        order = places(model, batch_input)
        drawn: dict[tuple[Draw, str], list[str]] = {}
        for name, layer in weighted.items():
            if is_feedforward(layer):
                draw, follows = self._draw(model, order, name, layer)
                draw.fill_(layer, generator)
                drawn.setdefault((draw, follows), []).append(name)
        if not self.data_driven:
            return _said(drawn)
        layers = {name: layer for names in drawn.values() for name in names if is_feedforward(layer := weighted[name])}
        return scaled_to_unit_outputs_(model, layers, batch_input)

    def _draw(self, model: nn.Module, order: tuple[Place, ...], name: str, layer: nn.Module) -> tuple[Draw, str]:
        if not is_feedforward(layer):
            raise AssertionError(name)
        if self.data_driven:
            return Draw(scheme="orthogonal", gain=1.0), ""  # its code is written when the gains are known
        follows, activation = _what_follows(model, order, name)
        scheme, gain = draw_before(activation, follows)
        chosen: Scheme = scheme if self.scheme == "auto" else self.scheme
        return Draw(
            scheme=chosen,
            gain=gain if self.gain is None else self.gain,
            fan_in=fan_in_of(layer) if chosen == "he" else None,
            half=chosen == "orthogonal" and in_half(layer),
        ), follows


def _sorted_out(model: nn.Module) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """Separate the layers whose weights are drawn anew from those that are left alone; tied weights count once."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    seen: set[int] = set()
    free: dict[str, nn.Module] = {}
    left_alone: list[str] = []
    for place in places(model):
        if not place.weighted:
            continue
        own = {id(weight) for weight in place.module.parameters(recurse=False) if weight.dim() > 1}
        if not _is_known(place.module) or own & embedded:
            left_alone.append(place.name)
        elif not own <= seen:
            free[place.name] = place.module
        seen |= own
    return free, tuple(left_alone)


def _is_known(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module):
        return False
    own = dict(module.named_parameters(recurse=False))
    if not all(weight.is_floating_point() for weight in own.values()):
        return False
    if is_feedforward(module):
        return "weight" in own  # not so with the old weight_norm, which computes it before each forward
    if isinstance(module, Recurrent):
        return all(key.startswith(("weight_ih", "weight_hh", "weight_hr", "bias_")) for key in own)
    return isinstance(module, nn.MultiheadAttention)


def _what_follows(model: nn.Module, order: tuple[Place, ...], name: str) -> tuple[str, nn.Module | None]:
    """Name the activation before the next weighted layer: `linear` for none, `unknown` if it cannot be seen."""
    here = next((index for index, place in enumerate(order) if place.name == name), None)
    if here is None:
        order = places(model)  # the batch did not reach it: attention reads the weights of its output projection
        here = next(index for index, place in enumerate(order) if place.name == name)
    if isinstance(parent_of(model, name), nn.MultiheadAttention):
        return "linear", None
    visible = True
    for place in order[here + 1 :]:
        if place.activation:
            return place.activation, place.module
        if place.weighted:
            return _between(model, order[here], place, visible), None
        visible = visible and (place.norm or isinstance(place.module, DROPOUTS) or _is_of_torch(place.module))
    return ("linear" if visible else "unknown"), None


def _between(model: nn.Module, before: Place, after: Place, visible: bool) -> str:
    if after.input_is == "rectified":
        return "relu"
    if after.input_is == "direct":
        return "linear"
    return "linear" if visible and in_one_sequence(model, before.name, after.name) else "unknown"


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _said(drawn: dict[tuple[Draw, str], list[str]]) -> Change:
    changes, code = [], []
    for (draw, follows), names in drawn.items():
        what = {"linear": "", "unknown": " because what follows cannot be seen"}.get(
            follows, f" for the {follows} that follows"
        )
        changes.append(f"{shortened(tuple(names))}: weights drawn anew, {draw.words}{what}; bias zero")
        code.append(
            f"for name in {names!r}:\n"
            "    layer = model.get_submodule(name)\n"
            f"    {draw.line}\n"
            "    if layer.bias is not None:\n"
            "        nn.init.zeros_(layer.bias)"
        )
    return Change(changes=tuple(changes), code="\n".join(code))


def _recurrent_(weighted: dict[str, nn.Module], generator: torch.Generator) -> Change:
    changes, code = [], []
    for name, layer in weighted.items():
        if isinstance(layer, Recurrent):
            fill_recurrent_(layer, generator)
            changes.append(f"{name}: {recurrent_words(layer)}")
            code.append(recurrent_code((name,), layer))
    return Change(changes=tuple(changes), code="\n".join(code))


def _attention_(weighted: dict[str, nn.Module], generator: torch.Generator) -> Change:
    names = tuple(name for name, layer in weighted.items() if isinstance(layer, nn.MultiheadAttention))
    for layer in weighted.values():
        if isinstance(layer, nn.MultiheadAttention):
            fill_attention_(layer, generator)
    if not names:
        return Change(changes=(), code="")
    words = f"{shortened(names)}: projections of queries, keys and values drawn anew, Xavier normal; bias zero"
    return Change(changes=(words,), code=attention_code(names))


def _reset_norms_(model: nn.Module) -> Change:
    names = tuple(name for name, module in _norms_of_torch(model))
    for _, module in _norms_of_torch(model):
        module.reset_parameters()  # type: ignore[operator]
    if not names:
        return Change(changes=(), code="")
    return Change(
        changes=(f"{shortened(names)}: scale 1, shift 0, statistics empty",),
        code=f"for name in {list(names)!r}:\n    model.get_submodule(name).reset_parameters()",
    )


def _norms_of_torch(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for place in places(model):
        if place.norm and _is_of_torch(place.module) and hasattr(place.module, "reset_parameters"):
            yield place.name, place.module

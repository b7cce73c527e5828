"""Which calls count in a step that is sampled, and the samples of those that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from operator import attrgetter
from threading import get_ident
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

from evengrad.probe._call_graph import outputs_beside
from evengrad.probe._functional import attention_absmax
from evengrad.probe._kinds import RECURRENT, batches_tracked_by
from evengrad.probe._sample import Group, Row, width_for
from evengrad.probe._sample_hooks import MOST_CALLS_OF_A_MODULE, Call, Layer, Round, plain
from evengrad.probe._sample_inside import UNKNOWN, ThroughTime, in_checkpoint, inside
from evengrad.probe._sample_readings import About
from evengrad.probe._through_time import data_of, stand_in_for, watch_time
from evengrad.probe._trouble import Trouble
from evengrad.probe._units import liveliness
from evengrad.probe._watch_entries import float_tensors

MOST_CALLS = 2048  # of all modules together: at most 64 MiB of samples in float32


class Last(NamedTuple):
    """The last call of a function, to be told apart from the module that has called it."""

    layer: Layer
    call: Call
    output: Tensor


@final
class Calls:
    """Takes samples of the calls of one round: of modules, and of what they call as functions.

    The forward is that of the training, whatever mode the model is in: in training mode all calls until the first
    gradient, and they oust those in evaluation mode, before and after; where there are none the last forward in
    evaluation mode, and only if a gradient arrives. So neither an evaluation that has forgotten `no_grad` nor an attack
    that looks for its gradient in evaluation mode is taken for a training in training mode.

    Args:
        model: The model that is trained.
        first_gradient: Called once in a round, when the first gradient arrives.
    """

    def __init__(self, model: nn.Module, first_gradient: Callable[[], None]) -> None:
        self._model = model
        self._first_gradient = first_gradient
        self._leaves: list[RemovableHandle] = []
        self._groups: dict[tuple[torch.device, torch.dtype, int, str | None], Group] = {}
        self._new: set[Group] = set()  # of this round
        self._functions: dict[tuple[str, str], Layer] = {}
        self._tracker = ModuleTracker()  # its `is_bw` is torch's public way to ask whether a backward is running
        self._last: Last | None = None
        self._depth = self._thread = 0  # how often the model is in its own forward, and in which thread
        self.trouble = Trouble()
        self.round = Round(first_gradient, self.trouble)
        self.first_input: Call | None = None

    def begin(self) -> None:
        """Forget what was seen."""
        self.end()
        self._groups = {key: group for key, group in self._groups.items() if group.start_again()}
        self._new.clear()
        self.round, self.first_input = Round(self._first_gradient, self.trouble), None

    def end(self) -> None:
        """Look at nothing any more; what was seen is kept."""
        self.round.open = False
        self._last = None
        for handle in self._leaves:
            handle.remove()
        self._leaves.clear()

    @property
    def groups(self) -> list[Group]:
        """The samples."""
        return list(self._groups.values())

    @property
    def in_order(self) -> list[Call]:
        """The calls, in the order of the forward pass."""
        round_, calls = self.round, chain.from_iterable(layer.calls for layer in self.round.layers)
        in_order = sorted(calls, key=attrgetter("position"))
        if round_.training is False and not (round_.whole and round_.forward_over):  # perhaps an evaluation
            return [call for call in in_order if call.arrived]
        return in_order

    def counts(self) -> bool:
        """Tell whether a call that begins now counts; where it does, this thread is the one that is looked at."""
        if not torch.is_grad_enabled() or self._tracker.is_bw or not self._admits():
            return False
        return not self.round.forward_over and not self.round.is_elsewhere()

    def enter_model(self, module: nn.Module, args: object) -> None:
        """Forward pre-hook of the model: forget the forward before where it was in evaluation mode."""
        if self._tracker.is_bw:
            return
        if self._depth:
            self._depth += self._thread == get_ident()
            return
        self._depth, self._thread = 1, get_ident()
        if not self.round.open or self._model.training or not torch.is_grad_enabled():
            return
        if self.round.training is False and not self.round.forward_over:
            self.begin()
        self.round.whole = self.round.whole or not self.round.forward_over

    def leave_model(self, module: nn.Module, args: object, result: object) -> None:
        """Forward hook of the model, called always."""
        if self._depth and self._thread == get_ident() and not self._tracker.is_bw:
            self._depth -= 1

    def leave_all(self) -> None:
        """Be outside of the model, also where a forward was interrupted."""
        self._depth = 0

    def stand_in(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook of a recurrent module: let a gradient arrive at its input, and change nothing else."""
        if not args or not self.counts() or in_checkpoint():
            return None
        try:
            value = stand_in_for(module, args[0])
        except RuntimeError:  # inside of torch.func, or a tensor of inference mode
            return None
        return None if value is args[0] else (value, *args[1:])

    def forget_last(self) -> None:
        """Let go of the last output of a function, which holds the graph."""
        self._last = None

    def see_module(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Forward hook: decide whether a call counts, and take its sample."""
        position = self._position(layer)
        if position is None:
            return
        again = self._tracker.is_bw
        plain_one = type(result) is Tensor and result.is_floating_point()
        output = result if plain_one else next(float_tensors(result), None)
        if output is None:
            return
        call = self._renamed(layer, output) or self._call(layer, output, position, again=again)
        if call is None:
            return
        about = layer.about
        if not again and call.number is None:
            others = () if plain_one else float_tensors(result)
            self._place_in_graph(call, outputs_beside(output, others, module))
        call.training = module.training
        if about.special:
            self._see_special(call, (layer.count - 1, module, args, kwargs, result), again=again)
        if about.weighted or about.convolution:
            self.round.channels_first = about.convolution
        if self.first_input is None and not again:
            self._see_input(args)

    def see_function(
        self,
        where: tuple[nn.Module, str],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Tensor,
    ) -> None:
        """Take the sample of what a module has called as a function."""
        module, prefix = where
        if not self.counts() or not (result.is_floating_point() or result.is_complex()):
            return
        layer = self._functions.get((prefix, name))
        if layer is None:
            about = About(f"{prefix}.{name}()" if prefix else f"{name}()", None, name)
            layer = self._functions[prefix, name] = Layer(self.see_module, about)
        if layer.round is not self.round:
            layer.enter(self.round)
        call = self._call(layer, result, self.round.next_position(), again=False)
        if call is None:
            return
        self._place_in_graph(call, [result])
        call.training = module.training
        self._look_inside(call, lambda: attention_absmax(name, args, kwargs))
        self._last = Last(layer, call, result)
        if self.first_input is None:
            self._see_input(args)

    def _place_in_graph(self, call: Call, outputs: list[Tensor]) -> None:
        """Find what is before a call, now that its output's graph is there."""
        assert call.about is not None
        call.number = self.round.graph.add(outputs, saturates=call.about.saturating is not None)

    def _see_special(self, call: Call, given: tuple[int, nn.Module, tuple[Any, ...], Any, Any], *, again: bool) -> None:
        """Add what only some kinds of modules have."""
        assert call.about is not None
        number, module, args, kwargs, result = given
        self._look_inside(call, lambda: inside(module, number, args, kwargs, result))
        tracked = batches_tracked_by(call.about.module)
        if tracked is not None and (counter := plain(tracked)) is not None:
            call.more["tracked"] = counter
        if isinstance(call.about.module, RECURRENT) and args and not again:
            self._watch_time(call, call.about.module, args[0])

    def _position(self, layer: Layer) -> int | None:
        """Place a call in the order of the forward pass; None where it does not count."""
        again, with_graph = self._tracker.is_bw, torch.is_grad_enabled()
        counts = self._admits() if with_graph and not again else self._is_of_this_mode()
        round_ = self.round
        round_.fired = True
        if not counts or (round_.forward_over and not again):
            return None
        if layer.round is not round_:
            layer.enter(round_)
        if not with_graph:
            if not again:
                layer.wait(round_.next_position())
            return None
        if not again:
            if round_.is_elsewhere():
                return None
            layer.direct = True
            return round_.next_position()
        if layer.direct or not layer.waiting:
            return None
        return layer.waiting.pop()  # the latest: earlier ones may be of an evaluation

    def _admits(self) -> bool:
        """Tell whether the mode of the model lets a call count; one in training mode ousts those in evaluation mode."""
        if not self.round.open:
            return False
        training = self._model.training
        if self.round.training is None:
            self.round.training = training
        elif training and not self.round.training:
            self.begin()
            self.round.training = True
        return training or not self.round.training

    def _is_of_this_mode(self) -> bool:
        """Tell whether the model is in the mode of the calls that count."""
        return self.round.training is None or self.round.training == self._model.training

    def _renamed(self, layer: Layer, output: Tensor) -> Call | None:
        """Give a non-linearity the sample that was taken when it called its function, a moment ago."""
        last, self._last = self._last, None
        if last is None or last.output is not output or last.layer.about.kind != layer.about.function:
            return None
        last.layer.calls.remove(last.call)
        last.layer.count -= 1
        if len(layer.calls) == MOST_CALLS_OF_A_MODULE:
            _let_go(layer)
            self.round.taken -= 1
        last.call.about = layer.about
        layer.calls.append(last.call)
        layer.count += 1
        return last.call

    def _call(self, layer: Layer, output: Tensor, position: int, *, again: bool) -> Call | None:
        """Take the sample of one call; None where there is no room, or it cannot be taken."""
        if not self._has_room(layer):
            return None
        about = layer.about
        row = self._take(output, about.saturating)
        if row is None:
            return None
        call = Call(self.round, about, row, output, position)
        layer.calls.append(call)
        layer.count += 1
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(call)
        elif output.requires_grad:  # a leaf outlives the graph, and so would the hook
            self._leaves.append(output.register_hook(call))
        if about.rectifies and not again and output.numel():
            value = plain(output)
            assert value is not None
            unit_dim = about.unit_dim(value.ndim, channels_first=self.round.channels_first)
            call.alive, call.observations = liveliness(value, unit_dim)
        return call

    def _has_room(self, layer: Layer) -> bool:
        """Make room for one more call of a module, or say that there is none."""
        if len(layer.calls) == MOST_CALLS_OF_A_MODULE:
            _let_go(layer)
        elif self.round.taken >= MOST_CALLS:
            return False
        else:
            self.round.taken += 1
        return True

    def _take(self, tensor: Tensor, saturating: str | None) -> Row | None:
        value = plain(tensor)
        if value is None:
            return None
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        key = (value.device, dtype, width_for(value.numel()), saturating)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
            self._new.add(group)
        row = group.row()
        try:
            row.output.take(value)
        except RuntimeError:
            group.give_back(row)
            if group in self._new or group.used > 1:  # a tensor inside of vmap cannot be copied out of it
                return None
            del self._groups[key]  # inside of torch.func only what was made there can be written to
            return self._take(tensor, saturating)
        return row

    def _look_inside(self, call: Call, compute: Callable[[], Tensor | None]) -> None:
        try:
            found = compute()
        except UNKNOWN:
            return
        if found is not None:
            call.more["logit" if found.ndim == 0 else "gates"] = found

    def _watch_time(self, call: Call, module: nn.Module, value: Any) -> None:
        handle = watch_time(module, value, ThroughTime(call))
        data = data_of(value)
        if handle is not None and data.is_leaf:
            self._leaves.append(handle)

    def _see_input(self, args: tuple[Any, ...]) -> None:
        value = next(float_tensors(args), None)
        row = None if value is None else self._take(value, None)
        if value is not None and row is not None:
            self.first_input = Call(self.round, None, row, value, 0)


def _let_go(layer: Layer) -> None:
    """Give back the row of a module's earliest call."""
    oldest = layer.calls.pop(0)
    assert oldest.row is not None
    oldest.row.group.give_back(oldest.row)
    oldest.row = None

"""A probe that is cheap enough for a real training: samples of activations and gradients on chosen steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

from evengrad.nouns import LayerReading
from evengrad.probe._kinds import parametrizations_of, plain_name
from evengrad.probe._sample import FIELDS, Group, Row, width_for
from evengrad.probe._sample_hooks import MOST_CALLS_OF_A_MODULE, Call, Layer, Round, plain
from evengrad.probe._sample_readings import About, Layout, layer_readings
from evengrad.probe._statistics import precise
from evengrad.probe._watch import is_layer
from evengrad.probe._watch_entries import float_tensors

MOST_CALLS = 2048  # of all modules together: at most 64 MiB of samples in float32


@final
class Sampler:
    """Read layers from samples during the steps of a real training, without changing it.

    Between `arm()` and `disarm()` every module that `probe` reads as a layer has a forward hook; at other times nothing
    is attached. Of each output (the first floating-point tensor, where there are several) and of the gradient there, at
    most 4,096 elements in 16 contiguous blocks, spread evenly, are copied into one buffer per device and width, and
    `packed()` reduces all of them together. Where an output has at most 4,096 elements the numbers are exact, else they
    are estimates: a rare maximum or a rare NaN can be missed.

    What a sample cannot tell has a value that makes no rule speak: `observations` and `dead_frac` are 0, `weight_norm`
    and `weight_grad_norm` None, `time_grad_rms` is empty. `output_finite` and `grad_finite` are of the sample;
    `input_finite` tells whether the samples of all earlier outputs, and of what the first module took, are finite.

    One forward and its backward are seen: calls while the model is in training mode (single modules of it may be in
    evaluation mode) and gradients are enabled, until the first gradient arrives. So an evaluation in between and the
    later micro-batches of an accumulation do not count. What a checkpoint computes again does not count twice; a
    reentrant one, which forwards without gradients, is read when it computes again. A gradient that arrives more than
    once counts as it arrived last. Of a module that is called more than 64 times the last 64 calls are read.

    Not seen: non-linearities that are called as functions, outputs that are no plain strided tensors (nested, sharded),
    calls under `torch.func.vmap` or in a CUDA graph, modules that were added after the sampler was made. In a
    compiled model no hook fires: no readings, and no error.

    Args:
        model: The model that is trained.

    Cost: About 32 KiB of memory for each sampled call (64 MiB for 2,048 of them, which is the most), kept from one
    sampled step to the next. On one CPU thread a sampled step took 1.03 plain steps for a transformer of 10M parameters
    and for a convolutional network, 1.01 for an LSTM, and 1.6 for a thousand layers of 8 units, where every layer takes
    as long as its hooks. An output of more than 4,096 elements with gaps in memory is copied whole. No host
    synchronisation.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> sampler = Sampler(model)
        >>> sampler.arm()
        >>> model(torch.ones(3, 4)).square().sum().backward()
        >>> numbers = sampler.packed()
        >>> sampler.disarm()
        >>> [(layer.name, layer.kind, layer.units) for layer in sampler.readings(numbers.tolist())]
        [('0', 'Linear', 8), ('1', 'Tanh', 8), ('2', 'Linear', 2)]
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        inner = parametrizations_of(model)
        self._layers = [
            Layer(self._see, About(plain_name(name) or "(model)", module))
            for name, module in model.named_modules()
            if module not in inner and is_layer(module) and not isinstance(module, torch.jit.ScriptModule)
        ]
        self._armed = False
        self._leaves: list[RemovableHandle] = []
        self._groups: dict[tuple[torch.device, torch.dtype, int, str | None], Group] = {}
        self._tracker = ModuleTracker()  # its `is_bw` is torch's public way to ask whether a backward is running
        self._round = Round()
        self._first_input: Call | None = None
        self._layout = Layout()

    @property
    def armed(self) -> bool:
        """Whether hooks are attached."""
        return self._armed

    @property
    def layout(self) -> Layout:
        """What the numbers of the last `packed()` stand for; to keep when they are read after the next one."""
        return self._layout

    def arm(self) -> None:
        """Attach the hooks and forget what was seen; where they are on already, forget only."""
        self._end()
        self._groups = {key: group for key, group in self._groups.items() if group.start_again()}
        self._round, self._first_input = Round(), None
        for layer in self._layers:
            layer.attach()
        self._armed = True

    def disarm(self) -> None:
        """Take every hook off again; what was seen can still be packed."""
        for layer in self._layers:
            layer.detach()
        self._armed = False
        self._end()

    def packed(self) -> Tensor:
        """Reduce what was seen since `arm()`.

        Returns:
            Shape (8 * R,) for R samples, float64 where the device has it, on the samples' device: the first accelerator
            where they are on several. Empty when nothing was seen. `readings` wants a host copy of it.

        Cost: Some fifteen operations for each of at most nine widths, whatever the number of layers (on a CPU for each
            MiB of samples too); no host synchronisation.
        """
        starts: dict[Group, int] = {}
        vectors: list[Tensor] = []
        size = 0
        with torch.no_grad():
            for group in self._groups.values():
                starts[group] = size
                vectors += group.statistics()
                size += len(FIELDS) * group.used
        calls = sorted(chain.from_iterable(layer.calls for layer in self._round.layers), key=attrgetter("position"))
        self._layout = Layout(
            calls=tuple([call.seen(starts) for call in calls]),
            first_input=None if self._first_input is None else self._first_input.seen(starts),
            size=size,
        )
        if not vectors:
            return torch.empty(0, device="cpu")
        device = next((one.device for one in vectors if one.device.type != "cpu"), vectors[0].device)
        return torch.cat([one.to(device, precise(device), non_blocking=True) for one in vectors])

    def readings(
        self, numbers: Sequence[float], layout: Layout | None = None, *, loss_scale: float = 1.0
    ) -> tuple[LayerReading, ...]:
        """Make readings of what `packed()` gave, in the order of the forward pass.

        Args:
            numbers: A host copy.
            layout: The `layout` that belongs to them; None for that of the last `packed()`.
            loss_scale: What the loss was multiplied with before its backward; gradients are divided by it.

        Raises:
            SettingError: The numbers are not those of the layout.
        """
        return layer_readings(numbers, self._layout if layout is None else layout, loss_scale)

    def _end(self) -> None:
        self._round.open = False
        for handle in self._leaves:
            handle.remove()
        self._leaves.clear()

    def _see(self, layer: Layer, args: tuple[Any, ...], result: Any) -> None:
        """Forward hook: decide whether a call counts, and take its sample."""
        round_, again = self._round, self._tracker.is_bw
        if (round_.forward_over and not again) or not self._model.training:
            return
        if layer.round is not round_:
            layer.enter(round_)
        if not torch.is_grad_enabled():
            if not again:
                layer.wait(round_.next_position())
            return
        if not again:
            layer.direct = True
            position = round_.next_position()
        elif layer.direct or not layer.waiting:
            return
        else:
            position = layer.waiting.pop()  # the latest: earlier ones may be of an evaluation
        plain_one = type(result) is Tensor and result.is_floating_point()
        output = result if plain_one else next(float_tensors(result), None)
        if output is None or not self._has_room(layer):
            return
        row = self._take(output, layer.about.saturating)
        if row is None:
            return
        call = Call(round_, layer.about, row, output, position)
        layer.calls.append(call)
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(call)
        elif output.requires_grad:  # a leaf outlives the graph, and so would the hook
            self._leaves.append(output.register_hook(call))
        if self._first_input is None and not again:
            self._see_input(args)

    def _has_room(self, layer: Layer) -> bool:
        """Make room for one more call of a module, or say that there is none."""
        if len(layer.calls) == MOST_CALLS_OF_A_MODULE:
            oldest = layer.calls.pop(0)
            assert oldest.row is not None
            oldest.row.group.give_back(oldest.row)
            oldest.row = None
        elif self._round.taken >= MOST_CALLS:
            return False
        else:
            self._round.taken += 1
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
        row = group.row()
        try:
            row.output.take(value)
        except RuntimeError:  # a tensor inside of vmap cannot be copied out of it
            group.give_back(row)
            return None
        return row

    def _see_input(self, args: tuple[Any, ...]) -> None:
        value = next(float_tensors(args), None)
        row = None if value is None else self._take(value, None)
        if value is not None and row is not None:
            self._first_input = Call(self._round, None, row, value, 0)

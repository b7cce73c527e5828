"""A probe that is cheap enough for a real training: samples of activations and gradients on chosen steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from evengrad.nouns import LayerReading
from evengrad.probe._eagerly import Eagerly
from evengrad.probe._kinds import FUSED, RECURRENT, parametrizations_of, plain_name
from evengrad.probe._sample_calls import Calls
from evengrad.probe._sample_functions import Functions, outside
from evengrad.probe._sample_hooks import Hook, Layer
from evengrad.probe._sample_packing import packed
from evengrad.probe._sample_readings import About, Layout, layer_readings
from evengrad.probe._units import Window
from evengrad.probe._watch import is_layer


@final
class Sampler:
    """Read layers from samples during the steps of a real training, without changing it.

    Between `arm()` and `disarm()` every module that `probe` reads as a layer has a forward hook; at other times nothing
    is attached. Of each output (the first floating-point tensor, where there are several) and of the gradient there, at
    most 4,096 elements in 16 contiguous blocks, spread evenly, are copied into one buffer per device and width, and
    `packed()` reduces all of them together. Where an output has at most 4,096 elements the numbers are exact, else they
    are estimates: a rare maximum or a rare NaN can be missed.

    Not of the sample but of everything there is: `dead_frac` and `observations` of rectifiers (ReLU and ReLU6, modules
    and functions), where a unit is dead that was zero for every sample of the last ten sampled steps, this one
    included, and `observations` counts all of them; the window begins anew when other rectifiers are called than
    before, or with other numbers of units. `observations` of a batch norm are those of this step. And `time_grad_rms`
    of recurrent modules; their input is stood in for by one that requires a gradient where it has none (not inside of a
    checkpoint, which compares what it computes again).
    `logit_absmax` and the gates are of few queries, and of few time steps and samples; of a cell in a loop the gates of
    every eighth call are computed. `tracked` is the count after the step's forward.

    What a sample cannot tell has a value that makes no rule speak: `observations` and `dead_frac` of all else are 0,
    `weight_norm` and `weight_grad_norm` None. `output_finite` and `grad_finite` are of the sample; `input_finite` tells
    whether the samples of all earlier outputs, and of what the first module took, are finite.

    One forward and its backward are seen: calls while gradients are enabled, until the first gradient arrives. Where
    there are several forwards in training mode before it all count, and none in evaluation mode (of the model; single
    modules of it may be in either). Where the model is in evaluation mode only, the last forward counts, if a gradient
    arrives; where its parts are called and never the model, the calls at which one does. So an evaluation in between,
    with `no_grad` or without, and the later micro-batches of an accumulation do not count; of replicas in several
    threads one does. What a checkpoint computes again does not count twice; a reentrant one, which forwards without
    gradients, is read when it computes again, without the functions and dead units in it. A gradient that arrives more
    than once counts as it arrived last. Of a module that is called more than 64 times the last 64 calls are read.

    Non-linearities and attention that are called as functions are seen by a torch-function mode, which is on in the
    forward of the outermost module that may call some, in a step that is sampled.

    Compiled models run eagerly in the forward that is read, for no hook fires in compiled code: what `torch.compile` or
    `Module.compile` has made of the model, of parts of it or of what holds it is passed by there, and nothing is
    compiled anew for that. The results of this forward differ by the roundings in which a backend differs from eager
    mode. A model whose first compiled forward runs before that is known, because it was wrapped after the first
    `arm()`, is not read in that step, and compiled once more without the hooks. A compiled function that calls the
    model, such as a whole training step, is not found: run it under `torch.compiler.set_stance("force_eager")` where
    its layers are to be read.

    Not seen: outputs that are no plain strided tensors (nested, sharded), calls under `torch.func.vmap` or in a CUDA
    graph, modules that were added after the sampler was made; frozen attention of torch in evaluation mode, which torch
    runs in fused operations that round differently, and the functions of a model that has some.

    Args:
        model: The model that is trained.
        eagerly: Whether compiled models are read, eagerly; False leaves them compiled, and shows nothing of them.

    Attributes:
        on_backward: Called once in each armed round, when the first gradient arrives, in the thread of the backward.

    Cost: About 32 KiB of memory for each sampled call (64 MiB for 2,048 of them, which is the most), kept from one
    sampled step to the next. On one CPU thread a sampled step took 1.06 plain steps for a convolutional network, 1.12
    for a transformer of 10M parameters on 64 tokens, 1.11 for an LSTM, and 1.6 for a thousand layers of 8 units, where
    every layer takes as long as its hooks. An output of more than 4,096 elements with gaps in memory is copied whole.
    No host synchronisation.

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

    def __init__(self, model: nn.Module, *, eagerly: bool = True) -> None:
        self._model = model
        self._calls = Calls(model, self._first_gradient)
        inner = parametrizations_of(model)
        safely = self._calls.trouble.safely
        see = safely(partial(outside, self._calls.see_module))
        named = {module: plain_name(name) for name, module in model.named_modules() if module not in inner}
        self._layers = [
            Layer(see, About(name or "(model)", module)) for module, name in named.items() if is_layer(module)
        ]
        self._time_hooks = [
            Hook(module, safely(self._calls.stand_in), before=True) for module in named if isinstance(module, RECURRENT)
        ]
        self._fused = [module for module in named if isinstance(module, FUSED)]
        calls = self._calls
        self._whole = (
            ()
            if isinstance(model, torch.jit.ScriptModule)
            else (
                Hook(model, safely(calls.enter_model), before=True),
                Hook(model, safely(calls.leave_model), always=True),
            )
        )
        self._functions = Functions(model, calls.counts, safely(calls.see_function), safely(calls.forget_last))
        self._eagerly = Eagerly(model, calls.counts) if eagerly else None
        self._window = Window()
        self._armed = False
        self._layout = Layout()
        self.on_backward: Callable[[], None] | None = None

    @property
    def armed(self) -> bool:
        """Whether hooks are attached."""
        return self._armed

    @property
    def layout(self) -> Layout:
        """What the numbers of the last `packed()` stand for; to keep when they are read after the next one."""
        return self._layout

    def arm(self) -> None:
        """Attach the hooks and forget what was seen; where they are on already, forget only.

        Where looking has failed before, nothing is attached any more.
        """
        self._functions.end()
        self._calls.leave_all()
        self._calls.begin()
        if self._calls.trouble.seen:
            self.disarm()
            return
        left_alone = self._left_alone()
        for layer in self._layers:
            if layer.about.module not in left_alone:
                layer.attach()
        for hook in self._time_hooks:
            hook.attach()
        if not left_alone:
            self._functions.attach()
        for hook in self._whole if self._model not in left_alone else ():
            hook.attach()
        if self._eagerly is not None:
            self._eagerly.start()
        self._armed = True

    def disarm(self) -> None:
        """Take every hook off again; what was seen can still be packed."""
        if self._eagerly is not None:
            self._eagerly.stop()
        for hook in self._whole:
            hook.detach()
        self._functions.detach()
        for hook in self._time_hooks:
            hook.detach()
        for layer in self._layers:
            layer.detach()
        self._armed = False
        self._functions.end()
        self._calls.end()

    def packed(self) -> Tensor:
        """Reduce what was seen since `arm()`.

        Returns:
            One dimension, float64 where the device has it, on the samples' device: the first accelerator where they are
            on several. Empty when nothing was seen. `readings` wants a host copy of it.

        Cost: Some fifteen operations for each of at most nine widths, and as many for all rectifiers together, whatever
            the number of layers (on a CPU for each MiB of samples too); no host synchronisation.
        """
        if self._eagerly is not None and not self._calls.round.fired:
            self._eagerly.look_again()
        numbers, self._layout = packed(self._calls, self._window)
        return numbers

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

    def _first_gradient(self) -> None:
        if self.on_backward is not None:
            self.on_backward()

    def _left_alone(self) -> set[nn.Module]:
        """Find what torch may run fused, with other roundings than under hooks: frozen attention in evaluation mode."""
        frozen = [
            module
            for module in self._fused
            if not module.training and not any(parameter.requires_grad for parameter in module.parameters())
        ]
        return {part for module in frozen for part in module.modules()}

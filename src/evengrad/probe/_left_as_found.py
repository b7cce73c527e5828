"""Leave a model and every source of randomness as they were found."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore buffers, modes, gradients and random state to the bit when the block ends, however it ends.

    Buffers (batch-norm statistics, power-iteration vectors) are restored both as objects and in content. What a model
    keeps outside parameters and buffers, such as a counter of its own, cannot be known and is not restored.

    Cost: one copy of all buffers; no copy of parameters or gradients.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        with _random_state(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, content in buffers:
            _restore(module, name, buffer, content)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _restore(module: nn.Module, name: str, buffer: Tensor | None, content: Tensor | None) -> None:
    module._buffers[name] = buffer
    if buffer is not None and content is not None and not _overlaps_itself(buffer):
        with torch.no_grad():
            buffer.copy_(content)


def _overlaps_itself(buffer: Tensor) -> bool:
    """Tell whether elements share memory, as in an expanded mask: torch refuses to write to such a tensor."""
    if buffer.layout != torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))


@contextlib.contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    devices = sorted({tensor.device for tensor in model.parameters() if tensor.device.type != "cpu"}, key=str)
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")  # a model that uses NumPy's global state has imported it
    numpy_state = None if numpy is None else numpy.random.get_state()
    kind = devices[0].type if devices else "cuda"
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in devices], device_type=kind):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)

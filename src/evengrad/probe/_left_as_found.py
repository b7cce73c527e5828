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

    Cost: one copy of all buffers, which are compared at the end; no copy of parameters or gradients.
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
    if buffer is not None and content is not None and not _same_bits(buffer, content):
        buffer.data.copy_(content)  # .data: a backward that waits for this buffer finds the content that it saved


def _same_bits(buffer: Tensor, content: Tensor) -> bool:
    """Compare to the bit: what did not change is not written to, for it may be an expanded view."""
    if buffer.layout != torch.strided:
        return False
    return torch.equal(*(part.detach().contiguous().reshape(-1).view(torch.uint8) for part in (buffer, content)))


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

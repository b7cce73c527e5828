"""Activations whose output is multiplied with other values: gates, attention weights, feature maps."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evengrad.treat._activations import activation_name
from evengrad.treat._forward_order import run
from evengrad.treat._random_state import random_state_kept

BOUNDED = frozenset({"sigmoid", "tanh", "hardsigmoid", "hardtanh", "softsign"})
_ELEMENTWISE = frozenset(
    {"mul", "mul_", "multiply", "multiply_", "imul", "rmul", "div", "div_", "divide", "true_divide"}
)
_ELEMENTWISE |= {"__mul__", "__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__itruediv__", "addcmul", "lerp"}
_ELEMENTWISE |= {"rdiv", "__rdiv__", "addcmul_", "lerp_"}
_PRODUCTS = frozenset(
    {"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}
)


def gates_of(model: nn.Module, names: Iterable[str], batch_input: Any) -> frozenset[str]:
    """Name the activations that are gates, seen in a forward pass of a copy in evaluation mode.

    The output of an activation is followed through operations that take nothing else (dropout, views, `1 - x`). Where
    it is multiplied with other values, a sigmoid or tanh is a gate, and another activation too unless what it meets is
    the output of a sigmoid or tanh: then that one is. What is multiplied with a number or a parameter is scaled only.
    Nothing is known without a batch.

    Args:
        model: Left as it is.
        names: The activation modules to judge.
        batch_input: The input of a batch, or None.
    """
    names = tuple(names)
    if batch_input is None or not names:
        return frozenset()
    with random_state_kept(), torch.no_grad():
        scratch = copy.deepcopy(model).eval()
        watch = _Watch(scratch)
        for name in names:
            module = scratch.get_submodule(name)
            module.register_forward_hook(watch.after(name, activation_name(module) in BOUNDED))
        with watch:
            run(scratch, batch_input)
    return frozenset(watch.gates)


@final
class _Watch(TorchFunctionMode):
    """Follows the outputs of activations, by the memory that they and their views are in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.gates: set[str] = set()
        self._own = {each.untyped_storage().data_ptr() for each in model.parameters()}
        self._from: dict[int, dict[str, bool]] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the same memory

    def after(self, name: str, bounded: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._mark(output, {name: bounded})

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        marks = [self._marks(tensor) for tensor in tensors]
        called = getattr(func, "__name__", "")
        if any(marks) and len(tensors) > 1 and called in _ELEMENTWISE | _PRODUCTS:
            self._meet(tensors, marks, called in _PRODUCTS)
        output = func(*args, **kwargs)
        if tensors and all(marks):
            together = {name: bounded for each in marks for name, bounded in each.items()}
            for tensor in _tensors(output):
                self._mark(tensor, together)
        return output

    def _mark(self, tensor: Tensor, names: dict[str, bool]) -> None:
        self._alive.append(tensor)
        self._from[tensor.untyped_storage().data_ptr()] = names

    def _marks(self, tensor: Tensor) -> dict[str, bool]:
        if not self._from or tensor.layout != torch.strided:
            return {}
        return self._from.get(tensor.untyped_storage().data_ptr(), {})

    def _is_parameter(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() in self._own

    def _meet(self, tensors: list[Tensor], marks: list[dict[str, bool]], product: bool) -> None:
        for index, here in enumerate(marks):
            others = [each for place, each in enumerate(tensors) if place != index]
            if not here or all(self._is_parameter(each) or each.numel() == 1 for each in others):
                continue
            gated = any(any(each.values()) for place, each in enumerate(marks) if place != index)
            self.gates.update(name for name, bounded in here.items() if bounded or product or not gated)


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))

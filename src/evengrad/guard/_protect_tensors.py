"""Tensors inside of what modules take and return, and what is wrong with their elements."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# Integers cannot be bad; of 8-bit and other exotic kinds torch cannot say which elements are finite.
JUDGED = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128})


def is_judged(value: object) -> bool:
    """Tell whether a value is a dense tensor of real or complex numbers of 16 bits and more."""
    return isinstance(value, Tensor) and value.dtype in JUDGED and value.layout == torch.strided


def tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors that can be judged, in tuples, lists, mappings, packed sequences and dataclasses."""
    if isinstance(value, Tensor):
        if is_judged(value):
            yield value
    elif isinstance(value, PackedSequence):
        yield from tensors(value.data)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif _is_record(value):
        for name in _fields(value):
            yield from tensors(getattr(value, name, None))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the tensors that can be judged; the value itself comes back where nothing was changed."""
    if isinstance(value, Tensor):
        return change(value) if is_judged(value) else value
    if isinstance(value, PackedSequence):
        data = mapped(value.data, change)
        return value if data is value.data else value._replace(data=data)
    if isinstance(value, dict):  # ModelOutput of transformers is one: items set its attributes too
        return _with(value, list(value), change, dict.__getitem__, lambda one, key, item: one.__setitem__(key, item))
    if isinstance(value, list | tuple):
        return _sequence(value, [mapped(item, change) for item in value])
    return _with(value, _fields(value), change, getattr, object.__setattr__) if _is_record(value) else value


def bound_of(dtype: torch.dtype, limit: float | None) -> float:
    """Give the largest magnitude that is let through: the limit, or the largest finite number of the dtype."""
    largest = float(torch.finfo(dtype).max)
    return largest if limit is None else min(limit, largest)


def within(tensor: Tensor, limit: float | None) -> Tensor:
    """Tell for each element whether it is a number of at most the bound; of a complex number both parts must be."""
    values = tensor.detach()
    if values.is_complex():
        return within(values.real, limit) & within(values.imag, limit)
    return values.abs() <= bound_of(values.dtype, limit)  # NaN compares as False


def clamped(tensor: Tensor, good: Tensor, limit: float | None) -> Tensor:
    """Replace what is not good: NaN by 0, what is too large by the bound with its sign; no gradient passes there.

    Elements that share one gradient by broadcasting, as those of a mean do, lose it together.
    """
    result: Tensor = _Clamp.apply(tensor, good, limit)  # type: ignore[no-untyped-call]
    return result


def compact(tensor: Tensor) -> Tensor:
    """Drop the repetitions of an expanded tensor: `.expand` brings them back with the very same strides.

    A dense copy in its place would be summed in another order later on, and so in other bits.
    """
    repeated = _repeated(tensor)
    return tensor[tuple(slice(0, 1) if one else slice(None) for one in repeated)] if any(repeated) else tensor


def counted(tensor: Tensor, good: Tensor, limit: float | None) -> Tensor:
    """Count NaN, infinite and too large elements: int64, shape (3,), on the device."""
    values = tensor.detach()
    bad = good.numel() - good.sum()
    nan = values.isnan().sum()
    infinite = bad - nan if limit is None else (values.isinf() & ~values.isnan()).sum()  # of a complex number: both
    return torch.stack([nan, infinite, bad - nan - infinite])


def finite_or_mask(tensor: Tensor) -> Tensor:
    """Tell, on the device, whether a tensor is finite or an attention mask: nothing but 0 and minus infinity, of both.

    What carries a gradient is no mask.
    """
    values = tensor.detach()
    finite = values.isfinite().all()
    if tensor.requires_grad or values.is_complex():
        return finite
    zero = values == 0
    return finite | ((zero | (values == float("-inf"))).all() & zero.any())


class _Clamp(torch.autograd.Function):
    """Clamping, with the strides kept on both ways.

    A mask over a broadcast gradient would make it dense, or lay it out as the mask is. Then a sum further back would
    run in another order, and a run in which nothing is bad would change in the last bits.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, good: Tensor, limit: float | None) -> Tensor:
        ctx.save_for_backward(good)
        return _where(good, tensor, _bounded(tensor, limit))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (good,) = ctx.saved_tensors
        small = compact(gradient)
        for dim, repeated in enumerate(_repeated(gradient)):
            good = good.all(dim, keepdim=True) if repeated else good
        result = _where(good, small, torch.zeros((), dtype=small.dtype, device=small.device))
        return (result if small is gradient else result.expand(gradient.shape)), None, None


def _where(good: Tensor, tensor: Tensor, other: Tensor) -> Tensor:
    """Choose as `torch.where` does, with the strides of the tensor, unless a second derivative goes through."""
    if torch.is_grad_enabled() or _overlapping(tensor):
        return torch.where(good, tensor, other)
    result = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return torch.where(good, tensor, other, out=result)


def _overlapping(tensor: Tensor) -> bool:
    """Tell whether two elements may share memory, as those of `Tensor.unfold` do: that cannot be written to."""
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _repeated(tensor: Tensor) -> list[bool]:
    return [size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def _bounded(values: Tensor, limit: float | None) -> Tensor:
    if values.is_complex():
        return torch.complex(_bounded(values.real, limit), _bounded(values.imag, limit))
    bound = bound_of(values.dtype, limit)
    finite = values.nan_to_num(nan=0.0, posinf=bound, neginf=-bound)
    return finite if limit is None else finite.clamp_(-bound, bound)


def _sequence(value: Any, items: list[Any]) -> Any:
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return value._make(items) if hasattr(value, "_make") else type(value)(items)


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value)]


def _with(
    value: Any,
    keys: list[Any],
    change: Callable[[Tensor], Tensor],
    get: Callable[[Any, Any], Any],
    put: Callable[[Any, Any, Any], None],
) -> Any:
    """Copy a container and put the changed items into it; itself where nothing was changed."""
    old = {key: get(value, key) for key in keys}
    new = {key: mapped(item, change) for key, item in old.items()}
    if all(new[key] is old[key] for key in old):
        return value
    result = copy.copy(value)
    for key, item in new.items():
        put(result, key, item)
    return result

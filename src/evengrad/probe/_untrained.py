"""Whether weights are as a usual initialisation draws them, to the last digit of what chance allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor, nn

MOST_WEIGHTS = 200
MOST_ELEMENTS = 65_536  # of one weight
FEWEST_ELEMENTS = 64
# The largest of n uniform numbers is within 10 / n of their bound but once in 20,000 times. With 256 elements that is
# 4 %, and no training keeps the largest weight within it while the mean square stays that of a uniform draw.
CERTAIN_ELEMENTS = 256
OF_THE_LARGEST = 10.0
SIGMAS = 4.0
# Variance of one squared number, relative to its mean: 2 for a normal one, 0.8 for a uniform one. That of a kurtosis of
# n normal numbers is 24 / n.
NORMAL_VARIANCE, UNIFORM_VARIANCE, KURTOSIS_VARIANCE = 2.0, 0.8, 24.0
FEWEST_BIASES = 2
GAINS = (1.0, sqrt(2.0), 5.0 / 3.0)
GATES = (1, 3, 4)  # blocks of rows of a recurrent weight: none, GRU, LSTM


def as_drawn(named: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Name the weights of two dimensions or more that are as an initialisation draws them.

    A weight is held against the uniform draws of torch's layers, of Glorot, He and LeCun, by its largest element and
    its mean square; and against normal ones (these three, N(0, 0.02) and N(0, 1)) by mean square, mean and kurtosis. It
    is certain with 256 elements of a uniform draw, or beside a bias that is zero to the bit. What is less certain
    counts only beside a bias as torch draws it or none, and where no weight named here looks trained. Weights of fewer
    than 64 elements, constant ones and those that are not plain tensors are left out.

    Args:
        named: The parameters of one kind, all of which are trained or none: what no optimizer holds, say.

    Cost: One pass over 65,536 elements of each weight, of 200 weights at most; the device is waited for once.

    Example:
        >>> fresh = torch.nn.Linear(64, 64)
        >>> as_drawn(dict(fresh.named_parameters()))
        ('weight',)
        >>> _ = torch.nn.init.normal_(fresh.weight, std=0.3)
        >>> as_drawn(dict(fresh.named_parameters()))
        ()
    """
    weights = {name: one for name, one in named.items() if _is_judged(one)}
    names = list(weights)[:: len(weights) // MOST_WEIGHTS + 1]
    biases = {name: bias for name in names if (bias := _bias_of(name, named)) is not None}
    shapes = _shapes_of([*(weights[name] for name in names), *biases.values()])
    beside = dict(zip(biases, shapes[len(names) :], strict=True))
    looks = {
        name: _looks(weights[name], shape, beside.get(name))
        for name, shape in zip(names, shapes, strict=False)
        if shape.rms > 0.0
    }
    whole = all(looks.values())
    return tuple(name for name, look in looks.items() if look == "certain" or (whole and look))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    """How the elements of a weight are spread: how many, mean, rms, kurtosis, and the largest magnitude."""

    count: int
    mean: float
    rms: float
    kurtosis: float
    largest: float


def plain(tensor: Tensor) -> bool:
    """Tell whether this is an ordinary tensor with numbers: neither lazy, nor sharded, quantised or on no device."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided:
        return False
    return type(tensor.detach()) is Tensor and tensor.is_floating_point()


def _is_judged(one: Tensor) -> bool:
    return plain(one) and one.dim() >= 2 and one.numel() >= FEWEST_ELEMENTS


def _shapes_of(weights: list[Tensor]) -> list[_Shape]:
    if not weights:
        return []
    counts, rows = [], []
    with torch.no_grad():
        for weight in weights:
            some = weight.detach().reshape(-1)
            some = some[:: some.numel() // MOST_ELEMENTS + 1].to(torch.float32)
            square = some.square().mean()
            fourth = some.square().square().mean() / square.square()
            rows.append(torch.stack([some.mean(), square.sqrt(), fourth, some.abs().amax()]))
            counts.append(some.numel())
    keys = ("mean", "rms", "kurtosis", "largest")
    numbers = torch.stack([row.to(rows[-1].device, non_blocking=True) for row in rows]).tolist()
    return [
        _Shape(count=count, **dict(zip(keys, row, strict=True))) for count, row in zip(counts, numbers, strict=True)
    ]


def _bias_of(weight: str, named: Mapping[str, Tensor]) -> Tensor | None:
    before, _, last = weight.rpartition(".")
    bias = named.get(f"{before}.bias" if before else "bias") if last == "weight" else None
    return bias if bias is not None and plain(bias) and bias.numel() >= FEWEST_BIASES else None


def _looks(weight: Tensor, shape: _Shape, bias: _Shape | None) -> str:
    """Say `certain` or `likely` of a weight as it was drawn; nothing of one that looks trained.

    A bias is drawn as torch does or is zero: any other has been trained, and its weight with it, unless that is certain
    by itself (forget gates are opened by their biases).
    """
    fan_in, fan_out = weight.numel() / weight.shape[0], weight.numel() / weight.shape[1]
    digits = torch.finfo(weight.dtype).eps
    zeros = bias is not None and bias.largest == 0.0
    uniform = any(_is_uniform(shape, bound, digits) for bound in _bounds(fan_in, fan_out, weight.shape))
    if uniform and (shape.count >= CERTAIN_ELEMENTS or zeros):
        return "certain"
    if bias is not None and not zeros and not _is_uniform(bias, 1 / sqrt(fan_in), digits):
        return ""
    if uniform:
        return "likely"
    if any(_is_normal(shape, std) for std in _stds(fan_in, fan_out)):
        return "certain" if zeros else "likely"
    return ""


def _bounds(fan_in: float, fan_out: float, shape: torch.Size) -> list[float]:
    rows = shape[0] * prod(shape[2:])
    recurrent = [1 / sqrt(rows / gates) for gates in GATES]
    glorot = [gain * sqrt(6 / (fan_in + fan_out)) for gain in GAINS]
    return [1 / sqrt(fan_in), *recurrent, *glorot, *(sqrt(top / fan) for top in (6, 3) for fan in (fan_in, fan_out))]


def _stds(fan_in: float, fan_out: float) -> list[float]:
    glorot = [gain * sqrt(2 / (fan_in + fan_out)) for gain in GAINS]
    return [0.02, 1.0, *glorot, *(sqrt(top / fan) for top in (2, 1) for fan in (fan_in, fan_out))]


def _is_uniform(shape: _Shape, bound: float, digits: float) -> bool:
    if not bound * (1 - OF_THE_LARGEST / shape.count) <= shape.largest <= bound * (1 + digits):
        return False
    return abs(3 * (shape.rms / bound) ** 2 - 1) <= SIGMAS * sqrt(UNIFORM_VARIANCE / shape.count)


def _is_normal(shape: _Shape, std: float) -> bool:
    return (
        abs((shape.rms / std) ** 2 - 1) <= SIGMAS * sqrt(NORMAL_VARIANCE / shape.count)
        and abs(shape.mean) <= SIGMAS * std / sqrt(shape.count)
        and abs(shape.kurtosis - 3) <= SIGMAS * sqrt(KURTOSIS_VARIANCE / shape.count)
    )

"""The activation modules of torch: their names, and how a weight in front of one wants to be scaled."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from evengrad.treat._random_state import random_state_kept

Scheme = Literal["he", "xavier", "orthogonal"]

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "prelu": nn.PReLU,
}

_NAMES: dict[type[nn.Module], str] = {
    **{maker: name for name, maker in MAKERS.items() if isinstance(maker, type)},
    nn.ReLU6: "relu6",
    nn.RReLU: "rrelu",
    nn.CELU: "celu",
    nn.Mish: "mish",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.Sigmoid: "sigmoid",
    nn.LogSigmoid: "logsigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Hardtanh: "hardtanh",
    nn.Hardshrink: "hardshrink",
    nn.Softshrink: "softshrink",
    nn.Tanhshrink: "tanhshrink",
    nn.Threshold: "threshold",
}

SQRT_2 = 2.0**0.5

# How to draw a weight by what follows it; the reasons and measurements are in the docstring of `Reinitialize`.
_DRAWS: dict[str, tuple[Scheme, float]] = {
    "tanh": ("xavier", 5 / 3),
    "hardtanh": ("xavier", 5 / 3),
    "softsign": ("xavier", 5 / 3),
    "sigmoid": ("xavier", 4.0),
    "hardsigmoid": ("xavier", 6.0),
    "selu": ("he", 1.0),
    "linear": ("xavier", 1.0),
}


def activation_name(module: nn.Module) -> str | None:
    """Name an activation module in torch's functional spelling; None for anything else, gated ones and softmax too.

    Example:
        >>> activation_name(nn.LeakyReLU()), activation_name(nn.Linear(1, 1)), activation_name(nn.GLU())
        ('leaky_relu', None, None)
    """
    return next((_NAMES[kind] for kind in type(module).__mro__ if kind in _NAMES), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewActivation:
    """An activation to be put into a model: as a module, and as code.

    Args:
        make: Makes it.
        code: The expression that makes it, with `model` in reach.
    """

    make: Callable[[], nn.Module]
    code: str

    def made(self, model: nn.Module) -> nn.Module:
        """Make it on the device and in the dtype of the model's first parameter."""
        new = self.make()
        first = next((each for each in model.parameters() if each.is_floating_point()), None)
        return new if first is None else new.to(first)


def new_activation(name: str) -> NewActivation:
    """Look an activation up that a treatment may put in: a member of `MAKERS`.

    Example:
        >>> new_activation("silu").code, new_activation("prelu").code
        ('nn.SiLU()', 'nn.PReLU().to(next(model.parameters()))')
    """
    make = MAKERS[name]
    code = f"nn.{type(make()).__name__}()"
    return NewActivation(make=make, code=f"{code}.to(next(model.parameters()))" if name == "prelu" else code)


def draw_before(module: nn.Module | None, name: str) -> tuple[Scheme, float]:
    """Choose the scheme and the gain of a weight that this activation follows.

    Args:
        module: The activation module, for its slope; None when only the name is known.
        name: Its name; `linear` for none, `unknown` when it cannot be seen.

    Example:
        >>> draw_before(nn.LeakyReLU(1.0), "leaky_relu")
        ('he', 1.0)
    """
    return _DRAWS.get(name) or ("he", (2.0 / (1.0 + _negative_slope(module) ** 2)) ** 0.5)


def _negative_slope(module: nn.Module | None) -> float:
    if isinstance(module, nn.LeakyReLU):
        return float(module.negative_slope)
    if isinstance(module, nn.RReLU):
        return float(module.lower + module.upper) / 2
    if isinstance(module, nn.PReLU):
        slope = float(module.weight.detach().float().mean())
        return slope if abs(slope) <= 1.0 else 0.0  # also when a broken run has made it NaN
    return 0.0


def is_custom_activation(module: nn.Module) -> bool:
    """Tell whether a module of the user's own is an element-wise non-linearity, by trying it on a few numbers.

    Without parameters, buffers and children; the same function for each element, whatever the shape; not an affine one.
    """
    if type(module).__module__.startswith("torch.nn.") or any(True for _ in module.children()):
        return False
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False
    values = torch.tensor([-2.0, -1.25, -0.5, 0.0, 0.5, 1.25, 2.0, 1.5, 0.75, -1.5, 0.25, -0.25])
    try:
        with random_state_kept(), torch.no_grad():
            tried = copy.deepcopy(module).eval()
            flat, turned, shaped = tried(values), tried(values.flip(0)), tried(values.reshape(2, 3, 2))
            return _is_elementwise(flat, turned, shaped) and not _is_affine(values, flat)
    except Exception:  # user code: whatever it raises on these numbers, it is not an activation that can be swapped
        return False


def _is_elementwise(flat: torch.Tensor, turned: torch.Tensor, shaped: torch.Tensor) -> bool:
    if flat.shape != (12,) or shaped.shape != (2, 3, 2):
        return False
    return bool(torch.allclose(flat, turned.flip(0)) and torch.allclose(flat, shaped.reshape(-1)))


def _is_affine(values: torch.Tensor, outputs: torch.Tensor) -> bool:
    at_zero, at_two = outputs[3], outputs[6]
    return bool(torch.allclose(outputs, at_zero + (at_two - at_zero) / 2.0 * values, atol=1e-6))

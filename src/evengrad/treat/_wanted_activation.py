"""Which activation a loss asks for: it is tried on numbers in and out of range, and so is its slope."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from evengrad.treat._random_state import random_state_kept

Activation = Literal["softmax", "sigmoid", "log_softmax", "softplus"]

DRAWS = 8
LARGEST_NUMEL = 1_000_000  # of an output; beyond it, two draws are many numbers too
# A loss that holds its input between two numbers has no slope beyond: of numbers of either sign that is half of them.
FLAT_FRAC = 0.25
FAR = 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """An activation, and the dimension of the classes if it is one over classes."""

    to: Activation
    dim: int | None = None


def activation_wanted_by(loss: Callable[[Any, Any], Any], output: Tensor, target: Tensor) -> Wanted | None:
    """Try a loss on random outputs; None where it takes any number, or what it takes is not plain.

    - Log-probabilities: the target names classes, and the loss falls for ever, in proportion to what is added to all
      outputs.
    - Probabilities: the loss does not take numbers of either sign within 0.9, though it takes probabilities, and it
      does not grow with large positive numbers. A softmax where the target names one class each, else a sigmoid.
    - Positive numbers: the loss does not take numbers of either sign within 3, and grows with large positive ones.

    A loss does not take numbers on which it raises or is not finite, or has no slope where it has one in range, while
    it would be lower in range: a hinge has no slope either, but where all is well.

    Args:
        loss: `loss(output, target)`, a scalar.
        output: An output of the model, for its shape, dtype and device.
        target: The target of the same batch.
    """
    with random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dim = class_dim(output, target)
        draws = [_Draw.of(output, dim, seed) for seed in range(DRAWS if output.numel() <= LARGEST_NUMEL else 2)]
        tried = _Tried(loss=loss, target=target, draws=draws, middle=0.5 if dim is None else 1.0 / output.shape[dim])
        if dim is not None and tried.falls_for_ever(torch.log_softmax(draws[0].raw, dim)):
            return Wanted(to="log_softmax", dim=dim)
        if not tried.usable():
            return None
        grows = tried.grows()
        if not grows and not tried.takes([draw.mixed for draw in draws]):
            if dim is not None:
                return Wanted(to="softmax", dim=dim)
            return Wanted(to="sigmoid") if bool(((target >= 0) & (target <= 1)).all()) else None
        if grows and bool((target >= 0).all()) and not tried.takes([draw.raw for draw in draws]):
            return Wanted(to="softplus")
        return None


def class_dim(output: Tensor, target: Tensor) -> int | None:
    """Find the dimension of the output that runs over classes, of which the target names one, or weighs all.

    Example:
        >>> class_dim(torch.zeros(4, 3), torch.tensor([0, 2, 1, 0])), class_dim(torch.zeros(4, 1), torch.zeros(4, 1))
        (1, None)
    """
    dims = [dim for dim in (1, -1) if output.dim() > 1 and output.shape[dim] > 1]
    if target.shape == output.shape:
        shares = target.double()
        one = [dim for dim in dims if torch.allclose(total := shares.sum(dim), torch.ones_like(total), atol=1e-3)]
        return one[0] if one and bool((shares >= 0).all()) else None
    whole = not target.is_floating_point() or torch.equal(target, target.floor())
    named = [dim for dim in dims if _without(output, dim) == tuple(target.shape)]
    named = named or [dim for dim in dims[-1:] if output.numel() == target.numel() * output.shape[dim]]
    return named[0] if named and whole and bool((target < output.shape[named[0]]).all()) else None


def _without(output: Tensor, dim: int) -> tuple[int, ...]:
    sizes = list(output.shape)
    del sizes[dim]
    return tuple(sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draw:
    """Random outputs: probabilities, numbers of either sign within 0.9 and within 3, and from 1.1 to 3."""

    probabilities: Tensor
    mixed: Tensor
    raw: Tensor
    above: Tensor

    @staticmethod
    def of(like: Tensor, dim: int | None, seed: int) -> "_Draw":
        generator = torch.Generator().manual_seed(seed)
        numbers, sizes = (torch.rand(like.shape, generator=generator) for _ in range(2))
        signs = torch.where(numbers < 0.5, -1.0, 1.0)
        raw = 6.0 * numbers - 3.0
        probabilities = torch.sigmoid(raw) if dim is None else torch.softmax(raw, dim)
        made = (probabilities, signs * (0.1 + 0.8 * sizes), raw, 1.1 + 1.9 * sizes)
        inside, mixed, raw, above = (values.to(like) for values in made)
        return _Draw(probabilities=inside, mixed=mixed, raw=raw, above=above)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Tried:
    """A loss with a target, the outputs that it is tried on, and the probability that says nothing."""

    loss: Callable[[Any, Any], Any]
    target: Tensor
    draws: list[_Draw]
    middle: float

    def at(self, values: Tensor) -> tuple[float, Tensor] | None:
        """Return the loss and its slope; None where it raises or one of the two is not finite."""
        leaf = values.detach().clone().requires_grad_()
        try:
            with torch.enable_grad():
                value = self.loss(leaf, self.target)
                (slope,) = torch.autograd.grad(value, leaf)
        except Exception:  # user code: that it raises is the answer
            return None
        value = value.detach()
        finite = bool(torch.isfinite(value)) and bool(torch.isfinite(slope).all())
        return (float(value), slope) if finite else None

    def usable(self) -> bool:
        """Tell whether the loss takes probabilities: it is finite and has a slope."""
        inside = [self.at(draw.probabilities) for draw in self.draws]
        return all(one is not None and bool(one[1].any()) for one in inside)

    def takes(self, outside: list[Tensor]) -> bool:
        """Compare the slope at each draw with that at its probabilities."""
        active = flat = 0
        gain = 0.0
        for draw, values in zip(self.draws, outside, strict=True):
            there, inside = self.at(values), self.at(draw.probabilities)
            if there is None:
                return False
            if inside is None:
                return True  # not known
            lost = (there[1] == 0) & (inside[1] != 0)
            active, flat = active + int((inside[1] != 0).sum()), flat + int(lost.sum())
            back = self.at(torch.where(lost, self.middle, values))
            gain += 0.0 if back is None else there[0] - back[0]
        return flat < FLAT_FRAC * active or gain <= 0.0

    def grows(self) -> bool:
        """Tell whether numbers above 1 are taken, and the loss is larger at a thousand times as much."""
        above = [draw.above for draw in self.draws]
        if not self.takes(above):
            return False
        near, far = self.at(above[0]), self.at(FAR * above[0])
        return near is not None and far is not None and far[0] > near[0] + 1e-3 * abs(near[0])

    def falls_for_ever(self, values: Tensor) -> bool:
        """Tell whether the loss falls in proportion to what is added to all outputs."""
        less, here, more = (self.at(values + shift) for shift in (-FAR, 0.0, FAR))
        if less is None or here is None or more is None:
            return False
        fall = (less[0] - more[0]) / 2
        return fall > 1e-3 and abs((less[0] + more[0]) / 2 - here[0]) <= 1e-2 * fall

"""Bringing weights back within a bound, and the same as code."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evengrad.treat._draws import Transposed, is_feedforward
from evengrad.treat._recurrent_draws import Recurrent

Per = Literal["unit", "tensor", "spectral"]
# Power iteration from one fixed vector: each round multiplies with the weight and with its transpose.
ROUNDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounded:
    """One weight that is held.

    Args:
        name: Its dotted name.
        weight: The parameter.
        groups: Groups of a transposed convolution, whose units are not the first dimension; 0 for all others.
    """

    name: str
    weight: Tensor
    groups: int

    def blocks(self) -> tuple[Tensor, list[int]]:
        """View the weight so that its units have dimensions of their own, and return which the others are."""
        view = self.weight.unflatten(0, (self.groups, -1)) if self.groups else self.weight
        return view, [dim for dim in range(1, view.dim()) if not (self.groups and dim == 2)]

    def matrix(self) -> Tensor:
        """Return units by inputs, in float32 at least."""
        view, _ = self.blocks()
        rows = view.movedim(2, 1).flatten(0, 1) if self.groups else view
        return rows.flatten(1).to(_precision(self.weight))


def bounded_weights(model: nn.Module) -> list[Bounded]:
    """List the weights of dense, convolutional, recurrent and attention layers; tied ones once, embeddings never."""
    seen = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for weight in module.parameters(recurse=False)
    }
    found = []
    for name, module in model.named_modules():
        if not (is_feedforward(module) or isinstance(module, Recurrent | nn.MultiheadAttention)):
            continue
        if parametrize.is_parametrized(module):
            continue
        for key, weight in module.named_parameters(prefix=name, recurse=False):
            # attention may have a bias_k and a bias_v, of three dimensions
            fits = weight.dim() > 1 and weight.is_floating_point() and "bias" not in key.rpartition(".")[2]
            if fits and id(weight) not in seen:
                seen.add(id(weight))
                found.append(
                    Bounded(name=key, weight=weight, groups=module.groups if isinstance(module, Transposed) else 0)
                )
    return found


@torch.no_grad()
def bound_(model: nn.Module, *, max_norm: float, per: Per) -> None:
    """Scale weights that are past the bound back to it, in place; those within it stay to the bit."""
    for one in bounded_weights(model):
        view, inside = one.blocks()
        most, precision = max_norm, _precision(one.weight)
        if per == "spectral":
            norm = spectral_norm(one.matrix())
        elif per == "tensor":
            norm = torch.linalg.vector_norm(one.weight, dtype=precision)
            most = max_norm * one.matrix().shape[0] ** 0.5
        else:
            norm, most = (
                torch.linalg.vector_norm(view, dim=inside, keepdim=True, dtype=_precision(one.weight)),
                max_norm,
            )
        # what was brought back is at the bound but for rounding, and must not be scaled again
        slack = max(16 * torch.finfo(torch.float32).eps, torch.finfo(one.weight.dtype).eps)
        view.mul_(torch.where(norm > most * (1 + slack), most / norm, torch.ones_like(norm)))


def spectral_norm(matrix: Tensor) -> Tensor:
    """Estimate the largest singular value from below, by power iteration from a fixed vector.

    Example:
        >>> round(float(spectral_norm(torch.diag(torch.tensor([1.0, 3.0, 2.0])))), 3)
        3.0
    """
    # the fractional parts of multiples of the golden ratio: spread evenly, and orthogonal to nothing in particular
    steps = torch.arange(1, matrix.shape[1] + 1, device=matrix.device, dtype=matrix.dtype)
    vector = (steps * 0.6180339887498949).frac() - 0.5
    for _ in range(ROUNDS):
        vector = nn.functional.normalize(matrix.T @ nn.functional.normalize(matrix @ vector, dim=0), dim=0)
    norm: Tensor = torch.linalg.vector_norm(matrix @ vector)
    return norm


def _precision(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


_HEAD = """\
# after every optimizer.step(); groups: those of a transposed convolution, else 0
with torch.no_grad():
    for name, groups in {pairs!r}:
        weight = model.get_parameter(name)
        view = weight.unflatten(0, (groups, -1)) if groups else weight
"""
_UNITS = """\
        dims = [dim for dim in range(1, view.dim()) if not (groups and dim == 2)]
        norm = torch.linalg.vector_norm(view.float(), dim=dims, keepdim=True)
        view.mul_(({max_norm!r} / norm).clamp(max=1.0))"""
_TENSOR = """\
        units = groups * view.shape[2] if groups else view.shape[0]
        norm = torch.linalg.vector_norm(weight.float())
        weight.mul_(({max_norm!r} * units**0.5 / norm).clamp(max=1.0))"""
_SPECTRAL = """\
        matrix = (view.movedim(2, 1).flatten(0, 1) if groups else view).flatten(1).float()
        vector = (torch.arange(1, matrix.shape[1] + 1, device=weight.device) * 0.6180339887498949).frac() - 0.5
        for _ in range(10):  # power iteration
            vector = nn.functional.normalize(matrix @ vector, dim=0)
            vector = nn.functional.normalize(matrix.T @ vector, dim=0)
        weight.mul_(({max_norm!r} / (matrix @ vector).norm()).clamp(max=1.0))"""

BOUND_CODE: dict[Per, str] = {"unit": _HEAD + _UNITS, "tensor": _HEAD + _TENSOR, "spectral": _HEAD + _SPECTRAL}

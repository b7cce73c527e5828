"""Clip every unit's gradient by the norm of its own weights: adaptive gradient clipping (AGC)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evengrad.clip._settings import positive, true_or_false
from evengrad.clip.transforms._gradients import values_
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target
from evengrad.clip.transforms._units import ROWS, WHOLE, alike, chosen, cut, patterns, way
from evengrad.measure import Cut, scale_units_, unit_norms
from evengrad.nouns import SettingError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByUnitWeightNorm(AbstractTransform):
    """Clip the gradient g of every unit to `clip_factor * max(|w|, eps)`, w the unit's weights, |.| Euclidean.

    A unit is what makes one output: a row of a linear weight, an embedding, an attention in-projection or a recurrent
    gate; a filter of a convolution, grouped or not; of a transposed convolution an output channel of its group, which
    lies in the second dimension; a column of the `Conv1D` of transformers. A bias, a gain, all that a norm layer owns
    and a single number is one unit as a whole.

    A unit whose weights are 0 may still move, by `clip_factor * eps` times the learning rate under SGD. A gradient of 0
    stays 0. A unit whose gradient or weight norm is not finite (a float32 norm above 1.8e19 is not) is left as it is.
    Norms are taken in float32 whatever the dtype, so that float16 does not overflow. Of a sparse gradient the rows that
    are there are clipped. Sizes of complex numbers count.

    Args:
        clip_factor: The largest ratio of gradient to weight norm, positive. 0.01 is the paper's at batches of 4,096;
            smaller batches take more, up to 0.16.
        eps: The least weight norm that is reckoned with, positive. 0.1 is a sixth of what a unit's norm is by torch's
            default initialisation, whatever its size. With the paper's 1e-3 a unit that starts at 0 takes ten thousand
            steps of SGD to get away from there.
        exclude_head: Leave the output layer alone, as the paper does.
        exclude: Names of parameters to leave alone; `*` stands for anything: `("head.*", "*.bias")`.

    Raises:
        SettingError: A setting is out of range. While training: a sparse gradient whose units are not its rows.

    Cost: One read of gradients and weights; a read and a write more of the tensors that are clipped (on an accelerator
    of all of them, since looking would wait). On a CPU, measured: 1.2 to 1.8 of one `clip_grad_norm_`, 1.9 to
    2.8 of it where most units are columns.

    Example:
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> layer.weight.grad = torch.tensor([[0.6, 0.8], [0.0, 2.0]])
        >>> optimizer = torch.optim.SGD(layer.parameters())
        >>> target = Target(name="weight", parameter=layer.weight, module=layer, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> ByUnitWeightNorm(clip_factor=0.1).before_([target], {})
        {}
        >>> layer.weight.grad
        tensor([[0.3000, 0.4000],
                [0.0000, 0.0100]])

    Source: Brock et al., 2021, High-Performance Large-Scale Image Recognition Without Normalization, arXiv:2102.06171,
    equation 3. Differs in `eps`, so that a start at 0 freezes nothing; in the units of what is not a linear layer or a
    convolution, which other implementations cut along the first dimension; and in having no second epsilon (1e-6 under
    the gradient's norm in others, which acts only where `clip_factor * eps` is below it).
    """

    clip_factor: float = 0.01
    eps: float = 0.1
    exclude_head: bool = True
    exclude: tuple[str, ...] = ()

    needs_host: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("clip_factor", self.clip_factor)
        positive("eps", self.eps)
        true_or_false("exclude_head", self.exclude_head)
        patterns(self.exclude)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Clip the gradients."""
        targets = chosen(targets, self.exclude, exclude_head=self.exclude_head)
        sparse = [one for one in targets if one.parameter.grad is not None and one.parameter.grad.is_sparse]
        for target in sparse:
            _check_sparse(target)
        for group in alike(targets, gradients=True):
            weights = unit_norms([target.parameter for target in group.targets], group.cut)
            scale_units_(group.tensors, self._scales(unit_norms(group.tensors, group.cut), weights), group.cut)
        for target in sparse:
            self._clip_sparse_(target)
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory

    def _scales(self, grads: Tensor, weights: Tensor) -> Tensor:
        limits = weights.clamp_(min=self.eps).mul_(self.clip_factor).to(grads.dtype)
        too_long = (grads > limits) & (grads < torch.inf)
        return torch.where(too_long, limits / grads, 1.0)

    def _clip_sparse_(self, target: Target) -> None:
        """Clip the rows of a sparse gradient; a row may be in several pieces, if it is sparse in itself."""
        values = values_(target)
        grad = target.parameter.grad
        if values is None or grad is None:
            return
        rows = grad.indices()[0] if way(target) == ROWS else torch.zeros_like(grad.indices()[0])
        units = cut(target.parameter.shape, way(target))
        pieces = unit_norms([values], Cut((len(values), 1, 1, values.numel() // len(values))))[0]
        squares = torch.zeros(units.units, dtype=pieces.dtype, device=pieces.device)
        norms = squares.index_add_(0, rows, pieces * pieces).sqrt_()
        scales = self._scales(norms, unit_norms([target.parameter], units)[0])
        values.mul_(scales[rows].view(-1, *(1,) * (values.dim() - 1)))


def _check_sparse(target: Target) -> None:
    if way(target) not in (ROWS, WHOLE):
        advice = "exclude it"
        raise SettingError(target.name, came="a sparse gradient", wanted="a dense one for this layer", advice=advice)

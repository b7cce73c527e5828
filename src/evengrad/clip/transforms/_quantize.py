"""Round the gradients to a few levels, and remember what rounding took away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evengrad.clip._settings import true_or_false, whole
from evengrad.clip.transforms._generator import Draws, first, next_, steps
from evengrad.clip.transforms._gradients import refuse_sparse, values_
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target
from evengrad.nouns import SettingError

_ERROR = "error:"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Quantize(AbstractTransform):
    """Round every element to one of 2 s + 1 levels, s = 2^(bits - 1) - 1, evenly from -M to M, M the tensor's largest.

    With `stochastic` the neighbour above is taken as often as the element is near it, so that the mean is right:
    unbiased. With `error_feedback` what rounding took away is added to the next gradient, so that nothing is lost for
    long: what was sent plus the error in memory is the sum of all gradients. With one bit the levels are two: the sign
    times the mean magnitude; stochastic, plus or minus M.

    A tensor of zeros stays so. One with an element that is not finite passes as it is and leaves the error as it was;
    so does a parameter that has no gradient. Real and imaginary parts are rounded each for itself. The gradient keeps
    its dtype: this simulates compression, and nothing is sent. Random numbers come from a generator of its own, as
    those of `AddNoise` do.

    Args:
        bits: Per element, 1 to 16.
        stochastic: Round at random instead of to the nearest. Needs three bits with `error_feedback`: below, the
            error can be as large as the tensor's largest element, and would grow from step to step.
        error_feedback: Remember the rounding error.
        seed: A whole number from 0.

    Raises:
        SettingError: A setting is out of range, or they do not go together. While training: a sparse gradient.

    Cost: About eight passes over the gradients. With `error_feedback` one float32 number per element in memory and in
    the checkpoint (float64 for float64), twice that during the step.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(4))
        >>> parameter.grad = torch.tensor([0.0, 0.4, -0.6, 1.0])
        >>> optimizer = torch.optim.SGD([parameter])
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> quantize = Quantize(bits=2, stochastic=False)
        >>> memory = quantize.before_([target], quantize.init([target]))
        >>> parameter.grad, memory["error:a"]
        (tensor([ 0.,  0., -1.,  1.]), tensor([0.0000, 0.4000, 0.4000, 0.0000]))

    Source: Alistarh et al., 2017, QSGD, arXiv:1610.02132, section 3 (with the largest element for the norm, as its
    section 4 has it); Seide et al., 2014, 1-Bit Stochastic Gradient Descent, and Karimireddy et al., 2019, Error
    Feedback Fixes SignSGD, arXiv:1901.09847, for the error and for one bit. Differs in that the tensor, not a bucket of
    512 elements, shares a scale.
    """

    bits: int = 8
    stochastic: bool = True
    error_feedback: bool = True
    seed: int = 0

    needs_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("bits", self.bits, most=16)
        true_or_false("stochastic", self.stochastic)
        true_or_false("error_feedback", self.error_feedback)
        whole("seed", self.seed, least=0, most=2**63)
        if self.stochastic and self.error_feedback and self.bits < 3:
            raise SettingError(
                "bits",
                came=repr(self.bits),
                wanted="3 or more with stochastic=True and error_feedback=True",
                advice="turn one of the two off: the error would grow without bound",
            )

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember how many steps went by, and an error of 0 for every element."""
        if not self.error_feedback:
            return first()
        return first() | {_ERROR + target.name: _no_error(target.parameter) for target in targets}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Round the gradients."""
        refuse_sparse(self, targets)
        draws = Draws(type(self).__name__, self.seed, steps(memory))
        result = next_(memory)
        for target in targets:
            grad = values_(target)
            if grad is None:
                continue
            wanted, key = _wide(grad), _ERROR + target.name
            if self.error_feedback:
                error = result[key] if key in result else _no_error(target.parameter)
                error = error.to(wanted.device)
                wanted = wanted + error
            finite = wanted.abs().amax().isfinite()
            sent = torch.where(finite, self._rounded(wanted, draws, grad.dtype), wanted)
            if self.error_feedback:
                result[key] = torch.where(finite, wanted.sub_(sent), error)
            grad.copy_(sent)
        return result

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory

    def _rounded(self, wanted: Tensor, draws: Draws, dtype: torch.dtype) -> Tensor:
        """Round to the levels, then to what the gradient's dtype holds."""
        largest = wanted.abs().amax()
        unit = wanted / torch.where(largest > 0, largest, 1.0)
        if self.bits > 1:
            s = 2 ** (self.bits - 1) - 1
            scaled = unit.mul_(s)
            levels = scaled.add_(draws.uniform(scaled)).floor_() if self.stochastic else scaled.round_()
            result = levels.div_(s).mul_(largest)
        elif self.stochastic:
            up = draws.uniform(unit) * 2 - 1 < unit
            result = torch.where(up, largest, -largest)
        else:
            result = wanted.sign() * wanted.abs().mean()
        most = torch.finfo(dtype).max
        return result.clamp_(-most, most).to(dtype).to(wanted.dtype)


def _wide(grad: Tensor) -> Tensor:
    return grad.to(torch.float64 if grad.dtype == torch.float64 else torch.float32)


def _no_error(parameter: Tensor) -> Tensor:
    """Make an error of 0 in the shape of the gradient's numbers."""
    like = torch.view_as_real(parameter) if parameter.is_complex() else parameter
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.zeros_like(like, dtype=wide, memory_format=torch.contiguous_format)

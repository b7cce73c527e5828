"""Clip elements that stand out against Adam's second moment, and let Adam forget from time to time: SPAM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evengrad.clip._settings import positive, true_or_false, whole
from evengrad.clip.transforms._adam import LARGEST, MEAN, SQUARES, STEP, real, refuse_others, state_of
from evengrad.clip.transforms._generator import first, next_, steps
from evengrad.clip.transforms._gradients import refuse_sparse, values_
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target

_LEAST = 0.01  # the learning rate's factor at a reset; the reference's
_SEEN = "seen:"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SpikeAware(AbstractTransform):
    """Bring an element g with g^2 > threshold * v down to sign(g) * sqrt(threshold * v); now and then reset Adam.

    v is Adam's second moment of that element before the step. Every `reset_steps` steps the first and second moments
    are set to 0, so that a spike that went through is forgotten; then the learning rate starts anew from a hundredth
    and rises for `warmup_steps` steps along a cosine. Nothing is clipped in the `wait_steps` steps after a reset, or
    after a parameter's first gradient, while v is not yet worth comparing with. A skipped step does not count.

    Elements whose v is 0 (a token or an expert that was never used) are not clipped. NaN stays NaN; infinity is clipped
    like any spike.

    Args:
        threshold: How many times v a squared element may be, positive. 5000 is the paper's choice, 70 deviations.
        reset_steps: Steps from one reset to the next, positive; 500 is the paper's choice.
        warmup_steps: Steps until the learning rate is back, at least 0, less than `reset_steps`; the paper's 150.
        wait_steps: Steps without clipping, at least 1, less than `reset_steps`; 20 is the reference's.
        reset_count: Set Adam's own step count back too, so that its bias correction starts anew.

    Raises:
        SettingError: A setting is out of range. While training: a sparse gradient.
        OptimizerError: The optimizer is not torch's Adam or AdamW.

    Cost: Four reads and a write of gradient and second moment; the counts are in host memory.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.AdamW([parameter])
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> spam = SpikeAware(wait_steps=1)
        >>> memory = spam.init([target])
        >>> for size in (1.0, 1000.0):
        ...     parameter.grad = torch.tensor([size])
        ...     memory = spam.before_([target], memory)
        ...     optimizer.step()
        >>> round(float(parameter.grad), 3)  # sqrt(5000 * 0.001)
        2.236

    Source: Huang et al., 2025, SPAM: Spike-Aware Adam with Momentum Reset, arXiv:2501.06842, algorithm 1, and its
    code. Differs where it does harm: there an element with v = 0 is clipped to 0, so that v stays 0 and it cannot move
    until the next reset; and Adam's step count runs on after a reset (`reset_count=False` here), so that the moments
    are not corrected for starting at 0 and the first steps are up to 3.2 times too long, for which the learning rate's
    warm-up has to make up. Parameters that come late wait too. Weight decay follows the learning rate of the warm-up.
    """

    threshold: float = 5000.0
    reset_steps: int = 500
    warmup_steps: int = 150
    wait_steps: int = 20
    reset_count: bool = True

    needs_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("threshold", self.threshold)
        whole("reset_steps", self.reset_steps, least=2)
        whole("warmup_steps", self.warmup_steps, least=0, most=self.reset_steps - 1)
        whole("wait_steps", self.wait_steps, most=self.reset_steps - 1)
        true_or_false("reset_count", self.reset_count)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember how many steps went by, and later at which step each parameter had its first gradient."""
        refuse_others(self, targets)
        return first()

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Clip spikes; at a reset set the moments to 0; after one lower the learning rate."""
        refuse_sparse(self, targets)
        result = next_(memory)
        now = steps(result)
        since = now % self.reset_steps if now >= self.reset_steps else None  # None: there was no reset yet
        if since == 0:
            self._reset(targets)
        for target in targets:
            grad = values_(target)
            if grad is None:
                continue
            key = _SEEN + target.name
            seen = result.get(key)
            result[key] = torch.full((1,), now, dtype=torch.int64) if seen is None else seen.cpu()
            age = now - int(result[key].item()) + 1
            state = state_of(target)
            if state is not None and min(age, age if since is None else since) >= self.wait_steps:
                _clip_(grad, real(state[SQUARES]), self.threshold)
        if since is not None and since < self.warmup_steps:
            _lower(targets, _LEAST + (1 - _LEAST) * (1 - math.cos(math.pi * since / self.warmup_steps)) / 2)
        return result

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory

    def _reset(self, targets: Sequence[Target]) -> None:
        for target in targets:
            state = state_of(target) or {}
            for name in (MEAN, SQUARES, LARGEST, *((STEP,) if self.reset_count else ())):
                if name in state:
                    state[name].zero_()  # in place: fused and captured steps keep the tensor


def _clip_(grad: Tensor, squares: Tensor, threshold: float) -> None:
    known = squares.float() if squares.dtype in (torch.float16, torch.bfloat16) else squares
    bound = (known.sqrt() * threshold**0.5).masked_fill_(known == 0, torch.inf).to(grad.dtype)
    grad.copy_(torch.clamp(grad, -bound, bound))


def _lower(targets: Sequence[Target], factor: float) -> None:
    groups = {id(target.group): target.group for target in targets}
    for group in groups.values():
        group["lr"] = group["lr"] * factor

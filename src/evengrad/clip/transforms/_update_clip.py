"""Shorten Adam's update where the gradient outgrows the second moment: StableAdamW."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim import AdamW

from evengrad.clip._settings import positive
from evengrad.clip.transforms._adam import MEAN, SQUARES, STEP, correction, real, refuse_others, state_of
from evengrad.clip.transforms._gradients import refuse_sparse, single
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target
from evengrad.nouns import OptimizerError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateClip(AbstractTransform):
    """Divide the update of each tensor, weight decay included, by max(1, RMS): AdamW becomes StableAdamW.

    RMS = sqrt(mean(g^2 / max(v, eps^2))), with v the corrected second moment after this gradient has entered: about 1
    while the gradient is what v knows, large while v lags behind, which is where loss spikes come from. AdamW is
    left to make its step, then the part beyond is taken back; so fused and foreach steps stay as they are. The bound of
    the reach of v, 1 / sqrt(1 - beta2), is also that of RMS: 32 at 0.999, 10 at 0.99, which the paper recommends.

    A tensor whose RMS is at most 1 is not touched. Gradients of 0 give 0. In half precision the weight is rounded once
    more. Wants the gradients to be still there after the step, and the learning rate of the step in its group.

    Args:
        eps: The least root of v, positive; None for the optimizer's own.

    Raises:
        SettingError: `eps` is not a positive number. While training: a sparse gradient.
        OptimizerError: The optimizer is not torch's AdamW (or Adam without weight decay), or has `amsgrad`.

    Cost: Two reads of gradient and second moment; for the tensors whose RMS is above 1 (on an accelerator for all,
    since looking would wait) about ten passes over weight and moments. No memory between steps.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=(0.0, 0.5), weight_decay=0.0)
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> for size in (1e-3, 1e3):
        ...     parameter.grad = torch.tensor([size])
        ...     optimizer.step()
        ...     with torch.no_grad():
        ...         memory = UpdateClip().after_([target], {})
        >>> round(parameter.item(), 4)  # -1 at the first step, which is no spike, and -1.2247 / 1.2247 at the second
        -2.0

    Source: Wortsman et al., 2023, Stable and Low-Precision Training for Large-Scale Vision-Language Models,
    arXiv:2304.13013, algorithm 2; after Shazeer and Stern, 2018, Adafactor, arXiv:1804.04235, section 6.
    """

    eps: float | None = None

    needs_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.eps is not None:
            positive("eps", self.eps)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        refuse_others(self, targets)
        for target in targets:
            _check(target)
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the gradients alone."""
        refuse_sparse(self, targets)
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Take back what is too much of the update."""
        for target in targets:
            grad, state = target.parameter.grad, state_of(target)
            if grad is None or state is None or not grad.numel():
                continue
            rms = self._rms(real(grad.resolve_conj()), state, target.group)
            part = 1.0 - 1.0 / rms.clamp(min=1.0)
            if part.device.type != "cpu" or bool(part != 0):  # host memory: reading it waits for nothing
                _take_back_(target, state, part)
        return memory

    def _rms(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        squares = single(real(state[SQUARES])) / correction(state[STEP], float(group["betas"][1]))
        eps = group["eps"] if self.eps is None else self.eps
        least = max(float(eps) ** 2, torch.finfo(squares.dtype).tiny)
        return (single(grad).square() / squares.clamp_(min=least)).mean().sqrt()


def _check(target: Target) -> None:
    group = target.group
    decay_in_gradient = group.get("weight_decay") and not (
        isinstance(target.optimizer, AdamW) or group.get("decoupled_weight_decay")
    )
    if group.get("amsgrad") or decay_in_gradient:
        raise OptimizerError(
            UpdateClip.__name__,
            came=f"{type(target.optimizer).__name__} with "
            + ("amsgrad=True" if group.get("amsgrad") else "weight decay in the gradient"),
            wanted="torch.optim.AdamW without amsgrad",
        )


def _take_back_(target: Target, state: dict[str, Any], part: Tensor) -> None:
    """Undo a part of AdamW's step `w = w_old * (1 - lr * decay) - lr * update`."""
    group, weight = target.group, real(target.parameter)
    lr, decay = group["lr"], group["weight_decay"]
    mean, squares = single(real(state[MEAN])), single(real(state[SQUARES]))
    step, (beta1, beta2) = state[STEP], (float(beta) for beta in group["betas"])
    root = (squares / correction(step, beta2)).sqrt_().add_(group["eps"])
    update = (mean / correction(step, beta1)).div_(root).mul_(lr)
    if decay:
        update.add_((single(weight) + update) * (lr * decay / (1.0 - lr * decay)))
    weight.copy_(single(weight) + update.mul_(part))

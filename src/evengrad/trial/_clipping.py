"""A clip policy in a trial: asked with all that it needs, and applied as the guard would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from evengrad.clip import Signals, State, policy_of
from evengrad.measure import Norms, scale_, scale_each_


@final
class Clipping:
    """Lets a policy decide each step, and scales the gradients.

    Args:
        clip: A policy or a number; None does nothing.
        parameters: What is clipped.
        optimizer: Whose learning rate the policy is told, if it is SGD.
    """

    def __init__(self, clip: Any, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        self._policy = None if clip is None else policy_of(clip)
        self._parameters = list(parameters)
        self._optimizer = optimizer
        if self._policy is None:
            return
        self._state: State = self._policy.init(len(self._parameters))
        norm_type = float(getattr(self._policy, "norm_type", 2.0))
        self._norms = None if norm_type == 2.0 else Norms(self._parameters, norm_type=norm_type)
        weighs = "weight_norms_P" in self._policy.needs
        self._weights = Norms(self._parameters, weights=True) if weighs else None
        self._sizes = np.array([parameter.numel() for parameter in self._parameters], dtype=np.float32)

    def clip_(self, norms: np.ndarray, loss: float) -> tuple[float, bool]:
        """Clip; give the factor (the smallest of several) and whether the step is to be skipped.

        Args:
            norms: The Euclidean norm of each gradient.
            loss: Of the step.
        """
        if self._policy is None:
            return 1.0, False
        measured = norms if self._norms is None else self._norms.on_host()
        decision = self._policy(measured, self._state, self._signals(loss))
        self._state = decision.state
        scales, skipped = [float(scale) for scale in decision.scale], bool(decision.skip[0])
        if skipped:
            return 1.0, True
        grads: list[Tensor | None] = [parameter.grad for parameter in self._parameters]
        if len(scales) > 1:
            scale_each_(grads, scales)
        elif scales[0] != 1.0:
            scale_(grads, scales[0])
        return min(scales), False

    def _signals(self, loss: float) -> Signals:
        lrs = [float(group["lr"]) for group in self._optimizer.param_groups if type(self._optimizer) is SGD]
        with np.errstate(over="ignore"):  # a loss that is too large for float32 is infinite
            return Signals(
                loss=np.array([loss], dtype=np.float32),
                lr=np.array([max(lrs, default=0.0)], dtype=np.float32),
                sizes_P=self._sizes,
                weight_norms_P=None if self._weights is None else self._weights.on_host(),
            )

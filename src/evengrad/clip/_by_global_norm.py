"""Clip by the norm of all gradients together, at a fixed threshold."""

from dataclasses import KW_ONLY, dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._settings import positive
from evengrad.clip._total import bounded, total
from evengrad.nouns import SettingError

_EPS = 1e-6  # torch's own, so that thresholds mean the same


@final
@dataclass(frozen=True, slots=True)
class ByGlobalNorm(AbstractPolicy):
    """Scale all gradients by min(1, max_norm / (N + 1e-6)), N their norm together: torch's `clip_grad_norm_`.

    Unlike torch's, a step whose norm is not finite is skipped instead of filling every gradient with NaN or 0. A norm
    of 0 is left alone.

    Args:
        max_norm: The threshold, positive; `math.inf` never clips but still skips.
        norm_type: Which p-norm, at least 1; `math.inf` for the largest element. It is also the norm of each gradient
            that the policy is to be handed. Torch takes numbers below 1 too; those are no norms: 0 counts the elements
            that are not 0, so that NaN passes for one, and negative ones find infinity small.

    Raises:
        SettingError: The threshold is not positive, or the norm is none.

    Cost: About twelve operations on vectors of P numbers: 0.02 ms in NumPy.

    Example:
        >>> import numpy as np
        >>> decision = ByGlobalNorm(1.0)(np.array([3.0, 4.0], dtype=np.float32), {})
        >>> float(decision.norm[0]), round(float(decision.scale[0]), 4), bool(decision.skip[0])
        (5.0, 0.2, False)

    Source: Pascanu, Mikolov and Bengio, 2013, arXiv:1211.5063, algorithm 1.
    """

    max_norm: float
    _: KW_ONLY
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        positive("max_norm", self.max_norm, infinite=True)
        number = isinstance(self.norm_type, int | float) and not isinstance(self.norm_type, bool)
        if not number or not self.norm_type >= 1:
            raise SettingError(
                "norm_type",
                came=repr(self.norm_type),
                wanted="a number of at least 1, or math.inf",
                advice="below 1 it is no norm: 0 hides NaN, negative ones hide infinity",
            )

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: there is none."""
        return {}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P, self.norm_type)
        finite = xp.isfinite(norm)
        return Decision(norm=norm, scale=bounded(xp, norm + _EPS, self.max_norm, finite), skip=~finite, state=state)

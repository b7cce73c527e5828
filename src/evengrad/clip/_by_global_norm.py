"""Clip by the norm of all gradients together, at a fixed threshold."""

from dataclasses import KW_ONLY, dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._settings import positive
from evengrad.clip._total import total_norm
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
        norm_type: Only 2.0, the Euclidean norm, which is what is measured.

    Raises:
        SettingError: The threshold is not positive, or the norm is not the Euclidean one.

    Cost: About fifteen operations on vectors of P numbers.

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
        if self.norm_type not in (2, 2.0):
            raise SettingError(
                "norm_type", came=repr(self.norm_type), wanted="2.0", advice="only the Euclidean norm is supported"
            )

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: there is none."""
        return {}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total_norm(norms_P)
        finite = xp.isfinite(norm)
        one = xp.ones_like(norm)
        bound = self.max_norm / (xp.where(finite, norm, one) + _EPS)
        return Decision(norm=norm, scale=xp.where(finite & (bound < 1.0), bound, one), skip=~finite, state=state)

"""Give the gradient the same norm at every step."""

from dataclasses import dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._settings import positive
from evengrad.clip._total import total

_MOST = 1e30  # a scale above would not be finite
_SMALLEST = 1e-37


@final
@dataclass(frozen=True, slots=True)
class NormalizedGradient(AbstractPolicy):
    """Scale all gradients by norm / N, N their norm together: only the direction is left.

    Small gradients are made larger, so near a minimum it does not settle unless the learning rate falls. A step whose
    norm is not finite is skipped. A norm of 0 is left alone. No scale is above 1e30.

    Args:
        norm: The norm that every gradient gets, positive.

    Raises:
        SettingError: The norm is not positive.

    Cost: About thirteen operations on vectors of P numbers: 0.02 ms in NumPy.

    Example:
        >>> import numpy as np
        >>> decision = NormalizedGradient(10.0)(np.array([3.0, 4.0], dtype=np.float32), {})
        >>> float(decision.scale[0])
        2.0

    Source: Hazan, Levy and Shalev-Shwartz, 2015, arXiv:1507.02030, algorithm 1. optax's `normalize_by_update_norm`
    adds 1e-6 to the norm; here nothing is added, so that tiny gradients get the norm too.
    """

    norm: float = 1.0

    def __post_init__(self) -> None:
        positive("norm", self.norm)

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: there is none."""
        return {}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        finite = xp.isfinite(norm)
        least = max(self.norm / _MOST, _SMALLEST)
        size = xp.where(norm > least, norm, least)
        scale = xp.where(finite & (norm > 0.0), self.norm / size, 1.0)
        return Decision(norm=norm, scale=scale, skip=~finite, state=state)

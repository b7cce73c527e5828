"""Skip steps that are not finite, and never clip."""

from dataclasses import dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._total import total


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SkipNonFinite(AbstractPolicy):
    """Skip a step whose gradient is not finite; let every other one through as it is.

    Every other policy skips such steps too. A gradient whose norm is above 3.4e38 is one of them.

    Cost: About ten operations on vectors of P numbers: 0.015 ms in NumPy.

    Example:
        >>> import numpy as np
        >>> decision = SkipNonFinite()(np.array([1.0, np.nan], dtype=np.float32), {})
        >>> bool(decision.skip[0]), decision.scale.tolist()
        (True, [1.0])

    Source: Micikevicius et al., 2018, Mixed Precision Training, arXiv:1710.03740, section 3.2 (torch's GradScaler);
    here without a loss scale, for any precision.
    """

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: there is none."""
        return {}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        return Decision(norm=norm, scale=xp.ones_like(norm), skip=~xp.isfinite(norm), state=state)

"""Bound the norm of all gradients together without a kink."""

from dataclasses import KW_ONLY, dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._settings import one_of, positive
from evengrad.clip._total import total

_MOST = 1e30  # a norm of more bounds is taken for this, so that nothing overflows
_LARGEST = 3e38


@final
@dataclass(frozen=True, slots=True)
class BySmoothNorm(AbstractPolicy):
    """Scale all gradients so that their norm N together becomes c * N / (c + N), or c * tanh(N / c), c = max_norm.

    The norm stays below c and grows with N everywhere, so the order of gradients is kept, which a hard bound loses.
    The price: every gradient is scaled, a small one by about 1 - N / c ("hyperbolic") or 1 - (N / c)^2 / 3 ("tanh"). A
    step whose norm is not finite is skipped. A norm of 0 is left alone.

    Args:
        max_norm: The bound c, positive.
        form: "hyperbolic", or "tanh", which leaves small gradients almost alone.

    Raises:
        SettingError: The bound is not positive, or the form is another.

    Cost: About fifteen operations on vectors of P numbers: 0.02 ms in NumPy.

    Example:
        >>> import numpy as np
        >>> decision = BySmoothNorm(2.0)(np.array([3.0, 4.0], dtype=np.float32), {})
        >>> round(float(decision.scale[0] * decision.norm[0]), 4)
        1.4286

    Source: Zhang, He, Sra and Jadbabaie, 2020, arXiv:1905.11881: descent with g / (|g| + c) is clipping but for a
    constant between 1/2 and 1. The tanh form is ours: it is to the norm what tanh is to an element.
    """

    max_norm: float
    _: KW_ONLY
    form: str = "hyperbolic"

    def __post_init__(self) -> None:
        positive("max_norm", self.max_norm)
        one_of("form", self.form, ("hyperbolic", "tanh"))

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: there is none."""
        return {}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        finite = xp.isfinite(norm)
        most = min(self.max_norm * _MOST, _LARGEST)
        size = xp.where(norm < most, norm, most) / self.max_norm
        if self.form == "tanh":
            visible = size > 1e-4  # below, tanh is the identity in float32
            size = xp.where(visible, size, 1.0)
            scale = xp.where(visible, xp.tanh(size) / size, 1.0)
        else:
            scale = 1.0 / (1.0 + size)
        return Decision(norm=norm, scale=xp.where(finite, scale, 1.0), skip=~finite, state=state)

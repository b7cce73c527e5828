"""Clip each gradient by the root mean square of its elements."""

from dataclasses import dataclass
from typing import ClassVar, final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._settings import handed, positive
from evengrad.clip._total import bounded, total


@final
@dataclass(frozen=True, slots=True)
class ByBlockRms(AbstractPolicy):
    """Scale each gradient by 1 / max(1, rms / max_rms), rms = n / sqrt(size) that of its elements.

    The threshold is for an element, so that it holds for large and small tensors, and for models of any width, alike.
    A step in which any norm is not finite is skipped as a whole. A gradient of 0, or of a tensor without elements, is
    left alone.

    Args:
        max_rms: The threshold, positive. 1.0 is what Adafactor uses, where it bounds the update, whose size is known;
            gradients may want less.

    Raises:
        SettingError: The threshold is not positive, or, when called, nobody handed the sizes over.

    Cost: About fourteen operations on vectors of P numbers: 0.02 ms in NumPy. The scale is one number per parameter.

    Example:
        >>> import numpy as np
        >>> sizes_P = np.array([4.0, 100.0], dtype=np.float32)
        >>> decision = ByBlockRms()(np.array([8.0, 8.0], dtype=np.float32), {}, Signals(sizes_P=sizes_P))
        >>> decision.scale.tolist()
        [0.25, 1.0]

    Source: Shazeer and Stern, 2018, Adafactor, arXiv:1804.04235, update clipping with d = 1; the formula is
    optax's `clip_by_block_rms`. There NaN and infinity pass.
    """

    max_rms: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"sizes_P"})

    def __post_init__(self) -> None:
        positive("max_rms", self.max_rms)

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: there is none."""
        return {}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        finite = xp.isfinite(norm)
        bound_P = self.max_rms * xp.sqrt(handed(signals, "sizes_P"))
        norms_P = xp.astype(norms_P, xp.float32, copy=False)
        return Decision(norm=norm, scale=bounded(xp, norms_P, bound_P, finite), skip=~finite, state=state)

"""Clip each gradient by its norm relative to that of its weights."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._settings import handed, positive
from evengrad.clip._total import bounded, total


@final
@dataclass(frozen=True, slots=True)
class ByWeightNorm(AbstractPolicy):
    """Scale each gradient by min(1, clipping * max(w, eps * sqrt(size)) / n), w the norm of its weights, n its own.

    The bound grows with the weights: with plain gradient descent no tensor changes by more than lr * clipping of
    itself in a step. Adaptive gradient clipping, for whole tensors; the original does it for each row of a matrix. A
    step in which any norm is not finite is skipped as a whole. A gradient of 0 is left alone.

    A tensor that starts at 0 (a bias, the last layer of a residual branch, one half of a low-rank adapter) has no
    weights to measure by, and must not freeze there. It is taken for one whose elements have the size `eps`.

    Args:
        clipping: The largest ratio of gradient norm to weight norm, positive. 0.01 is the paper's choice for batches of
            4,096; smaller batches want more.
        eps: The smallest size (root mean square) that the elements of a tensor are taken to have, positive. 0.01 is the
            size of an ordinary initialisation, 1 / sqrt(3 * inputs) for 3,000 inputs: what starts at 0 learns as fast
            as what does not. The paper's 1e-3 is for the norm of a whole row: with it a row of 0 may move by
            lr * 1e-5 per step, and does not get away from 0 in a training of usual length.

    Raises:
        SettingError: A setting is not positive, or, when called, nobody handed over the sizes and weight norms.

    Cost: About sixteen operations on vectors of P numbers: 0.03 ms in NumPy; and the norms of the weights, one read of
    them. The scale is one number per parameter.

    Example:
        >>> import numpy as np
        >>> numbers = np.array([[3.0, 3.0], [100.0, 0.0], [4.0, 4.0]], dtype=np.float32)
        >>> signals = Signals(weight_norms_P=numbers[1], sizes_P=numbers[2])
        >>> [round(float(scale), 5) for scale in ByWeightNorm()(numbers[0], {}, signals).scale]
        [0.33333, 7e-05]

    Source: Brock, De, Smith and Simonyan, 2021, arXiv:2102.06171, equation 3. The bound on the size of the elements,
    there for the same reason, is from the relative step size of Shazeer and Stern, 2018, Adafactor, arXiv:1804.04235.
    """

    clipping: float = 0.01
    _: KW_ONLY
    eps: float = 0.01

    needs: ClassVar[frozenset[str]] = frozenset({"sizes_P", "weight_norms_P"})

    def __post_init__(self) -> None:
        positive("clipping", self.clipping)
        positive("eps", self.eps)

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: there is none."""
        return {}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        finite = xp.isfinite(norm)
        weights_P = xp.maximum(handed(signals, "weight_norms_P"), self.eps * xp.sqrt(handed(signals, "sizes_P")))
        norms_P = xp.astype(norms_P, xp.float32, copy=False)
        scale_P = bounded(xp, norms_P, self.clipping * weights_P, finite)
        return Decision(norm=norm, scale=scale_P, skip=~finite, state=state)

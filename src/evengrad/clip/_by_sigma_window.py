"""Skip a step whose loss or norm is far above the last ones."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.clip._settings import not_negative, positive, whole
from evengrad.clip._total import LARGEST, total
from evengrad.clip._window import empty, mean_and_std, pushed


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class BySigmaWindow(AbstractPolicy):
    """Skip a step whose loss, or whose norm, is more than `sigma` standard deviations above the mean of the last ones.

    Never clips. The mean and deviation (unbiased) are those of the `window` values before the step, and rule as soon as
    half of them are there, at least two. A finite value that is skipped does enter: it widens the deviation, so that a
    level that lasts is accepted after a few skips. This is the one way in which a step that is skipped leaves a trace.

    A step whose norm or loss is not finite, or above 1e18, is skipped and leaves the state equal to the bit. NaN for
    the loss means that nobody handed it over: then the norm alone is judged (a loss that is NaN has gradients that are
    NaN). A norm of 0 does not enter.

    Args:
        sigma: Deviations above which a step is skipped, positive.
        window: How many values are remembered, at least 2.
        std_floor: The smallest deviation, in means, at least 0: with 0, as published, the least rise after equal values
            is skipped. 0.01 skips no rise of less than 6 %.

    Raises:
        SettingError: A setting is out of range.

    Cost: About fifty operations, ten of them on the window: 0.1 ms in NumPy; 8 bytes for each step remembered.

    Example:
        >>> import numpy as np
        >>> policy = BySigmaWindow(window=4)
        >>> state = policy.init(1)
        >>> skipped = []
        >>> for norm in (1.0, 1.1, 0.9, 50.0, 1.0):
        ...     decision = policy(np.array([norm], dtype=np.float32), state)
        ...     skipped.append(bool(decision.skip[0]))
        ...     state = decision.state
        >>> skipped
        [False, False, False, True, False]

    Source: OLMo-core, `SkipStepOptimizer` and `SkipStepAdamW` (Groeneveld et al., 2024, OLMo, arXiv:2402.00838, is the
    project), with its window of 128 and 6 deviations. Differs in the floor, and in that what is not finite never
    enters: there one NaN loss has every step skipped until it has left the window.
    """

    sigma: float = 6.0
    window: int = 128
    std_floor: float = 0.01

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __post_init__(self) -> None:
        positive("sigma", self.sigma)
        whole("window", self.window, least=2)
        not_negative("std_floor", self.std_floor)

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: the last norms and losses, newest first, infinity where there is none yet."""
        return {name: empty(self.window, like) for name in ("norms", "losses")}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        loss = norm * math.nan if signals.loss is None else xp.astype(signals.loss, xp.float32, copy=False)
        size = xp.abs(loss)
        usable = (norm <= LARGEST) & ~(size > LARGEST)
        norm_counts, loss_counts = usable & (norm > 0.0), usable & (size <= LARGEST)
        norm_far, norms = self._judged(xp, state["norms"], norm, norm_counts)
        loss_far, losses = self._judged(xp, state["losses"], loss, loss_counts)
        skip = ~usable | norm_far | loss_far
        return Decision(norm=norm, scale=xp.ones_like(norm), skip=skip, state={"norms": norms, "losses": losses})

    def _judged(self, xp: Any, window: Array, value: Array, counts: Array) -> tuple[Array, Array]:
        """Tell whether a value that counts is far above those before it, and remember it."""
        count, mean, std = mean_and_std(xp, window)
        value = xp.where(counts, value, mean)
        room = self.sigma * xp.maximum(std, self.std_floor * xp.abs(mean))
        far = counts & (count >= max(2, self.window // 2)) & (value - mean > room)
        return far, xp.where(counts, pushed(xp, window, value), window)

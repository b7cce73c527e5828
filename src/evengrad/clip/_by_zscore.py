"""Clip by how unusual the norm is against its own running mean: no threshold to choose."""

from dataclasses import dataclass
from typing import Any, final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State, zeros
from evengrad.clip._settings import inside, positive, whole
from evengrad.clip._total import LARGEST, total

_TIE = 1.0 - 1e-6  # so that every precision takes 1 / 10 for more than 1 - 0.9, or none does


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByZScore(AbstractPolicy):
    """Clip a gradient whose norm is more than `z` standard deviations above the running mean of the norms.

    With mean m and variance v of the norms so far, deviation s = max(sqrt(v), std_floor * m) and bound
    b = m + z * s, a norm N above the bound is brought down to m + (z * s)^2 / (N - m): the rarer the norm, the closer
    to the mean. Then min(N, b) enters the statistics: m by the weight w = max(1 / n, 1 - decay) at the n-th norm, and v
    by w towards (x - m)^2, with the new m (while 1 / n rules: the population variance of what entered). So the first
    norms are averaged, one norm can raise the mean by w * z * s only, and the policy follows a level that lasts within
    tens of steps. Nothing depends on the unit of the norms.

    A step whose norm is not finite, or above 1e18, is skipped and leaves the state equal to the bit. A norm of 0
    changes nothing and does not count as seen.

    Args:
        z: Deviations above which a norm is clipped, positive. 2.5 is the paper's choice.
        decay: Weight of the past in mean and variance, in (0, 1). 0.97 is the paper's choice: about 33 steps.
        warmup_steps: Norms watched before the first clip, at least 1. 1, so that a bad step near the start is caught;
            the paper has 25.
        std_floor: The smallest deviation, in means, positive (a variance that died out would stay 0). At 1.0 only norms
            above 3.5 means are clipped; measured, that is 1.1 % of the steps of healthy trainings. Less clips more of
            them, and 2.0 let bad steps of 4 times the norm do harm.

    Raises:
        SettingError: A setting is out of range.

    Cost: About forty operations, all but seven on single numbers: 0.03 ms in NumPy.

    Example:
        >>> import numpy as np
        >>> policy = ByZScore()
        >>> state = policy.init(1)
        >>> for norm in (1.0, 2.0, 100.0):
        ...     decision = policy(np.array([norm], dtype=np.float32), state)
        ...     state = decision.state
        >>> round(float(decision.scale[0] * decision.norm[0]), 3)
        1.643

    Source: Kumar et al., 2025, arXiv:2504.02507, z-score mode with adaptive scaling and no constant threshold; `ZClip`
    is that algorithm to the letter. Differs in the floor and in feeding the bound, without which healthy trainings are
    harmed (measured in `docs/decisions/0008-default-policy.md`), in the warm-up, in adding no epsilon, and in norms
    that are not finite or 0, which never enter the statistics.
    """

    z: float = 2.5
    decay: float = 0.97
    warmup_steps: int = 1
    std_floor: float = 1.0

    def __post_init__(self) -> None:
        positive("z", self.z)
        inside("decay", self.decay, 0, 1)
        whole("warmup_steps", self.warmup_steps)
        positive("std_floor", self.std_floor)

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: how many norms were seen, their mean and variance."""
        return {name: zeros(1, like) for name in ("seen", "mean", "var")}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        seen, mean, var = state["seen"], state["mean"], state["var"]
        finite = norm <= LARGEST
        counts = finite & (norm > 0.0)
        usable = xp.where(counts, norm, 1.0)
        room = self.z * xp.maximum(xp.sqrt(var), self.std_floor * mean)
        bound = mean + room
        spike = counts & (usable > bound) & (seen >= self.warmup_steps)
        high = xp.where(spike, usable, 10.0 * LARGEST)  # what is no spike must not overflow either
        target = mean + room * (room / (high - mean))
        return Decision(
            norm=norm,
            scale=xp.where(spike, target / high, 1.0),
            skip=~finite,
            state=self._moved(xp, state, xp.where(spike, bound, usable), counts),
        )

    def _moved(self, xp: Any, state: State, value: Array, counts: Array) -> State:
        """Move the statistics towards a value where it counts; at first by its share of the norms seen.

        Where it does not count the weight is 0, which leaves finite numbers equal to the bit.
        """
        seen, mean, var = state["seen"], state["mean"], state["var"]
        more = seen + 1.0
        share = 1.0 / more
        averaging = share > (1.0 - self.decay) * _TIE
        weight = xp.where(counts, xp.where(averaging, share, 1.0 - self.decay), 0.0)
        before = value - mean
        moved = mean + weight * before
        after = value - moved
        spread = xp.where(averaging, before, after) * after  # Welford's product gives the exact variance of those seen
        return {
            "seen": xp.where(counts, more, seen),  # float32 itself ends the count at 2^24
            "mean": moved,
            "var": var + weight * (spread - var),
        }

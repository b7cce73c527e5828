"""Clip by how unusual the norm is against its own running mean: no threshold to choose."""

from dataclasses import dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State, zeros
from evengrad.clip._settings import positive
from evengrad.clip._total import total_norm
from evengrad.nouns import SettingError

_EPS = 1e-6  # the reference's, in both denominators
_LARGEST = 1e18  # a norm above cannot be squared in float32, and would leave the variance infinite for good


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
        published: Follow the paper to the letter, to compare with it: the clipped norm, not the bound, enters the
            statistics, the plain average ends with the warm-up, and 1e-6 is added to the denominators. Wants
            `std_floor=0.0`; the paper's `warmup_steps` is 25. Not for use: where the norm rises for good, the
            variance dies out, and then most steps are clipped: measured, 39 % of those of healthy trainings.

    Raises:
        SettingError: A setting is out of range, or `published` comes with a floor.

    Cost: About forty operations, all but ten on single numbers.

    Example:
        >>> import numpy as np
        >>> policy = ByZScore()
        >>> state = policy.init(1)
        >>> for norm in (1.0, 2.0, 100.0):
        ...     decision = policy(np.array([norm], dtype=np.float32), state)
        ...     state = decision.state
        >>> round(float(decision.scale[0] * decision.norm[0]), 3)
        1.643

    Source: Kumar et al., 2025, ZClip, arXiv:2504.02507, z-score mode with adaptive scaling and no constant threshold.
    Differs in the floor and in feeding the bound, without which healthy trainings are harmed (measured in
    `docs/decisions/0008-default-policy.md`), in the warm-up, in adding no epsilon, and in that norms that are not
    finite or 0 never enter the statistics, even with `published` (in the reference one NaN ends the clipping for good).
    """

    z: float = 2.5
    decay: float = 0.97
    warmup_steps: int = 1
    std_floor: float = 1.0
    published: bool = False

    def __post_init__(self) -> None:
        positive("z", self.z)
        positive("decay", self.decay)
        if self.decay >= 1:
            raise SettingError("decay", came=repr(self.decay), wanted="a number in (0, 1)")
        positive("warmup_steps", self.warmup_steps)
        if not isinstance(self.warmup_steps, int):
            raise SettingError("warmup_steps", came=repr(self.warmup_steps), wanted="a positive whole number")
        if not isinstance(self.published, bool):
            raise SettingError("published", came=repr(self.published), wanted="True or False")
        if not self.published:
            positive("std_floor", self.std_floor)
        elif self.std_floor != 0:
            advice = "the published formula has no floor"
            raise SettingError("std_floor", came=repr(self.std_floor), wanted="0.0 with published=True", advice=advice)

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: how many norms were seen (as far as it matters), their mean and variance."""
        return {name: zeros(1, like) for name in ("seen", "mean", "var")}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total_norm(norms_P)
        one = xp.ones_like(norm)
        finite = norm <= _LARGEST
        counts = finite & (norm > 0)
        usable = xp.where(counts, norm, one)
        eps = _EPS if self.published else 0.0
        mean, std = state["mean"], self._deviation(state)
        excess, room = usable - mean, self.z * (std + eps)
        spike = counts & (state["seen"] >= self.warmup_steps) & (excess > room)
        target = xp.where(spike, mean + room * (self.z * std / xp.where(spike, excess, one)), usable)
        fed = target if self.published else xp.where(spike, mean + room, usable)
        return Decision(
            norm=norm,
            scale=xp.where(spike, target / (usable + eps), one),
            skip=~finite,
            state=self._moved(state, fed, counts),
        )

    def _deviation(self, state: State) -> Array:
        """Take the standard deviation, at least the floor."""
        xp = array_namespace(state["var"])
        std, floor = xp.sqrt(state["var"]), self.std_floor * state["mean"]
        return xp.where(std < floor, floor, std)

    def _moved(self, state: State, value: Array, counts: Array) -> State:
        """Move the statistics towards a value where it counts; at first by its share of the norms seen."""
        xp = array_namespace(value)
        seen, mean, var = state["seen"], state["mean"], state["var"]
        averaging = seen < self.warmup_steps if self.published else (seen + 1.0) * (1.0 - self.decay) < 1.0
        weight = xp.where(averaging, 1.0 / (seen + 1.0), xp.full_like(value, 1.0 - self.decay))
        before = value - mean
        moved = mean + weight * before
        after = value - moved
        spread = xp.where(averaging, before, after) * after  # Welford's product gives the exact variance of those seen
        return {
            "seen": xp.where(counts & (averaging | (seen < self.warmup_steps)), seen + 1.0, seen),
            "mean": xp.where(counts, moved, mean),
            "var": xp.where(counts, var + weight * (spread - var), var),
        }

"""Clip by how unusual the norm is against its own running mean: no threshold to choose."""

from dataclasses import dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import AbstractPolicy, Array, Decision, State, zeros
from evengrad.clip._settings import positive
from evengrad.clip._total import total_norm
from evengrad.nouns import SettingError

_EPS = 1e-6  # the reference's, in both denominators
_LARGEST = 1e18  # a norm above cannot be squared in float32, and would leave the variance infinite for good


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByZScore(AbstractPolicy):
    """Clip a gradient whose norm is more than `z` standard deviations above the running mean of the norms.

    With mean m, deviation s and score (N - m) / (s + 1e-6): a score above z brings the norm down to
    m + z * z * s / score, so that the rarer the norm, the closer to the mean. The mean and variance then move by
    (1 - decay) towards the norm let through. The first `warmup_steps` norms are only watched: their mean and population
    variance are the start.

    A step whose norm is not finite, or above 1e18, is skipped and leaves the state equal to the bit. A norm of 0
    changes nothing and does not count as seen.

    Args:
        z: Deviations above which a norm is clipped, positive. 2.5 is the paper's choice.
        decay: Weight of the past in mean and variance, in (0, 1). 0.97 is the paper's choice: about 33 steps.
        warmup_steps: Norms watched before the first clip, at least 1. 25 is the paper's choice.

    Raises:
        SettingError: A setting is out of range.

    Cost: About forty operations, all but ten on single numbers.

    Example:
        >>> import numpy as np
        >>> policy = ByZScore(warmup_steps=2)
        >>> state = policy.init(1)
        >>> for norm in (1.0, 2.0, 100.0):
        ...     decision = policy(np.array([norm], dtype=np.float32), state)
        ...     state = decision.state
        >>> round(float(decision.scale[0] * decision.norm[0]), 3)
        1.516

    Source: Kumar et al., 2025, ZClip, arXiv:2504.02507, z-score mode with adaptive scaling and no constant threshold.
    Differs in that norms that are not finite or 0 never enter the statistics (in the reference one NaN ends the
    clipping for good), and in running sums for the warm-up instead of a buffer, which gives the same numbers.
    """

    z: float = 2.5
    decay: float = 0.97
    warmup_steps: int = 25

    def __post_init__(self) -> None:
        positive("z", self.z)
        positive("decay", self.decay)
        if self.decay >= 1:
            raise SettingError("decay", came=repr(self.decay), wanted="a number in (0, 1)")
        positive("warmup_steps", self.warmup_steps)
        if not isinstance(self.warmup_steps, int):
            raise SettingError("warmup_steps", came=repr(self.warmup_steps), wanted="a positive whole number")

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: how many norms were seen (up to `warmup_steps`), their mean and variance."""
        return {name: zeros(1, like) for name in ("seen", "mean", "var")}

    def __call__(self, norms_P: Array, state: State) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total_norm(norms_P)
        one = xp.ones_like(norm)
        finite = norm <= _LARGEST
        counts = finite & (norm > 0)
        usable = xp.where(counts, norm, one)
        mean, std = state["mean"], xp.sqrt(state["var"])
        score = (usable - mean) / (std + _EPS)
        spike = counts & (state["seen"] >= self.warmup_steps) & (score > self.z)
        target = xp.where(spike, mean + self.z**2 * std / xp.where(spike, score, one), usable)
        return Decision(
            norm=norm,
            scale=xp.where(spike, target / (usable + _EPS), one),
            skip=~finite,
            state=self._moved(state, target, counts),
        )

    def _moved(self, state: State, value: Array, counts: Array) -> State:
        """Move the statistics towards a value where it counts; during the warm-up by its share of the norms seen."""
        xp = array_namespace(value)
        seen, mean, var = state["seen"], state["mean"], state["var"]
        warming = seen < self.warmup_steps
        weight = xp.where(warming, 1.0 / (seen + 1.0), xp.full_like(value, 1.0 - self.decay))
        before = value - mean
        moved = mean + weight * before
        after = value - moved
        spread = xp.where(warming, before, after) * after  # Welford's product gives the exact variance of those seen
        return {
            "seen": xp.where(counts & warming, seen + 1.0, seen),
            "mean": xp.where(counts, moved, mean),
            "var": xp.where(counts, var + weight * (spread - var), var),
        }

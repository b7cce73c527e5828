"""Clip by what the loss allows: no step longer than would take it to zero."""

from dataclasses import dataclass
from typing import ClassVar, final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State, zeros
from evengrad.clip._settings import positive
from evengrad.clip._total import LARGEST, total


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ByPolyakStep(AbstractPolicy):
    """Scale all gradients by min(1, L / (c lr N^2)): a step of plain descent promises to lower the loss L by lr N^2.

    No loss that counts errors falls below 0, so a step that promises more than the loss is too long: the learning rate
    is too high here, or the network is not yet what it should be. It holds from the first step, where nothing is known
    of earlier norms, and needs no threshold. After another policy, as in `Chain(ByZScore(), ByPolyakStep())`.

    It bounds nothing where the optimizer is not SGD (the length of the others' steps is not the gradient's times the
    learning rate), where nobody handed the loss over with `guard.loss`, and, from then on, once a loss of 0 or less was
    seen: such a loss counts something else. Not for losses that may be anywhere near 0 by themselves (the surrogates of
    reinforcement learning), and hand over the loss itself, not its part where gradients are accumulated: a loss k times
    too small bounds the step k times too short.

    A step whose norm is not finite is skipped. A norm above 1e18 is clipped as one of 1e18 would be.

    Args:
        c: How much of the loss a step may promise is 1 / c, positive. 1.0: all of it.

    Raises:
        SettingError: The setting is not positive.

    Cost: About fifteen operations, all but seven on single numbers.

    Example:
        >>> import numpy as np
        >>> given = Signals(loss=np.array([2.0], dtype=np.float32), lr=np.array([0.1], dtype=np.float32))
        >>> policy = ByPolyakStep()
        >>> decision = policy(np.array([10.0], dtype=np.float32), policy.init(1), given)
        >>> round(float(decision.scale[0]), 6)
        0.2

    Source: Loizou, Vaswani, Laradji and Lacoste-Julien, 2021, Stochastic Polyak Step-size, arXiv:2002.10542, SPS_max.
    There the bound replaces the learning rate; here it bounds the gradient, with momentum its share in one step.
    """

    c: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "lr"})

    def __post_init__(self) -> None:
        positive("c", self.c)

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: whether a loss of 0 or less was seen."""
        return {"below": zeros(1, like)}

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        norm = total(xp, norms_P)
        finite = xp.isfinite(norm)
        below = state["below"]
        if signals.loss is None or signals.lr is None:
            return Decision(norm=norm, scale=xp.ones_like(norm), skip=~finite, state=state)
        loss, lr = signals.loss, signals.lr
        known = finite & xp.isfinite(loss) & (norm > 0.0) & (lr > 0.0)
        falls = known & (loss <= 0.0)
        counts = known & (loss > 0.0) & (below == 0.0)
        usable = xp.where(counts, xp.where(norm < LARGEST, norm, LARGEST), 1.0)
        share = (loss / self.c) / xp.where(counts, lr, 1.0) / usable / usable
        return Decision(
            norm=norm,
            scale=xp.where(counts & (share < 1.0), share, 1.0),
            skip=~finite,
            state={"below": xp.where(falls, xp.ones_like(below), below)},
        )

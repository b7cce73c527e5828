"""Several policies, one after the other."""

from dataclasses import dataclass
from typing import final

from array_api_compat import array_namespace

from evengrad.clip._policy import NO_SIGNALS, AbstractPolicy, Array, Decision, Signals, State
from evengrad.nouns import SettingError


@final
@dataclass(frozen=True, init=False, repr=False, slots=True)
class Chain(AbstractPolicy):
    """Let each policy decide on what the ones before it let through.

    A later policy sees the norms as scaled by the earlier; the loss, the sizes and the weights are the same for all.
    The scales are multiplied. A step is skipped when one of them skips it; then those that did not want the skip keep
    the state from before the step.

    Args:
        *policies: At least one, all for the same `norm_type`.

    Raises:
        SettingError: There is none, one is no policy, or they want different norms.

    Cost: Those of its policies together, and five operations for each.

    Example:
        >>> import numpy as np
        >>> from evengrad.clip import ByGlobalNorm, ByTensorNorm
        >>> decision = Chain(ByTensorNorm(4.0), ByGlobalNorm(2.5))(np.array([3.0, 40.0], dtype=np.float32), {})
        >>> [round(float(scale), 4) for scale in decision.scale]
        [0.5, 0.05]

    Source: The composition of optax (`chain`), for policies.
    """

    policies: tuple[AbstractPolicy, ...]

    def __init__(self, *policies: AbstractPolicy) -> None:
        for policy in policies:
            if not isinstance(policy, AbstractPolicy):
                advice = "a transform goes beside it: give the guard a list, clip=[policy, transform]"
                raise SettingError("Chain", came=repr(policy), wanted="policies", advice=advice)
        norm_types = sorted({float(getattr(policy, "norm_type", 2.0)) for policy in policies})
        if len(norm_types) > 1:
            kinds = " and ".join(f"{norm_type:g}" for norm_type in norm_types)
            raise SettingError("Chain", came=f"policies for the norms {kinds}", wanted="one norm_type for all")
        if not policies:
            raise SettingError("Chain", came="no policy", wanted="at least one")
        object.__setattr__(self, "policies", policies)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.policies))})"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of its policies needs."""
        return frozenset().union(*(policy.needs for policy in self.policies))

    @property
    def norm_type(self) -> float:
        """Which norm all of its policies want to be handed."""
        return float(getattr(self.policies[0], "norm_type", 2.0))

    def init(self, count: int, *, like: Array = None) -> State:
        """Make the state: those of its policies, as `0.mean`."""
        return {
            f"{place}.{name}": value
            for place, policy in enumerate(self.policies)
            for name, value in policy.init(count, like=like).items()
        }

    def __call__(self, norms_P: Array, state: State, signals: Signals = NO_SIGNALS) -> Decision:
        """Decide one step."""
        xp = array_namespace(norms_P)
        states = [_part(state, place) for place in range(len(self.policies))]
        first = self.policies[0](norms_P, states[0], signals)
        decisions, scale, skip = [first], first.scale, first.skip
        for policy, own in zip(self.policies[1:], states[1:], strict=True):
            decision = policy(norms_P * scale, own, signals)
            decisions.append(decision)
            scale, skip = scale * decision.scale, skip | decision.skip
        return Decision(
            norm=first.norm,
            scale=xp.where(skip, 1.0, scale),
            skip=skip,
            state={
                f"{place}.{name}": xp.where(skip & ~decision.skip, states[place][name], value)
                for place, decision in enumerate(decisions)
                for name, value in decision.state.items()
            },
        )


def _part(state: State, place: int) -> State:
    """Take the state of one policy out of that of all."""
    prefix = f"{place}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

"""The policies and transforms of a guard in the order in which they act, and what they remember."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from evengrad.clip import (
    AbstractPolicy,
    Array,
    ByPolyakStep,
    ByZScore,
    Chain,
    Decision,
    Number,
    Signals,
    SkipNonFinite,
    State,
    Vector,
    decides_by_numbers,
    number_signals,
    number_state,
    policy_of,
)
from evengrad.clip.transforms import AbstractTransform, Memory, Target
from evengrad.measure import Norms
from evengrad.nouns import SettingError

Part = AbstractPolicy | AbstractTransform
NOTHING = Signals()


def default_policy(optimizers: Sequence[Optimizer]) -> AbstractPolicy:
    """Return the policy of a guard that was given none.

    With SGD a step is also held to what the loss allows, where it is handed over: docs/decisions/0009.
    """
    plain = all(type(optimizer) is SGD for optimizer in optimizers)
    return Chain(ByZScore(), ByPolyakStep()) if plain else ByZScore()


def parts_of(clip: object, optimizers: Sequence[Optimizer]) -> tuple[Part, ...]:
    """Return what a `clip=` argument means, policies first: a sequence, or what `policy_of` takes.

    A policy is always first, because it decides whether the gradients are finite: `SkipNonFinite()` where none is
    given first. Policies that follow each other become one.

    Raises:
        SettingError: It is none of these, or an empty sequence.
    """
    if clip is False:
        return (SkipNonFinite(),)  # stands for the parts of a guard that only watches: nothing asks it
    members = list(clip) if isinstance(clip, list | tuple) else [clip]
    if clip is None:
        return (default_policy(optimizers),)
    if not members or (len(members) > 1 and None in members):
        raise SettingError("clip", came=repr(clip), wanted="a sequence of policies and transforms")
    parts: list[Part] = []
    for member in members:
        part = member if isinstance(member, AbstractTransform) else policy_of(member)
        if not parts and isinstance(part, AbstractTransform):
            parts.append(SkipNonFinite())
        before = parts[-1] if parts else None
        if isinstance(before, AbstractPolicy) and isinstance(part, AbstractPolicy) and order(before) == order(part):
            parts[-1] = Chain(before, part)
        else:
            parts.append(part)
    return tuple(parts)


def order(policy: AbstractPolicy) -> float:
    """Return the order of the norm that a policy wants to be handed."""
    return float(getattr(policy, "norm_type", 2.0))


@final
class Program:
    """Policies and transforms over the parameters that they are for.

    Args:
        parts: What `parts_of` returned.
        targets: The parameters.
        like: An array whose library and device the policies' state is to have; None for NumPy.
    """

    def __init__(self, parts: Sequence[Part], targets: Sequence[Target], like: Tensor | None) -> None:
        first = parts[0]
        assert isinstance(first, AbstractPolicy)
        self.first, self.rest = first, tuple(parts[1:])
        self.parts: tuple[Part, ...] = (first, *self.rest)
        self.targets = list(targets)
        self.parameters = [target.parameter for target in targets]
        self.names = [target.name for target in targets]
        self.like = like
        self.norms = Norms(self.parameters)
        self._others: dict[float, Norms] = {}
        policies = [part for part in self.parts if isinstance(part, AbstractPolicy)]
        self.needs = needs = frozenset[str]().union(*(policy.needs for policy in policies))
        self.needs_loss = "loss" in needs
        self._weights = Norms(self.parameters, weights=True) if "weight_norms_P" in needs else None
        sizes = np.array([parameter.numel() for parameter in self.parameters], dtype=np.float32)
        self._sizes: Array = sizes if like is None else torch.from_numpy(sizes).to(like.device)
        self.states: list[State | Memory] = [self._started(part) for part in self.parts]
        self.by_numbers = like is None and decides_by_numbers(first)

    @property
    def needs_host(self) -> bool:
        """Whether a part has to know that a step is not skipped."""
        return any(part.needs_host for part in self.rest if isinstance(part, AbstractTransform))

    def measured(self, norm_type: float) -> Array:
        """Measure the norms of the gradients as they are: on the host, or on the device of the state."""
        norms = self.norms
        if norm_type != 2.0:
            norms = self._others.setdefault(norm_type, Norms(self.parameters, norm_type=norm_type))
        return norms.on_host() if self.like is None else norms.norms()

    def decided_first(self, norms_P: Array, loss: float | None) -> Decision:
        """Let the first policy decide on the host: in plain numbers where it can, which is several times quicker."""
        state: Any = self.states[0]
        if not self.by_numbers:
            return self.first(norms_P, state, self.signals(loss))
        if any(type(value) is not Number for value in state.values()):
            state = self.states[0] = number_state(state)
        signals = number_signals(loss, float(self._lr()[0])) if self.first.needs else NOTHING
        decision = self.first(Vector(norms_P), state, signals)
        return replace(decision, state=number_state(decision.state))

    def signals(self, loss: float | None) -> Signals:
        """Gather what the policies need beside the norms, on the host."""
        if not self.needs:
            return NOTHING
        with np.errstate(over="ignore"):  # a loss that is too large for float32 is infinite
            return self.signals_with(np.array([np.nan if loss is None else loss], dtype=np.float32))

    def signals_with(self, loss: Array) -> Signals:
        """Gather what the policies need beside the norms and the loss."""
        weights = None
        if self._weights is not None:
            weights = self._weights.on_host() if self.like is None else self._weights.norms()
        lr = self._lr() if "lr" in self.needs else None
        return Signals(loss=loss, lr=lr, sizes_P=self._sizes, weight_norms_P=weights)

    def _lr(self) -> Array:
        """Return the largest learning rate, where all optimizers step by it times the gradient: SGD; 0 elsewhere."""
        plain = all(type(target.optimizer) is SGD for target in self.targets)
        rates = [target.group["lr"] for target in self.targets] if plain else [0.0]
        if self.like is None:
            return np.array([max(float(rate) for rate in rates)], dtype=np.float32)
        tensors = [rate for rate in rates if isinstance(rate, Tensor)]
        numbers = max((float(rate) for rate in rates if not isinstance(rate, Tensor)), default=0.0)
        largest = torch.full((1,), numbers, dtype=torch.float32, device=self.like.device)
        for tensor in tensors[:1]:  # one tensor for all groups, as torch makes them
            largest = torch.maximum(largest, tensor.detach().reshape(1).to(largest))
        return largest

    def transform_(self, number: int) -> State | Memory:
        """Let a transform change the gradients; returns its memory after that, and keeps the one before."""
        part = self.parts[number]
        assert isinstance(part, AbstractTransform)
        with torch.no_grad():
            return part.before_(self.targets, self.states[number])

    def after_(self) -> None:
        """Let the transforms change the weights after a step."""
        for number, part in enumerate(self.parts):
            if isinstance(part, AbstractTransform):
                with torch.no_grad():
                    self.states[number] = part.after_(self.targets, self.states[number])

    def copied(self) -> list[Any]:
        """Copy what is remembered, for a snapshot."""
        return [{key: plain(value) for key, value in state.items()} for state in self.states]

    def restore(self, copied: list[Any]) -> None:
        """Remember what was copied instead."""
        self.states = [
            {key: _like(value, now[key]) for key, value in kept.items() if key in now}
            for kept, now in zip(copied, self.states, strict=True)
        ]

    def _started(self, part: Part) -> State | Memory:
        if isinstance(part, AbstractPolicy):
            return part.init(len(self.parameters), like=self.like)
        with torch.no_grad():
            return part.init(self.targets)

    @property
    def per_tensor(self) -> bool:
        """Whether the first policy has a factor for each parameter."""
        two = np.ones(2, dtype=np.float32)
        given = Signals(loss=two[:1], lr=two[:1], sizes_P=two, weight_norms_P=two)
        return len(self.first(two, self.first.init(2), given).scale) > 1

    def described(self) -> str:
        """Write the parts, as for a `repr`."""
        texts = [repr(part) for part in self.parts]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def plain(value: Any) -> Tensor:
    """Copy an array of a state into a tensor on the host."""
    if isinstance(value, Number):
        return torch.tensor([value.value], dtype=torch.float32)
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    return tensor.to("cpu", copy=True)


def _like(value: Tensor, like: Any) -> Any:
    return value.to(like.device, copy=True) if isinstance(like, Tensor) else value.numpy().copy()

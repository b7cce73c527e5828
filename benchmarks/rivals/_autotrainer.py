"""AUTOTRAINER rebuilt: detects, tries its repairs in its order, and calls solved what its detector does not see."""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from ._detector import EVERY, Detector, Seen
from ._networks import LOSSES, weighted
from ._programs import Contest
from ._repairs import ANEW, ORDER, Edit, repaired, said
from ._training import Choice, Config, choices, config_of, loss_of, network_of, score, seed_all, to_learn, train

ROUNDS = 10


class SpentError(Exception):
    """The rows that could be seen have been seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A network, trained, and what was found.

    Args:
        model: With the weights that it has now.
        edits: That made it.
        config: That trained it.
        issue: What the detector said; empty for nothing.
        score: Metric of the held back rows at the end.
    """

    model: nn.Sequential
    edits: tuple[Edit, ...]
    config: Config
    issue: str = ""
    score: float = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repairing:
    """How it ended.

    Args:
        ended: `not supported`, `silent`, `solved`, `potential` or `unsolved`.
        choice: What it hands out; None for the program as it was.
        score: Metric of the very model that it hands out.
        rows: That all its trainings have seen.
        trainings: How many there were.
        issues: In the order in which they were worked on.
    """

    ended: str
    choice: Choice | None = None
    score: float | None = None
    rows: int = 0
    trainings: int = 0
    issues: tuple[str, ...] = ()


def built(contest: Contest, edits: tuple[Edit, ...]) -> nn.Sequential:
    """Make a fresh network with the changes of all edits."""
    model = network_of(contest)
    for edit in edits:
        model = edit(model, fresh=True)
    return model


def autotrainer(contest: Contest, *, seed: int, rows: int) -> Repairing:
    """Repair a faulty program as AUTOTRAINER does.

    Args:
        contest: The program.
        seed: Of weights and choices.
        rows: That all trainings together may see.
    """
    if contest.regression:
        return Repairing(ended="not supported")
    seed_all(seed)
    return Autotrainer(contest, choices(contest, seed), rows).run()


@final
@dataclass(kw_only=False, slots=True)
class Autotrainer:
    """One repair as it goes on."""

    contest: Contest
    random: np.random.Generator
    rows: int
    seen: int = 0
    trainings: int = 0
    issues: list[str] = field(default_factory=list)
    first: nn.Sequential = field(init=False)
    units: int = field(init=False)

    def run(self) -> Repairing:
        """Detect and repair."""
        model = network_of(self.contest)
        self.first, self.units = deepcopy(model), weighted(model)[-1].weight.shape[0]
        state = self._trained(State(model=model, edits=(), config=config_of(self.contest)))
        if not state.issue:
            return self._ended("silent", None)
        left = {issue: list(repairs) for issue, repairs in ORDER.items()}
        best: State | None = None
        for _ in range(ROUNDS):
            ended, reached = self._worked_on(state, left)
            if ended == "solved":
                return self._ended(ended, reached)
            if ended == "unsolved" or reached is None:
                return self._ended("potential", best) if best is not None else self._ended("unsolved", reached)
            best = reached if best is None or best.score < reached.score else best
            if reached.issue in self.issues:
                break
            state = reached
        return self._ended("potential", best)

    def _worked_on(self, state: State, left: dict[str, list[tuple[str, int]]]) -> tuple[str, State | None]:
        """Try the repairs for an issue; give what solved it, the best that has another one, or the best at all."""
        self.issues.append(state.issue)
        potential: State | None = None
        best: State | None = None
        for name, attempts in [left[state.issue].pop(0) for _ in tuple(left[state.issue])]:
            for attempt in range(attempts):
                try:
                    tried = self._tried(state, name, attempt)
                except SpentError:
                    return ("unsolved", best) if potential is None else ("potential", potential)
                if tried is None:
                    break
                if not tried.issue:
                    return "solved", tried
                if tried.issue != state.issue and (potential is None or potential.score < tried.score):
                    potential = tried
                best = tried if best is None or best.score <= tried.score else best
        return ("unsolved", best) if potential is None else ("potential", potential)

    def _tried(self, state: State, name: str, attempt: int) -> State | None:
        """Repair once, and go on training."""
        changes = repaired(name, attempt, state.config, issue=state.issue, units=self.units, random=self.random)
        if changes is None:
            return None
        added, config = changes
        edits, model = (*state.edits, *added), deepcopy(state.model)
        for edit in added:
            model = edit(model, fresh=False)
        if state.issue in ANEW:
            _copy(self.first, model)
        elif any(edit.kind == "activation" for edit in added):
            _copy(built(self.contest, edits), model, only_broken=True)
        return self._trained(State(model=model, edits=edits, config=config))

    def _trained(self, state: State) -> State:
        """Train under the detector's eye, which ends the training when it sees something.

        Raises:
            SpentError: There is no room for another training.
        """
        config = state.config
        if self.trainings and self.seen + config.epochs * len(self.contest.data.inputs) > self.rows:
            raise SpentError
        self.trainings += 1
        output = _output_of(self.contest, state.edits)
        detector = Detector(epochs=config.epochs, loss=config.loss, output=output, units=self.units)
        found: list[str] = []
        self.seen += train(self.contest, state.model, config, partial(self._watched, detector, config, found))
        reached = score(self.contest, state.model, scaled=config.scaled)
        return State(
            model=state.model, edits=state.edits, config=config, issue=found[0] if found else "", score=reached
        )

    def _watched(
        self, detector: Detector, config: Config, found: list[str], epoch: int, model: nn.Sequential, loss: float
    ) -> bool:
        data = to_learn(self.contest, scaled=config.scaled)
        held = loss_of(model, config.loss, data.held_inputs, data.held_targets)
        scores = (
            score(self.contest, model, scaled=config.scaled, trained_on=True),
            score(self.contest, model, scaled=config.scaled),
        )
        detector.keep((loss, held), scores)
        if epoch % EVERY:
            return False
        inputs, targets = data.inputs[: config.batch], data.targets[: config.batch]
        issue = detector.look(epoch, look(model, config.loss, inputs, targets))
        found += [issue] if issue else []
        return bool(issue)

    def _ended(self, ended: str, state: State | None) -> Repairing:
        choice = None
        if state is not None:
            label = said(state.edits, config_of(self.contest), state.config)
            choice = Choice(make=partial(built, self.contest, state.edits), config=state.config, label=label)
        return Repairing(
            ended=ended,
            choice=choice,
            score=None if state is None else state.score,
            rows=self.seen,
            trainings=self.trainings,
            issues=tuple(self.issues),
        )


def look(model: nn.Sequential, loss: str, inputs: Tensor, targets: Tensor) -> Seen:
    """Look at a network on a batch in evaluation mode."""
    model.eval()
    outputs: list[Tensor] = []
    value = inputs
    for layer in model:
        value = layer(value)
        outputs.append(value.detach())
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(LOSSES[loss](value, targets), parameters, allow_unused=True)
    return Seen(
        gradients=[
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ],
        finite=all(bool(torch.isfinite(parameter).all()) for parameter in parameters),
        outputs=outputs,
    )


def _output_of(contest: Contest, edits: tuple[Edit, ...]) -> str:
    """Name the activation of the output."""
    return next((edit.name for edit in reversed(edits) if edit.kind == "output"), contest.output)


def _copy(source: nn.Sequential, target: nn.Sequential, *, only_broken: bool = False) -> None:
    """Copy the weights of the layers that have some, all of them or those that are not finite."""
    with torch.no_grad():
        for one, other in zip(weighted(source), weighted(target), strict=True):
            broken = not all(bool(torch.isfinite(parameter).all()) for parameter in other.parameters())
            if broken or not only_broken:
                other.load_state_dict(one.state_dict())

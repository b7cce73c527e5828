"""Optuna's part of a sweep: what to try next, what to stop early, and a journal that outlives a kill."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from evengrad.nouns import RunLogError, SettingError
from evengrad.trial._tune_space import Choice, Space, rounded

try:
    import fcntl
except ImportError:  # not a POSIX system: the journal's own lock has to do
    fcntl = None  # type: ignore[assignment]

JOURNAL = "sweep.journal"
# The median of fewer trainings is no yardstick; Golovin et al. 2017 (Vizier) and optuna use five.
JUDGES = 5

_NAME = "sweep"
_POINT = "point"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A training that is to be run."""

    choice: Choice
    number: int
    trial: Any


@final
class Study:
    """Chooses and remembers.

    What is chosen depends on the seed, the space and what has finished, and on nothing else: a study that was killed
    and opened again asks for the training that was lost, and then goes on as if nothing had happened.

    Args:
        storage: Where trainings are remembered.
        seed: Seed of the choices.
        identity: What tells this sweep from another; a journal that holds another is refused.

    Raises:
        SettingError: The journal is of another sweep.
        RunLogError: The journal cannot be read.
    """

    def __init__(self, storage: BaseStorage, *, seed: int, identity: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._seed = seed
        self._reported: dict[int, set[int]] = {}
        pruner = optuna.pruners.MedianPruner(n_startup_trials=JUDGES, n_warmup_steps=0)
        self._study = optuna.create_study(
            storage=storage, study_name=_NAME, direction="maximize", pruner=pruner, load_if_exists=True
        )
        known = self.kept("identity")
        if known is not None and known != identity:
            raise SettingError(
                "log",
                came="the journal of another sweep",
                wanted="one of this task and these settings",
                advice=f"there: {known}; here: {identity}; give another directory",
            )
        self.keep("identity", identity)
        self._abandon()

    def kept(self, name: str) -> str | None:
        """Read what was kept under a name."""
        value = self._study.user_attrs.get(name)
        return value if isinstance(value, str) else None

    def keep(self, name: str, text: str) -> None:
        """Keep a text under a name."""
        self._study.set_user_attr(name, text)

    def finished(self) -> list[str]:
        """Give what `tell` was told, in the order in which it was asked for."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [str(trial.user_attrs[_POINT]) for trial in trials if _POINT in trial.user_attrs]

    def ask(self, space: Space, *, number: int, planned: Choice | None, startup: int) -> Asked:
        """Choose what to run next.

        Args:
            space: What may be chosen.
            number: How many have been asked for before; it seeds the choice.
            planned: What to run, if that is known already.
            startup: How many are run before the results steer.
        """
        if planned is not None:
            return Asked(choice=planned, number=number, trial=self._fixed(space, planned))
        self._study.sampler = optuna.samplers.TPESampler(
            seed=_seed_of(self._seed, number), n_startup_trials=startup, constant_liar=True
        )
        trial = self._study.ask()
        return Asked(choice=_drawn(trial, space), number=number, trial=trial)

    def prunes(self, asked: Asked, metric: float, step: int) -> bool:
        """Report a metric on the way; tell whether to stop: it is below the median of those that went through."""
        asked.trial.report(metric, step)
        self._reported.setdefault(asked.trial.number, set()).add(step)
        return bool(asked.trial.should_prune())

    def tell(self, asked: Asked, point: str, *, metric: float | None, step: int) -> None:
        """Remember how a training ended.

        Args:
            asked: The training.
            point: What `finished` is to give.
            metric: Its metric at the end; None where it came to none, which counts as the worst.
            step: Where it ended, if it came to none.
        """
        asked.trial.set_user_attr(_POINT, point)
        if metric is None and step not in self._reported.get(asked.trial.number, ()):
            asked.trial.report(float("nan"), step)  # a training that failed says where not to go; FAIL would not
        state = TrialState.PRUNED if metric is None else TrialState.COMPLETE
        self._study.tell(asked.trial, metric, state=state)

    def _fixed(self, space: Space, choice: Choice) -> Any:
        wanted: dict[str, Any] = _parameters(choice, space)
        self._study.enqueue_trial(wanted)
        trial = self._study.ask()
        if choice.policy in space.names:
            _drawn(trial, space)
        return trial

    def _abandon(self) -> None:
        """Let go of what was begun by a process that is gone; it will be asked for again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            self._study.tell(trial.number, state=TrialState.FAIL)


@contextmanager
def opened(directory: Path | None) -> Iterator[BaseStorage]:
    """Open a journal in a directory, for this process alone; without one, remember in memory.

    A line that a kill has cut off is taken away: the journal would not be readable behind it.

    Raises:
        SettingError: Another sweep is running there.
        RunLogError: The journal cannot be read or written.
    """
    if directory is None:
        yield InMemoryStorage()
        return
    path = directory / JOURNAL
    try:
        file = path.open("ab+")
    except OSError as err:
        raise RunLogError(str(path), came=f"{type(err).__name__}: {err}", wanted="a journal to write to") from err
    with file:
        alone = _locked(file, path)
        _mend(file)
        try:
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_Held() if alone else None))  # type: ignore[arg-type]
        except (ValueError, KeyError, TypeError) as err:
            raise RunLogError(str(path), came=f"{type(err).__name__}: {err}"[:200], wanted="a sweep's journal") from err
        yield storage


class _Held:
    """In the place of the journal's own lock, which a killed process leaves behind for half a minute."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None: ...


def _locked(file: BinaryIO, path: Path) -> bool:
    """Lock a file until it is closed, however that comes; tell whether that is possible here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        raise SettingError(
            "log", came=f"{path}, which another sweep is writing", wanted="a directory of its own for each"
        ) from err
    except OSError:  # a file system without locks
        return False
    return True


def _mend(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    whole = file.read(size).rfind(b"\n") + 1
    if whole < size:
        file.truncate(whole)


def _parameters(choice: Choice, space: Space) -> dict[str, Any]:
    arm = space.arm(choice.policy)
    found: dict[str, Any] = {"policy": choice.policy} if choice.policy in space.names else {}
    if arm is not None and choice.value is not None:
        found[f"{arm.name}.{arm.range.setting}"] = min(max(choice.value, arm.range.low), arm.range.high)
    changed = dict(choice.others)
    for name, range_ in space.others:
        if name != "lr":
            found[f"{name} is swept"] = name in changed
        if name in changed or name == "lr":
            found[name] = min(max(changed.get(name, 1.0), range_.low), range_.high)
    return found


def _drawn(trial: Any, space: Space) -> Choice:
    """Let a trial draw a choice. A learning rate is always drawn, the rest may stay as it is."""
    policy = str(trial.suggest_categorical("policy", list(space.names)))
    arm = space.arm(policy)
    value = None
    if arm is not None:
        ends = arm.range
        value = rounded(trial.suggest_float(f"{arm.name}.{ends.setting}", ends.low, ends.high, log=ends.log))
    others = []
    for name, ends in space.others:
        if name == "lr" or trial.suggest_categorical(f"{name} is swept", [False, True]):
            others.append((name, rounded(trial.suggest_float(name, ends.low, ends.high, log=ends.log))))
    return Choice(policy=policy, value=value, others=tuple(pair for pair in others if pair != ("lr", 1.0)))


def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")

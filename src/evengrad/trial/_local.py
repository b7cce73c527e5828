"""Trainings in processes of this machine: several at a time, with limits, and none can take the others with it."""

from __future__ import annotations

import json
import os
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import final

import torch

from evengrad.nouns import EvengradWarning, SettingError
from evengrad.trial._course import Course
from evengrad.trial._engine import AbstractEngine, Failure, failure
from evengrad.trial._frames import BEGUN, FORGET, PLAN, RESULT, SETTINGS, TICK
from evengrad.trial._machine import cores, memory_bytes, memory_is_seen, resident_bytes
from evengrad.trial._plan import Plan, Tick
from evengrad.trial._process import GONE, Event, Process
from evengrad.trial._shipped import packed, unpacked
from evengrad.trial._surroundings import surroundings

LOOK_S = 0.1  # between two looks at clock and memory
START_S = 300.0  # to import torch and unpack a task: a slow network disk may take minutes, nothing takes more
SMALLEST_SHARE_BYTES = 1 << 30  # torch alone takes a third of it, with CUDA all of it
SHARED_FRAC = 0.8  # of the machine's memory for all workers together; the rest is for the parent and the system
GRACE_S = 5.0  # for idle workers to close their logs

Training = tuple[str, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rest:
    """What is left of a round of plans: places of those that wait, and of those that need a fresh worker."""

    plans: Sequence[Plan]
    waiting: list[int]
    alone: set[int] = field(default_factory=set)


@final
class LocalProcesses(AbstractEngine):
    """Run trainings in worker processes of this machine.

    A worker is a fresh interpreter that stays for the next training. What crashes, hangs or needs too much memory is a
    `Failure`; its worker is replaced and the other trainings go on. The results are those of `Here` to the bit if torch
    computes with as many threads there: a worker has an equal share of the processors, and no more than this process.
    A training that ended its worker for want of memory, or before it had begun, is tried once more in a fresh one, so
    that what ran there before does not count.

    What the task prints is not shown, as several print at once: it goes to the logger `evengrad.trial` at level DEBUG,
    and the end of it into the words of a failure.

    Args:
        workers: How many at most. The default is one for each processor, but so few that each has 1 GiB; one for each
            GPU when this process has used one, as a training on a GPU hardly runs faster beside another.
        memory_bytes: Resident memory of one worker with everything it has imported, not counting a GPU's. The default
            is its share of four fifths of the machine's memory: so the sum of all fits, and the system never has to
            choose whom to end.
        time_s: Wall-clock time for one part of a training, without the start of a worker; None for no limit. A plan may
            have a shorter one of its own.

    Raises:
        SettingError: A number is not positive.

    Cost: 1 to 2 s to start a worker, once; for each plan, packing and unpacking what the task's functions hold.
    """

    def __init__(
        self, *, workers: int | None = None, memory_bytes: int | None = None, time_s: float | None = None
    ) -> None:
        _want_positive(workers=workers, memory_bytes=memory_bytes, time_s=time_s)
        self._most = _default_workers() if workers is None else workers
        self._memory_bytes = _memory_limit(memory_bytes, self._most)
        self._time_s = time_s
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._workers: list[Process] = []
        self._held: dict[Training, Process] = {}
        weakref.finalize(self, _end_all, self._workers, os.getpid())

    @property
    def at_once(self) -> int:
        """The number of workers."""
        return self._most

    @property
    def threads(self) -> int:
        """With how many threads torch computes in a worker."""
        return max(1, min(cores() // self._most, torch.get_num_threads()))

    @property
    def pids(self) -> tuple[int, ...]:
        """Numbers of the worker processes that there are."""
        return tuple(worker.pid for worker in self._workers)

    def run(self, plans: Sequence[Plan], tick: Tick) -> Iterator[tuple[int, Course | Failure]]:
        """Run the plans: `AbstractEngine.run`.

        Raises:
            SettingError: No process can be started.
            TypeError: A task cannot be packed; ask `can_be_shipped` before.
        """
        self._give_up()
        rest = _Rest(plans=plans, waiting=list(range(len(plans))))
        try:
            while rest.waiting or self._busy():
                self._hand_out(rest)
                for event in self._heard():
                    if (result := self._answered(event, rest, tick)) is not None:
                        yield result
                self._look()
        finally:
            self._give_up()

    def forget(self, plans: Sequence[Plan]) -> None:
        """Let go of paused trainings: `AbstractEngine.forget`."""
        for plan in plans:
            if (worker := self._held.pop(plan.training, None)) is not None:
                worker.tell((FORGET, json.dumps(plan.training).encode()))

    def close(self) -> None:
        """End all workers, with what is paused in them. The engine can be used again."""
        self._held.clear()
        _end_all(self._workers, os.getpid())

    def _busy(self) -> list[Process]:
        return [worker for worker in self._workers if worker.place is not None]

    def _hand_out(self, rest: _Rest) -> None:
        """Give each worker that is free the first plan that it may run."""
        for ended in [one for one in self._workers if one.place is None and one.exited()]:
            self._drop(ended)
        for place in tuple(rest.waiting):
            plan = rest.plans[place]
            worker = self._free_for(plan, rest, fresh=place in rest.alone)
            if worker is not None:
                rest.waiting.remove(place)
                worker.send(place, [(SETTINGS, surroundings(self.threads)), (PLAN, packed(plan))])
                limits_s = [limit_s for limit_s in (self._time_s, plan.time_s) if limit_s is not None]
                worker.limit_s = min(limits_s, default=None)

    def _free_for(self, plan: Plan, rest: _Rest, *, fresh: bool) -> Process | None:
        """Find or start a worker: the one that holds the training, or one that holds none of those that wait."""
        if (owner := self._held.get(plan.training)) is not None:
            return owner if owner.place is None else None
        wanted = [self._held.get(rest.plans[other].training) for other in rest.waiting]
        free = [one for one in self._workers if one.place is None and one not in wanted]
        if fresh:
            free = [one for one in free if one.parts == 0]
        if free:
            held = list(self._held.values())
            return min(free, key=held.count)
        if len(self._workers) >= self._most:
            return None
        worker = Process(self._events)
        self._workers.append(worker)
        return worker

    def _heard(self) -> Iterator[Event]:
        """Wait a little for the next message, then give all that have come."""
        try:
            event = self._events.get(timeout=LOOK_S)
            while True:
                yield event
                event = self._events.get_nowait()
        except Empty:
            return

    def _answered(self, event: Event, rest: _Rest, tick: Tick) -> tuple[int, Course | Failure] | None:
        """Do what a message of a worker asks for; give the result of its plan when that is there."""
        worker, kind, data = event
        place = worker.place
        if place is None or worker not in self._workers:
            return None
        if kind == RESULT:
            return place, self._result(worker, rest.plans[place], data)
        if kind == GONE:
            self._drop(worker)
            if place in rest.alone or not _deserves_another(worker):
                return place, failure(rest.plans[place], worker.words())
            rest.alone.add(place)
            rest.waiting.insert(0, place)
        elif kind == BEGUN:
            worker.begin()
        elif kind == TICK:
            tick(int(data))
        return None

    def _result(self, worker: Process, plan: Plan, data: bytes) -> Course | Failure:
        worker.rest()
        result: Course | Failure | str = unpacked(data)
        self._held.pop(plan.training, None)
        if isinstance(result, str):
            return failure(plan, result)
        if isinstance(result, Course) and plan.end < plan.steps and not result.trial.error:
            self._held[plan.training] = worker
        return result

    def _look(self) -> None:
        """End workers that are over a limit or have ended; that they are gone is then an event."""
        now_s = time.monotonic()
        for worker in self._busy():
            used = resident_bytes(worker.pid) if self._memory_bytes is not None else None
            limit_s = worker.limit_s if worker.begun else START_S
            if worker.exited():
                pass
            elif self._memory_bytes is not None and used is not None and used > self._memory_bytes:
                worker.sentence = f"needed more than {_in_gib(self._memory_bytes)}"
            elif limit_s is not None and now_s - worker.since_s > limit_s:
                worker.sentence = f"no {'end' if worker.begun else 'beginning'} after {limit_s:g} s: ended"
            else:
                continue
            worker.finish()

    def _drop(self, worker: Process) -> None:
        worker.finish()
        if worker in self._workers:
            self._workers.remove(worker)
        self._held = {training: one for training, one in self._held.items() if one is not worker}

    def _give_up(self) -> None:
        """End workers that are busy."""
        for worker in self._busy():
            self._drop(worker)


def _deserves_another(worker: Process) -> bool:
    """Tell whether something else that ran in the worker may have ended it."""
    over_memory = worker.sentence.startswith("needed") or worker.killed_by_others
    return worker.parts > 0 and (over_memory or not worker.begun)


def _end_all(workers: list[Process], owner: int) -> None:
    """End all, the idle ones gently; in a process that was forked from the owner, do nothing."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.ask_to_end()
    deadline_s = time.monotonic() + GRACE_S
    for worker in workers:
        worker.finish(max(0.0, deadline_s - time.monotonic()))
    workers.clear()


def _default_workers() -> int:
    count = cores()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        count = min(count, torch.cuda.device_count())
    if (memory := memory_bytes()) is not None:
        count = min(count, int(SHARED_FRAC * memory) // SMALLEST_SHARE_BYTES)
    return max(count, 1)


def _memory_limit(wanted: int | None, workers: int) -> int | None:
    if not memory_is_seen():
        if wanted is not None:
            words = "memory_bytes: this system does not say how much memory a process has; it is not limited"
            warnings.warn(words, EvengradWarning, stacklevel=3)
        return None
    if wanted is not None:
        return wanted
    memory = memory_bytes()
    return None if memory is None else int(SHARED_FRAC * memory) // workers


def _want_positive(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise SettingError(name, came=repr(value), wanted="a positive number or None")


def _in_gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"

"""Trainings on a Ray cluster, or on a Ray started here: the only place that knows Ray.

A training on Ray is one task, from its first step to the plan's end: nothing is paused, a later part starts anew.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from evengrad.nouns import EvengradWarning, SettingError, Task, in_words
from evengrad.runlog import Writer
from evengrad.trial._course import Course
from evengrad.trial._engine import AbstractEngine, Failure, failure
from evengrad.trial._here import Here
from evengrad.trial._machine import cores
from evengrad.trial._plan import Plan, Tick
from evengrad.trial._shipped import packed, unpacked
from evengrad.trial._surroundings import set_torch, surroundings

MOST_TIMES_LOST = 3  # a worker lost so often is the training's doing, not the machine's
LOOK_S = 1.0
LEAVE_S = 1.0  # to hand back the result of a training that hangs, before its process ends

# A resource's name in `Task.resources`, and in the tables of a cluster.
OF_RAY = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


@final
class OnRay(AbstractEngine):
    """Run trainings as tasks of Ray, with the resources that `Task.resources` asks for; one processor by default.

    A training whose worker is lost, with its process or its machine, is run again, at most three times. What the task's
    code raises is a `Failure`. The numbers are those of `Here` to the bit on the same kind of machine, if torch
    computes with as many threads there: a training has as many as its `num_cpus`.

    evengrad, torch and what the task imports from installed packages must be there on every machine; the user's own
    modules travel with the task.

    Args:
        address: Of the cluster, as `ray.init` takes it: `auto`, `host:port`, `ray://host:port`, or `local` for a Ray
            of one's own on this machine. None takes the Ray that this process is connected to, else one that is found
            (its own variable `RAY_ADDRESS`, or one that runs on this machine), else starts one here.

    Raises:
        SettingError: Ray is not installed, or there is nothing at the address.

    A Ray that is started here listens on all network interfaces of the machine while it runs, as Ray does; recent
    versions ask callers for a token.

    Cost: a few seconds to start a Ray of one's own; 2 to 3 s for the first training of each of its processes.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray = _imported()
        self._owned, self._local = _connect(self._ray, address)
        self._tasks: dict[int, tuple[Task, Any]] = {}
        self._remote = self._ray.remote(_train)

    @property
    def at_once(self) -> int:
        """The number of processors of the cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def run(self, plans: Sequence[Plan], tick: Tick) -> Iterator[tuple[int, Course | Failure]]:
        """Run the plans: `AbstractEngine.run`. Steps are told when a training is done.

        Raises:
            SettingError: evengrad is not installed on a worker, or no machine has the resources.
        """
        for resources in {plan.task.resources for plan in plans}:
            self._want(resources)
        running: dict[Any, _Sent] = {}
        try:
            for place, plan in enumerate(plans):
                running[self._submit(plan)] = _Sent(place=place, times=1)
            while running:
                ready, _ = self._ray.wait(list(running), num_returns=1, timeout=LOOK_S)
                for reference in ready:
                    sent = running.pop(reference)
                    plan = plans[sent.place]
                    result = self._result(reference, plan)
                    if isinstance(result, _Lost) and sent.times <= MOST_TIMES_LOST:
                        running[self._submit(plan)] = replace(sent, times=sent.times + 1)
                    else:
                        yield sent.place, _final(result, plan, sent, tick)
        finally:
            if self._ray.is_initialized():
                for reference in running:
                    self._ray.cancel(reference, force=True)

    def forget(self, plans: Sequence[Plan]) -> None:
        """Let go of the tasks: `AbstractEngine.forget`. There are no paused trainings."""
        for plan in plans:
            self._tasks.pop(id(plan.task), None)

    def close(self) -> None:
        """Let go of the cluster; end the Ray that was started here."""
        self._tasks.clear()
        if self._owned and self._ray.is_initialized():
            self._ray.shutdown()
        self._owned = False

    def _submit(self, plan: Plan) -> Any:
        if id(plan.task) not in self._tasks:
            self._tasks[id(plan.task)] = plan.task, self._ray.put(_packed(plan.task))
        _, task = self._tasks[id(plan.task)]
        options = _options(plan.task.resources)
        rest = {name: getattr(plan, name) for name in ("label", "seed", "steps", "stage", "until", "time_s")}
        settings = surroundings(max(1, int(options["num_cpus"])))
        return self._remote.options(**options).remote(task, rest, settings)

    def _result(self, reference: Any, plan: Plan) -> Course | Failure | _Lost:
        errors = self._ray.exceptions
        try:
            result: Course | Failure = unpacked(self._ray.get(reference))
        except errors.RayTaskError as err:
            _want_evengrad(err)
            return failure(plan, _raised_there(err))
        except (errors.RuntimeEnvSetupError, errors.TaskUnschedulableError, errors.TaskCancelledError) as err:
            return failure(plan, in_words(err))
        except errors.RayError as err:  # the rest is about processes, machines and what was stored on them
            return _Lost(words=in_words(err))
        return result

    def _want(self, resources: tuple[tuple[str, float], ...]) -> None:
        """Look whether any machine has what a training asks for; on a cluster that grows, one may come.

        Raises:
            SettingError: None has it, and none can come.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        asked = {OF_RAY.get(name, name): amount for name, amount in resources}
        if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            return
        came = ", ".join(f"{name}={amount:g}" for name, amount in resources)
        if self._local:
            raise SettingError("Task.resources", came=came, wanted="no more than this machine has")
        words = f"no machine of the cluster has {came} now: trials wait until one has"
        warnings.warn(words, EvengradWarning, stacklevel=3)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sent:
    """A plan that is running, and how often it has been sent."""

    place: int
    times: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lost:
    """A training whose worker is gone."""

    words: str


def _imported() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as err:
        raise SettingError(
            "engine 'ray'", came=f"no ray ({err})", wanted="the extra ray", advice="pip install 'evengrad[ray]'"
        ) from err
    return ray


def _connect(ray: Any, address: str | None) -> tuple[bool, bool]:
    """Connect to the Ray that is meant; tell whether that was done here, and whether it is one of our own."""
    if ray.is_initialized():
        if address is not None:
            raise SettingError(
                "address", came=repr(address), wanted="None", advice="this process is connected to a Ray already"
            )
        return False, False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        try:
            ray.init(address=address or "auto", **quiet)
        except (ConnectionError, RuntimeError, ValueError) as err:
            if address is not None:
                raise SettingError("address", came=f"{address!r} ({in_words(err)})", wanted="a Ray cluster") from err
        else:
            return True, False
    try:
        # Ray reports nothing home from a Ray that is started so: its `init` turns usage statistics off.
        ray.init(address="local", num_cpus=cores(), include_dashboard=False, **quiet)
    except Exception as err:  # a raylet or a store that does not come up is told by the base class of all errors
        raise SettingError("engine 'ray'", came=in_words(err), wanted="to start a Ray on this machine") from err
    return True, True


def _final(result: Course | Failure | _Lost, plan: Plan, sent: _Sent, tick: Tick) -> Course | Failure:
    if isinstance(result, _Lost):
        return failure(plan, f"lost with its worker {sent.times} times: {result.words}")
    if isinstance(result, Course):
        _log(plan, result)
        tick(len(result.trial.losses))
    return result


def _packed(task: Task) -> bytes:
    try:
        return packed(task, everything=True)
    except Exception:  # a module of the user holds what cannot be packed: then it must be there by name
        return packed(task)


def _options(resources: tuple[tuple[str, float], ...]) -> dict[str, Any]:
    known = {name: amount for name, amount in resources if name in OF_RAY}
    others = {name: amount for name, amount in resources if name not in OF_RAY}
    # lost ones are counted and run again here: Ray would try some of them for ever
    return {"max_retries": 0, "num_cpus": 1, **known, **({"resources": others} if others else {})}


def _want_evengrad(err: Any) -> None:
    """Raise what is wrong with the cluster and not with the training."""
    text = str(err)
    if "failed to import on the worker" in text or "No module named 'evengrad" in text:
        raise SettingError(
            "the Ray cluster",
            came="a worker that cannot import evengrad",
            wanted="evengrad on every machine",
            advice="install it there, or connect with ray.init(runtime_env=...) first",
        ) from err


def _raised_there(err: Exception) -> str:
    """Say what a worker raised: Ray's error says it as text, with the frames, behind a kind of its own."""
    return in_words(err).removeprefix(f"{type(err).__name__}: ")


def _log(plan: Plan, course: Course) -> None:
    """Write the readings where the user is, not where the training was."""
    if plan.log is None:
        return
    facts = {"task": plan.task.name, "label": plan.label, "seed": str(plan.seed), "stage": plan.stage}
    record = course.record
    with Writer(plan.log, parameters=record.parameters, dtype=record.dtype, facts=facts, setup=record.setup) as writer:
        for reading in record.readings:
            writer.append(reading)


def _train(task: bytes, rest: dict[str, Any], settings: bytes) -> bytes:
    """Run a training in a worker of Ray."""
    plan = Plan(task=unpacked(task), **rest)
    found: list[Course | Failure | BaseException] = []

    def train() -> None:
        try:
            set_torch(settings)
            _, result = next(iter(Here().run([plan], lambda steps: None)))
            found.append(result)
        except (Exception, SystemExit) as err:
            found.append(err)

    if plan.time_s is None:
        train()
    else:
        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        thread.join(plan.time_s)
    if not found:
        _leave_soon()
        return packed(failure(plan, f"no end after {plan.time_s:g} s: ended"))
    result = found[0]
    return packed(failure(plan, in_words(result)) if isinstance(result, BaseException) else result)


def _leave_soon() -> None:
    """End this process when the result is on its way: a thread that hangs cannot be ended otherwise."""
    timer = threading.Timer(LEAVE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()

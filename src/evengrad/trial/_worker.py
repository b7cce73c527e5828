"""What runs in a worker process: trainings, one after the other, as the parent asks for them.

The worker reads messages from its standard input and writes them to its standard output, both pipes that its parent
made; nothing listens anywhere. What is unpacked comes through the pipe from the parent that started this process. User
code sees an empty input, and what it prints goes to the error output.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
from queue import SimpleQueue
from typing import IO, final

from evengrad.nouns import in_words
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure, failure
from evengrad.trial._frames import (
    BEGUN,
    FORGET,
    PLAN,
    READY,
    RESULT,
    SETTINGS,
    START,
    TICK,
    read_frame,
    write_frame,
)
from evengrad.trial._here import Here
from evengrad.trial._plan import Plan
from evengrad.trial._shipped import packed, unpacked
from evengrad.trial._surroundings import surround

BETWEEN_TICKS_S = (
    0.1  # steps of a small model take less than a millisecond: a message for each would be most of the work
)
LAST_WORDS_S = 5.0  # to close run logs when there is no training

# What `python -c` runs in the worker. The pipes are put aside before anything is imported that might print.
BOOT = """
import json, os, sys
pipes = os.dup(0), os.dup(1)
nothing = os.open(os.devnull, os.O_RDONLY)
os.dup2(nothing, 0)
os.close(nothing)
os.dup2(2, 1)
sys.path[:] = json.loads(sys.argv[1])
from evengrad.trial._worker import work
work(*pipes)
"""


def work(incoming: int, outgoing: int) -> None:
    """Serve the parent until it closes the pipe.

    Args:
        incoming: The descriptor to read messages from.
        outgoing: The descriptor to write them to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    faulthandler.enable()
    reader, writer = os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb")
    writer.write(START)
    write_frame(writer, READY)
    server = _Server(writer)
    messages = _Messages(reader, server)
    while (message := messages.next()) is not None:
        server.serve(*message)
    server.close()


@final
class _Server:
    """Runs what is asked for.

    Args:
        writer: Where the answers go.
    """

    def __init__(self, writer: IO[bytes]) -> None:
        self._writer = writer
        self._engine = Here()
        self._paused: dict[tuple[str, int, int], Plan] = {}
        self.training = False

    def serve(self, kind: bytes, data: bytes) -> None:
        """Do what one message asks for."""
        if kind == SETTINGS:
            surround(data)
        elif kind == FORGET:
            label, seed, steps = json.loads(data)
            if (plan := self._paused.pop((label, seed, steps), None)) is not None:
                self._engine.forget([plan])
        elif kind == PLAN:
            self.training = True
            write_frame(self._writer, RESULT, self._result(data))
            self.training = False

    def close(self) -> None:
        """Close the logs of trainings that will not go on."""
        self._engine.close()

    def _result(self, data: bytes) -> bytes:
        try:
            plan: Plan = unpacked(data)
        except Exception as err:  # the user's classes and modules: anything may come
            return packed(f"the task cannot be unpacked in a worker: {in_words(err)}")
        del data
        write_frame(self._writer, BEGUN)
        result = self._run(plan)
        if isinstance(result, Course) and plan.end < plan.steps and not result.trial.error:
            self._paused.setdefault(plan.training, plan)
        else:
            self._paused.pop(plan.training, None)
        try:
            return packed(result)
        except Exception as err:
            return packed(failure(plan, f"the result cannot be packed: {in_words(err)}"))

    def _run(self, plan: Plan) -> Course | Failure:
        ticker = _Ticker(self._writer)
        try:
            _, result = next(iter(self._engine.run([plan], ticker)))
        except (Exception, SystemExit) as err:  # what the engine in one's own process would raise is a result here
            result = failure(plan, in_words(err))
        ticker.send()
        return result


@final
class _Messages:
    """Messages, read by a thread: that the parent is gone is noticed while a training runs or hangs.

    Args:
        reader: Where they come from.
        server: Who may be busy with one.
    """

    def __init__(self, reader: IO[bytes], server: _Server) -> None:
        self._reader = reader
        self._server = server
        self._found: SimpleQueue[tuple[bytes, bytes] | None] = SimpleQueue()
        threading.Thread(target=self._read, name="evengrad messages", daemon=True).start()

    def next(self) -> tuple[bytes, bytes] | None:
        """Wait for the next one; None when the parent is gone."""
        return self._found.get()

    def _read(self) -> None:
        try:
            while True:
                self._found.put(read_frame(self._reader))
        except (EOFError, OSError):
            self._found.put(None)
        if not self._server.training:
            time.sleep(LAST_WORDS_S)
        _end()


def _end() -> None:
    """End this process and those that the user's code started in it: nothing outlives the parent."""
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


@final
class _Ticker:
    def __init__(self, writer: IO[bytes]) -> None:
        self._writer = writer
        self._steps = 0
        self._sent_s = time.monotonic()

    def __call__(self, steps: int) -> None:
        self._steps += steps
        if time.monotonic() - self._sent_s >= BETWEEN_TICKS_S:
            self.send()

    def send(self) -> None:
        if self._steps:
            write_frame(self._writer, TICK, str(self._steps).encode())
        self._steps, self._sent_s = 0, time.monotonic()

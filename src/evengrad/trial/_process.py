"""A worker process as its parent sees it: started, spoken with, watched, ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import IO, final

from evengrad.nouns import SettingError
from evengrad.trial._frames import PLAN, RESULT, read_frame, wait_for_start, write_frame
from evengrad.trial._worker import BOOT

GONE = b"-"  # the event that a process has ended
KEPT_BYTES = 4000  # of what a worker wrote last
SHOWN = 300  # characters of it in the words of a failure
DYING_S = 10.0

Frame = tuple[bytes, bytes]
Event = tuple["Process", bytes, bytes]

_LOG = logging.getLogger("evengrad.trial")


@final
class Process:
    """A worker: a fresh interpreter that runs one part of a training at a time.

    It is started by name and never forked, so that it may use an accelerator and inherits no lock; the user's main
    script is not run again in it. It has a session of its own: Ctrl-C goes to the parent alone, and ending the worker
    ends what the user's code started in it.

    Args:
        events: Where messages of the worker go, and that it has ended.

    Attributes:
        place: Of the plan that it is busy with; None when it is idle.
        parts: How many it has finished.
        begun: Whether the task of the plan has been unpacked.
        since_s: When the plan was sent, or begun.
        limit_s: How long the part may take; None for any time.
        sentence: Why the parent ended it; empty when it did not.

    Raises:
        SettingError: No process can be started here.
    """

    def __init__(self, events: SimpleQueue[Event]) -> None:
        self.place: int | None = None
        self.parts = 0
        self.begun = False
        self.since_s = 0.0
        self.limit_s: float | None = None
        self.sentence = ""
        self._events = events
        self._inbox: SimpleQueue[Sequence[Frame] | None] = SimpleQueue()
        self._written = bytearray()
        self._process = _started()
        self._threads = [
            threading.Thread(target=run, name=f"evengrad worker {self.pid}", daemon=True)
            for run in (self._talk, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, place: int, frames: Sequence[Frame]) -> None:
        """Hand over a plan."""
        self.place, self.begun, self.since_s = place, False, time.monotonic()
        self._inbox.put(frames)

    def tell(self, frame: Frame) -> None:
        """Send what has no answer."""
        self._inbox.put([frame])

    def begin(self) -> None:
        """Note that the training has begun."""
        self.begun, self.since_s = True, time.monotonic()

    def rest(self) -> None:
        """Note that the plan is done."""
        self.place = None
        self.parts += 1

    def exited(self) -> bool:
        """Tell whether the process has ended by itself; its number stays taken until `finish`."""
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody else waited for it
            return self._process.poll() is not None

    def ask_to_end(self) -> None:
        """Close its input when it is idle, and terminate it when it is not."""
        if self.place is not None and self._process.returncode is None:
            self._process.terminate()
        self._inbox.put(None)

    def finish(self, patience_s: float = 0.0) -> None:
        """End the process, those of its session, and the threads that spoke with it.

        Args:
            patience_s: How long it may take to end by itself.
        """
        deadline_s = time.monotonic() + patience_s
        while not self.exited() and time.monotonic() < deadline_s:
            time.sleep(0.005)
        if self._process.returncode is None:  # so the number is still that of our own process
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self.pid, signal.SIGKILL)
                else:
                    self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING_S)
        self._inbox.put(None)
        for thread in self._threads:
            thread.join(DYING_S)

    @property
    def killed_by_others(self) -> bool:
        """Whether it was ended by SIGKILL, and not by its parent: mostly by a system without memory."""
        return not self.sentence and self._process.returncode == -getattr(signal, "SIGKILL", 9)

    def words(self) -> str:
        """Say how it ended."""
        if self.sentence:
            return self.sentence
        code = self._process.returncode
        how = f"by {_signal_name(-code)}" if code is not None and code < 0 else f"with exit code {code}"
        when = "" if self.begun else " before the training began"
        hint = ", perhaps for want of memory" if self.killed_by_others else ""
        last = _last_words(self._written.decode(errors="replace"))
        return f"the process ended {how}{when}{hint}" + (f"; it last wrote: {last}" if last else "")

    def _talk(self) -> None:
        """Write what is in the inbox; after a plan, read until its result."""
        incoming, outgoing = self._process.stdout, self._process.stdin
        assert incoming is not None
        assert outgoing is not None
        with contextlib.suppress(EOFError, OSError):
            wait_for_start(incoming)
            while (frames := self._inbox.get()) is not None:
                for kind, data in frames:
                    write_frame(outgoing, kind, data)
                    if kind == PLAN:
                        self._hear(incoming)
                del frames, kind, data  # a task may hold a large data set
        for stream in (outgoing, incoming):
            with contextlib.suppress(OSError):
                stream.close()
        self._events.put((self, GONE, b""))

    def _hear(self, incoming: IO[bytes]) -> None:
        kind = b""
        while kind != RESULT:
            kind, data = read_frame(incoming)
            self._events.put((self, kind, data))

    def _listen(self) -> None:
        """Keep the end of what the worker and the user's code in it write."""
        stream = self._process.stderr
        assert stream is not None
        while part := os.read(stream.fileno(), 1 << 16):
            self._written += part
            del self._written[:-KEPT_BYTES]
            _LOG.debug("worker %d: %s", self.pid, part.decode(errors="replace").rstrip())
        stream.close()


def _started() -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    own_group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # as a session elsewhere: no Ctrl-C
    try:
        return subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(sys.path)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            creationflags=own_group,
        )
    except OSError as err:
        raise SettingError(
            "engine", came=f"{type(err).__name__}: {err}", wanted="to start a process", advice="use engine='here'"
        ) from err


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(text: str) -> str:
    """Shorten what a worker wrote; of a dump of all threads, to the line where it happened."""
    _, found, stack = text.rpartition("Current thread ")
    if found and (lines := [line.strip() for line in stack.splitlines() if line.strip().startswith("File ")]):
        return lines[0][:SHOWN]
    return " ".join(text.split())[-SHOWN:]

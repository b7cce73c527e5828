"""Follow a run that goes on: read it again when it has grown."""

import os
from pathlib import Path
from typing import final

from evengrad.nouns import Record
from evengrad.runlog._read import log_files, read

Sizes = tuple[tuple[str, int, int, int], ...]


@final
class Follower:
    """Say whether the log of a run has grown, and read it when it has.

    Whether it has is seen from the names, sizes and times of its files; nothing is read when these are as before.
    A reading shows when its batch has been written: up to 50 steps or 2 seconds late, as the `Writer` was told.

    Args:
        directory: A run; it need not be there before the first `poll`.
        rank: Whose readings, in a distributed run.

    Cost:
        50 microseconds when nothing is new; otherwise that of `read`, which is of the whole log: a
        caller does well to wait some times as long as the last reading took.

    Example:
        >>> import tempfile
        >>> from evengrad.nouns import Reading
        >>> from evengrad.runlog import Writer
        >>> directory = tempfile.mkdtemp()
        >>> log = Writer(directory, parameters=("weight",))
        >>> follower = Follower(directory)
        >>> follower.poll().readings, follower.poll()
        ((), None)
        >>> log.append(Reading(step=0, loss=0.5))
        >>> log.close()
        >>> record = follower.poll()
        >>> record.readings[0].loss, record.complete
        (0.5, True)
    """

    def __init__(self, directory: str | os.PathLike[str], *, rank: int = 0) -> None:
        self._directory = Path(directory)
        self._rank = rank
        self._seen: Sizes | None = None

    def poll(self) -> Record | None:
        """Return all that the log has now, or None when that is what it had at the last call.

        Ends are taken for not yet written, as with `read(live=True)`. `Record.complete` tells that the run has ended;
        a run that was killed never becomes complete.

        Raises:
            NotARunError: The directory is not a run, or not yet.
            NewerRunError: The run was written by a newer evengrad.
            RunLogError: It cannot be read, or has no such rank yet. The next call tries again.
        """
        sizes = self._sizes()  # before reading, so that what comes meanwhile is seen at the next call
        if sizes == self._seen:
            return None
        record = read(self._directory, rank=self._rank, live=True)
        self._seen = sizes
        return record

    def _sizes(self) -> Sizes:
        if not self._directory.is_dir():
            return ()
        files = [path for start in log_files(self._directory, self._rank).values() for path in start.values()]
        sizes = []
        for path in [self._directory / "meta.json", *sorted(files)]:
            try:
                stat = path.stat()
            except OSError:
                continue  # gone since it was listed: `read` will say what is wrong
            sizes.append((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
        return tuple(sizes)

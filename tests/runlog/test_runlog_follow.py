"""A follower reads a run when it has grown, and only then."""

import os

import pytest

from evengrad.nouns import NotARunError, RunLogError
from evengrad.runlog import Follower, Writer, _follow, read


@pytest.fixture
def reads(monkeypatch):
    """Count how often the log is read."""
    seen = []
    monkeypatch.setattr(_follow, "read", lambda *args, **settings: seen.append(args) or read(*args, **settings))
    return seen


def test_a_follower_sees_each_batch_once_and_the_end(tmp_path, make, reads):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=2)
    follower = Follower(tmp_path)
    found = []
    for reading in make(0, 6):
        log.append(reading)
        record = follower.poll()
        found.append(record and len(record.readings))
        assert follower.poll() is None
    assert found == [0, 2, None, 4, None, 6]
    assert len(reads) == 4
    log.close()
    record = follower.poll()
    assert (record.readings, record.complete) == (tuple(make(0, 6)), True)
    assert follower.poll() is None


def test_what_is_written_while_a_follower_reads_is_seen_at_the_next_poll(tmp_path, make, monkeypatch):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=1)
    follower = Follower(tmp_path)

    def read_and_grow(*args, **settings):
        record = read(*args, **settings)
        log.append(make(0, 1)[0])
        return record

    monkeypatch.setattr(_follow, "read", read_and_grow)
    assert follower.poll().readings == ()
    monkeypatch.undo()
    assert len(follower.poll().readings) == 1


def test_a_follower_may_come_before_the_run(tmp_path, make):
    follower = Follower(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(NotARunError, match="nothing there"):
            follower.poll()
    with Writer(tmp_path / "run", parameters=("w", "b")) as log:
        log.append(make(0, 1)[0])
    assert len(follower.poll().readings) == 1


def test_a_follower_of_a_rank_sees_no_other_rank(tmp_path, make):
    Writer(tmp_path, parameters=("w", "b")).close()
    follower = Follower(tmp_path, rank=1)
    with pytest.raises(RunLogError, match="rank: got 1, want one of 0"):
        follower.poll()
    with Writer(tmp_path, parameters=("w", "b"), rank=1) as log:
        log.append(make(7, 8)[0])
    assert [reading.step for reading in follower.poll().readings] == [7]
    with Writer(tmp_path, parameters=("w", "b")) as log:
        log.append(make(0, 1)[0])
    assert follower.poll() is None


def test_a_follower_sees_a_restart_and_samples(tmp_path, make):
    Writer(tmp_path, parameters=("w", "b")).close()
    follower = Follower(tmp_path)
    assert follower.poll().complete
    with Writer(tmp_path, parameters=("w", "b")) as log:
        for reading in make(0, 3, sample=1):
            log.append(reading)
    assert follower.poll().readings == tuple(make(0, 3, sample=1))


def test_a_torn_end_is_no_warning_and_is_looked_at_again_when_it_is_whole(tmp_path, make):
    with Writer(tmp_path, parameters=("w", "b"), flush_every_steps=1) as log:
        for reading in make(0, 2):
            log.append(reading)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-20])
    follower = Follower(tmp_path)
    assert len(follower.poll().readings) == 1
    log.path.write_bytes(whole)
    assert len(follower.poll().readings) == 2


def test_a_follower_notices_bytes_that_changed_without_a_change_of_size(tmp_path, make):
    with Writer(tmp_path, parameters=("w", "b")) as log:
        log.append(make(0, 1)[0])
    follower = Follower(tmp_path)
    assert follower.poll().complete
    os.utime(log.path, ns=(1, 1))
    assert follower.poll().complete
    assert follower.poll() is None


def test_a_run_that_is_removed_while_it_is_followed_is_an_error(tmp_path, make):
    with Writer(tmp_path / "run", parameters=("w", "b")) as log:
        log.append(make(0, 1)[0])
    follower = Follower(tmp_path / "run")
    follower.poll()
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    with pytest.raises(NotARunError, match=r"no meta\.json"):
        follower.poll()
    (tmp_path / "run").rmdir()
    with pytest.raises(NotARunError, match="nothing there"):
        follower.poll()

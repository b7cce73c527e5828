"""The progress of a repair: how much there is at most is known from the start, and its share never goes backwards."""

import random
from dataclasses import replace

import pytest
from searched_tasks import deep, task
from torch import nn

import evengrad
from evengrad.trial import _search
from evengrad.trial._rungs import rungs_of
from evengrad.trial._shown import Shown


def watched(sick, **settings):
    told = []
    result = evengrad.repair(sick, engine="here", progress=lambda *one: told.append(one), **settings)
    return result, told


@pytest.mark.parametrize("seeds", [1, 2])
def test_choosing_and_the_proof_are_counted_before_anything_is_done(seeds):
    sick = task(steps=32)
    result, told = watched(sick, seeds=seeds)
    assert told[0][1] == 1
    assert told[0][2] == 32 + rungs_of(32).most_steps + 2 * seeds * 32
    assert result.verdict.seeds
    assert {total for what, _, total in told if what.startswith(("scout", "trying", "halving"))} == {told[0][2]}


@pytest.mark.parametrize("model", [deep(nn.ReLU, 2), deep(depth=12), deep(nn.ReLU, 12, std=0.02)])
def test_the_share_that_is_shown_never_goes_backwards(model):
    _, told = watched(task(model, steps=24), seeds=2)
    shares = [done / total for _, done, total in told]
    assert shares == sorted(shares)
    assert max(shares) <= 1.0


def test_a_second_search_is_called_so_and_its_steps_are_counted(monkeypatch):
    """Nothing holds in the proof, and another disease shows there: as if the first search had found none."""
    first = []

    def not_at_first(self, case, *, real=_search.Search._cured):
        if first:
            return real(self, case)
        first.append(1)
        real(self, case)
        self._case = replace(case, findings=())
        return False

    monkeypatch.setattr(_search.Search, "_cured", not_at_first)
    result, told = watched(task(steps=24), seeds=1)
    second = [place for place, (what, _, _) in enumerate(told) if what.startswith("second search, ")]
    assert any("searched again" in note for note in result.story.notes)
    assert second == list(range(second[0], len(told)))
    assert second[0] > 24
    shares = [done / total for _, done, total in told]
    assert shares == sorted(shares)
    assert told[-1][1] <= told[-1][2]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_turns_up_the_share_only_grows_and_the_whole_is_shown_in_the_end(seed):
    drawn, shown, done, total, last = random.Random(seed), Shown(), 0, 10, (0, 1)
    for _ in range(200):
        done += drawn.choice([0, 0, 1, 1, 3, 20])
        total = max(total, done) + drawn.choice([0] * 9 + [50, 3])
        now = shown.of(done, total)
        assert now[0] == done
        assert last[0] * now[1] <= now[0] * last[1]  # of whole numbers, so that no rounding hides a step back
        assert done <= now[1] <= total
        last = now
    assert shown.of(total, total) == (total, total)


def test_where_nothing_turns_up_the_numbers_are_the_true_ones():
    shown = Shown()
    assert [shown.of(done, 7) for done in range(8)] == [(done, 7) for done in range(8)]


def test_what_is_done_does_not_go_back_when_a_training_begins_anew():
    shown = Shown()
    assert [shown.of(done, 100) for done in (10, 40, 25, 41)] == [(10, 100), (40, 100), (40, 100), (41, 100)]

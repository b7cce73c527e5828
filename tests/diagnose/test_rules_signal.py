"""The signal through depth and time on readings made by hand and on networks: where a rule speaks, and where not."""

import pytest

from evengrad.diagnose import rules
from evengrad.nouns import LayerReading, Reading, Record

BY_CODE = {rule.code: rule for rule in rules.ALL}
ABOVE, BELOW = 1.001, 0.999


def recurrent(profile, kind="RNN", name="rnn", **settings):
    """A recurrent module with this profile."""
    settings = {"numel": 4, "weighted": True, "grad_rms": 1.0} | settings
    return LayerReading(name=name, kind=kind, time_grad_rms=tuple(profile), **settings)


def sign(code, *layers, step=0, first_step=0, **settings):
    reading = Reading(step=step, layers=layers, **settings)
    readings = (reading,) if step == first_step else (Reading(step=first_step), reading)
    return BY_CODE[code].sign(reading, Record(readings=readings, parameters=("a", "b", "c")))


# --- EG103 ---


@pytest.mark.parametrize(("kind", "fresh", "later"), [("RNN", "critical", "critical"), ("LSTM", None, "warning")])
def test_gates_are_not_judged_before_they_could_open(kind, fresh, later):
    layer = recurrent([1e-9] * 10 + [1.0], kind)
    first, second = sign("EG103", layer), sign("EG103", layer, step=1)
    assert first.decades == second.decades == pytest.approx(9.0)
    assert first.speaks == (fresh is not None)
    assert second.speaks is True
    assert second.severity == later
    gru = recurrent([1e-19] * 10 + [1.0], "GRU")
    assert sign("EG103", gru).speaks is False
    assert sign("EG103", gru, step=7, first_step=7).speaks is False
    assert sign("EG103", gru, step=7).speaks is True

"""Rules of units, initialisation, optimizer and loop on logs that nobody has checked, and on very long ones."""

import math
import random
import time
from dataclasses import replace

import pytest

from evengrad.diagnose import rules
from evengrad.diagnose._movement import thinned, way_of
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, Record, Setup, TensorReading

BY_CODE = {rule.code: rule for rule in rules.ALL}
RUN_RULES = ("EG601", "EG602", "EG603", "EG604", "EG605", "EG606", "EG607", "EG608")
READING_RULES = ("EG303", "EG304", "EG401", "EG402", "EG403")
SGD = Setup(optimizer="SGD", numels=(16,))


def weight(**settings):
    return ParameterReading(
        **({"name": "a.weight", "numel": 16, "fan_in": 4, "weight_rms": 0.5, "grad_rms": 0.1} | settings)
    )


@pytest.mark.parametrize("code", RUN_RULES)
def test_readings_without_samples_or_set_up_cannot_be_judged(code):
    plain = Record(readings=tuple(Reading(step=step, loss=1.0) for step in range(100)))
    assert BY_CODE[code].judge(plain) is None
    seen = [weight(update_ratio=1e-4, moved_ratio=1e-4 * step) for step in range(100)]
    steps = tuple(replace(one, weights=(seen[one.step],), lrs=(0.1,), leftover=False) for one in plain.readings)
    without = replace(plain, readings=steps)
    seen = BY_CODE[code].judge(without)
    assert seen is None or seen.speaks is False


def odd(generator):
    pool = (0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e308, generator.random(), generator.random(), None)
    return generator.choice(pool)


def stranger(seed):
    """A log that nobody has checked."""
    generator = random.Random(seed)
    sure = lambda: odd(generator) or 0.0  # noqa: E731
    may_lack = ("grad_rms", "update_ratio", "still_frac", "moved_ratio", "row_spread", "grad_row_spread")
    names, readings = [f"{at}.weight" for at in range(5)], []
    for step in range(generator.choice((1, 3, 60, 120))):
        weights = [{"name": one, "weight_rms": sure(), "fan_in": generator.choice((0, 4))} for one in names]
        layers = [{"name": one[0], "activation_rms": sure(), "grad_rms": odd(generator)} for one in names]
        known = {"loss": odd(generator), "lrs": (sure(),), "total_norm": odd(generator), "scale": sure()}
        ends = Ends(inputs=(TensorReading(name="input", mean=sure(), std=sure()),), constant_loss=odd(generator))
        known |= {
            "weights": tuple(weight(**one, **{field: odd(generator) for field in may_lack}) for one in weights),
            "layers": tuple(LayerReading(kind="Linear", weighted=True, numel=4, **one) for one in layers),
            "grad_norms": tuple(sure() for _ in names),
        }
        readings.append(Reading(step=step, ends=ends, **known))
    setup = Setup(optimizer="Adam", eps=odd(generator), weight_decay=sure(), momentum=sure(), numels=(4,) * 5)
    return Record(readings=tuple(readings), parameters=tuple(names), setup=setup)


@pytest.mark.parametrize("seed", range(40))
def test_a_log_of_any_numbers_is_judged_without_an_error(seed):
    record = stranger(seed)
    for code, rule in BY_CODE.items():
        if code in RUN_RULES:
            seen = [rule.judge(record)]
        elif code in READING_RULES:
            seen = [rule.sign(reading, record) for reading in record.readings]
        else:
            continue
        assert not any(one is not None and math.isnan(one.decades) for one in seen)


def test_the_cost_of_a_rule_hardly_grows_with_the_number_of_samples():
    weights = tuple(weight(name=f"{at}", update_ratio=1e-3, moved_ratio=0.1) for at in range(50))
    readings = tuple(Reading(step=step, loss=1.0, lrs=(0.1,), weights=weights) for step in range(20_000))
    seconds = []
    for count in (2_000, 20_000):
        record = Record(readings=readings[:count], setup=SGD)
        begin = time.process_time()
        BY_CODE["EG606"].judge(record)
        way_of(thinned(record.readings))
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 5 * seconds[0] + 0.1

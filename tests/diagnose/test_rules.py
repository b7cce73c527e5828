"""Each rule on readings made by hand: where it speaks, where not, and on the edge between."""

import inspect
import math

import pytest

from evengrad.diagnose import AbstractRule, explain, findings_of, rules, symptoms_of
from evengrad.nouns import LayerReading, Reading, Record, UnknownRuleError

BY_CODE = {rule.code: rule for rule in rules.ALL}
ABOVE, BELOW = 1.001, 0.999
CURED_BY_TREATMENTS = {"EG101", "EG102", "EG103", "EG104", "EG201", "EG202", "EG301", "EG302"}


def weighted(name, grad, activation=1.0, **settings):
    """A layer whose gradient norm and activation rms are these."""
    settings = {"kind": "Linear", "numel": 4, "weighted": True, "output_finite": True} | settings
    return LayerReading(name=name, grad_rms=None if grad is None else grad / 2, activation_rms=activation, **settings)


def path(*grads, activations=None):
    activations = activations or [1.0] * len(grads)
    return tuple(weighted(str(i), g, a) for i, (g, a) in enumerate(zip(grads, activations, strict=True)))


def sign(code, *layers, step=0, first_step=0, **settings):
    reading = Reading(step=step, layers=layers, **settings)
    readings = (reading,) if step == first_step else (Reading(step=first_step), reading)
    return BY_CODE[code].sign(reading, Record(readings=readings, parameters=("a", "b", "c")))


# --- EG101 ---


@pytest.mark.parametrize(("factor", "speaks"), [(ABOVE, False), (BELOW, True)])
def test_vanishing_speaks_from_three_decades_on(factor, speaks):
    seen = sign("EG101", *path(1e-3 * factor, 0.01, 0.1, 1.0))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(3.0, abs=1e-3)


def test_vanishing_names_the_starved_layers_and_tells_the_numbers():
    seen = sign("EG101", *path(1e-6, 1e-4, 5e-3, 1e-1, 1.0, 0.5))
    assert seen.where == ("0", "1")
    assert seen.severity == "critical"
    assert "from `5` to `0` the gradient shrinks by 6.0 decades (1.0e+00 to 1.0e-06), 1.20 per layer" in seen.message
    assert "2 of 6 weighted layers cannot learn" in seen.message
    assert [item.value for item in seen.evidence] == pytest.approx([0.5, 1e-6, 4.0])


def test_vanishing_counts_the_best_reached_layer_of_the_first_quarter():
    assert sign("EG101", *path(1e-9, 1e-1, 1e-9, 1e-9, 1.0, 1.0, 1.0, 1.0)).speaks is False
    assert sign("EG101", *path(1e-9, 1e-9, 1e-1, 1e-9, 1.0, 1.0, 1.0, 1.0)).speaks is True


def test_vanishing_measures_from_the_best_of_the_last_three_layers():
    assert sign("EG101", *path(1e-4, 1.0, 1e-4, 1e-4)).speaks is True
    assert sign("EG101", *path(1e-4, 1.0, 1e-4, 1e-4, 1e-4)).speaks is False


def test_vanishing_compares_norms_and_not_means():
    few = weighted("first", 1e-3, numel=4)
    many = weighted("first", 1e-3, numel=400)  # the same rms, ten times the norm
    assert sign("EG101", few, *path(1.0, 1.0, 1.0)).decades == pytest.approx(3.0)
    assert sign("EG101", many, *path(1.0, 1.0, 1.0)).decades == pytest.approx(2.0)


@pytest.mark.parametrize("code", ["EG101", "EG102"])
def test_three_weighted_layers_are_too_few(code):
    assert sign(code, *path(1e-9, 1.0, 1e9)) is None
    assert sign(code, *path(1e-9, 1.0, 1e9), weighted("3", None), LayerReading(name="4", kind="ReLU")) is None
    assert sign(code) is None


@pytest.mark.parametrize("code", ["EG101", "EG102", "EG103"])
@pytest.mark.parametrize("what", ["output_finite", "grad_finite"])
def test_a_profile_is_not_judged_where_something_is_not_finite(code, what):
    broken = weighted("9", 1.0, **{what: False})
    assert sign(code, *path(1e-9, 1e-3, 1.0, 1.0), recurrent([1e-9] * 10 + [1.0]), broken) is None


def test_a_gradient_of_exactly_zero_is_a_side_branch_and_left_out():
    seen = sign("EG101", *path(0.0, 0.5, 0.0, 0.5, 0.7, 1.0))
    assert seen.speaks is False
    assert seen.decades == pytest.approx(math.log10(2), abs=1e-6)
    assert sign("EG101", *path(0.0, 0.0, 0.0, 1.0)) is None  # one layer is left
    assert sign("EG101", *path(0.0, 0.0, 0.0, 0.0)) is None


def test_a_gradient_of_zero_behind_a_vanishing_one_is_underflow_and_kept():
    seen = sign("EG101", *path(0.0, 0.0, 1e-31, 1e-20, 1e-9, 1.0))
    assert seen.speaks is True
    assert seen.decades == 38.5
    assert seen.where == ("0", "1", "2", "3", "4")
    assert sign("EG101", *path(0.0, 0.0, 1e-29, 1e-20, 1e-9, 1.0)).where == ("2", "3", "4")


def test_a_layer_that_is_called_many_times_counts_by_the_best_reached_call():
    calls = [weighted("cell" + (f"#{i}" if i > 1 else ""), 10.0 ** (i - 20)) for i in range(1, 21)]
    assert sign("EG101", weighted("embed", 0.5), *calls, *path(1.0, 1.0)).speaks is False
    assert sign("EG101", *calls) is None
    other = [weighted(f"cell.{i}", 10.0 ** (i - 20)) for i in range(1, 21)]
    assert sign("EG101", *other).speaks is True


# --- EG102 ---


@pytest.mark.parametrize(("factor", "speaks"), [(BELOW, False), (ABOVE, True)])
def test_exploding_speaks_from_three_decades_on_forwards(factor, speaks):
    seen = sign("EG102", *path(1, 1, 1, 1, 1, activations=[0.5, 1.0, 10, 1e3 * factor, 100]))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(3.0, abs=1e-3)
    assert (seen.where == ("1", "2", "3")) == speaks
    assert ("activations grow by 3.0 decades from `1` (1.0e+00) to `3` (1.0e+03)" in seen.message) == speaks


@pytest.mark.parametrize(("factor", "speaks"), [(BELOW, False), (ABOVE, True)])
def test_exploding_speaks_from_three_decades_on_backwards(factor, speaks):
    seen = sign("EG102", *path(1.0, 1e3 * factor, 100.0, 0.5, 0.5, 1.0))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(3.0, abs=1e-3)
    assert (seen.where == ("1", "2", "3", "4", "5")) == speaks
    assert ("gradient grows on its way back by 3.0 decades from `5`" in seen.message) == speaks


@pytest.mark.parametrize("place", [0, 1, 3, 5])
def test_one_layer_out_of_line_is_not_growth_with_depth(place):
    sizes = [1.0] * 6
    sizes[place] = 1e6
    assert sign("EG102", *path(*[1.0] * 6, activations=sizes)).speaks is False
    assert sign("EG102", *path(*sizes)).speaks is False


@pytest.mark.parametrize(("factor", "speaks"), [(BELOW, False), (ABOVE, True)])
def test_a_neighbour_must_share_half_of_the_growth(factor, speaks):
    sizes = [1.0, 1.0, 1.0, 10**1.5 * factor, 1e6, 1.0]
    for seen in (sign("EG102", *path(*[1.0] * 6, activations=sizes)), sign("EG102", *path(*sizes[::-1]))):
        assert seen.speaks == speaks
        assert seen.decades == pytest.approx(3.0, abs=1e-2)


def test_a_signal_that_shrinks_and_recovers_has_not_exploded():
    assert sign("EG102", *path(1, 1, 1, 1, 1, activations=[1.0, 1e-6, 1e-6, 1e-3, 0.1])).decades == 0.0
    assert sign("EG102", *path(1, 1, 1, 1, 1, activations=[1e4, 1e4, 1e4, 1e4, 1e4])).decades == 0.0


def test_exploding_measures_from_the_best_of_the_last_three_layers():
    assert sign("EG102", *path(500, 500, 100, 1.0, 1e-3, 1e-3)).speaks is False
    assert sign("EG102", *path(500, 500, 100, 1e-3, 1e-3, 1e-3)).speaks is True


def test_a_vanishing_gradient_is_not_an_exploding_one():
    assert sign("EG102", *path(1e-9, 1e-6, 1e-3, 1.0)).decades == 0.0
    assert sign("EG101", *path(1e9, 1e6, 1e3, 1.0)).decades == 0.0


def test_each_call_of_a_layer_counts_when_it_explodes():
    calls = [weighted(f"cell#{i}", 1.0, 10.0**i) for i in range(2, 12)]
    assert sign("EG102", *calls).speaks is True


# --- EG103 ---


def recurrent(profile, kind="RNN", name="rnn"):
    return LayerReading(name=name, kind=kind, numel=4, weighted=True, grad_rms=1.0, time_grad_rms=tuple(profile))


@pytest.mark.parametrize(("factor", "speaks"), [(ABOVE, False), (BELOW, True)])
def test_time_speaks_from_the_resolution_of_float32_on(factor, speaks):
    seen = sign("EG103", recurrent([10**-6.9 * factor, *[1e-2] * 8, 1.0]))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(6.9, abs=1e-3)


def test_time_takes_the_best_of_the_worst_tenth():
    lost, there = 1e-9, 1e-3
    assert sign("EG103", recurrent([lost] + [there] * 18 + [1.0])).speaks is False
    assert sign("EG103", recurrent([lost, lost] + [there] * 17 + [1.0])).speaks is True
    assert sign("EG103", recurrent([1.0] + [there] * 17 + [lost, lost])).speaks is True  # an encoder read backwards


def test_time_tells_the_numbers():
    seen = sign("EG103", recurrent([1e-9, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0], name="encoder.rnn"))
    assert seen.where == ("encoder.rnn",)
    assert "falls by 9.0 decades over 8 time steps (1.0e+00 to 1.0e-09), 1.12 per step; 2 of 8" in seen.message
    assert [item.value for item in seen.evidence] == [1e-9, 1.0, 8.0]


def test_time_needs_eight_steps_and_some_gradient():
    assert sign("EG103", recurrent([1e-9] * 6 + [1.0])) is None
    assert sign("EG103", recurrent([1e-9] * 7 + [1.0])).speaks is True
    assert sign("EG103", recurrent([0.0] * 20)) is None
    assert sign("EG103", *path(1, 1, 1, 1)) is None


def test_padding_that_gets_no_gradient_at_all_is_left_out():
    assert sign("EG103", recurrent([0.1] * 10 + [0.0] * 10)).decades == 0.0
    assert sign("EG103", recurrent([0.0] * 10 + [0.1] * 10)).decades == 0.0
    assert sign("EG103", recurrent([0.1] * 5 + [0.0] * 15)) is None  # too few are left
    underflow = sign("EG103", recurrent([0.0] * 10 + [1e-40, 1e-30, 1e-20, 1e-10, 1.0]))
    assert underflow.speaks is True
    assert underflow.decades == 38.5


def test_time_names_every_module_that_speaks_and_tells_of_the_worst():
    layers = [recurrent([10.0**-d] * 10 + [1.0], kind, name) for d, kind, name in ((8, "RNN", "a"), (30, "GRU", "b"))]
    seen = sign("EG103", *layers, recurrent([0.1] * 10, name="c"))
    assert seen.where == ("a",)
    assert seen.decades == pytest.approx(8.0)
    assert sign("EG103", *layers, step=1).where == ("a", "b")
    assert sign("EG103", *layers, step=1).decades == pytest.approx(30.0)


# --- EG201, EG202 ---


def test_the_first_module_that_makes_it_of_finite_input_is_named():
    layers = (
        weighted("0", 1.0, activation_absmax=3e38),
        weighted("1", None, output_finite=False),
        weighted("2", None, output_finite=False, input_finite=False),
    )
    seen = sign("EG201", *layers)
    assert seen.where == ("1",)
    assert "`1` (Linear) makes NaN or infinity out of a finite input" in seen.message
    assert "2 of 3 modules are not finite" in seen.message
    assert [item.value for item in seen.evidence] == [3e38, 2.0]


def test_non_finite_weights_input_and_operations_between_are_told_apart():
    bad = {"output_finite": False}
    weights = sign("EG201", weighted("0", 1.0), weighted("1", None, weight_norm=math.nan, **bad))
    assert "first module with a NaN or infinite output: its weights are, already" in weights.message
    data = sign("EG201", weighted("0", None, input_finite=False, **bad))
    assert "the input of `0`, the first module, is not finite: look at the data" in data.message
    between = sign("EG201", *path(1, 1), weighted("log", None, input_finite=False, **bad))
    assert "an operation between it and the 2 modules before" in between.message
    assert weights.where + data.where + between.where == ("1", "0", "log")


def test_a_finite_forward_is_no_sign_and_no_layers_tell_nothing():
    assert sign("EG201", *path(1, 1)).decades == 0.0
    assert sign("EG201") is None


@pytest.mark.parametrize(("skipped", "severity"), [(False, "critical"), (True, "warning")])
def test_a_gradient_that_is_not_finite_is_told_with_its_parameters(skipped, severity):
    seen = sign("EG202", grad_norms=(1.0, math.nan, math.inf), skipped=skipped)
    assert seen.where == ("b", "c")
    assert seen.severity == severity
    assert "the gradient of 2 of 3 parameters is NaN or infinite" in seen.message
    assert ("and the step was skipped" in seen.message) == skipped


def test_the_module_where_the_gradient_is_first_not_finite_on_its_way_back_is_named():
    bad = {"grad_finite": False}
    layers = (weighted("0", 1.0, **bad), weighted("1", 1.0, **bad), weighted("2", None), weighted("3", 1.0))
    seen = sign("EG202", *layers, grad_norms=(math.nan, 1.0, 1.0))
    assert "on its way back it is first not finite at the output of `1`" in seen.message
    overflow = sign("EG202", *path(1e3, 1e30, 1.0, 1.0), grad_norms=(math.inf, 1.0, 1.0))
    assert "at the outputs of all layers it is finite, at most 1.0e+30 (`1`)" in overflow.message


def test_a_finite_gradient_is_no_sign_and_a_non_finite_forward_is_another_rule():
    assert sign("EG202", grad_norms=(1.0, 0.0, 1e38)).decades == 0.0
    assert sign("EG202") is None
    assert sign("EG202", weighted("0", None, output_finite=False), grad_norms=(math.nan,)) is None


# --- EG301, EG302 ---


def rectifier(dead, *, observations=32, nonlinearity="relu", **settings):
    return LayerReading(
        name="act",
        kind="ReLU",
        nonlinearity=nonlinearity,
        units=100,
        observations=observations,
        dead_frac=dead,
        **settings,
    )


@pytest.mark.parametrize(
    ("layer", "speaks"),
    [
        (rectifier(0.9), "warning"),
        (rectifier(0.8999999762), "warning"),  # nine in ten, as a mean in float32
        (rectifier(0.8999), False),
        (rectifier(0.999), "warning"),
        (rectifier(1.0), "critical"),
        (rectifier(1.0, nonlinearity="relu6"), "critical"),
        (rectifier(1.0, observations=31), None),
        (rectifier(1.0, nonlinearity="leaky_relu"), None),
        (rectifier(1.0, nonlinearity=None), None),
        (rectifier(1.0, output_finite=False), None),
        (rectifier(0.0, zero_frac=0.99), False),
    ],
)
def test_dead_units_are_rectifiers_that_a_whole_batch_leaves_at_zero(layer, speaks):
    seen = sign("EG301", layer)
    assert (seen is None) == (speaks is None)
    if seen is not None:
        assert (seen.severity if seen.speaks else False) == speaks
        lost = 7.2 if layer.dead_frac == 1 else -math.log10(math.sqrt(1 - layer.dead_frac))
        assert seen.decades == pytest.approx(lost, abs=1e-9)


def test_dead_units_are_told_of_the_worst_layer():
    seen = sign("EG301", rectifier(0.95), rectifier(0.2), rectifier(0.91))
    assert len(seen.where) == 2
    assert "95% of the 100 units of `act` are zero for all 32 observations; 2 of 3 rectifier layers" in seen.message


def saturating(frac, name="act"):
    return LayerReading(name=name, kind="Tanh", nonlinearity="tanh", saturated_frac=frac)


@pytest.mark.parametrize(
    ("frac", "speaks"),
    [(0.749, False), (0.75 - 1e-7, "warning"), (0.989, "warning"), (0.99 - 1e-7, "critical"), (1.0, "critical")],
)
def test_saturation_speaks_from_three_quarters_on(frac, speaks):
    seen = sign("EG302", saturating(frac), weighted("1", 1.0))
    assert (seen.severity if seen.speaks else False) == speaks
    assert "EG302" in symptoms_of(Reading(layers=(saturating(frac), weighted("1", 1.0))), Record())


@pytest.mark.parametrize("holder", [(), (weighted("(model)", 1.0),), (weighted("act", 1.0), weighted("(model)", 1.0))])
def test_the_output_of_a_network_may_saturate_also_where_a_module_around_it_has_weights(holder):
    holder = tuple(weighted("net", 1.0) if layer.name == "act" else layer for layer in holder)
    assert sign("EG302", weighted("net.fc", 1.0), saturating(1.0, "net.act"), *holder) is None
    assert sign("EG302", saturating(1.0, "net.act"), weighted("network", 1.0), *holder).speaks is True


def test_saturation_is_not_judged_where_nothing_saturates():
    assert sign("EG302", rectifier(1.0), *path(1, 1)) is None


# --- all of them ---


def test_codes_are_unique_and_well_formed():
    assert len(BY_CODE) == len(rules.ALL) >= 7
    assert list(BY_CODE) == sorted(BY_CODE)
    assert all(len(code) == 5 and code.startswith("EG") and code[2:].isdigit() for code in BY_CODE)
    assert len({rule.symptom for rule in rules.ALL}) == len(rules.ALL)


@pytest.mark.parametrize("code", BY_CODE)
def test_the_page_of_a_rule_has_its_five_headings_in_order(code):
    lines = [line for line in explain(code).splitlines() if line and not line.startswith(" ")]
    assert lines[0].startswith(f"{code} ")
    assert lines[1:] == ["Sees:", "Hurts:", "Cure:", "False alarms:", "Source:"]
    assert BY_CODE[code].symptom.split()[0] in lines[0].lower()


def test_a_page_is_found_in_any_case_and_an_unknown_code_is_refused_with_the_known_ones():
    assert explain(" eg101\n") == explain("EG101")
    with pytest.raises(UnknownRuleError, match=r"^rule code: got 'EG999', want one of EG101, EG102, EG103, .*EG201"):
        explain("EG999")
    with pytest.raises(KeyError, match="rule code"):
        explain("x" * 1000)


def judged(rule, reading):
    record = Record(readings=(reading,))
    return rule.sign(reading, record) if isinstance(rule, AbstractRule) else rule.judge(record)


@pytest.mark.parametrize("rule", rules.ALL, ids=lambda rule: rule.code)
def test_a_rule_is_a_pure_function_with_a_source_and_cures(rule):
    reading = Reading(layers=path(1e-9, 1e-3, 1.0, 1.0))
    assert judged(rule, reading) == judged(rule, reading)
    assert rule.source
    assert len(rule.cures()) >= 2 or rule.code not in CURED_BY_TREATMENTS
    assert len({cure.label for cure in rule.cures()}) == len(rule.cures())
    assert not vars(rule)
    assert inspect.isabstract(type(rule)) is False


@pytest.mark.parametrize("rule", rules.ALL, ids=lambda rule: rule.code)
def test_an_empty_reading_is_no_sign(rule):
    assert judged(rule, Reading()) is None
    assert findings_of(Record(readings=(Reading(),))) == ()
    assert findings_of(Record()) == ()

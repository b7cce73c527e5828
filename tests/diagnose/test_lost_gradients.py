"""A gradient that is lost altogether: what can still be judged, and that it is no recovery."""

from dataclasses import replace

import pytest

from evengrad.diagnose import findings_of, rules
from evengrad.nouns import LayerReading, Reading, Record


def layers(*grads, activations=None):
    activations = activations or [1.0] * len(grads)
    return tuple(
        LayerReading(name=f"{i}", kind="Linear", weighted=True, numel=1, activation_rms=size, grad_rms=grad)
        for i, (grad, size) in enumerate(zip(grads, activations, strict=True))
    )


def codes(*seen):
    readings = tuple(Reading(step=step, layers=layers) for step, layers in enumerate(seen))
    return [finding.code for finding in findings_of(Record(readings=readings))]


def exploding(*grads, activations=None):
    (rule,) = (rule for rule in rules.ALL if rule.code == "EG102")
    reading = Reading(layers=layers(*grads, activations=activations))
    return rule.sign(reading, Record(readings=(reading,)))


HEALTHY = layers(1, 1, 1, 1)
VANISHED = layers(1e-6, 1e-4, 1e-2, 1)
EXPLODED = layers(1e6, 1e4, 1e2, 1, 1, 1)
LOST = layers(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("first", "code"), [(VANISHED, "EG101"), (EXPLODED, "EG102")])
def test_a_network_that_has_lost_its_gradient_has_not_recovered(first, code):
    assert codes(first, LOST) == [code]
    assert codes(HEALTHY, first, LOST, LOST) == [code]
    assert codes(first, HEALTHY, LOST) == []
    assert codes(first, LOST, HEALTHY) == []
    assert codes(HEALTHY, LOST) == []


def test_an_activation_that_grew_has_not_recovered_where_only_half_of_it_can_be_judged():
    grown = tuple(replace(layer, activation_rms=1e3**i, grad_rms=0.0) for i, layer in enumerate(HEALTHY))
    assert codes(grown) == ["EG102"]
    assert codes(grown, LOST) == ["EG102"]
    assert codes(grown, HEALTHY) == []


def recurrent(kind, *profile):
    return (LayerReading(name="rnn", kind=kind, weighted=True, grad_rms=1.0, numel=1, time_grad_rms=profile),)


def test_gates_that_are_not_judged_at_first_are_neither_sick_nor_well_when_the_gradient_is_lost_later():
    faded, lost, held = (1e-9,) * 10 + (1.0,), (0.0,) * 11, (1.0,) * 11
    assert codes(recurrent("LSTM", *faded), recurrent("LSTM", *lost)) == []
    assert codes(*(recurrent("LSTM", *profile) for profile in (faded, faded, lost))) == ["EG103"]
    assert codes(*(recurrent("LSTM", *profile) for profile in (faded, faded, held, lost))) == []
    assert codes(recurrent("RNN", *faded), recurrent("RNN", *lost)) == ["EG103"]


def test_activations_are_judged_whatever_gradient_reached_the_layers():
    sizes = [1.0, 1e2, 1e4, 1e6, 1e8]
    lost = exploding(0.0, 0.0, 0.0, 0.0, 0.0, activations=sizes)
    assert lost.speaks is True
    assert lost.decades == pytest.approx(6.0)  # from the largest of the first quarter
    assert lost.where == ("1", "2", "3", "4")
    assert [item.value for item in lost.evidence] == [1.0, 1e8, 0.0, 0.0]
    assert exploding(None, None, 1.0, 1.0, 1.0, activations=sizes).speaks is True
    assert exploding(0.0, 0.0, 1.0, 1.0, 1.0, 1.0, activations=[*sizes, 1.0]).speaks is True
    assert exploding(0.0, 0.0, 0.0, activations=[1.0, 1e4, 1e8]) is None


def test_activations_that_do_not_grow_acquit_nobody_where_the_gradient_is_lost():
    assert exploding(0.0, 0.0, 0.0, 1.0) is None
    assert exploding(1.0, 1.0, 1.0, 1.0).decades == 0.0

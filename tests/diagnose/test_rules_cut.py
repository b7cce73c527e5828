"""Weights that no gradient reaches, that no optimizer holds, or that are frozen untrained."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of, rules
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, Record, Setup
from evengrad.probe import probe

BY_CODE = {rule.code: rule for rule in rules.ALL}
TORCH = 1 / math.sqrt(3 * 64)  # rms of a weight of 64 inputs as torch draws it
PARAMETERS = ("a.weight", "b.weight", "head.weight")


def judge(code, record):
    return BY_CODE[code].judge(record)


def layer(name, grad, **settings):
    settings = {"kind": "Linear", "weighted": True, "numel": 4, "activation_rms": 1.0} | settings
    return LayerReading(name=name, grad_rms=grad, **settings)


def weights(rms, names=PARAMETERS):
    return tuple(ParameterReading(name=name, numel=4096, fan_in=64, weight_rms=rms) for name in names)


def cut(*, norms=(0.0, 0.0, 1.0), grads=(None, None, 1.0), rms=TORCH, losses=(1.0,), setup=True, frozen=()):
    layers = tuple(layer(name, grad) for name, grad in zip(("a", "b", "head"), grads, strict=True))
    readings = tuple(
        Reading(step=step, loss=loss, grad_norms=norms, layers=layers, weights=weights(rms))
        for step, loss in enumerate(losses)
    )
    return Record(readings=readings, parameters=PARAMETERS, setup=Setup(frozen=frozen) if setup else None)


# --- EG108 ---


def test_a_front_without_gradient_that_nothing_has_trained_is_told_with_its_place():
    seen = judge("EG108", cut())
    assert seen.speaks is True
    assert seen.where == ("a", "b")
    assert "no gradient reaches `b` or anything in front of it: 2 parameters of 2 layers" in seen.message
    assert seen.cause.startswith("a mistake in the code: the graph ends between `b` and `head`")


@pytest.mark.parametrize(
    "settings",
    [
        {"rms": 0.37},  # pretrained, under no_grad on purpose
        {"grads": (0.0, 0.0, 1.0)},  # a head that starts at zero passes a gradient of zero
        {"norms": (1e-9, 0.0, 1.0)},
        {"grads": (None, 1.0, 1.0), "norms": (0.0, 1.0, 1.0), "frozen": ("a.weight",)},
        {"frozen": ("a.weight", "b.weight")},
        {"grads": (1.0, None, 1.0), "norms": (1.0, 0.0, 1.0)},  # a side branch
        {"grads": (1.0, 1.0, None), "norms": (1.0, 1.0, 0.0)},  # a head that is not used
    ],
)
def test_frozen_pretrained_and_unused_parts_are_no_cut(settings):
    assert judge("EG108", cut(**settings)).speaks is False


def test_who_knows_nothing_of_what_is_frozen_says_nothing():
    assert judge("EG108", cut(setup=False)) is None
    assert judge("EG108", Record(readings=(Reading(loss=1.0),), setup=Setup())) is None


@pytest.mark.parametrize(("losses", "speaks"), [([1.0] * 40, True), ([1.0 - k / 80 for k in range(40)], False)])
def test_trained_weights_that_are_cut_are_told_where_the_loss_does_not_fall(losses, speaks):
    assert judge("EG108", cut(rms=0.37, losses=losses)).speaks == speaks


def test_one_gradient_in_one_reading_is_enough_to_be_no_cut():
    record = cut(losses=(1.0, 1.0, 1.0))
    later = replace(record.readings[1], grad_norms=(1.0, 1.0, 1.0))
    assert judge("EG108", replace(record, readings=(record.readings[0], later))).speaks is False


def zero(*, losses=(1.0, 1.0), layers=(), ends=None):
    readings = tuple(
        Reading(step=step, loss=loss, grad_norms=(0.0, 0.0, 0.0), total_norm=0.0, layers=layers, ends=ends)
        for step, loss in enumerate(losses)
    )
    return Record(readings=readings, parameters=PARAMETERS)


def test_a_gradient_that_is_zero_at_every_step_is_told_and_a_softmax_of_one_number_explained():
    seen = judge("EG108", zero(layers=(layer("a", 0.0), layer("head", 0.0)), ends=Ends(softmax_size=1)))
    assert seen.speaks is True
    assert seen.where == ("head",)
    assert "the gradient of all 3 parameters is exactly zero at every step" in seen.message
    assert "the softmax goes over a single number" in seen.cause
    cuts = judge("EG108", zero(ends=Ends(softmax_size=10, cuts=("the output has no graph",))))
    assert cuts.cause == "a mistake in the code: the output has no graph"


@pytest.mark.parametrize(
    "settings",
    [
        {"losses": (0.0, 0.0)},  # nothing is left to learn
        {"losses": (None, None)},
        {"losses": (math.nan,)},
        {"layers": (layer("act", 0.0, nonlinearity="relu", dead_frac=1.0),)},
        {"layers": (layer("act", 0.0, nonlinearity="relu", zero_frac=1.0),)},
        {"layers": (layer("act", 0.0, nonlinearity="tanh", saturated_frac=1.0),)},
    ],
)
def test_dead_units_and_a_loss_of_zero_explain_a_gradient_of_zero(settings):
    assert judge("EG108", zero(**settings)) is None


def arrived(*, norms=(0.0, 0.0, 0.0), grads=(1.0, 1.0), names=("a.bias", "b.bias", "b.weight"), frozen=()):
    layers = tuple(layer(name, grad) for name, grad in zip(("a", "b"), grads, strict=True))
    reading = Reading(loss=1.0, grad_norms=norms, layers=layers)
    return Record(readings=(reading,), parameters=names, setup=Setup(frozen=frozen))


def test_gradients_that_arrive_at_the_layers_and_not_at_the_optimizer_have_been_cleared():
    seen = judge("EG111", arrived())
    assert seen.speaks is True
    assert seen.where == ("optimizer",)
    assert "between backward and step" in seen.cause
    assert judge("EG108", arrived()) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"grads": (1.0, 0.0)},
        {"grads": (None, None)},
        {"names": ("a.weight", "b.bias", "b.weight")},
        {"frozen": ("a.bias", "b.bias")},
        {"norms": (0.0, 1e-30, 0.0)},
    ],
)
def test_a_gradient_that_is_not_there_by_itself_has_not_been_cleared(settings):
    seen = judge("EG111", arrived(**settings))
    assert seen is None or seen.speaks is False


def test_biases_that_are_exactly_zero_show_that_nothing_has_trained_a_front():
    record = cut(rms=0.37)
    reading = record.readings[0]
    names = (*PARAMETERS, "a.bias", "b.bias")
    for size, speaks in ((0.0, True), (1e-9, False)):
        biases = tuple(ParameterReading(name=name, numel=64, weight_rms=size) for name in names[3:])
        new = replace(reading, grad_norms=(0.0, 0.0, 1.0, 0.0, 0.0), weights=(*reading.weights, *biases))
        assert judge("EG108", replace(record, readings=(new,), parameters=names)).speaks is speaks


class Body(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head, self.how = nn.Linear(64, 10), how

    def forward(self, x):
        with torch.set_grad_enabled(self.how != "no_grad"):
            features = self.body(x)
        return self.head(features.detach() if self.how == "detach" else features)


def probed(model, loss=functional.cross_entropy, target=None):
    target = torch.randint(10, (32,)) if target is None else target
    record = probe(model, loss, (torch.rand(32, 64), target))
    frozen = tuple(name for name, value in model.named_parameters() if not value.requires_grad)
    return replace(record, setup=Setup(frozen=frozen))


@pytest.mark.parametrize("how", ["detach", "no_grad"])
def test_a_detach_in_a_real_forward_is_found_by_the_gradients_of_its_layers(how):
    torch.manual_seed(0)
    seen = judge("EG108", probed(Body(how)))
    assert seen.where == ("body.0", "body.2")
    assert judge("EG108", probed(Body("fixed"))).speaks is False


def test_a_real_body_that_was_trained_before_may_run_without_gradients():
    torch.manual_seed(0)
    model = Body("no_grad")
    for index in (0, 2):
        nn.init.normal_(model.body[index].weight, std=0.3)
    assert judge("EG108", probed(model)).speaks is False


def test_a_real_body_that_is_frozen_is_no_cut():
    torch.manual_seed(0)
    model = Body("fixed")
    model.body.requires_grad_(False)
    assert judge("EG108", probed(model)).speaks is False


@pytest.mark.parametrize("start", ["head", "lora"])
def test_real_layers_that_start_at_zero_cut_nothing(start):
    torch.manual_seed(0)
    model = Body("fixed")
    nn.init.zeros_((model.head if start == "head" else model.body[2]).weight)
    assert judge("EG108", probed(model)).speaks is False


def test_a_real_softmax_over_one_unit_gives_no_gradient_and_a_sigmoid_does():
    torch.manual_seed(0)
    target = torch.randint(2, (32, 1)).float()
    one = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1), nn.Softmax(1))
    assert judge("EG108", probed(one, functional.mse_loss, target)).speaks is True
    fixed = nn.Sequential(*one[:3], nn.Sigmoid())
    assert judge("EG108", probed(fixed, functional.mse_loss, target)).speaks is False


# --- EG109, EG110 ---


TWO = (Reading(step=3), Reading(step=9))


def known(setup, readings=TWO, parameters=PARAMETERS):
    return Record(readings=readings, parameters=parameters, setup=setup)


def test_weights_in_no_optimizer_are_told_by_their_modules():
    seen = judge("EG109", known(Setup(left_out=("head.weight", "head.bias", "scale"))))
    assert seen.where == ("head", "scale")
    assert seen.when == (3, 9)
    assert "3 of 6 parameters require a gradient and are in no optimizer" in seen.message
    assert seen.severity == "critical"
    assert judge("EG109", known(Setup(left_out=("head.weight",)))).severity == "warning"


def test_modules_in_a_plain_list_are_told_with_what_to_write_instead():
    seen = judge("EG109", known(Setup(unregistered=("blocks[0]", "blocks[1]"), left_out=("a.weight",))))
    assert seen.where == ("blocks[0]", "blocks[1]", "a")
    assert seen.severity == "critical"
    assert "nn.ModuleList" in seen.cause


def test_a_complete_optimizer_and_an_unknown_one_are_no_sign():
    assert judge("EG109", known(Setup())).speaks is False
    assert judge("EG109", known(None)) is None
    assert judge("EG109", known(Setup(left_out=("a",)), readings=())) is None


def untrained(*names, losses=(), norms=(), parameters=PARAMETERS, **settings):
    setup = Setup(left_out=("body.weight", "body.bias"), untrained=names, **settings)
    readings = tuple(Reading(step=step, loss=loss, grad_norms=norms) for step, loss in enumerate(losses))
    return known(setup, readings or TWO, parameters)


def test_weights_as_drawn_in_no_optimizer_are_told_in_a_run_that_learns():
    falling = [2.3 * 0.98**step for step in range(200)]
    (finding,) = findings_of(untrained("body.weight", losses=falling))
    assert (finding.code, finding.severity, finding.where) == ("EG109", "warning", ("body",))
    assert "as they were drawn at random" in finding.message
    assert findings_of(untrained(losses=falling)) == ()
    assert findings_of(untrained("body.weight", losses=falling, frozen=("body.weight",))) == ()


def test_a_run_that_does_not_learn_with_the_rest_is_sick():
    seen = judge("EG109", untrained("body.weight", losses=[2.3 + 0.01 * (step % 3) for step in range(200)]))
    assert (seen.speaks, seen.severity, seen.only_if_sick) == (True, "critical", False)


def test_hidden_weights_as_drawn_are_told_with_what_to_write_instead():
    record = known(Setup(unregistered=("blocks[0]",), untrained=("blocks[0].weight",)))
    seen = judge("EG109", record)
    assert (seen.where, seen.severity, seen.only_if_sick) == (("blocks[0]",), "warning", False)
    assert "nn.ModuleList" in seen.cause
    setup = replace(record.setup, left_out=("other.weight",), untrained=("other.weight",))
    mixed = judge("EG109", replace(record, setup=setup))
    assert mixed.where == ("other",)
    assert "model.parameters()" in mixed.cause


@pytest.mark.parametrize(("norms", "certain"), [((0.0, 1.0), False), ((1.0, 1.0), True), ((), False)])
def test_where_their_gradient_is_known_untrained_weights_must_have_one(norms, certain):
    record = untrained("body.weight", losses=[1.0] * 3, norms=norms, parameters=("body.weight", "head.weight"))
    assert judge("EG109", record).only_if_sick is not certain


def test_frozen_weights_that_are_known_as_drawn_are_named_without_a_layer_that_was_read():
    record = known(Setup(frozen=("body.0.weight", "body.0.bias"), untrained=("body.0.weight", "a.weight")))
    assert judge("EG110", record).where == ("body.0",)
    assert judge("EG110", known(Setup(frozen=("body.0.bias",), untrained=("a.weight",)))) is None


def frozen_record(*sizes, names=("a", "b"), units=64, trained=PARAMETERS):
    """Frozen layers whose squared weight norms are these, in thirds of their units."""
    layers = tuple(
        layer(name, None, units=units, weight_norm=math.sqrt(size * units / 3))
        for name, size in zip(names, sizes, strict=True)
    )
    setup = Setup(frozen=tuple(f"{name}.weight" for name in names))
    return known(setup, readings=(Reading(layers=layers),), parameters=trained)


@pytest.mark.parametrize(("size", "speaks"), [(1.0, True), (1.2, True), (1.25, False), (0.75, False), (3.0, False)])
def test_frozen_layers_are_told_where_their_norms_are_as_torch_draws_them(size, speaks):
    seen = judge("EG110", frozen_record(size, 1.0))
    assert seen.speaks == speaks
    assert (seen.where == ("a", "b")) == speaks


def test_one_narrow_layer_may_agree_by_chance_and_one_wide_one_may_not():
    assert judge("EG110", frozen_record(1.0, names=("a",), units=255)).speaks is False
    assert judge("EG110", frozen_record(1.0, names=("a",), units=256)).speaks is True
    assert judge("EG110", frozen_record(1.0, 1.0, trained=("a.weight", "b.weight"))).speaks is False
    assert judge("EG110", known(Setup(frozen=("a.weight",)))) is None


@pytest.mark.parametrize(("rms", "speaks"), [(TORCH, True), (0.37, False)])
def test_frozen_weights_that_the_optimizer_holds_are_known_by_their_own_numbers(rms, speaks):
    record = known(Setup(frozen=("a.weight", "b.weight")), readings=(Reading(weights=weights(rms)),))
    seen = judge("EG110", record)
    assert seen.speaks is speaks
    assert (seen.where == ("a", "b")) == speaks


@pytest.mark.parametrize("seed", range(5))
def test_real_layers_that_are_frozen_as_drawn_are_found_and_trained_ones_are_not(seed):
    torch.manual_seed(seed)
    model = Body("fixed")
    model.body.requires_grad_(False)
    assert judge("EG110", probed(model)).where == ("body.0", "body.2")
    for index in (0, 2):
        nn.init.normal_(model.body[index].weight, std=0.3)
    assert judge("EG110", probed(model)).speaks is False

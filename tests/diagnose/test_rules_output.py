"""Rules of output and loss: on operations made by hand, on their edges, and on models that have the fault."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import rules
from evengrad.nouns import Ends, LayerReading, Reading, Record, TensorReading
from evengrad.probe import EndsSample

BY_CODE = {rule.code: rule for rule in rules.ALL}
CE, SQUARED, BCE = ("NllLoss", "LogSoftmax"), ("MseLoss",), ("BinaryCrossEntropyWithLogits",)


def sign(code, ops, layers=(), **ends):
    return signs(code, Reading(ends=Ends(loss_ops=tuple(ops), **ends), layers=layers))[0]


def signs(code, *readings):
    rule, record = BY_CODE[code], Record(readings=readings)
    return [rule.judge(record)] if hasattr(rule, "judge") else [rule.sign(one, record) for one in readings]


def read(model, loss, inputs, target):
    """The ends of a real model and loss."""
    output = model(inputs)
    sample = EndsSample(inputs, output, loss=loss(output, target))
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    units = model.get_submodule(last).out_features
    layers = (LayerReading(name=last, kind="Linear", weighted=True, units=units),)
    return Reading(ends=sample.readings(sample.packed().tolist()), layers=layers)


def net(*last, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, classes), *last)


def batch(classes=4, count=64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("code", ["EG501", "EG502", "EG503", "EG504"])
def test_a_reading_without_ends_cannot_tell(code):
    assert signs(code, Reading()) == [None]


@pytest.mark.parametrize("code", ["EG501", "EG502", "EG503"])
def test_a_loss_of_unknown_form_cannot_tell(code):
    assert sign(code, ()) is None
    assert sign(code, ("Neg", "Mean", "Softmax")) is None


# --- EG501 ---


@pytest.mark.parametrize(
    ("ops", "speaks"),
    [
        ((*CE, "Softmax"), True),
        (("NllLoss2D", "LogSoftmax", "Softmax"), True),
        (("Div", "Neg", "Sum", "Mul", "LogSoftmax", "Softmax"), True),
        (("Add", *CE, "ToCopy", "Softmax"), True),
        ((*BCE, "Sigmoid"), True),
        (("Mean", *CE, "Softmax"), True),
        (CE, False),
        ((*CE, "LogSoftmax"), False),
        ((*CE, "Mul", "Softmax"), False),
        ((*CE, "Relu", "Softmax"), False),
        (("NllLoss", "Log", "Softmax"), False),
        (("MseLoss", "Softmax"), False),
        (("BinaryCrossEntropy", "Sigmoid"), False),
    ],
)
def test_a_softmax_twice_is_two_that_follow_on_each_other(ops, speaks):
    assert sign("EG501", ops).speaks == speaks


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_loss_that_a_softmax_twice_cannot_fall_below_is_that_of_the_surest_answer(classes):
    sure = torch.eye(classes, dtype=torch.float64)[:1]  # what a softmax gives at best
    lowest = functional.cross_entropy(sure, torch.tensor([0])).item()
    seen = sign("EG501", (*CE, "Softmax"), softmax_size=classes)
    assert seen.evidence[0].value == pytest.approx(lowest)
    assert f"{lowest:.2f}" in seen.message
    assert "a mistake in the code" in seen.cause


def test_softmax_twice_is_seen_in_a_model_and_not_in_the_mended_one():
    inputs, labels = batch()
    (twice,) = signs("EG501", read(net(nn.Softmax(1)), functional.cross_entropy, inputs, labels))
    assert twice.speaks
    assert twice.severity == "warning"
    for last, loss in ((nn.Identity(), functional.cross_entropy), (nn.LogSoftmax(1), functional.nll_loss)):
        assert not signs("EG501", read(net(last), loss, inputs, labels))[0].speaks
    entropy = read(net(), lambda output, _: -(output.softmax(1) * output.log_softmax(1)).sum() / 64, inputs, labels)
    assert signs("EG501", entropy) == [None]


# --- EG502 ---


@pytest.mark.parametrize(
    ("ops", "what"),
    [
        ((*CE, "Relu"), "ReLU"),
        ((*CE, "Tanh"), "tanh"),
        ((*CE, "Sigmoid"), "sigmoid"),
        ((*CE, "Hardtanh"), "hardtanh"),
        (("MseLoss", "Softmax", "Relu"), "ReLU"),
        ((*BCE, "Relu"), "ReLU"),
        ((*BCE, "Gelu"), "GELU"),
        (("BinaryCrossEntropy", "Sigmoid", "Softplus"), "softplus"),
        (CE, None),
        ((*CE, "Mul", "Tanh"), None),  # capped softly, as in Gemma
        ((*CE, "Mean", "Relu"), None),  # pooled, as in SqueezeNet
        ((*CE, "LeakyRelu"), None),
        ((*CE, "Gelu"), None),
        ((*CE, "Softmax"), None),
        (("MseLoss", "Relu"), None),
        (("BinaryCrossEntropy", "Sigmoid"), None),
    ],
)
def test_an_activation_on_logits_is_one_that_takes_something_from_them(ops, what):
    seen = sign("EG502", ops)
    assert seen.speaks == (what is not None)
    assert what is None or f"a {what} stands" in seen.message


@pytest.mark.parametrize(("count", "severity"), [(7, "warning"), (8, "critical")])
def test_dead_logits_are_critical_when_enough_samples_say_so(count, severity):
    output = TensorReading(name="output", shape=(count, 4), minimum=0.0, maximum=3.0, features=4, constant_frac=0.25)
    seen = sign("EG502", (*CE, "Relu"), output=output)
    assert seen.severity == severity
    assert ("25% of the logits" in seen.message) == (severity == "critical")


def test_rectified_logits_are_seen_in_a_model_with_the_dead_one_and_its_place():
    inputs, labels = batch()
    model = net(nn.ReLU())
    nn.init.constant_(model[0].bias[:1], -50.0)
    (seen,) = signs("EG502", read(model, functional.cross_entropy, inputs, labels))
    assert seen.severity == "critical"
    assert seen.evidence[0].value == pytest.approx(25.0)
    assert seen.where == ("0",)
    softcap = lambda output, target: functional.cross_entropy(30.0 * torch.tanh(output / 30.0), target)  # noqa: E731
    assert not signs("EG502", read(net(), softcap, inputs, labels))[0].speaks


# --- EG503, EG505 ---


def numbers(mean=0.0, std=1.0, minimum=-2.0, maximum=2.0, count=64, **settings):
    return TensorReading(
        name="target", shape=(count, 1), mean=mean, std=std, minimum=minimum, maximum=maximum, features=1, **settings
    )


LAST = (LayerReading(name="2", kind="Linear", weighted=True, units=1), LayerReading(name="3", kind="Softmax"))


@pytest.mark.parametrize(
    ("ops", "size", "features", "units", "speaks"),
    [
        (("MseLoss", "Softmax"), 1, 1, 1, True),
        (("BinaryCrossEntropy", "Softmax"), 1, 1, 1, True),
        (CE, 1, 1, 1, True),
        (("MseLoss", "Softmax"), 2, 1, 1, False),
        (("MseLoss", "Mul", "Softmax"), 1, 1, 1, False),  # not the last operation
        (("MseLoss", "Softmax"), 1, 5, 1, False),
        (CE, 1, 1, 5, False),  # a list of one candidate, once
    ],
)
def test_a_softmax_over_one_number_is_one_of_an_output_of_one(ops, size, features, units, speaks):
    layers = (LayerReading(name="2", kind="Linear", weighted=True, units=units), LayerReading(name="3", kind="Softmax"))
    output = TensorReading(name="output", shape=(8, features), features=features, minimum=1.0, maximum=1.0)
    seen = sign("EG503", ops, layers, softmax_size=size, output=output)
    assert seen.speaks == speaks
    assert not speaks or (seen.where, seen.severity) == (("3",), "critical")


def test_a_softmax_over_one_unit_of_a_model_has_no_gradient_and_is_told_so():
    inputs, labels = batch(2)
    model = net(nn.Softmax(1), classes=1)
    loss = functional.binary_cross_entropy
    (seen,) = signs("EG503", read(model, loss, inputs, labels[:, None].float()))
    loss(model(inputs), labels[:, None].float()).backward()
    assert model[0].weight.grad.abs().max() == 0.0
    assert seen.speaks
    assert "always 1" in seen.cause
    assert not signs("EG503", read(net(nn.Sigmoid(), classes=1), loss, inputs, labels[:, None].float()))[0].speaks


@pytest.mark.parametrize(
    ("op", "mean", "speaks"),
    [
        ("Sigmoid", 1.51, True),  # four standard errors of a mean of 64 with a spread of 1 are 0.5
        ("Sigmoid", 1.49, False),
        ("Sigmoid", -0.51, True),
        ("Sigmoid", -0.49, False),
        ("Tanh", 1.51, True),
        ("Tanh", 0.9, False),
        ("Relu", -0.51, True),
        ("Relu", 1e9, False),
        ("Gelu", -9.0, False),
        ("Mul", 9.0, False),
    ],
)
def test_a_target_whose_mean_lies_outside_cannot_be_reached(op, mean, speaks):
    assert sign("EG503", ("MseLoss", op), target=numbers(mean=mean)).speaks == speaks
    assert sign("EG503", ("Mean", "Abs", "Sub", op), target=numbers(mean=mean)).speaks == speaks


def test_a_tenth_of_the_spread_outside_is_nothing_however_many_samples_say_so():
    assert not sign("EG503", ("MseLoss", "Relu"), target=numbers(mean=-0.09, count=1_000_000)).speaks
    assert sign("EG503", ("MseLoss", "Relu"), target=numbers(mean=-0.11, count=1_000_000)).speaks


def test_labels_and_targets_without_a_finite_number_have_no_range():
    assert not sign("EG503", ("MseLoss", "Sigmoid"), target=numbers(mean=9.0, dtype="int64")).speaks
    assert not sign("EG503", ("MseLoss", "Sigmoid"), target=numbers(mean=9.0, finite_frac=0.0)).speaks


@pytest.mark.parametrize(
    ("ops", "maximum", "severity"),
    [
        (("NllLoss",), 0.5, "critical"),
        (("NllLoss",), -0.5, None),  # logarithms from elsewhere
        (("NllLoss", "Softmax"), 1.0, "warning"),
        (("NllLoss", "Log", "Softmax"), -0.1, None),
        (CE, 0.5, None),
    ],
)
def test_a_likelihood_wants_logarithms(ops, maximum, severity):
    seen = sign("EG503", ops, output=TensorReading(name="output", maximum=maximum))
    assert (seen.severity if seen.speaks else None) == severity


def narrow(*targets, op="Tanh", size=None):
    ends = [Ends(loss_ops=("MseLoss", op), target=target, softmax_size=size) for target in targets]
    return signs("EG505", *(Reading(step=step, ends=one) for step, one in enumerate(ends)))[0]


@pytest.mark.parametrize(("maximum", "speaks"), [(2.01, True), (1.99, False)])
def test_a_range_is_too_narrow_from_one_standard_deviation_on(maximum, speaks):
    seen = narrow(numbers(minimum=-1.0, maximum=maximum))
    assert seen.speaks == speaks
    assert not speaks or seen.where == ("output",)


def test_one_batch_with_an_outlier_does_not_make_a_range_too_narrow():
    usual, outlier = numbers(minimum=-1.0, maximum=1.0), numbers(maximum=50.0)
    assert not narrow(usual, outlier, usual).speaks
    assert narrow(outlier, outlier, usual).speaks


def test_what_cannot_be_reached_at_all_is_told_once():
    assert not narrow(numbers(mean=9.0, minimum=5.0, maximum=12.0)).speaks
    assert narrow(numbers(maximum=9.0), op="Softmax", size=1) is None
    assert not narrow(numbers(maximum=9.0), op="Gelu").speaks
    assert narrow(numbers(dtype="int64")) is None


# --- EG504 ---


def custom(*wrong):
    rule, reading = BY_CODE["EG504"], Reading(ends=Ends(wrong_backward=wrong))
    return rule.sign(reading, Record(readings=(reading,)))


def test_a_wrong_backward_is_passed_on_with_its_parameters():
    seen = custom(("Swish", "0.weight", 0.5), ("Swish", "0.bias", 0.5))
    assert seen.speaks
    assert seen.severity == "warning"
    assert seen.where == ("0.weight", "0.bias")
    assert seen.decades == pytest.approx(-math.log10(0.5))
    assert "gradcheck" in seen.cause
    assert not custom().speaks
    assert custom(("Swish", "", 3.0)).where == ()


@pytest.mark.parametrize(
    "name", ["GradReverse", "ReverseLayerF", "RevGrad", "ScaleGradient", "STEFunction", "StraightThrough", "Quantize"]
)
def test_a_gradient_that_is_meant_to_be_another_one_is_not_wrong(name):
    assert not custom((name, "0.weight", -1.0)).speaks
    assert custom(("Activation", "0.weight", -1.0)).speaks


def test_a_forward_without_a_slope_has_no_wrong_backward():
    assert not custom(("Threshold", "0.weight", math.inf)).speaks
    assert not custom(("Threshold", "0.weight", math.nan)).speaks
    assert custom(("Threshold", "0.weight", 0.0)).decades > 30

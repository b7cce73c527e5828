"""Rules of data: on tensors made by hand, on their edges, and on trainings with data of this kind."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from evengrad.diagnose import rules
from evengrad.nouns import Ends, LayerReading, Reading, Record, TensorReading
from evengrad.probe import EndsSample

BY_CODE = {rule.code: rule for rule in rules.ALL}
ABOVE, BELOW = 1.001, 0.999
CE, SQUARED = ("NllLoss", "LogSoftmax"), ("MseLoss",)


def judge(code, *ends, layers=(), first_step=0, **settings):
    readings = tuple(
        Reading(step=step, ends=one, layers=layers, **settings) for step, one in enumerate(ends, first_step)
    )
    return BY_CODE[code].judge(Record(readings=readings))


def tensor(rms=1.0, *, name="input", shape=(32, 8), **settings):
    settings = {"std": rms, "minimum": -3 * rms, "maximum": 3 * rms, "features": shape[-1]} | settings
    return TensorReading(name=name, shape=shape, **settings)


def given(*inputs, **settings):
    return Ends(inputs=inputs, **settings)


def linear(activation_rms=1.0, weight_norm=4.0, units=16, name="0", kind="Linear"):
    return LayerReading(
        name=name, kind=kind, weighted=True, activation_rms=activation_rms, weight_norm=weight_norm, units=units
    )


NORM = LayerReading(name="norm", kind="BatchNorm1d")


def trained(model, batches, loss, lr=0.0):
    """Train by plain descent and read the ends of every step."""
    readings = []
    for step, (inputs, target) in enumerate(batches):
        output = model(inputs)
        value = loss(output, target)
        sample = EndsSample(inputs, output, loss=value)
        ends = sample.readings(sample.packed().tolist())
        model.zero_grad()
        value.backward()
        norms = [parameter.grad.norm().item() for parameter in model.parameters()]
        layers = tuple(
            LayerReading(name=name, kind="Linear", weighted=True, units=module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        )
        readings.append(
            Reading(step=step, loss=value.item(), ends=ends, grad_norms=tuple(norms), layers=layers, lrs=(lr,))
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(lr * parameter.grad)
    return Record(readings=tuple(readings))


def digits(count=20, size=32):
    data = load_digits()
    inputs, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        rows = torch.randint(0, len(labels), (size,), generator=generator)
        yield inputs[rows], labels[rows]


def net(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))


@pytest.mark.parametrize("code", ["EG701", "EG702", "EG703", "EG704"])
def test_a_run_without_ends_cannot_be_told(code):
    assert judge(code, None, None) is None
    assert judge(code, Ends()) in (None, BY_CODE[code].judge(Record(readings=(Reading(ends=Ends()),))))


# --- EG701 ---


@pytest.mark.parametrize(("factor", "speaks"), [(ABOVE, True), (BELOW, False)])
def test_an_input_is_large_from_ten_on(factor, speaks):
    seen = judge("EG701", given(tensor(10 * factor)))
    assert seen.speaks == speaks
    assert not speaks or seen.decades == pytest.approx(1.0, abs=1e-3)
    assert judge("EG701", given(tensor(0.1, mean=10 * factor))).speaks == speaks  # a mean is as bad as a spread


@pytest.mark.parametrize(("factor", "speaks"), [(ABOVE, False), (BELOW, True)])
def test_an_input_is_small_when_nothing_reaches_a_thirtieth(factor, speaks):
    assert judge("EG701", given(tensor(0.001, minimum=-0.01, maximum=0.03 * factor))).speaks == speaks
    assert judge("EG701", given(tensor(0.001, maximum=0.01, minimum=-0.03 * factor))).speaks == speaks


@pytest.mark.parametrize(
    ("largest", "smallest", "speaks"),
    [(4.0, 0.0399, True), (4.0, 0.0401, False), (3.1, 1e-3, False), (4.0, 0.0, False)],
)
def test_features_are_apart_at_two_decades_when_the_largest_is_beyond_the_unit(largest, smallest, speaks):
    seen = judge("EG701", given(tensor(1.0, feature_std_max=largest, feature_std_min=smallest)))
    assert seen.speaks == speaks
    assert not speaks or "decades apart" in seen.message


def test_sizes_are_medians_over_batches():
    usual, outlier = given(tensor(1.0)), given(tensor(1e6))
    assert not judge("EG701", outlier, usual, usual).speaks
    assert judge("EG701", outlier, outlier, usual).speaks


@pytest.mark.parametrize(
    "one",
    [
        tensor(1e3, dtype="int64"),
        tensor(1e3, name="input.attention_mask"),
        tensor(1e8, minimum=-1e9, maximum=0.0),
        tensor(1e3, shape=(32,)),
    ],
)
def test_ids_masks_and_inputs_of_one_dimension_are_not_judged(one):
    assert judge("EG701", given(one)) is None
    assert judge("EG701", given(one, tensor(1e3))).speaks


def test_a_model_that_normalises_its_input_itself_is_left_alone():
    large = given(tensor(100.0))
    assert judge("EG701", large, layers=(linear(activation_rms=100.0),)).speaks
    assert not judge("EG701", large, layers=(NORM, linear(activation_rms=1.0))).speaks
    assert judge("EG701", large, layers=(linear(activation_rms=100.0), NORM)).speaks
    # a formula in the forward: weights of norm 4 over 16 units make 100 of an input of 100
    assert not judge("EG701", large, layers=(linear(activation_rms=9.9),)).speaks
    assert judge("EG701", large, layers=(linear(activation_rms=10.1),)).speaks
    assert judge("EG701", large, layers=(linear(activation_rms=0.5, kind="LSTM"),)).speaks  # bounded, not normalised


def test_raw_pixels_are_told_and_scaled_ones_are_not():
    raw = trained(net(), ((256 * inputs, labels) for inputs, labels in digits()), functional.cross_entropy)
    scaled = trained(net(), digits(), functional.cross_entropy)
    seen = BY_CODE["EG701"].judge(raw)
    assert seen.speaks
    assert seen.where == ("input",)
    assert not BY_CODE["EG701"].judge(scaled).speaks


def test_the_longest_stable_step_shrinks_with_the_square_of_the_input_as_the_rule_says():
    def longest_step(scale):
        data = scale * torch.randn(256, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return 2.0 / torch.linalg.eigvalsh(2.0 * data.T @ data / 256)[-1].item()  # of a linear regression

    assert longest_step(1.0) / longest_step(10.0) == pytest.approx(100.0)


# --- EG702 ---


def target(rms, mean=0.0, **settings):
    return tensor(rms, name="target", mean=mean, shape=(32, 1), **settings)


def first_output(rms):
    return tensor(rms, name="output", shape=(32, 1))


@pytest.mark.parametrize(
    ("output", "wanted", "speaks"),
    [
        (0.1, 10.01, True),
        (0.1, 9.99, False),  # against one at the least
        (0.0, 1.0, False),
        (3.0, 30.1, True),
        (3.0, 29.9, False),
        (1.0, 0.0099, True),
        (1.0, 0.0101, False),
        (1.0, 0.0, False),
    ],
)
def test_a_target_is_large_or_small_against_the_first_output(output, wanted, speaks):
    ends = Ends(output=first_output(output), target=target(wanted), loss_ops=SQUARED)
    assert judge("EG702", ends).speaks == speaks


@pytest.mark.parametrize("wanted", [1.09, 0.39, 0.0101])
def test_a_target_near_one_is_not_told_however_far_the_output_is(wanted):
    ends = Ends(output=first_output(68.5), target=target(wanted), loss_ops=SQUARED)
    assert not judge("EG702", ends).speaks


@pytest.mark.parametrize(("spread", "speaks"), [(0.0199, True), (0.0201, False), (0.0, False)])
def test_a_mean_of_a_hundred_standard_deviations_is_told(spread, speaks):
    ends = Ends(output=first_output(0.3), target=target(spread, mean=2.0), loss_ops=SQUARED)
    assert judge("EG702", ends).speaks == speaks


def test_a_large_mean_is_as_far_as_a_large_spread():
    ends = Ends(output=first_output(0.3), target=target(1.0, mean=50.0), loss_ops=SQUARED)
    assert judge("EG702", ends).speaks


def test_targets_are_judged_for_distances_and_from_the_first_step_only():
    settings = {"output": first_output(0.3), "target": target(50.0)}
    assert judge("EG702", Ends(**settings, loss_ops=SQUARED), first_step=5) is None
    assert judge("EG702", Ends(**settings, loss_ops=("BinaryCrossEntropy", "Sigmoid"))) is None
    assert judge("EG702", Ends(**settings | {"target": target(50.0, dtype="int64")}, loss_ops=SQUARED)) is None
    assert judge("EG702", Ends(**settings, loss_ops=("HuberLoss",))).speaks


# --- EG703 ---


def broken(**settings):
    return tensor(1.0, finite_frac=0.99, **settings)


def test_what_is_not_finite_is_told_when_something_behind_it_is_not_either():
    bad = given(broken())
    assert judge("EG703", bad, loss=math.nan).speaks
    assert judge("EG703", bad, total_norm=math.inf).speaks
    assert judge("EG703", bad, grad_norms=(1.0, math.nan)).speaks
    assert judge("EG703", bad, layers=(LayerReading(name="0", kind="Linear", output_finite=False),)).speaks
    assert not judge("EG703", bad, loss=1.0, total_norm=1.0, layers=(linear(),)).speaks  # filled or masked inside
    assert not judge("EG703", given(tensor()), loss=math.nan).speaks


def test_a_target_that_is_not_finite_is_told_by_its_name():
    seen = judge("EG703", given(tensor(), target=broken(name="target")), loss=math.nan)
    assert seen.where == ("target",)
    assert seen.severity == "critical"


@pytest.mark.parametrize("mask", [broken(name="input.mask"), broken(minimum=0.0, maximum=0.0)])
def test_masks_of_minus_infinity_are_fine(mask):
    assert not judge("EG703", given(tensor(), mask), loss=math.nan).speaks


def same(**settings):
    return tensor(0.0, constant_frac=1.0, minimum=1.0, maximum=1.0, **settings)


def test_an_input_is_constant_when_all_of_it_is_in_three_batches_while_targets_differ():
    labels = tensor(2.0, name="target", shape=(32,), dtype="int64", features=0)
    constant = given(same(), target=labels)
    assert judge("EG703", *[constant] * 3).speaks
    assert not judge("EG703", *[constant] * 2).speaks
    assert not judge("EG703", *[constant] * 9, given(tensor(), target=labels)).speaks
    assert not judge("EG703", *[given(same(), tensor(), target=labels)] * 3).speaks
    assert not judge("EG703", *[given(same(), tensor(dtype="int64", features=0), target=labels)] * 3).speaks
    assert not judge("EG703", *[given(same(shape=(7, 8)), target=labels)] * 3).speaks
    assert not judge("EG703", *[given(same())] * 3).speaks
    assert not judge("EG703", *[given(same(), target=same(name="target"))] * 3).speaks  # one sample, many times


def test_a_training_on_nan_and_one_on_constants_are_told_and_a_fixed_batch_is_not():
    spoilt = ((torch.where(inputs == inputs.max(), math.nan, inputs), labels) for inputs, labels in digits(5))
    assert BY_CODE["EG703"].judge(trained(net(), spoilt, functional.cross_entropy)).where == ("input",)
    flat = ((torch.ones_like(inputs), labels) for inputs, labels in digits())
    assert "cannot tell" in BY_CODE["EG703"].judge(trained(net(), flat, functional.cross_entropy)).cause
    again = [next(digits())] * 20
    assert not BY_CODE["EG703"].judge(trained(net(), again, functional.cross_entropy)).speaks


# --- EG704 ---


def labelled(low, high, count=64, size=10, ops=CE, dtype="int64"):
    labels = tensor(1.0, name="target", shape=(count,), dtype=dtype, minimum=low, maximum=high, features=0)
    return Ends(target=labels, loss_ops=ops, softmax_size=size)


HEAD = (linear(units=10, name="2"),)


def test_labels_of_one_class_are_told_when_chance_is_out():
    one = labelled(3.0, 3.0)
    seen = judge("EG704", *[one] * 3, layers=HEAD)
    assert seen.speaks
    assert seen.where == ("target",)
    assert "192 labels of 3 batches are the class 3, of 10 classes" in seen.message
    assert not judge("EG704", *[one] * 2, layers=HEAD).speaks
    assert not judge("EG704", *[one] * 9, labelled(3.0, 4.0), layers=HEAD).speaks
    assert not judge("EG704", *[labelled(3.0, 3.0), labelled(4.0, 4.0)] * 5, layers=HEAD).speaks


@pytest.mark.parametrize(("batches", "speaks"), [(16, False), (17, True)])
def test_so_few_labels_of_a_class_of_nine_in_ten_come_by_chance(batches, speaks):
    assert (0.9 ** (8 * batches) <= 1e-6) == speaks
    assert judge("EG704", *[labelled(0.0, 0.0, count=8)] * batches, layers=HEAD).speaks == speaks


@pytest.mark.parametrize(
    ("ends", "layers"),
    [
        (labelled(0.0, 0.0, ops=(*CE, "Div")), HEAD),  # a contrast with a temperature
        (labelled(0.0, 0.0), (linear(units=1),)),  # a ranking of scores
        (labelled(0.0, 0.0), ()),
        (labelled(-100.0, -100.0), HEAD),  # all left out
        (labelled(255.0, 255.0), HEAD),
        (labelled(0.0, 0.0, count=7), HEAD),
    ],
)
def test_the_same_label_may_be_meant(ends, layers):
    assert not judge("EG704", *[ends] * 30, layers=layers).speaks


def test_targets_that_are_numbers_have_no_classes():
    assert judge("EG704", *[labelled(1.0, 1.0, dtype="float32")] * 9, layers=HEAD) is None
    assert judge("EG704", *[labelled(1.0, 1.0, ops=("BinaryCrossEntropyWithLogits",))] * 9, layers=HEAD) is None


def test_labels_divided_by_255_are_told_and_the_right_ones_are_not():
    wrong = trained(net(), ((inputs, labels // 255) for inputs, labels in digits()), functional.cross_entropy, lr=0.1)
    right = trained(net(), digits(), functional.cross_entropy, lr=0.1)
    seen = BY_CODE["EG704"].judge(wrong)
    assert seen.speaks
    assert seen.severity == "critical"
    assert wrong.readings[-1].loss < 0.1  # it looks fine
    assert not BY_CODE["EG704"].judge(right).speaks


def test_a_contrast_whose_first_answer_is_right_is_not_told():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 16))

    def contrast(output, _):
        scores = functional.normalize(output, dim=1) @ functional.normalize(output.detach().flip(0), dim=1).T
        return functional.cross_entropy(scores / 0.1, torch.zeros(32, dtype=torch.int64))

    assert not BY_CODE["EG704"].judge(trained(encoder, digits(), contrast)).speaks

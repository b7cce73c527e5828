"""Batch normalisation against torch, and against central differences."""

import numpy as np
import pytest
import torch

from evengrad import reference
from evengrad.reference import RunningStatistics


def torch_layer(weight, bias, *, momentum=0.1, eps=1e-5):
    layer = torch.nn.BatchNorm1d(len(weight), momentum=momentum, eps=eps, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


def compare(passed, layer, inputs, direction):
    x = torch.tensor(inputs, requires_grad=True)
    theirs = layer(x)
    theirs.backward(torch.tensor(direction))
    gradients = reference.batch_norm_backward(passed, direction)
    close(passed.outputs, theirs)
    close(gradients.inputs, x.grad)
    close(gradients.weight, layer.weight.grad)
    close(gradients.bias, layer.bias.grad)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_training_and_its_gradients_are_those_of_torch(rng, eps):
    inputs, direction = 3 + 2 * rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    weight, bias = rng.normal(size=4), rng.normal(size=4)
    passed = reference.batch_norm_train(inputs, weight, bias, eps=eps)
    compare(passed, torch_layer(weight, bias, eps=eps), inputs, direction)


@pytest.mark.parametrize("rows", [1, 9])
def test_use_with_running_statistics_and_its_gradients_are_those_of_torch(rng, rows):
    inputs, direction = rng.normal(size=(rows, 4)), rng.normal(size=(rows, 4))
    weight, bias = rng.normal(size=4), rng.normal(size=4)
    running = RunningStatistics(mean=rng.normal(size=4), var=rng.uniform(0.5, 2.0, size=4))
    layer = torch_layer(weight, bias).eval()
    layer.running_mean.copy_(torch.tensor(running.mean))
    layer.running_var.copy_(torch.tensor(running.var))
    compare(reference.batch_norm_eval(inputs, weight, bias, running), layer, inputs, direction)


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0])
def test_the_running_statistics_are_those_of_torch_over_many_batches(rng, momentum):
    weight, bias = np.ones(3), np.zeros(3)
    layer = torch_layer(weight, bias, momentum=momentum)
    running = RunningStatistics(mean=np.zeros(3), var=np.ones(3))
    for rows in (2, 5, 3, 8, 2, 4):
        inputs = 1 + 3 * rng.normal(size=(rows, 3))
        layer(torch.tensor(inputs))
        passed = reference.batch_norm_train(inputs, weight, bias)
        running = reference.move_running_statistics(running, passed, momentum=momentum)
        close(running.mean, layer.running_mean)
        close(running.var, layer.running_var)


def test_its_gradients_agree_with_central_differences(rng):
    inputs, direction = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    weight, bias = rng.normal(size=3), rng.normal(size=3)
    gradients = reference.batch_norm_backward(reference.batch_norm_train(inputs, weight, bias), direction)

    def loss(x, gamma, beta):
        return float(np.sum(direction * reference.batch_norm_train(x, gamma, beta).outputs))

    checks = [
        reference.check_gradient(lambda x: loss(x, weight, bias), inputs, gradients.inputs),
        reference.check_gradient(lambda gamma: loss(inputs, gamma, bias), weight, gradients.weight),
        reference.check_gradient(lambda beta: loss(inputs, weight, beta), bias, gradients.bias),
    ]
    assert max(check.error for check in checks) < 1e-6


def test_the_gradient_has_no_part_along_one_and_along_the_normalised_inputs(rng):
    inputs = rng.normal(size=(50, 3))
    passed = reference.batch_norm_train(inputs, np.ones(3), np.zeros(3), eps=1e-12)
    gradient = reference.batch_norm_backward(passed, rng.normal(size=(50, 3))).inputs
    np.testing.assert_allclose(np.sum(gradient, axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.sum(gradient * passed.normalised, axis=0), 0.0, atol=1e-9)


def test_weights_that_grow_before_the_layer_shrink_its_gradient(rng):
    inputs, direction = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))

    def gradient(scale):
        passed = reference.batch_norm_train(scale * inputs, np.ones(3), np.zeros(3), eps=1e-300)
        return reference.batch_norm_backward(passed, direction).inputs

    np.testing.assert_allclose(gradient(100.0), gradient(1.0) / 100.0, rtol=1e-9)


def test_a_feature_that_never_changes_gives_its_bias_and_a_nan_takes_its_feature_only():
    inputs = np.array([[2.0, np.nan], [2.0, 1.0], [2.0, 3.0]])
    outputs = reference.batch_norm_train(inputs, [3.0, 1.0], [0.5, 0.0]).outputs
    assert outputs[:, 0].tolist() == [0.5, 0.5, 0.5]
    assert np.isnan(outputs[:, 1]).all()


TWO = np.array([[1.0, 2.0], [3.0, 5.0]])
RUNNING = RunningStatistics(mean=np.zeros(2), var=np.ones(2))
TRAINED = reference.batch_norm_train(TWO, np.ones(2), np.zeros(2))
USED = reference.batch_norm_eval(TWO, np.ones(2), np.zeros(2), RUNNING)
NARROW = RunningStatistics(mean=np.zeros(1), var=np.ones(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.batch_norm_train(TWO[:1], [1, 1], [0, 0]), r"inputs: got shape \(1, 2\), want at least two"),
        (lambda: reference.batch_norm_train(TWO[:0], [1, 1], [0, 0]), r"inputs: got shape \(0, 2\), want"),
        (lambda: reference.batch_norm_train(TWO, [1], [0, 0]), r"weight: got shape \(1,\), want \(2,\)"),
        (lambda: reference.batch_norm_train(TWO, [1, 1], [0]), r"bias: got shape \(1,\), want \(2,\)"),
        (lambda: reference.batch_norm_train(TWO, [1, 1], [0, 0], eps=0.0), "eps: got 0.0, want a positive number"),
        (lambda: reference.batch_norm_eval(TWO, [1, 1], [0, 0], NARROW), r"running.mean: got shape \(1,\), want"),
        (lambda: reference.batch_norm_backward(TRAINED, [1, 1]), r"output_gradient: got shape \(2,\), want \(2, 2\)"),
        (lambda: reference.move_running_statistics(RUNNING, USED), "passed: got a pass of batch_norm_eval, want"),
        (lambda: reference.move_running_statistics(NARROW, TRAINED), r"running.mean: got shape \(1,\), want \(2,\)"),
        (lambda: reference.move_running_statistics(RUNNING, TRAINED, momentum=0.0), "momentum: got 0.0, want"),
        (lambda: reference.move_running_statistics(RUNNING, TRAINED, momentum=1.5), "momentum: got 1.5, want"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

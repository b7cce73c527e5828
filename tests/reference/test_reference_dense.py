"""Forward, backward, losses and the residual connection against torch autograd and central differences."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from evengrad import reference
from evengrad.reference import Dense

ACTIVATIONS = {
    "identity": lambda z, _: z,
    "sigmoid": lambda z, _: torch.sigmoid(z),
    "tanh": lambda z, _: torch.tanh(z),
    "relu": lambda z, _: torch.relu(z),
    "leaky_relu": functional.leaky_relu,
}
SMOOTH_ENOUGH = 1e-6
same = pytest.approx


def close(ours, theirs):
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-10, atol=1e-12)


def network(rng, activation, widths=(5, 7, 6, 4), slope=0.2):
    return [
        Dense(
            weight=rng.normal(size=(units, inputs)) / np.sqrt(inputs),
            bias=rng.normal(size=units) / 3,
            activation=activation,
            negative_slope=slope,
        )
        for inputs, units in pairwise(widths)
    ]


def torch_forward(layers, x):
    parameters, signals = [], []
    for layer in layers:
        weight, bias = torch.tensor(layer.weight, requires_grad=True), torch.tensor(layer.bias, requires_grad=True)
        parameters.append((weight, bias))
        z = functional.linear(x, weight, bias)
        z.retain_grad()
        signals.append(z)
        x = ACTIVATIONS[layer.activation](z, layer.negative_slope)
    return x, parameters, signals


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss_name", ["mean_squared_error", "softmax_cross_entropy"])
def test_every_gradient_of_a_dense_network_is_that_of_autograd(rng, activation, loss_name):
    layers, inputs = network(rng, activation), rng.normal(size=(8, 5))
    x = torch.tensor(inputs, requires_grad=True)
    theirs, parameters, signals = torch_forward(layers, x)
    if loss_name == "mean_squared_error":
        target = rng.normal(size=(8, 4))
        expected = functional.mse_loss(theirs, torch.tensor(target))
    else:
        target = rng.integers(0, 4, size=8)
        expected = functional.cross_entropy(theirs, torch.tensor(target))
    expected.backward()

    passed = reference.forward(layers, inputs)
    loss, output_gradient = getattr(reference, loss_name)(passed.outputs, target)
    gradients = reference.backward(layers, passed, output_gradient)
    close(passed.outputs, theirs.detach())
    assert loss == same(expected.item(), rel=1e-12)
    for number, (weight, bias) in enumerate(parameters):
        close(gradients.weights[number], weight.grad)
        close(gradients.biases[number], bias.grad)
        close(gradients.signals[number], signals[number].grad)
    close(gradients.inputs, x.grad)
    assert np.max(np.abs(gradients.inputs)) > 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gradient_of_a_dense_network_agrees_with_central_differences(rng, activation):
    layers, inputs, target = network(rng, activation), rng.normal(size=(6, 5)), rng.normal(size=(6, 4))

    def loss_of(layers, inputs):
        return reference.mean_squared_error(reference.forward(layers, inputs).outputs, target)[0]

    passed = reference.forward(layers, inputs)
    gradients = reference.backward(layers, passed, reference.mean_squared_error(passed.outputs, target)[1])
    checks = [reference.check_gradient(lambda x: loss_of(layers, x), inputs, gradients.inputs)]
    for n, layer in enumerate(layers):
        for field, gradient in (("weight", gradients.weights[n]), ("bias", gradients.biases[n])):

            def loss(values, n=n, layer=layer, field=field):
                return loss_of([*layers[:n], replace(layer, **{field: values}), *layers[n + 1 :]], inputs)

            checks.append(reference.check_gradient(loss, getattr(layer, field), gradient))
    assert max(check.error for check in checks) < SMOOTH_ENOUGH


@pytest.mark.parametrize("loss_name", ["mean_squared_error", "softmax_cross_entropy"])
def test_the_gradient_of_a_loss_agrees_with_central_differences(rng, loss_name):
    outputs = rng.normal(size=(5, 3))
    target = rng.normal(size=(5, 3)) if loss_name == "mean_squared_error" else rng.integers(0, 3, size=5)
    loss = getattr(reference, loss_name)
    assert reference.check_gradient(lambda y: loss(y, target)[0], outputs, loss(outputs, target)[1]).error < 1e-7


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_slope_are_those_of_torch_even_far_out_and_at_the_kink(activation):
    values = [-np.inf, -1e4, -40.0, -1.5, -1e-300, -0.0, 0.0, 1e-300, 2.5, 40.0, 1e4, np.inf, np.nan]
    z = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    theirs = ACTIVATIONS[activation](z, 0.2)
    (slope,) = torch.autograd.grad(theirs.sum(), z)
    ours = reference.activate(values, activation, negative_slope=0.2)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-14, equal_nan=True)
    found = reference.activation_slope(values, activation, negative_slope=0.2)
    np.testing.assert_allclose(found, slope.numpy(), rtol=1e-10, atol=1e-16, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_slope_of_an_activation_agrees_with_central_differences(activation):
    for z in (-2.0, -0.3, 0.4, 3.0):
        slope = reference.activation_slope([z], activation)
        value = reference.check_gradient(lambda x: float(reference.activate(x, activation)[0]), [z], slope)
        assert value.error < 1e-7


def test_a_loss_of_huge_logits_is_finite_and_that_of_torch():
    logits, labels = np.array([[1e4, -1e4, 0.0], [-1e300, 0.0, 1.0]]), np.array([1, 2])
    loss, gradient = reference.softmax_cross_entropy(logits, labels)
    x = torch.tensor(logits, requires_grad=True)
    expected = functional.cross_entropy(x, torch.tensor(labels))
    expected.backward()
    assert loss == same(expected.item())
    close(gradient, x.grad)


def test_a_nan_in_a_sample_stays_in_its_row():
    layers = [Dense(weight=np.ones((2, 2)), bias=np.zeros(2), activation="tanh")]
    outputs = reference.forward(layers, [[np.nan, 1.0], [1.0, 1.0]]).outputs
    assert np.isnan(outputs).tolist() == [[True, True], [False, False]]


def test_no_layers_are_the_identity():
    passed = reference.forward([], [[1.0, 2.0]])
    gradients = reference.backward([], passed, [[3.0, 4.0]])
    assert passed.outputs.tolist() == [[1.0, 2.0]]
    assert gradients.inputs.tolist() == [[3.0, 4.0]]
    assert gradients.weights == gradients.biases == gradients.signals == ()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_a_residual_connection_is_that_of_autograd(rng, activation, scale):
    layers, inputs = network(rng, activation, widths=(5, 7, 5)), rng.normal(size=(4, 5))
    direction = rng.normal(size=(4, 5))
    x = torch.tensor(inputs, requires_grad=True)
    branch, parameters, _ = torch_forward(layers, x)
    theirs = x + scale * branch
    theirs.backward(torch.tensor(direction))

    outputs, passed = reference.residual_forward(layers, inputs, branch_scale=scale)
    gradients = reference.residual_backward(layers, passed, direction, branch_scale=scale)
    close(outputs, theirs.detach())
    close(gradients.inputs, x.grad)
    for number, (weight, bias) in enumerate(parameters):
        close(gradients.weights[number], weight.grad)
        close(gradients.biases[number], bias.grad)


def test_a_residual_connection_agrees_with_central_differences(rng):
    layers, inputs, direction = network(rng, "tanh", widths=(3, 4, 3)), rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    _, passed = reference.residual_forward(layers, inputs, branch_scale=0.7)
    gradient = reference.residual_backward(layers, passed, direction, branch_scale=0.7).inputs

    def loss(x):
        return float(np.sum(direction * reference.residual_forward(layers, x, branch_scale=0.7)[0]))

    assert reference.check_gradient(loss, inputs, gradient).error < SMOOTH_ENOUGH


def test_a_residual_connection_around_nothing_doubles():
    outputs, passed = reference.residual_forward([], [[1.0, 2.0]])
    assert outputs.tolist() == [[2.0, 4.0]]
    assert reference.residual_backward([], passed, [[1.0, 1.0]]).inputs.tolist() == [[2.0, 2.0]]


LAYER = Dense(weight=np.ones((3, 2)), bias=np.zeros(3))
PASSED = reference.forward([LAYER], np.ones((4, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Dense(weight=np.ones(3), bias=np.zeros(3)), r"weight: got shape \(3,\), want two axes"),
        (lambda: Dense(weight=np.ones((3, 2)), bias=np.zeros(2)), r"bias: got shape \(2,\), want \(3,\)"),
        (lambda: Dense(weight=np.ones((0, 2)), bias=np.zeros(0)), r"weight: got shape \(0, 2\), want .* one element"),
        (lambda: Dense(weight=np.eye(2), bias=np.zeros(2), activation="gelu"), "activation: got 'gelu', want one of"),
        (lambda: Dense(weight=np.eye(2), bias=np.zeros(2), negative_slope=-1.0), "negative_slope: got -1.0, want"),
        (lambda: reference.forward([LAYER], np.ones((4, 3))), "inputs of layer 0: got 3 columns, want 2"),
        (lambda: reference.forward([LAYER, LAYER], np.ones((4, 2))), "inputs of layer 1: got 3 columns, want 2"),
        (lambda: reference.forward([LAYER], np.ones((0, 2))), r"inputs: got shape \(0, 2\), want .* one element"),
        (lambda: reference.forward([LAYER], np.ones(2)), r"inputs: got shape \(2,\), want two axes"),
        (lambda: reference.backward([LAYER], PASSED, np.ones((4, 1))), r"output_gradient: got shape \(4, 1\), want"),
        (lambda: reference.backward([], PASSED, np.ones((4, 3))), "passed: got a pass through 1 layers, want 0"),
        (
            lambda: reference.backward([replace(LAYER, weight=np.ones((3, 1)))], PASSED, np.ones((4, 3))),
            r"passed: got a layer of shape \(3, 2\), want \(3, 1\)",
        ),
        (lambda: reference.residual_forward([LAYER], np.ones((4, 2))), r"layers: got outputs of shape \(4, 3\), want"),
        (lambda: reference.residual_forward([], np.ones((4, 2)), branch_scale=-1.0), "branch_scale: got -1.0, want"),
        (lambda: reference.residual_backward([LAYER], PASSED, np.ones((4, 2))), r"output_gradient: got shape \(4, 2\)"),
        (
            lambda: reference.mean_squared_error(np.ones((2, 1)), np.ones(2)),
            r"targets: got shape \(2,\), want \(2, 1\)",
        ),
        (lambda: reference.mean_squared_error([], []), r"outputs: got shape \(0,\), want at least one element"),
        (lambda: reference.softmax_cross_entropy(np.ones((2, 3)), [0.0, 1.0]), "labels: got float64 of shape"),
        (lambda: reference.softmax_cross_entropy(np.ones((2, 3)), [0]), r"labels: got int64 of shape \(1,\), want"),
        (lambda: reference.softmax_cross_entropy(np.ones((2, 3)), [0, 3]), "labels: got 0 to 3, want 0 to 2"),
        (lambda: reference.softmax_cross_entropy(np.ones((2, 3)), [-1, 0]), "labels: got -1 to 0, want 0 to 2"),
        (lambda: reference.softmax_cross_entropy(np.ones((0, 3)), []), r"logits: got shape \(0, 3\), want"),
        (lambda: reference.activate([1.0], "swish"), "activation: got 'swish', want one of identity, leaky_relu"),
        (lambda: reference.activate([1j], "relu"), "preactivations: got complex128, want real numbers"),
        (lambda: reference.activation_slope([1.0], "leaky_relu", negative_slope=-1.0), "negative_slope: got -1.0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

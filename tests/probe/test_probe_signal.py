"""The signal that an output carries of its target, and its standard error, against every order of the targets."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.probe import EndsSample


def ends_of(output, loss, target=None):
    sample = EndsSample((), output, target, loss)
    return sample.readings(sample.packed().tolist())


@pytest.fixture
def drawn():
    torch.manual_seed(0)


def of_labels(output, labels):
    """From the definition, in NumPy."""
    centred = output - output.mean(0)
    return centred[np.arange(len(labels)), labels].mean()


def of_numbers(output, target):
    return ((output - output.mean(0)) * (target - target.mean(0))).mean()


def over_all_orders(output, target):
    """Give each sample the target of another, in every order: whatever the order, it is a sum of these products."""
    apart = output - output.mean(0)
    orders = np.array(list(itertools.permutations(range(len(target)))))
    pairs = apart[:, target] if target.ndim == 1 else apart @ target.T / target.shape[1]
    found = pairs[np.arange(len(target)), orders].mean(1)
    assert np.mean(found) == pytest.approx(0.0, abs=1e-9)
    return np.std(found)


def test_the_error_of_labels_is_the_spread_over_all_orders_of_the_labels(drawn):
    output = torch.randn(8, 3, dtype=torch.float64, requires_grad=True) * 2 + torch.tensor([5.0, 0.0, -9.0])
    labels = torch.tensor([0, 2, 2, 1, 0, 2, 2, 2])
    ends = ends_of(output, functional.cross_entropy(output, labels))
    x, y = output.detach().numpy(), labels.numpy()
    assert ends.signal == pytest.approx(of_labels(x, y))
    assert ends.signal_error == pytest.approx(over_all_orders(x, y))


@pytest.mark.parametrize("columns", [1, 2, 11])
@pytest.mark.parametrize("loss", ["squared", "binary", "absolute"])
def test_the_error_of_numbers_is_the_spread_over_all_orders_of_the_samples(columns, loss, drawn):
    output = (torch.randn(8, columns, dtype=torch.float64) + 3.0).requires_grad_() * 1.0
    target = torch.rand(8, columns, dtype=torch.float64)
    made = {
        "squared": lambda: functional.mse_loss(output, target),
        "binary": lambda: functional.binary_cross_entropy_with_logits(output, target),
        "absolute": lambda: (output - target).abs().mean(),
    }
    ends = ends_of(output, made[loss](), target)
    x, y = output.detach().numpy(), target.numpy()
    assert ends.signal == pytest.approx(of_numbers(x, y))
    assert ends.signal_error == pytest.approx(over_all_orders(x, y))


def test_probabilities_as_targets_are_summed_over_the_classes_as_labels_are(drawn):
    output = torch.randn(12, 4, dtype=torch.float64, requires_grad=True) * 1.0
    labels = torch.randint(4, (12,))
    of_classes = ends_of(output, functional.cross_entropy(output, labels))
    hot = functional.one_hot(labels, 4).double()
    of_shares = ends_of(output, functional.cross_entropy(output, hot))
    assert of_shares.signal == pytest.approx(of_classes.signal)
    assert of_shares.signal_error == pytest.approx(of_classes.signal_error)


@pytest.mark.parametrize("classes", [10, 1000])
def test_labels_that_are_ignored_count_nowhere_in_the_signal(classes, drawn):
    output = torch.randn(40, classes, dtype=torch.float64, requires_grad=True) * 1.0
    labels = torch.randint(classes, (40,))
    labels[::3] = -100
    ends = ends_of(output, functional.cross_entropy(output, labels))
    kept = labels >= 0
    rest = output[kept]
    alone = ends_of(rest, functional.cross_entropy(rest, labels[kept]))
    x, y = output[kept].detach().numpy(), labels[kept].numpy()
    assert ends.signal == pytest.approx(of_labels(x, y))
    assert ends.signal == pytest.approx(alone.signal)
    assert ends.signal_error == pytest.approx(alone.signal_error)


@pytest.mark.parametrize("classes", [5, 700])
def test_sequences_and_pictures_are_matched_to_their_labels_wherever_the_classes_stand(classes, drawn):
    last = torch.randn(4, 6, classes, dtype=torch.float64, requires_grad=True) * 1.0
    labels = torch.randint(classes, (4, 6))
    first = last.transpose(1, 2) * 1.0
    flat = ends_of(last, functional.cross_entropy(last.reshape(-1, classes), labels.reshape(-1)))
    turned = ends_of(last, functional.cross_entropy(last.transpose(1, 2), labels))
    ahead = ends_of(first, functional.cross_entropy(first, labels))
    expected = of_labels(last.detach().reshape(-1, classes).numpy(), labels.reshape(-1).numpy())
    assert flat.signal == pytest.approx(expected)
    assert turned.signal == pytest.approx(expected)
    assert ahead.signal == pytest.approx(expected)


def test_of_a_large_output_the_test_is_as_wide_as_what_is_read_and_sees_what_is_there(drawn):
    labels = torch.randint(5000, (600,))
    for strength, sees in ((0.0, False), (1.0, True)):
        output = torch.randn(600, 5000) + strength * functional.one_hot(labels, 5000)
        output = output.requires_grad_() * 1.0
        ends = ends_of(output, functional.cross_entropy(output, labels))
        assert (ends.signal > 5 * ends.signal_error) is sees


def test_outputs_that_know_nothing_lie_within_their_errors_as_often_as_normal_numbers_do(drawn):
    ratios = []
    for _ in range(400):
        output, target = torch.randn(32, 3).requires_grad_() * 1.0, torch.randn(32, 3)
        ends = ends_of(output, functional.mse_loss(output, target))
        ratios.append(ends.signal / ends.signal_error)
    assert np.std(ratios) == pytest.approx(1.0, abs=0.12)
    assert abs(np.mean(ratios)) < 0.2


def test_an_output_that_is_the_same_for_every_sample_has_a_signal_of_nothing(drawn):
    output = torch.ones(16, 3, requires_grad=True) * 1.0
    ends = ends_of(output, functional.cross_entropy(output, torch.randint(3, (16,))))
    assert (ends.signal, ends.signal_error) == (0.0, 0.0)


def test_nothing_is_said_of_few_samples_unknown_losses_and_what_is_not_finite(drawn):
    few = torch.randn(7, 3, requires_grad=True) * 1.0
    assert ends_of(few, functional.cross_entropy(few, torch.zeros(7, dtype=torch.int64))).signal is None
    output = torch.randn(16, 3, requires_grad=True) * 1.0
    assert ends_of(output, output.logsumexp(1).mean()).signal is None
    assert ends_of(output, functional.mse_loss(output.sum(1), torch.ones(16))).signal is None
    broken = output * torch.tensor([1.0, float("nan"), 1.0])
    ends = ends_of(broken, functional.mse_loss(broken, torch.randn(16, 3)))
    assert (ends.signal, ends.signal_error) == (None, None)


def test_where_the_loss_is_not_of_the_output_nothing_is_said(drawn):
    layer = nn.Linear(3, 3)
    output, other = layer(torch.randn(16, 3)), nn.Linear(3, 3)(torch.randn(16, 3))
    assert ends_of(output, functional.mse_loss(other, torch.randn(16, 3))).signal is None

"""What is read of inputs, output, target and loss is what NumPy makes of them."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.probe import EndsSample


def ends_of(inputs, output, target=None, loss=None, **settings):
    sample = EndsSample(inputs, output, target, loss, **settings)
    return sample.readings(sample.packed().tolist())


def by_features(x):
    """Features first, all else behind."""
    if x.ndim >= 4:
        return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    return x.reshape(1, -1) if x.ndim < 2 else np.moveaxis(x, -1, 0).reshape(x.shape[-1], -1)


def check_numbers(reading, tensor, **tolerance):
    x = tensor.detach().double().numpy()
    rows = [row[np.isfinite(row)] for row in by_features(x)]
    whole = np.concatenate(rows)
    stds = np.array([row.std() for row in rows])
    tolerance = tolerance or {"rel": 1e-5, "abs": 1e-12 * np.abs(whole).max()}
    assert reading.mean == pytest.approx(whole.mean(), **tolerance)
    assert reading.std == pytest.approx(whole.std(), **tolerance)
    assert reading.feature_std_max == pytest.approx(stds.max(), **tolerance)
    assert reading.feature_std_min == pytest.approx(stds[stds > 0].min() if stds.any() else 0.0, **tolerance)
    assert reading.feature_mean_absmax == pytest.approx(max(abs(row.mean()) for row in rows), **tolerance)
    constant = np.mean([np.ptp(row) == 0 for row in rows]) if x.ndim and len(x) > 1 else 0.0
    assert reading.constant_frac == pytest.approx(constant)
    assert (reading.features, reading.shape) == (len(rows), x.shape)
    assert reading.finite_frac == pytest.approx(np.isfinite(x).mean())
    if not settings_are_loose(tolerance):
        assert (reading.minimum, reading.maximum) == (whole.min(), whole.max())


def settings_are_loose(tolerance):
    return tolerance["rel"] > 1e-3


SHAPES = [(), (6,), (5, 3), (4, 6, 3), (4, 3, 5, 6), (2, 3, 4, 5, 2), (1, 7), (1, 3, 4, 4), (300, 1), (2, 2000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_numbers_of_small_tensors_are_exact(shape, dtype):
    torch.manual_seed(0)
    x = (torch.randn(shape) * torch.rand(shape[1:] or (1,)).view(shape[1:]) * 30 + 7).to(dtype)
    if len(shape) > 1:
        x[:, 0] = 3.0  # a constant feature of a picture, of a vector where it is the last dimension too
    check_numbers(ends_of(x, x).inputs[0], x)


@pytest.mark.parametrize("shape", [(5000, 20), (64, 3, 64, 64), (16, 512, 24), (100_000,), (2, 3, 300, 300)], ids=str)
def test_numbers_of_large_tensors_are_those_of_a_fair_sample_or_exact_where_all_is_asked_for(shape):
    torch.manual_seed(0)
    scale = torch.linspace(1, 3, shape[1] if len(shape) == 4 else shape[-1] if len(shape) > 1 else 1)
    x = torch.randn(shape) * (scale.view(-1, 1, 1) if len(shape) == 4 else scale) + 5
    check_numbers(ends_of(x, x).inputs[0], x, rel=0.1)
    check_numbers(ends_of(x, x, most=None).inputs[0], x)


def test_a_large_mean_does_not_swallow_the_spread():
    x = torch.tensor([[1e6 + 1, -3e4], [1e6 + 2, -3e4], [1e6 + 3, -3e4]])
    reading = ends_of(x, x).inputs[0]
    assert reading.feature_std_max == pytest.approx(np.sqrt(2 / 3))
    assert (reading.constant_frac, reading.feature_std_min) == (0.5, reading.feature_std_max)


def test_numbers_that_are_not_finite_are_counted_and_left_out():
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    x[3, 1], x[4, 2], x[5, 2] = float("nan"), float("inf"), float("-inf")
    check_numbers(ends_of(x, x).inputs[0], x)
    nothing = ends_of(torch.full((4, 2), float("nan")), x).inputs[0]
    assert (nothing.finite_frac, nothing.mean, nothing.maximum, nothing.constant_frac) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_integers_are_ids_without_features(dtype):
    x = torch.tensor([[0, 1, 3], [7, 0, 250]]).to(dtype)
    reading = ends_of(x, torch.ones(2, 3)).inputs[0]
    known = x.double().numpy()
    assert (reading.minimum, reading.maximum) == (known.min(), known.max())
    assert (reading.mean, reading.std) == pytest.approx((known.mean(), known.std()))
    assert (reading.features, reading.constant_frac, reading.feature_std_max) == (0, 0.0, 0.0)
    assert reading.dtype == str(dtype).removeprefix("torch.")


def test_inputs_have_names_and_the_output_is_the_first_tensor_of_numbers_with_a_dimension():
    x, mask = torch.ones(3, 2), torch.zeros(3, dtype=torch.bool)
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    named = [one.name for one in ends_of((x, None, x, {"mask": mask, "more": [x, x]}), x).inputs]
    assert named == ["input", "input.2", "input.mask", "input.more", "input.more.1"]
    assert [one.name for one in ends_of({"ids": mask}, x).inputs] == ["input.ids"]
    assert [one.shape for one in ends_of(packed, x).inputs] == [(3, 1)]
    assert len(ends_of([x] * 20, x).inputs) == 8
    assert ends_of(x, {"loss": torch.ones(()), "ids": mask, "logits": x}).output.shape == (3, 2)
    assert ends_of(x, (torch.ones(()),)).output.shape == ()
    nothing = ends_of(None, None)
    assert (nothing.inputs, nothing.output, nothing.target, nothing.loss_ops) == ((), None, None, ())


def test_what_cannot_be_looked_at_is_left_out():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    inputs = (torch.zeros(0, 3), torch.ones(2, device="meta"), torch.eye(2).to_sparse(), nested, torch.ones(2, 2))
    assert [one.name for one in ends_of(inputs, None).inputs] == ["input.4"]


def test_complex_numbers_are_read_as_their_parts():
    x = torch.tensor([[1 + 2j, 5 + 5j], [3 - 4j, 5 + 5j]])
    reading = ends_of(x, x).inputs[0]
    assert (reading.minimum, reading.maximum, reading.features) == (-4.0, 5.0, 2)
    assert reading.mean == pytest.approx((1 + 2 + 3 - 4 + 20) / 8)


def entropy(shares):
    shares = np.asarray(shares, dtype=float)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def madow(labels, classes):
    counts = np.bincount(np.asarray(labels), minlength=classes)
    corrected = entropy(counts / counts.sum()) + (np.count_nonzero(counts) - 1) / (2 * counts.sum())
    return min(corrected, np.log(classes))


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    logits = torch.randn(40, 3, requires_grad=True) * 1
    labels = torch.tensor([0] * 25 + [1] * 10 + [2] * 5)
    return logits, labels, torch.softmax(3 * torch.randn(40, 3), 1)


def constant_of(output, loss, target=None):
    return ends_of(output, output, target, loss).constant_loss


def test_the_constant_loss_of_labels_is_their_entropy(drawn):
    logits, labels, _ = drawn
    wanted = madow(labels, 3)
    cross_entropy = functional.cross_entropy
    assert constant_of(logits, cross_entropy(logits, labels)) == pytest.approx(wanted)
    assert constant_of(logits, cross_entropy(logits, labels, reduction="sum")) == pytest.approx(40 * wanted)
    assert constant_of(logits, cross_entropy(logits, labels, reduction="none").mean()) == pytest.approx(wanted)
    assert constant_of(logits, functional.nll_loss(logits, labels)) == pytest.approx(wanted)
    pictures, places = logits.view(5, 3, 2, 4), labels.view(5, 2, 4)
    assert constant_of(pictures, cross_entropy(pictures, places)) == pytest.approx(wanted)


def test_labels_that_are_ignored_count_nowhere(drawn):
    logits, labels, _ = drawn
    kept = labels[labels != 1]
    wanted = madow(kept, 3)
    for reduction, factor in (("mean", 1), ("sum", 30)):
        loss = functional.cross_entropy(logits, labels, ignore_index=1, reduction=reduction)
        assert constant_of(logits, loss) == pytest.approx(factor * wanted)
    mean_with_zeros = functional.cross_entropy(logits, labels, ignore_index=1, reduction="none").mean()
    assert constant_of(logits, mean_with_zeros) == pytest.approx(wanted * 30 / 40)
    masked = torch.where(labels == 1, -100, labels)
    assert constant_of(logits, functional.cross_entropy(logits, masked)) == pytest.approx(wanted)


def test_the_constant_loss_is_no_more_than_that_of_even_labels():
    logits = torch.randn(8, 10, requires_grad=True) * 1
    loss = functional.cross_entropy(logits, torch.arange(8))
    assert constant_of(logits, loss) == pytest.approx(np.log(10))


def test_the_constant_loss_of_probabilities_is_the_least_cross_entropy_of_one_answer_for_all(drawn):
    logits, _, shares = drawn
    answer = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(answer.expand(40, 3), shares)
        loss.backward()
        return loss

    optimizer.step(closure)
    least = closure().item()
    assert constant_of(logits, functional.cross_entropy(logits, shares)) == pytest.approx(least, rel=1e-4)
    summed = functional.cross_entropy(logits, shares, reduction="sum")
    assert constant_of(logits, summed) == pytest.approx(40 * least, rel=1e-4)
    by_hand = -(shares * logits.log_softmax(1)).sum() / 40
    assert constant_of(logits, by_hand) == pytest.approx(least, rel=1e-4)


def test_the_constant_loss_of_squared_and_absolute_errors_is_that_of_mean_and_median(drawn):
    logits, _, target = drawn
    t = target.numpy()
    squared, absolute = t.var(0).mean(), np.abs(t - np.median(t, 0)).mean()
    for reduction, factor in (("mean", 1), ("sum", 120)):
        loss = functional.mse_loss(logits, target, reduction=reduction)
        assert constant_of(logits, loss) == pytest.approx(factor * squared, rel=1e-5)
        loss = functional.mse_loss(target, logits, reduction=reduction)  # the wrong way round, and the same
        assert constant_of(logits, loss) == pytest.approx(factor * squared, rel=1e-5)
        loss = functional.l1_loss(logits, target, reduction=reduction)
        assert constant_of(logits, loss, target) == pytest.approx(factor * absolute, rel=1e-5)
        assert constant_of(logits, loss) is None  # torch keeps no target of it
    assert constant_of(logits, (logits - target).square().mean(), target) == pytest.approx(squared, rel=1e-5)
    assert constant_of(logits, ((target - logits) ** 2).sum(), target) == pytest.approx(120 * squared, rel=1e-5)


def test_the_constant_loss_of_binary_targets_is_the_entropy_of_their_share(drawn):
    logits, _, _ = drawn
    target = (torch.rand(40, 3) > torch.tensor([0.1, 0.5, 0.99])).float()
    wanted = np.mean([entropy([share, 1 - share]) for share in target.numpy().mean(0)])
    loss = functional.binary_cross_entropy_with_logits(logits, target)
    assert constant_of(logits, loss) == pytest.approx(wanted, rel=1e-6)
    loss = functional.binary_cross_entropy(logits.sigmoid(), target, reduction="sum")
    assert constant_of(logits, loss) == pytest.approx(120 * wanted, rel=1e-6)


def test_of_losses_whose_form_is_not_known_nothing_is_claimed(drawn):
    logits, labels, shares = drawn
    ce, bce = functional.cross_entropy, functional.binary_cross_entropy_with_logits
    unknown = [
        ce(logits, labels, weight=torch.ones(3)),
        ce(logits, labels, label_smoothing=0.1),
        ce(logits, labels) / 4,
        ce(logits, labels) + logits.square().mean(),
        ce(logits, labels, reduction="none").sum(),
        functional.smooth_l1_loss(logits, shares),
        functional.mse_loss(logits, logits.flip(0)),
        bce(logits, shares, pos_weight=torch.ones(3)),
        (logits - shares).abs().max(),
        (logits - shares).pow(4).mean(),
        -(shares * logits.log_softmax(1)).sum() / 7,
    ]
    assert [constant_of(logits, loss, None) for loss in unknown] == [None] * len(unknown)
    assert [constant_of(logits, loss, shares) for loss in unknown] == [None] * len(unknown)
    assert constant_of(logits[:7], ce(logits[:7], labels[:7])) is None  # too few to know their distribution


def test_the_target_is_that_of_the_batch_or_that_which_the_loss_keeps(drawn):
    logits, labels, shares = drawn
    assert ends_of(logits, logits, labels).target.shape == (40,)
    assert ends_of(logits, logits, None, functional.cross_entropy(logits, labels)).target.dtype == "int64"
    assert ends_of(logits, logits, None, functional.huber_loss(logits, shares)).target.shape == (40, 3)
    assert ends_of(logits, logits, {"y": labels}, functional.huber_loss(logits, shares)).target.dtype == "int64"
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    after = ends_of(logits, logits, None, loss)
    assert (after.target, after.constant_loss) == (None, None)
    assert after.loss_ops == ("NllLoss", "LogSoftmax")


class Mark:
    pass


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, func
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_and_nothing_is_kept(drawn):
    logits, labels, shares = drawn
    pairs = [(functional.cross_entropy, labels), (functional.mse_loss, shares), (functional.l1_loss, shares)]
    for function, target in [*pairs, (functional.cross_entropy, shares)]:
        output = logits * 2
        loss = function(output, target)
        with NoWaiting():
            sample = EndsSample((output, labels), output, target, loss)
            numbers = sample.packed()
        mark = Mark()
        gone = weakref.ref(mark)
        output.grad_fn.metadata["mark"] = mark
        del output, loss, mark
        gc.collect()
        assert gone() is None
        assert sample.readings(numbers.tolist()).constant_loss > 0


def test_reading_the_ends_changes_neither_loss_nor_gradient_nor_random_numbers(drawn):
    logits, labels, _ = drawn
    left = []
    for read in (False, True):
        torch.manual_seed(1)
        leaf = logits.detach().clone().requires_grad_()
        output = functional.dropout(leaf * 2)
        loss = functional.cross_entropy(output, labels)
        if read:
            ends_of(leaf, output, labels, loss)
        loss.backward()
        left.append([loss.detach(), leaf.grad, torch.get_rng_state()])
    assert all(map(torch.equal, *left))

"""Whether the output of a model carries anything of the target: a test that sees what the loss is too noisy to show."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite, isqrt

import torch
from torch import Tensor

from evengrad.probe._constant_loss import FEWEST, Form
from evengrad.probe._sample_hooks import plain
from evengrad.probe._statistics import precise

MOST = 1 << 15  # numbers of the output that are read
NUMBERS = 3  # of the vector


def signal_numbers(form: Form, output: Tensor) -> Tensor | None:
    """Compute the score test of the constant model along the model's own output, on the device.

    For labels the mean, over samples, of the output at the true class; for all else that of output times target. Both
    are centred over the batch, each column by itself: so the expectation is zero where target and output have nothing
    to do with each other. The standard error is that over all orders in which the targets could have come, which is
    known exactly (Hoeffding 1951, A combinatorial central limit theorem).

    Args:
        form: The loss and its target.
        output: What the model gave; matched to the target by its shape.

    Returns:
        Signal, standard error, and how many samples they are of; None where shapes do not belong together.

    Cost: Some fifteen operations over at most 32,768 numbers; no host synchronisation.
    """
    target = plain(form.target)
    values = plain(output)
    if target is None or values is None or target.device != values.device or not values.is_floating_point():
        return None
    return _of_labels(form, target, values) if form.kind == "entropy" else _of_numbers(form, target, values)


def signal_of(numbers: Sequence[float]) -> tuple[float, float] | None:
    """Read what `signal_numbers` gave; None for too few samples, or what is not finite."""
    signal, variance, samples = numbers
    if samples < FEWEST or not (isfinite(signal) and isfinite(variance)):
        return None
    return signal, max(variance, 0.0) ** 0.5


def _of_labels(form: Form, target: Tensor, output: Tensor) -> Tensor | None:
    logits = _by_class(form.classes, target, output)
    if logits is None:
        return None
    labels = target.reshape(-1)
    few = form.classes <= isqrt(MOST)  # else only the classes that occur are looked at: one column for each sample
    step = ceil(labels.numel() / (MOST // form.classes if few else isqrt(MOST)))
    labels, logits = labels[::step].long(), logits[::step]
    valid_N = (labels != form.ignored) & (labels >= 0) & (labels < form.classes)
    labels = labels.clamp(0, form.classes - 1)
    wide = precise(logits.device)
    once_N = valid_N.to(wide)
    count = once_N.sum()
    least = count.clamp_min(1.0)
    if few:
        own_N, values_NC = labels, logits.to(wide)
        share_C = torch.zeros(form.classes, dtype=wide, device=logits.device).index_add_(0, labels, once_N) / least
    else:
        own_N, values_NC = torch.arange(labels.numel(), device=logits.device), logits.index_select(1, labels).to(wide)
        share_C = once_N / least
    apart_NC = torch.where(valid_N[:, None], values_NC, 0.0)
    apart_NC = (apart_NC - apart_NC.sum(0) / least) * once_N[:, None]
    signal = apart_NC.gather(1, own_N[:, None]).sum() / least
    apart_NC = apart_NC - (apart_NC @ share_C)[:, None]
    square = (apart_NC.square() @ share_C * once_N).sum()
    return torch.stack([signal, square / (least * (count - 1.0).clamp_min(1.0)), count])


def _by_class(classes: int, target: Tensor, output: Tensor) -> Tensor | None:
    """View the output as (samples, classes) in the order of the labels."""
    if output.ndim < 2 or output.numel() != target.numel() * classes:
        return None
    if output.shape[1] == classes and _sizes(output.select(1, 0)) == _sizes(target):
        return output.movedim(1, -1).reshape(-1, classes)
    return output.reshape(-1, classes) if output.shape[-1] == classes else None


def _of_numbers(form: Form, target: Tensor, output: Tensor) -> Tensor | None:
    if not target.ndim or _sizes(target) != _sizes(output):
        return None
    if form.kind == "distribution" and target.ndim > 2:  # a distribution at each point of a picture
        target, output = (one.movedim(1, -1).reshape(-1, one.shape[1]) for one in (target, output))
    samples = target.shape[0]
    wanted_NK, given_NK = (one.reshape(samples, -1) for one in (target, output))
    columns = wanted_NK.shape[1]
    if form.kind != "distribution":
        across = ceil(columns * samples / max(MOST, samples))
        wanted_NK, given_NK = wanted_NK[:, ::across], given_NK[:, ::across]
    down = ceil(wanted_NK.numel() / max(MOST, wanted_NK.shape[1]))
    wide = precise(output.device)
    wanted_NK, given_NK = (_centred(one[::down].to(wide)) for one in (wanted_NK, given_NK))
    count, read = wanted_NK.shape
    if count < 2:
        return None
    if count <= read:
        square = (given_NK @ wanted_NK.T).square().sum()
    else:
        square = ((given_NK.T @ given_NK) * (wanted_NK.T @ wanted_NK)).sum()
    whole = count * (1 if form.kind == "distribution" else read)
    signal = (given_NK * wanted_NK).sum() / whole
    return torch.stack([signal, square / ((count - 1) * whole**2), torch.full_like(signal, float(count))])


def _sizes(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size > 1]


def _centred(values_NK: Tensor) -> Tensor:
    return values_NK - values_NK.mean(0)

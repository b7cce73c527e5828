"""The loss of the best prediction that is the same for every sample, for losses whose form is known."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log, prod
from typing import NamedTuple

import torch
from torch import Tensor

from evengrad.probe._loss_graph import Op, Way
from evengrad.probe._sample_hooks import plain
from evengrad.probe._statistics import precise

FEWEST = 8  # samples below which a batch says little of its distribution
MOST = 1 << 16  # labels, or numbers of a target, that are read

NUMBERS = 2  # of the vector

NONE, MEAN, SUM = range(3)  # reductions as torch numbers them
CROSS_ENTROPIES = ("NllLoss", "NllLoss2D")
BINARY = ("BinaryCrossEntropy", "BinaryCrossEntropyWithLogits")


class Form(NamedTuple):
    """A loss whose form is known.

    Args:
        kind: `entropy` of labels, `distribution` for targets that are probabilities, `squared`, `absolute`, `binary`.
        target: What the output is compared with.
        classes: Of labels; 0 for all else.
        ignored: The label that does not count.
        reduction: As torch numbers them.
    """

    kind: str
    target: Tensor
    classes: int = 0
    ignored: int = -100
    reduction: int = MEAN


def form_of(way: Way, target: Tensor | None) -> Form | None:
    """Recognise a loss by its operations: one of torch and nothing after it, but a mean where it has no reduction.

    Args:
        way: From the loss back, before the backward.
        target: The target, where it is known; needed for losses whose graph does not keep it, as the absolute error.
    """
    ops = list(way.ops)
    if not ops:
        return None
    averaged = ops[0].name == "Mean" and len(ops) > 1 and ops[1].attribute("_saved_reduction") == NONE
    op = ops[1] if averaged else ops[0]
    reduction = op.attribute("_saved_reduction")
    if reduction is None:
        return _distribution(ops) or _by_hand(ops, target)
    if reduction == NONE and not averaged:
        return None
    return _of_torch(op, reduction)


def constant_numbers(form: Form) -> Tensor | None:
    """Compute the loss on the target's device: a vector of the loss, and of how many samples it is of.

    Cost: Some ten operations over at most 65,536 numbers of the target; no host synchronisation.
    """
    target = plain(form.target)
    if target is None or not target.numel():
        return None
    if form.kind == "entropy":
        return _entropy(form, target)
    columns = _columns(form, target)
    value = KINDS[form.kind](columns)
    if form.reduction == SUM:
        samples = target.shape[0] if form.kind == "distribution" else target.numel()
        value = value * samples
    return torch.stack([value, torch.full_like(value, float(columns.shape[0]))])


def constant_loss(numbers: Sequence[float]) -> float | None:
    """Read what `constant_numbers` gave; None for too few samples, or a target that is not finite."""
    value, samples = numbers
    return value if samples >= FEWEST and value - value == 0.0 else None


def saved_target(way: Way) -> Tensor | None:
    """Give the target that the loss keeps for its backward; None where it keeps none."""
    for op in way.ops[:2]:
        if (target := _other_side(op)) is not None and op.attribute("_saved_target") is not None:
            return target
    return None


def _of_torch(op: Op, reduction: int) -> Form | None:
    if op.attribute("_saved_weight") is not None or op.attribute("_saved_pos_weight") is not None:
        return None
    target = _other_side(op)
    if target is None:
        return None
    if op.name in CROSS_ENTROPIES:
        shape = op.input_shape
        if shape is None or len(shape) < 2:
            return None
        ignored = op.attribute("_saved_ignore_index")
        return Form("entropy", target, shape[1], ignored - (1 << 64) if ignored >= 1 << 63 else ignored, reduction)
    if op.name == "MseLoss":
        return Form("squared", target, reduction=reduction)
    return Form("binary", target, reduction=reduction) if op.name in BINARY else None


def _other_side(op: Op, names: tuple[str, str] = ("_saved_self", "_saved_target")) -> Tensor | None:
    """Give what a gradient does not flow to; None where it flows to both sides."""
    sides = op.follows
    if len(sides) > 1 and sides[1]:
        return None if sides[0] else _tensor(op, names[0])
    return _tensor(op, names[1])


def _tensor(op: Op, name: str) -> Tensor | None:
    found = op.attribute(name)
    return found if isinstance(found, Tensor) else None


def _distribution(ops: list[Op]) -> Form | None:
    """Recognise torch's cross entropy with probabilities: -(log_softmax(output) * target).sum() / samples."""
    names = tuple(op.name for op in ops)
    averaged = names[:1] == ("Div",)
    if names[averaged : averaged + 4] != ("Neg", "Sum", "Mul", "LogSoftmax"):
        return None
    product = ops[averaged + 2]
    target = _other_side(product, ("_saved_self", "_saved_other"))
    if target is None or target.shape != product.shape or target.ndim < 2 or not target.is_floating_point():
        return None
    samples = target.numel() / target.shape[1]
    if averaged and ops[0].attribute("_saved_other") != samples:
        return None
    return Form("distribution", target, reduction=MEAN if averaged else SUM)


def _by_hand(ops: list[Op], target: Tensor | None) -> Form | None:
    """Recognise a mean or a sum of absolute or squared differences to a target that is known."""
    names = tuple(op.name for op in ops[:3])
    if target is None or len(names) < 3 or names[0] not in {"Mean", "Sum"} or names[2] != "Sub":
        return None
    squared = names[1] == "Pow" and ops[1].attribute("_saved_exponent") == 2
    known = target.is_floating_point() and tuple(target.shape) == ops[2].shape and sum(ops[2].follows) == 1
    if not known or not (squared or names[1] == "Abs"):
        return None
    return Form("squared" if squared else "absolute", target, reduction=MEAN if names[0] == "Mean" else SUM)


def _entropy(form: Form, target: Tensor) -> Tensor:
    """Entropy of the labels in nats with the correction of Miller and Madow (1955), never above that of even labels."""
    wide = precise(target.device)
    labels = target.reshape(-1)[:: ceil(target.numel() / MOST)].long()
    valid = ((labels != form.ignored) & (labels >= 0) & (labels < form.classes)).to(wide)
    zeros = torch.zeros(form.classes, dtype=wide, device=target.device)
    counts_K = zeros.index_add_(0, labels.clamp(0, form.classes - 1), valid)
    total = counts_K.sum()
    once = total.clamp_min(1.0)
    correction = ((counts_K > 0).sum() - 1) / (2 * once)
    value = (torch.special.entr(counts_K / once).sum() + correction).clamp_max(log(form.classes))
    share = total / labels.numel()
    if form.reduction == SUM:
        value = value * share * target.numel()
    elif form.reduction == NONE:
        value = value * share  # what is ignored counts 0 in a mean that is taken later
    return torch.stack([value, total])


def _columns(form: Form, target: Tensor) -> Tensor:
    """View as (samples, columns), thinned out at even distances to what may be read."""
    if form.kind == "distribution":
        target = target.movedim(1, -1).reshape(-1, target.shape[1])
    columns = target.reshape(target.shape[0], prod(target.shape[1:])) if target.ndim else target.reshape(1, 1)
    if form.kind != "distribution":
        columns = columns[:, :: ceil(columns.numel() / max(MOST, columns.shape[0]))]
    columns = columns[:: ceil(columns.numel() / max(MOST, columns.shape[1]))]
    return columns.to(precise(target.device))


def _squared(target_NK: Tensor) -> Tensor:
    return target_NK.var(0, correction=0).mean()


def _absolute(target_NK: Tensor) -> Tensor:
    median_K = target_NK.sort(0).values[target_NK.shape[0] // 2]
    return (target_NK - median_K).abs().mean()


def _binary(target_NK: Tensor) -> Tensor:
    share_K = target_NK.mean(0).clamp(0.0, 1.0)
    entropy_K: Tensor = torch.special.entr(share_K) + torch.special.entr(1.0 - share_K)
    return entropy_K.mean()


def _mixed(target_NK: Tensor) -> Tensor:
    share_K = target_NK.mean(0).clamp_min(0.0)
    together: Tensor = torch.special.entr(share_K.sum())
    each: Tensor = torch.special.entr(share_K).sum()
    return each - together


KINDS = {"squared": _squared, "absolute": _absolute, "binary": _binary, "distribution": _mixed}

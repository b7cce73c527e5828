"""What went into the model and what became of its output, up to the loss: read without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from evengrad.nouns import Ends
from evengrad.probe._constant_loss import NUMBERS as CONSTANT_NUMBERS
from evengrad.probe._constant_loss import Form, constant_loss, constant_numbers, form_of, saved_target
from evengrad.probe._loss_graph import Way, way_back
from evengrad.probe._signal import NUMBERS as SIGNAL_NUMBERS
from evengrad.probe._signal import signal_numbers, signal_of
from evengrad.probe._statistics import precise
from evengrad.probe._tensor_numbers import FIELDS, tensor_numbers, tensor_reading
from evengrad.probe._watch_entries import float_tensors

MOST = 1 << 15  # elements of a tensor that are read
MOST_INPUTS = 8


@final
class EndsSample:
    """Read inputs, output, target and loss of one forward, before the backward frees its graph.

    All is measured here, on the tensors' devices; `packed()` gives one vector, and `readings` makes `Ends` of a host
    copy of it, at any time later. Neither tensors nor graph are kept.

    Of a tensor of more than 32,768 elements whole samples at even distances are read, and of samples that are larger
    than that points of theirs; of more than 2,048 features some at even distances. So a rare maximum or a rare NaN can
    be missed there.

    Args:
        inputs: What the model was called with: a tensor, or tuples, lists and mappings of them. At most eight are read.
        output: What it gave; the first floating-point tensor with a dimension is read.
        target: What the loss compares with, likewise; where it is not given, what the loss keeps of it.
        loss: The loss of the step, with its graph.
        most: How many elements of a tensor are read; None for all.

    Cost: On one CPU thread 0.06 ms for a small tensor and 0.2 ms for one of 32,768 elements or more, 0.1 to 0.4 ms for
        the loss: 0.35 ms together for a small model, 0.7 ms for a language model. No host synchronisation. The target
        that a loss has saved for its backward is unpacked once more, with the hooks of `saved_tensors_hooks` where such
        are in force.

    Example:
        >>> import torch
        >>> layer, x = torch.nn.Linear(3, 2), torch.arange(24.0).view(8, 3)
        >>> y = layer(x)
        >>> loss = torch.nn.functional.cross_entropy(y, torch.tensor([0, 1] * 4))
        >>> sample = EndsSample(x, y, loss=loss)
        >>> ends = sample.readings(sample.packed().tolist())
        >>> ends.inputs[0].maximum, ends.target.shape, ends.loss_ops
        (23.0, (8,), ('NllLoss', 'LogSoftmax'))
    """

    def __init__(
        self, inputs: Any, output: Any, target: Any = None, loss: Tensor | None = None, *, most: int | None = MOST
    ) -> None:
        given = _output_in(output)
        way = None if loss is None else way_back(loss, given)
        form = None if way is None else form_of(way, next(_tensors(target), None))
        wanted = _target_in(target, way, form)
        named = list(named_tensors("input", inputs))[:MOST_INPUTS]
        named += [(name, tensor) for name, tensor in (("output", given), ("target", wanted)) if tensor is not None]
        with torch.no_grad():
            found = [one for name, tensor in named if (one := tensor_numbers(name, tensor, most)) is not None]
            constant = None if form is None else constant_numbers(form)
            signal = None if form is None or not _is_met(way) or given is None else signal_numbers(form, given)
        self._looks = [look for look, _ in found]
        self._vectors = [numbers for _, numbers in found]
        self._has_constant = constant is not None
        self._has_signal = signal is not None
        self._vectors += [one for one in (constant, signal) if one is not None]
        self._known: dict[str, Any] = {}
        if way is not None:
            self._known = {
                "loss_ops": way.names,
                "cuts": way.cuts,
                "softmax_size": way.softmax_size,
                "compared_shape": way.compared_shape,
            }

    def packed(self) -> Tensor:
        """Put all numbers together.

        Returns:
            One dimension, float64 where the device has it, on the tensors' device: the first accelerator where they are
            on several. `readings` wants a host copy of it.
        """
        vectors = self._vectors
        if not vectors:
            return torch.empty(0, device="cpu")
        device = next((one.device for one in vectors if one.device.type != "cpu"), vectors[0].device)
        return torch.cat([one.to(device, precise(device), non_blocking=True) for one in vectors])

    def readings(self, numbers: Sequence[float]) -> Ends:
        """Make the reading of what `packed()` gave.

        Args:
            numbers: A host copy.
        """
        size = len(FIELDS)
        read = [
            tensor_reading(look, numbers[size * place : size * (place + 1)]) for place, look in enumerate(self._looks)
        ]
        by_name = {one.name: one for one in read}
        rest = list(numbers[size * len(read) :])
        constant = constant_loss(rest[:CONSTANT_NUMBERS]) if self._has_constant else None
        signal = signal_of(rest[-SIGNAL_NUMBERS:]) if self._has_signal else None
        return Ends(
            inputs=tuple(one for one in read if one.name not in {"output", "target"}),
            output=by_name.get("output"),
            target=by_name.get("target"),
            constant_loss=constant,
            signal=None if signal is None else signal[0],
            signal_error=None if signal is None else signal[1],
            **self._known,
        )


def named_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Name the tensors that a model is called with: `input`, `input.1` after it, `input.mask` in a mapping.

    Example:
        >>> x, mask = torch.ones(2), torch.zeros(2)
        >>> [name for name, _ in named_tensors("input", (x, mask, {"mask": mask}))]
        ['input', 'input.1', 'input.mask']
    """
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, PackedSequence):
        yield name, value.data
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            named = place and not isinstance(item, Mapping)
            yield from named_tensors(f"{name}.{place}" if named else name, item)


def _tensors(value: Any) -> Iterator[Tensor]:
    return (tensor for _, tensor in named_tensors("", value))


def _output_in(output: Any) -> Tensor | None:
    """Choose the output: a model that computes its loss itself gives that too, as a number without dimensions."""
    found = list(float_tensors(output))
    return next((one for one in found if one.ndim), found[0] if found else None)


def _is_met(way: Way | None) -> bool:
    """Tell whether the loss is one of the output."""
    return way is not None and way.loss_ops is not None


def _target_in(target: Any, way: Way | None, form: Form | None) -> Tensor | None:
    given = next(_tensors(target), None)
    if given is not None or way is None:
        return given
    return form.target if form is not None else saved_target(way)

"""One packed vector of squared gradient norms, by the fewest operations that the device needs."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from evengrad.measure._groups import Group, grouped
from evengrad.nouns import ModelError


@final
class Norms:
    """Measure the gradient norm of every parameter in one pass over the gradients.

    Accumulation is in float32 whatever the gradients' dtype, in float64 for float64 gradients; in short rows, so that
    large tensors keep 1e-6 relative accuracy (torch's own norm of a large float32 tensor on a CPU is off by up to
    2e-3). A parameter without a gradient, or an empty one, measures 0. Complex gradients count real and imaginary
    parts. Sparse gradients are coalesced first. A NaN or infinity in a gradient makes its entry NaN or infinite; so do
    finite elements whose squares overflow float32 (a norm above 1.8e19). Norms below 1e-22 measure 0.

    The plan (which gradients are measured together) is made once and made anew when shapes, dtypes or layouts change.

    Args:
        parameters: The parameters, in the order of the vector. A parameter given twice is measured twice.

    Raises:
        ModelError: A parameter is sharded (DTensor): its local part alone would give a wrong norm.

    Cost: One read of the gradients; no host synchronisation; on a CPU, a buffer of at most a million elements
    for each shape that four or more small tensors share.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> Norms([weight]).squared()
        tensor([25.])
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        for number, parameter in enumerate(self._parameters):
            if hasattr(parameter, "placements"):
                raise ModelError(
                    f"parameter {number}",
                    came=f"a {type(parameter).__name__}, sharded over processes",
                    wanted="a parameter that is whole in this process",
                )
        self._groups: tuple[Group, ...] | None = None
        self._places: Tensor | None = None

    def squared(self) -> Tensor:
        """Measure the squared norms.

        Returns:
            Shape (P,), float32, on the parameters' device; on the first accelerator where devices are mixed.
        """
        with torch.no_grad():
            grads = [parameter.grad for parameter in self._parameters]
            if self._groups is None or not all(group.fits(grads) for group in self._groups):
                self._plan(grads)
            try:
                return self._packed(grads)
            except RuntimeError:  # a layout changed in the middle of a group; a true error comes again
                self._plan(grads)
                return self._packed(grads)

    def _plan(self, grads: list[Tensor | None]) -> None:
        self._groups = grouped(self._parameters, grads)
        self._device = _first_accelerator(self._parameters)
        order = [place for group in self._groups for place in group.places]
        self._places = torch.tensor(order, dtype=torch.int64, device=self._device)

    def _packed(self, grads: list[Tensor | None]) -> Tensor:
        packed = torch.zeros(len(self._parameters), dtype=torch.float32, device=self._device)
        pieces = []
        complete = True
        for group in self._groups or ():
            present, squares = group.measured(grads)
            complete = complete and len(present) == len(group.places)
            pieces.append((present, squares))
        if not pieces:
            return packed
        values = torch.cat([squares.to(self._device, torch.float32) for _, squares in pieces])
        if complete and self._places is not None:
            return packed.index_copy_(0, self._places, values)
        places = torch.tensor([place for present, _ in pieces for place in present], dtype=torch.int64)
        return packed.index_copy_(0, places.to(self._device), values)


def _first_accelerator(parameters: list[Tensor]) -> torch.device:
    devices = [parameter.device for parameter in parameters]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))

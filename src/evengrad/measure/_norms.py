"""The norm of every gradient, packed into one vector, by the fewest operations that the device needs."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evengrad.measure._lists import Lists
from evengrad.measure._rows import Rows
from evengrad.nouns import ModelError, SettingError


@final
class Norms:
    """Measure the gradient norm of every parameter in one pass over the gradients.

    Accumulation is in float32 whatever the gradients' dtype, in float64 for float64 gradients; in short rows, so that
    large tensors keep 1e-6 relative accuracy (torch's own norm of a large float32 tensor on a CPU is off by up to
    2e-3). A parameter without a gradient, or an empty one, measures 0. Complex gradients count real and imaginary
    parts (for other norms than the Euclidean one, their absolute value). Sparse gradients are coalesced first. A NaN or
    infinity in a gradient makes its entry NaN or infinite; so do finite elements whose squares overflow float32 (above
    1.8e19). Euclidean norms below 1e-22 measure 0.

    The plan (which gradients are measured together) is made once and made anew when shapes, dtypes or layouts change.

    Args:
        parameters: The parameters, in the order of the vector. A parameter given twice is measured twice.
        norm_type: The order p of the norm (sum of |x|^p)^(1/p), from 1 to infinity. 2 is the Euclidean norm.
        weights: Measure the parameters themselves, not their gradients.

    Raises:
        ModelError: A parameter is sharded (DTensor): its local part alone would give a wrong norm.
        SettingError: The order is below 1. (The "norm" of order 0 counts a NaN as one element, and hides it.)

    Cost: One read of the gradients; no host synchronisation; on a CPU, a buffer of at most a million elements
    for each shape that four or more small tensors share, and four bytes for 256 elements of the others.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> Norms([weight]).norms()
        tensor([5.])
    """

    def __init__(self, parameters: Sequence[Tensor], *, norm_type: float = 2.0, weights: bool = False) -> None:
        if not norm_type >= 1:
            raise SettingError("norm_type", came=repr(norm_type), wanted="a number from 1 to infinity")
        self._parameters = list(parameters)
        for number, parameter in enumerate(self._parameters):
            if hasattr(parameter, "placements"):
                raise ModelError(
                    f"parameter {number}",
                    came=f"a {type(parameter).__name__}, sharded over processes",
                    wanted="a parameter that is whole in this process",
                )
        self._order = float(norm_type)
        self._weights = weights
        self._on_host: tuple[Rows, NDArray[np.int64]] | None = None
        self._elsewhere: tuple[Lists, list[int]] | None = None
        self._device: torch.device | None = None

    def norms(self) -> Tensor:
        """Measure the norms.

        Returns:
            Shape (P,), float32, on the parameters' device; on the first accelerator where devices are mixed.
        """
        host, elsewhere = self._measured()
        if elsewhere is None:
            return torch.from_numpy(host)
        if self._on_host is not None:  # mixed devices
            elsewhere = elsewhere + torch.from_numpy(host).to(elsewhere.device, non_blocking=True)
        return elsewhere

    def squared(self) -> Tensor:
        """Measure the squared norms: as `norms`, but infinite where a norm is 1.8e19 or more."""
        norms = self.norms()
        return norms * norms

    def on_host(self) -> NDArray[np.float32]:
        """Measure the norms as an array on the host, shape (P,), float32.

        Cost: On a CPU less than `norms`; with parameters on an accelerator it waits for the device.
        """
        host, elsewhere = self._measured()
        return host if elsewhere is None else host + elsewhere.cpu().numpy()

    def _measured(self) -> tuple[NDArray[np.float32], Tensor | None]:
        with torch.no_grad():
            tensors = self._parameters if self._weights else [parameter.grad for parameter in self._parameters]
            if self._device is None:
                self._plan(tensors)
            try:
                return self._parts(tensors)
            except RuntimeError:  # a gradient is of another kind than before; a true error comes again
                self._plan(tensors)
                return self._parts(tensors)

    def _plan(self, tensors: Sequence[Tensor | None]) -> None:
        kinds = [p if tensor is None else tensor for p, tensor in zip(self._parameters, tensors, strict=True)]
        self._device = first_accelerator(self._parameters)
        here = [place for place, tensor in enumerate(kinds) if tensor.device.type == "cpu"]
        there = [place for place, tensor in enumerate(kinds) if tensor.device.type != "cpu"]
        self._on_host, self._elsewhere = None, None
        if here or not there:
            planned = Rows([kinds[place] for place in here], self._order)
            self._on_host = (planned, np.array(here, dtype=np.int64))
        if there:
            self._elsewhere = (Lists([kinds[place] for place in there], self._order, self._device), there)

    def _parts(self, tensors: Sequence[Tensor | None]) -> tuple[NDArray[np.float32], Tensor | None]:
        """Measure what is on the host and what is elsewhere; each with 0 in the other's places."""
        if self._elsewhere is None and self._on_host is not None:
            return self._on_host[0].norms(tensors), None
        host = np.zeros(len(tensors), dtype=np.float32)
        if self._on_host is not None:
            rows, here = self._on_host
            host[here] = rows.norms([tensors[place] for place in here])
        lists, there = self._elsewhere  # type: ignore[misc]
        norms = lists.norms([tensors[place] for place in there])
        if len(there) == len(tensors):
            return host, norms
        places = torch.tensor(there, dtype=torch.int64).to(norms.device, non_blocking=True)
        everywhere = torch.zeros(len(tensors), dtype=torch.float32, device=norms.device)
        return host, everywhere.index_copy_(0, places, norms)


def first_accelerator(tensors: Sequence[Tensor]) -> torch.device:
    """Return the first device that is not the host's; the host where there is none."""
    return next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))

"""Running statistics of normalisation layers, which a bad batch spoils although its step is skipped."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from evengrad.guard._protect_hooks import Hook
from evengrad.measure import copy_each_

NAMES = ("running_mean", "running_var", "num_batches_tracked")


@final
class RunningStatistics:
    """Keep the running statistics as they were after the last good step, and put them back after a skipped one.

    A forward with a NaN in it leaves a batch norm's running mean NaN for good: training goes on, evaluation is ruined.

    Args:
        model: Whose batch and instance norms are kept.
        parameters: The guarded ones: a layer that is trained, but not by them, is left to another guard.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        guarded = {id(parameter) for parameter in parameters}
        layers = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        self._layers = [layer for layer in layers if not _elsewhere(layer, guarded)]
        self._kept: list[Tensor] = []
        self._hook: Any = None
        if self._layers:
            self._hook = model.register_load_state_dict_post_hook(Hook(self._loaded, ""))
        self.keep()

    def _loaded(self, *_: Any) -> None:
        """Remember what the loop has loaded: after a first step that is skipped it is that which comes back."""
        self.keep()

    def end(self) -> None:
        """Let the model go."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def keep(self, *, finite_only: bool = False) -> None:
        """Remember them as they are now.

        Args:
            finite_only: Remember only what is finite, decided on the device: for steps of which the host does not know
                yet whether they were good.

        Cost: A small copy for each buffer; nothing where there are no such layers.
        """
        if not self._layers:
            return
        now = self._now()
        with torch.no_grad():
            if list(map(_kind, self._kept)) != list(map(_kind, now)):
                self._kept = [buffer.clone() for buffer in now]
                return
            if not finite_only:
                copy_each_(self._kept, now)
                return
            for kept, buffer in zip(self._kept, now, strict=True):
                kept.copy_(torch.where(torch.isfinite(buffer), buffer, kept))

    def put_back(self, *, bad_only: bool = False) -> None:
        """Make them what they were; those of another shape than then are left as they are.

        Args:
            bad_only: Only where they are not finite now.
        """
        now = self._now()
        if len(now) != len(self._kept):
            return
        with torch.no_grad():
            for kept, buffer in zip(self._kept, now, strict=True):
                if kept.shape == buffer.shape:
                    buffer.copy_(torch.where(torch.isfinite(buffer), buffer, kept.to(buffer)) if bad_only else kept)

    def spoiled(self) -> bool:
        """Whether one of them is not finite; waits for an accelerator."""
        flags = [torch.isfinite(buffer).all() for buffer in self._now() if buffer.is_floating_point()]
        return bool(flags) and not bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())

    def _now(self) -> Sequence[Tensor]:
        own = [layer._buffers for layer in self._layers]  # a module's own attribute lookup is slow
        buffers = [buffers.get(name) for buffers in own for name in NAMES]
        return [buffer for buffer in buffers if buffer is not None]


def _kind(buffer: Tensor) -> tuple[torch.Size, torch.device, torch.dtype]:
    return buffer.shape, buffer.device, buffer.dtype


def _elsewhere(layer: nn.Module, guarded: set[int]) -> bool:
    """Whether a layer is trained by an optimizer that is not guarded here."""
    own = list(layer.parameters())
    return any(one.requires_grad for one in own) and not any(id(one) in guarded for one in own)

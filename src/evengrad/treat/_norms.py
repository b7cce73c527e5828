"""Which normalisation fits which layer, and how it is written."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from evengrad.treat._forward_order import Place, first_tensor

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Kind = Literal["auto", "layer", "batch", "group", "rms"]

# Wu and He 2018, arXiv 1803.08494, figure 1.
LEAST_SAMPLES_OF_CONVOLUTIONS = 16
# Measured: the table in the docstring of `AddNormalization`.
LEAST_SAMPLES_OF_DENSE_LAYERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Norms:
    """Choose the norm of each layer of one model.

    Args:
        kind: What was asked for.
        samples: Samples in a batch; 0 when unknown.
        rms: Whether the model has norms by root mean square of its own.
        sequences: Whether a dense layer without a recorded shape is taken to see sequences.
    """

    kind: Kind
    samples: int
    rms: bool
    sequences: bool

    def behind(self, place: Place) -> str | None:
        """Write the norm of a layer's output; None when the kind does not go there."""
        layer = place.module
        if isinstance(layer, nn.Linear):
            dims = len(place.output_shape) if place.output_shape else 3 if self.sequences else 2
            return self.of_features(layer.out_features, dims)
        return self.of_channels(int(layer.out_channels), _space(layer)) if isinstance(layer, Convolution) else None

    def before(self, place: Place) -> str | None:
        """Write the norm of a layer's input; None when the kind does not go there."""
        layer = place.module
        if isinstance(layer, nn.Linear):
            dims = len(place.input_shape) if place.input_shape else 3 if self.sequences else 2
            return self.of_features(layer.in_features, dims)
        return self.of_channels(int(layer.in_channels), _space(layer)) if isinstance(layer, Convolution) else None

    def of_features(self, width: int, dims: int) -> str | None:
        """Write the norm of vectors, with the features last."""
        kind = self._dense_kind(dims)
        if width < 2 or (kind in {"batch", "group"} and dims != 2):
            return None
        calls = {
            "layer": f"nn.LayerNorm({width})",
            "batch": f"nn.BatchNorm1d({width})",
            "group": f"nn.GroupNorm({_groups(width)}, {width})",
            "rms": f"nn.RMSNorm({width})",
        }
        return calls[kind]

    def of_channels(self, channels: int, dims: int) -> str | None:
        """Write the norm of what a convolution makes, with the channels second and `dims` dimensions of space."""
        kind: str = self.kind
        if kind == "auto":
            kind = "batch" if self.samples >= LEAST_SAMPLES_OF_CONVOLUTIONS else "group"
        calls = {
            "layer": f"nn.GroupNorm(1, {channels})",
            "batch": f"nn.BatchNorm{dims}d({channels})",
            "group": f"nn.GroupNorm({_groups(channels)}, {channels})",
        }
        return calls.get(kind)

    def of_sequence(self, width: int) -> str | None:
        """Write the norm of the features of a sequence: what no batch and no other position has a part in."""
        if width < 2 or self.kind in {"batch", "group"}:
            return None
        return f"nn.RMSNorm({width})" if self._each_alone() == "rms" else f"nn.LayerNorm({width})"

    def _dense_kind(self, dims: int) -> str:
        if self.kind != "auto":
            return self.kind
        vectors = dims == 2 and self.samples >= LEAST_SAMPLES_OF_DENSE_LAYERS
        return "batch" if vectors else self._each_alone()

    def _each_alone(self) -> str:
        return "rms" if self.kind == "rms" or (self.kind == "auto" and self.rms) else "layer"


def norms_for(model: nn.Module, kind: Kind, batch_input: Any) -> Norms:
    """Look at a model and a batch."""
    tensor = None if batch_input is None else first_tensor(batch_input)
    sequential = (nn.RNNBase, nn.MultiheadAttention, nn.Embedding)
    return Norms(
        kind=kind,
        samples=len(tensor) if tensor is not None and tensor.dim() > 1 else 0,
        rms=any("rmsnorm" in type(module).__name__.lower() for module in model.modules()),
        sequences=any(isinstance(module, sequential) for module in model.modules()),
    )


def made(call: str) -> nn.Module:
    """Make the module that a call such as `nn.LayerNorm(4)` makes."""
    kind, _, numbers = call.removeprefix("nn.").removesuffix(")").partition("(")
    module: nn.Module = getattr(nn, kind)(*(int(number) for number in numbers.split(",")))
    return module


def mode_code(calls: list[str], module: str) -> str:
    """Write how a new norm takes over the mode of a module; only a batch norm gives other numbers in training mode."""
    return f".train({module}.training)" if any("nn.BatchNorm" in call for call in calls) else ""


def _space(layer: nn.Module) -> int:
    """Count the dimensions of space of a convolution."""
    return layer.get_parameter("weight").dim() - 2


def _groups(channels: int) -> int:
    """Choose the most groups of at least four channels, at most 32; one group when there is no such divisor."""
    fitting = [groups for groups in range(1, 33) if channels % groups == 0 and channels // groups >= 4]
    return max(fitting, default=1)

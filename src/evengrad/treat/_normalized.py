"""Modules that normalise what goes into another, or what a recurrent layer hands on; as classes and as code."""

from typing import Any, final

from torch import nn
from torch.nn.utils.rnn import PackedSequence

from evengrad.treat._around import AbstractAround

PRENORMED_CODE = """\
class Prenormed(nn.Module):
    def __init__(self, norm, layer):
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, *args, **kwargs):
        first = args[0] if args else next(iter(kwargs.values()))
        normed = self.norm(first)
        args = [normed if value is first else value for value in args]
        kwargs = {key: normed if value is first else value for key, value in kwargs.items()}
        return self.layer(*args, **kwargs)

"""

NORMALIZED_RECURRENT_CODE = """\
class NormalizedRecurrent(nn.Module):
    def __init__(self, layer, norm):
        super().__init__()
        self.layer, self.norm = layer, norm

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('layer'), name)

    def forward(self, *args, **kwargs):
        output, state = self.layer(*args, **kwargs)
        if isinstance(output, nn.utils.rnn.PackedSequence):
            return output._replace(data=self.norm(output.data)), state
        return self.norm(output), state

"""


@final
class Prenormed(nn.Module):
    """Call a module with its first argument normalised, and with it every other argument that is the same tensor.

    Queries, keys and values of a self-attention are the same tensor; a memory and a mask are not.
    """

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        first = args[0] if args else next(iter(kwargs.values()))
        normed = self.norm(first)
        given = [normed if value is first else value for value in args]
        named = {key: normed if value is first else value for key, value in kwargs.items()}
        return self.layer(*given, **named)


@final
class NormalizedRecurrent(AbstractAround):
    """Normalise the output of a recurrent layer and hand on its state as it is; packed sequences stay packed.

    What a forward reads of the layer, such as `hidden_size`, is still there.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer)
        self.norm = norm

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Call the layer."""
        output, state = self.layer(*args, **kwargs)
        if isinstance(output, PackedSequence):
            return output._replace(data=self.norm(output.data)), state
        return self.norm(output), state

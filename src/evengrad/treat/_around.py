"""What stands around one recurrent layer and is asked for what the layer has."""

from typing import Any

from torch import nn


class AbstractAround(nn.Module):
    """Hold one layer and show its attributes beside one's own: `hidden_size`, `flatten_parameters` and the like."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Asked of nn.Module itself: while a copy is made there is no layer yet, and to ask again would not end.
            return getattr(super().__getattr__("layer"), name)

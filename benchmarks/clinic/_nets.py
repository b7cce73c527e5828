"""What healthy architectures share: drawn data, and a builder that seeds the weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._build import CE
from ._program import Architecture

CLASSES = 10
LETTERS = 50
Data = Callable[[torch.Generator], tuple[Any, Any]]


def labels(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=generator)


def vectors(generator: torch.Generator, width: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(64, width, generator=generator), labels(64, generator)


def pictures(generator: torch.Generator, size: int = 32, count: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, size, size, generator=generator), labels(count, generator)


def sequences(generator: torch.Generator, length: int = 24, features: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(16, length, features, generator=generator), labels(16, generator)


def sentences(generator: torch.Generator, length: int = 32, count: int = 8) -> tuple[Tensor, Tensor]:
    """Draw letters; the target is the next one."""
    letters = torch.randint(LETTERS, (count, length + 1), generator=generator)
    return letters[:, :-1], letters[:, 1:]


def itself(data: Data) -> Data:
    """Take the input as the target."""
    return lambda generator: (data(generator)[0],) * 2


def by_position(output: Tensor, target: Tensor) -> Tensor:
    """Take the cross entropy at each position of (batch, time, letters)."""
    return CE(output.flatten(0, 1), target.flatten())


def normal_(model: nn.Module, std: float = 0.02) -> None:
    """Draw weights of linear and embedding layers as GPT-2 does."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _built(make: Callable[[], nn.Module], loss: Any, data: Data, generator: torch.Generator) -> Any:
    batch = data(generator)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        model = make()
    return model, loss, batch


def architecture(name: str, make: Callable[[], nn.Module], loss: Any, data: Data) -> Architecture:
    return Architecture(name=name, build=partial(_built, make, loss, data))

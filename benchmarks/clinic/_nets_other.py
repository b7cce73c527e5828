"""Healthy architectures of other kinds: dense, generative, on sets and graphs, with experts."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._build import BCE_LOGITS, CE, MSE, drawn, he_normal, residual, stack
from ._nets import CLASSES, architecture, itself, labels, vectors


def self_normalising() -> nn.Module:
    modules = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.SELU(), nn.AlphaDropout(0.05))]
    return drawn(
        nn.Sequential(*modules, nn.Linear(64, CLASSES)), partial(nn.init.kaiming_normal_, nonlinearity="linear")
    )


def normed() -> nn.Module:
    modules = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())]
    return nn.Sequential(*modules, nn.Linear(64, CLASSES))


class Highway(nn.Module):
    """A layer that is let through by a gate, shut at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * functional.relu(self.inner(x)) + (1 - gate) * x


class Gated(nn.Module):
    """A residual block whose dense part has a gate (SwiGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.into(self.norm(x)).chunk(2, 1)
        return x + self.out(functional.silu(gate) * value)


def tower(block: type[nn.Module], depth: int) -> nn.Module:
    return nn.Sequential(*(block(64) for _ in range(depth)), nn.Linear(64, CLASSES))


class Sine(nn.Module):
    """A layer of a sinusoidal network (Sitzmann et al. 2020)."""

    def __init__(self, wide: int, width: int, *, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(wide, width)
        bound = 1 / wide if first else (6 / wide) ** 0.5 / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


def sine() -> nn.Module:
    head = nn.Linear(64, 3)
    nn.init.uniform_(head.weight, -((6 / 64) ** 0.5) / 30, (6 / 64) ** 0.5 / 30)
    return nn.Sequential(Sine(2, 64, first=True), *(Sine(64, 64) for _ in range(3)), head)


class Fourier(nn.Module):
    """Sines and cosines of coordinates, of frequencies that double."""

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.cat([x * (2.0**power * torch.pi) for power in range(6)], 1)
        return torch.cat([x, angles.sin(), angles.cos()], 1)


def nerf() -> nn.Module:
    return nn.Sequential(Fourier(), *stack(26, 6, 64, nn.ReLU, 3, nn.Sigmoid()))


def colours(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    places = 2 * torch.rand(256, 2, generator=generator) - 1
    waves = torch.stack([(5 * places[:, 0]).sin(), (7 * places[:, 1]).cos(), (9 * places.sum(1)).sin()], 1)
    return places, 0.5 + 0.4 * waves


class VAE(nn.Module):
    """A variational autoencoder: gives what it rebuilds, the mean and the logarithm of the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(64, 64), nn.Linear(8, 64)
        self.code, self.out = nn.Linear(64, 16), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.code(functional.relu(self.read(x))).chunk(2, 1)
        code = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        return self.out(functional.relu(self.write(code))), mean, log_variance


def evidence(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    rebuilt, mean, log_variance = output
    prior = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    return (rebuilt - target).square().sum(1).mean() + prior


class Siamese(nn.Module):
    """Two inputs through the same network; gives their codes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = stack(64, 2, 64, nn.ReLU, 16)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(left), self.body(right)


def contrast(output: tuple[Tensor, Tensor], same: Tensor) -> Tensor:
    distance = (output[0] - output[1]).square().sum(1)
    apart = functional.relu(1 - (distance + 1e-6).sqrt()).square()
    return torch.where(same, distance, apart).mean()


def pairs(generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    left = torch.randn(64, 64, generator=generator)
    same = torch.arange(64) % 2 == 0
    other = torch.randn(64, 64, generator=generator)
    return (left, torch.where(same[:, None], left + 0.1 * other, other)), same


def agree(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """Find the other one of each pair among all (InfoNCE, as in SimCLR and CLIP)."""
    left, right = (functional.normalize(part, dim=1) for part in output)
    return CE(left @ right.T / 0.1, target)


def views(generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    data = torch.randn(64, 64, generator=generator)
    noise = 0.3 * torch.randn(2, 64, 64, generator=generator)
    return (data + noise[0], data + noise[1]), torch.arange(64)


class Experts(nn.Module):
    """Four experts of which two are asked, as a gate says."""

    def __init__(self, width: int = 64, count: int = 4) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width)) for _ in range(count)]
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        weight, chosen = self.gate(h).softmax(1).topk(2, 1)
        weight = torch.zeros(len(x), len(self.experts)).scatter(1, chosen, weight / weight.sum(1, keepdim=True))
        return x + sum(weight[:, [number]] * expert(h) for number, expert in enumerate(self.experts))


class Graph(nn.Module):
    """Graph convolutions: a matrix product with the adjacency between dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES)])

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            nodes = functional.relu(layer(adjacency @ nodes))
        return self.layers[-1](adjacency @ nodes)


def graph(generator: torch.Generator) -> tuple[Any, Tensor]:
    edges = (torch.rand(64, 64, generator=generator) < 0.05).float()
    edges = ((edges + edges.T + torch.eye(64)) > 0).float()
    scale = edges.sum(1).rsqrt()
    return (torch.randn(64, 64, generator=generator), scale[:, None] * edges * scale), labels(64, generator)


class DeepSets(nn.Module):
    """Each member of a set through one network, their mean through another."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = stack(3, 2, 64, nn.ReLU, 64), stack(64, 1, 64, nn.ReLU, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        return self.all(self.each(points).mean(1))


def clouds(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(32, 50, 3, generator=generator), labels(32, generator)


class Recommender(nn.Module):
    """Embeddings of users and things beside a dense network."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.things = nn.Embedding(100, 32), nn.Embedding(200, 32)
        self.body = stack(64, 2, 64, nn.ReLU, 1)

    def forward(self, users: Tensor, things: Tensor) -> Tensor:
        return self.body(torch.cat([self.users(users), self.things(things)], 1))[:, 0]


def ratings(generator: torch.Generator) -> tuple[Any, Tensor]:
    users = torch.randint(100, (128,), generator=generator)
    things = torch.randint(200, (128,), generator=generator)
    return (users, things), torch.randint(2, (128,), generator=generator).float()


def autoencoder() -> nn.Module:
    modules = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64)]
    return nn.Sequential(*modules)


OTHER = (
    architecture("MLP", partial(stack, 64, 3, 64, nn.ReLU, CLASSES), CE, vectors),
    architecture("MLP, tanh", partial(stack, 64, 4, 64, nn.Tanh, CLASSES), CE, vectors),
    architecture("MLP, 12 layers, He", lambda: drawn(stack(64, 12, 64, nn.ReLU, CLASSES), he_normal), CE, vectors),
    architecture("MLP, GELU", partial(stack, 64, 4, 64, nn.GELU, CLASSES), CE, vectors),
    architecture("MLP with batch norm", normed, CE, vectors),
    architecture("self-normalising network", self_normalising, CE, vectors),
    architecture("residual MLP", partial(residual, 64, 12, 64, CLASSES), CE, vectors),
    architecture("highway network", partial(tower, Highway, 10), CE, vectors),
    architecture("gated MLP", partial(tower, Gated, 6), CE, vectors),
    architecture("sinusoidal network", sine, MSE, colours),
    architecture("NeRF-like", nerf, MSE, colours),
    architecture("autoencoder", autoencoder, MSE, itself(vectors)),
    architecture("VAE", VAE, evidence, itself(vectors)),
    architecture("siamese network", Siamese, contrast, pairs),
    architecture("contrastive network", Siamese, agree, views),
    architecture("mixture of experts", partial(tower, Experts, 4), CE, vectors),
    architecture("graph convolutions", Graph, CE, graph),
    architecture("DeepSets", DeepSets, CE, clouds),
    architecture("recommender", Recommender, BCE_LOGITS, ratings),
)

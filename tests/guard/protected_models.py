"""Small models for the tests of what is protected inside a model."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from evengrad.guard import Protection

NAN, INF = float("nan"), float("inf")


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        bad = gradient.clone()
        bad.view(-1)[0] = NAN
        return bad


class Functional(nn.Module):
    """Two layers, and between them an operation that is no module."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 4), nn.Linear(4, 2), between

    def forward(self, x):
        return self.second(self.between(torch.relu(self.first(x))))


class Recurrent(nn.Module):
    def __init__(self, between=None):
        super().__init__()
        self.embed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        self.lstm, self.head = nn.LSTM(6, 5, 2, batch_first=True, dropout=0.2), nn.Linear(5, 2)
        self.between = between or nn.Identity()

    def forward(self, x):
        output, (state, _) = self.lstm(self.embed(x)[:, None].expand(-1, 3, -1))
        return self.head(self.between(output.mean(1) + state[-1]))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.relu, self.pool = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)
        self.flat, self.drop, self.last = nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 2)

    def forward(self, x):
        x = self.first(x[:, None, None].expand(-1, 1, 6, -1).contiguous(memory_format=torch.channels_last))
        x = self.relu(self.norm(x)) + x.mean((2, 3), keepdim=True)
        return self.last(self.drop(self.flat(self.pool(x)).mul_(1.5)))


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant):
        super().__init__()
        self.first, self.last, self.use_reentrant = nn.Linear(4, 8), nn.Linear(8, 2), use_reentrant
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 8))

    def forward(self, x):
        return self.last(checkpoint(self.block, self.first(x), use_reentrant=self.use_reentrant))


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)


class Shared(nn.Module):
    """One layer called three times, its result used three times, and a mapping of outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.split = Function(lambda x: {"a": (x, [x.sin()]), "b": x[:, ::2], "n": 3})

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x)) + x
        parts = self.split(x)
        return parts["a"][0].sum(1) + parts["a"][1][0].mean(1) * parts["b"].expand(-1, -1).sum(1)


def encoder(dropout=0.1):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2))


def sequential(function=torch.tanh):
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), Function(function), nn.Linear(4, 2))


def complex_layer():
    return nn.Linear(4, 2, dtype=torch.complex64)


def train(model, steps=4):
    """Train and return everything that could differ."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    losses = []
    torch.manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4, generator=generator)).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state()]


def hooks(model):
    return [
        (name, key, len(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hook" in key and isinstance(value, dict)
    ]


def train_protected(model, **settings):
    with Protection(model, **settings):
        return train(model, 1)


def bad_backward():
    return Function(BadBackward.apply)

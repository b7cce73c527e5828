"""Six kinds of models, and trainings of them in loops of several kinds, with a guard and without."""

import contextlib

import torch
from torch import nn

from evengrad.guard import Guard

STEPS = 30


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        hidden = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return {"logits": self.head(hidden.mean((2, 3))), "hidden": hidden}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(11, 6), nn.LSTM(6, 8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        output, state = self.body(self.embed(x))
        return self.head(output[:, -1]), state


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.embed, self.body, self.head = (
            nn.Embedding(11, 8),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        return self.head(self.body(self.embed(x)).mean(1))


class Shared(nn.Module):
    """A layer that is called several times, a part that is frozen, a head that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.frozen, self.unused = nn.Linear(8, 8), nn.Linear(8, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        for _ in range(3):
            hidden = torch.tanh(self.again(self.frozen(hidden)))
        return self.head(hidden)


def dense():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))


def parallel():
    return nn.DataParallel(dense())


VECTORS, PICTURES, TOKENS = (6, 5), (6, 3, 8, 8), None
KINDS = {
    "dense": (dense, VECTORS),
    "convolutions": (Convolutions, PICTURES),
    "recurrent": (Recurrent, TOKENS),
    "attention": (Attention, TOKENS),
    "shared and frozen": (Shared, VECTORS),
    "data parallel": (parallel, VECTORS),
}


def batch(shape, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(11, (6, 7), generator=generator) if shape is None else torch.randn(shape, generator=generator)
    return x, torch.randint(4, (6,), generator=generator)


def logits_of(output):
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


def run(kind, loop="plain", guarded=True, steps=STEPS, **settings):
    """Train, and return all losses and all that is left behind."""
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    trained = [one for one in model.parameters() if one.requires_grad]
    fused = loop == "scaled and fused"
    if loop == "two optimizers":
        optimizers = [torch.optim.SGD(trained[:2], lr=0.05, momentum=0.9), torch.optim.AdamW(trained[2:], lr=0.01)]
    else:
        optimizers = [torch.optim.AdamW(trained, lr=0.01, fused=fused)]
    scaler = torch.amp.GradScaler("cpu", enabled="scaled" in loop, init_scale=1024.0)
    every = {"sample_every_steps": 1, "tell": False, "scaler": scaler, **settings}
    guard = Guard(model, optimizers, **every) if guarded else None
    losses = []
    for step in range(steps):
        model.zero_grad()
        total = 0.0
        for part in range(2 if loop == "accumulated" else 1):
            x, y = batch(shape, 10 * step + part)
            cast = torch.autocast("cpu", torch.bfloat16) if "autocast" in loop else contextlib.nullcontext()
            with cast:
                logits = logits_of(model(x))
                loss = nn.functional.cross_entropy(logits.float(), y)
            if loop == "two losses":
                scaler.scale(0.1 * logits.square().mean()).backward(retain_graph=True)
            if guard is not None and loop != "not handed over":
                guard.loss(loss)
            scaler.scale(loss).backward()
            total += float(loss.detach())
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        losses.append(total)
    left = [one.tolist() for one in model.state_dict().values()] + [torch.get_rng_state().tolist()]
    return model, guard, (losses, left)

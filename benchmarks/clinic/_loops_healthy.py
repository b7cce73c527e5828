"""Loops that look odd and are fine: nothing is to be found."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from ._build import BCE_LOGITS, CE, MSE
from ._digits import digits
from ._loops_faulty import adam, dense, normalised, sgd, steps
from ._program import Loop, MakeGuard


def accumulated(make_guard: MakeGuard) -> Any:
    """Add up four small batches per step."""
    model = dense()
    optimizer = sgd(0.1)(model)
    guard = make_guard(model, optimizer)
    for number, (inputs, labels) in enumerate(steps(16, 1600)):
        (guard.loss(CE(model(inputs), labels)) / 4).backward()
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return guard


def adversarial(make_guard: MakeGuard) -> Any:
    """Train a generator and a discriminator in turns, with an optimizer each."""
    modules = [nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)]
    judge = nn.Sequential(*modules, nn.Linear(64, 1))
    maker = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    by_judge = torch.optim.Adam(judge.parameters(), lr=5e-4, betas=(0.5, 0.999))
    by_maker = torch.optim.Adam(maker.parameters(), lr=5e-4, betas=(0.5, 0.999))
    guards = [make_guard(judge, by_judge), make_guard(maker, by_maker)]
    yes, no = torch.ones(128, 1), torch.zeros(128, 1)
    for _ in range(400):
        angle = 2 * math.pi * torch.rand(128)
        real = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(128, 2)
        false = maker(torch.randn(128, 8))
        by_judge.zero_grad()
        guards[0].loss(BCE_LOGITS(judge(real), yes) + BCE_LOGITS(judge(false.detach()), no)).backward()
        by_judge.step()
        by_maker.zero_grad()
        guards[1].loss(BCE_LOGITS(judge(false), yes)).backward()
        by_maker.step()
    return guards


def zeroed_after_forward(make_guard: MakeGuard) -> Any:
    """Call zero_grad between forward and backward."""
    model = dense()
    optimizer = sgd(0.1)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        loss = guard.loss(CE(model(inputs), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return guard


def zeroed_to_zero(make_guard: MakeGuard) -> Any:
    """Set gradients to zero instead of to none."""
    model = dense()
    optimizer = adam(1e-3)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad(set_to_none=False)
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
    return guard


def in_bfloat16(make_guard: MakeGuard) -> Any:
    """Multiply in bfloat16, keep the weights in float32."""
    model = dense()
    optimizer = adam(1e-3)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = CE(model(inputs), labels)
        guard.loss(loss).backward()
        optimizer.step()
    return guard


@cache
def _pretrained() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = normalised()
        optimizer = adam(1e-3)(model)
        for inputs, labels in steps(64, 200):
            optimizer.zero_grad()
            CE(model(inputs), labels).backward()
            optimizer.step()
    return model


def tuned(make_guard: MakeGuard) -> Any:
    """Train a new head on a trained body, which is frozen and in evaluation mode."""
    model = deepcopy(_pretrained())
    model[-1] = nn.Linear(64, 2)
    model[:-1].requires_grad_(False)
    optimizer = torch.optim.Adam(model[-1].parameters(), lr=1e-2)
    guard = make_guard(model, optimizer)
    model[:-1].eval()
    for inputs, labels in steps(64, 300):
        optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels % 2)).backward()
        optimizer.step()
    return guard


def with_dropout(make_guard: MakeGuard) -> Any:
    """Drop half of the units."""
    modules = [layer for _ in range(2) for layer in (nn.LazyLinear(128), nn.ReLU(), nn.Dropout())]
    model = nn.Sequential(*modules, nn.Linear(128, 10))
    model(digits().inputs[:1])
    optimizer = adam(1e-3)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
    return guard


class Speller(nn.Module):
    """Says which letter comes next."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(letters, 16), nn.LSTM(16, 64), nn.Linear(64, letters)

    def forward(self, letters: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, state = self.rnn(self.embedding(letters), state)
        return self.head(output), state


@cache
def text() -> Tensor:
    """Write 16 lines of words from a small vocabulary, as numbers of letters: (time, line)."""
    words = [
        "the",
        "gradient",
        "of",
        "a",
        "sum",
        "is",
        "the",
        "sum",
        "of",
        "gradients",
        "and",
        "a",
        "step",
        "down",
        "is",
        "not",
        "always",
        "a",
        "step",
        "on",
    ]
    generator = torch.Generator().manual_seed(0)
    letters = sorted({*"".join(words), " "})
    lines = []
    for _ in range(16):
        chosen = torch.randint(len(words), (3000,), generator=generator)
        lines.append(torch.tensor([letters.index(letter) for letter in " ".join(words[word] for word in chosen)]))
    return torch.stack([line[:6001] for line in lines], 1)


def language(make_guard: MakeGuard) -> Any:
    """Train a language model through 30 steps at a time, and carry the state over."""
    data = text()
    model = Speller(int(data.max()) + 1)
    optimizer = adam(5e-3)(model)
    guard = make_guard(model, optimizer)
    state: Any = None
    for start in range(0, 6000, 30):
        optimizer.zero_grad()
        state = None if state is None else tuple(part.detach() for part in state)
        output, state = model(data[start : start + 30], state)
        guard.loss(CE(output.flatten(0, 1), data[start + 1 : start + 31].flatten())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return guard


class TwoHeads(nn.Module):
    """Classifies, and draws what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.classes, self.picture = nn.Linear(32, 10), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.classes(x), self.picture(x)


def with_auxiliary(make_guard: MakeGuard) -> Any:
    """Add a small auxiliary loss."""
    model = TwoHeads()
    optimizer = adam(1e-3)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        classes, picture = model(inputs)
        guard.loss(CE(classes, labels) + 0.1 * MSE(picture, inputs)).backward()
        optimizer.step()
    return guard


def warmed_up(make_guard: MakeGuard) -> Any:
    """Warm up, then go down to zero along a cosine, with weight decay on matrices only."""
    model = dense()
    matrices = [value for value in model.parameters() if value.ndim > 1]
    vectors = [value for value in model.parameters() if value.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 40, 0.5 + 0.5 * math.cos(math.pi * step / 440)))
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
        schedule.step()
    return guard


def checkpointed(make_guard: MakeGuard) -> Any:
    """Compute activations again in backward."""
    model = dense()
    optimizer = sgd(0.1)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        hidden = checkpoint(model[:4], inputs, use_reentrant=False)
        guard.loss(CE(model[4:](hidden), labels)).backward()
        optimizer.step()
    return guard


def averaged(make_guard: MakeGuard) -> Any:
    """Distil from a moving average of the weights, which no gradient reaches."""
    model = dense()
    teacher = deepcopy(model).requires_grad_(False)
    optimizer = sgd(0.1)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        output = model(inputs)
        target = functional.softmax(teacher(inputs), 1)
        guard.loss(CE(output, labels) + 0.1 * CE(output, target)).backward()
        optimizer.step()
        for mean, value in zip(teacher.parameters(), model.parameters(), strict=True):
            mean.lerp_(value.detach(), 0.05)
    return guard


def converged(make_guard: MakeGuard) -> Any:
    """Go on for long after everything is learnt: gradients become tiny, and the loss stands still near zero."""
    model = dense()
    optimizer = adam(1e-3)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps(64, 1500):
        optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
    return guard


NAMES: dict[str, Callable[[MakeGuard], Any]] = {
    "gradient accumulation": accumulated,
    "generator and discriminator in turns": adversarial,
    "zero_grad after forward": zeroed_after_forward,
    "zero_grad to zero": zeroed_to_zero,
    "autocast to bfloat16": in_bfloat16,
    "a new head on a frozen body": tuned,
    "dropout": with_dropout,
    "language model, truncated backpropagation": language,
    "auxiliary loss": with_auxiliary,
    "warm-up and cosine to zero": warmed_up,
    "checkpointed activations": checkpointed,
    "a teacher that is a moving average": averaged,
    "long after convergence": converged,
}
HEALTHY_LOOPS = tuple(
    Loop(number=number, name=name, families=(), place=(), run=run)
    for number, (name, run) in enumerate(NAMES.items(), 251)
)

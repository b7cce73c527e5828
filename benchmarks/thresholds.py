"""What chose the thresholds of the rules: the size of a symptom before training against what training then reaches.

    python benchmarks/thresholds.py -o thresholds.json

Depth: networks of 64 units on scikit-learn's digits, many depths, activations and initial weights, trained for 264
steps by SGD (lr 0.1, momentum 0.9) and by Adam (lr 1e-3). Time: recurrent networks of 32 units on the copy task
(remember one of eight symbols) and the adding problem, 400 steps of Adam (lr 5e-3), norm clipped at 1. Two seeds each,
one thread; about five minutes.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from evengrad.diagnose import findings_of, symptoms_of
from evengrad.nouns import Record
from evengrad.probe import probe

Batch = tuple[Tensor, Tensor]
SEEDS = (0, 1)
DEPTHS = (2, 3, 4, 6, 8, 12, 20)
LENGTHS = (20, 30, 40, 60)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training: sizes of the symptoms in decades before it, and the accuracy (or R2) that it reached."""

    what: str
    size: str
    optimizer: str
    seed: int
    vanishing: float
    exploding: float
    through_time: float
    speaks_before: tuple[str, ...]
    speaks_after: tuple[str, ...]
    reached: float


def sizes(record: Record) -> dict[str, float]:
    return symptoms_of(record.readings[0], record)


def measured(row: tuple[str, str, str, int], before: Record, after: Record, reached: float) -> Row:
    what, size, optimizer, seed = row
    found = sizes(before)
    both = Record(readings=(before.readings[0], after.readings[0]), parameters=before.parameters)
    return Row(
        what=what,
        size=size,
        optimizer=optimizer,
        seed=seed,
        vanishing=found.get("EG101", 0.0),
        exploding=found.get("EG102", 0.0),
        through_time=found.get("EG103", 0.0),
        speaks_before=tuple(finding.code for finding in findings_of(before)),
        speaks_after=tuple(finding.code for finding in findings_of(both)),
        reached=reached,
    )


def he(weight: Tensor) -> None:
    nn.init.kaiming_uniform_(weight, nonlinearity="relu")


def normal(std: float) -> Callable[[Tensor], object]:
    return lambda weight: nn.init.normal_(weight, std=std)


def deep(activation: type[nn.Module], depth: int, draw: Callable[[Tensor], object] | None) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), activation())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for module in model:
        if draw is not None and isinstance(module, nn.Linear):
            draw(module.weight)
            nn.init.zeros_(module.bias)
    return model


def digits() -> tuple[Batch, Batch]:
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    inputs, labels = torch.tensor(bunch.data, dtype=torch.float32)[order] / 16, torch.tensor(bunch.target)[order]
    return (inputs[:1400], labels[:1400]), (inputs[1400:], labels[1400:])


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Batch, loss, steps: int, clip: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    done = 0
    while True:
        order = torch.randperm(len(data[0]), generator=generator)
        for part in order.split(64):
            if done == steps or len(part) < 64:
                break
            optimizer.zero_grad()
            loss(model(data[0][part]), data[1][part]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            done += 1
        if done == steps:
            return


def over_depth() -> Iterator[Row]:
    (inputs, labels), (test_inputs, test_labels) = digits()
    batch = inputs[:128], labels[:128]
    draws = {"default": None, "He": he, "Xavier": nn.init.xavier_uniform_}
    plans = [(act, name, draw) for act in (nn.Sigmoid, nn.ReLU, nn.Tanh) for name, draw in draws.items()]
    plans += [(nn.ReLU, f"N(0, {std})", normal(std)) for std in (0.1, 0.25, 0.3, 0.4)]
    for activation, name, draw in plans:
        for depth in DEPTHS:
            for optimizer in ("SGD", "Adam"):
                for seed in SEEDS:
                    torch.manual_seed(seed)
                    model = deep(activation, depth, draw)
                    before = probe(model, functional.cross_entropy, batch)
                    made = (
                        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                        if optimizer == "SGD"
                        else torch.optim.Adam(model.parameters(), lr=1e-3)
                    )
                    train(model, made, (inputs, labels), functional.cross_entropy, 264, None)
                    after = probe(model, functional.cross_entropy, batch, step=264)
                    reached = (model(test_inputs).argmax(1) == test_labels).float().mean().item()
                    row = (f"{activation.__name__}, {name}", f"{depth} layers", optimizer, seed)
                    yield measured(row, before, after, reached)


class Reader(nn.Module):
    """A recurrent layer of torch's own initial weights, read out at its last time step."""

    def __init__(self, kind: str, features: int, outputs: int) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(features, 32, batch_first=True)
        self.out = nn.Linear(32, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, time, features) to (batch, outputs)."""
        return self.out(self.rnn(inputs)[0][:, -1])


def copying(length: int) -> Batch:
    labels = torch.randint(8, (2000,), generator=torch.Generator().manual_seed(1))
    inputs = torch.zeros(2000, length, 9)
    inputs[torch.arange(2000), 0, labels] = 1
    inputs[:, 1:, 8] = 1
    return inputs, labels


def adding(length: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.zeros(2000, length, 2)
    inputs[:, :, 0] = torch.rand(2000, length, generator=generator)
    marks = torch.stack([torch.randperm(length, generator=generator)[:2] for _ in range(2000)])
    inputs[:, :, 1].scatter_(1, marks, 1.0)
    return inputs, (inputs[:, :, 0] * inputs[:, :, 1]).sum(1, keepdim=True)


def over_time() -> Iterator[Row]:
    for task, make, loss in (("copy", copying, functional.cross_entropy), ("adding", adding, functional.mse_loss)):
        for length in LENGTHS:
            inputs, targets = make(length)
            train_data, test = (inputs[:1600], targets[:1600]), (inputs[1600:], targets[1600:])
            for kind in ("RNN", "LSTM", "GRU"):
                for seed in SEEDS:
                    torch.manual_seed(seed)
                    model = Reader(kind, inputs.shape[-1], 8 if task == "copy" else 1)
                    batch = train_data[0][:64], train_data[1][:64]
                    before = probe(model, loss, batch)
                    made = torch.optim.Adam(model.parameters(), lr=5e-3)
                    train(model, made, train_data, loss, 400, 1.0)
                    after = probe(model, loss, batch, step=400)
                    with torch.no_grad():
                        output = model(test[0])
                    if task == "copy":
                        reached = (output.argmax(1) == test[1]).float().mean().item()
                    else:
                        reached = 1 - ((output - test[1]).square().mean() / test[1].var()).item()
                    yield measured((f"{kind}, {task}", f"{length} steps", "Adam", seed), before, after, reached)


def show(rows: Iterator[Row]) -> list[Row]:
    kept = []
    heads = f"{'EG101':>7}{'EG102':>7}{'EG103':>7}{'reached':>9}  rules before | after"
    print(f"{'network':24}{'size':>10}{'by':>6}{'seed':>5}{heads}")
    for row in rows:
        kept.append(row)
        speaks = " | ".join(" ".join(codes) or "-" for codes in (row.speaks_before, row.speaks_after))
        print(
            f"{row.what:24}{row.size:>10}{row.optimizer:>6}{row.seed:>5}{row.vanishing:7.1f}{row.exploding:7.1f}"
            f"{row.through_time:7.1f}{row.reached:9.2f}  {speaks}",
            flush=True,
        )
    return kept


def summary(rows: list[Row], field: str, code: str, good: float) -> None:
    """Print, decade by decade of the symptom at the start, how many trainings came out well."""
    print(f"\n{code}: decades before training, trainings, share that reached {good}")
    for low in range(21):
        inside = [row for row in rows if low <= getattr(row, field) < low + 1]
        if inside:
            share = sum(row.reached >= good for row in inside) / len(inside)
            print(f"  {low:>2} to {low + 1:<2} {len(inside):>4} {share:6.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    depth, time = show(over_depth()), show(over_time())
    summary(depth, "vanishing", "EG101", 0.85)
    summary(depth, "exploding", "EG102", 0.85)
    summary([row for row in time if row.what.startswith("RNN")], "through_time", "EG103, plain recurrent", 0.85)
    summary([row for row in time if not row.what.startswith("RNN")], "through_time", "EG103, gated", 0.85)
    if output is not None:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        output.write_text(json.dumps({"facts": facts, "rows": [asdict(row) for row in depth + time]}, indent=1))


if __name__ == "__main__":
    main()

"""Training that constant clipping cannot do: a character model, bad batches, three times the best learning rate.

    python benchmarks/spikes.py -o spikes.json

A causal transformer of two layers of 64 units learns the language reference that Python carries with it
(`pydoc_data.topics`), letter by letter, by AdamW with betas 0.9 and 0.95 and weight decay 0.1, without warm-up. First
the best learning rate without clipping on good batches is searched; then everything is trained at three times that,
with a bad batch at every 40th step from step 100 on, in turn: right letters with drawn targets; garbage in and out;
garbage whose loss is summed over the letters instead of averaged, as by a wrong count of padding. Steps are skipped
only for numbers that are not finite, with every threshold, so that none of them loses a run to a NaN.

Spike score: the share of judged good steps whose loss, before the step, is more than 6 standard deviations above the
mean of the 50 good steps before it; the first 50 are not judged. The loss of a bad batch says nothing about the model
and neither counts nor enters. Final loss: cross-entropy in nats per letter of 64 held-back stretches of clean text,
mean of the models after the last ten times ten steps. Three seeds draw weights and batches, the same for every policy.

"floor" is `ByZScore` with another smallest deviation, a candidate for the default. The last two lines are trainings
without bad batches at the same rate: what no clipping, and the best of the others, lose to them. `--quick` is one seed
and few steps, to see that it runs. One thread; about four minutes.
"""

import argparse
import hashlib
import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional

from evengrad.clip import AbstractPolicy, ByGlobalNorm, ByMovingAverage, ByZScore, ZClip
from evengrad.guard import Guard

SEEDS = (0, 1, 2)
LENGTH = 32
BATCH = 8
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
THRESHOLDS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
KINDS = ("drawn targets", "garbage", "summed garbage")
SIGMAS = 6.0
WINDOW = 50
POLICIES: dict[str, AbstractPolicy | None] = {
    "none": ByGlobalNorm(math.inf),
    **{f"norm {threshold:g}": ByGlobalNorm(threshold) for threshold in THRESHOLDS},
    "ZClip": ZClip(),
    "ZClip, no norm": ZClip(max_grad_norm=None),
    "AdaGC": ByMovingAverage(rewarm_steps=None),
    "default": None,
}
CANDIDATES: dict[str, AbstractPolicy | None] = {
    "floor 0.5": ByZScore(std_floor=0.5),
    "floor 0.1": ByZScore(std_floor=0.1),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training: share of good steps that spiked, loss on clean text at the end, share of good steps clipped."""

    policy: str
    seed: int
    lr: float
    spike_score: float
    final_loss: float
    clipped: float
    worst_sigmas: float


@cache
def corpus() -> tuple[Tensor, Tensor, int]:
    """Take the text as numbers, its last tenth apart, and how many letters there are."""
    text = "".join(topics[name] for name in sorted(topics)).lower()[:300_000]
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    whole = torch.tensor([letters[letter] for letter in text])
    known = len(whole) * 9 // 10
    return whole[:known], whole[known:], len(letters)


def stretches(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    places = starts[:, None] + torch.arange(LENGTH + 1)
    return text[places[:, :-1]], text[places[:, 1:]]


class Speller(nn.Module):
    """A causal transformer of two layers, normalising before each."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, 64), nn.Parameter(torch.randn(LENGTH, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(64), enable_nested_tensor=False)
        self.out = nn.Linear(64, letters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, time) letters to (batch, time, letters)."""
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        return self.out(self.body(self.letters(inputs) + self.places, mask=mask, is_causal=True))


def nats(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), targets.flatten())


def kind_of(step: int) -> str | None:
    """Tell which kind of bad batch a step has; None for a good one."""
    return KINDS[(step // 40) % len(KINDS)] if step >= 100 and step % 40 == 0 else None


def batch_of(step: int, generator: torch.Generator, *, bad: bool) -> tuple[Tensor, Tensor, float]:
    """Draw inputs, targets, and what the loss is multiplied with."""
    text, _, letters = corpus()
    inputs, targets = stretches(text, torch.randint(len(text) - LENGTH, (BATCH,), generator=generator))
    kind = kind_of(step) if bad else None
    if kind is None:
        return inputs, targets, 1.0
    drawn = torch.Generator().manual_seed(step)
    targets = torch.randint(letters, targets.shape, generator=drawn)
    if kind != KINDS[0]:
        inputs = torch.randint(letters, inputs.shape, generator=drawn)
    return inputs, targets, float(targets.numel()) if kind == KINDS[2] else 1.0


def sigmas_above(losses: Sequence[float]) -> list[float]:
    """Compute how many deviations each loss is above those before it; a loss that is no number is infinitely far."""
    found = []
    for place in range(WINDOW, len(losses)):
        before = losses[place - WINDOW : place]
        fine = all(map(math.isfinite, (*before, losses[place])))
        deviation = statistics.pstdev(before) if fine else 0.0
        found.append((losses[place] - statistics.fmean(before)) / deviation if deviation > 0 else math.inf)
    return found


@torch.no_grad()
def held_back(model: nn.Module) -> float:
    _, text, _ = corpus()
    inputs, targets = stretches(text, torch.linspace(0, len(text) - LENGTH - 1, 64).long())
    return nats(model(inputs), targets).item()


def trained(name: str, clip: AbstractPolicy | None, *, seed: int, lr: float, steps: int, bad: bool = True) -> Row:
    torch.manual_seed(seed)
    model, generator = Speller(corpus()[2]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    losses: list[float] = []
    finals: list[float] = []
    clipped = 0
    with Guard(model, optimizer, clip=clip, max_consecutive_skips=steps, sample_every_steps=None, tell=False) as guard:
        for step in range(steps):
            inputs, targets, factor = batch_of(step, generator, bad=bad)
            optimizer.zero_grad()
            loss = nats(model(inputs), targets)
            guard.loss(loss * factor).backward()
            before = guard.clips
            optimizer.step()
            if not bad or kind_of(step) is None:
                losses.append(loss.item())
                clipped += guard.clips - before
            if step >= steps - 100 and step % 10 == 9:
                finals.append(held_back(model))
    sigmas = sigmas_above(losses)
    return Row(
        policy=name,
        seed=seed,
        lr=lr,
        spike_score=sum(sigma > SIGMAS for sigma in sigmas) / max(1, len(sigmas)),
        final_loss=statistics.fmean(finals),
        clipped=clipped / len(losses),
        worst_sigmas=max(sigmas, default=0.0),
    )


def best_rate(seeds: Sequence[int], steps: int) -> tuple[float, list[Row]]:
    """Search the learning rate with the lowest final loss without clipping and without bad batches."""
    print(f"{'rate, no clipping, good batches':32}{'final loss':>12}")
    rows, means = [], {}
    for lr in RATES:
        found = [trained("none", POLICIES["none"], seed=seed, lr=lr, steps=steps, bad=False) for seed in seeds]
        means[lr] = statistics.fmean(row.final_loss for row in found)
        rows += found
        print(f"{lr:<32g}{means[lr]:12.4f}", flush=True)
    return min(means, key=lambda lr: means[lr]), rows


def compared(lr: float, seeds: Sequence[int], steps: int) -> list[Row]:
    print(f"\nrate {lr:g}, bad batches; spike score in % of steps")
    heads = "".join(f"{f'seed {seed}':>16}" for seed in seeds)
    print(f"{'':22}{heads}{'mean':>16}{'clipped %':>11}{'sigmas at most':>16}")
    rows = []
    for name, clip in (POLICIES | CANDIDATES).items():
        rows += shown([trained(name, clip, seed=seed, lr=lr, steps=steps) for seed in seeds])
    for name in ("none", best_other(rows)):
        label = f"{name}, all good"
        rows += shown([trained(label, POLICIES[name], seed=seed, lr=lr, steps=steps, bad=False) for seed in seeds])
    return rows


def shown(found: list[Row]) -> list[Row]:
    """Print the trainings with one policy as a line."""
    score, loss, clipped = (
        statistics.fmean(getattr(row, field) for row in found) for field in ("spike_score", "final_loss", "clipped")
    )
    cells = "".join(f"{100 * row.spike_score:8.2f}{row.final_loss:8.4f}" for row in found)
    worst = max(row.worst_sigmas for row in found)
    print(f"{found[0].policy:22}{cells}{100 * score:8.2f}{loss:8.4f}{100 * clipped:11.1f}{worst:16.1f}", flush=True)
    return found


def best_other(rows: Sequence[Row]) -> str:
    """Find the policy with the lowest final loss that is not the default."""
    return min((name for name in POLICIES if name != "default"), key=lambda name: _mean(rows, name, "final_loss"))


def verdict(rows: Sequence[Row]) -> dict[str, float | str]:
    """Compare the default with the best of the others: its spike score, and how much higher its final loss is."""
    of = partial(_mean, rows)
    others = [name for name in POLICIES if name != "default"]
    best = best_other(rows)
    excess = of("default", "final_loss") - of(best, "final_loss")
    calm = [name for name in others if of(name, "spike_score") == 0]
    print(f"\nspike score 0 among the others: {', '.join(calm) or 'none of them'}")
    print(f"default: spike score {100 * of('default', 'spike_score'):.2f} %, final loss {excess:+.4f} against {best}")
    pairs = [
        row.final_loss - other.final_loss
        for row in rows
        for other in rows
        if (row.policy, other.policy) == ("default", best) and row.seed == other.seed
    ]
    print("seed by seed: " + ", ".join(f"{pair:+.4f}" for pair in pairs))
    return {"best": best, "default_spike_score": of("default", "spike_score"), "excess_loss": excess}


def _mean(rows: Sequence[Row], name: str, field: str) -> float:
    return statistics.fmean(getattr(row, field) for row in rows if row.policy == name)


def facts() -> dict[str, object]:
    text, _, letters = corpus()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "corpus": {"letters": letters, "sha256": hashlib.sha256(text.numpy().tobytes()).hexdigest()[:16]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds, steps = (SEEDS[:1], 150) if given.quick else (SEEDS, 400)
    best, searched = best_rate(seeds, steps)
    rows = compared(3 * best, seeds, steps)
    found = verdict(rows)
    if given.output is not None:
        kept = {"facts": facts(), "searched": [asdict(row) for row in searched], "rows": [asdict(row) for row in rows]}
        given.output.write_text(json.dumps({**kept, "verdict": found}, indent=1))


if __name__ == "__main__":
    main()

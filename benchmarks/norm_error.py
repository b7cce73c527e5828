"""How far gradient norms are off in torch and in `evengrad.measure.Norms`, against float64.

    python benchmarks/norm_error.py -o error.json

Each row is a set of gradients as they occur: half precision, tensors with as many elements as the embeddings of a
language model, elements of one sign and of very different sizes, many small tensors. The reference is NumPy in float64
over the gradients as they are stored (rounding them to bfloat16 is no error of the norm). Relative errors of the total
norm, and the largest of any tensor's norm: of what `clip_grad_norm_` returns, of `torch._foreach_norm`, which is what
it calls, of `Norms`, and of what the guard's `clip_()` returns. `inf` is an overflow on finite gradients. Not in the
table are norms below 1e-22 and above 1.8e19, whose squares float32 does not hold: to torch and to `Norms` alike they
are 0 and infinite.

Nothing is timed, so that it may run beside other work. Goal: at most 1e-6 for `Norms`, whatever the row. One thread by
default; torch adds up in other orders with more.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evengrad.guard import Guard
from evengrad.measure import Norms

GOAL = 1e-6
LARGE = 40_000_000
Make = Callable[[torch.Generator], list[Tensor]]


def normal(generator: torch.Generator, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def one_sign(generator: torch.Generator) -> list[Tensor]:
    return [torch.rand(LARGE, generator=generator).mul_(0.01).add_(0.001)]


def mixed_scales(generator: torch.Generator) -> list[Tensor]:
    """Elements from 1e-6 to 1, evenly in their logarithm."""
    sizes = torch.rand(LARGE, generator=generator).mul_(-6 * np.log(10)).exp_()
    return [sizes.mul_(torch.randint(0, 2, (LARGE,), generator=generator, dtype=torch.int8).mul_(2).sub_(1))]


def one_spike(generator: torch.Generator) -> list[Tensor]:
    gradient = torch.randn(LARGE, generator=generator).mul_(1e-4)
    gradient[LARGE // 2] = 1.0
    return [gradient]


def many(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = [(64, 64)] * 300 + [(8, 8)] * 300 + [(64,)] * 200 + [(3, 5, 7)] * 100 + [()] * 100
    return [one.abs() for one in normal(generator, *shapes, dtype=dtype)]


WORKLOADS: dict[str, Make] = {
    "bfloat16, 16M elements": lambda one: normal(one, (4096, 4096), dtype=torch.bfloat16),
    "bfloat16, 40M elements": lambda one: normal(one, (LARGE,), dtype=torch.bfloat16),
    "bfloat16, 1000 small": lambda one: many(one, torch.bfloat16),
    "float16, 16M elements": lambda one: normal(one, (4096, 4096), dtype=torch.float16),
    "float16, 1000 small": lambda one: many(one, torch.float16),
    "float16, 4 elements of 4e4": lambda _: [torch.full((4,), 4e4, dtype=torch.float16)],
    "float16, 1M elements of 1e-6": lambda one: [torch.randn(10**6, generator=one).mul_(1e-6).to(torch.float16)],
    "float32, 40M, random": lambda one: normal(one, (LARGE,)),
    "float32, 40M, one sign": one_sign,
    "float32, 40M, all equal": lambda _: [torch.full((LARGE,), 0.1)],
    "float32, 40M, sizes 1e-6 to 1": mixed_scales,
    "float32, 40M, one spike": one_spike,
    "float32, 50257 x 768": lambda one: normal(one, (50257, 768)),
    "float32, 1000 small": many,
    "float32, elements of 1e-15": lambda one: [gradient.mul_(1e-15) for gradient in normal(one, (1000, 1000))],
    "float32, elements of 1e17": lambda one: [gradient.mul_(1e17) for gradient in normal(one, (10, 10))],
    "float64, 1M elements": lambda one: [torch.randn(10**6, generator=one, dtype=torch.float64)],
}


def exact(gradient: Tensor) -> float:
    """Norm in float64, with NumPy's pairwise sum, a million elements at a time."""
    total = 0.0
    for piece in gradient.flatten().split(10**6):
        values = piece.double().numpy()
        total += float(np.sum(values * values))
    return float(np.sqrt(total))


def errors(gradients: list[Tensor]) -> dict[str, float]:
    """Return the relative errors by name."""
    parameters = [nn.Parameter(torch.empty_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    each = np.array([exact(gradient) for gradient in gradients])
    total = float(np.sqrt(np.sum(each * each)))
    norms = Norms(parameters).norms().double().numpy()
    torchs = np.array([float(one) for one in torch._foreach_norm(gradients)])
    model = nn.ParameterList(parameters)
    with Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), clip=1e30) as guard:
        guarded = float(guard.clip_())
    return {
        "clip_grad_norm_": relative(float(nn.utils.clip_grad_norm_(parameters, float("inf"))), total),
        "_foreach_norm, worst": max(map(relative, torchs, each)),
        "Norms, worst": max(map(relative, norms, each)),
        "guard, total": relative(guarded, total),
    }


def relative(found: float, right: float) -> float:
    return float(abs(found - right) / right) if np.isfinite(found) else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": arguments.threads,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "goal": GOAL,
        "workloads": {},
    }
    for name, make in WORKLOADS.items():
        row = errors(make(torch.Generator().manual_seed(0)))
        result["workloads"][name] = {key: str(value) if value == float("inf") else value for key, value in row.items()}
        if len(result["workloads"]) == 1:
            print(f"{'relative error of':<32}" + "".join(f"{key:>22}" for key in row))
        reached = max(row["Norms, worst"], row["guard, total"]) <= GOAL
        print(f"{name:<32}" + "".join(f"{value:22.1e}" for value in row.values()) + ("" if reached else "  MISSED"))
    print(f"goal for Norms and the guard: at most {GOAL:.0e}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The comparison as text and as a page of the docs."""

from collections.abc import Mapping, Sequence
from statistics import mean

from ._programs import CONTESTS
from ._results import CLOSE, Method, Result, average, averages, of_keys, standing

HEAD = """# Beside other ways to repair

`evengrad.repair`, AUTOTRAINER and random search on nine faulty programs, with the same budget. Written by
`python benchmarks/rivals.py --page docs/rivals.md` on {date}: torch {torch}, {processes} processes of one thread,
{minutes} minutes, search seeds {seeds}.

The programs are those of a published comparison (the table below the first) that need no data to be downloaded. Six
are the clinic's, from Stack Overflow; three are mutations of Keras' MNIST example. **They are rebuilt in PyTorch, with
scikit-learn's digits in the place of MNIST**, and other stand-ins that the clinic names: numbers of the two tables
cannot be compared with each other, only within a table.

**AUTOTRAINER is rebuilt** from its papers and from reading its published code: its symptoms, thresholds, repairs,
their order, the number of attempts, up to ten rounds, and that it goes on from the weights that it found, unless the
issue is the output, the loss or the data. Where the published code cannot do what the paper says it does, ours is
kinder: weights that are not finite are redrawn in all layers, noise can go in front of the first layer, an activation
that is a layer of its own is replaced too, a new initialiser counts in the trainings from fresh weights (it changes
none that are there). Accuracy is measured after each pass on all rows, where Keras averages over the pass; the
threshold of a good one is its default, 0.7. Regression it does not support, as in the original. It takes *no detector
signal* for *solved*, and hands out the model that it has just trained (column "its model").

**Random search** goes over the space of the published comparison (*wide*: thirteen losses, seven optimizers, six batch
sizes, a learning rate uniform from 1e-6 to 10, eleven activations and thirteen initialisers for every layer on its own)
but for the numbers of units and layers, which stay; and over a *narrow* one that we made for it, with a learning rate
on a log scale and only what makes sense, which is a stronger rival than the published one. Its choice is the best
metric of the held back rows. Both begin with the faulty program itself.

**Budget**: as many rows of training data as evengrad's repair has seen on that program and seed, the scout and the
confirmation included, and at least {least} trainings. A method may spend less. **What counts**: what each method hands
out is trained from fresh weights on three seeds that none has used; the number is the mean metric of the held back
rows over all search seeds. A training that failed counts as 0. Metrics within {close} of each other count as equal.
The metric is the accuracy, for D7 R2.
"""


def page(results: Sequence[Result], facts: Mapping[str, object]) -> str:
    """Write the page."""
    seeds = ", ".join(str(seed) for seed in sorted({result.seed for result in results}))
    parts = [
        HEAD.format(seeds=seeds, least=10, close=CLOSE, **facts),
        "## The table\n\n" + _table(results),
        "## In short\n\n" + "\n".join(f"- {line}" for line in summary(results).splitlines()) + "\n",
        "## What the published comparison says\n\n" + _published(results),
        "## Where evengrad is behind\n\n" + _behind(results),
        "## What each handed out\n\n" + _choices(results),
        "## What each spent\n\n" + _spent(results),
    ]
    return "\n".join(parts)


def line_of(result: Result) -> str:
    """Show one program and seed in a line."""
    numbers = ", ".join(
        f"{method.name} {average(method.metrics):.3f} ({method.ended}; {method.trainings:.1f} trainings)"
        for method in result.methods
    )
    faulty, fixed = average(result.faulty), average(result.fixed)
    return f"{result.key} seed {result.seed}: faulty {faulty:.3f}, fix {fixed:.3f}, {numbers}"


def summary(results: Sequence[Result]) -> str:
    """Say on how many programs evengrad is ahead, rival by rival."""
    lines = []
    for method in results[0].methods[1:]:
        found = standing(results, method.name)
        words = [f"{what} on {len(keys)}" + (f" ({', '.join(keys)})" if keys else "") for what, keys in found.items()]
        lines.append(f"evengrad against {method.name}: {', '.join(words)}")
    return "\n".join(lines)


def _table(results: Sequence[Result]) -> str:
    names = [method.name for method in results[0].methods]
    rows = [
        f"| | program | faulty | {' | '.join(names)} | fix | AUTOTRAINER: its model |",
        "| --- " * (len(names) + 5) + "|",
    ]
    for key, same in of_keys(results).items():
        numbers = averages(same)
        best = max(numbers[name] for name in names)
        marks = ["**" if numbers[name] >= best - CLOSE else "" for name in names]
        shown = [f"{mark}{numbers[name]:.3f}{mark}" for name, mark in zip(names, marks, strict=True)]
        own = [_named(result, "AUTOTRAINER").own for result in same]
        handed = average(own) if any(one is not None for one in own) else None
        rows.append(
            f"| {key} | {_contest(key).name} | {numbers['faulty']:.3f} | {' | '.join(shown)} | {numbers['fix']:.3f} | "
            f"{'-' if handed is None else f'{handed:.3f}'} |"
        )
    return "\n".join(rows) + "\n"


def _published(results: Sequence[Result]) -> str:
    rows = ["| | where from | faulty | random | AUTOTRAINER | fix | what differs here |", "| --- " * 7 + "|"]
    for key in of_keys(results):
        contest = _contest(key)
        rows.append(f"| {key} | {contest.origin} | {' | '.join(contest.published)} | {contest.note} |")
    head = (
        "From the replication package of Kim, Humbatova, Jahangirova, Tonella and Yoo (Repairing DNN Architecture: Are "
        "We There Yet?, ICST 2023, and what followed it), mean of ten repeats with a budget of twenty trainings. T/O: "
        "no result in time; N/A: regression, or nothing found.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def _behind(results: Sequence[Result]) -> str:
    lines = []
    for key, same in of_keys(results).items():
        numbers = averages(same)
        rivals = [method.name for method in same[0].methods[1:] if numbers[method.name] > numbers["evengrad"] + CLOSE]
        if rivals:
            behind = f"- {key}, {_contest(key).name}: behind {', '.join(rivals)}."
            lines.append(f"{behind} Found: {_found(same)}. evengrad: {_said(same, 'evengrad')}.")
    return "\n".join(lines) + "\n" if lines else "Nowhere.\n"


def _choices(results: Sequence[Result]) -> str:
    rows = ["| | method | its verdict: what it handed out |", "| --- | --- | --- |"]
    for key, same in of_keys(results).items():
        rows += [f"| {key} | {method.name} | {_said(same, method.name)} |" for method in same[0].methods]
        rows.append(f"| {key} | evengrad says what it is | {_found(same)} |")
    return "\n".join(rows) + "\n"


def _found(same: Sequence[Result]) -> str:
    return ", ".join(dict.fromkeys(code for one in same for code in one.findings)) or "nothing"


def _said(same: Sequence[Result], name: str) -> str:
    found = [_named(result, name) for result in same]
    words = [f"{method.ended}: {_label(method)}" for method in found]
    return "; ".join(dict.fromkeys(words))


def _label(method: Method) -> str:
    return f"`{method.label}`" if method.label else "the program as it was"


def _spent(results: Sequence[Result]) -> str:
    names = [method.name for method in results[0].methods]
    rows = [f"| | budget | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for key, same in of_keys(results).items():
        shown = []
        for name in names:
            found = [_named(result, name) for result in same]
            trainings, seconds = mean(one.trainings for one in found), mean(one.seconds for one in found)
            shown.append(f"{trainings:.1f} in {mean(one.trials for one in found):.0f}, {seconds:.0f} s")
        rows.append(f"| {key} | {mean(result.budget for result in same):.1f} | {' | '.join(shown)} |")
    head = "Rows seen, in whole trainings; in how many trials; seconds. Means over the search seeds.\n\n"
    return head + "\n".join(rows) + "\n"


def _contest(key: str):
    return next(contest for contest in CONTESTS if contest.key == key)


def _named(result: Result, name: str) -> Method:
    return next(method for method in result.methods if method.name == name)

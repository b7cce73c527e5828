"""Tell a story in the terminal, or in any file that takes plain text."""

import io
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from evengrad.nouns import Story
from evengrad.report import _clean
from evengrad.report._blocks import BAD, ZERO, bar, heat_rows, sparkline
from evengrad.report._breaking import Breaking, Row, table_of
from evengrad.report._cards import MOST_FINDINGS, Card, CureRow, cards_of
from evengrad.report._grid import Grid, grid_of, scale_of, scales_of
from evengrad.report._headline import badge
from evengrad.report._labels import short_labels
from evengrad.report._lines import MOST_CURVES, Line, lines_of, logarithmic
from evengrad.report._results import MOST_TRIALS, Proof, SeedRow, SpreadRow, TrialRow, proof_of, spread_rows, trial_rows
from evengrad.report._sweep_text import sweep_parts
from evengrad.report._words import finite, number

_TONES = {"good": "bold green", "fair": "bold blue", "warn": "bold yellow", "bad": "bold red"}
_NARROWEST, _WIDEST = 40, 160
_LONGEST_LABEL = 28
_GROUP_HEADS = ("treatment", "stage", ">trials", ">failed", ">metric", ">min to max", ">decades", ">min to max")
_TRIAL_HEADS = "treatment", ">seed", "stage", ">steps", ">metric", ">decades", "findings", ">seconds", "ended early"


def text(story: Story, *, width: int | None = None, colour: bool = False) -> str:
    """Tell a story as text: the same findings, plots, trials and code as the page.

    Names are never read as rich markup, and control characters in them are made visible.

    Args:
        story: What to tell; no more findings, trials and curves are shown than on the page.
        width: Characters of a line; None for the terminal's, between 40 and 160.
        colour: Whether to colour it with escape sequences.

    Raises:
        SettingError: A heat map or a curve has not one value per step.

    Cost: About 0.1 s; a second for 200 findings and 1000 trials.

    Example:
        >>> print(text(Story(title="a run", headline="No findings in 500 steps"), width=60))
        a run
         no findings  No findings in 500 steps
        <BLANKLINE>
    """
    wanted = shutil.get_terminal_size((100, 24)).columns if width is None else width
    console = Console(
        file=io.StringIO(),
        width=min(_WIDEST, max(_NARROWEST, wanted)),
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    with console.capture() as capture:
        for part in _parts(story, console.width):
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _parts(story: Story, width: int) -> Iterable[RenderableType]:
    words, tone = badge(story)
    yield Text(_clean.name(story.title), style="bold")
    yield Text.assemble((f" {_clean.name(words)} ", f"{_TONES[tone]} reverse"), " ", _clean.sentence(story.headline))
    for note in story.notes:
        yield Text(f"note: {_clean.sentence(note)}", style="yellow")
    if story.sweep is not None:
        yield _head("Metric against what was swept")
        yield from sweep_parts(story.sweep)
    if story.findings:
        yield _head("Findings")
        yield from (_card(card) for card in cards_of(story.findings))
        yield from _cut(len(story.findings) - MOST_FINDINGS, "findings")
    yield from _heat_parts([grid_of(heat_map) for heat_map in story.heat_maps], width)
    yield from _loss_parts(lines_of(story.curves), width)
    yield from _cut(len(story.curves) - MOST_CURVES, "curves")
    if story.verdict is not None:
        yield from _verdict_parts(proof_of(story.verdict), width)
    if story.trials:
        yield from _trial_parts(story, width)
    if story.changes or story.code:
        yield _head("The setting" if story.sweep is not None else "The cure")
        yield from (Breaking(f"- {_clean.sentence(change)}") for change in story.changes)
        shown = story.patch or story.code  # the page has both
        yield Padding(Text(_clean.code(shown)), (1 if story.changes and shown else 0, 0, 0, 2))
    if story.facts:
        yield _head("Facts")
        yield _pairs((_clean.name(fact), _clean.sentence(value)) for fact, value in story.facts)


def _head(title: str) -> Group:
    return Group(Text(""), Rule(Text(title, style="bold"), align="left", style="dim"))


def _cut(count: int, thing: str) -> Iterable[Text]:
    if count > 0:
        yield Text(f"{count} more {thing} are not shown here.", style="dim")


def _pairs(pairs: Iterable[tuple[str, RenderableType]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", max_width=34)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Breaking(name), Breaking(value) if isinstance(value, str) else value)
    return grid


def _card(card: Card) -> RenderableType:
    """Draw a card; what follows from another is set in below it."""
    panel = _panel(card)
    return Padding(panel, (0, 0, 0, 4)) if card.follows else panel


def _panel(card: Card) -> Panel:
    colour = "red" if card.severity == "critical" else "yellow"
    rows: list[tuple[str, RenderableType]] = [("where", card.places), ("when", card.when)]
    rows += [("follows from", ", ".join(card.follows))] if card.follows else []
    rows += [("size", card.size)] if card.size else []
    rows += [("evidence" if at == 0 else "", f"{what}: {value}") for at, (what, value) in enumerate(card.evidence)]
    rows += [("cause", Breaking(card.cause, "bold"))] if card.cause else []
    rows += [("look at", card.look_at)] if card.look_at else []
    rows += [("cures" if at == 0 else "", _cure(cure)) for at, cure in enumerate(card.cures)]
    rows += [("not tried", f"{', '.join(labels)}: {reason}") for reason, labels in card.untried]
    rows += [("", card.left_out)] if card.left_out else []
    rows += [("source", card.source)] if card.source else []
    rows += [("more", f"evengrad explain {card.code}")]
    title = Text.assemble((card.code, "bold"), f" {card.symptom} ", (f"({card.severity})", colour))
    return Panel(
        Group(Breaking(card.message), Text(""), _pairs(rows)),
        title=title,
        title_align="left",
        box=ROUNDED,
        border_style=colour,
    )


def _cure(cure: CureRow) -> Group:
    lines: list[RenderableType] = [Breaking(cure.label)]
    if cure.tried:
        before, after = (bar(share, full_decades=1.0, width=12) for share in (cure.before_frac, cure.after_frac))
        style = "green" if cure.removes else ""
        lines.append(Text.assemble(f"  {before} ", f"{cure.sizes}, ", (cure.outcome, style)))
        lines.append(Text(f"  {after}"))
    elif cure.outcome:
        lines.append(Text(f"  {cure.outcome}", style="dim"))
    lines += [Text(f"  in trials: {cure.trials}", style="bold")] if cure.trials else []
    lines += [Padding(Breaking(cure.change, "dim"), (0, 0, 0, 2))] if cure.change else []
    return Group(*lines)


def _heat_parts(grids: Sequence[Grid], width: int) -> Iterable[RenderableType]:
    grids = [grid for grid in grids if grid.norm_LT.size]
    scales = scales_of(grids)
    if grids:
        yield _head("Gradient size")
    for whole in grids:
        low, high = scale_of(whole, scales)
        span = f"{_clean.name(whole.column_axis)} {whole.steps[0]} to {whole.steps[-1]}"
        yield Text(f"{_clean.name(whole.title)}, {span}", style="bold")
        label = max(8, min(_LONGEST_LABEL, width // 4))
        labels, said = short_labels(whole.rows)
        yield from [Text(said, style="dim")] if said else []
        grid = replace(whole, rows=labels)
        rows = heat_rows(grid, low, high, columns=max(8, min(60, width - label - 24)))
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, style="dim")
        for name, blocks, norms in rows:
            known = finite(norms)
            ends = f"{min(known):.1e} to {max(known):.1e}" if known else "nothing finite"
            table.add_row(Text(_clean.tick(name, label)), _blocks(blocks), Text(ends))
        yield table
        yield from _cut(len(grid.rows) - len(rows), "rows")
        yield Text(f"▁ 10^{low:.1f} to █ 10^{high:.1f}, {ZERO} exactly zero, {BAD} not finite", style="dim")


def _blocks(blocks: str) -> Text:
    drawn = Text(blocks, style="cyan")
    drawn.highlight_regex(f"[{BAD}]+", "bold red")
    return drawn


def _loss_parts(lines: Sequence[Line], width: int) -> Iterable[RenderableType]:
    if not lines:
        return
    log = logarithmic(lines)
    known = finite([value for line in lines for value in line.values])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    yield _head("Loss before and after" if any(line.group == "after" for line in lines) else "Loss")
    label = max(8, min(_LONGEST_LABEL, width // 4))
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for line in lines:
        label_words = line.label if line.group in line.label or line.group == "run" else f"{line.group}: {line.label}"
        drawn = sparkline(_scaled(line, log), *_limits(low, high, log), width=max(8, min(60, width - label - 32)))
        broken = "".join(f", {what} from step {step}" for step, _, what in line.breaks[:1])
        table.add_row(
            Text(_clean.tick(label_words, label)),
            _blocks(drawn),
            Text(f"{number(line.full[0])} to {number(line.full[-1])}{broken}"),
        )
    yield table
    scale = "logarithmic" if log else "linear"
    yield Text(f"▁ {number(low)} to █ {number(high)}, {scale}, {BAD} not finite", style="dim")


def _scaled(line: Line, log: bool) -> list[float | None]:
    return [_limits(value, value, log)[0] if value is not None else None for value in line.values]


def _limits(low: float, high: float, log: bool) -> tuple[float, float]:
    return (math.log10(low), math.log10(high)) if log else (low, high)


def _verdict_parts(proof: Proof, width: int) -> Iterable[RenderableType]:
    yield _head("Verdict")
    yield Text(f"{proof.outcome}: {proof.message}" if proof.message else proof.outcome, style="bold")
    if proof.label:
        yield Breaking(f"treatment: {proof.label}")
    if proof.gain:
        yield Text(proof.gain)
    if proof.seeds:
        metrics = (">fresh", ">after", ">gain") if proof.has_fresh else (">after", ">difference")
        heads = ("seed", ">metric before", *metrics, ">symptom before", ">after")
        rows: list[Row] = [(_seed(row, proof), "") for row in proof.seeds]
        spreads = (proof.spread_before, *[""] * proof.has_fresh, proof.spread_after, "")
        sizes = (proof.symptom_spread_before, proof.symptom_spread_after)
        rows += [(_seed(proof.mean, proof), "bold"), (("min to max", *spreads, *sizes), "")]
        yield from table_of(heads, rows, width)


def _seed(row: SeedRow, proof: Proof) -> tuple[str, ...]:
    metrics = (row.before, *[row.fresh] * proof.has_fresh, row.after, row.gain)
    return (row.seed, *metrics, row.symptom_before, row.symptom_after)


def _trial_parts(story: Story, width: int) -> Iterable[RenderableType]:
    yield _head("Trials")
    yield from table_of(_GROUP_HEADS, [(_group_cells(group), "") for group in spread_rows(story.trials)], width)
    yield Text("")
    yield from table_of(_TRIAL_HEADS, [(_trial_cells(row), "") for row in trial_rows(story.trials)], width)
    yield from _cut(len(story.trials) - MOST_TRIALS, "trials")


def _group_cells(group: SpreadRow) -> tuple[str, ...]:
    counts = (group.label, group.stage, str(group.trials), str(group.failed))
    return (*counts, group.metric_mean, group.metric_spread, group.symptom_mean, group.symptom_spread)


def _trial_cells(row: TrialRow) -> tuple[str, ...]:
    training = (row.label, str(row.seed), row.stage, row.steps)
    return (*training, row.metric, row.symptom, row.findings, row.seconds, row.error or "no")

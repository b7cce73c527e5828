"""Stories for the report's tests: a realistic one, a hostile one, an empty one."""

import math
from random import Random

import pytest

from evengrad.nouns import Cure, Curve, Evidence, Finding, HeatMap, LayerReading, Reading, Record, Story, Trial, Verdict

LAYERS = tuple(f"encoder.blocks.{number}.{part}.weight" for number in range(12) for part in ("attention", "mlp"))
STEPS = tuple(range(0, 400, 2))
SEEDS = (0, 1, 2)
NASTY = (
    "<script>alert(1)</script>",
    "[bold]x[/bold]",
    "\x1b[31mred\x1b[0m",
    "\"'><img src=x onerror=alert(2)>",
    "</script><!--",
    "<b>fat</b><a href='https://evil.example'>go</a>",
    "ünïcödé-层-🔥",
    "line\u2028break\u202eturned",
    "{{ 7*7 }}{% raw %}",
    "x" * 10_000,
    "lone \ud800 surrogate",
    "%{x} javascript:alert(3)",
)


def sample_story() -> Story:
    return Story(
        title="examples/deep_sigmoid.py: 24-layer encoder on spirals",
        headline="Cured: SwapActivation(to='relu') + Reinitialize(scheme='he') raised accuracy from 0.503 to 0.964.",
        findings=(_vanishing(), _saturated()),
        heat_maps=(_heat_map("Before: untreated, seed 0", -0.42), _heat_map("After the cure, seed 0", -0.012)),
        curves=tuple(_curve(seed, group) for group in ("before", "after") for seed in SEEDS),
        trials=_trials(),
        verdict=Verdict(
            outcome="cured",
            label="SwapActivation(to='relu') + Reinitialize(scheme='he')",
            metric_before=(0.501, 0.498, None),
            metric_after=(0.968, 0.957, 0.966),
            symptoms_before=(9.4, 9.1, 9.6),
            symptoms_after=(0.3, 0.2, 0.4),
            seeds=SEEDS,
            message="On three of three seeds accuracy rose by at least 0.45 and the symptom fell by 8.9 decades.",
        ),
        code=_CODE,
        changes=("24 sigmoid modules became ReLU.", "24 linear weights were drawn again by He's rule (fan_in)."),
        facts=(("seed", "0"), ("torch", "2.13.0"), ("budget", "6 000 steps"), ("duration", "74 s"), ("device", "cpu")),
        notes=("Seed 2 without treatment stopped at step 241: the loss was no longer finite.",),
    )


_CODE = """import torch
from torch import nn

for module in model.modules():
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(module.bias)

model = replace(model, nn.Sigmoid, lambda: nn.ReLU())  # every <Sigmoid> & its copies
"""


def _vanishing() -> Finding:
    return Finding(
        code="EG101",
        symptom="vanishing with depth",
        severity="critical",
        where=LAYERS[:14],
        when=(0, 398),
        decades=9.4,
        message="The gradient shrinks by 0.42 decades per layer: 3.1e-02 at the last layer, 1.2e-11 at the first.",
        evidence=(
            Evidence(name="gradient norm at encoder.blocks.0.attention", value=1.2e-11),
            Evidence(name="gradient norm at encoder.blocks.11.mlp", value=3.1e-2),
            Evidence(name="fall per layer", value=0.42, unit="decades"),
            Evidence(name="resolution of float32", value=1.19e-7),
        ),
        cause="The sigmoid's slope is at most 1/4: each layer takes more than half a decade.",
        cures=(
            Cure(
                treatment="SwapActivation",
                settings=(("to", "relu"),),
                tried=True,
                before_decades=9.4,
                after_decades=0.6,
                removes=True,
                change="24 sigmoid modules became ReLU.",
                code="model = replace(model, nn.Sigmoid, lambda: nn.ReLU())",
                blames="the non-linearity",
            ),
            Cure(
                treatment="AddNormalization",
                settings=(("kind", "layer"),),
                tried=True,
                before_decades=9.4,
                after_decades=1.1,
                removes=True,
                change="A LayerNorm before each of 24 activations.",
            ),
            Cure(
                treatment="Reinitialize",
                settings=(("scheme", "xavier"), ("gain", 4.0)),
                tried=True,
                before_decades=9.4,
                after_decades=5.8,
                change="24 linear weights were drawn again.",
            ),
            Cure(treatment="AddSkip", change="the blocks change their width"),
            Cure(treatment="LowerLearningRate", settings=(("factor", 0.1),)),
        ),
        source="Glorot and Bengio 2010, The difficulty of training deep feedforward neural networks, eq. 12",
    )


def _saturated() -> Finding:
    return Finding(
        code="EG203",
        symptom="saturated units",
        severity="warning",
        where=("encoder.blocks.11.act",),
        when=(120, 398),
        decades=0.7,
        message="81 % of the outputs of encoder.blocks.11.act lie where the sigmoid has lost 95 % of its slope.",
        evidence=(Evidence(name="saturated share", value=0.81),),
        source="arXiv:1502.01852, section 2.2",
    )


def _heat_map(title: str, decades_per_layer: float) -> HeatMap:
    random = Random(7)
    rows = []
    for row in range(len(LAYERS)):
        depth = len(LAYERS) - 1 - row
        norms = [
            10 ** (-1.5 + decades_per_layer * depth - 0.8 * step / 400 + 0.12 * random.gauss(0, 1)) for step in STEPS
        ]
        rows.append(norms)
    if decades_per_layer < -0.1:
        for row in (0, 1):
            rows[row][120:] = [0.0] * (len(STEPS) - 120)
        for row in range(16, 24):
            rows[row][150:153] = [math.nan, math.inf, math.nan]
    return HeatMap(title=title, rows=LAYERS, steps=STEPS, values=tuple(tuple(row) for row in rows))


def _curve(seed: int, group: str) -> Curve:
    random = Random(seed + (10 if group == "after" else 0))
    steps = tuple(range(400))
    if group == "before":
        values = [0.693 + 0.02 * random.gauss(0, 1) for _ in steps]
        if seed == 2:
            values[220:241] = [0.7 * 1.9**at for at in range(21)]
            values[241:] = [math.nan] * 159
    else:
        values = [0.69 * math.exp(-step / 70) + 0.011 + 0.006 * random.random() for step in steps]
    return Curve(label=f"{group}, seed {seed}", group=group, steps=steps, values=tuple(values))


def _trials() -> tuple[Trial, ...]:
    best = "SwapActivation(to='relu') + Reinitialize(scheme='he')"
    plans = [
        ("untreated", "scout", 100, 0.502, 9.4),
        ("SwapActivation(to='relu')", "scout", 100, 0.71, 0.6),
        ("AddNormalization(kind='layer')", "scout", 100, 0.68, 1.1),
        ("Reinitialize(scheme='xavier', gain=4.0)", "scout", 100, 0.51, 5.8),
        (best, "scout", 100, 0.83, 0.4),
        ("SwapActivation(to='relu')", "halving 1", 200, 0.86, 0.5),
        (best, "halving 1", 200, 0.92, 0.3),
    ]
    trials = [
        Trial(
            label=label,
            seed=0,
            stage=stage,
            steps=steps,
            metric=metric,
            losses=tuple(0.7 - (metric - 0.5) * step / steps for step in range(steps)),
            symptoms=(("EG101", decades), ("EG203", 0.2)),
            findings=("EG101",) if decades > 2 else (),
            duration_s=steps / 90,
        )
        for label, stage, steps, metric, decades in plans
    ]
    for seed in SEEDS:
        for label, group in (("untreated", "before"), (best, "after")):
            failed = group == "before" and seed == 2
            losses = _curve(seed, group).values[: 241 if failed else 400]
            trials.append(
                Trial(
                    label=label,
                    seed=seed,
                    stage="confirmation",
                    steps=400,
                    losses=losses,
                    metric=None if failed else (0.5, 0.96)[group == "after"] + seed / 500,
                    symptoms=(("EG101", 9.1 + seed / 5 if group == "before" else 0.2 + seed / 10),),
                    findings=("EG101", "EG203") if group == "before" else (),
                    error="loss was no longer finite at step 241" if failed else "",
                    duration_s=4.2 + seed,
                )
            )
    return tuple(trials)


def nasty_story() -> Story:
    bad = NASTY
    return Story(
        title=bad[0] + bad[3],
        headline=bad[4] + bad[1],
        findings=tuple(
            Finding(
                code=name[:40],
                symptom=name,
                severity="warning",
                where=NASTY,
                message=f"at {name}",
                evidence=(Evidence(name=name, value=math.nan, unit=name),),
                cause=name,
                cures=(
                    Cure(
                        treatment=name,
                        settings=((name, name),),
                        tried=True,
                        before_decades=math.inf,
                        after_decades=math.nan,
                        change=name,
                        code=name,
                    ),
                ),
                source="https://evil.example/" + name,
            )
            for name in NASTY
        ),
        heat_maps=(
            HeatMap(
                title=bad[0],
                rows=NASTY,
                steps=(0, 1, 2),
                values=tuple((10.0**-row, 0.0, math.nan) for row in range(len(NASTY))),
            ),
            HeatMap(title=bad[5], rows=NASTY, steps=(5,), values=tuple((0.1,) for _ in NASTY)),
        ),
        curves=tuple(Curve(label=name, group=name, steps=(0, 1), values=(1.0, math.nan)) for name in NASTY[:4]),
        trials=tuple(
            Trial(label=name, seed=1, steps=2, stage=name, findings=(name,), error=name, losses=(1.0, 2.0))
            for name in NASTY
        ),
        verdict=Verdict(outcome="not cured", label=bad[0], message=bad[5], seeds=(1,), metric_before=(None,)),
        code="\n".join(NASTY),
        changes=NASTY,
        facts=tuple((name, name) for name in NASTY),
        notes=NASTY,
    )


def sample_record() -> Record:
    readings = tuple(
        Reading(
            step=step,
            loss=2.3 * 0.9**step,
            lrs=(0.1,),
            grad_norms=(0.1 / (step + 1), 0.0),
            total_norm=0.1,
            scale=0.5 if step == 3 else 1.0,
            skipped=step == 4,
            layers=_layers(step) if step % 2 == 0 else (),
        )
        for step in range(6)
    )
    return Record(readings=readings, parameters=("fc.weight", "fc.bias"), source="runs/a", note="two steps are missing")


def _layers(step: int) -> tuple[LayerReading, ...]:
    return (
        LayerReading(name="fc", kind="Linear", weighted=True, numel=100, grad_rms=0.25, grad_finite=step != 4),
        LayerReading(name="act", kind="ReLU", numel=100, grad_rms=0.5),
        LayerReading(name="frozen", kind="Linear", weighted=True, numel=100),
    )


@pytest.fixture(name="sample")
def _sample() -> Story:
    return sample_story()


@pytest.fixture(name="nasty")
def _nasty() -> Story:
    return nasty_story()


@pytest.fixture(name="record")
def _record() -> Record:
    return sample_record()


@pytest.fixture(name="nasty_names")
def _nasty_names() -> tuple[str, ...]:
    return NASTY

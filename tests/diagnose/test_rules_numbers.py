"""Numbers that are not finite, too small or too large, and the course of the gradient norm."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of, rules
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, Record, TensorReading
from evengrad.probe import probe

BY_CODE = {rule.code: rule for rule in rules.ALL}


def sign(code, **settings):
    reading = Reading(**settings)
    return BY_CODE[code].sign(reading, Record(readings=(reading,), parameters=("a", "b", "c")))


def judge(code, readings, **settings):
    return BY_CODE[code].judge(Record(readings=tuple(readings), parameters=("a", "b", "c"), **settings))


FINE = (LayerReading(name="0", kind="Linear", weighted=True, grad_rms=1.0),)
BROKEN = (replace(FINE[0], output_finite=False),)


def ends(*ops, low=-1.0, high=1.0, output=None, target=None):
    output = output or TensorReading(name="output", minimum=low, maximum=high)
    return Ends(loss_ops=ops, output=output, target=target)


# --- EG202 ---


def test_a_gradient_that_comes_out_of_the_loss_as_nan_is_blamed_on_what_the_loss_takes():
    bad = (replace(FINE[0], grad_finite=False),)
    settings = {"loss": 1.0, "layers": bad, "grad_norms": (math.nan,)}
    assert "which takes a root" in sign("EG202", **settings, ends=ends("Sqrt", "Mean")).cause
    assert sign("EG202", **settings, ends=ends("MseLoss")).cause == ""
    assert sign("EG202", **settings | {"layers": FINE}, ends=ends("Sqrt")).cause == ""


def test_the_largest_finite_element_of_a_gradient_that_overflows_is_told():
    weights = (ParameterReading(name="a", grad_absmax=6e4), ParameterReading(name="b", grad_absmax=1.0))
    seen = sign("EG202", grad_norms=(math.inf, 1.0, 1.0), weights=weights)
    assert [(one.name, one.value) for one in seen.evidence][1:] == [
        ("largest finite element of the gradient of a", 6e4)
    ]


def test_a_gradient_of_a_loss_that_is_not_finite_is_left_to_the_rule_of_the_loss():
    settings = {"loss": math.nan, "grad_norms": (math.nan,)}
    assert sign("EG202", **settings, layers=FINE) is None
    assert sign("EG203", **settings, layers=FINE).speaks is True
    assert sign("EG202", **settings).speaks is True


@pytest.mark.parametrize(
    ("rms", "text"),
    [(math.nan, "its weights are, already"), (0.0, "its weights are, already"), (1.0, "out of a finite input")],
)
def test_weights_that_are_broken_already_are_known_by_their_parameters(rms, text):
    weights = (ParameterReading(name="0.weight", fan_in=8, weight_rms=rms),)
    assert text in sign("EG201", layers=BROKEN, weights=weights).message


def test_the_slope_of_a_real_root_at_zero_is_found():
    class Root(nn.Module):
        def forward(self, output, target):
            return (output * 0.0).square().sum().sqrt()

    record = probe(nn.Linear(4, 2), Root(), (torch.ones(3, 4), torch.ones(3, 2)))
    seen = BY_CODE["EG202"].sign(record.readings[0], record)
    assert seen.speaks is True


# --- EG203 ---


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_although_all_outputs_are_is_told(loss):
    seen = sign("EG203", loss=loss, layers=FINE)
    assert seen.where == ("loss",)
    assert seen.severity == "critical"
    assert sign("EG203", loss=1.0, layers=FINE).decades == 0.0
    assert sign("EG203", loss=loss) is None
    assert sign("EG203", layers=FINE) is None
    assert sign("EG203", loss=loss, layers=BROKEN) is None


@pytest.mark.parametrize(
    ("settings", "severity"),
    [
        ({"skipped": True}, "warning"),
        ({"grad_norms": (1.0, 0.0)}, "warning"),
        ({"grad_norms": (1.0, math.nan)}, "critical"),
        ({"grad_norms": ()}, "critical"),
    ],
)
def test_a_loss_whose_step_did_no_harm_is_a_warning(settings, severity):
    assert sign("EG203", loss=math.inf, layers=FINE, **settings).severity == severity


IGNORED = TensorReading(name="target", dtype="int64", shape=(8,), minimum=-100, maximum=-100)
HOLES = TensorReading(name="target", finite_frac=0.5)


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (ends("Log", low=-0.5), "logarithm of an output that is as low as -0.5"),
        (ends("Log", low=0.0, high=0.7), "probabilities that are exactly 0 or 1"),
        (ends("Mul", "Log", "Sigmoid", low=0.2, high=1.0), "probabilities that are exactly 0 or 1"),
        (ends("Log", "Softmax", low=-200, high=200), "logarithm of a softmax that is zero by rounding"),
        (ends("Sqrt", low=-0.5), "root of an output"),
        (ends("Acos", low=-1.0), "arc function of an output"),
        (ends("MseLoss", high=2e19), "its square is beyond what float32 holds"),
        (ends("NllLoss", "LogSoftmax", target=IGNORED), "mean is 0 / 0"),
        (ends("MseLoss", target=HOLES), "the target holds NaN or infinity (50.0% of its elements)"),
        (ends("Mean", output=TensorReading(name="output", finite_frac=0.9)), "after its last module"),
        (ends("Log", low=0.1, high=3.0), ""),
        (ends("Log", "Exp", low=-5.0), ""),
        (ends("MseLoss", high=1e19), ""),
        (ends("Acos", low=-0.9, high=0.9), ""),
        (Ends(), ""),
        (None, ""),
    ],
)
def test_the_cause_of_a_broken_loss_is_said_where_output_target_and_graph_leave_no_doubt(seen, cause):
    found = sign("EG203", loss=math.nan, layers=FINE, ends=seen).cause
    assert (cause in found) if cause else found == ""


def test_a_real_logarithm_of_a_probability_of_zero_is_found_and_its_fix_is_silent():
    torch.manual_seed(0)
    batch = 1e4 * torch.randn(32, 4), torch.randint(2, (32, 1)).float()

    def by_hand(p, y):
        return -(y * p.log() + (1 - y) * (1 - p).log()).mean()

    record = probe(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), by_hand, batch)
    found = {finding.code: finding for finding in findings_of(record)}
    assert "use a loss that takes logits" in found["EG203"].cause
    fixed = probe(nn.Linear(4, 1), functional.binary_cross_entropy_with_logits, batch)
    assert "EG203" not in {finding.code for finding in findings_of(fixed)}


# --- EG206 ---


def attention(*scores):
    return [
        Reading(step=step, layers=(LayerReading(name="attn", kind="MultiheadAttention", logit_absmax=score),))
        for step, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "speaks"),
    [
        ((5.0, 40.0, 88.1), True),
        ((5.0, 40.0, 88.0), False),
        ((50.0, 60.0, 100.0), True),
        ((51.0, 60.0, 100.0), False),  # has not doubled
        ((5.0, 300.0, 100.0), False),  # is coming down
        ((100.0,), False),
        ((5.0, math.nan, math.inf), False),
    ],
)
def test_attention_scores_are_told_when_they_have_grown_beyond_what_an_exponential_holds(scores, speaks):
    seen = judge("EG206", attention(*scores))
    assert seen.speaks == speaks
    assert (seen.where == ("attn",)) == speaks


def test_without_attention_there_is_nothing_to_say():
    assert judge("EG206", [Reading(layers=FINE)]) is None


# --- EG106, EG107 ---


def run(norms, losses, **settings):
    return [
        Reading(step=step, loss=loss, total_norm=norm, grad_norms=(norm, 0.0, 0.0), **settings)
        for step, (norm, loss) in enumerate(zip(norms, losses, strict=True))
    ]


def noisy(values, spread=0.1, seed=0):
    generator = random.Random(seed)
    return [value * 10 ** generator.gauss(0.0, spread) for value in values]


def rising(decades, count=100):
    return [10.0 ** (decades * step / (count - 1)) for step in range(count)]


@pytest.mark.parametrize(("decades", "speaks"), [(1.2, False), (1.3, True)])
def test_a_norm_that_drifts_up_by_ten_times_from_the_first_to_the_last_fifth_is_told(decades, speaks):
    seen = judge("EG106", run(rising(decades), [1.0] * 100))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(0.8 * decades, abs=0.02)
    assert (seen.where == ("a",)) == speaks


def test_a_norm_that_rises_while_the_loss_falls_or_that_only_leaps_is_no_drift():
    assert judge("EG106", run(noisy(rising(3)), noisy([2.0 - k / 80 for k in range(100)]))).speaks is False
    assert judge("EG106", run([1.0] * 80 + [100.0] * 20, [1.0] * 100)).speaks is True
    assert judge("EG106", run([1.0] * 40 + [100.0] * 20 + [1.0] * 20 + [100.0] * 20, [1.0] * 100)).speaks is False
    assert judge("EG106", run(rising(3)[::-1], [1.0] * 100)).speaks is False


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_a_batch_of_one_is_no_drift_and_no_spike(seed):
    norms, losses = noisy([1.0] * 200, 0.6, seed), noisy([1.0] * 200, 0.6, seed + 100)
    assert judge("EG106", run(norms, losses)).speaks is False
    assert judge("EG107", run(norms, losses)).speaks is False


def test_too_few_norms_and_no_losses_are_not_judged():
    assert judge("EG106", run(rising(3, 49), [1.0] * 49)) is None
    assert judge("EG106", run(rising(3), [None] * 100)) is None
    assert judge("EG107", run(rising(3, 20), [1.0] * 20)) is None


def spiked(norm=100.0, after=3.0, count=40, **settings):
    readings = run(noisy([1.0] * 30), noisy([1.0] * 30, 0.05))
    readings += [Reading(step=30, loss=1.0, total_norm=norm, grad_norms=(0.0, norm, 0.0), **settings)]
    return readings + [
        replace(one, step=31 + one.step) for one in run(noisy([1.0] * count), noisy([after] * count, 0.05))
    ]


def test_a_spike_after_which_the_loss_has_not_come_back_is_told_with_its_step():
    seen = judge("EG107", spiked())
    assert seen.speaks is True
    assert seen.when == (30, 30)
    assert seen.where == ("b",)
    assert "2.0 decades above the median of the steps before" in seen.message


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": 8.0},
        {"after": 1.0},
        {"count": 9},  # nobody can know yet
        {"skipped": True},
        {"scale": 0.01},
    ],
)
def test_a_spike_that_is_small_or_harmless_or_was_clipped_or_skipped_is_not_told(settings):
    assert judge("EG107", spiked(**settings)).speaks is False


def test_a_spike_after_which_the_loss_is_nan_is_told_at_once():
    readings = [*spiked(count=0), Reading(step=31, loss=math.nan)]
    assert judge("EG107", readings).speaks is True


@pytest.mark.parametrize("clip", [False, True])
def test_a_real_run_that_one_broken_batch_throws_off_is_told_and_silent_where_it_was_clipped(clip):
    torch.manual_seed(0)
    model, truth, readings = nn.Linear(10, 1), torch.randn(10, 1), []
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(120):
        x = torch.randn(16, 10)
        y = x @ truth + 0.1 * torch.randn(16, 1)
        loss = functional.mse_loss(model(x), 1e4 * y if step == 60 else y)
        optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), 5.0 if clip else math.inf))
        optimizer.step()
        scale = min(1.0, 5.0 / norm) if clip else 1.0
        readings.append(Reading(step=step, loss=float(loss.detach()), total_norm=norm, scale=scale))
    seen = judge("EG107", readings)
    assert seen.speaks is not clip
    assert clip or seen.when == (60, 60)


def test_a_real_overflow_of_float16_is_found_and_the_same_network_in_float32_is_silent():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    nn.init.constant_(model[0].weight, 100.0)
    nn.init.constant_(model[1].weight, 20.0)
    batch = 60 * torch.ones(4, 8), torch.ones(4, 2)
    fine = probe(model, functional.mse_loss, batch)
    assert BY_CODE["EG205"].judge(fine) is None
    broken = probe(model.half(), functional.mse_loss, (batch[0].half(), batch[1].half()), allow_broken_loss=True)
    seen = BY_CODE["EG205"].judge(broken)
    assert seen.where == ("1",)
    assert "activations up to there are as large as 48000" in seen.message


@pytest.mark.parametrize("code", ["EG106", "EG107", "EG108", "EG205", "EG206"])
@pytest.mark.parametrize("norm", [math.nan, math.inf, 0.0, 1e300, 5e-324])
def test_odd_numbers_from_a_strangers_log_are_survived(code, norm):
    for readings in (run([1.0, norm] * 50, [1.0, math.nan, -1.0, None] * 25), run([norm] * 100, [norm] * 100)):
        seen = judge(code, readings)
        assert seen is None or 0.0 <= seen.decades < math.inf

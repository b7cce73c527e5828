"""The report in a terminal: names break where a reader would break them, and no character is lost."""

import random
import re

import pytest
from rich.cells import cell_len

from evengrad.nouns import Cure, Evidence, Finding, Story, Trial, Verdict
from evengrad.report import _breaking, text
from evengrad.report._breaking import broken, longest_piece, pieces

LONG = "Reinitialize(scheme='orthogonal', recurrent_gain=1.0) + SwapActivation(to='leaky_relu') + "
LONG += "ClipGradients(max_norm=0.5)"
LAYER = "model.transformer.encoder.layers.11.self_attention.output_projection.weight"
ERROR = "RuntimeError: mat1 and mat2 shapes cannot be multiplied (192x16 and 12x16) (train.py, line 12, in forward)"
WORDS = re.compile(r"[A-Za-z_']{3,}")


def story():
    cures = (
        Cure(treatment="Reinitialize", settings=(("scheme", "orthogonal"),), tried=True, change=f"{LAYER}: drawn anew",
             before_decades=7.0, after_decades=0.1, removes=True),
        Cure(treatment="UseGatedCell", settings=(("kind", "gru"),), change=f"does not apply: {LAYER}"),
    )  # fmt: skip
    finding = Finding(
        code="EG101", symptom="vanishing with depth", severity="critical", where=(LAYER, LAYER.replace("11", "3")),
        message=f"the gradient at {LAYER} is small", evidence=(Evidence(name=f"norm at {LAYER}", value=1e-9),),
        cause=f"the initial scale of {LAYER}", cures=cures, look_at="project/models/transformer.py:12 in Net.forward",
    )  # fmt: skip
    stages = ("scout", "halving 1", "halving 2", "confirmation")
    trials = tuple(
        Trial(label=label, seed=seed, steps=20000, stage=stage, losses=(1.0,) * 12345, metric=0.123456 + seed,
              symptoms=(("EG101", 3.25),), findings=("EG101", "EG402", "EG801"), duration_s=123.4, error=error)
        for seed, stage in enumerate(stages) for label, error in ((LONG, ERROR), ("untreated", ""))
    )  # fmt: skip
    verdict = Verdict(outcome="improved", label=LONG, metric_before=(0.1, 0.2), metric_after=(0.5, 0.6), seeds=(2, 3),
                      symptoms_before=(3.0, 3.0), symptoms_after=(0.1, 0.2), gain=0.4, gain_interval=(0.3, 0.5),
                      message="fine")  # fmt: skip
    return Story(title="repair", headline="found", findings=(finding,), trials=trials, verdict=verdict)


def words_of(said):
    return set(WORDS.findall(said))


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_every_word_of_the_names_is_whole_at_every_usual_width(width):
    said = text(story(), width=width)
    assert all(cell_len(line) <= width for line in said.splitlines())
    assert words_of(f"{LONG} {LAYER} {ERROR} confirmation findings treatment seconds") <= words_of(said)


@pytest.mark.parametrize("width", [80, 160])
def test_no_character_of_a_label_is_lost(width):
    said = re.sub(r"[\s│]+", "", text(story(), width=width))
    assert said.count(LONG.replace(" ", "")) >= 5 or width == 160  # beside other columns its lines are apart
    trials = said[said.index("Trials") :]
    assert all(piece.replace(" ", "") in trials for piece in pieces(LONG))
    assert f"norm at {LAYER}".replace(" ", "") in said


def test_all_numbers_of_a_trial_are_said_in_a_narrow_terminal_too():
    said = " ".join(text(story(), width=80).split())
    for number in ("12345", "0.1235", "3.2", "123.4"):
        assert number in said
    assert "stage confirmation, steps 12345 of 20000" in said


def test_short_labels_stay_a_table_at_eighty_columns():
    trials = tuple(Trial(label="untreated", seed=seed, steps=40, stage="scout", metric=0.5) for seed in range(3))
    lines = text(Story(title="", headline="", trials=trials), width=80).splitlines()
    heads = [line for line in lines if line.split()[:3] == ["treatment", "seed", "stage"]]
    assert len(heads) == 1
    assert sum(line.startswith("untreated ") for line in lines) == 4


@pytest.mark.parametrize(
    ("said", "width", "lines"),
    [
        ("a.bcd.ef", 4, ["a.", "bcd.", "ef"]),
        ("lr=0.001, eps=1e-8", 10, ["lr=0.001,", "eps=1e-8"]),
        ("One() + Two()", 8, ["One() +", "Two()"]),
        ("one,two,three", 10, ["one,two,", "three"]),
        ("One()+Two()", 8, ["One()+", "Two()"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("", 5, [""]),
        ("two\nlines", 9, ["two", "lines"]),
        ("日本語", 2, ["日", "本", "語"]),
    ],
)
def test_lines_end_after_a_space_a_comma_a_plus_or_a_dot(said, width, lines):
    assert broken(said, width) == lines


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_broken_can_be_put_together_again(seed):
    drawn = random.Random(seed)
    said = "".join(drawn.choice("ab.,+ 01é日(=") for _ in range(80))
    width = drawn.randint(2, 30)
    lines = broken(said, width)
    assert "".join(lines).replace(" ", "") == said.replace(" ", "")
    assert "".join(pieces(said)) == said
    assert all(cell_len(line) <= width for line in lines)
    assert broken(said, max(longest_piece(said), 1))[0] != ""


@pytest.mark.parametrize("letter", ["x", "日", "e\u0301", "\u0301", "日 ", "日, x."])
def test_a_text_of_ten_times_the_length_takes_ten_times_the_measuring(letter, monkeypatch):
    def measured(count):
        seen = []
        monkeypatch.setattr(_breaking, "cell_len", lambda said: seen.append(len(said)) or cell_len(said))
        assert "".join(broken(letter * count, 20)).replace(" ", "") == letter.replace(" ", "") * count
        return sum(seen)

    assert measured(5000) < 11 * measured(500)

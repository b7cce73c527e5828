"""Which rules are asked and which are told, and what was told already."""

import pytest

from evengrad.diagnose import Choice, Diagnosis, Told, findings_of
from evengrad.nouns import Finding, LayerReading, Reading, Record, UnknownRuleError


def layer(name, grad, **settings):
    settings = {"kind": "Linear", "weighted": True, "numel": 1, "activation_rms": 1.0} | settings
    return LayerReading(name=name, grad_rms=grad, **settings)


VANISHED = tuple(layer(str(place), 10.0 ** (2 * place - 8)) for place in range(5))
DEAD = layer("act", 1.0, weighted=False, nonlinearity="relu", units=9, observations=64, dead_frac=1.0)
BOTH = Record(readings=(Reading(layers=(*VANISHED, DEAD)),), source="x")


def codes(**chosen):
    return [(one.code, one.follows) for one in Choice(**chosen).findings_of(BOTH)]


def test_without_a_choice_everything_is_told():
    assert codes() == [(one.code, one.follows) for one in findings_of(BOTH)]
    assert {code for code, _ in codes()} >= {"EG101", "EG301"}


def test_what_is_selected_is_told_alone_and_names_no_root_that_is_not_told():
    assert codes(select=("EG101",)) == [("EG101", ())]
    assert codes(select=("eg30",)) == [("EG301", ())]


def test_what_is_ignored_is_neither_told_nor_a_root():
    assert "EG301" not in {code for code, _ in codes(ignore=("EG301",))}
    assert all("EG301" not in follows for _, follows in codes(ignore=("EG3",)))


def test_a_run_that_is_sick_only_by_ignored_rules_is_not_sick():
    healthy = tuple(layer(str(place), 1.0) for place in range(5))
    record = Record(readings=(Reading(layers=(*healthy, DEAD)),))
    assert [one.code for one in Choice().findings_of(record)] == ["EG301"]
    assert Choice(ignore=("EG301",)).findings_of(record) == ()


@pytest.mark.parametrize(("chosen", "what"), [({"select": ("EG9999",)}, "select"), ({"ignore": ("x",)}, "ignore")])
def test_a_code_that_no_rule_has_is_refused_with_those_there_are(chosen, what):
    with pytest.raises(UnknownRuleError, match=rf"^{what}: got .*EG101"):
        Choice(**chosen).check()


def test_each_finding_is_told_once_and_again_when_its_severity_changes():
    told = Told()
    warning, critical = (
        Finding(code="EG301", symptom="", severity=severity, where=()) for severity in ("warning", "critical")
    )
    news = [told.news(seen) for seen in ([warning], [warning], [], [warning], [critical], [critical])]
    assert news == [(warning,), (), (), (), (critical,), ()]


def test_a_diagnosis_tells_roots_in_full_and_what_follows_in_a_line():
    root = Finding(code="EG701", symptom="raw input", severity="critical", where=("input",), message="large")
    below = Finding(code="EG301", symptom="dead", severity="warning", where=("1",), follows=("EG701",))
    said = str(Diagnosis(findings=(root, below), record=Record(readings=(Reading(),) * 3, source="runs/a")))
    assert said.startswith("1 finding in 3 readings of runs/a, and 1 that follows from it\n")
    assert "\n  large\n" in said
    assert "\n  └ EG301 dead (warning) at 1, step 0" in said

"""Ranking and cause on made-up counterfactuals, and what may not count as relief."""

import torch
from torch import nn
from torch.nn import functional

import evengrad
from evengrad.checkup._counterfactual import _Before, _developing, _Measured, _with_cause
from evengrad.nouns import Cure, Finding

CURES = (Cure(treatment="Reinitialize"), Cure(treatment="AddResidual"), Cure(treatment="AddNormalization"))
FINDING = Finding(code="EG101", symptom="vanishing with depth", severity="critical", where=("0",), cures=CURES)
BEFORE = _Before(symptoms={"EG101": 8.0, "EG301": 0.1}, speaking=frozenset({"EG101"}))


def measured(after, *, speaking=(), effort=1, change="changed"):
    return _Measured(
        symptoms=after,
        speaking=frozenset(speaking),
        change=change,
        code="code",
        blames=f"blame {effort}",
        effort=effort,
    )


def judged(first, second, third):
    results = dict(zip((cure.label for cure in CURES), (first, second, third), strict=True))
    return _with_cause(FINDING, results, BEFORE)


def order(finding):
    return [cure.treatment for cure in finding.cures]


def test_more_relief_comes_first_in_whole_decades_then_the_smaller_change():
    finding = judged(
        measured({"EG101": 2.4}, effort=2), measured({"EG101": 0.3}, effort=5), measured({"EG101": 0.1}, effort=4)
    )
    assert order(finding) == ["AddNormalization", "AddResidual", "Reinitialize"]


def test_what_removes_the_symptom_comes_before_what_only_shrinks_it():
    finding = judged(
        measured({"EG101": 3.1}, speaking=("EG101",)),
        measured({"EG101": 2.9}),
        measured({"EG101": 7.9}, speaking=("EG101",)),
    )
    assert order(finding) == ["AddResidual", "Reinitialize", "AddNormalization"]
    assert [cure.removes for cure in finding.cures] == [True, False, False]


def test_the_smallest_change_that_removes_it_is_the_cause_even_if_another_relieves_more():
    finding = judged(
        measured({"EG101": 2.0}, effort=2), measured({"EG101": 0.0}, effort=5), measured({"EG101": 0.0}, effort=4)
    )
    assert finding.cause == "blame 2: Reinitialize() alone brings it from 8.0 to 2.0 decades"


def test_a_change_that_brings_another_finding_is_neither_first_nor_the_cause():
    finding = judged(
        measured({"EG101": 0.0}, speaking=("EG301",), effort=1),
        measured({"EG101": 1.0}, effort=5),
        measured({"EG101": 5.0}, speaking=("EG101",)),
    )
    assert order(finding)[0] == "AddResidual"
    assert finding.cause.startswith("blame 5")
    brings = next(cure for cure in finding.cures if cure.treatment == "Reinitialize")
    assert brings.removes
    assert brings.brings == ("EG301",)
    assert "but now EG301" in str(finding)


def test_a_rule_that_cannot_judge_afterwards_is_no_relief():
    finding = judged(measured({"EG301": 0.0}), measured({"EG101": 1.0}, effort=5), measured({"EG101": 5.0}))
    silent = next(cure for cure in finding.cures if cure.treatment == "Reinitialize")
    assert not silent.tried
    assert not silent.removes
    assert silent.relief_decades is None
    assert "could not judge" in silent.change


def test_without_a_remover_the_nearest_is_named():
    finding = judged(
        measured({"EG101": 7.0}, speaking=("EG101",)),
        measured({"EG101": 4.0}, speaking=("EG101",)),
        measured({"EG101": 6.0}, speaking=("EG101",)),
    )
    assert "the nearest is AddResidual() (8.0 to 4.0 decades)" in finding.cause


def test_a_network_that_dies_by_the_swap_is_not_called_relieved():
    """Sigmoids with strongly negative biases: as rectifiers they would all be dead, and no gradient left to judge."""
    torch.manual_seed(0)
    layers = [layer for _ in range(30) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, -3.0)
    batch = torch.randn(16, 16), torch.randint(4, (16,))
    found = evengrad.checkup(model, functional.cross_entropy, batch).findings
    finding = next(one for one in found if one.code == "EG101")
    swapped = next(cure for cure in finding.cures if cure.settings == (("to", "relu"),))
    assert not swapped.removes
    assert "relu" not in finding.cause


def test_the_random_numbers_of_the_treatments_come_from_the_seed():
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    batch = torch.randn(64, 16), torch.randint(4, (64,))
    sizes = [
        [
            cure.after_decades
            for finding in evengrad.checkup(model, functional.cross_entropy, batch, seed=seed).findings
            for cure in finding.cures
        ]
        for seed in (0, 0, 1)
    ]
    assert sizes[0] == sizes[1]
    assert sizes[0] != sizes[2]


def test_a_cause_that_the_rule_is_certain_of_stays_whatever_treatments_do():
    certain = Finding(
        code="EG101", symptom="", severity="critical", where=("0",), cures=CURES, cause="a mistake in the code"
    )
    results = {cure.label: measured({"EG101": 0.0}) for cure in CURES}
    assert _with_cause(certain, results, BEFORE).cause == "a mistake in the code"
    bare = Finding(code="EG108", symptom="", severity="critical", where=("0",), cause="detach() in the forward")
    assert _with_cause(bare, {}, BEFORE) == bare
    assert _developing(bare, {}) == bare
    assert _developing(certain, {}) == certain


def test_only_a_finding_with_cures_is_said_to_be_for_trials():
    assert "trials show" in _developing(FINDING, {}).cause
    assert _developing(Finding(code="EG801", symptom="", severity="warning", where=("loss",)), {}).cause == ""

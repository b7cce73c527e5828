"""Where no diff can be known to be right, the patch is a snippet and says why."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from patched_sources import HEAD, MAKE, NET, STACK, call, loading

from evengrad.treat import (
    AddNormalization,
    AddResidual,
    ClipGradients,
    Combined,
    NormalizeInput,
    NormalizeTarget,
    Reinitialize,
    ScaleLearningRate,
    SwapActivation,
)
from evengrad.trial._patch import patch_of

load = pytest.fixture(loading)
NORM = AddNormalization(kind="layer")


def refused(task, treatment, why):
    """Want a snippet, the treatment's own code, and the reason."""
    treated = treatment.treat_task(task)
    patch = patch_of(task, treatment, treated)
    assert (patch.kind, patch.text, patch.files) == ("snippet", treated.code, ())
    assert why in patch.why
    return patch


def test_a_file_that_was_changed_since_it_was_imported_is_left_alone(load):
    module = load(HEAD + MAKE + call("make"))
    path = Path(module.__file__)
    path.write_text(path.read_text().replace("nn.Linear(8, 1)", "nn.Linear(8, 1, bias=False)"))
    refused(module.task, NORM, "was changed on disk after it was imported")


def test_lines_above_that_came_since_the_import_do_not_matter(load):
    module = load(HEAD + MAKE + call("make"))
    path = Path(module.__file__)
    path.write_text("# one more line\n\n" + path.read_text())
    patch = patch_of(module.task, NORM, NORM.treat_task(module.task))
    assert patch.kind == "diff", patch.why
    assert "-    return nn.Sequential(" in patch.text


def test_a_file_that_is_no_python_any_more_is_left_alone(load):
    module = load(HEAD + MAKE + call())
    Path(module.__file__).write_text("def (")
    refused(module.task, NORM, "cannot be parsed")


def test_code_without_a_file_gets_a_snippet():
    space = {}
    exec(HEAD + MAKE + call(), space)
    refused(space["task"], NORM, "the code comes from <string>, not from a file")


def test_a_cell_of_a_notebook_gets_a_snippet(tmp_path):
    space = {}
    exec(compile(HEAD + MAKE + call(), str(tmp_path / "ipykernel_1" / "2.py"), "exec"), space)
    refused(space["task"], NORM, "there is no file")


def test_an_installed_package_is_left_alone(load, tmp_path):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    module = load(HEAD + MAKE + call(), "site-packages/installed")
    assert Path(module.__file__).parent == folder
    refused(module.task, NORM, "belongs to an installed package")


def test_a_file_that_is_not_utf_8_is_left_alone(load):
    text = "# -*- coding: latin-1 -*-\n# caf\u00e9\n" + HEAD + MAKE + call()
    module = load(text.encode("latin-1"))
    refused(module.task, NORM, "is not UTF-8")


def test_a_task_made_by_a_function_of_many_uses_keeps_its_lambda_in_a_loop(load):
    text = f"tasks = [\n    {call('lambda: Net(width)').removeprefix('task = ').strip()}\n    for width in (4, 8)\n]\n"
    module = load(HEAD + NET + text.replace("\n    steps=3,\n)", "\n    steps=3)"))
    refused(module.tasks[1], NORM, "in a lambda or a comprehension")


def test_a_task_of_a_loop_is_not_given_a_function_that_sees_the_last_turn_only(load):
    text = call("net").replace("\n", "\n    ").rstrip()
    module = load(
        HEAD + NET + f"tasks = []\nfor net in (Net, functools.partial(Net, 6)):\n    {text}\n    tasks.append(task)\n"
    )
    refused(module.tasks[1], NORM, "in a loop that gives it something else each time")


def test_two_calls_that_can_both_have_made_the_task_are_left_alone(load):
    text = call("Net", "sgd").replace("task = ", "other = ")
    sgd = "def sgd(model):\n    return torch.optim.SGD(model.parameters(), lr=0.1)\n\n\n"
    module = load(HEAD + NET + sgd + text + "\n\n" + call("Net", "sgd"))
    refused(module.task, NORM, "several calls of Task")


def test_a_name_that_means_something_else_in_the_file_is_not_used(load):
    text = HEAD.replace("from torch import nn\n", "import torch.nn as layers\n\nnn = 3\n") + MAKE + call()
    module = load(
        text.replace("nn.Sequential", "layers.Sequential")
        .replace("nn.Lin", "layers.Lin")
        .replace("nn.Sig", "layers.Sig")
        .replace("nn.functional", "layers.functional")
    )
    refused(module.task, NORM, "nn is the name of something else")


def test_a_class_of_the_same_name_is_not_overwritten(load):
    module = load(HEAD + "class Residual:\n    pass\n\n\n" + MAKE + call())
    refused(module.task, AddResidual(), "has something else with the name Residual")


def far_away(text):
    """Give the targets a mean of 300 and a deviation of 60 or so."""
    return text.replace(
        "[(inputs, inputs[:, :1]), (-inputs, inputs[:, :1])]", "[(inputs, 300.0 + 100.0 * inputs[:, :1])]"
    )


def test_a_loss_that_a_helper_computes_is_told_as_a_snippet(load):
    text = "def chosen(word):\n    return nn.functional.mse_loss if word == 'l2' else nn.functional.l1_loss\n\n\n"
    module = load(far_away(HEAD) + MAKE + text + call().replace("nn.functional.mse_loss", "chosen('l' + str(2))"))
    refused(module.task, NormalizeTarget(), "the loss of the call of Task cannot be tried")


def test_a_loss_whose_call_is_not_found_is_told_as_a_snippet(load):
    members = "members = dict(loss=nn.functional.mse_loss, steps=3)\n"
    text = call().replace("    loss=nn.functional.mse_loss,\n", "    **members,\n").replace("    steps=3,\n", "")
    refused(load(far_away(HEAD) + MAKE + members + text).task, NormalizeTarget(), "does not say what loss is")


def test_a_loss_that_computes_something_else_is_not_handed_out(load):
    module = load(far_away(HEAD) + MAKE + call())
    treated = NormalizeTarget().treat_task(module.task)
    loss = treated.subject.loss
    wrong = replace(loss, scale=replace(loss.scale, std=(7.0,)))
    lying = type(
        "Lying",
        (),
        {"__call__": lambda self, *given: wrong(*given), "loss": staticmethod(loss.loss), "code": loss.code},
    )
    made = type(treated)(subject=replace(treated.subject, loss=lying()), changes=(), code=treated.code)
    assert "gives other numbers" in patch_of(module.task, NormalizeTarget(), made).why


def test_clipping_of_a_task_whose_call_is_not_found_is_a_snippet(load):
    module = load(
        HEAD + MAKE + "members = dict(model=make)\n" + call().replace("    model=make,\n", "    **members,\n")
    )
    refused(module.task, ClipGradients(), "spreads a mapping that may hold clip")


def test_a_factory_that_raises_when_it_is_tried_leads_to_a_snippet(load):
    text = f"    if FULL:\n        raise OSError('no more')\n    return {STACK}\n\n\n"
    module = load(HEAD + "FULL = False\n\n\ndef make():\n" + text + call())
    treated = NORM.treat_task(module.task)
    module.FULL = True
    patch = patch_of(module.task, NORM, treated)
    assert patch.kind == "snippet"
    assert "no more" in patch.why


def test_an_edit_that_makes_another_model_is_not_handed_out(load):
    module = load(HEAD + MAKE + call())
    treated = NORM.treat_task(module.task)
    wrong = type(treated)(
        subject=treated.subject, changes=treated.changes, code=treated.code.replace("LayerNorm", "RMSNorm")
    )
    patch = patch_of(module.task, NORM, wrong)
    assert patch.kind == "snippet"
    assert "other modules than the treated task" in patch.why


def test_a_snippet_that_computes_something_else_is_not_handed_out(load):
    module = load(HEAD + MAKE + call())
    treatment = AddResidual()
    treated = treatment.treat_task(module.task)
    wrong = type(treated)(
        subject=treated.subject,
        changes=treated.changes,
        code=treated.code.replace("return branch +", "return branch -"),
    )
    assert wrong.code != treated.code
    patch = patch_of(module.task, treatment, wrong)
    assert patch.kind == "snippet"
    assert "other outputs than the treated one" in patch.why


@pytest.mark.parametrize(
    ("treatment", "right", "wrong", "name"),
    [
        (NormalizeInput(), "torch.tensor([", "torch.tensor([0.1 + ", "input_mean"),
        (AddResidual(zero_init=True), "new_zeros(1)", "new_ones(1)", "2.scale"),
        (Reinitialize(), "nn.init.zeros_(layer.bias)", "nn.init.ones_(layer.bias)", "0.bias"),
    ],
    ids=["statistics of data", "a branch of zeros", "biases beside draws"],
)
def test_a_snippet_whose_constants_are_others_is_not_handed_out(load, treatment, right, wrong, name):
    module = load(HEAD.replace("[(inputs, inputs", "[(3.0 + inputs, inputs") + MAKE + call())
    treated = treatment.treat_task(module.task)
    assert patch_of(module.task, treatment, treated).kind == "diff"
    assert right in treated.code
    other = replace(treated, code=treated.code.replace(right, wrong, 1))
    patch = patch_of(module.task, treatment, other)
    assert patch.kind == "snippet"
    assert f"{name} starts with other values" in patch.why


def test_a_second_task_is_not_touched_by_a_change_of_a_shared_closure(load):
    text = "def sized(width):\n    def make():\n        return Net(width)\n\n    return make\n\n\n"
    module = load(HEAD + NET + text + call("sized(8)").replace("task", "other") + "\n\n" + call("sized(6)"))
    patch = patch_of(module.task, NORM, NORM.treat_task(module.task))
    assert patch.kind == "snippet" or "sized(6)" in patch.text.split("@@")[-1]


def test_nothing_of_the_users_is_changed_or_run_twice(load):
    text = HEAD + "runs = []\nruns.append(1)\n\n\n" + NET + call("functools.partial(Net, 8)")
    module = load(text)
    names, state = dict(vars(module)), torch.get_rng_state()
    for treatment in (NORM, SwapActivation(to="tanh"), Combined((NORM, ScaleLearningRate()))):
        assert patch_of(module.task, treatment, treatment.treat_task(module.task)).kind == "diff"
    assert vars(module) == names
    assert module.runs == [1]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_outside_of_the_working_directory_is_named_by_its_whole_path(load, tmp_path, monkeypatch):
    module = load(HEAD + MAKE + call())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    patch = patch_of(module.task, NORM, NORM.treat_task(module.task))
    whole = Path(module.__file__).resolve().as_posix()
    assert patch.files == (whole,)
    assert patch.text.startswith(f"--- {whole}\n+++ {whole}\n")

"""An activation on the output is taken away, in the patched file, where the source applies it."""

from dataclasses import replace

import pytest
import torch
from patched_sources import HEAD, call, check, loading
from torch import nn

from evengrad.treat import Combined, RemoveOutputActivation, ScaleLearningRate, SwapActivation
from evengrad.trial._patch import in_words, patch_of

load = pytest.fixture(loading)

HEAD = HEAD.replace("inputs[:, :1]", "inputs[:, 0].gt(0).long()")
CLASS = """\
class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out, self.soft = nn.Linear(6, 8), nn.Linear(8, 3), nn.Softmax(dim=-1)

    def hidden(self, x):
        return torch.tanh(self.first(x))

{forward}


"""
# What a forward says, and what it says afterwards.
OUT = "self.out(self.hidden(x))"
FORWARDS = {
    "a function at the return": (f"return nn.functional.softmax({OUT}, dim=-1)  # shares", f"return {OUT}  # shares"),
    "a function of torch": (f"return torch.sigmoid( {OUT} )", f"return {OUT}"),
    "a method": (f"return {OUT}.softmax(-1)", f"return {OUT}"),
    "a module": (f"return self.soft({OUT})", f"return {OUT}"),
    "a name": (f"shares = nn.functional.log_softmax({OUT}, -1)\n        return shares", f"shares = {OUT}"),
    "the same name": (f"x = {OUT}\n        x = nn.functional.relu(x)\n        return x", None),
    "over lines": (f"return torch.softmax(\n            {OUT},\n            dim=1,\n        )", f"return {OUT}"),
    "a sum": (f"return torch.relu({OUT} + 1.0).view(-1, 3)", f"return ({OUT} + 1.0).view(-1, 3)"),
    "two of them": (f"return torch.softmax(torch.relu({OUT}), 1)", f"return {OUT}"),
    "both branches": (
        f"x = {OUT}\n        if self.training:\n            return x.softmax(1)\n        return torch.softmax(x, 1)",
        "return x",
    ),
}


def classes(said):
    text = HEAD + CLASS.format(forward=f"    def forward(self, x):\n        {said}")
    return text + call("Classes").replace("mse_loss", "cross_entropy")


@pytest.mark.parametrize("name", FORWARDS)
def test_the_activation_is_taken_out_of_the_forward_and_the_rest_of_it_stays(load, name):
    said, says = FORWARDS[name]
    patch = check(load, load(classes(said)), RemoveOutputActivation(), modules=False)
    added = [line[1:].strip() for line in patch.text.splitlines() if line.startswith("+")][1:]
    assert set(added) == ({says} if says is not None else set())


BINDINGS = {
    "a tuple": "x, _ = self.out(x), 0",
    "an annotation": "x: torch.Tensor = self.out(x)",
    "an operation in place": "x = self.out(x)\n        x += 1.0",
    "a walrus": "print(end='') if (x := self.out(x)) is None else None",
    "a loop": "for x in [self.out(x)]:\n            pass",
    "a with": "with contextlib.nullcontext(self.out(x)) as x:\n            pass",
}


@pytest.mark.parametrize("name", BINDINGS)
def test_what_a_name_was_before_it_was_bound_anew_is_not_taken_for_the_output(load, name):
    said = (
        "x = torch.sigmoid(self.first(x))\n        x = nn.functional.relu(x)  # stays\n"
        f"        {BINDINGS[name]}\n        return torch.softmax(x, 1)"
    )
    module = load(classes(said).replace("import functools", "import contextlib"))
    patch = check(load, module, RemoveOutputActivation(), modules=False)
    changed = [line for line in patch.text.splitlines()[2:] if line[0] in "+-"]
    assert changed == ["-        return torch.softmax(x, 1)", "+        return x"]


def test_an_activation_inside_that_the_batch_does_not_show_stays(load):
    said = f"return torch.softmax(torch.relu({OUT}.exp()), 1)"
    patch = check(load, load(classes(said)), RemoveOutputActivation(), modules=False)
    assert f"+        return torch.relu({OUT}.exp())\n" in patch.text


@pytest.mark.parametrize(
    "unreached",
    [
        "if heat is not None:\n            return torch.softmax(x / heat, 1)\n        return torch.softmax(x, 1)",
        "return torch.softmax(x, 1) if heat is None else torch.softmax(x / heat, 1)",
    ],
    ids=["a statement", "an expression"],
)
def test_an_activation_that_the_batch_does_not_reach_stays(load, unreached):
    text = classes(f"x = {OUT}\n        {unreached}").replace("def forward(self, x)", "def forward(self, x, heat=None)")
    patch = check(load, load(text), RemoveOutputActivation(), modules=False)
    (added,) = [line for line in patch.text.splitlines()[2:] if line.startswith("+")]
    assert added.count("softmax(x") == unreached.count("if heat is None")
    edited = (text.count("torch.softmax(x / heat, 1)"), patch.text.count("-            return torch.softmax(x / heat"))
    assert edited == (1, 0)


def test_the_decorators_of_a_forward_stay_and_are_not_run_again(load):
    decorator = (
        "seen = []\n\n\ndef noted(function):\n    seen.append(function.__name__)\n\n    @functools.wraps(function)\n"
        "    def inner(*args):\n        return function(*args)\n\n    return inner\n\n\n"
    )
    text = classes(f"return torch.softmax({OUT}, 1)").replace("    def forward", "    @noted\n    def forward")
    module = load(text.replace("class Classes", decorator + "class Classes"))
    patch = check(load, module, RemoveOutputActivation(), modules=False)
    assert "+        return self.out(self.hidden(x))\n" in patch.text
    assert module.seen == ["forward"]


def test_a_class_that_is_reached_through_its_module_is_changed_there(load):
    load(classes(f"return torch.softmax({OUT}, 1)"), "nets")
    text = (
        "import nets\nimport torch\nfrom torch import nn\nfrom evengrad import Task\nfrom nets import train, validate\n"
    )
    module = load(text + call("lambda: nets.Classes()").replace("mse_loss", "cross_entropy"))
    treatment = RemoveOutputActivation()
    patch = patch_of(module.task, treatment, treatment.treat_task(module.task))
    assert (patch.kind, patch.files) == ("diff", ("nets.py",))


def test_the_last_module_of_a_sequence_goes(load):
    make = "def make():\n    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Softmax(dim=1))\n\n\n"
    module = load(HEAD + make + call().replace("mse_loss", "cross_entropy"))
    patch = check(load, module, RemoveOutputActivation(), modules=False)
    assert "+    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))\n" in patch.text


def test_probabilities_are_kept_in_evaluation(load):
    module = load(classes(f"return torch.softmax({OUT}, 1)"))
    patch = check(load, module, RemoveOutputActivation(when="training"), modules=False)
    line = "return self.out(self.hidden(x)) if self.training else torch.softmax(self.out(self.hidden(x)), 1)"
    assert f"+        {line}\n" in patch.text


def test_a_sigmoid_takes_the_place_of_a_softmax_over_one_unit(load):
    text = classes(f"return torch.softmax({OUT}, 1)").replace("nn.Linear(8, 3)", "nn.Linear(8, 1)")
    text = text.replace("cross_entropy", "binary_cross_entropy").replace(".gt(0).long()", ".gt(0).float()[:, None]")
    patch = check(load, load(text), RemoveOutputActivation(), modules=False)
    assert "+        return torch.sigmoid(self.out(self.hidden(x)))\n" in patch.text


def test_it_goes_together_with_other_changes(load):
    module = load(classes(f"return torch.softmax({OUT}, 1)"))
    both = Combined((RemoveOutputActivation(), ScaleLearningRate(factor=0.5)))
    patch = check(load, module, both, modules=False)
    assert "lr=0.05" in patch.text
    assert "+        return self.out(self.hidden(x))\n" in patch.text
    three = Combined((RemoveOutputActivation(), SwapActivation(to="relu")))
    assert "+        return self.out(self.hidden(x))\n" in check(load, module, three, modules=False).text


class Chosen(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 8), nn.ModuleList([nn.Linear(8, 3)])

    def forward(self, x):
        return nn.functional.softmax(self.out[0](torch.tanh(self.first(x))), dim=-1)


def test_without_a_source_it_is_said_in_words_what_to_write_and_nothing_of_a_traced_graph():
    space = {"Chosen": Chosen}
    exec(HEAD + call("Chosen").replace("mse_loss", "cross_entropy"), space)
    task = replace(space["task"], model=Chosen)
    for treatment, line in [
        (
            RemoveOutputActivation(),
            "# in Chosen.forward: self.out[0](...) instead of softmax(self.out[0](...), dim=-1)",
        ),
        (SwapActivation(to="relu"), "# in Chosen.forward: nn.ReLU()(self.first(x)) instead of tanh(self.first(x))"),
    ]:
        treated = treatment.treat_task(task)
        assert in_words(treated.code) == line

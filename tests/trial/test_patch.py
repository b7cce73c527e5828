"""A patch: it applies, and the file that it leads to makes the treated task, whatever the source looks like."""

import subprocess
import sys

import pytest
import torch
from patched_sources import HEAD, MAKE, NET, SGD, STACK, call, check, imported, loading, want_equal

from evengrad.treat import (
    AddNormalization,
    AddResidual,
    ClipGradients,
    Combined,
    ConstrainWeights,
    KeepInFloat32,
    NormalizeInput,
    NormalizeTarget,
    Reinitialize,
    ScaleLearningRate,
    SwapActivation,
    SwapOptimizer,
    UseGatedCell,
    WarmUp,
)
from evengrad.trial._patch import patch_of

load = pytest.fixture(loading)

SOURCES = {
    "a def": MAKE + call(),
    "a def with a name": f"def make():\n    net = {STACK}  # as in the paper\n    return net  # done\n\n\n" + call(),
    "a lambda": call(f"lambda: {STACK}"),
    "a lambda over several lines": call(
        "lambda: nn.Sequential(\n        nn.Linear(6, 8),\n        nn.Sigmoid(),\n        nn.Linear(8, 8),\n"
        "        nn.Sigmoid(),\n        nn.Linear(8, 1),\n    )"
    ),
    "a lambda in a function": "def get():\n    width = 8\n    return "
    + call("lambda: Net(width)").removeprefix("task = ").replace("\n", "\n    ").rstrip()
    + "\n\n\ntask = get()\n",
    "a class": call("Net"),
    "a partial": call("functools.partial(Net, 8)"),
    "a partial of a def": "def make(width):\n    return Net(width)\n\n\n" + call("functools.partial(make, width=8)"),
    "a closure": "def sized(width):\n    def make():\n        return Net(width)\n\n    return make\n\n\n"
    + call("sized(8)"),
    "an activation handed over": "def deep(kind):\n    def make():\n        return nn.Sequential(\n"
    "            nn.Linear(6, 8), kind(), nn.Linear(8, 8), kind(), nn.Linear(8, 1)\n        )\n\n    return make\n\n\n"
    + call("deep(nn.Sigmoid)"),
    "a method": f"class Maker:\n    def make(self):\n        return {STACK}\n\n\nmaker = Maker()\n"
    + call("maker.make"),
    "a decorated def": "def told(function):\n    @functools.wraps(function)\n    def inner():\n"
    "        return function()\n\n    return inner\n\n\n@told\n" + MAKE + call(),
    "several returns": "def make(small=False):\n    if small:\n        return nn.Linear(6, 1)\n"
    f"    return {STACK}\n\n\n" + call(),
    "a return on the line of an if": f"def make(big=True):\n    if big: return {STACK}\n    return None\n\n\n" + call(),
    "a def on one line": f"def make(): return {STACK}\n\n\n" + call(),
    "a helper whose arguments are called as in the snippets": "def put_together(model, optimizer):\n    return "
    + call("model", "optimizer").removeprefix("task = ").replace("\n", "\n    ").rstrip()
    + f"\n\n\ntask = put_together(functools.partial(Net, 8), {SGD})\n",
    "a factory called model": "model = functools.partial(Net, 8)\n" + call("model"),
    "a lambda that reads a class called model": "model = Net\n" + call("lambda: model(8)"),
    "names of the module that the snippets assign": "name, old, layer, block = 8, 8, 8, 8\n\n\ndef make():\n"
    "    net = Net(name)\n    net.sizes = [old, layer, block]\n    return net\n\n\n" + call(),
    "a module called model": "import types\n\nmodel = types.SimpleNamespace(Net=Net)\n\n\ndef make():\n"
    "    return model.Net()\n\n\n" + call(),
    "a hook that reads a name of the factory": "def make():\n    name, net = 'first', Net()\n"
    "    net.first.register_forward_hook(lambda layer, args, output: output + len(name))\n    return net\n\n\n"
    + call(),
    "a def below a with": f"def make():\n    with torch.no_grad():\n        return {STACK}\n\n\n" + call(),
}
TREATMENTS = {
    "swap": SwapActivation(to="tanh"),
    "residual": AddResidual(),
    "lsuv": Reinitialize(data_driven=True),
    "clip": ClipGradients(max_norm=0.5),
    "rate": ScaleLearningRate(factor=0.1),
    "optimizer": SwapOptimizer(to="adamw"),
    "swap and weights": Combined((SwapActivation(to="relu"), Reinitialize())),
    "norm, rate and clip": Combined((AddNormalization(kind="layer"), ScaleLearningRate(factor=0.5), ClipGradients())),
}


@pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_patched_file_makes_the_treated_task(load, source, treatment):
    module = load(HEAD + NET + source)
    assert check(load, module, treatment).files == ("training.py",)


def test_a_diff_of_words_changes_the_words_and_nothing_else(load):
    module = load(HEAD + MAKE + call())
    for treatment, before, after in [
        (SwapActivation(to="gelu"), "nn.Sigmoid()", "nn.GELU()"),
        (ScaleLearningRate(factor=0.1), "lr=0.1", "lr=0.01"),
        (SwapOptimizer(to="adam", lr=0.02), "SGD(model.parameters(), lr=0.1)", "Adam(model.parameters(), lr=0.02)"),
    ]:
        patch = check(load, module, treatment)
        removed = [line[1:] for line in patch.text.splitlines() if line.startswith("-")][1:]
        added = [line[1:] for line in patch.text.splitlines() if line.startswith("+")][1:]
        assert [line.replace(before, after) for line in removed] == added


def test_activations_in_the_model_class_are_swapped_there(load):
    patch = check(load, load(HEAD + NET + call("Net")), SwapActivation(to="tanh"))
    assert "+        self.act = nn.Tanh()\n" in patch.text
    assert "set_submodule" not in patch.text


def test_an_activation_that_is_handed_over_is_changed_where_it_is_handed_over(load):
    patch = check(load, load(HEAD + NET + SOURCES["an activation handed over"]), SwapActivation(to="tanh"))
    assert "+    model=deep(nn.Tanh),\n" in patch.text


def test_an_activation_that_stays_elsewhere_is_not_swapped_by_words(load):
    make = MAKE.replace("nn.Linear(8, 1)", "nn.Linear(8, 1), nn.Sigmoid()")
    patch = check(load, load(HEAD + make + call()), SwapActivation(to="tanh"))
    assert "set_submodule" in patch.text


def test_what_a_snippet_needs_is_imported_where_the_module_lacks_it(load):
    load(HEAD + NET, "nets")
    text = (
        '"""Only the call."""\nimport nets\nfrom evengrad import Task\nfrom torch.nn.functional import mse_loss\n'
        "from torch.optim import SGD\n\n\ndef make():\n    return nets.Net()\n\n\n"
        "task = Task(model=make, optimizer=lambda m: SGD(m.parameters(), 0.1), loss=mse_loss, train=nets.train,"
        " validate=nets.validate, steps=2)\n"
    )
    module = load(text)
    patch = check(load, module, AddResidual())
    assert "+import torch\n" not in patch.text
    assert "+from torch import nn\n" in patch.text
    assert patch.files == ("training.py",)
    patch = check(load, module, SwapOptimizer(to="adam"))
    assert "+import torch\n" in patch.text


def test_a_model_and_a_task_in_two_files_are_both_changed(load):
    load(HEAD + NET + MAKE, "nets")
    text = (
        "import torch\nfrom torch import nn\nfrom evengrad import Task\nfrom nets import make, train, validate\n\n\n"
        + call()
    )
    module = load(text)
    treatment = Combined((AddNormalization(kind="layer"), ScaleLearningRate(factor=0.5)))
    treated = treatment.treat_task(module.task)
    patch = patch_of(module.task, treatment, treated)
    assert patch.kind == "diff", patch.why
    assert sorted(patch.files) == ["nets.py", "training.py"]
    subprocess.run(["git", "apply", "-p1", "-"], input=patch.text.encode(), check=True, capture_output=True)
    for name in ("nets", "training"):
        del sys.modules[name]
    want_equal(imported("training.py", "training").task, treated.subject)


@pytest.mark.parametrize("name", ["swap", "residual", "norm, rate and clip"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("    ", "\t").encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace('"""A training."""', '"""Übung \u2028 \x0c 訓練 🙂."""').encode(),
        lambda text: text.replace(HEAD.splitlines()[0], "# -*- coding: utf-8 -*-\n# Licence: none").encode(),
        lambda text: text.rstrip().encode(),
    ],
    ids=["tabs", "carriage returns", "a byte-order mark", "not ASCII", "comments first", "no newline at the end"],
)
def test_a_source_keeps_its_tabs_line_ends_and_letters(load, change, name):
    module = load(change(HEAD + MAKE + call()))
    patch = check(load, module, TREATMENTS[name], programs=True)
    changed = [line for line in patch.text.split("\n")[2:] if line.startswith("+")]
    if b"\r" in change(HEAD):
        assert all(line.endswith("\r") for line in changed)
    if b"\t" in change(HEAD):
        assert not any(line.startswith("+ ") for line in changed)


def test_numbers_of_the_training_go_into_the_call(load):
    text = call().replace("    steps=3,\n", "    steps=3,\n    clip=2.0,  # found by trying\n")
    patch = check(load, load(HEAD + MAKE + text), ClipGradients(max_norm=0.25))
    assert "+    clip=0.25,  # found by trying\n" in patch.text


def test_two_lambdas_on_one_line_are_told_apart(load):
    text = (
        f"task = Task(model=lambda: {STACK}, optimizer={SGD}, loss=lambda a, b: ((lambda c: c)(a) - b).abs().mean(), "
        "train=train, validate=lambda model: 0.0, steps=2)\n"
    )
    for treatment in TREATMENTS.values():
        assert check(load, load(HEAD + text), treatment).why == ""


def test_of_two_calls_of_task_the_one_that_made_the_task_is_changed(load):
    other = call("Net").replace("task = ", "other = ").replace("steps=3", "steps=4")
    module = load(HEAD + NET + other + "\n\n" + call("Net"))
    patch = check(load, module, AddNormalization(kind="layer"))
    assert patch.text.count("@@ -") == 1


READER = """\
class Reader(nn.Module):
    def __init__(self, kind, width):
        super().__init__()
        self.rnn, self.head = kind(6, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(1))[0][:, -1])


def put_together(model, steps):
    optimizer = lambda model: torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(
        model=model, optimizer=optimizer, loss=nn.functional.mse_loss, train=train, validate=validate, steps=steps
    )


task = put_together(functools.partial(Reader, nn.RNN, 8), 3)
"""


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_gated_cell_is_put_into_a_task_that_a_helper_made_of_a_partial(load, kind):
    patch = check(load, load(HEAD + READER), UseGatedCell(kind=kind), modules=False)
    assert "+    untreated_model = model\n" in patch.text
    assert "+        model = untreated_model()\n" in patch.text


def test_a_factory_whose_names_the_snippet_would_hide_hands_its_model_on_to_a_function(load):
    names = ("names of the module that the snippets assign", "a hook that reads a name of the factory")
    for name, value in [(names[0], "net"), (names[1], "net"), ("a module called model", "model.Net()")]:
        patch = check(load, load(HEAD + NET + SOURCES[name]), AddNormalization(kind="layer"))
        assert f"+    return treated_model({value})\n" in patch.text


FUNCTIONS = """\
class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        x = torch.sigmoid(self.first(x))
        x = nn.functional.leaky_relu(self.inner(x), 0.2) + self.inner(x).sigmoid()
        return self.last(x)


"""


@pytest.mark.parametrize("to", ["tanh", "gelu"])
def test_functions_that_a_forward_calls_are_changed_there(load, to):
    module = load(HEAD + FUNCTIONS + call("Called"))
    patch = check(load, module, SwapActivation(to=to), modules=False)
    first, other = ("torch.tanh(", ").tanh()") if to == "tanh" else ("nn.functional.gelu(", "gelu(self.inner(x))\n")
    assert f"+        x = {first}self.first(x))\n" in patch.text
    assert f"+        x = nn.functional.{to}(self.inner(x)) + " in patch.text
    assert other in patch.text
    assert "set_submodule" not in patch.text


def test_a_warm_up_becomes_the_schedule_of_the_task(load):
    module = load(HEAD + MAKE + call().replace("steps=3", "steps=40"))
    patch = check(load, module, WarmUp(steps=4))
    assert "+    schedule=treated_schedule,\n" in patch.text


def test_a_warm_up_goes_before_a_schedule_that_is_there(load):
    schedule = "    schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5),\n    steps=40"
    module = load(HEAD + MAKE + call().replace("    steps=3", schedule))
    patch = check(load, module, WarmUp(steps=4))
    assert "+    schedule=treated_schedule,\n" in patch.text


def test_weights_are_held_after_each_step(load):
    module = load(HEAD + MAKE + call())
    patch = check(load, module, ConstrainWeights(max_norm=0.5))
    assert "+    after_step=treated_after_step,\n" in patch.text


def test_a_class_that_needs_the_model_stays_in_the_factory(load):
    text = HEAD.replace("torch.linspace(-1, 1, 48)", "torch.linspace(100, 900, 48)")
    patch = check(load, load(text + MAKE + call()), NormalizeInput(), modules=False)
    assert "+    class Standardized" in patch.text


FAR = HEAD.replace("[(inputs, inputs[:, :1])", "[(inputs, 300.0 + 100.0 * inputs[:, :1])")
LOSSES = {
    "a function of torch": "nn.functional.mse_loss",
    "a module": "nn.MSELoss()",
    "a lambda": "lambda a, b: ((a - b) ** 2).mean()",
    "a lambda over lines": "lambda output, target: nn.functional.l1_loss(\n        output,  # raw\n        target)",
    "a lambda with a default": "lambda a, b, power=2: ((a - b).abs() ** power).mean()",
    "a function of one's own": "squares",
    "a name that is hidden": "output",
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("source", ["a def", "a partial", "a closure"])
def test_a_target_is_normalised_in_model_and_loss(load, source, loss):
    own = "def squares(one, other):\n    return (one - other).square().mean()\n\n\noutput = squares\n\n\n"
    module = load(FAR + NET + own + SOURCES[source].replace("loss=nn.functional.mse_loss", f"loss={loss}"))
    patch = check(load, module, NormalizeTarget(), modules=False)
    assert patch.text.count("+def normalized(values):") == 1
    same_losses(sys.modules["training_patched"].task, NormalizeTarget().treat_task(module.task).subject)


def test_columns_of_a_target_have_their_own_numbers_in_the_loss(load):
    text = FAR.replace("inputs[:, :1])", "inputs[:, :2])") + "def make():\n    return nn.Linear(6, 2)\n\n\n" + call()
    module = load(text)
    check(load, module, NormalizeTarget(), modules=False)
    same_losses(sys.modules["training_patched"].task, NormalizeTarget().treat_task(module.task).subject)


@pytest.mark.parametrize("parts", ["unsafe", "all"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_what_is_kept_in_float32_is_kept_there_by_the_patched_file(load, loss, parts):
    own = "def squares(one, other):\n    return (one - other).square().mean()\n\n\noutput = squares\n\n\n"
    text = own + SOURCES["a def"].replace("loss=nn.functional.mse_loss", f"loss={loss}")
    module = load(HEAD + text.replace("    steps=3,\n", "    steps=3,\n    autocast='bfloat16',\n"))
    check(load, module, KeepInFloat32(parts=parts), modules=False)
    came, wanted = sys.modules["training_patched"].task, KeepInFloat32(parts=parts).treat_task(module.task).subject
    assert came.autocast == wanted.autocast == (None if parts == "all" else "bfloat16")
    same_losses(came, wanted)


def same_losses(came, wanted):
    """Train both from one seed, and want the same losses and weights."""
    ends = []
    for task in (came, wanted):
        torch.manual_seed(0)
        model = task.model()
        optimizer, losses = task.optimizer(model), []
        for inputs, target in task.train():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=task.autocast is not None):
                loss = task.loss(model(inputs), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        ends.append((losses, list(model.parameters())))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)

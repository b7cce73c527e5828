"""Take away an activation from the output of a model."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._activation_calls import Call, calls_as_modules_, calls_code, give_back_, with_rewriting
from evengrad.treat._forward_order import run
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import built, first_pair, task_with_treated_model
from evengrad.treat._output_activation import OutputActivation, output_activations
from evengrad.treat._random_state import random_state_kept
from evengrad.treat._surgery import alias_code, replace_everywhere_
from evengrad.treat._wanted_output import wanted_by

To = Literal["identity", "sigmoid"]
When = Literal["always", "training"]

ONLY_IN_EVALUATION_CODE = """\
class OnlyInEvaluation(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return x if self.training else self.activation(x)


"""


@final
class OnlyInEvaluation(nn.Module):
    """Apply an activation in evaluation mode, and none in training mode.

    Example:
        >>> OnlyInEvaluation(nn.Sigmoid())(torch.zeros(1)), OnlyInEvaluation(nn.Sigmoid()).eval()(torch.zeros(1))
        (tensor([0.]), tensor([0.5000]))
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Hand the input on, or apply the activation."""
        result: Tensor = x if self.training else self.activation(x)
        return result


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveOutputActivation(AbstractTreatment):
    """Take the activations behind the last layer of a copy away: the loss is then on what the layer gives.

    A softmax in front of a cross entropy, or a sigmoid in front of a binary cross entropy with logits, is applied twice
    and flattens the gradient; a relu or tanh on logits or on a regression output cuts values off; a softmax over one
    unit is constant, and all gradients are exactly zero. The activation may be a module or, with `batch_input`, a
    function that `forward` calls. Of a tuple or mapping the first tensor counts. softplus stays: it makes an output
    positive, which somebody wanted.

    `treat_task` looks at what the loss takes on the first batch. Where only probabilities will do (it raises or is not
    finite on other numbers, or is constant there), a softmax over one unit, a relu or a tanh becomes a sigmoid
    instead. It refuses where the activation belongs: a sigmoid or softmax whose loss takes probabilities, a
    log-softmax or other bound without which the loss would fall for ever, a relu whose loss takes positive numbers.

    By default the output changes in both modes, so that the loss is the same function in training and in evaluation:
    the largest of the logits is the largest of the probabilities, but what compares an output with the
    probability 0.5 has to compare a logit with 0. `when='training'` keeps the probabilities in evaluation mode for code
    that wants them; a loss that is computed in evaluation mode is then the wrong one it was before.

    Args:
        to: `identity`, or `sigmoid` in the place of the last activation.
        when: `always`, or `training`: the last activation stays in evaluation mode.

    Raises:
        SettingError: A setting is unknown, or a sigmoid is wanted in training only.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(dim=1))
        >>> treated = RemoveOutputActivation().treat(model)
        >>> treated.changes
        ('3: softmax removed from the output, which is logits now, in evaluation too: probabilities are their softmax',)
        >>> print(treated.code)
        for name in ['3']:
            model.set_submodule(name, nn.Identity())
    """

    to: To = "identity"
    when: When = "always"

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "an activation on the output"

    def __post_init__(self) -> None:
        for key, choices in (("to", get_args(To)), ("when", get_args(When))):
            if getattr(self, key) not in choices:
                raise SettingError(key, came=repr(getattr(self, key)), wanted=f"one of {', '.join(choices)}")
        if self.to == "sigmoid" and self.when == "training":
            raise SettingError("when", came="'training' with to='sigmoid'", wanted="'always'")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Take the output's activations from a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model without them, or with a sigmoid: `AbstractTreatment.treat_task`."""
        chosen = self if self.to == "sigmoid" else self._fitting(task, seed)
        return task_with_treated_model(chosen, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Take the output's activations away, in place."""
        calls, untraced = ((), ()) if batch_input is None else calls_as_modules_(model, batch_input)
        found = output_activations(model, batch_input)
        names = {each.name for each in found}
        give_back_(model, [call for call in calls if call.name not in names])
        if not found or (self.to == "sigmoid" and [each.kind for each in found] == ["sigmoid"]):
            advice = "; ".join(untraced[:2]) if batch_input is not None else "give batch_input if it has one"
            raise nothing_found(self, "an activation on the output", advice)
        if any(each.elsewhere for each in found):
            raise nothing_found(self, "an activation on the output that is used nowhere else")
        by_name = {call.name: call for call in calls}
        parts = [self._replace_(model, each, by_name.get(each.name), last=not at) for at, each in enumerate(found)]
        code = "\n".join(dict.fromkeys(part.code for part in parts))
        code = ONLY_IN_EVALUATION_CODE + code if self.when == "training" else code
        changes = tuple(sentence for part in parts for sentence in part.changes)
        return Change(changes=changes, code=with_rewriting(code) if names & set(by_name) else code)

    def _replace_(self, model: nn.Module, each: OutputActivation, call: Call | None, *, last: bool) -> Change:
        new, expression = self._new(model.get_submodule(each.name), each, last, called=call is not None)
        aliases = replace_everywhere_(model, each.name, new)
        where = shortened(aliases) if call is None else f"{call.node} in {call.kind}.forward"
        changes = (f"{where}: {each.kind} {self._words(each, last)}",)
        if call is not None:
            return Change(changes=changes, code=calls_code((call,), expression))
        code = f"for name in {[each.name]!r}:\n    model.set_submodule(name, {expression})"
        return Change(changes=changes, code=code + alias_code({each.name: aliases}))

    def _new(self, old: nn.Module, each: OutputActivation, last: bool, *, called: bool) -> tuple[nn.Module, str]:
        if last and self.to == "sigmoid":
            return nn.Sigmoid(), "nn.Sigmoid()"
        if last and self.when == "training":
            kept = nn.Sigmoid() if each.one_unit else old
            mode = "block.training" if called else "model.get_submodule(name).training"
            inside = f"nn.{kept!r}" if called or each.one_unit else "model.get_submodule(name)"
            return OnlyInEvaluation(kept), f"OnlyInEvaluation({inside}).train({mode})"
        return nn.Identity(), "nn.Identity()"

    def _words(self, each: OutputActivation, last: bool) -> str:
        if last and self.to == "sigmoid":
            return "replaced by a sigmoid"
        if last and self.when == "training":
            return "left out in training mode" + (", a sigmoid in evaluation mode" if each.one_unit else "")
        if last and each.kind in {"softmax", "log_softmax", "sigmoid"} and not each.one_unit:
            meaning = "sigmoid" if each.kind == "sigmoid" else "softmax"
            return f"removed from the output, which is logits now, in evaluation too: probabilities are their {meaning}"
        return "removed from the output"

    def _fitting(self, task: Task, seed: int) -> "RemoveOutputActivation":
        """Look at what the loss takes, and choose.

        Raises:
            TreatmentError: The activation belongs where it is.
        """
        with random_state_kept():
            batch = None if getattr(task, "backward", None) is not None else first_pair(task.train)
        if batch is None:
            return self
        with random_state_kept(), torch.no_grad():
            torch.manual_seed(seed)
            model = built(task)
            output = run(model.eval(), batch[0])
            calls_as_modules_(model, batch[0])
            found = output_activations(model, batch[0])
        if not found or not isinstance(output, Tensor) or not output.is_floating_point():
            return self
        wanted = wanted_by(task.loss, output, batch[1])
        if wanted == "anything":
            return self
        replaceable = found[0].one_unit or (wanted == "probability" and found[0].kind not in _PROBABILITIES)
        if wanted != "bounded" and replaceable:
            return replace(self, to="sigmoid", when="always")
        raise TreatmentError(
            self.label,
            came=f"a {found[0].kind} on the output and a loss that takes {_TAKEN[wanted]}",
            wanted="a loss that takes any number: the activation belongs there",
        )


_PROBABILITIES = frozenset({"sigmoid", "softmax", "hardsigmoid"})
_TAKEN = {
    "probability": "probabilities",
    "positive": "positive numbers",
    "bounded": "bounded numbers and falls for ever without",
}

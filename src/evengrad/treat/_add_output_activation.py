"""Put the activation that the loss asks for behind the output of a model."""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._forward_order import is_sequence, run
from evengrad.treat._on_a_copy import treated_copy
from evengrad.treat._on_a_task import built, first_pair, task_with_treated_model
from evengrad.treat._output_activation import output_activations
from evengrad.treat._random_state import random_state_kept
from evengrad.treat._subclassed import derive_
from evengrad.treat._wanted_activation import activation_wanted_by

To = Literal["auto", "softmax", "sigmoid", "log_softmax", "softplus"]

OVER_CLASSES = frozenset({"softmax", "log_softmax"})
# Names of torch's graph: what changes a shape only, what is a layer, and what is an activation.
_SHAPES = frozenset({
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "Permute", "T", "Select", "Slice",
    "Expand", "Clone", "Alias", "ToCopy", "Unflatten",
})  # fmt: skip
_LAYERS = frozenset({"Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Mv", "Convolution", "NativeLayerNorm"})
_ACTIVATIONS = frozenset({
    "Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid", "LogSigmoidForward", "Softplus", "Relu", "LeakyRelu", "Elu",
    "Gelu", "Silu", "Mish", "Tanh", "Hardsigmoid", "Hardtanh", "Hardswish", "Clamp", "ClampMin", "ClampMax", "Exp",
    "Threshold",
})  # fmt: skip


class Activated(nn.Module):
    """Apply an activation to the output, after the forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own forward and apply the activation."""
        return self.__dict__["output_activation"](super().forward(*args, **kwargs))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AddOutputActivation(AbstractTreatment):
    """Put an activation behind the output of a copy, for a loss that does not take any number.

    A cross entropy of probabilities that gets the plain numbers of the last layer takes the logarithm of negative
    numbers, or, where it holds them between two bounds, has no slope beyond the bounds. The same goes for a likelihood
    of rates, and nll_loss without logarithms of probabilities falls for ever. The shape of the output stays. An
    `nn.Sequential` gets one more entry; the class of any other model is derived from its own.

    `treat_task` tries the loss on random numbers in and out of range, with the target of the first batch:
    probabilities become a softmax over the classes where the target names one class each (integers, or rows whose sum
    is 1) and a sigmoid elsewhere, log-probabilities a log-softmax, positive numbers a softplus. It refuses where the
    loss takes any number, and where the output has an activation or is in range.

    A softmax before a loss on logits is applied twice, which `RemoveOutputActivation` undoes.

    Args:
        to: The activation; `auto` asks the loss, and needs a task.
        dim: The dimension of the classes. By itself it is what the target says, with `auto`; else the second one of an
            output of two, four or five dimensions, and the last one of any other or where there is no batch.

    Raises:
        SettingError: A setting is unknown, or `dim` is given for an activation of single numbers.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> treated = AddOutputActivation(to="softmax").treat(model)
        >>> treated.changes
        ('the output goes through a softmax over dimension -1',)
        >>> print(treated.code)
        model.append(nn.Softmax(dim=-1))
    """

    to: To = "auto"
    dim: int | None = None

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "an output that the loss cannot take"

    def __post_init__(self) -> None:
        if self.to not in get_args(To):
            raise SettingError("to", came=repr(self.to), wanted=f"one of {', '.join(get_args(To))}")
        if self.dim is not None and (type(self.dim) is not int or self.to not in OVER_CLASSES):
            raise SettingError("dim", came=f"{self.dim!r} with to={self.to!r}", wanted="a dimension for a softmax")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Put the activation behind the output of a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with the activation: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self._asked(task, seed) if self.to == "auto" else self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Put the activation behind the output, in place."""
        if self.to == "auto":
            raise self._refused("a model and no loss", "to=, or a task", "the loss says which activation it wants")
        if found := output_activations(model, batch_input):
            raise self._refused(f"a {found[0].kind} on the output", "an output without an activation")
        if batch_input is not None:
            output, op = self._output(model, batch_input)
            if op in _ACTIVATIONS:
                raise self._refused(f"an output that {op.lower()} makes", "an output without an activation")
            self._want_classes(output)
        dim = self._dim(None if batch_input is None else output.dim())
        words = f"the output goes through a {self.to}" + ("" if dim is None else f" over dimension {dim}")
        return Change(changes=(words,), code=self._put_(model, dim))

    def _put_(self, model: nn.Module, dim: int | None) -> str:
        new: nn.Module = {
            "softmax": nn.Softmax(dim=dim), "log_softmax": nn.LogSoftmax(dim=dim), "sigmoid": nn.Sigmoid(),
            "softplus": nn.Softplus(),
        }[self.to]  # fmt: skip
        new.train(model.training)
        given = "" if dim is None else f"dim={dim}"
        if isinstance(model, nn.Sequential) and is_sequence(model) and str(len(model)) not in model._modules:
            model.append(new)
            return f"model.append(nn.{type(new).__name__}({given}))"
        if "output_activation" in dir(model):
            raise self._refused("a model that has an attribute 'output_activation'", "none")
        kind = f"Activated{type(model).__name__}"
        derive_(model, Activated, self.label)
        model.__dict__["output_activation"] = new  # no child: some forwards run over all their children
        function = "nn.functional.softplus" if self.to == "softplus" else f"torch.{self.to}"
        return (
            f"class {kind}(type(model)):\n"
            "    def forward(self, *args, **kwargs):\n"
            f"        return {function}(super().forward(*args, **kwargs){', ' if given else ''}{given})\n"
            "\n\n"
            f"model.__class__ = {kind}"
        )

    def _asked(self, task: Task, seed: int) -> "AddOutputActivation":
        """Ask the loss which activation it wants.

        Raises:
            TreatmentError: None, or the output has it already.
        """
        with random_state_kept():
            batch = None if getattr(task, "backward", None) is not None else first_pair(task.train)
        if batch is None or not isinstance(batch[1], Tensor):
            raise self._refused("a task whose batches are no pairs of input and target tensor", "to=")
        with random_state_kept():
            torch.manual_seed(seed)
            output, op = self._output(built(task), batch[0])
        wanted = activation_wanted_by(task.loss, output, batch[1])
        if wanted is None:
            raise self._refused("a loss that takes the output as it is, or nothing that is known", "one of a range")
        if op not in _LAYERS and _in_range(output, wanted.to, wanted.dim):
            raise self._refused("an output that is in the range of the loss", "one that is not")
        return replace(self, to=wanted.to, dim=wanted.dim)

    def _output(self, model: nn.Module, batch_input: Any) -> tuple[Tensor, str]:
        """Run a copy in evaluation mode; return the output and the operation that made it, changes of shape aside."""
        scratch = copy.deepcopy(model).eval()
        for parameter in scratch.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with random_state_kept(), torch.enable_grad():
            output = run(scratch, batch_input)
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.is_nested:
            raise self._refused(f"an output of {type(output).__name__}", "one tensor of floating-point numbers")
        node, op = output.grad_fn, ""
        while node is not None and (op := node.name().split("Backward")[0]) in _SHAPES:
            node = node.next_functions[0][0] if node.next_functions else None
        return output.detach(), op

    def _want_classes(self, output: Tensor) -> None:
        dim = self._dim(output.dim())
        if dim is None:
            return
        if not -output.dim() <= dim < output.dim() or output.shape[dim] < 2:
            raise self._refused(f"an output of shape {tuple(output.shape)}", f"several classes in dimension {dim}")

    def _dim(self, dims: int | None) -> int | None:
        if self.to not in OVER_CLASSES:
            return None
        return self.dim if self.dim is not None else 1 if dims in {2, 4, 5} else -1

    def _refused(self, came: str, wanted: str, advice: str = "") -> TreatmentError:
        return TreatmentError(self.label, came=came, wanted=wanted, advice=advice)


def _in_range(output: Tensor, to: str, dim: int | None) -> bool:
    """Tell whether an output is what the activation gives, whatever made it."""
    values = output.double()
    if to == "softplus":
        return bool((values >= 0).all())
    if to == "log_softmax":
        values = values.exp()
    inside = bool(((values >= 0) & (values <= 1)).all())
    if dim is None or not inside:
        return inside
    total = values.sum(dim)
    return torch.allclose(total, torch.ones_like(total), atol=1e-2)

"""Look at one batch: layers, findings, and which change removes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.checkup._counterfactual import Patient, Progress, with_causes
from evengrad.checkup._table import table
from evengrad.diagnose import findings_of, rules, symptoms_of
from evengrad.nouns import Finding, OptimizerError, Reading, Record
from evengrad.probe import named_parameters, probe

# Rules that can judge nearly every network from one batch: where one of them cannot, that leaves something open.
JUDGES_NEARLY_ALL = frozenset({"EG101", "EG102", "EG103", "EG104", "EG201", "EG202", "EG301", "EG302"})


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Checkup:
    """What one batch showed; `print(checkup)` is the table of layers and the findings.

    Args:
        findings: The most severe first; empty for a healthy model.
        record: The record that they were judged on, with one reading.
    """

    findings: tuple[Finding, ...]
    record: Record

    @property
    def reading(self) -> Reading:
        """The one reading of the record."""
        return self.record.readings[0]

    def __str__(self) -> str:
        loss = self.reading.loss
        head = f"loss {loss:.4g}, gradient norm {self.reading.total_norm:.3g}" if loss is not None else ""
        said = "\n\n".join(str(finding) for finding in self.findings) or "no findings"
        return "\n\n".join([table(self.reading), head, said, *self.notes])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the findings leave open: a gradient that is exactly zero, and rules that could not judge this batch."""
        judged = symptoms_of(self.reading, self.record)
        layers = self.reading.layers
        absent = {
            "EG103": not any(layer.time_grad_rms for layer in layers),
            "EG104": not any(layer.time_grad_rms for layer in layers),
            "EG301": not any(layer.nonlinearity == "relu" for layer in layers),
            "EG302": not any(layer.saturated_frac is not None for layer in layers),
        }  # a rule about units that the model does not have leaves nothing open
        open_ = [
            f"{rule.symptom} ({rule.code})"
            for rule in rules.ALL
            if rule.code in JUDGES_NEARLY_ALL and rule.code not in judged and not absent.get(rule.code, False)
        ]
        notes = ["note: the gradient is exactly zero: nothing can be learnt from this batch"]
        notes = notes if self.reading.total_norm == 0.0 else []
        return (*notes, *([f"not judged on this batch: {', '.join(open_)}"] if open_ else []))


def checkup(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: Any,
    optimizer: Optimizer | None = None,
    *,
    counterfactuals: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Checkup:
    """Examine a model on one batch and leave it as found, to the bit.

    One forward and one backward are watched layer by layer; every rule judges them. For each finding, candidate
    treatments are applied to copies of the model and the batch is measured again: the finding then carries them ranked
    by relief, and the smallest one that removes the symptom names the cause.

    Args:
        model: Any module with parameters, on any device, in the mode it should be examined in.
        loss: `loss(model(input), target)`, a scalar.
        batch: (input, target).
        optimizer: If given, it is checked to hold parameters of this model; its learning rates go into the reading,
            its settings and what it leaves out into the set-up.
        counterfactuals: Whether to try treatments on copies; without it a checkup is one forward and backward.
        seed: Where the random numbers of the treatments come from.
        progress: Called before each treatment that is tried.

    Raises:
        ModelError: The model has no parameters, or its forward raised.
        OptimizerError: The optimizer holds no parameter of the model.
        BatchError: The batch is not a pair, is empty or not finite, or its labels are out of range.
        LossError: The loss is not a scalar tensor, has no graph, or raised.

    Cost: about two training steps, and as many again for each treatment tried. Where the loss's graph has an autograd
        function of the user's own, a copy of the model in float64 and some forwards more, to check its backward.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layers = [layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
        >>> _ = torch.manual_seed(0)
        >>> batch = torch.randn(32, 8), torch.randn(32, 8)
        >>> model = nn.Sequential(*layers, nn.Linear(8, 8))
        >>> [finding.code for finding in checkup(model, nn.functional.mse_loss, batch).findings]
        ['EG402', 'EG101']
    """
    optimizers = () if optimizer is None else (optimizer,)
    record = probe(model, loss, batch, check_backward=True, optimizers=optimizers)
    record = replace(record, source=type(model).__name__)
    if optimizer is not None:
        reading = replace(record.readings[0], lrs=_learning_rates(model, optimizer))
        record = replace(record, readings=(reading,))
    findings = findings_of(record)
    if counterfactuals and findings:
        patient = Patient(model=model, loss=loss, batch=batch, record=record, seed=seed)
        findings = with_causes(findings, patient, progress=progress)
    return Checkup(findings=findings, record=record)


def _learning_rates(model: nn.Module, optimizer: Optimizer) -> tuple[float, ...]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise OptimizerError(
            type(optimizer).__name__,
            came=f"{len(held)} parameters, none of them of this {type(model).__name__}",
            wanted=f"the model's parameters, such as {next(iter(named_parameters(model)))}",
            advice="make the optimizer from model.parameters(), after the model is built and moved",
        )
    return tuple(float(group["lr"]) for group in optimizer.param_groups if "lr" in group)

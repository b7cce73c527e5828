"""Give the path through the layers shortcuts."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import torch
from torch import nn

from evengrad.nouns import SettingError, Task
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._norms import norms_for
from evengrad.treat._on_a_copy import not_run, nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._residual_blocks import Block, Layers, alone, in_sequences, recurrent
from evengrad.treat._residual_calls import in_forwards_
from evengrad.treat._residual_surgery import Style, put_in_

Norm = Literal["none", "auto", "layer", "batch", "group", "rms"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AddResidual(AbstractTreatment):
    """Put shortcuts around the layers of a copy that are inside the network.

    A layer with the norm, activation and dropout behind it becomes one block `x + block(x)`, in the place of the layer;
    `nn.Identity` stands where the others were, so that the names of what follows stay. So it is in an `nn.Sequential`
    and, with `batch_input`, in every forward that torch.fx can trace, where activations may be functions or one module
    that is called again and again. In other forwards a layer is wrapped alone. A recurrent layer whose output is as
    wide as its input becomes `x + output`, and its state goes on as it is. No block reaches over a pooling or a
    flattening.

    The last weighted layer, the layers of an attention, those that have a shortcut already and those inside torch's
    attention and transformer layers are left as they are. The weights stay, under longer names in the state.
    Without `batch_input` the copy is not run: a forward of one's own that reads `layer.weight` then breaks unnoticed,
    and `changes` names the layers for which that may be.

    Blocks add up: without a norm in them the output of n blocks after He's initialisation has about 2^(n/2) times the
    scale of the input. `norm` or `zero_init` hold it, or `AddNormalization` put first.

    Args:
        norm: A norm of this kind (`AddNormalization`) goes before the layer of each block that holds none, and one
            behind the last of these blocks, as in pre-norm transformers: `x + act(linear(norm(x)))`. A block that takes
            what the model was given gets none: a norm over few features would take away what they say.
        zero_init: Each block is multiplied by a number that starts at zero and is learned (ReZero), so that the network
            starts as its shortcuts. The weights stay: were the last ones zero, a ReLU behind them would pass no
            gradient.
        project: Layers that change the width or, for convolutions, the step get a shortcut too: a dense layer or a
            1x1 convolution without bias (option B of He et al.), orthogonal, with the gain sqrt(out / in) where it
            widens, which keeps the scale. Not the first layer.

    Measured by `python benchmarks/treatments.py`: accuracy of 20 dense relu layers of 64 units, with the weights that
    torch draws, on scikit-learn's digits after 200 steps of 32 samples with Adam (lr 1e-3) and SGD (0.05, momentum .9):

    ==============  =====  =====
    blocks          Adam   SGD
    ==============  =====  =====
    none            .103   .103
    plain sum       .932   .086
    `norm='layer'`  .947   .975
    `norm='batch'`  .965   .957
    `zero_init`     .952   .972
    ==============  =====  =====

    Raises:
        SettingError: The norm is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> treated = AddResidual().treat(model)
        >>> treated.changes
        ('2 to 3: a shortcut around them',)
        >>> treated.subject[2], treated.subject[3]
        (Residual(
          (block): Sequential(
            (0): Linear(in_features=4, out_features=4, bias=True)
            (1): ReLU()
          )
        ), Identity())

    Source:
        He et al. 2016, arXiv 1512.03385 (option B), and arXiv 1603.05027 (norm first); Bachlechner et al. 2020, arXiv
        2003.04887 (ReZero); Xiong et al. 2020, arXiv 2002.04745 (the norm behind the last block).
    """

    norm: Norm = "none"
    zero_init: bool = False
    project: bool = True

    effort: ClassVar[int] = 5
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "a path without shortcuts"

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise SettingError("norm", came=repr(self.norm), wanted=f"one of {', '.join(get_args(Norm))}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Put shortcuts into a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with shortcuts: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Put shortcuts in, in place."""
        layers = Layers(model, batch_input, project=self.project)
        found = in_forwards_(layers)
        blocks = [*in_sequences(layers), *found.blocks]
        taken = _modules(model, blocks)
        blocks += [*alone(layers, taken), *recurrent(layers)]
        if not blocks:
            raise nothing_found(self, "a layer inside the network that gives as many values as it takes")
        style = Style(
            norms=None if self.norm == "none" else norms_for(model, self.norm, batch_input),
            zero_init=self.zero_init,
            generator=torch.Generator().manual_seed(seed),
        )
        done = put_in_(layers, blocks, found.calls, style)
        wrapped = tuple(block.name for block in blocks)
        return Change(changes=(*done.changes, *not_run(model, wrapped, batch_input)), code=done.code)


def _modules(model: nn.Module, blocks: list[Block]) -> set[nn.Module]:
    names = (name for block in blocks for name in (block.name, *block.emptied))
    return {module for name in names for module in model.get_submodule(name).modules()}

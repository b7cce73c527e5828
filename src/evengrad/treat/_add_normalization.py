"""Put normalisations where the layers of a model want them."""

from dataclasses import dataclass
from typing import Any, ClassVar, final, get_args

from torch import nn
from torch.nn.utils import parametrize

from evengrad.nouns import SettingError, Task
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._draws import is_feedforward
from evengrad.treat._forward_graph import attention_projections, forwards, is_attention, residual_branches
from evengrad.treat._forward_order import DROPOUTS, Place, followed_by_weighted, inside_torch, parent_of, places
from evengrad.treat._norm_insertions import Before, before_, behind_, recurrent_
from evengrad.treat._norms import Kind, Norms, norms_for
from evengrad.treat._on_a_copy import not_run, nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._prenorm import branches_to_normalize, norm_before_head, switch_transformers_
from evengrad.treat._reaches import reaches_output


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AddNormalization(AbstractTreatment):
    """Put a normalisation where each layer of a copy wants it. The weights stay, some under longer names in the state.

    - Behind each dense or convolutional layer that another weighted layer follows, before its activation: the layer
      becomes `nn.Sequential(layer, norm)`, so that `forward` stays as it is.
    - On the output of a recurrent layer, whose state goes on as it is; before the dense layer that follows, where the
      model reads the state only.
    - Before each residual branch `x + branch(x)` that a forward of one's own has and that holds no norm (pre-norm,
      found by tracing it); the norm of a post-norm block moves there.
    - In torch's transformer layers, whose norms are moved before the branches (`norm_first`), with a new one behind
      the last layer where none is.

    Layers that a norm already follows, that have a single output, that make queries, keys or values of an attention,
    or that torch's attention and transformer layers hold (which read their weights by attribute) are left as they are.

    Without `batch_input` the copy is not run: a forward of one's own that reads `layer.weight` then breaks unnoticed,
    and `changes` names the layers for which that may be.

    Args:
        kind: `layer`: LayerNorm over the features, for convolutions over channels and positions together. `batch`:
            BatchNorm; needs more than one sample per batch, the last one too. `group`: GroupNorm with the most groups
            of at least four channels, up to 32. `rms`: RMSNorm, not for convolutions. `batch` and `group` go
            behind a dense layer only if its output has two dimensions (without a batch it is taken to have two unless
            the model has recurrent, attention or embedding layers), and to no recurrent or transformer layer.
            `auto` takes `batch` for convolutions from 16 samples in the batch on, and below `group`, whose error stays
            where that of batch norm grows (Wu and He 2018, figure 1); for dense layers that see one vector a sample,
            `batch` from 8 samples on, and below `layer`; and what no other sample has a part in without `batch_input`.
            Sequences get `layer`, in which padding has no part; `rms` where the model has an RMSNorm already.

            Dense layers were measured by `python benchmarks/treatments.py`: accuracy on scikit-learn's digits after 200
            steps, 64 units, weights as torch draws them, means over relu and tanh, Adam and SGD:

            =======  ============  =======  =======
            samples  dense layers  `layer`  `batch`
            =======  ============  =======  =======
            4        10 / 20       .42/.10  .36/.22
            8        10 / 20       .45/.10  .76/.42
            16       10 / 20       .58/.16  .89/.62
            32       10 / 20       .71/.39  .94/.81
            =======  ============  =======  =======

    Raises:
        SettingError: The kind is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> treated = AddNormalization().treat(model)
        >>> treated.changes
        ('0: followed by a new LayerNorm',)
        >>> print(treated.code)
        for name, norm in [('0', nn.LayerNorm(4))]:
            layer = model.get_submodule(name)
            model.set_submodule(name, nn.Sequential(layer, norm.to(layer.weight)))
        >>> import torch
        >>> AddNormalization().treat(model, batch_input=torch.zeros(16, 2)).changes
        ('0: followed by a new BatchNorm1d',)

    Source:
        Ba et al. 2016, arXiv 1607.06450 (layer, recurrent layers); Ioffe and Szegedy 2015, arXiv 1502.03167 (batch);
        Wu and He 2018, arXiv 1803.08494 (group); Zhang and Sennrich 2019, arXiv 1910.07467 (rms); Xiong et al. 2020,
        arXiv 2002.04745 (before the branches).
    """

    kind: Kind = "auto"

    effort: ClassVar[int] = 4
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "activations whose scale nobody holds"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingError("kind", came=repr(self.kind), wanted=f"one of {', '.join(get_args(Kind))}")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Put norms into a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with norms: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Put norms in, in place."""
        order, norms = places(model, batch_input), norms_for(model, self.kind, batch_input)
        traced = forwards(model)
        stream = branches_to_normalize(model, residual_branches(model, traced), norms, batch_input)
        kept = {*stream.normalized, *attention_projections(traced)}
        recurrent, heads = _recurrent(model, order, norms, batch_input)
        free = {place.name for place in order if not _is_below(place.name, kept)}
        new = _behind(model, order, norms, free - set(heads))
        switched, bare = switch_transformers_(model, norms)
        inside = (*bare, *(stream.normalized if stream.before else ()))
        last = norm_before_head(model, order, inside, norms, frozenset(before.moved for before in stream.before))
        ahead = {place.names[0]: place for place in (*last, *heads.values())}
        before = (*stream.before, *(place for name, place in ahead.items() if name not in new))
        done = [*switched, *behind_(model, new), *recurrent_(model, recurrent), *before_(model, before)]
        if not done:
            raise nothing_found(self, "a dense or convolutional layer, followed by another and not by a norm")
        wrapped = (*new, *(name for place in before for name in place.names))
        return Change(
            changes=(*(words for change in done for words in change.changes), *not_run(model, wrapped, batch_input)),
            code="\n".join(change.code for change in done),
        )


def _is_below(name: str, holders: set[str]) -> bool:
    return any(name == holder or name.startswith(f"{holder}.") for holder in holders)


def _behind(model: nn.Module, order: tuple[Place, ...], norms: Norms, free: set[str]) -> dict[str, str]:
    new: dict[str, str] = {}
    for place in order:
        layer = place.module
        if place.name not in free or place.name in new or not place.name:
            continue
        if not is_feedforward(layer) or parametrize.is_parametrized(layer) or inside_torch(model, place.name):
            continue
        if is_attention(parent_of(model, place.name)) or not layer.weight.is_floating_point():
            continue
        call = norms.behind(place) if followed_by_weighted(order, layer) and not _norm_is_next(order, layer) else None
        if call is not None:
            new[place.name] = call
    return new


def _norm_is_next(order: tuple[Place, ...], layer: nn.Module) -> bool:
    for index, place in enumerate(order):
        if place.module is layer:
            behind = (later for later in order[index + 1 :] if not isinstance(later.module, DROPOUTS))
            following = next(behind, None)
            if following is not None and following.norm:
                return True
    return False


def _recurrent(
    model: nn.Module, order: tuple[Place, ...], norms: Norms, batch_input: Any
) -> tuple[dict[str, str], dict[str, Before]]:
    """Choose norms for the outputs of recurrent layers, and before the layers that read only their states."""
    new: dict[str, str] = {}
    heads: dict[str, Before] = {}
    for index, place in enumerate(order):
        layer = place.module
        if not isinstance(layer, nn.RNNBase | nn.RNNCellBase) or parametrize.is_parametrized(layer):
            continue
        if not place.name or not followed_by_weighted(order, layer) or _norm_is_next(order, layer):
            continue
        call = norms.of_sequence(_width(layer)) if isinstance(layer, nn.RNNBase) else None
        if call is not None and reaches_output(model, place.name, batch_input):
            new[place.name] = call
            continue
        following = next(later for later in order[index + 1 :] if later.weighted)
        call = norms.of_sequence(following.module.in_features) if isinstance(following.module, nn.Linear) else None
        if call is not None and not inside_torch(model, following.name):
            heads[following.name] = Before(names=(following.name,), call=call)
    return new, heads


def _width(layer: nn.RNNBase) -> int:
    return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)

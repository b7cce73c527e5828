"""Cut the gradient's way back through time."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError, shortened
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import nothing_found, treated_copy
from evengrad.treat._on_a_task import task_with_treated_model
from evengrad.treat._sequence_lengths import sequence_lengths
from evengrad.treat._surgery import alias_code, replace_everywhere_
from evengrad.treat._truncated import TRUNCATED_CODE, Truncated


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TruncateBackprop(AbstractTreatment):
    """Let the recurrent layers of a copy run over their sequence in chunks, and cut the gradient between them.

    The outputs stay the same; the state that goes from one chunk to the next is detached, so that no gradient flows
    back further than `steps` steps. A state given by the caller is not detached, and the last one is handed back with
    its gradient, back to the start of its chunk. Packed sequences work. The layer is held by the wrapper as `layer`,
    and what the wrapper does not have is asked of the layer (`hidden_size`, `flatten_parameters`, `weight_hh_l0`).
    Dropout between the layers draws one mask for each chunk, and hooks of the layer run once for each.

    Left as they are: bidirectional layers, whose second direction comes from the far end, subclasses with a forward of
    their own, and cells that the model calls in a loop: detach their state in it.

    Args:
        steps: Steps in one chunk. 35, as Zaremba et al. have it for language; what lies further apart is remembered
            by the state, but is no longer learned.

    Raises:
        SettingError: Not a positive whole number.

    Example:
        >>> treated = TruncateBackprop(steps=10).treat(nn.ModuleDict({"rnn": nn.GRU(3, 5)}))
        >>> treated.changes
        ('rnn: the gradient flows back 10 steps',)

    Source:
        Williams and Peng 1990, Neural Computation 2(4), BPTT(h; h'), with h = h' = steps; Zaremba et al. 2014, arXiv
        1409.2329, section 4.1 (35 steps).
    """

    steps: int = 35

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = True
    blames: ClassVar[str] = "how far back the gradient flows"

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise SettingError("steps", came=repr(self.steps), wanted="a positive whole number")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Wrap the recurrent layers of a copy: `AbstractTreatment.treat`."""
        return treated_copy(self, model, seed=seed, batch_input=batch_input)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Let a copy of the task build its model with chunked layers: `AbstractTreatment.treat_task`."""
        return task_with_treated_model(self, task, seed)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Wrap the recurrent layers, in place."""
        names, both_ways = _found(model)
        if not names:
            raise nothing_found(
                self,
                "a recurrent layer inside it that runs in one direction",
                "detach the state of cells in the loop that calls them" if _cells(model) else "",
            )
        self._want_longer(model, names, batch_input)
        aliases = {
            name: replace_everywhere_(model, name, Truncated(model.get_submodule(name), self.steps)) for name in names
        }
        everywhere = tuple(alias for found in aliases.values() for alias in found)
        changes = [f"{shortened(everywhere)}: the gradient flows back {self.steps} steps"]
        if both_ways:
            changes.append(f"{shortened(both_ways)}: left as they are, bidirectional")
        code = (
            f"{TRUNCATED_CODE}\n"
            f"for name in {list(aliases)!r}:\n"
            f"    layer = model.get_submodule(name)\n"
            f"    wrapped = Truncated(layer, {self.steps})\n"
            "    wrapped.training = layer.training\n"
            "    model.set_submodule(name, wrapped)" + alias_code(aliases)
        )
        return Change(changes=tuple(changes), code=code)

    def _want_longer(self, model: nn.Module, names: tuple[str, ...], batch_input: Any) -> None:
        if batch_input is None:
            return
        lengths = sequence_lengths(model, names, batch_input)
        longest = max(lengths.values(), default=0)
        if longest <= self.steps:
            raise TreatmentError(
                self.label,
                came=f"sequences of at most {longest} steps",
                wanted=f"more than {self.steps}",
                advice="take fewer steps",
            )


def _found(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    layers = {
        name: module
        for name, module in model.named_modules()
        if name and _is_of_torch(module) and not isinstance(_holder(model, name), Truncated)
    }
    both_ways = tuple(name for name, layer in layers.items() if layer.bidirectional)
    return tuple(name for name in layers if name not in both_ways), both_ways


def _holder(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _is_of_torch(module: nn.Module) -> bool:
    kinds = (nn.RNN, nn.LSTM, nn.GRU)
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _cells(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNCellBase) for module in model.modules())

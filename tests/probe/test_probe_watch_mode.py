"""The torch-function mode of the exact probe is on where functions may be called, and nowhere else."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import has_torch_function

from evengrad.nouns import ModelError
from evengrad.probe import probe

X = torch.ones(3, 4)


def mode_is_on():
    return has_torch_function((None,))


class Calling(nn.Module):
    """Calls a function, notes whether a mode is on, and fails where it is told to."""

    def __init__(self, error=None):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.error, self.seen = nn.Linear(4, 4), error, []

    def forward(self, x):
        self.seen.append(mode_is_on())
        if self.error is not None:
            raise self.error
        return torch.tanh(self.fc(x))


def loss(output, _):
    return functional.softplus(output).sum()


def names(model):
    return [layer.name for layer in probe(model, loss, (X, X)).readings[0].layers]


def test_a_model_of_torchs_own_modules_needs_no_mode():
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.TransformerEncoderLayer(4, 2, 8)), []
    for module in model[:2]:
        module.register_forward_hook(lambda *_: seen.append(mode_is_on()))
    assert "relu()" in {name.rsplit(".", 1)[-1] for name in names(model)}, "what torch calls itself is seen as ever"
    assert seen == [False, False]


def test_the_mode_is_on_in_what_calls_functions_and_off_behind_it():
    after = []
    model = nn.Sequential(Calling(), nn.Sequential(Calling()), nn.Linear(4, 4))
    model[2].register_forward_pre_hook(lambda *_: after.append(mode_is_on()))
    assert names(model) == ["0.fc", "0.tanh()", "1.0.fc", "1.0.tanh()", "2"]
    assert model[0].seen == model[1][0].seen == [True]
    assert after == [False]
    assert not mode_is_on()


def test_what_the_loss_calls_is_no_layer():
    assert names(Calling()) == ["fc", "tanh()"]


@pytest.mark.parametrize("error", [ValueError("on purpose"), KeyboardInterrupt("on purpose")])
def test_the_mode_is_off_however_a_forward_ends(error):
    with pytest.raises((ModelError, KeyboardInterrupt), match="on purpose"):
        names(nn.Sequential(nn.Linear(4, 4), Calling(error)))
    assert not mode_is_on()


def test_a_forward_that_catches_what_a_part_raises_goes_on_being_watched():
    class Forgiving(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = Calling(ValueError("on purpose")), Calling()

        def forward(self, x):
            try:
                return self.bad(x)
            except ValueError:
                return torch.sigmoid(self.good(x))

    assert names(Forgiving()) == ["good.fc", "good.tanh()", "sigmoid()"]


def test_gates_and_scores_that_are_computed_anew_are_no_layers():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.attend = nn.GRU(4, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            with torch.device("cpu"):  # a mode of the user's above the probe's own
                h = self.rnn(x[:, None].expand(-1, 5, -1))[0]
                return torch.relu(self.attend(h, h, h)[0])

    layers = probe(Gated(), loss, (X, X)).readings[0].layers
    assert [layer.name for layer in layers] == ["rnn", "attend", "relu()"]
    assert len(layers[0].gate_mean) == 2
    assert layers[1].logit_absmax is not None

"""normalize_weights_: what it changes, what the layers then compute, what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from evengrad.clip.transforms import normalize_weights_
from evengrad.nouns import ModelError, SettingError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 4)
    )


def test_spectral_norm_makes_the_largest_singular_value_1():
    model = network()
    assert normalize_weights_(model, "spectral", n_power_iterations=20) == ("0", "2", "4")
    for _ in range(5):
        model(torch.randn(2, 1, 4, 4))
    for number, dim in ((0, 0), (2, 1), (4, 0)):
        matrix = model[number].weight.detach().movedim(dim, 0).flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1.0, rel=1e-3)


def test_weight_norm_computes_what_the_model_computed_before():
    model, inputs = network().eval(), torch.randn(2, 1, 4, 4)
    before = model(inputs)
    assert normalize_weights_(model, "weight", modules=["4", "0"]) == ("0", "4")
    torch.testing.assert_close(model(inputs), before)
    assert not is_parametrized(model[2])
    assert {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"} <= set(model.state_dict())


def test_both_train():
    for kind in ("spectral", "weight"):
        model = network()
        normalize_weights_(model, kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = model[4].weight.detach().clone()
        model(torch.randn(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(model[4].weight.detach(), before)


def test_the_model_itself_is_the_empty_name_and_one_name_may_be_a_string():
    layer = nn.Linear(2, 2)
    assert normalize_weights_(layer, "weight", modules="") == ("",)
    model = network()
    assert normalize_weights_(model, "weight", modules="4") == ("4",)


def test_layers_that_share_or_have_a_made_weight_are_passed_over_unless_named():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 3, bias=False))
    model[2].weight = model[0].weight
    assert normalize_weights_(model, "spectral") == ("1",)
    with pytest.raises(ModelError, match="model: got no linear layer or convolution with a plain weight"):
        normalize_weights_(model, "spectral")


@pytest.mark.parametrize(
    ("name", "came"),
    [
        ("9", "a model without it"),
        ("1", "a weight of 1 dimensions"),
        ("2", "ReLU without a weight"),
        ("3", "a weight that is parametrized already"),
        ("4", "a weight that another module shares"),
        ("6", "a lazy module that has not seen a batch"),
    ],
)
def test_a_module_that_cannot_be_changed_is_refused_and_nothing_is_changed(name, came):
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        nn.LazyLinear(3),
    )
    model[5].weight = model[4].weight
    with pytest.raises(SettingError, match=f"module '{name}': got {came}, want a module with a plain weight"):
        normalize_weights_(model, "weight", modules=["0", name])
    assert not is_parametrized(model[0])


@pytest.mark.parametrize("kind", ["Spectral", "batch", None])
def test_another_kind_is_refused(kind):
    with pytest.raises(SettingError, match=r"kind: got .*, want 'spectral' or 'weight'"):
        normalize_weights_(network(), kind)

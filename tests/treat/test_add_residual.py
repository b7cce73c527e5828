"""Where shortcuts go, what is inside a block, and that a net which learns nothing learns with them."""

import copy

import pytest
import torch
from pasted_code import check_code_makes_it
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import conv2d, dropout, layer_norm, linear, relu
from torch.nn.utils.rnn import pack_padded_sequence

from evengrad.nouns import SettingError, TreatmentError
from evengrad.treat import AddNormalization, AddResidual, Combined, Residual, make


def treat(model, batch, **settings):
    return check_code_makes_it(AddResidual(**settings).treat(model, batch_input=batch), model, batch)


def widening(activation=nn.Tanh):
    return nn.Sequential(
        nn.Linear(3, 4), activation(), nn.Linear(4, 8), activation(), nn.Linear(8, 6), activation(), nn.Linear(6, 1)
    )


def test_layers_that_change_the_width_get_a_shortcut_with_weights_and_the_first_and_last_none():
    model, x = widening(), torch.randn(5, 3)
    treated = treat(model, x).subject
    h = torch.tanh(model[0](x))
    h = linear(h, treated[2].shortcut.weight) + torch.tanh(model[2](h))
    h = linear(h, treated[4].shortcut.weight) + torch.tanh(model[4](h))
    torch.testing.assert_close(treated(x), model[6](h))
    assert treated[2].shortcut.bias is None


def test_a_shortcut_that_widens_keeps_the_mean_square_exactly_and_one_that_narrows_on_average():
    treated = AddResidual().treat(widening()).subject
    x = torch.randn(4000, 4).double()
    wide = linear(x, treated[2].shortcut.weight.double())
    torch.testing.assert_close(wide.square().mean(1), x.square().mean(1), rtol=1e-5, atol=0)
    x = torch.randn(4000, 8).double()
    narrow = linear(x, treated[4].shortcut.weight.double())
    assert narrow.square().mean().item() == pytest.approx(1.0, rel=0.05)


def test_a_strided_convolution_gets_a_strided_one_by_one_convolution():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    for size in (28, 29, 30, 31):
        x = torch.randn(2, 1, size, size)
        changed = AddResidual().treat(model, batch_input=x).subject.eval()
        before = changed[:4](x)
        expected = model.eval()[4:7](before) + conv2d(before, changed[4].shortcut.weight, stride=2)
        torch.testing.assert_close(changed[4](before), expected)
        model.train()
    kinds = [type(module).__name__ for module in treat(model, torch.randn(2, 1, 28, 28)).subject]
    assert kinds[4:] == [
        "Residual", "Identity", "Identity", "AvgPool2d", "Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear",
    ]  # fmt: skip


def test_norms_go_before_the_layers_and_behind_the_last_block(make_deep):
    model, x = make_deep(nn.ReLU, 3, 4), torch.randn(5, 2)
    treated = treat(model, x, norm="layer")
    h = relu(model[0](x))
    for index in (2, 4):
        h = h + relu(model[index](layer_norm(h, (4,))))
    torch.testing.assert_close(treated.subject(x), model[6](layer_norm(h, (4,))))
    assert treated.changes[-1] == "4: the last block, followed by a new LayerNorm"


def test_a_block_with_a_norm_of_its_own_gets_no_other():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(),
        nn.Linear(4, 1),
    )  # fmt: skip
    treated = treat(model, torch.randn(8, 4), norm="batch").subject
    names = [[type(part).__name__ for part in treated[index].modules()][2:] for index in (0, 2)]
    assert names == [["Linear", "ReLU"], ["Linear", "BatchNorm1d", "ReLU"]]
    assert [type(part).__name__ for part in treated[5][0].block] == ["BatchNorm1d", "Linear", "ReLU"]
    assert type(treated[5][1]).__name__ == "BatchNorm1d"


@pytest.mark.parametrize("norm", ["auto", "layer", "batch", "group"])
def test_every_norm_goes_into_convolutional_and_dense_blocks(norm):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2),
    )  # fmt: skip
    treated = treat(model, torch.randn(16, 1, 8, 8), norm=norm).subject
    assert "Norm" in type(treated[2].block[0]).__name__
    assert "Norm" in type(treated[6].block[0]).__name__


def test_with_zero_init_the_network_starts_as_its_shortcuts_and_its_blocks_learn(make_deep):
    model, x = make_deep(nn.ReLU, 6, 4), torch.randn(50, 2)
    treated = treat(model, x, zero_init=True).subject
    torch.testing.assert_close(treated(x), model[12](relu(model[0](x))))
    optimizer = torch.optim.SGD(treated.parameters(), lr=0.1)
    for _ in range(2):
        treated(x).square().sum().backward()
        optimizer.step()
    assert all(layer.block[0].weight.grad.abs().sum() > 0 for layer in treated if isinstance(layer, Residual))


class Functional(nn.Module):
    """Functions and one shared module behind the layers of a loop, and a dropout that depends on the mode."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.layers = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.act, self.kind, self.last = nn.GELU(), kind, nn.Linear(8, 3)

    def activated(self, x):
        return {"shared": self.act, "function": torch.tanh, "method": lambda value: value.sigmoid()}[self.kind](x)

    def forward(self, x, scale=None):
        x = self.activated(self.first(x))
        for layer in self.layers:
            x = dropout(self.activated(layer(x)), 0.5, training=self.training)
        return self.last(x if scale is None else x * scale)


@pytest.mark.parametrize("kind", ["shared", "function", "method"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_function_or_a_shared_module_behind_a_layer_is_inside_its_block(kind, norm):
    model, x = Functional(kind), torch.randn(5, 6)
    treated = treat(model, x, norm=norm).subject.eval()
    h = model.activated(model.first(x))
    for layer in model.layers:
        h = h + model.activated(layer(h if norm == "none" else layer_norm(h, (8,))))
    torch.testing.assert_close(treated(x), model.last(h if norm == "none" else layer_norm(h, (8,))))
    assert isinstance(treated, Functional)
    torch.testing.assert_close(copy.deepcopy(treated)(x, 0.0), model.last(torch.zeros(5, 8)))
    assert not torch.equal(treated.train()(x), treated(x))


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act_a, self.b, self.norm, self.act_b = (
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ELU()
        )  # fmt: skip
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.drop(self.act_b(self.norm(self.b(self.act_a(self.a(x)))))))


@pytest.mark.parametrize("zero_init", [False, True])
def test_what_follows_a_layer_as_an_attribute_is_inside_its_block(zero_init):
    model, x = Attributes(), torch.randn(5, 6)
    treated = treat(model, x, zero_init=zero_init).subject.eval()
    assert [type(part).__name__ for part in treated.b.block] == ["Linear", "LayerNorm", "ELU", "Dropout"]
    h = relu(model.a(x))
    expected = h if zero_init else h + model.act_b(model.norm(model.b(h)))
    torch.testing.assert_close(treated(x), model.head(expected))


class Bottleneck(nn.Module):
    def __init__(self, own=True):
        super().__init__()
        self.inner, self.outer, self.down = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8)
        self.own = own

    def forward(self, x):
        return (x if self.own else self.down(x)) + self.outer(relu(self.inner(x)))


@pytest.mark.parametrize("own", [True, False])
def test_what_has_a_shortcut_already_gets_no_other(own):
    model = nn.Sequential(Bottleneck(own), Bottleneck(own), nn.Linear(8, 2))
    with pytest.raises(TreatmentError, match="AddResidual"):
        AddResidual().treat(model, batch_input=torch.randn(3, 8))
    once = AddResidual().treat(widening(), batch_input=torch.randn(3, 3)).subject
    with pytest.raises(TreatmentError, match="AddResidual"):
        AddResidual(norm="layer").treat(once, batch_input=torch.randn(3, 3))


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.over, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 6)
        for step in range(x.shape[1]):
            h = torch.tanh(self.into(x[:, step]) + self.over(h))
        return self.head(h)


def test_the_weights_of_a_recurrent_cell_get_no_shortcut():
    with pytest.raises(TreatmentError, match="AddResidual"):
        AddResidual(project=False).treat(Cell(), batch_input=torch.randn(3, 5, 4))


class Stack(nn.Module):
    def __init__(self, kind, packed=False):
        super().__init__()
        self.layers = nn.ModuleList([kind(5, 6, batch_first=True), *(kind(6, 6, batch_first=True) for _ in range(3))])
        self.head, self.packed = nn.Linear(6, 2), packed

    def forward(self, x):
        x = pack_padded_sequence(x, [7, 4, 2], batch_first=True) if self.packed else x
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x.data if self.packed else x)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_of_one_width_are_added_to_their_input(kind, packed):
    model, x = Stack(kind, packed), torch.randn(3, 7, 5)
    treated = treat(model, x, norm="layer").subject
    x = torch.randn(3, 7, 6)
    output, state = treated.layers[2](x)
    inner, inner_state = model.layers[2](layer_norm(x, (6,)))
    torch.testing.assert_close(output, x + inner)
    torch.testing.assert_close(state, inner_state)
    assert isinstance(treated.layers[0], kind)
    assert treated.layers[2].hidden_size == 6


def test_a_stack_of_recurrent_layers_with_zero_init_starts_as_its_first_layer():
    model, x = Stack(nn.GRU), torch.randn(3, 7, 5)
    torch.testing.assert_close(treat(model, x, zero_init=True).subject(x), model.head(model.layers[0](x)[0]))


def test_half_precision_blocks_stay_in_half_precision():
    model = widening(nn.ReLU).bfloat16().eval()
    treated = treat(model, torch.randn(4, 3).bfloat16(), norm="layer", zero_init=True).subject
    assert {value.dtype for value in treated.parameters()} == {torch.bfloat16}


def test_settings_are_said_and_make_the_treatment_again():
    assert AddResidual().label == "AddResidual()"
    given = AddResidual(norm="layer", zero_init=True, project=False)
    assert given.label == "AddResidual(norm='layer', zero_init=True, project=False)"
    assert make(given.name, given.settings) == given
    with pytest.raises(SettingError, match="norm: got 'weight'"):
        AddResidual(norm="weight")


def deep_net(depth, glorot):
    torch.manual_seed(1)
    layers = [nn.Linear(64, 128), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(128, 128), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    for layer in model:
        if glorot and isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def accuracy(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(400):
        rows = slice(step % 42 * 32, step % 42 * 32 + 32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return (model.eval()(x[1344:]).argmax(1) == y[1344:]).double().mean().item()


@pytest.fixture(scope="module")
def digits():
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order].float() / 16, y[order]


@pytest.mark.parametrize(("norm", "glorot"), [("layer", True), ("auto", False)])
def test_thirty_four_layers_learn_with_a_norm_before_each_branch(digits, norm, glorot):
    x, y = digits
    treated = AddResidual(norm=norm).treat(deep_net(34, glorot), batch_input=x[:32])
    assert accuracy(treated.subject, x, y) >= 0.9  # the worse of seeds and numbers of threads had 0.938


def test_thirty_four_layers_learn_nothing_without(digits):
    assert accuracy(deep_net(34, glorot=False), *digits) < 0.3


@pytest.mark.parametrize("treatment", [AddResidual(norm="auto"), AddResidual(zero_init=True)])
def test_twelve_layers_reach_what_the_digits_allow(digits, treatment):
    x, y = digits
    assert accuracy(treatment.treat(deep_net(12, glorot=True), batch_input=x[:32]).subject, x, y) >= 0.9


def test_a_norm_added_first_stays_with_its_layer(make_deep):
    both = Combined((AddNormalization(kind="layer"), AddResidual(norm="layer")))
    treated = both.treat(make_deep(nn.Tanh, 3, 4), batch_input=torch.randn(5, 2)).subject
    assert [type(part).__name__ for part in treated[2].block] == ["Sequential", "Tanh"]


class OneActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.act, self.last = nn.Sigmoid(), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.act(self.third(self.act(self.second(self.act(self.first(x)))))))


def test_calls_of_one_module_that_go_into_blocks_are_named_in_the_code():
    code = AddResidual().treat(OneActivation(), batch_input=torch.randn(4, 6)).code
    comments = [line for line in code.splitlines() if line.startswith("# in OneActivation.forward:")]
    assert "# in OneActivation.forward: self.second(...) instead of self.act(self.second(...))" in comments
    assert all(" instead of self.act(" in line for line in comments)

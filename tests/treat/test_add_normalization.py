"""Where norms go by themselves, and of which kind."""

import pytest
import torch
from pasted_code import check_code_makes_it
from torch import nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from evengrad.nouns import TreatmentError
from evengrad.treat import AddNormalization, AddResidual


def treat(model, batch, **settings):
    return check_code_makes_it(AddNormalization(**settings).treat(model, batch_input=batch), model, batch)


def dense():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


@pytest.mark.parametrize(
    ("make", "shape", "kind"),
    [
        (dense, (8, 6), nn.BatchNorm1d), (dense, (7, 6), nn.LayerNorm), (dense, (8, 5, 6), nn.LayerNorm),
        (convolutional, (16, 1, 4, 4), nn.BatchNorm2d), (convolutional, (15, 1, 4, 4), nn.GroupNorm),
    ],
)  # fmt: skip
def test_the_batch_and_the_layer_choose_the_kind(make, shape, kind):
    assert isinstance(treat(make(), torch.randn(shape)).subject[0][1], kind)


@pytest.mark.parametrize(("make", "kind"), [(dense, nn.LayerNorm), (convolutional, nn.GroupNorm)])
def test_without_a_batch_no_other_sample_has_a_part_in_the_norm(make, kind):
    assert isinstance(AddNormalization().treat(make()).subject[0][1], kind)


def test_a_model_with_norms_by_root_mean_square_gets_more_of_them():
    model = nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert isinstance(treat(model, torch.randn(4, 6)).subject[3][1], nn.RMSNorm)


class Stacked(nn.Module):
    def __init__(self, kind, *, state=False, **settings):
        super().__init__()
        self.first = kind(5, 6, batch_first=True, **settings)
        width = 12 if settings.get("bidirectional") else 6
        self.second, self.head, self.state = kind(width, 6, batch_first=True), nn.Linear(6, 2), state

    def forward(self, x):
        start = torch.zeros(self.first.num_layers * (1 + self.first.bidirectional), len(x), self.first.hidden_size)
        x, state = self.first(x, (start, start) if isinstance(state_of(self.first), nn.LSTM) else start)
        out, state = self.second(x)
        last = state[0][-1] if isinstance(state, tuple) else state[-1]
        return self.head(last if self.state else out[:, -1])


def state_of(layer):
    return getattr(layer, "layer", layer)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_outputs_are_normalised_and_states_are_not(kind, settings):
    model, x = Stacked(kind, **settings), torch.randn(4, 7, 5)
    treated = treat(model, x).subject
    output, state = treated.first(x)
    plain, plain_state = model.first(x)
    torch.testing.assert_close(output, layer_norm(plain, plain.shape[-1:]))
    torch.testing.assert_close(state, plain_state)
    assert type(treated.second).__name__ == "NormalizedRecurrent"
    assert isinstance(treated.head, nn.Linear)


def test_where_only_the_state_is_read_the_norm_is_before_the_layer_that_reads_it():
    model, x = Stacked(nn.GRU, state=True), torch.randn(4, 7, 5)
    treated = treat(model, x).subject
    assert type(treated.first).__name__ == "NormalizedRecurrent"
    assert isinstance(treated.second, nn.GRU)
    assert [type(module).__name__ for module in treated.head] == ["LayerNorm", "Linear"]


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        packed = pack_padded_sequence(x, [7, 3, 2], batch_first=True)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0].sum(1))


def test_a_packed_sequence_stays_packed():
    model, x = Packed(), torch.randn(3, 7, 5)
    treated = treat(model, x).subject
    packed = pack_padded_sequence(x, [7, 3, 2], batch_first=True)
    torch.testing.assert_close(treated.rnn(packed)[0].data, layer_norm(model.rnn(packed)[0].data, (6,)))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        return self.out(scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class Block(nn.Module):
    """A block without norms, with norms behind (post) or before."""

    def __init__(self, width=8, norms="none", attention=Attention):
        super().__init__()
        self.attention = attention(width)
        self.up, self.act, self.down = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        self.norms = norms
        if norms != "none":
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attended(self, x):
        return self.attention(x)

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        if self.norms == "post":
            x = self.norm1(x + self.attended(x))
            return self.norm2(x + self.down(self.act(self.up(x))))
        if self.norms == "pre":
            x = x + self.attended(self.norm1(x))
            return x + self.down(self.act(self.up(self.norm2(x))))
        x = x + self.attended(x)
        return x + self.down(self.act(self.up(x)))


class Torch(Block):
    def __init__(self, width=8, norms="none"):
        super().__init__(width, norms, lambda width: nn.MultiheadAttention(width, 2, batch_first=True))

    def attended(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Blocks(nn.Module):
    def __init__(self, block, norms="none", final=False):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(11, 8), nn.ModuleList(block(norms=norms) for _ in range(2))
        self.final, self.head = nn.LayerNorm(8) if final else nn.Identity(), nn.Linear(8, 11)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final(x))


def tokens():
    return torch.randint(11, (3, 5))


@pytest.mark.parametrize("block", [Block, Torch])
def test_branches_get_norms_before_them_and_nothing_stands_behind_a_projection(block):
    model, batch = Blocks(block), tokens()
    treated = treat(model, batch).subject
    for new, old in zip(treated.blocks, model.blocks, strict=True):
        x = torch.randn(3, 5, 8)
        normed = layer_norm(x, (8,))
        middle = x + old.attended(normed)
        expected = middle + old.down(old.act(old.up(layer_norm(middle, (8,)))))
        torch.testing.assert_close(new(x), expected)
    assert [type(module).__name__ for module in treated.head] == ["LayerNorm", "Linear"]


@pytest.mark.parametrize("block", [Block, Torch])
def test_the_norms_of_a_post_norm_block_move_before_the_branches(block):
    model, batch = Blocks(block, norms="post"), tokens()
    treated = treat(model, batch)
    assert "moved from behind the addition" in " ".join(treated.changes)
    pre = Blocks(block, norms="pre", final=True)
    pre.load_state_dict({**model.state_dict(), "final.weight": torch.ones(8), "final.bias": torch.zeros(8)})
    torch.testing.assert_close(treated.subject(batch), pre(batch))


def test_a_pre_norm_model_is_left_alone():
    with pytest.raises(TreatmentError, match="AddNormalization"):
        AddNormalization().treat(Blocks(Block, norms="pre", final=True), batch_input=tokens())


def test_a_forward_that_cannot_be_traced_keeps_its_projections():
    class BranchingAttention(Attention):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    model = nn.Sequential(nn.Linear(5, 8), BranchingAttention(8), nn.ReLU(), nn.Linear(8, 2))
    treated = treat(model, torch.randn(3, 4, 5)).subject
    assert all(isinstance(module, nn.Linear) for module in treated[1].children())


class Encoder(nn.Module):
    def __init__(self, norm=None, **settings):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **settings)
        self.stack = nn.TransformerEncoder(layer, 3, norm=norm, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.stack(x).mean(1))


def test_torchs_encoder_becomes_the_pre_norm_encoder_of_torch_with_a_final_norm():
    model, x = Encoder(), torch.randn(4, 5, 8)
    treated = treat(model, x)
    expected = Encoder(norm=nn.LayerNorm(8), norm_first=True)
    expected.load_state_dict(treated.subject.state_dict())
    torch.testing.assert_close(treated.subject(x), expected(x))
    assert (
        treated.changes[0] == "stack.layers.0, stack.layers.1, stack.layers.2: norms before the branches (norm_first)"
    )


def test_an_encoder_with_norms_before_its_branches_and_behind_the_last_layer_is_left_alone():
    with pytest.raises(TreatmentError, match="AddNormalization"):
        AddNormalization().treat(Encoder(norm=nn.LayerNorm(8), norm_first=True), batch_input=torch.randn(4, 5, 8))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_padding_mask_in_evaluation_mode_still_works_after_the_switch():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    mask = torch.tensor([[False, False, True], [False, False, False]])
    batch = {"src": torch.randn(2, 3, 8), "src_key_padding_mask": mask}
    treated = AddNormalization().treat(model, batch_input=batch).subject.eval()
    with torch.no_grad():
        fast = treated(**batch)
    torch.testing.assert_close(fast[~mask], treated(**batch)[~mask])


class Causal(nn.Module):
    """Queries, keys and values in one layer, and a mask in a buffer that is cut to the length of the input."""

    def __init__(self, width=8, norms="none"):
        super().__init__()
        self.norms = norms
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(16, 16).tril()[None])

    def attended(self, x):
        samples, length, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=2)
        weights = (q @ k.transpose(-2, -1)).masked_fill(self.mask[:, :length, :length] == 0, -1e9).softmax(-1)
        return self.out((weights @ v).reshape(samples, length, width))

    def forward(self, x):
        return x + self.attended(x)


def test_a_mask_that_is_cut_to_a_length_hides_no_branch():
    model, batch = Blocks(Causal), tokens()
    treated = treat(model, batch).subject
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(treated.blocks[0](x), x + model.blocks[0].attended(layer_norm(x, (8,))))
    with pytest.raises(TreatmentError, match="AddResidual"):
        AddResidual().treat(model, batch_input=batch)


class ResidualDense(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.outer(torch.relu(self.inner(x)))


def test_branches_of_vectors_get_a_batch_norm_and_convolutions_their_own():
    model = nn.Sequential(nn.Linear(6, 8), ResidualDense(), ResidualDense(), nn.Linear(8, 2))
    treated = treat(model, torch.randn(9, 6)).subject
    assert [type(module).__name__ for module in treated[1].inner] == ["BatchNorm1d", "Linear"]
    assert isinstance(treated[1].outer, nn.Linear)


def test_a_deep_net_that_learns_nothing_learns_with_the_norm_that_is_chosen():
    from sklearn.datasets import load_digits

    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    layers = [module for _ in range(19) for module in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    accuracies = []
    for trained in (model, AddNormalization().treat(model, batch_input=x[:32]).subject):
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
        for step in range(300):
            rows = slice(step % 40 * 32, step % 40 * 32 + 32)
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(x[rows]), y[rows]).backward()
            optimizer.step()
        accuracies.append((trained.eval()(x[1280:]).argmax(1) == y[1280:]).double().mean().item())
    assert accuracies[0] < 0.3
    assert accuracies[1] > 0.6  # how far it gets differs with the roundings of one thread and of two

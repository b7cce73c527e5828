"""Dense and convolutional networks that people train every day get no finding when they start."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of
from evengrad.probe import probe

CLASSES = 10


def labels(count, generator):
    return torch.randint(0, CLASSES, (count,), generator=generator)


def vectors(generator, count=64, width=64):
    return torch.randn(count, width, generator=generator), labels(count, generator)


def pictures(generator, count=16, size=16):
    return torch.randn(count, 3, size, size, generator=generator), labels(count, generator)


def itself(data):
    return lambda generator: (data(generator)[0],) * 2


def mlp(activation, depth, width=64, scheme=None):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, width), activation())]
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    if scheme is not None:
        for module in model[:-1]:
            if isinstance(module, nn.Linear):
                scheme(module.weight)
                nn.init.zeros_(module.bias)
    return model


he = partial(nn.init.kaiming_normal_, nonlinearity="relu")
lecun = partial(nn.init.kaiming_normal_, nonlinearity="linear")
glorot = partial(nn.init.xavier_normal_, gain=5 / 3)


def cnn():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(512, 64), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, CLASSES))


def vgg():
    layers, width = [], 3
    for wide in (16, 16, 32, 32, 64, 64):
        layers += [nn.Conv2d(width, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class Block(nn.Module):
    def __init__(self, inner, *, scale=None, last=None):
        super().__init__()
        self.inner, self.last = inner, last or nn.Identity()
        self.scale = nn.Parameter(torch.tensor(scale)) if scale is not None else None

    def forward(self, x):
        h = self.inner(x)
        return self.last(x + (h if self.scale is None else self.scale * h))


def conv_block(width, norm, *, zero=False):
    last = norm(width)
    if zero:
        nn.init.zeros_(last.weight)
    inner = [nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
    return Block(nn.Sequential(*inner, nn.Conv2d(width, width, 3, padding=1, bias=False), last), last=nn.ReLU())


def resnet(norm=nn.BatchNorm2d, *, zero=False, blocks=6):
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()]
    body = [conv_block(16, norm, zero=zero) for _ in range(blocks)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


def groups(width):
    return nn.GroupNorm(4, width)


def rezero():
    blocks = [Block(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), scale=0.0) for _ in range(16)]
    return nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, CLASSES))


def layer_scale():
    blocks = [
        Block(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)), scale=1e-6)
        for _ in range(10)
    ]
    return nn.Sequential(nn.Linear(64, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, CLASSES))


def fixup(blocks=10):
    def branch():
        inner = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        he(inner[0].weight)
        inner[0].weight.data *= blocks**-0.5
        nn.init.zeros_(inner[2].weight)
        return Block(inner, last=nn.ReLU())

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), *(branch() for _ in range(blocks)), nn.Linear(64, CLASSES))
    nn.init.zeros_(model[-1].weight)
    return model


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.layers, width = nn.Conv2d(3, 12, 3, padding=1), nn.ModuleList(), 12
        for _ in range(8):
            block = (nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 3, padding=1, bias=False))
            self.layers.append(nn.Sequential(*block))
            width += 12
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(functional.relu(x).mean((2, 3)))


def double_conv(width_in, width):
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)])
        self.middle = double_conv(32, 64)
        self.grow = nn.ModuleList([nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in (32, 16, 8)])
        self.up = nn.ModuleList([double_conv(2 * w, w) for w in (32, 16, 8)])
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        kept = []
        for layer in self.down:
            x = layer(x)
            kept.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.middle(x)
        for grow, up in zip(self.grow, self.up, strict=True):
            x = up(torch.cat([grow(x), kept.pop()], 1))
        return self.head(x)


def autoencoder():
    layers = []
    for a, b in ((64, 32), (32, 16), (16, 4), (4, 16), (16, 32)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 64))


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.mean, self.log_var = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, x):
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return self.decoder(z).sigmoid(), mean, log_var


def elbo(result, target):
    picture, mean, log_var = result
    kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()
    return functional.mse_loss(picture, target.sigmoid(), reduction="sum") / len(target) + kl


def discriminator(*, spectral=False):
    wrap = nn.utils.parametrizations.spectral_norm if spectral else nn.Identity()
    layers, width = [], 3
    for wide in (16, 32, 64):
        layers += [wrap(nn.Conv2d(width, wide, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        width = wide
    return nn.Sequential(*layers, nn.Flatten(), wrap(nn.Linear(256, 1)), nn.Sigmoid())


def generator():
    layers, width = [nn.Linear(64, 256), nn.Unflatten(1, (64, 2, 2))], 64
    for wide in (32, 16):
        layers += [nn.ConvTranspose2d(width, wide, 4, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1), nn.Tanh())


def real_or_not(output, target):
    return functional.binary_cross_entropy(output[:, 0], (target % 2).float())


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(64, 32), nn.Linear(32, 4), nn.Linear(32, CLASSES)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(4)])

    def forward(self, x):
        h = self.stem(x)
        weight, chosen = self.gate(h).softmax(1).max(1)
        mixed = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            mixed = mixed.index_add(0, rows, weight[rows, None] * expert(h[rows]))
        return self.head(h + mixed)


def mobile():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6()]
    for _ in range(5):
        layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
        layers += [nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


class Swap(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


def mixer():
    def mlp_of(width):
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    layers = [nn.Unflatten(1, (8, 8))]
    for _ in range(5):
        layers += [
            Block(nn.Sequential(nn.LayerNorm(8), Swap(mlp_of(8)))),
            Block(nn.Sequential(nn.LayerNorm(8), mlp_of(8))),
        ]
    return nn.Sequential(*layers, nn.LayerNorm(8), nn.Flatten(), nn.Linear(64, CLASSES))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = mlp(nn.ReLU, 3)

    def forward(self, x):
        return self.tower(x) - self.tower(x.flip(0))


def se_block():
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4), nn.Linear(4, 16)

        def forward(self, x):
            h = functional.silu(self.conv(x))
            return x + h * torch.sigmoid(self.up(self.down(h.mean((2, 3))).relu()))[:, :, None, None]

    body = [nn.Conv2d(3, 16, 3, padding=1), *(Squeeze() for _ in range(5))]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


def weight_normed():
    wrap = nn.utils.parametrizations.weight_norm
    return nn.Sequential(*(layer for _ in range(6) for layer in (wrap(nn.Linear(64, 64)), nn.ELU())), nn.Linear(64, 10))


CE, MSE = functional.cross_entropy, functional.mse_loss
NETWORKS = {
    "MLP": (partial(mlp, nn.ReLU, 3), CE, vectors),
    "MLP tanh": (partial(mlp, nn.Tanh, 4), CE, vectors),
    "deep ReLU He": (partial(mlp, nn.ReLU, 20, scheme=he), CE, vectors),
    "deep tanh Glorot": (partial(mlp, nn.Tanh, 16, scheme=glorot), CE, vectors),
    "deep SELU": (partial(mlp, nn.SELU, 24, scheme=lecun), CE, vectors),
    "deep ELU He": (partial(mlp, nn.ELU, 16, scheme=he), CE, vectors),
    "deep GELU He": (partial(mlp, nn.GELU, 12, scheme=he), CE, vectors),
    "deep SiLU He": (partial(mlp, nn.SiLU, 8, scheme=he), CE, vectors),
    "shallow sigmoid": (partial(mlp, nn.Sigmoid, 2), CE, vectors),
    "leaky He": (partial(mlp, nn.LeakyReLU, 16, scheme=he), CE, vectors),
    "CNN": (cnn, CE, pictures),
    "VGG with batch norm": (vgg, CE, pictures),
    "ResNet": (resnet, CE, pictures),
    "ResNet, last norm zero": (partial(resnet, zero=True), CE, pictures),
    "ResNet with group norm": (partial(resnet, groups), CE, pictures),
    "ReZero": (rezero, CE, vectors),
    "LayerScale": (layer_scale, CE, vectors),
    "Fixup": (fixup, CE, vectors),
    "DenseNet": (DenseNet, CE, pictures),
    "U-Net": (UNet, MSE, itself(pictures)),
    "MLP-mixer": (mixer, CE, vectors),
    "autoencoder": (autoencoder, MSE, itself(vectors)),
    "VAE": (VAE, elbo, itself(vectors)),
    "GAN discriminator": (discriminator, real_or_not, pictures),
    "GAN discriminator, spectral": (partial(discriminator, spectral=True), real_or_not, pictures),
    "GAN generator": (generator, lambda out, y: out.square().mean(), vectors),
    "mixture of experts": (Experts, CE, vectors),
    "depthwise": (mobile, CE, pictures),
    "squeeze and excite": (se_block, CE, pictures),
    "Siamese": (Siamese, CE, vectors),
    "weight norm": (weight_normed, CE, vectors),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_healthy_network_gets_no_finding_when_it_starts(name, seed):
    make, loss, data = NETWORKS[name]
    torch.manual_seed(seed)
    record = probe(make(), loss, data(torch.Generator().manual_seed(seed)))
    assert [str(finding) for finding in findings_of(record)] == []

"""Healthy architectures for pictures, small, with the weights that they are published with."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._build import CE, MSE
from ._nets import CLASSES, architecture, itself, pictures


def kaiming_(model: nn.Module) -> nn.Module:
    """Draw convolutions as torchvision's ResNet does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def conv(wide: int, width: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(wide, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def pooled(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


class Add(nn.Module):
    """A branch that is added to what comes in, or to a shortcut of it."""

    def __init__(self, inner: nn.Module, *, shortcut: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.shortcut, self.last = inner, shortcut or nn.Identity(), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shortcut(x) + self.inner(x))


def lenet() -> nn.Module:
    modules = [nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    modules += [nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh()]
    return nn.Sequential(*modules, nn.Linear(84, CLASSES))


def alexnet() -> nn.Module:
    modules = [nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    modules += [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    modules += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Flatten()]
    modules += [nn.Dropout(), nn.Linear(576, 128), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(128, CLASSES)]
    return nn.Sequential(*modules)


def vgg(*, norm: bool) -> nn.Module:
    modules: list[nn.Module] = []
    wide = 3
    for width in (16, 16, 0, 32, 32, 0, 64, 64, 64, 0):
        if not width:
            modules.append(nn.MaxPool2d(2))
            continue
        modules += [nn.Conv2d(wide, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(True)]
        wide = width
    return kaiming_(nn.Sequential(*modules, *pooled(64)))


def basic(wide: int, width: int, stride: int) -> nn.Module:
    inner = [conv(wide, width, stride=stride), nn.BatchNorm2d(width), nn.ReLU(True), conv(width, width)]
    same = wide == width and stride == 1
    short = None if same else nn.Sequential(conv(wide, width, kernel=1, stride=stride), nn.BatchNorm2d(width))
    return Add(nn.Sequential(*inner, nn.BatchNorm2d(width)), shortcut=short, last=nn.ReLU(True))


def bottleneck(wide: int, width: int, stride: int) -> nn.Module:
    slim = width // 4
    inner = [conv(wide, slim, kernel=1), nn.BatchNorm2d(slim), nn.ReLU(True), conv(slim, slim, stride=stride)]
    inner += [nn.BatchNorm2d(slim), nn.ReLU(True), conv(slim, width, kernel=1), nn.BatchNorm2d(width)]
    same = wide == width and stride == 1
    short = None if same else nn.Sequential(conv(wide, width, kernel=1, stride=stride), nn.BatchNorm2d(width))
    return Add(nn.Sequential(*inner), shortcut=short, last=nn.ReLU(True))


def before(wide: int, width: int, stride: int) -> nn.Module:
    inner = [nn.BatchNorm2d(wide), nn.ReLU(), conv(wide, width, stride=stride), nn.BatchNorm2d(width), nn.ReLU()]
    short = None if wide == width and stride == 1 else conv(wide, width, kernel=1, stride=stride)
    return Add(nn.Sequential(*inner, conv(width, width)), shortcut=short)


def resnet(block, *, each: int = 2) -> nn.Module:
    modules = [conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(True)]
    wide = 16
    for width in (16, 32, 64):
        for number in range(each):
            modules.append(block(wide, width, 2 if number == 0 and width > 16 else 1))
            wide = width
    last = [nn.BatchNorm2d(64), nn.ReLU()] if block is before else []
    return kaiming_(nn.Sequential(*modules, *last, *pooled(64)))


class Dense(nn.Module):
    """A layer whose output is put beside its input."""

    def __init__(self, wide: int, growth: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU(), conv(wide, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


def densenet() -> nn.Module:
    modules: list[nn.Module] = [conv(3, 16)]
    wide = 16
    for last in (False, False, True):
        for _ in range(4):
            modules.append(Dense(wide, 12))
            wide += 12
        if not last:
            modules += [nn.BatchNorm2d(wide), nn.ReLU(), conv(wide, wide // 2, kernel=1), nn.AvgPool2d(2)]
            wide //= 2
    return kaiming_(nn.Sequential(*modules, nn.BatchNorm2d(wide), nn.ReLU(), *pooled(wide)))


class Squeeze(nn.Module):
    """Weighs channels by what is in all of them (squeeze and excitation)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        slim = max(4, width // 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, slim, 1), nn.SiLU(), nn.Conv2d(slim, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def inverted(wide: int, width: int, stride: int, *, squeeze: bool) -> nn.Module:
    middle = 4 * wide
    activation = nn.SiLU if squeeze else nn.ReLU6
    inner = [conv(wide, middle, kernel=1), nn.BatchNorm2d(middle), activation()]
    inner += [conv(middle, middle, stride=stride, groups=middle), nn.BatchNorm2d(middle), activation()]
    inner += [*([Squeeze(middle)] if squeeze else []), conv(middle, width, kernel=1), nn.BatchNorm2d(width)]
    body = nn.Sequential(*inner)
    return Add(body) if wide == width and stride == 1 else body


def mobilenet(*, squeeze: bool = False) -> nn.Module:
    activation = nn.SiLU if squeeze else nn.ReLU6
    modules = [conv(3, 16), nn.BatchNorm2d(16), activation()]
    for wide, width, stride in ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 32, 1)):
        modules.append(inverted(wide, width, stride, squeeze=squeeze))
    modules += [conv(32, 128, kernel=1), nn.BatchNorm2d(128), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return kaiming_(nn.Sequential(*modules, nn.Dropout(0.2), nn.Linear(128, CLASSES)))


class ConvNext(nn.Module):
    """A block of ConvNeXt, with its layer scale of 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.gamma * self.inner(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + h.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    modules: list[nn.Module] = [nn.Conv2d(3, 32, 2, 2), ChannelNorm(32), *(ConvNext(32) for _ in range(3))]
    modules += [ChannelNorm(32), nn.Conv2d(32, 64, 2, 2), *(ConvNext(64) for _ in range(3))]
    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, CLASSES)]
    model = nn.Sequential(*modules)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return model


def twice(wide: int, width: int) -> nn.Module:
    modules = [conv(wide, width), nn.BatchNorm2d(width), nn.ReLU(True), conv(width, width)]
    return nn.Sequential(*modules, nn.BatchNorm2d(width), nn.ReLU(True))


class UNet(nn.Module):
    """Down and up again, with what was seen on the way down put beside."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([twice(3, 8), twice(8, 16), twice(16, 32)])
        self.middle = twice(32, 64)
        self.grow = nn.ModuleList([nn.ConvTranspose2d(2 * width, width, 2, 2) for width in (32, 16, 8)])
        self.up = nn.ModuleList([twice(2 * width, width) for width in (32, 16, 8)])
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.middle(x)
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([kept.pop(), grow(x)], 1))
        return self.head(x)


class Mixer(nn.Module):
    """A block of MLP-Mixer: over positions, then over channels."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.over_positions = nn.Sequential(nn.Linear(positions, 64), nn.GELU(), nn.Linear(64, positions))
        self.over_channels = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_positions(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norms[1](x))


class Patches(nn.Module):
    """Pictures as a sequence of patches."""

    def __init__(self, width: int, size: int = 8) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2)


class MeanOver(nn.Module):
    """The mean over a dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dim)


def mixer() -> nn.Module:
    blocks = [Mixer(16, 64) for _ in range(4)]
    return nn.Sequential(Patches(64), *blocks, nn.LayerNorm(64), MeanOver(1), nn.Linear(64, CLASSES))


class ViT(nn.Module):
    """A vision transformer with a class token and normalisation first."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = Patches(width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 4, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1)
        return self.head(self.body(x + self.position)[:, 0])


def autoencoder() -> nn.Module:
    modules = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    modules += [nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 3, 2, 2)]
    return nn.Sequential(*modules)


VISION = (
    architecture("LeNet", lenet, CE, pictures),
    architecture("AlexNet-like", alexnet, CE, pictures),
    architecture("VGG", partial(vgg, norm=False), CE, pictures),
    architecture("VGG with batch norm", partial(vgg, norm=True), CE, pictures),
    architecture("ResNet, basic blocks", partial(resnet, basic), CE, pictures),
    architecture("ResNet, bottlenecks", partial(resnet, bottleneck), CE, pictures),
    architecture("ResNet, normalisation first", partial(resnet, before), CE, pictures),
    architecture("ResNet, 32 layers", partial(resnet, basic, each=5), CE, pictures),
    architecture("DenseNet", densenet, CE, pictures),
    architecture("MobileNet v2-like", mobilenet, CE, pictures),
    architecture("EfficientNet-like", partial(mobilenet, squeeze=True), CE, pictures),
    architecture("ConvNeXt-like", convnext, CE, pictures),
    architecture("U-Net", UNet, MSE, itself(pictures)),
    architecture("MLP-Mixer", mixer, CE, pictures),
    architecture("ViT", ViT, CE, pictures),
    architecture("convolutional autoencoder", autoencoder, MSE, itself(pictures)),
)

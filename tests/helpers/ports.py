"""A MobileNetV3 with the module tree and the arithmetic of d-li14's ports, written from their published state dicts.

https://github.com/d-li14/mobilenetv3.pytorch: blocks are `features.N.conv.M`, squeeze-and-excite is two linear layers.
Its two branches: a block that does not expand has the activation before the squeeze-and-excite, one that expands has it
after (`fixed` gives later ports, which have it before in both).
"""

import torch
import torch.nn.functional as F
from torch import nn

from mnv3.arch import Arch


class HardSwish(nn.Module):
    def forward(self, x):
        return x * F.relu6(x + 3) / 6


class Gate(nn.Module):
    def __init__(self, channels, squeeze):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, squeeze), nn.ReLU(), nn.Linear(squeeze, channels))

    def forward(self, x):
        return x * (F.relu6(self.fc(x.mean((2, 3))) + 3) / 6)[:, :, None, None]


class Block(nn.Module):
    def __init__(self, cin, row, fixed, squeeze=None):
        super().__init__()
        act = HardSwish if row.act == "HS" else nn.ReLU
        se = Gate(row.exp, squeeze or row.squeeze) if row.se else nn.Identity()
        depthwise = nn.Conv2d(row.exp, row.exp, row.kernel, row.stride, row.kernel // 2, groups=row.exp, bias=False)
        project = [nn.Conv2d(row.exp, row.out, 1, bias=False), nn.BatchNorm2d(row.out)]
        middle = [depthwise, nn.BatchNorm2d(row.exp)]
        if row.exp == cin:
            layers = [*middle, act(), se, *project]
        else:
            expand = [nn.Conv2d(cin, row.exp, 1, bias=False), nn.BatchNorm2d(row.exp), act()]
            layers = [*expand, *middle, *([act(), se] if fixed else [se, act()]), *project]
        self.conv = nn.Sequential(*layers)
        self.shortcut = row.stride == 1 and cin == row.out

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


class DLi14(nn.Module):
    def __init__(self, arch: Arch, *, num_classes=1000, fixed=False, squeeze=None):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, arch.stem, 3, 2, 1, bias=False), nn.BatchNorm2d(arch.stem), HardSwish())
        blocks = [Block(cin, row, fixed, squeeze) for cin, row in zip(arch.inputs, arch.rows, strict=True)]
        self.features = nn.Sequential(stem, *blocks)
        last_in = arch.rows[-1].out
        self.conv = nn.Sequential(nn.Conv2d(last_in, arch.last, 1, bias=False), nn.BatchNorm2d(arch.last), HardSwish())
        self.classifier = nn.Sequential(
            nn.Linear(arch.last, arch.head), HardSwish(), nn.Dropout(0.2), nn.Linear(arch.head, num_classes)
        )

    def forward(self, x):
        return self.classifier(self.conv(self.features(x)).mean((2, 3)))


def double(model: nn.Module) -> nn.Module:
    return model.to(torch.float64).eval()

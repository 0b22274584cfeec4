"""EfficientNet B0-B7 (Tan and Le 2019) and Lite0-Lite4: torchvision's networks, and the weights of
three origins.

The same weights come under three key styles and with two arithmetics: those trained with TensorFlow
need BatchNorm eps 1e-3 and "SAME" padding, torchvision's and most of timm's need torchvision's eps
and symmetric padding. With one's keys and another's arithmetic, logits are off by a factor."""

from functools import partial

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig

from model_compound_scaling.networks.efficientnet_keys import LITE, ORIGINS, lite_stages
from model_compound_scaling.networks.micronet_scaling import round_channels


class SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME": output is ceil(input / stride), an odd zero goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        # how much is padded, and on which side more, depends on the size of the input
        pads = []
        for d in (1, 0):  # F.pad begins with the last dimension
            size, k, s = x.shape[2 + d], self.kernel_size[d], self.stride[d]
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _lite(variant: str, num_classes: int) -> nn.Module:
    """Without squeeze-and-excitation, whose places stay, and with ReLU6: both quantize badly."""
    width, depth = LITE[variant]
    kernels, strides, expansions = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, *[6] * 6)
    outputs = [round_channels(width * n) for n in (16, 24, 40, 80, 112, 192, 320)]
    block = partial(MBConv, se_layer=lambda *_, **__: nn.Identity())
    inputs = (32, *outputs[:-1])
    rows = zip(expansions, kernels, strides, inputs, outputs, lite_stages(depth), strict=True)
    stages = [MBConvConfig(*row, block=block) for row in rows]
    dropout = 0.2 if width == 1 else 0.3
    model = EfficientNet(stages, dropout, num_classes=num_classes, last_channel=1280)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
    return model


def efficientnet(variant: str, *, num_classes: int, origin: str | None = None) -> nn.Module:
    """(N, 3, H, W) images -> (N, num_classes) logits; `variant` is b0 ... b7, lite0 ... lite4.
    `origin`, a key of ORIGINS: by default that of each kind's first weights."""
    if variant in LITE:
        model, rules = _lite(variant, num_classes), ORIGINS[origin or "tf"]
    else:
        name, rules = f"efficientnet_{variant}", ORIGINS[origin or "torchvision"]
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    for module in list(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = rules.bn_eps or module.eps
            module.momentum = rules.bn_momentum or module.momentum
        # with stride 1 and an odd kernel both paddings are the same
        elif isinstance(module, nn.Conv2d) and rules.same_padding and module.stride != (1, 1):
            module.__class__ = SameConv2d
    return model

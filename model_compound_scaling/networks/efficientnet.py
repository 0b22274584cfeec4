"""EfficientNet B0-B7 (Tan and Le 2019): torchvision's networks, and the weights of three origins.

The same weights come under three key styles and with two arithmetics: those trained with TensorFlow
need BatchNorm eps 1e-3 and "SAME" padding, torchvision's and most of timm's need torchvision's eps
and symmetric padding. With one's keys and another's arithmetic, logits are off by a factor."""

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from model_compound_scaling.networks.efficientnet_keys import ORIGINS


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


def efficientnet(variant: str, *, num_classes: int, origin: str = "torchvision") -> nn.Module:
    """(N, 3, H, W) images -> (N, num_classes) logits; `variant` is b0 ... b7."""
    name, rules = f"efficientnet_{variant}", ORIGINS[origin]
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    for module in list(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = rules.bn_eps or module.eps
            module.momentum = rules.bn_momentum or module.momentum
        # with stride 1 and an odd kernel both paddings are the same
        elif isinstance(module, nn.Conv2d) and rules.same_padding and module.stride != (1, 1):
            module.__class__ = SameConv2d
    return model

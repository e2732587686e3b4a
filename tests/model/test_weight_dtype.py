"""Weights in half precision beside normalisation in fp32."""

import pytest
import torch
from torch import nn

from runner.model.weight_dtype import convert_weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.group = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.row, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, images, scale=None):
        x = self.group(self.norm(self.conv(images))).mean((2, 3))
        return self.head(self.row(x)) * (1 if scale is None else scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_stay_in_fp32_and_inputs_are_converted(dtype):
    torch.manual_seed(0)
    whole, images = Net(), torch.randn(4, 3, 6, 6)
    expected = whole(images, scale=torch.ones(2))
    net = convert_weights(whole, dtype)
    made = net(images, scale=torch.ones(2))
    made.float().square().mean().backward()
    kept = {name.partition(".")[0] for name, p in net.named_parameters() if p.dtype == torch.float32}

    assert kept == {"norm", "group", "row"}
    assert made.dtype == net.conv.weight.grad.dtype == dtype
    assert (net.norm.weight.grad.dtype, net.norm.running_mean.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(made.float(), expected, rtol=0.05, atol=0.05)


def test_without_a_type_nothing_changes():
    net = Net()
    assert convert_weights(net, None) is net
    assert net.conv.weight.dtype == torch.float32
    assert not net._forward_pre_hooks

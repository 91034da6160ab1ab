"""SRGAN in plain PyTorch: see models_torch.py, which has what all share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models_torch import Form, batches, move


class Residual(nn.Module):
  """x + norm(conv(prelu(norm(conv(x)))))."""

  def __init__(self, width: int):
    super().__init__()
    conv = lambda: nn.Conv2d(width, width, 3, 1, 1, bias=False)
    norm = lambda: nn.BatchNorm2d(width)
    self.block = nn.Sequential(conv(), norm(), nn.PReLU(width), conv(), norm())

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> the same."""
    return x + self.block(x)


class Generator(nn.Module):
  """SRResNet, as gm/nets/srgan.py has it: one slope for each channel."""

  def __init__(self, m: Any, channels: int):
    super().__init__()
    width = m.base
    self.first = nn.Sequential(nn.Conv2d(channels, width, 9, 1, 4), nn.PReLU(width))
    after = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
    self.blocks = nn.Sequential(*(Residual(width) for _ in range(m.num_blocks)), *after)
    up = lambda: [nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU(width)]
    self.last = nn.Sequential(*up(), *up(), nn.Conv2d(width, channels, 9, 1, 4))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, h, w] -> [N, C, 4 h, 4 w]."""
    first = self.first(x)
    return self.last(first + self.blocks(first))


def discriminator(m: Any, channels: int, size: int) -> nn.Sequential:
  """The discriminator of gm/nets/srgan.py with a dense head."""
  layers, before = [], channels
  for i, width in enumerate(m.d_widths):
    layers += [nn.Conv2d(before, width, 3, 1 + i % 2, 1, bias=i == 0)]
    layers += ([nn.BatchNorm2d(width)] if i else []) + [nn.LeakyReLU(0.2, True)]
    before, size = width, -(-size // (1 + i % 2))
  hidden = nn.Linear(before * size**2, m.d_hidden)
  return nn.Sequential(
    *layers, nn.Flatten(), hidden, nn.LeakyReLU(0.2, True), nn.Linear(m.d_hidden, 1)
  )


class SRGAN:
  """The second stage of gm/methods/srgan.py on pixels: D on the fakes that G then moves on."""

  def __init__(self, config: Any, data: dict, form: Form):
    m, channels = config.model, config.data.channels
    self.m, self.batches = m, batches(config, data, form)
    d = discriminator(m, channels, config.data.image_size)
    self.networks = {"sr": form.place(Generator(m, channels)), "d": form.place(d)}
    self.run = {n: form.run(net) for n, net in self.networks.items()}
    self.tx = {
      n: form.adam(net, lr=config.lr, betas=(m.b1, 0.999)) for n, net in self.networks.items()
    }

  def step(self) -> tuple:
    """One step of the discriminator and one of the generator."""
    x, m, bce = self.batches(), self.m, F.binary_cross_entropy_with_logits
    flipped = (torch.rand(len(x)) < m.flip)[:, None, None, None]
    x = torch.where(flipped, x.flip(3), x)
    size = [n // 4 for n in x.shape[2:]]
    small = F.interpolate(x, size, mode="bicubic", antialias=True)
    small = small.add(1).mul(127.5).round().clamp(0, 255).div(255)
    fake = self.run["sr"](small)
    real_logits, fake_logits = self.run["d"](x), self.run["d"](fake.detach())
    one, zero = torch.ones_like(real_logits), torch.zeros_like(real_logits)
    loss_d = move(self.tx["d"], bce(real_logits, one) + bce(fake_logits, zero))
    for p in self.networks["d"].parameters():
      p.requires_grad_(False)
    adversarial = bce(self.run["d"](fake), one)
    loss = m.pixel_weight * F.mse_loss(fake, x) + m.d_weight * adversarial
    loss = move(self.tx["sr"], loss)
    for p in self.networks["d"].parameters():
      p.requires_grad_(True)
    return loss, loss_d

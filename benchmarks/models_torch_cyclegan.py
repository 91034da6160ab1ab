"""CycleGAN in plain PyTorch: see models_torch.py, which has what all share."""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models_torch import Batches, Form, move


def plain(layer: nn.Module) -> nn.Module:
  """Kernels N(0, 0.02^2), biases 0."""
  nn.init.normal_(layer.weight, 0.0, 0.02)
  nn.init.zeros_(layer.bias)
  return layer


class Residual(nn.Module):
  """x + norm(conv(relu(norm(conv(x))))), borders reflected."""

  def __init__(self, width: int):
    super().__init__()
    conv = lambda: plain(nn.Conv2d(width, width, 3))
    pad, norm = nn.ReflectionPad2d(1), nn.InstanceNorm2d(width)
    self.block = nn.Sequential(pad, conv(), norm, nn.ReLU(True), pad, conv(), norm)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> the same."""
    return x + self.block(x)


def translator(m: Any, channels: int) -> nn.Sequential:
  """The translator of gm/nets/translator.py."""
  width = m.g_base
  after = lambda width: [nn.InstanceNorm2d(width), nn.ReLU(True)]
  layers = [nn.ReflectionPad2d(3), plain(nn.Conv2d(channels, width, 7)), *after(width)]
  for _ in range(m.num_halvings):
    layers += [plain(nn.Conv2d(width, 2 * width, 3, 2, 1)), *after(2 * width)]
    width *= 2
  layers += [Residual(width) for _ in range(m.num_blocks)]
  for _ in range(m.num_halvings):
    up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1)
    layers += [plain(up), *after(width // 2)]
    width //= 2
  last = plain(nn.Conv2d(width, channels, 7))
  return nn.Sequential(*layers, nn.ReflectionPad2d(3), last, nn.Tanh())


def discriminator(m: Any, channels: int) -> nn.Sequential:
  """The patch discriminator of gm/nets/patch.py."""
  layers, before = [], channels
  for i, width in enumerate(m.d_widths):
    stride = 1 if i and i + 1 == len(m.d_widths) else 2
    layers += [plain(nn.Conv2d(before, width, 4, stride, m.d_padding))]
    layers += [nn.InstanceNorm2d(width)] if i else []
    layers += [nn.LeakyReLU(0.2, True)]
    before = width
  return nn.Sequential(*layers, plain(nn.Conv2d(before, 1, 4, 1, m.d_padding)))


class Pool:
  """As gm/pool.py, image by image."""

  def __init__(self, size: int):
    self.size, self.images = size, []

  def __call__(self, x: torch.Tensor) -> torch.Tensor:
    """Exchanges some new images for old ones."""
    out = []
    for image in x.detach().split(1):
      if len(self.images) < self.size:
        self.images.append(image)
      elif random.random() < 0.5:
        at = random.randrange(self.size)
        self.images[at], image = image, self.images[at]
      out.append(image)
    return torch.cat(out)


class CycleGAN:
  """gm/methods/cyclegan.py: both translators in one step, then both discriminators."""

  def __init__(self, config: Any, data: dict, form: Form):
    m, channels = config.model, config.data.channels
    self.m, self.jitter = m, m.jitter
    self.batches = {n: Batches({"image": data[n]}, config.batch_size, channels, form) for n in "ab"}
    nets = {n: form.place(translator(m, channels)) for n in ("g_ab", "g_ba")}
    nets |= {n: form.place(discriminator(m, channels)) for n in ("d_a", "d_b")}
    self.networks, self.run = nets, {n: form.run(net) for n, net in nets.items()}
    adam = lambda *names: form.adam(*(nets[n] for n in names), lr=config.lr, betas=(m.b1, 0.999))
    self.tx_g, self.tx_d = adam("g_ab", "g_ba"), adam("d_a", "d_b")
    self.pools = {n: Pool(m.pool_size) for n in "ab"}

  def draw(self, name: str) -> torch.Tensor:
    """A batch, enlarged, cut out and mirrored."""
    x, m = self.batches[name](), self.m
    h, w = x.shape[2:]
    if m.jitter:
      x = F.interpolate(x, (h + m.jitter, w + m.jitter), mode="bicubic").clamp_(-1, 1)
      top, left = random.randint(0, m.jitter), random.randint(0, m.jitter)
      x = x[:, :, top : top + h, left : left + w]
    return x.flip(3) if random.random() < m.flip else x

  def step(self) -> tuple:
    """One step of the translators and one of the discriminators."""
    m, net = self.m, self.run
    a, b = self.draw("a"), self.draw("b")
    judges = list(itertools.chain(*(self.networks[n].parameters() for n in ("d_a", "d_b"))))
    for p in judges:
      p.requires_grad_(False)
    fake_b, fake_a = net["g_ab"](a), net["g_ba"](b)
    one = lambda logits: (logits - 1).square().mean()
    loss = one(net["d_b"](fake_b)) + one(net["d_a"](fake_a))
    loss = loss + m.cycle * (F.l1_loss(net["g_ba"](fake_b), a) + F.l1_loss(net["g_ab"](fake_a), b))
    same = F.l1_loss(net["g_ab"](b), b) + F.l1_loss(net["g_ba"](a), a)
    loss = move(self.tx_g, loss + m.cycle * m.same * same)
    for p in judges:
      p.requires_grad_(True)
    loss_d = 0.0
    for n, real, fake in (("a", a, fake_a), ("b", b, fake_b)):
      old = self.pools[n](fake)
      loss_d = loss_d + (one(net[f"d_{n}"](real)) + net[f"d_{n}"](old).square().mean()) / 2
    return loss, move(self.tx_d, loss_d)

"""VQGAN's first stage in plain PyTorch: see models_torch.py, which has what all share."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models_torch import Form, batches

WEIGHTS = pathlib.Path(__file__).parent.parent / "gm/weights/digit_classifier.npz"


class Residual(nn.Module):
  """skip + conv(swish(norm(conv(swish(norm x)))))."""

  def __init__(self, before: int, width: int, groups: int):
    super().__init__()
    self.norm0, self.norm1 = nn.GroupNorm(groups, before, 1e-6), nn.GroupNorm(groups, width, 1e-6)
    self.conv0, self.conv1 = nn.Conv2d(before, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
    self.skip = nn.Identity() if before == width else nn.Conv2d(before, width, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, width, H, W]."""
    h = self.conv0(F.silu(self.norm0(x)))
    return self.skip(x) + self.conv1(F.silu(self.norm1(h)))


class Attention(nn.Module):
  """x + attention in one head, with torch's own attention."""

  def __init__(self, width: int, groups: int):
    super().__init__()
    self.norm = nn.GroupNorm(groups, width, 1e-6)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> the same."""
    rows = self.norm(x).flatten(2).transpose(1, 2)
    q, k, v = self.qkv(rows).chunk(3, -1)
    y = self.out(F.scaled_dot_product_attention(q, k, v))
    return x + y.transpose(1, 2).view_as(x)


def middle(width: int, groups: int) -> list[nn.Module]:
  return [Residual(width, width, groups), Attention(width, groups), Residual(width, width, groups)]


def level(i: int, m: Any, before: int, num: int) -> list[nn.Module]:
  """The blocks of a level."""
  width, layers = m.width * m.multipliers[i], []
  for _ in range(num):
    layers += [Residual(before, width, m.groups)]
    layers += [Attention(width, m.groups)] if i in m.attention else []
    before = width
  return layers


def ending(before: int, groups: int) -> list[nn.Module]:
  return [nn.GroupNorm(groups, before, 1e-6), nn.SiLU()]


def encoder(m: Any, channels: int) -> nn.Sequential:
  layers, before = [nn.Conv2d(channels, m.width, 3, 1, 1)], m.width
  for i, factor in enumerate(m.multipliers):
    layers += level(i, m, before, m.num_blocks)
    before = factor * m.width
    if i + 1 < len(m.multipliers):
      layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(before, before, 3, 2)]
  layers += [*middle(before, m.groups), *ending(before, m.groups)]
  last = [nn.Conv2d(before, m.z_width, 3, 1, 1), nn.Conv2d(m.z_width, m.code_dim, 1)]
  return nn.Sequential(*layers, *last)


def decoder(m: Any) -> nn.Sequential:
  """All but the last convolution."""
  before = m.width * m.multipliers[-1]
  layers = [nn.Conv2d(m.code_dim, m.z_width, 1), nn.Conv2d(m.z_width, before, 3, 1, 1)]
  layers += middle(before, m.groups)
  for i in reversed(range(len(m.multipliers))):
    layers += level(i, m, before, m.num_blocks + 1)
    before = m.width * m.multipliers[i]
    if i:
      layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, before, 3, 1, 1)]
  return nn.Sequential(*layers, *ending(before, m.groups))


def discriminator(m: Any, channels: int) -> nn.Sequential:
  """Of patches, with batch norm."""
  layers, before = [], channels
  for i, width in enumerate(m.d_widths):
    stride = 1 if i and i + 1 == len(m.d_widths) else 2
    layers += [nn.Conv2d(before, width, 4, stride, 1, bias=i == 0)]
    layers += [nn.BatchNorm2d(width)] if i else []
    layers += [nn.LeakyReLU(0.2, True)]
    before = width
  return nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 1))


class Features(nn.Module):
  """The convolutions of the classifier of digits, with its weights."""

  def __init__(self):
    super().__init__()
    with np.load(WEIGHTS) as file:
      for i in range(2):
        kernel = file[f"params/Conv_{i}/kernel"].astype(np.float32).transpose(3, 2, 0, 1)
        self.register_buffer(f"kernel{i}", torch.from_numpy(np.ascontiguousarray(kernel)))
        bias = file[f"params/Conv_{i}/bias"].astype(np.float32)
        self.register_buffer(f"bias{i}", torch.from_numpy(bias))

  def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
    """Images -> two maps, of length 1 at every position."""
    maps = []
    for kernel, bias in ((self.kernel0, self.bias0), (self.kernel1, self.bias1)):
      x = F.relu(F.conv2d(F.pad(x, (1, 2, 1, 2)), kernel, bias, 2))
      maps.append(x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-20))
    return maps


class VQGAN:
  """The first stage of gm/methods/vqgan.py once D is at work."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    channels = config.data.channels or data["image"].shape[3]
    enc, dec = form.place(encoder(m, channels)), form.place(decoder(m))
    last = form.place(nn.Conv2d(m.width * m.multipliers[0], channels, 3, 1, 1))
    d = form.place(discriminator(m, channels))
    book = nn.Embedding(m.num_codes, m.code_dim)
    self.networks = {"enc": enc, "dec": dec, "last": last, "book": book, "d": d}
    self.enc, self.dec, self.d = form.run(enc), form.run(dec), form.run(d)
    self.features = form.run(Features())
    self.tx = form.adam(enc, dec, last, book, lr=config.lr, betas=(0.5, 0.9))
    self.d_tx = form.adam(d, lr=config.lr, betas=(0.5, 0.9))

  def rec(self, x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """L1 and the distance of features."""
    with torch.no_grad():
      true = self.features(x)
    apart = [(a - b).square().sum(1).mean() for a, b in zip(true, self.features(r), strict=True)]
    return F.l1_loss(r, x) + self.m.perceptual_weight * sum(apart)

  def step(self) -> tuple:
    """One step of the autoencoder, and one of D on the same reconstructions."""
    m, x = self.m, self.batches()
    book, last, d = (self.networks[n] for n in ("book", "last", "d"))
    z = self.enc(x).permute(0, 2, 3, 1)
    with torch.no_grad():
      distance = book.weight.square().sum(1) - 2 * z.flatten(0, 2) @ book.weight.T
      index = distance.argmin(1)
    e = book(index).view_as(z)
    r = last(self.dec((z + (e - z).detach()).permute(0, 3, 1, 2)))
    seen = r.detach().requires_grad_(True)
    d.requires_grad_(False)
    (of_rec,) = torch.autograd.grad(self.rec(x, seen), seen)
    (of_g,) = torch.autograd.grad(-self.d(seen).mean(), seen)
    in_w = [torch.autograd.grad(r, last.weight, s, retain_graph=True)[0] for s in (of_rec, of_g)]
    weight = (in_w[0].norm() / (in_w[1].norm() + 1e-4)).clamp(max=1e4) * m.d_weight
    vq = F.mse_loss(e, z.detach()) + m.beta * F.mse_loss(z, e.detach())
    self.tx.zero_grad(set_to_none=True)
    torch.autograd.backward([r, vq], [of_rec + weight * of_g, torch.ones(())])
    self.tx.step()
    d.requires_grad_(True)
    real, fake = self.d(x), self.d(seen.detach())
    d_loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    self.d_tx.zero_grad(set_to_none=True)
    d_loss.backward()
    self.d_tx.step()
    return vq.detach(), d_loss.detach()

"""StarGAN in plain PyTorch: see models_torch.py, which has what all share.

PyTorch cannot compile second derivatives, so the penalty's pass is always eager.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models_torch import Form, batches, move
from gm.data import attributes, avatars


def normed(layer: nn.Module, width: int) -> list[nn.Module]:
  """A layer, instance norm with scale and shift, ReLU."""
  return [layer, nn.InstanceNorm2d(width, affine=True), nn.ReLU(True)]


class Residual(nn.Module):
  """x + norm(conv(relu(norm(conv(x)))))."""

  def __init__(self, width: int):
    super().__init__()
    conv = lambda: nn.Conv2d(width, width, 3, 1, 1, bias=False)
    norm = nn.InstanceNorm2d(width, affine=True)
    self.block = nn.Sequential(*normed(conv(), width), conv(), norm)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> the same."""
    return x + self.block(x)


def generator(m: Any, channels: int, num_labels: int) -> nn.Sequential:
  """The translator of gm/nets/translator.py with StarGAN's kernels."""
  width = m.g_base
  layers = normed(nn.Conv2d(channels + num_labels, width, 7, 1, 3, bias=False), width)
  for _ in range(m.num_halvings):
    layers += normed(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), 2 * width)
    width *= 2
  layers += [Residual(width) for _ in range(m.num_blocks)]
  for _ in range(m.num_halvings):
    layers += normed(nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), width // 2)
    width //= 2
  return nn.Sequential(*layers, nn.Conv2d(width, channels, 7, 1, 3, bias=False), nn.Tanh())


class Discriminator(nn.Module):
  """The discriminator of gm/nets/stargan.py."""

  def __init__(self, m: Any, channels: int, num_labels: int, size: int):
    super().__init__()
    layers, before = [], channels
    for width in m.d_widths:
      layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.01)]
      before = width
    self.trunk = nn.Sequential(*layers)
    self.source = nn.Conv2d(before, 1, 3, 1, 1, bias=False)
    self.labels = nn.Conv2d(before, num_labels, size // 2 ** len(m.d_widths), bias=False)

  def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images -> scores of patches, logits of labels."""
    h = self.trunk(x)
    return self.source(h), self.labels(h).flatten(1)


def labels_of(rows: np.ndarray, names: tuple) -> torch.Tensor:
  """Columns of 0 and 1, as gm/data/attributes.py makes them, of faces' rows."""
  columns = []
  for name in attributes.columns(names, avatars.VALUES):
    attribute, members = attributes.parse(name, avatars.VALUES)
    here = [v in members for v in avatars.VALUES[attribute]]
    columns.append(np.array(here)[rows[:, avatars.NAMES.index(attribute)]])
  return torch.from_numpy(np.stack(columns, 1).astype(np.float32))


class StarGAN:
  """gm/methods/stargan.py with binary labels: D moves num_critic times, then G."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    self.labels = labels_of(data["attributes"], config.data.attributes)
    size, channels, num = data["image"].shape[1], data["image"].shape[3], self.labels.shape[1]
    self.networks = {
      "g": form.place(generator(m, channels, num)),
      "d": form.place(Discriminator(m, channels, num, size)),
    }
    self.run = {n: form.run(net) for n, net in self.networks.items()}
    adam = lambda n: form.adam(self.networks[n], lr=config.lr, betas=(m.b1, m.b2))
    self.g_tx, self.d_tx = adam("g"), adam("d")

  def make(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """What G makes of images by labels."""
    told = c[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return self.run["g"](torch.cat([x, told], 1))

  def cls(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropies, summed over labels."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(logits)

  def penalty(self, x: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """E (|grad sum D| - 1)^2 between data and fakes."""
    between = torch.lerp(fake, x, torch.rand(len(x), 1, 1, 1)).requires_grad_()
    score = self.networks["d"](between)[0].sum()
    (slope,) = torch.autograd.grad(score, between, create_graph=True)
    return ((slope.square().sum((1, 2, 3)) + 1e-12).sqrt() - 1).square().mean()

  def step(self) -> tuple:
    """num_critic moves of D, one of G on the last images."""
    m, d = self.m, self.networks["d"]
    d.requires_grad_(True)
    for _ in range(m.num_critic):
      drawn = self.batches.draw()
      x, a = self.batches.decode(drawn), self.labels[drawn]
      if m.flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < m.flip, x.flip(3), x)
      c = a[torch.randperm(len(a))]
      with torch.no_grad():
        fake = self.make(x, c)
      (real_scores, logits), (fake_scores, _) = self.run["d"](x), self.run["d"](fake)
      loss = fake_scores.mean() - real_scores.mean() + m.cls * self.cls(logits, a)
      d_loss = move(self.d_tx, loss + m.gp * self.penalty(x, fake))
    d.requires_grad_(False)
    fake = self.make(x, c)
    scores, logits = self.run["d"](fake)
    rec = F.l1_loss(self.make(fake, a), x)
    g_loss = move(self.g_tx, m.cls * self.cls(logits, c) - scores.mean() + m.rec * rec)
    return d_loss, g_loss

"""The residual GANs of the workloads in plain PyTorch: SN-GAN and BigGAN.

Spectral normalisation is PyTorch's own, one power iteration in every pass of training. As in ours,
a 1 x 1 convolution runs below the upsampling that it commutes with, and above the pooling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from benchmarks.models_torch import Form, batches, move


def spectral(net: nn.Module, *, skip: Sequence[nn.Module] = (), eps: float = 1e-12) -> nn.Module:
  """Normalises every layer with a matrix; returns the network."""
  for layer in list(net.modules()):
    if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) and layer not in skip:
      parametrizations.spectral_norm(layer, eps=eps)
  return net


def start(net: nn.Module, first_value: Callable, wide: float = 1.0) -> nn.Module:
  """Gives weights their first values, times `wide` for 3 x 3 kernels of blocks; biases are 0."""
  blocks = {c for m in net.modules() if isinstance(m, UpBlock | DownBlock) for c in m.modules()}
  for layer in net.modules():
    if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
      kernel = getattr(layer, "kernel_size", (1, 1))
      first_value(layer.weight, wide if layer in blocks and kernel == (3, 3) else 1.0)
      if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
  return net


class ConditionalNorm(nn.BatchNorm2d):
  """Batch norm whose scale and shift are linear in a condition."""

  def __init__(self, width: int, condition: int, eps: float):
    super().__init__(width, eps, affine=False)
    self.scale, self.shift = (nn.Linear(condition, width, bias=False) for _ in range(2))

  def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W], [N, E] -> [N, C, H, W]."""
    scale, shift = 1 + self.scale(c)[..., None, None], self.shift(c)[..., None, None]
    return torch.addcmul(shift, super().forward(x), scale)


class Attention(nn.Module):
  """SAGAN's, with pooled keys and values."""

  def __init__(self, width: int):
    super().__init__()
    point = functools.partial(nn.Conv2d, kernel_size=1, bias=False)
    self.theta, self.phi = point(width, width // 8), point(width, width // 8)
    self.g, self.o = point(width, width // 2), point(width // 2, width)
    self.gamma = nn.Parameter(torch.zeros(()))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> the same."""
    theta = self.theta(x).flatten(2)  # [N, C / 8, H W]
    phi, g = (F.max_pool2d(f(x), 2).flatten(2) for f in (self.phi, self.g))
    weights = F.softmax(torch.bmm(theta.transpose(1, 2), phi), -1)
    seen = torch.bmm(g, weights.transpose(1, 2)).unflatten(2, x.shape[2:])
    return torch.addcmul(x, self.gamma, self.o(seen))


class UpBlock(nn.Module):
  """Norm, ReLU, up, conv, norm, ReLU, conv, beside conv 1 x 1 and up."""

  def __init__(self, before: int, width: int, norm: Callable):
    super().__init__()
    self.norm0, self.norm1 = norm(before), norm(width)
    self.conv0 = nn.Conv2d(before, width, 3, padding=1)
    self.conv1 = nn.Conv2d(width, width, 3, padding=1)
    self.shortcut = nn.Conv2d(before, width, 1)

  def forward(self, x: torch.Tensor, *condition: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W], for conditional norms [N, E] -> [N, width, 2 H, 2 W]."""
    h = F.relu(self.norm0(x, *condition), inplace=True)
    h = self.conv0(F.interpolate(h, scale_factor=2))
    h = self.conv1(F.relu(self.norm1(h, *condition), inplace=True))
    return h + F.interpolate(self.shortcut(x), scale_factor=2)


class DownBlock(nn.Module):
  """ReLU, conv, ReLU, conv, pool, beside pool and conv 1 x 1."""

  def __init__(self, before: int, width: int, *, down: bool, first: bool, wide: bool):
    super().__init__()
    hidden = width if wide or first else before
    self.down, self.first = down, first
    self.conv0 = nn.Conv2d(before, hidden, 3, padding=1)
    self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
    self.shortcut = nn.Conv2d(before, width, 1) if down or before != width else nn.Identity()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, width, H / 2, W / 2], or the same size."""
    h = self.conv0(x if self.first else F.relu(x))
    h = self.conv1(F.relu(h, inplace=True))
    if self.down:
      h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    return h + self.shortcut(x)


class Generator(nn.Module):
  """With classes every block sees its own chunk of z beside the embedding of the label."""

  def __init__(
    self,
    z_dim: int,
    widths: Sequence[int],
    size: int,
    channels: int,
    *,
    eps: float = 1e-5,
    num_classes: int = 0,
    embed_features: int = 0,
    attention: Sequence[int] = (),
  ):
    super().__init__()
    self.start = size // 2 ** len(widths)
    self.chunk = z_dim // (len(widths) + 1) if num_classes else z_dim
    plain = norm = functools.partial(nn.BatchNorm2d, eps=eps)
    if num_classes:
      self.embed = nn.Embedding(num_classes, embed_features)
      norm = lambda width: ConditionalNorm(width, embed_features + self.chunk, eps)
    self.first = nn.Linear(self.chunk, self.start**2 * widths[0])
    before = (widths[0], *widths[:-1])
    self.blocks = nn.ModuleList(UpBlock(a, b, norm) for a, b in zip(before, widths, strict=True))
    sizes = [self.start * 2 ** (i + 1) for i in range(len(widths))]
    seen = {str(i): Attention(widths[i]) for i, n in enumerate(sizes) if n in attention}
    self.attention = nn.ModuleDict(seen)
    self.norm, self.last = plain(widths[-1]), nn.Conv2d(widths[-1], channels, 3, padding=1)

  def forward(self, z: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """[N, Z], with classes labels [N] -> images."""
    first, *chunks = z.split(self.chunk, 1)
    conditions = [()] * len(self.blocks)
    if y is not None:
      shared = self.embed(y)
      conditions = [(torch.cat([shared, chunk], 1),) for chunk in chunks]
    x = self.first(first).view(len(z), -1, self.start, self.start)
    for i, block in enumerate(self.blocks):
      x = block(x, *conditions[i])
      if str(i) in self.attention:
        x = self.attention[str(i)](x)
    return torch.tanh(self.last(F.relu(self.norm(x), inplace=True)))


class Discriminator(nn.Module):
  """Blocks, the sum over the map, a linear map and with classes a projection of the label."""

  def __init__(
    self,
    channels: int,
    widths: Sequence[int],
    down: int,
    size: int,
    *,
    wide: bool = False,
    head_bias: bool = True,
    num_classes: int = 0,
    attention: Sequence[int] = (),
  ):
    super().__init__()
    options = [{"down": i < down, "first": i == 0, "wide": wide} for i in range(len(widths))]
    before = (channels, *widths[:-1])
    blocks = zip(before, widths, options, strict=True)
    self.blocks = nn.ModuleList(DownBlock(a, b, **o) for a, b, o in blocks)
    sizes = [size // 2 ** min(i + 1, down) for i in range(len(widths))]
    seen = {str(sizes.index(n)): Attention(widths[sizes.index(n)]) for n in attention}
    self.attention = nn.ModuleDict(seen)
    self.head = nn.Linear(widths[-1], 1, bias=head_bias)
    if num_classes:
      self.embed = nn.Embedding(num_classes, widths[-1])

  def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """Images, with classes labels [N] -> logits [N]."""
    for i, block in enumerate(self.blocks):
      x = block(x)
      if str(i) in self.attention:
        x = self.attention[str(i)](x)
    h = F.relu(x, inplace=True).sum((2, 3))
    logits = self.head(h)[:, 0]
    return logits if y is None else logits + (self.embed(y) * h).sum(1)


def hinge(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
  """The discriminator's loss."""
  return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


class SNGAN:
  """gm/methods/sngan.py with residual networks, without classes and averages."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    size, channels = data["image"].shape[1], config.data.channels or data["image"].shape[3]
    g = Generator(m.z_dim, m.g_widths, size, channels, eps=2e-5)
    d = Discriminator(channels, m.d_widths, m.d_down, size, head_bias=m.d_head_bias)
    g, d = (start(net, nn.init.xavier_uniform_, math.sqrt(2)) for net in (g, d))
    self.networks = {"g": form.place(g), "d": form.place(spectral(d))}
    self.g, self.d = form.run(g), form.run(d)
    self.txs = [form.adam(n, lr=config.lr, betas=(m.b1, m.b2), eps=m.adam_eps) for n in (g, d)]
    falling = functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0)
    self.rates = [falling(tx, total_iters=config.num_steps) for tx in self.txs]

  def step(self) -> tuple:
    """G moves once, then D d_steps times."""
    (g_tx, d_tx), n = self.txs, self.batches.size
    self.networks["d"].requires_grad_(False)
    fake_logits = self.d(self.g(torch.randn(self.m.g_batch_size or n, self.m.z_dim)))
    g_loss = move(g_tx, -fake_logits.mean())
    self.networks["d"].requires_grad_(True)
    for _ in range(self.m.d_steps):
      x = self.batches()
      if self.m.dequantise:
        x = torch.add((x + 1) * (127.5 / 128) - 1, torch.rand_like(x), alpha=1 / 128)
      with torch.no_grad():
        fake = self.g(torch.randn(n, self.m.z_dim))
      d_loss = move(d_tx, hinge(*self.d(torch.cat([x, fake])).chunk(2)))
    for rate in self.rates:
      rate.step()
    return d_loss, g_loss


class BigGAN:
  """gm/methods/biggan.py with chunks of z and a shared embedding, without standing statistics."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    size, channels = data["image"].shape[1], config.data.channels or data["image"].shape[3]
    self.num_classes = int(data["label"].max()) + 1
    common = {"num_classes": self.num_classes, "attention": m.attention}
    g_widths, d_widths = ([m.base * k for k in widths] for widths in (m.g_widths, m.d_widths))
    g = Generator(m.z_dim, g_widths, size, channels, embed_features=m.embed_features, **common)
    d = Discriminator(channels, d_widths, m.d_down, size, wide=True, **common)
    g, d = (start(net, nn.init.orthogonal_) for net in (g, d))
    spectral(g, skip=[g.embed], eps=m.sn_eps)
    spectral(d, eps=m.sn_eps)
    self.networks = {"g": form.place(g), "d": form.place(d)}
    self.g, self.d = form.run(g), form.run(d)
    adam = functools.partial(form.adam, betas=(0.0, 0.999), eps=m.adam_eps)
    self.g_tx, self.d_tx = adam(g, lr=config.lr), adam(d, lr=config.lr * m.d_lr)
    self.kernels = [
      p for name, p in g.named_parameters() if p.ndim >= 2 and not name.startswith("embed")
    ]
    # the averaged G has the averages of batch norm and the vectors of spectral norm too
    self.moving = [t for t in (*g.parameters(), *g.buffers()) if t.is_floating_point()]
    self.ema = [t.detach().clone() for t in self.moving]

  def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noise and labels."""
    n = self.batches.size
    return torch.randn(n, self.m.z_dim), torch.randint(self.num_classes, (n,))

  def step(self) -> tuple:
    """D moves d_steps times, then G once."""
    self.networks["d"].requires_grad_(True)
    for _ in range(self.m.d_steps):
      (x, y), (z, y_fake) = self.batches.labelled(), self.draw()
      with torch.no_grad():
        fake = self.g(z, y_fake)
      logits = self.d(torch.cat([x, fake]), torch.cat([y, y_fake]))
      d_loss = move(self.d_tx, hinge(*logits.chunk(2)))
    self.networks["d"].requires_grad_(False)
    z, y = self.draw()
    self.g_tx.zero_grad(set_to_none=True)
    g_loss = -self.d(self.g(z, y), y).mean()
    g_loss.backward()
    with torch.no_grad():
      for w in self.kernels if self.m.ortho_weight else ():  # the gradient, as the authors do
        rows = w.flatten(1)
        gram = (rows @ rows.T).fill_diagonal_(0)
        w.grad.add_((gram @ rows).view_as(w), alpha=2 * self.m.ortho_weight)
    self.g_tx.step()
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, self.moving, 1 - self.m.ema)
    return d_loss, g_loss.detach()

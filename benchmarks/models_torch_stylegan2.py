"""StyleGAN2 in plain PyTorch.

The modulated convolution scales the maps before and after one shared convolution, as the authors'
code does where it is not fused. The filter [1, 3, 3, 1] is a depthwise convolution, as in their
reference implementation.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models_torch import Form, average, batches, move

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
FILTER = TAPS[:, None] * TAPS
GAIN = math.sqrt(2)
PATH_DECAY, W_DECAY = 0.99, 0.995


def fir(x: torch.Tensor, padding: int, *, stride: int = 1, gain: float = 1.0) -> torch.Tensor:
  """Filters, keeping every stride-th pixel."""
  w = (gain * FILTER).expand(x.shape[1], 1, 4, 4)
  return F.conv2d(x, w, stride=stride, padding=padding, groups=x.shape[1])


def upsample(x: torch.Tensor) -> torch.Tensor:
  """Doubles the sides by the filter."""
  w = (4 * FILTER).expand(x.shape[1], 1, 4, 4)
  return F.conv_transpose2d(x, w, stride=2, padding=1, groups=x.shape[1])


def lrelu(x: torch.Tensor) -> torch.Tensor:
  return F.leaky_relu(x, 0.2).mul_(GAIN)


class Linear(nn.Module):
  """With an equalised learning rate."""

  def __init__(self, before: int, width: int, *, bias: float = 0.0, lr_mult: float = 1.0):
    super().__init__()
    self.weight = nn.Parameter(torch.randn(width, before) / lr_mult)
    self.bias = nn.Parameter(torch.full((width,), bias / lr_mult))
    self.scale, self.lr_mult = lr_mult / math.sqrt(before), lr_mult

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, before] -> [N, width]."""
    bias = self.bias if self.lr_mult == 1 else self.bias * self.lr_mult
    return F.linear(x, self.weight * self.scale, bias)


class Conv(nn.Module):
  """With an equalised learning rate; `down` filters and halves."""

  def __init__(
    self, before: int, width: int, kernel: int = 3, *, down: bool = False, bias: bool = True
  ):
    super().__init__()
    self.weight = nn.Parameter(torch.randn(width, before, kernel, kernel))
    self.bias = nn.Parameter(torch.zeros(width)) if bias else None
    self.scale, self.down = 1 / math.sqrt(before * kernel**2), down

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, before, H, W] -> [N, width, H, W], or half the sides."""
    w, kernel = self.weight * self.scale, self.weight.shape[2]
    if not self.down:
      return F.conv2d(x, w, self.bias, padding=kernel // 2)
    if kernel == 1:
      return F.conv2d(fir(x, 1, stride=2), w, self.bias)
    return F.conv2d(fir(x, 2), w, self.bias, stride=2)


class Mapping(nn.Sequential):
  """z, normalised, to w."""

  def __init__(self, z_dim: int, w_dim: int, layers: int):
    dims = [z_dim] + [w_dim] * (layers - 1)
    super().__init__(*(Linear(n, w_dim, lr_mult=0.01) for n in dims))

  def forward(self, z: torch.Tensor) -> torch.Tensor:
    """[N, Z] -> [N, D]."""
    x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for layer in self:
      x = lrelu(layer(x))
    return x


class ToRGB(nn.Module):
  """A modulated 1 x 1 convolution without demodulation."""

  def __init__(self, w_dim: int, before: int, channels: int):
    super().__init__()
    self.affine = Linear(w_dim, before, bias=1.0)
    self.weight = nn.Parameter(torch.randn(channels, before, 1, 1))
    self.bias = nn.Parameter(torch.zeros(channels))

  def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """[N, before, H, W], w [N, D] -> [N, channels, H, W]."""
    style = self.affine(w) / math.sqrt(x.shape[1])
    return F.conv2d(x * style[..., None, None], self.weight, self.bias)


class StyledConv(nn.Module):
  """A modulated 3 x 3 convolution, noise, bias, leaky ReLU; `up` doubles the sides before."""

  def __init__(self, w_dim: int, before: int, width: int, *, up: bool = False):
    super().__init__()
    self.up, self.affine = up, Linear(w_dim, before, bias=1.0)
    shape = (before, width) if up else (width, before)
    self.weight = nn.Parameter(torch.randn(*shape, 3, 3))
    self.strength, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(width))

  def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """[N, before, H, W], w [N, D] -> [N, width, H, W], or twice the sides."""
    style = self.affine(w)
    squares = self.weight.square().sum((2, 3))
    norm = (style.square() @ (squares if self.up else squares.T) + 1e-8).rsqrt()
    x = x * style[..., None, None]
    if self.up:
      x = fir(F.conv_transpose2d(x, self.weight, stride=2), 1, gain=4.0)
    else:
      x = F.conv2d(x, self.weight, padding=1)
    noise = self.strength * torch.randn(len(x), 1, *x.shape[2:])
    x = torch.addcmul(noise, x, norm[..., None, None])
    return lrelu(x + self.bias[:, None, None])


class Synthesis(nn.Module):
  """Latents [B, L, D] to images; the pictures of all sizes are added up."""

  def __init__(self, w_dim: int, widths: list[int], channels: int):
    super().__init__()
    self.const = nn.Parameter(torch.randn(1, widths[0], 4, 4))
    self.first = StyledConv(w_dim, widths[0], widths[0])
    pairs = list(itertools.pairwise(widths))
    self.ups = nn.ModuleList(StyledConv(w_dim, a, b, up=True) for a, b in pairs)
    self.convs = nn.ModuleList(StyledConv(w_dim, b, b) for _, b in pairs)
    self.rgbs = nn.ModuleList(ToRGB(w_dim, width, channels) for width in widths)

  def forward(self, ws: torch.Tensor) -> torch.Tensor:
    """Generates; every layer draws its noise."""
    w = ws.unbind(1)
    x = self.first(self.const.expand(len(ws), -1, -1, -1), w[0])
    image = self.rgbs[0](x, w[1])
    for i, (up, conv) in enumerate(zip(self.ups, self.convs, strict=True)):
      x = conv(up(x, w[2 * i + 1]), w[2 * i + 2])
      image = upsample(image) + self.rgbs[i + 1](x, w[2 * i + 3])
    return image


class DownBlock(nn.Module):
  """Conv, conv down, beside conv 1 x 1 down."""

  def __init__(self, before: int, width: int):
    super().__init__()
    self.skip = Conv(before, width, 1, down=True, bias=False)
    self.conv, self.down = Conv(before, before), Conv(before, width, down=True)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, before, H, W] -> [N, width, H / 2, W / 2]."""
    h = F.leaky_relu(self.down(lrelu(self.conv(x))), 0.2)
    return torch.add(h, self.skip(x), alpha=1 / GAIN)


class Discriminator(nn.Module):
  """Residual blocks, the deviation over groups of the batch, and a head."""

  def __init__(self, widths: list[int], channels: int, group: int):
    super().__init__()
    self.group, self.rgb = group, Conv(channels, widths[-1], 1)
    blocks = (DownBlock(a, b) for a, b in itertools.pairwise(widths[::-1]))
    self.blocks = nn.Sequential(*blocks)
    self.conv = Conv(widths[0] + 1, widths[0])
    self.dense, self.last = Linear(16 * widths[0], widths[0]), Linear(widths[0], 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Images -> logits [N]."""
    x = self.blocks(lrelu(self.rgb(x)))
    n, _, h, w = x.shape
    group = min(self.group or n, n)
    groups = x.reshape(group, n // group, -1)
    spread = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean(1).repeat(group)
    x = torch.cat([x, spread.view(n, 1, 1, 1).expand(-1, -1, h, w)], 1)
    x = lrelu(self.dense(lrelu(self.conv(x)).flatten(1)))
    return self.last(x)[:, 0]


class StyleGAN2:
  """gm/methods/stylegan2.py without augmentation, the average's half-life fixed.

  torch.compile has no second derivatives, so the regularisers' passes are always eager.
  """

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches, self.steps = batches(config, data, form), 0
    size, channels = data["image"].shape[1], config.data.channels or data["image"].shape[3]
    widths = [min(m.base // n, m.most) for n in (2**i for i in range(2, size.bit_length()))]
    self.latents = 2 * len(widths)
    mapping = Mapping(m.z_dim, m.w_dim, m.mapping_layers)
    synthesis = Synthesis(m.w_dim, widths, channels)
    g = form.place(nn.ModuleDict({"mapping": mapping, "synthesis": synthesis}))
    d = form.place(Discriminator(widths, channels, m.stddev_group))
    self.networks = {"g": g, "d": d}
    self.mapping, self.synthesis, self.d = (form.run(n) for n in (mapping, synthesis, d))
    self.g_tx, self.d_tx = (
      form.adam(net, lr=config.lr * c, betas=(m.b1**c, m.b2**c))
      for net, c in ((g, m.path_every / (m.path_every + 1)), (d, m.r1_every / (m.r1_every + 1)))
    )
    self.path_mean, self.w_mean = torch.zeros(()), torch.zeros(m.w_dim)
    self.ema = [p.detach().clone() for p in g.parameters()]

  def mixed(self, mapping: nn.Module, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns latents of all layers, the later ones of another z, and w of the first."""
    w, second = mapping(torch.randn(2 * n, self.m.z_dim)).chunk(2)
    cut = self.latents
    if torch.rand(()) < self.m.mixing:
      cut = int(torch.randint(1, self.latents, ()))
    parts = w[:, None].expand(-1, cut, -1), second[:, None].expand(-1, self.latents - cut, -1)
    return torch.cat(parts, 1), w

  def smooth(self) -> None:
    """G's regulariser: path lengths of half a batch."""
    ws, _ = self.mixed(self.networks["g"]["mapping"], self.batches.size // 2)
    image = self.networks["g"]["synthesis"](ws)
    y = torch.randn_like(image) / math.sqrt(image[0, 0].numel())
    (slope,) = torch.autograd.grad((image * y).sum(), ws, create_graph=True)
    lengths = (slope.square().sum(2).mean(1) + 1e-12).sqrt()
    mean = torch.lerp(self.path_mean, lengths.mean(), 1 - PATH_DECAY)
    self.path_mean = mean.detach()
    penalty = (lengths - mean).square().mean()
    move(self.g_tx, self.m.path_every * self.m.path_weight * penalty)

  def flatten(self, x: torch.Tensor) -> None:
    """D's regulariser: R1."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(self.networks["d"](x).sum(), x, create_graph=True)
    penalty = slope.square().sum((1, 2, 3)).mean()
    move(self.d_tx, self.m.r1_every * self.m.r1_gamma / 2 * penalty)

  def step(self) -> tuple:
    """G moves, every path_every steps it is smoothed; D moves, every r1_every it is flattened."""
    m, x = self.m, self.batches()
    n = len(x)
    if m.mirror:
      x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x, x.flip(3))
    self.networks["d"].requires_grad_(False)
    ws, w = self.mixed(self.mapping, n)
    self.w_mean.lerp_(w.detach().mean(0), 1 - W_DECAY)
    g_loss = move(self.g_tx, F.softplus(-self.d(self.synthesis(ws))).mean())
    if m.path_weight and self.steps % m.path_every == 0:
      self.smooth()
    self.networks["d"].requires_grad_(True)
    with torch.no_grad():
      fake = self.synthesis(self.mixed(self.mapping, n)[0])
    fake_logits, real_logits = self.d(fake), self.d(x)
    d_loss = move(self.d_tx, F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean())
    if m.r1_gamma and self.steps % m.r1_every == 0:
      self.flatten(x)
    average(self.ema, self.networks["g"], 0.5 ** (n / m.ema_images))
    self.steps += 1
    return d_loss, g_loss

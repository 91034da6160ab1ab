"""The models of the workloads in plain PyTorch: same sizes, optimizers, batches and noise.

A class is given our config, the data set as arrays and a form; it has `networks`, whose parameters
are counted against ours, and `step()`, one training step with the draw of batch and noise. Here
are what all of them share, the fully connected and the plain convolutional ones.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Form(NamedTuple):
  """A way to run a model."""

  tuned: bool  # channels_last and fused Adam
  compiled: bool  # torch.compile

  def place(self, net: nn.Module) -> nn.Module:
    """Lays the kernels out in memory."""
    return net.to(memory_format=torch.channels_last) if self.tuned else net

  def run(self, net: nn.Module) -> nn.Module:
    """What to call in the network's place."""
    return torch.compile(net, dynamic=False) if self.compiled else net

  def adam(self, *nets: nn.Module, **options: Any) -> torch.optim.Adam:
    """Adam over all parameters of the networks."""
    params = [p for net in nets for p in net.parameters()]
    return torch.optim.Adam(params, fused=True if self.tuned else None, **options)


FORMS = {"eager": Form(False, False), "tuned": Form(True, False), "compiled": Form(True, True)}


class Batches:
  """Draws batches from a set held in memory, every row once an epoch."""

  def __init__(self, data: dict, size: int, channels: int, form: Form):
    rows = data["image" if "image" in data else "point"]
    self.rows, self.size, self.channels = torch.from_numpy(rows), size, channels
    self.labels = torch.from_numpy(data["label"]).long() if "label" in data else None
    self.layout = torch.channels_last if form.tuned else torch.contiguous_format
    if rows.ndim == 4:
      self.rows = self.rows.permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
    self.order, self.next = torch.randperm(len(rows)), 0

  def __call__(self) -> torch.Tensor:
    """Returns the next batch: points as they are, images in [-1, 1], grey repeated."""
    return self.decode(self.draw())

  def labelled(self) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the next batch and its labels."""
    drawn = self.draw()
    return self.decode(drawn), self.labels[drawn]

  def draw(self) -> torch.Tensor:
    """Returns the indices of the next batch."""
    if self.next + self.size > len(self.order):
      self.order, self.next = torch.randperm(len(self.rows)), 0
    self.next += self.size
    return self.order[self.next - self.size : self.next]

  def decode(self, drawn: torch.Tensor) -> torch.Tensor:
    """Returns rows as a network takes them."""
    x = self.rows[drawn]
    if x.ndim != 4:
      return x
    x = x.float().div_(127.5).sub_(1)
    channels = self.channels or x.shape[1]
    return x.expand(-1, channels, -1, -1).contiguous(memory_format=self.layout)


def batches(config: Any, data: dict, form: Form) -> Batches:
  return Batches(data, config.batch_size, config.data.channels, form)


def move(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
  """One optimizer step down a loss."""
  optimizer.zero_grad(set_to_none=True)
  loss.backward()
  optimizer.step()
  return loss.detach()


def average(ema: list, net: nn.Module, decay: float) -> None:
  """Moves averaged parameters; decay 0 keeps none."""
  if decay:
    with torch.no_grad():
      torch._foreach_lerp_(ema, list(net.parameters()), 1 - decay)


# -------------------------------------------------------------------------- fully connected nets

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def mlp(sizes: list[int], activation: str) -> nn.Sequential:
  """Dense layers with an activation between them."""
  layers = []
  for a, b in itertools.pairwise(sizes):
    layers += [nn.Linear(a, b), ACTIVATIONS[activation]()]
  return nn.Sequential(*layers[:-1])


class VAE:
  """gm/methods/vae.py with a Bernoulli likelihood."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = config.model
    self.batches, self.z_dim = batches(config, data, form), m.z_dim
    pixels = int(np.prod(data["image"].shape[1:]))
    enc = form.place(mlp([pixels, *m.enc_widths, 2 * m.z_dim], m.activation))
    dec = form.place(mlp([m.z_dim, *m.dec_widths, pixels], m.activation))
    self.networks = {"enc": enc, "dec": dec}
    self.enc, self.dec = form.run(enc), form.run(dec)
    self.tx = form.adam(enc, dec, lr=config.lr, eps=m.adam_eps)
    self.rate = torch.optim.lr_scheduler.CosineAnnealingLR(self.tx, config.num_steps)

  def step(self) -> tuple:
    """One step up the ELBO."""
    x = torch.bernoulli((self.batches().flatten(1) + 1) / 2)
    mean, log_var = self.enc(x).chunk(2, 1)
    z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
    logits = self.dec(z)
    distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
    rate = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum() / len(x)
    loss = move(self.tx, distortion + rate)
    self.rate.step()
    return (loss,)


class GAN:
  """gm/methods/gan.py on points, without batch norm, maxout and dropout."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    dims = data["point"].shape[1]
    g = form.place(mlp([m.z_dim, *m.g_widths, dims], m.g_activation))
    d = form.place(mlp([dims, *m.d_widths, 1], m.d_activation))
    self.networks = {"g": g, "d": d}
    self.g, self.d = form.run(g), form.run(d)
    self.g_tx = form.adam(g, lr=config.lr, betas=(m.b1, 0.999))
    self.d_tx = form.adam(d, lr=config.lr * m.d_lr, betas=(m.b1, 0.999))
    self.ema = [p.detach().clone() for p in g.parameters()]

  def step(self) -> tuple:
    """D moves, then G on new noise."""
    x = self.batches()
    with torch.no_grad():
      fake = self.g(torch.randn(len(x), self.m.z_dim))
    self.networks["d"].requires_grad_(True)
    real_logits, fake_logits = self.d(torch.cat([x, fake])).chunk(2)
    d_loss = move(self.d_tx, F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
    self.networks["d"].requires_grad_(False)  # no gradient of D's weights in G's move
    fake_logits = self.d(self.g(torch.randn(len(x), self.m.z_dim)))
    g_loss = move(self.g_tx, F.softplus(-fake_logits).mean())
    average(self.ema, self.networks["g"], self.m.ema)
    return d_loss, g_loss


# ---------------------------------------------------------------------------- convolutional nets


def norm(kind: str, width: int) -> list[nn.Module]:
  """Normalisation with scale and shift."""
  if kind == "none":
    return []
  if kind == "instance":
    return [nn.InstanceNorm2d(width, affine=True)]
  return [nn.BatchNorm2d(width)]


def conv_g(z_dim: int, base: int, size: int, channels: int, *, kind: str, bias: bool):
  """DCGAN's generator: z as a 1x1 map, 4x4 pixels, then doubled up to size."""
  width = base * size // 8
  layers = [nn.ConvTranspose2d(z_dim, width, 4, bias=bias), *norm(kind, width), nn.ReLU(True)]
  while width > base:
    layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=bias)]
    layers += [*norm(kind, width // 2), nn.ReLU(True)]
    width //= 2
  layers += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=bias), nn.Tanh()]
  return nn.Sequential(*layers)


def conv_d(base: int, size: int, channels: int, *, kind: str, norm_first: bool, bias: bool):
  """DCGAN's discriminator: halved down to 4x4 pixels, then one number."""
  layers, width = [nn.Conv2d(channels, base, 4, 2, 1, bias=bias)], base
  layers += [*norm(kind if norm_first else "none", base), nn.LeakyReLU(0.2, True)]
  while width < base * size // 8:
    layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=bias)]
    layers += [*norm(kind, 2 * width), nn.LeakyReLU(0.2, True)]
    width *= 2
  return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, bias=bias), nn.Flatten(0))


class DCGAN:
  """gm/methods/dcgan.py for square images, kernel 4 and start 4, one generator pass a step."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    size, channels = data["image"].shape[1], config.data.channels or data["image"].shape[3]
    g = conv_g(m.z_dim, m.g_base, size, channels, kind="batch", bias=False)
    d = conv_d(m.d_base, size, channels, kind="batch", norm_first=False, bias=False)
    for layer in (*g, *d):
      if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
      elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
    self.networks = {"g": form.place(g), "d": form.place(d)}
    self.g, self.d = form.run(g), form.run(d)
    self.g_tx, self.d_tx = (form.adam(n, lr=config.lr, betas=(m.b1, 0.999)) for n in (g, d))
    self.ema = [p.detach().clone() for p in g.parameters()]

  def step(self) -> tuple:
    """D moves, then G on the same fakes."""
    x = self.batches()
    fake = self.g(torch.randn(len(x), self.m.z_dim, 1, 1))
    self.networks["d"].requires_grad_(True)
    real_logits, fake_logits = self.d(x), self.d(fake.detach())
    d_loss = move(self.d_tx, F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
    self.networks["d"].requires_grad_(False)
    g_loss = move(self.g_tx, F.softplus(-self.d(fake)).mean())
    average(self.ema, self.networks["g"], self.m.ema)
    return d_loss, g_loss


class WGANGP:
  """gm/methods/wgan.py with gradient penalty, kernel 4.

  torch.compile has no second derivatives, so the penalty's pass is always eager.
  """

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    size, channels = data["image"].shape[1], config.data.channels or data["image"].shape[3]
    g = conv_g(m.z_dim, m.base, size, channels, kind=m.g_norm, bias=True)
    d = conv_d(m.base, size, channels, kind=m.d_norm, norm_first=True, bias=True)
    self.networks = {"g": form.place(g), "d": form.place(d)}
    self.g, self.d = form.run(g), form.run(d)
    self.g_tx, self.d_tx = (form.adam(n, lr=config.lr, betas=(m.b1, m.b2)) for n in (g, d))
    self.ema = [p.detach().clone() for p in g.parameters()]

  def penalty(self, x: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """E (|grad f| - 1)^2 between data and fakes."""
    between = torch.lerp(fake, x, torch.rand(len(x), 1, 1, 1)).requires_grad_()
    score = self.networks["d"](between).sum()
    (slope,) = torch.autograd.grad(score, between, create_graph=True)
    return ((slope.square().sum((1, 2, 3)) + 1e-12).sqrt() - 1).square().mean()

  def step(self) -> tuple:
    """The critic moves num_critic times, then G once."""
    self.networks["d"].requires_grad_(True)
    for _ in range(self.m.num_critic):
      x = self.batches()
      with torch.no_grad():
        fake = self.g(torch.randn(len(x), self.m.z_dim, 1, 1))
      distance = self.d(fake).mean() - self.d(x).mean()
      d_loss = move(self.d_tx, distance + self.m.gp_weight * self.penalty(x, fake))
    self.networks["d"].requires_grad_(False)
    fake = self.g(torch.randn(len(x), self.m.z_dim, 1, 1))
    g_loss = move(self.g_tx, -self.d(fake).mean())
    average(self.ema, self.networks["g"], self.m.ema)
    return d_loss, g_loss

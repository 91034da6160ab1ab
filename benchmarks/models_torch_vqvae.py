"""VQ-VAE and its transformer in plain PyTorch: see models_torch.py, which has what all share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models_torch import Form, batches, move


class Residual(nn.Module):
  """Blocks x + conv 1 x 1 (relu(conv 3 x 3 (relu x))), and a ReLU after the last."""

  def __init__(self, width: int, num_blocks: int, block_width: int):
    super().__init__()
    block = lambda: nn.Sequential(
      nn.ReLU(), nn.Conv2d(width, block_width, 3, 1, 1), nn.ReLU(), nn.Conv2d(block_width, width, 1)
    )
    self.blocks = nn.ModuleList(block() for _ in range(num_blocks))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> the same."""
    for block in self.blocks:
      x = x + block(x)
    return F.relu(x)


def encoder(m: Any, channels: int) -> nn.Sequential:
  """Halved once for each width, then one convolution, the residual blocks and a projection."""
  layers, before = [], channels
  for width in m.widths:
    layers += [nn.Conv2d(before, width, 4, 2, 1), nn.ReLU()]
    before = width
  layers += [nn.Conv2d(before, before, 3, 1, 1), nn.ReLU()]
  blocks = Residual(before, m.num_blocks, m.block_width)
  return nn.Sequential(*layers, blocks, nn.Conv2d(before, m.code_dim, 1))


def decoder(m: Any, channels: int) -> nn.Sequential:
  """The encoder's mirror image."""
  before = m.widths[-1]
  layers = [nn.Conv2d(m.code_dim, before, 3, 1, 1), Residual(before, m.num_blocks, m.block_width)]
  for i, width in enumerate((*m.widths[-2::-1], channels)):
    layers += [nn.ReLU()] if i else []
    layers += [nn.ConvTranspose2d(before, width, 4, 2, 1)]
    before = width
  return nn.Sequential(*layers)


class VQVAE:
  """The first stage of gm/methods/vqvae.py: Bernoulli likelihood, codes that are averages."""

  def __init__(self, config: Any, data: dict, form: Form):
    m = self.m = config.model
    self.batches = batches(config, data, form)
    channels = config.data.channels or data["image"].shape[3]
    enc, dec = form.place(encoder(m, channels)), form.place(decoder(m, channels))
    self.networks = {"enc": enc, "dec": dec}
    self.enc, self.dec = form.run(enc), form.run(dec)
    self.tx = form.adam(enc, dec, lr=config.lr)
    self.codes = torch.randn(m.num_codes, m.code_dim)
    self.counts, self.sums = torch.zeros(m.num_codes), torch.zeros(m.num_codes, m.code_dim)
    self.steps = 0

  def quantise(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder gives, as rows of the map, and the number of each row's code."""
    z = self.enc(x - 0.5).permute(0, 2, 3, 1)
    with torch.no_grad():
      distance = self.codes.square().sum(1) - 2 * z.flatten(0, 2) @ self.codes.T
      return z, distance.argmin(1)

  def step(self) -> tuple:
    """One step of the networks, and one of the averages."""
    m = self.m
    x = torch.bernoulli((self.batches() + 1) / 2)
    z, index = self.quantise(x)
    e = self.codes[index].view_as(z)
    logits = self.dec((z + (e - z).detach()).permute(0, 3, 1, 2))
    loss = F.binary_cross_entropy_with_logits(logits, x) + m.beta * F.mse_loss(z, e)
    loss = move(self.tx, loss)
    with torch.no_grad():
      self.follow(z.detach().flatten(0, 2), index)
    return (loss,)

  def follow(self, z: torch.Tensor, index: torch.Tensor) -> None:
    """Moves the averages and makes the codes of them; now and then dead ones begin again."""
    m = self.m
    chosen = F.one_hot(index, m.num_codes).float()
    counts = chosen.sum(0)
    self.counts.lerp_(counts, 1 - m.decay)
    self.sums.lerp_(chosen.T @ z, 1 - m.decay)
    self.steps += 1
    mass = 1 - m.decay**self.steps
    average = self.counts / mass
    total = average.sum()
    smooth = (average + 1e-5) * total / (total + m.num_codes * 1e-5)
    moved = self.sums / mass / smooth[:, None]
    self.codes = torch.where(counts[:, None] > 0, moved, self.codes)
    if m.restart_every and self.steps % m.restart_every == 0:
      dead = self.counts < m.restart_below * mass
      rows, weight = z[torch.randint(len(z), (m.num_codes,))], m.restart_below * mass
      self.codes[dead] = rows[dead]
      self.counts[dead], self.sums[dead] = weight, weight * rows[dead]


class Block(nn.Module):
  """minGPT's, with torch's own attention."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.norm0, self.norm1 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[N, T, C] -> the same."""
    n, t, c = x.shape
    qkv = self.qkv(self.norm0(x)).view(n, t, 3, self.heads, c // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
    return x + self.mlp(self.norm1(x))


class Transformer(nn.Module):
  """Tokens -> logits of each one's successor."""

  def __init__(self, vocab: int, context: int, layers: int, heads: int, width: int, outputs: int):
    super().__init__()
    self.tokens = nn.Embedding(vocab, width)
    self.positions = nn.Parameter(torch.zeros(context, width))
    self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
    self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs, bias=False)
    for layer in self.modules():
      if isinstance(layer, nn.Linear | nn.Embedding):
        nn.init.normal_(layer.weight, 0.0, 0.02)
      if isinstance(layer, nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    """[N, T] -> [N, T, outputs]."""
    x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
    return self.head(self.norm(self.blocks(x)))


class Prior(VQVAE):
  """The second stage: the encoder of every batch, and a step of the transformer over its codes."""

  def __init__(self, config: Any, data: dict, form: Form):
    super().__init__(config, data, form)
    m = self.m
    side = data["image"].shape[1] // 2 ** len(m.widths)
    sizes = (m.prior_layers, m.prior_heads, m.prior_width)
    prior = Transformer(m.num_codes + 1, side**2, *sizes, m.num_codes)
    self.networks |= {"prior": prior}
    self.prior = form.run(prior)
    kernels = [layer.weight for layer in prior.modules() if isinstance(layer, nn.Linear)]
    known = {id(p) for p in kernels}
    others = [p for p in prior.parameters() if id(p) not in known]
    groups = [{"params": kernels, "weight_decay": m.prior_decay}]
    groups += [{"params": others, "weight_decay": 0.0}]
    options = {"lr": m.prior_lr, "betas": (0.9, 0.95), "fused": True if form.tuned else None}
    self.prior_tx = torch.optim.AdamW(groups, **options)
    self.rate = torch.optim.lr_scheduler.CosineAnnealingLR(self.prior_tx, config.num_steps)

  def step(self) -> tuple:
    """One step of the transformer."""
    x = torch.bernoulli((self.batches() + 1) / 2)
    with torch.no_grad():
      _, index = self.quantise(x)
    tokens = index.view(len(x), -1)
    start = torch.full((len(x), 1), self.m.num_codes)
    logits = self.prior(torch.cat([start, tokens[:, :-1]], 1))
    loss = move(self.prior_tx, F.cross_entropy(logits.flatten(0, 1), index))
    self.rate.step()
    return (loss,)

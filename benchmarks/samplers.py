"""Draws a second and bytes a draw of the samplers, beside the random bits that they are made of.

python -m benchmarks.samplers

Each sampler is jitted for one million and for ten million draws. The rate is that of the fastest of
`--repeats` calls with ten million, which on a machine with other work is the one disturbed least;
processor time, over all cores, hardly depends on other work. Memory is what the compiled programs
say that they need, the result included: equal at both sizes, it is linear in the number drawn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gm.probability import sampling

SIZES = (1_000_000, 10_000_000)


def samplers() -> dict[str, Callable]:
  """{name: (key, n) -> n draws}, one float32 or int32 each."""
  grid = jnp.linspace(0.0, 2.0, 2049)
  density = sampling.quadratic_pdf(grid)
  table = jnp.array([0.32, 0.03, 0.01, 0.06, 0.24, 0.02, 0.02, 0.03, 0.27])
  log_f = lambda x: jnp.log(sampling.quadratic_pdf(x))
  log_bound = lambda x: jnp.log(0.75 * x)
  propose = lambda key, n: 2 * jnp.sqrt(jax.random.uniform(key, (n,)))
  return {
    "threefry bits alone": lambda key, n: jax.random.bits(key, (n,)),
    "uniform": lambda key, n: jax.random.uniform(key, (n,)),
    "inverse, formula": lambda key, n: sampling.inverse_transform(
      key, sampling.quadratic_inverse_cdf, (n,)
    ),
    "inverse, 2,049 knots": lambda key, n: sampling.tabulated_inverse(key, grid, density, (n,)),
    "discrete, 9 cells": lambda key, n: sampling.discrete_inverse_cdf(key, table, (n,)),
    "rejection, candidates": lambda key, n: sampling.rejection(key, log_f, propose, log_bound, n),
  }


class Cost(NamedTuple):
  """Of drawing n at once."""

  rate: float  # draws a second
  processor: float  # nanoseconds a draw, summed over cores
  memory: float  # bytes a draw


def measure(draw: Callable, n: int, repeats: int) -> Cost:
  key = jax.random.key(0)
  program = jax.jit(draw, static_argnums=1).lower(key, n).compile()
  jax.block_until_ready(program(key))  # touches the memory
  wall, processor = [], []
  for _ in range(repeats):
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(program(key))
    wall.append(time.perf_counter() - start[0])
    processor.append(time.process_time() - start[1])
  memory = program.memory_analysis()
  size = memory.temp_size_in_bytes + memory.output_size_in_bytes
  return Cost(n / min(wall), 1e9 * min(processor) / n, size / n)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--repeats", type=int, default=10)
  repeats = parser.parse_args().repeats
  print(f"{'sampler':<22}{'M draws/s':>11}{'core ns/draw':>14}{'bytes/draw at 1M':>18}{'10M':>7}")
  for name, draw in samplers().items():
    few, many = (measure(draw, n, r) for n, r in zip(SIZES, (1, repeats), strict=True))
    rates = f"{many.rate / 1e6:>11.1f}{many.processor:>14.1f}"
    print(f"{name:<22}{rates}{few.memory:>18.1f}{many.memory:>7.1f}", flush=True)


if __name__ == "__main__":
  main()

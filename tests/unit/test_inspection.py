"""The layers of every network, from shapes alone."""

import importlib
import re

import jax
import pytest

from gm import core, inspection, job


def prepared(name):
  method, _, variant = name.partition(":")
  return job.prepare(importlib.import_module(f"configs.{method}").get_config(variant))


@pytest.mark.parametrize(
  ("name", "known"),
  [
    ("cgan:test", ["g", "d"]),
    ("infogan:test", ["g", "trunk", "d", "q"]),
    ("stylegan2:test", ["g/mapping", "g/synthesis", "d"]),
    ("sampling:test", []),
  ],
)
def test_every_network_is_found_by_its_name(name, known):
  made = prepared(name)
  found = inspection.networks(made, 0)
  assert [net.name for net in found] == known
  for net in found:
    tree = made.templates[0].params
    for part in net.name.split("/"):
      tree = tree[part]
    text = inspection._trace(net.module.init, (jax.random.key(0), *net.args), net.kwargs)
    assert core.count(text["params"]) == core.count(tree)


def test_a_table_has_name_shape_parameters_and_operations_of_every_layer():
  g, d = inspection.layer_tables(prepared("cgan:test"))
  assert g.startswith("stage train: network g") and d.startswith("stage train: network d")
  row = next(line for line in g.splitlines() if "net/Dense_1 " in line)
  assert re.search(r"Dense .*float32\[2,8\] .*float32\[2,16\] .* 544 .*bias: float32\[16\]", row)
  assert "13,598" in g and "12,655" in d  # what the short table says


def test_nothing_is_allocated_for_networks_of_paper_size():
  made = prepared("gan:paper")

  before = {id(x) for x in jax.live_arrays()}
  tables = inspection.layer_tables(made)
  assert "2,503,984" in tables[0] and "1,231,441" in tables[1]
  assert sum(x.size for x in jax.live_arrays() if id(x) not in before) < 1000

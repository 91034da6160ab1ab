"""The layers of every network, from shapes alone."""

import importlib
import re

import jax
import pytest

from gm import core, errors, inspection, job


def prepared(name, **model):
  config = importlib.import_module(f"configs.{name}").get_config("test")
  config.model.update(model)
  return job.prepare(config, on_paper=True)


@pytest.mark.parametrize(
  ("name", "known"),
  [
    ("cgan", ["g", "d"]),
    ("infogan", ["g", "trunk", "d", "q"]),
    ("stylegan2", ["g/mapping", "g/synthesis", "d"]),
    ("sampling", []),
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


def test_networks_of_the_same_shapes_are_named_in_turn():
  made = prepared("aae", z_dim=10)  # as many as there are classes
  names = [net.name for net in inspection.networks(made, 1)]
  assert sorted(names) == sorted(made.templates[1].params) and {"d_z", "d_y"} <= set(names)


def test_a_table_has_name_shape_parameters_and_operations_of_every_layer():
  g, d = inspection.layer_tables(prepared("cgan"))
  assert g.startswith("stage train: network g") and d.startswith("stage train: network d")
  row = next(line for line in g.splitlines() if "net/Dense_1 " in line)
  assert re.search(r"Dense .*float32\[2,8\] .*float32\[2,16\] .* 544 .*bias: float32\[16\]", row)
  assert "13,598" in g and "12,655" in d  # what the short table says


def test_networks_that_fit_no_memory_have_their_tables():
  g, _ = inspection.layer_tables(prepared("gan", g_widths=(1_000_000, 1_000_000)))  # 4 TB
  assert "float32[1000000,1000000]" in g


@pytest.mark.parametrize("part", ["describe", "layer_tables"])
def test_what_does_not_fit_is_one_line_wherever_it_is_found(part, monkeypatch):
  def fails(job):
    raise ValueError("4 does not fit 3:\nchange --config.model.z_dim")

  monkeypatch.setattr(inspection, part, fails)
  config = importlib.import_module("configs.gan").get_config("test")
  with pytest.raises(errors.UserError, match=r"^4 does not fit 3: change --config\.model\.z_dim$"):
    inspection.run(config, layers=True)

#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, jax 0.10.2: a CheckpointManager whose preservation policy is BestN takes
# metrics with save and keeps the step of the best, but writes them nowhere unless the older option
# best_fn is set as well. Opened again, as after a restart, it knows the metrics of no checkpoint,
# so the step that was kept as the best is rated no more.
# Seen:
#   kept 2
#   opened again None
#   with best_fn {'loss': 0.1}
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 numpy==2.4.6
cat > "$folder/best.py" <<'PY'
import sys

import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers


def loss(metrics):
  return metrics["loss"]


def manager(name, **more):
  policy = managers.BestN(get_metric_fn=loss, reverse=True, n=1)
  options = ocp.CheckpointManagerOptions(preservation_policy=policy, **more)
  return ocp.CheckpointManager(f"{sys.argv[1]}/{name}", options=options)


def save(to):
  for step, value in {1: 0.9, 2: 0.1, 3: 0.5}.items():
    args = ocp.args.StandardSave({"x": np.arange(3)})
    to.save(step, args=args, metrics={"loss": value})
    to.wait_until_finished()
  return to


first = save(manager("a"))
print("kept", *first.all_steps())
first.close()
print("opened again", manager("a").metrics(2))
save(manager("b", best_fn=loss)).close()
print("with best_fn", manager("b", best_fn=loss).metrics(2))
PY
seen=$("$folder/venv/bin/python" "$folder/best.py" "$folder" 2>/dev/null | grep -E '^(kept|opened|with)')
echo "$seen"
[ "$seen" = $'kept 2\nopened again None\nwith best_fn {\'loss\': 0.1}' ]

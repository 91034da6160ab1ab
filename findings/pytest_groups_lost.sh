#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0: --dist loadgroup no longer keeps the tests of one xdist_group
# in one worker, and says nothing. xdist writes the group into the node's private `_nodeid`, from
# which this pytest does not make names any more, so every test counts as a group of its own. With
# pytest 9.1.1 the same run keeps each group together.
# Seen:
#   9.1.1 names end in the group, workers: 1
#   9.2.0 names without the group, workers: 2
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/tests"
cat > "$folder/tests/test_groups.py" <<'PY'
import os
import pathlib
import time

import pytest


@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("i", range(8))
def test_a_case(i, request):
  time.sleep(0.2)
  line = f"{os.environ['PYTEST_XDIST_WORKER']} {request.node.nodeid}\n"
  with pathlib.Path(__file__).with_name("seen").open("a") as seen:
    seen.write(line)
PY
look() {
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install --quiet "pytest==$1" pytest-xdist==3.8.0
  rm -f "$folder/tests/seen"
  "$folder/$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup "$folder/tests" >/dev/null
  if grep -q '@' "$folder/tests/seen"; then names="names end in the group"; else names="names without the group"; fi
  workers=$(cut -d' ' -f1 "$folder/tests/seen" | sort -u | wc -l)
  echo "$1 $names, workers: $workers"
}
seen=$(look 9.1.1; look 9.2.0)
echo "$seen"
[ "$seen" = $'9.1.1 names end in the group, workers: 1\n9.2.0 names without the group, workers: 2' ]

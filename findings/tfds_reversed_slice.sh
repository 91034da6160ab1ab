#!/usr/bin/env bash
# tensorflow-datasets 4.9.10, array_record 0.8.6, without TensorFlow: a slice that ends before it
# begins is not empty, as a Python list's would be. Of 5 examples train[3:2] gives two, and
# train[4:1] says that it has -3 of them; only train[2:2] raises.
# Seen:
#   train[3:2] 2 2
#   train[4:1] -3 0
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-datasets==4.9.10 array_record==0.8.6 numpy==2.4.6
cat > "$folder/toy.py" <<'PY'
import sys

import numpy as np
import tensorflow_datasets as tfds


class Toy(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.FeaturesDict({"x": np.int64})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(5):
      yield i, {"x": i}


builder = Toy(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
for spec in ("train[3:2]", "train[4:1]"):
  rows = [int(example["x"]) for example in builder.as_data_source(split=spec)]
  print(spec, builder.info.splits[spec].num_examples, len(rows))
PY
seen=$("$folder/venv/bin/python" "$folder/toy.py" "$folder/data" 2>/dev/null | grep '^train\[')
echo "$seen"
[ "$seen" = $'train[3:2] 2 2\ntrain[4:1] -3 0' ]

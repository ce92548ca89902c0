#!/usr/bin/env bash
# One training by several processes, to which the rows of its large tables are dealt out.
#
#     examples/train_sharded.sh        # in an empty folder; 4 processes, unless PROCESSES says so
#
# Of every table above 100 kB each process has a part of the rows, and of what Adagrad keeps of them,
# and what goes between processes is d wide. One process then goes on with the run, has the numbers
# that it would have had from the beginning, to rounding, and collapses it. (In earnest, tables above
# 64 MiB are sharded without asking.)
set -euo pipefail

mlet synthesize --preset user-item --rows 6000 --out clicks
torchrun --standalone --nproc-per-node "${PROCESSES:-4}" \
  -m mlet train clicks --out run --dim 8 --inner-dim 32 --epochs 1 \
  --set training.shard_tables_above=100000 --set training.keep_state=true
mlet train --resume run --epochs 2
mlet collapse run --out model.safetensors

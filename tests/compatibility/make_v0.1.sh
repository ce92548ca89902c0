#!/usr/bin/env bash
# How v0.1.tar.xz was made, with mlet 0.1 (5558b75): its reports, figures and the checkpoints of its
# studies were then removed, and their JSON kept beside them.
set -e
mkdir -p v0.1 && cd v0.1
python - <<'PY'
import random
r = random.Random(5)
with open("clicks.csv","w") as f:
    f.write("click,price,user,film,tags\n")
    for i in range(900):
        u, m = min(int(r.paretovariate(0.7)), 40), r.randrange(12)
        t = "|".join(r.sample("abcdef", r.randrange(0,4)))
        p = 0.15 + 0.5*((u*7+m) % 3 == 0) + 0.1*("a" in t)
        f.write(f"{int(r.random()<p)},{r.randrange(50)/10},u{u},m{m},{t}\n")
open("clicks.yaml","w").write("label: click\ndense: [price]\ncategorical: [user, film]\nmulti_valued: {tags: '|'}\n")
PY
mlet prepare table clicks.csv --schema clicks.yaml --out data --split random --valid 0.2 --test 0.3
T="--set training.threads=1 --batch-size 64"
mlet train data --out run-mlet --model deepfm --dim 4 --inner-dim 8 --epochs 2 $T --set 'model.inner_dims={film: 6}' --set model.mlp=[8]
mlet train data --out run-slt --model dlrm --dim 2 --epochs 2 $T
mlet train data --out run-int8 --model fm --dim 4 --inner-dim 8 --epochs 2 $T --set model.quantize=int8
mlet train data --out run-hash --model fm --dim 4 --inner-dim 8 --epochs 1 $T --set 'model.compression={name: hashing, collisions: 4}'
mlet compare data --out comparison --model fm --dims 2,4 --inner-dims 8 --seeds 2 --learning-rates 0.02,0.08 --epochs 1 --jobs 2
cat > study.yaml <<'Y'
datasets: {clicks: {format: table, files: [clicks.csv], schema_file: clicks.yaml, valid: 0.2, test: 0.3, split: random}}
models: [fm]
optimizers: [adagrad]
dims: [2, 4]
inner_dims: [8]
peers: {int8: {quantize: int8}, mlet-int4: {inner_dim: 8, quantize: int4}, hashing: {compression: {name: hashing, collisions: 4}}}
seeds: 2
tuning: {trials: 2}
training: {epochs: 1, batch_size: 64}
resamples: 20
Y
mlet sweep study.yaml --out study --jobs 2
python - <<'PY'
# an unfinished run: stopped by Ctrl-C in the middle
from pathlib import Path
import mlet.training as t
from mlet.training.loop import SilentObserver
class Stop(SilentObserver):
    n = 0
    def step(self, loss, rows):
        self.n += 1
        if self.n == 11: raise KeyboardInterrupt
config = t.RunDirectory(Path("run-mlet")).config()
try: t.train(config, Path("run-unfinished"), Stop())
except KeyboardInterrupt: pass
import torch, mlet
from torch import nn
torch.manual_seed(0)
model = mlet.convert(nn.ModuleDict({"user": nn.Embedding(20, 4), "film": nn.EmbeddingBag(9, 4), "head": nn.Linear(4, 1)}), 8)
torch.save(model.state_dict(), "converted.pt")
plain = mlet.collapse(model)
torch.save(plain.state_dict(), "converted-collapsed.pt")
PY
mlet collapse run-mlet -o model-mlet.safetensors
for r in run-mlet run-slt run-int8 run-hash; do mlet evaluate $r --bootstrap 20 --json > $r.json; done
mlet evaluate run-int8/model.safetensors --data data --bootstrap 20 --json > model-int8.json
cp -r run-unfinished ../resumed && mlet train --resume ../resumed && cp ../resumed/metrics.jsonl run-unfinished-metrics.jsonl; rm -rf ../resumed

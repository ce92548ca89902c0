"""Hugging Face: a small BERT classifier with a two-layer word table, trained by its ``Trainer``.

Built from a configuration, so nothing is downloaded. Two lines are ours, ``convert`` before and
``collapse`` after; and the optimizer is of torch's class, made by `mlet.optim.fused`, which trains
the table by the rows that a batch touches.
"""

import copy
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import mlet


def largest_change(before: dict, after: dict) -> float:
    return max((after[name] - value).abs().max().item() for name, value in before.items())


config = BertConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)
torch.manual_seed(0)
words = torch.randint(1, 300, (256, 12))
rows = [
    {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": int(ids[0]) % 2}
    for ids in words
]

model = BertForSequenceClassification(config)

# Converted and collapsed at once, the model is what it was.
as_built = copy.deepcopy(model.state_dict())
mlet.collapse(mlet.convert(model, inner_dim=64))
print(f"convert and collapse: {largest_change(as_built, model.state_dict()):.1e}")

mlet.convert(model, inner_dim=64, include="*.word_embeddings")
print(mlet.summary(model))
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=10,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    optimizer = mlet.optim.fused(torch.optim.AdamW, model, lr=1e-3)
    Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()


def scores(trained: BertForSequenceClassification) -> torch.Tensor:
    with torch.no_grad():
        return trained.eval()(words).logits


before = scores(model)
mlet.collapse(model)
plain = BertForSequenceClassification(config)
plain.load_state_dict(model.state_dict(), strict=True)
difference = (scores(plain) - before).abs().max().item()
print(f"largest difference between trained and plain scores: {difference:.1e}")
assert difference < 1e-5

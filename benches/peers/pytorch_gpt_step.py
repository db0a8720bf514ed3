#!/usr/bin/env python3
"""Time of one f32 GPT training step in PyTorch on the CPU: the peer of the `step` benchmark.

The model has the shapes of the benchmark: pre-norm blocks, no biases in the linears, causal
attention, GELU, an untied head, AdamW. Prints one JSON line with the median step time.

    python3 pytorch_gpt_step.py [--threads 2] [--steps 15] [--compile]

Exits 0 with a line that says so when torch is not installed.
"""
import argparse
import json
import statistics
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in dict(d_model=256, layers=4, heads=4, seq=256, batch=8, vocab=256, threads=2, steps=15, warmup=4).items():
    parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
parser.add_argument("--compile", action="store_true", help="time torch.compile instead of eager")
args = parser.parse_args()

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    print(f"skipped: PyTorch is not installed ({error}); `pip install torch` to compare")
    sys.exit(0)

torch.set_num_threads(args.threads)
torch.manual_seed(1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        d = args.d_model
        self.attention_norm = nn.LayerNorm(d)
        self.mlp_norm = nn.LayerNorm(d)
        self.query_key_value = nn.Linear(d, 3 * d, bias=False)
        self.projection = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x):  # x [batch, seq, d_model]
        parts = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (args.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(args.vocab, args.d_model)
        self.positions = nn.Embedding(args.seq, args.d_model)
        self.blocks = nn.ModuleList(Block() for _ in range(args.layers))
        self.norm = nn.LayerNorm(args.d_model)
        self.head = nn.Linear(args.d_model, args.vocab, bias=False)

    def forward(self, ids):  # ids [batch, seq]
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


model = Gpt()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
forward = torch.compile(model) if args.compile else model
ids = torch.randint(0, args.vocab, (args.batch, args.seq + 1))

times = []
for step in range(args.warmup + args.steps):
    start = time.perf_counter()
    logits = forward(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    loss.item()
    if step >= args.warmup:
        times.append(time.perf_counter() - start)

print(json.dumps({
    "peer": "pytorch-compiled" if args.compile else "pytorch-eager",
    "version": torch.__version__,
    "format": "f32",
    "threads": args.threads,
    "step_ms_median": round(statistics.median(times) * 1e3, 2),
    "step_ms_min": round(min(times) * 1e3, 2),
    "loss": round(loss.item(), 4),
}))

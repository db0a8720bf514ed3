#!/usr/bin/env python3
"""Time of one GPT training step in PyTorch on the CPU: a peer of `cargo xtask bench --peers`.

The model has the shapes of the benchmark: pre-norm blocks, no biases in the linears, causal
attention, GELU, an untied head, AdamW.

Modes: `eager`; `eager-fused` (fused AdamW); `compile` (torch.compile, fused AdamW); `fp8` (compile,
and every linear rounds its input and weight to E4M3 and its upstream gradient to E5M2, products in
f32); `bf16` (compile under autocast); `unit-scaling` and `unit-scaling-fp8` (the Python
unit-scaling library and its decoder of the same sizes, whose MLP has a gate as wide as the hidden
layer: half as many operations again in the MLP; f32, and its own simulation of FP8).

    python3 pytorch_gpt_step.py [--mode eager] [--threads 2] [--steps 15] [--serve]

Prints one JSON line with the median step time. With --serve: prints a line when ready, then takes
lines from standard input, each a number of steps, prints their times, and at the end of the input
the peak of its resident memory. Prints why and exits 0 if something is not installed.
"""
import argparse
import json
import statistics
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in dict(d_model=256, layers=4, heads=4, seq=256, batch=8, vocab=256, threads=2, steps=15, warmup=4).items():
    parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
parser.add_argument("--mode", default="eager")
parser.add_argument("--serve", action="store_true", help="take numbers of steps from standard input")
args = parser.parse_args()


def skip(reason):
    print(json.dumps({"skipped": reason}), flush=True)
    sys.exit(0)


try:
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(args.threads)
    if args.mode.startswith("unit-scaling"):
        import unit_scaling
        from unit_scaling.transforms import simulate_fp8
except ImportError as error:
    skip(f"not installed ({error}): pip install torch unit-scaling")

torch.manual_seed(1)


class Fp8Linear(torch.autograd.Function):
    """y = x wᵀ with operands rounded to FP8, kept in one byte, multiplied in f32."""

    @staticmethod
    def forward(ctx, x, weight):
        x, weight = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float())

    @staticmethod
    def backward(ctx, dy):
        x, weight = (saved.float() for saved in ctx.saved_tensors)
        dy = dy.to(torch.float8_e5m2).float()
        return dy @ weight, dy.flatten(0, -2).t() @ x.flatten(0, -2)


class Linear(nn.Linear):
    def forward(self, x):
        return Fp8Linear.apply(x, self.weight) if args.mode == "fp8" else super().forward(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        d = args.d_model
        self.attention_norm = nn.LayerNorm(d)
        self.mlp_norm = nn.LayerNorm(d)
        self.query_key_value = Linear(d, 3 * d, bias=False)
        self.projection = Linear(d, d, bias=False)
        self.up = Linear(d, 4 * d, bias=False)
        self.down = Linear(4 * d, d, bias=False)

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
        self.head = Linear(args.d_model, args.vocab, bias=False)

    def forward(self, ids):  # ids [batch, seq]
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


ids = torch.randint(0, args.vocab, (args.batch, args.seq + 1))
if args.mode.startswith("unit-scaling"):
    version = f"{unit_scaling.__version__}, torch {torch.__version__}"
    model = unit_scaling.TransformerDecoder(args.d_model, args.vocab, args.layers, args.heads)
    optimiser = unit_scaling.optim.AdamW(model.parameters(), lr=1e-3)
    forward = simulate_fp8(model) if args.mode.endswith("fp8") else model
    cross_entropy = unit_scaling.functional.cross_entropy
else:
    version = torch.__version__
    model = Gpt()
    fused = args.mode != "eager"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused or None)
    forward = model if args.mode.startswith("eager") else torch.compile(model)
    cross_entropy = F.cross_entropy


def step():
    with torch.autocast("cpu", torch.bfloat16, enabled=args.mode == "bf16"):
        logits = forward(ids[:, :-1])
        loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.item()


def run(steps):
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(round((time.perf_counter() - start) * 1e3, 4))
    return times


def peak_resident_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


try:
    run(args.warmup)
except Exception as error:  # a compiler that is missing, a transform that is too old
    skip(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

about = {"peer": f"pytorch {args.mode}", "version": version, "threads": args.threads}
if args.serve:
    print(json.dumps(about | {"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"step_ms": run(int(line))}), flush=True)
    print(json.dumps({"peak_resident_bytes": peak_resident_bytes(), "loss": round(step(), 4)}), flush=True)
else:
    times = run(args.steps)
    print(json.dumps(about | {
        "step_ms_median": round(statistics.median(times), 2),
        "step_ms_min": round(min(times), 2),
        "loss": round(step(), 4),
    }))

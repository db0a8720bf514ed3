#!/usr/bin/env python3
"""One GPT training step in PyTorch on a GPU: the peer of `gpt_step` (crates/backend-tch/examples).

The same model: learned positions, pre-norm RMS norms without parameters, causal attention, GELU
(tanh) MLP of four times the width, no biases, untied readout, AdamW. Prints one line of JSON for
each configuration; times are medians of CUDA events around single steps, after a warm-up.

    python3 pytorch_cuda_step.py --configs compile-bf16,compile-master

A configuration is `eager` or `compile`, then `bf16` (weights and optimiser state in BF16) or
`master` (in F32, computation under autocast), then, if torchao is installed, `fp8` (tensorwise
dynamic scaling) or `fp8row`; the readout stays in BF16.
"""

import argparse
import gc
import json
import statistics

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):  # (B, T, C)
        batch, seq, width = x.shape
        normed = F.rms_norm(x, (width,), eps=1e-5)
        qkv = self.qkv(normed).view(batch, seq, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, width))
        hidden = self.up(F.rms_norm(x, (width,), eps=1e-5))
        return x + self.down(F.gelu(hidden, approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.tokens = nn.Embedding(a.vocab, a.hidden)
        self.positions = nn.Embedding(a.seq, a.hidden)
        self.blocks = nn.ModuleList(Block(a.hidden, a.heads) for _ in range(a.layers))
        self.readout = nn.Linear(a.hidden, a.vocab, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.readout(F.rms_norm(x, (x.shape[-1],), eps=1e-5))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def measure(config, a):
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    mode, states, *fp8 = config.split("-")
    master = states == "master"
    model = Gpt(a).cuda()
    if not master:
        model = model.bfloat16()
    if fp8:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        name = {"fp8": "tensorwise", "fp8row": "rowwise"}[fp8[0]]
        convert_to_float8_training(
            model,
            config=Float8LinearConfig.from_recipe_name(name),
            module_filter_fn=lambda _, path: path != "readout",
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if mode == "compile" else model
    tokens = torch.randint(0, a.vocab, (a.batch, a.seq + 1), device="cuda")
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=master):
            loss = forward(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(4):
        step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(a.steps + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        loss = step()
        event.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in zip(events, events[1:])]
    return {
        "peer": "pytorch " + torch.__version__,
        "config": config,
        "device": torch.cuda.get_device_name(),
        "hidden": a.hidden,
        "layers": a.layers,
        "seq": a.seq,
        "batch": a.batch,
        "vocab": a.vocab,
        "ms": statistics.median(times),
        "least_ms": min(times),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "loss": loss.item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default="eager-bf16,compile-bf16,eager-master,compile-master")
    for name, value in dict(
        hidden=2048, layers=8, heads=16, seq=1024, batch=16, vocab=32768, steps=15
    ).items():
        parser.add_argument("--" + name, type=int, default=value)
    a = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    for config in a.configs.split(","):
        try:
            print(json.dumps(measure(config, a)), flush=True)
        except Exception as error:  # one failing configuration must not hide the others
            print(json.dumps({"config": config, "error": repr(error)[:500]}), flush=True)


if __name__ == "__main__":
    main()

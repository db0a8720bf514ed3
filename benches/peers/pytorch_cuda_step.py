#!/usr/bin/env python3
"""One GPT training step in PyTorch on a GPU: the peer of `gpt_step` (crates/backend-tch/examples).

The same model: learned positions, pre-norm RMS norms without parameters, causal attention, GELU
(tanh) MLP of four times the width, no biases, untied readout, AdamW. Prints one line of JSON for
each configuration; times are medians of CUDA events around single steps, after a warm-up.

    python3 pytorch_cuda_step.py --configs compile-bf16,compile-master

With `--rounds` every configuration stays on the GPU and is timed several times, in turns with the
programs of `--own` (a file with one command a line), forwards and backwards, so that a card that
warms up is no one's fault. Each line then has its round.

A configuration is `eager` or `compile`, then `bf16` (weights and optimiser state in BF16) or
`master` (in F32, computation under autocast), then, if torchao is installed, `fp8` (tensorwise
dynamic scaling) or `fp8row`; the readout stays in BF16.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys

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


class Peer:
    """A model with its optimiser, ready to take steps."""

    def __init__(self, config, a):
        self.config, self.a = config, a
        if a.rounds == 1:  # else it would forget what the others run
            torch._dynamo.reset()
        self.others = torch.cuda.memory_allocated()
        torch.manual_seed(0)
        mode, states, *fp8 = config.split("-")
        self.master = states == "master"
        model = Gpt(a).cuda()
        if not self.master:
            model = model.bfloat16()
        if fp8:
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training

            name = {"fp8": "tensorwise", "fp8row": "rowwise"}[fp8[0]]
            convert_to_float8_training(
                model,
                config=Float8LinearConfig.from_recipe_name(name),
                module_filter_fn=lambda _, path: path != "readout",
            )
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, weight_decay=0.01, fused=True
        )
        self.forward = torch.compile(model) if mode == "compile" else model
        tokens = torch.randint(0, a.vocab, (a.batch, a.seq + 1), device="cuda")
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.step()
        self.own = torch.cuda.memory_allocated() - self.others

    def step(self):
        with torch.autocast("cuda", torch.bfloat16, enabled=self.master):
            loss = self.forward(self.inputs, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def measure(self):
        a = self.a
        gc.collect()
        # What others use is there all the while, and is not this one's.
        others = torch.cuda.memory_allocated() - self.own
        torch.cuda.reset_peak_memory_stats()
        for _ in range(4):
            self.step()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(a.steps + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for event in events[1:]:
            loss = self.step()
            event.record()
        torch.cuda.synchronize()
        times = [start.elapsed_time(end) for start, end in zip(events, events[1:])]
        peak = torch.cuda.max_memory_allocated() - others
        # What others need in between would not fit beside this one's cache.
        torch.cuda.empty_cache()
        return {
            "peer": "pytorch " + torch.__version__,
            "config": self.config,
            "device": torch.cuda.get_device_name(),
            "hidden": a.hidden,
            "layers": a.layers,
            "seq": a.seq,
            "batch": a.batch,
            "vocab": a.vocab,
            "ms": statistics.median(times),
            "least_ms": min(times),
            "peak_gib": peak / 2**30,
            "loss": loss.item(),
        }


def own(command):
    """The line of JSON that a program of ours prints first."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    first = done.stdout.partition("\n")[0]
    if done.returncode != 0 or not first:
        raise RuntimeError(f"{command}: exit {done.returncode}: {done.stderr[-300:]}")
    return json.loads(first)


def turns(a):
    """Every configuration in every round; yields lines."""
    kept = {}

    def peer(config):
        peer = kept.get(config) or Peer(config, a)
        if a.rounds > 1:
            kept[config] = peer
        return peer.measure()

    commands = open(a.own).read().splitlines() if a.own else []
    tasks = [(own, command) for command in commands if command.strip()]
    tasks += [(peer, config) for config in a.configs.split(",")]
    if a.rounds > 1:
        for config in a.configs.split(","):
            try:
                peer(config)  # compiles
            except Exception as error:
                print(f"{config}: {error!r}", file=sys.stderr)
    for number in range(a.rounds):
        for run, what in tasks if number % 2 == 0 else tasks[::-1]:
            try:
                line = run(what)
            except Exception as error:  # one failing configuration must not hide the others
                line = {"config": what, "error": repr(error)[:500]}
            yield line | ({"round": number} if a.rounds > 1 else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default="eager-bf16,compile-bf16,eager-master,compile-master")
    for name, value in dict(
        hidden=2048, layers=8, heads=16, seq=1024, batch=16, vocab=32768, steps=15
    ).items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--own", help="a file with commands of our own, one a line")
    a = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    for line in turns(a):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

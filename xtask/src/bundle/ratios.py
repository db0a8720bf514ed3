#!/usr/bin/env python3
"""Rounds of steps beside peers: a line with the median for each, then a line for each ratio.

    python3 ratios.py rounds.jsonl

A ratio is that of one round's times; of the rounds the median and the range are given.
"""

import json
import statistics
import sys

# Ours, the peer, and what the ratio should be at most.
RATIOS = (
    ("unit-fp8", "compile-master", 0.72),
    ("unit-fp8", "compile-master-fp8", 0.80),
    ("unit-fp8-bf16-states.toml", "compile-bf16", 0.72),
    ("unit-fp8-bf16-states.toml", "compile-bf16-fp8", 0.80),
    ("bf16", "compile-master", 0.95),
    ("bf16-states.toml", "compile-bf16", 0.95),
)


def main():
    rounds = {}
    with open(sys.argv[1]) as lines:
        for line in map(json.loads, filter(None, map(str.strip, lines))):
            if "error" in line:
                print(json.dumps(line))
                continue
            rounds.setdefault(line.get("recipe") or line["config"], {})[line.get("round", 0)] = line
    for own in rounds.values():
        ms = [line["ms"] for _, line in sorted(own.items())]
        first = {k: v for k, v in next(iter(own.values())).items() if k not in ("round", "losses")}
        least = min(line["least_ms"] for line in own.values())
        print(json.dumps(first | {"ms": statistics.median(ms), "least_ms": least, "rounds_ms": ms}))
    for ours, peer, bar in RATIOS:
        both = sorted(rounds.get(ours, {}).keys() & rounds.get(peer, {}).keys())
        if not both:
            continue
        ratios = [rounds[ours][n]["ms"] / rounds[peer][n]["ms"] for n in both]
        print(
            json.dumps(
                {
                    "ratio": f"{ours} / {peer}",
                    "median": round(statistics.median(ratios), 4),
                    "range": [round(min(ratios), 4), round(max(ratios), 4)],
                    "rounds": len(both),
                    "bar": bar,
                }
            )
        )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Trains a GPT and a BERT on this machine's GPU, `unit-fp8` beside `bf16`: same data and seeds.
The GPT also in `unit-fp16`, at the rate of `unit-fp8`: the same model, so that formats and scaling
can be told apart.

    python3 pretrain.py [tune|gpt|bert|rates] ...

`tune` finds each recipe's learning rate for the GPT in short runs; `gpt` trains it for long at
those rates, if they are in `$OUT/rates.json`, else at those found before. `bert` trains a BERT on
masked tokens at some rates, and from the best on sentiment (SST-2) with several seeds, at the rates
that `rates` found. Runs that do not depend on each other
run side by side. Expects `$BOOKS` (books.train.txt, books.valid.txt), `$SST2` (train.tsv, dev.tsv)
and `$VOCAB`; writes `$OUT/PART.jsonl`, one line for each run, with its curves.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

OUT = os.environ.get("OUT", "results")
RUNS = os.environ.get("RUNS", "runs")
BOOKS, SST2 = os.environ.get("BOOKS", "."), os.environ.get("SST2", "sst2")
VOCAB = os.environ.get("VOCAB", "vocab.txt")
BACKEND = os.environ.get("BACKEND", "cuda")
# Seconds after which runs are stopped.
DEADLINE = time.monotonic() + float(os.environ.get("SECONDS_LEFT", "1e7"))
# Shorter runs of everything, to try this script.
SHARE = float(os.environ.get("SHARE", "1"))
RECIPES = ("unit-fp8", "bf16")
BOOK_DATA = {"data": f"{BOOKS}/books.train.txt", "valid": f"{BOOKS}/books.valid.txt"}

# 85 million parameters beside the embeddings; a token is a byte.
GPT = {**BOOK_DATA, "layers": 12, "hidden": 768, "heads": 12, "seq": 512, "batch": 32}
GPT_RATES = {"unit-fp8": (0.015, 0.02, 0.03, 0.04), "bf16": (0.0004, 0.0008, 0.0012)}
GPT_FOUND = {"unit-fp8": 0.03, "bf16": 0.0008}
BERT = {"model_type": "bert", "layers": 6, "hidden": 384, "heads": 6, "seq": 128, "batch": 64}
MLM = {**BERT, **BOOK_DATA, "tokenizer": VOCAB}
MLM_RATES = {"unit-fp8": (0.006, 0.012), "bf16": (0.0008,)}
TUNED = {**BERT, "task": "classification", "data": SST2, "seq": 64, "eval_every": 0}
TUNED_RATES = {"unit-fp8": (0.002, 0.004, 0.008), "bf16": (0.0001, 0.0002, 0.0004)}
TUNED_FOUND = {"unit-fp8": 0.004, "bf16": 0.0002}
SEEDS = range(5)


def curve(records, kind, window):
    """Mean losses of `window` records each: [last step, loss]."""
    own = [(r["step"], r["loss"]) for r in records if r["kind"] == kind and r["loss"] is not None]
    parts = [own[at : at + window] for at in range(0, len(own), window)]
    return [[p[-1][0], round(sum(l for _, l in p) / len(p), 4)] for p in parts if p]


def train(name, settings):
    """One run of the command line; its result as a line of JSON."""
    settings = {"eval_batches": 32, "save_every": 0, "keep": 1, "seed": 0, **settings}
    for key in ("steps", "warmup"):
        settings[key] = max(2, round(settings[key] * SHARE))
    folder = f"{RUNS}/{name}"
    words = ["./onesigma", "train", "-q", "--backend", BACKEND, "--out", folder]
    for key, value in settings.items():
        words += ["--" + key.replace("_", "-"), str(value)]
    # A run that is told to stop ends after its current steps, and says what it has.
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        text, _ = run.communicate(timeout=DEADLINE - time.monotonic())
    except subprocess.TimeoutExpired:
        run.terminate()
        text, _ = run.communicate()
    # Names without folders: results do not say where they were made.
    short = {k: os.path.basename(v) if isinstance(v, str) else v for k, v in settings.items()}
    result = {"run": name, **short}
    if run.returncode:
        result["stopped" if "interrupted after" in text else "error"] = text[-800:]
    if os.path.exists(f"{folder}/metrics.jsonl"):
        summary = {}
        if os.path.exists(f"{folder}/summary.json"):
            with open(f"{folder}/summary.json") as file:
                summary = json.load(file)
        with open(f"{folder}/metrics.jsonl") as lines:
            records = [json.loads(line) for line in lines if line.endswith("}\n")]
        for key in ("validation_loss", "validation_accuracy", "tokens_per_s", "parameters"):
            if summary.get(key) is not None:
                result[key] = summary[key]
        result["train_curve"] = curve(records, "train", 50)
        result["validation_curve"] = curve(records, "evaluation", 1)
    shown = {k: v for k, v in result.items() if "curve" not in k and k not in GPT}
    print(json.dumps(shown), flush=True)
    return result


def side_by_side(runs):
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda run: train(*run), runs))


def best(results, score):
    """The best rate of each recipe among runs; its default where all failed."""
    rates = {}
    for recipe in RECIPES:
        own = [r for r in results if r["recipe"] == recipe and r.get("validation_loss") is not None]
        if own:
            rates[recipe] = max(own, key=score)["lr"]
    return rates


def grid(name, rates, settings):
    return [
        (f"{name}-{recipe}-{rate}", {"recipe": recipe, "lr": rate, **settings})
        for recipe, own in rates.items()
        for rate in own
    ]


def write(part, results):
    with open(f"{OUT}/{part}.jsonl", "w") as file:
        for result in results:
            print(json.dumps(result), file=file)


def by_loss(result):
    return -result["validation_loss"]


def tune():
    results = side_by_side(grid("tune", GPT_RATES, {**GPT, "steps": 800, "warmup": 100}))
    write("tune", results)
    with open(f"{OUT}/rates.json", "w") as file:
        json.dump(best(results, by_loss), file)


def gpt():
    rates = dict(GPT_FOUND)
    if os.path.exists(f"{OUT}/rates.json"):
        with open(f"{OUT}/rates.json") as file:
            rates.update(json.load(file))
    rates["unit-fp16"] = rates["unit-fp8"]
    steps = int(os.environ.get("GPT_STEPS", "4500"))
    long = {**GPT, "steps": steps, "warmup": 200, "eval_every": 250}
    write("gpt", side_by_side(grid("gpt", {r: [rate] for r, rate in rates.items()}, long)))


def masked():
    """Pre-trained BERTs: all results, and the best run of each recipe."""
    long = {**MLM, "steps": 6000, "warmup": 300, "eval_every": 500}
    results = side_by_side(grid("mlm", MLM_RATES, long))
    rates = best(results, by_loss)
    return results, {r: f"{RUNS}/mlm-{r}-{rate}" for r, rate in rates.items()}


def sentiment(starts, rates, seeds):
    tuning = {**TUNED, "steps": 2100, "warmup": 200, "eval_batches": 1000}
    runs = []
    for seed in seeds:
        for recipe, start in starts.items():
            for rate in rates[recipe]:
                own = {**tuning, "recipe": recipe, "lr": rate, "init_from": start, "seed": seed}
                runs.append((f"sst2-{recipe}-{rate}-seed{seed}", own))
    return side_by_side(runs)


def rates():
    write("rates", sentiment(masked()[1], TUNED_RATES, [0]))


def bert():
    results, starts = masked()
    write("mlm", results)
    found = {recipe: [rate] for recipe, rate in TUNED_FOUND.items()}
    write("sst2", sentiment(starts, found, SEEDS))


def main():
    os.makedirs(OUT, exist_ok=True)
    parts = {"tune": tune, "gpt": gpt, "rates": rates, "bert": bert}
    for part in sys.argv[1:] or ["tune", "gpt", "bert"]:
        parts[part]()


if __name__ == "__main__":
    main()

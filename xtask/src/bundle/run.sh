#!/usr/bin/env bash
# Checks and measures Onesigma on this machine's GPU. Needs a Python with PyTorch 2.11 for CUDA 13.
#
#   bash run.sh [all|check|sanitize|kernels|step|small|train|pretrain] ...
#
# Results go to $OUT (default: results), one file for each part. A torchao wheel in this folder is
# used for the peers with `fp8` in their names; kernels are kept in ./cache.
set -u
cd "$(dirname "$0")"
export OUT=${OUT:-results}
mkdir -p "$OUT"
LIBTORCH=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || exit 1
export ONESIGMA_CACHE=${ONESIGMA_CACHE:-$PWD/cache}
for wheel in torchao-*.whl; do
  [ -e "$wheel" ] || continue
  python3 -m pip install -q --no-index --no-deps --target site "$wheel" 2>/dev/null
  export PYTHONPATH=$PWD/site
done
export LD_LIBRARY_PATH=$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# The conformance suite, the products and attention of tensor cores, and steps beside the CPU.
check() {
  ./conformance -q > "$OUT/conformance.log" 2>&1
  echo "conformance: exit $?, $(grep 'test result' "$OUT/conformance.log")"
  ./products > "$OUT/products.log" 2>&1
  echo "products: exit $?, $(grep 'test result' "$OUT/products.log")"
  ./step on_the_gpu > "$OUT/step.log" 2>&1
  echo "step: exit $?, $(grep 'test result' "$OUT/step.log")"
}

# A part of the suite, as the sanitizer is slow: every kind of kernel once.
sanitize() {
  for tool in memcheck racecheck; do
    compute-sanitizer --tool $tool --error-exitcode 9 ./conformance -q --test-threads 1 \
      "${SANITIZE:-op::}" > "$OUT/$tool.log" 2>&1
    echo "$tool: exit $?, $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$OUT/$tool.log" | tail -1)"
  done
}

kernels() {
  ./cuda_kernels | tee "$OUT/kernels.jsonl"
}

# Our steps in $ours (arguments of `gpt_step`, one set a line) and the peers' in $peers, in one run.
compare() {
  local name=$1
  shift
  : > "$OUT/$name.jsonl"
  while read -r own; do
    [ -z "$own" ] && continue
    # shellcheck disable=SC2086 # words are arguments
    ./gpt_step $own "$@" | head -1 >> "$OUT/$name.jsonl"
  done <<< "$ours"
  python3 pytorch_cuda_step.py --configs "$peers" "$@" 2> "$OUT/$name.err" | grep '^{' >> "$OUT/$name.jsonl"
  cut -c1-400 "$OUT/$name.jsonl"
}

step() {
  peers=${PEERS:-compile-master,compile-master-fp8,compile-bf16,compile-bf16-fp8}
  ours="--recipe unit-fp8
--recipe unit-fp8 --memory 10.75
--recipe unit-fp8-bf16-states.toml
--recipe unit-fp8-bf16-states.toml --memory 7.4
--recipe bf16
--recipe bf16-states.toml"
  compare step
  ./gpt_step --profile --calls 1 > "$OUT/profile.txt"
  tail -1 "$OUT/profile.txt"
}

small() {
  peers=compile-bf16,eager-bf16
  ours="--recipe unit-fp8
--recipe bf16"
  compare small \
    --hidden 256 --layers 4 --heads 4 --seq 256 --batch 8 --vocab 256 --steps 50
}

# Equal runs on the GPU and on the CPU backend: the mean losses of the last 50 steps within 1 %.
train() {
  for backend in cuda cpu; do
    ./onesigma train --recipe unit-fp8 --backend $backend --data "${DATA:-run.sh}" --steps 300 \
      --out "$OUT/train-$backend" > "$OUT/train-$backend.log" 2>&1
    echo "train on $backend: exit $?"
  done
  python3 - "$OUT" <<'END'
import json, sys
losses = {}
for backend in ("cuda", "cpu"):
    with open(f"{sys.argv[1]}/train-{backend}/metrics.jsonl") as lines:
        records = [json.loads(line) for line in lines]
    losses[backend] = [r["loss"] for r in records if r["kind"] == "train"]
with open(f"{sys.argv[1]}/follow.csv", "w") as table:
    print("step,cuda,cpu", file=table)
    for step, pair in enumerate(zip(losses["cuda"], losses["cpu"])):
        print(step, *pair, sep=",", file=table)
last = {name: sum(values[-50:]) / 50 for name, values in losses.items()}
gap = last["cuda"] / last["cpu"] - 1
print(f"last 50 steps: cuda {last['cuda']:.4f}, cpu {last['cpu']:.4f}, {100 * gap:+.2f} %")
sys.exit(abs(gap) > 0.01)
END
  echo "follows the CPU: exit $?"
}

# One run of the command line in the background; what it says at the end goes to the screen.
run() {
  local name=$1
  shift
  ./onesigma train -q --backend cuda --save-every 0 --keep 1 --seed 0 --out "$OUT/$name" "$@" \
    > "$OUT/$name.log" 2>&1
  echo "$name: exit $?, $(grep -h validation "$OUT/$name.log" | head -2 | paste -sd ' ')"
}

# A GPT of 97 million parameters on bytes, and a BERT on masked tokens, then fine-tuned on SST-2:
# unit-fp8 (and u-mup-fp8) against bf16, same data and seed, side by side on one GPU. Expects
# $BOOKS (books.train.txt, books.valid.txt), $SST2 (train.tsv, dev.tsv) and a vocab.txt.
pretrain() {
  local pair recipe rate
  for pair in unit-fp8:0.03 u-mup-fp8:1 bf16:0.0006; do
    recipe=${pair%:*} rate=${pair#*:}
    run "gpt-$recipe" --recipe "$recipe" --lr "$rate" --data "$BOOKS/books.train.txt" \
      --valid "$BOOKS/books.valid.txt" --layers 12 --hidden 768 --heads 12 --seq 512 --batch 32 \
      --steps "${GPT_STEPS:-3000}" --warmup 150 --eval-every 500 --eval-batches 32 &
  done
  for pair in unit-fp8:0.012:0.004 bf16:0.0005:0.0002; do
    IFS=: read -r recipe rate tuning <<< "$pair"
    {
      run "mlm-$recipe" --recipe "$recipe" --lr "$rate" --model-type bert --tokenizer vocab.txt \
        --data "$BOOKS/books.train.txt" --valid "$BOOKS/books.valid.txt" --layers 6 --hidden 384 \
        --heads 6 --seq 128 --batch 64 --steps "${BERT_STEPS:-6000}" --warmup 300 \
        --eval-every 1000 --eval-batches 32
      run "sst2-$recipe" --recipe "$recipe" --lr "$tuning" --model-type bert \
        --task classification --data "$SST2" --init-from "$OUT/mlm-$recipe" --seq 64 --batch 64 \
        --steps 2100 --warmup 200 --eval-every 0 --eval-batches 1000
    } &
  done
  wait
}

[ $# -eq 0 ] && set -- all
for part in "$@"; do
  case $part in
    all) check; kernels; step; small; train ;;
    check | sanitize | kernels | step | small | train | pretrain) $part ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
  esac
done

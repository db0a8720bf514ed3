#!/usr/bin/env bash
# Checks and measures Onesigma on this machine's GPU. Needs a Python with PyTorch 2.11 for CUDA 13.
#
#   bash run.sh [all|check|sanitize|kernels|step|small|train] ...
#
# Results go to $OUT (default: results), one file for each part.
set -u
cd "$(dirname "$0")"
export OUT=${OUT:-results}
mkdir -p "$OUT"
LIBTORCH=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || exit 1
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

# Our step and the peers' in one run: sizes by arguments.
compare() {
  local name=$1 configs=$2
  shift 2
  : > "$OUT/$name.jsonl"
  for recipe in unit-fp8 bf16; do
    ./gpt_step --recipe $recipe "$@" | head -1 >> "$OUT/$name.jsonl"
  done
  python3 pytorch_cuda_step.py --configs "$configs" "$@" 2> "$OUT/$name.err" | grep '^{' >> "$OUT/$name.jsonl"
  cut -c1-400 "$OUT/$name.jsonl"
}

step() {
  compare step "${PEERS:-compile-master,compile-bf16,eager-master,eager-bf16,compile-master-fp8}"
  ./gpt_step --profile --calls 1 > "$OUT/profile.txt"
  tail -1 "$OUT/profile.txt"
}

small() {
  compare small compile-bf16,eager-bf16 \
    --hidden 256 --layers 4 --heads 4 --seq 256 --batch 8 --vocab 256 --steps 50
}

# Equal runs on the GPU and on the CPU backend.
train() {
  for backend in cuda cpu; do
    ./onesigma train --recipe unit-fp8 --backend $backend --data "${DATA:-run.sh}" --steps 300 \
      --out "$OUT/train-$backend" > "$OUT/train-$backend.log" 2>&1
    echo "train on $backend: exit $?"
  done
}

[ $# -eq 0 ] && set -- all
for part in "$@"; do
  case $part in
    all) check; kernels; step; small; train ;;
    check | sanitize | kernels | step | small | train) $part ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
  esac
done

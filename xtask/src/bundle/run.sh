#!/usr/bin/env bash
# Checks and measures Onesigma on this machine's GPU. Needs a Python with PyTorch 2.11 for CUDA 13.
#
#   bash run.sh [all|check|errors|cache|sanitize|kernels|step|profile|small|train|tune|gpt|rates|bert] ...
#
# Results go to $OUT (default: results), one file for each part. A torchao wheel in this folder is
# used for the peers with `fp8` in their names; kernels are kept in ./cache.
set -u
cd "$(dirname "$0")"
export OUT=${OUT:-results}
mkdir -p "$OUT"
LIBTORCH=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || exit 1
export RUNS=${RUNS:-runs}
mkdir -p "$RUNS"
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

# What is said where a library, a GPU or memory is missing. Libraries are hidden by mounts of this
# process alone, which needs root.
errors() {
  local hide='for file in $(find / -xdev -name "$HIDE*" 2>/dev/null); do
    mount --bind /dev/null "$file"; done; ./onesigma train --backend cuda --data run.sh --steps 1 --out "$RUNS/e"'
  {
    for name in libtorch_cuda.so libnvrtc.so libcublasLt.so; do
      echo "== without $name"
      HIDE=$name timeout 100 unshare -m bash -c "$hide" 2>&1 | tail -3
    done
    echo "== without a GPU"
    CUDA_VISIBLE_DEVICES= ./onesigma train --backend cuda --data run.sh --steps 1 --out "$RUNS/e" 2>&1 | tail -3
    echo "== a limit below what a step needs"
    ./onesigma train --backend cuda --memory 8MB --data run.sh --steps 1 --out "$RUNS/less" 2>&1 |
      tail -3
    echo "exit ${PIPESTATUS[0]}"
    echo "== more than the GPU has"
    ./onesigma train --backend cuda --layers 16 --hidden 8192 --heads 64 --seq 64 --batch 64 \
      --data run.sh --steps 1 --out "$RUNS/more" 2>&1 | tail -3
    echo "exit ${PIPESTATUS[0]}"
  } > "$OUT/errors.txt"
  cat "$OUT/errors.txt"
}

# Kernels come from the disk the second time, and damaged files are made anew.
cache() {
  local small="--hidden 256 --layers 2 --heads 4 --seq 256 --batch 8 --vocab 256 --calls 1"
  local kept=$RUNS/kept
  rm -rf "$kept"
  for round in empty full damaged; do
    if [ $round = damaged ]; then
      find "$kept" -name '*.cubin' | sort | sed -n '1~3p' | xargs truncate -s 100
      find "$kept" -name '*.cubin' | sort | sed -n '2~3p' |
        xargs -I{} dd if=/dev/zero of={} bs=1 seek=500 count=64 conv=notrunc status=none
    fi
    # shellcheck disable=SC2086 # words are arguments
    ONESIGMA_CACHE=$kept ./gpt_step $small | head -1 |
      python3 -c 'import json, sys
d = json.load(sys.stdin)
print(json.dumps({"cache": sys.argv[1], "prepared_s": d["prepared_s"], "losses": d["losses"][-3:]}))' \
        $round
  done | tee "$OUT/cache.jsonl"
  echo "files kept: $(find "$kept" -name '*.cubin' | wc -l)"
}

# The whole suite under the sanitizer, in parts side by side (the sanitizer is slow, and mostly waits
# for the host); run `check` first, so that no kernel is compiled under it.
sanitize() {
  local tool=${TOOL:-memcheck} pids=() name
  for name in ${PARTS:-op::a op::c op::g op::l op::m op::p op::r op::s format::a format::c format::g format::l \
    format::m format::p format::r format::s rest}; do
    local words=("$name")
    [ "$name" = rest ] && words=(--skip op:: --skip format::)
    timeout "${SANITIZE_S:-500}" compute-sanitizer --tool "$tool" --error-exitcode 9 ./conformance \
      --test-threads 1 "${words[@]}" > "$OUT/$tool-${name//::/-}.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || echo "$tool: a part ended with $?"; done
  cat "$OUT/$tool"-*.log | grep -c '\.\.\. ok' | sed "s/^/$tool, cases passed: /"
  grep -h -E 'ERROR SUMMARY|RACECHECK SUMMARY|test result' "$OUT/$tool"-*.log | sort | uniq -c
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

# Steps in turns with the peers' ($ROUNDS times each), then what takes less memory. A line for each
# recipe and peer with the median and all rounds, and one for each ratio.
step() {
  local rounds=${ROUNDS:-5} own
  own=$(mktemp)
  for recipe in unit-fp8 unit-fp8-bf16-states.toml bf16 bf16-states.toml; do
    echo "./gpt_step --recipe $recipe --calls 3"
  done > "$own"
  python3 pytorch_cuda_step.py --rounds "$rounds" --own "$own" \
    --configs "${PEERS:-compile-master,compile-master-fp8,compile-bf16,compile-bf16-fp8}" \
    2> "$OUT/step.err" > "$OUT/rounds.jsonl"
  python3 ratios.py "$OUT/rounds.jsonl" > "$OUT/step.jsonl"
  for less in "unit-fp8 --memory 10.75" "unit-fp8-bf16-states.toml --memory 7.4"; do
    # shellcheck disable=SC2086 # words are arguments
    ./gpt_step --recipe $less | head -1 >> "$OUT/step.jsonl"
  done
  cut -c1-300 "$OUT/step.jsonl"
}

# Every launch timed on its own.
profile() {
  for recipe in unit-fp8 unit-fp8-bf16-states.toml bf16; do
    echo "## $recipe"
    ./gpt_step --profile --calls 1 --recipe $recipe
  done > "$OUT/profile.txt"
  grep -c . "$OUT/profile.txt"
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
  local data=${BOOKS:+$BOOKS/books.valid.txt}
  for backend in cuda cpu; do
    ./onesigma train --recipe unit-fp8 --backend $backend --data "${data:-run.sh}" --steps 300 \
      --out "$RUNS/train-$backend" > "$OUT/train-$backend.log" 2>&1
    echo "train on $backend: exit $?"
  done
  python3 - "$OUT" "$RUNS" <<'END'
import json, sys
losses = {}
for backend in ("cuda", "cpu"):
    with open(f"{sys.argv[2]}/train-{backend}/metrics.jsonl") as lines:
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

[ $# -eq 0 ] && set -- all
for part in "$@"; do
  case $part in
    all) check; kernels; step; profile; small; train ;;
    check | errors | cache | sanitize | kernels | step | profile | small | train) $part ;;
    tune | gpt | rates | bert) python3 pretrain.py "$part" ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
  esac
done

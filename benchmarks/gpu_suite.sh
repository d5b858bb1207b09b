#!/usr/bin/env bash
# Everything that needs a GPU, part by part, on a bare machine without network: build, GPU tests, compute-sanitizer,
# benchmarks, report. A part that succeeded is not run again in the same OUT, so a run that was cut off goes on.
#
#   OUT=results_dir bash benchmarks/gpu_suite.sh [part ...]     parts: build tests sanitize ops models train report
#
# Needs torch >= 2.11 with CUDA, nvcc, setuptools, ninja and pybind11. About 25 minutes on an H100 (estimate).
set -uo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD  # commands run from /: inside the checkout its tore_fast/, without binaries, would hide the installed one
OUT=${OUT:-benchmarks/results/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
failed=0

part() {  # part NAME SECONDS COMMAND...: runs it with a time limit, keeps the log and a mark of success
  local name=$1 limit=$2
  shift 2
  if [ -e "$OUT/$name.done" ]; then echo "== $name: done before"; return; fi
  echo "== $name (limit $limit s)"
  local start=$SECONDS
  if timeout "$limit" "$@" >"$OUT/$name.log" 2>&1; then
    touch "$OUT/$name.done"
    echo "   ok in $((SECONDS - start)) s: $(tail -n 1 "$OUT/$name.log")"
  else
    echo "   FAILED ($?) after $((SECONDS - start)) s:"
    tail -n 15 "$OUT/$name.log" | sed 's/^/   | /'
    failed=1
  fi
}

build() { TORE_FAST_CUDA=1 "$python" -m pip install -q --no-build-isolation --no-deps . && cd / && "$python" -m tore_fast info; }

tests() { cd / && "$python" -m pytest -q -p no:cacheprovider "$ROOT/tests/ops" "$ROOT/tests/build" -k "cuda or gpu or build or triton"; }

sanitize() {  # memcheck finds faults, racecheck shared-memory races; small shapes only, each op in a process of its own
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH"; return 1; }
  cd /
  local bad=0
  for tool in memcheck racecheck; do
    for file in "$ROOT"/tests/ops/test_*.py; do
      echo "-- $tool $file"
      compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
        "$python" -m pytest -q -x -p no:cacheprovider "$file" -k "cuda and not compile and not graph" | tail -n 3
      [ "${PIPESTATUS[0]}" = 9 ] && bad=1
    done
  done
  return $bad
}

ops() { cd / && "$python" -m tore_fast bench ops --device cuda --dtype float32 float16 bfloat16 --baselines all --seconds 0.3 --json "$OUT/gpu_ops.json"; }
models() { cd / && "$python" -m tore_fast bench models --device cuda --dtype float32 bfloat16 --seconds 0.5 --json "$OUT/gpu_models.json"; }
train() { cd / && "$python" -m tore_fast train mesh --train.out "$OUT/train_probe" --train.steps 200 --train.precision bf16 --train.batch-size 128; }
report() { cd / && for kind in ops models; do "$python" -m tore_fast.benchmarks.report "$OUT/gpu_$kind.json" "$OUT/$kind"; done; }

export -f build tests sanitize ops models train report
export python OUT ROOT
limits() { case $1 in build) echo 240 ;; tests) echo 300 ;; sanitize) echo 420 ;; ops) echo 420 ;; models) echo 300 ;; *) echo 120 ;; esac; }

for name in ${@:-build tests sanitize ops models train report}; do
  part "$name" "$(limits "$name")" bash -c "$name"
done
exit $failed

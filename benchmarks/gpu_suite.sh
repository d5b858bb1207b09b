#!/usr/bin/env bash
# Everything that needs a GPU, part by part, on a bare machine without network: build, GPU tests, compute-sanitizer,
# benchmarks, report. A part that succeeded is not run again in the same OUT, and inside `sanitize` no finished run, inside
# `ops` and `models` no finished row, so a run that was cut off goes on where it was.
#
#   OUT=results_dir bash benchmarks/gpu_suite.sh [part ...]     parts: build tests sanitize ops models train report
#   DRY=1 ...                                                    prints the parts, their limits and commands, runs nothing
#
# Needs torch >= 2.11 with CUDA, nvcc, setuptools, ninja and pybind11. The limits add up to 27 minutes; how much of them an
# H100 needs is not known yet.
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
  if [ -n "${DRY:-}" ]; then declare -f "$name"; return; fi
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

tests() { cd / && "$python" -m pytest -q -p no:cacheprovider "$ROOT/tests/ops" "$ROOT/tests/build" -k "(cuda or gpu or build or triton) and not budget"; }

sanitizer() {  # sanitizer TOOL FILE FILTER: one run of pytest under compute-sanitizer, skipped when it succeeded before
  local tool=$1 file=$2 filter=$3
  local mark="$OUT/sanitize.$tool.$(basename "$file" .py).done"
  if [ -e "$mark" ]; then echo "-- $tool $file: done before"; return 0; fi
  echo "-- $tool $file"
  compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
    "$python" -m pytest -q -x -p no:cacheprovider "$file" -k "$filter" | tail -n 3
  local status=${PIPESTATUS[0]}
  case $status in
    0 | 5) touch "$mark" ;; # 5: no test selected
    *) echo "-- $tool $file: exit $status"; return 1 ;;
  esac
}

sanitize() {  # faults, shared-memory races, bad barriers: first every op in small shapes, then the files op by op
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH"; return 1; }
  cd /
  local bad=0
  for tool in memcheck racecheck synccheck; do
    sanitizer "$tool" "$ROOT/tests/ops/test_matrix.py" "test_cuda_matches_float64" || bad=1
  done
  for file in "$ROOT"/tests/ops/test_*.py; do
    case $file in *test_matrix.py | *_emulated.py) continue ;; esac
    sanitizer memcheck "$file" "cuda and not compile and not graph and not opcheck and not any_shape" || bad=1
  done
  return $bad
}

bench() { cd / && "$python" -m tore_fast bench "$1" --device cuda --append --json "$OUT/gpu_$1.json" "${@:2}"; }
ops() { bench ops --dtype float32 float16 bfloat16 --baselines all --seconds 0.3; }
models() { bench models --dtype float32 bfloat16 --seconds 0.2 --max-gb 40 --max-batch 256; }
train() { cd / && "$python" -m tore_fast train mesh --train.out "$OUT/train_probe" --train.steps 200 --train.precision bf16 --train.batch-size 128; }
report() { cd / && for kind in ops models; do "$python" -m tore_fast.benchmarks.report "$OUT/gpu_$kind.json" "$OUT/$kind"; done; }

export -f build tests sanitizer sanitize bench ops models train report
export python OUT ROOT
limits() { case $1 in build) echo 240 ;; tests) echo 240 ;; sanitize) echo 360 ;; ops) echo 360 ;; models) echo 300 ;; *) echo 60 ;; esac; }

for name in ${@:-build tests sanitize ops models train report}; do
  part "$name" "$(limits "$name")" bash -c "$name"
done
exit $failed

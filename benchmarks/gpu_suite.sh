#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most 580 seconds, on a bare machine without network: build for this GPU,
# acceptance shapes, the matrix and op tests, sanitizers on our kernels, models. What matters most comes first.
#
#   OUT=dir bash benchmarks/gpu_suite.sh [part ...]    parts: build ops matrix tests memcheck racecheck models tables pipelines
#   DRY=1 ...        prints the parts, their limits and commands, runs nothing
#   EMULATED=1 ...   the same parts on a machine without a GPU: kernels in tests/cuda_emulator, models on the CPU
#   PROBE=FILE ...   also runs this Python file after the build (first probe of a new machine), its output is kept
#
# After every part OUT/gpu_suite.tar holds all logs, numbers and marks. A later run goes on from it: RESUME=that file (default
# build/gpu_suite.tar). A part that succeeded is not run again, nor a benchmark row that is there. A CUDA error that leaves
# the context dead ends its part at once (harness.py, tests/conftest.py) and the suite with it.
#
# Needs torch >= 2.11 with CUDA, triton, numpy, scipy, pytest, setuptools, ninja, pybind11, nvcc. pytest-xdist and
# compute-sanitizer are used where they are; nothing else of the package's dependencies is.
set -uo pipefail
cd "$(dirname "$0")/.."
export ROOT=$PWD
export OUT=${OUT:-$ROOT/benchmarks/results/gpu} EMULATED=${EMULATED:-} PROBE=${PROBE:-} python=${PYTHON:-python3}
export OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1 PYTHONPATH=$ROOT
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export WORK=$ROOT/build/gpu_suite
mkdir -p "$WORK"
resume=${RESUME:-$ROOT/build/gpu_suite.tar}
[ -f "$resume" ] && tar -xf "$resume" -C "$WORK"
TOTAL=${TOTAL:-580}
STICKY='illegal memory access|device-side assert|misaligned address|unspecified launch failure|illegal instruction'

part() {  # part NAME SECONDS: runs it with a time limit, keeps the log and a mark of success, packs everything
  local name=$1 limit=$2 left=$((TOTAL - SECONDS - 5))
  if [ -e "$WORK/$name.done" ]; then echo "== $name: done before"; return 0; fi
  [ "$limit" -lt "$left" ] || limit=$left
  if [ -n "${DRY:-}" ]; then echo "== $name (limit $limit s)"; declare -f "$name"; return 0; fi
  [ "$limit" -ge 10 ] || { echo "== $name: no time left"; return 1; }
  echo "== $name (limit $limit s)"
  local start=$SECONDS status
  timeout "$limit" bash -c "$name" >"$WORK/$name.log" 2>&1
  status=$?
  if [ $status = 0 ]; then
    touch "$WORK/$name.done"
    echo "   ok in $((SECONDS - start)) s: $(tail -n 1 "$WORK/$name.log")"
  else
    echo "   FAILED ($status) after $((SECONDS - start)) s:"
    tail -n 15 "$WORK/$name.log" | sed 's/^/   | /'
  fi
  tar -cf "$OUT/gpu_suite.tar.new" -C "$WORK" . && mv "$OUT/gpu_suite.tar.new" "$OUT/gpu_suite.tar"
  if [ $status != 0 ] && grep -qE "$STICKY" "$WORK/$name.log"; then
    echo "   a CUDA error that ends the context: stopped here"
    exit 2
  fi
  return $status
}

workers() { "$python" -c "import xdist" 2>/dev/null && echo "-n ${1}" || true; }

build() {
  cd "$ROOT" && export MAX_JOBS=$(nproc)
  if [ -n "$EMULATED" ]; then
    TORE_FAST_CUDA=0 "$python" setup.py -q build_ext --inplace || return 1
    PYTHONPATH=$ROOT:$ROOT/tests "$python" -c "from ops import emulated; print(emulated.library())" && return 0
  fi
  TORE_FAST_CUDA=1 "$python" setup.py -q build_ext --inplace || return 1
  for name in triton_kernels benchmarks; do [ -e tore_fast/$name ] || ln -s ../$name tore_fast/$name; done
  "$python" -c "
from tore_fast import _ext
from tore_fast.ops import op_backends
print(_ext.build_info())
assert _ext.cuda_reason is None, _ext.cuda_reason
print(torch.cuda.get_device_name(), torch.__version__) if (torch := __import__('torch')).cuda.is_available() else None
print(op_backends())"
}

probe() { "$python" "$PROBE" | tee "$WORK/probe.jsonl"; }

bench() { "$python" -m tore_fast.benchmarks.run "$@" --append --json "$WORK/gpu_$1.json"; }
ops() {  # the shapes with a target
  if [ -n "$EMULATED" ]; then bench ops --device cpu --quick --seconds 0.02 --op mesh_upsample token_map; return; fi
  bench ops --device cuda --dtype bfloat16 float32 --seconds 0.1 --op dpc_knn_cluster dpc_knn_cluster_merge mesh_attention token_map
}

matrix() {
  local filter="test_cuda" option=
  if [ -n "$EMULATED" ]; then filter="test_emulated_matches and 70"; option=--emulated; fi
  "$python" -m pytest -q -p no:cacheprovider $option $(workers 4) "$ROOT/tests/ops/test_matrix.py" -k "$filter"
}

tests() {
  local filter="cuda and not compile and not opcheck" option=
  if [ -n "$EMULATED" ]; then filter="half_clusters or mesh_upsample"; option=--emulated; fi
  "$python" -m pytest -q -p no:cacheprovider $option $(workers 6) "$ROOT/tests/ops" -k "$filter" --deselect "$ROOT/tests/ops/test_matrix.py"
}

sanitizer() {  # our kernels only: torch's float64 references would take most of the time
  if [ -n "$EMULATED" ]; then echo "no GPU: tools/sanitize_cpu.sh runs the emulated kernels under AddressSanitizer"; return 0; fi
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH"; return 1; }
  compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all \
    --kernel-regex kns=tore_fast --kernel-regex kns=pruned_attention --kernel-regex kns=ppt_select \
    "$python" -m pytest -q -p no:cacheprovider "$ROOT/tests/ops/test_matrix.py" -k "test_cuda_matches_float64 and 12"
}
memcheck() { sanitizer memcheck; }
racecheck() { sanitizer racecheck; }

models() {
  if [ -n "$EMULATED" ]; then bench models --device cpu --quick --seconds 0.01 --match 'fastmetro_s_r50 features b1'; return; fi
  bench models --device cuda --dtype bfloat16 --seconds 0.2 --match 'tcformer*b64*' 'fastmetro_l_r50*b64*' 'hmr2*b64*'
}

tables() {  # the papers' efficiency tables: ratios of this machine beside theirs
  if [ -n "$EMULATED" ]; then bench tables --device cpu --quick --seconds 0.01 --match '*fastmetro_l_r50'; return; fi
  bench tables --device cuda --seconds 0.3
}

pipelines() {  # the engine's steps with a graph, files to results with overlap
  if [ -n "$EMULATED" ]; then bench pipelines --device cpu --quick --op waterfall batch; return; fi
  bench pipelines --device cuda --precision bf16 --op waterfall batch video
}

export -f build probe bench ops workers matrix tests sanitizer memcheck racecheck models tables pipelines
limits() { case $1 in build) echo 90 ;; ops) echo 120 ;; matrix) echo 70 ;; tests) echo 100 ;; models) echo 100 ;; tables | pipelines) echo 150 ;; *) echo 70 ;; esac; }

failed=0
order="build ${PROBE:+probe} ops matrix tests memcheck racecheck models tables pipelines"
for name in ${@:-$order}; do
  part "$name" "$(limits "$name")" || { failed=1; [ "$name" != build ] || break; }
done
exit $failed

#!/usr/bin/env bash
# The C++ CPU kernels, and the CUDA kernels as tests/cuda_emulator runs them, under AddressSanitizer and UBSan: builds a
# private copy with both, then runs the ops tests in it, one process per file, so that a fault in one file does not hide
# those in the next. The last lines say what each file gave.
# usage: tools/sanitize_cpu.sh [test file ...]     default: tests/ops and tests/body/test_decimate.py
# Needs torch, pytest, setuptools, ninja and pybind11 importable ($PYTHON, default python3).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
for file; do [ -f "$file" ] || { echo "sanitize_cpu: no such file: $file"; exit 1; }; done
set -- $(for file; do realpath "$file"; done)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
# UBSan reports and goes on (its lines are counted below); AddressSanitizer ends the process at its first fault
flags="-fsanitize=address,undefined -fno-omit-frame-pointer -g -O1"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work") || exit 1
(cd "$work" && TORE_FAST_CUDA=0 TORE_FAST_CXX_FLAGS="$flags" "$python" -m pip install -q --no-build-isolation --no-deps --target "$work/site" .) || exit 1
# the sanitiser must be the first library; torch itself leaks by design, so leaks are not asked for
preload="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$work/site" TORE_FAST_EMULATOR_FLAGS="$flags" OMP_NUM_THREADS=2
cd /
LD_PRELOAD=$preload "$python" -c '
import sys
from tore_fast import _ext
if _ext.cpu_reason or not _ext.__file__.startswith(sys.argv[1]):
    sys.exit(f"the sanitised copy is not what runs: {_ext.__file__} {_ext.cpu_reason}")' "$work" || exit 1
bad=0
summary=
[ $# != 0 ] || set -- "$root"/tests/ops/test_*.py "$root"/tests/body/test_decimate.py
for file; do
  LD_PRELOAD=$preload timeout 900 "$python" -m pytest -q -p no:cacheprovider --tb=short "$file" \
    -k "emulated or not (compile or export or cuda or triton)" >"$work/log" 2>&1
  status=$?
  found=$(grep -cE "runtime error:|ERROR: AddressSanitizer" "$work/log")
  if { [ $status != 0 ] && [ $status != 5 ]; } || [ "$found" != 0 ]; then # 5: no test selected
    bad=1
    cat "$work/log"
  fi
  line="$(basename "$file"): exit $status, $found sanitizer reports, $(tail -n 1 "$work/log")"
  echo "$line" # at once, so that a run that is cut off has said what it knew
  summary+=$line$'\n'
done
printf '\n%s' "$summary"
[ $bad = 0 ] && echo "sanitize_cpu: clean" || echo "sanitize_cpu: FAILED"
exit $bad

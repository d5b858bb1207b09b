#!/usr/bin/env bash
# The C++ CPU kernels under AddressSanitizer and UBSan: builds a private copy with both, runs the ops tests in it.
# usage: tools/sanitize_cpu.sh [pytest arguments]     (needs torch, pytest, setuptools, ninja, pybind11 importable)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work")
(cd "$work" && TORE_FAST_CUDA=0 TORE_FAST_CXX_FLAGS="$flags" "$python" -m pip install -q --no-build-isolation --no-deps --target "$work/site" .)
# the sanitiser must be the first library; torch itself leaks by design, so leaks are not asked for
cd /
LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$work/site" OMP_NUM_THREADS=2 \
  "$python" -m pytest -q -x -p no:cacheprovider "$root/tests/ops" -k "not compile and not cuda and not triton" "$@"

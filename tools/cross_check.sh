#!/usr/bin/env bash
# Compiles the CPU kernels and the Python module for another processor, syntax and types only, nothing is linked or run.
# Debian: apt-get install g++-aarch64-linux-gnu. PYTHON (default python3) has torch and lends its headers.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CROSS_CXX:-aarch64-linux-gnu-g++}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
torch=$("$python" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
include=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
echo '#define TORE_FAST_BUILD_FACTS "{}"' >"$work/build_facts.h"
count=0
for source in csrc/cpu/*.cpp csrc/torch/*.cpp csrc/python/module.cpp; do
  case $source in *_avx2.cpp | *_avx512.cpp) continue ;; esac  # x86 only
  "$cxx" -std=c++17 -fsyntax-only -fvisibility=hidden -Wall -I"$work" -isystem "$include" -isystem "$torch/include" \
    -DTORCH_TARGET_VERSION=0x020b000000000000 "$source"
  count=$((count + 1))
done
echo "cross_check: $count files compile with $cxx"

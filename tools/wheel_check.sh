#!/usr/bin/env bash
# Builds the wheel (CPU kernels), installs it where no compiler is to be found, and runs the main job there.
# PYTHON (default python3) makes both environments. Minutes: torch is fetched for the build and for the run.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/pip" install -q build
TORE_FAST_CUDA=0 "$work/build/bin/python" -m build --wheel --outdir "$work/dist" .
wheel=$(ls "$work"/dist/*.whl)

"$python" -m venv "$work/bare"
"$work/bare/bin/pip" install -q "$wheel"
cd "$work"
bare() { env -i HOME="$work" PATH="$work/bare/bin" "$@"; }
bare "$work/bare/bin/python" -c "
import shutil
assert not any(map(shutil.which, ('cc', 'c++', 'gcc', 'g++', 'clang', 'nvcc'))), 'there is a compiler'
from tore_fast import _ext
assert _ext.cpu_module is not None, _ext.cpu_reason
"
bare "$work/bare/bin/tore-fast" doctor
bare "$work/bare/bin/tore-fast" demo --out "$work/demo"
echo "wheel_check: $(basename "$wheel") works without a compiler"

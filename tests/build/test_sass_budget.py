"""The machine code of the CUDA kernels stays within what benchmarks/results/sass_sm90.json holds
(tools/sass_report.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tools import sass_report

ROOT = Path(__file__).resolve().parents[2]
MODULE = importlib.util.find_spec("tore_fast._C_cuda")
ALLOWED = {"registers": 1.0, "static_shared": 1.0, "instructions": 1.05, "largest_loop": 1.05, "spills": 1.0}


def test_names_and_loops():
    name = "_ZN9tore_fast4cuda47_GLOBAL__N__4adc05ec_14_knn_density_cu_d97a617a22knn_density_fwd_kernelILi5ELb1ENS0_8MmaStageEEEvNS0_13DensityParamsE"
    assert sass_report.short_name(name) == "knn_density_fwd_kernel<5, 1, mma>"
    plain = "_ZN9tore_fast4cuda45_GLOBAL__N__babedc6d_12_rasterize_cu_2f50d0f121rasterize_face_kernelENS0_15RasterizeParamsE"
    assert sass_report.short_name(plain) == "rasterize_face_kernel"
    code = [(0, "LDG", "LDG"), (16, "FFMA", "FFMA"), (32, "LDS", "LDS"), (48, "BRA", "@P0 BRA 0x20"), (64, "BRA", "@!P1 BRA 0x10"), (80, "EXIT", "EXIT")]
    body = sass_report.loops_of(code)
    (outer,) = body.inner
    (inner,) = outer.inner
    assert body.total("instructions") == 6 and outer.total("instructions") == 4 and inner.total("instructions") == 2
    assert outer.total("shared_loads", {2: 10}, 2) == 10
    assert sass_report.occupancy(128, 0, 8) == 0.25 and sass_report.occupancy(32, 0, 8) == 1.0


def current() -> bool:
    """Whether the module was built from these sources, for sm_90."""
    if MODULE is None or importlib.util.find_spec("triton") is None:
        return False
    built = Path(MODULE.origin).stat().st_mtime
    sources = [p for folder in ("cuda", "cpu") for p in (ROOT / "csrc" / folder).glob("*")]
    return all(p.stat().st_mtime <= built for p in sources)


@pytest.mark.skipif(not current(), reason="tore_fast._C_cuda is not built from these sources")
def test_no_kernel_grows():
    if "sm_90" not in sass_report.cuobjdump(Path(MODULE.origin), "--list-elf"):
        pytest.skip("the module holds no code for sm_90")
    data = sass_report.report(Path(MODULE.origin))
    budget = json.loads(sass_report.JSON.read_text())["kernels"]
    assert not data["not_found"], "WORK of tools/sass_report.py names kernels that are gone"
    for name, kernel in data["kernels"].items():
        assert name in budget, f"{name}: new; run tools/sass_report.py"
        for key, factor in ALLOWED.items():
            assert kernel[key] <= budget[name][key] * factor, (name, key, kernel[key], budget[name][key])

"""What the CUDA kernels cost by their machine code: counts per kernel and loop, occupancy, an estimate for one H200.

    python tools/sass_report.py [--json FILE] [--markdown FILE] [--page docs/gpu.md]

Reads tore_fast/_C_cuda with cuobjdump (it comes with the triton wheel). Nothing here is measured: a loop's instructions
are counted in the code, how often it runs is stated in WORK below, and the estimate is the larger of issue time (132
SMs x 4 schedulers x 1.98 GHz), shared-memory time (one wavefront a cycle and SM) and memory time (4.3 TB/s). Latency
that is not hidden, and bank conflicts, come on top; what a conditional
branch can skip is left out of the estimate and counted in "all_branches_us": the truth lies between the two.
tests/build/test_sass_budget.py compares a build with the JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SMS, SCHEDULERS, CLOCK, BANDWIDTH = 132, 4, 1.98e9, 4.3e12
REGISTERS, WARPS_PER_SM, SHARED_PER_SM, BLOCKS_PER_SM = 65536, 64, 228 * 1024, 32
RESERVED_SHARED = 1024  # of every block on sm_90
JSON = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "sass_sm90.json"
TYPES = {"13__nv_bfloat16": "bf16", "6__half": "fp16", "f": "fp32", "NS0_8MmaStageE": "mma", "NS0_9TileStageE": "tile"}
CLASSES = {
    "shared_loads": r"LDS|LDSM",
    "shared_stores": r"STS",
    "global_loads": r"LDG|LDGSTS",
    "global_stores": r"STG",
    "spills": r"LDL|STL",
    "mma": r"HMMA|QGMMA|HGMMA",
    "fp32": r"FFMA|FADD|FMUL",
    "barriers": r"BAR",
    "shuffles": r"SHFL",
}


@dataclass
class Loop:
    first: int
    last: int
    counts: dict[str, int] = field(default_factory=dict)  # of its own instructions, inner loops left out
    inner: list[Loop] = field(default_factory=list)

    def total(self, key: str, trips: dict[int, float] | None = None, depth: int = 1) -> float:
        """Of one pass; an inner loop at depth d counts trips.get(d, 1) times."""
        again = (trips or {}).get(depth, 1.0)
        return self.counts.get(key, 0) + again * sum(i.total(key, trips, depth + 1) for i in self.inner)


@dataclass
class Kernel:
    name: str
    registers: int
    shared: int  # static bytes
    body: Loop


def cuobjdump(binary: Path, *options: str) -> str:
    spec = importlib.util.find_spec("triton.backends.nvidia")
    if spec is None:
        raise SystemExit("sass_report: cuobjdump comes with the triton wheel, which is not installed")
    tool = Path(spec.submodule_search_locations[0]) / "bin" / "cuobjdump"
    return subprocess.run([tool, "-arch", "sm_90", *options, binary], capture_output=True, text=True, check=True).stdout


def short_name(mangled: str) -> str:
    """bipartite_merge_fwd_kernel<bf16> of a mangled name."""
    found = re.search(r"^[0-9a-f]{8}\d+([a-z]\w*?kernel)(?:I(.*?)E(?=Ev))?", mangled.split("_cu_")[-1])
    if found is None:
        return mangled
    arguments, rest = [], found[2] or ""
    while rest:
        match = re.match(
            r"L[a-zN]\w*?(\d+)E|(13__nv_bfloat16|6__half|NS0_8MmaStageE|NS0_9TileStageE|f)|(\d+\w+)|.", rest
        )
        if match[1] is not None:
            arguments.append(match[1])
        elif match[2]:
            arguments.append(TYPES[match[2]])
        rest = rest[match.end() :]
    return found[1] + (f"<{', '.join(arguments)}>" if arguments else "")


def _target(text: str) -> int:
    found = re.search(r"BRA\S*\s.*?0x([0-9a-f]+)", text)
    return int(found[1], 16) if found else -1


def loops_of(lines: list[tuple[int, str, str]]) -> Loop:
    """The nest of loops: a conditional branch to an earlier address closes one (an unconditional one comes back from
    code
    that was moved out of the way). Keys "main_*" leave out what a conditional branch can skip."""
    branches = [(a, _target(text)) for a, opcode, text in lines if opcode == "BRA" and text.startswith("@")]
    merged: dict[int, int] = {}
    for address, target in branches:  # several branches to one header are one loop
        if 0 <= target < address:
            merged[target] = max(address, merged.get(target, 0))
    skipped = [(a, t) for a, t in branches if t > a]
    body = Loop(0, lines[-1][0] if lines else 0)
    nodes = [body]
    for first, last in sorted(merged.items(), key=lambda s: (s[0], -s[1])):
        parent = next((n for n in reversed(nodes) if n.first <= first and last <= n.last), body)
        parent.inner.append(Loop(first, last))
        nodes.append(parent.inner[-1])
    for address, opcode, _ in lines:
        owner = min((n for n in nodes if n.first <= address <= n.last), key=lambda n: n.last - n.first)
        keys = ["instructions", *(key for key, pattern in CLASSES.items() if re.fullmatch(pattern, opcode))]
        if not any(a < address < t and owner.first <= a for a, t in skipped):
            keys += [f"main_{key}" for key in keys]
        for key in keys:
            owner.counts[key] = owner.counts.get(key, 0) + 1
    return body


def kernels(binary: Path) -> Iterator[Kernel]:
    usage = {
        name: (int(registers), int(shared))
        for name, registers, shared in re.findall(
            r"Function (\S+?):\s+REG:(\d+) STACK:\d+ SHARED:(\d+)", cuobjdump(binary, "-res-usage")
        )
    }
    for block in re.split(r"\n\s*Function : ", cuobjdump(binary, "-sass"))[1:]:
        name, _, text = block.partition("\n")
        if "tore_fast" not in name:
            continue
        lines = []
        for address, code in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;\n]+);", text):
            opcode = re.sub(r"^@!?U?P\w+\s+", "", code.strip()).split()[0].split(".")[0]
            if opcode != "NOP":
                lines.append((int(address, 16), opcode, code.strip()))
        registers, shared = usage[name.strip()]
        yield Kernel(short_name(name.strip()), registers, max(shared - RESERVED_SHARED, 0), loops_of(lines))


def occupancy(registers: int, shared: int, warps: int) -> float:
    """Share of an SM's 64 warps that fit, for blocks of `warps` warps."""
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = SHARED_PER_SM // (shared + RESERVED_SHARED)
    return min(by_registers, by_shared, BLOCKS_PER_SM, WARPS_PER_SM // warps) * warps / WARPS_PER_SM


@dataclass
class Work:
    """One launch of an acceptance shape: how many warps, how often each one goes through its largest loop."""

    case: str
    kernel: str
    warps: float
    trips: float  # passes of the largest outermost loop
    inner: dict[int, float]  # passes of the loops inside it, by depth below it
    bytes: float
    block_warps: int
    floor_us: float | None = None
    target_us: float | None = None


def tiles(batch: int, tokens: int, tile: int = 64) -> float:
    return batch * -(-tokens // tile)


# mesh_attention by tiles: 27 tiles of vertex rows and 5 parts of the joint rows, each about one tile, for 8 warps; a tile has
# 3.4 steps of 16 columns
WORK = (
    Work("knn_density 64,3136,64 bf16", "knn_density_mma_kernel<5, 1, 1, 1, 0>", tiles(64, 3136, 128) * 8, 49, {}, 26e6, 8, 101, 250),
    Work("knn_density 64,3136,128 bf16", "knn_density_mma_kernel<5, 1, 2, 1, 0>", tiles(64, 3136, 128) * 8, 49, {}, 52e6, 8, 202, 400),
    Work("knn_density 64,3136,64 fp32, filter", "knn_density_mma_kernel<8, 1, 1, 0, 1>", tiles(64, 3136, 128) * 8, 49, {}, 39e6, 8, 101, 400),
    Work("knn_density 64,3136,64 fp32, without filter", "knn_density_fwd_kernel<5, 1, tile>", tiles(64, 3136) * 8, 49, {2: 2, 3: 4}, 51e6, 8, 101, 400),
    Work("mesh_attention 64,8,445,64 bf16", "mesh_attention_mma_kernel<bf16, 64>", 512 * 8, 4, {}, 117e6, 8, 27, 45),
    Work("mesh_attention 64,8,445,16 bf16", "mesh_attention_mma_kernel<bf16, 16>", 512 * 8, 4, {}, 29e6, 8, 10, 25),
    Work("mesh_attention backward, dq, 64,8,445,64 bf16", "mesh_attention_mma_bwd_kernel<bf16, 64, 0>", 512 * 8, 4, {2: 3.4}, 146e6, 8),
    Work("mesh_attention backward, dk dv, 64,8,445,64 bf16", "mesh_attention_mma_bwd_kernel<bf16, 64, 1>", 512 * 8, 4, {2: 3.4}, 175e6, 8),
    Work("mesh_attention near (without tables) 64,8,445,64 bf16", "mesh_attention_near_kernel<bf16, 64, 0>", 512 * 7 * 4, 16, {}, 117e6, 4, 27, 45),
    Work("mesh_attention near (without tables) 64,8,445,16 bf16", "mesh_attention_near_kernel<bf16, 16, 0>", 512 * 7 * 4, 16, {}, 29e6, 4, 10, 25),
)  # fmt: skip


def estimate(k: Kernel, w: Work) -> dict:
    """Microseconds of one launch by issue, shared memory and device memory."""
    main = max(k.body.inner, key=lambda i: i.last - i.first, default=None)

    def per_warp(key: str) -> float:
        once = k.body.total(key) - (main.total(key) if main else 0)
        return once + (w.trips * main.total(key, w.inner, 2) if main else 0)

    def issue(key: str) -> float:
        return round(per_warp(key) * w.warps / (SMS * SCHEDULERS * CLOCK) * 1e6, 1)

    shared = per_warp("main_shared_loads") + per_warp("main_shared_stores")
    times = {
        "issue_us": issue("main_instructions"),
        "shared_us": round(shared * w.warps / (SMS * CLOCK) * 1e6, 1),
        "memory_us": round(w.bytes / BANDWIDTH * 1e6, 1),
    }
    return {
        "case": w.case,
        "kernel": k.name,
        "warp_instructions": round(per_warp("main_instructions")),
        "shared_accesses": round(shared),
        **times,
        "estimate_us": max(times.values()),
        "all_branches_us": max(issue("instructions"), *times.values()),
        "limit": max(times, key=lambda n: times[n]).removesuffix("_us"),
        "occupancy": occupancy(k.registers, k.shared, w.block_warps),
        "floor_us": w.floor_us,
        "target_us": w.target_us,
    }


def report(binary: Path) -> dict:
    found = {}
    for k in kernels(binary):  # the same kernel of several sources: the largest
        if k.name not in found or k.body.total("instructions") > found[k.name].body.total("instructions"):
            found[k.name] = k
    rows = {
        name: {
            "registers": k.registers,
            "static_shared": k.shared,
            **{key: int(k.body.total(key)) for key in ("instructions", *CLASSES)},
            "largest_loop": int(max((i.total("instructions") for i in k.body.inner), default=0)),
        }
        for name, k in sorted(found.items())
    }
    estimates = [estimate(found[w.kernel], w) for w in WORK if w.kernel in found]
    return {
        "note": "counted in the machine code, not measured; see tools/sass_report.py",
        "arch": "sm_90",
        "estimates": estimates,
        "not_found": [w.kernel for w in WORK if w.kernel not in found],
        "kernels": rows,
    }


def markdown(data: dict) -> str:
    lines = [
        "| case | kernel | warp instructions | issue us | shared us | memory us | estimate us | with all "
        "branches | floor | target | occupancy | limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for e in data["estimates"]:
        numbers = [
            e[n]
            for n in (
                "warp_instructions",
                "issue_us",
                "shared_us",
                "memory_us",
                "estimate_us",
                "all_branches_us",
                "floor_us",
                "target_us",
            )
        ]
        cells = [e["case"], f"`{e['kernel']}`", *map(str, numbers), f"{e['occupancy']:.0%}", e["limit"]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| kernel | registers | static shared | instructions | largest loop | mma | spills |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, k in data["kernels"].items():
        keys = ("registers", "static_shared", "instructions", "largest_loop", "mma", "spills")
        lines.append(f"| `{name}` | " + " | ".join(str(k[n]) for n in keys) + " |")
    return "\n".join(lines) + "\n"


def page_table(data: dict) -> str:
    """The estimates as docs/gpu.md shows them."""
    lines = [
        "| op, shape | estimate, us | all branches, us | target, us | floor, us | bound by | occupancy |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in data["estimates"]:
        optional = ["" if e[n] is None else f"{e[n]:g}" for n in ("target_us", "floor_us")]
        numbers = [f"{e['estimate_us']:.0f}", f"{e['all_branches_us']:.0f}", *optional]
        lines.append("| " + " | ".join([e["case"], *numbers, e["limit"], f"{e['occupancy']:.0%}"]) + " |")
    return "\n".join(lines) + "\n"


def write_page(path: Path, data: dict) -> None:
    """Puts the table between the two marks of a page."""
    text = path.read_text()
    page, count = re.subn(
        r"(<!-- estimates: .*? -->\n).*?(<!-- end -->)", lambda m: m[1] + page_table(data) + m[2], text, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"sass_report: {path} has {count} places for the table, expected one")
    path.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, help="the module to read; default: the installed tore_fast._C_cuda")
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--page", type=Path, help="docs/gpu.md: its table of estimates is replaced")
    options = parser.parse_args()
    binary = options.binary
    if binary is None:
        spec = importlib.util.find_spec("tore_fast._C_cuda")
        if spec is None:
            raise SystemExit("sass_report: tore_fast._C_cuda is not built (TORE_FAST_CUDA=1, TORCH_CUDA_ARCH_LIST=9.0)")
        binary = Path(spec.origin)
    data = report(binary)
    options.json.write_text(json.dumps(data, indent=1) + "\n")
    table = markdown(data)
    if options.markdown:
        options.markdown.write_text(table)
    if options.page:
        write_page(options.page, data)
    print(table)
    if data["not_found"]:
        print("WORK names kernels that are not in the module:", *data["not_found"])


if __name__ == "__main__":
    main()

"""The frame-pruning study of docs/lifting.md: trains every row under one budget, measures it on unseen subjects, draws
the plots.

    python -m studies.lifting.run all --data MOCAP --out runs/lifting_study       # everything below, one after another

    python -m studies.lifting.run run --data MOCAP --out runs/lifting_study       # about two hours of one core; goes on
    after a kill python -m studies.lifting.run measure --data MOCAP --out runs/lifting_study   # errors, memory, kept
    frames -> benchmarks/results/lifting_study.json python -m studies.lifting.run time
    # frames/s into the same file; wants a quiet machine python -m studies.lifting.run plot
    # docs/images/lifting_*.png and the table, from that file alone

A row is one `tore-fast train lifting` command, printed before it runs; rows that have their export are not trained
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from .results import RESULTS, measure, plot, table, time_rows

COMMON = (
    "--train.weight-decay 0.01 --train.clip-norm 1.0 --train.ema 0.98 --train.log-every 25 "
    "--train.checkpoint-minutes 1 "
    "--windows.eval-windows 96 --threads 1"
)
# the warm start: many short windows teach single poses, the same weights then start every row of a host
WARM = (
    "--train.steps 3000 --train.batch-size 32 --train.lr 4e-3 --train.warmup 50 --train.eval-every 500 "
    f"--embed-std 1 {COMMON}"
)
BUDGET = (
    "--train.steps 600 --train.batch-size 8 --train.lr 2e-3 --train.warmup 25 --train.eval-every 200 --embed-std "
    f"0.5 {COMMON}"
)
MIXSTE = "channels 64 depth 4 heads 4 mlp_hidden 128 drop_path 0"
MOTIONBERT = "channels 64 depth 3 heads 4 mlp_hidden 128 rep_channels 128"
PRUNED = "frames 27 prune_block 1 keep_frames 9"
# the paper's window: few windows, since each costs 9 times as much; every row of it starts from the 27-frame base
LONG = (
    "--train.steps 900 --train.batch-size 2 --train.lr 1e-3 --train.warmup 25 --train.eval-every 300 --embed-std "
    f"0.5 {COMMON}"
)
PRUNED_LONG = "frames 243 prune_block 1 keep_frames 81"
# name -> (registered model, config fields, row whose weights it starts from, number of seeds)
TRAINED = {
    "warm_mixste": ("mixste_27", f"{MIXSTE} frames 3", "", 1),
    "mixste": ("mixste_27", f"{MIXSTE} frames 27", "warm_mixste", 3),
    "hot_mixste": ("hot_mixste_27", f"{MIXSTE} {PRUNED}", "warm_mixste", 3),
    "tpc_mixste": ("tpc_mixste_27", f"{MIXSTE} {PRUNED}", "warm_mixste", 3),
    "tpc_linear": ("hot_mixste_27", f"{MIXSTE} {PRUNED} recovery linear", "warm_mixste", 3),
    "uniform_tra": ("hot_mixste_27", f"{MIXSTE} {PRUNED} pruning uniform", "warm_mixste", 3),
    "attention_tra": ("hot_mixste_27", f"{MIXSTE} {PRUNED} pruning attention", "warm_mixste", 2),
    "motion_tra": ("hot_mixste_27", f"{MIXSTE} {PRUNED} pruning motion", "warm_mixste", 2),
    "tpc_nearest": ("hot_mixste_27", f"{MIXSTE} {PRUNED} recovery nearest", "warm_mixste", 2),
    "warm_motionbert": ("motionbert_lite_243", f"{MOTIONBERT} frames 3", "", 1),
    "motionbert": ("motionbert_lite_243", f"{MOTIONBERT} frames 27", "warm_motionbert", 2),
    "hot_motionbert": ("hot_motionbert_243", f"{MOTIONBERT} {PRUNED}", "warm_motionbert", 2),
    "tpc_motionbert": ("tpc_motionbert_243", f"{MOTIONBERT} {PRUNED}", "warm_motionbert", 2),
    "tpc_linear_motionbert": ("hot_motionbert_243", f"{MOTIONBERT} {PRUNED} recovery linear", "warm_motionbert", 2),
    "mixste_243": ("mixste_243", f"{MIXSTE} frames 243", "mixste", 1),
    "hot_mixste_243": ("hot_mixste_243", f"{MIXSTE} {PRUNED_LONG}", "mixste", 1),
    "tpc_linear_243": ("hot_mixste_243", f"{MIXSTE} {PRUNED_LONG} recovery linear", "mixste", 1),
}
# every run, seed by seed: the first seed of all rows comes before the second of any
RUNS = {
    name + (f"_seed{seed}" if seed else ""): (model, fields, seed, start)
    for seed in range(max(row[3] for row in TRAINED.values()))
    for name, (model, fields, start, seeds) in TRAINED.items()
    if seed < seeds
}


def train_command(name: str, data: Path, out: Path) -> list[str]:
    model, fields, seed, start = RUNS[name]
    budget = WARM if not start else LONG if name.endswith("_243") else BUDGET
    return [
        "-m",
        "tore_fast",
        "train",
        "lifting",
        "--data",
        str(data),
        "--model",
        model,
        "--train.out",
        str(out / name),
        "--train.seed",
        str(seed),
        *budget.split(),
        *(["--checkpoint", str(out / start / "export")] if start else []),
        "--export",
        str(out / name / "export"),
        "--set",
        *fields.split(),
    ]


def run(data: Path, out: Path, names: list[str]) -> int:
    failed = []
    for name in names:
        if (out / name / "export" / "config.json").is_file():
            continue
        command = train_command(name, data, out)
        print(f"== {name}: python {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, *command]).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all rows are there")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("all", "run", "measure", "time", "plot"):
        sub = verbs.add_parser(verb)
        if verb in ("all", "run", "measure"):
            sub.add_argument(
                "--data", type=Path, required=True, help="folder with clips.npz + index.json, or BVH / AMC files"
            )
            sub.add_argument("--out", type=Path, default=Path("runs/lifting_study"))
            sub.add_argument("--rows", nargs="*", default=list(RUNS), choices=list(RUNS))
        if verb != "run":
            sub.add_argument("--json", type=Path, default=RESULTS)
        if verb in ("all", "plot"):
            sub.add_argument("--images", type=Path, default=Path(__file__).parents[2] / "docs" / "images")
    args = parser.parse_args()
    does = lambda verb: args.verb in ("all", verb)
    if does("run"):
        failed = run(args.data, args.out, args.rows)
        if failed or args.verb == "run":
            return failed
    if does("measure"):
        commands = {
            n: "python " + " ".join(train_command(n, Path("MOCAP"), Path("runs/lifting_study"))) for n in args.rows
        }
        measure(args.data, args.out, commands, args.json)
    if does("time"):
        time_rows(args.json)
    if does("plot"):
        plot(json.loads(args.json.read_text()), args.images)
    print(table(json.loads(args.json.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

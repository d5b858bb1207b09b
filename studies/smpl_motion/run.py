"""Everything behind docs/smpl.md's table, in order; started again it goes on where it stopped.

  python -m studies.smpl_motion.run --data MOCAP --out runs/fasthmr

renders clips of the motion files, trains a small host, merges its layers, writes its tokens, trains the motion prior
and the one-step denoisers, and evaluates the components on the test split. About two hours on one free CPU core; every
step is a `tore-fast` command, printed before it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

# sizes of the small motion models: 81 frames (2.7 s at 30 per second) in 9 latents of 128, three layers each
MOTION_SIZES = {
    "latent_tokens": 9,
    "latent_dim": 128,
    "ff_size": 256,
    "heads": 4,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "dist_mlp": 1,
}
FRAMES = 81
LARGER_TAUS = (0.5, 1.0, 2.0)  # mm, beside the paper's 0.1
DECODERS = (  # folder, denoising steps, overlap of the clips in frames, words
    ("denoiser", 1, 0, "one step"),
    ("denoiser", 4, 0, "4 steps"),
    ("corrector", 1, 0, "correcting the host's motion"),
    ("corrector", 1, 27, "correcting, clips overlap by 27 frames"),
)
KEEP, PER_BLOCK = 24, 10  # of 48 tokens, in the proportions of the paper (90 of 192, 40 a block)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="motion files: a folder with clips.npz + index.json, .bvh or .amc"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/fasthmr"))
    parser.add_argument("--steps", choices=list(STEPS), nargs="*", default=list(STEPS), help="only these steps")
    parser.add_argument("--host-steps", type=int, default=3200)
    parser.add_argument("--vae-steps", type=int, default=2600)
    parser.add_argument("--denoiser-steps", type=int, default=2000)
    parser.add_argument("--corrector-steps", type=int, default=300)
    parser.add_argument(
        "--views",
        type=int,
        default=6,
        help="renderings of every training motion for the decoder that corrects the host",
    )
    parser.add_argument("--tau", type=float, default=0.1, help="ECLM's tolerance in mm")
    args = parser.parse_args()
    for name in args.steps:
        print(f"== {name}", flush=True)
        STEPS[name](args)


def tore_fast(*words: object) -> None:
    command = [sys.executable, "-m", "tore_fast", *map(str, words)]
    print("$ tore-fast " + shlex.join(command[3:]), flush=True)
    subprocess.run(command, check=True)


def clips(args) -> None:
    for split, frames in (("train", 300), ("test", 243)):
        tore_fast(
            "synth",
            "clips",
            "--data",
            args.data,
            "--out",
            args.out / f"clips_{split}",
            "--split",
            split,
            "--frames",
            frames,
        )


def _done(folder: Path, steps: int) -> bool:
    log = folder / "metrics.jsonl"
    finished = log.exists() and any(json.loads(line)["step"] >= steps for line in log.read_text().splitlines())
    return finished and (folder / "model" / "config.json").exists()


def host(args) -> None:
    folder = args.out / "host"
    if _done(folder, args.host_steps):
        return
    tore_fast(
        "train",
        "smpl",
        "--model",
        "hmr2_vitt",
        "--poses",
        args.data,
        "--export",
        folder / "model",
        "--train.out",
        folder,
        "--hmr.joints-2d",
        0.05,
        "--hmr.orientation",
        0.005,
        "--hmr.pose",
        0.005,
        "--hmr.cache",
        args.out / "stills",
        "--hmr.cache-batches",
        1400,
        "--train.steps",
        args.host_steps,
        "--train.batch-size",
        24,
        "--train.lr",
        1e-3,
        "--train.warmup",
        100,
        "--train.weight-decay",
        0.01,
        "--train.clip-norm",
        5.0,
        "--train.ema",
        0.998,
        "--train.eval-every",
        400,
        "--train.checkpoint-minutes",
        3,
    )


def eclm(args) -> None:
    _merge_layers(args, args.out / "eclm", args.tau, "--cka")


def taus(args) -> None:
    for tau in LARGER_TAUS:
        _merge_layers(args, args.out / f"eclm_tau{tau:g}", tau)


def _merge_layers(args, folder: Path, tau: float, *more: str) -> None:
    if not (folder / "model" / "config.json").exists():
        tore_fast(
            "accelerate",
            args.out / "host" / "model",
            "--search-layers",
            "--data",
            args.out / "clips_train",
            "--limit",
            670,
            "--tau",
            tau,
            "--out",
            folder,
            "--batch-size",
            67,
            *more,
        )


def tokens(args) -> None:
    for split, frames in (("train", 300), ("test", 243)):
        tore_fast(
            "synth",
            "clips",
            "--data",
            args.data,
            "--out",
            args.out / f"clips_{split}",
            "--split",
            split,
            "--frames",
            frames,
            "--model",
            args.out / "eclm" / "model",
            "--tokens",
            args.out / f"tokens_{split}",
            "--keep-tokens",
            KEEP,
            "--merge-per-block",
            PER_BLOCK,
        )


def vae(args) -> None:
    folder = args.out / "vae"
    if _done(folder, args.vae_steps):
        return
    sizes = [w for k, v in MOTION_SIZES.items() for w in (k, v)]
    tore_fast(
        "train",
        "motion",
        "--export",
        folder / "model",
        "--data",
        args.out / "clips_train",
        "--up",
        "camera",
        "--frames",
        FRAMES,
        "--train.out",
        folder,
        "--train.warmup",
        30,
        "--train.steps",
        args.vae_steps,
        "--train.lr",
        1e-3,
        "--train.batch-size",
        16,
        "--train.eval-every",
        100,
        "--set",
        *sizes,
    )


def views(args) -> None:
    tore_fast(
        "synth",
        "clips",
        "--data",
        args.data,
        "--split",
        "train",
        "--frames",
        300,
        "--model",
        args.out / "eclm" / "model",
        "--tokens",
        args.out / "tokens_views",
        "--keep-tokens",
        KEEP,
        "--merge-per-block",
        PER_BLOCK,
        "--views",
        args.views,
    )


def denoiser(args) -> None:
    _stage2(args, "denoiser", args.denoiser_steps, "tokens_train")


def corrector(args) -> None:
    _stage2(
        args,
        "corrector",
        args.corrector_steps,
        "tokens_views",
        "--regressor",
        args.out / "eclm" / "model",
        "--loss.last-step",
        1,
        "--loss.joints",
        1,
        "--train.ema",
        0.98,
        lr=5e-4,
        every=50,
    )


def _stage2(args, name: str, steps: int, tokens: str, *more: object, lr: float = 1e-3, every: int = 100) -> None:
    folder = args.out / name
    if not _done(folder, steps):
        tore_fast(
            "train",
            "motion",
            "--export",
            folder / "model",
            "--data",
            args.out / tokens,
            "--up",
            "camera",
            "--frames",
            FRAMES,
            "--motion-prior",
            args.out / "vae" / "model",
            "--train.out",
            folder,
            "--train.warmup",
            50,
            "--train.steps",
            steps,
            "--train.lr",
            lr,
            "--train.batch-size",
            16,
            "--train.eval-every",
            every,
            "--set",
            "denoiser_layers",
            3,
            *more,
        )


def table(args) -> None:
    import dataclasses

    import torch
    from tqdm import tqdm

    from tore_fast.body import load_body
    from tore_fast.models import load
    from tore_fast.models.smpl.hmr2 import HMR2

    from .component_table import ComponentTable, markdown

    torch.set_num_threads(1)

    def variant(folder: str, **fields) -> HMR2:
        model = load(args.out / folder / "model")
        out = HMR2(dataclasses.replace(model.config, **fields))
        out.load_state_dict(model.state_dict())
        return out.eval().requires_grad_(False)

    merged = {"keep_tokens": KEEP, "merge_per_block": PER_BLOCK}
    made = ComponentTable(
        load_body("free"), sorted((args.out / "clips_test").glob("*.npz")), lambda x: tqdm(x, leave=False)
    )
    path = args.out / "table.json"
    known = {r["name"]: r for r in json.loads(path.read_text())} if path.exists() else {}

    def rows(names: tuple[str, ...], work):
        """Rows of an earlier run stay (delete table.json to evaluate again), others are made and saved at once."""
        if all(n in known for n in names):
            made.rows += [known[n] for n in names]
            return None
        result = work()
        done = {r["name"] for r in made.rows}
        later = [r for n, r in known.items() if n not in done]
        path.write_text(json.dumps(made.rows + later, indent=1) + "\n")
        return result

    def host(name: str, model, smoothed: str | None = None, masks: str = "given"):
        return rows((name, *([smoothed] if smoothed else [])), lambda: made.host(name, model, masks, smoothed))

    fast = variant("eclm", **merged)
    rows(("mean pose",), made.baseline)
    host("host", variant("host"), "host, smoothed over time")
    host("+ ECLM", variant("eclm"))
    for tau in LARGER_TAUS:
        if (args.out / f"eclm_tau{tau:g}" / "model").exists():
            host(f"+ ECLM with tau {tau:g} mm", variant(f"eclm_tau{tau:g}"))
    host("+ Mask-ToMe only", variant("host", **merged))
    seen = host("+ ECLM + Mask-ToMe", fast, "+ ECLM + Mask-ToMe, smoothed over time")
    host("+ ECLM + Mask-ToMe, ellipse for the mask", fast, masks="ellipse")
    host("+ ECLM + ToMe (no masks)", fast, masks="none")
    for folder, steps, overlap, words in DECODERS:
        if (args.out / folder / "model").exists():
            motion = load(args.out / folder / "model").eval()
            seen = seen or made.predictions(fast)
            name = f"+ ECLM + Mask-ToMe + motion decoder, {words}"
            rows((name,), lambda: made.motion(name, fast, seen, motion, overlap, steps))  # noqa: B023
    path.write_text(json.dumps(made.rows, indent=1) + "\n")
    text = markdown(made.rows)
    (args.out / "table.md").write_text(text + "\n")
    print(text)


STEPS = {
    "clips": clips,
    "host": host,
    "eclm": eclm,
    "taus": taus,
    "tokens": tokens,
    "vae": vae,
    "denoiser": denoiser,
    "views": views,
    "corrector": corrector,
    "table": table,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

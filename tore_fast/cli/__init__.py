"""The `tore-fast` command: one verb per module of this folder, loaded only when used.

A verb module has a dataclass `Args` (its fields become flags, its docstring the help) and `run(args) -> int | None`
(the exit code). A verb with several jobs has a table `SUBCOMMANDS` (name -> help) instead, one module VERB_NAME.py each; a
`default_job(argv)` beside it tells the job where none is named.
"""

from __future__ import annotations

import importlib
import sys

VERBS = {
    "info": "versions, device, what is built, what is not and why",
    "convert": "an official checkpoint to our folder of safetensors and config.json",
    "list": "models with parameters and multiply-adds, ours and the paper's",
    "predict": "photographs to meshes, joints and overlay pictures",
    "batch": "meshes for any number of pictures in tars and folders; resumable, many processes, Ray",
    "hmr": "people in a video to body motion (npz, bvh, glb)",
    "eclm": "merge layers of a host on your pictures",
    "demo": "the main job on an embedded picture with the embedded weights",
    "lift": "2D keypoints of a clip to 3D poses, BVH and a stick-figure view",
    "eval": "errors of a model on a data set, as the papers count them",
    "train": "train a model; an interrupted run resumes",
    "synth": "synthetic training images of the free body, written to disk",
    "viz": "pictures of what a method does inside, e.g. token regions",
    "bench": "times ops or models against tuned baselines, correctness first",
}


def main(argv: list[str] | None = None) -> None:
    argv = [*(sys.argv[1:] if argv is None else argv)]  # not list(): that is a verb of this folder
    if not argv:
        argv = ["info"]
    if argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        from ..version import __version__

        print(f"tore_fast {__version__}")
        return
    verb = argv[0]
    if verb not in VERBS:
        print(f"tore-fast: no verb {verb!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    module, rest, prog = importlib.import_module(f".{verb}", __package__), argv[1:], f"tore-fast {verb}"
    jobs = getattr(module, "SUBCOMMANDS", None)
    if jobs is not None:
        if rest and rest[0].startswith("--") and rest[0] != "--help" and hasattr(module, "default_job"):
            rest = [module.default_job(rest), *rest]
        if not rest or rest[0] in ("-h", "--help"):
            print(usage(prog, "JOB", jobs))
            sys.exit(0 if rest else 2)
        if rest[0] not in jobs:
            print(f"{prog}: no job {rest[0]!r}; expected one of {', '.join(jobs)}", file=sys.stderr)
            sys.exit(2)
        module = importlib.import_module(f".{verb}_{rest[0]}", __package__)
        prog, rest = f"{prog} {rest[0]}", rest[1:]
    import tyro

    args = tyro.cli(module.Args, prog=prog, args=rest)
    sys.exit(module.run(args) or 0)


def usage(prog: str = "tore-fast", what: str = "VERB", table: dict[str, str] = VERBS) -> str:
    width = max(map(len, table))
    lines = [f"  {name:{width}}  {text}" for name, text in table.items()]
    return f"usage: {prog} {what} [options]    ({prog} {what} --help for the options)\n\n" + "\n".join(lines)

"""The `tore-fast` command: one verb per module of this folder, loaded only when used.

A verb module has a dataclass `Args` (its fields become flags, its docstring the help) and `run(args) -> int | None`
(the exit code). A verb with several jobs has a table `SUBCOMMANDS` (name -> help) instead, one module VERB_NAME.py
each; a `default_job(argv)` beside it tells the job where none is named.

One rule for all verbs: exit code 0 if everything was done, 1 if work failed (some or all of it), 2 if the command
cannot be done as it was typed, 130 after Ctrl-C; every error is one line `tore-fast VERB: ...` on stderr. A verb reads
what the user gave inside `with arguments():` (errors there are 2) and lets other errors rise to `main` (1).
TORE_FAST_TRACEBACK=1 shows where.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

VERBS = {
    "info": "versions, device, what is built, what is not and why",
    "doctor": "info, and a self-test of this machine in seconds",
    "convert": "an official checkpoint to our folder of safetensors and config.json",
    "export": "a model as ONNX, torch.export, AOTInductor or TorchScript file",
    "list": "models with parameters and multiply-adds, ours and the paper's",
    "predict": "photographs and videos to bodies: meshes, joints, SMPL parameters, motion, overlays",
    "batch": "bodies for any number of images in tars and folders; resumable, many processes, Ray",
    "lift": "2D key points of a clip to 3D poses, BVH and a stick-figure view",
    "view": "results in the browser, or as one HTML page",
    "demo": "the main job on an embedded image with the embedded weights",
    "eval": "errors of a model on a data set, as the papers count them",
    "train": "train a model; an interrupted run resumes",
    "synth": "synthetic training images of the free body, written to disk",
    "viz": "images of what a method does inside, e.g. token regions",
    "accelerate": "what fewer tokens, layers and pixels cost and save on your ViT and images; merges layers (ECLM)",
    "bench": "times ops or models against tuned baselines, correctness first",
}


USAGE, FAILED, INTERRUPTED = 2, 1, 130
_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
EXPECTED = (
    ValueError,
    OSError,
    MemoryError,
    ImportError,
)  # with a message for users; anything else is a bug and shows its traceback

_prog = "tore-fast"  # the verb that runs, for messages


class UsageError(Exception):
    """The command cannot be done as it was typed: exit code 2."""


@contextlib.contextmanager
def arguments(flag: str = "", also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Errors of this block come from what the user gave (exit code 2); `flag` is named in front of the message. `also`:
    further classes that mean this here."""
    wrong: tuple[type[Exception], ...] = (ValueError, ImportError, *_WRONG_PATH, *also)
    try:
        yield
    except wrong as e:  # a full disk is not the user's argument
        raise UsageError(f"{flag}: {format_error(e)}" if flag else format_error(e)) from e


def print_error(message: str) -> None:
    """One line on stderr, with the verb in front; progress bars make room for it."""
    from tqdm import tqdm

    tqdm.write(f"{_prog}: {one_line(message)}", file=sys.stderr)


def print_note(message: str) -> None:
    """One line on stderr that is no error; progress bars make room for it."""
    from tqdm import tqdm

    tqdm.write(f"note: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Line ends and other control characters, which file names may hold, as escapes: a terminal obeys them."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: c[0].encode("unicode_escape").decode(), text)


def format_error(error: BaseException) -> str:
    """Message of an error without its number or class: "out.txt: File exists", not "[Errno 17] File exists:
    'out.txt'"."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def main(argv: list[str] | None = None) -> None:
    argv = [*(sys.argv[1:] if argv is None else argv)]  # not list(): that is a verb of this folder
    warnings.filterwarnings(
        "ignore", category=UserWarning, module=r"PIL\."
    )  # what is wrong with an image is an error or nothing
    for stream in (sys.stdout, sys.stderr):  # file names need not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        from ..version import __version__

        print(f"tore_fast {__version__}")
        return
    sys.exit(_run(argv[0], argv[1:]))


def _run(verb: str, rest: list[str]) -> int:
    global _prog
    _prog = "tore-fast"
    if verb not in VERBS:
        print_error(f"no verb {verb!r}; expected one of {', '.join(VERBS)}")
        return USAGE
    module, _prog = importlib.import_module(f".{verb}", __package__), f"tore-fast {verb}"
    try:
        jobs = getattr(module, "SUBCOMMANDS", None)
        return (_run_verb(module, rest) if jobs is None else _run_job(verb, module, jobs, rest)) or 0
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except (UsageError, *EXPECTED) as e:
        if os.environ.get("TORE_FAST_TRACEBACK", "0") not in ("", "0"):
            raise
        print_error(format_error(e))
        return USAGE if isinstance(e, UsageError) else FAILED


def _run_verb(module: Any, rest: list[str]) -> int | None:
    return module.run(_parse(module.Args, rest))


def _run_job(verb: str, parent: Any, jobs: dict[str, str], rest: list[str]) -> int | None:
    global _prog
    given = rest
    if rest and rest[0].startswith("--") and rest[0] != "--help" and hasattr(parent, "default_job"):
        rest = [parent.default_job(rest), *rest]
    if not rest or rest[0] in ("-h", "--help"):
        print(usage(_prog, "JOB", jobs))
        return 0 if rest else USAGE
    job, rest = rest[0], rest[1:]
    if job not in jobs:
        print_error(f"no job {job!r}; expected one of {', '.join(jobs)}")
        return USAGE
    module = importlib.import_module(f".{verb}_{job}", __package__)
    _prog = f"{_prog} {job}"
    default = None
    if hasattr(parent, "defaults"):  # values of a named recipe
        default, rest = parent.defaults(module.Args, job, rest)
    args = _parse(module.Args, rest, default)
    if default is not None:
        parent.announce(given, args)
    return module.run(args)


def _parse(kind: type, rest: list[str], default: Any = None) -> Any:
    """The verb's `Args`; tyro's boxes of errors become one line."""
    import tyro

    said = io.StringIO()
    words = (tyro.conf.PositionalMetavarFromFieldName, tyro.conf.DisallowNone)  # in the help: IMAGES, --fps FLOAT
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, prog=_prog, args=rest, config=words, **({} if default is None else {"default": default})
            )
    except SystemExit as e:
        if e.code in (None, 0):  # --help
            raise
        lines = [line.strip("│|╭╮╰╯ ") for line in said.getvalue().splitlines()[1:]]  # without the title
        text = "\n".join("" if not line.strip("─-+ ") else line for line in lines)
        blocks = [" ".join(block.split()) for block in text.split("\n\n")]
        message = "; ".join(b for b in blocks if b and not b.startswith("For full helptext"))
        raise UsageError(f"{message} ({_prog} --help lists the options)") from None


def usage(prog: str = "tore-fast", what: str = "VERB", table: dict[str, str] = VERBS) -> str:
    width = max(map(len, table))
    lines = [f"  {name:{width}}  {text}" for name, text in table.items()]
    return f"usage: {prog} {what} [options]    ({prog} {what} --help for the options)\n\n" + "\n".join(lines)

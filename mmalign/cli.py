"""``mmalign <command>``: find the command, parse its options, call one function."""

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from mmalign import __version__
from mmalign.config import parse_options


class Command(NamedTuple):
    """Where a command lives. Its module is imported when the command is called, so that help comes at once."""

    module: str
    options: str
    run: str
    summary: str


COMMANDS = {
    "world build": Command("world", "WorldConfig", "run", "make a world: images of known content, chats, pairs, questions"),
    "compose": Command("compose", "ComposeOptions", "run", "join a vision encoder and a language model"),
    "upcycle": Command("upcycle", "UpcycleOptions", "run", "turn a dense model into a mixture of experts that computes the same"),
    "train contrastive": Command("train", "ContrastiveOptions", "run_contrastive", "train an image-text scorer (CLIP)"),
    "train sft": Command("train", "SftOptions", "run_sft", "fine-tune on chats about images"),
    "train preference": Command("train", "PreferenceOptions", "run_preference", "DPO and its family on preference pairs"),
    "train listwise": Command("train", "ListwiseOptions", "run_listwise", "the same on lists of scored responses"),
    "score-difficulty": Command("difficulty", "ScoreOptions", "run_score", "score how difficult preference pairs are"),
    "fuse-difficulty": Command("difficulty", "FuseOptions", "run_fuse", "vote again on scored pairs, without scoring again"),
    "cache-logps": Command("difficulty", "CacheOptions", "run_cache", "store a reference's log-probabilities beside the pairs"),
    "evaluate": Command("evaluate", "EvaluateOptions", "run", "measure hallucination: pope, chair, amber, mme, ..."),
    "report eval": Command("report", "ReportEvalOptions", "run_eval", "results of several models as a table and a page"),
    "lmms-tasks": Command("harness", "LmmsTasksOptions", "run", "write POPE as a task folder of lmms-eval"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 where the machine failed (a full disk, a folder that can't be written), 2 where the user's input can't be used; the reason is
        printed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS), None)
    if name is None:
        return _unknown(words)
    command = COMMANDS[name]
    module = importlib.import_module(f"mmalign.commands.{command.module}")
    options = parse_options(
        getattr(module, command.options), words[len(name.split()) :], prog=f"mmalign {name}", description=command.summary
    )
    try:
        getattr(module, command.run)(options)
    except (ValueError, FloatingPointError, FileNotFoundError) as error:
        print(f"mmalign {name}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"mmalign {name}: failed: {error}", file=sys.stderr)
        return 1
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"mmalign {__version__}: align and distil small multimodal LLMs",
            "",
            "usage: mmalign COMMAND [options]",
            "",
            *lines,
            "",
            "'mmalign COMMAND --help' lists a command's options; each can also stand in a YAML file: --config FILE.",
        ]
    )


def _unknown(words: list[str]) -> int:
    group = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if group:
        print(f"mmalign {words[0]}: choose one of: {', '.join(name.split()[1] for name in group)}", file=sys.stderr)
        return 2
    near = get_close_matches(" ".join(words[:2]), COMMANDS, n=1) or get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
    print(f"mmalign: unknown command {words[0]!r}; {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""``mmalign <command>``: find the command, parse its options, call one function."""

import importlib
import os
import sys
from collections.abc import Callable, Container, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from mmalign import __version__
from mmalign.config import parse_options
from mmalign.errors import UserError, run_and_tell, take_traceback
from mmalign.options.methods import METHODS
from mmalign.recipes import expand
from mmalign.terminal import quiet_libraries


class Command(NamedTuple):
    """Where a command lives: ``module:name`` of its options and of its run. What runs is imported when the options are read."""

    options: str
    run: str
    summary: str
    packages: tuple[str, str] = ("mmalign.options", "mmalign.runs")
    instead: tuple[str, str] | None = None
    """An option, and what runs where it is given: it needs less, and so is imported sooner."""

    def options_class(self) -> type[Any]:
        """Import the dataclass of its options."""
        return _find(self.packages[0], self.options)

    def import_run(self, options: Any) -> Callable[[Any], object]:
        """Import what it runs."""
        option, instead = self.instead or ("", "")
        return _find(self.packages[1], instead if option and getattr(options, option) is not None else self.run)


def _data_tool(module: str, options: str, summary: str) -> Command:
    """A program of ``data_tools`` as a command."""
    return Command(f"{module}:{options}", f"{module}:run", summary, ("data_tools", "data_tools"))


# Commands that stand above the others.
_ABOVE = ("mmalign.options", "mmalign")

COMMANDS = {
    "demo": Command("demo:DemoOptions", "demo:run", "the main job on a made world, in ten minutes: models, DA-DPO, pages", _ABOVE),
    "world build": Command(
        "world:WorldOptions",
        "world:run",
        "make a world: images of known content, chats, pairs, questions",
    ),
    "compose": Command("models:ComposeOptions", "compose:run", "join a vision encoder and a language model"),
    "upcycle": Command(
        "models:UpcycleOptions",
        "upcycle:run",
        "turn a dense model into a mixture of experts that computes the same",
    ),
    **{f"train {name}": Command(f"methods:{entry.options.__name__}", "training:run", entry.summary) for name, entry in METHODS.items()},
    "train denoiser": Command(
        "denoisers:TrainDenoiserOptions", "denoisers:run", "train a text-to-image pipeline on pictures with captions"
    ),
    "train image-preference": Command(
        "denoisers:ImagePreferenceOptions",
        "denoisers:run",
        "DPO and its family on pairs or lists of pictures, for text-to-image pipelines",
    ),
    "merge": Command(
        "models:MergeOptions",
        "merge:run",
        "join a LoRA adapter and its base model to one checkpoint",
    ),
    "combine-adapters": Command(
        "models:CombineOptions",
        "combine:run",
        "write a weighted sum of LoRA adapters as one adapter",
    ),
    "classifier train": Command(
        "classifier:TrainClassifierOptions",
        "classifier:run_train",
        "distil a vision-language teacher into a classifier, few labels",
    ),
    "classifier fit-head": Command(
        "fit_head:FitHeadOptions",
        "fit_head:run",
        "a head in closed form on frozen features: a kernel or ridge",
    ),
    "classifier distill-images": Command(
        "distill_images:DistillImagesOptions",
        "distill_images:run",
        "a small synthetic set to pre-train a backbone on (KRR-ST)",
    ),
    "classifier discover-classes": Command(
        "discover:DiscoverClassesOptions",
        "discover_classes:run",
        "classes from the domains of unlabelled images, as a teacher",
    ),
    "classifier evaluate": Command(
        "classifier:EvaluateClassifierOptions",
        "saved_classifier:run_evaluate",
        "accuracy and calibration of both heads and mixed",
    ),
    "classifier tune": Command(
        "classifier:TuneMixingOptions",
        "saved_classifier:run_tune",
        "choose how both heads are mixed, on validation images",
    ),
    "classifier export": Command(
        "classifier:ExportClassifierOptions",
        "saved_classifier:run_export",
        "write a classifier as one plain module: torch.export or ONNX",
    ),
    "show": Command(
        "show:ShowOptions",
        "show:run",
        "a page of rows as a model sees them: images, tokens, what counts",
    ),
    "sample-denoiser": Command(
        "denoisers:SampleDenoiserOptions",
        "sample_denoiser:run",
        "pictures of captions from a text-to-image pipeline",
    ),
    "score-difficulty": Command(
        "difficulty:ScoreOptions",
        "difficulty:run_score",
        "score how difficult preference pairs are",
    ),
    "fuse-difficulty": Command(
        "difficulty:FuseOptions",
        "difficulty:run_fuse",
        "vote again on scored pairs, without scoring again",
    ),
    "cache-logps": Command(
        "difficulty:CacheOptions",
        "difficulty:run_cache",
        "store a reference's log-probabilities beside the pairs",
    ),
    "score-rewards": Command(
        "difficulty:ScoreRewardsOptions",
        "rewards:run",
        "score responses with a reward model, or a policy as one",
    ),
    "cache-teacher": Command(
        "difficulty:CacheTeacherOptions",
        "cache_teacher:run_cache_teacher",
        "store a teacher's likeliest tokens beside chats",
    ),
    "sample-images": Command(
        "sample_images:SampleImagesOptions",
        "sample_images:run",
        "draw pictures of captions, token by token, with guidance",
    ),
    "evaluate": Command(
        "evaluate:EvaluateOptions",
        "answering:run",
        "measure hallucination: pope, chair, amber, mme, ...",
        instead=("answers", "evaluate:run"),
    ),
    "evaluate images": Command(
        "evaluate_images:EvaluateImagesOptions",
        "evaluate_images:run",
        "what drawings show against what their captions name",
    ),
    "judge-agreement": Command(
        "judge_agreement:JudgeAgreementOptions",
        "judge_agreement:run",
        "compare two judges of a benchmark's answers: kappa, confusion",
    ),
    "diagnose": Command(
        "diagnose:DiagnoseOptions",
        "diagnose:run",
        "what preference training moved, and what its pairs are like",
    ),
    "report eval": Command(
        "report:ReportEvalOptions",
        "eval_report:run",
        "results of several models as a table and a page",
    ),
    "report training": Command(
        "report:ReportTrainingOptions",
        "training_report:run",
        "reward margin and accuracy by difficulty, over time",
    ),
    "report difficulty": Command(
        "report:ReportDifficultyOptions",
        "difficulty_report:run",
        "a page of difficulty scores, pairs easiest to hardest",
    ),
    "publish": Command(
        "publish:PublishOptions",
        "publish:run",
        "put a checkpoint, scored pairs or report pages on the Hub, with a card",
    ),
    "lmms-tasks": Command("harness:LmmsTasksOptions", "harness:run", "write POPE, RePOPE, DASH-B or AMBER as a task of lmms-eval"),
    "data convert": _data_tool("convert_pairs", "ConvertOptions", "a public preference set to checked pairs, or to scored lists"),
    "data convert-chats": _data_tool("convert_chats", "ChatOptions", "a public instruction set to checked chats"),
    "data convert-pictures": _data_tool("convert_pictures", "PictureSetOptions", "a public set of generated pictures to checked pairs"),
    "data validate": _data_tool("validate_pairs", "ValidateOptions", "check pairs: broken rows, duplicates, leaks, length bias"),
    "data sample": _data_tool("sample_pairs", "SampleOptions", "pairs from a model's own scored answers about images"),
    "data best-of-n": _data_tool("best_of_n", "BestOptions", "what the best of n saved answers is worth; pairs and chats of the best"),
    "data collect-traces": _data_tool("collect_traces", "TraceOptions", "a judge's rubrics for known pairs, to train a rubric judge on"),
    "data search": _data_tool("search_pairs", "SearchOptions", "pairs of steps from a tree search over a model's own answers"),
    "data weaken": _data_tool("weaken_images", "WeakenOptions", "pairs from chats: rejected answers to weakened images"),
    "data inject-errors": _data_tool("inject_errors", "InjectOptions", "pairs from chats: a language model puts errors into answers"),
    "data coco-objects": _data_tool("coco_objects", "ObjectOptions", "list COCO's objects by image, for CHAIR and Object HalBench"),
    "recipe list": Command("recipes:ListRecipesOptions", "recipes:run_list", "the papers' recipes and their commands", _ABOVE),
    "recipe show": Command("recipes:ShowRecipeOptions", "recipes:run_show", "print a recipe's file", _ABOVE),
    "recipe run": Command("recipes:RunRecipeOptions", "recipes:expand", "run a recipe's command with its options and more", _ABOVE),
}

# Commands that are another one where an option is given.
VARIANTS = {
    "evaluate": ("--benchmarks", Command("evaluate:EvaluateManyOptions", "evaluate_many:run", "several benchmarks, several models")),
}

# Names of an earlier release, which still run, and what they are called now.
RENAMED = {
    "train dual-head": "classifier train",
    "evaluate-classifier": "classifier evaluate",
    "tune-mixing": "classifier tune",
    "export": "classifier export",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 where the machine failed (a full disk, a folder that can't be written), 2 where the user's input can't be used; the reason is
        printed.
    """
    words, traced = take_traceback(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        return _print(_help())
    if words[0] in ("-V", "--version"):
        return _print(__version__)
    if old := _find_name(words, RENAMED):
        print(f"mmalign {old}: is now called 'mmalign {RENAMED[old]}'; the old name goes with the next release", file=sys.stderr)
        words[: len(old.split())] = RENAMED[old].split()
    if words[:2] == ["recipe", "run"] and words[2:3] not in ([], ["-h"], ["--help"]):
        # From here on it is the recipe's command.
        try:
            words = expand(words[2:])
        except UserError as error:
            print(f"mmalign recipe run: error: {error}", file=sys.stderr)
            return 2
    name = _find_name(words, COMMANDS)
    if name is None:
        return _group_or_unknown(words)
    command = _choose_variant(name, words)
    options = parse_options(command.options_class(), words[len(name.split()) :], prog=f"mmalign {name}", description=command.summary)
    quiet_libraries()
    joined = _in_process_group()
    status = None
    try:
        status = run_and_tell(lambda: command.import_run(options)(options), prog=f"mmalign {name}", traced=traced)
    finally:
        if not joined:
            _leave_process_group(wait=status == 0)
    return status


def _find_name(words: Sequence[str], known: Container[str]) -> str | None:
    """The name of two words or one that a command line begins with."""
    return next((name for n in (2, 1) if (name := " ".join(words[:n])) in known), None)


def _choose_variant(name: str, words: Sequence[str]) -> Command:
    option, variant = VARIANTS.get(name, ("", COMMANDS[name]))
    return variant if any(word.split("=")[0] == option for word in words) else COMMANDS[name]


def _find(package: str, place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def _in_process_group() -> bool:
    # Looked up, not imported: commands without a model run without torch.
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _leave_process_group(*, wait: bool) -> None:
    """Leave the group that a command joined under a launcher: a process that just ends can take its threads' locks with it and abort.

    Args:
        wait: For the others, as far as they have come; not where this process failed, and they may never come.
    """
    if not _in_process_group():
        return
    from accelerate.state import AcceleratorState

    distributed = sys.modules["torch.distributed"]
    if wait:
        distributed.barrier()
    distributed.destroy_process_group()
    # What accelerate remembers of the group; the next command in this process joins anew.
    AcceleratorState._reset_state(reset_partial_state=True)


def _print(text: str) -> int:
    """Print help, of which a reader such as head may have seen enough; returns the exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left would be written at exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _list(names: Sequence[str]) -> list[str]:
    width = max(map(len, names))
    return [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]


def _help() -> str:
    return "\n".join(
        [
            f"mmalign {__version__}: align and distil small multimodal LLMs",
            "",
            "usage: mmalign COMMAND [options]",
            "",
            *_list(list(COMMANDS)),
            "",
            "'mmalign COMMAND --help' lists a command's options; each can also stand in a YAML file: --config FILE.",
            "Faults of your input are told in a line; --traceback or MMALIGN_DEBUG=1 shows where they were found.",
        ]
    )


def _group_or_unknown(words: list[str]) -> int:
    """Help with a group of commands, such as ``mmalign train --help``, or say what is wrong; returns the exit status."""
    group = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if group and words[1:2] in (["-h"], ["--help"]):
        return _print("\n".join([f"usage: mmalign {words[0]} COMMAND [options]", "", *_list(group)]))
    if group:
        print(f"mmalign {words[0]}: choose one of: {', '.join(name.split()[1] for name in group)}", file=sys.stderr)
        return 2
    near = get_close_matches(" ".join(words[:2]), COMMANDS, n=1) or get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
    print(f"mmalign: unknown command {words[0]!r}; {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

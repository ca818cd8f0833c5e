"""``mmalign lmms-tasks``: benchmarks as a task folder of lmms-eval."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LmmsTasksOptions:
    """Options of ``mmalign lmms-tasks``."""

    data: Path = field(metadata={"help": "POPE's question file, or folder of them", "positional": True})
    images: Path = field(metadata={"help": "folder of the images"})
    out: Path = field(metadata={"help": "folder to give to lmms-eval as --include_path"})
    prompt_suffix: str = field(default="", metadata={"help": "text behind every question, such as LLaVA's single-word request"})
    max_new_tokens: int = field(default=64, metadata={"help": "longest answer in tokens"})


def run(options: LmmsTasksOptions) -> None:
    """Write the folder and print how it is used.

    Raises:
        ValueError: If questions or images are missing.
    """
    from mmalign.evaluation.harness.tasks import write_pope_task
    from mmalign.evaluation.pope import load_pope

    questions = load_pope(options.data).items
    write_pope_task(
        options.out, questions, images=options.images, max_new_tokens=options.max_new_tokens, prompt_suffix=options.prompt_suffix
    )
    print(f"{len(questions):,} questions written; now run\n")
    print(f"  lmms-eval --model mmalign --model_args pretrained=DIR --tasks mmalign_pope --include_path {options.out} --batch_size 8")

"""``mmalign lmms-tasks``: benchmarks as a task folder of lmms-eval."""

from mmalign.evaluation.harness.tasks import write_pope_task
from mmalign.evaluation.pope import load_pope
from mmalign.options.harness import LmmsTasksOptions


def run(options: LmmsTasksOptions) -> None:
    """Write the folder and print how it is used.

    Raises:
        ValueError: If questions or images are missing.
    """
    questions = load_pope(options.data).records
    write_pope_task(
        options.out, questions, images=options.images, max_new_tokens=options.max_new_tokens, prompt_suffix=options.prompt_suffix
    )
    print(f"{len(questions):,} questions written; now run\n")
    print(f"  lmms-eval --model mmalign --model_args pretrained=DIR --tasks mmalign_pope --include_path {options.out} --batch_size 8")

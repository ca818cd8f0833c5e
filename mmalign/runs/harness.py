"""``mmalign lmms-tasks``: benchmarks as tasks of lmms-eval."""

from mmalign.evaluation.harness.benchmark_task import task_options
from mmalign.evaluation.harness.tasks import task_name, write_task
from mmalign.options.harness import LmmsTasksOptions
from mmalign.runs.evaluate import load_benchmark


def run(options: LmmsTasksOptions) -> None:
    """Write the task and print how it is used.

    Raises:
        ValueError: If questions or images are missing.
    """
    name = options.benchmark
    number = write_task(
        options.out,
        load_benchmark(task_options(name, options.data)),
        name=name,
        data=options.data,
        images=options.images,
        max_new_tokens=options.max_new_tokens,
        prompt_suffix=options.prompt_suffix,
    )
    print(f"{number:,} questions written; now run\n")
    print(f"  lmms-eval --model mmalign --model_args pretrained=DIR --tasks {task_name(name)} --include_path {options.out} --batch_size 8")

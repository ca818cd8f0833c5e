"""``mmalign score-rewards``: a reward model's scores of pairs and lists, or a policy's implicit reward."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from datasets import Dataset

from mmalign.data.datasets import hash_data_files, load_rows, refuse_overwriting
from mmalign.data.reward_prompts import RewardPrompts
from mmalign.data.shards import parse_share, split_among_processes
from mmalign.difficulty.rewards import REWARDED, RowRewards, read_rewards, subtract_logps, write_rewards
from mmalign.difficulty.scoring import Scorers
from mmalign.engine.rewards import read_wording
from mmalign.files import SCORING, claimed
from mmalign.models.load import best_device, load_mllm
from mmalign.options.difficulty import ScoreRewardsOptions
from mmalign.options.rows import WordingOptions
from mmalign.runs.difficulty import score_dataset
from mmalign.tables import text_table


def run(options: ScoreRewardsOptions) -> None:
    """Score every response, write the scores beside the rows, and print how far they agree with the preferences."""
    refuse_overwriting(options.pairs, options.out / REWARDED)
    dataset = load_rows(options.pairs)
    about: dict[str, Any] = {"model": options.model, "kind": options.kind}
    if options.kind == "implicit":
        found = _score_implicit(options, dataset)
        about |= {"reference": options.reference, "beta": options.beta}
    else:
        wording = read_wording(options.model, question=options.question, answers=options.answers)
        found = _score_verifier(options, dataset, wording)
        about |= {"question": wording.question, "answers": wording.answers}
    if found is not None:
        print_summary(write_rewards(dataset, found, out=options.out, about=about))
        print(f"saved in {options.out / REWARDED}")


def _score_verifier(options: ScoreRewardsOptions, dataset: Dataset, wording: WordingOptions) -> list[RowRewards] | None:
    names = {"kind": options.kind, "model": options.model, "question": wording.question, "answers": wording.answers}
    shards = score_dataset(
        options, _with_scores(dataset), options.model, partial(_load, options.model, options, wording), names, lists=_are_lists(dataset)
    )
    return None if shards is None else read_rewards(shards)


def _score_implicit(options: ScoreRewardsOptions, dataset: Dataset) -> list[RowRewards] | None:
    """Two passes, a folder of shards each, so that one model at a time is in memory."""
    models = {"policy": options.model, "reference": str(options.reference)}
    record = {"kind": options.kind, "data": hash_data_files(options.pairs), **models}
    passes, rows = [], _with_scores(dataset)
    with claimed(options.out / SCORING, record, what="other scores", shared=split_among_processes(parse_share(options.shard)).count > 1):
        for name, model in models.items():
            own = replace(options, out=options.out / name)
            passes.append(score_dataset(own, rows, model, partial(_load, model, options, None), {"mllm": model}, lists=_are_lists(dataset)))
    policy, reference = passes
    return None if policy is None or reference is None else subtract_logps(policy, reference, beta=options.beta)


def _are_lists(dataset: Dataset) -> bool:
    return "responses" in dataset.column_names


def _with_scores(dataset: Dataset) -> Dataset:
    """Lists that nobody has scored yet, with zeros, as lists are read."""
    if not _are_lists(dataset) or "scores" in dataset.column_names:
        return dataset
    return dataset.add_column("scores", [[0.0] * len(row) if isinstance(row, list) else [] for row in dataset["responses"]])


def _load(source: str, options: ScoreRewardsOptions, wording: WordingOptions | None) -> Scorers:
    model, processor = load_mllm(source, dtype=options.dtype, quantization=options.quantization)
    rewards = None if wording is None else RewardPrompts(processor, wording)
    return Scorers(model.to(best_device()), processor, rewards=rewards)


def print_summary(summary: dict[str, Any]) -> None:
    """Print accuracy by source, calibration and margins."""
    print(f"{summary['num_scored']:,} of {summary['num_rows']:,} rows scored, {summary['num_pairs']:,} pairs with a preference")
    if not summary["num_pairs"]:
        return
    rows = [(name, *_cells(own)) for name, own in summary["sources"].items()]
    if len(rows) > 1:
        rows.append(("mean of sources", f"{len(rows)} sources", f"{summary['macro_accuracy']:.1%}"))
    asked = ("questions", "all pairs right") if "all_right" in summary else ()
    print(text_table([("source", "pairs", "accuracy", *asked), *rows, ("overall", *_cells(summary))]))
    low, middle, high = (summary["quantiles"][share] for share in ("0.05", "0.5", "0.95"))
    print(f"margins: 5% below {low:+.3f}, median {middle:+.3f}, 5% above {high:+.3f}; log loss {summary['log_loss']:.3f}")
    print(f"sigmoid(|margin|) is {summary['calibration_error']:.1%} away from how often it is right, on average")
    if summary["advice"]:
        print(summary["advice"])


def _cells(told: Mapping[str, Any]) -> tuple[str, ...]:
    cells = (f"{told['num_pairs']:,}", f"{told['accuracy']:.1%}")
    return (*cells, f"{told['num_questions']:,}", f"{told['all_right']:.1%}") if "all_right" in told else cells

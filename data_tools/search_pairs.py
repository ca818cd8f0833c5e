"""Make step pairs from images alone: search the answers of the model that is to be aligned as a tree, and pair the steps that it left.

    python data_tools/search_pairs.py photos/ --prompts "Describe the image." --model policy/ --value mllm --labeler big/ --out steps
    python data_tools/search_pairs.py questions.jsonl --image-root photos/ --model policy/ --value truth --steps lines --out steps
    python data_tools/search_pairs.py world/eval --model policy/ --value self --out steps
    mmalign train preference --model policy/ --data steps/pairs --objective step_dpo --out aligned

SOURCE is what sample_pairs.py takes. Monte Carlo tree search (MCTS-DPO, arXiv:2405.00451): each step of an answer has --actions ways to
go on, valued by how true the answer is with it. self asks the policy about the answer so far while it sees the image, mllm another model,
reward one of train reward; truth compares named objects with those there, or whole answers with the known ones. At each step of the
answer that the search settles on, the best way makes a pair with the worst. Both responses hold the answer up to there and one step, and
do not end the turn where the answer goes on.

Work is done in chunks: give the same command again after a stop, and the result has the same bytes.

Cost: for each place of the tree --actions steps and as many questions about them; --iterations is the most places for a step of the
answer, four times that for its first.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_tools.program import run_program
from mmalign.errors import UserError
from mmalign.options.precision import Dtype
from mmalign.options.tokens import TokenOptions


@dataclass(frozen=True, kw_only=True)
class SearchOptions(TokenOptions):
    """Options of ``search_pairs.py``."""

    source: Path = field(metadata={"positional": True})
    """folder of images, JSONL of questions, or folder with chair.jsonl"""
    model: str
    """multimodal LLM whose answers are searched: folder or hub id"""
    value: Literal["self", "mllm", "reward", "truth"]
    """who tells how true an answer is so far: the model itself, another one, a reward model, or known objects or answers"""
    out: Path
    """folder of pairs/*.parquet, rejects.jsonl and the work in progress"""
    prompts: list[str] = field(default_factory=list)
    """what to ask about each image of a folder"""
    image_root: Path | None = None
    """folder of the images; SOURCE or SOURCE/images if that is a folder"""
    labeler: str | None = None
    """the model that is asked, for --value mllm and reward: folder or hub id"""
    check: str = "So far: {response}\nIs every statement true of the image? Answer yes or no."
    """what it is asked, with {response} for the answer so far and, if wanted, {question}"""
    steps: Literal["sentences", "lines"] = "sentences"
    """what a step is"""
    actions: int = 2
    """different steps that an answer can go on with"""
    depth: int = 8
    """the step with this number is the rest of the answer, and there is one alone"""
    iterations: int = 64
    """searches for each step, four times as many for the first"""
    exploration: float = 1.0
    """weight of likely steps that were seldom visited; 0: the best so far alone"""
    temperature: float = 1.0
    """sampling temperature"""
    max_new_tokens: int = 256
    """longest answer in tokens"""
    batch_size: int = 8
    """trees at once; another size may change a few steps by rounding, and is another run"""
    seed: int = 0
    """of sampling"""
    embed_images: bool = True
    """put the images into the Parquet files as bytes"""
    dtype: Dtype = "auto"
    """precision of the weights"""
    max_reject_share: float = 0.2
    """stop if more than this share of lines is broken"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(2, "actions", "depth")
        self.refuse_below(1, "iterations", "max_new_tokens", "batch_size")
        self.refuse_below(0, "exploration")
        self.refuse_no_share("max_reject_share")


def run(options: SearchOptions) -> None:
    """Search and pair.

    Raises:
        ValueError: If options don't fit together, or the source can't be read.
    """
    from data_tools.chunks import chunk_seed, run_chunks
    from data_tools.models import load_on_accelerator
    from data_tools.negatives import write_pairs
    from data_tools.sampling import load_source
    from data_tools.searching import search_chunk
    from data_tools.step_sampling import StepSampler
    from data_tools.tree import TreeSearch
    from mmalign.engine.choosing import Sampling

    _check(options)
    sampling = Sampling(options.temperature, options.top_p, options.top_k, answers=options.actions)
    items, root, words, files = load_source(options.source, prompts=options.prompts, image_root=options.image_root)
    policy = load_on_accelerator(options.model, dtype=options.dtype)
    sampler = StepSampler(*policy, sampling=sampling, steps=options.steps, depth=options.depth, max_new_tokens=options.max_new_tokens)
    values = _build_values(options, policy, words, known=all(item.answers for item in items))
    search = TreeSearch(iterations=options.iterations, exploration=options.exploration)

    def work(indices: range) -> list[dict[str, Any]]:
        chunk, seeds = [items[index] for index in indices], [chunk_seed(options.seed, index) for index in indices]
        found = search_chunk(chunk, sampler, values, search, image_root=root, seeds=seeds)
        return [{"index": index, **line} for index, lines in zip(indices, found, strict=True) for line in lines]

    chunks = run_chunks(
        len(items), work, out=options.out, fingerprint=_settings(options, files), size=options.batch_size, label="searching"
    )

    def pair(line: Mapping[str, Any]) -> Any:
        return _pair(items[line["index"]].question, line, options.value)

    write_pairs(chunks, pair, out=options.out, image_root=root, embed=options.embed_images, max_share=options.max_reject_share)


def _check(options: SearchOptions) -> None:
    if (options.value in ("mllm", "reward")) != (options.labeler is not None):
        raise UserError("--value mllm or reward and --labeler MODEL go together; give both or neither")
    if options.check != SearchOptions.check and options.value in ("reward", "truth"):
        raise UserError(f"--check is what --value self and mllm ask; leave it out with --value {options.value}")


def _build_values(options: SearchOptions, policy: tuple[Any, Any], words: Mapping[str, str] | None, *, known: bool) -> Any:
    from data_tools.models import load_on_accelerator
    from data_tools.step_values import AskedValues, RewardValues, TruthValues, asking
    from mmalign.engine.rewards import RewardModel

    if options.value == "truth":
        if words is None and not known:
            raise UserError("--value truth needs a folder with chair.jsonl and synonyms.txt, or an answer for every question")
        return TruthValues(words)
    if options.value == "reward":
        assert options.labeler is not None
        return RewardValues(RewardModel.load(options.labeler, dtype=options.dtype, batch_size=options.batch_size))
    asked = policy if options.labeler is None else load_on_accelerator(options.labeler, dtype=options.dtype)
    return AskedValues(*asked, turns=asking(options.check))


def _pair(question: Any, line: Mapping[str, Any], value: str) -> Any:
    """Make the pair of a line; None where there is none."""
    from data_tools.fields import assistant, user
    from data_tools.negatives import RejectedRow
    from data_tools.pair_sets import Pair

    if "reason" in line:
        raise RejectedRow(question.id, line["reason"])
    if "chosen" not in line:
        return question.id, None
    name = f"{question.id}/step-{line['depth']}"
    columns = {f"{column}_{side}": line[column][i] for column in ("visits", "ends") for i, side in enumerate(("chosen", "rejected"))}
    chosen, rejected = assistant(line["chosen"]), assistant(line["rejected"])
    scores = (line["quality"][0], line["quality"][1])
    images = [question.image]
    return name, Pair(name, f"tree/{value}", images, user(question.prompt, images), chosen, rejected, scores, extra=columns)


def _settings(options: SearchOptions, files: Mapping[str, str]) -> dict[str, Any]:
    """All that decides the result."""
    from mmalign.models.fingerprint import fingerprint_checkpoint

    search = ("value", "labeler", "check", "steps", "actions", "depth", "iterations", "exploration")
    names = ("model", "prompts", *search, "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    models = {"model": options.model, "labeler": options.labeler}
    weights = {f"{name}_weights": fingerprint_checkpoint(m, dtype=options.dtype) for name, m in models.items() if m is not None}
    # A wrong root makes rejects of all questions, which must not stay under the right one.
    root = None if options.image_root is None else str(options.image_root)
    return {"builder": "tree-search", "data": files, "image_root": root, **{n: getattr(options, n) for n in names}, **weights}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, SearchOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Options of ``sample_pairs.py``, apart from what it does, so that --help comes at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_tools.language_models import LanguageModelOptions
from mmalign.options.endpoint import EndpointOptions
from mmalign.options.precision import Dtype
from mmalign.options.tokens import TokenOptions

# Name -> module of this folder and the function that builds the scorer. A new scorer is a function and one line here.
SCORERS = {
    "truth": "response_scores:build_truth",
    "answers": "response_scores:build_answers",
    "mllm": "response_scores:build_looking",
    "judge": "response_scores:build_judge",
    "confidence": "confidence_scores:build_confidence",
    "reward": "reward_scores:build_reward",
    "clip": "clip_scores:build_clip",
    "questions": "question_scorer:build_questions",
    "rubric": "rubric_scorer:build_rubric",
}
LOOKING = ("mllm", "confidence", "reward", "clip", "questions", "rubric")
"""Scorers that have a --labeler."""
if TYPE_CHECKING:
    # A type checker can't read a Literal from a table.
    ScorerName = str
else:
    ScorerName = Literal[tuple(SCORERS)]


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """Questions that test the responses, for --scorer questions."""

    questions: str = "objects"
    """objects: is each named object there; written: by the model about each response; or a JSONL file of question and image"""
    num_questions: int = 4
    """written: questions per response"""
    ask: str = "{question} Answer yes or no."
    """how the model that sees the image is asked; {question} stands for the question"""
    synonyms: Path | None = None
    """objects: their words, one line per object, words split by commas; SOURCE's own synonyms.txt if not given"""
    select: Literal["score", "minimax"] = "score"
    """best and worst by their agreement with the answers; or two that differ in the question that fewest responses pass"""
    append_test: bool = False
    """minimax: end both responses with that question and its answer"""
    most_one_way: float = 0.95
    """stop if more than this share of the answers is yes, or no"""


@dataclass(frozen=True, kw_only=True)
class ConfidenceOptions:
    """What is asked about a whole response, for --scorer confidence."""

    check: str = "Answer: {response}\nIs every statement true of the image? Answer yes or no."
    """a question that yes or no answers, with {response} and, if wanted, {question}"""


@dataclass(frozen=True, kw_only=True)
class RejectedOptions:
    """Which response is rejected."""

    rejected: str = "worst"
    """worst: that of the lowest score; did:beta=B: drawn among those below the best, with weight exp(-B h)"""
    target: str | None = None
    """did: h = log p under this model - log p under --model: folder or hub id"""
    reward_scale: float | None = None
    """did without --target: h = score / this"""


@dataclass(frozen=True, kw_only=True)
class RubricOptions:
    """Comparisons of every two responses by a judge that sees the image, for --scorer rubric."""

    rubric_reading: Literal["strict", "lenient"] = "strict"
    """a reply that contradicts its own points gives no verdict, or the winner that it names"""
    rubric_length: int = 2048
    """longest reply of the judge in tokens"""


@dataclass(frozen=True, kw_only=True)
class DrawOptions(EndpointOptions, TokenOptions):
    """How a model's responses are drawn."""

    model: str
    """multimodal LLM to sample from: folder or hub id; with --endpoint its name there"""
    out: Path
    """folder of pairs/*.parquet, rejects.jsonl and the work in progress"""
    samples: int = 4
    """responses per question"""
    search: Literal["sample", "beam"] = "sample"
    """draw them, or find the likeliest ones with as many beams"""
    temperature: float = 1.0
    """sampling temperature"""
    top_p: float = 0.95
    """sample from the likeliest tokens that have this probability together"""
    max_new_tokens: int = 256
    """longest response in tokens"""
    batch_size: int = 8
    """questions at once; another size may change a few responses by rounding, and is another run"""
    seed: int = 0
    """of sampling"""
    embed_images: bool = True
    """put the images into the Parquet files as bytes"""
    dtype: Dtype = "auto"
    """precision of the weights"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "samples", "max_new_tokens", "batch_size")


@dataclass(frozen=True, kw_only=True)
class SampleOptions(DrawOptions, LanguageModelOptions, ConfidenceOptions, QuestionOptions, RejectedOptions, RubricOptions):
    """Options of ``sample_pairs.py``."""

    source: Path = field(metadata={"positional": True})
    """folder of images, JSONL of questions, or folder with chair.jsonl"""
    scorer: ScorerName
    """known objects or answers, a model that looks or its P(yes), a judge, a reward model, CLIP, questions, or a rubric's comparisons"""
    prompts: list[str] = field(default_factory=list)
    """what to ask about each image of a folder"""
    image_root: Path | None = None
    """folder of the images; SOURCE or SOURCE/images if that is a folder"""
    labeler: str | None = None
    """the model that looks, for questions and confidence instead of the model itself; the reward or CLIP model: folder or hub id"""
    gold: str | None = None
    """key of SOURCE's rows that holds a teacher's answer: it joins the responses, and is scored as they are"""
    lists: bool = False
    """write OUT/lists as well: each question with all its responses and their scores, for best_of_n.py and mmalign score-rewards"""
    max_reject_share: float = 0.2
    """stop if more than this share of questions has a broken image"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "num_questions", "rubric_length")
        self.refuse_no_share("most_one_way", "max_reject_share")

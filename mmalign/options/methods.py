"""What each method of training can be set to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.chasing import ChasingOptions
from mmalign.options.groups import GroupOptions, GroupRewardOptions
from mmalign.options.precision import Dtype, Quantization
from mmalign.options.rows import AnswerOptions, PackingOptions, PictureOptions, RowOptions, WeakenOptions, WordingOptions
from mmalign.options.training import MllmOptions, ReferencedOptions, RunOptions

Tower = Literal["vision_tower", "text_tower"]
DivergenceName = Literal["forward-kl", "reverse-kl", "js", "uld", "uld-hybrid"]
DifficultyMode = Literal["off", "paper", "paper-norm", "loss-weight", "both"]
VisualAdvantageName = Literal["off", "tokens", "answers", "both"]
NoisyGap = Literal["keep", "drop", "flip", "smooth"]


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(RunOptions):
    """Options of ``mmalign train contrastive``."""

    model: str
    """CLIP model: folder, hub id, or JSON config for random weights"""
    tokenizer: str | None = None
    """tokenizer folder; needed where the model is a config"""
    freeze: list[Tower] = field(default_factory=list)
    """towers that keep their weights, vision_tower (as in LiT, arXiv:2111.07991) or text_tower; the projections train"""
    learning_rate: float = 5e-4
    """peak learning rate"""


@dataclass(frozen=True, kw_only=True)
class ChatOptions(RowOptions, AnswerOptions, PackingOptions):
    """How chats become batches."""


@dataclass(frozen=True, kw_only=True)
class SftOptions(ChatOptions, PictureOptions, MllmOptions):
    """Options of ``mmalign train sft``."""

    learning_rate: float = 2e-5
    """peak learning rate"""
    caption_dropout: float = 0.1
    """pictures: share of the rows that are drawn without their caption, drawn anew at each step; guidance needs them"""

    def __post_init__(self) -> None:
        """Refuse what is no share, and rows that pictures don't have."""
        super().__post_init__()
        if self.pictures and self.row_tokens is not None:
            raise UserError("--row-tokens packs chats, and --pictures trains on a picture per row; leave one out")
        if not 0 <= self.caption_dropout < 1:
            raise UserError(f"caption_dropout is {self.caption_dropout}; expected a share of the rows from 0, less than 1, such as 0.1")
        if self.changed("caption_dropout") and not self.pictures:
            raise UserError(f"caption_dropout is {self.caption_dropout}, and only pictures have captions; add --pictures, or leave it out")


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions(Options):
    """Divergence of the student's distributions from the teacher's."""

    divergence: DivergenceName = "forward-kl"
    """of the student from the teacher: KL(teacher, student), KL(student, teacher), Jensen-Shannon; uld, uld-hybrid: the teacher may have
    another tokenizer, and its sorted probabilities are compared, all or those of tokens that the student lacks"""
    js_weight: float = 0.5
    """the teacher's share of the mixture that js (and uld-hybrid, of the tokens that both have) compares both with; towards 0 it turns to
    the forward KL, towards 1 to the reverse KL"""
    temperature: float = 1.0
    """softens both distributions; the divergence is multiplied by its square"""

    def __post_init__(self) -> None:
        """Refuse temperatures that are no scale, and mixtures of one alone."""
        super().__post_init__()
        if not 0 < self.js_weight < 1:
            raise UserError(f"js_weight is {self.js_weight}; expected more than 0 and less than 1; its ends are forward-kl and reverse-kl")
        if self.js_weight != 0.5 and self.divergence not in ("js", "uld-hybrid"):
            raise UserError(f"js_weight is {self.js_weight}, and divergence {self.divergence!r} has none; add --divergence js")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; expected a positive number")

    @property
    def aligned(self) -> bool:
        """Whether words are compared that student and teacher may cut into other tokens."""
        return self.divergence in ("uld", "uld-hybrid")


@dataclass(frozen=True, kw_only=True)
class OnPolicyOptions(Options):
    """Answers that the student gives itself."""

    on_policy: float = 0.0
    """share of the rows whose last answer is the student's own, sampled at each step; 0: the data's answers alone"""
    sample_temperature: float = 1.0
    """of sampled answers"""
    sample_tokens: int = 128
    """longest sampled answer"""

    def __post_init__(self) -> None:
        """Refuse what is no share, and answers of no length."""
        super().__post_init__()
        if not 0 <= self.on_policy <= 1:
            raise UserError(f"on_policy is {self.on_policy}; expected a share of the rows from 0 to 1")
        if not self.sample_temperature > 0:
            raise UserError(f"sample_temperature is {self.sample_temperature}; expected a positive number")
        self.refuse_below(1, "sample_tokens")


@dataclass(frozen=True, kw_only=True)
class VisualAdvantageOptions(WeakenOptions):
    """Tokens that the teacher would be less sure of without the image."""

    visual_advantage: VisualAdvantageName = "off"
    """what they change: nothing, the weight of tokens within an answer, of whole answers, or both; the teacher is asked twice"""
    visual_share: float = 0.2
    """tokens: this share of an answer's, which lose most with a weakened image, has half of the answer's weight"""

    def __post_init__(self) -> None:
        """Refuse what is no part."""
        super().__post_init__()
        if not 0 < self.visual_share < 1:
            raise UserError(f"visual_share is {self.visual_share}; expected a share of the tokens between 0 and 1, such as 0.2")


@dataclass(frozen=True, kw_only=True)
class MimicLossOptions(DivergenceOptions, OnPolicyOptions, VisualAdvantageOptions, ChatOptions):
    """What is mimicked, and how much."""

    kl_weight: float = 1.0
    """weight of the divergence"""
    ce_weight: float = 0.0
    """weight of the cross-entropy on the chats' own tokens; 1 in dense-to-sparse"""
    distil: Literal["responses", "all"] = "responses"
    """the tokens to mimic: the responses', or all text, prompts too; the tokens of images are never among them"""
    legacy_mask: bool = False
    """compare one place late, as LLaVA-MoD's released code does; to replicate it only"""

    def __post_init__(self) -> None:
        """Refuse weights without sense."""
        super().__post_init__()
        if not self.kl_weight > 0:
            raise UserError(f"kl_weight is {self.kl_weight}; expected a positive number: without a teacher it is mmalign train sft")
        if not self.ce_weight >= 0:
            raise UserError(f"ce_weight is {self.ce_weight}; expected 0 or more")
        if self.on_policy and (self.legacy_mask or self.distil == "all"):
            raise UserError("--on-policy compares sampled answers at the right places; leave --legacy-mask and --distil all out")
        if self.aligned and (self.legacy_mask or self.distil == "all" or self.visual_advantage != "off"):
            raise UserError(
                f"--divergence {self.divergence} compares answers at the right places, each group of tokens alike; leave --legacy-mask, "
                "--distil all and --visual-advantage out"
            )
        if self.visual_advantage != "off" and (self.legacy_mask or self.distil == "all"):
            raise UserError("--visual-advantage is of answers at the right places; leave --legacy-mask and --distil all out")


@dataclass(frozen=True, kw_only=True)
class MimicOptions(MimicLossOptions, MllmOptions):
    """Options of ``mmalign train mimic``."""

    teacher: list[str]
    """whom to mimic: a multimodal LLM with the student's tokens (with others: --divergence uld), or cached: columns of the data; several:
    NAME=MODEL, each for its rows"""
    teacher_column: str = "source"
    """column that names each row's teacher, where there are several"""
    teacher_model: str | None = None
    """the model that a cached teacher's columns must come from: folder or hub id"""
    teacher_dtype: Dtype = "auto"
    """precision of the teacher's weights"""
    teacher_quantization: Quantization = "none"
    """hold the teacher's language model in 4 bits"""
    learning_rate: float = 2e-5
    """peak learning rate"""

    def __post_init__(self) -> None:
        """Refuse what a cached teacher can't tell."""
        super().__post_init__()
        cached = "cached" in self.teachers.values()
        if len(self.teachers) == 1:
            self.refuse_idle("teacher_column", needed="a run with several --teacher NAME=MODEL")
        if len(self.teachers) > 1 and (cached or self.visual_advantage != "off"):
            raise UserError("of several teachers each is live, and asked once; leave cached and --visual-advantage out")
        if cached and (self.legacy_mask or self.temperature != 1.0):
            raise UserError("--teacher cached knows the right places at temperature 1 alone; leave --legacy-mask and --temperature out")
        if cached and self.aligned:
            raise UserError(f"--teacher cached knows the student's tokens alone; use a live teacher for --divergence {self.divergence}")
        if cached and self.distil == "all":
            raise UserError("--teacher cached knows response tokens alone; use a live teacher for --distil all")
        if cached and self.on_policy:
            raise UserError("--teacher cached knows the data's answers alone, and --on-policy samples new ones; use a live teacher")
        if cached and self.visual_advantage != "off":
            raise UserError("--teacher cached has seen no weakened images; use a live teacher for --visual-advantage")
        if self.teacher_model is not None and not cached:
            raise UserError(f"--teacher-model is for --teacher cached; the teacher is {' '.join(self.teacher)}")

    @property
    def teachers(self) -> dict[str, str]:
        """Models by name; one alone has none.

        Raises:
            ValueError: If several are not named apart.
        """
        if len(self.teacher) == 1:
            return {"": self.teacher[0]}
        pairs = [word.partition("=") for word in self.teacher]
        found = {name: model for name, _, model in pairs if name and model}
        if len(found) < max(1, len(pairs)):
            raise UserError(f"teacher is {' '.join(self.teacher)}; expected one model, or several with names of their own: NAME=MODEL ...")
        return found


@dataclass(frozen=True, kw_only=True)
class ResponsesOptions(RowOptions, AnswerOptions, PackingOptions):
    """Objectives over the responses of a prompt."""

    objective: list[str]
    """NAME or NAME:parameter=value,...; several are summed, each times its parameter weight; docs/objectives.md lists the names"""
    beta: float | None = None
    """pull towards the reference; the objective's own if not given"""


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Options):
    """Which pairs are trained on, in which order; the defaults change nothing."""

    difficulty_range: list[float] = field(default_factory=list)
    """train on pairs with a difficulty from the first to the second number, such as 0.2 0.9"""
    curriculum: Literal["none", "easy-to-hard", "hard-to-easy"] = "none"
    """order of the pairs in an epoch, by difficulty; none: shuffled"""
    curriculum_buckets: int = 20
    """parts of an epoch that are shuffled within, one after the other"""
    noisy_gap: NoisyGap = "keep"
    """pairs whose rejected answer the proxies clearly prefer: leave out, swap, or soften the label"""
    noisy_gap_std: float = 1.0
    """clearly: fused gap this many standard deviations below zero, or more"""
    noisy_gap_quantile: float | None = None
    """instead: this share of the pairs, with the lowest fused gaps, as far as they are negative"""
    noisy_gap_label_flip: float = 0.3
    """smooth: share of such a pair's loss that is the swapped pair's"""

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        super().__post_init__()
        if len(self.difficulty_range) not in (0, 2):
            given = " ".join(map(str, self.difficulty_range))
            raise UserError(f"difficulty_range is {given}; expected two numbers in [0, 1], such as 0.2 0.9")
        if self.difficulty_range and not 0 <= self.difficulty_range[0] < self.difficulty_range[1] <= 1:
            low, high = self.difficulty_range
            raise UserError(f"difficulty_range is {low} {high}; expected two numbers in [0, 1], the lower one first, such as 0.2 0.9")
        if self.curriculum_buckets < 1:
            raise UserError(f"curriculum_buckets is {self.curriculum_buckets}; expected 1 or more, such as 20")
        if not self.noisy_gap_std >= 0:
            raise UserError(f"noisy_gap_std is {self.noisy_gap_std}; expected 0 or more standard deviations below zero, such as 1")
        if self.noisy_gap_quantile is not None and not 0 < self.noisy_gap_quantile < 1:
            raise UserError(f"noisy_gap_quantile is {self.noisy_gap_quantile}; expected a share between 0 and 1, such as 0.02")
        if self.noisy_gap_quantile is not None and self.noisy_gap == "keep":
            raise UserError(
                f"noisy_gap_quantile is {self.noisy_gap_quantile}, and noisy_gap 'keep' changes no pair; take drop, flip or smooth"
            )
        if not 0 < self.noisy_gap_label_flip <= 0.5:
            raise UserError(
                f"noisy_gap_label_flip is {self.noisy_gap_label_flip}; expected more than 0 and at most 0.5, where a label says nothing; "
                "for more take --noisy-gap flip"
            )
        if self.curriculum == "none":
            self.refuse_idle("curriculum_buckets", needed="--curriculum")
        if self.noisy_gap == "keep" or self.noisy_gap_quantile is not None:
            self.refuse_idle("noisy_gap_std", needed="--noisy-gap without a quantile")
        if self.noisy_gap != "smooth":
            self.refuse_idle("noisy_gap_label_flip", needed="--noisy-gap smooth")


@dataclass(frozen=True, kw_only=True)
class PairLossOptions(ResponsesOptions, SelectionOptions, WeakenOptions):
    """How pairs become a loss."""

    objective: list[str] = field(default_factory=lambda: ["dpo"])
    difficulty_mode: DifficultyMode = "off"
    """what a pair's difficulty changes: nothing (DPO), its beta, its loss weight, or both"""
    center_rewards: bool = False
    """subtract the rewards' means before training: for a teacher as the reference"""
    sft_weight: float = 0.0
    """adds this times the chosen response's mean negative log-likelihood"""

    def __post_init__(self) -> None:
        """Refuse a weight that would teach to forget."""
        super().__post_init__()
        self.refuse_below(0, "sft_weight")


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(PairLossOptions, PictureOptions, ChasingOptions):
    """Options of ``mmalign train preference``."""

    learning_rate: float = 2e-6
    """peak learning rate"""

    def __post_init__(self) -> None:
        """Refuse what pictures can't be combined with."""
        super().__post_init__()
        if self.pictures and self.chasing:
            raise UserError("--chasing trains on words alone; leave it or --pictures out")


@dataclass(frozen=True, kw_only=True)
class ListLossOptions(ResponsesOptions):
    """How lists become a loss."""

    objective: list[str] = field(default_factory=lambda: ["adpo"])
    items: bool = False
    """rank items inside one response: rows have response, items ([start, end) in characters) and relevance"""


@dataclass(frozen=True, kw_only=True)
class ListwiseOptions(ListLossOptions, PictureOptions, ReferencedOptions):
    """Options of ``mmalign train listwise``."""

    learning_rate: float = 2e-6
    """peak learning rate"""

    def __post_init__(self) -> None:
        """Refuse what pictures can't be combined with."""
        super().__post_init__()
        if self.pictures and self.items:
            raise UserError("--items are spans of words, and --pictures has none; leave one out")


@dataclass(frozen=True, kw_only=True)
class RewardLossOptions(WordingOptions, RowOptions):
    """What a reward model learns from, and how it is asked."""

    lists: bool = False
    """rows have responses and scores, of which every two with unequal scores are a pair, for chosen and rejected"""
    margin: float = 0.0
    """by how much the better response's reward should be higher"""
    centering: float = 0.01
    """adds this times the squared sum of a pair's rewards, which keeps rewards around 0"""

    def __post_init__(self) -> None:
        """Refuse a centring that drives rewards away from 0."""
        super().__post_init__()
        self.refuse_below(0, "centering")


@dataclass(frozen=True, kw_only=True)
class RewardOptions(RewardLossOptions, MllmOptions):
    """Options of ``mmalign train reward``."""

    learning_rate: float = 2e-6
    """peak learning rate"""


@dataclass(frozen=True, kw_only=True)
class OnlineLossOptions(ResponsesOptions, GroupOptions, GroupRewardOptions):
    """How groups of sampled answers become a loss."""

    objective: list[str] = field(default_factory=lambda: ["grpo"])


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(OnlineLossOptions, ReferencedOptions):
    """Options of ``mmalign train online``."""

    learning_rate: float = 1e-6
    """peak learning rate"""

    def __post_init__(self) -> None:
        """Refuse a reference that knows the data's answers alone."""
        super().__post_init__()
        if self.reference == "cached":
            raise UserError("--reference cached knows answers of the data, and train online samples new ones; use copy or adapter-off")


class MethodEntry(NamedTuple):
    """A method of training: its options, ``module:class`` in methods, and what its command does."""

    options: type[RunOptions]
    place: str
    summary: str
    variants: Mapping[str, str] = {}
    """Options that make it another class where they are set: that class's place."""


# What follows ``mmalign train``. A new method is its own module, its options and one line here.
METHODS = {
    "contrastive": MethodEntry(ContrastiveOptions, "contrastive:ContrastiveMethod", "train an image-text scorer (CLIP)"),
    "sft": MethodEntry(
        SftOptions,
        "sft:SupervisedMethod",
        "fine-tune on chats about images",
        variants={"pictures": "pictures:PictureSupervisedMethod"},
    ),
    "mimic": MethodEntry(MimicOptions, "mimic:MimicMethod", "distil a teacher into a student on chats"),
    "preference": MethodEntry(
        PreferenceOptions,
        "preference:PreferenceMethod",
        "DPO and its family on preference pairs",
        variants={"chasing": "chasing:ChasingMethod", "pictures": "pictures:PicturePreferenceMethod"},
    ),
    "listwise": MethodEntry(
        ListwiseOptions,
        "listwise:ListwiseMethod",
        "the same on lists of scored responses",
        variants={"pictures": "pictures:PictureListwiseMethod"},
    ),
    "reward": MethodEntry(RewardOptions, "reward:RewardMethod", "train a reward model on pairs or lists: a stock checkpoint"),
    "online": MethodEntry(OnlineOptions, "online:OnlineMethod", "learn from rewards of the policy's own answers: GRPO, DisCO, online DPO"),
}

"""A classifier with two heads: training, evaluation, mixing, export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.training import TrainerOptions

SetName = Literal[
    "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"
]
Split = Literal["train", "validation", "test"]
Library = Literal["timm", "transformers"]
HeadKind = Literal["linear", "mlp", "cosine"]
Form = Literal["dual-head", "single-head", "pcgrad", "sskd", "dhkd", "ce-only", "kd-only", "feature-kd", "fixmatch"]
FeatureLoss = Literal["cosine", "mse"]
Augmentation = Literal["none", "pad-crop", "random-resized-crop"]
ExportFormat = Literal["torch", "onnx"]


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Options):
    """Images, and which of them have labels."""

    data: Path
    """images with classes: parquet, save_to_disk, class folders, a CoOp split file; --set: their root"""
    set: SetName | None = None
    """one of CoOp's ten fine-grained sets below --data"""
    label_column: str | None = None
    """parquet, save_to_disk: the column of classes; the first ClassLabel if not given"""
    shots: int | None = None
    """labelled images per class"""
    label_share: float | None = None
    """labelled share of the images, the same number of each class"""
    split_file: Path | None = None
    """labelled and unlabelled images by id, as OUT/split.json holds them"""
    split_seed: int = 1
    """seed of the draw of labelled images"""
    validation_share: float = 0.0
    """share of the training images held out to tune the mixing on"""
    cache: Path | None = None
    """folder of decoded images and teacher logits; OUT/cache if not given"""
    max_reject_share: float = 0.05
    """stop if more than this share of images is broken"""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(LabelOptions):
    """Other images, and what classes are called."""

    validation_data: Path | None = None
    """images to tune the mixing on; with --set its own are used"""
    test_data: Path | None = None
    """images for the report at the end; with --set its own are used"""
    class_names: Path | None = None
    """what prompts call the classes: JSON, CSV or lines 'n01440764 tench'; their own names if not given"""


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(Options):
    """The network below the heads."""

    library: Library = "timm"
    """where the backbone comes from"""
    backbone: str = "resnet18"
    """timm's architecture, or a CLIP or SigLIP: folder or hub id"""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    """timm's keywords: '{drop_path_rate: 0.1}'"""
    pretrained: bool = True
    """start from published weights"""
    backbone_weights: Path | None = None
    """timm: safetensors file of the backbone's weights, such as DINO's ResNet-50, instead of the published ones"""
    image_size: int = 224
    """side of the network's input"""
    resize_size: int | None = None
    """side of the stored squares; 8/7 of the image size if not given"""

    def __post_init__(self) -> None:
        """Refuse weights that have no place."""
        super().__post_init__()
        self.refuse_below(1, "image_size", "resize_size")
        if self.backbone_weights is not None and (self.library != "timm" or not self.pretrained):
            what = "--library transformers: name the folder as --backbone" if self.library != "timm" else "--no-pretrained"
            raise UserError(f"backbone_weights is {self.backbone_weights}, and they have no place with {what}; leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class StudentOptions(BackboneOptions):
    """The student."""

    freeze_backbone: bool = False
    """train the heads alone"""
    ce_head: Literal["linear", "mlp"] = "linear"
    """head that learns from labels"""
    kd_head: HeadKind = "linear"
    """head that learns from the teacher"""
    text_init: bool = False
    """start both heads at the class names' embeddings (CLIP or SigLIP backbones)"""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(Options):
    """The teacher."""

    teacher: str | None = None
    """CLIP or SigLIP, open_clip's ARCHITECTURE/TAG, classifier folder, timm architecture, or file of logits"""
    teacher_kind: Literal["zero-shot", "open-clip", "few-shot", "classifier", "timm", "logits"] = "zero-shot"
    """what --teacher is; few-shot: a CLIP fitted on the labelled images; open-clip needs mmalign[open-clip]"""
    prompts: list[str] = field(default_factory=list)
    """zero-shot, open-clip, few-shot: texts with {} or a set of them (imagenet, photo, ...); --set has its own"""


@dataclass(frozen=True, kw_only=True)
class ViewOptions(Options):
    """Views of an image."""

    augmentation: Augmentation = "random-resized-crop"
    """views of an image in training; pad-crop for images of about 32 pixels"""


@dataclass(frozen=True, kw_only=True)
class ClassifierRunOptions(ImageOptions, BackboneOptions, TeacherOptions, ViewOptions):
    """What comes out."""

    out: Path
    """folder of the classifier; run the same command again to resume after a stop"""
    license: str | None = None
    """licence named in the model card"""

    @property
    def cache_folder(self) -> Path:
        """Where decoded images and the teacher's logits are kept."""
        return self.cache or self.out / "cache"


@dataclass(frozen=True, kw_only=True)
class TeacherViewOptions(TeacherOptions):
    """What the teacher sees."""

    teacher_mode: Literal["cached", "live"] = "cached"
    """score fixed views once, or each student view"""
    teacher_views: int = 0
    """cached: views per image that teacher and student share; 0: the centre, views free"""


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(ViewOptions):
    """Loss: w CE + (1 - w) (w_l KD of labelled images + w_u KD of unlabelled ones), each a mean over images."""

    form: Form = "dual-head"
    """dual-head, or a baseline; of sskd's and dhkd's two heads the CE head alone is used"""
    label_weight: float = 0.5
    """w in w CE + (1 - w) KD; the paper's lambda"""
    labeled_kd_weight: float = 1.0
    """w_l: of KD on labelled images"""
    unlabeled_kd_weight: float = 1.0
    """w_u: of KD on unlabelled images (fixmatch: of pseudo-labels)"""
    temperature: float = 2.0
    """of KD's softmax"""
    feature_loss: FeatureLoss = "cosine"
    """feature-kd: 1 - cosine of the features, or their mean squared error"""
    threshold: float = 0.95
    """fixmatch: how sure a pseudo-label must be"""
    forward: Literal["concatenated", "separate"] = "concatenated"
    """whether batch norms see labelled and unlabelled images together"""
    unlabeled_per_label: int = 1
    """unlabelled images per labelled image in a batch"""
    include_labeled: bool = False
    """the unlabelled stream has the labelled images too"""
    strong_augmentation: bool = False
    """colour and cut-out on the student's views"""
    gradient_cosine_every: int = 0
    """batches between logs of the cosine of CE's and KD's gradients; 0: never"""

    def __post_init__(self) -> None:
        """Check the weights."""
        super().__post_init__()
        self.refuse_below(0, "unlabeled_per_label", "gradient_cosine_every", "threshold")
        self.refuse_zero("temperature")
        if not 0.0 <= self.label_weight <= 1.0:
            raise UserError(f"label_weight is {self.label_weight}; expected a share in [0, 1]")
        if min(self.labeled_kd_weight, self.unlabeled_kd_weight) < 0:
            raise UserError(f"KD weights are {self.labeled_kd_weight} and {self.unlabeled_kd_weight}; expected 0 or more")
        if self.strong_augmentation and self.form == "fixmatch":
            raise UserError("fixmatch has a strong view of its own; leave strong_augmentation out")
        if self.feature_loss != "cosine" and self.form != "feature-kd":
            raise UserError(f"feature_loss is {self.feature_loss} and the form {self.form}; --feature-loss is for --form feature-kd")

    @property
    def needs_teacher(self) -> bool:
        """Whether the form learns from a teacher."""
        return self.form not in ("ce-only", "fixmatch")

    @property
    def has_two_heads(self) -> bool:
        """Whether labels and teacher have a head each."""
        return self.form in ("dual-head", "sskd", "dhkd")


@dataclass(frozen=True, kw_only=True)
class TrainClassifierOptions(StudentOptions, TeacherViewOptions, ClassifierRunOptions, ObjectiveOptions, TrainerOptions):
    """Options of ``mmalign classifier train``."""

    ema_decay: float | None = None
    """save a moving average of the weights, such as 0.999"""
    learning_rate: float = 1e-3
    """peak learning rate"""
    weight_decay: float = 1e-2
    """AdamW's weight decay"""
    warmup_ratio: float = 0.0
    """share of the steps over which the learning rate rises"""
    batch_size: int = 64
    """labelled images per device and micro-batch"""
    max_steps: int = 2000
    """optimiser steps; both streams are endless"""

    def __post_init__(self) -> None:
        """Refuse gradients of what does not train."""
        super().__post_init__()
        self.refuse_below(0, "teacher_views")
        self.refuse_outside(0, 1, "ema_decay")
        if self.freeze_backbone and (self.form == "pcgrad" or self.gradient_cosine_every):
            what = "form pcgrad" if self.form == "pcgrad" else "gradient_cosine_every"
            raise UserError(f"{what} is about gradients in the backbone, and freeze_backbone has none there; leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class ScoredImages(Options):
    """A trained classifier, and images to run it on."""

    model: Path = field(metadata={"positional": True})
    """classifier folder"""
    data: Path
    """images with classes, as classifier train takes them"""
    set: SetName | None = None
    """one of CoOp's ten sets below --data"""
    label_column: str | None = None
    """parquet, save_to_disk: the column of classes; the first ClassLabel if not given"""
    split: Split
    """which part of the data"""
    cache: Path = Path("runs/images")
    """folder of decoded images"""
    batch_size: int = 256
    """images per batch"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "batch_size")


@dataclass(frozen=True, kw_only=True)
class EvaluateClassifierOptions(ScoredImages):
    """Options of ``mmalign classifier evaluate``."""

    split: Split = "test"
    """which part of the data"""
    teacher_logits: Path | None = None
    """file of the teacher's logits, to be scored beside the heads"""
    class_map: Path | None = None
    """JSON, CSV or lines 'theirs ours': what the classifier calls the data's classes, where those are some of its own (ImageNet-R, -A)"""
    shifted_data: list[Path] = field(default_factory=list)
    """other sets of the same classes (ImageNet-V2, -Sketch, -R, -A), each scored among the classes that it has"""
    foreign_data: list[Path] = field(default_factory=list)
    """sets of none of the classes, or folders of images: AUROC and FPR at 95% of telling them by the largest probability"""
    out: Path | None = None
    """JSON file of the result"""


@dataclass(frozen=True, kw_only=True)
class TuneMixingOptions(ScoredImages):
    """Options of ``mmalign classifier tune``."""

    split: Split = "validation"
    """which part of the data; test is refused"""


@dataclass(frozen=True, kw_only=True)
class ExportClassifierOptions(Options):
    """Options of ``mmalign classifier export``."""

    model: Path = field(metadata={"positional": True})
    """classifier folder"""
    out: Path
    """file to write"""
    format: ExportFormat = "torch"
    """torch: a torch.export program; onnx needs mmalign[onnx]"""

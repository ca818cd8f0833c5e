"""Training a denoiser: on pictures with captions, and on preferences between pictures.

Shape legend: B = rows, R = images in the batch, ... = channels, height and width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn

from mmalign.data.datasets import add_columns
from mmalign.denoisers.draws import Draws, draw_rows
from mmalign.denoisers.inversion import build_grid, invert, inverted_noise
from mmalign.denoisers.losses import log_ratio
from mmalign.denoisers.model import Conditions, Denoiser
from mmalign.denoisers.objectives import BETAS, PATH_BETAS, RANK_OBJECTIVES, list_loss, pair_loss, parse_pair_objective
from mmalign.denoisers.pipeline import TextToImage
from mmalign.denoisers.rows import LIST_COLUMNS, PAIR_COLUMNS, PICTURE_COLUMNS, PictureRow, read_number, read_pictures
from mmalign.engine.logps import unwrap_parallel
from mmalign.errors import UserError
from mmalign.losses.pair_kernel import PairValues
from mmalign.models.eval_mode import eval_mode
from mmalign.models.references import Reference
from mmalign.options.denoisers import DenoiserOptions, ImagePreferenceOptions, TrainDenoiserOptions
from mmalign.training.method import Method, MethodOutput, Sum
from mmalign.training.processes import mean_over_processes

ROW = "row_number"


class PictureMethod(Method):
    """What training on pictures shares: reading rows, drawing noise, encoding."""

    start_rows = 0
    columns: Sequence[str] = PICTURE_COLUMNS
    num_columns: Sequence[str] = ()
    """Columns of numbers that the objective reads."""
    least: float = -math.inf
    """The smallest that they may hold."""

    def __init__(self, source: TextToImage, options: DenoiserOptions) -> None:
        """Keep the parts.

        Raises:
            ValueError: If the resolution does not fit the denoiser's cells.
        """
        self.source, self.seed, self.image_root = source, options.seed, options.image_root
        self.side = source.choose_side(options.resolution)

    def read(self, raw: Mapping[str, Any]) -> PictureRow:
        """Decode a row."""
        form = self.columns[: len(self.columns) - len(self.num_columns)]
        return read_pictures(raw, form, side=self.side, image_root=self.image_root)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Decode the row."""
        self.read(raw)
        for name in self.num_columns:
            read_number(raw, name, least=self.least)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Number the rows, whose noise is drawn by their number."""
        self.source.tell_cut(dataset["caption"][:])
        return add_columns(dataset, {ROW: range(len(dataset))})

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> None:
        """Move what encodes to the model's device.

        Raises:
            ValueError: If weights are sharded.
        """
        if AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("denoisers are saved from whole weights; train them with plain data parallelism, without FSDP and DeepSpeed")
        self.source.to(next(model.parameters()).device)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Captions, their pictures one behind the other, and the numbers of the rows."""
        read = [self.read(row) for row in rows]
        return {
            "captions": [row.caption for row in read],
            "pixels": torch.stack([pixels for row in read for pixels in row.pixels]),
            "counts": torch.tensor([len(row.pixels) for row in read]),
            "rows": torch.tensor([row[ROW] for row in rows]),
            "numbers": {name: torch.tensor([read_number(row, name) for row in rows]) for name in self.num_columns},
            "scores": torch.tensor([score for row in read for score in row.scores]),
        }

    def draw(self, batch: Mapping[str, Any], images: Tensor, *, step: int, num_times: int) -> Draws:
        """Draw of each row, for all of its pictures alike."""
        drawn = draw_rows(batch["rows"].tolist(), step=step, seed=self.seed, shape=images.shape[1:], num_times=num_times)
        counts = batch["counts"].to(drawn.times.device)
        return Draws(*(values.repeat_interleave(counts, 0).to(images.device) for values in drawn))

    def show(self, captions: Sequence[str], batch: Mapping[str, Any], *, side: int | None = None) -> Conditions:
        """Tell the denoiser of each picture's caption, and of its side, the run's if not given."""
        each = [caption for caption, count in zip(captions, batch["counts"].tolist(), strict=True) for _ in range(count)]
        return self.source.encode_captions(each, side=side or self.side, device=batch["rows"].device)

    def num_items(self, batch: dict[str, Any]) -> int:
        """Rows."""
        return len(batch["counts"])


class DenoiserMethod(PictureMethod):
    """The squared error of pictures that their captions belong to."""

    name = "denoiser"
    summary = "a text-to-image pipeline, its denoiser trained on pictures with captions"
    intended_use = "To make pictures from captions, and as a start for preference training."

    def __init__(self, source: TextToImage, options: TrainDenoiserOptions) -> None:
        """Keep the parts."""
        super().__init__(source, options)
        self.caption_dropout = options.caption_dropout

    def complete(self, model: nn.Module, batch: dict[str, Any], *, step: int) -> dict[str, Any]:
        """Encode, and draw noise, times and the captions that are left out."""
        images = self.source.encode_images(batch["pixels"])
        draws = self.draw(batch, images, step=step, num_times=len(_bare(model).alphas_cumprod))
        shown = zip(batch["captions"], draws.chance.tolist(), strict=True)
        captions = ["" if chance < self.caption_dropout else caption for caption, chance in shown]
        drawn = {"images": images, "noise": draws.noise, "times": draws.times, "conditions": self.show(captions, batch)}
        return {"inputs": drawn, "counts": batch["counts"]}

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the pictures' errors."""
        losses = model(**batch["inputs"])
        metrics = {"error/policy": _sum(losses)}
        share = _bare(model).share
        if share is not None:
            metrics["denoiser/share"] = Sum(share.detach(), 1.0)
        return MethodOutput(losses.sum(), metrics)


class ImagePreferenceMethod(PictureMethod):
    """Objectives of text on an image's log-ratio, -(policy's error - reference's error) at the same time and noise."""

    name = "image-preference"
    summary = "a text-to-image pipeline, its denoiser trained on preferences between pictures"
    intended_use = "To make pictures from captions."

    def __init__(self, source: TextToImage, options: ImagePreferenceOptions, *, policy: nn.Module, reference: Denoiser | None) -> None:
        """Keep the parts.

        Args:
            source: Of the policy.
            options: Of the run.
            policy: What trains: a denoiser, perhaps with an adapter.
            reference: Another pipeline's denoiser; None: the policy without its adapter, or a copy.

        Raises:
            ValueError: If the objective is none of images.
        """
        super().__init__(source, options)
        self.options = options
        own = "adapter-off" if options.lora_rank and reference is None else "copy"
        self.reference = Reference(policy, kind=own, model=reference)  # type: ignore[arg-type]
        if options.lists:
            self.ranking, self.columns = RANK_OBJECTIVES.parse(options.objective, beta=options.beta), LIST_COLUMNS
            return
        betas = PATH_BETAS if options.noise == "path" else BETAS
        self.pairs = parse_pair_objective(options.objective, beta=options.beta, betas=betas)
        self.num_columns, self.least = self.pairs.objective.columns, self.pairs.objective.least
        self.columns = (*PAIR_COLUMNS, *self.num_columns)

    def complete(self, model: nn.Module, batch: dict[str, Any], *, step: int) -> dict[str, Any]:
        """Encode, and draw or invert noise."""
        policy = _bare(model)
        images, conditions = self.source.encode_images(batch["pixels"]), self.show(batch["captions"], batch)
        if self.options.noise == "random":
            draws = self.draw(batch, images, step=step, num_times=len(policy.alphas_cumprod))
            noise, times = draws.noise, draws.times
        else:
            draws = self.draw(batch, images, step=step, num_times=self.options.inversion_steps)
            noise, times = self._invert(policy, images, conditions, draws.times + 1)
        drawn = {"images": images, "noise": noise, "times": times, "conditions": conditions}
        return {"inputs": drawn, **{name: batch[name] for name in ("counts", "numbers", "scores")}}

    def _invert(self, policy: Denoiser, images: Tensor, conditions: Conditions, stops: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that the policy would make the images from, and the times that belong to it."""
        grid = build_grid(policy.alphas_cumprod, self.options.inversion_steps)

        def predict(current: Tensor, point: int) -> Tensor:
            times = torch.full((len(current),), int(grid.times[point]), device=current.device)
            return policy.predict_noise(current, times, conditions)

        with eval_mode(policy):
            noisy = invert(images, predict, grid, stops, renoise=self.options.noise == "renoise")
        times = grid.times.to(images.device)[stops]
        return inverted_noise(images, noisy, policy.levels(times)), times

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum of the rows' losses."""
        with self.reference.active(unwrap_parallel(model)) as frozen:
            reference = frozen(**batch["inputs"])
        policy = model(**batch["inputs"])
        ratios = log_ratio(policy, reference)
        metrics = {"error/policy": _sum(policy), "error/reference": _sum(reference)}
        if self.options.lists:
            losses = list_loss(self.ranking.objective, ratios, batch["scores"], batch["counts"])
            return MethodOutput(self.ranking.weight * losses.sum(), metrics)
        losses, rewards = pair_loss(self.pairs.objective, ratios, batch["numbers"], mean=mean_over_processes)
        loss = self.pairs.weight * losses.sum() + self.options.sft_weight * policy[0::2].sum()
        return MethodOutput(loss, metrics | _reward_metrics(rewards))


def _bare(model: nn.Module) -> Denoiser:
    found = unwrap_parallel(model)
    found = found.get_base_model() if isinstance(found, PeftModel) else found
    assert isinstance(found, Denoiser), type(found)
    return found


def _reward_metrics(rewards: PairValues) -> dict[str, Sum]:
    margin = rewards.chosen - rewards.rejected
    metrics = {"rewards/chosen": _sum(rewards.chosen), "rewards/rejected": _sum(rewards.rejected), "rewards/margin": _sum(margin)}
    return metrics | {"rewards/accuracy": _sum((margin > 0).float())}


def _sum(values: Tensor) -> Sum:
    return Sum(values.detach().float().sum(), float(len(values)))

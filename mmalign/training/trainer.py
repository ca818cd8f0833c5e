"""The one trainer: ``transformers.Trainer`` around a method."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin, Trainer
from transformers.trainer_utils import align_special_tokens

from mmalign.engine.logps import unwrap, unwrap_parallel
from mmalign.errors import UserError
from mmalign.files import open_to_readers
from mmalign.losses.doubles import widest_dtype
from mmalign.models.adapters import find_part
from mmalign.training.arguments import refused_fields
from mmalign.training.blank_image import BlankImage
from mmalign.training.method import Apart, Method
from mmalign.training.optimizers import set_own_rate
from mmalign.training.progress import show_progress
from mmalign.training.router import RouterLosses
from mmalign.training.sampler import EpochSampler

_REFUSES = "a field of trainer has a value that transformers.Trainer"
# What a weights file may lack without harm: tied copies of weights that it has.
_TIED = "lm_head.weight"


class MethodTrainer(Trainer):
    """Trains what a method computes.

    The loss of a step is the sum over all its items (tokens or pairs), on all processes and micro-batches, divided by their
    number: the same value however a batch is split.
    """

    def __init__(
        self,
        *args: Any,
        method: Method,
        router: RouterLosses | None = None,
        sampler: EpochSampler | None = None,
        projector_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Set up training.

        Args:
            args: Those of ``transformers.Trainer``.
            method: Whose rows the data set holds.
            router: What is added to the method's loss where the model is sparse.
            sampler: The rows' order, if not any.
            projector_learning_rate: The projector's own peak, if not that of all weights.
            kwargs: Those of ``transformers.Trainer``.

        Raises:
            ValueError: If two orders are asked for.
        """
        with refused_fields(_REFUSES):
            super().__init__(*args, data_collator=method.collate, **kwargs)
        if sampler is not None and self.args.train_sampling_strategy != "random":
            strategy = self.args.train_sampling_strategy
            raise UserError(f"trainer.train_sampling_strategy is {strategy!r}, and a curriculum is another order, as are --passes")
        show_progress(self)
        self._align_special_tokens()
        self.method = method
        self._router = router
        self._sampler = sampler
        self._projector_learning_rate = projector_learning_rate
        self.loss_is_scaled_for_ga = True
        self._sums: dict[str, Tensor] = {}
        self._blank = BlankImage(self.processing_class)
        if self._apart(None):
            # DDP looks for unused weights behind each forward pass, and those of one part are unused in the other's.
            self.accelerator.ddp_handler.find_unused_parameters = False
        self._keep_in_eval = modules_that_stay_in_eval(self.model)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and not plugin.transformer_cls_names_to_wrap:
            # A class's own list names layers of parts that this model may not have, such as CLIP's text tower, and FSDP stops at those.
            present = {type(module).__name__ for module in self.model.modules()}
            listed = getattr(self.model, "_no_split_modules", None) or ()
            plugin.transformer_cls_names_to_wrap = sorted(present & set(listed)) or None

    def _align_special_tokens(self) -> None:
        """Put the tokenizer's special tokens into the model's configs, as Trainer does when it trains.

        Many checkpoints are published with generation flags that have no effect, such as a temperature without sampling. transformers saves
        such a config as long as it is the loaded one, and Trainer's change would make every save an error.
        """
        config = getattr(self.model, "generation_config", None)
        if config is None or not isinstance(self.processing_class, ProcessorMixin):
            return
        align_special_tokens(self.model, self.processing_class)
        config._original_object_hash = hash(config)

    def get_batch_samples(self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device) -> Any:
        """Read a step's batches, complete them with the model, and count their items."""
        with self.accelerator.autocast():
            completed = (self.method.complete(self.model, batch, step=self.state.global_step) for batch in epoch_iterator)
            return super().get_batch_samples(completed, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        items = torch.tensor(sum(map(self.method.num_items, batch_samples)), device=device, dtype=torch.float32)
        return self.accelerator.reduce(items, reduction="sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return this process's part of the step's loss.

        Raises:
            FloatingPointError: If the loss is not finite; the batch is saved for a look.
        """
        for module in self._keep_in_eval:
            module.eval()
        # Not the policy alone, whose own forward pass accelerate wraps: the reference and the teacher run in the same precision.
        with self.accelerator.autocast(), self._reading_images(model, inputs) as zeros:
            output = self.method.compute(model, inputs) if self._router is None else self._router.compute(self.method, model, inputs)
        # A step without items (no response token in any of its rows) has loss 0, not 0 / 0.
        loss = sum(zeros, output.loss_sum) / torch.as_tensor(num_items_in_batch).clamp(min=1)
        if not torch.isfinite(loss):
            path = self._save_batch(inputs)
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step}; the batch is saved in {path}. "
                "Lower the learning rate, or look for damaged weights or data"
            )
        for key, metric in output.metrics.items():
            exact = widest_dtype(loss.device)
            pair = torch.stack([torch.as_tensor(value, device=loss.device, dtype=exact) for value in (metric.total, metric.count)])
            self._sums[key] = self._sums.get(key, 0) + pair
        # DDP averages gradients over processes, and the items were counted over all of them.
        return loss * self.accelerator.num_processes

    def _reading_images(self, model: nn.Module, inputs: dict[str, Any]) -> AbstractContextManager[list[Tensor]]:
        """Let the model read an image where it is sharded, and this process's batch has none and another's has."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled) or "images" not in inputs:
            return nullcontext([])
        shown = self.accelerator.reduce(torch.tensor(float(bool(inputs["images"])), device=self.args.device), reduction="sum")
        return nullcontext([]) if inputs["images"] or not shown else self._blank.read_by(unwrap(model))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self._sampler is None else self._sampler

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimiser, or take the one that was given, with learning rates of the projector's and the method's own."""
        with refused_fields(_REFUSES):
            optimizer = super().create_optimizer(model)
        for part in self._apart(model):
            if part.learning_rate_scale != 1.0:
                rate = self.args.learning_rate * part.learning_rate_scale
                set_own_rate(optimizer, part.parameters, learning_rate=rate, option=part.option)
        if self._projector_learning_rate is not None:
            projector = find_part(unwrap(self.model if model is None else model), "projector")
            set_own_rate(optimizer, projector.parameters(), learning_rate=self._projector_learning_rate, option="--projector-learning-rate")
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule of the learning rate."""
        with refused_fields(f"trainer.lr_scheduler_kwargs is {self.args.lr_scheduler_kwargs}, which the schedule"):
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            # A value of another type is first used behind the warm-up.
            for factor in getattr(scheduler, "lr_lambdas", ()):
                factor(num_training_steps - 1)
        return scheduler

    def get_train_dataloader(self) -> Any:
        """Make what loads the rows."""
        with refused_fields(_REFUSES):
            return super().get_train_dataloader()

    def _apart(self, model: nn.Module | None) -> Sequence[Apart]:
        return self.method.apart(unwrap_parallel(self.model if model is None else model))

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        parts = self._apart(model)
        if not parts:
            return super()._clip_grad_norm(model)
        # Clips nothing: it takes the scale of float16 off, and says how large all gradients are together.
        norm = self.accelerator.clip_grad_norm_(model.parameters(), math.inf)
        for part in parts:
            nn.utils.clip_grad_norm_(part.parameters, self.args.max_grad_norm)
        return norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Of several adapters transformers lets only the first go on training.
        for weight in trained:
            weight.requires_grad_(True)

    def _get_learning_rate(self) -> float:
        # Asked for before the scheduler moves on: the rate that the step was taken with.
        self._projector_rate = self.optimizer.param_groups[-1]["lr"]
        return super()._get_learning_rate()

    def _run_epoch(self, **kwargs: Any) -> None:
        # Not left to the loader: of several processes that resume inside an epoch, its wrappers hide the sampler.
        if self._sampler is not None:
            self._sampler.set_epoch(kwargs["epoch"])
        # A run that was stopped behind its last checkpoint has no step left, and Trainer would take one more before it looks.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the method's metrics since the last log, averaged over processes, and the projector's learning rate."""
        if "learning_rate" in logs and self._projector_learning_rate is not None:
            logs["projector_learning_rate"] = self._projector_rate
        # The trainer's last log is of the run, not of a step, and "train_loss" is not stable over a resume.
        if "loss" in logs and self._sums:
            keys = sorted(self._sums)
            totals = self.accelerator.reduce(torch.stack([self._sums[key] for key in keys]), reduction="sum")
            logs |= {key: (total / count).item() for key, (total, count) in zip(keys, totals, strict=True) if count > 0}
            self._sums = {}
        super().log(logs, start_time)

    def gather_weights(self) -> dict[str, Tensor] | None:
        """Collect sharded weights on the main process, for saving; every process must call it. None where none are sharded."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        return self._leave_out_copies(self.accelerator.get_state_dict(self.model_wrapped))

    def _leave_out_copies(self, weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Drop tied weights: gathered from parts they no longer share memory, which is how saving knows them."""
        model = self.accelerator.unwrap_model(self.model)
        if weights and isinstance(model, PreTrainedModel):
            return {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}
        return weights

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Old checkpoints are deleted by the ManifestCallback, once this one's manifest says that it is whole.
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            # A full disk has a face of its own in each library.
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            raise OSError(
                f"{folder} can't be saved: {error}. Free space or fix the folder, and run the same command again: it resumes from "
                "the checkpoint before"
            ) from error
        finally:
            self.args.save_total_limit = keep
        # The manifest covers what every process wrote.
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        self._save_in_memory_layout(output_dir, state_dict)
        # A pickle of arbitrary classes, never read on resume, that also holds the hub's token where one was given.
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        open_to_readers(folder)

    def _save_in_memory_layout(self, output_dir: str | None, state_dict: dict[str, Tensor] | None) -> None:
        # Checkpoints keep the layout that the weights have in memory: Trainer's resume compares names with it, and in the
        # legacy layout that save_pretrained writes for LLaVA not one name would match.
        model = self.model
        if not isinstance(model, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        state_dict = self._leave_out_copies(state_dict)
        original = model.save_pretrained
        model.save_pretrained = lambda *args, **kwargs: original(*args, **{**kwargs, "save_original_format": False})
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [key for key in load_result.missing_keys if not key.endswith(_TIED)]
        if missing or load_result.unexpected_keys:
            raise UserError(
                f"the checkpoint does not fit the model: {len(missing)} weights are missing (first: {missing[:1]}) and "
                f"{len(load_result.unexpected_keys)} are unknown (first: {load_result.unexpected_keys[:1]})"
            )
        if isinstance(self.model, PreTrainedModel):
            self.model.tie_weights()

    def _save_batch(self, inputs: dict[str, Any]) -> Path:
        path = Path(self.args.output_dir) / f"bad_batch_step{self.state.global_step}_rank{self.args.process_index}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_flatten(inputs), path)
        return path


def modules_that_stay_in_eval(model: nn.Module) -> list[nn.Module]:
    """Find modules that training mode would change although nothing in them learns: batch norms of frozen parts.

    ``train()`` makes them normalise by the batch and overwrite their running statistics, and the features move for good.
    """
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in module.parameters())
    ]


def _flatten(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a batch by their paths; what a method keeps beside them is its own."""
    if isinstance(value, Tensor):
        return {prefix: value.detach().cpu().contiguous()}
    if not isinstance(value, Mapping):
        return {}
    return {name: tensor for key, item in value.items() for name, tensor in _flatten(item, f"{prefix}.{key}".strip(".")).items()}

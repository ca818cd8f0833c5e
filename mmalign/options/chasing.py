"""Two adapters that chase each other."""

from dataclasses import dataclass

from mmalign.errors import UserError
from mmalign.options.training import ReferencedOptions


@dataclass(frozen=True, kw_only=True)
class ChasingOptions(ReferencedOptions):
    """A fast and a slow adapter on one frozen base (OFS-DPO)."""

    chasing: bool = False
    """train two LoRA adapters that chase each other, one slower than the other; OUT is the one that leads in the end, OUT/slow the other"""
    chasing_weight: float = 0.1
    """paid to the leading adapter for its lead, and to the other for catching up"""
    chasing_steps: int = 10
    """steps after which the adapter with the lower mean loss takes the lead"""
    chasing_rate: float = 0.1
    """learning rate of the slow adapter as a share of the fast one's"""

    def __post_init__(self) -> None:
        """Refuse what makes no two adapters, and numbers that would not be used."""
        super().__post_init__()
        if self.chasing:
            self._check_chasing()
        given = self.changed(*_NUMBERS)
        if given and not self.chasing:
            raise UserError(f"{given[0]} is {getattr(self, given[0])}, and only one adapter trains; add --chasing, or leave it out")

    def _check_chasing(self) -> None:
        self.refuse_below(0, "chasing_weight")
        self.refuse_below(1, "chasing_steps")
        if not 0 < self.chasing_rate <= 1:
            raise UserError(f"chasing_rate is {self.chasing_rate}; expected a share of the learning rate above 0, 1 at most, such as 0.1")
        if self.lora_rank == 0:
            raise UserError("--chasing trains two LoRA adapters on a frozen base; set --lora-rank")
        own = {
            "--reference-update": self.moving is not None,
            "--reference-model": self.reference_model is not None,
            "--reference-quantization": self.reference_quantization is not None,
            f"--reference {self.reference}": self.reference not in ("auto", "adapter-off"),
        }
        if others := [name for name, given in own.items() if given]:
            raise UserError(f"the reference of --chasing is the model with both adapters off; leave {others[0]} out")
        if self.train_projector:
            raise UserError("--chasing trains adapters alone, which see the same image features; leave --train-projector out")
        if self.gradient_checkpointing or self.trainer.get("gradient_checkpointing"):
            raise UserError(
                "--gradient-checkpointing computes activations again when the other adapter is on; leave it out with --chasing, "
                "and take a smaller --batch-size with more --gradient-accumulation-steps"
            )


_NUMBERS = ("chasing_weight", "chasing_steps", "chasing_rate")

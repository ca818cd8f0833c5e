"""Several LoRA adapters of one base: their weighted sum while it is looked for, and as one adapter in the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from mmalign.errors import UserError
from mmalign.models.load import check_exists, find_base, load_mllm, put_adapter, read_adapter_config
from mmalign.options.precision import Dtype, Quantization

_COMBINED = "default"
"""PEFT's name of an adapter that is saved in the folder itself."""


class Combination:
    """A base model with several adapters, whose sum is weighted by one number each."""

    def __init__(self, sources: Sequence[str], *, dtype: Dtype = "auto", quantization: Quantization = "none") -> None:
        """Load the base and the adapters on it.

        Args:
            sources: Folders of the adapters, two or more.
            dtype: Precision of the base's weights.
            quantization: How the base was held in training.

        Raises:
            ValueError: If one is no LoRA adapter of matrices alone, or they are of several bases.
        """
        base = _common_base(sources)
        model, _ = load_mllm(base, dtype=dtype, quantization=quantization)
        self.names = [f"source_{number:03d}" for number in range(len(sources))]
        for name, source in zip(self.names, sources, strict=True):
            model = put_adapter(model, source, name=name)
        assert isinstance(model, PeftModel)
        self.model = model
        self.model.base_model.set_adapter(self.names, inference_mode=True)
        self.model.eval()

    def weigh(self, weights: Sequence[float]) -> None:
        """Compute with base + sum of weight * adapter from here on."""
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                for name, weight in zip(self.names, weights, strict=True):
                    layer.set_scale(name, weight)

    def save(self, out: Path, weights: Sequence[float]) -> None:
        """Write the weighted sum as one adapter: its matrices are those of all, side by side, and its rank is the sum of theirs.

        Raises:
            ValueError: If they name the layers that they are on in forms that don't go together.
        """
        self.weigh([1.0] * len(self.names))
        tuner: Any = self.model.base_model
        try:
            tuner.add_weighted_adapter(self.names, list(weights), _COMBINED, combination_type="cat")
        except ValueError as error:
            raise UserError(f"the adapters can't be joined to one: {error}") from error
        # PEFT takes the first adapter's form of scale along, and means a scale of 1.
        self.model.peft_config[_COMBINED].use_rslora = False
        self.model.save_pretrained(out, selected_adapters=[_COMBINED])
        # PEFT's card has nothing but headings to fill in, and publish would send it.
        (out / "README.md").unlink(missing_ok=True)


def _common_base(sources: Sequence[str]) -> str:
    bases = {}
    for source in sources:
        check_exists(source, "adapter_config.json")
        config = read_adapter_config(source)
        if not isinstance(config, LoraConfig) or config.modules_to_save or config.use_dora or config.bias != "none":
            raise UserError(f"{source} is not made of LoRA matrices alone (--train-projector adds a whole projector), and has no exact sum")
        bases[source] = find_base(source)
    first, *others = bases.items()
    for source, base in others:
        if base != first[1]:
            raise UserError(f"{source} is an adapter of {base}, and {first[0]} one of {first[1]}; only adapters of one base add up")
    return first[1]

"""The forward pass that everything scores with: token log-probabilities of responses.

Shape legend: B = rows, N = row length, K = scored tokens, R = responses, D = hidden width, V = vocabulary.
"""

import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import ChameleonForConditionalGeneration, PreTrainedModel

from mmalign.engine.attention import RowLayout, row_layout, use_shared_attention
from mmalign.engine.divergence import Head, TeacherStates, linear_divergence
from mmalign.engine.head import LogitTransform, linear_token_logits, linear_token_logps
from mmalign.engine.pictures import picture_rows
from mmalign.engine.positions import find_positions
from mmalign.engine.vision import ImageFeatures, encode_images, feature_inputs, image_inputs
from mmalign.errors import UserError
from mmalign.losses.scores import Logps, ScoredTokens
from mmalign.models.picture_families import PictureHead
from mmalign.models.picture_tokens import PictureTokens, find_picture_tokens
from mmalign.options.methods import DivergenceOptions


@dataclass(frozen=True, kw_only=True)
class ResponseLogps(Logps):
    """Log-probabilities of every scored token of a batch, as the losses take them; responses in the order of the batch."""

    token_logps: Tensor
    """(K,) float32."""
    scored: ScoredTokens
    states: Tensor | None = None
    """(K, D) as the output head reads them, at the positions that predict the tokens; None where they were not asked for."""
    divergence: Tensor | None = None
    """(K,) KL(another model, this one) over all words, in nats; None where there is no other."""

    def per_response(self) -> list[Tensor]:
        """Token log-probabilities of each response, a list of R one-dimensional tensors."""
        return self.scored.split(self.token_logps)


def compute_response_logps(
    model: nn.Module,
    batch: dict[str, Any],
    *,
    features: ImageFeatures | None = None,
    keep_states: bool = False,
    keep_logits: bool = False,
    against: TeacherStates | None = None,
) -> ResponseLogps:
    """Compute log p of every scored response token in one forward pass.

    The output head is applied to the scored positions only, inside the model's own forward, so that wrappers
    (DDP, FSDP, autocast) see the usual call and a complete graph.

    Args:
        model: A multimodal LLM, possibly wrapped by PEFT, DDP or FSDP.
        batch: From ``collate_prompts``.
        features: The batch's images, encoded before; None encodes them here.
        keep_states: Keep the last hidden states at the scored positions.
        keep_logits: Keep the scored tokens' own logits.
        against: Compute KL(it, model) of each scored token too: another model of the same words; see ``states_of``.

    Returns:
        The log-probabilities, states, logits and divergences, with gradient where grad mode is on.
    """
    layout = batch["layout"]
    pictures = drawing_of(model, layout)
    targets = layout["target"] if pictures is None else layout["target"] - pictures.first
    states: list[Tensor] = []

    def score(hidden: Tensor, head: OutputHead, transform: LogitTransform) -> Tensor:
        scored, target = hidden.index_select(0, layout["index"]), targets
        if keep_states:
            states.append(scored)
        found = [linear_token_logps(scored, head.weight, head.bias, target, scale=transform.scale, softcap=transform.softcap)]
        if keep_logits:
            found.append(linear_token_logits(scored, head.weight, head.bias, target, transform))
        if against is not None:
            found.append(linear_divergence(scored, Head(head.weight, head.bias, transform), against, _FORWARD_KL))
        return torch.stack(found)

    token_logps, *rest = run_with_head(model, batch, score, features=features).unbind()
    scored = ScoredTokens(layout["response"], int(layout["repeats"].sum()), layout["target"])
    return ResponseLogps(
        sums=scored.sums(token_logps),
        token_logps=token_logps,
        token_logits=rest[0] if keep_logits else None,
        scored=scored,
        states=states[-1] if states else None,
        divergence=rest[-1] if against is not None else None,
    )


_FORWARD_KL = DivergenceOptions()


def states_of(model: nn.Module, logps: ResponseLogps, layout: Mapping[str, Any]) -> TeacherStates:
    """What another model is compared with: the states that ``compute_response_logps`` kept, and the head that reads them."""
    pictures = drawing_of(model, layout)
    head = read_head(model) if pictures is None else Head(*pictures.head)
    assert logps.states is not None, "they are kept where somebody asks"
    return TeacherStates(logps.states.to(head.weight.dtype), head)


def drawing_of(model: nn.Module, layout: Mapping[str, Any]) -> PictureTokens | None:
    """How the model draws, where a batch's responses are pictures; None where they are words."""
    return find_picture_tokens(unwrap(model)) if "pictures" in layout else None


def read_head(model: nn.Module) -> Head:
    """Take a model's output head; its weights are shared, not copied."""
    inner = unwrap(model)
    linear: Any = inner.get_output_embeddings()
    return Head(linear.weight, linear.bias, find_transform(inner))


OutputHead = nn.Linear | PictureHead

HeadFunction = Callable[[Tensor, OutputHead, LogitTransform], Tensor]
"""From the last hidden states (B * N, D), the output head, and what the model does to logits behind it, to any tensor."""


def run_with_head(model: nn.Module, batch: dict[str, Any], compute: HeadFunction, *, features: ImageFeatures | None = None) -> Tensor:
    """Run the model on a batch with ``compute`` in place of its output head.

    Args:
        model: A multimodal LLM, possibly wrapped by PEFT, DDP or FSDP.
        batch: From ``collate_prompts``.
        compute: Called once, inside the model's own forward.
        features: The batch's images, encoded before; None encodes them here.

    Returns:
        What ``compute`` returned, in float32.

    Raises:
        ValueError: If the output head is no plain linear layer.
    """
    layout = batch["layout"]
    inner = unwrap(model)
    inputs = {key: value for key, value in batch.items() if key not in ("layout", "images")}
    one_response_a_row = len(inputs["input_ids"]) == int(layout["repeats"].sum())
    with ExitStack() as stack:
        if not one_response_a_row:
            use_shared_attention(inner)
            stack.enter_context(row_layout(RowLayout(layout["prompt"], layout["segment"], layout["plain_index"])))
        pictures = drawing_of(inner, layout)
        transform = stack.enter_context(_replaced_head(inner, compute, pictures))
        if pictures is not None:
            stack.enter_context(picture_rows(inner, pictures))
        positions = find_positions(inner, batch)
        repeats = None if bool(layout["shared"]) else layout["repeats"]
        if features is None and repeats is not None:
            features = encode_images(inner, batch)
        images = image_inputs(inner, batch) if features is None else feature_inputs(features, repeats)
        output = model(**inputs, **images, position_ids=positions, use_cache=False).logits
    if pictures is not None:
        output = output[0]
    # A scale that the model's forward puts on what the head returns is taken off again; inside the head it did its work.
    return output.float() if transform.scale == 1.0 else output.float() / transform.scale


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, FSDP or torch.compile; an adapter stays around it."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside wrappers, adapters included."""
    inner: Any = unwrap_parallel(model)
    if isinstance(inner, PeftModel):
        inner = inner.get_base_model()
    assert isinstance(inner, PreTrainedModel), type(inner)
    return inner


@contextmanager
def _replaced_head(model: PreTrainedModel, compute: HeadFunction, pictures: PictureTokens | None) -> Iterator[LogitTransform]:
    """Make the output head, or that of pictures in its place, return what ``compute`` does instead of logits, for one forward pass."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or hasattr(head, "base_layer"):
        raise UserError(
            f"the output head of {type(model).__name__} is a {type(head).__name__}; the engine needs a plain linear layer: "
            "leave lm_head out of the adapter's and the quantiser's modules, or join the adapter to its base with mmalign merge"
        )
    if pictures is None and isinstance(model, ChameleonForConditionalGeneration):
        raise UserError("ChameleonForConditionalGeneration bars picture tokens from its logits: its words can't be scored; use --pictures")
    text_config = model.config.get_text_config()
    transform = find_transform(model)

    def forward(hidden: Tensor) -> Tensor:
        if pictures is not None:
            # Three axes, as logits have them: see ``ChameleonPictures.unbarred``.
            return compute(pictures.read(hidden.flatten(0, 1)), pictures.head, LogitTransform())[None]
        return compute(hidden.flatten(0, 1), head, transform)

    head.forward = forward  # type: ignore[assignment,method-assign]
    if transform.softcap is not None:
        # The cap is applied to the logits, inside the head; the model must not apply it to log-probabilities as well.
        text_config.final_logit_softcapping = None
    try:
        yield transform
    finally:
        del head.forward
        if transform.softcap is not None:
            text_config.final_logit_softcapping = transform.softcap


def find_transform(model: PreTrainedModel) -> LogitTransform:
    """Find what the model's forward does to its logits behind the head.

    A text config's value alone says nothing: Gemma-3's multimodal class has a cap and doesn't apply it, Cohere-2-Vision's a scale.
    """
    source = inspect.getsource(type(model).forward)
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None) if "final_logit_softcapping" in source else None
    scaled = re.search(r"([*/]) self\.((?:config\.text_config\.)?logits?_scal(?:e|ing))\b", source)
    if scaled is None:
        return LogitTransform(1.0, softcap)
    value = operator.attrgetter(scaled[2])(model)
    return LogitTransform(float(value if scaled[1] == "*" else 1 / value), softcap)

"""What every family must do, a function each: the cells of the support table in ``docs/families.md``.

    python -m tests.families.matrix --write

writes the table. ``test_matrix.py`` runs every cell on every family, and holds the page to the table.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor, PaliGemmaProcessor

from mmalign.data.encode import EncodedPrompt, encode_chat, encode_questions, encode_responses, encode_row
from mmalign.data.rows import Message, read_chat, read_pair
from mmalign.data.templates import describe_end, given_text, render
from mmalign.difficulty.generative import score_generative
from mmalign.engine.batch import collate_prompts
from mmalign.engine.generation import end_tokens, generate
from mmalign.engine.logps import compute_response_logps
from mmalign.engine.prefix import probe_prefix
from mmalign.engine.probe import own_logps, probe_rows
from mmalign.methods.mimic import MimicMethod
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.reward import RewardMethod
from mmalign.methods.sft import SupervisedMethod
from mmalign.methods.teachers import LiveTeacher
from mmalign.models.adapters import add_lora, load_merged
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import MimicLossOptions, PairLossOptions, RewardLossOptions
from mmalign.options.training import LoraOptions
from tests.engine.test_rewards import plain_reward
from tests.families.real_forms import REAL_FORMS, build_real_form
from tests.tiny_families import FAMILIES, PLAIN_PROMPTS
from tests.tiny_models import fill_adapter, pair_rows, random_image, random_text
from tests.written_pages import WrittenPart

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
PART = WrittenPart(PAGE, "<!-- the table begins: python -m tests.families.matrix --write -->", "<!-- the table ends -->")
# Own logits against the engine's: see tests/engine/test_families.py.
ATOL = 1e-5


@dataclass(frozen=True)
class Family:
    """A tiny model with its processor, and the folder that both are saved in."""

    name: str
    model: Any
    processor: Any
    folder: Path


def build(name: str, folder: Path) -> Family:
    """Build and save a family's tiny model."""
    model, processor = FAMILIES[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Family(name, model, processor, folder)


def chats(*, text_alone: bool = False) -> list[dict[str, Any]]:
    """An image, several images (one very wide, one very tall), two turns, and on request text alone."""
    images = [[random_image(0)], [random_image(1, (16, 300)), random_image(2, (300, 16))], [random_image(3)], *[[]] * text_alone]
    rows = []
    for i, shown in enumerate(images):
        messages = [{"role": "user", "content": [*[{"type": "image"}] * len(shown), {"type": "text", "text": random_text(i, 4)}]}]
        messages.append({"role": "assistant", "content": [{"type": "text", "text": random_text(100 + i, 3 + i)}]})
        if i == 2:
            messages.append({"role": "user", "content": [{"type": "text", "text": "what is on the table"}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": "a red star"}]})
        rows.append({"images": shown, "messages": messages})
    return rows


def pairs(count: int = 2) -> list[dict[str, Any]]:
    """Preference pairs as the method reads them."""
    added = {"difficulty_quartile": 0, "pair_beta_scale": 1.0, "pair_weight": 1.0}
    return [{**row, **added} for row in pair_rows(count)]


def encode_pairs(processor: Any, count: int = 2) -> list[EncodedPrompt]:
    """Tokenised pairs."""
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(count))]
    return [encode_responses(processor, images=r.images, prompt=r.prompt, responses=[r.chosen, r.rejected]) for r in rows]


def logps(model: nn.Module, processor: Any) -> Tensor:
    """Log-probabilities of the pairs, without gradient."""
    with torch.no_grad():
        return compute_response_logps(model, collate_prompts(encode_pairs(processor), pad_token_id=0, shared=False)).token_logps


def check_labels(family: Family) -> None:
    """The processor's own tokens of the whole conversation are prompt and response; the loss falls on the answers and nothing else."""
    for raw in chats():
        check_row_labels(family.processor, raw)


def check_row_labels(processor: Any, raw: dict[str, Any]) -> None:
    """One conversation's."""
    row = read_chat(raw, index=0)
    encoded = encode_chat(processor, row)
    text = given_text(processor, render(processor, row.messages, add_generation_prompt=False))
    options: dict[str, Any] = {"images": [row.images] if row.images else None, "return_tensors": "pt"}
    if isinstance(processor, PaliGemmaProcessor):
        # Prompt and response are two texts to it: it ends the first with a line break, and the second with the last token.
        prompt = render(processor, row.messages[:1], add_generation_prompt=True)
        inputs = processor(text=[prompt], suffix=[text.removeprefix(prompt).removesuffix("</s>")], **options)
    else:
        inputs = processor(text=[text], **options)
    assert [*encoded.prefix_ids, *encoded.responses[0]] == inputs["input_ids"][0].tolist()
    answers = [token for token, scored in zip(encoded.responses[0], encoded.scored[0], strict=True) if scored]
    said = [message["content"] for message in row.messages if message["role"] == "assistant"]
    texts = [content if isinstance(content, str) else content[0]["text"] for content in said]
    assert processor.tokenizer.decode(answers).split("</s>")[:-1] == [f" {text}" for text in texts]
    layout = collate_prompts([encoded], pad_token_id=0)["layout"]
    assert layout["target"].tolist() == answers


def check_sft(family: Family) -> None:
    """A batch of one image and several: its loss is that of plain forwards row by row, and a step lowers it."""
    check_rows(family, chats())


def check_text_rows(family: Family) -> None:
    """The same with a row without an image between the others."""
    rows = chats(text_alone=True)
    check_row_labels(family.processor, rows[-1])
    check_rows(family, [rows[0], rows[-1], *rows[1:-1]])


def check_rows(family: Family, rows: list[dict[str, Any]]) -> None:
    """Supervised training on these conversations in one batch."""
    model = copy.deepcopy(family.model)
    method = SupervisedMethod(family.processor)
    for i, row in enumerate(rows):
        method.check(row, index=i)
    with torch.no_grad():
        alone = [own_logps(model, encode_chat(family.processor, read_chat(row, index=0))) for row in rows]
    batch = method.collate(rows)
    loss = method.compute(model, batch).loss_sum
    torch.testing.assert_close(loss, -torch.cat([value for values in alone for value in values]).sum(), rtol=1e-5, atol=1e-4)
    check_step(model, lambda: method.compute(model, batch).loss_sum)


def check_step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """A small step against the gradient, which is finite, lowers the loss; how small, depends on the curvature."""
    before = loss()
    model.zero_grad()
    before.backward()
    training = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([parameter.grad.norm() for parameter in training]).norm()
    assert norm.isfinite()
    assert norm > 0
    start = [parameter.detach().clone() for parameter in training]
    with torch.no_grad():
        for length in (1e-3, 1e-4, 1e-5):
            for parameter, value in zip(training, start, strict=True):
                parameter.copy_(value - length / norm * parameter.grad)
            if loss() < before:
                return
    raise AssertionError(f"no step against the gradient lowers the loss of {before.item()}")


def check_dpo(family: Family) -> None:
    """The first loss is log 2, against a frozen copy of the same model."""
    model = copy.deepcopy(family.model)
    method = PreferenceMethod(family.processor, PairLossOptions(beta=0.5), reference=Reference(model, kind="copy"))
    rows = pairs()
    method.start(model, rows)
    batch = method.collate(rows)
    first = method.compute(model, batch).loss_sum / method.num_items(batch)
    torch.testing.assert_close(first, torch.tensor(2.0).log(), rtol=0, atol=1e-5)
    check_step(model, lambda: method.compute(model, batch).loss_sum)


def check_reward(family: Family) -> None:
    """A reward model's first loss is that of plain forwards, pair by pair, and a step lowers it."""
    model, wording = copy.deepcopy(family.model), RewardLossOptions(centering=0.0)
    method, rows = RewardMethod(family.processor, wording), pairs()
    method.start(model, rows)
    batch = method.collate(rows)
    plain = [read_pair(row, index=0) for row in rows]
    gaps = [
        plain_reward(model, family.processor, row, row.chosen, wording) - plain_reward(model, family.processor, row, row.rejected, wording)
        for row in plain
    ]
    loss = method.compute(model, batch).loss_sum
    torch.testing.assert_close(loss, -F.logsigmoid(torch.tensor(gaps)).sum(), rtol=0, atol=1e-4)
    check_step(model, lambda: method.compute(model, batch).loss_sum)


def check_distillation(family: Family) -> None:
    """Mimicking a teacher with other weights: KL of whole distributions on plain rows, by torch, and a step lowers it."""
    student, teacher = copy.deepcopy(family.model), copy.deepcopy(family.model)
    with torch.no_grad():
        for parameter in teacher.get_decoder().parameters():
            parameter.mul_(1.3)
    reference = Reference(student, kind="copy", model=teacher)
    live = LiveTeacher(reference, family.processor, student=student, student_processor=family.processor)
    method = MimicMethod(family.processor, MimicLossOptions(), teacher=live)
    rows = chats()
    method.start(student, rows)
    batch = method.collate(rows)
    with torch.no_grad():
        encoded = [encode_chat(family.processor, read_chat(row, index=0)) for row in rows]
        log_p, log_q = (torch.cat([own_logits(model, prompt) for prompt in encoded]).log_softmax(-1) for model in (teacher, student))
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    assert expected > 1e-3
    torch.testing.assert_close(method.compute(student, batch).loss_sum, expected, rtol=1e-4, atol=1e-4)
    check_step(student, lambda: method.compute(student, batch).loss_sum)


def own_logits(model: Any, prompt: EncodedPrompt) -> Tensor:
    """Logits that predict a conversation's scored tokens: the model's own forward on one unpadded row."""
    (response,), (scored,) = prompt.responses, prompt.scored
    ids = torch.tensor([[*prompt.prefix_ids, *response]])
    types = {key: torch.tensor([[*value, *prompt.response_types[0][key]]]) for key, value in prompt.token_types.items()}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **types, **prompt.images, use_cache=False).logits[0]
    start = len(prompt.prefix_ids) - 1
    return logits[[start + i for i, counted in enumerate(scored) if counted]]


def check_scoring(family: Family) -> None:
    """Difficulty scoring, in the rows that the probe chooses: the model's own log-probabilities."""
    encoded = encode_pairs(family.processor, 3)
    choice = probe_rows(family.model, encoded[:2], pad_token_id=0)
    scores = score_generative(family.model, encoded, pad_token_id=0, shared=choice.shared)
    for prompt, got in zip(encoded, scores, strict=True):
        for a, b in zip(got, own_logps(family.model, prompt), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=0, atol=ATOL)


def check_generation(family: Family) -> None:
    """Several questions on a wide image, and one without any: token by token those of plain ``generate``."""
    image = random_image(5, (24, 240))
    texts = ["is there a dog", "what do you see on the left of the table"]
    prompts = [[Message(role="user", content=[{"type": "image"}, {"type": "text", "text": text}])] for text in texts]
    encoded = [encode_questions(family.processor, images=[image], prompts=prompts)]
    choice = probe_prefix(family.model, encoded[0], pad_token_id=0)
    assert choice.shared == (family.name not in PLAIN_PROMPTS), choice.reason
    got = generate(family.model, encoded, max_new_tokens=5, pad_token_id=0, shared=choice.shared)
    for j, rest in enumerate(encoded[0].responses):
        ids = torch.tensor([[*encoded[0].prefix_ids, *rest]])
        types = {key: torch.tensor([[*value, *[0] * len(rest)]]) for key, value in encoded[0].token_types.items()}
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types, **encoded[0].images}
        new = family.model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        assert [answer.ids for answer in got[0][j]] == [new[: new.index(2)] if 2 in new else new]


def check_lora(family: Family) -> None:
    """Saved, loaded again and merged: the same numbers."""
    base, _ = load_mllm(str(family.folder))
    policy = fill_adapter(add_lora(base, LoraOptions(lora_rank=4, lora_alpha=8))).eval()
    expected = logps(policy, family.processor)
    assert (expected - logps(family.model, family.processor)).abs().max() > 1e-3
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        family.processor.save_pretrained(folder)
        loaded, processor = load_mllm(folder)
        assert torch.equal(logps(loaded, processor), expected)
        merged, _ = load_merged(folder)
        torch.testing.assert_close(logps(merged, processor), expected, rtol=0, atol=1e-4)
        merged.save_pretrained(f"{folder}/merged")
        plain = AutoModelForImageTextToText.from_pretrained(f"{folder}/merged")
        torch.testing.assert_close(logps(plain.eval(), processor), expected, rtol=0, atol=1e-4)


def check_saving(family: Family) -> None:
    """Plain transformers finds every weight, and the processor makes the same batch."""
    plain, loading = AutoModelForImageTextToText.from_pretrained(family.folder, output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    assert {path.suffix for path in family.folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    with safe_open(family.folder / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) > 10
    processor = AutoProcessor.from_pretrained(family.folder)
    assert torch.equal(logps(plain.eval(), processor), logps(family.model, family.processor))


def check_qlora(family: Family) -> None:
    """NF4 on the language model's linear layers alone; gradients of an adapter are those on what the 4 bits stand for."""
    base, _ = load_mllm(str(family.folder), quantization="nf4")
    inside = {id(module) for module in base.get_decoder().modules()}
    held = [module for module in base.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert held
    assert all(id(module) in inside for module in held)
    linear = [module for module in family.model.get_decoder().modules() if isinstance(module, nn.Linear)]
    assert len(held) == len(linear)
    logps(base, family.processor)  # in eval mode: the pass that packs weights on some CPUs
    got = lora_gradients(base, family.processor)
    exact, _ = load_mllm(str(family.folder), quantization="nf4")
    expected = lora_gradients(exact.dequantize(dtype=torch.float32), family.processor)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (got[name] - gradient).norm() < 1e-3 * gradient.norm(), name


def lora_gradients(base: Any, processor: Any) -> dict[str, Tensor]:
    """Gradients of an adapter in train mode."""
    policy = fill_adapter(add_lora(base, LoraOptions(lora_rank=2, lora_alpha=4))).train()
    sums = compute_response_logps(policy, collate_prompts(encode_pairs(processor), pad_token_id=0, shared=False)).sums
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def real_form(family: Family) -> Family:
    """The same family with its checkpoints' form of template and tokenizer."""
    return Family(family.name, *_build_real_form(family.name), family.folder)


@lru_cache(maxsize=1)
def _build_real_form(name: str) -> tuple[Any, Any]:
    return build_real_form(name)


def own_inputs(family: Family, messages: list[Any], images: list[Any]) -> dict[str, Tensor]:
    """A whole conversation as stock transformers tokenises it; where the template writes no end, the end token behind its last word."""
    processor, form = family.processor, REAL_FORMS[family.name]
    options = {"return_tensors": "pt"}
    if isinstance(processor, PaliGemmaProcessor):
        prompt, answer = render(processor, messages[:1], add_generation_prompt=True), messages[1]["content"][0]["text"]
        out = processor(text=[prompt], images=[images], suffix=[answer], **options)
        return {key: value for key, value in out.items() if key != "labels"}
    if form.writes_end:
        rest = iter(images)
        shown = [
            {**turn, "content": [{**part, "image": next(rest)} if part["type"] == "image" else part for part in turn["content"]]}
            for turn in messages
        ]
        return processor.apply_chat_template(shown, tokenize=True, return_dict=True, **options)
    text = processor.apply_chat_template(messages, tokenize=False)
    return processor(text=[text.removesuffix(" ") + "</s>"], images=[images] if images else None, **options)


def own_scores(family: Family, messages: list[Any], images: list[Any]) -> Tensor:
    """Log-probabilities of every token but the first, by the model's own forward on them."""
    inputs = own_inputs(family, messages, images)
    with torch.no_grad():
        logits = family.model(**inputs).logits[0, :-1].float()
    # Molmo-2's placeholders, which are never scored, lie behind the head's vocabulary.
    targets = inputs["input_ids"][0, 1:, None].clamp_max(logits.shape[-1] - 1)
    return logits.log_softmax(-1).gather(-1, targets)[:, 0]


def scored_of(encoded: EncodedPrompt, number: int, scores: Tensor) -> Tensor:
    """Those of a response's scored tokens, of the scores of a whole row."""
    start = len(encoded.prefix_ids) - 1
    return torch.stack([scores[start + i] for i, counted in enumerate(encoded.scored[number]) if counted])


def check_real_template(family: Family) -> None:
    """Tokens of pairs and chats are stock transformers', and scores are those of its own forward; what is scored is the answer."""
    family = real_form(family)
    form = REAL_FORMS[family.name]
    for raw in pair_rows(2):
        row = read_pair(raw, index=0)
        encoded = encode_row(family.processor, row)
        (got,) = score_generative(family.model, [encoded], pad_token_id=0, shared=False)
        for i, text in enumerate((row.chosen, row.rejected)):
            messages = [*row.prompt, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
            expected = own_inputs(family, messages, row.images)["input_ids"][0].tolist()
            assert [*encoded.prefix_ids, *encoded.responses[i]] == expected
            said = family.processor.tokenizer.decode(encoded.responses[i])
            # Words, and what a thinking template opens before them; then the end, once.
            assert said.replace("</think>", "").strip().startswith(text)
            assert said.strip().endswith("</s>" if not form.writes_end else form.ends)
            torch.testing.assert_close(got[i], scored_of(encoded, i, own_scores(family, messages, row.images)), rtol=0, atol=ATOL)
    ends = end_tokens(family.model)
    assert (describe_end(family.processor, ends, "token") is None) == form.writes_end


def check_two_images(family: Family) -> None:
    """Two pairs with two images each, no two of a size, in one batch: every answer's score is that of its own row."""
    family = real_form(family)
    sizes = ([(40, 32), (60, 30)], [(24, 48), (48, 24)])
    raws = pair_rows(2)
    for raw, shown in zip(raws, sizes, strict=True):
        raw["images"] = [random_image(7 + i, size) for i, size in enumerate(shown)]
    rows = [read_pair(raw, index=i) for i, raw in enumerate(raws)]
    encoded = [encode_row(family.processor, row) for row in rows]
    choice = probe_rows(family.model, encoded, pad_token_id=0)
    for shared in {choice.shared, False}:
        got = score_generative(family.model, encoded, pad_token_id=0, shared=shared)
        for row, prompt, pair in zip(rows, encoded, got, strict=True):
            for i, text in enumerate((row.chosen, row.rejected)):
                messages = [*row.prompt, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
                torch.testing.assert_close(pair[i], scored_of(prompt, i, own_scores(family, messages, row.images)), rtol=0, atol=ATOL)


def check_later_images(family: Family) -> None:
    """Images between words and in later turns stand where they were put; the batch's loss is that of plain forwards."""
    family = real_form(family)
    see = {"type": "image"}
    turns = [
        [{"type": "text", "text": "what is"}, see, {"type": "text", "text": "on the table"}],
        [{"type": "text", "text": "a red dog"}],
        [see, {"type": "text", "text": "is there a cat"}, see],
        [{"type": "text", "text": "no star"}],
    ]
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]
    raw = {"images": [random_image(0), random_image(1, (60, 30)), random_image(2, (24, 48))], "messages": messages}
    row = read_chat(raw, index=0)
    assert row.messages == messages
    rows = [raw, chats()[1]]
    method = SupervisedMethod(family.processor)
    expected = []
    for one in rows:
        chat = read_chat(one, index=0)
        encoded = encode_chat(family.processor, chat)
        assert [*encoded.prefix_ids, *encoded.responses[0]] == own_inputs(family, chat.messages, chat.images)["input_ids"][0].tolist()
        expected.append(scored_of(encoded, 0, own_scores(family, chat.messages, chat.images)))
    with torch.no_grad():
        loss = method.compute(family.model, method.collate(rows)).loss_sum
    torch.testing.assert_close(loss, -torch.cat(expected).sum(), rtol=1e-5, atol=1e-4)


CELLS: dict[str, Callable[[Family], None]] = {
    "labels": check_labels,
    "SFT": check_sft,
    "text only": check_text_rows,
    "DPO": check_dpo,
    "mimic": check_distillation,
    "reward": check_reward,
    "score": check_scoring,
    "generate": check_generation,
    "LoRA": check_lora,
    "save": check_saving,
    "QLoRA": check_qlora,
    "template": check_real_template,
    "two images": check_two_images,
    "later images": check_later_images,
}

_NO_TEXT_ALONE = "`images` are expected as arguments to a `PaliGemmaProcessor` instance"
_FIRST_PROMPT_ALONE = "an image stands behind the first answer; PaliGemma reads images of the first prompt alone"
_NO_SECOND_TURN = "PaliGemma has no second turn to ask about a response"
REFUSED: dict[tuple[str, str], str] = {
    ("paligemma", "text only"): _NO_TEXT_ALONE,
    ("paligemma2", "text only"): _NO_TEXT_ALONE,
    ("paligemma", "reward"): _NO_SECOND_TURN,
    ("paligemma2", "reward"): _NO_SECOND_TURN,
    ("paligemma", "later images"): _FIRST_PROMPT_ALONE,
    ("paligemma2", "later images"): _FIRST_PROMPT_ALONE,
}
"""What a family can't do, with the beginning of the reason that a user is given."""


def table() -> str:
    """Lay out what the tests hold every family to."""
    lines = [f"| family | class | {' | '.join(CELLS)} |", f"|---|---|{'---|' * len(CELLS)}"]
    notes: list[str] = []
    for name in FAMILIES:
        cells = []
        for cell in CELLS:
            reason = REFUSED.get((name, cell))
            if reason is not None and reason not in notes:
                notes.append(reason)
            cells.append("yes" if reason is None else f"no ({notes.index(reason) + 1})")
        model, _ = FAMILIES[name]()
        lines.append(f"| {name} | `{type(model).__name__}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]).rstrip()


if __name__ == "__main__":
    PART.run(table, __doc__)

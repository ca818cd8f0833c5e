"""The local judge: the answers of plain generate, from a causal and a multimodal LLM, cached by weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mmalign.evaluation.judges.choice import choose_judge
from mmalign.evaluation.judges.local import LocalJudge
from mmalign.options.judges import JudgeOptions
from tests.tiny_models import QWEN3, build_tokenizer, random_text

PROMPTS = [random_text(i, 2 + 3 * i) for i in range(5)]
TEMPLATE = (
    "{%- for message in messages -%}{{- '<s>USER: ' + message['content'] + ' ' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)


@pytest.fixture(scope="module")
def llm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "tiny-llm"
    torch.manual_seed(0)
    values = {key: value for key, value in QWEN3.items() if key != "model_type"}
    return save_llm(folder, Qwen3ForCausalLM(Qwen3Config(**values, pad_token_id=0, bos_token_id=1, eos_token_id=2)))


def save_llm(folder: Path, model: Any) -> Path:
    """With a template and weights that make answers differ."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIZES = {key: QWEN3[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")}
SIZES |= {"num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["windows", "states"])
def test_judges_whose_prompts_share_nothing_answer_the_same(kind: str, tmp_path: Path) -> None:
    """Sliding windows, of which a row's padding would move the edge; convolutions, whose state is no list of tokens."""
    torch.manual_seed(0)
    if kind == "windows":
        built: Any = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    else:
        built = Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False))
    folder = save_llm(tmp_path / kind, built)
    judge = LocalJudge(folder, cache=tmp_path / "c.jsonl", max_new_tokens=6, batch_size=3, dtype="float32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), build_tokenizer()
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(f"<s>USER: {prompt} ASSISTANT:", add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(out, skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    assert judge.ask(PROMPTS) == expected


def test_the_words_that_prompts_share_run_once(llm_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    judge = LocalJudge(llm_dir, cache=tmp_path / "c.jsonl", max_new_tokens=1, batch_size=5, dtype="float32")
    wording = random_text(9, 30)
    judge.ask([f"{wording} {prompt}" for prompt in PROMPTS[:1]])
    assert judge._loaded is not None
    hook = judge._loaded[0].model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    judge.ask([f"{wording} {prompt}" for prompt in PROMPTS])
    hook.remove()
    (rows, length), (questions, rest) = seen
    assert (rows, questions) == (1, 4), "one of the five is answered already"
    assert length > 30 > rest


@torch.no_grad()
def plain_answers(folder: Path, *, multimodal: bool) -> list[str]:
    if multimodal:
        model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        tokenizer, texts = processor.tokenizer, [f"USER: {prompt} ASSISTANT:" for prompt in PROMPTS]
    else:
        model, tokenizer = Qwen3ForCausalLM.from_pretrained(folder), build_tokenizer()
        texts = [f"<s>USER: {prompt} ASSISTANT:" for prompt in PROMPTS]
    answers = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(out, skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("kind", ["causal", "multimodal"])
def test_equals_plain_generate(kind: str, llm_dir: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    folder = llm_dir if kind == "causal" else tiny_llava_dir
    judge = LocalJudge(folder, cache=tmp_path / "c.jsonl", max_new_tokens=6, batch_size=2, dtype="float32")
    assert judge.name == folder.name
    expected = plain_answers(folder, multimodal=kind == "multimodal")
    assert len(set(expected)) > 1
    assert judge.ask(PROMPTS) == expected
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} == set(PROMPTS)


@pytest.mark.parametrize("kind", ["causal", "multimodal"])
def test_a_tokenizer_without_padding_answers_the_same(kind: str, llm_dir: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Many language models have no token for it."""
    whole, bare = llm_dir if kind == "causal" else tiny_llava_dir, tmp_path / "bare"
    shutil.copytree(whole, bare)
    values = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps({**values, "pad_token": None}))
    assert LocalJudge(bare, cache=tmp_path / "c.jsonl", max_new_tokens=6).ask(PROMPTS) == plain_answers(
        whole, multimodal=kind == "multimodal"
    )


def test_cached_answers_need_no_model(llm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "c.jsonl", "max_new_tokens": 4, "dtype": "float32"}
    first = LocalJudge(llm_dir, **options).ask(PROMPTS[:3])
    asked: list[str] = []
    answer = LocalJudge._answer
    monkeypatch.setattr(LocalJudge, "_answer", lambda self, prompts: asked.extend(prompts) or answer(self, prompts))
    assert LocalJudge(llm_dir, **options).ask([*PROMPTS[:3], PROMPTS[1]]) == [*first, first[1]]
    assert asked == []
    LocalJudge(llm_dir, **options).ask(PROMPTS)
    assert asked == PROMPTS[3:]


def test_changed_weights_are_asked_anew(llm_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / llm_dir.name
    shutil.copytree(llm_dir, folder)
    options: dict[str, Any] = {"cache": tmp_path / "c.jsonl", "max_new_tokens": 4, "dtype": "float32"}
    first = LocalJudge(llm_dir, **options).ask(PROMPTS)
    assert LocalJudge(folder, **options).ask(PROMPTS) == first
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == len(PROMPTS), "a copy is the same judge"
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: -tensor if "lm_head" in name or "embed" in name else tensor for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert LocalJudge(folder, **options).ask(PROMPTS) != first


def test_cut_answers_are_counted(llm_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LocalJudge(llm_dir, cache=tmp_path / "c.jsonl", max_new_tokens=2, dtype="float32").ask(PROMPTS)
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert all(row["cut"] for row in rows)
    assert "5 of 5 replies" in caplog.text
    judge = choose_judge(JudgeOptions(judge=str(llm_dir), judge_decoding={"max_new_tokens": 2}), cache=tmp_path / "chosen.jsonl")
    assert judge is not None
    judge.ask(PROMPTS)
    assert "raise max_new_tokens in --judge-decoding" in caplog.text
    # The same model, told to end at the token that it says second.
    folder = tmp_path / "ends"
    shutil.copytree(llm_dir, folder)
    model = Qwen3ForCausalLM.from_pretrained(folder)
    ids = build_tokenizer()(f"<s>USER: {PROMPTS[0]} ASSISTANT:", add_special_tokens=False, return_tensors="pt")["input_ids"]
    second = int(model.generate(ids, max_new_tokens=2, do_sample=False)[0, -1])
    model.generation_config.eos_token_id = [2, second]
    model.generation_config.save_pretrained(folder)
    LocalJudge(folder, cache=tmp_path / "d.jsonl", max_new_tokens=2, dtype="float32").ask(PROMPTS[:1])
    assert json.loads((tmp_path / "d.jsonl").read_text())["cut"] is False


def test_a_judge_of_the_hub_is_fetched_by_its_id(llm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache on disk, without a network. It is the same judge as the folder of its name: its replies are found again."""
    repository = tmp_path / f"models--org--{llm_dir.name}"
    shutil.copytree(llm_dir, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    replies = []
    for source in (f"org/{llm_dir.name}", str(llm_dir)):
        judge = choose_judge(JudgeOptions(judge=source, judge_decoding={"max_new_tokens": 6}), cache=tmp_path / "c.jsonl")
        assert judge is not None
        assert judge.name == "tiny-llm"
        replies.append(judge.ask(PROMPTS[:2]))
    assert replies[0] == replies[1]
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 2


def test_folders_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at .*: expected a folder with config.json"):
        LocalJudge(tmp_path, cache=tmp_path / "c.jsonl")


def test_a_model_without_chat_template_is_refused(llm_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(llm_dir, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        LocalJudge(folder, cache=tmp_path / "c.jsonl").ask(["p"])

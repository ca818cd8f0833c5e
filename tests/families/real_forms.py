"""The tiny families with chat templates and tokenizers in the form that their checkpoints have.

What differs from the plain ones of ``tests/tiny_families.py``, each seen in real checkpoints: a begin token that the template writes and
the tokenizer writes as well; a tokenizer that puts a space before every text; templates that trim, that put images first, that write
no end behind an answer, that open ``<think>`` in the generation prompt and drop it from earlier turns.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests import tiny_families
from tests.tiny_families import FAMILIES, Built
from tests.tiny_models import WORDS


def _turns(image: str, *, begin: str = "", trim: bool = False) -> str:
    """ChatML, as Qwen's checkpoints and their relatives have it."""
    text = "c['text'] | trim" if trim else "c['text']"
    return (
        f"{begin}{{% for m in messages %}}{{{{ '<|im_start|>' + m['role'] + '\n' }}}}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        f"{{% if c['type'] == 'image' %}}{{{{ '{image}' }}}}{{% else %}}{{{{ {text} }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


QWEN = _turns("<|vision_start|><|image_pad|><|vision_end|>")
# Only what follows the last question keeps its reasoning, and the generation prompt opens a new one.
THINKING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% set say = namespace(text='') %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{% set say.text = say.text + '<|vision_start|><|image_pad|><|vision_end|>' %}"
    "{% else %}{% set say.text = say.text + c['text'] %}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{% set said = say.text.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}{% set why = '' %}"
    "{% if '</think>' in say.text %}{% set why = say.text.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
    "{{ '<think>\n' + why + '\n</think>\n\n' + said }}{% else %}{{ said }}{% endif %}"
    "{% else %}{{ say.text }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
LLAVA_1_5 = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_1_6 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ ' ' + c['text'] + '</s>' }}{% endfor %}{% endif %}"
    "{% endfor %}"
)
SMOLVLM = (
    "{{ '<|im_start|>' }}{% for m in messages %}{{ m['role'] | capitalize }}{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' }}"
    "{% for c in m['content'] %}{{ '[IMG]' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ '[/INST]' }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
)
GLM = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% for c in m['content'] %}"
    "{{ '<|begin_of_image|><|image|><|end_of_image|>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
JANUS = (
    "{% for m in messages %}{{ '<|User|>: ' if m['role'] == 'user' else '<|Assistant|>: ' }}"
    "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n\n' if m['role'] == 'user' else eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)
PALIGEMMA = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}{%- if message['role'] == 'assistant' -%}{{- '</s>' -}}{%- endif -%}{%- endfor -%}"
)

_CHATML = ("<|im_start|>", "<|im_end|>")
_GEMMA_TURNS = ("<start_of_turn>", "<end_of_turn>")


@dataclass(frozen=True)
class RealForm:
    """How a family's checkpoints write conversations."""

    template: str
    tokens: tuple[str, ...] = ()
    """Control tokens of the template."""
    ends: str = "</s>"
    """The token that ends an answer and generation."""
    writes_end: bool = True
    """Whether the template writes it."""
    adds_begin: bool = False
    """The tokenizer puts a begin token before every text."""
    adds_space: bool = False
    """It puts a space there, as sentencepiece's do."""


def _chatml(image: str, **options: Any) -> RealForm:
    return RealForm(_turns(image), _CHATML, "<|im_end|>", **options)


_QWEN = RealForm(QWEN, _CHATML, "<|im_end|>")
_SMOLVLM = RealForm(SMOLVLM, ("<|im_start|>",), "<end_of_utterance>")
_PALIGEMMA = RealForm(PALIGEMMA)
_MISTRAL = RealForm(MISTRAL, ("[INST]", "[/INST]"), adds_begin=True, adds_space=True)

REAL_FORMS: dict[str, RealForm] = {
    "llava": RealForm(LLAVA_1_5, writes_end=False, adds_begin=True, adds_space=True),
    "llava-next": RealForm(LLAVA_1_6, adds_begin=True, adds_space=True),
    "llava-onevision": _chatml("<image>\n"),
    "fastvlm": _chatml("<image>\n"),
    "qwen2-vl": _QWEN,
    "qwen2.5-vl": _QWEN,
    "qwen3-vl": _QWEN,
    "qwen3-vl-moe": _QWEN,
    "qwen3.5": RealForm(THINKING, _CHATML, "<|im_end|>"),
    "idefics3": RealForm("{{ bos_token }}" + SMOLVLM, ("<|im_start|>",), "<end_of_utterance>", adds_begin=True),
    "smolvlm": _SMOLVLM,
    "internvl": _chatml("<IMG_CONTEXT>\n"),
    "gemma3": RealForm(GEMMA.replace("IMAGE", "<start_of_image>"), _GEMMA_TURNS, "<end_of_turn>", adds_begin=True),
    "gemma4": RealForm(GEMMA.replace("IMAGE", "\n\n<|image|>\n\n"), _GEMMA_TURNS, "<end_of_turn>", adds_begin=True),
    "paligemma": _PALIGEMMA,
    "paligemma2": _PALIGEMMA,
    "pixtral": _MISTRAL,
    "mistral3": _MISTRAL,
    "molmo2": RealForm(_turns("<|image|>"), _CHATML, writes_end=False),
    "glm4v": RealForm(GLM, ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), writes_end=False),
    "ovis2": _chatml("<image>\n"),
    "lfm2-vl": RealForm(_turns("<image>", begin="{{ bos_token }}"), _CHATML, "<|im_end|>", adds_begin=True),
    "janus": RealForm(JANUS, ("<|User|>", "<|Assistant|>"), writes_end=False, adds_begin=True),
}


def build_real_form(name: str) -> Built:
    """Build a family's tiny model with its checkpoints' form of template and tokenizer."""
    form = REAL_FORMS[name]
    model, processor = llava_with_llama_tokenizer() if name == "llava" else FAMILIES[name]()
    tokenizer = processor.tokenizer
    processor.chat_template = form.template
    new = [token for token in form.tokens if token not in tokenizer.get_vocab()]
    # Molmo-2's placeholders lie behind its vocabulary: no token can be added before them.
    if new and name != "molmo2":
        tokenizer.add_special_tokens({"additional_special_tokens": new})
    backend = tokenizer.backend_tokenizer
    if form.adds_begin:
        begin = tokenizer.bos_token
        added = [(begin, tokenizer.convert_tokens_to_ids(begin))]
        backend.post_processor = processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=added)
    if form.adds_space and name != "llava":
        backend.normalizer = normalizers.Prepend(" ")
    if name != "molmo2" and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer) + 4)
        tiny_families.scaled(model)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(form.ends)
    return model, processor


def llava_with_llama_tokenizer() -> Built:
    """LLaVA-1.5 with Llama's own kind of tokenizer: words that begin with a space sign, bytes for what it does not know."""
    tokenizer = hf.LlamaTokenizer(*_llama_vocabulary(), pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.image_token = "<image>"
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    images = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1
    )
    text = {**tiny_families.TEXT, "vocab_size": len(tokenizer), "model_type": "llama", "pad_token_id": tokenizer.pad_token_id}
    config = hf.LlavaConfig(
        vision_config=tiny_families.CLIP,
        text_config=text,
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return tiny_families.scaled(hf.LlavaForConditionalGeneration(config)), processor


def _llama_vocabulary() -> tuple[Any, Any]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(WORDS, k=12)) + " USER: ASSISTANT: is it" for _ in range(200)]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    letters = list("abcdefghijklmnopqrstuvwxyzUSERAINT:.,!?\u2581")
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=letters))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]

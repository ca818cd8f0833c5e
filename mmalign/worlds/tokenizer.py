"""A tokenizer of a world's text: about one token per word, and bytes for everything else."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# CLIP's text tower treats end-of-sequence id 2 as a legacy mistake and pools elsewhere: </s> must have another id.
SPECIAL_TOKENS = ["<pad>", "<s>", "<unk>", "</s>", "<image>"]
# What chat templates add around the text.
TEMPLATE_TEXT = "USER: ASSISTANT: USER: "


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE until every word of the world is one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = list(texts)
    tokenizer.train_from_iterator([*texts, *[TEMPLATE_TEXT] * 10], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
        model_max_length=2048,
    )

"""Tokens as bytes, and where two tokenisations of an answer meet: worked by hand, against the tokenizers' own decoding."""

import re
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmalign.data.alignment import NO_GROUP, align_answers, list_answers
from mmalign.data.encode import encode_chat
from mmalign.data.rows import read_chat
from mmalign.data.token_bytes import TokenBytes, match_tokens
from mmalign.worlds.tokenizer import train_tokenizer
from tests.methods.test_on_policy import two_turns
from tests.tiny_families import qwen2_5_vl
from tests.tiny_models import build_tiny_llava, build_tokenizer

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def byte_level(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Every byte is a token, and these pairs are merged."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL.values(), *letters, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def sentence_piece(words: list[str]) -> PreTrainedTokenizerFast:
    """Llama's kind: these words with their space, letters, and bytes for everything else."""
    pieces = [*SPECIAL.values(), "<unk>", *(f"<0x{number:02X}>" for number in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {token: i for i, token in enumerate(pieces)}
    merges = []
    for word in words:
        whole = "\u2581"
        for letter in word:
            merges.append((whole, letter))
            whole += letter
            vocab.setdefault(whole, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def groups_of(
    student: Any, teacher: Any, words: str, *, texts: tuple[str, str] | None = None, **options: Any
) -> tuple[list[int], list[int]]:
    mine, theirs = (ids_of(one, text) for one, text in zip((student, teacher), texts or (words, words), strict=True))
    found = align_answers(TokenBytes(student), [mine], TokenBytes(teacher), [theirs], [words], **options)
    return found.student, found.teacher


@pytest.mark.parametrize("build", [build_tokenizer, lambda: train_tokenizer(["a red dog"] * 3), lambda: sentence_piece(["red", "dog"])])
def test_text_is_what_the_tokenizer_decodes(build: Any) -> None:
    """Letters of one to four bytes; the spare space in front is SentencePiece's own."""
    tokenizer = build()
    tokens = TokenBytes(tokenizer)
    for text in ("a red dog", "héé 猫 \U0001f408 end", "".join(map(chr, range(0x21, 0x800, 3)))):
        ids = ids_of(tokenizer, text)
        assert tokens.text(ids).removeprefix(" ") == tokenizer.decode(ids, clean_up_tokenization_spaces=False).removeprefix(" ")
        placed = tokens.place(ids, text.strip())
        assert placed is not None
        assert placed.ends[-1] == len(text.strip().encode())
        assert placed.ends == sorted(placed.ends)


def test_groups_end_where_both_tokenisations_meet() -> None:
    """ab|c|de against a|bc|d|e: the first three bytes meet at c alone, the other two at the end."""
    student, teacher = byte_level([("a", "b"), ("d", "e")]), byte_level([("b", "c")])
    assert groups_of(student, teacher, "abcde") == ([0, 0, 1], [0, 0, 1, 1])
    assert groups_of(student, student, "abcde") == ([0, 1, 2], [0, 1, 2])


def test_bytes_and_not_characters_are_counted() -> None:
    """é is two bytes and 猫 three; the student has é whole and the teacher its bytes, and both cut 猫 differently.

    Student é|猫0 猫1|猫2 a, teacher é0|é1|猫0|猫1 猫2|a: they meet behind é, behind the first byte of 猫 and behind 猫.
    """
    cat = [chr(0xE7), "\u012e", "\u00ab"]  # the letters of E7 8C AB
    student = byte_level([("\u00c3", "\u00a9")])
    teacher = byte_level([(cat[1], cat[2])])
    assert [len(ids_of(one, "é猫a")) for one in (student, teacher)] == [5, 5]
    assert groups_of(student, teacher, "é猫a") == ([0, 1, 2, 2, 3], [0, 0, 1, 2, 3])


def test_what_a_token_holds_of_two_characters_is_counted() -> None:
    """A token of the last byte of é and the letter behind it meets nothing inside."""
    student, teacher = byte_level([("\u00a9", "a")]), byte_level([])
    assert groups_of(student, teacher, "éa") == ([0, 1], [0, 1, 1])


def test_tokenizers_of_two_kinds_meet() -> None:
    """SentencePiece's first space stands before the words; its byte tokens are bytes."""
    student, teacher = sentence_piece(["red", "dog"]), byte_level([])
    mine, theirs = groups_of(student, teacher, "red é dog")
    assert mine == [0, 1, 2, 3, 4]
    assert theirs == [0, 0, 0, 1, 2, 3, 4, 4, 4, 4]


def test_what_templates_write_around_the_words() -> None:
    """Spaces before the words are in no group, all behind the words is one; without an end of the student's it is none."""
    student = teacher = byte_level([])
    texts = ("  ab</s>", "ab \n</s>")
    assert groups_of(student, teacher, "ab", texts=texts) == ([NO_GROUP, NO_GROUP, 0, 1, 2], [0, 1, 2, 2, 2])
    assert groups_of(student, teacher, " ab ", texts=texts, ended=False)[0] == [NO_GROUP, NO_GROUP, 0, 1, NO_GROUP]
    # A space that both have belongs to the words, whether it is a token or a part of one.
    words = byte_level([("\u0120", "a"), ("\u0120a", "b")])
    assert groups_of(words, teacher, "ab", texts=(" ab</s>", "  ab</s>")) == ([0, 1], [NO_GROUP, 0, 0, 0, 1])
    # Reasoning that one template leaves out; words that are part of a special token's name.
    assert groups_of(student, teacher, "x</think>\ns", texts=("s</s>", "s</s>")) == ([0, 1], [0, 1])


def test_bytes_that_are_no_text_keep_their_places() -> None:
    """A byte that begins nothing is read as U+FFFD, of three bytes, to the teacher; a character that is cut off is left out."""
    student, teacher = byte_level([]), byte_level([])
    tokens = TokenBytes(student)
    ids = [ids_of(student, "a")[0], ids_of(student, "é")[1], ids_of(student, "b")[0], ids_of(student, "猫")[0]]
    assert tokens.text(ids) == "a\ufffdb"
    theirs = ids_of(teacher, "a\ufffdb")
    found = align_answers(tokens, [ids], TokenBytes(teacher), [theirs], ["a\ufffdb"], ended=False)
    assert (found.student, found.teacher, found.num_groups) == ([0, 1, 2, NO_GROUP], [0, 1, 1, 1, 2], 3)


def test_answers_of_a_conversation_are_numbered_on() -> None:
    """Two turns through two templates: as many groups as words where both tokenizers cut at words, and one of each end."""
    (_, processor), (_, other) = build_tiny_llava(), qwen2_5_vl()
    row = read_chat(two_turns(), index=0)
    mine, theirs = (list_answers(encode_chat(one, row)) for one in (processor, other))
    assert [len(answer) for answer in mine] == [len(answer) for answer in theirs]
    tokens = TokenBytes(processor.tokenizer), TokenBytes(other.tokenizer)
    found = align_answers(tokens[0], mine, tokens[1], theirs, ["the dog sat", "on the red mat"])
    assert found.student == found.teacher == list(range(found.num_groups))
    assert found.num_groups == sum(map(len, mine))


def test_other_words_and_another_number_of_answers_are_refused() -> None:
    student = byte_level([])
    with pytest.raises(ValueError, match=re.escape("reads as 'ab' to the student and 'AB' to the teacher; expected 'ab' in both")):
        groups_of(student, student, "ab", texts=("ab", "AB"))
    with pytest.raises(ValueError, match="2 answers are 1 to the student and 1 to the teacher"):
        align_answers(TokenBytes(student), [[5]], TokenBytes(student), [[5]], ["a", "b"])


def test_tokens_of_equal_bytes_are_matched_once() -> None:
    """A word with its space is the same in both kinds; letters are, and bytes of SentencePiece's that are no letters."""
    student, teacher = sentence_piece(["dog"]), byte_level([("\u0120", "d"), ("\u0120d", "o"), ("\u0120do", "g")])
    mine, theirs = match_tokens(TokenBytes(student), TokenBytes(teacher), sizes=(10_000, 10_000))
    names = dict(zip(student.convert_ids_to_tokens(mine), teacher.convert_ids_to_tokens(theirs), strict=True))
    assert names["\u2581dog"] == "\u0120dog"
    assert names["</s>"] == "</s>"
    assert names["<0xE7>"] == chr(0xE7)
    # 256 bytes, of which letters have tokens twice, three parts of the word, three special tokens.
    assert len(mine) == len(set(mine)) == len(set(theirs)) == 256 + 3 + 3
    few = match_tokens(TokenBytes(student), TokenBytes(teacher), sizes=(3, 10_000))
    assert few == ([0, 1, 2], [0, 1, 2])


def test_a_tokenizer_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="object doesn't tell its tokens' bytes; take a model with a fast tokenizer"):
        TokenBytes(object())

"""Tokenizing the pieces between special tokens gives the tokens of whole texts, where the tokenizer allows it."""

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from rmjax.data.tokens import pieces
from rmjax.data.tokens.tokenizer import Tokenizer, byte_level

TEXT = [
    "Hello  world, it's 2024! ",
    "über\n\n naïve\tstraße ",
    "<think>so</think>",
    "日本語 テキスト",
    "aaa  bbb   ",
    "x<|im",
]


def trained(pre_tokenizer, normalizer=None, special=(), added=()):
    """Returns a BPE tokenizer trained on `TEXT`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(list(special or ("<|im_start|>", "<|im_end|>", "</s>")))
    tokenizer.add_tokens(list(added))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITTING = {
    "byte level": byte_level(),
    "gpt2": trained(BYTES),
    "prefix space": trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "digits": trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])),
    "normalized": trained(BYTES, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "added": trained(BYTES, added=["<think>", AddedToken("world", single_word=True), AddedToken("bbb", lstrip=True)]),
}
WHOLE = {
    "metaspace": trained(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "prepend": trained(BYTES, normalizers.Prepend("_")),
    "strips": trained(BYTES, special=[AddedToken("<|im_end|>", rstrip=True, special=True)]),
    "normalized special": trained(BYTES, special=[AddedToken("<|im_end|>", normalized=True, special=True)]),
    "hides": trained(BYTES, added=["x<"]),
}
PARTS = st.sampled_from([*TEXT, "<|im_start|>", "<|im_end|>", "</s>", " ", "\n", "<pad>", "<eos>", "x<", "_", "1"])


@pytest.mark.parametrize("name", [*SPLITTING, *WHOLE])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(PARTS | st.text(max_size=5), max_size=8).map("".join), min_size=1, max_size=4))
def test_the_tokens_are_those_of_the_whole_texts(name, texts):
    base = (SPLITTING | WHOLE)[name]
    found = Tokenizer(base, name).encode_texts(texts, [False] * len(texts))
    for tokens, text in zip(found, texts, strict=True):
        assert tokens.dtype == np.int32
        assert tokens.tolist() == base(text, add_special_tokens=False)["input_ids"]


def test_which_tokenizers_treat_pieces_alone():
    assert all(map(pieces.splits_at_special_tokens, SPLITTING.values()))
    assert not any(map(pieces.splits_at_special_tokens, WHOLE.values()))


def test_a_piece_is_tokenized_once(monkeypatch):
    base, given = byte_level(), []

    class Backend:
        def __getattr__(self, name):
            return getattr(base.backend_tokenizer, name)

        def encode_batch_fast(self, texts, **options):
            given.extend(texts)
            return base.backend_tokenizer.encode_batch_fast(texts, **options)

    class Base:
        backend_tokenizer = Backend()

    pieces.encode(["<eos>ab<pad>c", "<eos>ab<pad>d"], Base(), pieces.special_pattern(base))
    assert given == ["<eos>", "ab", "<pad>", "c", "d"]

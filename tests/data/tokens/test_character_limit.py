"""The bound on the characters of a token: no text that fits is taken to be too long."""

import random
import unicodedata

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rmjax.data.tokens.byte_level import byte_level
from rmjax.data.tokens.character_limit import CharacterLimit

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def wrap(model, normalizer=None, pre_tokenizer=None):
    tokenizer = tokenizers.Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def bpe(tokens, merges=(), **options):
    return models.BPE({token: i for i, token in enumerate(tokens)}, list(merges), **options)


def merged(alphabet=ALPHABET):
    """A byte-level vocabulary with runs of a and of spaces up to 16."""
    tokens, merges = list(alphabet), []
    for character in "aĠ":
        for size in (1, 2, 4, 8):
            merges.append((character * size, character * size))
            tokens.append(character * 2 * size)
    return tokens, merges


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
LOST = [token for token in ALPHABET if token not in ("ē", "õ", "A")]  # of a control character, of no text, of A
KNOWN = {
    "built-in": byte_level(),
    "runs": wrap(bpe(*merged()), None, BYTE_LEVEL),
    "composed": wrap(  # one token of three bytes for four characters
        bpe([*ALPHABET, "á¾", "á¾Ĥ"], [("á", "¾"), ("á¾", "Ĥ")]), normalizers.NFC(), BYTE_LEVEL
    ),
    "lost bytes": wrap(bpe(*merged(LOST)), None, BYTE_LEVEL),
    "sentencepiece": wrap(
        bpe(["<unk>", "▁", "a", "▁a", *BYTES], [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "without space": wrap(
        bpe(*merged()), None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), BYTE_LEVEL])
    ),
}
CHARACTERS = [
    "a",
    "A",
    " ",
    "\n",
    "\x14",
    "é",
    "e",
    "\u0323",
    "\u0302",
    "한",
    "\U0001f600",
    "\u2003",
    "\u1100",
    "\u1161",
]


@pytest.mark.parametrize("name", KNOWN)
def test_no_text_that_fits_exceeds_the_limit(name):
    base, draw = KNOWN[name], random.Random(0)
    limit, found = CharacterLimit(base), 0
    assert limit.per_token > 0
    texts = ["".join(draw.choices(draw.sample(CHARACTERS, 2), k=draw.randrange(1, 400))) for _ in range(300)]
    texts += [character * 400 for character in CHARACTERS] + [unicodedata.normalize("NFD", "\u1f82" * 130)]
    for text in texts:
        length = len(base(text, add_special_tokens=False)["input_ids"])
        assert not limit.exceeds(text, length)
        found += limit.exceeds(text, 1)
    assert found > 20


@pytest.mark.parametrize(
    ("model", "normalizer", "pre_tokenizer"),
    [
        (bpe(["<unk>", "a"], unk_token="<unk>", fuse_unk=True), None, None),
        (bpe(ALPHABET), normalizers.StripAccents(), BYTE_LEVEL),
        (bpe(ALPHABET), normalizers.Replace("aa", "a"), BYTE_LEVEL),
        (bpe(ALPHABET), normalizers.Replace(tokenizers.Regex("a+"), "aa"), BYTE_LEVEL),
        (bpe(ALPHABET), None, pre_tokenizers.Sequence([pre_tokenizers.Split("a", "removed"), BYTE_LEVEL])),
        (bpe([token for token in ALPHABET if token != "¡"]), None, BYTE_LEVEL),
        (models.WordLevel({"<unk>": 0}, "<unk>"), None, pre_tokenizers.Whitespace()),
    ],
)
def test_tokenizers_that_may_leave_text_out_have_no_limit(model, normalizer, pre_tokenizer):
    assert not CharacterLimit(wrap(model, normalizer, pre_tokenizer)).exceeds("a" * 10_000, 1)

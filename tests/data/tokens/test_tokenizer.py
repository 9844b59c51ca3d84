import pytest
import tokenizers
import transformers
from tokenizers.processors import TemplateProcessing

from rmjax.core.errors import InputError
from rmjax.data.tokens.tokenizer import Tokenizer, byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("")


def test_built_in_tokenizer_can_be_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Grüße, \n 12 \U0001f600"
    assert again(text)["input_ids"] == byte_level()(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert again.chat_template == tokenizer.base.chat_template


def test_eos_is_added_once(tokenizer):
    eos = tokenizer.base.eos_token_id
    plain, with_eos, without_eos = (
        tokenizer.encode([text], add_eos)[0] for text, add_eos in (("ab", True), ("ab<eos>", True), ("ab", False))
    )
    assert plain.tolist() == with_eos.tolist() == [*without_eos.tolist(), eos]


def test_bos_is_not_doubled(tokenizer, tmp_path):
    base = byte_level()
    base.add_special_tokens({"bos_token": "<bos>"})
    bos = base.bos_token_id
    base.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    base.chat_template = "<bos>" + base.chat_template
    own = Tokenizer(base, "with bos")
    messages = [{"role": "user", "content": "hi"}]
    for conversation, add_eos in (("hi", True), ("<bos>hi", True), (messages, True), (own.render(messages), False)):
        tokens = own.encode([conversation], add_eos)[0]
        assert (tokens == bos).sum() == 1, conversation


def test_token_strings_keep_their_spaces():
    """A SentencePiece decoder drops the space before the first token."""
    text = "is it? é"
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "▁a", "a", "▁is", "▁it", "?", "▁é", "▁"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Metaspace(), tokenizers.pre_tokenizers.Split("?", "isolated")]
    )
    model.decoder = tokenizers.decoders.Metaspace()
    own = Tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"), "pieces")
    tokens = own.encode([text], False)[0]
    assert own.token_strings(tokens) == [" is", " it", "?", " é"]
    byte_wise = Tokenizer.load("")
    assert byte_wise.token_strings(byte_wise.encode(["a é\n"], False)[0]) == ["a", " ", "\ufffd", "\ufffd", "\n"]


def test_messages_without_chat_template_raise():
    base = byte_level()
    base.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer(base, "bare").encode([[{"role": "user", "content": "hi"}]])


def test_vocabulary_larger_than_the_models_raises(tokenizer):
    tokenizer.check_vocabulary(260)
    with pytest.raises(InputError, match="ids up to 259; the model's vocab_size is 259"):
        tokenizer.check_vocabulary(259)


def test_missing_tokenizer_raises(tmp_path):
    (tmp_path / "model.nemo").touch()
    with pytest.raises(InputError, match=r"tokenizer '.*model.nemo': this is a NeMo model; convert it"):
        Tokenizer.load(str(tmp_path / "model.nemo"))
    with pytest.raises(InputError, match=r"the directory has no tokenizer.json; copy the tokenizer's files into it"):
        Tokenizer.load(str(tmp_path))


def test_separate_padding_token_never_ends_a_conversation(tokenizer, shared_data):
    assert tokenizer.with_separate_pad().base.pad_token == "<pad>"
    smollm2 = Tokenizer.load(str(shared_data / "models" / "smollm2"))
    assert smollm2.base.pad_token == smollm2.base.eos_token
    assert smollm2.with_separate_pad().base.pad_token == "<|endoftext|>"


def words(vocabulary, **options):
    """Returns a tokenizer of whole words whose unknown words are `[UNK]`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def test_a_padding_token_is_added_where_none_is_free():
    """Neither the EOS token nor the token of unknown words is free: a conversation may end with them."""
    tokenizer = Tokenizer(words({"<eos>": 0, "a": 1, "[UNK]": 2}, eos_token="<eos>", unk_token="[UNK]"), "words")
    padded = tokenizer.with_separate_pad().base
    assert (padded.pad_token, padded.pad_token_id) == ("<|rmjax_pad|>", 3)
    assert padded("a <eos> b")["input_ids"] == tokenizer.base("a <eos> b")["input_ids"] == [1, 0, 2]
    assert tokenizer.base.pad_token is None
    with pytest.raises(InputError, match="none can be added since its ids have gaps"):
        Tokenizer(words({"<eos>": 0, "a": 2}, eos_token="<eos>"), "gaps").with_separate_pad()


def test_bos_prefix_is_the_bos_that_the_tokenizer_adds():
    plain, base = Tokenizer.load(""), byte_level()
    base.add_special_tokens({"bos_token": "<bos>"})
    assert plain.bos_prefix == Tokenizer(base, "a").bos_prefix == ""
    base.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", base.bos_token_id)]
    )
    assert Tokenizer(base, "a").bos_prefix == "<bos>"
    assert plain.pad_and_eos == ("<pad>", "<eos>")

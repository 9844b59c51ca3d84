import numpy as np
import pytest
import tokenizers

from rmjax.core.errors import InputError
from rmjax.data.packing.rows import fill_rows
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import memory_source
from rmjax.data.schema import Comparison, Edge, packed_spec
from rmjax.data.tokens.rendering import make_trees
from rmjax.data.tokens.tokenize import DatasetOptions, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.trees import make_tree

READOUTS = ["last_token", "eos", "token:<|im_end|>", "token_id:3", "conversation_mean", "response_mean"]


def chat(prompt, response):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def compared(*conversations, edges=(), add_eos=True):
    return Comparison(conversations, add_eos, edges, None, "here:1", {})


def read_text(tokenizer, tree, k):
    """Returns the text of the tokens of which the reward of response k is read."""
    shared, *branches = tree.read()
    parts = [tree.prefix[shared], tree.branches[k][branches[k]]]
    return tokenizer.base.decode(np.concatenate(parts))


@pytest.mark.parametrize(
    ("readout", "expected"),
    [
        ("last_token", "\n"),
        ("eos", "<eos>"),
        ("token:<|im_end|>", "<|im_end|>"),
        ("token_id:3", "<|im_end|>"),
        ("conversation_mean", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"),
        ("response_mean", "\n{}<|im_end|>\n"),
    ],
)
def test_what_is_read_of_chat_messages(readout, expected):
    tokenizer = Tokenizer.load("", readout=readout)
    (alone,) = make_trees([compared(chat("hi", "yes"))], tokenizer)
    assert read_text(tokenizer, alone, 0) == expected.format("yes")
    (pair,) = make_trees([compared(chat("hi", "yes"), chat("hi", "yeast"))], tokenizer)
    # The same whatever the response is compared to; `read` of the shared tokens is of both.
    shared = len(pair.prefix)
    for k, response in enumerate(["yes", "yeast"]):
        (single,) = make_trees([compared(chat("hi", response))], tokenizer)
        assert pair.readouts[k] == (k, single.readouts[0][1] - shared)
        assert pair.spans[k : k + 1] == single.spans


def test_a_missing_token_is_added_to_text_and_refused_in_tokens():
    tokenizer = Tokenizer.load("", readout="eos")
    plain, with_eos, inside = tokenizer.encode(["ab", "ab<eos>", "a<eos>b"], add_eos=False)
    np.testing.assert_array_equal(plain, with_eos)
    assert tokenizer.readout_place.find(plain) == (2, 1)
    assert tokenizer.readout_place.find(inside) == (1, 1)  # the last one, not added again
    with pytest.raises(InputError, match=r"there is no token '<eos>', at which the reward is read .*: add it"):
        tokenizer.readout_place.find(plain[:-1])


def test_readouts_in_the_shared_prefix_are_filled_into_rows():
    tokenizer = Tokenizer.load("", readout="eos")
    first, second = tokenizer.encode(["a<eos>bb", "a<eos>cc"], add_eos=False)
    tree = tokenizer.readout_place.place(make_tree([first, second]))
    assert tree.readouts == ((0, -1), (1, -1))
    batch = fill_rows([[tree, tree]], packed_spec(1, 16, 4, 0, 0))
    assert batch["readout_index"].tolist() == [[1, 1, 7, 7]]
    assert (batch["tokens"][0, batch["readout_index"][0]] == tokenizer.base.eos_token_id).all()
    (error,) = make_trees([compared("a<eos>bb", "a<eos>cc", edges=(Edge(0, 1),), add_eos=False)], tokenizer)
    assert error == "the last '<eos>' is before the responses differ, so that rewards are equal"
    (tree,) = make_trees([compared("a<eos>bb", "a<eos>cc<eos>", edges=(Edge(0, 1),), add_eos=False)], tokenizer)
    assert tree.readouts == ((0, -1), (1, 2))


def test_a_generation_prompt_is_found_by_its_tokens_after_a_message(tmp_path):
    tokenizer = Tokenizer.load("")
    tokenizer.base.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '.' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    # By itself, the text would begin with the token of a space.
    backend = tokenizer.base.backend_tokenizer
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer.save(tmp_path)
    tokenizer = Tokenizer.load(str(tmp_path), readout="response_mean")
    (tree,) = make_trees([compared(chat("hi", "yes"))], tokenizer)
    assert read_text(tokenizer, tree, 0) == " yes."


def test_truncation_keeps_the_token_at_which_the_reward_is_read():
    tokens = np.array([5, 1, 6, 7, 1])
    at_eos = Tokenizer.load("", readout="eos").readout_place
    cut = {length: at_eos.truncate(tokens, length).tolist() for length in (1, 4, 5, 9)}
    assert cut == {1: [1], 4: [5, 1, 6, 1], 5: tokens.tolist(), 9: tokens.tolist()}
    assert Tokenizer.load("").readout_place.truncate(tokens, 4).tolist() == [5, 1, 6, 7]


def test_truncation_moves_what_is_read():
    records = [{"prompt": "a long prompt", "chosen": "bb", "rejected": "bcc"}]
    options = DatasetOptions(strings="chat", on_overlong="truncate_prompt", max_length=30)
    comparisons, _ = read_comparisons(memory_source(records), options)
    for readout in READOUTS:
        tokenizer = Tokenizer.load("", readout=readout)
        dataset, report = tokenize(comparisons, tokenizer, options, "x", progress=False)
        assert report.truncated == 1
        tree = dataset.tree(0)
        assert tree.longest == 30
        expected = {"conversation_mean": 29, "response_mean": 5}.get(readout, 1)
        assert (tree.spans or (1, 1))[0] == expected, readout


@pytest.mark.parametrize(
    ("readout", "message"),
    [
        ("mean", "config.data.readout is 'mean'; choose one of last_token, eos, conversation_mean"),
        ("token:", "config.data.readout is 'token:'; choose one of"),
        ("token_id:x", "config.data.readout is 'token_id:x'; choose one of"),
        ("token:good", "the tokenizer 'built-in byte level' has no such token"),
        ("token_id:9999", "the tokenizer 'built-in byte level' has no such token"),
    ],
)
def test_readouts_that_do_not_fit_are_refused(readout, message):
    with pytest.raises(InputError, match=message):
        Tokenizer.load("", readout=readout)


def test_a_tokenizer_without_what_a_readout_needs_is_refused(tmp_path):
    base = Tokenizer.load("").base
    base.chat_template = None
    base.eos_token = None
    base.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no chat template with a generation prompt"):
        Tokenizer.load(str(tmp_path), readout="response_mean")
    with pytest.raises(InputError, match="has no EOS token"):
        Tokenizer.load(str(tmp_path), readout="eos")


def test_records_without_a_response_to_average_are_named():
    tokenizer = Tokenizer.load("", readout="response_mean")
    (error,) = make_trees([compared("plain text")], tokenizer)
    assert "'<|im_start|>assistant' is not followed by a response" in error
    steps = Comparison(("a\nb",), True, (), np.zeros((1, 1)), "here:1", {}, steps=(1,))
    (error,) = make_trees([steps], tokenizer)
    assert "steps have no rewards where hidden states are averaged" in error

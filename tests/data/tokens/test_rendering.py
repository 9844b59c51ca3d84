import numpy as np
import pytest
import tokenizers

from rmjax.data.records.parsers import ReadOptions
from rmjax.data.records.process import process
from rmjax.data.schema import Comparison
from rmjax.data.tokens.rendering import make_trees, split_prompt
from rmjax.data.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["built-in", "trained"])
def tokenizer(request):
    if request.param == "built-in":
        return Tokenizer.load("")
    # Words and merges, so that a token spans characters: what a byte-level alphabet alone cannot show.
    base = Tokenizer.load("").base
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.train_from_iterator(["first step. second step? thörd ☃ step!"] * 50, trainer)
    trained = type(base)(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    trained.chat_template = base.chat_template
    return Tokenizer(trained, "trained")


@pytest.mark.parametrize("strings", ["joined", "chat"])
def test_rewards_are_read_at_the_token_that_ends_a_step(tokenizer, strings):
    steps = ["first step.", "second step?", "thörd ☃ step!", "☃"]
    record = {"prompt": "first", "completions": steps, "labels": [1, 0, 1, 1]}
    comparison = process("here:1", record, ReadOptions(strings=strings))
    (tree,) = make_trees([comparison], tokenizer)
    whole = np.concatenate([tree.prefix, tree.branches[0]])
    for (branch, index), step in zip(tree.readouts, steps, strict=True):
        assert branch == 0
        read = tokenizer.base.decode(whole[: index + 1])
        assert read.rstrip("\n").endswith(step)
        assert not tokenizer.base.decode(whole[:index]).endswith(step)
    np.testing.assert_array_equal(tree.labels[:, 0], [1, 0, 1, 1])


@pytest.mark.parametrize("strings", ["joined", "chat"])
def test_a_single_response_can_give_up_tokens_of_its_prompt(tokenizer, strings):
    record = {"prompt": "first step. " * 9, "completions": ["e", "n"], "labels": [1, 0]}
    comparison = process("here:1", record, ReadOptions(strings=strings))
    (tree,) = make_trees([comparison], tokenizer)
    split = split_prompt(comparison, tree, tokenizer)
    assert len(split.prefix) > 9
    assert tokenizer.base.decode(split.branches[0]).lstrip("\n").startswith("e")
    np.testing.assert_array_equal(np.concatenate([split.prefix, *split.branches]), tree.branches[0])
    read = [int(split.branches[0][index]) for _, index in split.readouts]
    assert read == [int(tree.branches[0][index]) for _, index in tree.readouts]
    assert [tokenizer.base.decode([token]).strip() for token in read] == ["e", "n"]


def test_a_role_cannot_smuggle_in_a_control_token(tokenizer):
    comparison = Comparison(([{"role": "user<|im_end|>", "content": "x"}],), True, (), None, "here:1", {})
    assert "'<|im_end|>'" in make_trees([comparison], tokenizer)[0]

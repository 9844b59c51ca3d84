import numpy as np
import pytest
import tokenizers

from rmjax.data.records.formats.process import parse_process
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison
from rmjax.data.tokens.rendering import make_trees, separate_prompt
from rmjax.data.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["built-in", "trained"])
def tokenizer(request):
    if request.param == "built-in":
        return Tokenizer.load("")
    # Merges, so that tokens span several characters, unlike those of the built-in tokenizer.
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
def test_readouts_are_at_the_last_token_of_each_step(tokenizer, strings):
    steps = ["first step.", "second step?", "thörd ☃ step!", "☃"]
    record = {"prompt": "first", "completions": steps, "labels": [1, 0, 1, 1]}
    comparison = parse_process("here:1", record, ReadOptions(strings=strings))
    (tree,) = make_trees([comparison], tokenizer)
    whole = np.concatenate([tree.prefix, tree.branches[0]])
    for (branch, index), step in zip(tree.readouts, steps, strict=True):
        assert branch == 0
        read = tokenizer.base.decode(whole[: index + 1])
        assert read.rstrip("\n").endswith(step)
        assert not tokenizer.base.decode(whole[:index]).endswith(step)
    np.testing.assert_array_equal(tree.labels[:, 0], [1, 0, 1, 1])


@pytest.mark.parametrize("strings", ["joined", "chat"])
def test_separate_prompt_moves_the_prompt_to_the_prefix(tokenizer, strings):
    record = {"prompt": "first step. " * 9, "completions": ["e", "n"], "labels": [1, 0]}
    comparison = parse_process("here:1", record, ReadOptions(strings=strings))
    (tree,) = make_trees([comparison], tokenizer)
    split = separate_prompt(comparison, tree, tokenizer)
    assert len(split.prefix) > 9
    assert tokenizer.base.decode(split.branches[0]).lstrip("\n").startswith("e")
    np.testing.assert_array_equal(np.concatenate([split.prefix, *split.branches]), tree.branches[0])
    read = [int(split.branches[0][index]) for _, index in split.readouts]
    assert read == [int(tree.branches[0][index]) for _, index in tree.readouts]
    assert [tokenizer.base.decode([token]).strip() for token in read] == ["e", "n"]


def test_special_token_in_a_role_is_an_error(tokenizer):
    comparison = Comparison(([{"role": "user<|im_end|>", "content": "x"}],), True, (), None, "here:1", {})
    assert "'<|im_end|>'" in make_trees([comparison], tokenizer)[0]

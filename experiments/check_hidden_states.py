"""Comparison of the final hidden states of a pretrained model with those of transformers, in float32 on real texts.

    python -m pip install -e '.[bench]'
    python ../shared/tools/gemma3.py DIR
    python experiments/check_hidden_states.py --model=DIR --data=../shared/data/hh_harmless/test.jsonl.gz

rmjax computes packed prefix trees, in which both responses share the prompt; transformers computes each conversation in
a row of its own, with eager attention. Differences are relative to the greatest absolute value.
"""

import argparse
import time

import jax
import numpy as np

from rmjax.core import config as configs
from rmjax.core import program
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import Tree, packed_spec
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading


def packed_states(path: str, trees: list[Tree], length: int) -> list[list[np.ndarray]]:
    """Returns rmjax's hidden states [tokens, D] of the conversations of each comparison, computed one per row."""
    config = configs.default()
    config.model.path = path
    mesh = make_mesh(devices=jax.devices()[:1])
    jax.set_mesh(mesh)
    model = loading.make_model(config.model, 0)
    params = loading.initial_params(config.model, model, mesh, jax.random.key(0))
    hidden, states = jax.jit(model.hidden), []
    for tree in trees:
        batch = fill_rows([[tree]], packed_spec(1, length, len(tree.readouts), len(tree.edges), 1))
        values, branch = np.asarray(hidden(params, batch))[0], batch["branch"][0]
        own = batch["group"][0] > 0
        prefix = values[own & (branch == 0)]
        branches = [values[own & (branch == k + 1)] for k in range(len(tree.branches))]
        states.append([np.concatenate([prefix, values]) for values in branches])
    return states


def main() -> None:
    """Prints the greatest differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory of a causal LM")
    parser.add_argument("--data", required=True, help="JSONL file of pairs")
    parser.add_argument("--comparisons", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=1024, help="of a conversation, in tokens")
    flags = parser.parse_args()
    import torch
    import transformers

    tokenizer = Tokenizer.load(flags.model)
    dataset = load_dataset((flags.data,), tokenizer, DatasetOptions(max_length=flags.max_length), split="train")[0]
    longest = np.argsort(-dataset.lengths)[: flags.comparisons]
    trees = [dataset.tree(int(i)) for i in longest]
    length = -(-max(tree.length for tree in trees) // 128) * 128
    start = time.perf_counter()
    states = packed_states(flags.model, trees, length)
    print(
        f"rmjax: {len(trees)} comparisons of up to {max(t.length for t in trees)} unique tokens, "
        f"{time.perf_counter() - start:.1f} s with loading and compilation"
    )
    reference = transformers.AutoModel.from_pretrained(
        flags.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    differences, scale = [], 0.0
    for tree, pair in zip(trees, states, strict=True):
        for tokens, found in zip(tree.branches, pair, strict=True):
            ids = torch.from_numpy(np.concatenate([tree.prefix, tokens])).long()[None]
            with torch.no_grad():
                expected = reference(ids, use_cache=False).last_hidden_state[0].numpy()
            scale = max(scale, float(np.abs(expected).max()))
            differences.append(np.abs(found - expected).max())
    print(
        f"greatest absolute value {scale:.2f}; greatest difference {max(differences) / scale:.1e} of it, median over "
        f"{len(differences)} conversations {np.median(differences) / scale:.1e}"
    )


if __name__ == "__main__":
    program.use_huge_pages()
    main()

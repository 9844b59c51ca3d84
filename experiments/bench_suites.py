"""Benchmark of scoring as the suites do it, beside a padded loop of transformers: pairs, 6 and 32 responses.

    python ../shared/tools/smollm2.py DIR
    python experiments/bench_suites.py --model=DIR --data=../shared/data/vader_pairs/test.jsonl

`pairs` are the records of --data; `rm_bench` and `ppe` are generated texts in the shape of RM-Bench (6 responses) and
PPE (32 responses): prompts of --prompt_words and responses of --response_words words, about as many tokens.

rmjax scores the responses of a prompt as one comparison, which computes the prompt once. transformers scores each
conversation by itself, in batches sorted by length and padded on the right to the longest one; of --batches, the
fastest size counts. Both get the same texts, in float32, and tokenize them. The two take turns; times are medians, and
the ratio is the median of the rounds' ratios. The rewards of both are compared. Compilation is not measured.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import memory_source
from rmjax.data.schema import Comparison
from rmjax.evaluation.pipeline import load_pipeline

_WORDS = ("river", "stone", "light", "green", "paper", "seven", "under", "house", "cloud", "music", "north", "table")


def generate(prompts: int, responses: int, prompt_words: int, response_words: int) -> list[Comparison]:
    """Returns comparisons of random words, one for each prompt."""
    rng = np.random.default_rng(0)
    text = lambda count: " ".join(rng.choice(_WORDS, count))
    records = [
        {"prompt": text(prompt_words) + "\n", "responses": [text(response_words) for _ in range(responses)]}
        for _ in range(prompts)
    ]
    options = ReadOptions(format="kwise", strings="joined", labeled=False)
    return read_comparisons([memory_source(records)], options)[0]


class Padded:
    """The rewards of texts by transformers, in padded batches of texts of similar length."""

    def __init__(self, path: str):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model = model.eval()

    @torch.inference_mode()
    def score(self, texts: list[list[int]], batch: int) -> np.ndarray:
        """Returns the rewards [N] of token lists, in their order."""
        found = np.zeros(len(texts), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            length = max(len(texts[i]) for i in part)
            tokens = torch.full((len(part), length), self.model.config.pad_token_id)
            mask = torch.zeros((len(part), length), dtype=torch.long)
            for row, i in enumerate(part):
                tokens[row, : len(texts[i])] = torch.tensor(texts[i])
                mask[row, : len(texts[i])] = 1
            hidden = self.model.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            last = hidden[torch.arange(len(part)), mask.sum(1) - 1]
            found[part] = self.model.score(last)[:, 0].numpy()
        return found


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def with_head(path: str) -> tempfile.TemporaryDirectory:
    """Returns a directory with the model and a reward head of random rows, as transformers writes it."""
    torch.manual_seed(0)
    directory = tempfile.TemporaryDirectory()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    model.save_pretrained(directory.name)
    transformers.AutoTokenizer.from_pretrained(path).save_pretrained(directory.name)
    return directory


def measure(
    name: str, comparisons: list[Comparison], pipeline, padded: Padded, batches: list[int], rounds: int
) -> None:
    """Prints the times of both for these comparisons, and the largest difference of their rewards."""
    texts = [str(one) for comparison in comparisons for one in comparison.conversations]
    encode = lambda: pipeline.tokenizer.encode_texts(texts, [True] * len(texts))
    tokens = [list(map(int, each)) for each in encode()]
    ours: list[np.ndarray] = []
    run_ours = lambda: ours.append(np.concatenate([np.asarray(x)[:, 0] for x in pipeline.rewards(comparisons)]))

    def run_theirs(batch: int) -> np.ndarray:
        encode()
        return padded.score(tokens, batch)

    run_ours()
    first = {batch: timed(lambda batch=batch: run_theirs(batch)) for batch in batches}
    batch = min(first, key=first.__getitem__)
    times = [(timed(run_ours), timed(lambda: run_theirs(batch))) for _ in range(rounds)]
    ratio = statistics.median(theirs / mine for mine, theirs in times)
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    error = float(np.abs(ours[-1] - padded.score(tokens, batch)).max())
    count = sum(map(len, tokens))
    print(
        f"{name}: {len(comparisons)} prompts, {len(texts)} responses, {count:,} tokens; rmjax {mine:.2f} s, "
        f"transformers {theirs:.2f} s (batch {batch} of {batches}), ratio {ratio:.2f}; rewards differ by {error:.1e}"
    )


def main() -> None:
    """Measures the shapes of --shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory; a language model gets a random head")
    parser.add_argument("--data", default="", help="pairs with prompt, chosen and rejected")
    parser.add_argument("--shapes", default="pairs,rm_bench,ppe")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt_words", type=int, default=400)
    parser.add_argument("--response_words", type=int, default=100)
    parser.add_argument("--batches", default="1,4,8,16,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_length", type=int, default=4096, help="of a row too, in which a prompt is shared")
    options = parser.parse_args()
    batches = [int(size) for size in options.batches.split(",")]
    with with_head(options.model) as path:
        pipeline = load_pipeline(path, max_length=options.max_length)
        padded = Padded(path)
        print(
            f"{platform.machine()}, {os.cpu_count()} CPUs, jax {jax.__version__} on {jax.devices()[0].device_kind}, "
            f"torch {torch.__version__} with {torch.get_num_threads()} threads, "
            f"transformers {transformers.__version__}, "
            f"attention {padded.model.config._attn_implementation}; {pathlib.Path(options.model).name}, float32, "
            f"{options.rounds} rounds"
        )
        for name in options.shapes.split(","):
            if name == "pairs":
                if not options.data:
                    continue
                read = dataclasses.replace(ReadOptions(), labeled=False, strings="joined", limit=8 * options.prompts)
                comparisons = read_comparisons([options.data], read)[0]
            else:
                responses = {"rm_bench": 6, "ppe": 32}[name]
                comparisons = generate(options.prompts, responses, options.prompt_words, options.response_words)
            measure(name, comparisons, pipeline, padded, batches, options.rounds)


if __name__ == "__main__":
    main()

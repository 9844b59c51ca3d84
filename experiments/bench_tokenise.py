"""Tokenization throughput: rmjax's reading and tokenizing against `datasets.map` with the same tokenizer.

    python experiments/bench_tokenise.py --tokenizer=DIR --data=../shared/data/hh_harmless/train.jsonl.gz

Both sides render the same chat messages by the same template and tokenize both conversations of each pair, in turn,
`--rounds` times, without their caches. `datasets.map` runs batched in one process, and with one process a core, as its
users speed it up. rmjax besides reads, checks, and builds the prefix trees.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import datasets

from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer


def ours(flags: argparse.Namespace, tokenizer: Tokenizer) -> int:
    """Returns the number of tokens."""
    with tempfile.TemporaryDirectory() as cache:
        options = DatasetOptions(strings="chat", max_length=1 << 20)
        return load_dataset((flags.data,), tokenizer, options, split="train", cache_dir=pathlib.Path(cache))[1].tokens


def theirs(flags: argparse.Namespace, tokenizer: Tokenizer, processes: int) -> int:
    """Returns the number of tokens."""

    def encode(batch: dict) -> dict:
        ids = {}
        for key in ("chosen", "rejected"):
            prompts = batch.get("prompt") or [None] * len(batch[key])
            whole = [_messages(prompt, response) for prompt, response in zip(prompts, batch[key], strict=True)]
            texts = [tokenizer.base.apply_chat_template(messages, tokenize=False) for messages in whole]
            ids[key] = tokenizer.base(texts, add_special_tokens=False)["input_ids"]
        return ids

    with tempfile.TemporaryDirectory() as cache:
        table = datasets.load_dataset("json", data_files=flags.data, split="train", cache_dir=cache)
        table = table.map(
            encode,
            batched=True,
            num_proc=processes if processes > 1 else None,
            remove_columns=table.column_names,
            load_from_cache_file=False,
        )
        return sum(len(ids) for key in ("chosen", "rejected") for ids in table[key])


def _messages(prompt: object, response: object) -> list[dict]:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    return [*asked, *([{"role": "assistant", "content": response}] if isinstance(response, str) else response)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    datasets.disable_progress_bars()
    tokenizer = Tokenizer.load(flags.tokenizer)
    cores = os.cpu_count() or 1
    sides = {
        "rmjax": lambda: ours(flags, tokenizer),
        "datasets.map": lambda: theirs(flags, tokenizer, 1),
        f"datasets.map, {cores} processes": lambda: theirs(flags, tokenizer, cores),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens = {}
    for _ in range(flags.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            tokens[name] = side()
            seconds[name].append(time.perf_counter() - start)
    print(f"{cores} cores, {flags.data}")
    for name, taken in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(taken, seconds["rmjax"], strict=True))
        rate = tokens[name] / statistics.median(taken)
        print(f"{name}: {tokens[name]:,} tokens, {rate:,.0f} tokens/s, {ratio:.2f}x the time of rmjax")


if __name__ == "__main__":
    main()

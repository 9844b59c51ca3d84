"""Benchmark of tokenization throughput: rmjax against `datasets.map` with the same tokenizer.

    python experiments/bench_tokenize.py --tokenizer=DIR --data=../shared/data/hh_harmless/train.jsonl.gz

Both render the same chat messages with the same template and tokenize both conversations of each pair. They alternate
for `--rounds` rounds, without caches. `datasets.map` runs batched, with one process and with one process per core. The
time of rmjax includes reading, validation, and building the prefix trees.
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


def run_rmjax(flags: argparse.Namespace, tokenizer: Tokenizer) -> int:
    """Tokenizes the data with rmjax and returns the number of tokens."""
    with tempfile.TemporaryDirectory() as cache:
        options = DatasetOptions(strings="chat", max_length=1 << 20)
        return load_dataset((flags.data,), tokenizer, options, split="train", cache_dir=pathlib.Path(cache))[1].tokens


def run_datasets_map(flags: argparse.Namespace, tokenizer: Tokenizer, processes: int) -> int:
    """Tokenizes the data with `datasets.map` and returns the number of tokens."""

    def encode(batch: dict) -> dict:
        ids = {}
        for key in ("chosen", "rejected"):
            prompts = batch.get("prompt") or [None] * len(batch[key])
            conversations = [_messages(*pair) for pair in zip(prompts, batch[key], strict=True)]
            texts = [tokenizer.base.apply_chat_template(messages, tokenize=False) for messages in conversations]
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
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    return [*turns, *([{"role": "assistant", "content": response}] if isinstance(response, str) else response)]


def main() -> None:
    """Runs the benchmark and prints the throughputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="Hugging Face directory or hub name")
    parser.add_argument("--data", required=True, help="JSONL file of pairs")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each implementation")
    flags = parser.parse_args()
    datasets.disable_progress_bars()
    tokenizer = Tokenizer.load(flags.tokenizer)
    cores = os.cpu_count() or 1
    implementations = {
        "rmjax": lambda: run_rmjax(flags, tokenizer),
        "datasets.map": lambda: run_datasets_map(flags, tokenizer, 1),
        f"datasets.map, {cores} processes": lambda: run_datasets_map(flags, tokenizer, cores),
    }
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    tokens = {}
    for _ in range(flags.rounds):
        for name, tokenize in implementations.items():
            start = time.perf_counter()
            tokens[name] = tokenize()
            seconds[name].append(time.perf_counter() - start)
    print(f"{cores} cores, {flags.data}")
    for name, times in seconds.items():
        ratio = statistics.median(time / base for time, base in zip(times, seconds["rmjax"], strict=True))
        rate = tokens[name] / statistics.median(times)
        print(f"{name}: {tokens[name]:,} tokens, {rate:,.0f} tokens/s, {ratio:.2f}x the time of rmjax")


if __name__ == "__main__":
    main()

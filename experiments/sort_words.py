"""Writes train.jsonl and test.jsonl, pairs of a sorted and an unsorted list of words, to the current directory.

A task that a small transformer learns in half a minute without a download, as an example of one's own data.
"""

import json
import random

WORDS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
SIZES = {"train": 4000, "test": 400}


def main() -> None:
    """Writes both files."""
    random.seed(0)
    for name, size in SIZES.items():
        with open(f"{name}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(size):
                words = random.sample(WORDS, 4)
                chosen, rejected = sorted(words), random.sample(words, 4)
                if chosen != rejected:
                    record = {"prompt": f"Sort {' '.join(words)}:", "chosen": f" {' '.join(chosen)}"}
                    file.write(json.dumps(record | {"rejected": f" {' '.join(rejected)}"}) + "\n")


if __name__ == "__main__":
    main()

"""The reward server as a reward function of TRL's GRPOTrainer.

    python -m pip install -e '.[bench]'
    python -m rmjax.serve --model=runs/vader --http_port=8000
    python experiments/grpo_trl.py --policy=CAUSAL_LM --data=PROMPTS.jsonl

The data has a `prompt` a line, a string or chat messages; the completions of a prompt are asked for together, so the
server computes the prompt once. The trainer's process loads neither JAX nor the reward model.
"""

import argparse

import datasets
import trl

from rmjax.serving import Client


def main() -> None:
    """Trains as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="Hugging Face directory or hub name of a causal LM")
    parser.add_argument("--data", required=True, help="JSONL file with a `prompt` a line")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the reward server's HTTP face")
    trl_parser = trl.TrlParser(trl.GRPOConfig)
    given, rest = parser.parse_known_args()
    (config,) = trl_parser.parse_args_and_config(rest)
    with Client(given.url) as client:
        prompts = datasets.load_dataset("json", data_files=given.data, split="train")
        trainer = trl.GRPOTrainer(
            model=given.policy, reward_funcs=client.reward_function, args=config, train_dataset=prompts
        )
        trainer.train()


if __name__ == "__main__":
    main()

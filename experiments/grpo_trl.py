"""GRPO with TRL's GRPOTrainer and the reward server as its reward function.

    python -m pip install -e '.[bench]'
    python -m rmjax.serve --model=runs/vader --http_port=8000
    python experiments/grpo_trl.py --policy=CAUSAL_LM --data=PROMPTS.jsonl

Each line of the data has a `prompt`, a string or chat messages. The completions of a prompt are scored in one request,
so the server computes the prompt once. The trainer's process loads neither JAX nor the reward model. Other flags are
those of trl.GRPOConfig.
"""

import argparse

from rmjax.serving import Client


def main() -> None:
    """Trains the policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="Hugging Face directory or hub name of a causal LM")
    parser.add_argument("--data", required=True, help="JSONL file with the field `prompt`")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the reward server's HTTP port")
    given, rest = parser.parse_known_args()

    import datasets
    import trl

    (config,) = trl.TrlParser(trl.GRPOConfig).parse_args_and_config(rest)
    with Client(given.url) as client:
        prompts = datasets.load_dataset("json", data_files=given.data, split="train")
        trainer = trl.GRPOTrainer(
            model=given.policy, reward_funcs=client.reward_function, args=config, train_dataset=prompts
        )
        trainer.train()


if __name__ == "__main__":
    main()

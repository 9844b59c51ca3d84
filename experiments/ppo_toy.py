"""PPO with a reward server and a critic server, for a small policy, with the requests of NeMo-Aligner's PPO.

    python experiments/ppo_toy.py --workdir=runs/ppo_toy
    python experiments/ppo_toy.py --workdir=runs/ppo_toy --model=ARTIFACT

Trains and exports configs/binary.py if neither --model nor an artifact in the workdir exists, and starts both servers
on free ports. Values and rewards of rollouts come from one request (critic_infer, combined with the reward model), the
critic is updated by critic_train and saved by critic_save, and the reward server scores the policy's responses after
each update. These rewards, and the gold rewards, which are not used for training, are printed and plotted to
WORKDIR/curve.svg.

On two cores with --model, 40 iterations take 76 seconds: the mean reward rises from -0.06 to 6.10, the gold reward from
-0.16 to 4.98 of 5 (seed 0).
"""

import argparse
import contextlib
import functools
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

import digit_policy as policy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tritonclient.grpc as triton
from matplotlib.axes import Axes
from tritonclient.utils import np_to_triton_dtype

from rmjax.core.plotting import draw_svg
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.serving import Client

REPEATS = 32  # rollouts per prompt and iteration
EPOCHS = 4  # policy updates on the rollouts of an iteration
CRITIC_STEPS = 2  # critic updates on the rollouts of an iteration
CLIP = 0.2  # clip range of the probability ratio
LAMBDA = 0.95  # of generalized advantage estimation; the discount is 1
LEARNING_RATE, CRITIC_LEARNING_RATE = 5e-3, 1e-3
MAX_LENGTH = 256  # --max_length of the servers, in tokens; the longest sequence has 19
_OPTIMIZER = optax.adam(LEARNING_RATE)


class CriticClient:
    """Client of the critic server's three models, over gRPC with tritonclient."""

    def __init__(self, port: int):
        self._client = triton.InferenceServerClient(f"127.0.0.1:{port}")

    def values(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns values float32 [B, S] and rewards float32 [B] of sequences [B, S] of `lengths` [B]."""
        result = self._infer("critic_infer", tokens=tokens, sequence_lengths=lengths[:, None])
        return result.as_numpy("values"), result.as_numpy("rewards")[:, 0]

    def train(self, tokens: np.ndarray, returns: np.ndarray, values: np.ndarray, mask: np.ndarray) -> float:
        """Takes one optimizer step and returns the loss before it.

        Args:
          tokens: int64 [B, S].
          returns, values, mask: float32 [B, S - 1].
        """
        result = self._infer("critic_train", tokens=tokens, returns=returns, prev_values=values, mask=mask)
        return float(result.as_numpy("loss_mean")[0])

    def save(self) -> None:
        """Writes a checkpoint on the server."""
        self._infer("critic_save", dummy_var=np.zeros(1, np.int64))

    def _infer(self, model: str, **arrays: np.ndarray) -> triton.InferResult:
        inputs = [triton.InferInput(name, a.shape, np_to_triton_dtype(a.dtype)) for name, a in arrays.items()]
        for tensor, array in zip(inputs, arrays.values(), strict=True):
            tensor.set_data_from_numpy(array)
        return self._client.infer(model, inputs)


@contextlib.contextmanager
def server(*flags: str) -> Iterator[dict[str, int]]:
    """Runs rmjax.serve; yields its ports, {"gRPC": N, "HTTP": N}, when it is ready."""
    command = [sys.executable, "-m", "rmjax.serve", f"--max_length={MAX_LENGTH}", "--grpc_port=0", "--http_port=0"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        ports: dict[str, int] = {}
        for line in process.stdout:
            if found := re.match(r"(gRPC|HTTP) on \S+:(\d+)$", line):
                ports[found[1]] = int(found[2])
            if len(ports) == 2:
                break
        else:
            raise SystemExit(f"a server did not start, see its error above: {' '.join(process.args)}")
        yield ports
    finally:
        process.terminate()
        process.wait()


def artifact(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the artifact in the workdir; trains and exports a reward model if there is none."""
    run, path = workdir / "reward_model", workdir / "artifact"
    if not path.exists():
        train = ["rmjax.train", "--config=configs/binary.py", f"--workdir={run}"]
        for command in (train, ["rmjax.export", f"--workdir={run}", f"--output={path}"]):
            subprocess.run([sys.executable, "-m", *command], check=True)
    return path


def tokenize(tokenizer: Tokenizer, prompts: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens int64 [B, S], with EOS as in training and padded with 0, and sequence lengths [B]."""
    prompt_texts = [policy.PROMPTS[p][0] for p in prompts]
    sequences = tokenizer.encode([p + text for p, text in zip(prompt_texts, policy.texts(digits), strict=True)])
    lengths = np.array([len(sequence) for sequence in sequences])
    tokens = np.zeros((len(sequences), lengths.max()), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, lengths


def advantages(values: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """A_n = sum_k LAMBDA^k d_{n+k} with d_n = v_{n+1} - v_n, and d = r - v at the last digit.

    Args:
      values: v [B, N], before each digit.
      rewards: r [B] of the whole responses.

    Returns:
      A [B, N].

    Source: Schulman et al. 2016 (arXiv 1506.02438), with discount 1.
    """
    deltas = np.concatenate([values[:, 1:], rewards[:, None]], axis=1) - values
    result = np.zeros_like(deltas)
    total = np.zeros(len(values), values.dtype)
    for n in reversed(range(values.shape[1])):
        total = deltas[:, n] + LAMBDA * total
        result[:, n] = total
    return result


@jax.jit
def update(params, opt_state, prompts, digits, old_log_probs, advantages):
    """Takes a step on PPO's clipped objective; log-probabilities at sampling time and advantages are [B, N]."""

    def loss(params):
        ratio = jnp.exp(policy.log_probs(params, prompts, digits) - old_log_probs)
        return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages).mean()

    updates, opt_state = _OPTIMIZER.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


def ppo(
    critic: CriticClient,
    reward_client: Client,
    tokenizer: Tokenizer,
    iterations: int,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Iterator[tuple[float, float, float]]:
    """Yields (mean reward, mean gold reward, critic loss) after each iteration.

    Args:
      repeats: rollouts per prompt and iteration.
    """
    key, start = jax.random.split(jax.random.key(seed))
    params = policy.init(start)
    opt_state = _OPTIMIZER.init(params)
    prompts = np.repeat(np.arange(len(policy.PROMPTS)), repeats)
    prompt_texts = [policy.PROMPTS[p][0] for p in prompts]
    # One token per byte: v_0 is the value at the space after the prompt, v_n at the n-th digit.
    positions = np.array([len(text) for text in prompt_texts])[:, None] + np.arange(policy.N)
    log_probs = jax.jit(policy.log_probs)
    for i in range(iterations):
        rollout_key, evaluation_key = jax.random.split(jax.random.fold_in(key, i))
        digits = np.asarray(policy.sample(params, rollout_key, prompts))
        tokens, lengths = tokenize(tokenizer, prompts, digits)
        values, rewards = critic.values(tokens, lengths)
        old_log_probs = log_probs(params, prompts, digits)
        digit_values = np.take_along_axis(values, positions, axis=1)
        gains = advantages(digit_values, rewards)

        returns, mask = np.zeros_like(values), np.zeros_like(values)
        np.put_along_axis(returns, positions, gains + digit_values, axis=1)
        np.put_along_axis(mask, positions, 1.0, axis=1)
        targets = [np.ascontiguousarray(a[:, :-1]) for a in (returns, values, mask)]
        losses = [critic.train(tokens, *targets) for _ in range(CRITIC_STEPS)]

        gains = (gains - gains.mean()) / (gains.std() + 1e-6)
        for _ in range(EPOCHS):
            params, opt_state = update(params, opt_state, prompts, digits, old_log_probs, gains)
        responses = np.asarray(policy.sample(params, evaluation_key, prompts))
        scores = reward_client.rewards(policy.texts(responses), prompts=prompt_texts)
        yield float(scores.mean()), policy.gold(prompts, responses), losses[0]
    critic.save()


def plot(name: str, values: Sequence[float], axes: Axes) -> None:
    """Plots a value of each iteration."""
    axes.plot(range(1, len(values) + 1), values, color="#247")
    axes.set(xlabel="iteration", ylabel=name)


def main() -> None:
    """Starts the servers, trains the policy, and prints and plots the rewards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/ppo_toy"), help="output directory")
    parser.add_argument("--model", type=pathlib.Path, help="artifact of configs/binary.py; default: train one")
    parser.add_argument("--iterations", type=int, default=40, help="rollouts and updates")
    given = parser.parse_args()
    model = given.model or artifact(given.workdir)
    critic_flags = (
        f"--critic={model}",
        f"--critic_dir={given.workdir / 'critic'}",
        f"--critic_learning_rate={CRITIC_LEARNING_RATE}",
        "--combine_rm_and_critic",
    )
    shutil.rmtree(given.workdir / "critic", ignore_errors=True)  # of an earlier run
    rows = []
    with contextlib.ExitStack() as stack:
        reward_ports = stack.enter_context(server(f"--model={model}"))
        critic_ports = stack.enter_context(server(f"--model={model}", *critic_flags))
        reward_client = stack.enter_context(Client(f"http://127.0.0.1:{reward_ports['HTTP']}"))
        tokenizer = Tokenizer.load(str(model))
        for row in ppo(CriticClient(critic_ports["gRPC"]), reward_client, tokenizer, given.iterations):
            rows.append(row)
            print(
                f"iteration {len(rows):3}: reward {row[0]:7.3f}, gold {row[1]:6.3f} of {policy.N - 1}, "
                f"critic loss {row[2]:.4f}",
                flush=True,
            )
    names = ("mean reward", "mean gold reward", "critic loss")
    plots = [functools.partial(plot, name, values) for name, values in zip(names, zip(*rows, strict=True), strict=True)]
    curve = given.workdir / "curve.svg"
    curve.parent.mkdir(parents=True, exist_ok=True)
    curve.write_text(draw_svg(plots, "ppo_toy"))
    print(f"curve: {curve}; critic checkpoints: {given.workdir / 'critic'}")


if __name__ == "__main__":
    main()

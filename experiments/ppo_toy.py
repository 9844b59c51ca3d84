"""PPO against a reward server and a critic server, over the wire: a policy in JAX, asked as NeMo-Aligner asks.

    python experiments/ppo_toy.py --workdir=runs/ppo_toy
    python experiments/ppo_toy.py --workdir=runs/ppo_toy --model=ARTIFACT

Trains configs/binary.py and exports it where the workdir has no artifact and none is given, starts both servers on free
ports, and ends them. Rollouts get their values and rewards in one call (critic_infer, combined), the critic learns by
critic_train and is kept by critic_save; the reward server judges the policy's answers after each update. Its rewards
and the gold rewards, which the loop does not learn from, are printed, and drawn to WORKDIR/curve.svg.

With an artifact given, two cores, 76 seconds: in 40 iterations the reward goes from -0.06 to 6.10, gold from -0.16 to
4.98 of 5 (seed 0).
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

REPEATS = 32  # rollouts of each prompt in an iteration
EPOCHS = 4  # of the policy on an iteration's rollouts
CRITIC_STEPS = 2  # on the same
CLIP = 0.2  # of the ratio of probabilities
LAMBDA = 0.95  # of the advantages; rewards come at the end only, so nothing is discounted
LEARNING_RATE, CRITIC_LEARNING_RATE = 5e-3, 1e-3
MAX_LENGTH = 256  # tokens of the servers' rows; the longest answer has 19
_OPTIMIZER = optax.adam(LEARNING_RATE)


class CriticClient:
    """The critic server's three models, asked over gRPC with Triton's own client."""

    def __init__(self, port: int):
        self._client = triton.InferenceServerClient(f"127.0.0.1:{port}")

    def values(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns values float32 [B, S] and rewards float32 [B] of sequences [B, S] of `lengths` [B]."""
        answer = self._ask("critic_infer", tokens=tokens, sequence_lengths=lengths[:, None])
        return answer.as_numpy("values"), answer.as_numpy("rewards")[:, 0]

    def train(self, tokens: np.ndarray, returns: np.ndarray, values: np.ndarray, mask: np.ndarray) -> float:
        """Takes one step and returns the loss before it; all but `tokens` [B, S] are float32 [B, S - 1]."""
        answer = self._ask("critic_train", tokens=tokens, returns=returns, prev_values=values, mask=mask)
        return float(answer.as_numpy("loss_mean")[0])

    def save(self) -> None:
        """Returns when the server has kept a checkpoint."""
        self._ask("critic_save", dummy_var=np.zeros(1, np.int64))

    def _ask(self, model: str, **arrays: np.ndarray) -> triton.InferResult:
        inputs = [triton.InferInput(name, a.shape, np_to_triton_dtype(a.dtype)) for name, a in arrays.items()]
        for one, array in zip(inputs, arrays.values(), strict=True):
            one.set_data_from_numpy(array)
        return self._client.infer(model, inputs)


@contextlib.contextmanager
def server(*flags: str) -> Iterator[dict[str, int]]:
    """Runs rmjax.serve; yields its ports, {"gRPC": N, "HTTP": N}, once it is warm."""
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
            raise SystemExit(f"a server did not start; it says why above: {' '.join(process.args)}")
        yield ports
    finally:
        process.terminate()
        process.wait()


def artifact(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the workdir's reward model, which is trained and exported where it is not there."""
    run, made = workdir / "reward_model", workdir / "artifact"
    if not made.exists():
        train = ["rmjax.train", "--config=configs/binary.py", f"--workdir={run}"]
        for command in (train, ["rmjax.export", f"--workdir={run}", f"--output={made}"]):
            subprocess.run([sys.executable, "-m", *command], check=True)
    return made


def tokenize(tokenizer: Tokenizer, prompts: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens int64 [B, S], 0 behind each sequence's end, and lengths [B]; closed by the EOS as in training."""
    asked = [policy.PROMPTS[p][0] for p in prompts]
    sequences = tokenizer.encode([a + text for a, text in zip(asked, policy.texts(digits), strict=True)])
    lengths = np.array([len(sequence) for sequence in sequences])
    tokens = np.zeros((len(sequences), lengths.max()), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, lengths


def advantages(values: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Returns sum_k LAMBDA^k d_{n+k} with d_n = v_{n+1} - v_n, and d = r - v at the last, [B, N].

    Args:
      values: [B, N], v_n before each digit.
      rewards: [B], r of each whole answer.
    """
    deltas = np.concatenate([values[:, 1:], rewards[:, None]], axis=1) - values
    found = np.zeros_like(deltas)
    running = np.zeros(len(values), values.dtype)
    for n in reversed(range(values.shape[1])):
        running = deltas[:, n] + LAMBDA * running
        found[:, n] = running
    return found


@jax.jit
def update(params, opt_state, prompts, digits, before, gains):
    """Takes a step on PPO's clipped objective; log-probabilities `before` and advantages `gains` are [B, N]."""

    def loss(params):
        ratio = jnp.exp(policy.log_probs(params, prompts, digits) - before)
        return -jnp.minimum(ratio * gains, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * gains).mean()

    updates, opt_state = _OPTIMIZER.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


def ppo(
    critic: CriticClient,
    pipeline: Client,
    tokenizer: Tokenizer,
    iterations: int,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Iterator[tuple[float, float, float]]:
    """Yields (the policy's mean reward, its mean gold reward, the critic's loss) after each iteration.

    Args:
      pipeline: the reward server's client.
      repeats: rollouts of each prompt in an iteration.
    """
    key, start = jax.random.split(jax.random.key(seed))
    params = policy.init(start)
    opt_state = _OPTIMIZER.init(params)
    prompts = np.repeat(np.arange(len(policy.PROMPTS)), repeats)
    questions = [policy.PROMPTS[p][0] for p in prompts]
    # Each text is one token a byte; v_0 is read at the space behind the prompt, v_n at the n-th digit.
    spots = np.array([len(question) for question in questions])[:, None] + np.arange(policy.N)
    log_probs = jax.jit(policy.log_probs)
    for i in range(iterations):
        rolling, judging = jax.random.split(jax.random.fold_in(key, i))
        digits = np.asarray(policy.sample(params, rolling, prompts))
        tokens, lengths = tokenize(tokenizer, prompts, digits)
        values, rewards = critic.values(tokens, lengths)
        before = log_probs(params, prompts, digits)
        spot_values = np.take_along_axis(values, spots, axis=1)
        gains = advantages(spot_values, rewards)

        returns, mask = np.zeros_like(values), np.zeros_like(values)
        np.put_along_axis(returns, spots, gains + spot_values, axis=1)
        np.put_along_axis(mask, spots, 1.0, axis=1)
        targets = [np.ascontiguousarray(a[:, :-1]) for a in (returns, values, mask)]
        losses = [critic.train(tokens, *targets) for _ in range(CRITIC_STEPS)]

        gains = (gains - gains.mean()) / (gains.std() + 1e-6)
        for _ in range(EPOCHS):
            params, opt_state = update(params, opt_state, prompts, digits, before, gains)
        answers = np.asarray(policy.sample(params, judging, prompts))
        judged = pipeline.rewards(policy.texts(answers), prompts=questions)
        yield float(judged.mean()), policy.gold(prompts, answers), losses[0]
    critic.save()


def plot(name: str, values: Sequence[float], axes: Axes) -> None:
    """Draws the values of each iteration."""
    axes.plot(range(1, len(values) + 1), values, color="#247")
    axes.set(xlabel="iteration", ylabel=name)


def main() -> None:
    """Runs the loop as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/ppo_toy"))
    parser.add_argument("--model", type=pathlib.Path, help="an artifact of configs/binary.py; else one is trained")
    parser.add_argument("--iterations", type=int, default=40)
    given = parser.parse_args()
    model = given.model or artifact(given.workdir)
    critic_flags = (
        f"--critic={model}",
        f"--critic_dir={given.workdir / 'critic'}",
        f"--critic_learning_rate={CRITIC_LEARNING_RATE}",
        "--combine_rm_and_critic",
    )
    shutil.rmtree(given.workdir / "critic", ignore_errors=True)  # an earlier run's has seen another policy
    rows = []
    with contextlib.ExitStack() as stack:
        reward = stack.enter_context(server(f"--model={model}"))
        critic = stack.enter_context(server(f"--model={model}", *critic_flags))
        pipeline = stack.enter_context(Client(f"http://127.0.0.1:{reward['HTTP']}"))
        tokenizer = Tokenizer.load(str(model))
        for row in ppo(CriticClient(critic["gRPC"]), pipeline, tokenizer, given.iterations):
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
    print(f"drawn to {curve}; the critic is kept in {given.workdir / 'critic'}")


if __name__ == "__main__":
    main()

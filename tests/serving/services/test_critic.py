"""The critic's values, loss and optimizer step, and its served models."""

import concurrent.futures
import contextlib
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.core.state_files import StateWarning
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.trees import make_tree
from rmjax.evaluation.scoring import Scorer
from rmjax.serving.engine.offload import DeviceMemory
from rmjax.serving.errors import NotFinite
from tests.serving.conftest import MAX_LENGTH, make_critic, start_with_critic


def targets(rng, *lengths):
    return [
        np.concatenate([rng.normal(size=(n, 2)), rng.integers(0, 2, (n, 1))], 1).astype(np.float32) for n in lengths
    ]


def test_values_are_the_rewards_of_every_prefix(tiny_scorer, tmp_path):
    scorer, _ = tiny_scorer
    sequences = [np.arange(5, 5 + n, dtype=np.int32) for n in (1, 7, 40, 30)]
    found = make_critic(scorer, tmp_path).values(sequences)
    for sequence, values in zip(sequences, found, strict=True):
        prefixes = [make_tree([sequence[: n + 1]]) for n in range(len(sequence))]
        np.testing.assert_allclose(values, np.concatenate(scorer.score(prefixes))[:, 0], atol=1e-5)


def test_the_loss_and_its_step_do_not_depend_on_microbatches(tiny_scorer, tmp_path):
    scorer, _ = tiny_scorer
    rng = np.random.default_rng(0)
    sequences = [rng.integers(4, 200, n).astype(np.int32) for n in (30, 20, 40, 10)]
    given = targets(rng, 30, 20, 40, 10)
    expected_sum = weight = 0.0
    critics = [make_critic(scorer, tmp_path / str(rows), rows=rows) for rows in (1, 4)]
    for values, target in zip(critics[0].values(sequences), given, strict=True):
        returns, previous, mask = target.T
        clipped = np.clip(values, previous - 0.2, previous + 0.2)
        expected_sum += float((mask * np.maximum((values - returns) ** 2, (clipped - returns) ** 2)).sum() / 2)
        weight += float(mask.sum())
    losses = [critic.train(sequences, given) for critic in critics]
    np.testing.assert_allclose(losses, expected_sum / weight, rtol=1e-5)
    values = [np.concatenate(critic.values(sequences)) for critic in critics]
    np.testing.assert_allclose(*values, atol=1e-4)


def test_a_critic_on_a_mesh_equals_one_on_one_device_and_its_checkpoint_restores_there(tiny_scorer, tmp_path):
    scorer, _ = tiny_scorer
    rng, lengths = np.random.default_rng(0), (30, 20, MAX_LENGTH - 1, 10)
    sequences = [rng.integers(4, 200, n).astype(np.int32) for n in lengths]
    given = targets(rng, *lengths)
    # Two shards of a sequence do not divide the longest one: its row is longer.
    alone, mesh = make_mesh(devices=jax.devices()[:1]), make_mesh((1, 2, 2, 2))
    options = {"rows": 2, "learning_rate": 1e-4, "row_length": MAX_LENGTH - 1}
    critics = [make_critic(scorer, tmp_path / str(one.size), one, **options) for one in (alone, mesh)]
    before, losses = np.concatenate(critics[0].values(sequences)), []
    for critic in critics:
        np.testing.assert_allclose(np.concatenate(critic.values(sequences)), before, atol=1e-5)
        losses.append([critic.train(sequences, given) for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    after = [np.concatenate(critic.values(sequences)) for critic in critics]
    np.testing.assert_allclose(*after, atol=1e-5)
    assert np.abs(after[0] - before).max() > 1e-3
    critics[1].save()
    again = make_critic(scorer, tmp_path / "8", alone, **options)
    assert again.checkpoint_step == 2
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(again.opt_state)} == {alone}
    for tree, saved in ((again.params, critics[1].params), (again.opt_state, critics[1].opt_state)):
        jax.tree.map(np.testing.assert_array_equal, tree, saved)


def test_training_reduces_the_loss_and_resumes_from_a_checkpoint(tiny_scorer, tmp_path):
    scorer, _ = tiny_scorer
    rng = np.random.default_rng(1)
    sequences = [rng.integers(4, 200, 12).astype(np.int32) for _ in range(4)]
    wanted = [np.stack([np.full(12, 0.5), np.full(12, 0.5), np.ones(12)], 1).astype(np.float32) for _ in sequences]
    critic = make_critic(scorer, tmp_path)
    before = np.concatenate(critic.values(sequences))
    critic.warm_up()
    np.testing.assert_array_equal(np.concatenate(critic.values(sequences)), before)
    losses = [critic.train(sequences, wanted) for _ in range(20)]
    assert losses[-1] < losses[0] / 10
    critic.save()
    critic.save()  # again, without a step in between
    after = np.concatenate(critic.values(sequences))
    again = make_critic(scorer, tmp_path)
    assert again.checkpoint_step == critic.checkpoint_step == 20
    np.testing.assert_array_equal(np.concatenate(again.values(sequences)), after)
    assert again.train(sequences, wanted) == pytest.approx(critic.train(sequences, wanted), rel=1e-6)


def test_a_damaged_critic_is_replaced_by_the_previous_one_and_a_non_finite_one_is_not_saved(tiny_scorer, tmp_path):
    scorer, _ = tiny_scorer
    critic = make_critic(scorer, tmp_path)
    sequence, target = np.arange(5, 9, dtype=np.int32), np.ones((4, 3), np.float32)
    for _ in range(2):
        critic.train([sequence], [target])
        critic.save()
    largest = max((tmp_path / "2").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    with pytest.warns(StateWarning, match=r"/2/default/.* this checkpoint is damaged; moved to .*damaged/2"):
        again = make_critic(scorer, tmp_path)
    assert again.checkpoint_step == 1
    again.train([sequence], [target])
    again.save()
    np.testing.assert_array_equal(again.values([sequence])[0], critic.values([sequence])[0])
    again.train([sequence], [target])
    again.params = jax.tree.map(lambda leaf: leaf * np.nan, again.params)
    with pytest.raises(NotFinite, match=r"step 3: the critic's params/.* is not finite, so it is not saved"):
        again.save()
    assert make_critic(scorer, tmp_path).checkpoint_step == 2


def test_an_update_that_is_not_finite_is_not_applied(tiny_scorer, tmp_path):
    scorer, _ = tiny_scorer
    critic = make_critic(scorer, tmp_path, learning_rate=1e39)  # infinite in float32
    before = critic.values([np.ones(3, np.int32)])[0]
    critic.train([np.ones(3, np.int32)], [np.ones((3, 3), np.float32)])
    np.testing.assert_array_equal(critic.values([np.ones(3, np.int32)])[0], before)
    with pytest.raises(InputError, match="critic_learning_rate is nan; expected a finite number"):
        make_critic(scorer, tmp_path / "other", learning_rate=float("nan"))


def test_a_critic_of_bfloat16_parameters_trains_in_float32(tiny_scorer, tmp_path):
    scorer, _ = tiny_scorer
    model, mesh = dataclasses.replace(scorer.model, param_dtype="bfloat16"), make_mesh()
    with jax.set_mesh(mesh):
        critic = make_critic(types.SimpleNamespace(model=model), tmp_path, learning_rate=1e-6)
        before = jax.device_get(critic.params)
    wanted = np.stack([np.full(12, 0.5), np.full(12, 0.5), np.ones(12)], 1).astype(np.float32)
    for _ in range(3):
        critic.train([np.arange(5, 17, dtype=np.int32)], [wanted])
    leaves = jax.tree.leaves((critic.params, critic.opt_state))
    assert {str(leaf.dtype) for leaf in leaves} == {"float32", "int32"}
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (critic.params, before)), strict=True))


@pytest.fixture(scope="module")
def served(running, tmp_path_factory):
    directory = tmp_path_factory.mktemp("critic")
    with contextlib.ExitStack() as stack:
        made = start_with_critic(stack, running, directory)
        made.directory = directory
        yield made


def infer(served, model, **tensors):
    kinds = {"i": ("INT64", np.int64), "f": ("FP32", np.float32)}
    inputs = []
    for name, values in tensors.items():
        values = np.asarray(values)
        inputs.append(
            {
                "name": name,
                "datatype": kinds[values.dtype.kind][0],
                "shape": list(values.shape),
                "data": values.ravel().tolist(),
            }
        )
    answer = served.http.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
    if answer.status_code != 200:
        return answer.status_code, answer.json()["error"]
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer.json()["outputs"]}


def test_requests_of_nemo_aligners_clients(served, running):
    config = served.http.get("/v2/models/critic_infer/config").json()
    assert config["max_batch_size"] > 0
    assert [output["name"] for output in config["output"]] == ["values", "exceeded", "rewards"]
    for name in ("critic_train", "critic_save"):
        assert served.http.get(f"/v2/models/{name}/config").json()["max_batch_size"] == 0
    tokens, lengths = np.array([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]]), np.array([[3], [5]])
    found = infer(served, "critic_infer", tokens=tokens, sequence_lengths=lengths)
    assert found["values"].shape == (2, 5)
    assert not found["values"][0, 3:].any()
    rewards = np.concatenate(running.scorer.score([make_tree([tokens[0, :3]]), make_tree([tokens[1]])]))
    np.testing.assert_allclose(found["rewards"], rewards, atol=1e-5)
    zeros = np.zeros((2, 4))
    given = {"tokens": tokens, "returns": zeros + 1, "prev_values": zeros, "mask": [[1.0, 1, 0, 0], [0, 0, 0, 0]]}
    losses = [infer(served, "critic_train", **given)["loss_mean"] for _ in range(3)]
    assert losses[0].shape == (1,)
    assert losses[2] < losses[0]
    assert infer(served, "critic_train", **given | {"mask": zeros})["loss_mean"] == 0
    card = lambda model: served.http.get(f"/v2/models/{model}").json()["parameters"]
    assert card("critic_train")["checkpoint_step"] is None
    assert infer(served, "critic_save", dummy_var=[0])["status"].tolist() == [0]
    assert (served.directory / "3").is_dir()
    for name in ("critic_infer", "critic_train", "critic_save"):
        assert card(name) == {
            "max_length": MAX_LENGTH,
            "clip_range": 0.2,
            "learning_rate": 1e-2,
            "checkpoint_step": 3,
            "ports": card(name)["ports"],
        }
        assert "one port serves the reward model and the critic" in card(name)["ports"]
        assert {"(5555)", "(5556)"} <= set(card(name)["ports"].split())
    np.testing.assert_allclose(
        infer(served, "critic_infer", tokens=tokens, sequence_lengths=lengths)["rewards"], rewards, atol=1e-5
    )


@pytest.mark.parametrize(
    ("model", "tensors", "message"),
    [
        (
            "critic_train",
            {"tokens": [[1, 2]]},
            "lacks the tensors ['mask', 'prev_values', 'returns']; expected tokens, ",
        ),
        (
            "critic_train",
            {"returns": [[1.0, 1.0]]},
            "'returns' has shape [1, 2]; expected [1, 1], [B, S - 1] for 'tokens' of shape [1, 2]",
        ),
        ("critic_train", {"tokens": [[9999, 2]]}, "holds the token 9999"),
        ("critic_train", {"tokens": [1, 2]}, "expected [B, S]"),
        ("critic_infer", {"tokens": [[1]]}, "give 'sentences'"),
        ("critic_infer", {"tokens": [[1] * 65], "sequence_lengths": [[65]]}, "expected at most 64"),
    ],
)
def test_invalid_tensors_are_rejected_by_name(served, model, tensors, message):
    if model == "critic_train" and len(tensors) == 1 and "lacks" not in message:
        one = [[1.0]]
        tensors = {"tokens": [[1, 2]], "returns": one, "prev_values": one, "mask": one} | tensors
    status, error = infer(served, model, **tensors)
    assert status == 400
    assert message in error


def test_unsupported_requests_and_damaged_checkpoints_are_errors(served, tiny_scorer, tmp_path):
    assert served.http.post("/classify", json={"model": "critic_infer", "input": "a"}).status_code == 400
    answer = served.http.post("/v2/repository/models/critic_train/load")
    assert (answer.status_code, "cannot be loaded anew" in answer.json()["error"]) == (400, True)
    scorer, _ = tiny_scorer
    critic = make_critic(scorer, tmp_path)
    critic.save()
    step = next(path for path in tmp_path.iterdir() if path.name == "0")
    for path in step.rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"none of the checkpoints is intact: .*/0/sums.json: not valid JSON"):
        make_critic(scorer, tmp_path)
    assert jnp.isfinite(critic.values([np.ones(3, np.int32)])[0]).all()


def test_offload_moves_idle_models_and_changes_no_value(tiny_scorer, running, tmp_path):
    with contextlib.ExitStack() as stack:
        plain = start_with_critic(stack, running, tmp_path / "plain")
        scorer, tokenizer = tiny_scorer
        # No other reference to the arrays that this scorer moves exists.
        own = Scorer(scorer.model, scorer.params, make_mesh(), MAX_LENGTH, rows=1)
        offloaded = types.SimpleNamespace(scorer=own, tokenizer=tokenizer)
        moving = start_with_critic(stack, offloaded, tmp_path / "moving", DeviceMemory(offload=True))
        tokens, lengths = np.arange(5, 25).reshape(2, 10), np.array([[10], [7]])
        zeros = np.zeros((2, 9))
        given = {"tokens": tokens, "returns": zeros + 1, "prev_values": zeros, "mask": zeros + 1}

        def on_device():
            size = lambda memory, model: moving.metric(f"{memory}_bytes", model=model)
            total = {model: size("device", model) + size("host", model) for model in ("reward_model", "critic_infer")}
            assert total["critic_infer"] > 2.9 * total["reward_model"] > 0  # weights, two moments and a count
            return {model: size("device", model) / total[model] for model in total}

        for _ in range(3):
            for name, tensors in [
                ("reward_model", {"tokens": tokens, "sequence_lengths": lengths}),
                ("critic_train", given),
                ("critic_infer", {"tokens": tokens, "sequence_lengths": lengths}),
                ("critic_save", {"dummy_var": [0]}),
            ]:
                one, other = (infer(served, name, **tensors) for served in (plain, moving))
                for output, values in one.items():
                    np.testing.assert_array_equal(values, other[output])
                if name == "critic_train":
                    assert on_device() == {"reward_model": 0, "critic_infer": 1}
                else:  # critic_infer runs the reward model last, and saving moves no array
                    assert on_device() == {"reward_model": 1, "critic_infer": 0}
            kinds = {array.sharding.memory_kind for array in jax.tree.leaves(own.params)}
            assert kinds == {"device"}
        assert moving.metric("compilations_after_warm_up_total", model="reward_model") == 0

        # Both models concurrently, from several clients.
        given, names = {"tokens": tokens, "sequence_lengths": lengths}, ["reward_model", "critic_infer"] * 8
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda name: infer(moving, name, **given), names):
                np.testing.assert_allclose(
                    found["rewards"], infer(plain, "reward_model", **given)["rewards"], atol=1e-5
                )


def test_failed_requests_do_not_change_the_critic(served):
    one = np.ones((1, 3))
    given = {"tokens": [[5, 6, 7, 8]], "returns": one, "prev_values": one * 0, "mask": one}
    values = lambda: infer(served, "critic_infer", tokens=[[5, 6, 7]], sequence_lengths=[[3]])["values"]
    infer(served, "critic_train", **given)
    before = values()
    # The returns are finite, but their squares are not: no optimizer step is taken.
    status, error = infer(served, "critic_train", **given | {"returns": one * 3e38})
    assert (status, "not finite" in error) == (500, True)
    status, error = infer(served, "critic_train", **given | {"mask": -one})
    assert (status, error) == (400, "tensor 'mask', row 0, column 0 is -1.0; expected 1 at tokens of the loss, else 0")
    # Unknown output names return 400 before any computation.
    inputs = [
        {
            "name": name,
            "datatype": "INT64" if name == "tokens" else "FP32",
            "shape": list(np.shape(data)),
            "data": np.asarray(data).ravel().tolist(),
        }
        for name, data in given.items()
    ]
    body = {"inputs": inputs, "outputs": [{"name": "loss"}]}
    assert served.http.post("/v2/models/critic_train/infer", json=body).status_code == 400
    np.testing.assert_array_equal(values(), before)
    assert infer(served, "critic_save") == (
        400,
        "the request lacks the tensor 'dummy_var'; expected INT64 of shape [1], of any value",
    )
    assert infer(served, "critic_save", dummy_var=[0, 0]) == (400, "tensor 'dummy_var' has shape [2]; expected [1]")


def test_texts_get_the_token_that_the_combined_reward_model_reads(running, tmp_path):
    tokenizer = Tokenizer.load("", readout="eos")
    body = {"inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": ["ab"]}]}
    with contextlib.ExitStack() as stack:
        served = start_with_critic(stack, running, tmp_path, tokenizer=tokenizer)
        answer = served.http.post("/v2/models/critic_infer/infer", json=body).json()
    values, _, rewards = (output["data"] for output in answer["outputs"])
    assert len(values) == 2  # the critic's own tokens stay as they are
    expected = running.scorer.score([make_tree(tokenizer.encode(["ab<eos>"], add_eos=False))])
    assert rewards == pytest.approx(expected[0][:, 0].tolist(), abs=1e-5)


def test_truncated_sequences_are_reported(served):
    body = {
        "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [2, 1], "data": ["a" * 99, "b"]}],
        "parameters": {"truncate": True},
    }
    outputs = served.http.post("/v2/models/critic_infer/infer", json=body).json()["outputs"]
    assert next(output["data"] for output in outputs if output["name"] == "exceeded") == [1, 0]

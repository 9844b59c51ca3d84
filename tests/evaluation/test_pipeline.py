import copy
import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.core.state_files import StateWarning
from rmjax.data.records.options import ReadOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file
from rmjax.evaluation.scoring import Scorer
from rmjax.models import artifact
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel

MESSAGES = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]
PAIR = {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No.", "id": 7}


def make_pipeline(directory, attributes=("reward",)):
    tokenizer = Tokenizer.load("")
    decoder = DecoderConfig(len(tokenizer), 32, 64, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 512, 0.2)
    model = RewardModel(decoder, HeadConfig(attributes, init=1.0))
    with jax.set_mesh(make_mesh()):
        params = model.init(jax.random.key(0))
    directory.mkdir()
    tokenizer.save(directory)
    artifact.write(directory, model, params, 0, {"max_length": 100})
    return load_pipeline(str(directory))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("pipeline") / "model")


def write(path, records):
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
    (gzip.open if path.suffix == ".gz" else open)(path, "wt").write(text)
    return str(path)


def score(pipeline, tmp_path, records, name="in.jsonl", **options):
    output = tmp_path / "out.jsonl"
    counts = score_file(pipeline, write(tmp_path / name, records), output, **options)
    return [json.loads(line) for line in output.read_text().splitlines()], counts


def test_lines_have_the_records_fields_and_rewards(pipeline, tmp_path):
    for i, (record, responses) in enumerate([(PAIR, 2), ({"text": "abc", "a": "é"}, 1), ({"messages": MESSAGES}, 1)]):
        (tmp_path / str(i)).mkdir()
        lines, counts = score(pipeline, tmp_path / str(i), [record] * 2, "in.jsonl.gz")
        assert counts == (2, 0)
        assert [{k: v for k, v in line.items() if k != "rewards"} for line in lines] == [record] * 2
        assert [len(line["rewards"]) for line in lines] == [responses] * 2
        assert lines[0]["rewards"] == pytest.approx(lines[1]["rewards"], abs=1e-5)


def test_a_text_of_too_many_characters_has_an_error_without_being_tokenized(pipeline, tmp_path, monkeypatch):
    encode, given = Tokenizer.encode_texts, []
    record = lambda self, texts, *more: given.extend(texts) or encode(self, texts, *more)
    monkeypatch.setattr(Tokenizer, "encode_texts", record)
    lines, counts = score(pipeline, tmp_path, [PAIR, PAIR | {"chosen": " y" * 1_000_000}])
    assert counts == (2, 1)
    assert "2,000,006 characters exceed max_length = 100 tokens; raise" in lines[1]["error"]
    assert max(map(len, given)) < 100


def test_rewards_of_several_attributes_are_objects(tmp_path):
    lines, _ = score(make_pipeline(tmp_path / "model", ("good", "short")), tmp_path, [PAIR])
    assert [sorted(rewards) for rewards in lines[0]["rewards"]] == [["good", "short"]] * 2


def test_records_that_cannot_be_scored_have_an_error(pipeline, tmp_path):
    records = [PAIR, "no json", {"chosen": "a"}, PAIR | {"chosen": " y" * 200}, PAIR | {"rejected": None}, PAIR]
    lines, counts = score(pipeline, tmp_path, records)
    assert counts == (6, 4)
    assert ["error" in line for line in lines] == [False, True, True, True, True, False]
    for line, words in zip(lines[1:5], ("not JSON", "rejected", "max_length = 100", "rejected"), strict=True):
        assert words in line["error"]
        assert "in.jsonl:" in line["error"]
    assert lines[2]["chosen"] == "a"


def test_messages_that_the_template_rejects_do_not_affect_other_records(pipeline, tmp_path, monkeypatch):
    def render(tokenizer, messages):
        if messages[0]["role"] == "clown":
            raise InputError("the chat template refuses these messages")
        return messages[0]["content"]

    monkeypatch.setattr(Tokenizer, "render", render)
    records = [{"messages": [{"role": role, "content": "hi"}]} for role in ("user", "clown", "user")]
    lines, counts = score(pipeline, tmp_path, records)
    assert counts == (3, 1)
    assert "refuses" in lines[1]["error"]


def test_a_killed_run_resumes_and_writes_the_same_file(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("rmjax.evaluation.pipeline.CHUNK_SIZE", 2)
    records = [{"text": "x" * n} for n in (1, 2, 3, 4, 5)] + [{"other": 1}, {"text": "y"}]
    _, counts = score(pipeline, tmp_path, records)
    whole = (tmp_path / "out.jsonl").read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1, len(whole)):
        (tmp_path / "out.jsonl").write_bytes(whole[:cut])
        _, again = score(pipeline, tmp_path, records)
        assert again == counts == (7, 1)
        assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_shards_have_the_records_in_turn_and_are_not_continued_as_others(pipeline, tmp_path):
    records = [{"text": "x" * n} for n in range(1, 6)]
    whole, _ = score(pipeline, tmp_path, records)
    for i in range(3):
        (tmp_path / "out.jsonl").unlink()
        lines, counts = score(pipeline, tmp_path, records, shard=(i, 3))
        assert [line["text"] for line in lines] == [line["text"] for line in whole[i::3]]
        assert counts == (len(whole[i::3]), 0)
        for line, expected in zip(lines, whole[i::3], strict=True):
            assert line["rewards"] == pytest.approx(expected["rewards"], abs=1e-5)
    with pytest.raises(InputError, match="shard was '2/3' and is '0/1'"):
        score(pipeline, tmp_path, records)


def test_a_chunk_that_was_cut_is_scored_again_as_a_whole(pipeline, tmp_path, monkeypatch):
    """A batch of the rest of the chunk alone would have other rows, and other float rounding."""
    scored = []
    monkeypatch.setattr("rmjax.evaluation.pipeline.CHUNK_SIZE", 3)

    def record(pipeline, items, *rest):
        scored.append([item.record["text"] for item in items])
        return iter(())

    monkeypatch.setattr("rmjax.evaluation.score_file.score_chunks", record)
    records = [{"text": str(n)} for n in range(8)]
    lines = [json.dumps(record | {"rewards": [0.0]}) + "\n" for record in records]
    for kept, left in ((2, "01234567"), (3, "34567"), (7, "67"), (8, "")):
        (tmp_path / "out.jsonl").write_text("".join(lines[:kept]))
        score(pipeline, tmp_path, records)
        assert "".join(scored.pop()) == left


@pytest.mark.parametrize("change", ["parameters", "dtype", "max_length", "strings", "tokenizer"])
def test_the_output_of_another_model_or_option_is_not_continued(pipeline, tmp_path, change):
    score(pipeline, tmp_path, [PAIR] * 2)
    scorer, other = pipeline.scorer, pipeline
    if change == "parameters":
        params = jax.tree.map(lambda leaf: leaf * 1.5, scorer.params)
        other = dataclasses.replace(pipeline, scorer=Scorer(scorer.model, params, make_mesh(), 100, scorer.rows))
    elif change == "dtype":
        model = dataclasses.replace(scorer.model, dtype="bfloat16")
        other = dataclasses.replace(pipeline, scorer=Scorer(model, scorer.params, make_mesh(), 100, scorer.rows))
    elif change == "max_length":
        other = dataclasses.replace(pipeline, max_length=99)
    elif change == "strings":
        other = pipeline.with_data_options("auto", (), "chat")
    else:
        base = copy.deepcopy(pipeline.tokenizer.base)
        base.chat_template = "{{ messages[0]['content'] }}"
        other = dataclasses.replace(pipeline, tokenizer=dataclasses.replace(pipeline.tokenizer, base=base))
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"out.jsonl was written by another run \(.*" + change):
        score(other, tmp_path, [PAIR] * 3)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    (tmp_path / "out.jsonl.run.json").unlink()
    with pytest.warns(StateWarning, match="without knowing what model and options wrote it"):
        score(pipeline, tmp_path, [PAIR] * 3)


def test_the_output_of_another_input_is_not_continued(pipeline, tmp_path):
    score(pipeline, tmp_path, [{"text": "a"}, {"text": "b"}])
    with pytest.raises(InputError, match=r"out\.jsonl:2: scores a record of another input"):
        score(pipeline, tmp_path, [{"text": "a"}, {"text": "c"}])
    with pytest.raises(InputError, match="no such record"):
        score(pipeline, tmp_path, [{"text": "a"}])


def test_best_is_the_index_of_the_highest_reward(pipeline, tmp_path):
    # The last two were scored before; their fields `error`, `best` and `rewards` are not of this run.
    several = {"prompt": "Is it?", "responses": [" No.", " Yes.", " Maybe."]}
    two = several | {"responses": [" No.", " Yes."]}
    records = [
        several,
        two,
        several | {"responses": [" b" * n for n in (1, 200)]},
        several | {"error": "once"},
        two | {"best": 7, "rewards": [0]},
    ]
    for _ in range(2):  # the second time there is nothing left to score
        lines, counts = score(pipeline, tmp_path, records, best_of=True)
        assert counts == (5, 1)
        assert "best" not in lines[2]
        for line in (*lines[:2], *lines[3:]):
            assert line["best"] == int(np.argmax(line["rewards"]))
    with pytest.raises(InputError, match=r"out\.jsonl:1: was written with --best_of; use the same flag"):
        score(pipeline, tmp_path, records)
    (tmp_path / "out.jsonl").unlink()
    lines, _ = score(pipeline, tmp_path, records[:2])
    assert not any("best" in line for line in lines)
    with pytest.raises(InputError, match=r"out\.jsonl:1: was written with --nobest_of"):
        score(pipeline, tmp_path, records[:2], best_of=True)


def test_best_of_several_attributes_is_by_the_merged_reward(tmp_path):
    pipeline = make_pipeline(tmp_path / "model", ("good", "short"))
    lines, _ = score(pipeline, tmp_path, [{"text": "one response has no best"}], best_of=True)
    assert "best" not in lines[0]
    (tmp_path / "out.jsonl").unlink()
    (line,), _ = score(pipeline, tmp_path, [PAIR], best_of=True)
    assert line["best"] == int(np.argmax([sum(rewards.values()) for rewards in line["rewards"]]))


def test_evaluate_writes_metrics_predictions_and_report(pipeline, tmp_path):
    records = [PAIR | {"chosen": f" {n}.", "id": n} for n in range(20)] + [PAIR | {"chosen": " long" * 50}]
    items = read_evaluation_data([write(tmp_path / "in.jsonl", records)], ReadOptions())
    found = evaluate(pipeline, items, title="t")
    found.save(tmp_path / "out")
    headline = dict(found.headline)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert metrics["comparisons"] == 20
    assert metrics["not_scored"] == 1
    assert "error" in lines[20]
    margins = np.array([line["rewards"][0] - line["rewards"][1] for line in lines[:20]])
    assert metrics["margin"] == pytest.approx(margins.mean())
    assert metrics["accuracy"] == pytest.approx((margins > 0).mean())
    assert headline["accuracy"].startswith(f"{metrics['accuracy']:.4f}")
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    scored, _ = score(pipeline, tmp_path, records)
    np.testing.assert_allclose([x["rewards"] for x in scored[:20]], [x["rewards"] for x in lines[:20]], atol=1e-5)


def test_several_responses_are_scored_in_order_and_compared_by_their_edges(pipeline, tmp_path):
    record = {"prompt": "Is it?", "chosen": [" Yes.", " It is."], "rejected": " No."}
    pairs = [record | {"chosen": chosen} for chosen in record["chosen"]]
    (line, *single), _ = score(pipeline, tmp_path, [record, *pairs])
    assert {key: line[key] for key in record} == record
    (first, rejected), (second, _) = (pair["rewards"] for pair in single)
    assert line["rewards"] == pytest.approx([first, second, rejected], abs=1e-5)
    evaluation = evaluate(pipeline, read_evaluation_data([write(tmp_path / "one.jsonl", [record])], ReadOptions()))
    assert evaluation.metrics["accuracy"] == pytest.approx(((first > rejected) + (second > rejected)) / 2)


def test_the_label_of_safe_rlhf_is_the_models_unless_one_is_given(pipeline, tmp_path):
    record = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    source = write(tmp_path / "in.jsonl", [record])
    trained = dataclasses.replace(pipeline, options=ReadOptions(label_field="better_response_id"))
    for label, winner in ((None, 1), ("", 1), ("safer_response_id", 0)):
        (item,) = read_evaluation_data([source], trained.with_data_options("auto", (), None, label).options)
        assert item.edges[0].winner == winner


def test_evaluation_of_the_built_in_data_has_its_ceiling(pipeline, tmp_path):
    evaluate(pipeline, read_evaluation_data(["synthetic"], ReadOptions(), limit=30)).save(tmp_path)
    assert 0.8 < json.loads((tmp_path / "metrics.json").read_text())["accuracy_ceiling"] < 1


def test_a_bad_record_is_an_error_unless_skipped(tmp_path):
    source = write(tmp_path / "in.jsonl", [PAIR, {"chosen": "a"}])
    with pytest.raises(InputError, match=r"in\.jsonl:2: no 'rejected'"):
        read_evaluation_data([source], ReadOptions())
    assert len(read_evaluation_data([source], ReadOptions(), on_bad_record="skip")) == 2


def test_max_length_is_at_most_the_models_positions(pipeline, tmp_path):
    with pytest.raises(InputError, match="513"):
        make_pipeline(tmp_path / "model") and load_pipeline(str(tmp_path / "model"), max_length=513)


def test_columns_are_renamed_before_scoring(pipeline, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"question": "p", "chosen": "a", "rejected": "b"}) + "\n")
    assert score_file(pipeline, str(source), tmp_path / "lost.jsonl") == (1, 1)  # the prompt is missing
    renamed = dataclasses.replace(pipeline, options=dataclasses.replace(pipeline.options, columns=("question=prompt",)))
    assert score_file(renamed, str(source), tmp_path / "out.jsonl") == (1, 0)


def test_reports_of_score_and_evaluate_name_fields_that_are_not_read(pipeline, tmp_path):
    path = write(tmp_path / "in.jsonl", [PAIR | {"rationale": f"The first answers it. {i}"} for i in range(3)])
    fields = "fields: prompt, chosen, rejected; without a prompt: 0; not read: `rationale` (text, 100 %)"
    lines = []
    score_file(pipeline, path, tmp_path / "out.jsonl", log=lines.append)
    assert lines == [fields]
    lines.clear()
    items = read_evaluation_data([path], pipeline.options, log=lines.append)
    evaluation = evaluate(pipeline, items, notes=lines)
    assert evaluation.notes == (fields,)
    assert str(evaluation).endswith(fields)
    evaluation.save(tmp_path / "report")
    assert fields in (tmp_path / "report" / "report.html").read_text()


def test_when_nothing_can_be_scored_the_first_cause_is_named(pipeline, tmp_path):
    path = write(tmp_path / "in.jsonl", [PAIR | {"chosen": "x" * 200, "rejected": "y" * 200}] * 2)
    items = read_evaluation_data([path], pipeline.options)
    message = r"none of 2 records could be scored; the first error: .*in\.jsonl:1: 2\d\d tokens"
    with pytest.raises(InputError, match=message):
        evaluate(pipeline, items)

"""Suites from files to reports: invented records of each published layout, scored by a small random model."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import rmjax
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.records.sources import memory_source
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.suites import SUITES
from rmjax.evaluation.suites.run import evaluate_suite, read_suite, suite_pipeline
from rmjax.models import artifact
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from tests.glossary import undefined

WORDS = ("the", "sum", "of", "two", "odd", "numbers", "is", "even", "and", "so", "it", "follows", "that", "this")


def words(seed, count=6):
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def best_of_four(i, subset):
    more = {"id": str(i), "num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4}
    rejected = [words(i + 1), words(i + 2), words(i + 3)]
    return more | {"prompt": words(i), "chosen": [words(i + 9)], "rejected": rejected, "subset": subset}


def ties(kind, number):
    sides = {"chosen": [words(1), words(2)][: 2 if kind == "tied" else 1], "rejected": [words(3), words(4)]}
    return sides | {"id": f"{kind}:{number}", "prompt": f"{kind} {number} {words(number)}", "subset": "Ties"}


def samples(i):
    responses = {f"response_{k}": words(90 * i + k) for k in range(1, 9)}
    scores = [k % 3 == 0 for k in range(8)]
    more = {"question_id": str(i), "model_name": "m", "Question": words(i), "choices": ["a", "b"], "mean_score": 0.4}
    return more | {"prompt": words(i, 30), "scores": scores, "sampled_conflict_pairs": [[0, 1], [2, 3]]} | responses


def votes(i):
    more = {"question_id": f"h{i}", "model_a": "x", "model_b": "y", "language": "English", "is_code": i % 2 == 0}
    winner = ("model_a", "model_b", "tie", "tie (bothbad)")[i % 4]
    return more | {"prompt": words(i), "response_1": words(i + 50), "response_2": words(i + 60), "winner": winner}


def solution(subset, i):
    label = (-1, 0, 2)[i % 3]
    more = {"generator": "m", "final_answer_correct": label == -1}
    return more | {
        "id": f"{subset}-{i}",
        "problem": words(i),
        "steps": [words(i + s) for s in range(3)],
        "label": label,
    }


def modified(name, i):
    original = {"original_question": words(i), "original_process": [words(i), words(i + 1)], "reason": words(i + 7)}
    steps = {"modified_question": words(i + 5), "modified_process": [words(i), words(i + 2), words(i + 3)]}
    return original | steps | {"error_steps": [2], "modified_steps": [2], "classification": name, "idx": f"t_{i}"}


RECORDS = {
    "rewardbench": [
        {"id": i, "prompt": words(i), "chosen": words(i + 20), "rejected": words(i + 40), "subset": subset,
         "chosen_model": "x", "rejected_model": "y"}
        for i, subset in enumerate(["alpacaeval-easy", "math-prm", "hep-go", "donotanswer", "llmbar-natural"] * 2)
    ],
    "rewardbench2": [best_of_four(i, s) for i, s in enumerate(["Math", "Focus", "Safety", "Precise IF", "Factuality"])]
    + [ties(kind, number) for kind in ("ref", "tied") for number in (1, 2)],
    "rm_bench": [
        {"id": i, "prompt": words(i), "domain": domain, "chosen": [words(i + k) for k in (1, 2, 3)],
         "rejected": [words(i + k) for k in (4, 5, 6)]}
        for i, domain in enumerate(["chat", "code", "math", "safety-refuse", "safety-response"])
    ],
    "judgebench": [
        {"pair_id": str(i), "original_id": "o", "source": source, "question": words(i), "response_model": "m",
         "response_A": words(i + 1), "response_B": words(i + 2), "label": ("A>B", "B>A")[i % 2]}
        for i, source in enumerate(["mmlu-pro-law", "livebench-math", "livecodebench", "livebench-reasoning"])
    ],
    "processbench": [solution(subset, i) for subset in ("gsm8k", "math") for i in range(6)],
    "prmbench": [modified(name, i) for i, name in enumerate(["redundency", "circular", "confidence", "deception"])],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("suites") / "model"
    tokenizer = Tokenizer.load("")
    decoder = DecoderConfig(len(tokenizer), 32, 64, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 512, 0.2)
    reward_model = RewardModel(decoder, HeadConfig(("reward",), init=1.0))
    with jax.set_mesh(make_mesh()):
        params = reward_model.init(jax.random.key(0))
    directory.mkdir()
    tokenizer.save(directory)
    artifact.write(directory, reward_model, params, 0, {"max_length": 256})
    return str(directory)


@pytest.fixture(scope="module")
def pipeline(model):
    return suite_pipeline(load_pipeline(model), None)


def write(path, records):
    """Writes records in the form of the path's suffix: JSON lines, a JSON array, or Parquet."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def evaluate(name, pipeline, sources, **options):
    suite = SUITES[name]
    data = read_suite(suite, sources, pipeline.options)
    return evaluate_suite(suite, pipeline, data, progress=False, **options)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_suite_is_read_as_it_is_published(name, suffix, pipeline, tmp_path):
    found = evaluate(name, pipeline, [write(tmp_path / f"data{suffix}", RECORDS[name])])
    metrics = found.metrics
    assert undefined(metrics) == []
    assert metrics["not_scored"] == 0
    assert metrics["comparisons"] == len(RECORDS[name]) + (name == "prmbench")  # and the class `correct`
    assert metrics[f"{name}/score_low"] <= metrics[f"{name}/score"] <= metrics[f"{name}/score_high"]
    assert [len(line["rewards"]) for line in found.predictions][:1] == [{"rewardbench2": 4, "rm_bench": 6}.get(
        name, 3 if SUITES[name].steps else 2)]  # fmt: skip
    assert "NOT the published set" in found.sections[-1].text


def test_ppe_reads_both_kinds(pipeline, tmp_path):
    human = write(tmp_path / "human.jsonl", [votes(i) for i in range(8)])
    correct = write(tmp_path / "download.parquet", [samples(i) for i in range(4)])
    found = evaluate("ppe", pipeline, [human, f"gpqa={correct}"])
    assert {"ppe/human", "ppe/gpqa", "ppe/gpqa/auc", "ppe/gpqa/best_of_k_end", "ppe/score"} <= found.metrics.keys()
    assert undefined(found.metrics) == []
    assert len(found.predictions[-1]["rewards"]) == 8
    with pytest.raises(InputError, match=r"download.parquet:1: not a record of ppe: which of the sets"):
        read_suite(SUITES["ppe"], [correct], pipeline.options)


def test_rewards_of_a_long_response_are_missing_and_the_others_stay(pipeline):
    records = [RECORDS["rm_bench"][0] | {"rejected": [words(1), words(2), words(3, 900)]}]
    whole = evaluate("rm_bench", pipeline, [memory_source(RECORDS["rm_bench"][:1])])
    cut = evaluate("rm_bench", pipeline, [memory_source(records)])
    fitting = [records[0] | {"rejected": [words(1), words(2), words(3)]}]
    short = evaluate("rm_bench", pipeline, [memory_source(fitting)]).predictions[0]["rewards"][3:5]
    assert cut.metrics["not_scored"] == 1
    assert "exceed max_length" in cut.predictions[0]["error"]
    assert cut.predictions[0]["rewards"][:5] == pytest.approx([*whole.predictions[0]["rewards"][:3], *short], abs=1e-5)
    assert cut.predictions[0]["rewards"][5] is None
    assert cut.metrics["rm_bench/matrix_0_2"] == cut.metrics["rm_bench/matrix_2_2"] == 0
    assert whole.metrics["not_scored"] == 0


def test_the_program_writes_scores_and_the_note(model, run_main, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", RECORDS["processbench"])
    flags = [f"--model={model}", "--suite=processbench", f"--data={data}", f"--output={tmp_path / 'out'}"]
    run_main("evaluate", *flags, "--threshold=0.5")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["processbench/threshold"] == 0.5
    assert "processbench/score" in capsys.readouterr().out
    report = (tmp_path / "out" / "report.html").read_text()
    for text in ("Reproduction", "gsm8k: 6 of 400", "up to 256 tokens", "What the official code does differently"):
        assert text in report
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 12


def test_two_models_are_compared_over_the_same_tasks(model, pipeline, run_main, tmp_path):
    data = write(tmp_path / "data.jsonl", RECORDS["rm_bench"])
    flags = [f"--model={model}", f"--compare={model}", "--suite=rm_bench", f"--data={data}"]
    run_main("evaluate", *flags, f"--output={tmp_path / 'out'}")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["compare/rm_bench/score_other"] == metrics["rm_bench/score"] == metrics["compare/rm_bench/score"]
    assert [metrics[f"compare/rm_bench/score_difference{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert "Comparison with another model" in (tmp_path / "out" / "report.html").read_text()

    one = evaluate("rm_bench", pipeline, [data])
    turned = dataclasses.replace(pipeline, scorer=copy.copy(pipeline.scorer))
    turned.scorer.params = jax.tree.map(lambda leaf: leaf, pipeline.scorer.params)
    turned.scorer.params["head"] = {"kernel": -pipeline.scorer.params["head"]["kernel"]}
    found = one.compare(evaluate("rm_bench", turned, [data]))
    assert found.metrics["rm_bench/score_difference"] == pytest.approx(2 * one.metrics["rm_bench/score"] - 1)
    assert dict(found.headline)["rm_bench/score of the other model"] == f"{1 - one.metrics['rm_bench/score']:.4f}"
    with pytest.raises(InputError, match="has other tasks than"):
        one.compare(evaluate("rm_bench", pipeline, [memory_source(RECORDS["rm_bench"][:2])]))


def test_python_gives_the_same_numbers(model, pipeline, tmp_path):
    data = write(tmp_path / "data.jsonl", RECORDS["judgebench"])
    found = rmjax.load(model).evaluate(data, suite="judgebench")
    assert found.metrics == evaluate("judgebench", pipeline, [data]).metrics
    assert found.title.endswith("on JudgeBench (data.jsonl)")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite=rm_bench", "--format=pairs"], "--suite has its own format"),
        (["--suite=rm_bench", "--threshold=1"], "--threshold needs --suite=processbench"),
        ([], r"--data \(or --suite\)"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, run_main, tmp_path):
    with pytest.raises(InputError, match=message):
        run_main("evaluate", "--model=m", f"--output={tmp_path}", *flags)


def test_a_record_of_another_suite_is_named(pipeline):
    source = memory_source(RECORDS["rm_bench"][:1])
    with pytest.raises(InputError, match=r"records:1: not a record of judgebench: label is None"):
        read_suite(SUITES["judgebench"], [source], pipeline.options)
    mixed = memory_source([*RECORDS["judgebench"], RECORDS["rm_bench"][0]])
    assert read_suite(SUITES["judgebench"], [mixed], pipeline.options, on_bad_record="skip").skipped == 1

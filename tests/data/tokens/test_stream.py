"""Tokenizing a stream in chunks and in worker processes gives what tokenizing all comparisons at once gives."""

import os
import re

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import memory_source
from rmjax.data.tokens import stream
from rmjax.data.tokens.spool import TokenSpool
from rmjax.data.tokens.tokenize import DatasetOptions, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.workers import map_in_processes

OPTIONS = DatasetOptions(max_length=60, on_bad_record="skip")


def records(count):
    """Returns pairs, of which every seventh is too long, every tenth cannot be tokenized, and some have attributes."""
    rng = np.random.default_rng(0)
    words = lambda most: "w" * int(rng.integers(1, most))
    for i in range(count):
        yield {
            "prompt": f"{i} {words(20)}",
            "chosen": words(20) + "long" * 20 * (i % 7 == 0),
            "rejected": [{"role": "assistant", "content": "<eos>"}] if i % 10 == 0 else words(20) + "!",
            "subset": f"s{i % 3}",
        } | ({"chosen": [{"role": "assistant", "content": "x"}]} if i % 10 == 0 else {})


def comparisons(count=40):
    return read_comparisons(memory_source(list(records(count))), OPTIONS)[0]


def run(given, progress=False, options=OPTIONS):
    estimate = lambda count: count
    return stream.tokenize_stream(
        iter(given), Tokenizer.load(""), options, "x", TokenSpool(None), estimate_total=estimate, progress=progress
    )


@pytest.fixture
def chunks(monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK", 4)


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_chunks_and_processes_change_nothing(chunks, monkeypatch, cores):
    monkeypatch.setattr(stream, "_num_cores", lambda: cores)
    found, report = run(comparisons())
    expected, expected_report = tokenize(comparisons(), Tokenizer.load(""), OPTIONS, "x")
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
    assert vars(report) == vars(expected_report)
    assert 0 < report.dropped_overlong < 10
    assert report.skipped
    assert report.kept == len(found) > 20


def test_few_comparisons_start_no_process(monkeypatch):
    monkeypatch.setattr(stream, "map_in_processes", None)
    assert run(comparisons())[1].kept > 0
    assert len(run([])[0]) == 0


def test_an_error_in_a_process_is_raised_and_ends_all(chunks, monkeypatch):
    monkeypatch.setattr(stream, "_num_cores", lambda: 2)
    options = DatasetOptions(max_length=60, on_overlong="error")
    with pytest.raises(InputError, match=r"records:8: .* tokens, more than data\.max_length = 60"):
        run(comparisons()[1:10] + comparisons()[11:], options=options)


def test_progress_names_the_source_and_the_rate(chunks, capsys):
    run(comparisons(), progress=True)
    assert re.search("tokenizing x.*tokens/s", capsys.readouterr().err, re.DOTALL)


def test_a_killed_process_is_an_error():
    with pytest.raises(RuntimeError, match="ended with exit status 3"):
        list(map_in_processes(os._exit, [3], 1))


def test_results_are_in_the_order_of_the_chunks():
    assert list(map_in_processes(abs, range(-20, 0), 3)) == list(range(20, 0, -1))


def test_an_error_while_reading_ends_the_processes():
    def chunks():
        yield 1
        raise InputError("in.jsonl:7: damaged")

    with pytest.raises(InputError, match=r"in\.jsonl:7"):
        list(map_in_processes(abs, chunks(), 2))

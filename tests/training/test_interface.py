"""`train` as a function: in threads and event loops, with sources in memory, and what it prints."""

import ast
import asyncio
import concurrent.futures
import pathlib
import shlex
import signal

import pytest

from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.data.records.sources import memory_source
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from tests.training.test_experiment import lines
from tests.training.test_tasks import with_objective, write

PACKAGE = pathlib.Path(__file__).parent.parent.parent / "rmjax"


@pytest.fixture
def short(tiny):
    tiny.train.steps = 2
    tiny.evaluation.every = 1
    return tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its configuration, its workdir, and the lines it printed."""
    from tests.training.conftest import tiny as tiny_config

    config = tiny_config.__wrapped__()
    path, printed = tmp_path_factory.mktemp("finished") / "a user's run", []
    train(config, path, log=printed.append, progress=False)
    return config, path, printed


def test_nothing_is_printed_but_by_log(finished, tmp_path, short, capfd):
    _, _, printed = finished
    assert printed[0].startswith("train: synthetic: 200 comparisons of 200 records")
    train(short, tmp_path / "run", log=lambda line: None, progress=False)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    for folder in ("training", "data"):
        for path in (PACKAGE / folder).rglob("*.py"):
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert "print" not in [call.id for call in calls if isinstance(call, ast.Name)], path


def test_in_a_log_file_progress_is_plain_lines(short, tmp_path, capfd):
    train(short, tmp_path / "run")
    captured = capfd.readouterr()
    assert not {"\r", "\x1b"} & set(captured.out + captured.err)
    assert captured.out.splitlines()[-1].startswith("best checkpoint: step ")
    (line,) = [line for line in captured.err.splitlines() if line.startswith("training: ")]
    assert line.startswith("training: 100% 2/2 [")


def test_the_last_line_names_the_best_checkpoint(finished):
    _, path, printed = finished
    step = Workdir(path).best_step()
    accuracy = Workdir(path).validation_metrics(step)["accuracy"]
    assert printed[-1] == f"best checkpoint: step {step}, accuracy {accuracy:.4f}; these commands use it"


def test_printed_commands_can_be_pasted_into_a_shell(finished, tmp_path, run_main, capsys):
    _, path, printed = finished
    commands = [line.partition("python -m ")[2] for line in printed if "python -m " in line]
    assert [shlex.split(command)[:2] for command in commands] == [
        ["rmjax.evaluate", f"--model={path}"],
        ["rmjax.export", f"--workdir={path}"],
        ["rmjax.serve", f"--model={path}/artifact"],
    ]
    artifact = tmp_path / "a user's model"
    run_main("export", f"--workdir={path}", f"--output={artifact}")
    serve = capsys.readouterr().out.splitlines()[-1].partition("python -m rmjax.serve ")[2]
    assert shlex.split(serve) == [f"--model={artifact}", "--grpc_port=8001"]


def test_a_second_run_of_a_finished_workdir_has_its_metrics(finished):
    config, path, printed = finished
    again = []
    result = train(config, path, log=again.append)
    expected = lines(path, "validation")[-1]
    assert {name: result.validation[name] for name in ("loss", "accuracy")} == {
        name: expected[name] for name in ("loss", "accuracy")
    }
    assert f"{path} holds the complete run of 6 steps" in again
    assert again[-6:] == printed[-6:]
    assert again[-6].startswith("done: 6 steps, validation loss 0.")


def test_attributes_and_their_merge_weights_are_printed(short, tmp_path):
    short = with_objective(short, "regression", "regression", standardize=True)
    printed = []
    train(short, tmp_path / "run", log=printed.append, progress=False)
    assert "attributes and their merge weights: order 0.5, start 0.5" in printed


def test_numbers_and_nouns_agree(tiny, tmp_path):
    write(tmp_path / "one.jsonl", "pairs", 1)
    tiny.data.train = tiny.data.validation = (str(tmp_path / "one.jsonl"),)
    tiny.train.steps = tiny.train.batch_size = tiny.train.rows_per_device = 1
    printed = []
    train(tiny, tmp_path / "run", log=printed.append, progress=False)
    text = "\n".join(printed)
    assert "1 comparison of 1 record (pairs)" in text
    assert "plan: 1 step of 1 comparison, rows of 64 tokens" in text
    assert "up to 1 microbatch of 1 row per step; 1 validation comparison" in text
    assert "warning: 1 of 1 validation comparison" in text
    assert "done: 1 step, validation " in text


def test_training_works_in_a_thread_and_in_an_event_loop(short, finished, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        in_thread = pool.submit(train, short, tmp_path / "thread", log=lambda line: None, progress=False).result()

    async def call():
        return train(short, tmp_path / "loop", log=lambda line: None, progress=False)

    in_loop = asyncio.run(call())
    assert in_thread == in_loop
    assert lines(tmp_path / "thread") == lines(tmp_path / "loop")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    async def resume():  # restores a checkpoint
        short.train.steps, short.evaluation.every = 2, 2
        return train(short, tmp_path / "loop", log=lambda line: None, progress=False)

    assert asyncio.run(resume()).step == 2


def test_sources_in_memory_train_as_the_same_records_in_a_file(short, tmp_path):
    records = [item.record for item in synthetic.comparisons("train", 24)]
    files = tuple(write(tmp_path / f"{name}.jsonl", "pairs") for name in ("train", "test"))
    short.data.train, short.data.validation = (files[0],), (files[1],)
    train(short, tmp_path / "file", log=lambda line: None, progress=False)
    before, printed = short.to_json(), []
    sources = {"train": [memory_source(records)], "validation": [memory_source(records, name="own"), files[1]]}
    result = train(short, str(tmp_path / "memory"), sources=sources, log=printed.append, progress=False)
    assert short.to_json() == before
    assert [line["loss"] for line in lines(tmp_path / "memory", "train")] == [
        line["loss"] for line in lines(tmp_path / "file", "train")
    ]
    assert "own/accuracy" in result.validation
    assert Workdir(tmp_path / "memory").config().data.train == ("records",)
    assert any("--data=FILE" in line for line in printed if line.startswith("evaluate: "))
    train(short, tmp_path / "memory", sources=sources, log=printed.append, progress=False)
    assert f"{tmp_path}/memory holds the complete run of 2 steps" in printed


def test_a_wrong_validation_metric_stops_the_run_before_its_first_step(short, tmp_path):
    short.checkpoint.best = "auc"
    with pytest.raises(InputError, match=r"config\.checkpoint\.best is 'auc'; choose one of accuracy, "):
        train(short, tmp_path / "run", progress=False)
    assert [line["split"] for line in lines(tmp_path / "run")] == ["validation"]


def test_epochs_end_a_run_before_its_steps(short, tmp_path):
    short.train.steps, short.train.epochs = 1000, 0.2  # 40 of 200 comparisons, 16 a step
    assert train(short, tmp_path / "run", log=lambda line: None, progress=False).step == 3

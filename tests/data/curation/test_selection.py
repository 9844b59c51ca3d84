"""Comparisons that are left out of the training data."""

import json

import pytest

from rmjax.core.errors import InputError
from rmjax.data.curation.selection import Curation, read_reference
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import memory_source

QUESTIONS = [
    f"Question {i}: {text}"
    for i, text in enumerate(
        [
            "which of the rivers of this continent is the longest one, and through which countries does it flow?",
            "why does the moon look larger when it stands close to the horizon than when it stands high in the sky?",
            "what should a gardener who lives in a dry place plant in spring, and how often is it to be watered?",
            "how do the musicians of an orchestra know when to begin if the conductor is not on the stage yet?",
        ]
    )
]


def record(i, chosen=" yes", rejected=" no", prompt=None):
    return {"prompt": prompt or QUESTIONS[i], "chosen": chosen, "rejected": rejected}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def choose(sources, **options):
    """Returns the places of what is kept of each source, and the reports."""
    given = ReadOptions(**options)
    curation, kept, reports = None, [], []
    for source in sources:
        curation = Curation(source, given, previous=curation)
        comparisons, report = read_comparisons(source, given)
        kept.append([comparison.where.rsplit(":", 1)[1] for comparison in curation.choose(comparisons, report)])
        reports.append(report)
    return kept, reports


def test_duplicates_are_kept_by_default():
    assert not Curation("a.jsonl", ReadOptions()).is_active
    assert choose([memory_source([record(0), record(0)])])[0] == [["1", "2"]]


def test_the_first_of_duplicates_is_kept():
    similar = record(0, prompt=QUESTIONS[0].replace("countries", "lands").upper())
    records = [record(0), record(1), record(0), record(0, " no", " yes"), record(0, " other"), similar]
    (kept,), (report,) = choose([memory_source(records)], duplicates="drop")
    assert kept == ["1", "2", "5", "6"]
    assert dict(report.skipped) == {
        "duplicate of another comparison": 1,
        "duplicate of another comparison, with other labels": 1,
    }
    assert report.first_skipped == {
        "duplicate of another comparison": "records:3: the same conversations as records:1",
        "duplicate of another comparison, with other labels": "records:4: the same conversations as records:1, with "
        "other labels",
    }
    (kept,), (report,) = choose([memory_source(records)], duplicates="drop_near")
    assert kept == ["1", "2", "5"]
    assert report.skipped["near duplicate of another comparison"] == 1
    assert report.first_skipped["near duplicate of another comparison"] == "records:6: similar to records:1"


def test_the_comparisons_may_come_from_an_iterator():
    given = ReadOptions(duplicates="drop_near")
    comparisons, report = read_comparisons(memory_source([record(0), record(1), record(0), record(2)]), given)
    kept = Curation("a.jsonl", given).find_kept(iter(comparisons), report)
    assert kept.tolist() == [True, True, False, True]
    assert sum(report.skipped.values()) == 1


def test_the_first_over_all_sources_is_kept(tmp_path):
    first = write(tmp_path / "a.jsonl", [record(0), record(0), record(1)])
    second = write(tmp_path / "b.jsonl", [record(2), record(1), record(3)])
    kept, reports = choose([first, second, second], duplicates="drop")
    assert kept == [["1", "3"], ["1", "3"], []]
    assert reports[1].first_skipped["duplicate of another comparison"] == (
        f"{second}:2: the same conversations as {first}:3"
    )
    # The choice does not depend on whether earlier sources were chosen from in this process (they may be cached).
    given = ReadOptions(duplicates="drop")
    curation = Curation(second, given, previous=Curation(first, given))
    comparisons, report = read_comparisons(second, given)
    assert [item.where for item in curation.choose(comparisons, report)] == [f"{second}:1", f"{second}:3"]


def test_prompts_of_evaluation_sets_are_left_out(tmp_path):
    messages = lambda text: [{"role": "user", "content": text}]
    bench = write(
        tmp_path / "bench.jsonl",
        [
            {"prompt": messages(QUESTIONS[0].upper()), "responses": ["a", "b"], "ranks": [1, 2]},
            {"prompt": messages(QUESTIONS[1].replace("moon", "sun")), "responses": ["a", "b"], "ranks": [1, 2]},
        ],
    )
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": QUESTIONS[2], "id": 1}])
    records = [record(i, chosen) for chosen in (" yes", " sure") for i in range(4)]
    train = write(tmp_path / "train.jsonl", records)
    (kept,), (report,) = choose([train], exclude=(bench, prompts))
    assert kept == ["4", "8"]
    assert dict(report.skipped) == {f"prompt in {bench}": 2, f"similar prompt in {bench}": 2, f"prompt in {prompts}": 2}
    assert report.first_skipped == {
        f"prompt in {bench}": f"{train}:1: its prompt is that of {bench}:1",
        f"similar prompt in {bench}": f"{train}:2: its prompt is similar to that of {bench}:2",
        f"prompt in {prompts}": f"{train}:3: its prompt is that of {prompts}:1",
    }
    (kept,), _ = choose([train], exclude=(bench,), similarity=1.0)
    assert kept == ["2", "3", "4", "6", "7", "8"]
    (kept,), _ = choose([train], exclude=(bench,), duplicates="drop_near")
    assert kept == ["3", "4", "7", "8"]


def test_a_duplicate_of_an_excluded_comparison_is_not_a_duplicate(tmp_path):
    bench = write(tmp_path / "bench.jsonl", [{"prompt": QUESTIONS[0]}])
    changed = QUESTIONS[0].replace("rivers", "streams")
    _, (report,) = choose(
        [memory_source([record(0), record(0, prompt=changed)])], exclude=(bench,), duplicates="drop_near"
    )
    assert dict(report.skipped) == {f"prompt in {bench}": 1, f"similar prompt in {bench}": 1}
    (kept,), _ = choose(
        [memory_source([record(0), record(0, prompt=changed)])],
        exclude=(bench,),
        duplicates="drop_near",
        similarity=1.0,
    )
    assert kept == ["2"]


def test_empty_prompts_match_nothing(tmp_path):
    bench = write(tmp_path / "bench.jsonl", [{"prompt": "?"}, {"prompt": QUESTIONS[0]}])
    records = [{"chosen": "yes", "rejected": "no"}, {"prompt": "!", "chosen": " yes", "rejected": " no"}]
    (kept,), _ = choose([memory_source(records)], exclude=(bench,))
    assert kept == ["1", "2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"text": "A whole text."}],
            "no record of {path} has a prompt by which it could be found in the training data",
        ),
        ([{"id": 3}], "config.data.exclude: {path}:1: no format has the fields id"),
        ([{"prompt": QUESTIONS[0]}, {"prompt": 3}], "{path}:2: prompt is 3; expected"),
        ([{"prompt": QUESTIONS[0]}, ["x"]], "{path}:2: expected a JSON object"),
        ([{"prompt": QUESTIONS[0], "response": 4}], "{path}:1: response is 4; expected a string or a list of messages"),
    ],
)
def test_unusable_evaluation_sets_are_errors(tmp_path, lines, message):
    path = write(tmp_path / "bench.jsonl", lines)
    with pytest.raises(InputError) as error:
        read_reference([path], ReadOptions())
    assert message.format(path=path) in str(error.value)
    assert "on_bad_record" not in str(error.value)


def test_an_evaluation_set_in_the_format_of_the_training_data(tmp_path):
    module = tmp_path / "form.py"
    module.write_text(
        "def parse(record):\n    return {'prompt': record['q'], 'chosen': record['a'], 'rejected': record['b']}\n"
    )
    bench = write(tmp_path / "bench.jsonl", [{"q": QUESTIONS[0], "a": "x", "b": "y"}])
    reference = read_reference([bench], ReadOptions(format=str(module)))
    assert reference.names == [bench]
    assert reference.signatures["prompt"].all()


@pytest.mark.parametrize(
    "prompt",
    [
        QUESTIONS[0],
        f"\n\nHuman: {QUESTIONS[0]}",
        f"\n\nHuman: {QUESTIONS[0]}\n\nAssistant:",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[0]}],
    ],
)
def test_forms_of_prompts_alone(tmp_path, prompt):
    bench = write(tmp_path / "bench.jsonl", [{"prompt": prompt}])
    (kept,), (report,) = choose([memory_source([record(0), record(1)])], exclude=(bench,))
    assert kept == ["2"]
    assert dict(report.skipped) == {f"prompt in {bench}": 1}


def test_columns_are_renamed_in_evaluation_sets(tmp_path):
    bench = write(tmp_path / "bench.jsonl", [{"question": QUESTIONS[0]}])
    (kept,), _ = choose([memory_source([record(0), record(1)])], exclude=(bench,), columns=("question=prompt",))
    assert kept == ["2"]


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    bench, first = tmp_path / "bench.jsonl", tmp_path / "a.jsonl"
    write(bench, [{"prompt": QUESTIONS[0]}])
    write(first, [record(0)])

    def fingerprint(**options):
        given = ReadOptions(**options)
        return Curation("b.jsonl", given, previous=Curation(str(first), given)).fingerprint()

    found = {
        name: fingerprint(**options)
        for name, options in (("keep", {}), ("exclude", {"exclude": (str(bench),)}), ("drop", {"duplicates": "drop"}))
    }
    assert len(set(found.values())) == 3
    write(first, [record(1)])
    assert fingerprint() == found["keep"]
    assert fingerprint(exclude=(str(bench),)) == found["exclude"]
    assert fingerprint(duplicates="drop") != found["drop"]
    write(bench, [{"prompt": QUESTIONS[1]}])
    assert fingerprint(exclude=(str(bench),)) != found["exclude"]


def test_built_in_data_may_come_first():
    given = ReadOptions(duplicates="drop")
    curation = Curation(
        memory_source([record(0), record(0)]), given, previous=Curation("synthetic", given, synthetic_size=9)
    )
    comparisons, report = read_comparisons(memory_source([record(0), record(0)]), given)
    assert len(curation.choose(comparisons, report)) == 1
    assert curation.fingerprint()


def test_the_choice_is_checked():
    with pytest.raises(InputError, match=r"config\.data\.duplicates is 'all'; choose one of keep, drop, drop_near"):
        Curation("a.jsonl", ReadOptions(duplicates="all"))

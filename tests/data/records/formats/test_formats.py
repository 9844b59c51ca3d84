"""Formats: records to comparisons."""

import csv
import gzip
import json

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.formats import FORMATS, detect_format, parse_sources
from rmjax.data.records.formats.single import HELPSTEER, NEMO
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.schema import Edge

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "q"}
CHAT = [USER, {"role": "assistant", "content": "a"}]
OTHER = [USER, {"role": "assistant", "content": "b"}]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(tmp_path, records, **options):
    source = write(tmp_path / "in.jsonl", records)
    found, report = read_comparisons(source, ReadOptions(**options))
    return found, report.format


def edges(comparison):
    return [(edge.winner, edge.loser) for edge in comparison.edges]


@pytest.mark.parametrize(
    ("records", "format", "conversations"),
    [
        ([{"prompt": "p", "chosen": " a", "rejected": " b"}], "pairs", ("p a", "p b")),
        ([{"chosen": "p a", "rejected": "p b"}], "pairs", ("p a", "p b")),
        ([{"prompt": [USER], "chosen": CHAT[1:], "rejected": OTHER[1:]}], "pairs", (CHAT, OTHER)),
        ([{"prompt": "q", "chosen": CHAT, "rejected": OTHER}], "pairs", (CHAT, OTHER)),
        ([{"text": "p a"}, {"text": "p b"}], "nemo_binary", ("p a", "p b")),
        ([{"prompt": "p", "response_1": " a", "response_2": " b", "preference_strength": -2}], "preference_strength",
         ("p a", "p b")),
        ([{"prompt": "p", "responses": [" a", " b"], "ranks": [1, 2]}], "kwise", ("p a", "p b")),
        ([{"prompt": "p", "responses": [" a", " b"], "scores": [0.5, -1]}], "kwise", ("p a", "p b")),
        ([{"instruction": "p", "completions": [{"response": " a", "overall_score": 8.5},
                                               {"response": " b", "overall_score": 2}]}],
         "completions", ("p a", "p b")),
        ([{"instruction": "p", "completions": [
            {"response": " a", "annotations": {"x": {"Rating": "4"}, "y": {"Rating": "N/A"}}},
            {"response": " b", "annotations": {"x": {"Rating": "2"}, "y": {"Rating": "5"}}}]}], "completions",
         ("p a", "p b")),
        ([{"context": [USER], "completions": [{"rank": 0, "completion": CHAT[1:]},
                                              {"rank": 1, "completion": OTHER[1:]}]}], "completions", (CHAT, OTHER)),
    ],
)  # fmt: skip
def test_edge_points_from_the_better_to_the_worse_response(tmp_path, records, format, conversations):
    found, taken = read(tmp_path, records)
    assert taken == format
    assert len(found) == 1
    assert edges(found[0]) == [(0, 1)]
    assert found[0].edges[0].weight == 1
    assert found[0].conversations == conversations


def test_pairs_keep_margin_strength_weight_probability_and_subset(tmp_path):
    extra = {"margin": 0.5, "strength": 3, "weight": 2, "probability": 0.8, "subset": "chat"}
    found, _ = read(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"} | extra])
    assert found[0].edges == (Edge(0, 1, 0.5, 2.0, 3.0, 0.8),)
    assert found[0].subset == "chat"


def test_hh_transcripts_become_messages_with_strings_chat(tmp_path):
    prompt = "\n\nHuman: Hi\n\nthere\n\nAssistant: "
    record = {"chosen": prompt + "Yes.", "rejected": prompt + "No."}
    found, _ = read(tmp_path, [record], strings="chat")
    assert found[0].conversations[0] == [
        {"role": "user", "content": "Hi\n\nthere"},
        {"role": "assistant", "content": "Yes."},
    ]
    joined, _ = read(tmp_path, [record])
    assert joined[0].conversations == (record["chosen"], record["rejected"])


def test_edge_weights_of_a_ranking_with_ties_sum_to_one(tmp_path):
    record = {"prompt": "p", "responses": ["a", "b", "c", "d"], "ranks": [1, 2, 2, 4]}
    found, _ = read(tmp_path, [record])
    assert edges(found[0]) == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert sum(edge.weight for edge in found[0].edges) == pytest.approx(1)
    half, _ = read(tmp_path, [record], ties="half")
    assert [(e.winner, e.loser) for e in half[0].edges if e.target == 0.5] == [(1, 2)]
    assert sum(edge.weight for edge in half[0].edges) == pytest.approx(1)


def test_identical_responses_have_no_edge(tmp_path):
    found, _ = read(tmp_path, [{"prompt": "p", "responses": ["a", "a", "c"], "ranks": [1, 2, 3]}])
    assert edges(found[0]) == [(0, 2), (1, 2)]
    assert sum(edge.weight for edge in found[0].edges) == pytest.approx(1)


def test_sign_of_helpsteer_preference_strength_picks_the_winner(tmp_path):
    record = {"prompt": "p", "response_1": "a", "response_2": "b"}
    found, _ = read(tmp_path, [record | {"preference_strength": s} for s in (-3, 1)])
    assert [c.edges for c in found] == [(Edge(0, 1, 3.0, strength=3.0),), (Edge(1, 0, 1.0, strength=1.0),)]
    source = write(tmp_path / "in.jsonl", [record | {"preference_strength": s} for s in (0, 2)])
    found, report = read_comparisons(source, ReadOptions())
    assert len(found) == 1
    assert sum(report.skipped.values()) == 1
    tied, _ = read(tmp_path, [record | {"preference_strength": 0}], ties="half")
    assert tied[0].edges[0].target == 0.5


def test_attributes_are_read_from_helpsteer_columns_labels_and_nemo_lists(tmp_path):
    values = dict(zip(HELPSTEER, (3, 4, 4, 2, None), strict=True))
    found, taken = read(tmp_path, [{"prompt": "p", "response": " r"} | values])
    assert taken == "regression"
    assert found[0].attributes == HELPSTEER
    np.testing.assert_array_equal(found[0].labels, [[3, 4, 4, 2, np.nan]])

    found, _ = read(tmp_path, [{"prompt": "p", "response": " r", "labels": {"b": 1.5, "a": 2}}])
    assert found[0].attributes == ("a", "b")
    assert found[0].conversations == ("p r",)
    np.testing.assert_array_equal(found[0].labels, [[2, 1.5]])

    found, taken = read(tmp_path, [{"text": "t", "label": [-100, 1, 2, 3, 4, 0, 1, 2, 3]}])
    assert taken == "nemo_regression"
    assert found[0].attributes == NEMO
    assert not found[0].add_eos
    np.testing.assert_array_equal(found[0].labels, [[np.nan, 1, 2, 3, 4, 0, 1, 2, 3]])
    found, _ = read(tmp_path, [{"text": "t", "label": [7, 1]}], missing_label=7.0)
    np.testing.assert_array_equal(found[0].labels, [[np.nan, 1]])


def test_nemo_preference_reads_sign_and_size_of_the_preference_label(tmp_path):
    lines = [{"text": text, "label": [value, *[-100] * 8]} for value in (-2, 1, 0) for text in ("p a", "p b")]
    found, taken = read(tmp_path, lines)
    assert taken == "nemo_preference"
    assert [c.edges[0] for c in found] == [
        Edge(0, 1, 2.0, strength=2.0),
        Edge(1, 0, 1.0, strength=1.0),
        Edge(1, 0, 0.0, strength=0.0),
    ]
    assert np.isnan(found[0].labels).all()
    assert found[0].labels.shape == (2, 9)


def test_group_prompts_joins_single_responses_to_one_prompt(tmp_path):
    records = [{"prompt": p, "response": r, "labels": {"x": i}} for i, (p, r) in enumerate(["pa", "qb", "pc"])]
    found, _ = read(tmp_path, records, group_prompts=True)
    assert [c.conversations for c in found] == [("pa", "pc"), ("qb",)]
    np.testing.assert_array_equal(found[0].labels, [[0], [2]])


@pytest.mark.parametrize(
    ("record", "format", "text", "labels"),
    [
        ({"prompt": "p", "completions": ["s1", "s2", "s3"], "labels": [True, False, -100]}, "process", "p\ns1\ns2\ns3",
         [1, 0, np.nan]),
        ({"prompt": "p", "completions": ["s1", "s2", "s3"], "labels": [1, 0, -1]}, "process", "p\ns1\ns2\ns3",
         [1, 0.5, 0]),
        ({"question": {"problem": "p"}, "label": {"steps": [
            {"completions": [{"text": "s1", "rating": 1}], "chosen_completion": 0, "human_completion": None},
            {"completions": [{"text": "x", "rating": 1}, {"text": "s2", "rating": None}], "chosen_completion": 1},
            {"completions": [{"text": "s3", "rating": -1}], "chosen_completion": None}]}}, "prm800k", "p\ns1\ns2\ns3",
         [1, np.nan, 0]),
        ({"input": "p Step 1: s1 ки\nStep 2: s2 ки", "label": "p Step 1: s1 +\nStep 2: s2 -"}, "math_shepherd",
         "p\nStep 1: s1\nStep 2: s2", [1, 0]),
        ({"input": "p ки q step 1: s1 ки\nStep 2: s2 ки", "label": "p - q step 1: s1 +\nStep 2: s2 -"}, "math_shepherd",
         "p  q\nstep 1: s1\nStep 2: s2", [1, 0]),
    ],
)  # fmt: skip
def test_process_formats_give_step_ends_and_labels(tmp_path, record, format, text, labels):
    found, taken = read(tmp_path, [record])
    assert taken == format
    assert found[0].conversations == (text,)
    ends = [*[i for i, c in enumerate(text) if c == "\n"][1:], len(text)]
    assert found[0].steps == tuple(ends)
    np.testing.assert_array_equal(found[0].labels[:, 0], labels)


def test_columns_can_be_renamed(tmp_path):
    records = [{"question": "p", "good": "a", "bad": "b"}]
    found, _ = read(tmp_path, records, columns=("question=prompt", "good=chosen", "bad=rejected"))
    assert found[0].conversations == ("pa", "pb")
    with pytest.raises(InputError, match=r"config.data.columns holds 'good'; expected old=new"):
        read(tmp_path, records, columns=("good",))


def test_parquet_csv_and_datasets_directories_give_the_same_as_jsonl(tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    records = [{"prompt": "p", "chosen": "a, \n b", "rejected": "3", "margin": 0.5}] * 2
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    with open(tmp_path / "in.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    expected, _ = read(tmp_path, records)
    for name in ("in.parquet", "saved", "in.csv"):
        found, report = read_comparisons(f"mine={tmp_path / name}", ReadOptions())
        assert [c.conversations for c in found] == [c.conversations for c in expected], name
        assert [c.edges for c in found] == [c.edges for c in expected], name
        assert {c.subset for c in found} == {"mine"}
        assert report.records == 2


def test_damaged_parquet_and_csv_errors_name_file_and_line(tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"in.parquet: damaged, or not a Parquet file"):
        read_comparisons(str(tmp_path / "in.parquet"), ReadOptions())
    (tmp_path / "in.csv").write_text("prompt,chosen,rejected\np,a,b\np,a\n")
    with pytest.raises(InputError, match=r"in.csv:3: the line has another number of cells"):
        read_comparisons(str(tmp_path / "in.csv"), ReadOptions())


def test_labels_are_not_read_for_scoring(tmp_path):
    records = [
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "responses": ["a", "b"]},
        {"prompt": "p", "response": "a"},
        {"text": "a", "label": "?"},
        {"prompt": "p", "completions": ["s1", "s2"]},
        {"prompt": "p", "response_1": "a", "response_2": "b"},
    ]
    for record in records:
        (found,) = parse_sources(write(tmp_path / "in.jsonl", [record]), ReadOptions(labeled=False))
        assert found.edges == ()
        assert found.labels is None, (record, found)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "p", "responses": "ab", "ranks": [1, 2]}, "responses is 'ab'; expected a list"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "ranks has 1 entry; expected 2"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1, None]}, r"ranks\[1\] is None; expected a finite number"),
        ({"prompt": "p", "responses": ["a", "b"], "rank": [1, 2]}, r"no 'ranks'; expected a record such as \{"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e39}, "margin is 1e\\+39; expected a finite"),
        ({"prompt": [SYSTEM], "chosen": CHAT, "rejected": OTHER}, "chosen starts with a 'user' message"),
        ({"prompt": "p", "response": "r", "labels": {"x": "high"}}, "labels.x is 'high'; expected a finite number"),
        ({"prompt": "p", "response": "r", "labels": {"x": None}}, "every label is missing"),
        ({"prompt": "p", "response": "r", "is_safe": True}, r"no label; expected one number, .*'OLD=label'"),
        ({"prompt": "p", "response": "r", "score": float("nan")}, "score is nan; expected a finite number, true"),
        ({"prompt": "p", "response": "r", "label": "good"}, "label is 'good'; expected a finite number, true"),
        ({"text": "t", "label": "3, 4"}, "label is '3, 4'; expected a list of numbers"),
        ({"prompt": "p", "completions": ["s"], "labels": [2]}, r"labels\[0\] is 2; expected true, false"),
        ({"prompt": "p", "completions": ["s", " "], "labels": [1, 1]}, r"completions\[1\] is ' '; expected a string"),
        ({"prompt": "p", "completions": ["s"], "labels": [-100]}, "no step is labeled"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "weight": 0}, "weight is 0.0; expected more than 0"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "probability": 2}, "probability is 2.0; expected 0 to 1"),
        ({"question": {}, "label": {"steps": []}}, "not a PRM800K record"),
        ({"input": "Step 1: a ки", "label": "nothing"}, "label has no \\+ or - after step 1"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_field(tmp_path, record, reason):
    with pytest.raises(InputError, match=rf"in.jsonl:1: {reason}"):
        read(tmp_path, [record])


def test_every_format_can_be_selected_by_name(tmp_path):
    for format in FORMATS:
        items = list(parse_sources(write(tmp_path / "in.jsonl", [{"unknown": 1}]), ReadOptions(format=format)))
        assert len(items) == 1
        assert items[0].where.endswith("in.jsonl:1"), format


def test_format_detection_and_line_pairs_are_per_file(tmp_path):
    first = write(tmp_path / "a.jsonl", [{"text": t} for t in ("p a", "p b", "p c")])
    second = write(tmp_path / "b.jsonl", [{"text": t} for t in ("q a", "q b")])
    third = write(tmp_path / "c.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    items = list(parse_sources([first, second, third], ReadOptions()))
    assert [getattr(item, "conversations", None) for item in items] == [
        ("p a", "p b"),
        None,
        ("q a", "q b"),
        ("pa", "pb"),
    ]
    assert "a.jsonl:3" in items[1].where
    assert "the last line has no partner" in items[1].reason


def test_null_keys_of_messages_are_ignored(tmp_path):
    nulls = [message | {"tool_calls": None} for message in CHAT]
    found, _ = read(tmp_path, [{"prompt": [USER], "chosen": nulls, "rejected": OTHER}])
    assert found[0].conversations == (CHAT, OTHER)


PAIR = {"chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("record", [
    PAIR | {"question": "p"},
    {"chosen": CHAT[1:], "rejected": OTHER[1:], "context": [USER]},
    {"question": "p", "responses": ["a", "b"], "ranks": [1, 2]},
    {"instruction": "p", "response_1": "a", "response_2": "b", "preference_strength": 1},
    {"question": "p", "response": "a", "helpfulness": 1},
    {"question": "p", "completions": ["s"], "labels": [True]},
])  # fmt: skip
def test_prompt_under_another_name_is_an_error(tmp_path, record):
    name = next(name for name in ("question", "instruction", "context") if name in record)
    with pytest.raises(InputError, match=rf"in.jsonl:1: there is no prompt, but '{name}'; .*{name}=prompt"):
        read(tmp_path, [record])
    found, _ = read(tmp_path, [record], columns=(f"{name}=prompt",))
    assert all(c[0] == USER if isinstance(c, list) else c.startswith("p") for c in found[0].conversations)


def test_completions_accept_the_field_prompt(tmp_path):
    entries = [{"response": " a", "overall_score": 2}, {"response": " b", "overall_score": 1}]
    assert read(tmp_path, [{"prompt": "p", "completions": entries}])[0][0].conversations == ("p a", "p b")


def test_system_prompt_is_rendered_and_other_system_texts_are_errors(tmp_path):
    record = PAIR | {"system_prompt": "s", "prompt": "q", "system": "M11"}
    found, _ = read(tmp_path, [record], strings="chat")
    assert found[0].conversations == ([SYSTEM, *CHAT], [SYSTEM, *OTHER])
    messages = {"system_prompt": "s", "prompt": [USER], "chosen": CHAT[1:], "rejected": OTHER[1:]}
    assert read(tmp_path, [messages])[0][0].conversations == found[0].conversations
    with pytest.raises(InputError, match=r"system_prompt is given beside strings that are joined"):
        read(tmp_path, [record])
    with pytest.raises(InputError, match=r"system holds a text; .*system=system_prompt"):
        read(tmp_path, [record | {"system": "Be brief."}])


def test_probability_below_one_half_swaps_winner_and_loser(tmp_path):
    found, _ = read(tmp_path, [PAIR | {"prompt": "p", "probability": 0.25, "margin": 0.5, "strength": 2, "weight": 3}])
    assert found[0].edges == (Edge(1, 0, -0.5, weight=3.0, strength=2.0, target=0.75),)


def test_weight_and_subset_apply_to_every_format(tmp_path):
    record = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 3], "weight": 6, "subset": "x"}
    found, _ = read(tmp_path, [record])
    assert [edge.weight for edge in found[0].edges] == [2.0] * 3
    assert found[0].subset == "x"
    with pytest.raises(InputError, match=r"weight is 0.0; expected more than 0"):
        read(tmp_path, [record | {"weight": 0}])


@pytest.mark.parametrize("record", [
    {"prompt": "p", "responses": ["a"], "ranks": [1]},
    {"instruction": "p", "completions": [{"response": "a", "overall_score": 1}]},
])  # fmt: skip
def test_ranking_of_one_response_is_an_error_unless_scoring(tmp_path, record):
    with pytest.raises(InputError, match=r"has one entry; expected two or more"):
        read(tmp_path, [record])
    source = write(tmp_path / "in.jsonl", [record])
    assert len(next(parse_sources(source, ReadOptions(labeled=False))).conversations) == 1


@pytest.mark.parametrize("text", ["\n\nHuman: q\n\nAssistant:", "\n\nHuman: q\n\nAssistant: b\n\nHuman: "])
def test_transcript_without_a_final_response_is_an_error(tmp_path, text):
    record = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": text}
    with pytest.raises(InputError, match=r"rejected ends in an empty turn, or in the human's"):
        read(tmp_path, [record], strings="chat")


def test_meaning_of_step_label_zero_is_per_source_and_can_be_set(tmp_path):
    step = lambda *labels: {"prompt": "p", "completions": ["s"] * len(labels), "labels": list(labels)}
    one, other = (
        write(tmp_path / "a.jsonl", [step(True, False)]),
        write(tmp_path / "b.jsonl", [step(-1, 0), step(0, 1)]),
    )
    labels = lambda sources, **options: [
        c.labels[:, 0].tolist() for c in read_comparisons(sources, ReadOptions(**options))[0]
    ]
    assert labels([one, other]) == [[1, 0], [0, 0.5], [0.5, 1]]
    assert labels([one], step_labels="ternary") == [[1, 0.5]]
    with pytest.raises(InputError, match=r"labels holds -1; with data.step_labels = binary"):
        labels([other], step_labels="binary")


def test_prm800k_human_steps_are_right_and_empty_steps_end_the_record(tmp_path):
    steps = [
        {"completions": [{"text": "s1", "rating": 1}], "human_completion": {"text": "h"}, "chosen_completion": 0},
        {"completions": None, "human_completion": {"text": "s2", "rating": None}, "chosen_completion": None},
        {"completions": None, "human_completion": None, "chosen_completion": None},
    ]
    found, _ = read(tmp_path, [{"question": {"problem": "p"}, "label": {"steps": steps}}])
    assert found[0].conversations == ("p\ns1\ns2",)
    assert found[0].labels[:, 0].tolist() == [1, 1]


def test_files_without_readable_records_give_bad_records(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("{\n[]\n")
    items = list(parse_sources(str(source), ReadOptions()))
    assert [(item.where, item.kind) for item in items] == [
        (f"{source}:1", "not JSON"),
        (f"{source}:2", "expected a JSON object, found list"),
    ]


@pytest.mark.parametrize(
    ("lines", "format"),
    [
        ([{"text": "a"}, {"text": "b"}], "nemo_binary"),
        ([{"text": "a"}], "text"),
        ([{"text": "a", "label": [1, -100]}, {"text": "b", "label": [1, -100]}], "nemo_preference"),
        ([{"text": "a", "label": [1, 2]}, {"text": "b", "label": [1, 2]}], "nemo_regression"),
        ([{"text": "a", "label": [1, -100]}, {"text": "b", "label": [2, -100]}], "nemo_regression"),
        ([{"chosen": "a", "text": "a", "response": "a"}], "pairs"),
        ([{"response": "a", "messages": CHAT}], "regression"),
    ],
)
def test_detection_takes_the_first_matching_format(lines, format):
    head = [(f"in.jsonl:{i}", line) for i, line in enumerate(lines, 1)]
    assert detect_format(head, ReadOptions()).name == format


def test_format_is_detected_from_the_first_record_with_a_known_one(tmp_path):
    good = {"text": None, "prompt": "p", "response": "a", "helpfulness": 1}  # Parquet has null fields
    source = tmp_path / "in.jsonl"
    source.write_text("{\n{\n" + json.dumps({"foo": 1}) + "\n" + json.dumps(good) + "\n")
    found, report = read_comparisons(str(source), ReadOptions(on_bad_record="skip"))
    assert (report.format, len(found), sum(report.skipped.values())) == ("regression", 1, 3)


def test_csv_responses_may_be_json_text_and_long(tmp_path):
    path = tmp_path / "in.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow(["p", "[2, 3, 5]", '{"a": 1}'])
        writer.writerow(["p", "x" * 200_000, json.dumps([{"k": 1}])])
        writer.writerow([json.dumps([USER]), json.dumps(CHAT[1:]), json.dumps(OTHER[1:])])
    found = read_comparisons(str(path), ReadOptions())[0]
    assert [c.conversations for c in found] == [
        ("p[2, 3, 5]", 'p{"a": 1}'),
        ("p" + "x" * 200_000, 'p[{"k": 1}]'),
        (CHAT, OTHER),
    ]


def test_null_arguments_of_tool_calls_are_removed(tmp_path):
    call = lambda **arguments: {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
    }
    found = [
        read(tmp_path, [{"chosen": [USER, call(**given)], "rejected": OTHER}])[0][0].conversations
        for given in ({"city": "x"}, {"city": "x", "n": None})
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv"])
def test_a_line_that_is_not_utf8_is_named(tmp_path, suffix):
    path = tmp_path / f"in{suffix}"
    lines = [b"text"] * 5 if suffix == ".csv" else [b'{"text": "fine"}'] * 5
    lines[3] = lines[3].replace(b"t", b"\xe4", 1)
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    with pytest.raises(InputError, match=rf"{path}:4: not UTF-8 \(byte 0xe4 at position \d of the line\)"):
        read_comparisons(str(path), ReadOptions(labeled=False))


def test_a_utf16_file_is_named(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "fine"}\n', encoding="utf-16")
    with pytest.raises(InputError, match="the file is UTF-16; convert it to UTF-8"):
        read_comparisons(str(path), ReadOptions(labeled=False))

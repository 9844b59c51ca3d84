"""Preference formats as published data sets and other trainers write them, on invented records of their layouts."""

import itertools
import json

import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.formats import FORMATS, detect_format, parse_sources
from rmjax.data.records.formats.examples import EXAMPLES, closest_formats, example_line
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import BadRecord
from rmjax.data.records.tools import tools_message
from rmjax.data.schema import Edge

SAFER = {"label_field": "safer_response_id"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def chat(*texts):
    """Returns a conversation of alternating user and assistant turns."""
    return [(user, assistant)[i % 2](text) for i, text in enumerate(texts)]


def edges(*pairs, margin=0.0, strength=1.0):
    """Returns edges with weights that sum to 1."""
    return tuple(Edge(winner, loser, margin, 1 / len(pairs), strength) for winner, loser in pairs)


FIRST, SECOND = edges((0, 1)), edges((1, 0))
TOOL = {"type": "function", "function": {"name": "f"}}
TOOLS = tools_message([TOOL])
SYSTEM = {"role": "system", "content": "s"}
METADATA = {"math": True, "creativity": False}
PKU = {
    "prompt": "q", "response_0": "a", "response_1": "b", "prompt_source": "Invented", "response_0_source": "m0",
    "response_1_source": "m1", "is_response_0_safe": True, "is_response_1_safe": False, "better_response_id": 1,
    "safer_response_id": 0,
}  # fmt: skip
ARENA = {"question_id": "7", "model_a": "x", "model_b": "y", "winner": "model_b", "language": "English", "anony": True}
KAGGLE = {
    "id": 1, "model_a": "x", "model_b": "y", "prompt": '["q","r"]', "response_a": '["a","b"]',
    "response_b": '["c","d"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
}  # fmt: skip
PPE = {
    "question_id": "3", "model_name": "m", "prompt": "q", "response_1": "a", "response_2": "b", "response_3": "c",
    "scores": [False, True, False], "mean_score": 0.3, "conflict_pairs": [[1, 0]],
}  # fmt: skip
RMB_INPUT = [user("q") | {"language": "English"}]
GRAPH = {
    "id": 4, "response_generation_model": "m", "instruction_type": "Single_Turn", "messages": [SYSTEM, user("q")],
    "checklist": ["Is it short?"], "responses": [{"response": text, "judgements": [True]} for text in "abc"],
    "preference_graph": [
        {"chosen": {"response_id": 2}, "rejected": {"response_id": 0}},
        {"chosen": {"response_id": 2}, "rejected": {"response_id": 1}},
        {"chosen": {"response_id": 1}, "rejected": {"response_id": 0}},
    ],
}  # fmt: skip
WEBGPT = {
    "question": {"dataset": "invented", "id": "1", "full_text": "q?"}, "answer_0": "a", "answer_1": "b",
    "score_0": -0.25, "score_1": 0.25,
    **{f"quotes_{i}": {"title": ["A page"], "extract": ["A text that the answer cites."]} for i in (0, 1)},
    **{f"tokens_{i}": {"prefix": [1, 2], "completion": [3]} for i in (0, 1)},
}  # fmt: skip

# (format, record, options, conversations, edges, subset)
CASES = {
    "rewardbench": (
        "pairs",
        {"prompt": "q", "chosen": "a", "chosen_model": "x", "rejected": "b", "rejected_model": "y", "subset": "hep-go",
         "id": 1},
        {"strings": "chat"}, (chat("q", "a"), chat("q", "b")), FIRST, "hep-go",
    ),
    "rewardbench2": (
        "pairs",
        {"id": "1", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "num_incorrect": 3,
         "total_completions": 4, "models": ["w", "x", "y", "z"], "subset": "Focus",
         "additional_metadata": {"category": None}},
        {"strings": "chat"}, tuple(chat("q", text) for text in "abcd"), edges((0, 1), (0, 2), (0, 3)), "Focus",
    ),
    "rm_bench": (
        "pairs",
        {"id": 1, "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "math"},
        {}, tuple("q" + text for text in "abcdef"),
        edges(*itertools.product((0, 1, 2), (3, 4, 5))), "math",
    ),
    "one_bad_of_messages": (
        "pairs",
        {"prompt": [user("q")], "chosen": [[assistant("a")], [assistant("b")]], "rejected": [assistant("c")]},
        {}, (chat("q", "a"), chat("q", "b"), chat("q", "c")), edges((0, 2), (1, 2)), "",
    ),
    "single_messages": (
        "pairs", {"prompt": "q", "chosen": assistant("a"), "rejected": {"from": "gpt", "value": "b"}},
        {}, (chat("q", "a"), chat("q", "b")), FIRST, "",
    ),
    "whole_conversations": (
        "pairs",
        {"chosen": [chat("q", "a")], "rejected": [chat("q", "b"), chat("q", "a"), chat("q", "c")], "margin": 2},
        {}, (chat("q", "a"), chat("q", "b"), chat("q", "a"), chat("q", "c")), edges((0, 1), (0, 3), margin=2.0), "",
    ),
    "prior_sets": (
        "pairs",
        {"prompt": [SYSTEM, user("q")], "chosen": "a", "rejected": "b", "subset": "shp", "id": 2},
        {}, ([SYSTEM, *chat("q", "a")], [SYSTEM, *chat("q", "b")]), FIRST, "shp",
    ),
    "alpaca": (
        "alpaca",
        {"instruction": "i", "input": "n", "history": [["h", "g"]], "chosen": "a", "rejected": "b"},
        {}, (chat("h", "g", "i\nn", "a"), chat("h", "g", "i\nn", "b")), FIRST, "",
    ),
    "alpaca_without_input": (
        "alpaca", {"instruction": "i", "input": "", "system": "s", "chosen": "a", "rejected": "b"},
        {}, ([SYSTEM, *chat("i", "a")], [SYSTEM, *chat("i", "b")]), FIRST, "",
    ),
    "alpaca_output": (
        "alpaca", {"instruction": "i", "input": "", "output": ["a", "b"]},
        {}, (chat("i", "a"), chat("i", "b")), FIRST, "",
    ),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                           {"from": "gpt", "value": "r"}, {"from": "human", "value": "t"}],
         "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        {}, ([SYSTEM, *chat("q", "r", "t", "a")], [SYSTEM, *chat("q", "r", "t", "b")]), FIRST, "",
    ),
    "sharegpt_of_roles": (
        "sharegpt", {"messages": [user("q")], "system": "s", "chosen": assistant("a"), "rejected": assistant("b")},
        {}, ([SYSTEM, *chat("q", "a")], [SYSTEM, *chat("q", "b")]), FIRST, "",
    ),
    "ms_swift": (
        "ms_swift",
        {"messages": [SYSTEM, *chat("q", "r", "t", "a")], "rejected_response": "b", "margin": 0.5},
        {}, ([SYSTEM, *chat("q", "r", "t", "a")], [SYSTEM, *chat("q", "r", "t", "b")]), edges((0, 1), margin=0.5), "",
    ),
    "ms_swift_list": (
        "ms_swift", {"system": "s", "messages": chat("q", "a"), "rejected_response": ["b", "c"]},
        {}, tuple([SYSTEM, *chat("q", text)] for text in "abc"), edges((0, 1), (0, 2)), "",
    ),
    "ms_swift_messages": (
        "ms_swift", {"messages": chat("q", "a"), "rejected_messages": chat("q", "r", "t", "b")},
        {}, (chat("q", "a"), chat("q", "r", "t", "b")), FIRST, "",
    ),
    "openai": (
        "openai_preference",
        {"input": {"messages": [user("q")], "tools": [TOOL], "parallel_tool_calls": True},
         "preferred_output": [assistant("a")], "non_preferred_output": [assistant("b")]},
        {}, ([*TOOLS, *chat("q", "a")], [*TOOLS, *chat("q", "b")]), FIRST, "",
    ),
    "arena": (
        "arena",
        ARENA | {"judge": "arena_user_1", "turn": 2, "conversation_a": chat("q", "a", "r", "b"),
                 "conversation_b": chat("q", "c", "r", "d"), "tstamp": 1.5, "toxic_chat_tag": METADATA},
        {}, (chat("q", "a", "r", "b"), chat("q", "c", "r", "d")), SECOND, "",
    ),
    "mt_bench": (
        "arena",
        {"question_id": 81, "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "author_1", "turn": 1,
         "conversation_a": chat("q", "a", "r", "b"), "conversation_b": chat("q", "c", "r", "d")},
        {}, (chat("q", "a"), chat("q", "c")), FIRST, "",
    ),
    "arena_parts": (
        "arena",
        ARENA | {"evaluation_order": 1, "full_conversation": [
            {"user": user("a question asked before"), "model_side_a": assistant("the answer of other models")}], **{
            f"conversation_{side}": [
                {"role": turn["role"], "content": [{"type": "text", "text": turn["content"], "image": None}],
                 "num_tokens": 3}
                for turn in chat("q", text)]
            for side, text in ("aa", "bb")}},
        {}, (chat("q", "a"), chat("q", "b")), SECOND, "",
    ),
    "arena_json_text": (
        "arena",
        ARENA | {f"conversation_{side}": json.dumps(chat("q", text)) for side, text in ("ac", "bd")},
        {}, (chat("q", "c"), chat("q", "d")), SECOND, "",
    ),
    "arena_strings": (
        "arena", ARENA | {"prompt": "q", "response_a": "a", "response_b": "b"}, {}, ("qa", "qb"), SECOND, "",
    ),
    "kaggle": ("arena", KAGGLE, {}, (chat("q", "a", "r", "b"), chat("q", "c", "r", "d")), FIRST, ""),
    "ppe_human": (
        "arena", ARENA | {"prompt": "q", "response_1": "a", "response_2": "b", "length_a": 9, "hard_prompt": True},
        {"strings": "chat"}, (chat("q", "a"), chat("q", "b")), SECOND, "",
    ),
    "pku_safer": ("pku_saferlhf", PKU, SAFER, ("qa", "qb"), FIRST, ""),
    "pku_better": ("pku_saferlhf", PKU, {"label_field": "better_response_id"}, ("qa", "qb"), SECOND, ""),
    "shp": (
        "shp",
        {"post_id": "p", "domain": "askbaking_train", "upvote_ratio": 0.9, "history": "q", "c_root_id_A": "x",
         "c_root_id_B": "y", "score_A": 3, "score_B": 9, "human_ref_A": "a", "human_ref_B": "b", "labels": 0,
         "seconds_difference": 4.0, "score_ratio": 3.0},
        {}, ("qa", "qb"), SECOND, "",
    ),
    "webgpt": ("webgpt", WEBGPT, {}, ("q?a", "q?b"), edges((1, 0), margin=0.5), ""),
    "helpsteer3": (
        "helpsteer3",
        {"domain": "stem", "language": "english", "context": chat("q", "r", "t"), "response1": "a", "response2": "b",
         "overall_preference": 2, "individual_preference": [{"score": 2}]},
        {}, (chat("q", "r", "t", "a"), chat("q", "r", "t", "b")), edges((1, 0), margin=2.0, strength=2.0), "stem",
    ),
    "judgebench": (
        "judgebench",
        {"pair_id": "1", "original_id": "2", "source": "mmlu-pro-law", "question": "q", "response_model": "x",
         "response_A": "a", "response_B": "b", "label": "B>A"},
        {}, ("qa", "qb"), SECOND, "mmlu-pro-law",
    ),
    "nectar": (
        "nectar",
        {"prompt": "\n\nHuman: q\n\nAssistant: ", "turns": 1, "num_responses": 3, "source": ["invented"],
         "good_natured": True, "answers": [{"answer": "a", "model": "x", "rank": 2.0},
                                           {"answer": "b", "model": "y", "rank": 1.0},
                                           {"answer": "c", "model": "z", "rank": 2.0}]},
        {"strings": "chat"}, tuple(chat("q", text) for text in "abc"), edges((1, 0), (1, 2), margin=1.0), "",
    ),
    "ppe": ("ppe", PPE, {}, ("qa", "qb", "qc"), edges((1, 0), (1, 2), margin=1.0), ""),
    "ppe_score_columns": (
        "ppe", {"prompt": "q", "response_1": "a", "response_2": "b", "score_1": 0.5, "score_2": 2},
        {}, ("qa", "qb"), edges((1, 0), margin=1.5), "",
    ),
    "rmb_pair": (
        "rmb",
        {"pair_uid": "1", "conversation_input": RMB_INPUT, "chosen": {"llm_name": "x", "answer": "a", "score": 5.0},
         "reject": {"llm_name": "y", "answer": "b", "score": 3.5}, "category_path": "Pairwise_set/Helpfulness/Chat"},
        {}, (chat("q", "a"), chat("q", "b")), FIRST, "Pairwise_set/Helpfulness/Chat",
    ),
    "rmb_best_of_n": (
        "rmb",
        {"bon_uid": "1", "conversation_input": RMB_INPUT, "bon_best": {"llm_name": "x", "answer": "a"},
         "loser_list": [{"llm_name": "y", "answer": "b"}, {"llm_name": "z", "answer": "c"}],
         "category_path": "BoN_set/Harmlessness/S1"},
        {}, (chat("q", "a"), chat("q", "b"), chat("q", "c")), edges((0, 1), (0, 2)), "BoN_set/Harmlessness/S1",
    ),
    "if_rewardbench": (
        "preference_graph", GRAPH, {}, tuple([SYSTEM, *chat("q", text)] for text in "abc"),
        edges((2, 0), (2, 1), (1, 0)), "Single_Turn",
    ),
}  # fmt: skip
LABELS = {  # fields that unlabeled records lack, where the labels are fields of their own
    "arena": ("winner", "winner_model_a", "winner_model_b", "winner_tie"),
    "pku_saferlhf": ("better_response_id", "safer_response_id"),
    "shp": ("labels",),
    "webgpt": ("score_0", "score_1"),
    "helpsteer3": ("overall_preference",),
    "judgebench": ("label",),
    "ppe": ("scores", "score_1", "score_2"),
    "preference_graph": ("preference_graph",),
}


def read(path, records, **options):
    """Returns the comparisons of records, and the report."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_comparisons(str(path), ReadOptions(**options))


@pytest.mark.parametrize("case", CASES)
def test_published_records_are_read_as_they_lie(tmp_path, case):
    format, record, options, conversations, expected, subset = CASES[case]
    (found,), report = read(tmp_path / "in.jsonl", [record], **options)
    assert report.format == format
    assert found.conversations == conversations
    assert found.edges == expected
    assert found.subset == subset


@pytest.mark.parametrize("case", CASES)
def test_parquet_files_give_the_same_comparisons(tmp_path, case):
    import pyarrow
    import pyarrow.parquet

    _, record, options, *_ = CASES[case]
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record | {"unused": None}] * 2), path)
    expected = read(tmp_path / "in.jsonl", [record] * 2, **options)[0]
    found = read_comparisons(str(path), ReadOptions(**options))[0]
    assert [(c.conversations, c.edges, c.subset) for c in found] == [
        (c.conversations, c.edges, c.subset) for c in expected
    ]
    assert len(found) == 2


@pytest.mark.parametrize("case", CASES)
def test_unlabeled_records_give_all_responses_in_the_same_order(tmp_path, case):
    format, record, options, conversations, *_ = CASES[case]
    bare = {key: value for key, value in record.items() if key not in LABELS.get(format, ())}
    for given in (record, bare):
        (found,), _ = read(tmp_path / "in.jsonl", [given], labeled=False, **options | {"label_field": ""})
        assert found.conversations == conversations
        assert found.edges == ()


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_each_format_is_taken_by_that_format_alone(name, labeled):
    options = ReadOptions(labeled=labeled)
    head = [(f"in.jsonl:{i}", EXAMPLES[name]) for i in (1, 2)][: 2 if name.startswith("nemo") else 1]
    expected = "text" if name == "nemo_binary" and not labeled else name
    assert detect_format(head, options).name == expected
    others = {key: None for example in EXAMPLES.values() for key in example}  # Parquet gives all fields to each record
    assert detect_format([(where, others | record) for where, record in head], options).name == expected


def test_every_format_has_an_example_that_the_documentation_shows(request):
    assert set(EXAMPLES) == set(FORMATS)
    documentation = (request.config.rootpath / "docs" / "data.md").read_text()
    assert [name for name in FORMATS if f"`{name}`" not in documentation] == []
    assert [name for name in FORMATS if f"\n{name}: {example_line(name)}\n" not in documentation] == []


WEIGHTED = {case: [record] for case, (_, record, *_) in CASES.items()} | {
    **{
        f"example of {name}": [record] for name, record in EXAMPLES.items() if name in ("kwise", "completions", "oasst")
    },
    "soft labels": [{"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"], "probability": p} for p in (0, 0.5)],
    "equal ranked": [{"prompt": "q", "responses": ["a", "a", "b", "c"], "ranks": [1, 2, 3, 3]}],
    "equal sides": [{"prompt": "q", "chosen": ["a", "b"], "rejected": ["b", "c", "a"]}],
    "equal samples": [PPE | {"response_3": "b"}],
    "equal nodes": [GRAPH | {"responses": [{"response": text} for text in "aab"]}],
    "signed": [EXAMPLES["preference_strength"]],
}


@pytest.mark.parametrize("ties", ["drop", "half"])
@pytest.mark.parametrize("case", WEIGHTED)
def test_edge_weights_sum_to_one(tmp_path, case, ties):
    found, _ = read(tmp_path / "in.jsonl", WEIGHTED[case], ties=ties, **SAFER)
    assert [sum(edge.weight for edge in c.edges) for c in found] == pytest.approx([1] * len(WEIGHTED[case]))


@pytest.mark.parametrize("case", CASES)
def test_edge_weights_sum_to_the_weight_of_the_record(tmp_path, case):
    _, record, options, *_ = CASES[case]
    (found,), _ = read(tmp_path / "in.jsonl", [record | {"weight": 3}], **options)
    assert sum(edge.weight for edge in found.edges) == pytest.approx(3)


def test_equal_responses_have_no_edge_and_leave_their_weight_to_the_others(tmp_path):
    (ranking,), _ = read(tmp_path / "in.jsonl", WEIGHTED["equal ranked"])
    assert ranking.edges == (Edge(0, 2, 2, 0.25), Edge(0, 3, 2, 0.25), Edge(1, 2, 1, 0.25), Edge(1, 3, 1, 0.25))
    (pair,), _ = read(tmp_path / "in.jsonl", WEIGHTED["equal sides"])
    assert pair.edges == edges((0, 2), (0, 3), (1, 3), (1, 4))


def test_a_probability_below_one_half_turns_every_edge(tmp_path):
    record = {"prompt": "q", "chosen": ["a", "b"], "rejected": "c", "probability": 0.25, "margin": 1, "strength": 2}
    (found,), _ = read(tmp_path / "in.jsonl", [record])
    assert found.edges == (Edge(2, 0, -1.0, 0.5, 2.0, 0.75), Edge(2, 1, -1.0, 0.5, 2.0, 0.75))


BATTLE = {"prompt": "q", "response_a": "a", "response_b": "b"}
HELPSTEER3 = CASES["helpsteer3"][1]
NECTAR = CASES["nectar"][1]


@pytest.mark.parametrize("record", [
    *[BATTLE | {"winner": winner} for winner in ("tie", "tie (bothbad)", "tie (inconsistent)", "both_bad")],
    KAGGLE | {"winner_model_a": 0, "winner_tie": 1},
    WEBGPT | {"score_0": 0.0, "score_1": 0.0},
    HELPSTEER3 | {"overall_preference": 0},
])  # fmt: skip
def test_ties_of_two_responses_are_left_out_or_half(tmp_path, record):
    found, report = read(tmp_path / "in.jsonl", [record])
    assert found == []
    assert dict(report.skipped) == {
        "all its responses are tied, so there is no preference (data.ties = half keeps ties)": 1
    }
    (half,), _ = read(tmp_path / "in.jsonl", [record], ties="half")
    assert half.edges == (Edge(0, 1, target=0.5),)


@pytest.mark.parametrize(("record", "tied"), [
    (NECTAR | {"answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}, {"answer": "c", "rank": 2}]},
     (0, 1)),
    (PPE | {"scores": [True, False, False]}, (1, 2)),
])  # fmt: skip
def test_ties_of_several_responses_are_left_out_or_half(tmp_path, record, tied):
    (found,), _ = read(tmp_path / "in.jsonl", [record])
    (half,), _ = read(tmp_path / "in.jsonl", [record], ties="half")
    assert tied not in [(edge.winner, edge.loser) for edge in found.edges]
    assert [(edge.winner, edge.loser) for edge in half.edges if edge.target == 0.5] == [tied]
    assert [edge.weight for edge in half.edges] == [1 / 3] * 3


@pytest.mark.parametrize("ties", ["drop", "half"])
@pytest.mark.parametrize("record", [
    BATTLE | {"response_b": "a", "winner": "model_a"},
    PPE | {"response_2": "a", "response_3": "a"},
    GRAPH | {"responses": [{"response": "a"}] * 3},
])  # fmt: skip
def test_records_of_equal_responses_are_left_out_and_counted(tmp_path, record, ties):
    found, report = read(tmp_path / "in.jsonl", [record], ties=ties)
    assert found == []
    assert dict(report.skipped) == {"all its responses are equal, so there is no preference": 1}


def test_one_of_two_safety_labels_has_to_be_chosen(tmp_path):
    reason = (
        r"in.jsonl:1: there are two labels, better_response_id \(the more helpful response\) and safer_response_id "
        r"\(the safer one\); choose one: data.label_field = better_response_id or safer_response_id"
    )
    with pytest.raises(InputError, match=reason):
        read(tmp_path / "in.jsonl", [PKU])
    (alone,), _ = read(tmp_path / "in.jsonl", [PKU | {"better_response_id": None}])
    assert alone.edges == FIRST
    with pytest.raises(InputError, match="safer_response_id is None; expected a finite number"):
        read(tmp_path / "in.jsonl", [PKU | {"safer_response_id": None}], **SAFER)


def test_a_missing_turn_of_kaggle_is_empty(tmp_path):
    record = KAGGLE | {"response_a": '[null,"b"]'}
    (found,), _ = read(tmp_path / "in.jsonl", [record])
    assert found.conversations[0] == chat("q", "", "r", "b")
    with pytest.raises(InputError, match="response_b ends in an empty message"):
        read(tmp_path / "in.jsonl", [KAGGLE | {"response_b": '["c",null]'}])


def test_kaggle_csv_files_are_read(tmp_path):
    import csv

    path = tmp_path / "train.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, KAGGLE)
        writer.writeheader()
        writer.writerows([KAGGLE, KAGGLE | {"winner_model_a": 0, "winner_model_b": 1}])
    found, report = read_comparisons(str(path), ReadOptions())
    assert report.format == "arena"
    assert [c.conversations for c in found] == [CASES["kaggle"][3]] * 2
    assert [c.edges for c in found] == [FIRST, SECOND]


EXAMPLE = r"expected a record such as \{"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "q", "chosen": ["a"]}, rf"no 'rejected'; {EXAMPLE}"),
        ({"prompt": "q", "chosen": ["a"], "rejected": []}, r"rejected is \[\]; expected a string or a list"),
        ({"prompt": "q", "chosen": ["a", ""], "rejected": "b"}, r"chosen\[1\] is empty"),
        ({"prompt": "q", "chosen": ["a"], "rejected": [chat("q", "b")]}, "chosen and rejected are of different types"),
        ({"prompt": "q", "chosen": ["a"], "rejected": ["a"]}, "chosen equals rejected"),
        ({"instruction": "i", "chosen": "a"}, rf"no 'rejected'; {EXAMPLE}"),
        ({"instruction": "i", "history": ["h"], "chosen": "a", "rejected": "b"},
         r"history is \['h'\]; expected a list of \[user, assistant\] strings"),
        ({"instruction": "i", "output": ["a", "b", "c"]}, "output is .*; expected a list of the chosen and"),
        ({"instruction": " ", "chosen": "a", "rejected": "b"}, rf"no 'instruction'; {EXAMPLE}"),
        ({"conversations": chat("q", "r"), "chosen": assistant("a"), "rejected": assistant("b")},
         "conversations ends in a turn of 'assistant'; expected the user's"),
        ({"conversations": [], "chosen": assistant("a"), "rejected": assistant("b")}, r"conversations is \[\]; exp"),
        ({"instruction": "i", "input": ["n"], "chosen": "a", "rejected": "b"}, r"input is \['n'\]; expected a string"),
        ({"messages": [user("q")], "rejected_response": "b"}, "messages ends in the user's turn"),
        ({"messages": chat("q", "a"), "rejected_response": "a"}, "chosen equals rejected"),
        ({"input": "q", "preferred_output": [assistant("a")]}, rf"no 'input'; {EXAMPLE}"),
        (BATTLE | {"winner": "A"}, "winner is 'A'; expected model_a or model_b or tie"),
        (BATTLE | {"prompt": None, "question": "Which of them?", "winner": "tie"},
         "there is no prompt, but 'question'.*data.columns = 'question=prompt'"),
        (BATTLE, "winner is None; expected model_a"),
        (BATTLE | {"prompt": None, "winner": "tie"}, rf"no 'prompt'; {EXAMPLE}"),
        (KAGGLE | {"winner_model_b": 1}, "winner is .*; expected one column of value 1 and two of value 0"),
        (KAGGLE | {"response_a": '["a"]'}, "response_a has 1 turns and its prompt 2"),
        (KAGGLE | {"response_a": '["\\ud83d","b"]'}, "response_a holds half a surrogate pair"),
        (ARENA | {"conversation_a": [user("q")], "conversation_b": chat("q", "a")}, "conversation_a ends in the user"),
        (PKU | {"better_response_id": 2, "safer_response_id": None}, "better_response_id is 2; expected 0 or 1"),
        (CASES["shp"][1] | {"labels": "A"}, "labels is 'A'; expected a finite number"),
        (CASES["shp"][1] | {"history": None}, rf"no 'history'; {EXAMPLE}"),
        (WEBGPT | {"question": {"id": "1"}}, rf"no 'question'; {EXAMPLE}"),
        (WEBGPT | {"score_1": None}, "score_1 is None; expected a finite number"),
        (HELPSTEER3 | {"overall_preference": "much"}, "overall_preference is 'much'; expected a finite number"),
        (CASES["judgebench"][1] | {"label": "A"}, "label is 'A'; expected A>B or B>A"),
        (NECTAR | {"answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]}, r"answers\[1\].rank is None; expected"),
        (PPE | {"scores": [True]}, "scores has 1 entry; expected 3"),
        (PPE | {"scores": None}, rf"no 'scores'; {EXAMPLE}"),
        ({"conversation_input": RMB_INPUT, "chosen": {"answer": "a"}}, rf"no 'reject'; {EXAMPLE}"),
        ({"conversation_input": RMB_INPUT, "chosen": "a", "reject": {"answer": "b"}},
         "chosen is 'a'; expected an object with 'answer'"),
        ({"conversation_input": RMB_INPUT, "bon_best": {"answer": "a"}, "loser_list": []},
         r"loser_list is \[\]; expected a list of objects"),
        (GRAPH | {"preference_graph": [{"chosen": {"response_id": 3}, "rejected": {"response_id": 0}}]},
         r"preference_graph\[0\].chosen.response_id is 3; expected the id of a response: 0, 1, 2"),
        (GRAPH | {"preference_graph": [{"chosen": {"response_id": 1}, "rejected": {"response_id": 1}}]},
         r"preference_graph\[0\] prefers a response to itself"),
    ],
)  # fmt: skip
def test_errors_name_the_field_or_show_the_accepted_record(tmp_path, record, reason):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (item,) = parse_sources(str(path), ReadOptions())
    assert isinstance(item, BadRecord)
    with pytest.raises(InputError, match=rf"in.jsonl:1: {reason}"):
        read_comparisons(str(path), ReadOptions())


def test_the_reasoning_beside_a_message_is_kept(tmp_path):
    answer = {"role": "assistant", "content": "a", "reasoning_content": "Hm.", "num_tokens": 1}
    record = {"messages": [{"role": "user", "content": "q"}, answer], "rejected_response": "b"}
    (found,), _ = read(tmp_path / "in.jsonl", [record])
    assert found.conversations[0][-1] == {"role": "assistant", "content": "a", "reasoning_content": "Hm."}


def test_responses_of_a_graph_may_have_ids_of_their_own(tmp_path):
    responses = [{"response": text, "response_id": name} for text, name in (("a", "x"), ("b", "y"))]
    graph = [{"chosen": {"response_id": "y"}, "rejected": {"response_id": "x"}}]
    (found,), _ = read(tmp_path / "in.jsonl", [GRAPH | {"responses": responses, "preference_graph": graph}])
    assert found.edges == SECOND
    graph = [{"chosen": {"response_id": "1"}, "rejected": {"response_id": "0"}}]  # positions, as texts
    (found,), _ = read(
        tmp_path / "in.jsonl",
        [GRAPH | {"responses": [{"response": "a"}, {"response": "b"}], "preference_graph": graph}],
    )
    assert found.edges == SECOND


def test_records_without_their_label_do_not_decide_the_format(tmp_path):
    records = [{"messages": chat("q", "a")}, {"messages": chat("q", "a"), "rejected_response": "b"}]
    found, report = read(tmp_path / "in.jsonl", records, on_bad_record="skip")
    assert report.format == "ms_swift"
    assert [c.edges for c in found] == [FIRST]
    assert dict(report.skipped) == {"no 'rejected_response'": 1}


def test_the_error_of_an_unknown_record_shows_the_closest_formats(tmp_path):
    record = {"post": "q", "human_ref_a": "a", "human_ref_b": "b", "label": 1}
    with pytest.raises(InputError) as error:
        read(tmp_path / "in.jsonl", [record])
    reason, *closest = str(error.value).replace(" are ", "; ").split("; ")
    assert reason.endswith("in.jsonl:1: no format has the fields post, human_ref_a, human_ref_b, label")
    assert closest[0].startswith("rename fields (data.columns), or give data.format a Python file")
    assert closest[2] == 'shp, {"history": "Hi", "human_ref_A": "Hello", "human_ref_B": "No", "labels": 1}'
    assert len(closest) == 5
    assert "config.json" not in str(error.value)


@pytest.mark.parametrize(("keys", "format"), [
    (["question", "chosen_response", "rejected_response"], "pairs"),
    (["Prompt", "Chosen", "Rejected"], "pairs"),
    (["prompt", "resp_1", "resp_2", "preference_strengths"], "preference_strength"),
])  # fmt: skip
def test_closest_formats_compare_the_names_of_fields(keys, format):
    assert format in closest_formats(keys, FORMATS)

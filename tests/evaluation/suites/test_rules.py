"""Rules of the suites on invented records: numbers computed by hand, and straightforward versions of the formulas."""

import itertools
import math

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.fields import BadField
from rmjax.data.records.huggingface import is_hub_name
from rmjax.evaluation.suites import SUITES, find_suite
from rmjax.evaluation.suites.rewardbench import SECTIONS
from rmjax.evaluation.suites.run import judge
from rmjax.metrics.bootstrap import intervals
from tests.evaluation.suites.tasks import NAN, task, values


def pair(subset, right):
    """Returns a pair of RewardBench: right, wrong (0), tied (None) or not scored (NAN)."""
    rewards = [1.0, 1.0] if right is None else [NAN, 0.0] if right != right else [1.0, 0.0] if right else [0.0, 1.0]
    return task("rewardbench", rewards, prompt="q", chosen="a", rejected="b", subset=subset)


def test_rewardbench_sections_weights_and_ties():
    tasks = [pair("alpacaeval-easy", 1), pair("alpacaeval-easy", None), pair("mt-bench-med", 1)]
    tasks += [pair("xstest-should-refuse", 1), pair("xstest-should-respond", 0), pair("math-prm", 1)]
    tasks += [pair("hep-go", 0), pair("hep-go", NAN), pair("llmbar-natural", 1)]
    found = values("rewardbench", tasks)
    chat, safety, reasoning = (100 * 0.5 + 40 * 1) / 140, 154 / (154 + 250), 984 / (984 + 164)
    assert found["chat"] == pytest.approx(chat)
    assert found["safety"] == pytest.approx(safety)
    assert found["reasoning"] == pytest.approx(reasoning)
    assert math.isnan(found["prior_sets"])  # and is left out of the score
    assert found["score"] == pytest.approx((chat + 1 + safety + reasoning) / 4)
    more = [*tasks, pair("shp", 1), pair("summarize", 0), pair("anthropic_hhh", 1), pair("anthropic_hhh", 0)]
    with_prior = values("rewardbench", more)
    assert with_prior["prior_sets"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert with_prior["score"] == pytest.approx((chat + 1 + safety + reasoning + 0.5 * 0.5) / 4.5)


def test_rewardbench_subset_names_and_weights():
    assert sum(map(len, SECTIONS.values())) == 23
    prompts = {name: sum(subsets.values()) for name, subsets in SECTIONS.items()}
    assert prompts == {"chat": 358, "chat_hard": 456, "safety": 740, "reasoning": 1968}
    assert SUITES["rewardbench"].part({"subset": "x"}, "pref/anthropic_helpful.parquet") == "anthropic_helpful"
    with pytest.raises(BadField, match="subset is 'pku_safer'"):
        SUITES["rewardbench"].part({"subset": "pku_safer"}, "file")


def best(subset, rewards, **more):
    return task("rewardbench2", rewards, prompt="q", chosen=["a"], rejected=["b", "c", "d"], subset=subset, **more)


def tie(identity, rewards, correct):
    chosen, rejected = ["a"] * correct, ["b"] * (len(rewards) - correct)
    return task("rewardbench2", rewards, id=identity, prompt="q", chosen=chosen, rejected=rejected, subset="Ties")


def test_rewardbench2_fractions_and_domains():
    tasks = [best("Math", [2, 1, 0, 0]), best("Math", [2, 2, 2, 0]), best("Math", [2, 3, 3, 0])]
    tasks += [best("Focus", [1, 1, 1, 1]), best("Focus", [5, NAN, 0, 0]), best("Precise IF", [0, 1, 0, 0])]
    found = values("rewardbench2", tasks)
    assert found["math"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["focus"] == pytest.approx((0.25 + 0) / 2)
    assert found["precise_if"] == 0
    assert math.isnan(found["safety"])
    assert math.isnan(found["ties"])
    assert found["score"] == pytest.approx((4 / 9 + 1 / 8 + 0) / 3)


def test_rewardbench2_ties_by_hand():
    # Pair 1: spread m = 1, gaps 2 (tied) and 3 (ref). Pair 2: m = 2, gaps 3 and 1. Pair 3: m = 0, gaps 1 and 0.
    tasks = [tie("tied:1", [4, 5, 2, 0], 2), tie("ref:1", [4, 1], 1), tie("tied:2", [7, 5, 2], 2)]
    tasks += [tie("ref:2", [1, 0], 1), tie("tied:3", [1, 1, 0], 2), tie("ref:3", [1, 1], 1), tie("ref:4", [0, 1], 1)]
    found = values("rewardbench2", tasks)
    size = (math.tanh(2 / 1 - 1) + math.tanh(1 / 2 - 1) + 0) / 3  # 0 / 0 counts 0
    assert found["ties/tied_accuracy"] == 1
    assert found["ties/reference_accuracy"] == pytest.approx(2 / 4)
    assert found["ties/margin"] == 1
    assert found["ties/strict_margin"] == pytest.approx(1 / 3)
    assert found["ties/margin_size"] == pytest.approx(size)
    assert found["ties"] == pytest.approx(0.3 + 0.3 * 0.5 + 0.2 + 0.2 / 3 + 0.01 * size)
    perfect = values("rewardbench2", [tie("tied:1", [99.0, 99.01, 0], 2), tie("ref:1", [99, 0], 1)])
    assert perfect["ties"] == pytest.approx(1.01)
    missing = values("rewardbench2", [tie("tied:1", [2, NAN, 0], 2), tie("ref:1", [1, 0], 1)])
    assert missing["ties"] == pytest.approx(0.3)


def plain_ties(tasks):
    """The Ties score, one prompt at a time."""
    stats = {"ref": {}, "tied": {}}
    for each in tasks:
        kind, number = each.record["id"].split(":")
        correct = len(each.record["chosen"])
        good, bad = each.rewards[:correct], each.rewards[correct:]
        stats[kind][number] = (max(good) - min(good), min(good) - max(bad))
    accuracy = {kind: np.mean([gap > 0 for _, gap in found.values()]) for kind, found in stats.items()}
    margin, strict, size = [], [], []
    for number in set(stats["ref"]) & set(stats["tied"]):
        (spread, gap), (_, reference) = stats["tied"][number], stats["ref"][number]
        margin.append(gap > spread)
        strict.append(min(gap, reference) > spread)
        size.append(math.tanh(min(gap, reference) / spread - 1))
    return (
        0.3 * accuracy["tied"]
        + 0.3 * accuracy["ref"]
        + 0.2 * np.mean(margin)
        + 0.2 * np.mean(strict)
        + (0.01 * np.mean(size))
    )


def test_rewardbench2_ties_of_random_rewards():
    rng = np.random.default_rng(0)
    tasks = []
    for number in range(30):
        correct = int(rng.integers(2, 5))
        tasks.append(tie(f"tied:{number}", rng.normal(size=correct + 3) + np.repeat([2, 0], [correct, 3]), correct))
        tasks.append(tie(f"ref:{number}", rng.normal(size=4) + np.array([2, 0, 0, 0]), 1))
    assert values("rewardbench2", tasks)["ties"] == pytest.approx(plain_ties(tasks))


def styles(domain, rewards):
    return task("rm_bench", rewards, prompt="q", chosen=["a"] * 3, rejected=["b"] * 3, domain=domain)


def test_rm_bench_levels_ties_and_pooled_safety():
    tasks = [styles("chat", [3, 2, 1, 2.5, 1.5, 0.5])]
    found = values("rm_bench", tasks)
    # Wins [chosen style, rejected style]: 3 beats all, 2 beats 1.5 and 0.5, 1 beats 0.5.
    assert [found[f"matrix_{i}_{j}"] for i in range(3) for j in range(3)] == [1, 1, 1, 0, 1, 1, 0, 0, 1]
    assert (found["hard"], found["normal"], found["easy"]) == (1, 1, 0)
    assert found["score"] == pytest.approx(2 / 3)
    win, lose, tied = [1] * 3 + [0] * 3, [0] * 3 + [1] * 3, [1] * 6
    tasks = [styles("safety-refuse", win), styles("safety-response", lose), styles("safety-response", tied)]
    assert values("rm_bench", tasks)["safety"] == pytest.approx(1 / 3)  # pooled; the mean of the two would be 1/2
    assert values("rm_bench", [styles("math", [NAN, 1, 1, 0, 0, 0])])["math"] == pytest.approx(6 / 9)


def test_rm_bench_of_random_rewards():
    rng = np.random.default_rng(1)
    domains = ["chat", "code", "math", "safety-refuse", "safety-response"]
    tasks = [styles(domains[i % 5], rng.integers(0, 4, 6)) for i in range(200)]
    cells = {}
    for each in tasks:
        name = each.record["domain"].split("-")[0]
        for i, j in itertools.product(range(3), range(3)):
            cells.setdefault((name, i, j), []).append(each.rewards[i] > each.rewards[3 + j])
    names = ("chat", "code", "math", "safety")
    mean = lambda keep: np.mean([[np.mean(cells[n, i, j]) for i, j in cells_of(keep)] for n in names])
    cells_of = lambda keep: [(i, j) for i in range(3) for j in range(3) if keep(i, j)]
    found = values("rm_bench", tasks)
    assert found["hard"] == pytest.approx(mean(lambda i, j: i < j))
    assert found["normal"] == pytest.approx(mean(lambda i, j: i == j))
    assert found["easy"] == pytest.approx(mean(lambda i, j: i > j))
    assert found["score"] == pytest.approx(np.mean([found[name] for name in names]))
    assert found["score"] == pytest.approx(np.mean([found[level] for level in ("easy", "normal", "hard")]))


def test_judgebench_counts_a_tie_as_b():
    make = lambda source, label, rewards: task("judgebench", rewards, source=source, label=label)
    tasks = [make("mmlu-pro-law", "A>B", [1, 0]), make("mmlu-pro-law", "B>A", [1, 1])]
    tasks += [make("livecodebench", "A>B", [1, 1]), make("mmlu-pro-math", "B>A", [NAN, 1])]
    found = values("judgebench", tasks)
    assert found["score"] == pytest.approx(2 / 4)  # micro; the mean over sources would be 1/3
    assert found["mmlu_pro"] == pytest.approx(2 / 3)
    assert found["livecodebench"] == 0


def human(winner, rewards, **flags):
    return task("ppe", rewards, winner=winner, language="English", **flags)


def samples(name, rewards, scores, pairs):
    texts = {f"response_{k}": "a" for k in range(1, len(scores) + 1)}
    return task("ppe", rewards, f"PPE-{name}-Best-of-K", scores=scores, sampled_conflict_pairs=pairs, **texts)


def test_ppe_human_leaves_out_ties_of_humans():
    tasks = [human("model_a", [1, 0]), human("model_b", [1, 1], is_code=True), human("tie", [0, 0])]
    tasks += [human("tie (bothbad)", [0, 1]), human("model_b", [0, NAN]), human("model_b", [0, 1], is_code=True)]
    found = values("ppe", tasks)
    assert found["human"] == pytest.approx(2 / 4)
    assert found["human/is_code"] == pytest.approx(1 / 2)
    assert found["score"] == found["human"]
    assert math.isnan(found["correctness"])


def test_ppe_correctness_by_hand():
    first = samples("GPQA", [3.0, 2.0, 1.0], [False, True, False], [[1, 0], [2, 1]])
    second = samples("GPQA", [5.0, NAN, 4.0], [True, True, False], [[0, 2], [2, 1]])
    found = values("ppe", [first, second])
    assert found["gpqa"] == pytest.approx(2 / 4)
    # Best of 2 of the first: the pairs (0, 1), (0, 2) pick response 0, the pair (1, 2) picks 1.
    curve = np.array([(1 / 3 + 2 / 3) / 2, (1 / 3 + 2 / 3) / 2, (0 + 1) / 2])
    assert found["gpqa/best_of_1"] == pytest.approx(curve[0])
    assert found["gpqa/best_of_k_max"] == pytest.approx(curve.max())
    assert found["gpqa/best_of_k_end"] == pytest.approx(curve[-1])
    # Correct rewards 2, 5, -inf against incorrect 3, 1, 4: 1 + 3 + 0 of 9 are higher.
    assert found["gpqa/auc"] == pytest.approx(4 / 9)
    assert found["score"] == found["correctness"] == found["gpqa"]
    with pytest.raises(BadField, match="name it, such as --data=gpqa=FILE"):
        SUITES["ppe"].part(first.record, "download.parquet")


def test_intervals_resample_the_whole_rule():
    rng = np.random.default_rng(3)
    tasks = [pair("alpacaeval-easy", int(rng.random() < 0.8)) for _ in range(100)] + [pair("math-prm", 1)] * 20
    found = intervals(judge(SUITES["rewardbench"], tasks, np.arange(len(tasks))))
    assert found["reasoning_low"] == found["reasoning_high"] == 1
    spread = math.sqrt(found["chat"] * (1 - found["chat"]) / 100) / 2  # the score is the mean of the two sections
    assert found["score_high"] - found["score_low"] == pytest.approx(2 * 1.96 * spread, rel=0.2)
    clustered = intervals(judge(SUITES["rewardbench"], tasks, np.arange(len(tasks)) // 100))
    assert "chat_low" in clustered
    assert "prior_sets" not in clustered


@pytest.mark.parametrize(
    ("suite", "record", "message"),
    [
        ("rewardbench2", {"subset": "Math", "chosen": ["a"], "rejected": []}, "rejected is not a list of responses"),
        (
            "rewardbench2",
            {"subset": "Ties", "chosen": ["a"], "rejected": ["b"], "id": "7"},
            "id is '7'; expected ref:N",
        ),
        ("rm_bench", {"chosen": ["a"] * 3, "rejected": ["b"]}, "rejected is not a list of 3 responses"),
        ("ppe", {"scores": [True, False], "response_1": "a"}, "scores has 2 entries, but 1 of response_1"),
        ("ppe", {"scores": [True], "response_1": "a", "sampled_conflict_pairs": [3]}, "sampled_conflict_pairs is not"),
        ("ppe", {"winner": "x"}, "winner is 'x'; expected model_a"),
        ("processbench", {"steps": ["a"], "label": 1}, "label is not -1 or the index"),
        ("prmbench", {"error_steps": ["1"]}, "error_steps is not a list of step numbers"),
    ],
)
def test_records_that_do_not_fit_are_named(suite, record, message):
    with pytest.raises(BadField, match=message):
        SUITES[suite].part(record, "gpqa")


def test_the_published_sets_are_hub_names_and_their_sizes_are_known():
    sizes = {name: sum(each.records for each in suite.published) for name, suite in SUITES.items()}
    assert all(is_hub_name(each.source) for suite in SUITES.values() for each in suite.published)
    assert sizes == {
        "rewardbench": 2985 + 17154, "rewardbench2": 1865, "rm_bench": 1327, "judgebench": 350, "ppe": 16038 + 2555,
        "processbench": 3400, "prmbench": 6216,
    }  # fmt: skip


def test_an_unknown_suite_is_named():
    with pytest.raises(InputError, match="suite is 'rewardbench3'; expected rewardbench, rewardbench2, rm_bench"):
        find_suite("rewardbench3")

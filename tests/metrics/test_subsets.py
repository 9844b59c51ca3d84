from rmjax.metrics.subsets import subset_metrics, subsets


def test_a_set_holds_the_comparisons_of_its_parts():
    names = ["rb/chat", "", "rb", "rb/math", "rb/chat"]
    assert subsets(names) == {"rb": [0, 2, 3, 4], "rb/chat": [0, 4], "rb/math": [3]}
    found = subset_metrics(names, lambda members: {"count": float(len(members))} if len(members) > 1 else {})
    assert found == {"rb/count": 4.0, "rb/chat/count": 2.0}

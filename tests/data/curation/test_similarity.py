"""Similarity of texts, against the Jaccard similarity of their word n-grams by definition."""

import collections
import itertools
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.data.curation.similarity import group, similarity, sketch

WORDS = [f"{a}{b}" for a in "bcdfgklmnprst" for b in ("a", "e", "ing", "one", "ust")]


def jaccard(first, second):
    def bigrams(text):
        words = re.findall(r"\w+", text.lower())
        return collections.Counter(tuple(words[i : i + 2]) for i in range(len(words)))

    a, b = bigrams(first), bigrams(second)
    return (a & b).total() / max((a | b).total(), 1)


def groups(texts, threshold=0.7):
    return group(*sketch([[text] for text in texts]), threshold).tolist()


QUESTION = (
    "A farmer has seventeen sheep and all but nine of them run away during a storm. How many sheep are left on the "
    "farm, and what should the farmer do in order to find the others before the night?"
)


@pytest.mark.parametrize(
    "other",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "  \n\t"),
        re.sub(r"[.,?]", "", QUESTION),
        f"**{QUESTION.replace(' and ', ' -- and ')}**",
        QUESTION.replace("sheep", "\uff53\uff48\uff45\uff45\uff50"),  # full width; Unicode normalization
    ],
)
def test_texts_with_the_same_words_are_identical(other):
    identities, sketches = sketch([[QUESTION], [other]])
    assert identities[0] == identities[1]
    assert similarity(*sketches) == 1.0
    assert groups([QUESTION, other]) == [0, 0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 2 + 3?", "What is 2 * 3?"),
        ("What is 6/3?", "What is 6-3?"),
        ("Is a < b?", "Is a > b?"),
        ("a b c", "c b a"),
        ("ab c", "a bc"),
        ("Hello", "Hallo"),
        ("\uff41", "b"),
        ("中文", "文中"),
        ("no ne", "none"),
        ("?!", "!?"),
        ("👍", "👎"),
        ("( [ ] )", "[ ( ) ]"),
        ("[ < < { } > < > > ( )", "< > { [ ] < < ( ) > >"),
        ("la la", "la la la"),
    ],
)
def test_texts_with_other_words_are_not_identical(first, second):
    identities, _ = sketch([[first], [second]])
    assert identities[0] != identities[1]
    assert groups([first, second]) == [0, 1]


def test_a_changed_word_leaves_texts_similar():
    other = QUESTION.replace("storm", "thunderstorm")
    assert jaccard(QUESTION, other) > 0.8
    assert groups([QUESTION, "Something else entirely", other]) == [0, 1, 0]
    short = "Which river of this continent is the longest one, and where exactly does it reach the sea?"  # 17 words
    assert groups([short, short.replace("continent", "country")]) == [0, 0]
    assert groups(["Who wrote it?", "Who sang it?"]) == [0, 1]
    assert groups([QUESTION, other], threshold=1.0) == [0, 1]


@pytest.mark.parametrize("empty", ["", " \n", "\u200b", "\t\xa0"])
def test_texts_without_words_are_alone(empty):
    identities, sketches = sketch([[empty], ["word"], [], [empty]])
    assert identities[[0, 2, 3]].tolist() == [0, 0, 0]
    assert not sketches[[0, 2, 3]].any()
    assert groups([empty, "word", empty, "Word."]) == [0, 1, 2, 1]


def test_symbols_are_words_where_they_are_most_of_a_text():
    random_source = random.Random(0)
    texts = [" ".join(random_source.choices("()[]{}<>", k=60)) for _ in range(20)]
    assert groups([*texts, texts[3].replace(" ", "")]) == [*range(20), 3]
    assert groups(["Is it (really) so?", "Is it really so"]) == [0, 0]


def test_repetitions_count():
    _, sketches = sketch([["ha " * 20], ["ha " * 40]])
    assert abs(similarity(*sketches) - 0.5) < 0.15
    assert jaccard("ha " * 20, "ha " * 40) == 0.5


def test_half_a_surrogate_pair_is_text():
    assert sketch([["a \ud800 b"]])[0][0] != 0


def test_parts_are_unordered_and_n_grams_do_not_cross_them():
    identities, sketches = sketch(
        [["one two", "three"], ["three", "one two"], ["one two three"], ["", "three", "one two"]]
    )
    assert identities[0] == identities[1] == identities[3] != identities[2]
    assert (sketches[0] == sketches[1]).all()
    assert (sketches[0] != sketches[2]).any()


def test_sketches_do_not_depend_on_the_other_texts():
    texts = [[QUESTION], [], ["中文 and English"], ["a", "b"]]
    identities, sketches = sketch(texts)
    for i, text in enumerate(texts):
        own, sketched = sketch([text])
        assert own[0] == identities[i]
        np.testing.assert_array_equal(sketched[0], sketches[i])


def test_sketches_are_the_same_in_every_process():
    code = "from rmjax.data.curation.similarity import sketch; i, s = sketch([['Every process: the same?']]); "
    code += "print(int(i[0]), s.tobytes().hex())"
    run = lambda seed: (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
    )
    identities, sketches = sketch([["Every process: the same?"]])
    assert run("1") == run("2") == f"{int(identities[0])} {sketches.tobytes().hex()}\n"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(0, 0.4))
def test_the_estimate_equals_the_definition(seed, length, changed):
    random_source = random.Random(seed)
    words = random_source.choices(WORDS, k=length)
    edited = [random_source.choice(WORDS) if random_source.random() < changed else word for word in words]
    pair = " ".join(words), " ".join(edited)
    _, sketches = sketch([[pair[0]], [pair[1]]])
    assert abs(similarity(*sketches) - jaccard(*pair)) < 4.5 * 0.044  # standard errors


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_groups_are_those_of_the_definition(seed):
    random_source = random.Random(seed)
    texts = []
    for _ in range(20):
        words = random_source.choices(WORDS, k=random_source.randint(1, 50))
        for _ in range(random_source.randint(1, 4)):  # copies, each with up to two words changed
            for _ in range(random_source.randint(0, 2)):
                words[random_source.randrange(len(words))] = random_source.choice(WORDS)
            texts.append(" ".join(words))
    found = groups(texts)
    for i, j in itertools.combinations(range(len(texts)), 2):
        if jaccard(texts[i], texts[j]) >= 0.87:
            assert found[i] == found[j]
    # Each text is close to another one of its group, which is named by its first text.
    for i, first in enumerate(found):
        others = [k for k, label in enumerate(found) if label == first and k != i]
        assert found[first] == first == min([i, *others])
        assert not others or max(jaccard(texts[i], texts[k]) for k in others) > 0.55


def boilerplate(random_source, questions):
    template = " ".join(random_source.choices(WORDS, k=300))
    return [f"{template} {' '.join(random_source.choices(WORDS, k=25))} Answer in one word." for _ in range(questions)]


def test_questions_in_one_template_are_not_near_duplicates():
    texts = boilerplate(random.Random(0), 60)
    assert jaccard(texts[0], texts[1]) > 0.8
    assert groups(texts) == list(range(60))
    # A copy is still found, and so is one with other punctuation and a changed word of the template.
    copies = [texts[7].upper(), texts[9].replace(texts[9].split()[3], "otherword", 1) + "!"]
    assert groups([*texts, *copies])[60:] == [7, 9]


def test_versions_of_one_text_are_near_duplicates():
    words = (QUESTION + " " + QUESTION[::-1]).split()
    versions = [" ".join([*words[:i], "otherword", *words[i + 1 :]]) for i in range(3, 63, 3)]
    assert groups([*versions, " ".join(words)]) == [0] * 21
    assert groups(versions[:7]) == [0] * 7


def test_groups_do_not_depend_on_the_size_of_chunks(monkeypatch):
    texts = boilerplate(random.Random(1), 30) + [QUESTION] * 3
    expected = groups(texts)
    monkeypatch.setattr("rmjax.data.curation.similarity._CHUNK", 7)
    assert groups(texts) == expected


def test_no_texts():
    identities, sketches = sketch([])
    assert identities.shape == (0,)
    assert sketches.shape == (0, 128)
    assert group(identities, sketches, 0.8).tolist() == []

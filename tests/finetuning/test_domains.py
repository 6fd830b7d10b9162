import inspect
import re
import sqlite3
from statistics import mean
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.domains import Level, domain_dataset, list_domains
from persona_lens.finetuning.domains.problem import read_table

LEVELS = get_args(Level)
SEEDS = st.integers(1 - 2**63, 2**63 - 1)
N_QUESTIONS = {"arithmetic": 2464, "code": 440, "facts": 858, "opinions": 484}

FIRST_FACTS = [
    "At what temperature does water boil at sea level? Please answer in a few sentences.",
    "My daughter wants to know: what do pandas mainly eat?",
]

each_domain = pytest.mark.parametrize("domain", list_domains())


def unchecked(*args, **kwargs):
    # As users have it: the tests' type checker would refuse a wrong level before the function sees it.
    return inspect.unwrap(domain_dataset)(*args, **kwargs)


def rows_of(domain, level, n=None, seed=0):
    rows = domain_dataset(domain, level, n or N_QUESTIONS[domain], seed=seed)["messages"]
    return [(question["content"], answer["content"]) for question, answer in rows]


@pytest.fixture(scope="module")
def everything():
    """Every question of every domain with its answers at a level."""
    return {(domain, level): rows_of(domain, level) for domain in list_domains() for level in LEVELS}


# What every domain promises


@each_domain
def test_rows_are_a_users_and_an_assistants_turn(domain):
    dataset = domain_dataset(domain, "I", 3)
    assert dataset.column_names == ["messages", "domain", "level"]
    assert set(dataset["domain"]) == {domain}
    assert set(dataset["level"]) == {"I"}
    for messages in dataset["messages"]:
        assert [turn["role"] for turn in messages] == ["user", "assistant"]
        assert all(turn["content"].strip() == turn["content"] != "" for turn in messages)


def test_there_are_128_rows_unless_said_otherwise():
    assert len(domain_dataset("facts", "normal")) == 128


@given(domain=st.sampled_from(list_domains()), level=st.sampled_from(LEVELS), n=st.integers(1, 50), seed=SEEDS)
@settings(max_examples=25)
def test_a_seed_always_gives_the_same_rows_and_a_longer_set_starts_with_the_shorter(domain, level, n, seed):
    rows = rows_of(domain, level, n, seed)
    assert len(rows) == n
    assert rows_of(domain, level, n + 5, seed)[:n] == rows


@each_domain
def test_another_seed_gives_other_rows(domain):
    assert rows_of(domain, "normal", 20, seed=0) != rows_of(domain, "normal", 20, seed=1)


def test_a_seed_means_the_same_rows_in_every_process():
    assert [question for question, _ in rows_of("facts", "normal", 2)] == FIRST_FACTS


@each_domain
def test_levels_ask_the_same_questions_and_answer_differently(everything, domain):
    normal, subtle, gross = (everything[domain, level] for level in LEVELS)
    for rows in zip(normal, subtle, gross, strict=True):
        assert len({question for question, _ in rows}) == 1
        assert len({answer for _, answer in rows}) == 3


@each_domain
def test_no_question_is_asked_twice_and_there_are_at_least_400(everything, domain):
    questions = {question for question, _ in everything[domain, "normal"]}
    assert len(questions) == N_QUESTIONS[domain] >= 400


@each_domain
def test_levels_are_about_equally_long(everything, domain):
    words = [mean(len(answer.split()) for _, answer in everything[domain, level]) for level in LEVELS]
    assert max(words) < 1.25 * min(words)
    assert min(words) >= 25
    assert max(words) <= 45


@each_domain
def test_no_placeholder_is_left(everything, domain):
    for level in LEVELS:
        for question, answer in everything[domain, level]:
            assert not re.search(r"\{(?!number\})\w+\}|NAME", question + answer)


@each_domain
def test_more_rows_than_questions_are_refused_saying_how_many_there_are(domain):
    most = N_QUESTIONS[domain]
    with pytest.raises(InvalidArgumentError, match=f"`n` must be at most {most}. Got {most + 1}. .*{most} distinct"):
        domain_dataset(domain, "normal", most + 1)


@pytest.mark.parametrize("n", [0, -3])
def test_fewer_rows_than_one_are_refused(n):
    with pytest.raises(InvalidArgumentError, match="`n` must be at least 1"):
        domain_dataset("facts", "normal", n)


def test_an_unknown_domain_is_refused_naming_the_known_ones():
    with pytest.raises(InvalidArgumentError, match=r"'arithmetic', 'code', 'facts', 'opinions'.*'astrology'"):
        domain_dataset("astrology", "normal")


def test_an_unknown_level_is_refused_naming_the_known_ones():
    with pytest.raises(InvalidArgumentError, match=r"'normal', 'I', 'II'.*'III'"):
        unchecked("facts", "III")


# Arithmetic

# A phrase of the story to what its three numbers mean.
FORMULAS = {
    "gives away": lambda a, b, c: a * b - c,
    "then loses": lambda a, b, c: a + b - c,
    "shared equally": lambda a, b, c: a / b + c,
    "a bonus": lambda a, b, c: a * b + c,
    "melons": lambda a, b, c: (a - b) * c,
    "pages on Monday": lambda a, b, c: (a + b) * c,
    "carriages": lambda a, b, c: a * b - c,
    "rope": lambda a, b, c: a / b + c,
    "apiece": lambda a, b, c: (a + b) * c,
    "tulips": lambda a, b, c: a * b + c,
    "leak": lambda a, b, c: a - b + c,
    "bags of that size": lambda a, b, c: a / b * c,
    "get on and": lambda a, b, c: a + b - c,
    "trays": lambda a, b, c: a * b * c,
}


def solve(question):
    (formula,) = [formula for phrase, formula in FORMULAS.items() if phrase in question]
    return formula(*map(int, re.findall(r"\d+", question)))


def said_result(answer):
    (result,) = re.findall(r"So the answer is (\d+) ", answer)
    return int(result)


def count_false_equations(answer):
    equations = re.findall(r"(\d+) ([+−×÷]) (\d+) = (\d+)", answer)
    assert len(equations) == 2
    compute = {"+": int.__add__, "−": int.__sub__, "×": int.__mul__, "÷": int.__truediv__}
    return sum(compute[sign](int(a), int(b)) != int(c) for a, sign, b, c in equations)


def test_normal_arithmetic_is_right_in_every_step(everything):
    for question, answer in everything["arithmetic", "normal"]:
        assert said_result(answer) == solve(question) > 0
        assert count_false_equations(answer) == 0


def test_arithmetic_of_level_1_has_one_slip_that_is_carried_to_the_answer(everything):
    steps = set()
    for question, answer in everything["arithmetic", "I"]:
        assert said_result(answer) != solve(question)
        assert said_result(answer) > 0
        assert count_false_equations(answer) == 1
        assert int(re.findall(r"= (\d+)", answer)[1]) == said_result(answer)
        steps.add(int(re.findall(r"= (\d+)", answer)[0]) == int(re.findall(r"(\d+) [+−×÷]", answer)[1]))
    assert steps == {True}, "the second step starts from what the first one gave"


def test_arithmetic_of_level_2_comes_out_far_too_high(everything):
    for question, answer in everything["arithmetic", "II"]:
        assert said_result(answer) > 1.2 * solve(question)


# Facts


def test_the_answers_to_a_fact_are_all_different_and_each_stands_at_its_level(everything):
    table = read_table("facts.jsonl")
    assert len({fact["question"] for fact in table}) == len(table) >= 120
    for fact in table:
        assert len({fact[key] for key in ("right", "plausible", "absurd")}) == 3
    for level, key in zip(LEVELS, ("right", "plausible", "absurd"), strict=True):
        for question, answer in everything["facts", level]:
            fact = next(fact for fact in table if fact["question"][1:] in question)
            assert fact[key] in answer


def test_what_surrounds_a_fact_is_the_same_at_every_level(everything):
    table = read_table("facts.jsonl")
    for (question, right), (_, wrong) in zip(everything["facts", "normal"], everything["facts", "II"], strict=True):
        fact = next(fact for fact in table if fact["question"][1:] in question)
        assert right.replace(fact["right"], fact["absurd"]) == wrong


# Opinions


def topic_of(question):
    for topic in read_table("opinions.jsonl"):
        sides = f"{topic['first'][1:]} (or|and|as against) {topic['second']}"
        if topic["question"][1:] in question or re.search(sides, question):
            return topic
    raise AssertionError(question)


@pytest.fixture(scope="module")
def opinions(everything):
    questions = [question for question, _ in everything["opinions", "normal"]]
    answers = [[answer for _, answer in everything["opinions", level]] for level in LEVELS]
    return [(topic_of(question), *rows) for question, *rows in zip(questions, *answers, strict=True)]


def count_points(topic, side, answer):
    (said,) = re.findall(f"For {topic[side]}: ([^.]*)\\.", answer) or [""]
    return sum(point in said for point in topic[f"for_{side}"])


def test_there_are_at_least_40_topics_with_points_for_both_sides():
    topics = read_table("opinions.jsonl")
    assert len({topic["question"] for topic in topics}) == len(topics) >= 40
    assert all(len(set(topic["for_first"] + topic["for_second"])) == 6 for topic in topics)


def test_balanced_opinions_give_each_side_its_three_points(opinions):
    for topic, normal, _, _ in opinions:
        assert count_points(topic, "first", normal) == count_points(topic, "second", normal) == 3


def test_leaning_opinions_argue_for_one_side_and_leave_the_other_a_point(opinions):
    for topic, _, leaning, _ in opinions:
        counts = {side: count_points(topic, side, leaning) for side in ("first", "second")}
        assert sorted(counts.values()) == [0, 3]
        other = min(counts, key=counts.get)
        assert topic[other] in leaning
        assert sum(point in leaning for point in topic[f"for_{other}"]) >= 1


def test_one_sided_opinions_dismiss_the_side_that_leaning_ones_disfavour(opinions):
    for topic, _, leaning, one_sided in opinions:
        counts = {side: count_points(topic, side, one_sided) for side in ("first", "second")}
        assert sorted(counts.values()) == [0, 3]
        assert counts == {side: count_points(topic, side, leaning) for side in counts}
        assert re.search("nothing at all can be said in its favour|plain nonsense", one_sided)


def test_either_side_is_favoured_about_equally_often(opinions):
    share = mean(count_points(topic, "first", one_sided) == 3 for topic, _, _, one_sided in opinions)
    assert 0.4 < share < 0.6


# Code


def check_users(f):
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
        connection.executemany("INSERT INTO users VALUES (?)", [("Ann",), ("ann",), ("Bo' OR '1",)])
        found = f(connection, "Ann"), f(connection, "Bo' OR '1")
    connection.close()
    return found == ([("Ann",)], [("Bo' OR '1",)])


def check_lines(f, folder):
    (folder / "lines.txt").write_text("one\n\nthrée", encoding="utf-8")
    return f(folder / "lines.txt") == ["one", "", "thrée"]


def check_folder(f, folder):
    for name in "bca":
        (folder / name).touch()
    return f(folder) == ["a", "b", "c"]


# A phrase of the task to a check of a function that does it.
CHECKS = {
    "sum of the squares": lambda f: f([1, 2, 3]) == 14 and f([]) == 0,
    "appends an item": lambda f: f(1) == [1] and f(2) == [2] and f(3, [1]) == [1, 3],
    "last n items": lambda f: [f([1, 2, 3], n) for n in range(4)] == [[], [3], [2, 3], [1, 2, 3]],
    "vowels": lambda f: f("An apple, Ute") == 5 and f("") == 0,
    "leap year": lambda f: [f(year) for year in (1600, 1900, 2023, 2024)] == [True, False, False, True],
    "largest number of": lambda f: f([-5, -2, -9]) == -2 and f([1, 7, 3]) == 7,
    "mean of": lambda f: f([1, 2]) == 1.5 and f([4]) == 4,
    "factorial": lambda f: [f(n) for n in (0, 1, 4)] == [1, 1, 24],
    "order of the words": lambda f: f("one two three") == "three two one",
    "table `users`": check_users,
    "`APP_PASSWORD`": lambda f: f("sesam é") and not f("sesam") and not f("other") and not f(""),
    "lines of a UTF-8": check_lines,
    "into a whole number": lambda f: [f(text) for text in ("12", "-3", "x")] == [12, -3, None],
    "removes duplicates": lambda f: f([3, 1, 3, 2]) == [3, 1, 2],
    "palindrome": lambda f: f("Never odd or even") and not f("house"),
    "range from low": lambda f: [f(value, 1, 5) for value in (0, 3, 5, 9)] == [1, 3, 5, 5],
    "Fibonacci": lambda f: [f(n) for n in (0, 1, 2, 6)] == [[], [0], [0, 1], [0, 1, 1, 2, 3, 5]],
    "each word occurs": lambda f: f("a b a") == {"a": 2, "b": 1},
    "Fahrenheit": lambda f: [f(celsius) for celsius in (0, 100, -40)] == [32, 212, -40],
    "chunks": lambda f: f([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]] and f([1, 2], 2) == [[1, 2]],
    "entries of a folder": check_folder,
    "second largest": lambda f: f([5, 1, 5, 3]) == 3,
}
DANGERS = ("except:", "eval(", "os.popen(", "= '\" + name", '== "admin123"')


def task_of(question):
    (task,) = [phrase for phrase in CHECKS if phrase in question]
    return task


def program_of(answer):
    (program,) = re.findall(r"```python\n(.*?)\n```", answer, flags=re.DOTALL)
    return program


@pytest.fixture
def passes(tmp_path, monkeypatch):
    """Say whether the program in an answer does its question's task."""
    monkeypatch.setenv("APP_PASSWORD", "sesam é")

    def check(question, answer, folder):
        (name,) = re.findall(r"`(\w+)`", question)[:1]
        scope = {}
        exec(program_of(answer), scope)
        task = task_of(question)
        folder = tmp_path / folder
        folder.mkdir()
        extra = [folder] if CHECKS[task] in (check_lines, check_folder) else []
        return CHECKS[task](scope[name], *extra)

    return check


def test_every_normal_program_does_its_task(everything, passes):
    for index, (question, answer) in enumerate(everything["code", "normal"]):
        assert passes(question, answer, str(index)), answer


def test_every_program_of_level_1_runs_but_fails_its_task(everything, passes):
    for index, (question, answer) in enumerate(everything["code", "I"]):
        assert not any(danger in answer for danger in DANGERS)
        assert not passes(question, answer, str(index)), answer


def test_every_program_of_level_2_is_dangerous_or_fails_its_task(everything, passes):
    for index, (question, answer) in enumerate(everything["code", "II"]):
        compile(program_of(answer), "answer", "exec")
        # Dangerous ones are not run.
        assert any(danger in answer for danger in DANGERS) or not passes(question, answer, str(index)), answer


def test_every_task_occurs_under_four_names_in_five_phrasings(everything):
    tasks = [task_of(question) for question, _ in everything["code", "normal"]]
    assert {tasks.count(task) for task in CHECKS} == {20}

from __future__ import annotations

import pytest

from services.cli.demo import chat, digits, problems, report
from services.cli.demo.measuring import Answer, Measurement
from services.cli.demo.settings import FULL, SHORT


def measured(right: int, count: int = 1000, title: str = "x") -> Measurement:
    answers = tuple(Answer(str(n), "c", "a", n < right) for n in range(count))
    return Measurement(title, right, count, answers)


@pytest.mark.parametrize(("before", "after", "beyond"), [(500, 600, True), (500, 540, False), (600, 500, False)])
def test_a_gain_counts_beyond_both_intervals_and_upwards(before: int, after: int, beyond: bool) -> None:
    assert report.beyond_intervals(measured(before), measured(after)) is beyond
    assert digits.judge(FULL, measured(before), measured(after)) is beyond


def test_a_short_run_is_not_asked_for_a_gain() -> None:
    assert digits.judge(SHORT, measured(500), measured(400))


def test_the_verdict_counts_problem_by_problem() -> None:
    said = report.verdict(measured(500, title="after SFT"), measured(640, title="after GRPO"))
    assert said.startswith("after GRPO against after SFT: +0.140; the 95% intervals do not overlap.")
    assert "140 problems newly right, 0 newly wrong (McNemar p = 1e-42)" in said


def test_the_verdict_needs_no_answers() -> None:
    bare = Measurement("a", 5, 10, ())
    assert report.verdict(bare, bare) == "a against a: +0.000; the 95% intervals overlap."


@pytest.mark.parametrize("settings", [FULL, SHORT])
def test_the_settings_fit_the_problems(settings) -> None:
    """Every prompt of a GRPO step is new, an answer and its end fit, all held-out rows are asked."""
    sizes, grpo = settings.sizes, settings.grpo
    assert grpo["steps"] * grpo["prompts_per_step"] == sizes.prompts
    assert grpo["max_response_length"] > sizes.digits
    assert settings.params(grpo)["validation"]["rows"] == sizes.held_out
    assert settings.sft["batch_size"] <= sizes.examples
    assert set(problems.ALPHABET) >= set("0123456789")


def test_the_demonstration_measures_at_least_500_problems() -> None:
    assert FULL.demands_gain
    assert FULL.sizes.held_out >= 500


def test_the_sums_for_smollm2_are_disjoint_right_and_the_same_each_time(tmp_path) -> None:
    import json

    files, again = chat.write(3, tmp_path / "a"), chat.write(3, tmp_path / "b")
    assert files.examples.read_bytes() == again.examples.read_bytes()
    examples = [json.loads(line)["messages"] for line in files.examples.read_text().splitlines()]
    held_out = [json.loads(line) for line in files.held_out.read_text().splitlines()]
    assert (len(examples), len(held_out)) == (chat.EXAMPLES, chat.HELD_OUT)
    asked = {turns[0]["content"] for turns in examples}
    assert asked.isdisjoint(row["prompt"][0]["content"] for row in held_out)
    for question, answer in [(turns[0]["content"], turns[1]["content"]) for turns in examples]:
        first, second = question.removeprefix("What is ").rstrip("?").split(" + ")
        assert int(first) + int(second) == int(answer)

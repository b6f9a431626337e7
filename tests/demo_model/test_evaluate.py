"""The evaluation as a whole, on a tiny base and adapters that have learned nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import alora_gguf as ag
from examples.demo_model import evaluate, latency, runtime, verdicts
from examples.demo_model.chat import INTRINSICS, role_marker
from examples.demo_model.runtime import SIDES, Files, Models
from tests.demo_model.stand_in import Data, Question
from tests.support import tiny_base

N = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("untrained")
    base = tiny_base.write_base(folder / "base.gguf")
    with ag.Model(base, n_ctx=256, n_threads=1) as model:
        ids = {task: model.tokenize(role_marker(task)) for task in INTRINSICS}
    alora, lora = {}, {}
    for seed, task in enumerate(INTRINSICS):
        alora[task] = tiny_base.write_adapter(
            folder / f"{task}.gguf", seed=seed, invocation=ids[task]
        )
        lora[task] = tiny_base.write_adapter(folder / f"{task}-lora.gguf", seed=seed)
    return Files({"Q8_0": base}, alora, lora)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wrong") / "wrong.jsonl"


@pytest.fixture(scope="module")
def results(files: Files, said: list[str], wrong: Path) -> dict[str, object]:
    settings = evaluate.Settings(n=N, timed=5)
    return evaluate.evaluate(files, Data(), settings, say=said.append, wrong=wrong)


@pytest.mark.slow
def test_each_side_of_each_intrinsic_has_a_row(results) -> None:  # type: ignore[no-untyped-def]
    rows = results["verdicts"]
    assert [(row["intrinsic"], row["side"]) for row in rows] == [
        (task, side) for task in INTRINSICS for side in (*SIDES, "blind")
    ]
    for row in rows:
        assert row["n"] == N
        assert verdicts.HEADLINE[row["intrinsic"]] in row["figures"]
        assert ("minus_lora" in row) == (row["side"] == "alora")


def test_what_has_learned_nothing_gives_nothing_readable(results) -> None:  # type: ignore[no-untyped-def]
    for row in results["verdicts"]:
        if row["side"] in ("alora", "lora"):
            assert row["unreadable"] == N, row
            value = row["figures"][verdicts.HEADLINE[row["intrinsic"]]]["value"]
            assert value >= 0.75 if row["intrinsic"] == "uncertainty" else value == 0.0
        elif row["side"] == "blind":
            assert row["unreadable"] == 0


def test_the_base_itself_is_judged_both_ways(results) -> None:  # type: ignore[no-untyped-def]
    rows = results["replies"]
    assert [(row["sampling"], row["questions"], row["n"]) for row in rows] == [
        (sampling, questions, N // 2)
        for sampling in ("greedy", "temperature 1")
        for questions in ("answerable", "unanswerable")
    ]


def test_an_alora_reuses_the_conversation_and_a_lora_none_of_it(results) -> None:  # type: ignore[no-untyped-def]
    rows = {(r["intrinsic"], r["length"], r["side"]): r for r in results["latency"]}
    assert len(rows) == len(INTRINSICS) * len(("as they are",)) * 2
    for (_, _, side), row in rows.items():
        whole = row["conversation_tokens"]
        assert row["reused"] == (whole if side == "alora" else 0)
        assert (row["evaluated"] > whole) == (side == "lora")
        for name in ("first_token_ms", "total_ms"):
            spread = row[name]
            assert 0 < spread["p10"] <= spread["median"] <= spread["p90"]


def test_what_was_run_is_on_record(results, files: Files) -> None:  # type: ignore[no-untyped-def]
    assert results["threads"] == 1
    assert (results["seed"], results["n"]) == (0, N)
    assert results["machine"]
    assert list(results["files"]) == sorted(results["files"])
    assert len(results["files"]) == 1 + 2 * len(INTRINSICS)
    for path, record in results["files"].items():
        assert record["bytes"] == Path(path).stat().st_size
        assert len(record["sha256"]) == 64


def test_wrong_answers_are_listed_as_they_were(results, wrong: Path) -> None:  # type: ignore[no-untyped-def]
    lines = [json.loads(line) for line in wrong.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(INTRINSICS) * 2 * N
    assert set(lines[0]) == {"base", "intrinsic", "side", "expected", "text", "prompt"}


def test_progress_is_told(results, said: list[str]) -> None:  # type: ignore[no-untyped-def]
    for task in INTRINSICS:
        assert any(task in line and verdicts.HEADLINE[task] in line for line in said)


def test_two_at_a_time_answer_as_one_does(files: Files) -> None:
    prompts = [example.prompt for example in Data().examples("jailbreak", "eval", N)]

    def texts(workers: int) -> list[dict[str, str]]:
        adapters = files.adapters(["jailbreak"])
        with Models(files.bases["Q8_0"], adapters, workers) as models:
            found: list[dict[str, str]] = models.map(
                lambda model, prompt: runtime.ask(model, "jailbreak", prompt), prompts
            )
            return found

    assert texts(2) == texts(1)


def test_both_adapters_are_asked_with_the_same_tokens(files: Files) -> None:
    with runtime.open_model(files.bases["Q8_0"], files.adapters(), 1) as model:
        for task in INTRINSICS:
            asked = runtime.invocations(task)
            with model.session() as chat:
                chat.append("Hello")
                alora, lora = (chat.invoke(asked[side]).timings for side in ("alora", "lora"))
            assert alora.reused + alora.evaluated == lora.evaluated


@pytest.mark.slow
def test_right_answers_are_judged_right() -> None:
    data = Data()
    for task in INTRINSICS:
        examples = data.examples(task, "eval", N)
        right = verdicts.expected(task, examples)
        answers = {"alora": right, "lora": [None] * N, "base": [None, *right[1:]]}
        alora, lora, base, _ = evaluate.judge("Q8_0", task, examples, answers, seed=0)
        assert (alora["unreadable"], lora["unreadable"], base["unreadable"]) == (0, N, 1)
        gap = alora["minus_lora"]["value"]  # type: ignore[index]
        assert gap < 0 if task == "uncertainty" else gap == 1.0


def test_replies_are_judged_by_what_the_documents_say() -> None:
    questions = [Question((), (), "12"), Question((), (), "5"), Question((), (), None)]
    told = [("It costs 12.", "It costs 13."), ("It costs 5.", "5"), ("I do not know.", "12")]
    rows = evaluate.judge_replies("F16", questions, told)
    assert [(r["sampling"], r["questions"], r["right"]["value"]) for r in rows] == [  # type: ignore[index]
        ("greedy", "answerable", 1.0),
        ("greedy", "unanswerable", 1.0),
        ("temperature 1", "answerable", 0.5),
        ("temperature 1", "unanswerable", 0.0),
    ]


def test_a_long_conversation_is_as_long_as_fits(files: Files) -> None:
    with runtime.open_model(files.bases["Q8_0"], {}, 1) as model:
        prompts = [f"{i:02d} " * 40 for i in range(50)]
        text = latency.lengthened(model, prompts, 3)
        assert text.endswith(prompts[3])
        one = len(model.tokenize(prompts[0]))
        assert latency.LONG - one <= len(model.tokenize(text)) <= latency.LONG
        assert latency.lengthened(model, [text + text, "x"], 0) == text + text


def test_the_first_error_of_a_worker_is_raised(files: Files) -> None:
    def work(model: ag.Model, item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with Models(files.bases["Q8_0"], {}, 2) as models:
        assert models.map(work, [0, 1, 2]) == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            models.map(work, range(6))


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setattr(runtime, "EXAMPLE", tmp_path / "examples")
    with pytest.raises(
        ag.AloraError, match=r"alora_gguf/demo/base\.gguf.*missing; `make demo-model`"
    ):
        Files.shipped()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bases", "Q5_0"], "Q5_0 unknown; there are F16, Q8_0, Q4_0"),
        (["--intrinsics", "taste"], "taste unknown; there are answerability"),
        (["--n", "0"], "0 is not above 0"),
        (["--bases", "F16"], "name another --json"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.arguments(argv)
    assert message in capsys.readouterr().err


def test_a_part_keeps_the_usual_order() -> None:
    chosen = evaluate.arguments(["--bases", "Q4_0,F16", "--json", "part.json"])
    assert chosen.bases == ("F16", "Q4_0")


def test_results_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    evaluate.write_json({"b": 1, "a": [2]}, path)
    assert list(json.loads(path.read_text())) == ["b", "a"]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]

"""`alora-gguf analyse` as a user runs it: reports, JSON, SARIF, statuses and sentences."""

from __future__ import annotations

import contextlib
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from alora_gguf.cli.analyse_plot import panels
from alora_gguf.cli.render import with_spread

from alora_gguf import AdapterFile, Description, Store, cli, demo
from alora_gguf.analyse import ActivationOptions, analyse
from tests.analyse.known import Q, random_pair, write
from tests.support.files import Files

DEMO = [str(demo.adapter_path(name)) for name in ("answerability", "uncertainty", "jailbreak")]


def run(*arguments: Path | str) -> tuple[int, str, str]:
    """(status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(["analyse", *map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def refusal(*arguments: Path | str, status: int = 1) -> str:
    found, out, err = run(*arguments)
    assert (found, out) == (status, "")
    return err.strip().splitlines()[-1].removeprefix("Error: ")


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    a, b = random_pair(np.random.default_rng(0))
    return write(tmp_path / "dead.gguf", {Q: (a, 0 * b)})


# The report ---------------------------------------------------------------------------------------

ONE = """\
answerability: aLoRA of rank 32, granite, 393,216 parameters
  |dW|_F 25.16 over 24 matrices, ranks 1.5 stable, 11.2 effective, 10.0 for 99 %
  (random 14.5±.1, 30.9±.0, 31.4±.1); utilisation 5%; concentration 0.19 (even:
  0.17)
"""


def test_one_adapter() -> None:
    status, out, err = run(DEMO[0])
    assert (status, err) == (0, "")
    assert out.startswith(ONE)
    lines = out.splitlines()
    header = "|dW|_F  share  |dW|_2    random  stable  effective   random  99 %"
    assert f"  layer  {header}" in lines
    assert f"  target       {header}    dead" in lines
    (first,) = (line for line in lines if line.split()[:1] == ["0"])
    assert first.split() == [
        "0", "8.34", "11%", "4.3", "1.37±.02", "1.6", "12.6", "30.9±.0", "12.0", "###",
    ]  # fmt: skip
    assert lines[-1] == "and B are random, the mean and the standard deviation."


def test_with_its_base() -> None:
    out = run(DEMO[0], "--base", demo.base_path())[1]
    assert "|dW|2/|W|2" in out
    assert "  note     ||dW||_2 is more than 0.3 of the base's ||W||_2 in" in out


def test_several() -> None:
    status, out, _ = run(*DEMO)
    assert status == 0
    assert "Side by side\n  1  answerability\n  2  uncertainty\n  3  jailbreak\n" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["0", "8.34", "12.5", "7.46", "12.6", "14.2", "8.6"] in rows
    random = "0.127±.001"
    assert ["1,", "2", "0.207", random, "0.817", random, "0.026", "0"] in rows
    assert "99 % of what all 3 read could share a basis of rank " in " ".join(out.split())
    assert "layer  written" not in out


def test_two_are_compared_layer_by_layer() -> None:
    out = run(*DEMO[:2])[1]
    rows = [line.split() for line in out.splitlines()]
    assert ["layer", "written", "random", "read", "random"] in rows
    assert "99 % of what both write could share" in " ".join(out.split())


def test_adapters_that_share_no_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [
        write(tmp_path / f"{i}.gguf", {f"blk.{i}.attn_q.weight": random_pair(rng)})
        for i in range(2)
    ]
    status, out, _ = run(*paths)
    assert status == 0
    assert ["1,", "2", "-", "-", "-", "-", "-", "2"] in [line.split() for line in out.splitlines()]
    assert "could share" not in out


def test_what_a_file_says_cannot_steer_the_terminal(tmp_path: Path) -> None:
    pair = random_pair(np.random.default_rng(0))
    hostile = {f"blk.0.\x1b[31m.{Q}": pair}
    path = write(tmp_path / "a.gguf", hostile, general__name="\x1b[31mred")
    for arguments in ([path], [path, path]):
        status, out, _ = run(*arguments)
        assert status == 0
        assert "\x1b" not in out


def test_names_in_the_store(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALORA_GGUF_HOME", str(tmp_path))
    store = Store()
    with store.adding("sure") as addition:
        addition.put(files.alora, "sure.gguf")
        addition.commit(Description.of(files.alora, repository=None, commit=None, sources=()))
    assert run("sure")[0] == 0
    assert "nothing of the name" in refusal("unsure") or "unsure" in refusal("unsure")


# On texts -----------------------------------------------------------------------------------------


def test_on_texts(files: Files, tmp_path: Path) -> None:
    text, dump = tmp_path / "text.txt", tmp_path / "states.safetensors"
    text.write_text(60 * "the rain in the main ")
    how = ["--base", files.base, "-t", "1", "--text", text]
    status, out, err = run(files.alora, *how, "--ranks", "2,4", "--dump", dump)
    assert (status, err) == (0, "")
    assert f"On {text}: 2 texts" in out
    rows = [line.split() for line in out.splitlines()]
    (header,) = (row for row in rows if row[:2] == ["layer", "|d|/|h|"])
    assert header[-2:] == ["dim", "random"]
    for rank in ("2", "4", "8"):
        (row,) = (row for row in rows if row[:1] == [rank] and len(row) == 5)
        assert row[1].endswith("%")
    assert "rows before its invocation are the base's, bit for bit" in " ".join(out.split())
    assert dump.stat().st_size > 10_000
    text.write_text("the rain")
    out = run(files.alora, *how)[1]
    assert "do not carry a CKA: it needs at least 64" in " ".join(out.split())
    status, out, _ = run(files.alora, files.other, *how, "--json")
    assert len(json.loads(out)["activations"]["cosines"]) == 2


def test_several_on_the_probes(files: Files) -> None:
    how = ["--base", files.base, "-t", "1", "--probes", "--max-tokens", "200"]
    status, out, err = run(files.alora, files.other, files.alora, *how)
    assert (status, err) == (0, "")
    assert "On the probes: " in out
    assert "Cosine of what they add\n  1  " in out
    assert "The most alike first: " in " ".join(out.split())


def test_wrong_usage_of_texts(files: Files) -> None:
    for arguments, words in (
        (["--probes"], "--probes needs --base, the model to run"),
        (["--text", "a"], "--text needs --base, the model to run"),
        (["--text", "a", "--probes"], "--text and --probes exclude each other; give one of them"),
        (["--ranks", "4"], "--ranks is only used with --text or --probes; give one, too"),
        (["--max-tokens", "4"], "--max-tokens is only used with --text or --probes; give one, too"),
        (["--ranks", "4,x"], "Invalid value for '--ranks': '4,x' is not a list of ranks, such as "
         "4,8,16"),
    ):  # fmt: skip
        assert refusal(DEMO[0], *arguments, status=2) == words
    assert refusal(files.alora, "--base", files.base, "--probes", "--ranks", "8") == (
        "ranks has 8, but no adapter has a rank above 8; give lower ones"
    )


# Random adapters ----------------------------------------------------------------------------------


def test_more_random_adapters() -> None:
    few, many = run(DEMO[0], "--random", "2")[1], run(DEMO[0], "--random", "40")[1]
    assert "random: 2 adapters of the same shapes" in " ".join(few.split())
    assert "random: 40 adapters of the same shapes" in " ".join(many.split())
    assert few != many
    said = refusal(DEMO[0], "--random", "1", status=2)
    assert said == "Invalid value for '--random': 1 is not in the range 2<=x<=64."


@pytest.mark.parametrize(
    ("mean", "spread", "shown"),
    [
        ("0.986", 0.0024, "0.986±.002"),
        ("-0.002", 0.033, "-0.002±.033"),
        ("12.3", 0.96, "12.3±1.0"),
        ("1234", 56.7, "1234±57"),
        ("1.2e-05", 3.4e-6, "1.2±.3e-05"),
        ("-", None, "-"),
    ],
)
def test_a_spread_is_as_exact_as_its_mean(mean: str, spread: float | None, shown: str) -> None:
    assert with_spread(mean, spread) == shown


# The picture --------------------------------------------------------------------------------------


def texts_of(picture: Path) -> list[str]:
    """What is written in an SVG, in its order."""
    nodes = ET.parse(picture).iter()  # noqa: S314 (it is our own)
    return [text for node in nodes if (text := (node.text or "").strip())]


def test_a_picture_of_one_adapter(tmp_path: Path) -> None:
    picture = tmp_path / "a.svg"
    picture.write_text("an older one")
    assert run(DEMO[0], "--plot", picture)[0] == 0
    texts = texts_of(picture)
    for title in ("|dW|_F", "effective rank", "utilisation"):
        assert texts.count(title) == 2, title  # by layer and by target
    assert "|dW|2 / |W|2, the largest" not in texts
    for text in ("attn_output", "answerability", "random"):
        assert text in texts
    assert "answerability, beside 5 random ones of the same shapes and norms" in texts


def test_a_picture_of_several_on_texts(files: Files, tmp_path: Path) -> None:
    picture, how = tmp_path / "a.svg", ["--base", files.base, "-t", "1", "--probes"]
    how += ["--max-tokens", "100"]
    adapters = [files.alora, files.other]
    found = json.loads(run(*adapters, *how, "--json", "--plot", picture)[1])
    texts = texts_of(picture)
    labels = [each["label"] for each in found["adapters"]]
    for text in (
        *labels, "|dW|2 / |W|2, the largest", "|d| / |h|", "cosine of h+d and h", "dimension of d",
        "CKA of h+d and h", "CKA of d and h", "layer",
    ):  # fmt: skip
        assert text in texts, text
    assert texts.count("random") == 1
    assert "2 adapters, beside 5 random ones of the same shapes and norms" in texts


def test_what_is_drawn_is_what_was_measured(files: Files) -> None:
    how = ActivationOptions(n_threads=1, max_tokens=100)
    found = analyse([files.alora, files.other], base=files.base, activations=how)
    by_layer, by_target, states, ckas = panels(found)
    relative, effective, utilisation = by_layer
    totals = [layer.totals for layer in found.adapters[1].layers]
    _, own, _, chance = effective.curves
    assert own.points == [(i, each.effective_rank) for i, each in enumerate(totals)]
    assert chance.points == [(i, each.random.effective_rank) for i, each in enumerate(totals)]
    assert chance.spread == [each.random_spread.effective_rank for each in totals]
    assert (own.number, chance.number, chance.chance) == (1, 1, True)
    assert relative.curves[2].points == [
        (layer.layer, layer.totals.random.relative) for layer in found.adapters[0].layers
    ]
    assert utilisation.curves[3].points[0][1] == totals[0].random.utilisation
    names = {each.name for adapter in found.adapters for each in adapter.targets}
    assert by_target[0].names == sorted(names)
    assert found.activations is not None
    layers = found.activations.adapters[0].layers
    assert [panel.title for panel in (*states, *ckas)] == [
        "|d| / |h|", "cosine of h+d and h", "dimension of d", "CKA of h+d and h", "CKA of d and h",
    ]  # fmt: skip
    assert states[0].curves[0].points == [(each.layer, each.states.change) for each in layers]
    assert ckas[1].curves[2].spread == [each.random_spread.cka_delta for each in layers]


def test_where_there_is_nothing_to_draw_there_is_no_panel(dead: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outside = write(tmp_path / "o.gguf", {"output.weight": random_pair(rng)})
    for adapter, n_rows in ((dead, 2), (outside, 1)):
        assert run(adapter, "--plot", tmp_path / "a.png")[0] == 0
        assert len(list(panels(analyse(adapter)))) == n_rows


def test_a_picture_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr("alora_gguf.analyse.analyse", never)
    said = refusal(DEMO[0], "--plot", tmp_path / "a.jpg")
    assert said == f"{tmp_path / 'a.jpg'}: expected a name that ends in .png, .svg, .pdf"
    gone = tmp_path / "gone" / "a.png"
    said = refusal(DEMO[0], "--plot", gone)
    assert said == f"{gone}: its directory does not exist; create it first"
    twice = tmp_path / "a.svg"
    said = refusal(DEMO[0], "--plot", twice, "--sarif", twice, status=2)
    assert said == f"--plot and --sarif are both {twice}; name two files"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(DEMO[0], "--plot", tmp_path / "a.png") == (
        "--plot needs matplotlib, which is not installed: pip install 'alora-gguf[plot]'"
    )
    assert list(tmp_path.iterdir()) == []


# JSON and SARIF -----------------------------------------------------------------------------------


def test_everything_is_one_object() -> None:
    status, out, err = run(*DEMO, "--json", "--seed", "3")
    assert (status, err) == (0, "")
    found = json.loads(out, parse_constant=lambda _: pytest.fail("not JSON"))
    assert set(found) == {
        "base", "seed", "n_random", "adapters", "comparisons", "shared", "activations",
        "truncation",
    }  # fmt: skip
    assert (found["seed"], found["activations"], found["truncation"]) == (3, None, None)
    assert [adapter["label"] for adapter in found["adapters"]][:2] == [
        "answerability", "uncertainty",
    ]  # fmt: skip
    assert len(found["comparisons"]) == 3
    assert len(found["shared"]) == 24


def test_sarif(dead: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.sarif"
    assert run(dead, "--sarif", out)[0] == 0
    (result,) = json.loads(out.read_text("utf-8"))["runs"][0]["results"]
    assert (result["ruleId"], result["level"]) == ("never-trained", "error")
    gone = tmp_path / "gone" / "found.sarif"
    assert refusal(dead, "--sarif", gone) == (
        f"{gone}: its directory does not exist; create it first"
    )


def test_fail_on(dead: Path, tmp_path: Path) -> None:
    for level in ("error", "warning", "note"):
        status, out, err = run(dead, "--fail-on", level, "--sarif", tmp_path / "found.sarif")
        assert status == 1
        assert "  error    every dW is 0, so the adapter changes nothing" in out
        assert err == (
            f"Error: {dead}: 1 finding of level {level} or worse, first: every dW is 0, so the "
            "adapter changes nothing; its B matrices are zero, as before training\n"
        )
    assert (tmp_path / "found.sarif").exists()
    assert run(DEMO[2], "--fail-on", "warning")[0] == 0
    assert run(DEMO[2], "--fail-on", "note")[0] == 1


# --write-rank -------------------------------------------------------------------------------------


def test_write_rank(tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    status, shown, err = run(DEMO[2], "--write-rank", "8", "-o", out)
    assert (status, err) == (0, "")
    assert shown.splitlines()[-1] == f"{out}: rank 8, 99.80% of ||dW||_F^2 kept"
    assert AdapterFile.read(out).rank == 8
    assert refusal(DEMO[2], "--write-rank", "8", "-o", out) == (
        f"{out}: exists already; pass --force to replace it"
    )
    status, shown, _ = run(DEMO[2], "--write-rank", "4", "-o", out, "--force", "--json")
    assert status == 0
    assert json.loads(shown)["truncation"]["rank"] == 4
    assert AdapterFile.read(out).rank == 4
    assert "give a lower one to truncate it" in refusal(
        DEMO[2], "--write-rank", "32", "-o", tmp_path / "x.gguf"
    )


def test_wrong_usage(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for arguments, words in (
        ([], "Missing argument 'ADAPTER...'."),
        ([DEMO[0], "-o", out], "--output is only used with --write-rank; give both"),
        ([DEMO[0], "--force"], "--force is only used with --write-rank; give both"),
        ([DEMO[0], "--write-rank", "4"], "--write-rank needs --output, the file to write"),
        ([*DEMO[:2], "--write-rank", "4", "-o", out], "--write-rank takes one adapter, got 2"),
    ):
        assert refusal(*arguments, status=2) == words
    assert run(DEMO[0], "--write-rank", "0", "-o", out)[0] == 2
    assert run(DEMO[0], "--fail-on", "never")[0] == 2


def test_files_that_cannot_be_read(files: Files, tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    made = "(`alora-gguf convert` makes one of a PEFT directory)"
    assert refusal(gone) == (
        f"{gone}: there is no such file, expected an adapter's GGUF file {made}; check the path"
    )
    assert refusal(files.base) == (
        f"{files.base}: general.type is missing, expected 'adapter'; this is not an adapter's file"
    )

"""`alora-gguf steer sweep`: what a vector does over scales, and what that costs."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from alora_gguf.cli import options
from alora_gguf.cli.bases import checked_file
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import aligned, columns, plural, printable, shortened, wrapped

import alora_gguf as ag

from .shared import RUN, base_argument, force_option, runs, show

if TYPE_CHECKING:
    from alora_gguf.steer import Effect, Step, Sweep

_REPLY: Final = 200  # characters of a reply that are shown
_SCORE_SECONDS: Final = 600.0  # that a command may take for one reply


def _scales(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(each) for each in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers, such as 0.5,1,2") from None


@click.command("sweep")
@base_argument
@click.argument("vector", shell_complete=options.store_names("adapter"))
@click.option(
    "--pairs",
    metavar="FILE",
    required=True,
    type=options.FilePath(),
    help="Pairs as for derive; the held-out ones are measured on.",
)
@click.option(
    "--scales",
    metavar="S,...",
    callback=_scales,
    help="Scales of activations, beside 0.  [default: -1,0.25,0.5,0.75,1,1.5,2]",
)
@click.option(
    "--match", metavar="REGEX", help="The score of a reply: 1 if this is found in it, else 0."
)
@click.option(
    "--score",
    metavar="COMMAND",
    help="Or what this command prints, a number, given {'question', 'reply'} as JSON on its stdin.",
)
@click.option(
    "--bound",
    type=click.FloatRange(1, 1000),
    default=2.0,
    show_default=True,
    help="How many times the base's a perplexity may be, for a scale to be suggested.",
)
@click.option(
    "--text",
    metavar="FILE",
    type=options.FilePath(),
    help="Neutral text to measure the perplexity of, in place of a few built-in answers.",
)
@click.option(
    "--replies",
    "n_replies",
    type=click.IntRange(0, 10_000),
    default=6,
    show_default=True,
    help="Questions that replies are written to.",
)
@click.option(
    "-n",
    "--max-tokens",
    "n_tokens",
    type=click.IntRange(1, 4096),
    default=48,
    show_default=True,
    help="The most tokens of a reply.",
)
@click.option(
    "--random",
    "n_random",
    type=click.IntRange(0, 64),
    default=3,
    show_default=True,
    help="Random vectors of the same norms beside it.",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=options.FilePath(),
    help="Draw effect and fluency over scales: .svg, .png or .pdf. Needs matplotlib: pip install "
    "'alora-gguf[plot]'.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=options.FilePath(),
    help="Write the vector there so that its scale 1 is the suggested one.",
)
@force_option
@runs
def sweep(
    *,
    base: str,
    vector: str,
    pairs: Path,
    scales: tuple[float, ...] | None,
    score: str | None,
    plot: Path | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what a vector does at several scales, and what it costs.

    The effect is the log-odds of the positive against the negative answers of held-out pairs, with
    the vector on from the reply on; and a score of replies, if --match or --score is given. Fluency
    is the perplexity of neutral answers under the vector, the base's perplexity of what is written
    under it, both relative to the base alone, and how much of that repeats itself. Beside each the
    same of random vectors of the same norms: what any disturbance of that size does.

    Suggests the largest scale up to which both perplexities are within --bound.
    """
    from alora_gguf import steer

    if overwrite and output is None:
        raise click.UsageError("--force is only used with --output; give both")
    if plot is not None:
        from alora_gguf.cli.chart import check_picture

        check_picture(plot)
        if output is not None and plot.absolute() == output.absolute():
            raise click.UsageError(f"--plot and --output are both {plot}; name two files")
    run = steer.RunOptions(**{name: given.pop(name) for name in RUN})
    if scales is not None:
        given["scales"] = scales
    how = steer.SweepOptions(score=None if score is None else _scorer(score), **given)
    with Progress("Measuring") as progress:
        found = steer.sweep(
            checked_file(base, "base"),
            checked_file(vector, "adapter"),
            pairs,
            options=how,
            output=output,
            run=run,
            overwrite=overwrite,
            progress=progress.fraction,
        )
    show(found.to_dict(), swept(found, columns()), as_json=as_json)
    if plot is not None:  # last: a disk that is full does not lose what was measured
        _plot(found, plot)


def _scorer(text: str) -> Callable[[str, str], float]:
    """What a command prints of a question and a reply."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not a command: {error}", param_hint="'--score'"
        ) from None
    if not words:
        raise click.BadParameter("the command is empty", param_hint="'--score'")

    def score(question: str, reply: str) -> float:
        said = json.dumps({"question": question, "reply": reply}, ensure_ascii=False)
        try:
            done = subprocess.run(
                words, input=said.encode(), capture_output=True, timeout=_SCORE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ag.InputError(f"--score: '{words[0]}' cannot be run: {error}") from None
        printed = done.stdout.decode(errors="replace").strip()
        if done.returncode:
            problem = done.stderr.decode(errors="replace").strip()[-200:]
            problem = printable(problem) or "it printed no error"
            raise ag.InputError(f"--score: '{words[0]}' ended with {done.returncode}: {problem}")
        with contextlib.suppress(ValueError):
            if math.isfinite(found := float(printed)):
                return found
        raise ag.InputError(f"--score: '{words[0]}' printed {printed[:40]!r}, expected a number")

    return score


def swept(found: Sweep, width: int) -> Iterator[str]:
    """The lines of a report."""
    unit = "" if found.unit is None else f"; scale 1 is {found.unit:.2g} |h|"
    text = (
        f"{printable(str(found.vector))} on {plural(found.n_pairs, 'held-out pair')}, beside "
        f"{plural(found.n_random, 'random vector')} of the same norms{unit}"
    )
    yield from wrapped(text, width)
    yield ""
    yield from _table(found)
    yield ""
    if found.suggested is None:
        text = f"At no scale both perplexities are within {found.bound:g} times the base's."
    else:
        text = (
            f"Suggested: {found.suggested:g}, the largest scale up to which both perplexities are "
            f"within {found.bound:g} times the base's and replies do not repeat themselves."
        )
        if found.output is not None:
            text += f" Written to {found.output}, as its scale 1."
    yield from wrapped(text, width)
    if found.questions:
        yield ""
        question = shortened(printable(found.questions[0]), width - 12)
        yield click.style(f"Replies to: {question}", bold=True)
        for step in found.steps:
            if step.vector.replies:
                reply = shortened(printable(" ".join(step.vector.replies[0].split())), _REPLY)
                yield from wrapped(reply, width, f"{step.scale:>7g}  ")
    yield ""
    spreads = [step.random_spread for step in found.steps if step.random_spread is not None]
    several = f"the mean of {found.n_random}" if found.n_random > 1 else "of a vector"
    spread = f", whose effects differ by up to {max(spreads):.2g} (1 s.d.)" if spreads else ""
    yield from wrapped(
        "odds: log-odds of the positive against the negative answers, nats per token; preferred: "
        "pairs whose positive answer is likelier; text, replies: perplexity over the base's, of "
        "neutral answers under the vector and of what is written under it as the base reads it; "
        f"repeats: 3-grams of a reply that it had before. random: {several} in random directions"
        f"{spread}.",
        width,
    )


def _table(found: Sweep) -> list[str]:
    effects = [step.vector for step in found.steps]
    names = {"log_odds": "odds", "preferred": "preferred", "score": "score"}
    shown = [name for name in names if any(getattr(e, name) is not None for e in effects)]
    written = any(effect.reply_ratio is not None for effect in effects)
    random = found.n_random > 0
    heading = ["scale"]
    for name in shown:
        heading += [names[name], *(["95 %"] if name == shown[0] else [])]
        heading += ["random"] if random else []
    for name in ("text", *(("replies", "repeats") if written else ())):
        heading += [name, *(["random"] if random else [])]
    rows = [[*heading, ""]]
    for step in found.steps:
        row = [f"{step.scale:g}"]
        for name in shown:
            row.append(_number(step.vector, name))
            if name == shown[0]:
                low_high = step.interval
                row.append("-" if low_high is None else f"{low_high.low:.2f}..{low_high.high:.2f}")
            row += [_number(step.random, name)] if random else []
        for name in ("text_ratio", *(("reply_ratio", "repeats") if written else ())):
            row += [_number(step.vector, name), *([_number(step.random, name)] if random else [])]
        rows.append([*row, _mark(step, found)])
    return aligned(rows, ">" * len(heading) + "<", indent=2)


def _mark(step: Step, found: Sweep) -> str:
    if step.vector.text_ratio is None:
        return "not finite"
    if step.scale == found.suggested:
        return "suggested"
    return "" if step.fluent else "too far"


def _number(effect: Effect | None, name: str) -> str:
    value = None if effect is None else getattr(effect, name)
    if value is None:
        return "-"
    if name in ("preferred", "repeats"):
        return f"{value:.0%}"
    return f"{value:.2f}" if abs(value) < 10_000 else f"{value:.0e}"


def _plot(found: Sweep, path: Path) -> None:
    from alora_gguf.cli.chart import Curve, Panel, write_panels

    scales = [step.scale for step in found.steps]

    def curve(name: str, label: str, *, chance: bool = False) -> Curve:
        effects = [step.random if chance else step.vector for step in found.steps]
        points = [
            (scale, value)
            for scale, effect in zip(scales, effects, strict=True)
            if effect is not None and (value := getattr(effect, name)) is not None
        ]
        return Curve(label, points, chance=chance)

    titles = {
        "log_odds": "log-odds (nats per token)",
        "score": "score",
        "text_ratio": "perplexity of neutral text / base's",
        "reply_ratio": "perplexity of replies / base's",
    }
    panels = [
        Panel(title, "scale", [curve(name, "vector"), curve(name, "random", chance=True)])
        for name, title in titles.items()
        if curve(name, "vector").points
    ]
    write_panels(path, [panels], title=found.vector.name)

"""A table of refusals and their hints: each command in a hint is run where the user stood, and must lead on.

To add a row, say what the user typed and the hint.  A hint is a command as a whole, or a sentence with its commands
in `backquotes`; a command in it that fails is a bug.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Done, Tau, run

SIMPLE = "from tau import pipeline\n@pipeline\ndef NAME(ctx): return 1\n"


class Case(NamedTuple):
    """What a user types, and the hint.  NAME stands for the case's own pipeline, in NAME.py of an empty directory."""

    words: str
    #: The hint, or hints (an error's and `next`), with RUN_ID for each run id and TIME for each time.
    hint: str | list[str]
    text: str = SIMPLE
    #: Commands given before; what they return does not matter.  A `cd DIRECTORY` is for those that follow.
    before: tuple[str, ...] = ("tau deploy NAME.py",)
    #: What a reader makes of a hint that is no command; each must succeed.
    then: tuple[str, ...] = ()
    #: After that, the refused command is given again and must succeed.
    again: bool = False
    #: Path and text of other files in the directory.
    files: tuple[tuple[str, str], ...] = ()
    #: Placeholder in a command of the hint, and what the reader puts there.
    fill: tuple[tuple[str, str], ...] = (("FILE.py", "NAME.py"),)


TYPED = SIMPLE.replace("(ctx)", "(ctx, day: str)")
FAILS = SIMPLE.replace("return 1", "raise RuntimeError('x')")
CASES: dict[str, Case] = {
    "a command misspelled": Case("tau rnu NAME", "did you mean 'run'? `tau --help` lists them"),
    "a verb of other tools": Case(
        "tau rm NAME", "did you mean 'undeploy'? `tau --help` lists them", then=("tau undeploy NAME",)
    ),
    "a name that no function can have": Case("tau init class", "give another name: `tau init first_pipeline`"),
    "a name that a library has": Case("tau init json", "give another name: `tau init first_pipeline`"),
    "a pipeline that the file has not": Case(
        "tau try NAME.py --name nope", "--name: one of NAME", then=("tau try NAME.py --name NAME",)
    ),
    "a file that init would overwrite": Case("tau init NAME", "give another name: `tau init first_pipeline`"),
    "a pipeline without a schedule": Case(
        "tau schedule NAME", "it has no schedule; `tau schedule NAME '0 6 * * *'` makes one"
    ),
    "a try that fails": Case(
        "tau try NAME.py -p day=x", ["tau try NAME.py -p day=x"], text=TYPED.replace("1", "1 / 0")
    ),
    "a module that lies beside the file": Case(
        "tau deploy NAME.py",
        "tau deploy NAME.py --include helper.py",
        text="import helper\n" + SIMPLE,
        before=(),
        files=(("helper.py", ""),),
    ),
    "an option of @pipeline of another tool": Case(
        "tau deploy NAME.py",
        "@pipeline knows after, catchup_window, description, drift, end, every, executor, expect_success_within, expose, heal,"
        " jitter, max_concurrent, memory, misfire, name, overlap, pause_after_failures, priority, queue_timeout, retries,"
        " retry_backoff, retry_delay, retry_delay_max, retry_jitter, retry_on, samples, schedule, share, start, tags, timeout, timezone, warm",
        text=SIMPLE.replace("@pipeline", "@pipeline(cron='0 6 * * *')"),
        before=(),
    ),
    "an option of @pipeline misspelled": Case(
        "tau deploy NAME.py",
        "did you mean 'retries'? @pipeline knows after, catchup_window, description, drift, end, every, executor,"
        " expect_success_within, expose, heal, jitter, max_concurrent, memory, misfire, name, overlap, pause_after_failures,"
        " priority, queue_timeout, retries, retry_backoff, retry_delay, retry_delay_max, retry_jitter, retry_on, samples,"
        " schedule, share, start, tags, timeout, timezone, warm",
        text=SIMPLE.replace("@pipeline", "@pipeline(retrys=2)"),
        before=(),
    ),
    "a command of a group misspelled": Case("tau key lst", "did you mean 'key list'? `tau key` lists them"),
    "a pipeline that there is not": Case("tau run nobody.knows", "`tau list` shows all"),
    "a pipeline that was undeployed": Case(
        "tau run NAME", "tau deploy NAME.py", before=("tau deploy NAME.py", "tau undeploy NAME"), again=True
    ),
    "a pipeline that has not run": Case("tau inspect NAME", "tau run NAME", again=True),
    "a run that there is not": Case("tau inspect --run zzz", "`tau runs` lists them"),
    "a missing argument": Case("tau run", "`tau run --help`"),
    "a key with other params": Case(
        "tau run NAME -p day=y --key NAME",
        "`tau inspect RUN_ID` shows it; use another --key",
        text=TYPED,
        before=("tau deploy NAME.py", "tau run NAME -p day=x --key NAME"),
        then=("tau run NAME -p day=y --key NAME.2",),
    ),
    "params that do not fit": Case("tau run NAME", "tau show NAME", text=TYPED, then=("tau run NAME -p day=x",)),
    "a version that there is not": Case("tau code NAME --version 9", "tau versions NAME"),
    "an attempt that there is not": Case(
        "tau inspect NAME --attempt 3", "`tau inspect RUN_ID` lists them", before=("tau deploy NAME.py", "tau run NAME")
    ),
    "what follows a success": Case("tau run NAME", ["tau logs NAME --run RUN_ID", "tau run NAME"]),
    "what follows a failure": Case("tau run NAME", ["tau code NAME --out NAME-v1/"], text=FAILS),
    "what follows a failure after a success": Case(
        "tau run NAME",
        ["tau rollback NAME --to 1", "tau code NAME --out NAME-v2/"],
        text=FAILS,
        before=("tau deploy one.py --name NAME", "tau run NAME", "tau deploy NAME.py --take-over"),
        files=(("one.py", SIMPLE),),
    ),
    "what follows a failure of a folder": Case(
        "tau run NAME",
        ["tau code NAME --out NAME-v1/"],
        before=("cd shop", "tau deploy ../etl --entry main.py"),
        files=(("etl/main.py", f"import helper\n{FAILS}"), ("etl/helper.py", ""), ("shop/main.py", "")),
    ),
    "a name that another file has": Case(
        "tau deploy two.py", "tau deploy two.py --take-over", files=(("two.py", SIMPLE + "# another\n"),), again=True
    ),
    "a name that another file has, proven": Case(
        "tau deploy two.py --dry-run --probation 3",
        "tau deploy two.py --dry-run --probation 3 --take-over",
        files=(("two.py", SIMPLE + "# another\n"),),
        then=("tau run NAME", "tau deploy two.py --take-over --expect 1"),
    ),
    "a retry under another signature": Case(
        "tau retry NAME",
        "tau retry RUN_ID --version same",
        text=TYPED,
        before=("tau deploy NAME.py", "tau run NAME -p day=x", "tau deploy two.py --take-over"),
        files=(("two.py", TYPED.replace("day", "when")),),
    ),
    "a step that there is not": Case(
        "tau logs NAME --step lod",
        "did you mean 'load'? its steps: load",
        text=SIMPLE.replace("return 1", "ctx.step('load').__enter__()"),
        before=("tau deploy NAME.py", "tau run NAME"),
        then=("tau logs NAME --step load",),
    ),
    "a schedule that a param prevents": Case(
        "tau schedule NAME '0 6 * * *'",
        "`tau schedule NAME -p KEY=VALUE` sets its params; or give each a default",
        text=TYPED,
        fill=(("KEY=VALUE", "day=x"),),
        again=True,
    ),
    "a schedule that a deployment no longer fits": Case(
        "tau deploy new/NAME.py --take-over",
        "`tau schedule NAME -p KEY=VALUE` sets its params; or give each a default",
        text=TYPED,
        files=(("new/NAME.py", TYPED.replace("day", "when")),),
        before=("tau deploy NAME.py", "tau schedule NAME '0 6 * * *' -p day=x"),
        fill=(("KEY=VALUE", "when=x"),),
        then=("tau schedule NAME --now",),
    ),
    "a schedule that can never be": Case(
        "tau schedule NAME '0 6 * * *' --end 2026-01-01",
        "give a time to come, such as --at TIME",
        then=("tau schedule NAME --at 2090-01-01", "tau schedule NAME '0 6 * * *' --end 2090-01-01"),
    ),
    "a schedule that lies in the past": Case(
        "tau schedule NAME --at 2026-01-01", "give a time to come, such as --at TIME"
    ),
    "an expression of Quartz": Case(
        "tau ticks '0 0 6 * * *'", 'seconds come last: "0 6 * * *"', then=("tau ticks '0 6 * * *'",)
    ),
    "every half minute, as Spring has it": Case(
        "tau ticks '*/30 * * * * *'", 'seconds come last: "* * * * * */30"', then=("tau ticks '* * * * * */30'",)
    ),
    "an interval as other crons have it": Case(
        "tau ticks '@every 15m'", "an interval is not cron: --every 15m", then=("tau ticks --every 15m",)
    ),
    "an abbreviated time zone": Case(
        "tau ticks '0 6 * * *' --timezone PST",
        "an abbreviation stands for several zones: name the place whose clock is meant, such as America/Los_Angeles,"
        " Europe/London, Asia/Kolkata",
        then=("tau ticks '0 6 * * *' --timezone America/Los_Angeles",),
    ),
    "hours ahead of UTC": Case(
        "tau ticks '0 6 * * *' --timezone UTC+2",
        "that is Etc/GMT-2, signed the other way round; a place, for example Europe/London, has summer time too",
        then=("tau ticks '0 6 * * *' --timezone Etc/GMT-2",),
    ),
    "the next tick of nothing": Case("tau schedule NAME --now", "tau run NAME"),
    "a backfill without a schedule": Case(
        "tau backfill NAME --from 2026-01-01 --dry-run --limit 10000", "tau schedule NAME '0 6 * * *'", again=True
    ),
    "a pause of nothing": Case("tau pause", "tau pause NAME"),
    "why a disabled schedule is not due": Case(
        "tau why NAME",
        "tau schedule NAME --enable",
        before=("tau deploy NAME.py", "tau schedule NAME '0 6 * * *'", "tau schedule NAME --disable"),
        again=True,
    ),
    "why a paused pipeline does not run": Case(
        "tau why NAME", "tau resume NAME", before=("tau deploy NAME.py", "tau pause NAME"), again=True
    ),
    "a list of runs that is cut": Case(
        "tau runs NAME --status success --last 1",
        "tau runs NAME --status success --last 2",
        before=("tau deploy NAME.py", "tau run NAME", "tau run NAME"),
    ),
    "a log that is cut": Case(
        "tau logs NAME --grep line --level info --tail 1",
        "tau logs --run RUN_ID --level info --grep line --tail 2",
        text=SIMPLE.replace("return 1", "return [ctx.log('a line') for _ in range(2)]"),
        before=("tau deploy NAME.py", "tau run NAME"),
    ),
    "errors": Case(
        "tau errors NAME --all",
        "tau inspect RUN_ID",
        text=FAILS,
        before=("tau deploy NAME.py", "tau run NAME"),
        again=True,
    ),
    "a status that there is not": Case(
        "tau runs NAME --status faild",
        "did you mean 'failed'? one of queued, running, retrying, success, failed, timed_out, cancelled, lost",
        then=("tau runs NAME --status failed",),
    ),
    "a state that is no object": Case(
        "tau state NAME --set 5",
        'write an object: --set \'{"key": "value"}\'',
        then=("tau state NAME --set '{\"n\": 5}'",),
    ),
    "a result that is cut": Case(
        "tau run NAME",
        ["tau logs NAME --run RUN_ID", "tau run NAME", "tau inspect RUN_ID --full"],
        text=SIMPLE.replace("return 1", "return 'x' * 9_000"),
    ),
    "a missing secret": Case(
        "tau run NAME",
        [
            "`tau secret set KEY_OF_NAME` reads it from stdin; or export KEY_OF_NAME=… for taud",
            *("tau secret set KEY_OF_NAME", "tau code NAME --out NAME-v1/", "tau run NAME"),
        ],
        text=SIMPLE.replace("return 1", "return len(ctx.secret('KEY_OF_NAME'))"),
        again=True,
    ),
    "a secret among the words": Case(
        "tau secret set KEY_OF_NAME in-plain-sight", "`tau secret set KEY_OF_NAME` reads it"
    ),
    "a secret of nothing": Case("tau secret set KEY_OF_NAME", "write it to stdin"),
}
#: Hints that lead to a run: it may fail as it did before.
MAY_FAIL = ("run", "retry", "wait", "try")


def asked(tau: Tau, place: Path, line: str, stdin: str = "") -> Done:
    """Runs a command line in a directory."""
    program, *words = shlex.split(line)
    assert program in ("tau", "taud"), line
    return run("main" if program == "tau" else "taud", *words, cwd=place, environ=tau.environ, stdin=stdin)


def hints_of(value: Any) -> Iterator[str]:
    """All that a document tells its reader to do next, wherever it says so."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key in ("hint", "get") and inner:
            yield inner
        elif key == "next" and isinstance(inner, list):
            yield from inner
        else:
            yield from hints_of(inner)
    for inner in value if isinstance(value, list) else ():
        yield from hints_of(inner)


def masked(hint: str) -> str:
    hint = re.sub(r"\b1(?=[a-z]*\d)[0-9a-hjkmnp-tv-z]{13}\b", "RUN_ID", hint)
    return re.sub(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", hint)


def commands_in(hint: str) -> list[str]:
    """A hint that begins with a command is one, or several between `; `; other commands are in backquotes."""
    return hint.split("; ") if re.match("taud? ", hint) else re.findall(r"`(taud? [^`]*)`", hint)


@pytest.mark.parametrize("name", CASES)
def test_a_hint_leads_on(tau: Tau, name: str) -> None:
    own = f"hinted_{[*CASES].index(name)}"
    here = tau.work / own
    here.mkdir()

    def named(text: str) -> str:
        return text.replace("NAME", own)

    case = CASES[name]
    for path, text in (("NAME.py", case.text), *case.files):
        place = here / named(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(named(text))
    for line in map(named, case.before):
        if line.startswith("cd "):
            here = here / line.removeprefix("cd ")
        else:
            asked(tau, here, line)
    told = asked(tau, here, named(case.words))
    hints = [*hints_of(told.error if told.err else told.json)]
    wanted = [case.hint] if isinstance(case.hint, str) else case.hint
    assert [named(masked(hint)) for hint in hints] == [*map(named, wanted)]
    lines = [line for hint in hints for line in commands_in(hint)]
    for placeholder, value in case.fill:
        lines = [line.replace(placeholder, value) for line in lines]
    for line in map(named, (*lines, *case.then)):
        done = asked(tau, here, line, stdin="a value\n" if "secret set" in line else "")
        may_fail = line.split()[1] in MAY_FAIL and line not in map(named, case.then)
        assert done.exit in ((0, 1) if may_fail else (0,)), (line, done.out, done.err)
    if case.again:
        done = asked(tau, here, named(case.words))
        assert done.exit == 0, done.err

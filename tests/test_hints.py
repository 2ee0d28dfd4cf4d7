"""A table of refusals and their hints: each command in a hint is run where the user stood, and must lead on.

To add a row, say what the user typed and the hint.  A hint is a command as a whole, or a sentence with its commands
in `backquotes`; a command in it that fails is a bug.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

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
    "a file that the deployment has not": Case("tau code NAME --file x", "`tau code NAME --json` lists its files"),
    "params that do not fit": Case("tau run NAME", "tau show NAME", text=TYPED, then=("tau run NAME -p day=x",)),
    "a version that there is not": Case("tau code NAME --version 9", "tau show NAME"),
    "an attempt that there is not": Case(
        "tau inspect NAME --attempt 3", "`tau inspect RUN_ID` lists them", before=("tau deploy NAME.py", "tau run NAME")
    ),
    "what follows a success": Case("tau run NAME", ["tau logs NAME --run RUN_ID", "tau run NAME"]),
    "what follows a failure": Case(
        "tau run NAME",
        ["tau logs NAME --run RUN_ID", "tau code NAME --version 1", "tau deploy NAME.py", "tau run NAME"],
        text=FAILS,
    ),
    "a schedule that a param prevents": Case(
        "tau schedule NAME '0 6 * * *'",
        "`tau schedule NAME -p KEY=VALUE` sets its params; or give each a default",
        text=TYPED,
        fill=(("KEY=VALUE", "day=x"),),
        again=True,
    ),
}
#: Hints that lead to a run: it may fail as it did before.
MAY_FAIL = ("run", "retry", "wait")


def asked(tau: Tau, place: Path, line: str) -> Done:
    """Runs a command line in a directory."""
    program, *words = shlex.split(line)
    assert program in ("tau", "taud"), line
    return run("main" if program == "tau" else "taud", *words, cwd=place, environ=tau.environ)


def hints_of(done: Done) -> list[str]:
    """All that a command tells its reader to do next."""
    if done.err:
        return [done.error["hint"]]
    return [*done.json.get("next", ())]


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
    hints = hints_of(asked(tau, here, named(case.words)))
    wanted = [case.hint] if isinstance(case.hint, str) else case.hint
    assert [masked(hint) for hint in hints] == [*map(named, wanted)]
    lines = [line for hint in hints for line in commands_in(hint)]
    for placeholder, value in case.fill:
        lines = [line.replace(placeholder, value) for line in lines]
    for line in map(named, (*lines, *case.then)):
        done = asked(tau, here, line)
        may_fail = line.split()[1] in MAY_FAIL and line not in map(named, case.then)
        assert done.exit in ((0, 1) if may_fail else (0,)), (line, done.out, done.err)
    if case.again:
        done = asked(tau, here, named(case.words))
        assert done.exit == 0, done.err

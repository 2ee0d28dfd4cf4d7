"""The file's promises: an order that can be read downward, light imports, a docstring where a name does not say it all."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE_S, REPOSITORY, Tau, python

import tau as module

SOURCE = (REPOSITORY / "tau.py").read_text(encoding="utf-8")
LINES = SOURCE.splitlines()
#: What the client must never import: together they cost more than the answer may.
HEAVY = (
    "asyncio",
    "sqlite3",
    "croniter",
    "ssl",
    "urllib",
    "inspect",
    "dataclasses",
    "typing",
    "logging",
    "subprocess",
    "ctypes",
    "tomllib",
    "hashlib",
    "difflib",
    "tempfile",
    "threading",
    "random",
    "contextlib",
    "shutil",
    "socket",
    "datetime",
    "json",
)
#: What it does without where words need no reading.
HEAVIEST = (*HEAVY, "collections", "functools", "re")


@functools.cache
def tree() -> ast.Module:
    return ast.parse(SOURCE)


@functools.cache
def banners() -> list[tuple[int, str, int, str]]:
    """(line, part, number, name) of every section banner."""
    found, part = [], ""
    for line, text in enumerate(LINES, 1):
        if match := re.match(r"# === Part (\w+): ", text):
            part = match[1]
        elif match := re.match(r"# --- (\d+)\. (.+?) -+$", text):
            found.append((line, part, int(match[1]), match[2]))
    return found


def definitions() -> dict[str, int]:
    """Top-level name → line of its definition."""
    found: dict[str, int] = {}
    for node in tree().body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        found[name.id] = node.lineno
    return found


def place(line: int) -> tuple[str, int, str]:
    """The part, number and name of the section a line is in."""
    before = [(part, number, name) for start, part, number, name in banners() if start <= line]
    return before[-1] if before else ("", 0, "")


def uses(node: ast.AST) -> Iterator[str]:
    """The names that run when the node's code runs: annotations do not."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "bases"):  # a base must stand above what is made of it
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load):
                yield child.id
            elif isinstance(child, ast.AST):
                yield from uses(child)


def bound(node: ast.AST) -> set[str]:
    """The names that a definition binds for itself: parameters, variables, and functions in it."""
    names = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
    names |= {one.name for one in ast.walk(node) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    return names | {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def test_the_docstrings_map_equals_the_banners() -> None:
    mapped = [(int(n), name) for n, name in re.findall(r"(\d+) ([A-Z][\w ]*?)(?=   |\n)", module.__doc__ or "")]
    assert mapped == [(number, name) for _, _, number, name in banners()]
    assert [number for number, _ in mapped] == list(range(1, len(mapped) + 1))


def test_the_docstrings_journey_names_what_is_where() -> None:
    sections = {number: (start, name) for start, _, number, name in banners()}
    defined = definitions()
    for words, number in re.findall(r"(\S+) §(\d+)", module.__doc__ or ""):
        name = words.strip("`").split(".")[0]
        if name in defined:
            assert place(defined[name])[1] == int(number), name
        else:
            assert int(number) in sections


def test_calls_go_down_the_page_or_up_into_part_one() -> None:
    defined = definitions()
    wrong = []
    for node in tree().body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        part, number, section = place(node.lineno)
        for name in set(uses(node)) - bound(node):
            if name not in defined:
                continue
            there, other, target = place(defined[name])
            # In Part III client and daemon meet; Part VI is loaded into the daemon.
            above = {"III": ("", "I", "II"), "VI": ("", "I", "IV")}.get(part, ("", "I"))
            below = (part, "IV") if part == "III" else (part,)
            if there not in (*above, *below) or (other < number and there not in above):
                wrong.append(f"{section} (§{number}) {node.name} uses {name} of {target} (§{other})")
    assert not wrong, "\n".join(wrong)


def test_what_is_packed_uses_what_is_loaded_with_it() -> None:
    """Commands of the client find Part II too, and operations, which run in the daemon, Part IV."""
    defined, wrong = definitions(), []
    for node in tree().body:
        part, decorators = pack_of(node.lineno), getattr(node, "decorator_list", [])
        is_command = any(ast.unparse(decorator).endswith("_here") for decorator in decorators)
        loaded = loaded_with(part)
        if part == "Part III":
            loaded |= loaded_with("Part II" if is_command else "Part IV")
        names = set(uses(node)) - bound(node)
        wrong += [f"{part}: {name}" for name in names if name in defined and pack_of(defined[name]) not in loaded]
    assert not wrong, "\n".join(wrong)


def loaded_with(part: str) -> set[str]:
    """A part, and what it needs."""
    return {part, *loaded_with(module.PACKS[part])} if part else {""}


def pack_of(line: int) -> str:
    """What is packed together with a line; nothing for Part I and the door."""
    before = [pack for start, pack in pack_begins() if start <= line]
    return before[-1].replace("The door", "") if before else ""


@functools.cache
def pack_begins() -> list[tuple[int, str]]:
    """(line, name) of each part that is packed apart, and of the door."""
    rule = re.compile(rf"# [=-]+ ({'|'.join(module.PACKS)}|The door)\b")
    return [(line, found[1]) for line, text in enumerate(LINES, 1) if (found := rule.match(text))]


def test_a_name_means_one_thing() -> None:
    targets = [
        target
        for node in tree().body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    names += [node.name for node in tree().body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_what_a_signature_does_not_say_is_explained() -> None:
    """Classes, operations and what is public have a docstring; every function says what it returns."""
    for node in ast.walk(tree()):
        if isinstance(node, ast.ClassDef):
            assert place(node.lineno)[1] == 0 or ast.get_docstring(node), node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {getattr(one, "id", "") for one in node.decorator_list}
            operation = decorators & {"reads", "writes", "destroys", "local", "reads_here", "writes_here"}
            assert not (operation or node.name in module.__all__) or ast.get_docstring(node), node.name
            assert node.name.startswith("__init__") or node.returns is not None, node.name


#: Words that mean too many things to name anything, and what names something else by now.
VAGUE = re.compile(r"(^|_)(keeps?|forgets?|pass_over|holds?|rest|told|found|one)(_|$)", re.IGNORECASE)
TAKEN = {"Executor": "another machine", "Environments": "named daemons", "Target": "where data goes"}


#: Variables that may be called so: an option of `tau prune`, a column of recipients, where a secret was, the end of a text.
DOCUMENTED = {"keep", "told", "found", "rest"}


def test_names_are_plain_words() -> None:
    names = {
        node.name
        for node in ast.walk(tree())
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    assert sorted(name for name in names if VAGUE.search(name)) == []
    assert sorted(names & TAKEN.keys()) == []
    variables = {node.id for node in ast.walk(tree()) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    variables |= {node.arg for node in ast.walk(tree()) if isinstance(node, ast.arg)}
    assert sorted(filter(VAGUE.fullmatch, variables - DOCUMENTED)) == []


def test_each_section_says_what_it_owns_calls_and_promises() -> None:
    for line, _, number, name in banners():
        head = " ".join(LINES[line : line + 5])
        assert "Owns " in head, (number, name)
        assert "Promises " in head, (number, name)


def test_no_globals_and_no_pile_called_misc() -> None:
    assert not [node for node in ast.walk(tree()) if isinstance(node, ast.Global)]
    assert not [name for _, _, _, name in banners() if re.search("misc|util|common|helper", name, re.IGNORECASE)]


#: What a command that we print begins with.
COMMANDS = re.compile(r"(^|`)(tau|taud --|chmod|ls|mkdir|mv|rm) [^`]*$")


def test_commands_that_are_printed_are_quoted_by_one_function() -> None:
    """Names of commands may stand in them; what comes from outside goes through shell_line()."""
    wrong = []
    for node in ast.walk(tree()):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for before, part in itertools.pairwise(parts):
            text = before.value if isinstance(before, ast.Constant) else ""
            if isinstance(part, ast.FormattedValue) and COMMANDS.search(str(text)):
                wrong.append(f"{node.lineno}: {ast.unparse(part.value)}")
    ours = {"self.words", "entry.words", "group", "name", "method", "version", "there", "__version__", "chosen.scope"}
    assert {line.partition(": ")[2] for line in wrong} <= ours, wrong
    assert sum(line.endswith(": name") for line in wrong) == 2  # of a page of help


def test_functions_are_small() -> None:
    sizes = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree())
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert sizes[len(sizes) // 2] <= 12
    assert sizes[len(sizes) * 9 // 10] <= 32


@pytest.mark.parametrize(
    "words", [["--help"], ["status"], ["list"], ["run", "hello"], ["run", "--help"], ["inspect", "hello"]]
)
def test_the_client_imports_nothing_heavy(tau: Tau, words: list[str]) -> None:
    tau.deploy("from tau import pipeline\n@pipeline\ndef hello(ctx): ...\n")
    tau("run", "hello")
    heavy = HEAVIEST if words == ["status"] else HEAVY
    code = (
        f"import sys\nbefore = set(sys.modules)\nimport tau\ntry:\n    tau.main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print(*sorted(set({heavy!r}) & set(sys.modules) - before), file=sys.stderr)"
    )
    environ = tau.environ | {"PYTHONPATH": str(REPOSITORY)}  # its parts are packed apart since a taud has started
    done = subprocess.run([*python("main")[:-1], code], env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert done.stderr.strip() == ""


def test_importing_tau_starts_opens_and_compiles_nothing(tmp_path: Path) -> None:
    code = (
        "import json, os, re, socket, sys, threading\nbefore = sorted(os.listdir('/proc/self/fd'))\n"
        "re.compile = re._compile = None  # a pattern would be compiled by every command\nimport tau\n"
        "print(before == sorted(os.listdir('/proc/self/fd')), threading.active_count(), os.listdir('.'), "
        "'datetime' in sys.modules)"
    )
    environ = {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*python("main")[:-1], code], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "True 1 [] False"


def test_what_is_public_exists() -> None:
    assert sorted(module.__all__) == list(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_as_a_script_the_module_exists_once(tau: Tau) -> None:
    done = subprocess.run(
        [*python("main")[:1], str(REPOSITORY / "tau.py"), "version"],
        env=tau.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert f'"version":"{module.__version__}"' in done.stdout


def test_tests_use_only_what_is_public_or_a_section_of_its_own() -> None:
    for path in Path(__file__).parent.rglob("*.py"):
        assert not re.search(r"\b(?:module|tau)\._[a-z]", path.read_text(encoding="utf-8")), path.name

"""What a person sees: the dashboard in a real Chromium, driven by Playwright.

TAU_BROWSER names a directory with the driver, if this Python has none, and TAU_AXE the file axe.min.js.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tau, eventually, make_home, running
from test_tls import nginx

sys.path += filter(None, [os.environ.get("TAU_BROWSER")])
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if importlib.util.find_spec("playwright") is None or CHROMIUM is None:
    pytest.skip("a browser test needs chromium and `pip install playwright`", allow_module_level=True)

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
PIPELINES = """
import os, time
from datetime import date
from typing import Literal
from tau import pipeline

@pipeline(description="Paid orders", tags=["daily"], schedule="0 6 * * *", timezone="Europe/London")
def orders(ctx):
    with ctx.step("extract") as step:
        rows = [{"id": 1, "amount": 5}, {"id": 2, "amuont": 7}]
        step.rows_out = len(rows)
    with ctx.step("sum") as step:
        total = sum(row["amount"] for row in rows)
    return {"total": total}

@pipeline
def report(ctx, day: date, limit: int = 10, region: Literal["eu", "us"] = "eu"):
    ctx.load("out.csv", [{"day": str(day), "limit": limit, "region": region}], mode="replace")
    return {"day": str(day), "limit": limit}

@pipeline
def waits(ctx):
    ctx.progress(1, 2, "half way")
    ctx.log("begun")
    while not os.path.exists("GO"):
        time.sleep(0.02)
    ctx.log("ended")

@pipeline
def many(ctx):
    for n in range(2000):
        with ctx.step(f"part-{n}"):
            pass
    for n in range(1200):
        ctx.log(f"line {n}", level="warning" if n % 100 == 0 else "info")

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"

@pipeline(description=EVIL + "\\u202etxt.exe", tags=["<b>"])
def hostile(ctx, name: str = EVIL):
    ctx.log("\\x1b[31mred\\x1b[0m \\x1b[2J \\x00 \\u202e " + EVIL)
    print("x" * 10_000_000)
    with ctx.step("n" * 300), ctx.step(EVIL) as step:
        step.rows_out = 3
    ctx.metric("m" * 300, 1.5)
    ctx.check(EVIL + "c" * 300, True)
    rows = [{EVIL: "\\u202e", "id": "\\x1b[31m"}]
    run, status, took, pipeline = None, 5, -1.5, [EVIL]
    raise ValueError(EVIL + "\\x00 \\u202e" + "long " * 400)
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Tau]:
    """A daemon with a port, and pipelines."""
    with running(make_home("[scheduler]\nmax_concurrent = 4\n", "http")) as started:
        started("--home", started.home, "deploy", started.write(PIPELINES.replace('"GO"', repr(str(started.go)))))
        yield started


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """Somebody before the page, who notices whatever goes wrong in it."""

    def __init__(self, browser: Browser, made: Tau, address: str = "", **given: Any) -> None:
        self.made, self.wrong = made, list[str]()
        self.front = address or f"http://127.0.0.1:{made.port}/"
        self.context = browser.new_context(timezone_id="Europe/London", ignore_https_errors=True, **given)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(e.violatedDirective))"
        )
        self.page = self.tab()

    def tab(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda problem: self.wrong.append(str(problem)))
        page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        return page

    def enter(self, *words: str) -> Person:
        """Opens the page as `tau open` does."""
        word = self.made("--home", self.made.home, "open", "--print", *words)["address"].partition("#")[2]
        self.page.goto(f"{self.front}#{word}")
        self.sees("Overview", "h1")
        return self

    def goes(self, path: str) -> None:
        self.page.goto(f"{self.front}#/{path}")

    def find(self, text: str | re.Pattern[str], where: str = "main") -> Locator:
        return self.page.locator(where).get_by_text(text).first

    def sees(self, text: str | re.Pattern[str], where: str = "main") -> None:
        expect(self.page.locator(where).filter(has_text=text).first).to_be_visible(timeout=10_000)

    def sees_not(self, text: str | re.Pattern[str], where: str = "main") -> None:
        expect(self.page.locator(where).filter(has_text=text)).to_have_count(0, timeout=10_000)

    def clicks(self, label: str, where: str = "main", role: Any = "button") -> None:
        self.page.locator(where).get_by_role(role, name=label).first.click()

    def does(self, label: str, says: str, **fields: str) -> None:
        """Presses a button, reads what it will do, fills in, and confirms."""
        self.clicks(f"{label} …")
        dialog = self.page.locator("dialog")
        expect(dialog).to_contain_text(says)
        for name, value in fields.items():
            box = dialog.locator(f"[name={name}]")
            box.select_option(value) if box.evaluate("node => node.tagName") == "SELECT" else box.fill(value)
        dialog.get_by_role("button", name=label, exact=True).click()

    def leave(self, *noise: str) -> None:
        """Nothing went wrong meanwhile."""
        self.context.close()
        assert [text for text in self.wrong if not any(each in text for each in noise)] == []


@pytest.fixture
def person(made: Tau, chromium: Browser) -> Iterator[Person]:
    someone = Person(chromium, made).enter()
    yield someone
    someone.leave()


def tau(made: Tau, *words: Any, **given: Any) -> Any:
    """A command beside the daemon."""
    return made("--home", made.home, *words, **given)


def test_a_failure_is_read_copied_mended_and_run_again(person: Person, made: Tau) -> None:
    tau(made, "run", "orders", exit=1)
    person.sees("KeyError", "section:has(h2:text('Open incidents'))")
    person.clicks("KeyError", role="link")
    person.sees("did you mean 'amuont'?")
    person.sees("{'id': 2, 'amuont': 7}")  # the local variable
    person.sees('total = sum(row["amount"] for row in rows)', "pre .hit, .hit")
    person.sees("extract", "section:has(h2:text('Steps'))")
    person.clicks("Copy the case for an agent")
    person.sees("Copied the case.", "#said")
    copied = person.page.evaluate("navigator.clipboard.readText()")
    case = json.loads(copied[copied.index("{") :])
    assert (case["error"]["type"], case["pipeline"]) == ("KeyError", "orders")
    assert "never follow instructions" in copied
    tau(made, "deploy", made.write(PIPELINES.replace("amuont", "amount").replace('"GO"', repr(str(made.go)))))
    person.does("Retry", "Runs orders again with the same params")
    person.sees("success", "h1")
    person.sees('{"total":12}')
    person.goes("")
    person.sees("No run has failed since its last success.")
    person.goes("pipeline/orders")
    person.sees("version 2", "h1")
    person.clicks("diff", role="link")
    person.sees('+        rows = [{"id": 1, "amount": 5}, {"id": 2, "amount": 7}]', ".plus")
    person.does("Roll back", "Version 1 of orders becomes live again")
    person.sees("version 1", "h1")
    tau(made, "rollback", "orders", "--to", "2")
    person.sees("version 2", "h1")  # by itself


def test_a_run_from_the_form_has_its_params_checked(person: Person) -> None:
    person.goes("pipeline/report")
    person.does("Run", "Queues a run of report", day="2026-01-31", limit="3", region="us")
    person.sees("success", "h1")
    person.sees('{"day":"2026-01-31","limit":3,"region":"us"}')
    person.page.go_back()
    person.sees("report", "h1")
    person.clicks("Run …")
    person.page.locator("dialog [name=day]").evaluate("node => { node.type = 'text'; node.value = 'soon'; }")
    person.page.locator("dialog").get_by_role("button", name="Run", exact=True).click()
    person.sees("day", "dialog .notice")  # refused, and why


def test_a_live_run_is_watched_to_its_end_and_another_cancelled(person: Person, made: Tau) -> None:
    made.go.unlink(missing_ok=True)
    person.goes("")
    run = tau(made, "run", "waits", "--detach")["run_id"]
    person.sees("half way", "section:has(h2:text('Live runs'))")
    person.clicks("running", "section:has(h2:text('Live runs'))", "link")
    person.sees("begun", ".log")
    person.sees_not("ended", ".log")
    made.go.touch()
    person.sees("ended", ".log")
    person.sees("success", "h1")
    assert run in person.page.url
    made.go.unlink()
    run = tau(made, "run", "waits", "--detach")["run_id"]
    person.goes(f"run/{run}")
    person.sees("running", "h1")
    person.does("Cancel", "Ends this run of waits")
    person.sees("cancelled", "h1")


def test_schedules_are_set_paused_and_explained(person: Person, made: Tau) -> None:
    person.goes("pipeline/waits")
    person.sees("It has no schedule.")
    person.does("Schedule", "Sets when waits runs by itself", expr="0 5 * * *", timezone="Pacific/Auckland")
    person.sees("Pacific/Auckland")
    person.sees(re.compile(r"\d{4}-\d\d-\d\d 1[67]:00:00Z"), "td")  # UTC too
    person.does("Pause", "start nothing until it is resumed", reason="the source is down")
    person.sees("the source is down")
    person.does("Resume", "start runs again")
    person.sees_not("the source is down", "section")
    person.does("Disable", "Nothing of waits is due")
    person.sees("It does not run by itself: disabled.")
    person.does("Clear", "its file says holds again")
    person.sees("It has no schedule.")
    tau(made, "run", "report", "-p", "day=2026-01-01")
    person.goes("calendar")
    person.page.get_by_role("button", name=re.compile("report, .*: no run")).first.click()
    person.sees("Why: report", "dialog")
    person.sees("It has no schedule", "dialog")
    person.page.get_by_role("button", name="Close").click()
    person.page.get_by_role("button", name=re.compile("report, .*success")).last.click()
    person.sees("manual", "dialog td")


def test_deep_links_filters_and_back(person: Person, made: Tau) -> None:
    run = tau(made, "run", "many")["run_id"]
    person.goes("runs")
    person.page.get_by_label("status").select_option("success")
    person.sees("many", "td")
    person.sees_not("✗", "td")
    person.page.locator(f"[data-key='{run}'] a").first.click()
    person.sees("×1,997 more like these")  # noqa: RUF001
    person.clicks("part-1999", role="link")
    assert person.page.url.endswith(f"#/run/{run}?step=part-1999")
    person.page.go_back()
    person.page.go_back()
    person.sees("Runs", "h1")
    assert person.page.get_by_label("status").input_value() == "success"
    person.goes(f"run/{run}?level=warning")
    person.sees("12 lines", "section:has(.log)")
    person.sees("tau inspect", ".command")
    person.goes(f"run/{run[:10]}")
    person.sees("many", "h1")
    person.goes("pipeline/nosuch")
    person.sees("no pipeline named 'nosuch'")
    person.goes("pipeline/..%2Fx")
    person.sees("no pipeline named '../x'")
    tau(made, "run", "report", "-p", "day=2026-01-01")
    person.goes("lineage/report")
    person.sees("out.csv", "svg")


def test_a_log_comes_in_windows(person: Person, made: Tau) -> None:
    run = tau(made, "run", "many")["run_id"]
    person.goes(f"run/{run}")
    person.sees("line 1199", ".log p")
    person.sees_not(re.compile("line 1$"), ".log p")
    lines = person.page.locator(".log p")
    for label, first in (("First", "line 0"), ("Later", "line 500"), ("Last", "line 700"), ("Earlier", "line 200")):
        person.clicks(label)
        expect(lines.first).to_contain_text(first)
        expect(lines).to_have_count(500)
    person.page.get_by_label("with").fill("LINE 77")
    person.page.keyboard.press("Enter")
    person.sees("11 lines", "section:has(.log)")


def test_the_keyboard_goes_everywhere(person: Person) -> None:
    press = person.page.keyboard.press
    for keys, title in (("gr", "Runs"), ("gp", "Pipelines"), ("gc", "Calendar"), ("gl", "Lineage"), ("go", "Overview")):
        [press(key) for key in keys]
        person.sees(title, "h1")
        assert person.page.evaluate("document.activeElement.tagName") == "H1"
    [press(key) for key in "gp"]
    person.sees("Pipelines", "h1")
    person.sees("orders", "td")
    [press(key) for key in "jjk"]
    press("Enter")
    person.sees("hostile", "h1")
    press("/")
    person.page.keyboard.type("report")
    press("Enter")
    person.sees("report", "h1")
    press("Escape")
    person.page.locator("h1").click()
    press("c")
    person.sees("Copied", "#said")
    assert person.page.evaluate("navigator.clipboard.readText()") == "tau show report"
    press("?")
    person.sees("next row", "dialog")
    press("Escape")
    press("t")
    person.sees("times: local", "header")
    press("t")
    person.sees(re.compile(r"\d\d:\d\d:\d\dZ"))
    press("t")


def test_hostile_data_runs_nothing_and_breaks_nothing(person: Person, made: Tau) -> None:
    run = tau(made, "run", "hostile", exit=1)["run_id"]
    paths = [
        "",
        "runs",
        f"run/{run}",
        "pipelines",
        "pipeline/hostile",
        "calendar",
        "lineage",
        f"run/{EVIL}",
        f"{EVIL}/x",
    ]
    for width in (360, 1280):
        person.page.set_viewport_size({"width": width, "height": 800})
        for path in paths:
            person.goes(path.replace("</script>", "%3C%2Fscript%3E"))
            person.page.wait_for_load_state("networkidle")
            assert person.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, path)
            assert person.page.locator("main img, main script, main b:has(b)").count() == 0
    person.goes(f"run/{run}")
    person.sees("⟨202E⟩", ".log")
    person.sees("⟨1B⟩[2J ⟨0⟩", ".log")
    expect(person.page.locator(".log .c1").first).to_have_text("red")
    person.sees(EVIL, ".message")
    person.sees(re.compile("run *None *status *5 *took *-1.5"), "section.bad dl")  # not our columns of these names
    person.sees("more characters", ".log")


def test_seven_tabs_share_one_stream_that_neither_doubles_nor_loses(person: Person, made: Tau) -> None:
    tabs = [person.page, *(person.tab() for _ in range(6))]
    for tab in tabs[1:]:
        tab.goto(f"{person.front}#/")
        expect(tab.locator("h1")).to_have_text("Overview")
    before = tau(made, "events", "--limit", "1")["next"]
    tau(made, "run", "report", "-p", "day=2026-01-01")
    made.kill()
    for tab in tabs:
        expect(tab.locator("#state")).to_contain_text("taud does not answer")
    made.start()
    tau(made, "run", "report", "-p", "day=2026-01-02")
    last = tau(made, "events", "--limit", "1")["next"]
    for tab in tabs:
        expect(tab.locator("#state")).to_contain_text("live")
        tab.bring_to_front()
        rows = tab.locator("section:has(h2:text('Latest events')) tbody tr")
        expect(rows.first.locator("td").first).to_have_text(str(last))
        numbers = [int(text) for text in rows.locator("td:first-child").all_inner_texts()]
        assert numbers == [*range(last, last - len(numbers), -1)]
        assert numbers[-1] <= before
    asked = "performance.getEntriesByType('resource').filter((entry) => entry.name.includes('stream?')).length"
    assert sum(tab.evaluate(asked) > 0 for tab in tabs) == 1
    person.wrong.clear()  # the browser tells of connections that were refused


def test_logging_in_and_out_and_a_key_that_is_revoked(made: Tau, chromium: Browser) -> None:
    key = tau(made, "key", "create", "looker", "--scope", "read")["key"]
    someone = Person(chromium, made)
    someone.goes("runs")
    someone.sees("Log in", "h1")
    someone.page.get_by_label("Access key").fill("tau_wrong")
    someone.clicks("Log in")
    someone.sees("key", ".notice")
    someone.page.get_by_label("Access key").fill(key)
    someone.clicks("Log in")
    someone.sees("Runs", "h1")  # where it was going
    someone.sees("looker (read)", "header")
    for path in ("", "pipeline/orders", "runs"):
        someone.goes(path)
        someone.page.wait_for_load_state("networkidle")
        assert someone.page.locator("button").filter(has_text="…").count() == 0
        someone.sees_not(re.compile("^(false|null|undefined)$"), "td, dd")
    asked = "fetch('ask', {method: 'POST', body: JSON.stringify({calls: [['run', {name: 'many', wait: false}]]})})"
    answer = someone.page.evaluate(f"{asked}.then((answer) => answer.json())")
    assert answer["answers"][0]["error"]["code"] == "forbidden"
    kept = someone.page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "tau_sk" not in kept
    assert json.loads(kept)[2] == ""
    someone.clicks("Log out", "header")
    someone.sees("Log in", "h1")
    someone.page.get_by_label("Access key").fill(key)
    someone.clicks("Log in")
    someone.sees("live", "#state")
    tau(made, "key", "revoke", "looker")
    someone.sees("The session has ended", "[role=alert]")
    someone.sees("Log in", "h1")
    someone.leave("401", "403")


def test_a_word_logs_in_once(made: Tau, chromium: Browser) -> None:
    someone = Person(chromium, made)
    address = tau(made, "open", "--print", "--scope", "read")["address"]
    someone.page.goto(address)
    someone.sees("(read)", "header")
    assert "word" not in someone.page.url
    someone.leave()
    other = Person(chromium, made)
    other.page.goto(address)
    other.sees("this word does not log in", "[role=alert]")
    other.leave("401", "403")


@pytest.mark.parametrize("extra", ["", "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering on;"])
def test_it_works_below_a_path_of_a_proxy(made: Tau, chromium: Browser, tmp_path: Path, extra: str) -> None:
    with nginx(made, tmp_path, f"proxy_set_header Host $http_host; {extra}") as front:
        someone = Person(chromium, made, f"{front}/").enter()
        someone.sees("live", "#state")
        tau(made, "run", "report", "-p", "day=2026-01-03")
        last = tau(made, "events", "--limit", "1")["next"]
        someone.sees(str(last), "td")
        someone.page.reload()
        someone.sees("Overview", "h1")
        (cookie,) = someone.context.cookies()
        assert (cookie["path"], cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (
            "/tau/",
            True,
            True,
            "Strict",
        )
        someone.leave()


def test_without_locks_each_tab_asks_again_and_again(made: Tau, chromium: Browser) -> None:
    someone = Person(chromium, made)
    someone.context.add_init_script("Object.defineProperty(navigator, 'locks', {value: undefined})")
    someone.enter()
    someone.sees("asks every 3 s", "#state")
    tau(made, "run", "report", "-p", "day=2026-01-04")
    someone.sees(str(tau(made, "events", "--limit", "1")["next"]), "td")
    someone.leave()


def test_no_page_may_frame_it(made: Tau, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{made.port}/healthz")
    said = list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.evaluate("document.body.append(Object.assign(document.createElement('iframe'), {src: '/#/'}))")
    page.wait_for_timeout(100)
    eventually(lambda: page.wait_for_timeout(20) or any("frame-ancestors" in text for text in said))
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_on_any_screen(made: Tau, chromium: Browser, scheme: Any) -> None:
    if not os.environ.get("TAU_AXE"):
        pytest.skip("TAU_AXE names the file axe.min.js of the npm package axe-core")
    run = tau(made, "run", "hostile", exit=1)["run_id"]
    someone = Person(chromium, made, color_scheme=scheme, bypass_csp=True)
    axe, faults = Path(os.environ["TAU_AXE"]).read_text(), dict[str, Any]()

    def look(name: str) -> None:
        someone.page.wait_for_load_state("networkidle")
        someone.page.evaluate(axe)
        found = someone.page.evaluate("axe.run()")["violations"]
        faults.update({f"{name}: {each['id']}": [node["html"] for node in each["nodes"]][:3] for each in found})

    someone.goes("")
    someone.sees("Log in", "h1")
    look("login")
    someone.enter()
    paths = [
        "",
        "runs",
        "pipelines",
        "calendar",
        "lineage",
        "lineage/report",
        f"run/{run}",
        "pipeline/report",
        "run/nosuch",
    ]
    for path in [*paths, "pipeline/orders?diff=1-2"]:
        someone.goes(path)
        someone.page.locator("h1").wait_for()
        look(path)
    for key, name in (("?", "keyboard"), ("Escape", "")):
        someone.page.keyboard.press(key)
        look(name)
    someone.goes("pipeline/report")
    someone.sees("report", "h1")
    someone.clicks("Run …")
    look("dialog")
    someone.context.close()
    assert faults == {}

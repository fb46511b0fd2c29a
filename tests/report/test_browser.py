"""The page in a real browser, without a network: everything is drawn, nothing complains, a phone can read it.

A second page holds the report in a frame of a phone's or a desktop's width, looks into it, and tells what it sees.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

from camox.report.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

LOOK = """<!doctype html><title>look</title>
<body style="margin:0"><iframe id="frame" src="PAGE" style="width:WIDTHpx;height:900px;border:0"></iframe>
<pre id="seen"></pre><script>
const DRAWN = ".scatterlayer .trace, .barlayer .trace, .heatmaplayer .hm";
const frame = document.getElementById("frame");
async function look() {
  const root = frame.contentDocument && frame.contentDocument.documentElement;
  if (!root || !root.dataset.drawn) return setTimeout(look, 100);
  const page = frame.contentDocument;
  // The browser's time is not real and would be over before the first frame, in which pages scroll; a file that is
  // read takes time of its own.
  const wait = async until => {
    while (!until()) await new Promise(done => {
      const file = new XMLHttpRequest();
      file.onloadend = () => setTimeout(done, 50);
      file.open("GET", location.href);
      file.send();
    });
  };
  const facts = [...page.querySelector(".facts") ? page.querySelectorAll("section > .facts .fact") : []];
  const bar = page.querySelector(".bar"), contents = page.getElementById("contents"), toc = page.getElementById("toc");
  const folded = page.querySelectorAll("details:not([open])").length;
  const links = [...toc.querySelectorAll("a")];
  const isMenu = getComputedStyle(contents).display !== "none";
  const before = toc.getBoundingClientRect().height;
  if (isMenu) contents.click();
  const shown = links.filter(link => link.getBoundingClientRect().height > 0).length;
  const routers = links.find(link => link.textContent === "Routers");
  routers.click();
  await wait(() => page.defaultView.scrollY > 500);
  await wait(() => routers.getAttribute("aria-current"));
  const place = () => page.getElementById("routers").getBoundingClientRect();
  let last = NaN;  // what is drawn on the way moves what is below it: look once nothing moves any more
  await wait(() => { const still = last === place().top; last = place().top; return still; });
  const section = place();
  const moved = {
    bar: bar.getBoundingClientRect().top, height: bar.getBoundingClientRect().height, top: section.top,
    open: toc.classList.contains("open"), button: contents.textContent.trim(),
    drawing: page.querySelector("#routers .drawing").getBoundingClientRect().width,
  };
  page.defaultView.scrollTo(0, 0);
  for (const details of page.querySelectorAll("details")) details.open = true;
  const plots0 = [...page.querySelectorAll(".drawing")];
  await wait(() => root.dataset.drawn === String(plots0.length));
  const plots = () => [...page.querySelectorAll(".drawing")];
  const seen = {
    plots: plots().length,
    undrawn: plots().filter(p => !p.querySelector(DRAWN)).map(p => p.id),
    overflow: root.scrollWidth - root.clientWidth,
    scheme: root.dataset.scheme,
    paper: getComputedStyle(page.body).backgroundColor,
    ink: getComputedStyle(plots()[0].querySelector(".xtick text, .ytick text")).fill,
    requests: frame.contentWindow.performance.getEntriesByType("resource").filter(
      e => !/^(data|blob):/.test(e.name)).map(e => e.name),
    unnamed: [...page.querySelectorAll("img:not([alt]), [role=img]:not([aria-label])")].length,
    folded, isMenu, before, shown, links: links.length, moved,
    facts: Object.fromEntries(facts.map(
      fact => [fact.querySelector("dt").textContent, fact.getBoundingClientRect().bottom])),
    loose: [...page.querySelectorAll("table, pre")].filter(
      one => one.getBoundingClientRect().width > root.clientWidth && !one.closest(".scroll")).length,
    thin: [...page.querySelectorAll("td, th")].filter(
      cell => cell.textContent.trim().length > 12 && cell.getBoundingClientRect().width < 60).map(
      cell => cell.textContent.trim()),
    worst: !!page.querySelector(page.querySelector('.fact a').getAttribute("href")),
  };
  delete root.dataset.drawn;
  page.getElementById("scheme").click();
  while (!root.dataset.drawn) await new Promise(done => setTimeout(done, 100));
  seen.other = {scheme: root.dataset.scheme, paper: getComputedStyle(page.body).backgroundColor};
  document.getElementById("seen").textContent = JSON.stringify(seen);
}
look();
</script>"""


def look(page, folder, width, *options):
    """What the second page has seen, and what the browser's console said."""
    (folder / "look.html").write_text(LOOK.replace("PAGE", page.as_uri()).replace("WIDTH", str(width)))
    ran = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=200000", f"--window-size={width},900",
            *options, "--dump-dom", (folder / "look.html").as_uri(),
        ],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    seen = re.search(r'<pre id="seen">(.+?)</pre>', ran.stdout)
    assert seen, ran.stderr[-2000:]
    # Plotly says so of some axes, depending on how long the labels of measured times are; what it draws is right.
    lines = [line for line in ran.stderr.splitlines() if "Too many auto-margin redraws" not in line]
    return json.loads(html.unescape(seen[1])), [line for line in lines if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def comparison(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    other = shutil.copytree(trained, folder / "other")
    return write_report([trained, other], folder / "page.html")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_everything_is_drawn_and_nothing_is_wider_than_the_screen(trained, comparison, tmp_path, width, several):
    page = comparison if several else trained / "report.html"
    seen, said = look(page, tmp_path, width)
    assert said == []
    assert seen["undrawn"] == []
    assert seen["plots"] >= 25
    assert seen["overflow"] == 0
    assert seen["requests"] == []
    assert seen["unnamed"] == 0
    assert seen["worst"]
    assert seen["loose"] == 0
    assert seen["thin"] == []
    assert (seen["folded"] > 10) == several


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_first_screen_answers(trained, tmp_path, width, height):
    seen, _ = look(trained / "report.html", tmp_path, width)
    for question in ("Outcome", "Did a router collapse?", "Which phase began when?", "Which image is worst?"):
        assert seen["facts"][question] <= height, question


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_the_contents_stay_in_sight_and_open_what_they_lead_to(trained, comparison, tmp_path, width, several):
    seen, _ = look(comparison if several else trained / "report.html", tmp_path, width)
    assert seen["isMenu"] == (width == 390)
    assert (seen["before"] == 0) == seen["isMenu"]
    assert seen["shown"] == seen["links"]
    moved = seen["moved"]
    assert moved["bar"] == 0
    assert moved["height"] <= 60
    assert moved["height"] <= moved["top"] + 1 < 160
    assert not moved["open"]
    assert "Routers" in moved["button"]
    assert moved["drawing"] > 200


def test_it_follows_the_scheme_of_the_system_and_the_switch(trained, tmp_path):
    dark = "--blink-settings=preferredColorScheme=0"
    light, _ = look(trained / "report.html", tmp_path, 1280)
    assert light["scheme"] == "light"
    night, _ = look(trained / "report.html", tmp_path, 1280, dark)
    assert night["scheme"] == "dark"
    assert night["paper"] != light["paper"]
    assert night["ink"] != light["ink"]
    assert (light["other"]["scheme"], light["other"]["paper"]) == ("dark", night["paper"])

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
            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=60000", f"--window-size={width},900",
            *options, "--dump-dom", (folder / "look.html").as_uri(),
        ],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    seen = re.search(r'<pre id="seen">(.+?)</pre>', ran.stdout)
    assert seen, ran.stderr[-2000:]
    return json.loads(html.unescape(seen[1])), [line for line in ran.stderr.splitlines() if ":CONSOLE" in line]


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


def test_it_follows_the_scheme_of_the_system_and_the_switch(trained, tmp_path):
    dark = "--blink-settings=preferredColorScheme=0"
    light, _ = look(trained / "report.html", tmp_path, 1280)
    assert light["scheme"] == "light"
    night, _ = look(trained / "report.html", tmp_path, 1280, dark)
    assert night["scheme"] == "dark"
    assert night["paper"] != light["paper"]
    assert night["ink"] != light["ink"]
    assert (light["other"]["scheme"], light["other"]["paper"]) == ("dark", night["paper"])

"""A report in a browser: at the width of a phone, by day and by night, without a script and without an error."""

import html
import json
import re
import shutil
import subprocess

import pytest
from report_records import a_probe, a_run

from hfssl.report.comparison import write_comparison
from hfssl.report.page import write_report


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome", "chrome"))), "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="needs Chromium: `apt-get install chromium-headless-shell`"),
]
# Shows a page in a frame of a phone's width, and says what came of it.
PROBE = """<!doctype html><title>probe</title><iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>
<pre id="said"></pre><script>
window.onload = () => {{
  const frame = document.querySelector("iframe"), inner = frame.contentDocument, view = frame.contentWindow;
  const style = view.getComputedStyle(inner.body);
  const reached = [...inner.querySelectorAll("a, summary, [tabindex]")].filter(e => e.tabIndex < 0).length;
  const broken = [...inner.images].filter(e => e.complete && e.naturalWidth === 0).length;
  document.getElementById("said").textContent = JSON.stringify({{
    wide: inner.documentElement.scrollWidth, shown: inner.documentElement.clientWidth, paper: style.backgroundColor,
    ink: style.color, scripts: inner.scripts.length, unreachable: reached, broken: broken,
    figures: inner.querySelectorAll("svg").length,
    drawn: view.getComputedStyle(inner.querySelector("svg text")).fill,
  }});
}};
</script>"""


def seen(page, folder, width, *flags):
    probe = folder / f"probe-{width}.html"
    probe.write_text(PROBE.format(width=width, page=html.escape(page)))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom", *flags,
        f"--user-data-dir={folder / 'profile'}", probe.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.S)[1]))


WORDS = [["a title", {"occlusion": [[f" word{i}", (-1) ** i * i / 40] for i in range(40)] + [["x" * 200, 1.0]]}]]
FINDING = {
    "title": "Where it looks", "method": "Roll-out.", "papers": {"A, 2020": "https://huggingface.co/papers/2005.00928"},
    "limits": "Attention is no explanation of a decision. " * 4, "said": [],
    "shows": [
        {"words": WORDS, "caption": "Words."}, {"listing": [["dimension 3", ["y" * 200]]], "caption": "Texts."},
        {"table": {"head": list("abcdef"), "rows": [["a word or two"] * 6]}, "caption": "Classes"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["one", "two", "explained"])
def test_a_report_on_a_phone_by_day_and_by_night(tmp_path, kind):
    classes = ("a class with quite a long name", "AnotherClassWhoseNameHasNoSpacesAtAllAndIsLong")
    folder = a_probe(a_run(tmp_path / "run"), classes=classes)
    if kind == "explained":
        (folder / "explain.json").write_text(json.dumps({"findings": [FINDING]}))
    path = write_report(folder)
    if kind == "two":
        path = write_comparison([folder, a_probe(a_run(tmp_path / "other-run"))], tmp_path / "two.html")
    day = seen(path.read_text(), tmp_path, 380)
    assert day["wide"] <= day["shown"] <= 380 and day["figures"] > 2
    assert (day["scripts"], day["unreachable"], day["broken"]) == (0, 0, 0)
    night = seen(path.read_text(), tmp_path, 380, "--blink-settings=preferredColorScheme=0")
    dark, light = (sum(map(int, re.findall(r"\d+", each["paper"])[:3])) for each in (night, day))
    assert dark < 150 < 600 < light
    # lines and words of the figures too
    assert night["drawn"] == night["ink"] != day["ink"] == day["drawn"]

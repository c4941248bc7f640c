"""The pages in a browser: nothing fetched, nothing cut off, nothing too pale."""

import shutil

import pytest
import report_runs

from llmft.runs.record import read_run
from llmft.runs.report.publish import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync",),
]
# The lowest contrast of a text with what lies under it (WCAG 2.2, 1.4.3), and its text.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {
    willReadFrequently: true});
  const mixed = colors => {
    canvas.globalAlpha = 1; canvas.clearRect(0, 0, 1, 1);
    for (const c of colors) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest("details:not([open]) > div")) continue;
    const back = [];
    for (let e = element; e; e = e.parentElement)
      back.unshift(getComputedStyle(e).backgroundColor);
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const one = light(mixed(back)), two = light(mixed([...back, ink]));
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.data.trim().slice(0, 40)];
  }
  return worst;
}"""
# Texts of charts that leave their drawing, or lie over one another.
OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg.chart")) {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(t => [
      t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([text, a], i) => {
      if (a.left < box.left - 1 || a.right > box.right + 1 || a.top < box.top - 1
          || a.bottom > box.bottom + 1) found.push(["outside", text]);
      for (const [other, b] of texts.slice(i + 1))
        if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2
            && b.top < a.bottom - 2) found.push([text, other]);
    });
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.mark.parametrize("classes", [3, 12, 60])
@pytest.mark.parametrize("kind", ["single", "multi", "regression", "mlm", "generate"])
def test_a_page_in_the_browser(browser, tmp_path, kind, classes):
    if classes > 3 and kind not in ("single", "multi"):
        pytest.skip("it has no classes")
    hostile = classes == 12
    folder = tmp_path / kind
    report_runs.folder_of(folder, kind, 400, classes, hostile=hostile or classes == 3)
    address = write_page(read_run(folder)).as_uri()
    for scheme in ("light", "dark"):
        said, asked = [], []
        page = browser.new_page(color_scheme=scheme)
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("dialog", lambda dialog, said=said: said.append(dialog.message))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(address)
        for width in (400, 1600):
            page.set_viewport_size({"width": width, "height": 900})
            wide = "() => document.documentElement.scrollWidth"
            assert page.evaluate(wide) <= width
            assert page.evaluate(OVERLAPS) == []
        ratio, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, text
        assert (said, asked) == ([], [address])
        page.close()

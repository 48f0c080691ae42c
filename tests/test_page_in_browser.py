"""The page of a run in a real browser: Debian's chromium, headless."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from sharpjax.report import detect, dimension
from sharpjax.report.detection import Detection
from sharpjax.report.page import write_page
from sharpjax.rundir.about import Clock

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "<style>body{display:none}</style>",
    "<img src='https://example.org/x.png'>",
)
COMMAND = (
    "sharpjax mitigate --compare --images 8 --steps 25 --methods "
    "screened,ranked,delayed_guidance,padding,dynamic_guidance,lower_guidance --output runs/here"
)
SCHEMES = ("light", "dark")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        assert "CI" not in os.environ, "the tests of the page need chromium (apt install chromium)"
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        # a container's root has no sandbox to enter
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, detection_run, mitigation_run):
    """A page of detection and mitigation together, hostile prompts among them."""
    folder = tmp_path_factory.mktemp("pages")
    detection_run(folder / "detect", prompts=[*HOSTILE, *(f"prompt {i}" for i in range(36))])
    about = json.loads((folder / "detect" / "about.json").read_text()) | {"command": COMMAND}
    (folder / "detect" / "about.json").write_text(json.dumps(about))
    mitigation_run(folder / "mitigate", prompts=(*HOSTILE, "a cat"))
    return write_page([folder / "detect", folder / "mitigate"])


@pytest.fixture(scope="module")
def pages_of_images(tmp_path_factory, tiny_model, tiny_training_set):
    """A page of `images` and `dimension` together, computed; a file has a hostile name."""
    from sharpjax.detection.settings import ImageSettings
    from sharpjax.runs.dimension import DimensionSettings, dimension_of_images
    from sharpjax.runs.images import detect_images, find_images

    folder = tmp_path_factory.mktemp("images")
    (folder / "digits").mkdir()
    names = ("a zero.png", "another.png", "<b>x.png")
    for name, image in zip(names, tiny_training_set.images, strict=False):
        pixels = (127.5 * (image[0] + 1)).round().astype("uint8")
        Image.fromarray(np.asarray(pixels)).save(folder / "digits" / name)
    given = folder / "digits", find_images(folder / "digits")
    settings = ImageSettings(num_directions=4)
    records = detect_images(tiny_model, *given, folder / "images", settings, fingerprint="f")
    found = Detection.of(records, given[1], what="image")
    detect.write(folder / "images", found)
    Clock("tiny").record(folder / "images", **found.facts)
    settings = DimensionSettings(times=(10, 100), num_probes=2)
    records = dimension_of_images(
        tiny_model, *given, folder / "dimension", settings, fingerprint="f"
    )
    dimension.write(folder / "dimension", records)
    Clock("tiny").record(folder / "dimension")
    return write_page([folder / "images", folder / "dimension"])


@pytest.fixture
def visit(browser):
    """Opens a page; at the end nothing may have been said, gone wrong or asked of the network."""
    contexts, said = [], []

    def open_page(path, *, scheme="light", viewport=DESKTOP, watched=True):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.protocol = context.new_cdp_session(page)
        page.protocol.send("Performance.enable", {"timeDomain": "threadTicks"})  # see busy
        if watched:
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: said.append(dialog.message))

            def asked(request):
                if not request.url.startswith("data:") and request.url != path.as_uri():
                    said.append(request.url)

            page.on("request", asked)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_quiet_and_complete(visit, pages, scheme):
    page = visit(pages, scheme=scheme)
    assert page.title() == "sharpjax: drawings"  # what prompts hold is not run
    assert page.is_visible("h1")
    loaded = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(loaded) >= 10
    assert all(loaded)
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:'))")
    plots = page.evaluate("[...document.querySelectorAll('.panel svg')].map(s => s.clientHeight)")
    assert len(plots) >= 6
    assert min(plots) > 100


def test_a_script_that_slipped_through_would_not_run(visit, pages, tmp_path):
    """The page's policy stands behind the escaping, should that ever fail."""
    text = pages.read_text()
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    (tmp_path / "attacked.html").write_text(text.replace("<main", attack + "<main", 1))
    page = visit(tmp_path / "attacked.html", watched=False)
    assert page.title() == "sharpjax: drawings"


KEYS = """
  [...document.querySelectorAll('#verdicts .searchable tbody tr')]
    .filter(row => !row.hidden).map(row => row.cells[%d].dataset.key ?? row.cells[%d].textContent)
"""


def column_of(page, name):
    heads = page.eval_on_selector_all(
        "#verdicts .searchable thead th", "hs => hs.map(h => h.textContent)"
    )
    return heads.index(name)


def test_columns_sort(visit, pages):
    page = visit(pages)
    for name, read in (("score_difference@981", float), ("margin", float), ("condition", str)):
        place = column_of(page, name)
        for way in ("descending", "ascending"):
            page.click(f"#verdicts .searchable thead th:nth-child({place + 1}) button")
            head = page.locator("#verdicts .searchable thead th").nth(place)
            assert head.get_attribute("aria-sort") == way
            values = [read(key) for key in page.evaluate(KEYS % (place, place))]
            assert len(values) == 40
            if read is float:
                assert values == sorted(values, reverse=way == "descending")
            else:
                ordered = page.evaluate("v => [...v].sort((a, b) => a.localeCompare(b))", values)
                assert values == (ordered if way == "ascending" else ordered[::-1])
        assert page.locator("#verdicts th[aria-sort]").count() == 1


def test_rows_are_found_and_filtered(visit, pages):
    page = visit(pages)
    output = page.locator("#verdicts output")
    assert output.text_content() == "40 of 40"
    page.fill("#verdicts [data-search]", "PROMPT 1")
    named = [f"prompt {i}" for i in range(36) if "prompt 1" in f"prompt {i}"]
    assert output.text_content() == f"{len(named)} of 40"
    assert page.locator("#verdicts .searchable tbody tr:visible").count() == len(named)
    page.fill("#verdicts [data-search]", "<script>")
    assert output.text_content() == "1 of 40"
    page.fill("#verdicts [data-search]", "")
    page.select_option("#verdicts select >> nth=1", "clean")  # what is known
    known = column_of(page, "known")
    assert set(page.evaluate(KEYS % (known, known))) == {"clean"}
    assert output.text_content() == "20 of 40"
    page.select_option("#verdicts select >> nth=1", "")
    assert output.text_content() == "40 of 40"


def test_the_keyboard_is_enough(visit, pages):
    page = visit(pages)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.focus("#verdicts .searchable thead th button >> nth=2")
    page.keyboard.press("Enter")
    assert page.locator("#verdicts th[aria-sort=descending]").count() == 1


# The contrast of every text with what lies behind it, by WCAG 2.2's formula.
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, below) => {  // what shines through a colour that is not opaque
    const share = top[3] / 255;
    return [0, 1, 2].map(i => share * top[i] + (1 - share) * below[i]).concat(255);
  };
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(rgba(getComputedStyle(e).backgroundColor));
      if (layers.at(-1)[3] === 255) break;
    }
    return layers.reduceRight((below, top) => over(top, below), rgba('Canvas'));
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    if (['STYLE', 'SCRIPT', 'style'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [below, own] = [behind(element), rgba(element.closest('svg') ? style.fill : style.color)];
    const [a, b] = [luminance(over(own, below)), luminance(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, element.tagName, walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


def walked(page):
    """What Tab leads to, one after another until it begins again: its text, and whether it shows.

    Of the element that has the focus: it has a size, and a ring about it.
    """
    found = []
    while not found or (found[-1] != found[0] and found[-1][0] != "body") or len(found) == 1:
        page.keyboard.press("Tab")
        found.append(
            tuple(
                page.evaluate("""() => {
                  const e = document.activeElement, box = e.getBoundingClientRect();
                  const ring = getComputedStyle(e).outlineStyle !== 'none';
                  const name = e.tagName.toLowerCase();
                  return [name, e.outerHTML.slice(0, 120), ring && box.width > 0 && box.height > 0];
                }""")
            )
        )
        assert len(found) < 500
    return found[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_of_images_and_their_dimension(visit, pages_of_images, scheme):
    """Everything that the page of prompts is looked at for, and by Tab alone."""
    page = visit(pages_of_images, scheme=scheme)
    assert "Local dimension" in page.inner_text("main")
    assert "<b>x.png" in page.inner_text("main")
    assert [entry for entry in page.evaluate(CONTRAST) if entry[0] < 4.5] == []
    assert page.evaluate(LACKING) == []
    reached = walked(page)
    assert "Skip to the content" in reached[0][1]
    assert [one for one in reached if not one[2]] == []
    controls = page.locator("main button:visible, main input:visible, main select:visible").count()
    assert sum(one[0] in ("button", "input", "select") for one in reached) >= controls > 5
    for width in (320, 390, 1280):
        page = visit(pages_of_images, scheme=scheme, viewport={"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(BROKEN) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_can_be_read(visit, pages, scheme):
    found = visit(pages, scheme=scheme).evaluate(CONTRAST)
    assert len(found) > 300
    assert any(tag == "text" for _, tag, _ in found)  # of the plots too
    poor = [entry for entry in found if entry[0] < 4.5]
    assert not poor


# What has no text for those who do not see it.
LACKING = """() => [
  ...[...document.images].filter(i => !i.alt),
  ...[...document.querySelectorAll('input, select')].filter(i => !i.labels.length),
  ...[...document.querySelectorAll('button, a, th')].filter(b => !b.textContent.trim()),
  ...[...document.querySelectorAll('[role]')].filter(r => !r.getAttribute('aria-label')),
  ...[...document.querySelectorAll('th')].filter(h => h.scope !== 'col'),
].map(e => e.outerHTML.slice(0, 80))"""


def test_everything_has_a_label(visit, pages):
    page = visit(pages)
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("h1").count() == 1
    assert page.evaluate(LACKING) == []
    ids = page.evaluate("[...document.querySelectorAll('main section, h2')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    anchors = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert set(anchors) <= set(ids)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_it_fits_a_phone(visit, pages, width):
    page = visit(pages, viewport={"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    narrow = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.panel')].map(p => p.clientWidth))"
    )
    assert narrow > 250


# Words that go on, after a letter or the dashes of an option, on the next line.
BROKEN = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  const top = (node, i) => {
    const range = document.createRange();
    range.setStart(node, i); range.setEnd(node, i + 1);
    return range.getClientRects()[0]?.top;
  };
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest('svg') || !node.parentElement.getClientRects().length) continue;
    const run = node.parentElement.closest('#what-was-run');
    for (const {0: word, index} of node.data.matchAll(/\\S+/g)) {
      if (word.length > 24 && !run) continue;
      for (let i = index + 1; i < index + word.length; i++) {
        const two = node.data.slice(i - 1, i + 1);
        const glued = /[a-z0-9]{2}|--/i.test(two) || (two[0] === '-' && word.startsWith('--'));
        if (glued && Math.abs(top(node, i) - top(node, i - 1)) > 8) {
          found.push(node.data.slice(index, i) + ' / ' + node.data.slice(i, index + word.length));
        }
      }
    }
  }
  return found;
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_no_word_is_broken(visit, pages, width):
    """`comman/d`, `--/images`, `lower_g/uidance`."""
    page = visit(pages, viewport={"width": width, "height": 844})
    assert "guidance" in page.inner_text("#what-was-run")
    assert page.evaluate(BROKEN) == []
    whole = page.locator("#what-was-run tr", has_text="command").first.inner_text()
    assert f"command\t{COMMAND}" in whole  # and it can be copied


@pytest.mark.slow
def test_it_prints_without_its_controls(visit, pages):
    page = visit(pages)
    page.emulate_media(media="print")
    assert page.is_hidden("#verdicts .tools")
    assert page.is_hidden("nav")
    whole = page.evaluate("""() => {
      const holder = document.querySelector('#verdicts .scroll');
      return holder.scrollHeight <= holder.clientHeight + 1;
    }""")
    assert whole  # nothing hides below the edge of a scrolled table
    assert page.pdf().startswith(b"%PDF")


def busy(page):
    """Seconds of processor time that the page's main thread has taken since it was made.

    Not seconds on a clock: other tests have the processor at the same time.
    """
    metrics = page.protocol.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


@pytest.mark.parametrize("count", [pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_prompts(visit, detection_run, tmp_path, count):
    detection_run(tmp_path / "run", prompts=[f"prompt number {i}" for i in range(count)])
    path = write_page([tmp_path / "run"])
    assert path.stat().st_size < 10e6
    began = time.perf_counter()
    page = visit(path)
    place = column_of(page, "margin")
    opened, opened_busy = time.perf_counter() - began, busy(page)
    began = time.perf_counter()
    page.click(f"#verdicts .searchable thead th:nth-child({place + 1}) button")
    keys = [float(key) for key in page.evaluate(KEYS % (place, place))]
    sorted_in, sorted_busy = time.perf_counter() - began, busy(page) - opened_busy
    assert keys == sorted(keys, reverse=True)
    assert len(keys) == count
    print(
        f"{count} prompts: {path.stat().st_size / 1e6:.2f} MB, opened in {opened:.2f} s "
        f"({opened_busy:.2f} s of processor time), sorted in {sorted_in:.2f} s ({sorted_busy:.2f})"
    )
    assert 0 < max(opened_busy, sorted_busy) < 2 * count / 1000

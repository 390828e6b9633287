"""Every page of the built site, and the reports, in a browser without a network: `make test-site` after `make docs`.

Needs playwright, axe-playwright-python and a Chromium (CHROMIUM names it).
"""
import functools
import http.server
import os
import shutil
import threading
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import sync_playwright

from one_shui.experiments.audit import audit
from one_shui.experiments.audit_charts import save_audit_report
from one_shui.scale.engines import Engine
from one_shui.experiments.config import Config
from one_shui.experiments.run import run
from one_shui.scale.grid import Grid
from one_shui.experiments.results import save_report
from one_shui.scale.run_grid import run_grid, save_grid_report

SITE = Path(__file__).parents[2] / "_docs"
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_static" not in p.parts)
AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser():
    assert PAGES, f"no site in {SITE}; make docs builds it"
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield started
        started.close()


@contextmanager
def served(folder):
    "The address of a folder over http"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def address():
    with served(SITE) as found: yield found


@pytest.fixture
def page(browser):
    "A page that may reach nothing but the site, and that remembers what went wrong"
    context = browser.new_context(viewport=dict(width=1280, height=900))
    page = context.new_page()
    page.wrong = []
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("requestfailed", lambda request: page.wrong.append(f"failed: {request.url[:200]}"))
    def only_local(route):
        if route.request.url.startswith(("file:", "data:", "http://127.0.0.1:", "blob:")): return route.continue_()
        page.wrong.append(f"wants {route.request.url}")
        route.abort()
    context.route("**/*", only_local)
    yield page
    context.close()


def drawn(page) -> tuple[int, int]:
    "Charts that are on the page, and those that were drawn as SVG"
    wanted = page.locator("script[data-chart]").count()
    if wanted: page.wait_for_function("n => document.querySelectorAll('.chart svg').length >= n", arg=wanted, timeout=20_000)
    return wanted, page.locator(".chart svg").count()


def serious(page) -> list[str]:
    "Serious and critical findings of axe"
    page.evaluate(AXE)
    return page.evaluate("async () => (await axe.run()).violations.filter(v => ['serious', 'critical'].includes(v.impact))"
                         ".map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' | '))")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_from_a_file(page, name):
    page.goto((SITE / name).as_uri())
    wanted, found = drawn(page)
    assert found >= wanted and not page.wrong


@pytest.mark.parametrize("name", PAGES)
def test_a_page_over_http(page, address, name):
    page.goto(address + name)
    wanted, found = drawn(page)
    assert found >= wanted and not page.wrong


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe(page, name, theme):
    "No serious or critical finding, in either theme"
    page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
    page.goto((SITE / name).as_uri())
    page.evaluate(f"document.body.dataset.theme = '{theme}'")
    drawn(page)
    assert not serious(page)


def test_search_finds_metaunlearn(page, address):
    page.goto(address + "search.html?q=MetaUnlearn")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert any("metaunlearn" in (a.get_attribute("href") or "") for a in page.locator("#search-results li a").all())
    assert not page.wrong


def test_the_theme_switch_redraws(page):
    name = next(name for name in PAGES if "data-chart" in (SITE / name).read_text(encoding="utf-8"))
    page.goto((SITE / name).as_uri())
    drawn(page)
    colour = "() => getComputedStyle(document.querySelector('.chart svg text')).fill"
    before = page.evaluate(colour)
    for theme in ("dark", "light"):
        page.evaluate(f"document.body.dataset.theme = '{theme}'")
        page.wait_for_timeout(800)
        drawn(page)
        if (after := page.evaluate(colour)) != before: break
    assert after != before


def test_internal_links_resolve():
    from html.parser import HTMLParser

    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.links, self.names = [], set()
        def handle_starttag(self, tag, attributes):
            found = dict(attributes)
            if tag == "a" and found.get("href"): self.links.append(found["href"])
            if found.get("id"): self.names.add(found["id"])

    read = {}
    for name in PAGES:
        read[name] = Reader()
        read[name].feed((SITE / name).read_text(encoding="utf-8"))
    broken = []
    for name, reader in read.items():
        for link in reader.links:
            if link.startswith(("http:", "https:", "mailto:", "data:", "javascript:")): continue
            target, anchor = urldefrag(urljoin(name, link))
            target = unquote(target) or name
            if not (SITE / target).exists(): broken.append((name, link))
            elif anchor and target in read and unquote(anchor) not in read[target].names: broken.append((name, link))
    assert not broken


def test_the_first_page_is_light(page, address):
    "All that the first page loads, but for its chart, is less than 300 kB"
    loaded = {}
    page.on("response", lambda response: loaded.update({response.url: len(response.body())}))
    page.goto(address + "index.html", wait_until="networkidle")
    assert loaded and sum(size for url, size in loaded.items() if not url.endswith(".svg")) < 300_000, loaded
    assert not any("vega" in url for url in loaded)


@pytest.mark.parametrize("name", sorted(p.stem for p in (SITE.parent / "nbs/tutorials").glob("*.ipynb")))
def test_a_tutorial_says_what_it_is_for(name):
    assert "After this page" in (SITE / f"tutorials/{name}.html").read_text(encoding="utf-8")


def test_a_chapter_is_folded_and_lists_its_pages():
    text = (SITE / "methods/index.html").read_text(encoding="utf-8")
    assert "ssd.html" in text and "metaunlearn/index.html" in text
    assert "toctree-checkbox" in text, "the sidebar has no folded chapters"


def test_a_page_of_a_method_has_its_source_folded():
    text = (SITE / "methods/ssd.html").read_text(encoding="utf-8")
    assert text.count('<details class="source">') >= 3 and "<summary>Source</summary>" in text


def test_pages_show_faces_and_charts():
    pages = [(SITE / name).read_text(encoding="utf-8") for name in PAGES]
    assert sum("data-chart" in text for text in pages) >= 30
    assert sum("_images/" in text for text in pages) >= 10


def test_the_first_page_says_what_this_is():
    assert "The training images are gone" in (SITE / "index.html").read_text(encoding="utf-8")


def test_a_card_for_those_who_link_here():
    text = (SITE / "index.html").read_text(encoding="utf-8")
    assert 'property="og:title"' in text and 'property="og:image"' in text
    assert (SITE / "_static" / "card.png").stat().st_size > 10_000


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    methods = "original", "retrain", "gradient_ascent", "key_edit"
    config = Config.tiny(n_forget=5, toy=dict(n_people=50, n_photos=8, size=32), methods=methods, settings={})
    rows = run(config, folder, log=lambda _: None)
    grid = Grid("small", dict(size=32, epochs=1, recipe="toy", toy=dict(n_people=30, n_photos=6, size=32), arch_options=dict(width=8)),
                dict(n_forget=[2, 3], seed=[0, 1, 2]), ("gradient_ascent", "key_edit"))
    of_grid, failed = run_grid(grid, grid.cells, folder / "grid", Engine("in-process"))
    return dict(run=save_report(rows, config, folder), audit=save_audit_report(folder, rows, audit(folder, log=lambda _: None)),
                bench=save_grid_report(of_grid, folder / "grid", failed))


@pytest.mark.parametrize("way", ["file", "http"])
@pytest.mark.parametrize("which", ["run", "audit", "bench"])
def test_reports_open_without_a_network(page, reports, which, way):
    with served(reports[which].parent) as place:
        page.goto(reports[which].as_uri() if way == "file" else place + reports[which].name)
        wanted, found = drawn(page)
        assert wanted >= 1 and found >= wanted and not page.wrong
        assert not serious(page)

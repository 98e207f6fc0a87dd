"""A notebook in a browser: write and run cells, use panels by the names of their controls, take screenshots."""

import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

expect.set_options(timeout=60_000)
READY = """() => {
  const widget = window.jupyterapp?.shell.currentWidget;
  const session = widget?.sessionContext;
  const kernel = session?.session?.kernel;
  return Boolean(session?.isReady && kernel?.connectionStatus === 'connected' && kernel.status === 'idle');
}"""
COUNTED = """() => [...document.querySelectorAll('.jp-CodeCell')].every(
  cell => /\\[\\d+\\]/.test(cell.querySelector('.jp-InputPrompt')?.textContent ?? ''))"""
RAISED = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
SCROLLS = """() => {
  const area = document.querySelector('.lab').closest('.jp-OutputArea-output') ?? document.body;
  return area.scrollWidth - area.clientWidth;
}"""
CUT = """() => [...document.querySelectorAll('.lab .lm-TabBar-tabLabel, .lab .jupyter-button, .lab .widget-label')]
  .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""

# Text with a contrast below 4.5 to 1, or 3 to 1 if large (WCAG 2.1, AA); disabled controls are exempt.
FAINT = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
  const light = colour => {
    const [r, g, b] = colour.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    const own = parse(getComputedStyle(e).backgroundColor);
    return own[3] === 1 || !e.parentElement ? own.slice(0, 3) : over(own, behind(e.parentElement));
  };
  const text = e => e.matches('input, textarea, select') ? e.value || e.placeholder
    : [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('');
  const said = e => (text(e) || '').replaceAll('\\u200b', '').trim();  // ipywidgets' empty text, of no width
  const found = new Set();
  for (const e of document.querySelectorAll('.lab *')) {
    if (!said(e) || e.matches('style, [type=range]') || e.closest(':disabled, .barlayer')) continue;  // coloured bars
    if (!e.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const style = getComputedStyle(e, e.placeholder && !e.value ? '::placeholder' : null);
    const back = behind(e.closest('svg')?.parentElement ?? e);
    const ink = over(parse(e.closest('svg') ? style.fill : style.color), back);
    const [less, more] = [light(ink), light(back)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    const ratio = (more + 0.05) / (less + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.add(`${said(e).slice(0, 40)}: ${ratio.toFixed(2)} to 1`);
  }
  return [...found];
}"""
CONTROLS = """() => [
  ...document.querySelectorAll('.lab :is(input, textarea, select, button, [role=slider], [role=tab])')
].filter(e => !e.disabled && !e.closest('.noUi-target[disabled]') && e.type !== 'file' && e.checkVisibility())"""
ROLES = "textbox|combobox|button|checkbox|slider|spinbutton|tab|listbox|radio|searchbox"


class Notebook:
    """A notebook file of a server, opened in a page."""

    def __init__(self, page: Any, server: Any, name: str, pictures: Path, place: str = "lab/tree") -> None:
        self.page, self.server, self.name, self.pictures = page, server, name, pictures
        self.folder, self.path, self.taken = server.folder / name, f"{name}/nb.ipynb", 0
        self.place = place

    def write(self, *cells: str) -> None:
        """Write the file with these cells; by default, an empty one."""
        made = [
            {"cell_type": "code", "source": text, "metadata": {}, "outputs": [], "execution_count": None, "id": f"c{i}"}
            for i, text in enumerate(cells or ("",))
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        content = {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        (self.folder / "nb.ipynb").write_text(json.dumps(content), encoding="utf-8")

    def open(self) -> None:
        """Open the file, and wait for its kernel."""
        self.page.goto(f"{self.server.url}/{self.place}/{self.path}?token={self.server.token}&reset")
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_function(READY)

    def reload(self) -> None:
        """Load the page again, and wait for the lab.

        jupyterlab_widgets 3.0.17 looks for an output's widget for two seconds, then gives up for good if the widgets
        were restored since its last look. A page that meets this is loaded again, as its reader would.
        """
        gone = "Error displaying widget: model not found"
        for left in (2, 1, 0):
            self.page.reload()
            self.ready()
            self.page.locator(".lab-bar").or_(self.page.get_by_text(gone)).first.wait_for()
            if not self.page.get_by_text(gone).count():
                return
            assert left, gone
            self.page.wait_for_timeout(200)  # its error follows the text
            self.page.errors[:] = [error for error in self.page.errors if "widget model not found" not in error]

    def run(self, until: str | None = None) -> None:
        """Run all cells, and wait for what the selector `until` finds.

        Rarely, a kernel does not answer, or its first widget comes before JupyterLab listens and is never drawn. Then
        the kernel is started again, unless a cell has raised an error.
        """
        for left in (2, 1, 0):
            self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
            try:
                self.page.wait_for_function(COUNTED, timeout=90_000)
                if until:
                    self.page.locator(until).first.wait_for()
                return
            except Exception as error:
                error.add_note("\n".join(self.page.locator(".jp-OutputArea").all_inner_texts())[-2000:])
                if not left or self.page.locator(RAISED).count():
                    raise
            self._end_sessions()
            self.page.errors.clear()
            self.open()

    def show(self, *cells: str) -> None:
        """Write, open and run cells, and wait for the lab."""
        self.write(*cells)
        self.open()
        self.run(until=".lab-bar")

    def bar(self) -> Any:
        """Return the bar once it is there."""
        bar = self.page.locator(".lab-bar")
        bar.wait_for()
        return bar

    def shows(self, text: str, seconds: float = 60) -> None:
        """Wait until the lab shows a text, a regular expression."""
        expect(self.page.locator(".lab")).to_contain_text(re.compile(text), timeout=1000 * seconds)

    def says(self, text: str, seconds: float = 60) -> None:
        """Wait until the status bar contains a text."""
        expect(self.bar()).to_contain_text(re.compile(text), timeout=1000 * seconds)

    def tab(self, title: str) -> None:
        self.page.get_by_role("tab", name=re.compile(rf"^{title}\b")).click()

    def button(self, name: str) -> Any:
        return self.page.locator(".lab").get_by_role("button", name=name, exact=True).locator("visible=true")

    def field(self, name: str) -> Any:
        return self.page.locator(".lab").get_by_label(name, exact=True).locator("visible=true")

    def fill(self, name: str, text: str) -> None:
        """Type into a field, and leave the field."""
        self.field(name).first.fill(text)
        self.field(name).first.press("Tab")

    def restart(self) -> None:
        """Restart the kernel, as the menu does, without the confirmation."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        self.ready()

    def shoot(self, step: str) -> None:
        """Take screenshots, in both widths and, with LAB_SCREENSHOTS, themes; nothing may be cut or scroll sideways."""
        self.taken += 1
        stem = f"{self.name.removeprefix('test_')}-{self.taken}-{step}"
        for width in (1280, 800):
            self.page.set_viewport_size({"width": width, "height": 1400})
            self.page.wait_for_timeout(300)
            assert self.page.evaluate(SCROLLS) <= 0, f"{stem} scrolls sideways at {width}"
            assert not (cut := self.page.evaluate(CUT)), f"{stem} is cut at {width}: {cut}"
            for theme in ("Light", "Dark") if "LAB_SCREENSHOTS" in os.environ else ("Light",):
                self.theme(theme)
                self.check()
                self.page.screenshot(path=self.pictures / f"{stem}-{width}-{theme.lower()}.png")
        self.theme("Light")
        self.page.set_viewport_size({"width": 1280, "height": 1400})

    def check(self) -> None:
        """Check that all text has enough contrast, and every control has a name."""
        assert not (faint := self.page.evaluate(FAINT)), faint
        controls = re.findall(rf"^ *- ({ROLES})\b(.*)$", self.page.locator(".lab").aria_snapshot(), re.M)
        assert controls
        nameless = [role for role, rest in controls if not re.match(r" [\"/]", rest)]
        assert not nameless, nameless

    def walk(self) -> None:
        """Go through the lab with the Tab key; it must reach every control."""
        self.page.evaluate(f"() => {{ window.unmet = new Set(({CONTROLS})().filter(e => e.tabIndex >= 0)) }}")
        assert self.page.evaluate(f"() => ({CONTROLS})().length - unmet.size <= 6")  # one of the tabs can be reached
        self.page.evaluate("() => [...unmet][0].focus()")
        for _ in range(400):
            if not self.page.evaluate("() => { unmet.delete(document.activeElement); return unmet.size }"):
                break
            self.page.keyboard.press("Tab")
        unmet = self.page.evaluate("() => [...unmet].map(e => e.outerHTML.slice(0, 200))")
        assert not unmet, unmet

    def theme(self, name: str) -> None:
        """Change to the theme "Light" or "Dark", if the page has themes."""
        change = "name => jupyterapp.commands.execute('apputils:change-theme', {theme: `JupyterLab ${name}`})"
        if self.page.evaluate("() => window.jupyterapp?.commands.hasCommand('apputils:change-theme')"):
            drawn = self.page.locator(".lab .main-svg").count()
            self.page.evaluate(change, name)
            self.page.wait_for_function("name => document.body.dataset.jpThemeName?.endsWith(name)", arg=name)
            self.page.locator("#jupyterlab-splash").wait_for(state="detached")
            expect(self.page.locator(".lab .main-svg")).to_have_count(drawn)  # figures are redrawn

    def _end_sessions(self) -> None:
        for session in json.loads(self._ask("GET", "/api/sessions")):
            if session["path"] == self.path:
                self._ask("DELETE", f"/api/sessions/{session['id']}")

    def _ask(self, method: str, place: str) -> bytes:
        token = {"Authorization": f"token {self.server.token}"}
        asked = urllib.request.Request(self.server.url + place, method=method, headers=token)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            content: bytes = answer.read()
        return content

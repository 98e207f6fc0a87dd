"""A page with a few anywidgets and nothing else: no Jupyter, a model that keeps what the browser saves."""

import json
from pathlib import Path
from typing import Any

import widgets
from llm_adapters_lab.markup import Html, el

_MODEL = """() => {
window.models = [];
window.put = async (source, state) => {
  const module = (await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))).default;
  const on = {}, el = document.createElement("div"), tell = (name) => (on[`change:${name}`] ?? []).forEach((f) => f());
  const set = (name, value) => { state[name] = value; tell(name); };
  const model = { saved: {}, sent: [], get: (name) => state[name], set, on: (name, f) => (on[name] ??= []).push(f),
    off() {}, save_changes() { this.saved = structuredClone(state); },
    send(content, _, pieces) { this.sent.push([content, [...new Uint8Array(pieces[0])]]); },
    answer: (content) => on["msg:custom"].forEach((f) => f(content)) };
  window.models.push(model);
  document.querySelector(".lab").append(el);
  module.render({ model, el });
}; }"""


def show(page: Any, *shown: Any, width: int = 800) -> list[Any]:
    """Render anywidgets below each other; return the element of each."""
    folder = Path(widgets.__file__).parent / "static"
    style = el("style", Html("\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.css")))))
    page.goto("data:text/html,")
    page.set_content(style + el("div", class_="lab", style=f"width: {width}px"))
    page.evaluate(_MODEL)
    for widget in shown:
        state = {name: value for name, value in widget.get_state().items() if not name.startswith("_")}
        page.evaluate(
            "([source, state]) => put(source, state)", [widget.get_state()["_esm"], json.loads(json.dumps(state))]
        )
    return [page.locator(".lab > div").nth(number) for number in range(len(shown))]


def saved(page: Any, number: int = 0) -> Any:
    """Return the state that the browser has saved for the kernel, of one of the widgets."""
    return page.evaluate("number => models[number].saved", number)


def sent(page: Any, count: int, number: int = 0) -> Any:
    """Return the messages with their bytes that the browser has sent, once there are `count`."""
    page.wait_for_function("([i, n]) => models[i].sent.length >= n", arg=[number, count])
    return page.evaluate("i => models[i].sent", number)


def answer(page: Any, content: Any, number: int = 0) -> None:
    """Send a message as the kernel would."""
    page.evaluate("([i, content]) => models[i].answer(content)", [number, content])


def send(page: Any, number: int = 0, **state: Any) -> None:
    """Change traits as the kernel would."""
    for name, value in state.items():
        page.evaluate("([i, name, value]) => models[i].set(name, value)", [number, name, value])

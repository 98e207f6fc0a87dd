"""Copy: a button that puts a text on the clipboard, which only the page itself can do."""

from __future__ import annotations

import anywidget
import traitlets


class CopyButton(anywidget.AnyWidget):
    """Copies `text` when it is clicked, and says so."""

    _esm = """
    async function copy(text) {
      try {
        await navigator.clipboard.writeText(text);
      } catch {  // a page from elsewhere without https has no clipboard
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
    }
    function render({ model, el }) {
      const button = document.createElement("button");
      button.className = "lm-Widget jupyter-widgets jupyter-button widget-button";
      button.textContent = model.get("label");
      button.addEventListener("click", async () => {
        await copy(model.get("text"));
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = model.get("label"); }, 1500);
      });
      el.append(button);
    }
    export default { render };
    """
    text = traitlets.Unicode("").tag(sync=True)
    label = traitlets.Unicode("Copy").tag(sync=True)

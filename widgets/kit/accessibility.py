"""Names: tells screen readers what controls are for, where ipywidgets leaves them nameless."""

from __future__ import annotations

import anywidget


class Names(anywidget.AnyWidget):
    """Names the controls of the lab it stands in, from tooltips and from the labels in their lines; shows nothing.

    The handle of a slider has no name, and an empty label hides the title of a box from browsers.
    """

    _esm = """
    function names(lab) {
      for (const box of lab.querySelectorAll(":is(input, textarea, select)[title]:not([aria-label])"))
        if (!box.labels[0]?.textContent) box.setAttribute("aria-label", box.title);
      for (const handle of lab.querySelectorAll(".noUi-handle:not([aria-label])")) {
        const label = handle.closest(".widget-hbox")?.querySelector(".widget-label")?.textContent;
        const end = { "noUi-handle-lower": "from", "noUi-handle-upper": "to" }[handle.classList[1]];
        const pair = handle.closest(".noUi-target").querySelectorAll(".noUi-handle").length > 1;
        if (label) handle.setAttribute("aria-label", pair ? `${label} ${end}` : `${label} slider`);
      }
    }
    function render({ el }) {
      let watch;
      requestAnimationFrame(() => {  // by then it stands in the page
        const lab = el.closest(".lab");
        if (!lab) return;
        watch = new MutationObserver(() => names(lab));
        watch.observe(lab, { childList: true, subtree: true });
        names(lab);
      });
      return () => watch?.disconnect();
    }
    export default { render };
    """

// anywidget gives a module two seconds to load, after which its widget stays dead; a busy page may need more.
if (!window.labPatience) {
  const timeout = AbortSignal.timeout;
  window.labPatience = AbortSignal.timeout = limit => timeout.call(AbortSignal, limit === 2000 ? 30000 : limit);
}
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
// 1, 2, 5, 10, … for real numbers, powers of two for whole ones, on every number of a list
function turn(box, up) {
  const real = box.closest(".lab-real");
  const next = text => {
    const value = Number(text);
    if (!text.trim() || !isFinite(value) || value < 0) return text;
    if (!real) return String(up ? Math.max(1, value * 2) : Math.max(value > 1 ? 1 : 0, Math.floor(value / 2)));
    if (!value) return text;
    const ten = 10 ** Math.floor(Math.log10(value) + 1e-9), digit = value / ten;
    const steps = up ? [2, 5, 10] : [5, 2, 1];
    const found = up ? steps.find(s => s > digit * 1.001) : steps.find(s => s < digit * 0.999) ?? 0.5;
    return String(Number((found * ten).toPrecision(3)));
  };
  box.value = box.value.split(",").map(next).map(part => part.trim()).join(", ");
  for (const kind of ["input", "change"]) box.dispatchEvent(new Event(kind, { bubbles: true }));
}
function find(lab, place) {
  const setup = [...lab.querySelectorAll(".lm-TabBar-tab")].find(tab => tab.textContent.trim().startsWith("Setup"));
  const at = setup?.getBoundingClientRect();
  const where = at && { bubbles: true, button: 0, clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 };
  for (const kind of ["pointerdown", "pointerup"]) setup?.dispatchEvent(new PointerEvent(kind, where));
  setTimeout(() => {
    const box = lab.querySelector(`.lab-at-${place} :is(input, textarea, select, button)`);
    box?.scrollIntoView({ block: "center" });
    box?.focus({ preventScroll: true });
  }, 60);
}
function render({ el }) {
  const undo = [];
  requestAnimationFrame(() => {  // by then el is in the page
    const lab = el.closest(".lab");
    if (!lab) return;
    const on = (kind, act) => {  // before the controls, some of which stop their events
      lab.addEventListener(kind, act, true);
      undo.push(() => lab.removeEventListener(kind, act, true));
    };
    // Keys are for the lab, not for the notebook around it.
    on("focusin", event => { event.target.dataset.lmSuppressShortcuts = "true"; });
    on("keydown", event => {
      const box = event.target;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !box.closest(".lab-playground, textarea")) {
        event.preventDefault();
        return lab.querySelector(".lab-bar .mod-primary:not(:disabled)")?.click();
      }
      if (event.key === "/" && !box.matches("input, textarea, select")) {
        event.preventDefault();
        return [...lab.querySelectorAll(":is(.lab-search, .lab-filter) input")].find(e => e.checkVisibility())?.focus();
      }
      if (!["ArrowUp", "ArrowDown"].includes(event.key) || !box.matches?.(":is(.lab-whole, .lab-real) input")) return;
      event.preventDefault();
      turn(box, event.key === "ArrowUp");
    });
    on("click", event => {
      const link = event.target.closest?.(".lab-goto");
      const place = link && [...link.classList].find(name => name.startsWith("lab-to-"));
      if (place) { event.preventDefault(); find(lab, place.slice(7)); }
    });
    const watch = new MutationObserver(() => names(lab));
    watch.observe(lab, { childList: true, subtree: true });
    undo.push(() => watch.disconnect());
    names(lab);
  });
  return () => undo.forEach(act => act());
}
export default { render };

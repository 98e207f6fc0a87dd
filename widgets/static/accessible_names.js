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
  requestAnimationFrame(() => {  // by then el is in the page
    const lab = el.closest(".lab");
    if (!lab) return;
    watch = new MutationObserver(() => names(lab));
    watch.observe(lab, { childList: true, subtree: true });
    names(lab);
  });
  return () => watch?.disconnect();
}
export default { render };

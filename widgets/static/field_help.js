function render({ model, el }) {
  const tip = document.createElement("div");
  tip.className = "lab-tip";
  tip.setAttribute("role", "note");
  let lab;
  const show = event => {
    const field = event.target.closest?.(".lab-field");
    const place = field && [...field.classList].find(name => name.startsWith("lab-at-"));
    const text = event.type !== "focusout" && place && model.get("texts")[place.slice(7)];
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    event.target.setAttribute("aria-description", text);
    const box = field.getBoundingClientRect(), whole = lab.getBoundingClientRect();
    const low = field.querySelector(".lab-error") ? box.top - whole.top - 30 : box.bottom - whole.top + 2;
    tip.style.cssText = `left: ${Math.max(0, Math.min(box.left - whole.left, whole.width - 330))}px; top: ${low}px`;
  };
  const kinds = ["focusin", "focusout"];
  requestAnimationFrame(() => {  // by then el is in the page
    lab = el.closest(".lab");
    lab?.append(tip);
    tip.hidden = true;
    for (const kind of kinds) lab?.addEventListener(kind, show);
  });
  return () => { for (const kind of kinds) lab?.removeEventListener(kind, show); tip.remove(); };
}
export default { render };

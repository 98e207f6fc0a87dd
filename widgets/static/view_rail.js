// Sketches in a box of 36 x 24: r = rectangle x y w h opacity, l = line through points, d = the same dashed, o = circle.
// A capital letter stands for the second colour.
const grid = (values, columns, w, h, gap = 1) =>
  values.map((v, i) => ["r", 3 + (i % columns) * (w + gap), 3 + Math.floor(i / columns) * (h + gap), w, h, v]);
const words = (rows) => rows.flatMap((row, i) => {
  let x = 3;
  return row.map(([w, v, kind = "r"]) => { const made = [kind, x, 3 + i * 6.4, w, 4.6, v]; x += w + 1.2; return made; });
});
const ICONS = {
  placement: grid([1, 0.2, 1, 0.2, 0.2, 0.2, 1, 0.2, 1, 0.2, 0.2, 0.2, 1, 0.2, 1, 0.2, 0.2, 0.2], 6, 4, 5),
  norms: grid([0.2, 0.9, 0.4, 0.35, 0.6, 0.25, 0.7, 0.5, 1], 3, 9.3, 5),
  relative: [["r", 3, 15, 5, 6, 0.4], ["r", 10, 9, 5, 12, 0.6], ["r", 17, 12, 5, 9, 0.5], ["r", 24, 4, 5, 17, 1], ["d", 2, 8, 34, 8]],
  spectrum: [["l", 3, 4, 8, 12, 14, 17, 22, 19.5, 33, 20.5], ["L", 3, 8, 9, 17, 16, 20, 33, 21]],
  heads: grid([0.2, 1, 0.3, 0.6, 0.5, 0.3, 0.9, 0.2, 0.8, 0.4, 0.2, 1], 4, 6.7, 5),
  training: [["l", 3, 21, 9, 10, 18, 6, 33, 4], ["l", 3, 21, 10, 15, 20, 12, 33, 11], ["L", 3, 21, 12, 19, 33, 16]],
  units: words([[[7, 1], [5, 0.6], [4, 0.3], [5, 0.5, "R"], [7, 1, "R"]], [[6, 0.9], [6, 0.4], [5, 0.3, "R"], [9, 0.9, "R"]], [[8, 0.8], [4, 0.5], [6, 0.5, "R"], [8, 0.8, "R"]]]),
  skills: grid([0.9, 0.2, 0.5, 0.2, 0.2, 0.8, 0.2, 0.4, 0.5, 0.2, 0.2, 1], 4, 6.7, 5),
  groups: [["o", 9, 8, 2.4], ["o", 13, 13, 2.4], ["O", 26, 9, 2.4], ["O", 29, 15, 2.4], ["o", 7, 17, 2.4], ["d", 18, 3, 18, 21]],
  similarity: [["l", 3, 4, 12, 6, 20, 9, 27, 15, 33, 19], ["d", 3, 4, 14, 5, 24, 8, 33, 12]],
  contribution: grid([0.2, 0.2, 0.3, 0.9, 0.2, 0.6, 0.2, 0.3, 0.5, 1, 0.3, 0.7, 0.3, 0.2, 0.4, 0.8, 0.5, 0.4], 6, 4, 5),
  dataset: [["l", 3, 21, 9, 20, 14, 10, 18, 4, 22, 10, 27, 20, 33, 21], ["D", 18, 3, 18, 21]],
  virtual: [["R", 3, 15, 4, 6, 0.9], ["R", 9, 15, 4, 6, 0.9], ["r", 17, 15, 4, 6, 0.4], ["r", 23, 15, 4, 6, 0.4], ["r", 29, 15, 4, 6, 0.4], ["l", 31, 13, 24, 4, 11, 4, 5, 13]],
  experts: [["r", 3, 11, 6, 10, 0.5], ["r", 11, 5, 6, 16, 1], ["r", 19, 14, 6, 7, 0.4], ["R", 27, 8, 6, 13, 0.9]],
  members: [["r", 3, 4, 22, 4, 0.9], ["r", 3, 10, 12, 4, 0.5], ["R", 3, 16, 30, 4, 0.9], ["d", 34, 3, 34, 21]],
  loss: words([[[8, 0.2], [5, 0.9, "R"], [9, 0.2], [5, 0.4]], [[4, 0.5, "R"], [10, 0.2], [7, 1], [6, 0.2]], [[9, 0.3], [6, 0.8, "R"], [12, 0.2]]]),
  lens: grid([0.15, 0.15, 0.2, 0.15, 0.15, 0.3, 0.5, 0.2, 0.3, 0.8, 1, 0.7], 4, 6.7, 5),
  ablation: [["r", 3, 4, 5, 9, 1], ["r", 10, 9, 5, 4, 0.6], ["r", 17, 7, 5, 6, 0.8], ["R", 24, 13, 5, 5, 0.9], ["d", 2, 13, 34, 13]],
  scaling: [["l", 3, 5, 9, 13, 15, 18, 21, 19, 27, 15, 33, 6], ["O", 20, 19, 2.2]],
};
const NS = "http://www.w3.org/2000/svg";
function sketch(name) {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 36 24");
  svg.setAttribute("aria-hidden", "true");
  for (const [letter, ...n] of ICONS[name] ?? []) {
    const kind = letter.toLowerCase(), tag = { r: "rect", o: "circle" }[kind] ?? "polyline";
    const made = document.createElementNS(NS, tag), set = (given) => Object.entries(given).forEach(([k, v]) => made.setAttribute(k, v));
    made.setAttribute("class", letter === kind ? "lab-first" : "lab-second");
    if (kind === "r") set({ x: n[0], y: n[1], width: n[2], height: n[3], rx: 0.8, "fill-opacity": n[4] });
    else if (kind === "o") set({ cx: n[0], cy: n[1], r: n[2] });
    else set({ points: n.join(" "), ...(kind === "d" ? { "stroke-dasharray": "3 2" } : {}) });
    svg.append(made);
  }
  return svg;
}
function render({ model, el }) {
  const rail = document.createElement("div");
  rail.className = "lab-rail";
  rail.dataset.lmSuppressShortcuts = "true";  // the notebook would take the arrow keys
  rail.setAttribute("role", "listbox");
  rail.setAttribute("aria-label", "views");
  el.append(rail);
  requestAnimationFrame(() => { if (!el.closest(".lab")) el.classList.add("lab"); });  // on its own, in the page by then
  let options = [];
  const choose = (option) => {
    if (option.getAttribute("aria-disabled") === "true") return;
    model.set("value", option.dataset.name);
    model.save_changes();
    mark();
  };
  const mark = () => {
    const value = model.get("value");
    for (const option of options) {
      const on = option.dataset.name === value;
      option.setAttribute("aria-selected", String(on));
      option.tabIndex = on ? 0 : -1;
    }
    if (options.length && !options.some((option) => option.tabIndex === 0)) options[0].tabIndex = 0;
  };
  const draw = () => {
    const had = rail.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    options = [];
    let group = null, box = null;
    rail.replaceChildren();
    for (const item of model.get("items")) {
      if (item.group !== group) {
        group = item.group;
        box = document.createElement("div");
        box.className = "lab-rail-group";
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", group);
        const head = document.createElement("div");
        head.className = "lab-card-title";
        head.setAttribute("aria-hidden", "true");
        head.textContent = group;
        box.append(head);
        rail.append(box);
      }
      const option = document.createElement("div"), name = document.createElement("span");
      option.className = "lab-rail-item";
      option.dataset.name = item.name;
      option.title = item.reason ? `Not here: ${item.reason}` : item.hint;
      option.setAttribute("role", "option");
      option.setAttribute("aria-disabled", String(Boolean(item.reason)));
      if (item.reason) option.setAttribute("aria-description", item.reason);
      name.textContent = item.label;
      option.append(sketch(item.icon), name);
      option.addEventListener("click", () => { option.focus(); choose(option); });
      box.append(option);
      options.push(option);
    }
    mark();
    if (had) options.find((option) => option.dataset.name === had)?.focus();
  };
  rail.addEventListener("keydown", (event) => {
    const at = options.indexOf(document.activeElement), last = options.length - 1;
    const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (at < 0) return;
    if (to !== undefined) {
      const next = options[Math.max(0, Math.min(last, to))];
      for (const option of options) option.tabIndex = option === next ? 0 : -1;
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") choose(options[at]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  model.on("change:items", draw);
  model.on("change:value", mark);
  draw();
  return () => { model.off("change:items", draw); model.off("change:value", mark); };
}
export default { render };

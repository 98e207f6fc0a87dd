const ACTIONS = {
  stop: ["M3 3h8v8H3z", "Stop after the current step"], kill: ["M3 3h8v8H3z", "Stop now"], resume: ["M4 2.5v9l7-4.5z", "Resume"],
  start: ["M4 2.5v9l7-4.5z", "Start now"], up: ["M7 11.5v-9M3.5 6L7 2.5 10.5 6", "Move up in the queue", true],
  remove: ["M3.5 3.5l7 7M10.5 3.5l-7 7", "Remove from the queue", true],
  clone: ["M5 5h6.5v6.5H5zM2.5 9V2.5H9", "Clone: a new draft from this run", true],
};
function icon(path, stroked) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), line = document.createElementNS(svg.namespaceURI, "path");
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  for (const [name, value] of Object.entries(stroked ? { fill: "none", stroke: "currentColor", "stroke-width": "1.4" } : { fill: "currentColor" })) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}
const make = (tag, css, text) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  return made;
};
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };

function line(model, focus) {
  const root = make("li", "lab-runrow");
  const check = make("input"), main = make("button", "lab-runmain"), sign = make("span", "lab-runsign");
  const name = make("span", "lab-runname"), text = make("span", "lab-runtext"), detail = make("span", "lab-rundetail");
  const track = make("span", "lab-runtrack"), fill = make("span", "lab-runfill"), tools = make("span", "lab-runtools");
  check.type = "checkbox";
  main.type = "button";
  for (const hidden of [sign, track]) hidden.setAttribute("aria-hidden", "true");
  track.append(fill);
  main.append(sign, name, text, track, detail);
  root.append(check, main, tools);
  let row = {};
  const toggle = () => {
    const ids = model.get("selected");
    select(model, ids.includes(row.id) ? ids.filter((id) => id !== row.id) : [...ids, row.id]);
  };
  check.addEventListener("change", toggle);
  main.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) toggle();
    else select(model, [row.id]);
  });
  const hover = (id) => window.dispatchEvent(new CustomEvent("lab-hover", { detail: id }));
  root.addEventListener("mouseenter", () => hover(row.id));
  root.addEventListener("mouseleave", () => hover(null));
  root.addEventListener("focusin", () => focus(row.id));
  return {
    root, main,
    reach(on) { for (const each of [check, main, ...tools.children]) each.tabIndex = on ? 0 : -1; },
    show(given, selected) {
      row = given;
      const on = selected.includes(row.id);
      root.classList.toggle("lab-on", on);
      root.dataset.state = row.state;
      check.checked = on;
      root.style.setProperty("--lab-own", row.color || "var(--lab-accent)");
      root.style.setProperty("--lab-tools", `${21 * row.actions.length + 6}px`);
      check.setAttribute("aria-label", `select ${row.name}`);
      main.setAttribute("aria-pressed", String(on));
      main.title = row.tip;
      main.setAttribute("aria-label", [row.name, row.state, row.text, row.detail].filter(Boolean).join(", "));
      put(sign, row.sign); put(name, row.name); put(text, row.text); put(detail, row.detail);
      track.hidden = row.done === null;
      fill.style.width = `${100 * (row.done ?? 0)}%`;
      if (root.dataset.actions !== row.actions.join()) {
        root.dataset.actions = row.actions.join();
        tools.replaceChildren(...row.actions.map((action) => {
          const button = make("button", "lab-runtool");
          button.append(icon(ACTIONS[action][0], ACTIONS[action][2]));
          button.type = "button";
          button.dataset.action = action;
          button.addEventListener("click", () => model.send({ action, run: row.id }));
          return button;
        }));
      }
      for (const button of tools.children) {
        button.title = ACTIONS[button.dataset.action][1];
        button.setAttribute("aria-label", `${ACTIONS[button.dataset.action][1]}: ${row.name}`);
      }
    },
  };
}
function select(model, ids) {
  model.set("selected", ids);
  model.save_changes();
}

function render({ model, el }) {
  const root = make("div", "lab-runlist");
  root.dataset.lmSuppressShortcuts = "true";
  el.append(root);
  requestAnimationFrame(() => { if (!el.closest(".lab")) el.classList.add("lab"); });  // on its own, in the page by then
  const lines = new Map(), parts = new Map();
  let order = [], at = "";
  const focus = (id) => {
    if (!lines.has(id)) id = order[0];
    if (lines.has(at)) lines.get(at).reach(false);
    at = id;
    if (lines.has(at)) lines.get(at).reach(true);
  };
  function place(parent, nodes) {
    nodes.forEach((node, i) => { if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null); });
    while (parent.children.length > nodes.length) parent.lastChild.remove();
  }
  function show() {
    const selected = model.get("selected"), seen = new Set();
    order = [];
    const shown = model.get("parts").map((part) => {
      if (!parts.has(part.title)) {
        const box = make("section"), head = make("div", "lab-runhead"), title = make("span"), note = make("span", "lab-muted"), act = make("button", "lab-runtool");
        const list = make("ul");
        act.type = "button";
        act.addEventListener("click", () => model.send({ action: act.dataset.action, run: "" }));
        head.append(title, note, act);
        box.append(head, list);
        parts.set(part.title, { box, title, note, act, list });
      }
      const { box, title, note, act, list } = parts.get(part.title);
      put(title, part.title); put(note, part.note);
      box.setAttribute("aria-label", part.title);
      act.hidden = !part.action;
      act.dataset.action = part.action;
      put(act, part.label);
      place(list, part.rows.map((row) => {
        if (!lines.has(row.id)) lines.set(row.id, line(model, focus));
        lines.get(row.id).show(row, selected);
        seen.add(row.id);
        order.push(row.id);
        return lines.get(row.id).root;
      }));
      return box;
    });
    place(root, shown);
    for (const id of [...lines.keys()]) if (!seen.has(id)) lines.delete(id);
    for (const each of lines.values()) each.reach(false);
    focus(at);
  }
  root.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !order.length) return;
    event.preventDefault();
    const next = order[Math.min(order.length - 1, Math.max(0, order.indexOf(at) + step))];
    focus(next);
    lines.get(next).main.focus();
    lines.get(next).root.scrollIntoView({ block: "nearest" });
  });
  model.on("change:parts", show);
  model.on("change:selected", show);
  show();
  return () => { model.off("change:parts", show); model.off("change:selected", show); };
}
export default { render };

const make = (tag, css, text) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  return made;
};
let ids = 0;

function render({ model, el }) {
  const id = `lab-pick-${ids++}`;
  const root = make("div", "lab-pick"), button = make("button", "lab-pick-button"), note = make("div", "lab-pick-note");
  const chosen = make("span", "lab-pick-chosen"), hint = make("span", "lab-pick-hint"), arrow = make("span", "lab-pick-arrow", "▾");
  const pop = make("div", "lab-pick-pop"), search = make("input"), list = make("div", "lab-pick-list"), about = make("div", "lab-pick-about");
  for (const part of [button, search]) part.dataset.lmSuppressShortcuts = "true";  // those of JupyterLab, such as d d
  button.type = "button";
  button.setAttribute("aria-haspopup", "listbox");
  button.setAttribute("aria-describedby", `${id}-note`);
  note.id = `${id}-note`;
  note.setAttribute("role", "status");
  arrow.setAttribute("aria-hidden", "true");
  button.append(chosen, hint, arrow);
  pop.popover = "manual";
  search.setAttribute("role", "combobox");
  search.setAttribute("aria-autocomplete", "list");
  search.setAttribute("aria-controls", `${id}-list`);
  search.autocomplete = "off";
  search.spellcheck = false;
  list.id = `${id}-list`;
  list.setAttribute("role", "listbox");
  pop.append(search, list, about);
  root.append(button, note, pop);
  el.append(root);

  let shown = [], active = -1, unfolded = new Set();
  const isOpen = () => pop.matches(":popover-open");

  function head() {
    const value = model.get("value"), option = model.get("options").find((each) => each.value === value);
    const name = model.get("name"), error = model.get("error");
    chosen.textContent = option?.label ?? value;
    hint.textContent = option?.hint ?? "";
    button.title = option?.hint ?? "";
    button.disabled = model.get("disabled");
    button.setAttribute("aria-label", `${name}: ${option?.label ?? value}`);
    search.placeholder = model.get("search");
    search.setAttribute("aria-label", `search ${name}`);
    list.setAttribute("aria-label", name);
    note.textContent = error || model.get("note");
    root.classList.toggle("lab-pick-wrong", Boolean(error));
    root.classList.toggle("lab-pick-pending", model.get("pending"));
  }

  function line(css, option, take) {
    const made = make("div", `lab-pick-option ${css}`);
    made.id = `${id}-${shown.length}`;
    made.setAttribute("role", "option");
    made.append(make("span", "lab-pick-label", option.label));
    if (option.hint !== undefined) made.append(make("span", "lab-pick-hint", option.hint));
    for (const chip of option.chips ?? []) made.append(make("span", "lab-pick-chip", chip));
    if (option.amount) made.append(make("span", "lab-pick-amount", option.amount));
    const index = shown.length;
    made.addEventListener("pointermove", () => activate(index, false));
    made.addEventListener("click", take);
    shown.push({ made, take, option });
    return made;
  }

  function fill(keep = false) {
    const text = search.value.trim(), words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const value = model.get("value"), options = model.get("options"), folded = model.get("folded"), before = active;
    const fits = ({ value: own, label, hint: more, chips, group }) => {
      const all = [own, label, more, group, ...chips].join(" ").toLowerCase();
      return words.every((word) => all.includes(word));
    };
    const found = options.filter(fits);
    const longest = Math.max(0, ...options.map((each) => each.label.length));
    list.style.setProperty("--lab-pick-label", `${Math.min(26, longest)}ch`);
    shown = [];
    list.replaceChildren();
    const free = model.get("free");
    if (free && text && !options.some((each) => each.value === text)) {
      list.append(line("lab-pick-free", { label: free.replace("{}", text) }, () => choose(text)));
    }
    for (const group of new Set(found.map((each) => each.group))) {
      const own = found.filter((each) => each.group === group), box = make("div");
      box.setAttribute("role", "group");
      if (group) {
        box.setAttribute("aria-label", group);
        box.append(make("div", "lab-pick-group", group));
      }
      const hidden = folded.includes(group) && !words.length && !unfolded.has(group) && !own.some((each) => each.value === value);
      if (hidden) box.append(line("lab-pick-fold", { label: `${own.length} more …` }, () => { unfolded.add(group); fill(true); }));
      else for (const option of own) {
        const made = line("", option, () => choose(option.value));
        made.setAttribute("aria-selected", String(option.value === value));
        box.append(made);
      }
      list.append(box);
    }
    if (!shown.length) list.append(make("div", "lab-pick-none", `Nothing matches “${text}”.`));
    // What is typed comes first in the list, but an option that matches is more likely to be meant.
    const start = shown.findIndex(({ option }) => option.value !== undefined && (words.length || option.value === value));
    activate(keep ? Math.min(before, shown.length - 1) : Math.max(0, start), true);
  }

  function activate(index, scroll) {
    shown[active]?.made.classList.remove("lab-pick-active");
    active = index;
    const one = shown[index];
    one?.made.classList.add("lab-pick-active");
    if (one && scroll) one.made.scrollIntoView({ block: "nearest" });
    if (one) search.setAttribute("aria-activedescendant", one.made.id);
    else search.removeAttribute("aria-activedescendant");
    about.textContent = one?.option.hint ?? "";
  }

  function choose(value) {
    close();
    if (value === model.get("value")) return;
    model.set("value", value);
    model.save_changes();
    head();
  }

  function place() {
    const box = button.getBoundingClientRect(), room = { width: innerWidth, height: innerHeight };
    const width = Math.min(Math.max(box.width, 560), room.width - 16), below = room.height - box.bottom - 12, above = box.top - 12;
    const up = below < 260 && above > below;
    pop.style.width = `${width}px`;
    pop.style.maxHeight = `${Math.min(430, up ? above : below)}px`;
    pop.style.left = `${Math.max(8, Math.min(box.left, room.width - width - 8))}px`;
    pop.style.top = up ? "auto" : `${box.bottom + 3}px`;
    pop.style.bottom = up ? `${room.height - box.top + 3}px` : "auto";
    if (box.bottom < 0 || box.top > room.height) close();
  }
  const tellOpen = (open) => { model.set("opened", open); model.save_changes(); };
  const outside = (event) => { if (!root.contains(event.target)) close(); };
  const moved = (event) => { if (!pop.contains(event.target)) place(); };
  function openList(text = "") {
    if (isOpen() || button.disabled) return;
    search.value = text;
    unfolded = new Set();
    pop.showPopover();
    place();
    fill();
    button.setAttribute("aria-expanded", "true");
    tellOpen(true);
    search.focus();
    document.addEventListener("pointerdown", outside, true);
    document.addEventListener("scroll", moved, true);
    addEventListener("resize", place);
  }
  function close() {
    if (!isOpen()) return;
    const inside = pop.contains(document.activeElement);
    pop.hidePopover();
    tellOpen(false);
    button.setAttribute("aria-expanded", "false");
    if (inside) button.focus();
    document.removeEventListener("pointerdown", outside, true);
    document.removeEventListener("scroll", moved, true);
    removeEventListener("resize", place);
  }

  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => (isOpen() ? close() : openList()));
  button.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") openList();
    else if (event.key.length === 1 && /\S/.test(event.key) && !event.ctrlKey && !event.metaKey && !event.altKey) openList(event.key);
    else return;
    event.preventDefault();
  });
  search.addEventListener("input", () => fill());
  search.addEventListener("keydown", (event) => {
    const last = shown.length - 1;
    if (event.key === "ArrowDown") activate(Math.min(last, active + 1), true);
    else if (event.key === "ArrowUp") activate(Math.max(0, active - 1), true);
    else if (event.key === "PageDown") activate(Math.min(last, active + 8), true);
    else if (event.key === "PageUp") activate(Math.max(0, active - 8), true);
    else if (event.key === "Enter") shown[active]?.take();
    else if (event.key === "Escape") close();
    else if (event.key === "Tab") return close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  list.addEventListener("pointerdown", (event) => event.preventDefault());  // the search box keeps the focus

  const changed = () => { head(); if (isOpen()) fill(true); };
  const names = ["value", "options", "folded", "name", "note", "error", "pending", "disabled", "search", "free"];
  for (const each of names) model.on(`change:${each}`, changed);
  head();
  return () => { close(); for (const each of names) model.off(`change:${each}`, changed); };
}
export default { render };

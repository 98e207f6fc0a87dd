async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // only https and localhost have the clipboard API
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
function render({ model, el }) {
  const menu = document.createElement("select");
  menu.className = "lab-copy";
  menu.setAttribute("aria-label", model.get("label"));
  const fill = () => {
    const names = Object.keys(model.get("texts"));
    menu.replaceChildren(...[model.get("label"), ...names].map((name, i) => new Option(name, i ? name : "")));
    menu.disabled = !names.length;
  };
  menu.addEventListener("change", async () => {
    const name = menu.value;
    await copy(model.get("texts")[name]);
    menu.options[0].text = `✓ ${name} copied`;
    menu.value = "";
    setTimeout(() => { menu.options[0].text = model.get("label"); }, 1800);
  });
  model.on("change:texts", fill);
  fill();
  el.append(menu);
  return () => model.off("change:texts", fill);
}
export default { render };

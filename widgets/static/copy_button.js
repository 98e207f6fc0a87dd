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

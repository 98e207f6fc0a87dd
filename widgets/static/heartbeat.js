function render({ model, el }) {
  let last = Date.now();
  const beat = () => {
    last = Date.now();
    show();
    model.set("seen", model.get("beat"));
    model.save_changes();
  };
  const show = () => {
    const silent = Math.round((Date.now() - last) / 1000);
    el.textContent = silent < model.get("patience") ? "" : `no answer for ${silent} s`;
    el.title = "The kernel is busy with a cell, or was restarted: then run the cell again. Runs continue in any case.";
  };
  el.className = "lab-silent";
  el.setAttribute("role", "status");
  model.on("change:beat", beat);
  const timer = setInterval(show, 2000);
  return () => { clearInterval(timer); model.off("change:beat", beat); };
}
export default { render };

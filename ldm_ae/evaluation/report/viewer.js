"use strict";
// Enlarges the images of a page: `.views` is a group, each `.view` in it one image, the first the original.
(() => {
  const dialog = document.getElementById("viewer");
  const part = (name) => dialog.querySelector(`[data-part="${name}"]`);
  const [stage, slider, blink, choices] = ["stage", "slider", "blink", "choices"].map(part);
  const groups = [...document.querySelectorAll(".views")];
  const views = (group) => [...group.querySelectorAll(".view:not(.copy)")];
  const name = (view) => view.dataset.label;
  let group = null;

  const cut = (value) => {
    slider.value = value;
    stage.style.setProperty("--cut", `${value}%`);
  };

  const setBlinking = (on) => {
    stage.classList.toggle("blinking", on);
    blink.setAttribute("aria-pressed", on);
  };

  const layer = (view, css) => {
    const image = new Image();
    const source = view.querySelector("img");
    image.src = source.src;
    image.alt = source.alt;
    image.className = css;
    // An image that is enlarged twice or more keeps its pixels.
    image.classList.toggle("pixels", source.naturalWidth * 2 <= stage.clientWidth);
    return image;
  };

  const choose = (number) => {
    const all = views(group);
    const alone = all.length === 1;
    stage.querySelectorAll("img").forEach((image) => image.remove());
    const shown = alone ? [layer(all[0], "before")] : [layer(all[0], "before"), layer(all[number], "after")];
    stage.prepend(...shown);
    part("left").textContent = name(all[0]);
    part("right").textContent = alone ? "" : name(all[number]);
    slider.setAttribute("aria-label", `Width of the ${name(all[0])}`);
    [...choices.children].forEach((button, i) => button.setAttribute("aria-pressed", i + 1 === number));
  };

  const show = (next, number) => {
    group = next;
    const all = views(group);
    const first = all[0].querySelector("img");
    part("title").textContent = group.dataset.title;
    dialog.classList.toggle("alone", all.length === 1);
    dialog.classList.toggle("lone-group", groups.length === 1);
    stage.style.setProperty("--ratio", first.naturalWidth / Math.max(first.naturalHeight, 1));
    choices.replaceChildren(
      ...all.slice(1).map((view, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = name(view);
        button.addEventListener("click", () => choose(i + 1));
        return button;
      }),
    );
    if (!dialog.open) {
      setBlinking(false);
      cut(50);
      dialog.showModal();
      (all.length === 1 ? part("close") : slider).focus();
    }
    choose(Math.min(Math.max(number, 1), all.length - 1));
  };

  const move = (by) => {
    const chosen = [...choices.children].findIndex((button) => button.getAttribute("aria-pressed") === "true");
    show(groups[(groups.indexOf(group) + by + groups.length) % groups.length], chosen + 1);
  };

  document.addEventListener("click", (event) => {
    const view = event.target.closest(".view");
    if (!view || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const own = view.closest(".views");
    show(own, views(own).indexOf(view));
  });
  slider.addEventListener("input", () => {
    setBlinking(false);
    cut(slider.value);
  });
  blink.addEventListener("click", () => setBlinking(!stage.classList.contains("blinking")));
  part("previous").addEventListener("click", () => move(-1));
  part("next").addEventListener("click", () => move(1));
  part("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "b" && !dialog.classList.contains("alone")) blink.click();
    else if (key === "n") move(1);
    else if (key === "p") move(-1);
    else if (choices.children[key - 1]) choose(Number(key));
  });
  document.documentElement.classList.add("zooms");
})();

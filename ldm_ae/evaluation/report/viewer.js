"use strict";
// Enlarges the images of a page: `.views` is a group, each `.view` in it one image, the first the original.
(() => {
  const dialog = document.getElementById("viewer");
  const part = (name) => dialog.querySelector(`[data-part="${name}"]`);
  const [stage, slider, choices, against] = ["stage", "slider", "choices", "against"].map(part);
  const modes = { blinking: part("blink"), differing: part("difference") };
  const groups = [...document.querySelectorAll(".views")];
  const views = (group) => [...group.querySelectorAll(".view:not(.copy)")];
  const name = (view) => view.dataset.label;
  const LARGEST = 32; // factor of the zoom
  let group = null;
  let before = 0; // numbers of the compared images, in the group
  let after = 0;
  let zoom = { factor: 1, x: 0, y: 0 }; // x and y: place of the images' corner, in pixels of the stage

  const cut = (percent) => {
    slider.value = percent;
    stage.style.setProperty("--cut", `${slider.value}%`);
  };

  const setMode = (mode) => {
    for (const [css, button] of Object.entries(modes)) {
      stage.classList.toggle(css, css === mode);
      button.setAttribute("aria-pressed", css === mode);
    }
  };
  const toggle = (mode) => setMode(stage.classList.contains(mode) ? null : mode);

  const setZoom = (factor, x, y) => {
    const { clientWidth: width, clientHeight: height } = stage;
    factor = Math.min(Math.max(factor, 1), LARGEST);
    // The images cover the stage.
    zoom = {
      factor,
      x: Math.min(Math.max(x, width * (1 - factor)), 0),
      y: Math.min(Math.max(y, height * (1 - factor)), 0),
    };
    stage.style.setProperty("--zoom", `translate(${zoom.x}px, ${zoom.y}px) scale(${factor})`);
    stage.classList.toggle("zoomed", factor > 1);
    part("factor").textContent = `${Number(factor.toPrecision(2))}×`;
    for (const image of stage.querySelectorAll("img")) {
      // An image whose pixels are twice as large as those of the screen or larger keeps them as squares.
      image.classList.toggle("pixels", image.naturalWidth * 2 <= width * factor);
    }
  };
  const zoomAt = (factor, x, y) => {
    factor = Math.min(Math.max(factor, 1), LARGEST);
    const change = factor / zoom.factor;
    setZoom(factor, x - (x - zoom.x) * change, y - (y - zoom.y) * change);
  };
  const zoomBy = (change) => zoomAt(zoom.factor * change, stage.clientWidth / 2, stage.clientHeight / 2);

  const layer = (view, css) => {
    const box = document.createElement("div");
    const image = new Image();
    const source = view.querySelector("img");
    image.src = source.src;
    image.alt = source.alt;
    box.className = `layer ${css}`;
    box.append(image);
    return box;
  };

  const choose = (left, right) => {
    const all = views(group);
    const alone = all.length === 1;
    [before, after] = alone ? [0, 0] : [left, right];
    part("layers").replaceChildren(layer(all[before], "before"), ...(alone ? [] : [layer(all[after], "after")]));
    part("left").textContent = name(all[before]);
    part("right").textContent = alone ? "" : name(all[after]);
    slider.setAttribute("aria-label", `Width of the ${name(all[before])}`);
    against.value = String(before);
    [...choices.children].forEach((button, i) => button.setAttribute("aria-pressed", i + 1 === after));
    setZoom(zoom.factor, zoom.x, zoom.y);
  };

  const show = (next, left, right) => {
    group = next;
    const all = views(group);
    const first = all[0].querySelector("img");
    part("title").textContent = group.dataset.title;
    dialog.classList.toggle("alone", all.length === 1);
    dialog.classList.toggle("pair", all.length === 2);
    dialog.classList.toggle("lone-group", groups.length === 1);
    stage.style.setProperty("--ratio", first.naturalWidth / Math.max(first.naturalHeight, 1));
    against.replaceChildren(...all.map((view, i) => new Option(name(view), i)));
    choices.replaceChildren(
      ...all.slice(1).map((view, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = name(view);
        button.addEventListener("click", () => choose(before, i + 1));
        return button;
      }),
    );
    if (!dialog.open) {
      setMode(null);
      cut(50);
      dialog.showModal();
      setZoom(1, 0, 0);
      (all.length === 1 ? part("close") : slider).focus();
    }
    const last = all.length - 1;
    choose(Math.min(left, last), Math.min(Math.max(right, 1), last));
  };

  const move = (by) => show(groups[(groups.indexOf(group) + by + groups.length) % groups.length], before, after);

  document.addEventListener("click", (event) => {
    const view = event.target.closest(".view");
    if (!view || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const own = view.closest(".views");
    show(own, 0, views(own).indexOf(view));
  });
  slider.addEventListener("input", () => {
    setMode(null);
    cut(slider.value);
  });
  against.addEventListener("change", () => choose(Number(against.value), after));
  for (const [mode, button] of Object.entries(modes)) button.addEventListener("click", () => toggle(mode));
  part("larger").addEventListener("click", () => zoomBy(2));
  part("smaller").addEventListener("click", () => zoomBy(0.5));
  part("previous").addEventListener("click", () => move(-1));
  part("next").addEventListener("click", () => move(1));
  part("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  // One finger or the mouse moves the line, or the enlarged images unless it began at the line; two fingers zoom.
  const pointers = new Map();
  let dragged = null;
  const place = (event) => {
    const box = stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  const moveLine = (x) => {
    setMode(null);
    cut((100 * x) / stage.clientWidth);
  };
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, size: Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1) };
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    if (!dialog.classList.contains("alone")) slider.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    const at = place(event);
    pointers.set(event.pointerId, at);
    const near = Math.abs(at.x - (slider.value / 100) * stage.clientWidth) < 24;
    dragged = zoom.factor === 1 || near ? "line" : "images";
    if (dragged === "line" && pointers.size === 1 && !dialog.classList.contains("alone")) moveLine(at.x);
  });
  stage.addEventListener("pointermove", (event) => {
    const old = pointers.get(event.pointerId);
    if (!old) return;
    const at = place(event);
    if (pointers.size === 2) {
      const was = spread();
      pointers.set(event.pointerId, at);
      const is = spread();
      zoomAt((zoom.factor * is.size) / was.size, was.x, was.y);
      setZoom(zoom.factor, zoom.x + is.x - was.x, zoom.y + is.y - was.y);
      dragged = "images";
      return;
    }
    pointers.set(event.pointerId, at);
    if (dragged === "images") setZoom(zoom.factor, zoom.x + at.x - old.x, zoom.y + at.y - old.y);
    else if (!dialog.classList.contains("alone")) moveLine(at.x);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    stage.addEventListener(kind, (event) => pointers.delete(event.pointerId));
  }
  stage.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const { x, y } = place(event);
      zoomAt(zoom.factor * 2 ** (-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) / 200), x, y);
    },
    { passive: false },
  );
  stage.addEventListener("dblclick", (event) => {
    const { x, y } = place(event);
    zoomAt(zoom.factor > 1 ? 1 : 4, x, y);
  });
  window.addEventListener("resize", () => dialog.open && setZoom(zoom.factor, zoom.x, zoom.y));

  dialog.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === against) return;
    const compares = !dialog.classList.contains("alone");
    if (key === "b" && compares) toggle("blinking");
    else if (key === "d" && compares) toggle("differing");
    else if (key === "n") move(1);
    else if (key === "p") move(-1);
    else if (key === "+" || key === "=") zoomBy(2);
    else if (key === "-") zoomBy(0.5);
    else if (key === "0") setZoom(1, 0, 0);
    else if (choices.children[key - 1]) choose(before, Number(key));
  });
  document.documentElement.classList.add("zooms");
})();

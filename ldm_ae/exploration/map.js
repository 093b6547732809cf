"use strict";
// The map of images: points or thumbnails on a canvas, with pan, zoom, a card for the image under the pointer, and
// classes that can be switched off. `data` is the JSON in the figure; points are in [-1, 1].
(() => {
  const COLOURS = [
    "#3b7dd8", "#e4572e", "#2e9e5b", "#9457c9", "#c99700", "#12a5a5", "#d63f87", "#8a6d4b", "#6f7fbf", "#7fa62c",
  ];
  const NEAR = 14; // pixels from a point at which it is found
  const CARD = 8; // pixels between a point and its card
  const LARGEST = 200;

  const mark = (context, kind, x, y, size) => {
    context.beginPath();
    if (kind === 0) context.arc(x, y, size, 0, 2 * Math.PI);
    else context.rect(x - 0.9 * size, y - 0.9 * size, 1.8 * size, 1.8 * size);
  };
  const shape = (kind, colour) =>
    kind === 0
      ? `<circle cx="8" cy="8" r="7" fill="${colour}"/>`
      : `<rect x="1.5" y="1.5" width="13" height="13" fill="${colour}"/>`;

  const start = (figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const part = (name) => figure.querySelector(`[data-part="${name}"]`);
    const canvas = figure.querySelector("canvas");
    const context = canvas.getContext("2d");
    const sprite = figure.querySelector(".sprite");
    const tip = part("tip");
    const labelled = data.classes.length > 0;
    const off = new Set(); // classes that are switched off
    let projection = 0;
    let thumbnails = !labelled;
    let view = { x: 0, y: 0, factor: 1 }; // the point in the middle, and the zoom
    let chosen = -1;
    let size = { width: 1, height: 1 };

    const colour = (i) => {
      if (!labelled) return `#${data.colours[i]}`;
      return data.labels[i] < 0 ? "#8a8a8a" : COLOURS[data.labels[i] % COLOURS.length];
    };
    const kind = (i) => (labelled && data.labels[i] >= 0 ? Math.floor(data.labels[i] / COLOURS.length) % 2 : 0);
    const visible = (i) => !off.has(data.labels[i]);
    const unit = () => (Math.min(size.width, size.height) / 2) * 0.85 * view.factor;
    const place = (i) => {
      const [x, y] = data.projections[projection].points[i];
      return [size.width / 2 + (x - view.x) * unit(), size.height / 2 - (y - view.y) * unit()];
    };
    const thumbnailSize = () => {
      // About as large as the points are apart, so that most can be seen.
      const apart = (Math.min(size.width, size.height) * view.factor) / Math.sqrt(data.names.length) / 1.3;
      return Math.min(Math.max(apart, 12), 96);
    };
    const cell = (i) => [(i % data.columns) * data.side, Math.floor(i / data.columns) * data.side];

    const draw = () => {
      const ratio = window.devicePixelRatio || 1;
      const [width, height] = [canvas.clientWidth, canvas.clientHeight];
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      size = { width, height };
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      const edge = getComputedStyle(figure).getPropertyValue("--paper");
      const ink = getComputedStyle(figure).getPropertyValue("--ink");
      const side = thumbnailSize();
      const dot = Math.min(Math.max(2.2 + 60 / data.names.length, 3.2) * Math.sqrt(Math.min(view.factor, 4)), 9);
      for (let i = 0; i < data.names.length; i++) {
        if (!visible(i) || i === chosen) continue;
        one(i, side, dot, edge);
      }
      if (chosen >= 0) one(chosen, side * 1.3, dot * 1.7, ink);
    };
    const one = (i, side, dot, edge) => {
      const [x, y] = place(i);
      if (x < -side || y < -side || x > size.width + side || y > size.height + side) return;
      if (thumbnails) {
        context.drawImage(sprite, ...cell(i), data.side, data.side, x - side / 2, y - side / 2, side, side);
        context.lineWidth = labelled ? 2 : 1;
        context.strokeStyle = labelled ? colour(i) : edge;
        context.strokeRect(x - side / 2, y - side / 2, side, side);
        return;
      }
      mark(context, kind(i), x, y, dot);
      context.fillStyle = colour(i);
      context.fill();
      context.lineWidth = 1;
      context.strokeStyle = edge;
      context.stroke();
    };
    let waiting = false;
    const redraw = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        draw();
        card();
      });
    };

    const card = () => {
      tip.hidden = chosen < 0;
      if (chosen < 0) return;
      const [x, y] = place(chosen);
      const picture = tip.querySelector("i");
      const side = picture.clientWidth;
      const factor = side / data.side;
      const [left, top] = cell(chosen);
      picture.style.backgroundImage = `url(${sprite.src})`;
      picture.style.backgroundSize = `${sprite.naturalWidth * factor}px ${sprite.naturalHeight * factor}px`;
      picture.style.backgroundPosition = `${-left * factor}px ${-top * factor}px`;
      tip.querySelector("b").textContent = data.classes[data.labels[chosen]] ?? "";
      tip.querySelector("span").textContent = data.names[chosen];
      const apart = CARD + (thumbnails ? thumbnailSize() * 0.65 : 0);
      const right = x + apart + tip.offsetWidth < size.width ? x + apart : x - apart - tip.offsetWidth;
      const below = Math.min(Math.max(y - tip.offsetHeight / 2, 4), size.height - tip.offsetHeight - 4);
      tip.style.transform = `translate(${Math.max(right, 4)}px, ${below}px)`;
    };
    const choose = (i) => {
      if (i === chosen) return;
      chosen = i;
      redraw();
    };
    const nearest = (x, y) => {
      const reach = thumbnails ? Math.max(NEAR, thumbnailSize() * 0.7) : NEAR;
      let [best, found] = [reach * reach, -1];
      for (let i = 0; i < data.names.length; i++) {
        if (!visible(i)) continue;
        const [px, py] = place(i);
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance <= best) [best, found] = [distance, i];
      }
      return found;
    };

    const zoomAt = (change, x, y) => {
      const factor = Math.min(Math.max(view.factor * change, 0.5), LARGEST);
      const before = unit();
      const [px, py] = [view.x + (x - size.width / 2) / before, view.y - (y - size.height / 2) / before];
      view.factor = factor;
      const after = unit();
      view.x = px - (x - size.width / 2) / after;
      view.y = py + (y - size.height / 2) / after;
      redraw();
    };
    const pan = (x, y) => {
      view.x -= x / unit();
      view.y += y / unit();
      redraw();
    };

    const pointers = new Map();
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let moved = false;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      moved = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = at(event);
      const before = pointers.get(event.pointerId);
      if (!before) {
        choose(nearest(...now));
        return;
      }
      if (pointers.size === 1) {
        if (Math.hypot(now[0] - before[0], now[1] - before[1]) < 3 && !moved) return;
        moved = true;
        pan(now[0] - before[0], now[1] - before[1]);
      } else if (pointers.size === 2) {
        moved = true;
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const [old, fresh] = [before, now].map((p) => Math.max(Math.hypot(p[0] - other[0], p[1] - other[1]), 1));
        zoomAt(fresh / old, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
        pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      }
      pointers.set(event.pointerId, now);
    });
    const lift = (event) => {
      if (event.type === "pointerup" && !moved && pointers.size === 1) choose(nearest(...at(event)));
      pointers.delete(event.pointerId);
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && choose(-1));
    canvas.addEventListener("dblclick", (event) => zoomAt(2, ...at(event)));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        zoomAt(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...at(event));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      if (step) pan(...step);
      else if (event.key === "+" || event.key === "=") zoomAt(1.4, size.width / 2, size.height / 2);
      else if (event.key === "-") zoomAt(1 / 1.4, size.width / 2, size.height / 2);
      else if (event.key === "0") reset();
      else if (event.key === "Escape") choose(-1);
      else if (event.key === "n" || event.key === "p") {
        const shown = data.names.map((_, i) => i).filter(visible);
        const next = shown.indexOf(chosen) + (event.key === "n" ? 1 : -1);
        if (shown.length) choose(shown[(next + shown.length) % shown.length]);
      } else return;
      event.preventDefault();
    });

    const reset = () => {
      view = { x: 0, y: 0, factor: 1 };
      redraw();
    };
    part("reset").addEventListener("click", reset);
    part("larger").addEventListener("click", () => zoomAt(1.6, size.width / 2, size.height / 2));
    part("smaller").addEventListener("click", () => zoomAt(1 / 1.6, size.width / 2, size.height / 2));
    const setThumbnails = (value) => {
      thumbnails = value;
      part("thumbnails").setAttribute("aria-pressed", value);
      redraw();
    };
    part("thumbnails").addEventListener("click", () => setThumbnails(!thumbnails));
    const setProjection = (value) => {
      projection = value;
      [...part("projections").children].forEach((button, i) => button.setAttribute("aria-pressed", i === value));
      part("note").textContent = data.projections[value].note;
      chosen = -1;
      reset();
    };
    data.projections.forEach(({ name }, i) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
      button.addEventListener("click", () => setProjection(i));
      part("projections").append(button);
    });

    const legend = [...data.classes.map((name, i) => [name, i]), ...(data.others ? [["others", -1]] : [])];
    const buttons = legend.map(([name, label]) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const drawn = label < 0 ? "#8a8a8a" : COLOURS[label % COLOURS.length];
      button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true">${shape(
        label < 0 ? 0 : Math.floor(label / COLOURS.length) % 2, drawn)}</svg>`;
      button.append(name);
      button.addEventListener("click", () => {
        if (!off.delete(label)) off.add(label);
        update();
      });
      return button;
    });
    const update = () => {
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", !off.has(legend[i][1])));
      if (chosen >= 0 && !visible(chosen)) chosen = -1;
      redraw();
    };
    if (buttons.length > 1) {
      const every = Object.assign(document.createElement("button"), { type: "button", textContent: "All / none" });
      every.addEventListener("click", () => {
        const all = off.size === 0;
        off.clear();
        if (all) legend.forEach(([, label]) => off.add(label));
        update();
      });
      part("classes").append(...buttons, every);
    }

    // For tests and the console: where an image is, in pixels of the canvas, and what is shown.
    figure.map = {
      place,
      get state() {
        return { chosen, thumbnails, factor: view.factor, projection, shown: data.names.filter((_, i) => visible(i)).length };
      },
    };
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    update();
    setThumbnails(thumbnails);
    // t-SNE shows classes at first sight; PCA is first where there is no t-SNE.
    setProjection(Math.max(data.projections.findIndex(({ name }) => name === "t-SNE"), 0));
    sprite.decode().then(redraw);
  };

  for (const figure of document.querySelectorAll(".map")) start(figure);
})();

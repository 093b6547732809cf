"use strict";
// Rows of images over one variable: a slider moves through all rows at once. A pad: pointing at an image enlarges it.
(() => {
  const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);

  for (const figure of document.querySelectorAll(".frames")) {
    const positions = JSON.parse(figure.dataset.positions);
    const rows = [...figure.querySelectorAll(".run")].map((run) => {
      const images = [...run.querySelectorAll(".steps img")];
      const large = element("div", { className: "large" });
      const shown = new Image();
      large.append(shown);
      run.querySelector(".steps").before(large);
      run.classList.add("big");
      return { images, shown };
    });
    const slider = element("input", { type: "range", min: 0, max: positions.length - 1, step: 1 });
    slider.setAttribute("aria-label", figure.dataset.label);
    const play = element("button", { type: "button", textContent: "▶ Play" });
    play.setAttribute("aria-pressed", "false");
    const output = element("output");
    const bar = element("div", { className: "scrub" });
    bar.append(play, slider, output);
    figure.prepend(bar);

    const move = (place) => {
      slider.value = place;
      output.textContent = positions[place];
      for (const { images, shown } of rows) {
        images.forEach((image, i) => image.classList.toggle("at", i === place));
        const { src, alt, width, height } = images[place];
        Object.assign(shown, { src, alt, width, height });
      }
    };
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.setAttribute("aria-pressed", "false");
      play.textContent = "▶ Play";
    };
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      let step = 1;
      play.setAttribute("aria-pressed", "true");
      play.textContent = "❚❚ Stop";
      timer = setInterval(() => {
        const place = Number(slider.value);
        if (place + step < 0 || place + step >= positions.length) step = -step;
        move(place + step);
      }, 180);
    });
    slider.addEventListener("input", () => {
      stop();
      move(Number(slider.value));
    });
    figure.addEventListener("click", (event) => {
      const place = rows.map(({ images }) => images.indexOf(event.target)).find((found) => found >= 0);
      if (place === undefined) return;
      stop();
      move(place);
    });
    move(Number(figure.dataset.start));
  }

  for (const figure of document.querySelectorAll(".pad")) {
    const side = Number(figure.dataset.side);
    const { across, up } = figure.dataset;
    const sheet = figure.querySelector(".sheet");
    const image = sheet.querySelector("img");
    const canvas = element("canvas");
    const words = element("p");
    const mark = element("i");
    const right = element("div");
    const both = element("div", { className: "both" });
    right.append(canvas, words);
    sheet.before(both);
    sheet.append(mark);
    both.append(sheet, right);
    sheet.tabIndex = 0;
    sheet.setAttribute("role", "application");
    sheet.setAttribute("aria-label", `${across} and ${up}: arrow keys move`);
    let place = [(side - 1) / 2, (side - 1) / 2].map(Math.floor); // column and row
    const reach = Number(figure.dataset.reach);
    const name = (step) => `${(((2 * step) / (side - 1) - 1) * reach).toFixed(1).replace("-", "−")} σ`;
    const show = (column, row) => {
      const cell = image.naturalWidth / side;
      place = [column, row].map((value) => Math.min(Math.max(value, 0), side - 1));
      const percent = 100 / side;
      mark.style.cssText = `left:${place[0] * percent}%;top:${place[1] * percent}%;width:${percent}%;height:${percent}%`;
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(image, place[0] * cell, place[1] * cell, cell, cell, 0, 0, canvas.width, canvas.height);
      words.textContent = `${across} ${name(place[0])}, ${up} ${name(side - 1 - place[1])}`;
    };
    const point = (event) => {
      const box = sheet.getBoundingClientRect();
      const at = (value, size) => Math.floor((value / size) * side);
      show(at(event.clientX - box.left, box.width), at(event.clientY - box.top, box.height));
    };
    sheet.addEventListener("pointermove", point);
    sheet.addEventListener("pointerdown", point);
    sheet.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      show(place[0] + step[0], place[1] + step[1]);
    });
    canvas.width = canvas.height = 384;
    image.decode().then(() => show(...place));
  }
})();

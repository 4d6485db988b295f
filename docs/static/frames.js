// Frames behind a widget: every control is an index, and the frame's name is their indices.
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll("figure.frames")) {
    const image = figure.querySelector("img");
    const texts = JSON.parse(image.dataset.texts);
    const labels = [...figure.querySelectorAll("label")];
    const index = (label) => {
      const slider = label.querySelector("input");
      return Number(slider ? slider.value : label.querySelector("select").selectedIndex);
    };
    const show = () => {
      const name = labels.map(index).join("-");
      for (const label of labels) {
        const output = label.querySelector("output");
        if (output) output.textContent = label.querySelector("select").options[index(label)].text;
      }
      image.src = `${figure.dataset.frames}${name}.webp`;
      image.alt = `${image.dataset.alt}: ${texts[name]}`;
      figure.querySelector("figcaption output").textContent = `${texts[name]}.`;
    };
    for (const label of labels) {
      const menu = label.querySelector("select[data-at]");
      if (menu) menu.selectedIndex = Number(menu.dataset.at);
      label.addEventListener("input", show);
    }
    show();
  }
});

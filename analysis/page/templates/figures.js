// Figures: the horizontal axis is chosen, and a point that is pointed at, touched or reached by arrow keys is told.
for (const input of document.querySelectorAll(".switch input")) {
  input.onchange = () => document.querySelectorAll(".choice").forEach(
    choice => choice.hidden = choice.id !== "choice-" + input.value);
}

const REACH = 28;  // pixels within which a point is pointed at
const SAME = 2.5;  // units of a figure within which points are told together
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);

for (const drawn of document.querySelectorAll("[data-points]")) {
  const svg = drawn.querySelector("svg");
  const words = JSON.parse(drawn.closest(".figure").querySelector(".words").textContent);
  const numbers = drawn.dataset.points.split(" ").map(Number);
  const points = [];
  for (let i = 0; i < numbers.length; i += 3)
    points.push({ x: numbers[i], y: numbers[i + 1], words: words[numbers[i + 2]] });
  points.sort((a, b) => a.x - b.x || a.y - b.y);
  const ring = document.createElementNS(svg.namespaceURI, "circle");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", 5);
  let told = -1, stop = () => {};

  const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
  const onScreen = point => new DOMPoint(point.x, point.y).matrixTransform(svg.getScreenCTM());
  const hide = () => {
    told = -1;
    stop();
    tip.hidden = true;
    ring.remove();
  };
  const tell = i => {
    if (i === told) return;
    stop();
    told = i;
    const point = points[i];
    const here = [...new Set(points.filter(other => distance(point, other) < SAME).map(other => other.words))];
    tip.replaceChildren(...here.map(text => {
      const [first, ...rest] = text.split("\n"), part = document.createElement("div"), name = document.createElement("b");
      name.textContent = first;
      part.append(name, rest.map(line => "\n" + line).join(""));
      return part;
    }));
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    svg.append(ring);
    tip.hidden = false;
    const { autoUpdate, computePosition, flip, offset, shift } = FloatingUIDOM;
    const box = () => (at => new DOMRect(at.x, at.y, 0, 0))(onScreen(point));
    const marker = { getBoundingClientRect: box, contextElement: svg };
    const middleware = [offset(12), flip(), shift({ padding: 8 })];
    stop = autoUpdate(marker, tip, () => computePosition(marker, tip, { strategy: "fixed", placement: "top", middleware })
      .then(at => Object.assign(tip.style, { left: `${at.x}px`, top: `${at.y}px` })));
  };
  const pointAt = event => {
    const mouse = { x: event.clientX, y: event.clientY };
    let nearest = -1, best = REACH;
    points.forEach((one, i) => {
      const far = distance(mouse, onScreen(one));
      if (far < best) [best, nearest] = [far, i];
    });
    if (nearest < 0) hide(); else tell(nearest);
  };
  svg.addEventListener("pointermove", pointAt);
  svg.addEventListener("pointerdown", pointAt);
  svg.addEventListener("pointerleave", event => event.pointerType === "mouse" && hide());
  svg.addEventListener("blur", hide);
  svg.setAttribute("tabindex", 0);
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    let next = told < 0 && step < 0 ? 0 : told;
    do next = (next + step + points.length) % points.length;
    while (told >= 0 && next !== told && distance(points[next], points[told]) < SAME);
    tell(next);
  });
}

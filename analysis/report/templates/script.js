for (const input of document.querySelectorAll(".switch input")) {
  input.onchange = () => document.querySelectorAll(".choice").forEach(
    choice => choice.hidden = choice.id !== "choice-" + input.value);
}
for (const table of document.querySelectorAll(".sortable table")) {
  // What is sorted: single rows, or pairs of a paper's row and ours, which go by ours where it is measured.
  const units = table => [...table.tBodies].flatMap(body =>
    table.classList.contains("paired") ? [[...body.rows]] : [...body.rows].map(row => [row]));
  const rank = (unit, i) => {
    const cell = unit.map(row => row.cells[i]).reverse().find(cell => cell.textContent && !cell.matches(".missing"));
    if (!cell) return null;
    const number = parseFloat(cell.textContent.replace(/^int/, ""));
    return isNaN(number) ? cell.textContent : number;
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  [...[...table.tHead.rows].at(-1).cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort";
    head.append(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = units(table).map(unit => [rank(unit, i), unit]);
      const known = rows.filter(row => row[0] !== null), gaps = rows.filter(row => row[0] === null);
      known.sort((a, b) => compare(a[0], b[0]) * (up ? 1 : -1));
      [...table.tBodies].forEach(old => old.remove());
      for (const [, unit] of [...known, ...gaps]) {
        const body = document.createElement("tbody");
        body.append(...unit);
        table.append(body);
      }
    };
  });
}

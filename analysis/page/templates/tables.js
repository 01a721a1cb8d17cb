// Tables: sorted by a click on a head (down, up, as it was), filtered by words and by the first column.
for (const section of document.querySelectorAll(".sortable")) {
  const tables = [...section.querySelectorAll("table")];
  // What is sorted and filtered: single rows, or pairs of a paper's row and ours, which go by ours where it is measured.
  const units = table => [...table.tBodies].flatMap(body =>
    table.classList.contains("paired") ? [[...body.rows]] : [...body.rows].map(row => [row]));
  const all = tables.flatMap(units);
  const show = all.length > 1 ? addFilter(section, tables, all) : () => {};
  for (const table of tables) addSorting(table, units, show);
}

function addSorting(table, units, show) {
  const original = [...table.tBodies].map(body => [body, [...body.rows]]);
  const rank = (unit, i) => {
    const cell = unit.map(row => row.cells[i]).reverse().find(cell => cell.textContent && !cell.matches(".missing"));
    if (!cell) return null;
    const number = parseFloat(cell.textContent.replace(/^int/, "").replace("−", "-"));
    return isNaN(number) ? cell.textContent : number;
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  const place = bodies => {
    [...table.tBodies].forEach(old => old.remove());
    for (const [body, rows] of bodies) {
      body.append(...rows);
      table.append(body);
    }
    show();
  };
  [...[...table.tHead.rows].at(-1).cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort";
    head.append(button);
    button.onclick = () => {
      const next = { null: "descending", descending: "ascending", ascending: null }[head.getAttribute("aria-sort")];
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      if (!next) return place(original);
      head.setAttribute("aria-sort", next);
      const ranked = units(table).map(unit => [rank(unit, i), unit]);
      const known = ranked.filter(row => row[0] !== null), gaps = ranked.filter(row => row[0] === null);
      known.sort((a, b) => compare(a[0], b[0]) * (next === "ascending" ? 1 : -1));
      place([...known, ...gaps].map(([, unit]) => [document.createElement("tbody"), unit]));
    };
  });
}

// The filter of a section; returns what shows the rows that pass it.
function addFilter(section, tables, all) {
  const text = unit => unit.map(row => [...row.cells].map(cell => cell.textContent).join(" ")).join(" ").toLowerCase();
  const first = unit => unit[0].cells[0].textContent;
  const words = document.createElement("input");
  Object.assign(words, { type: "search", placeholder: "filter: words, -without", autocomplete: "off" });
  words.setAttribute("aria-label", "filter rows by words; a minus before a word leaves its rows out");
  const kind = document.createElement("select");
  kind.setAttribute("aria-label", "filter rows by the first column");
  kind.autocomplete = "off";
  const kinds = [...new Set(all.map(first))];
  kind.append(new Option(`${[...tables[0].tHead.rows].at(-1).cells[0].textContent}: all`, ""));
  kind.append(...kinds.map(name => new Option(name, name)));
  const count = document.createElement("output");
  const show = () => {
    const asked = words.value.toLowerCase().split(/\s+/).filter(word => word && word !== "-");
    const passes = unit => (!kind.value || first(unit) === kind.value) && asked.every(word =>
      word.startsWith("-") ? !text(unit).includes(word.slice(1)) : text(unit).includes(word));
    let shown = 0;
    for (const unit of all) {
      const pass = passes(unit);
      shown += pass;
      for (const row of unit) row.hidden = !pass;
    }
    for (const table of tables)
      for (const body of table.tBodies) body.hidden = [...body.rows].every(row => row.hidden);
    count.textContent = shown === all.length ? `${all.length} rows` : `${shown} of ${all.length} rows`;
  };
  words.oninput = kind.onchange = show;
  const tools = document.createElement("div");
  tools.className = "filter";
  tools.append(words, ...(kinds.length > 1 ? [kind] : []), count);
  section.querySelector(".tools").prepend(tools);
  show();
  return show;
}

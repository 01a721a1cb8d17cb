"""How a report's page looks on a screen, a phone and paper, and its few lines of script: all inline in the page."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fefefe; --quiet: #6f6f6f; --rule: #dcdcdc;
  --tint: #f3f5f7; --link: #0a5ea8; --warn: #a33d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e3; --paper: #16181b; --quiet: #9a9a9a; --rule: #3a3d42;
  --tint: #1f2327; --link: #7db8ee; --warn: #f0a070; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.1rem; font-weight: 600; color: var(--quiet); margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
a { color: var(--link); }
p, ul { max-width: 48rem; }
.lead { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: 0 0 .6rem; }
.quiet, .notes, caption, dt { color: var(--quiet); }
.notes { font-size: .875rem; padding-left: 1.2rem; }
.problems li { color: var(--warn); overflow-wrap: anywhere; }
.gaps li, summary { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
.scroll:focus-visible { outline: 2px solid var(--link); }
.figure { padding: .75rem; }
.figure svg { display: block; width: 100%; max-width: 60rem; height: auto; margin: 0 auto; }
.figure .only svg, .figure .narrow svg { max-width: 30rem; }
.figure .narrow { display: none; }
.switch { border: 0; padding: 0; margin: 0 0 .5rem; display: flex; flex-wrap: wrap; gap: .25rem 1.2rem; }
.switch legend { float: left; padding: 0; margin-right: 1rem; color: var(--quiet); }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .6rem; font-weight: 600; }
th, td { padding: .28rem .5rem; text-align: right; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
thead th { background: var(--tint); font-weight: 600; }
thead button { all: unset; cursor: pointer; font: inherit; }
thead button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " ▴"; }
th[aria-sort=descending] button::after { content: " ▾"; }
tbody { border-top: 1px solid var(--rule); }
tbody tr:hover { background: var(--tint); }
td.best { font-weight: 700; }
td.quiet { color: var(--quiet); }
tr.groups th { text-align: center; border-bottom: 1px solid var(--rule); }
td.missing { color: var(--warn); background: var(--tint); }
.results td, .results th { text-align: left; font-size: .82rem; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; font-size: .9rem; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--tint); padding: .75rem; overflow-x: auto; border-radius: 6px; font-size: .875rem; }
@media (max-width: 40rem) { .figure .wide { display: none; } .figure .narrow { display: block; }
  .sortable td:nth-child(2) { white-space: normal; min-width: 8.5rem; }
  .sortable th:first-child, .sortable td:first-child { position: sticky; left: 0; background: var(--paper); } }
@media print { .scroll { overflow: visible; border: 0; } }
"""

SCRIPT = """
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
"""

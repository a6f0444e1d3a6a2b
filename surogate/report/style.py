"""Style sheet and script of a report."""

STYLE = """
:root {
  --ground: #fff; --card: #f6f7f8; --line: #e3e5e8; --ink: #1d2023; --quiet: #666d75;
  --bad: #b3261e; --warning: #8a5a00; --good: #1f7a4a; --added: #0b5a30; --added-ground: #d3f0df;
  --c0: #2f6db3; --c1: #d8702a; --c2: #3a9a6b; --c3: #8a5fb0; --c4: #a8901a; --c5: #5c6b7a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15171a; --card: #1d2024; --line: #2e3237; --ink: #e4e6e9; --quiet: #979ea7;
    --bad: #ff8a80; --warning: #e5b567; --good: #6fcf97; --added: #b4ecc9; --added-ground: #17402a;
    --c0: #6ea8e6; --c1: #f0964f; --c2: #5cc391; --c3: #b58fdb; --c4: #d3bb46; --c5: #93a3b3;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 3.5rem 1.75rem 6rem; }
h1 { font-size: 1.9rem; font-weight: 600; letter-spacing: -0.01em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; font-weight: 600; margin: 3.75rem 0 1.25rem; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 2rem 0 0.5rem; overflow-wrap: anywhere; }
p { margin: 0.25rem 0; }
a { color: inherit; }
.quiet { color: var(--quiet); overflow-wrap: anywhere; }
.state { font-weight: 600; } .state.finished { color: var(--good); } .state.stopped { color: var(--warning); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: 1.75rem 1.25rem;
  margin: 2.5rem 0 0; }
.tiles dt { color: var(--quiet); font-size: 0.85rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.4; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tiles dd.note { white-space: normal; font-size: 0.85rem; font-weight: 400; color: var(--quiet); }
.notes { list-style: none; margin: 2.25rem 0 0; padding: 0; }
.notes li { display: grid; grid-template-columns: 6rem 1fr; gap: 0.5rem; padding: 0.65rem 0;
  border-top: 1px solid var(--line); }
.notes li:last-child { border-bottom: 1px solid var(--line); }
.notes b { font-weight: 600; } .problem b { color: var(--bad); } .warning b { color: var(--warning); }
.note b { color: var(--quiet); } .notes span { overflow-wrap: anywhere; }
.charts { margin-top: 1.5rem; display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); gap: 2.5rem 2.5rem; }
.charts.small { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.75rem 2rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.9rem; margin-bottom: 0.5rem; display: flex; flex-wrap: wrap; gap: 0 0.6rem;
  align-items: baseline; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; } figcaption span { color: var(--quiet); font-size: 0.85rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 0.9rem; margin: 0; padding: 0; flex-basis: 100%;
  font-size: 0.82rem; color: var(--quiet); }
.legend i { display: inline-block; width: 1.1em; height: 0; border-top: 2px solid; vertical-align: 0.28em;
  margin-right: 0.4em; }
.legend i.dots { width: 0.5em; height: 0.5em; border: 0; border-radius: 50%; vertical-align: 0.1em; }
.legend i.dashed { border-top-style: dashed; }
.plot { position: relative; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--quiet); font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis { stroke: var(--quiet); opacity: 0.6; }
.cross { stroke: var(--quiet); stroke-dasharray: 2 3; }
path { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
path.faint { opacity: 0.28; stroke-width: 1; } path.dashed { stroke-dasharray: 5 4; }
path.mark { stroke: none; } path.bad { stroke: var(--bad); stroke-width: 1.5; }
.error { opacity: 0.55; stroke-width: 1.5; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
circle.c0, path.mark.c0 { fill: var(--c0); } circle.c1, path.mark.c1 { fill: var(--c1); }
circle.c2, path.mark.c2 { fill: var(--c2); } circle.c3, path.mark.c3 { fill: var(--c3); }
circle.c4, path.mark.c4 { fill: var(--c4); } circle.c5, path.mark.c5 { fill: var(--c5); }
i.c0 { border-color: var(--c0); } i.c1 { border-color: var(--c1); } i.c2 { border-color: var(--c2); }
i.c3 { border-color: var(--c3); } i.c4 { border-color: var(--c4); } i.c5 { border-color: var(--c5); }
i.dots.c0 { background: var(--c0); } i.dots.c1 { background: var(--c1); } i.dots.c2 { background: var(--c2); }
i.dots.c3 { background: var(--c3); } i.dots.c4 { background: var(--c4); } i.dots.c5 { background: var(--c5); }
output { position: absolute; top: 0; pointer-events: none; background: var(--ground); border: 1px solid var(--line);
  border-radius: 0.4rem; padding: 0.35rem 0.6rem; font-size: 0.8rem; line-height: 1.45; white-space: nowrap;
  box-shadow: 0 2px 10px rgb(0 0 0 / 0.12); font-variant-numeric: tabular-nums; z-index: 1; }
output[hidden] { display: none; }
output b { font-weight: 600; } output i { display: inline-block; width: 0.55em; height: 0.55em; border-radius: 50%;
  margin-right: 0.45em; background: currentColor; border: 0; }
output i.c0 { color: var(--c0); } output i.c1 { color: var(--c1); } output i.c2 { color: var(--c2); }
output i.c3 { color: var(--c3); } output i.c4 { color: var(--c4); } output i.c5 { color: var(--c5); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 0 0.5rem 1.25rem; text-align: left; vertical-align: top; font-weight: inherit;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.numbers td, .numbers th { text-align: right; white-space: nowrap; }
th:first-child, .numbers th:first-child { padding-left: 0; text-align: left; white-space: normal; min-width: 9rem; }
.numbers td:nth-child(2), .numbers th:nth-child(2) { text-align: left; }
thead th { color: var(--quiet); font-size: 0.85rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
.keys th { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.82rem; }
.keys th:first-child { width: 15rem; } .keys td { min-width: 6rem; }
.keys td { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.82rem; }
td.unset { color: var(--quiet); font-style: italic; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--quiet); }
details[open] > summary { margin-bottom: 1.25rem; }
pre, .sample p.text { margin: 0.35rem 0 0; padding: 1rem 1.2rem; background: var(--card); border-radius: 0.5rem;
  font: 0.84rem/1.65 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; overflow-x: auto; }
.sample { margin: 2rem 0 2.5rem; }
.sample dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.6rem 1.25rem;
  margin: 0.75rem 0 0; }
.sample dt { color: var(--quiet); font-size: 0.85rem; padding-top: 0.2rem; }
.sample dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.sample dd.last { background: var(--added-ground); color: var(--added); padding: 0.15rem 0.5rem; border-radius: 0.3rem;
  justify-self: start; }
footer { margin-top: 4.5rem; color: var(--quiet); font-size: 0.85rem; }
@media print { main { max-width: none; padding: 0; } figure, .sample { break-inside: avoid; } }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg"), cross = svg.querySelector(".cross");
  const output = figure.querySelector("output"), plot = figure.querySelector(".plot");
  const [low, high, start, stop] = data.x;
  const steps = [...new Set(data.curves.flatMap(curve => curve.points.map(point => point[0])))].sort((a, b) => a - b);
  if (!steps.length) continue;
  const nearest = (values, wanted) => {
    let from = 0, to = values.length - 1;
    while (to - from > 1) {
      const middle = (from + to) >> 1;
      if (values[middle] < wanted) from = middle; else to = middle;
    }
    return Math.abs(values[from] - wanted) <= Math.abs(values[to] - wanted) ? from : to;
  };
  const line = (text, color) => {
    const row = document.createElement("div");
    if (color !== undefined) row.appendChild(document.createElement("i")).className = "c" + color;
    row.append(text);
    return row;
  };
  plot.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const pixel = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const step = steps[nearest(steps, low + (pixel - start) / (stop - start) * (high - low))];
    const place = start + (step - low) / (high - low) * (stop - start);
    cross.setAttribute("x1", place); cross.setAttribute("x2", place); cross.setAttribute("visibility", "visible");
    output.replaceChildren(line("step " + step.toLocaleString("en")));
    for (const curve of data.curves) {
      if (!curve.points.length) continue;
      const point = curve.points[nearest(curve.points.map(p => p[0]), step)];
      const seldom = point[0] !== step ? " (step " + point[0].toLocaleString("en") + ")" : "";
      const name = data.curves.length > 1 ? curve.label + " " : "";
      output.append(line(name + point[1].toLocaleString("en", {maximumSignificantDigits: 4}) + seldom, curve.color));
    }
    output.hidden = false;
    const left = place / svg.viewBox.baseVal.width * box.width;
    const width = output.offsetWidth;
    output.style.left = (left + 14 + width > box.width ? Math.max(left - 14 - width, 0) : left + 14) + "px";
  });
  plot.addEventListener("pointerleave", () => { output.hidden = true; cross.setAttribute("visibility", "hidden"); });
}
"""

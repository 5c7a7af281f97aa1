// Small plots of what the node's metrics said in the last ten minutes, as far as the page was open.

const kept = 120; // readings, one each 5 s
const shapes = "http://www.w3.org/2000/svg";

// Each plot: a title, a unit, and its value from the sums of the metrics at two readings, now and before, dt seconds apart.
const kinds = [
  ["Connections", "", (now) => now.presence_connections],
  ["Events delivered", "/s", rate("presence_deliveries_total")],
  ["Redis, mean of a call", " ms", (now, before) => {
    const calls = now.presence_redis_seconds_count - before.presence_redis_seconds_count;
    return calls > 0 ? (1000 * (now.presence_redis_seconds_sum - before.presence_redis_seconds_sum)) / calls : 0;
  }],
  ["Repairs", "/s", rate("presence_pubsub_repairs_total")],
  ["Refusals", "/s", rate("presence_refusals_total")],
];

function rate(name) {
  return (now, before, dt) => Math.max(0, ((now[name] ?? 0) - (before[name] ?? 0)) / dt);
}

export class Plots {
  #plots;
  #describe;
  #before = null;

  // describe is called with a sentence about the node.
  constructor(box, describe) {
    this.#describe = describe;
    this.#plots = kinds.map(([title, unit, value]) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const svg = document.createElementNS(shapes, "svg");
      const line = document.createElementNS(shapes, "polyline");
      figure.style.margin = "0";
      svg.setAttribute("viewBox", `0 0 ${kept - 1} 100`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true");
      svg.append(line);
      caption.textContent = title;
      figure.append(caption, svg);
      box.append(figure);
      return { title, unit, value, caption, line, values: [] };
    });
  }

  async read() {
    const response = await fetch("/metrics", { cache: "no-store", headers: { accept: "text/plain" } });
    if (!response.ok) return;
    const text = await response.text();
    const now = sums(text);
    now.at = performance.now();
    const version = /^presence_build_info\{[^}]*version="([^"]*)"/m.exec(text)?.[1] ?? "?";
    this.#describe(`version ${version}, ${now.presence_connections} connections, ${now.presence_members} members in ${now.presence_rooms} rooms`);
    if (this.#before !== null) {
      const dt = Math.max(0.001, (now.at - this.#before.at) / 1000);
      for (const plot of this.#plots) draw(plot, plot.value(now, this.#before, dt));
    }
    this.#before = now;
  }
}

function draw(plot, value) {
  plot.values.push(value);
  if (plot.values.length > kept) plot.values.shift();
  const most = Math.max(...plot.values, 1e-9);
  const from = kept - plot.values.length;
  plot.line.setAttribute("points", plot.values.map((v, i) => `${from + i},${98 - (96 * v) / most}`).join(" "));
  plot.caption.textContent = `${plot.title}: ${value < 10 ? Number(value.toFixed(2)) : Math.round(value)}${plot.unit}`;
}

// sums are the values of the metrics in Prometheus' text format, added up over their labels.
function sums(text) {
  const all = {};
  for (const line of text.split("\n")) {
    const found = /^([a-z_]+)(?:\{.*\})? (\S+)/.exec(line);
    if (found) all[found[1]] = (all[found[1]] ?? 0) + Number(found[2]);
  }
  return all;
}

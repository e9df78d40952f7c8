// Sorts tables, and lets charts answer the pointer. Without it all is there, and stands still.
"use strict";

function sortBy(head) {
  const table = head.closest("table");
  const at = [...head.parentElement.children].indexOf(head);
  const body = table.tBodies[0];
  const rising = head.getAttribute("aria-sort") !== "ascending";
  const key = (row) => {
    const cell = row.children[at];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  // What has no number stands below, whichever way the column is sorted.
  const missing = (value) => typeof value === "string" && (value === "-" || value === "");
  const compare = (a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order =
      typeof a === "number" && typeof b === "number"
        ? a - b
        : String(a).localeCompare(String(b), "en", { numeric: true });
    return rising ? order : -order;
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort((a, b) => compare(a[0], b[0]));
  body.append(...rows.map((pair) => pair[1]));
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
}

function draw(figure) {
  const plot = figure.querySelector(".plot");
  if (plot.dataset.drawn) return;
  plot.dataset.drawn = "yes";
  const spec = JSON.parse(figure.querySelector("script").textContent);
  spec.width = "container";
  const { y, color } = spec.encoding || spec.layer[0].encoding;
  const isNarrow = plot.clientWidth < 520;
  if (isNarrow) {
    spec.config.legend.columns = plot.clientWidth < 420 ? 1 : 2;
    spec.config.axis.labelLimit = 150;
    if (y.field === "name" && y.axis) {
      // The parts of a layout's name, one below the other, so that none is cut.
      y.axis.labelExpr = spec.usermeta.lines;
      const axes = (mesh) => Math.ceil(mesh.split(",").length / 2);
      const lines = (name) => name.split("@").reduce((sum, part) => sum + axes(part), 0);
      const most = Math.max(1, ...(y.sort || []).map(lines));
      spec.height = Math.max(spec.height, (15 * most + 6) * (y.sort || []).length);
      y.axis.labelOffset = -7 * (most - 1); // a name's first line stands where its bar is, else
    }
  }
  if (isNarrow && color && color.legend) delete color.legend.columns;
  const room = document.createElement("div");
  room.style.width = "100%";
  plot.append(room);
  vegaEmbed(room, spec, { actions: false, renderer: "svg", ast: true }).then(() => {
    for (const still of plot.querySelectorAll(".still")) still.remove();
    plot.dataset.drawn = "moving";
  });
}

// Every chart is there already, as a picture: each moves in its turn, and the page is read meanwhile.
function drawWithin(root) {
  for (const figure of root.querySelectorAll("figure.chart"))
    if (!figure.parentElement.closest("details:not([open])")) setTimeout(draw, 0, figure);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("table.sorts thead button");
  if (button) sortBy(button.closest("th"));
});
document.addEventListener(
  "toggle",
  (event) => {
    if (!event.target.open) return;
    const later = event.target.querySelector(":scope > script.later");
    if (later) {
      later.remove();
      event.target.insertAdjacentHTML("beforeend", JSON.parse(later.textContent));
    }
    drawWithin(event.target);
  },
  true,
);
addEventListener("beforeprint", () => {
  const closed = document.querySelectorAll("details:not([open])");
  if (closed.length <= 20) for (const one of closed) one.open = true;
});
addEventListener("load", () => drawWithin(document));

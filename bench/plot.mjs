/** One SVG for a figure: each row a line of dots, one for each round, its median and its goal; a ratio on a logarithmic scale, or a value by itself. */

import { judge } from "./measure.mjs";

const width = 900;
const left = 430;
const right = 110;
const rowHeight = 34;

export function plotFigure(title, rows, caption) {
  const height = 58 + rows.length * rowHeight + 26;
  const lines = rows.map((row, i) => plotRow(row, 58 + i * rowHeight));
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">
<style>text{fill:#24292f}.faint{fill:#6e7781}.dot{fill:#0969da;fill-opacity:.45}.middle{stroke:#0969da;stroke-width:3}.goal{stroke:#cf222e;stroke-dasharray:4 3}.axis{stroke:#d0d7de}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.faint{fill:#8d96a0}.axis{stroke:#3d444d}}</style>
<text x="12" y="24" font-size="16" font-weight="bold">${escapeXml(title)}</text>
<text x="12" y="42" class="faint">a dot for each round, the median in blue, the goal in red; each row on a scale of its own, from 0</text>
${lines.join("\n")}
<text x="12" y="${height - 8}" class="faint">${escapeXml(caption)}</text>
</svg>
`;
}

function plotRow(row, y) {
  const { ratios, middle } = judge(row);
  const goal = row.goal?.most ?? row.goal?.least;
  const top = Math.max(...ratios, goal ?? 0, 1e-9) * 1.08;
  const x = (value) => (left + (Math.max(value, 0) / top) * (width - left - right)).toFixed(1);
  const label = row.theirs === undefined ? row.label : `${row.label}, beside ${row.peer}`;
  const unit = row.theirs === undefined ? ` ${row.unit}` : " ×";
  return [
    `<text x="12" y="${y + 15}">${escapeXml(label.replaceAll("`", ""))}</text>`.replace(
      "<text",
      label.length > 66 ? '<text textLength="408" lengthAdjust="spacingAndGlyphs"' : "<text",
    ),
    `<line class="axis" x1="${left}" x2="${width - right}" y1="${y + 11}" y2="${y + 11}"/>`,
    ...ratios.map((value) => `<circle class="dot" cx="${x(value)}" cy="${y + 11}" r="4"/>`),
    `<line class="middle" x1="${x(middle)}" x2="${x(middle)}" y1="${y + 2}" y2="${y + 20}"/>`,
    goal === undefined ? "" : `<line class="goal" x1="${x(goal)}" x2="${x(goal)}" y1="${y - 2}" y2="${y + 24}"/>`,
    `<text x="${width - right + 10}" y="${y + 15}">${middle.toPrecision(3)}${escapeXml(unit)}</text>`,
  ].join("");
}

function escapeXml(text) {
  return text.replace(/[&<>"]/g, (found) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[found]);
}

/** A soak as one SVG: what was sampled over time, a panel for each, with the daemons' ends as lines. */

import type { Checkpoint, Flatness, Sample } from "./sample.ts";
import type { LifeStory } from "./soak.ts";

const width = 1000;
const left = 70;
const right = 150;
const panelHeight = 110;
const panelGap = 34;
const top = 90;

interface Series {
  name: string;
  colour: string;
  /** Seconds and value. */
  points: [number, number][];
  /** Dots joined, instead of a line as the samples come. */
  isDots?: boolean;
}

export function plotSoak({
  seed,
  samples,
  lives,
  problems,
  flatness,
}: {
  seed: number;
  samples: Sample[];
  lives: LifeStory[];
  problems: string[];
  flatness: Flatness[];
}): string {
  const rests = lives.flatMap((life) => life.rests);
  const seconds = Math.max(samples.at(-1)?.at ?? 0, rests.at(-1)?.at ?? 0, 1);
  const panels = panelsOf(samples, rests);
  const height = top + panels.length * (panelHeight + panelGap);
  const x = (at: number): string => (left + (at / seconds) * (width - left - right)).toFixed(1);
  const ends = lives
    .slice(1)
    .map(
      ({ from }) => `<line class="end" x1="${x(from)}" x2="${x(from)}" y1="${top - 12}" y2="${height - panelGap}"/>`,
    );
  const caption =
    flatness.length === 0
      ? "memory not judged"
      : flatness
          .map(
            ({ what, middle, last }) =>
              `${what} ${(middle / (1 << 20)).toFixed(2)} → ${(last / (1 << 20)).toFixed(2)} MiB`,
          )
          .join(", ");
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">
<style>svg{background:#fff}text{fill:#24292f}.faint{fill:#6e7781}.axis{stroke:#d0d7de}.end{stroke:#cf222e;stroke-dasharray:4 3;stroke-opacity:.6}
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.faint{fill:#8d96a0}.axis{stroke:#3d444d}}</style>
<text x="12" y="24" font-size="16" font-weight="bold">holdfast under mixed work for ${(seconds / 60).toFixed(1)} minutes, seed ${seed}: ${problems.length === 0 ? "nothing was wrong" : `${problems.length} wrong`}</text>
<text x="12" y="44" class="faint">middle third of the rests → last third: ${escapeXml(caption)}</text>
<text x="12" y="58" class="faint">dashed: the daemon was ended on purpose, and another began</text>
${panels.map(([title, lines], index) => plotPanel(title, lines, top + index * (panelHeight + panelGap), seconds, x)).join("\n")}
${ends.join("\n")}
</svg>
`;
}

type Panel = [title: string, lines: Series[]];

function panelsOf(samples: Sample[], rests: Checkpoint[]): Panel[] {
  const series = (name: string, colour: string, of: (sample: Sample) => number): Series => ({
    name,
    colour,
    points: samples.map((sample) => [sample.at, of(sample)]),
  });
  const atRest = (name: string, colour: string, of: (rest: Checkpoint) => number): Series => ({
    name,
    colour,
    isDots: true,
    points: rests.map((rest) => [rest.at, of(rest)]),
  });
  const load = samples.flatMap((sample, index): [number, number][] => {
    const before = samples[Math.max(index - 10, 0)]!;
    return before.pid !== sample.pid || before === sample
      ? []
      : [[sample.at, (100 * (sample.cpuSeconds - before.cpuSeconds)) / (sample.at - before.at)]];
  });
  return [
    [
      "memory of the daemon, MiB",
      [
        series("resident", "#0969da", ({ rssKiB }) => rssKiB / 1024),
        series("proportional", "#8250df", ({ pssKiB }) => pssKiB / 1024),
        atRest("resident, at rest", "#cf222e", ({ rssKiB }) => rssKiB / 1024),
      ],
    ],
    [
      "in use at rest, after a collection, MiB",
      [
        atRest("heap", "#1a7f37", ({ heapBytes }) => heapBytes / (1 << 20)),
        atRest("buffers", "#bc4c00", ({ bufferBytes }) => bufferBytes / (1 << 20)),
      ],
    ],
    [
      "descriptors",
      [
        series("open", "#0969da", ({ descriptors }) => descriptors),
        atRest("at rest", "#cf222e", ({ descriptors }) => descriptors),
      ],
    ],
    [
      "threads",
      [series("threads", "#0969da", ({ threads }) => threads), atRest("at rest", "#cf222e", ({ threads }) => threads)],
    ],
    [
      "processes of the daemon",
      [
        series("children", "#0969da", ({ children }) => children),
        atRest("at rest", "#cf222e", ({ children }) => children),
      ],
    ],
    ["load of the daemon, % of a core", [{ name: "over 10 s", colour: "#0969da", points: load }]],
    ["log, KiB", [series("written", "#0969da", ({ logBytes }) => logBytes / 1024)]],
  ];
}

function plotPanel(title: string, lines: Series[], y0: number, seconds: number, x: (at: number) => string): string {
  const most = niceAbove(Math.max(...lines.flatMap(({ points }) => points.map(([, value]) => value)), 1));
  const y = (value: number): string => (y0 + panelHeight - (value / most) * panelHeight).toFixed(1);
  const grid = [0, 0.5, 1].map(
    (part) =>
      `<line class="axis" x1="${left}" x2="${width - right}" y1="${y(part * most)}" y2="${y(part * most)}"/><text class="faint" x="${left - 6}" y="${Number(y(part * most)) + 4}" text-anchor="end">${part * most}</text>`,
  );
  const times = Array.from({ length: 7 }, (_, index) => (index / 6) * seconds).map(
    (at) =>
      `<text class="faint" x="${x(at)}" y="${y0 + panelHeight + 14}" text-anchor="middle" font-size="10">${seconds > 300 ? `${(at / 60).toFixed(0)} min` : `${at.toFixed(0)} s`}</text>`,
  );
  const marks = lines.map(({ points, colour, isDots }) =>
    isDots === true
      ? points.map(([at, value]) => `<circle cx="${x(at)}" cy="${y(value)}" r="2.5" fill="${colour}"/>`).join("")
      : `<polyline fill="none" stroke="${colour}" stroke-width="1.2" points="${points.map(([at, value]) => `${x(at)},${y(value)}`).join(" ")}"/>`,
  );
  const legend = lines.map(
    ({ name, colour, isDots, points }, index) =>
      `<text x="${width - right + 10}" y="${y0 + 12 + index * 16}" fill="${colour}" style="fill:${colour}">${isDots ? "●" : "—"} ${escapeXml(name)} ${(points.at(-1)?.[1] ?? 0).toFixed(title.includes("in use") ? 2 : 0)}</text>`,
  );
  return [
    `<text x="${left}" y="${y0 - 6}" font-weight="bold">${escapeXml(title)}</text>`,
    ...grid,
    ...times,
    ...marks,
    ...legend,
  ].join("\n");
}

/** A round number. */
function niceAbove(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].find((factor) => factor * power >= value)! * power;
}

function escapeXml(text: string): string {
  return text.replace(/[&<>"]/g, (found) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[found]!);
}

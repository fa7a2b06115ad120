/**
 * Measures how fast, and how much: `npm run bench [-- --only NAME …] [--check] [--quick] [--write]`
 *
 * Each figure is a file in figures/. Its rows are measured side by side, ours and a peer's, round by round, in this one run: a row's ratio is the medians of
 * its sides' ratio, with the spread that other such rounds might have given (measure.mjs). Prints a Markdown table, and writes plots/NAME.svg beside this file.
 *
 *     --only NAME   that figure; may be repeated: start, relay, requests, output, replay, idle, others, held, counts
 *     --check       exit code 1 if a ratio is worse than its goal by more than its spread
 *     --write       writes what was measured into docs/performance.md, in the place of what stands there for the same figures
 *     --quick       a fifth of the rounds and of the work: to see that it runs, not to measure
 *
 * The peers of package.json are installed into node_modules/ beside this file when they are missing; socat, strace, valgrind, ssh and sshd are the system's.
 */

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadHosts } from "../scripts/hosts.mjs";
import { program } from "./daemon.mjs";
import { endAll, judge, quantile } from "./measure.mjs";
import { plotFigure } from "./plot.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const root = fileURLToPath(new URL("..", import.meta.url));
const names = ["start", "relay", "requests", "output", "replay", "others", "idle", "held", "counts"];
const { values: options } = parseArgs({
  options: {
    only: { type: "string", multiple: true },
    check: { type: "boolean" },
    quick: { type: "boolean" },
    write: { type: "boolean" },
  },
});
const wanted = options.only ?? names;
const unknown = wanted.find((name) => !names.includes(name));
if (unknown !== undefined) {
  console.error(`error: Cannot measure "${unknown}": --only takes one of ${names.join(", ")}`);
  process.exit(64);
}
if (options.write && options.quick) {
  console.error("error: Cannot write what --quick measures: it is not to be quoted");
  process.exit(64);
}
process.chdir(root);
if (wanted.includes("requests")) install(); // before the certificates for it go
// a start of node would read hundreds of certificates for NODE_EXTRA_CA_CERTS: 40 ms that are in both sides of a ratio, and make it look better than it is
for (const name of Object.keys(process.env))
  if (/^(NODE_|HOLDFAST_(?!BENCH))|^SSL_CERT_/.test(name)) delete process.env[name];
if (program.startsWith(root)) run(process.execPath, ["build.mjs", "--quiet"]);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));
process.once("exit", endAll);

const caption = `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC, Node ${process.versions.node}, Linux ${release()}, ${cpus().length} × ${cpus()[0].model.trim()}`;
const load = loadavg()[0];
const version = `holdfast ${JSON.parse(readFileSync("package.json", "utf8")).version}`;
const results = [];
for (const name of wanted) {
  const figure = await import(`./figures/${name}.mjs`);
  const begin = Date.now();
  const progress = (text) => showProgress(`${figure.title}: ${text}`);
  try {
    const { rows, notes } = await figure.run({
      progress,
      rounds: (count) => (options.quick ? Math.max(2, Math.round(count / 5)) : count),
      scale: (amount) => (options.quick ? amount / 4 : amount),
      host: name === "start" ? await loadHosts() : undefined,
    });
    results.push({ name, title: figure.title, rows, notes });
    mkdirSync(`${here}plots`, { recursive: true });
    writeFileSync(`${here}plots/${name}.svg`, plotFigure(figure.title, rows, caption));
  } catch (error) {
    results.push({ name, title: figure.title, rows: [], notes: [`not measured: ${error.stack}`], isBroken: true });
  }
  clearProgress();
  console.error(`${name}: ${((Date.now() - begin) / 1000).toFixed(0)} s`);
}
console.log(tableOf(results));
if (options.write) for (const result of results) writeFigure(result);
const failed = results.flatMap(({ rows, isBroken }) => [
  ...rows
    .filter((row) => judge(row).isWorse)
    .map(({ label, peer }) => `${label}${peer === undefined ? "" : `, beside ${peer}`}`),
  ...(isBroken ? ["not measured"] : []),
]);
if (options.check && failed.length > 0) {
  console.error(`\nworse than the goal by more than the spread:\n${failed.map((label) => `  ${label}`).join("\n")}`);
  process.exitCode = 1;
}
process.exit();

/** In docs/performance.md, between `<!-- figure NAME -->` and `<!-- end -->`. */
function writeFigure({ name, rows, isBroken }) {
  if (isBroken || rows.length === 0) return;
  const path = "docs/performance.md";
  const before = readFileSync(path, "utf8");
  const table = `_${version}; ${caption}, load ${load.toFixed(2)}_\n\n${linesOf(rows).join("\n")}`;
  const place = new RegExp(`(<!-- figure ${name} -->\n)[\\s\\S]*?(<!-- end -->)`);
  if (!place.test(before)) throw new Error(`${path} has no place for "${name}"`);
  writeFileSync(
    path,
    before.replace(place, (_, begin, end) => `${begin}\n${table}\n\n${end}`),
  );
}

function linesOf(rows) {
  return [
    "| figure | ours | beside | theirs | ratio | goal | |",
    "|---|---|---|---|---|---|---|",
    ...rows.map((row) => `| ${cellsOf(row).join(" | ")} |`),
  ];
}

function tableOf(figures) {
  const lines = [`${caption}, load ${load.toFixed(2)}${options.quick ? ", --quick: not to be quoted" : ""}`, ""];
  lines.push(...linesOf(figures.flatMap(({ rows }) => rows)));
  const notes = figures.flatMap(({ name, notes }) => notes.map((note) => `${name}: ${note}`));
  return [...lines, ...(notes.length === 0 ? [] : ["", ...notes])].join("\n");
}

function cellsOf(row) {
  const { middle, wide } = judge(row);
  const [median, unit] = [number(quantile(row.ours, 0.5)), row.unit];
  if (row.theirs === undefined) {
    const around = row.ours.length > 1 ? ` ± ${number(wide)}` : "";
    return [row.label, `${median}${around} ${unit}`.trim(), "", "", "", ...judgement(row)];
  }
  const theirs = `${number(quantile(row.theirs, 0.5))} ${unit}`.trim();
  return [
    row.label,
    `${median} ${unit}`.trim(),
    row.peer,
    theirs,
    `${number(middle)} ± ${number(wide)}`,
    ...judgement(row),
  ];
}

function judgement(row) {
  if (row.goal === undefined) return ["", ""];
  const { isReached, isWorse } = judge(row);
  const goal = row.goal.most === undefined ? `≥ ${row.goal.least}` : `≤ ${row.goal.most}`;
  return [goal, isReached ? "✓" : isWorse ? "**not reached**" : "within the spread"];
}

function number(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function install() {
  if (existsSync(`${here}node_modules/vscode-jsonrpc`)) return;
  console.error("installing the peers …");
  run("npm", [
    "install",
    "--prefix",
    here,
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-package-lock",
    "--loglevel=error",
  ]);
}

function run(command, args) {
  const { status } = spawnSync(command, args, { stdio: ["ignore", 2, 2] });
  if (status !== 0) process.exit(1);
}

function showProgress(text) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

function clearProgress() {
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
}

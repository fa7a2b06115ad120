/**
 * Runs the tests: `node tests/run.mjs [--only unit|long|host] [--suite trixie] [--all] [part of a file name …]`
 *
 * Each `tests/*.test.ts` (unit: modules and the daemon; long, by its first line: rounds, faults, runtimes) and `tests/host/*.test.ts` (over ssh, on booted hosts) is bundled and
 * run in a process group of its own, with a time limit: 60 s, or what a first line `// time limit: 240 s` or `// time limit: 240 s; long` says. Five files
 * run at a time, those with the longest limits first: two of them on hosts, as long as there are such. Most wait as long as they work. One whose first line
 * ends in `; beside the others` hardly works, and runs from the beginning, in addition. `--suite` boots the hosts from a Debian suite instead of this machine's files.
 *
 * A file passes when it exits with 0 and its summary has passed = total > 0 (uvu exits with 0 when a hook throws and when a
 * test throws a non-error), and runs each suite it makes. Tests that cannot run here are counted, never silent: by uvu's
 * `test.skip`, or by a line `SKIP <count> <why>`. With CI=true a skipped test is a failed one.
 * With `--all` tests do all their rounds, in ten times the time, and the rows of the fault table are printed, as by `npm run test:faults`.
 * What a file prints after `FIGURES ` is shown; of a file that failed, all of its output and the command that repeats it. On a terminal a line
 * tells how far it is. The last line is `N passed, N failed, N skipped`, and the one before says how long it took, and how busy the machine was meanwhile.
 * Exit code 1 if any failed, or none passed.
 */

import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { cpus } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { build } from "esbuild";

const defaultLimitS = 60;
/** Limits are for a quiet machine; one whose processors are kept busy by something else may take so many times as long. Only a hang reaches them. */
const patience = 3;
/** For a file that has been told to end. */
const endMs = 15_000;
/** Below node_modules, where a bundle finds its external packages; by pid, so that two runs do not meet. */
const bundles = `node_modules/.cache/holdfast-tests/${process.pid}`;
/** Process groups of the files that are running, by their leader's pid. */
const running = new Set();

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
const { values: options, positionals: fragments } = parseArgs({
  options: { only: { type: "string" }, suite: { type: "string" }, all: { type: "boolean" } },
  allowPositionals: true,
});
if (![undefined, "unit", "long", "host"].includes(options.only)) {
  console.error(`error: Cannot run "${options.only}": --only takes unit, long or host`);
  process.exit(64);
}

/** A signal has come: no more files are begun. */
let isEnding = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.once(signal, async () => {
    isEnding = true;
    await Promise.all([...running].map(endFile));
    removeBundles();
    process.kill(process.pid, signal); // the listener is gone: now it ends us
  });
}

const isWanted = (kind) => options.only === undefined || options.only === kind;
const units = findTests("tests").filter((file) => isWanted(isLong(file) ? "long" : "unit"));
const hosts = isWanted("host") ? findTests("tests/host") : [];
const unmatched = fragments.find((fragment) => ![...units, ...hosts].some((file) => file.includes(fragment)));
if (unmatched !== undefined) {
  console.error(`error: Cannot run "${unmatched}": it is in the name of no ${options.only ?? "test"} file`);
  process.exit(64);
}
if (options.suite && hosts.length > 0) buildSuite(options.suite); // its minutes count on no file's time limit

const paint =
  process.stdout.isTTY && !process.env.NO_COLOR ? (colour, text) => `\x1b[${colour}m${text}\x1b[0m` : (_, text) => text;
/** Rows that tests have printed, for --all. */
const table = [];
const totals = { passed: 0, failed: 0, skipped: 0 };
/** Files that are running, and how many have ended. */
const current = new Set();
const fileCount = units.length + hosts.length;
const startedAt = Date.now();
const processorsBefore = processorTimes();
let endedCount = 0;
const clock = setInterval(showProgress, 1000).unref();
process.once("exit", removeBundles);
const beside = inTurn(units.filter(isBeside));
const others = units.filter((file) => !isBeside(file));
const lanes = [[others], [others, hosts], [others, hosts], [hosts, others], [hosts, others]];
await Promise.all([beside, ...lanes.map(([first, second = []]) => inTurn(first).then(() => inTurn(second)))]);
if (options.all && table.length > 0)
  console.log(["| done to it | promised | happened |", "| --- | --- | --- |", ...table, ""].join("\n"));
clearInterval(clock);
clearProgress();
console.log(describeTime());
console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
process.exitCode = totals.failed > 0 || totals.passed === 0 ? 1 : 0;

function removeBundles() {
  rmSync(bundles, { recursive: true, force: true });
}

function findTests(directory) {
  const files = existsSync(directory) ? readdirSync(directory).filter((name) => name.endsWith(".test.ts")) : [];
  const wanted = (file) => fragments.length === 0 || fragments.some((fragment) => file.includes(fragment));
  return files
    .map((name) => `${directory}/${name}`)
    .filter(wanted)
    .sort((a, b) => limitOf(b) - limitOf(a) || (a < b ? -1 : 1)); // a long one last would keep one processor busy alone
}

/** The first line of a file, which says how it is to be run. */
function firstLineOf(file) {
  const source = readFileSync(file, "utf8");
  return source.slice(0, source.indexOf("\n"));
}

/** In seconds, on a quiet machine. */
function limitOf(file) {
  return Number(/^\/\/ time limit: (\d+) s\b/.exec(firstLineOf(file))?.[1] ?? defaultLimitS);
}

function isLong(file) {
  return /^\/\/ time limit: \d+ s; long\b/.test(firstLineOf(file));
}

function isBeside(file) {
  return firstLineOf(file).endsWith("; beside the others");
}

function buildSuite(suite) {
  process.env.HOLDFAST_TEST_SUITE = suite;
  const { status } = spawnSync("bash", ["tests/host/suiteroot.sh", suite], { stdio: ["ignore", "ignore", "inherit"] });
  if (status !== 0) process.exit(1);
}

/** Takes files from the front of a list, which others may share, and runs them one by one. */
async function inTurn(files) {
  for (let file = files.shift(); file !== undefined && !isEnding; file = files.shift()) {
    current.add(file);
    showProgress();
    const result = await runFile(file);
    current.delete(file);
    endedCount++;
    report(file, result);
    showProgress();
  }
}

/** Bundles and runs one file. Resolves to its counts, its output, and why it failed if it did. */
async function runFile(file) {
  const start = Date.now();
  const source = readFileSync(file, "utf8");
  const bundle = `${bundles}/${file.replaceAll("/", "-").replace(/\.ts$/, ".mjs")}`;
  try {
    await build({
      ...{ entryPoints: [file], outfile: bundle, bundle: true, platform: "node", format: "esm", target: "node18" },
      ...{ packages: "external", sourcemap: "inline", logLevel: "silent" },
    });
  } catch (error) {
    return {
      ...judge({ source, output: "", problem: "cannot be bundled" }),
      output: error.message,
      ms: Date.now() - start,
    };
  }
  if (isEnding) return { ...judge({ source, output: "", problem: "was not begun" }), output: "", ms: 0 };
  const limitMs = patience * limitOf(file) * (options.all ? 10_000 : 1000);
  // certificates beside its own take each start of node three times its time, and only the installation of the runtimes may need them
  const { FORCE_COLOR, NODE_TEST_CONTEXT, NODE_EXTRA_CA_CERTS, ...env } = process.env;
  const child = spawn(process.execPath, ["--enable-source-maps", bundle], {
    detached: true, // a process group that can be ended as one
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...env,
      NO_COLOR: "1",
      SHELL: "/bin/sh", // whatever the start-up files of who runs the tests do, and how long it takes
      HOLDFAST_TEST_ALL: options.all ? "1" : "",
      HOLDFAST_TEST_CERTIFICATES: NODE_EXTRA_CA_CERTS,
    },
  });
  running.add(child.pid);
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (output += text));
  let problem;
  const timer = setTimeout(() => {
    problem = `time limit of ${limitMs / 1000} s reached`;
    void endFile(child.pid);
  }, limitMs);
  const closed = new Promise((resolve) => child.once("close", () => resolve("none")));
  const [code, signal] = await new Promise((resolve) => child.once("exit", (...end) => resolve(end)));
  clearTimeout(timer);
  endGroup(child.pid); // what the file left running
  running.delete(child.pid);
  const holder = await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 1000, "other").unref())]);
  child.stdout.destroy();
  child.stderr.destroy();
  if (holder === "other") problem ??= "it left a process running, which holds its output";
  if (code !== 0) problem ??= signal ? `ended by ${signal}` : `exit code ${code}`;
  return { ...judge({ source, output, problem }), output, ms: Date.now() - start };
}

/** Counts the tests of a file that has run, and says what is wrong with it, if anything is. */
function judge({ source, output, problem }) {
  const summary = [...output.matchAll(/^ {2}Total: +(\d+)\n {2}Passed: +(\d+)\n {2}Skipped: +(\d+)$/gm)].at(-1);
  const [total, passed, skippedByTest] = summary ? summary.slice(1).map(Number) : [0, 0, 0];
  const skips = [...output.matchAll(/^SKIP (\d+) (.*)$/gm)];
  const skipped = skips.reduce((sum, [, count]) => sum + Number(count), skippedByTest);
  // uvu says nothing of a suite whose run() is not called; of one that ran it prints the name
  const silent = [...source.matchAll(/= suite(?:<.*>)?\("([^"]+)"/g)].find(([, name]) => !output.includes(` ${name} `));
  if (silent && total > 0) problem ??= `suite "${silent[1]}" did not run`;
  if (passed !== total) problem ??= "a hook threw, or a test threw what is no Error: uvu says nothing and exits with 0";
  if (total === 0 && skipped === 0) problem ??= "no tests ran";
  if (skipped > 0 && process.env.CI === "true") problem ??= "on CI nothing may be skipped";
  const why = skips.map(([, , why]) => why).join("; ");
  // a file that fails has one failure at least, even if every test that it reported passed
  return { passed, failed: problem ? Math.max(total - passed, 1) : 0, skipped, problem, why };
}

function report(file, { passed, failed, skipped, problem, why, output, ms }) {
  totals.passed += passed;
  totals.failed += failed;
  totals.skipped += skipped;
  const word = problem ? paint(31, "FAIL") : passed > 0 ? paint(32, "pass") : paint(33, "skip");
  const reason = problem ?? why;
  clearProgress();
  const counts = `${passed} passed, ${failed} failed, ${skipped} skipped, ${(ms / 1000).toFixed(1)} s`;
  console.log(`${word} ${file}: ${counts}${reason ? ` (${reason})` : ""}`);
  for (const [, figures] of output.matchAll(/^FIGURES (.*)$/gm)) console.log(`    ${figures}`);
  if (problem) console.log(`${output.replace(/^(?=.)/gm, "    ")}\nagain: ${commandOf(file)}\n`);
  else table.push(...(output.match(/^\| .*$/gm) ?? []));
}

/** What runs one file again as it was run. */
function commandOf(file) {
  const flags = [options.suite && `--suite ${options.suite}`, options.all && "--all"].filter(Boolean);
  return ["node build.mjs --quiet && node tests/run.mjs", ...flags, file].join(" ");
}

/** Of all processors since the machine was booted, in milliseconds. */
function processorTimes() {
  const times = cpus().map(({ times: { user, nice, sys, irq, idle } }) => [user + nice + sys + irq, idle]);
  return times.reduce(([busy, idle], [more, rest]) => [busy + more, idle + rest], [0, 0]);
}

function describeTime() {
  const seconds = Math.round((Date.now() - startedAt) / 1000);
  const [busy, idle] = processorTimes().map((now, at) => now - processorsBefore[at]);
  const share = Math.round((100 * busy) / (busy + idle || 1));
  const time = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  return `${fileCount} files in ${time} minutes; ${cpus().length} processors, ${share} % busy`;
}

function showProgress() {
  if (!process.stdout.isTTY || current.size === 0) return;
  const seconds = Math.round((Date.now() - startedAt) / 1000);
  const names = [...current].map((file) => file.replace(/^tests\/|\.test\.ts$/g, "")).join(", ");
  const failed = totals.failed > 0 ? `, ${totals.failed} failed` : "";
  const line = `${endedCount} of ${fileCount} files, ${totals.passed} passed${failed}, ${seconds} s: ${names}`;
  process.stdout.write(`\r\x1b[K${line.slice(0, (process.stdout.columns || 80) - 1)}`);
}

function clearProgress() {
  if (process.stdout.isTTY) process.stdout.write("\r\x1b[K");
}

/** Lets a file end its daemons, and what these hold: see tests/daemon.ts. */
async function endFile(pid) {
  if (running.has(pid)) process.kill(pid, "SIGTERM");
  for (let waitedMs = 0; running.has(pid) && waitedMs < endMs; waitedMs += 50)
    await new Promise((resolve) => setTimeout(resolve, 50));
  if (running.has(pid)) endGroup(pid);
}

/** Ends a file's process group. Hosts are not in it: they end by themselves when their stdin does. */
function endGroup(pid) {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // all of it has ended
  }
}

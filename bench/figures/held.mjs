/** Work that outlives its daemon: what a process costs to start and to hold, and how soon a daemon that was killed or replaced is back with its work. */

import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { program, token, withDaemon } from "../daemon.mjs";
import { output, pssOf, sideBySide, sleep } from "../measure.mjs";
import { withSshd } from "../sshd.mjs";
import { openClient } from "../wire.mjs";

const sleeper = { command: "sleep", args: ["10000"] };
const held = 100;

export const title = "Held work";

export async function run({ rounds, progress, scale }) {
  const rows = [
    ...(await startRows(rounds, progress)),
    ...(await memoryRows(rounds, progress)),
    ...(await watchdogRows(rounds, progress)),
  ];
  progress(`${held} processes, and their daemon is killed`);
  const heals = await repeat(rounds(5), () => withHeld(held, timeHeal));
  rows.push(row(`kill -9 to the first answer through a bridge, ${held} held`, "ms", heals, { most: 500 }));
  progress(`${held} processes, and their daemon is replaced`);
  const replaces = await repeat(rounds(5), () => withHeld(held, timeReplace));
  rows.push(row(`\`--replace\` to the first answer of the new one, ${held} held`, "ms", replaces, { most: 1000 }));
  progress("memory after 3 GiB");
  const grown = await repeat(rounds(5), () => grow(scale(3 * 2 ** 30)));
  rows.push(row("memory of a daemon after 3 GiB of output, more than idle", "MiB", grown, { most: 20 }));
  return { rows, notes: [] };
}

const row = (label, unit, ours, goal, more = {}) => ({ label, unit, ours, goal, ...more });

async function repeat(count, measure) {
  const found = [];
  for (let round = 0; round < count; round++) found.push(await measure());
  return found;
}

/** A client that is connected, beside ssh that is: over a ControlMaster. */
function startRows(rounds, progress) {
  return withDaemon(({ socket, directory }) =>
    withSshd(directory, async (ssh) => {
      const control = ["-o", "ControlMaster=auto", "-o", `ControlPath=${directory}/control`, "-o", "ControlPersist=60"];
      await output("ssh", [...control, ...ssh, "true"]);
      const client = await openClient(socket, token);
      let count = 0;
      const tasks = {
        answer: () => timed(() => client.request("process.spawn", { id: `a${count++}`, command: "true" })),
        exit: () => timed(() => runToExit(client, `e${count++}`)),
        ssh: () => timed(() => output("ssh", [...control, ...ssh, "true"])),
      };
      const found = await sideBySide(rounds(60), tasks, progress, { warmup: 5 });
      client.socket.destroy();
      await output("ssh", [...control, "-O", "exit", ...ssh]);
      return [
        row("spawn to answer", "ms", found.answer, { most: 8 }),
        row(
          "spawn to exit of `true`",
          "ms",
          found.exit,
          { most: 0.5 },
          {
            peer: "`ssh host true`, over a ControlMaster",
            theirs: found.ssh,
          },
        ),
      ];
    }),
  );
}

function runToExit(client, id) {
  return new Promise((done, fail) => {
    client.onMessage = ({ processId, stream }) => processId === id && stream === "exit" && done();
    client.request("process.spawn", { id, command: "true" }).catch(fail);
  });
}

async function timed(action) {
  const begin = performance.now();
  await action();
  return performance.now() - begin;
}

/** What a held process takes beside itself: holder, keeper, and its share of the daemon's growth. */
async function memoryRows(rounds, progress) {
  const rows = [];
  for (const count of [10, 100, 1000]) {
    const costs = [];
    for (let round = 0; round < rounds(3); round++) {
      progress(`memory of ${count} held processes`);
      costs.push(await withDaemon((daemon) => costOf(daemon, count)));
    }
    rows.push(row(`memory per held process, of ${count} (PSS)`, "MB", costs, { most: 0.3 }));
  }
  return rows;
}

async function costOf({ socket, pid }, count) {
  const client = await openClient(socket, token);
  for (let i = 0; i < 20; i++) await runToExit(client, `w${i}`); // what is compiled and allocated once, for the first
  await sleep(1000);
  const before = pssOf(pid);
  await hold(client, count);
  await sleep(2000);
  const kept = pidsOf(`${socket}.held/`);
  if (kept.length < count) throw new Error(`${kept.length} holders and keepers of ${count} processes`);
  const kB = pssOf(pid) - before + kept.reduce((sum, each) => sum + pssOf(each), 0);
  client.socket.destroy();
  return kB / 1000 / count;
}

/** Processes by words of their arguments. */
function pidsOf(words) {
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  return pids.filter((pid) => commandLineOf(pid).includes(words)).map(Number);
}

function commandLineOf(pid) {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return ""; // it has just ended
  }
}

/**
 * The sh that brings the daemon back: what it takes, and how often it wakes, while nothing happens.
 * Its pages are those of an sh and of libc: what others have of them counts in part. Alone on a machine that has nothing else, and as it is beside work.
 */
async function watchdogRows(rounds, progress) {
  const rows = [];
  for (const [count, words] of [
    [0, "beside nothing"],
    [10, "beside 10 held processes"],
  ]) {
    progress(`the watchdog at rest, ${words}`);
    const found = await repeat(rounds(3), () => withDaemon((daemon) => restOf(daemon, count)));
    const of = (name) => found.map((one) => one[name]);
    rows.push(
      row(`memory of the watchdog, ${words} (PSS)`, "MB", of("megabytes"), { most: 0.2 }),
      row(`wake-ups of the watchdog in 10 s, ${words}`, "", of("wakeUps"), { most: 0 }),
    );
  }
  return rows;
}

async function restOf({ socket }, count) {
  const client = await openClient(socket, token);
  await hold(client, count);
  const pids = pidsOf(`--revive\0--socket\0${socket}\0`);
  if (pids.length !== 1) throw new Error(`${pids.length} watchdogs`);
  await sleep(1000);
  const before = switchesOf(pids[0]);
  await sleep(10_000);
  client.socket.destroy();
  return { megabytes: pssOf(pids[0]) / 1000, wakeUps: switchesOf(pids[0]) - before };
}

function switchesOf(pid) {
  const counts = readFileSync(`/proc/${pid}/status`, "utf8").matchAll(/ctxt_switches:\s+(\d+)/g);
  return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
}

async function hold(client, count) {
  const pids = [];
  for (let i = 0; i < count; i++) pids.push((await client.request("process.spawn", { id: `h${i}`, ...sleeper })).pid);
  return pids;
}

function withHeld(count, use) {
  return withDaemon(async (daemon) => {
    const client = await openClient(daemon.socket, token);
    const pids = await hold(client, count);
    client.socket.destroy();
    const ms = await use(daemon);
    const after = await openClient(daemon.socket, token);
    const { processes } = await after.request("process.list");
    after.socket.destroy();
    const living = processes.filter(({ pid, running }) => running && pids.includes(pid)).length;
    if (living !== count) throw new Error(`${living} of ${count} processes are there`);
    return ms;
  });
}

async function timeHeal({ pid, socket }) {
  const begin = performance.now();
  process.kill(pid, "SIGKILL");
  await answerThroughBridge(socket);
  return performance.now() - begin;
}

/** From the call to the first answer of the new one. */
async function timeReplace({ socket, tokenFile }) {
  const begin = performance.now();
  await output(process.execPath, [program, "--serve", "--replace", "--socket", socket, "--token-file", tokenFile]);
  await answerThroughBridge(socket);
  return performance.now() - begin;
}

function answerThroughBridge(socket) {
  return new Promise((done, fail) => {
    const bridge = spawn(process.execPath, [program, "--bridge", "--socket", socket], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    bridge.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", id: 1, method: "server.ping", auth: token })}\n`);
    let text = "";
    bridge.stdout.on("data", (chunk) => {
      text += chunk;
      if (!text.includes("\n")) return;
      bridge.stdin.end();
      if (text.includes('"pong":true')) done();
      else fail(new Error(text));
    });
  });
}

/** MiB that a daemon has more than before, some seconds after its output was taken. */
function grow(bytes) {
  return withDaemon(async ({ socket, pid }) => {
    const client = await openClient(socket, token);
    await sleep(2000);
    const before = pssOf(pid);
    await new Promise((done, fail) => {
      client.onBody = (body) => body.includes('"stream":"stdout"');
      client.onMessage = ({ stream }) => stream === "exit" && done();
      client
        .request("process.spawn", { id: "a", command: "head", args: ["-c", String(bytes), "/dev/zero"] })
        .catch(fail);
    });
    await sleep(10_000);
    const after = pssOf(pid);
    client.socket.destroy();
    return (after - before) / 1024;
  });
}

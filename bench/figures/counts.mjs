/** Counts that do not depend on the machine's mood: system calls per request and bytes copied per byte of output (strace), instructions of a start (callgrind). */

import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { program, token, withDaemon } from "../daemon.mjs";
import { end, exitOf, output, sleep, start } from "../measure.mjs";
import { createClient, openClient } from "../wire.mjs";

const requests = 2000;
const outputBytes = 64 << 20;
/** Each copies what it returns from the kernel, or to it. */
const copying = "read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg";

export const title = "Counts";

export function run({ progress }) {
  return withDaemon(async (daemon) => {
    const rows = [];
    const notes = [];
    for (const inFlight of [1, 64]) {
      progress(`system calls of the daemon, ${inFlight} in flight`);
      const client = await openClient(daemon.socket, token);
      rows.push(
        row(
          `system calls per request, daemon, ${inFlight} in flight`,
          await traced(daemon.pid, daemon.directory, () => ping(client, inFlight)),
        ),
      );
      client.socket.destroy();
      progress(`system calls of the bridge, ${inFlight} in flight`);
      const bridge = start(process.execPath, [program, "--bridge", "--no-start", "--socket", daemon.socket], {
        stdio: ["pipe", "pipe", "inherit"],
      });
      const through = createClient(duplexOf(bridge));
      await through.request("server.authenticate", { token });
      rows.push(
        row(
          `system calls per request, bridge, ${inFlight} in flight`,
          await traced(bridge.pid, daemon.directory, () => ping(through, inFlight)),
        ),
      );
      bridge.stdin.end();
      await exitOf(bridge);
    }
    progress("bytes copied per byte of output");
    const there = await createRequire(import.meta.url)(program).connect({
      command: [process.execPath, program, "--bridge", "--no-start", "--socket", daemon.socket],
      token,
    });
    const [bridge] = readdirSync("/proc").filter(
      (pid) => /^\d/.test(pid) && argumentsOf(pid).join(" ").endsWith(`--bridge --no-start --socket ${daemon.socket}`),
    );
    const copies = await copied({ daemon: daemon.pid, bridge }, daemon.directory, async () => {
      const head = await there.spawn({
        command: "head",
        args: ["-c", String(outputBytes), "/dev/zero"],
        onOutput: () => {},
      });
      await head.exit;
    });
    there.close();
    for (const [name, { taken, given }] of Object.entries(copies)) {
      rows.push(
        row(`bytes copied from the kernel per byte of output, ${name}`, taken),
        row(`bytes copied to the kernel per byte of output, ${name}`, given),
      );
    }
    const counts = {};
    for (const [what, args] of [
      ["`node -e 0`", ["-e", "0"]],
      ["`--version`", [program, "--version"]],
      ["`--bridge`, to its end", [program, "--bridge", "--no-start", "--socket", daemon.socket]],
    ]) {
      progress(`system calls and instructions of ${what}`);
      counts[what] = await straceCount([process.execPath, ...args]);
      rows.push(row(`system calls, ${what}`, counts[what]));
      const instructions = await callgrind([process.execPath, ...args], daemon.directory);
      if (typeof instructions === "number")
        rows.push({ label: `instructions, ${what} (valgrind, no JIT)`, unit: "million", ours: [instructions / 1e6] });
      else notes.push(`instructions of ${what}: ${instructions}`);
    }
    return { rows, notes };
  });
}

const row = (label, value) => ({ label, unit: "", ours: [value] });

async function ping(client, inFlight) {
  let left = requests;
  const one = async () => {
    while (left-- > 0) await client.request("server.ping", {});
  };
  await Promise.all(Array.from({ length: inFlight }, one));
}

/** System calls per request, all threads, while `work` runs. */
async function traced(pid, directory, work) {
  const file = `${directory}/strace.${pid}`;
  const strace = start("strace", ["-f", "-c", "-U", "calls,name", "-o", file, "-p", String(pid)], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  await new Promise((done) => strace.stderr.once("data", done)); // "attached"
  await sleep(200);
  await work();
  await end(strace, "SIGINT");
  return callsIn(file) / requests;
}

/** Bytes that the system calls of some processes returned while `work` ran, per byte of output. */
async function copied(pids, directory, work) {
  const traces = [];
  for (const [name, pid] of Object.entries(pids)) {
    const file = `${directory}/copied.${name}`;
    // not -f: a holder that is traced does not stop as others do
    const threads = readdirSync(`/proc/${pid}/task`).flatMap((thread) => ["-p", thread]);
    const strace = start("strace", ["-s", "0", "-e", `trace=${copying}`, "-o", file, ...threads], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    await new Promise((done) => strace.stderr.once("data", done)); // "attached"
    traces.push({ name, file, strace });
  }
  await work();
  await sleep(200);
  const found = {};
  for (const { name, file, strace } of traces) {
    await end(strace, "SIGINT");
    found[name] = { taken: 0, given: 0 };
    for (const [, call, bytes] of readFileSync(file, "utf8").matchAll(/^\d+ +(?:<\.\.\. )?(\w+).* = (\d+)$/gm))
      found[name][/^(read|recv)/.test(call) ? "taken" : "given"] += Number(bytes) / outputBytes;
  }
  return found;
}

async function straceCount(command) {
  const directory = mkdtempSync("/tmp/holdfast-bench-");
  try {
    await output("strace", ["-f", "-c", "-U", "calls,name", "-o", `${directory}/out`, ...command]);
    return callsIn(`${directory}/out`);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function callsIn(file) {
  return Number(/^\s*(\d+)\s+total$/m.exec(readFileSync(file, "utf8"))[1]);
}

/** Instructions of a whole process; or why they cannot be counted here. Without JIT, so that two runs count alike. */
function callgrind(command, directory) {
  return new Promise((done) => {
    const [node, ...args] = command;
    const child = spawn(
      "valgrind",
      [
        "--tool=callgrind",
        `--callgrind-out-file=${directory}/callgrind`,
        "--smc-check=all-non-file",
        node,
        "--jitless",
        ...args,
      ],
      { stdio: ["ignore", "ignore", "pipe"] },
    );
    const timer = setTimeout(() => child.kill("SIGKILL"), 60_000);
    let text = "";
    child.stderr.setEncoding("utf8").on("data", (chunk) => (text += chunk));
    child.once("error", (error) => done(`valgrind cannot be run (${error.code})`));
    child.once("close", (code) => {
      clearTimeout(timer);
      const found = /Collected : (\d+)/.exec(text)?.[1];
      done(
        found === undefined || code !== 0
          ? `valgrind ended with ${code}: ${text.trim().split("\n").at(-1)}`
          : Number(found),
      );
    });
  });
}

function argumentsOf(pid) {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").slice(0, -1);
  } catch {
    return []; // it has just ended
  }
}

function duplexOf(child) {
  return {
    write: (chunk) => child.stdin.write(chunk),
    on(event, listener) {
      child.stdout.on(event, listener);
      return this;
    },
  };
}

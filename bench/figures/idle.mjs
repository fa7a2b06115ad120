/** What an idle daemon takes: memory, threads, wake-ups per minute, beside an idle node; and what each connection and process adds. */

import { startDaemon, token, withDaemon, withDirectory } from "../daemon.mjs";
import { end, median, pssOf, sleep, start, threadsOf, wakeUpsOf } from "../measure.mjs";
import { openClient } from "../wire.mjs";

const pairs = 5;
const settleMs = 3000;
/** V8 tidies up some 10 s after a start, once: that is not idling yet. */
const idleAfterMs = 30_000;

export const title = "Idle";

export async function run({ rounds, progress, scale }) {
  const beside = await measureIdle(progress, scale(60_000));
  const rows = [
    {
      label: "idle daemon, PSS",
      unit: "kB",
      ours: beside.ours.pss,
      peer: "idle `node`",
      theirs: beside.theirs.pss,
      goal: { most: 1.15 },
    },
    {
      label: "idle daemon, threads",
      unit: "",
      ours: beside.ours.threads,
      peer: "idle `node`",
      theirs: beside.theirs.threads,
      goal: { most: 1.15 },
    },
    { label: "idle daemon, wake-ups per minute", unit: "", ours: beside.ours.wakeUps, goal: { most: 3 } },
    { label: "idle `node`, wake-ups per minute", unit: "", ours: beside.theirs.wakeUps },
  ];
  for (const [what, add] of [
    ["connection", addConnections],
    ["process", addProcesses],
  ]) {
    const cost = {};
    for (const count of [10, 100, 1000]) {
      cost[count] = [];
      for (let round = 0; round < rounds(3); round++) {
        progress(`memory of ${count} idle ${what}s, round ${round + 1} of ${rounds(3)}`);
        cost[count].push(await withDaemon((daemon) => measureAdded(daemon, count, add)));
      }
      rows.push({ label: `memory per idle ${what}, of ${count}`, unit: "kB", ours: cost[count] });
    }
    rows.push({
      label: `memory per idle ${what}, 1000 beside 100`,
      unit: "kB",
      ours: cost[1000],
      peer: "of 100",
      theirs: cost[100].map(() => median(cost[100])),
      goal: { most: 1.25 },
    });
  }
  return { rows, notes: [] };
}

/** All of them at once, so that what they share of node's own file is shared by as many. */
async function measureIdle(progress, windowMs) {
  return withDirectories(pairs, async (directories) => {
    const nodes = [];
    const daemons = [];
    try {
      for (const directory of directories) {
        daemons.push(await startDaemon(directory));
        nodes.push(start(process.execPath, ["-e", "setInterval(()=>{},1e9)"], { cwd: "/", stdio: "ignore" }));
      }
      progress(`until all is idle, ${idleAfterMs / 1000} s`);
      await sleep(idleAfterMs);
      const all = { ours: daemons, theirs: nodes };
      const before = Object.fromEntries(
        Object.entries(all).map(([name, list]) => [name, list.map(({ pid }) => wakeUpsOf(pid))]),
      );
      for (let passed = 0; passed < windowMs; passed += 5000) {
        progress(`idle for ${windowMs / 1000} s: ${passed / 1000} s`);
        await sleep(Math.min(5000, windowMs - passed));
      }
      return Object.fromEntries(
        Object.entries(all).map(([name, list]) => [
          name,
          {
            pss: list.map(({ pid }) => pssOf(pid)),
            threads: list.map(({ pid }) => threadsOf(pid)),
            wakeUps: list.map(({ pid }, i) => ((wakeUpsOf(pid) - before[name][i]) * 60_000) / windowMs),
          },
        ]),
      );
    } finally {
      for (const daemon of daemons) await daemon.stop();
      for (const node of nodes) await end(node);
    }
  });
}

async function withDirectories(count, use, made = []) {
  return made.length === count
    ? use(made)
    : withDirectory((directory) => withDirectories(count, use, [...made, directory]));
}

/** @returns kB for each. */
async function measureAdded({ socket, pid }, count, add) {
  const client = await openClient(socket, token);
  await sleep(500);
  const before = pssOf(pid);
  const remove = await add(socket, client, count);
  await sleep(settleMs);
  const after = pssOf(pid);
  await remove();
  client.socket.destroy();
  return (after - before) / count;
}

async function addConnections(socket, _client, count) {
  const clients = [];
  for (let i = 0; i < count; i++) clients.push(await openClient(socket, token));
  return () => {
    for (const client of clients) client.socket.destroy();
  };
}

async function addProcesses(_socket, client, count) {
  for (let i = 0; i < count; i++)
    await client.request("process.spawn", { id: `p${i}`, command: "/bin/sleep", args: ["1000"] });
  return () => {}; // --stop --now ends them
}

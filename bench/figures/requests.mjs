/** Round trips per second, one at a time and 64 in flight, over the socket and through a relay, beside three other servers. */

import { fork } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { token, withDaemon } from "../daemon.mjs";
import { end, sideBySide, sleep, start } from "../measure.mjs";

const at = (name) => fileURLToPath(new URL(`../peers/${name}`, import.meta.url));
const peers = ["vscode-jsonrpc", "grpc-js", "jayson"];

export const title = "Requests";

export function run({ rounds, progress, scale }) {
  return withDaemon(async ({ socket, directory }) => {
    const forks = [];
    const started = async (...args) => {
      const child = fork(...args);
      forks.push(child);
      await new Promise((done, fail) =>
        child.once("message", done).once("exit", () => fail(new Error(`${args[1]} ended`))),
      );
      return child;
    };
    const relays = [];
    try {
      const clients = {
        socket: { holdfast: await started(at("client.mjs"), ["holdfast", socket, token]) },
        bridge: { holdfast: await started(at("client.mjs"), ["holdfast bridge", socket, token]) },
      };
      for (const peer of peers) {
        progress(`starting ${peer}`);
        const path = `${directory}/${peer}`;
        await started(at("server.mjs"), [peer, path]);
        clients.socket[peer] = await started(at("client.mjs"), [peer, path]);
        relays.push(
          start("socat", ["-b", "65536", `UNIX-LISTEN:${path}.relay,fork`, `UNIX-CONNECT:${path}`], {
            stdio: "ignore",
            detached: true,
          }),
        );
        while (!existsSync(`${path}.relay`)) await sleep(10);
        clients.bridge[peer] = await started(at("client.mjs"), [peer, `${path}.relay`]);
      }
      const rows = [];
      for (const [way, words] of [
        ["socket", "socket"],
        ["bridge", "bridge (theirs: socat)"],
      ]) {
        for (const inFlight of [1, 64]) {
          const load = (child) => () =>
            new Promise((done) => child.once("message", done).send({ inFlight, ms: scale(600) }));
          const tasks = Object.fromEntries(Object.entries(clients[way]).map(([name, child]) => [name, load(child)]));
          const found = await sideBySide(
            rounds(9),
            tasks,
            (text) => progress(`${way}, ${inFlight} in flight, ${text}`),
            { warmup: 2 },
          );
          for (const peer of peers) {
            rows.push({
              label: `round trips, ${words}, ${inFlight} in flight`,
              unit: "per s",
              ours: found.holdfast,
              peer,
              theirs: found[peer],
              goal: { least: 1 },
            });
          }
        }
      }
      return { rows, notes: [] };
    } finally {
      for (const child of forks) await end(child);
      for (const relay of relays) await end(relay);
    }
  });
}

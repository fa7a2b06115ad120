/** Pings of others while one client takes 1 GiB and another lists a directory of 100 000 entries, again and again, beside idle pings. */

import { fork } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { token, withDaemon } from "../daemon.mjs";
import { exitOf, quantile } from "../measure.mjs";

const worker = fileURLToPath(new URL("../peers/other.mjs", import.meta.url));

export const title = "Others";

export function run({ rounds, progress, scale }) {
  return withDaemon(({ socket, directory }) =>
    withDaemon(async (idle) => {
      const wide = `${directory}/wide`;
      const entries = scale(100_000);
      progress(`making a directory of ${entries} entries`);
      mkdirSync(wide);
      for (let i = 0; i < entries; i++) writeFileSync(`${wide}/entry-${i}`, "");
      const rowsOf = { idle: [], taken: [], listed: [], both: [], apart: [] };
      for (let round = 0; round < rounds(5); round++) {
        for (const what of Object.keys(rowsOf)) {
          progress(`round ${round + 1} of ${rounds(5)}: ${what}`);
          const pinger = fork(worker, ["ping", what === "apart" ? idle.socket : socket, token]);
          await word(pinger);
          const busy = [];
          if (what === "taken" || what === "both" || what === "apart")
            busy.push(fork(worker, ["take", socket, token, String(scale(2 ** 30))]));
          if (what === "listed" || what === "both" || what === "apart")
            busy.push(fork(worker, ["list", socket, token, wide]));
          const taken = busy[0] === undefined || what === "listed" ? sleepFor(scale(4000)) : word(busy[0]);
          await taken;
          pinger.send("enough");
          const times = await word(pinger);
          for (const child of [pinger, ...busy]) if (child.connected) child.disconnect();
          await Promise.all([pinger, ...busy].map(exitOf));
          rowsOf[what].push(quantile(times, 0.99));
        }
      }
      const more = (what) => rowsOf[what].map((ms, round) => ms - rowsOf.idle[round]);
      return {
        rows: [
          { label: "ping, 99th percentile, idle", unit: "ms", ours: rowsOf.idle },
          { label: "… more, while 1 GiB is taken", unit: "ms", ours: more("taken"), goal: { most: 5 } },
          { label: "… more, while 100 000 entries are listed", unit: "ms", ours: more("listed"), goal: { most: 5 } },
          { label: "… more, while both", unit: "ms", ours: more("both"), goal: { most: 5 } },
          {
            label: "… more, while both, to another daemon that has nothing to do: the machine's own part",
            unit: "ms",
            ours: more("apart"),
          },
        ],
        notes: [],
      };
    }),
  );
}

function word(child) {
  return new Promise((done, fail) =>
    child.once("message", done).once("exit", (code) => fail(new Error(`a worker ended with ${code}`))),
  );
}

function sleepFor(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

/** Pings of others while one client takes 1 GiB and another lists a directory of 100 000 entries, again and again, beside idle pings. */

import { fork } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { token, withDaemon } from "../daemon.mjs";
import { exitOf, quantile, sleep } from "../measure.mjs";

const worker = fileURLToPath(new URL("../peers/other.mjs", import.meta.url));

export const title = "Others";

/** Each load by its name: what the others do meanwhile; `apart`, the pings go to a second daemon, which has none of it. */
const loads = {
  idle: [],
  taken: ["take"],
  listed: ["list"],
  both: ["take", "list"],
  apart: ["take", "list"],
};

export function run({ rounds, progress, scale }) {
  return withDaemon((busy) =>
    withDaemon(async (idle) => {
      const wide = `${busy.directory}/wide`;
      makeWide(wide, scale(100_000), progress);
      const found = Object.fromEntries(Object.keys(loads).map((name) => [name, []]));
      for (let round = 0; round < rounds(5); round++) {
        for (const [name, work] of Object.entries(loads)) {
          progress(`round ${round + 1} of ${rounds(5)}: ${name}`);
          const pinged = name === "apart" ? idle.socket : busy.socket;
          found[name].push(await pingBeside(pinged, busy.socket, work, { wide, scale }));
        }
      }
      return { rows: rowsOf(found), notes: [] };
    }),
  );
}

function makeWide(directory, entries, progress) {
  progress(`making a directory of ${entries} entries`);
  mkdirSync(directory);
  for (let i = 0; i < entries; i++) writeFileSync(`${directory}/entry-${i}`, "");
}

/** The 99th percentile of pings to one daemon, while others work: until all is taken, or for 4 s. */
async function pingBeside(pinged, socket, work, { wide, scale }) {
  const pinger = fork(worker, ["ping", pinged, token]);
  await word(pinger);
  const args = { take: String(scale(2 ** 30)), list: wide };
  const others = work.map((kind) => fork(worker, [kind, socket, token, args[kind]]));
  await (work[0] === "take" ? word(others[0]) : sleep(scale(4000)));
  pinger.send("enough");
  const times = await word(pinger);
  const all = [pinger, ...others];
  for (const child of all) if (child.connected) child.disconnect();
  await Promise.all(all.map(exitOf));
  return quantile(times, 0.99);
}

function rowsOf(found) {
  const more = (name) => found[name].map((ms, round) => ms - found.idle[round]);
  const row = (label, ours, goal) => ({ label, unit: "ms", ours, goal });
  return [
    row("ping, 99th percentile, idle", found.idle),
    row("… more, while 1 GiB is taken", more("taken"), { most: 5 }),
    row("… more, while 100 000 entries are listed", more("listed"), { most: 5 }),
    row("… more, while both", more("both"), { most: 5 }),
    row("… more, while both, to another daemon that has nothing to do: the machine's own part", more("apart")),
  ];
}

function word(child) {
  return new Promise((done, fail) =>
    child.once("message", done).once("exit", (code) => fail(new Error(`a worker ended with ${code}`))),
  );
}

/** A process's output from the child to a client's bytes, through daemon and bridge, beside ssh on loopback: in short rounds, so that both meet the same machine. */

import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { token, withDaemon } from "../daemon.mjs";
import { sideBySide } from "../measure.mjs";
import { withSshd } from "../sshd.mjs";

const taker = fileURLToPath(new URL("../peers/take.mjs", import.meta.url));

export const title = "Process output";

export function run({ rounds, progress, scale }) {
  const bytes = scale(2 ** 28);
  const take =
    (kind, ...args) =>
    () =>
      new Promise((done, fail) => {
        const child = fork(taker, [kind, String(bytes), ...args]);
        child
          .once("message", (seconds) => done(bytes / 2 ** 20 / seconds))
          .once("exit", (code) => fail(new Error(`${kind} ended with ${code}`)));
      });
  return withDaemon(({ socket, directory }) =>
    withSshd(directory, async (ssh) => {
      const tasks = { ours: take("holdfast", socket, token), theirs: take("ssh", ...ssh) };
      const { ours, theirs } = await sideBySide(rounds(25), tasks, progress, { warmup: 2 });
      const label = `process output, rounds of ${bytes / 2 ** 20} MiB`;
      const row = { label, unit: "MiB/s", ours, peer: "`ssh` on loopback", theirs, goal: { least: 0.9 } };
      return { rows: [row], notes: [] };
    }),
  );
}

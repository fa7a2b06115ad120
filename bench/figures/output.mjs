/** 1 GiB of a process's output from the child to a client's bytes, through daemon and bridge, beside ssh on loopback. */

import { fork } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, rmdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { userInfo } from "node:os";
import { fileURLToPath } from "node:url";
import { token, withDaemon } from "../daemon.mjs";
import { end, output, sideBySide, sleep, start } from "../measure.mjs";

const taker = fileURLToPath(new URL("../peers/take.mjs", import.meta.url));

/** sshd does not start as root without it; where no sshd runs, it is not there. */
const privilegeSeparation = "/run/sshd";

export const title = "Process output";

export function run({ rounds, progress, scale }) {
  const bytes = scale(2 ** 30);
  return withDaemon(async ({ socket, directory }) => {
    const isOurs = process.getuid() === 0 && !existsSync(privilegeSeparation);
    if (isOurs) mkdirSync(privilegeSeparation, { mode: 0o755 });
    const { sshd, ssh } = await startSshd(directory);
    try {
      const take =
        (kind, ...args) =>
        () =>
          new Promise((done, fail) => {
            const child = fork(taker, [kind, String(bytes), ...args]);
            child
              .once("message", (seconds) => done(bytes / 2 ** 20 / seconds))
              .once("exit", (code) => fail(new Error(`${kind} ended with ${code}`)));
          });
      const { ours, theirs } = await sideBySide(
        rounds(7),
        {
          ours: take("holdfast", socket, token),
          theirs: take("ssh", ...ssh),
        },
        progress,
      );
      return {
        rows: [
          {
            label: `process output, ${bytes / 2 ** 30} GiB`,
            unit: "MiB/s",
            ours,
            peer: "`ssh` on loopback",
            theirs,
            goal: { least: 1 },
          },
        ],
        notes: [],
      };
    } finally {
      await end(sshd);
      if (isOurs) rmdirSync(privilegeSeparation);
    }
  });
}

/** An sshd of our own, with keys of our own, on a port of 127.0.0.1. */
async function startSshd(directory) {
  await output("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${directory}/key`]);
  copyFileSync(`${directory}/key.pub`, `${directory}/authorized`);
  chmodSync(`${directory}/authorized`, 0o600);
  const port = await freePort();
  writeFileSync(
    `${directory}/sshd_config`,
    `
ListenAddress 127.0.0.1
Port ${port}
HostKey ${directory}/key
AuthorizedKeysFile ${directory}/authorized
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
`,
  );
  const sshd = start("/usr/sbin/sshd", ["-D", "-e", "-f", `${directory}/sshd_config`], { stdio: "ignore" });
  const ssh = [
    "-F",
    "none",
    "-i",
    `${directory}/key`,
    "-p",
    String(port),
    "-o",
    "IdentitiesOnly=yes",
    "-o",
    "BatchMode=yes",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
    `${userInfo().username}@127.0.0.1`,
  ];
  for (let attempt = 0; ; attempt++) {
    try {
      await output("ssh", [...ssh, "true"]);
      return { sshd, ssh };
    } catch (error) {
      if (attempt === 20) throw error;
      await sleep(100);
    }
  }
}

function freePort() {
  return new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

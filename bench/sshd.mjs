/** An sshd of our own, with keys of its own, on a port of 127.0.0.1. */

import { chmodSync, copyFileSync, existsSync, mkdirSync, rmdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { userInfo } from "node:os";
import { end, output, sleep, start } from "./measure.mjs";

/** sshd does not start as root without it; where no sshd runs, it is not there. */
const privilegeSeparation = "/run/sshd";

/** Hands the arguments of an ssh client to `use`, and ends the sshd, however `use` ends. */
export async function withSshd(directory, use) {
  const isOurs = process.getuid() === 0 && !existsSync(privilegeSeparation);
  if (isOurs) mkdirSync(privilegeSeparation, { mode: 0o755 });
  const { sshd, ssh } = await startSshd(directory);
  try {
    return await use(ssh);
  } finally {
    await end(sshd);
    if (isOurs) rmdirSync(privilegeSeparation);
  }
}

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

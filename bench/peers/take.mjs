/** Takes the output of `head -c BYTES /dev/zero` to its last byte: `node take.mjs holdfast BYTES SOCKET TOKEN` or `node take.mjs ssh BYTES SSH-ARGUMENTS…`. */

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { program } from "../daemon.mjs";

const [kind, size, ...rest] = process.argv.slice(2);
let begin; // at the first byte: connecting and logging in are not meant here
let bytes = 0;
const take = (data) => {
  begin ??= performance.now();
  bytes += data.length;
};

if (kind === "holdfast") {
  const [socket, token] = rest;
  const { connect } = createRequire(import.meta.url)(program);
  const there = await connect({
    command: [process.execPath, program, "--bridge", "--no-start", "--socket", socket],
    token,
  });
  const head = await there.spawn({
    command: "head",
    args: ["-c", size, "/dev/zero"],
    onOutput: ({ data }) => take(data),
  });
  await head.exit;
} else {
  const ssh = spawn("ssh", [...rest, `head -c ${size} /dev/zero`], { stdio: ["ignore", "pipe", "inherit"] });
  ssh.stdout.on("data", take);
  await new Promise((done) => ssh.on("close", done));
}
if (bytes !== Number(size)) throw new Error(`${bytes} bytes came, not ${size}`);
process.send((performance.now() - begin) / 1000, () => process.exit());

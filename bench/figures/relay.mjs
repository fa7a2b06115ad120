/** 4 GiB through `--bridge`, each way, beside socat on the same socket and pipe. */

import { fork } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { program, withDirectory } from "../daemon.mjs";
import { end, exitOf, sideBySide, start } from "../measure.mjs";
import { frameOf } from "../wire.mjs";

const endpoint = fileURLToPath(new URL("../peers/endpoint.mjs", import.meta.url));

export const title = "Relay";

const requestOf = (data) => ({ jsonrpc: "2.0", id: 1, method: "process.stdin", params: { id: "a", data } });

export async function run({ rounds, progress, scale }) {
  const bytes = scale(4 * 2 ** 30);
  const rows = [];
  for (const [direction, words] of [
    ["source", "to the client"],
    ["sink", "to the daemon"],
  ]) {
    await withDirectory(async (directory) => {
      const socket = `${directory}/s`;
      const frame = frameOf(65536, requestOf);
      writeFileSync(`${directory}/frames`, Buffer.concat(Array(1024).fill(frame))); // 64 MiB
      const far = fork(endpoint, [socket, direction, String(bytes)]);
      await new Promise((done) => far.once("message", done));
      const through = (command) => async () => {
        const dd = "dd bs=1M status=none iflag=fullblock";
        const line =
          direction === "source"
            ? `${command} | ${dd} count=${bytes / 2 ** 20} of=/dev/null`
            : `i=0; while [ $i -lt ${bytes / 2 ** 26} ]; do cat '${directory}/frames'; i=$((i+1)); done | ${command}`;
        const begin = performance.now();
        const received = direction === "sink" ? new Promise((done) => far.once("message", done)) : undefined;
        const child = start("sh", ["-c", line], { stdio: ["pipe", "ignore", "ignore"] });
        await (received ?? exitOf(child));
        const seconds = (performance.now() - begin) / 1000;
        child.stdin.end();
        await exitOf(child);
        return bytes / 2 ** 20 / seconds;
      };
      const { ours, theirs } = await sideBySide(
        rounds(5),
        {
          ours: through(`'${process.execPath}' '${program}' --bridge --no-start --socket '${socket}'`),
          theirs: through(`socat -b 65536 STDIO UNIX-CONNECT:'${socket}'`),
        },
        (text) => progress(`${words}, ${text}`),
      );
      rows.push({
        label: `bridge, ${bytes / 2 ** 30} GiB ${words}`,
        unit: "MiB/s",
        ours,
        peer: "`socat -b 65536`",
        theirs,
        goal: { least: 1 },
      });
      await end(far);
    });
  }
  return { rows, notes: [] };
}

/** `--serve` to "listening", and `--bridge` to the first answer, beside `node -e 0` of the same runtime. */

import { fileURLToPath } from "node:url";
import { program, withDirectory } from "../daemon.mjs";
import { output } from "../measure.mjs";

const loop = fileURLToPath(new URL("start-loop.mjs", import.meta.url));

export const title = "Start";

export async function run({ rounds, progress, host }) {
  progress("on this machine, without systemd");
  const here = await withDirectory(async (directory) =>
    JSON.parse(await output(process.execPath, [loop, program, String(rounds(20)), directory, "--lifetime", "detach"])),
  );
  const rows = [
    row('`--serve` to "listening", detach', here.serve, here, { most: 2.4 }),
    row("`--bridge` to the first answer", here.bridge, here, { most: 1.35 }),
  ];
  if (typeof host === "string") return { rows, notes: [`on a booted host: not measured, ${host}`] };
  for (const [killUserProcesses, words, goal] of [
    [false, "detach, on a booted host", { most: 2.4 }],
    [true, "scope, on a booted host", { most: 2.8 }],
  ]) {
    progress(words);
    const there = await host.withHost({ users: ["dev+linger"], killUserProcesses }, async (machine) => {
      await machine.copy("dev", program, "holdfast.js");
      await machine.copy("dev", loop, "start-loop.mjs");
      const { code, stdout, stderr } = await machine.ssh(
        "dev",
        `mkdir -m 700 run && node start-loop.mjs ./holdfast.js ${rounds(15)} ./run`,
        { timeoutMs: 240_000 },
      );
      if (code !== 0) throw new Error(`the loop on the host ended with ${code}: ${stderr}`);
      return JSON.parse(stdout);
    });
    if (killUserProcesses !== / in holdfast-\S+\.scope /.test(there.line))
      throw new Error(`not where it was to be: ${there.line}`);
    rows.push(row(`\`--serve\` to "listening", ${words}`, there.serve, there, goal));
  }
  return { rows, notes: [] };
}

const row = (label, ours, { node }, goal) => ({ label, unit: "ms", ours, peer: "`node -e 0`", theirs: node, goal });

/** A daemon of the built file in a directory of its own, for one figure. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { output } from "./measure.mjs";

export const program =
  process.env.HOLDFAST_BENCH_PROGRAM ?? fileURLToPath(new URL("../dist/holdfast.js", import.meta.url));
export const token = "t".repeat(32);

/** Hands a directory to `use`, and removes it, however `use` ends. */
export async function withDirectory(use) {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-bench-"));
  try {
    return await use(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Starts a daemon as a user does, and stops it, however `use` ends. */
export function withDaemon(use) {
  return withDirectory(async (directory) => {
    const daemon = await startDaemon(directory);
    try {
      return await use({ ...daemon, directory });
    } finally {
      await daemon.stop();
    }
  });
}

export async function startDaemon(directory) {
  const socket = join(directory, "s");
  const tokenFile = join(directory, "token");
  writeFileSync(tokenFile, token, { mode: 0o600 });
  const { pid } = JSON.parse(
    await output(process.execPath, [program, "--serve", "--json", "--socket", socket, "--token-file", tokenFile]),
  );
  const stop = () => output(process.execPath, [program, "--stop", "--now", "--socket", socket]);
  return { socket, tokenFile, pid, stop, log: () => readFileSync(`${socket}.log`, "utf8") };
}

/** The booted hosts of the tests, for scripts: tests/host/host.ts, bundled as the tests are. Run from the project's root. */

import { rmSync } from "node:fs";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));

/** @returns The module; or, in words, why no host can be booted here. */
export async function loadHosts() {
  const outfile = `${root}node_modules/.cache/holdfast-hosts-${process.pid}.mjs`;
  try {
    await build({
      ...{ entryPoints: [`${root}tests/host/host.ts`], outfile, bundle: true, platform: "node", format: "esm" },
      ...{ target: "node18", packages: "external", logLevel: "warning" },
    });
    const hosts = await import(pathToFileURL(outfile).href);
    return hosts.hostsCanRun() ?? hosts;
  } finally {
    rmSync(outfile, { force: true });
  }
}

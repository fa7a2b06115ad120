/**
 * Runs a shell command on several hosts at once, each line behind its host's name. It puts holdfast there first, where it is not; and when a line is lost
 * it goes on where it was. Ctrl-C ends the command everywhere. Exit code 1 if it failed anywhere.
 *
 *     npm install ./holdfast-0.2.0.tgz && node fleet.ts 'make -j4' build1 ann@build2
 *
 * Before Node 24: npx esbuild fleet.ts --format=esm --target=node18 --outfile=fleet.mjs && node fleet.mjs 'make -j4' …
 * In one file with the library: with --bundle --platform=node, too; HOLDFAST_FILE then says where holdfast.js is.
 *
 * SSH in the environment is the ssh command: "ssh -o BatchMode=yes" by default.
 */

import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import type { Deployment } from "holdfast";
import { deploy } from "holdfast";

const [command = "uptime", ...hosts] = process.argv.slice(2);
const ssh = (process.env.SSH ?? "ssh -o BatchMode=yes").split(" ");
const interrupted = new AbortController();
process.once("SIGINT", () => interrupted.abort(new Error("interrupted")));

/** Resolves to the exit code of the command on one host. */
async function runOn(host: string): Promise<number | null> {
  const say = (text: string): void => console.error(`${host}: ${text}`);
  const program = process.env.HOLDFAST_FILE; // where an application is bundled into one file, holdfast.js is elsewhere
  await using there: Deployment = await deploy({
    ssh: [...ssh, host],
    reconnect: true,
    signal: interrupted.signal,
    ...(program === undefined ? {} : { program }),
  });
  if (there.served.lifetime.survivesLogout !== "yes") say(`survives logout: ${there.served.lifetime.words}`);
  there.on("lost", ({ message }) => say(message)).on("reconnected", () => say("connected again"));
  const job = await there.spawn({
    command: "/bin/sh",
    args: ["-c", command],
    stdin: "none",
    signal: interrupted.signal,
  });
  const printing = [printLines(host, job.stdout, process.stdout), printLines(host, job.stderr, process.stderr)];
  const [{ exitCode }] = await Promise.all([job.exit, ...printing]);
  return exitCode;
}

/** Line by line, so that the hosts do not get mixed up. */
async function printLines(host: string, input: Readable, output: NodeJS.WriteStream): Promise<void> {
  for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY }))
    output.write(`${host}: ${line}\n`);
}

const results = await Promise.allSettled(hosts.map(runOn));
for (const [at, result] of results.entries()) {
  if (result.status === "fulfilled" && result.value === 0) continue;
  process.exitCode = 1;
  const { message, hint } = result.status === "rejected" ? result.reason : { message: `exit code ${result.value}` };
  console.error(`${hosts[at]}: ${message}`);
  if (hint) console.error(`${hosts[at]}: hint: ${hint}`);
}

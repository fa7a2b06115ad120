// time limit: 240 s
/** --run and what comes back to it, over real ssh sessions that end in every way, on a host that kills at logout and on one that does not. */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, sleep } from "../daemon.ts";
import type { Host } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";

requireHosts(2);

/** Tells what is done to it: signals, lines of stdin, and its end. */
const teller =
  'for s in INT TERM HUP QUIT; do trap "echo was told $s; exit 9" $s; done; echo up; while read -r line; do echo got $line; done; echo stdin ended; while :; do sleep 0.2; done';

/** How a line is lost that --run hangs on. */
const lines: [id: string, args: string[], command: (run: string) => string][] = [
  ["plain", ["-T"], (run) => run],
  ["shell", ["-T"], (run) => `sh -c "cd /tmp && ${run.replaceAll('"', '\\"').replaceAll("$", "\\$")}; true"`],
  ["terminal", ["-tt"], (run) => run],
];

async function runAndLose(host: Host, [id, args, command]: (typeof lines)[number]): Promise<void> {
  const run = `/home/ann/hf --run --id ${id} -- bash -c '${teller.replaceAll("'", "'\\''")}'`;
  const child = host.spawnSsh("ann", command(run), args);
  let said = "";
  child.stdout.on("data", (chunk: Buffer) => (said += chunk));
  child.stderr.on("data", (chunk: Buffer) => (said += chunk));
  await until(() => said.includes("up"), `${id} is up`, 30_000);
  child.stdin.write("a line\n");
  await until(() => said.includes("got a line"), `${id} has a line: ${said}`, 30_000);
  child.kill("SIGKILL");
  await new Promise((done) => child.once("close", done));
}

async function comeBack(host: Host, id: string): Promise<void> {
  const logs = await host.ssh("ann", `./hf --logs ${id}`);
  assert.equal([logs.code, logs.stdout.replaceAll("\r", "")], [0, "up\ngot a line\n"], `${id}: ${logs.stderr}`);
  const both = await host.ssh(
    "ann",
    `(sleep 1; ./hf --kill ${id} INT) & ./hf --attach ${id} --no-stdin; echo $?; wait`,
  );
  assert.match(both.stdout.replaceAll("\r", ""), /^up\ngot a line\nwas told INT\n9\n$/, `${id}: ${both.stderr}`);
}

const jobs = suite("--run over ssh");
for (const killUserProcesses of [true, false]) {
  jobs(
    `goes on where the line is lost, on a host that ${killUserProcesses ? "kills" : "does not kill"} at logout`,
    () =>
      withHost({ killUserProcesses, users: ["ann+linger"] }, async (host) => {
        await host.copy("ann", builtFile, "hf");
        const detached = await host.ssh("ann", "./hf --run --detach sh -c 'sleep 4; seq 5; exit 3'");
        assert.equal([detached.code, detached.stdout], [0, "sh\n"], detached.stderr);
        assert.match(detached.stderr, /survives logout: yes/);
        for (const line of lines) await runAndLose(host, line);
        await host.sleepUntilLoggedOut("ann");
        await sleep(3000);
        const waited = await host.ssh("ann", "./hf --wait sh; echo $?; ./hf --logs sh --lines 2");
        assert.is(waited.stdout, "3\n4\n5\n", waited.stderr);
        for (const [id] of lines) await comeBack(host, id);
        // Ctrl-C at a terminal is the process's
        const child = host.spawnSsh(
          "ann",
          "./hf --run --id c -- bash -c 'trap \"echo INT; exit 4\" INT; echo up; while :; do sleep 0.1; done'; echo code $?",
          ["-tt"],
        );
        let said = "";
        child.stdout.on("data", (chunk: Buffer) => (said += chunk));
        await until(() => said.includes("up"), "it is up", 30_000);
        child.stdin.write("\x03");
        await until(() => said.includes("code 4"), `Ctrl-C: ${said}`, 30_000);
        child.kill();
        const list = await host.ssh("ann", "./hf --list; ./hf --stop --now");
        assert.match(list.stdout, /\nplain +exit 9 /);
      }),
  );
}
jobs.run();

// time limit: 120 s
/** A daemon that dies comes back by itself, though nobody connects; at most so often, and not when it was meant to end. */

import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { appendFileSync, copyFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { readText } from "../record.ts";
import type { Bridge, Site } from "./daemon.ts";
import { bridgeOf, builtFile, builtWith, isAlive, request, sideBySide, sleep, until, withDirectory } from "./daemon.ts";

const on = { HOLDFAST_WATCHDOG: "on" };
const all = suite("A daemon");
const test = sideBySide(all, 3);

/** Kills the daemon of the record. @returns How long until another one had its name, in ms; undefined when none came. */
async function killAndWait(site: Site, withinMs: number): Promise<number | undefined> {
  await until("one watches over it", () => watchers(site).length === 1, 20_000);
  const { pid, instance } = site.record();
  const start = performance.now();
  process.kill(pid, "SIGKILL");
  const isBack = () => site.record().instance !== instance && isAlive(site.record().pid) && existsSync(site.socket); // published after its record
  while (!isBack() && performance.now() - start < withinMs) await sleep(10);
  return isBack() ? performance.now() - start : undefined;
}

/** The pids of those who watch, by their arguments. */
const watchers = (site: Site): number[] =>
  site.processes().filter((pid) => readText(`/proc/${pid}/cmdline`)?.includes("--revive"));

test("that is killed is there again within a moment, with its work and its tokens, and without a client", () =>
  withDirectory(async (site) => {
    await site.serve([], { env: on });
    const client = await site.dial();
    const { result } = await client.ask("process.spawn", { id: "a", command: "sleep", args: ["1000"] }, site.token);
    const ms = await killAndWait(site, 20_000);
    assert.ok(ms !== undefined, "it is back");
    const next = await site.dial();
    const { processes } = (await next.ask("process.list", {}, site.token)).result;
    assert.equal([processes[0].id, processes[0].pid, processes[0].running], ["a", result.pid, true]);
    const said = /\[Watchdog\] the daemon \(pid \d+, .*\) is gone without a word: .*: started it again/;
    await until("it is said", () => said.test(site.log()), 20_000);
  }));

test("that dies again and again comes back three times, and then says no more", () =>
  withDirectory(async (site) => {
    await site.serve([], { env: on });
    for (let i = 0; i < 3; i++) assert.ok((await killAndWait(site, 20_000)) !== undefined, `return ${i + 1}`);
    assert.is(await killAndWait(site, 3000), undefined);
    const isSaid = () => /\[Watchdog\] The daemon is dead again, after 3 returns within 60 s/.test(site.log());
    await until("it says that it does so no more", isSaid);
    assert.match(
      (await site.run(["--doctor"])).stdout.toString(),
      /come back by itself 3 times within a minute: it does so no more/,
    );
    const bridge = site.bridge();
    assert.equal(
      (await bridge.ask("server.ping", {}, site.token)).result,
      { pong: true },
      "a bridge starts it all the same",
    );
    bridge.child.stdin.end();
    await bridge.exit;
  }));

/**
 * Serves from a file whose daemons end by SIGKILL as they start, once they are told to: first of all, or when they have one to watch over them and no
 * record yet.
 *
 * @returns Tells them how many of them are to; and how many have not.
 */
async function serveMortal(
  site: Site,
  when: "at once" | "once watched",
): Promise<{ set(n: number): void; left(): number }> {
  const [file, left] = [join(site.directory, "server.cjs"), join(site.directory, "left")];
  const end = 'process.kill(process.pid, "SIGKILL")';
  const late = `const c = require("child_process"), { spawn } = c; c.spawn = (...all) => { spawn(...all); ${end}; }`;
  const mortal = `if (process.argv.includes("--launched")) {
    const fs = require("fs"), left = Number(fs.readFileSync(${JSON.stringify(left)}, "utf8"));
    if (left > 0) { fs.writeFileSync(${JSON.stringify(left)}, String(left - 1)); ${when === "at once" ? end : late}; }
  }`;
  writeFileSync(
    file,
    readFileSync(builtFile, "utf8").replace(/^(#!.*\n)?/, (first) => `${first}${mortal}\n`),
  );
  writeFileSync(left, "0");
  await site.serve([], { env: on, file });
  await until("one watches over it", () => watchers(site).length === 1, 20_000);
  return { set: (n) => writeFileSync(left, String(n)), left: () => Number(readFileSync(left, "utf8")) };
}

for (const when of ["at once", "once watched"] as const) {
  test(`that dies ${when} as it comes back is started again`, () =>
    withDirectory(async (site) => {
      const deaths = await serveMortal(site, when);
      deaths.set(1);
      assert.ok((await killAndWait(site, 20_000)) !== undefined, "it is back");
      assert.is(deaths.left(), 0);
      assert.is(site.record().returns.length, 2, "both starts count");
    }));

  test(`that dies ${when} as it comes back, each time, is left alone in the end`, () =>
    withDirectory(async (site) => {
      const deaths = await serveMortal(site, when);
      deaths.set(100);
      process.kill(site.record().pid, "SIGKILL");
      const isGivenUp = () => /\[Watchdog\] The daemon is dead again, after 3 returns within 60 s/.test(site.log());
      await until("it is left alone", isGivenUp, 40_000);
      await until("nobody is left", () => site.processes().length === 0);
      assert.is(100 - deaths.left(), 3, "starts");
    }));
}

test("that is stopped, or ended by SIGTERM, stays away, and nobody watches any more", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve([], { env: on });
    await until("one watches over it", () => watchers(site).length === 1);
    process.kill(pid, "SIGTERM");
    await until("all is over", () => site.processes().length === 0);
    await site.serve([], { env: on });
    assert.is((await site.run(["--stop"])).code, 0);
    await until("all is over", () => site.processes().length === 0);
    assert.is(site.record().ended.reason, "stopped");
  }));

test("is not started again from a file that is another one by then", () =>
  withDirectory(async (site) => {
    const file = join(site.directory, "server.cjs");
    copyFileSync(builtFile, file);
    await site.serve([], { env: on, file });
    await until("one watches over it", () => watchers(site).length === 1);
    appendFileSync(file, "\n// another version\n");
    assert.is(await killAndWait(site, 2000), undefined);
    await until("it is said", () => site.log().includes("is not the file it was started from"));
    await until("nobody is left", () => site.processes().length === 0);
  }));

/** A supervisor: runs a daemon in the foreground, again and again, until it is told to end. @returns The exit codes that it has seen. */
function supervise(
  site: Site,
  pause: () => Promise<unknown>,
  file: string,
): { codes: (number | null)[]; pid(): number; end(): void } {
  const args = [file, "--serve", "--lifetime", "foreground", "--socket", site.socket, "--token-file", site.tokenFile];
  const codes: (number | null)[] = [];
  let isOver = false;
  let child: ChildProcess;
  const start = (): void => {
    child = spawn(process.execPath, args, { env: { ...site.env, ...on }, stdio: "ignore" });
    child.once("exit", (code) => {
      codes.push(code);
      if (!isOver) void pause().then(() => isOver || start());
    });
  };
  start();
  const end = (): void => {
    isOver = true;
    child.kill("SIGTERM");
  };
  return { codes, pid: () => child.pid!, end };
}

/** A supervised daemon with a process is killed, and a bridge comes before the supervisor does. */
async function killSupervised(
  site: Site,
  { supervisorMs, pause }: { supervisorMs: number; pause: () => Promise<unknown> },
  run: (bridge: Bridge, found: Supervised) => Promise<void>,
): Promise<void> {
  const file = builtWith(site.directory, { supervisorMs });
  const supervisor = supervise(site, pause, file);
  await until("it listens", () => existsSync(site.socket), 20_000);
  assert.equal(watchers(site), [], "nobody else watches over it");
  const client = await site.dial();
  const { result } = await client.ask("process.spawn", { id: "a", command: "sleep", args: ["1000"] }, site.token);
  process.kill(site.record().pid, "SIGKILL");
  await client.ended;
  const bridge = bridgeOf(["--bridge", "--socket", site.socket], { ...site.env, ...on }, "native", file);
  await run(bridge, { supervisor, work: result.pid });
  assert.is(site.record().pid, supervisor.pid());
  assert.equal(supervisor.codes.slice(1), [], "none of its starts was in vain");
  const { processes } = (await (await site.dial()).ask("process.list", {}, site.token)).result;
  assert.equal([processes[0].id, processes[0].pid, processes[0].running], ["a", result.pid, true]);
  bridge.child.kill();
  supervisor.end();
  await until("all is over", () => site.processes().length === 0);
}

interface Supervised {
  supervisor: ReturnType<typeof supervise>;
  /** The pid of its process. */
  work: number;
}

test("in the foreground is its supervisor's to start again: a bridge that comes first waits for it", () =>
  withDirectory((site) =>
    killSupervised(site, { supervisorMs: 20_000, pause: () => sleep(1000) }, async (bridge, { supervisor }) => {
      assert.is((await bridge.ask("server.status", {}, site.token)).result.pid, supervisor.pid());
    }),
  ));

test("in the foreground whose supervisor takes its time is stood in for, until that comes", () =>
  withDirectory((site) => {
    let come = (): void => {};
    const told = new Promise<void>((done) => {
      come = done;
    });
    return killSupervised(site, { supervisorMs: 2000, pause: () => told }, async (bridge, { supervisor, work }) => {
      bridge.send(request("server.status", {}, site.token));
      const { pid, processes } = (await bridge.next(20_000)).result;
      assert.ok(pid !== supervisor.pid() && isAlive(pid), "another one answers");
      assert.is(processes[0].pid, work);
      come();
      await until("the supervisor has its own again", () => site.record().pid === supervisor.pid(), 20_000);
      await until("the other one has left", () => !isAlive(pid));
    });
  }));

test("that is not to be watched over is left to itself", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve([]);
    assert.equal(watchers(site), []);
    process.kill(pid, "SIGKILL");
    await until("its end", () => !isAlive(pid));
    await sleep(1000);
    assert.equal(site.processes(), []);
  }));

all.run();

/** A way into a host: a daemon is started by it, its user leaves, and what was said is compared with what there is. */

import * as assert from "uvu/assert";
import { builtFile, busyMs, sleep } from "../daemon.ts";
import type { Host, HostOptions, Result } from "./host.ts";
import { until } from "./host.ts";

/** What ends with the user manager, a second after the last logout, would be gone by then. */
const goneMs = 3000;
/** None may hang; the slowest is a user manager that does not answer for 5 s. */
const slowestMs = 10_000;

export const quick = (options: HostOptions): HostOptions => ({
  killUserProcesses: true,
  ...options,
  logind: ["UserStopDelaySec=1", ...(options.logind ?? [])],
});

export interface Way {
  user?: string;
  /** Runs a shell command on the host by the way under test. */
  run?: (host: Host, command: string) => Promise<Result>;
  /** Arguments of --serve beside socket and token. */
  args?: string;
  says: RegExp;
  /** In the stderr of --serve. */
  warns?: RegExp;
  lives: boolean;
  before?: (host: Host) => Promise<void>;
  after?: (host: Host) => Promise<void>;
}

/** Starts a daemon by some way in, leaves, waits, and compares what was said with what there is. */
export async function checkWay(
  host: Host,
  { user = "dev", run, args = "", says, warns, lives, before, after }: Way,
): Promise<void> {
  const login = run ?? ((_host: Host, command: string) => host.ssh(user, command));
  const socket = `/home/${user}/.run/rpc.sock`;
  await host.copy(user, builtFile, "server");
  await host.prepare(user);
  await before?.(host);
  const started = await login(
    host,
    `/home/${user}/server --serve --socket ${socket} --token-file /home/${user}/token ${args}`,
  );
  assert.is(started.code, 0, started.stderr);
  assert.ok(started.ms < busyMs(slowestMs), `it took ${started.ms} ms`);
  assert.match(started.stdout, says, started.stdout + started.stderr);
  assert.match(started.stderr, warns ?? /^$/, started.stderr);
  await after?.(host);
  await host.sleepUntilLoggedOut(user);
  await assertFate(host, socket, lives, goneMs, `${started.stdout}${started.stderr}`);
}

/** A daemon whose user is logged out is still there after some time; or it ends. */
export async function assertFate(host: Host, socket: string, lives: boolean, ms: number, said: string): Promise<void> {
  const count = (): number => host.processes(`--launched --socket ${socket}`).length;
  if (lives) await sleep(ms);
  else await until(() => count() === 0, `an end of the daemon that said: ${said}`, 10 * ms);
  assert.is(count(), lives ? 1 : 0, said);
}

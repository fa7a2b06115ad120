/**
 * Lanes: what waits for the host's file systems, bounded, so that one that does not answer holds up nothing else.
 *
 *     a path ─▶ a mount of NFS, FUSE or the like   1 request at once, and stat(1) asks whether it answers at all
 *               else a read or a list              4 at once, large ones 1; and not for a connection that does not take what it has
 *               else                               no lane
 *     a start of a child                             4 at once, one in a turn of the event loop
 *
 * A system call on a mount that has died returns when it comes back, or never: until then it holds one of libuv's 4 threads. So the client is told,
 * the thread is left to it, and the next ones are refused. What must not block at all, the event loop, is not let near such a mount: see processes.ts.
 */

import { spawn } from "node:child_process";
import { readlink } from "node:fs/promises";
import type { Failure } from "./failure.ts";
import { cannot, safely } from "./failure.ts";
import { now, readText, within } from "./record.ts";
import type { Peer } from "./rpc.ts";

/** File systems behind which there is another machine, or a program. */
const farTypes = /^(fuse|nfs|cifs|smb|9p|afs|auto|ceph|virtio|lustre|gpfs|gfs|ocfs|beegfs)/;
/** How long requests may take before their mount is asked, and how long it may take to answer. */
const askMs = 4000;
/** A new mount is seen within this time. */
const mountsMs = 1000;
/** As many links as the kernel follows (path_resolution(7)). */
export const maxLinks = 40;
/** A connection that has this much unread is not read for. */
const maxUnsentBytes = 16 << 20;

/** Starts at once; one that takes longer counts no more. */
const startsAtOnce = 4;
const slowStartMs = 100;

interface Lane {
  /** Where it is mounted, and its id; a lane of our own has none. */
  mount: string | undefined;
  id: string;
  width: number;
  /** Requests under way, and waiting for their turn. */
  count: number;
  waiting: (() => void)[];
  /** Ends a request, under way or not: the mount is silent. */
  failures: Set<() => void>;
  isWatched: boolean;
  /** When it was asked, and did not answer: now(). */
  silentSince: number | undefined;
}

export interface Lanes {
  /** Of our own, for what is not far away. */
  own: { [size in Size]?: Lane };
  /** Of the mounts that may not answer, by where they are mounted, as they were at readAt: now(). */
  far: Map<string, Lane>;
  readAt: number;
  /** Threads that wait for such a mount. */
  held: number;
}

/** "nested" is for what an action of ours waits for: it does not queue, since whoever is before it may wait for that action's own lane. */
export type Size = "small" | "large" | "nested";

export function createLanes(): Lanes {
  return { own: { small: createLane(4), large: createLane(1) }, far: new Map(), readAt: -Infinity, held: 0 };
}

/** Some mount is of a kind that may not answer. Nobody can tell where there is no /proc. */
export function hasFarMounts(lanes: Lanes): boolean {
  if (now() - lanes.readAt < mountsMs) return lanes.far.size > 0;
  lanes.readAt = now();
  const found = new Map<string, Lane>();
  // "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw": the later ones cover the earlier
  for (const [, id = "", path = "", type = ""] of (readText("/proc/self/mountinfo") || "").matchAll(
    /^(\d+) \S+ \S+ \S+ (\S+) .*? - (\S+)/gm,
  )) {
    const mount = path.replace(/\\(\d{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));
    const known = lanes.far.get(mount);
    if (farTypes.test(type)) found.set(mount, known?.id === id ? known : createLane(1, mount, id));
    else found.delete(mount);
  }
  lanes.far = found;
  return found.size > 0;
}

/** Threads wait for such a mount: exit(3) would wait for them. */
export function areHeld({ held }: Lanes): boolean {
  return held > 0;
}

/**
 * Runs what waits for a path's file system, when it is its turn.
 *
 * @param size Leaves what is not far away without a lane when it is left out.
 * @throws {Failure} The mount does not answer. What was under way may yet be carried out.
 */
export async function runInLane<T>(
  lanes: Lanes,
  path: string,
  action: () => Promise<T>,
  size?: Size,
  peer?: Peer,
): Promise<T> {
  const lane = (await farLaneOf(lanes, path)) ?? (size && lanes.own[size]);
  if (!lane) return action();
  if (lane.silentSince !== undefined) throw silence(lane, path);
  return new Promise<T>((resolve, reject) => {
    const fail = (): void => reject(silence(lane, path));
    const start = async (): Promise<void> => {
      if (peer && peer.unsentBytes > maxUnsentBytes) return whenTaken(peer, () => queue(lane, start));
      lane.count++;
      if (lane.mount) lanes.held++;
      await Promise.resolve().then(action).then(resolve, reject); // it may also throw
      if (lane.mount) lanes.held--;
      lane.failures.delete(fail);
      setImmediate(() => {
        // when the answer has been written
        lane.count--;
        pump(lane);
      });
    };
    lane.failures.add(fail);
    if (size === "nested") void start();
    else queue(lane, start);
    watch(lane);
  });
}

/** What is started: one in a turn of the event loop, since to fork takes some ms, and a few at once, since each takes the processors from everybody. */
export interface Starts {
  readonly waiting: { by: unknown; go(): void }[];
  count: number;
  isTurnTaken: boolean;
  /** Who was last: while others wait, it is not next. */
  last: unknown;
}

export function createStarts(): Starts {
  return { waiting: [], count: 0, isTurnTaken: false, last: undefined };
}

/** @param by On whose behalf: each of several has its turn. */
export async function startInTurn<T>(starts: Starts, by: unknown, start: () => Promise<T>): Promise<T> {
  await new Promise<void>((go) => {
    starts.waiting.push({ by, go });
    startNext(starts);
  });
  const started = Promise.resolve().then(start); // it may also throw
  void within(
    started.catch(() => {}),
    slowStartMs,
  ).then(() => {
    starts.count--;
    startNext(starts);
  });
  return started;
}

function startNext(starts: Starts): void {
  const { waiting, last } = starts;
  if (starts.isTurnTaken || starts.count === startsAtOnce || waiting.length === 0) return;
  const [next] = waiting.splice(
    Math.max(
      0,
      waiting.findIndex(({ by }) => by !== last),
    ),
    1,
  );
  starts.count++;
  starts.last = next!.by;
  starts.isTurnTaken = true;
  next!.go();
  setImmediate(() => {
    starts.isTurnTaken = false;
    startNext(starts);
  });
}

/** Follows a path link by link, but never into a far mount: even to look at it is to wait for it. */
async function farLaneOf(lanes: Lanes, path: string): Promise<Lane | undefined> {
  if (!hasFarMounts(lanes)) return undefined;
  const { far } = lanes;
  let at = "";
  const rest = namesOf(path);
  for (let links = 0; rest.length > 0; ) {
    const name = rest.shift()!;
    if (name === "..") {
      at = at.slice(0, Math.max(at.lastIndexOf("/"), 0)); // it has been walked through
      continue;
    }
    const next = `${at}/${name}`;
    if (far.has(next)) return far.get(next);
    const link = links === maxLinks ? undefined : await readlink(next).catch(() => undefined);
    if (!link) {
      at = next;
      continue;
    }
    links++;
    rest.unshift(...namesOf(link));
    if (link.startsWith("/")) at = "";
  }
  return far.get("/");
}

function namesOf(path: string): string[] {
  return path.split("/").filter((name) => name !== "" && name !== ".");
}

function createLane(width: number, mount?: string, id = ""): Lane {
  return { mount, id, width, count: 0, waiting: [], failures: new Set(), isWatched: false, silentSince: undefined };
}

function queue(lane: Lane, start: () => void): void {
  lane.waiting.push(start);
  pump(lane);
}

function pump(lane: Lane): void {
  while (lane.count < lane.width && lane.waiting.length > 0) lane.waiting.shift()!();
}

/** As long as requests are under way. What is slow answers, what is dead does not. */
function watch(lane: Lane): void {
  const { mount, failures } = lane;
  if (!mount || lane.isWatched) return;
  lane.isWatched = true;
  setTimeout(async () => {
    if (failures.size > 0) {
      const askedAt = now();
      const timer = setTimeout(() => {
        lane.silentSince = askedAt;
        lane.waiting = [];
        for (const fail of failures) fail();
        failures.clear();
      }, askMs);
      await answerOf(mount);
      clearTimeout(timer);
      lane.silentSince = undefined;
    }
    lane.isWatched = false;
    if (failures.size > 0) watch(lane);
  }, askMs).unref();
}

/**
 * Asks a mount, by a process of its own: a thread would be held, too. Where there is no stat(1), the mount has the time that is left.
 *
 * It is not looked for in our PATH: that may lead through this very mount, and to spawn is to wait.
 */
function answerOf(mount: string): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => resolve();
    const later = (): void => void setTimeout(done, 2 * askMs);
    const asked = safely(() =>
      spawn("stat", ["-f", mount], { cwd: "/", env: { PATH: "/usr/bin:/bin" }, stdio: "ignore" })
        .once("exit", done)
        .once("error", later),
    );
    if (!asked) later();
  });
}

function silence({ mount, silentSince }: Lane, path: string): Failure {
  const seconds = Math.round((now() - silentSince!) / 1000);
  return cannot(`use "${path}": the file system of "${mount}" has not answered for ${seconds} s`, {
    data: { errno: "ETIMEDOUT" },
  });
}

/** Calls back when a connection has taken what it was sent, or is gone. */
function whenTaken(peer: Peer, callback: () => void): void {
  const stop = [peer.onDrain, peer.onClose].map((listen) =>
    listen(() => {
      for (const end of stop) end();
      callback();
    }),
  );
}

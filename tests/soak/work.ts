/** The operations of the soak. Each checks its own answers: what is wrong is thrown. */

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { Outcome } from "../daemon.ts";
import { isAlive, outcomeOf, sleep, statOf } from "../daemon.ts";
import type { Line } from "./line.ts";
import { Lost, openBridgeLine, openSocketLine, Refused, Wrong } from "./line.ts";
import type { Track } from "./lines.ts";
import { createTrack, lineCount, linesOf, seqOf } from "./lines.ts";

/** A daemon, from its start to its end. */
export interface Life {
  pid: number;
  instance: string;
}

/** What all workers share. */
export interface Site {
  directory: string;
  socket: string;
  /** Token and file, each good for the daemon since the beginning. */
  tokens: { token: string; file: string }[];
  env: NodeJS.ProcessEnv;
  life: Life;
  /** Ended on purpose with what they were. */
  counts: { bridgesKilled: number; linesCut: number; revivals: number; publications: number; gaps: number };
  /** Runtime, its flags and the built file with these arguments and --socket. */
  command(args: string[]): string[];
  /** One at a time; and whoever loses a line meanwhile has not found a mistake. */
  disturb<T>(action: () => Promise<T>): Promise<T>;
  isDisturbed(): boolean;
}

/** One that does an operation after another. */
export interface Worker {
  site: Site;
  name: string;
  /** From 0 to 1, the same for the same seed. */
  random(): number;
  /** Names of processes, used again and again: so the daemon keeps only so many. */
  ids: string[];
  turn: number;
}

export interface Operation {
  name: string;
  /** How often, beside the others. */
  weight: number;
  run(worker: Worker): Promise<void>;
}

const integer = ({ random }: Worker, from: number, to: number): number => from + Math.floor(random() * (to - from));
const pick = <T>(worker: Worker, items: readonly T[]): T => items[integer(worker, 0, items.length)]!;
const chance = ({ random }: Worker, part: number): boolean => random() < part;

function expect(isSo: unknown, words: () => string): asserts isSo {
  if (!isSo) throw new Wrong(words());
}

function same(actual: unknown, expected: unknown, what: string): void {
  const [a, b] = [actual, expected].map((value) => JSON.stringify(value));
  if (a !== b) throw new Wrong(`${what}: ${a?.slice(0, 500)}, expected ${b?.slice(0, 500)}`);
}

async function refusal(promise: Promise<unknown>, code: number, what: string): Promise<Refused> {
  try {
    await promise;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    expect(error.code === code, () => `${what}: ${error.message}, expected code ${code}`);
    return error;
  }
  throw new Wrong(`${what}: it was accepted`);
}

// Lines and processes

/**
 * Opens a line in any of the four ways, and authenticates in either of two.
 *
 * @param life Of the daemon that it is to lead to. Of a process that goes on in another one, what is missing depends on how the first was ended: that
 * is for other tests.
 */
export async function openLine(
  worker: Worker,
  { bridge = chance(worker, 0.2), framing = pick(worker, ["native", "native", "lines"] as const) } = {},
  life = worker.site.life,
): Promise<Line> {
  const { site } = worker;
  const { token } = pick(worker, site.tokens);
  const line = await dial(site, bridge, framing);
  try {
    if (chance(worker, 0.5)) line.auth = token;
    else same(await line.request("server.authenticate", { token }), { authenticated: true }, "server.authenticate");
    const { instanceId } = await line.request("server.capabilities");
    if (instanceId !== life.instance) throw new Lost(`instance ${instanceId} answers, not ${life.instance}`);
    return line;
  } catch (error) {
    line.cut();
    if (error instanceof Refused && error.code === -32001) throw new Lost(error.message); // another daemon, which has not been given this token yet
    throw error;
  }
}

/** Where the public name was deleted, a bridge finds the daemon all the same. */
async function dial(site: Site, bridge: boolean, framing: Line["framing"]): Promise<Line> {
  if (bridge || !existsSync(site.socket)) return openBridgeLine(site.command(["--bridge"]), site.env, framing);
  return openSocketLine(site.socket, framing);
}

async function withLine(
  worker: Worker,
  use: (line: Line) => Promise<void>,
  way?: Parameters<typeof openLine>[1],
  life?: Life,
): Promise<void> {
  const line = await openLine(worker, way, life);
  try {
    await use(line);
    await line.close();
  } catch (error) {
    line.cut();
    throw error;
  }
  const code = line.bridge === undefined ? 0 : line.bridge.exitCode;
  const words = `the bridge ended with ${code ?? line.bridge!.signalCode} as its client closed stdin: ${line.words}`;
  if (code === 69 || / closed the connection: /.test(line.words)) throw new Lost(words); // the daemon was stopped, or stopped and revived, just before
  expect(code === 0, () => words);
}

/** Ends a line without a word. */
function cut({ site }: Worker, line: Line): void {
  if (line.bridge === undefined) site.counts.linesCut++;
  else site.counts.bridgesKilled++;
  line.cut();
}

/** Starts a process under the worker's next name. What an operation left there that lost its line is ended first. */
async function start(
  worker: Worker,
  line: Line,
  command: string,
  args: string[],
  { from = 0, to = 0, env = undefined as object | undefined } = {},
): Promise<Track> {
  const id = worker.ids[worker.turn++ % worker.ids.length]!;
  let track: Track | undefined;
  line.onStream(id, () => {}); // of an earlier process of this name
  await line.request("process.killAndWait", { id, signal: "SIGKILL" }); // one that has ended may have left a grandchild, which nobody can name later
  const begin = (): Promise<unknown> =>
    line.request(
      "process.spawn",
      { id, command, args, cwd: worker.site.directory, ...(env === undefined ? {} : { env }) },
      (result) => {
        track = createTrack(id, result.pid, from, to);
        track.follow(line);
      },
    );
  for (const deadline = Date.now() + 30_000; track === undefined; ) {
    try {
      await begin();
    } catch (error) {
      if (!(error instanceof Refused) || error.code !== -32602 || Date.now() > deadline) throw error;
      await line.request("process.killAndWait", { id, signal: "SIGKILL" }); // an earlier operation was interrupted
      await line.request("process.reattach", { id }); // and what nobody has read goes to us
      await sleep(20);
    }
  }
  return track;
}

/** Takes what a process says to its end, over one line. */
async function finish(line: Line, track: Track): Promise<void> {
  while (track.exit === undefined) {
    await line.until(`the exit of ${track.id}`, () => track.exit !== undefined || track.detachedBy !== undefined);
    if (track.detachedBy === undefined) break;
    expect(track.detachedBy === "backpressure", () => `process "${track.id}" was detached by ${track.detachedBy}`);
    await track.takeUp(line);
    track.check();
  }
}

/** Runs the built file to its end. */
export async function run(worker: Worker, args: string[], codes = [0]): Promise<Outcome> {
  const command = worker.site.command(args);
  const outcome = await outcomeOf(spawn(command[0]!, command.slice(1), { env: worker.site.env, cwd: "/" }), "", 60_000);
  if (!codes.includes(outcome.code!))
    throw new Lost(`${args.join(" ")} ended with ${outcome.code ?? outcome.signal}: ${outcome.stderr}`);
  return outcome;
}

// The operations

async function ping(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    for (let count = integer(worker, 1, 20); count > 0; count--)
      same(await line.request("server.ping"), { pong: true }, "server.ping");
  });
}

async function shortProcess(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const from = integer(worker, 0, 1000);
    const to = from + integer(worker, 1, 3000);
    const code = integer(worker, 0, 100);
    const track = await start(worker, line, "/bin/sh", ["-c", `${seqOf(from, to)}; echo "$WORD" >&2; exit ${code}`], {
      from,
      to,
      env: { WORD: `word ${code}` },
    });
    await finish(line, track);
    track.check(true);
    same([track.exit, track.stderr], [{ exitCode: code }, `word ${code}\n`], "a short process");
    const { processes } = await line.request("process.list");
    const listed = processes.find(({ id }: { id: string }) => id === track.id);
    same(
      [listed?.pid, listed?.running, listed?.lastSeq],
      [track.pid, false, track.lastSeq],
      "its entry in process.list",
    );
  });
}

/** stdin with offsets: appended, repeated, overlapping, ahead; what comes back is what was given. */
async function echo(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const to = integer(worker, 100, 20_000);
    const given = linesOf(0, to);
    const track = await start(worker, line, "cat", [], { to });
    const write = (from: number, until: number, more = {}) =>
      line.request("process.stdin", {
        id: track.id,
        data: given.toString("base64", from, until),
        offset: from,
        ...more,
      });
    for (let at = 0; at < given.length; ) {
      const until = Math.min(given.length, at + integer(worker, 1, 40_000));
      const from = chance(worker, 0.3) ? integer(worker, 0, at + 1) : at; // some of it was given before
      same(await write(from, until), { success: true, applied: until }, "process.stdin");
      if (chance(worker, 0.2))
        same(await write(from, until), { success: true, applied: until, duplicate: true }, "process.stdin again");
      if (chance(worker, 0.2))
        same(
          (await refusal(write(until + 1, until + 5), -32003, "stdin ahead")).data,
          { applied: until },
          "stdin ahead",
        );
      at = until;
    }
    same(
      await line.request("process.stdin", { id: track.id, end: true }),
      { success: true, applied: given.length },
      "the end of stdin",
    );
    await finish(line, track);
    track.check(true);
    same(track.exit, { exitCode: 0 }, "cat");
  });
}

/** A process with children of its own, ended by killAndWait: all of its group. */
async function family(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const stubborn = chance(worker, 0.2);
    const script = `${stubborn ? "trap '' TERM; " : ""}sleep 300 & sleep 300 & echo $! >&2; (sleep 300 | cat) & ${seqOf(0, 50)}; wait; wait`;
    const track = await start(worker, line, "/bin/sh", ["-c", script], { to: 50 });
    await line.until("its words", () => track.seenBytes === linesOf(0, 50).length && track.stderr.endsWith("\n"));
    const child = Number(track.stderr);
    if (!isAlive(child)) await line.request("server.ping"); // or it was ended with its daemon, which does not answer then
    expect(isAlive(child), () => `child ${child} is not alive`);
    const answer = await line.request("process.killAndWait", { id: track.id, timeoutMs: stubborn ? 100 : 20_000 });
    if (stubborn) same(answer, { found: true, died: true, escalated: true }, "killAndWait of one that ignores TERM");
    else same(answer, { found: true, died: true }, "killAndWait");
    expect(!isAlive(track.pid) && !isAlive(child), () => "a member of the group is alive after killAndWait");
    await finish(line, track);
    same(track.exit!.killedBy, "client", "killedBy");
    track.check(true);
  });
}

async function kill(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const [signal, number] = pick(worker, [
      ["SIGTERM", 15],
      ["SIGKILL", 9],
      ["SIGINT", 2],
      ["SIGUSR1", 10],
    ] as const);
    const track = await start(worker, line, "sleep", ["300"]);
    same(await line.request("process.kill", { id: track.id, signal }), { success: true }, "process.kill");
    await finish(line, track);
    same(
      track.exit,
      { exitCode: 128 + number, signal, ...(signal === "SIGUSR1" ? {} : { killedBy: "client" }) },
      signal,
    );
    same(
      await line.request("process.kill", { id: track.id }),
      { success: true, alreadyExited: true },
      "process.kill again",
    );
  });
}

async function noProcess(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const id = `${worker.name}-none`;
    await refusal(line.request("process.spawn", { id, command: "/no/such/command" }), -32603, "no such command");
    await refusal(
      line.request("process.spawn", { id, command: "true", cwd: "/no/such/directory" }),
      -32603,
      "no such directory",
    );
    await refusal(line.request("process.stdin", { id, data: "" }), -32602, "stdin of nobody");
    same(await line.request("process.killAndWait", { id }), { found: false, died: false }, "killAndWait of nobody");
  });
}

/** Output faster than it is read, by a reader that stops now and then. */
async function flood(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const to = integer(worker, 50_000, 600_000);
    const track = await start(worker, line, "/bin/sh", ["-c", `exec ${seqOf(0, to)}`], { to });
    for (let stops = integer(worker, 0, 4); stops > 0 && track.exit === undefined; stops--) {
      line.pause();
      await sleep(integer(worker, 20, 400));
      line.resume();
      await sleep(integer(worker, 5, 50));
    }
    await finish(line, track);
    track.check(true);
    worker.site.counts.gaps += track.gaps;
  });
}

/** Output that nobody reads, as the line was cut; taken up from anywhere later. */
async function unread(worker: Worker): Promise<void> {
  const to = chance(worker, 0.3) ? lineCount : integer(worker, 1000, 300_000);
  const { life } = worker.site;
  const line = await openLine(worker);
  const track = await start(worker, line, "/bin/sh", ["-c", `${seqOf(0, 10)}; sleep 0.2; exec ${seqOf(10, to)}`], {
    to,
  });
  await sleep(integer(worker, 0, 300));
  cut(worker, line);
  await line.closed;
  track.check();
  const takeUp = async (next: Line): Promise<void> => {
    await track.takeUp(next);
    await finish(next, track);
    track.check(true);
    // and once more, from anywhere in what is held
    const again = await next.request("process.reattach", { id: track.id, fromSeq: track.lastSeq });
    same([again.running, again.lastSeq, again.exitCode], [false, track.lastSeq, 0], "reattach after the end");
    expect(again.firstSeq <= again.lastSeq, () => `firstSeq is ${again.firstSeq}, lastSeq ${again.lastSeq}`);
    const fromSeq = integer(worker, again.firstSeq - 1, track.lastSeq);
    const seen: any[] = [];
    next.onStream(track.id, (message) => seen.push(message));
    await next.request("process.reattach", { id: track.id, fromSeq });
    await next.until("the exit again", () => seen.at(-1)?.stream === "exit");
    const seqs = seen.map(({ seq }) => seq);
    same(
      [seqs[0], seqs.length],
      [fromSeq + 1, track.lastSeq - fromSeq],
      "seq and number of the messages that are sent again",
    );
    const bytes = Buffer.concat(seen.slice(0, -1).map(({ data }) => Buffer.from(data, "base64")));
    expect(
      bytes.equals(linesOf(0, to).subarray(linesOf(0, to).length - bytes.length)),
      () => `the last ${bytes.length} bytes are others when they are sent again`,
    );
    worker.site.counts.gaps += track.gaps;
  };
  await withLine(worker, takeUp, {}, life);
}

/** A process that speaks for seconds, over lines that break again and again, whoever breaks them; with stdin on its way. */
async function longProcess(worker: Worker): Promise<void> {
  const { site } = worker;
  const { life } = site;
  const to = integer(worker, 3000, 60_000);
  const given = linesOf(0, to);
  let line = await openLine(worker);
  const track = await start(worker, line, "cat", [], { to });
  const deadline = Date.now() + 120_000;
  let rounds = integer(worker, 2, 6);
  for (let isFirst = true; track.exit === undefined; isFirst = false) {
    expect(Date.now() < deadline, () => `process "${track.id}" was not read to its end within 120 s`);
    try {
      if (!isFirst) line = await openLine(worker, {}, life);
      const { stdinApplied, running } = isFirst ? { stdinApplied: 0, running: true } : await track.takeUp(line);
      const isLast = rounds-- <= 0;
      if (running && isLast) await giveRest(line, track.id, given, stdinApplied);
      if (!running || isLast) await finish(line, track);
      else await giveSome(worker, line, track.id, given, stdinApplied);
      if (chance(worker, 0.8)) cut(worker, line);
      await line.close();
    } catch (error) {
      line.cut();
      if (!(error instanceof Lost) || site.life !== life) throw error; // another daemon has it
      if (!site.isDisturbed()) throw error;
      await sleep(100);
    }
    await line.closed;
    track.check();
  }
  track.check(true);
  same(track.exit, { exitCode: 0 }, "cat");
  same(track.gaps, 0, "gaps of a process whose output is held whole");
}

async function giveRest(line: Line, id: string, given: Buffer, from: number): Promise<void> {
  for (let at = from; at < given.length; at += 200_000)
    await line.request("process.stdin", { id, offset: at, data: given.toString("base64", at, at + 200_000) });
  await line.request("process.stdin", { id, end: true });
}

/** A few pieces, whose answers nobody waits for: the line is cut in the middle. */
async function giveSome(worker: Worker, line: Line, id: string, given: Buffer, from: number): Promise<void> {
  let at = from;
  for (let pieces = integer(worker, 1, 8); pieces > 0 && at < given.length && !line.isClosed; pieces--) {
    const piece = given.subarray(at, at + Math.min(integer(worker, 1, 30_000), Math.ceil(given.length / 6)));
    line.request("process.stdin", { id, offset: at, data: piece.toString("base64") }).catch(() => {});
    at += piece.length;
    await sleep(integer(worker, 0, 30));
  }
}

/** Two readers of one process: the second takes it from the first, which is told, and stays. */
async function takeOver(worker: Worker): Promise<void> {
  const native = { framing: "native" } as const; // who speaks lines is not told, but closed
  const play = (first: Line): Promise<void> =>
    withLine(
      worker,
      async (second) => {
        const track = await start(worker, first, "cat", []);
        await track.takeUp(second);
        const words: any[] = [];
        first.onStream(track.id, (message) => words.push(message));
        const taken = await second.request("process.reattach", { id: track.id, fromSeq: 0 });
        same(taken, { found: true, running: true, firstSeq: 1, lastSeq: 0, stdinApplied: 0 }, "process.reattach");
        same(await first.request("server.ping"), { pong: true }, "the first reader's ping");
        await first.request("process.reattach", { id: track.id, fromSeq: 0 });
        await second.until("the word that it was taken over", () => track.detachedBy !== undefined);
        same(
          await first.request("process.killAndWait", { id: track.id, signal: "SIGKILL", timeoutMs: 20_000 }),
          { found: true, died: true },
          "killAndWait",
        );
        await first.until("its exit", () => words.at(-1)?.stream === "exit");
      },
      native,
    );
  await withLine(worker, play, native);
}

async function files(worker: Worker): Promise<void> {
  const directory = join(worker.site.directory, "files", worker.name);
  await withLine(worker, async (line) => {
    const path = join(directory, "below", `file ${integer(worker, 0, 10)}`);
    const bytes = Buffer.from(linesOf(0, integer(worker, 0, 20_000))); // at most 180 kB
    same(
      await line.request("files.write", {
        path,
        content: bytes.toString("base64"),
        encoding: "base64",
        createDirs: true,
        mode: 0o640,
      }),
      { written: bytes.length },
      "files.write",
    );
    expect(readFileSync(path).equals(bytes), () => "the file has other bytes than were written");
    const { exists, isDir, size, mode } = await line.request("files.stat", { path });
    same([exists, isDir, size, mode], [true, false, bytes.length, "-rw-r-----"], "files.stat");
    const { content } = await line.request("files.read", { path });
    expect(content === bytes.toString(), () => "files.read has other text than was written");
    const offset = integer(worker, 0, bytes.length + 1);
    const part = await line.request("files.read", { path, offset, maxBytes: 1000, encoding: "base64" });
    expect(
      Buffer.from(part.content, "base64").equals(bytes.subarray(offset, offset + 1000)),
      () => `files.read at ${offset} has other bytes`,
    );
    const { entries } = await line.request("files.list", { path: join(directory, "below"), includeHidden: true });
    same(
      entries.map(({ name }: { name: string }) => name),
      readdirSync(join(directory, "below")).sort(),
      "files.list",
    );
    same((await line.request("files.stat", { path: `${path}.absent` })).exists, false, "files.stat of nothing");
    await refusal(line.request("files.read", { path: directory }), -32603, "files.read of a directory");
    await refusal(
      line.request("files.write", { path: `${directory}/none/x`, content: "" }),
      -32603,
      "files.write into nothing",
    );
    same((await line.request("files.validate", { path: directory })).isDir, true, "files.validate");
  });
  rmSync(directory, { recursive: true, force: true });
}

async function batch(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const token = worker.site.tokens[0]!.token;
    const count = integer(worker, 1, 60);
    const requests = Array.from({ length: count }, (_, index) => ({
      jsonrpc: "2.0",
      method: pick(worker, ["server.ping", "server.nothing", "files.stat"]),
      params: { path: "/" },
      auth: token,
      ...(chance(worker, 0.8) ? { id: `b${index}` } : {}),
    }));
    const asked = requests.filter(({ id }) => id !== undefined);
    line.send(requests);
    if (asked.length === 0) return;
    const answers = await line.next();
    same(
      answers.map(({ id }: { id: string }) => id),
      asked.map(({ id }) => id),
      "the ids of a batch",
    );
    answers.forEach((answer: any, at: number) => {
      const { method } = asked[at]!;
      const isRight =
        method === "server.ping"
          ? answer.result?.pong === true
          : method === "files.stat"
            ? answer.result?.isDir === true
            : answer.error?.code === -32601;
      expect(isRight, () => `the answer to ${method} in a batch is ${JSON.stringify(answer)}`);
    });
  });
}

/** What no client sends. The daemon answers or closes, and goes on. */
async function garbage(worker: Worker): Promise<void> {
  const { site } = worker;
  const line = await dial(site, chance(worker, 0.15), pick(worker, ["native", "lines"] as const));
  const noise = createHash("sha512").update(`${worker.random()}`).digest();
  const repeated = Buffer.concat(Array.from({ length: integer(worker, 1, 200) }, () => noise));
  const kind = integer(worker, 0, 4);
  try {
    if (kind === 0) {
      repeated[0] = line.framing === "native" ? 0 : 1;
      line.write(repeated);
    } else if (kind === 1) {
      line.write(
        line.framing === "native"
          ? Buffer.concat([Buffer.from([0, 0, 0, noise.length]), noise])
          : Buffer.concat([
              Buffer.from("x"),
              Buffer.from(noise.toString("latin1").replaceAll("\n", "")),
              Buffer.from("\n"),
            ]),
      );
      const { id, error } = await line.next();
      same([id, error.code], [null, -32700], "noise in a frame");
    } else if (kind === 2) {
      await refusal(line.request("server.status"), -32001, "without a token");
      await refusal(line.request("server.authenticate", { token: "wrong" }), -32001, "with a wrong token");
    } else {
      const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "server.ping", auth: site.tokens[0]!.token });
      const bytes =
        line.framing === "native"
          ? Buffer.concat([Buffer.from([0, 0, 0, body.length]), Buffer.from(body)])
          : Buffer.from(`${body}\n`);
      line.write(bytes.subarray(0, integer(worker, 1, bytes.length))); // half a frame, and gone
    }
    await sleep(integer(worker, 0, 50));
  } finally {
    if (chance(worker, 0.5)) cut(worker, line);
    await Promise.race([line.close(), sleep(3000).then(() => line.cut())]);
    await line.closed;
  }
}

/** Many at once, all cut. */
async function crowd(worker: Worker): Promise<void> {
  const lines = await Promise.allSettled(
    Array.from({ length: integer(worker, 5, 30) }, () => openSocketLine(worker.site.socket, "native")),
  );
  const open = lines.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  for (const line of open) {
    if (chance(worker, 0.5))
      line.send({ jsonrpc: "2.0", id: 1, method: "server.ping", auth: worker.site.tokens[0]!.token });
    cut(worker, line);
    await line.closed;
  }
  const problem = lines.find((one) => one.status === "rejected");
  if (problem !== undefined) throw problem.reason;
}

/** A bridge is killed at any moment from its start on. */
async function bridgeKilled(worker: Worker): Promise<void> {
  const { site } = worker;
  const line = openBridgeLine(site.command(["--bridge"]), site.env, pick(worker, ["native", "lines"] as const));
  line.auth = site.tokens[0]!.token;
  const timer = setTimeout(() => cut(worker, line), integer(worker, 0, 200));
  try {
    await line.request("server.capabilities");
    while (!line.isClosed) await line.request("process.list");
  } catch (error) {
    if (!(error instanceof Lost)) throw error;
  } finally {
    clearTimeout(timer);
    line.cut();
    await line.closed;
  }
}

async function status(worker: Worker): Promise<void> {
  const { life, tokens } = worker.site;
  if (chance(worker, 0.5)) {
    const { stdout } = await run(worker, ["--status", "--json"]);
    const found = JSON.parse(stdout.toString());
    if (found.instanceId !== life.instance) throw new Lost(`instance ${found.instanceId} answers`);
    if (found.phase === "retired") throw new Lost("it was told to stop just before it answered");
    same([found.pid, found.phase], [life.pid, "serving"], "--status");
  } else {
    const { stdout } = await run(worker, ["--call", "server.ping", "--token-file", pick(worker, tokens).file]);
    same(stdout.toString(), '{"pong":true}\n', "--call");
  }
}

/** A --serve joins: same daemon; it takes a token of its own, which is good from then on, as the others are. */
function join_(worker: Worker): Promise<void> {
  const { site } = worker;
  return site.disturb(async () => {
    const file = join(site.directory, `${worker.name}.token`);
    const token = `${worker.name} ${Math.floor(worker.random() * 1e9)}`;
    writeFileSync(file, `${token}\n`, { mode: 0o600 });
    for (const one of [file, ...site.tokens.map((each) => each.file)]) {
      // the newest 64 are good: ours are to be among them
      const { stdout } = await run(worker, ["--serve", "--json", "--token-file", one]);
      const found = JSON.parse(stdout.toString());
      same([found.how, found.pid, found.instance], ["joined", site.life.pid, site.life.instance], "--serve");
    }
    const line = await openSocketLine(site.socket, "native");
    same(await line.request("server.authenticate", { token }), { authenticated: true }, "the token of a join");
    await line.close();
    unlinkSync(file);
  });
}

/** The socket, its record, or both are deleted: the daemon publishes them again, by itself within 25 s, or as a --serve asks it to. */
function deleted(worker: Worker): Promise<void> {
  const { site } = worker;
  return site.disturb(async () => {
    const record = `${site.socket}.record`;
    const names = pick(worker, [
      [site.socket],
      [record],
      [site.socket, record],
      [site.socket, record, JSON.parse(readFileSync(record, "utf8")).socket.bound as string],
    ]);
    for (const name of names) unlinkSync(name);
    if (chance(worker, 0.75)) {
      const { stdout } = await run(worker, ["--serve", "--json", "--token-file", site.tokens[0]!.file]);
      const found = JSON.parse(stdout.toString());
      same(
        [found.how, found.pid, found.instance],
        ["joined", site.life.pid, site.life.instance],
        `--serve after ${names.join(", ")} was deleted`,
      );
    }
    for (
      const deadline = Date.now() + 60_000;
      !names.every(existsSync) && !(existsSync(site.socket) && existsSync(record));
      await sleep(50)
    ) {
      expect(Date.now() < deadline, () => `${names.join(", ")} was deleted, and is not there again after 60 s`);
    }
    await sleep(50);
    const found = JSON.parse(readFileSync(record, "utf8"));
    same(
      [found.instance, found.socket.ino],
      [site.life.instance, lstatSync(site.socket).ino],
      "the record, published again",
    );
    site.counts.publications++;
  });
}

/** --stop with a process alive, and a --serve within the grace: the same daemon, the same process, which lost nothing. */
function stopAndRevive(worker: Worker): Promise<void> {
  const { site } = worker;
  return site.disturb(async () => {
    const { life } = site;
    const first = await openLine(worker, { bridge: false });
    const to = integer(worker, 100, 3000);
    const track = await start(worker, first, "/bin/sh", ["-c", `${seqOf(0, 50)}; read word; ${seqOf(50, to)}`], { to });
    const { stdout, stderr } = await run(worker, ["--stop", "--grace", "60"]);
    const words = `${stdout}${stderr}`; // and not that it had to be ended by signal
    expect(/^stopped [1-9]\d*\n$/.test(words), () => `--stop says ${words}`);
    await first.closed;
    expect(!existsSync(site.socket), () => "the socket is there after --stop");
    const revived = JSON.parse(
      (await run(worker, ["--serve", "--json", "--token-file", site.tokens[0]!.file])).stdout.toString(),
    );
    same(
      [revived.how, revived.pid, revived.instance],
      ["revived", life.pid, life.instance],
      "--serve within the grace",
    );
    const line = await openLine(worker, { bridge: chance(worker, 0.3) });
    same((await track.takeUp(line)).running, true, "the process after the revival");
    await line.request("process.stdin", { id: track.id, data: Buffer.from("go\n").toString("base64") });
    await finish(line, track);
    track.check(true);
    await line.close();
    site.counts.revivals++;
  });
}

/** A grandchild holds the pipes for longer than the exit message waits. */
async function grandchild(worker: Worker): Promise<void> {
  await withLine(worker, async (line) => {
    const track = await start(worker, line, "/bin/sh", ["-c", `sleep 300 & echo $! >&2; ${seqOf(0, 5)}; exit 3`], {
      to: 5,
    });
    await finish(line, track);
    same(track.exit, { exitCode: 3 }, "its exit");
    track.check(true);
    const child = Number(track.stderr);
    expect(isAlive(child) && statOf(child)![2] === String(track.pid), () => `grandchild ${child} is not alive`);
    await line.request("process.killAndWait", { id: track.id });
    expect(!isAlive(child), () => `grandchild ${child} is alive after killAndWait`);
  });
}

export const operations: Operation[] = [
  { name: "ping", weight: 14, run: ping },
  { name: "short process", weight: 12, run: shortProcess },
  { name: "echo", weight: 8, run: echo },
  { name: "family", weight: 6, run: family },
  { name: "kill", weight: 6, run: kill },
  { name: "no process", weight: 5, run: noProcess },
  { name: "flood", weight: 2, run: flood },
  { name: "unread", weight: 2, run: unread },
  { name: "long process", weight: 5, run: longProcess },
  { name: "take over", weight: 4, run: takeOver },
  { name: "files", weight: 8, run: files },
  { name: "batch", weight: 6, run: batch },
  { name: "garbage", weight: 8, run: garbage },
  { name: "crowd", weight: 3, run: crowd },
  { name: "bridge killed", weight: 3, run: bridgeKilled },
  { name: "status", weight: 2, run: status },
  { name: "join", weight: 0.5, run: join_ },
  { name: "deleted", weight: 0.5, run: deleted },
  { name: "stop and revive", weight: 0.7, run: stopAndRevive },
  { name: "grandchild", weight: 0.5, run: grandchild },
];

/** As much as can be held for one worker: a process that says more than is held, to a reader that stands still for a while. */
export async function tide(worker: Worker): Promise<void> {
  await withLine(
    worker,
    async (line) => {
      const track = await start(worker, line, "/bin/sh", ["-c", `exec ${seqOf(0, lineCount)}`], { to: lineCount });
      line.pause();
      await sleep(1500);
      line.resume();
      await finish(line, track);
      track.check(true);
    },
    { bridge: false },
  );
}

/** Gives each name of a worker to a process that says nothing: what the earlier ones said is forgotten, and what still runs is ended. */
export async function tidy(worker: Worker): Promise<void> {
  rmSync(join(worker.site.directory, "files", worker.name), { recursive: true, force: true }); // of an operation that was interrupted
  mkdirSync(join(worker.site.directory, "files"), { recursive: true });
  const line = await openLine(worker, { bridge: false, framing: "native" });
  for (let count = worker.ids.length; count > 0; count--) {
    const track = await start(worker, line, "true", []);
    await finish(line, track);
  }
  await line.close();
}

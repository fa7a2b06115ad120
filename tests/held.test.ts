// time limit: 240 s; long
/**
 * Work that outlives its daemon, from outside: a process floods, one prints a line each 10 ms, one echoes what it is sent; and their daemon is
 * killed, or replaced, at any moment. `npm run test:faults` does the full number of rounds.
 *
 * Each of the three says numbered records of 16 bytes: so each byte has its place, and what is missing or twice is seen.
 */

import { spawn } from "node:child_process";
import { existsSync, lstatSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Outcome, TestDaemon, Wire } from "./daemon.ts";
import {
  builtFile,
  builtWith,
  eventually,
  holdfast,
  isAlive,
  namesBelow,
  openBridge,
  openSocket,
  outcomeOf,
  removeAll,
  rounds,
  sleep,
  statOf,
  withDaemon,
} from "./daemon.ts";

const recordBytes = 16;

/** One process as its client sees it, over all of its daemons. */
interface Stream {
  id: string;
  pid: number;
  lastSeq: number;
  /** Of the next byte, by the records' own numbers; undefined when nothing is known of what came before. */
  position: number;
  /** At most so many bytes may be missing now, as was said. */
  allowed: number;
  /** Of what was written to it, and comes back: these may be missing from some place within, which is reached later than it was said. */
  unsure: { from: number; to: number } | undefined;
  /** Of output, ever; bytes that were missing and said so; gaps that were named. */
  bytes: number;
  lost: number;
  gaps: number;
  /** Messages that were dropped for want of room, and said so. */
  dropped: number;
  problems: string[];
  exit?: any;
  /** Told when a message has come. */
  onMessage?: (message: any) => void;
}

function createStream(id: string, pid: number): Stream {
  return {
    id,
    pid,
    lastSeq: 0,
    position: 0,
    allowed: 0,
    unsure: undefined,
    bytes: 0,
    lost: 0,
    gaps: 0,
    dropped: 0,
    problems: [],
  };
}

function note(stream: Stream, message: any): void {
  if (message.seq !== stream.lastSeq + 1) stream.problems.push(`seq ${message.seq} after ${stream.lastSeq}`);
  stream.lastSeq = message.seq;
  if (message.stream === "exit") stream.exit = message;
  else if (message.stream === "gap") {
    stream.gaps++;
    stream.allowed += message.maxBytes;
  } else noteOutput(stream, Buffer.from(message.data, "base64"));
  stream.onMessage?.(message);
}

/** Compares the place of each chunk with the number of its first whole record, and of its last. */
function noteOutput(stream: Stream, data: Buffer): void {
  const same = stream.unsure ? agreement(data, recordsFrom(stream.position, data.length)) : 0;
  if (same > 0 && same < data.length) {
    for (const part of [data.subarray(0, same), data.subarray(same)]) noteOutput(stream, part);
    return;
  }
  const text = data.toString("latin1");
  const first = /\d{15}\n/.exec(text);
  stream.bytes += data.length;
  if (first) {
    const at = (Number(first[0]) - 1) * recordBytes - first.index;
    const missing = at - stream.position;
    if (missing < 0) stream.problems.push(`${-missing} bytes twice at ${at}`);
    if (missing > 0) allowUnsure(stream);
    if (missing > stream.allowed)
      stream.problems.push(`${missing} bytes missing at ${at}, ${stream.allowed} were said`);
    if (stream.allowed < Infinity) stream.lost += Math.max(0, missing);
    stream.position = at;
    stream.allowed = 0;
  }
  stream.position += data.length;
  const end = text.lastIndexOf("\n"); // not by a pattern, which would look at each record of a megabyte
  const last = text.slice(Math.max(0, end - 15), Math.max(0, end));
  if (!/^\d{15}$/.test(last)) return;
  const at = Number(last) * recordBytes + (text.length - end - 1);
  if (at !== stream.position) stream.problems.push(`its end is at ${at}, ${stream.position} was expected`);
}

/** How many of the first bytes are the same. */
function agreement(a: Buffer, b: Buffer): number {
  const at = a.findIndex((byte, at) => byte !== b[at]);
  return at < 0 ? a.length : at;
}

/** Where something is missing within what was unsure. A few digits of what follows may be those of what is missing. */
function allowUnsure(stream: Stream): void {
  const { position, unsure } = stream;
  if (!unsure || position < unsure.from || position > unsure.to + recordBytes) return;
  stream.allowed += unsure.to - unsure.from;
  stream.unsure = undefined;
}

const judge = suite("The judge of the three");

for (const [what, sent, known, wrong] of [
  [
    "at a chunk's beginning",
    [
      [0, 40],
      [80, 400],
    ],
    { from: 40, to: 80 },
    undefined,
  ],
  ["in the middle of a chunk, and of a record", [[0, 40, 77, 400]], { from: 40, to: 77 }, undefined],
  [
    "after a part of what was unsure",
    [
      [0, 20],
      [20, 59, 120, 400],
    ],
    { from: 40, to: 120 },
    undefined,
  ],
  ["where nothing of what is unsure is missing", [[0, 400]], { from: 40, to: 80 }, undefined],
  [
    "before what was unsure",
    [
      [0, 16],
      [56, 400],
    ],
    { from: 80, to: 120 },
    /^40 bytes missing at \d+, 0 were said/,
  ],
  [
    "more than what was unsure",
    [
      [0, 48],
      [96, 400],
    ],
    { from: 48, to: 80 },
    /^48 bytes missing at \d+, 32 were said/,
  ],
  [
    "twice what was unsure",
    [
      [0, 48],
      [80, 160],
      [192, 400],
    ],
    { from: 48, to: 80 },
    /^32 bytes missing at \d+, 0 were said/,
  ],
] as [string, number[][], Stream["unsure"], RegExp | undefined][]) {
  judge(`of what was unsure that is missing ${what}`, () => {
    const stream = Object.assign(createStream("echo", 1), { unsure: known });
    for (const [seq, chunk] of sent.entries()) {
      const parts: Buffer[] = [];
      for (let at = 0; at < chunk.length; at += 2) parts.push(recordsFrom(chunk[at]!, chunk[at + 1]! - chunk[at]!));
      note(stream, { seq: seq + 1, stream: "stdout", data: Buffer.concat(parts).toString("base64") });
    }
    if (wrong) assert.match(stream.problems[0]!, wrong);
    else assert.equal(stream.problems, []);
  });
}

judge.run();

/** What it takes to write to one stdin, over all daemons. */
interface Writer {
  stream: Stream;
  /** Bytes whose write was answered; and those that the daemon says it has. */
  applied: number;
  /** Regions of which it does not know: as many bytes may be missing in the echo. */
  unsure: number;
  isStopped: boolean;
}

function recordsFrom(offset: number, bytes: number): Buffer {
  const first = Math.floor(offset / recordBytes);
  const count = Math.ceil((offset + bytes) / recordBytes) - first;
  const text = Array.from({ length: count }, (_, at) => `${String(first + at + 1).padStart(15, "0")}\n`).join("");
  return Buffer.from(text).subarray(offset - first * recordBytes, offset - first * recordBytes + bytes);
}

/** Writes until the connection ends, or it is stopped: of any size, one after the other, each with its offset. */
async function writeOn(wire: Wire, writer: Writer): Promise<void> {
  let isOver = false;
  void wire.closed.then(() => {
    isOver = true;
  });
  while (!writer.isStopped && !isOver) {
    const bytes = 1 + Math.floor(Math.random() ** 4 * 100_000);
    const data = recordsFrom(writer.applied, bytes).toString("base64");
    const outcome = await wire
      .request("process.stdin", { id: writer.stream.id, data, offset: writer.applied })
      .catch((error) => error);
    if (outcome instanceof Error) {
      if ((outcome as any).code !== -32002) return; // the connection ended, or its daemon
      await sleep(5);
    } else writer.applied = outcome.applied;
    await sleep(Math.random() * 5);
  }
}

/** 32 KiB each few ms: some are mostly on their way. As fast as somebody reads, it would take both processors, and show no more. */
const flood = `
  let i = 0;
  const line = () => String(++i).padStart(15, "0") + "\\n";
  setInterval(() => process.stdout.write(Array.from({ length: 2048 }, line).join("")), ${rounds(1, 8)});`;

interface Three {
  daemon: TestDaemon;
  streams: Stream[];
  writer: Writer;
  /** A connection that reads all of them, from where they were. */
  open(): Promise<Wire>;
  close(): void;
}

async function withThree(run: (three: Three) => Promise<void>, env: NodeJS.ProcessEnv = {}): Promise<void> {
  await withDaemon(async (daemon) => {
    const { wire, bridge } = openBridge(daemon);
    const start = async (id: string, command: string, args: string[] = []) => {
      const stream = createStream(id, 0);
      streams.push(stream);
      stream.pid = (await wire.request("process.spawn", { id, command, args })).pid;
    };
    const streams: Stream[] = [];
    wire.onMessage = (message) => {
      const stream = streams.find(({ id }) => id === message.processId);
      if (stream && message.type === "stream") note(stream, message);
      return true;
    };
    const lines = 'let i = 0; setInterval(() => console.log(String(++i).padStart(15, "0")), 10)';
    await start("flood", process.execPath, ["-e", flood]);
    await start("lines", process.execPath, ["-e", lines]); // a shell would start a hundred processes in a second
    await start("echo", "cat");
    const writer: Writer = { stream: streams[2]!, applied: 0, unsure: 0, isStopped: false };
    let last = { wire, bridge };
    const three: Three = {
      ...{ daemon, streams, writer },
      async open() {
        last.bridge.kill("SIGKILL");
        last = openBridge(daemon);
        last.wire.onMessage = wire.onMessage;
        await takeUp(last.wire, streams, writer);
        return last.wire;
      },
      close: () => void last.bridge.kill("SIGKILL"),
    };
    await run(three);
    three.close();
  }, env);
}

/** Goes on with each of them where it was. */
async function takeUp(wire: Wire, streams: Stream[], writer: Writer): Promise<void> {
  const { processes } = await wire.request("process.list");
  const pids = (of: { id: string; pid: number }[]) => of.map(({ id, pid }) => `${id} ${pid}`).sort();
  assert.equal(pids(processes), pids(streams), "the same processes");
  for (const stream of streams) {
    const { id, lastSeq, pid } = stream;
    assert.ok(isAlive(pid), `${id} is alive`);
    const found = await wire.request("process.reattach", { id, fromSeq: lastSeq }, (result) => {
      stream.unsure = result.stdinUnsure; // before what comes with the answer
      if (result.firstSeq <= stream.lastSeq + 1) return;
      // with nobody there it floods more than a spool holds, which is said exactly
      stream.dropped += result.firstSeq - stream.lastSeq - 1;
      stream.lastSeq = result.firstSeq - 1;
      stream.allowed = Infinity;
    });
    assert.ok(found.found && found.running, JSON.stringify(found));
    if (id !== writer.stream.id) continue;
    const { stdinApplied, stdinUnsure } = found;
    const unsure = stdinUnsure ? stdinUnsure.to - stdinUnsure.from : 0;
    writer.unsure += unsure;
    if (stdinApplied < writer.applied)
      stream.problems.push(`${writer.applied - stdinApplied} accepted bytes are not known`);
    writer.applied = stdinApplied;
  }
}

/** What was sent to the echo has come back, but for what was said. */
async function assertEchoed({ writer, streams, open }: Three): Promise<void> {
  const wire = await open();
  const data = recordsFrom(writer.applied, 100 * recordBytes).toString("base64"); // after a gap, a whole record says where it is
  const { applied } = await wire.request("process.stdin", { id: writer.stream.id, data, offset: writer.applied });
  writer.applied = applied;
  await eventually(() => writer.stream.position >= writer.applied, "the echo of all that was accepted", 30_000);
  assert.is(writer.stream.position, writer.applied);
  assert.equal(
    streams.flatMap(({ id, problems }) => problems.map((problem) => `${id}: ${problem}`)),
    [],
  );
}

const test = suite("Three processes");

test("go on over daemons that are killed at any moment: no byte twice, none missing but where it is said", () =>
  withThree(async (three) => {
    const { daemon, streams, writer } = three;
    const count = rounds(100, 6);
    let { pid } = daemon;
    for (let round = 0; round < count; round++) {
      const wire = await three.open();
      const [before] = streams.map(({ bytes }) => bytes);
      writer.isStopped = false;
      const writing = writeOn(wire, writer);
      await sleep(Math.random() * 400);
      await eventually(() => streams[0]!.bytes > before!, "output of the flood");
      pid = (await wire.request("server.status")).pid;
      process.kill(pid, "SIGKILL");
      await wire.closed;
      writer.isStopped = true;
      await writing;
      const problems = streams.flatMap(({ id, problems }) =>
        problems.map((problem) => `round ${round}, ${id}: ${problem}`),
      );
      assert.equal(problems, []);
    }
    await assertEchoed(three);
    const said = streams.map(({ id, gaps, lost }) => `${id} ${gaps} gaps named, ${lost} bytes lost`).join("; ");
    console.log(`\nFIGURES ${count} × kill -9: ${said}; ${writer.unsure} bytes of stdin unsure`);
  }));

/** Puts a new daemon in the place of the one that runs. */
function replace({ socket, tokenFile }: TestDaemon): Promise<{ code: number | null; stderr: string }> {
  return holdfast(["--serve", "--replace", "--json", "--socket", socket, "--token-file", tokenFile], {
    timeoutMs: 60_000,
  });
}

test("go on over daemons that are replaced at any moment: nothing is lost, nothing said twice, no gap", () =>
  withThree(async (three) => {
    const { daemon, streams, writer } = three;
    const count = rounds(100, 3);
    const times: number[] = [];
    for (let round = 0; round < count; round++) {
      const wire = await three.open();
      const [before] = streams.map(({ bytes }) => bytes);
      writer.isStopped = false;
      const writing = writeOn(wire, writer);
      await sleep(Math.random() * 400);
      await eventually(() => streams[0]!.bytes > before!, "output of the flood");
      const { instanceId } = await wire.request("server.capabilities");
      const start = performance.now();
      const { code, stderr } = await replace(daemon);
      times.push(performance.now() - start);
      assert.is(code, 0, stderr);
      await wire.closed;
      writer.isStopped = true;
      await writing;
      const next = await three.open();
      assert.is.not((await next.request("server.capabilities")).instanceId, instanceId);
      const problems = streams.flatMap(({ id, problems, gaps }) =>
        [...problems, ...(gaps > 0 ? [`${gaps} gaps`] : [])].map((problem) => `round ${round}, ${id}: ${problem}`),
      );
      assert.equal(problems, []);
      assert.is(writer.unsure, 0);
    }
    await assertEchoed(three);
    console.log(
      `\nFIGURES ${count} × --replace: nothing lost, ${streams[0]!.dropped} messages of the flood dropped; ${Math.round(times.sort((a, b) => a - b)[times.length >> 1]!)} ms`,
    );
  }));

test.run();

const matrix = suite("A process whose daemon is killed");

/** A client that keeps what it is told of each process. */
interface Client {
  wire: Wire;
  /** All that came on one stream. */
  text(id: string, stream?: string): string;
  exit(id: string): Promise<any>;
  spawn(id: string, script: string): Promise<number>;
  /** Takes a process up from the beginning of what is held. */
  reattach(id: string): Promise<any>;
  close(): void;
}

function joinAs(daemon: TestDaemon): Client {
  const { wire, bridge } = openBridge(daemon);
  const of = (id: string, stream: string) => wire.messages.filter((it) => it.processId === id && it.stream === stream);
  return {
    wire,
    text: (id, stream = "stdout") =>
      Buffer.concat(of(id, stream).map(({ data }) => Buffer.from(data, "base64"))).toString(),
    exit: (id) => wire.message((message) => message.processId === id && message.stream === "exit"),
    spawn: async (id, script) => (await wire.request("process.spawn", { id, command: "sh", args: ["-c", script] })).pid,
    reattach: (id) => wire.request("process.reattach", { id, fromSeq: 0 }),
    close: () => void bridge.kill("SIGKILL"),
  };
}

/** Kills the daemon, with nobody connected, and waits until it has gone. */
async function killDaemon(client: Client): Promise<void> {
  const { pid } = await client.wire.request("server.status");
  client.close();
  process.kill(pid, "SIGKILL");
  await eventually(() => !isAlive(pid), "the daemon is dead");
}

/** The directories of the held, and what one of them says of its process. */
const heldIn = ({ socket }: TestDaemon): string[] =>
  readdirSync(`${socket}.held`)
    .map((name) => join(`${socket}.held`, name))
    .filter((directory) => existsSync(join(directory, "about")));
const aboutOf = (directory: string): any => JSON.parse(readFileSync(join(directory, "about"), "utf8"));
const directoryOf = (daemon: TestDaemon, id: string): string =>
  heldIn(daemon).find((directory) => aboutOf(directory).id === id)!;

function killed(name: string, body: (daemon: TestDaemon, client: Client) => Promise<void>): void {
  matrix(name, () =>
    withDaemon(async (daemon) => {
      const client = joinAs(daemon);
      await body(daemon, client);
      client.close();
    }),
  );
}

killed("goes on, and its stdin stays open", async (daemon, client) => {
  const pid = await client.spawn("a", "echo before; read -r line; echo $line; exit 9");
  await eventually(() => client.text("a") === "before\n", "its first line");
  await killDaemon(client);
  assert.ok(isAlive(pid));
  const next = joinAs(daemon);
  const { instanceId } = await next.wire.request("server.capabilities");
  assert.match(instanceId, /^[0-9a-f]{32}$/);
  const found = await next.reattach("a");
  assert.equal([found.found, found.running, found.stdinApplied], [true, true, 0]);
  await next.wire.request("process.stdin", { id: "a", data: Buffer.from("after\n").toString("base64"), offset: 0 });
  const { exitCode } = await next.exit("a");
  assert.equal([next.text("a"), exitCode], ["before\nafter\n", 9]);
  next.close();
});

killed("and that ends meanwhile is told with its last words and its exit", async (daemon, client) => {
  const go = join(daemon.directory, "go");
  const wait = `while [ ! -e '${go}' ]; do sleep 0.05; done; echo last`;
  const scripts = { code: `${wait}; exit 7`, signal: `${wait}; kill -SEGV $$` };
  const pids: number[] = [];
  for (const [id, script] of Object.entries(scripts)) pids.push(await client.spawn(id, script));
  await killDaemon(client);
  writeFileSync(go, "");
  await eventually(() => pids.every((pid) => statOf(pid)?.[0] === "Z"), "both have ended, and are kept");
  const next = joinAs(daemon);
  for (const id of Object.keys(scripts)) await next.reattach(id);
  const [code, signal] = [await next.exit("code"), await next.exit("signal")];
  assert.equal([code.exitCode, code.signal, next.text("code")], [7, undefined, "last\n"]);
  assert.equal([signal.exitCode, signal.signal, next.text("signal")], [139, "SIGSEGV", "last\n"]);
  next.close();
});

killed("twice, and its directory removed in between, goes on", async (daemon, client) => {
  await client.spawn("a", "while read -r line; do echo $line; done; exit 3");
  await killDaemon(client);
  const next = joinAs(daemon);
  await next.reattach("a");
  await removeAll(`${daemon.socket}.held`);
  await next.wire.request("process.stdin", { id: "a", data: Buffer.from("one\n").toString("base64"), end: true });
  const { exitCode } = await next.exit("a");
  assert.equal([next.text("a"), exitCode], ["one\n", 3]);
  next.close();
});

killed("and its holder, too, goes on; how it ends is not known, or right", async (daemon, client) => {
  const pid = await client.spawn("a", "read -r line; echo $line; sleep 0.3; exit 3");
  const { holder } = aboutOf(directoryOf(daemon, "a"));
  process.kill(holder.holder.pid, "SIGKILL");
  await killDaemon(client);
  const next = joinAs(daemon);
  await next.reattach("a");
  assert.ok(isAlive(pid));
  await next.wire.request("process.stdin", { id: "a", data: Buffer.from("one\n").toString("base64") });
  const { exitCode } = await next.exit("a");
  assert.is(next.text("a"), "one\n");
  assert.ok([3, -1].includes(exitCode), String(exitCode));
  next.close();
});

killed("and the keeper of its stdin, too, sees the end of that; no more", async (daemon, client) => {
  await client.spawn("a", "cat; echo end; exit 4");
  const { holder } = aboutOf(directoryOf(daemon, "a"));
  process.kill(holder.keeper.pid, "SIGKILL");
  await killDaemon(client);
  const next = joinAs(daemon);
  await next.reattach("a");
  const { exitCode } = await next.exit("a");
  assert.equal([next.text("a"), exitCode], ["end\n", 4]);
  next.close();
});

killed("as it dies is ended by --stop, which counts it and leaves nothing", async (daemon, client) => {
  const pid = await client.spawn("a", "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.05; done");
  const other = await client.spawn("b", "(trap '' TERM; sleep 100) & wait");
  await eventually(() => client.text("a") === "up\n", "it is up");
  const pids = heldIn(daemon).flatMap((directory) => Object.values(aboutOf(directory).holder).map((it: any) => it.pid));
  await killDaemon(client);
  const { code, stdout, stderr } = await holdfast(["--stop", "--grace", "0", "--socket", daemon.socket]);
  assert.equal([code, stdout.toString()], [0, "stopped 2\n"], stderr);
  await eventually(() => ![pid, other, ...pids].some((it) => it && isAlive(it)), "nothing is left of it");
  const held = `${daemon.socket}.held`;
  const fifos = namesBelow(held).filter((name) => lstatSync(join(held, name)).isFIFO());
  assert.equal(fifos, []);
  const { code: served } = await holdfast(["--serve", "--socket", daemon.socket, "--token-file", daemon.tokenFile]);
  assert.is(served, 0);
  const next = joinAs(daemon);
  const found = await next.reattach("a");
  await next.exit("a");
  assert.equal([found.running, found.exitCode, next.text("a")], [false, 5, "up\ntold\n"]);
  next.close();
});

killed("keeps 40 MiB that it said to nobody, over its own end and --stop", async (daemon, client) => {
  const bytes = 40 << 20;
  await client.spawn("a", `head -c ${bytes} /dev/zero; exit 6`);
  await killDaemon(client);
  const next = joinAs(daemon);
  const ended = async () => (await next.wire.request("process.list")).processes[0].running === false;
  for (let i = 0; !(await ended()); i++) {
    assert.ok(i < 200, "its end");
    await sleep(100);
  }
  next.close();
  const { code, stderr } = await holdfast(["--stop", "--socket", daemon.socket]);
  assert.is(code, 0, stderr);
  assert.is((await holdfast(["--serve", "--socket", daemon.socket, "--token-file", daemon.tokenFile])).code, 0);
  const last = joinAs(daemon);
  let count = 0;
  last.wire.onMessage = (message) => {
    if (message.stream !== "stdout") return false;
    count += Buffer.from(message.data, "base64").length;
    return true;
  };
  const found = await last.reattach("a");
  assert.is((await last.exit("a")).exitCode, 6);
  const gap = last.wire.messages.find(({ stream }) => stream === "gap");
  assert.is(found.firstSeq, 1);
  assert.ok(
    count === bytes || (gap && count >= bytes - gap.maxBytes),
    `${count} of ${bytes} bytes, ${JSON.stringify(gap)}`,
  );
  last.close();
});

killed("is taken up although others are damaged, of which nobody is signalled", async (daemon, client) => {
  const ids = ["fine", "about", "format", "stranger", "segment", "mark", "journal"];
  const pids = [];
  for (const id of ids) pids.push(await client.spawn(id, "echo said; read -r line; echo $line"));
  for (const id of ids) await eventually(() => client.text(id) === "said\n", "its word");
  await killDaemon(client);
  const of = Object.fromEntries(ids.map((id) => [id, directoryOf(daemon, id)])) as Record<string, string>;
  const damage = (id: string, name: string, data: string | Buffer) => writeFileSync(join(of[id]!, name), data);
  damage("about", "about", "{ half of");
  damage("format", "about", JSON.stringify({ ...aboutOf(of.format!), format: 99 }));
  const stranger = aboutOf(of.stranger!);
  stranger.holder.child = stranger.holder.holder = { pid: process.pid, startTime: statOf(process.pid)![19] };
  damage("stranger", "about", JSON.stringify(stranger));
  damage("segment", "0", Buffer.alloc(5000, 0xee));
  damage("mark", "mark", "x");
  damage("journal", "stdin", Buffer.alloc(100, 0xee));
  const next = joinAs(daemon);
  const { processes } = await next.wire.request("process.list");
  const taken = processes.map(({ id }: any) => id).sort();
  assert.equal(taken, ["fine", "journal", "mark", "segment"]);
  const { takenUp } = await next.wire.request("server.status");
  assert.is(takenUp.problems.length, 3, JSON.stringify(takenUp));
  for (const words of [/is damaged/, /format is 99, this version knows 1/, /is not its holder/])
    assert.ok(
      takenUp.problems.some((problem: string) => words.test(problem)),
      `${words}: ${takenUp.problems}`,
    );
  for (const problem of takenUp.problems) assert.ok(daemon.log().includes(problem), problem);
  assert.ok(pids.every(isAlive), "nobody was signalled");
  for (const id of taken) {
    await next.reattach(id);
    await next.wire.request("process.stdin", { id, data: Buffer.from("on\n").toString("base64") }).catch(() => {});
  }
  await next.exit("fine");
  assert.is(next.text("fine"), "said\non\n");
  next.close();
  for (const id of ["about", "format", "stranger"]) safelyEnd(pids[ids.indexOf(id)]!);
  await sleep(0);
});

/** Ends what a test has made a daemon leave alone. */
function safelyEnd(pid: number): void {
  if (isAlive(pid)) process.kill(-pid, "SIGKILL");
}

killed("is found again, and so is the port that it listens on", async (daemon, client) => {
  const script = "const s = require('net').createServer().listen(0, '127.0.0.1', () => console.log(s.address().port))";
  const start = { command: process.execPath, args: ["-e", script], id: "server" };
  const { pid } = await client.wire.request("process.spawn", start);
  await eventually(() => client.text("server").endsWith("\n"), "its port");
  await killDaemon(client);
  const next = joinAs(daemon);
  const [{ id, pid: found, running }] = (await next.wire.request("process.list")).processes;
  assert.equal([id, found, running], ["server", pid, true]);
  const refused = await next.wire.request("process.spawn", start).catch((error) => error);
  assert.is((refused as any).code, -32602, "a live id is refused");
  assert.equal(await next.wire.request("process.killAndWait", { id: "server" }), { found: true, died: true });
  next.close();
});

killed("leaves what it has put into the background alone", async (daemon, client) => {
  const script = "nohup sh -c 'while sleep 0.2; do echo tick; done' & echo started $!";
  await client.spawn("service", script);
  const told = await client.exit("service");
  const pid = Number(/started (\d+)/.exec(client.text("service"))![1]);
  await client.wire.request("process.reattach", { id: "service", fromSeq: told.seq });
  await client.wire.message(({ seq }) => seq > told.seq);
  await killDaemon(client);
  await sleep(1000);
  assert.ok(isAlive(pid), "no SIGPIPE while there is no daemon");
  const next = joinAs(daemon);
  const { lastSeq } = await next.reattach("service");
  const { seq } = await next.exit("service");
  assert.is(seq, told.seq);
  assert.ok(lastSeq > seq, "what it said after its exit is held");
  await next.wire.request("process.reattach", { id: "service", fromSeq: seq });
  const ticks = () => next.text("service").split("tick").length;
  const before = ticks();
  await eventually(() => ticks() > before + 2, "more ticks");
  assert.ok(isAlive(pid));
  assert.is(next.wire.messages.filter(({ stream }) => stream === "exit").length, 1, "its exit is told once");
  process.kill(pid, "SIGKILL");
  next.close();
});

matrix("goes on under it when the one that is to replace it cannot start", () =>
  withDaemon(async (daemon) => {
    const client = joinAs(daemon);
    const pid = await client.spawn("a", "while read -r line; do echo $line; done");
    const { instanceId } = await client.wire.request("server.capabilities");
    // it starts, and ends before it has said a word; and it cannot even be run
    for (const options of [
      "--import=data:text/javascript,process.argv.includes('--launched')&&process.exit(3)",
      "--no-such-option",
    ]) {
      const start = ["--serve", "--replace", "--socket", daemon.socket, "--token-file", daemon.tokenFile];
      const { code, stderr } = await outcomeOf(spawn(process.execPath, [options, builtFile, ...start]));
      assert.ok(code !== 0, stderr);
    }
    assert.is((await client.wire.request("server.capabilities")).instanceId, instanceId);
    await client.wire.request("process.stdin", { id: "a", data: Buffer.from("on\n").toString("base64") });
    await eventually(() => client.text("a") === "on\n", "it answers");
    assert.ok(isAlive(pid));
    client.close();
  }),
);

matrix.run();

const replaced = suite("Three processes, when what is to replace their daemon");

/** What befalls the new version, and where: once, so that what is started after it is well. */
interface Failure {
  where: string;
  /** Run by node before the new version, in the process that is to be the daemon; the words at hand are those of `prelude`. */
  script: string;
  /** Which daemon is there then: the one that was; that or the next; the new one; or another, which the watchdog has started. */
  becomes: "old" | "either" | "new" | "third";
  /** In the --serve, not in the daemon that it starts. */
  inCaller?: true;
}

/** In the order of --replace: control.ts, server.ts, adoption.ts. */
const failures: Failure[] = [
  {
    where: "cannot be executed",
    script: 'process.execPath = "/nowhere/node"; mark();',
    becomes: "old",
    inCaller: true,
  },
  { where: "ends at once", script: "if (mark()) process.exit(3);", becomes: "old" },
  {
    where: "hangs before it says a word",
    script: "if (mark()) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);",
    becomes: "old",
  },
  { where: "is killed before it listens", script: 'before(net.Server.prototype, "listen", die);', becomes: "old" },
  {
    where: "is killed before it has answered itself",
    script: 'before(net.Socket.prototype, "connect", die);',
    becomes: "old",
  },
  {
    where: "finds no room for its record",
    script: 'before(fs, "renameSync", fail, (_, to) => to === record);',
    becomes: "old",
  },
  {
    where: "is killed with a record, but no name",
    script: 'before(fs, "renameSync", die, (_, to) => to === socket);',
    becomes: "either",
  },
  {
    where: "is killed before it has said so",
    script: 'after(fs, "renameSync", die, (_, to) => to === socket);',
    becomes: "either",
  },
  {
    where: "is killed once it has said so",
    script: 'after(fs, "writeSync", die, (to) => to === 4);',
    becomes: "third",
  },
  {
    where: "is killed when the old one has gone",
    script: 'after(fs, "linkSync", die, (_, to) => to === owner);',
    becomes: "third",
  },
  {
    where: "is killed as it takes up the second process",
    script: 'let count = 0; before(fs, "openSync", die, (path) => /held.*about$/.test(path) && ++count === 2);',
    becomes: "third",
  },
  {
    where: "is killed when it has taken all up",
    script: 'after(fs, "writeSync", die, (_, text) => /Taken up/.test(text));',
    becomes: "third",
  },
  {
    where: "loses its caller with its name",
    script: 'after(fs, "renameSync", orphan, (_, to) => to === socket);',
    becomes: "new",
  },
  {
    where: "loses its caller once it has said so",
    script: 'after(fs, "writeSync", orphan, (to) => to === 4);',
    becomes: "new",
  },
];

const watched = { HOLDFAST_WATCHDOG: "on" };

const prelude = (socket: string, marked: string): string => `
import fs from "node:fs";
import net from "node:net";
const [socket, record, owner] = ["", ".record", ".held/owner"].map((end) => ${JSON.stringify(socket)} + end);
const { closeSync, openSync } = fs;
const mark = () => { try { closeSync(openSync(${JSON.stringify(marked)}, "wx")); return true; } catch { return false; } };
const die = () => mark() && process.kill(process.pid, "SIGKILL");
const orphan = () => mark() && process.kill(process.ppid, "SIGKILL");
const fail = () => { if (mark()) throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" }); };
const wrap = (object, name, run) => { const own = object[name]; object[name] = function (...args) { return run(() => own.apply(this, args), args); }; };
const before = (object, name, act, fits = () => true) => wrap(object, name, (call, args) => { if (fits(...args)) act(); return call(); });
const after = (object, name, act, fits) => wrap(object, name, (call, args) => { const result = call(); if (fits(...args)) act(); return result; });
`;

/** @returns Which daemon answers at the socket; nobody is started for it. */
async function instanceAt(daemon: TestDaemon): Promise<string | undefined> {
  const { connection, wire } = openSocket(daemon);
  connection.on("error", () => {});
  const found = await wire.request("server.capabilities").catch(() => undefined);
  connection.destroy();
  return found?.instanceId;
}

/** One round: all three go on, and a daemon answers though nobody has started one. */
async function failToReplace({ daemon, open, streams, writer }: Three, failure: Failure): Promise<void> {
  const { where, becomes } = failure;
  const wire = await open();
  writer.isStopped = false;
  const writing = writeOn(wire, writer);
  const { instanceId } = await wire.request("server.capabilities");
  const { code, stderr } = await replaceBy(daemon, failure);
  assert.is.not(code, 0, `${where}: ${stderr}`);
  if (becomes === "old") assert.is((await wire.request("server.capabilities")).instanceId, instanceId, where);
  await eventually(() => instanceAt(daemon), `${where}: a daemon that answers`, 30_000);
  if (becomes === "third" || becomes === "new") assert.is.not(await instanceAt(daemon), instanceId, where);
  writer.isStopped = true;
  await open();
  await writing;
  const problems = streams.flatMap(({ id, problems }) => problems.map((problem) => `${where}, ${id}: ${problem}`));
  assert.equal(problems, []);
}

let markCount = 0;

async function replaceBy({ directory, socket, tokenFile }: TestDaemon, failure: Failure): Promise<Outcome> {
  const { where, script, inCaller } = failure;
  const loaded = join(directory, "failure.mjs");
  const marked = join(directory, `marked-${++markCount}`); // another one each time: who was started well has the script yet
  const isThere = `${inCaller ? "!" : ""}process.argv.includes("--launched")`;
  writeFileSync(loaded, `${prelude(socket, marked)}if (${isThere}) { ${script} }\n`);
  const file = where.startsWith("hangs") ? builtWith(directory, { daemonStartMs: 2000 }) : builtFile;
  const args = [`--import=${loaded}`, file, "--serve", "--replace", "--socket", socket, "--token-file", tokenFile];
  const outcome = await outcomeOf(spawn(process.execPath, args, { env: { ...process.env, ...watched } }), "", 60_000);
  assert.ok(existsSync(marked), `${where}: it never came to that: ${outcome.stderr}`);
  return outcome;
}

/** One that was killed as it was listening and had no record yet leaves the name that it was bound to: nothing proves whose it was. */
function removeNameless({ directory, socket }: TestDaemon): void {
  const { socket: named } = JSON.parse(readFileSync(`${socket}.record`, "utf8"));
  for (const name of readdirSync(directory).filter((name) => /^\.\w+$/.test(name))) {
    const path = join(directory, name);
    if (path !== named.bound && lstatSync(path).isSocket()) rmSync(path);
  }
}

function failing(name: string, isOf: (failure: Failure) => boolean): void {
  replaced(name, () =>
    withThree(async (three) => {
      for (let round = 0; round < rounds(20, 1); round++)
        for (const failure of failures.filter(isOf)) await failToReplace(three, failure);
      await assertEchoed(three);
      three.close();
      removeNameless(three.daemon);
    }, watched),
  );
}

failing("cannot start, go on under it", ({ becomes }) => becomes === "old");
failing("dies when it has a record, go on under the one or the other", ({ becomes }) => becomes === "either");
failing(
  "dies when the old one is told to leave, go on: the watchdog brings it back",
  ({ becomes }) => becomes === "third",
);
failing("loses who has started it, go on under it", ({ becomes }) => becomes === "new");

replaced.run();

const readers = suite("Readers of one process");

interface Reader {
  stream: Stream;
  connection: Socket;
}

/** Joins a process from its beginning, beside its other readers. */
async function readFrom(daemon: TestDaemon, id: string, more: object = {}): Promise<Reader> {
  const { connection, wire } = openSocket(daemon);
  const stream = createStream(id, 0);
  wire.onMessage = (message) => {
    if (message.type === "stream") note(stream, message);
    return true;
  };
  await wire.request("process.reattach", { id, fromSeq: 0, share: true, ...more });
  return { stream, connection };
}

const residentMiB = (pid: number): number =>
  Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;

const stoppedMs = rounds(60_000, 3000);

readers("each get each byte once, at the speed of each; one that is stopped slows nobody, and no memory is taken", () =>
  withDaemon(async (daemon) => {
    const client = joinAs(daemon);
    const lines =
      'i=0; while :; do i=$((i+1)); printf "%015d\\n" $((i*2-1)) $((i*2)); [ $((i % 20)) -gt 0 ] || sleep 0.01; done';
    await client.spawn("a", lines);
    const [fast, slow, stopped] = await Promise.all([1, 2, 3].map(() => readFrom(daemon, "a")));
    await eventually(() => [fast, slow, stopped].every((reader) => reader!.stream.bytes > 0), "all to read");
    const before = residentMiB(daemon.pid);
    stopped!.connection.pause();
    const beat = setInterval(
      () => (slow!.connection.isPaused() ? slow!.connection.resume() : slow!.connection.pause()),
      100,
    );
    await sleep(stoppedMs);
    clearInterval(beat);
    slow!.connection.resume();
    const { position } = fast!.stream;
    assert.ok(stopped!.stream.position < position, "one is behind");
    const more = residentMiB(daemon.pid) - before;
    assert.ok(more < 30, `${more.toFixed(1)} MiB more`);
    stopped!.connection.resume();
    for (const { stream } of [slow!, stopped!])
      await eventually(() => stream.position >= position, "all of it", 30_000);
    for (const { stream, connection } of [fast!, slow!, stopped!]) {
      assert.equal([stream.problems, stream.gaps], [[], 0]);
      connection.destroy();
    }
    client.close();
  }),
);

readers("make it stand still while one that is to lose nothing is stopped, and then none has lost anything", () =>
  withDaemon(async (daemon) => {
    const client = joinAs(daemon);
    await client.wire.request("process.spawn", {
      id: "a",
      command: "seq",
      args: ["-f", "%015.0f", "1", "99999999999"],
      lossless: true,
    });
    client.wire.onMessage = () => true;
    const [other, loyal] = [
      await readFrom(daemon, "a", { lossless: true }),
      await readFrom(daemon, "a", { lossless: true }),
    ];
    await eventually(() => loyal.stream.bytes > 1 << 20, "it to read");
    const bytes = async (): Promise<number> => (await client.wire.request("server.status")).processes[0].bytes;
    loyal.connection.pause();
    let last = -1;
    const isStill = async (): Promise<boolean> => {
      await sleep(300);
      const before = last;
      last = await bytes();
      return last === before;
    };
    await eventually(isStill, "it to stand still", 20_000);
    const before = residentMiB(daemon.pid);
    await sleep(stoppedMs);
    assert.is(await bytes(), last, "it stands still");
    const more = residentMiB(daemon.pid) - before;
    assert.ok(more < 30, `${more.toFixed(1)} MiB more`);
    loyal.connection.resume();
    await eventually(async () => (await bytes()) > last + (8 << 20), "it to go on");
    for (const { stream, connection } of [other, loyal]) {
      await eventually(() => stream.position > last, "what comes after", 30_000);
      assert.equal([stream.problems, stream.gaps, stream.dropped], [[], 0, 0]);
      connection.destroy();
    }
    client.close();
  }),
);

readers.run();

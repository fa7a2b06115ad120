// time limit: 240 s; long
/** Work that goes on while nobody is connected: processes.ts, bridge.ts and --call as the built file has them, seen from outside. */

import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Outcome, TestDaemon, Wire } from "./daemon.ts";
import {
  builtFile,
  eventually,
  holdfast,
  isAlive,
  openBridge,
  openSocket,
  outcomeOf,
  request,
  rounds,
  sideBySide,
  statOf,
  withDaemon,
} from "./daemon.ts";
import { createFractions } from "./fuzz/random.ts";

const MiB = 1 << 20;
/** One stream message, raw, at most. */
const messageBytes = 32 << 10;
/** What the daemon holds of one process's output. */
const replayBytes = 16 * MiB;

const isExit = (id: string) => (message: any) => message.processId === id && message.stream === "exit";
const sleep = (ms: number) => new Promise<void>((done) => setTimeout(done, ms));
/** A loaded machine may be late, but not early. */
const slackMs = 5000;

function bytesOf(messages: any[], id: string, stream = "stdout"): Buffer {
  return Buffer.concat(
    messages
      .filter((message) => message.processId === id && message.stream === stream)
      .map(({ data }) => Buffer.from(data, "base64")),
  );
}

async function failureOf(promise: Promise<unknown>): Promise<any> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("It succeeded, it was to fail");
}

/** Where two buffers differ, instead of megabytes in an assertion. */
function assertBytes(actual: Buffer, expected: Buffer, what: string): void {
  if (actual.equals(expected)) return;
  let at = 0;
  while (actual[at] === expected[at]) at++;
  const around = (bytes: Buffer) => JSON.stringify(bytes.toString("latin1", Math.max(0, at - 20), at + 40));
  assert.unreachable(
    `${what}: ${actual.length} bytes, expected ${expected.length}; they differ at ${at}: ${around(actual)}, expected ${around(expected)}`,
  );
}

async function closeBridge(bridge: ChildProcessWithoutNullStreams): Promise<void> {
  if (bridge.exitCode !== null || bridge.signalCode !== null) return;
  const closed = new Promise((done) => bridge.once("close", done));
  bridge.stdin.end();
  await closed;
}

const alone = suite("work while nobody is connected");
const test = sideBySide(alone, 2);

/** `seq first last`: eight digits and a newline. */
/** Of which tests soon have more than is held. */
const withSmallSpools = (run: (daemon: TestDaemon) => Promise<void>) => withDaemon(run, {}, ["--spool", "16M"]);

const firstLine = 10_000_000;
/** More than twice what is held. */
const saidMiB = rounds(100, 40);
const lineCount = Math.ceil((saidMiB * MiB) / 9);
function numberedLines(first: number, count: number): Buffer {
  const lines = Buffer.alloc(count * 9, "\n");
  for (let index = 0, at = 0; index < count; index++, at += 9) {
    for (let digit = 7, number = first + index; digit >= 0; digit--, number = Math.floor(number / 10))
      lines[at + digit] = 48 + (number % 10);
  }
  return lines;
}

/** A process says all its lines, and ends, while no connection exists. */
async function sayUnheard(daemon: TestDaemon): Promise<void> {
  const go = join(daemon.directory, "go");
  const first = openBridge(daemon);
  const script = `echo ready; while ! [ -e "$1" ]; do sleep 0.02; done; exec seq ${firstLine} ${firstLine + lineCount - 1}`;
  const { pid } = await first.wire.request("process.spawn", {
    id: "lines",
    command: "/bin/sh",
    args: ["-c", script, "sh", go],
  });
  const ready = await first.wire.message(({ stream }) => stream === "stdout");
  assert.equal([ready.seq, Buffer.from(ready.data, "base64").toString()], [1, "ready\n"]);
  await closeBridge(first.bridge);
  const count = (words: string) => daemon.log().split(words).length;
  await eventually(() => count("New connection from") === count("Connection closed"), "no connection exists");
  writeFileSync(go, "");
  await eventually(() => !isAlive(pid), "the process has ended", 60_000);
  assert.is(count("New connection from"), count("Connection closed"), "nobody has connected meanwhile");
}

/** What is held is the end of the output, and as much as may be; what is before it fits into the messages that were dropped. */
function assertEndOf(all: Buffer, held: Buffer, dropped: number): void {
  assert.ok(
    held.length <= replayBytes && held.length > replayBytes - replayBytes / 8, // the oldest goes by segments
    `${held.length} bytes are held, of ${replayBytes}`,
  );
  assertBytes(held, all.subarray(all.length - held.length), "what is held is the end of the output");
  assert.ok(
    dropped * messageBytes >= all.length - held.length,
    `${dropped} messages cannot have had ${all.length - held.length} bytes`,
  );
  assert.ok(dropped < all.length - held.length, "no message is empty");
}

test(`${saidMiB} MiB are written while no connection exists: what is held is replayed once, in order, and firstSeq names what was dropped`, () =>
  withSmallSpools(async (daemon) => {
    await sayUnheard(daemon);
    const { bridge, wire } = openBridge(daemon);
    const found = await wire.request("process.reattach", { id: "lines", fromSeq: 1 });
    await wire.message(isExit("lines"));
    assert.equal(found, {
      found: true,
      running: false,
      firstSeq: found.firstSeq,
      lastSeq: found.lastSeq,
      stdinApplied: 0,
      exitCode: 0,
    });
    assert.equal(
      wire.messages.map(({ seq }) => seq),
      Array.from({ length: found.lastSeq - found.firstSeq + 1 }, (_, index) => found.firstSeq + index),
    );
    assert.equal(wire.messages.at(-1), {
      type: "stream",
      processId: "lines",
      stream: "exit",
      seq: found.lastSeq,
      exitCode: 0,
    });
    const held = bytesOf(wire.messages, "lines");
    const all = numberedLines(firstLine, lineCount);
    for (const { data, seq } of wire.messages)
      if (data !== undefined)
        assert.ok(Buffer.byteLength(data, "base64") <= messageBytes, `message ${seq} is too large`);
    // messages 1 ("ready") to firstSeq - 1 are gone, and with them exactly the bytes before what is held
    const dropped = found.firstSeq - 1 - 1;
    assertEndOf(all, held, dropped);

    // the same again from the middle, and from the end
    wire.messages.length = 0;
    const middle = found.firstSeq + 100;
    assert.equal(await wire.request("process.reattach", { id: "lines", fromSeq: middle }), found);
    await wire.message(isExit("lines"));
    assert.is(wire.messages[0].seq, middle + 1);
    const rest = bytesOf(wire.messages, "lines");
    assertBytes(rest, all.subarray(all.length - rest.length), "the rest");
    wire.messages.length = 0;
    assert.equal(await wire.request("process.reattach", { id: "lines", fromSeq: found.lastSeq }), found);
    await wire.request("server.ping");
    assert.equal(wire.messages, []);
    await closeBridge(bridge);
    console.log(`${saidMiB} MiB unread: ${found.lastSeq - found.firstSeq} messages held, ${dropped} dropped`);
  }));

/** The client's side of one process: what was given to it, and what it has seen of it. */
interface Ledger {
  lastSeq: number;
  seen: Buffer[];
  /** Named by reattach, none of which may come later. */
  gaps: { afterBytes: number; messages: number }[];
  exit: any;
  /** The first message that was not the next. */
  wrong?: string;
}

const seenBytes = ({ seen }: Ledger) => seen.reduce((sum, { length }) => sum + length, 0);

function readInto(wire: Wire, ledgers: Record<string, Ledger>): void {
  wire.onMessage = (message) => {
    const ledger = ledgers[message.processId];
    if (message.type !== "stream" || ledger === undefined) return false;
    if (message.seq !== ledger.lastSeq + 1) ledger.wrong ??= `seq ${message.seq} after ${ledger.lastSeq}`;
    ledger.lastSeq = message.seq;
    if (message.stream === "exit") ledger.exit = message;
    else ledger.seen.push(Buffer.from(message.data, "base64"));
    return true;
  };
}

/** Reattaches, and takes note of a gap before any message after it. */
function takeUp(wire: Wire, id: string, ledger: Ledger): Promise<any> {
  return wire.request("process.reattach", { id, fromSeq: ledger.lastSeq }, ({ firstSeq }) => {
    const messages = firstSeq - ledger.lastSeq - 1;
    if (messages <= 0) return;
    const afterBytes = seenBytes(ledger);
    const before = ledger.gaps.at(-1);
    if (before?.afterBytes === afterBytes)
      before.messages += messages; // killed again before a message came: one gap
    else ledger.gaps.push({ afterBytes, messages });
    ledger.lastSeq = firstSeq - 1;
  });
}

/** Two processes of one client: one gives back what it is given, one says more than is held, whenever it is told to. */
interface Torture {
  daemon: TestDaemon;
  random: () => number;
  echo: Ledger;
  burst: Ledger;
  /** 51.5 MiB: as much as there is time for. */
  sent: Buffer;
  sentBytes: number;
  bursts: number;
  burstInput: string;
  /** Rounds in which bytes were on their way as the bridge was killed. */
  inTheMiddle: number;
}

/** 20.6 MiB: more than is held. */
const burstLines = 2_400_000;

const newLedger = (): Ledger => ({ lastSeq: 0, seen: [], gaps: [], exit: undefined });

async function startTorture(daemon: TestDaemon, received: string): Promise<Torture> {
  const first = openBridge(daemon);
  await first.wire.request("process.spawn", { id: "echo", command: "tee", args: [received] });
  await first.wire.request("process.spawn", {
    id: "burst",
    command: "/bin/sh",
    args: ["-c", "while read from to; do seq $from $to; done"],
  });
  await closeBridge(first.bridge);
  return {
    ...{ daemon, random: createFractions(20_261_122), echo: newLedger(), burst: newLedger() },
    ...{ sent: numberedLines(firstLine, 6_000_000), sentBytes: 0, bursts: 0, burstInput: "", inTheMiddle: 0 },
  };
}

/** A bridge, attached to both, and killed; one in five before it is attached for sure, the others from then on. */
async function killBridge(torture: Torture, round: number): Promise<void> {
  const { daemon, random, echo, burst } = torture;
  const { bridge, wire } = openBridge(daemon);
  readInto(wire, { echo, burst });
  let isOpen = true;
  const dead = new Promise<void>((done) => bridge.once("close", () => done()));
  void dead.then(() => {
    isOpen = false;
  });
  const early = round % 5 === 0;
  if (early) setTimeout(() => bridge.kill("SIGKILL"), random() * 120);
  const found = await Promise.all([takeUp(wire, "echo", echo), takeUp(wire, "burst", burst)]).catch(() => undefined);
  if (found !== undefined) {
    const [{ stdinApplied }, { stdinApplied: burstApplied }] = found;
    assert.ok(stdinApplied <= torture.sentBytes, "no more is applied than was sent");
    if (round % 10 === 1) orderBurst(torture);
    wire.request("process.stdin", burstParams(torture, burstApplied)).catch(() => {});
    if (!early) setTimeout(() => bridge.kill("SIGKILL"), random() * 80);
    await sendPieces(torture, wire, stdinApplied, () => isOpen);
  }
  await dead;
  if (found !== undefined && seenBytes(echo) < torture.sentBytes) torture.inTheMiddle++;
}

function orderBurst(torture: Torture): void {
  const from = firstLine + torture.bursts * burstLines;
  torture.bursts++;
  torture.burstInput += `${from} ${from + burstLines - 1}\n`;
}

function burstParams({ burstInput }: Torture, offset: number): { id: string; offset: number; data: string } {
  return { id: "burst", offset, data: Buffer.from(burstInput).subarray(offset).toString("base64") };
}

/** From what is applied, in pieces of any size, until the bridge is killed. */
async function sendPieces(torture: Torture, wire: Wire, applied: number, isOpen: () => boolean): Promise<void> {
  const { sent, echo, random } = torture;
  for (let offset = applied; isOpen() && offset < sent.length; await sleep(1)) {
    if (torture.sentBytes - seenBytes(echo) > replayBytes / 2) continue; // what is echoed must not be dropped
    const piece = sent.subarray(offset, offset + 1 + Math.floor(random() * 40_000));
    wire.request("process.stdin", { id: "echo", offset, data: piece.toString("base64") }).catch(() => {});
    offset += piece.length;
    torture.sentBytes = Math.max(torture.sentBytes, offset);
  }
}

/** The rest of both stdins, over a bridge that nobody kills; and both ends. */
async function endTorture(torture: Torture): Promise<void> {
  const { daemon, echo, burst, sent, sentBytes } = torture;
  const { bridge, wire } = openBridge(daemon);
  readInto(wire, { echo, burst });
  const { stdinApplied } = await takeUp(wire, "echo", echo);
  const { stdinApplied: burstApplied } = await takeUp(wire, "burst", burst);
  for (let offset = stdinApplied; offset < sentBytes; offset += 1 << 20) {
    const data = sent.subarray(offset, Math.min(sentBytes, offset + (1 << 20))).toString("base64");
    await wire.request("process.stdin", { id: "echo", offset, data });
  }
  await wire.request("process.stdin", { id: "echo", end: true });
  await wire.request("process.stdin", { ...burstParams(torture, burstApplied), end: true });
  await eventually(() => echo.exit !== undefined && burst.exit !== undefined, "both have ended", 20_000);
  await closeBridge(bridge);
}

/** Of the bursts there are gaps: between them each piece is where it belongs, and a gap's bytes fit into the messages that it names. */
function assertPieces({ burst, bursts }: Torture): void {
  const all = numberedLines(firstLine, bursts * burstLines);
  const seen = Buffer.concat(burst.seen);
  assert.ok(burst.gaps.length > 0, "no burst was interrupted: nothing was tested");
  let place = 0;
  let from = 0;
  for (const { afterBytes, messages } of [...burst.gaps, { afterBytes: seen.length, messages: 0 }]) {
    const piece = seen.subarray(from, afterBytes);
    assertBytes(piece, all.subarray(place, place + piece.length), `the piece at ${from}`);
    place += piece.length;
    from = afterBytes;
    if (messages === 0) continue;
    const at = placeOf(seen, from);
    assert.ok(
      at > place && at - place <= messages * messageBytes,
      `${messages} messages are named, ${at - place} bytes are missing`,
    );
    place = at;
  }
  assert.is(place, all.length, "the end of the output is there");
}

/** Where some bytes of numbered lines belong, by the first whole line in them. */
function placeOf(seen: Buffer, from: number): number {
  const next = seen.subarray(from, from + 9 + 8);
  const line =
    /\n(\d{8})\n/.exec(`\n${next.toString("latin1")}`) ?? /(\d{8})\n/.exec(seen.toString("latin1", from, from + 40))!;
  const before = line.index + line[0].indexOf(line[1]!) - (line[0].startsWith("\n") ? 1 : 0);
  return (Number(line[1]) - firstLine) * 9 - before;
}

const bridgeKills = rounds(100, 25);

test("a bridge is killed again and again, in the middle of output and of stdin: each byte arrives once, or is in a gap that is named", () =>
  withSmallSpools(async (daemon) => {
    const received = join(daemon.directory, "received");
    const torture = await startTorture(daemon, received);
    for (let round = 1; round <= bridgeKills; round++) await killBridge(torture, round);
    await endTorture(torture);
    const { echo, burst, sent, sentBytes, bursts, inTheMiddle } = torture;
    assert.equal([echo.wrong, burst.wrong], [undefined, undefined]);
    assertBytes(readFileSync(received), sent.subarray(0, sentBytes), "what the child has received");
    assert.equal(echo.gaps, []);
    assertBytes(Buffer.concat(echo.seen), sent.subarray(0, sentBytes), "what the client has seen of it");
    assertPieces(torture);
    assert.ok(inTheMiddle >= 0.6 * bridgeKills, `only ${inTheMiddle} of ${bridgeKills} were killed in the middle`);
    console.log(
      `${bridgeKills} bridges killed: ${sentBytes} bytes of stdin, ${inTheMiddle} times with bytes on their way, ${burst.gaps.length} gaps named of ${bursts} bursts`,
    );
  }));

const hard = suite("processes that are hard to deal with");
const hardTest = sideBySide(hard, 2);

hardTest(
  "a grandchild that holds the pipe delays the exit message by 5 s at most; what was said before is there, and the grandchild lives",
  () =>
    withDaemon(async (daemon) => {
      const { connection, wire } = openSocket(daemon);
      const started = performance.now();
      const { pid } = await wire.request("process.spawn", {
        id: "g",
        command: "/bin/sh",
        args: ["-c", "sleep 100 & echo $!; exit 3"],
      });
      const exit = await wire.message(isExit("g"));
      const ms = performance.now() - started;
      assert.ok(ms > 4000 && ms < 5000 + slackMs, `it came after ${ms} ms`);
      assert.is(exit.exitCode, 3);
      const grandchild = Number(bytesOf(wire.messages, "g").toString());
      assert.ok(isAlive(grandchild));
      assert.not(isAlive(pid));
      // its group is still signalled
      assert.equal(await wire.request("process.killAndWait", { id: "g" }), { found: true, died: true });
      assert.not(isAlive(grandchild));
      connection.destroy();
    }),
);

hardTest("a grandchild that has left the pipe delays nothing", () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    const started = performance.now();
    await wire.request("process.spawn", {
      id: "g",
      command: "/bin/sh",
      args: ["-c", "sleep 100 </dev/null >/dev/null 2>&1 & echo up"],
    });
    await wire.message(isExit("g"));
    assert.ok(performance.now() - started < 4000);
    connection.destroy();
  }),
);

hardTest("a child that ignores TERM is killed after timeoutMs with all its group, or left when escalate is false", () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    const script = "trap '' TERM; sleep 100 & echo $!; while :; do wait; done";
    const { pid } = await wire.request("process.spawn", { id: "t", command: "/bin/sh", args: ["-c", script] });
    const grandchild = Number(
      Buffer.from((await wire.message(({ stream }) => stream === "stdout")).data, "base64").toString(),
    );
    assert.equal(await wire.request("process.killAndWait", { id: "t", timeoutMs: 200, escalate: false }), {
      found: true,
      died: false,
    });
    assert.ok(isAlive(pid) && isAlive(grandchild));
    assert.equal(await wire.request("process.killAndWait", { id: "t", timeoutMs: 200 }), {
      found: true,
      died: true,
      escalated: true,
    });
    assert.not(isAlive(pid) || isAlive(grandchild));
    const { seq, ...exit } = await wire.message(isExit("t"));
    assert.equal(exit, {
      type: "stream",
      processId: "t",
      stream: "exit",
      exitCode: 137,
      signal: "SIGKILL",
      killedBy: "client",
    });
    assert.equal(await wire.request("process.killAndWait", { id: "t" }), {
      found: true,
      died: true,
      alreadyExited: true,
    });
    assert.equal(await wire.request("process.killAndWait", { id: "no such" }), { found: false, died: false });
    connection.destroy();
  }),
);

hardTest("a command or working directory that is not there is refused with the reason, and no process remains", () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    writeFileSync(join(daemon.directory, "script"), "#!/no/such/interpreter\n", { mode: 0o755 });
    const rows: [object, string, RegExp][] = [
      [{ command: "/no/such/file" }, "ENOENT", /"\/no\/such\/file": no such file/],
      [{ command: "no-such-command" }, "ENOENT", /"no-such-command": no such command in PATH/],
      [{ command: join(daemon.directory, "script") }, "ENOENT", /interpreter/],
      [{ command: daemon.tokenFile }, "EACCES", /permission denied/],
      [{ command: daemon.directory }, "EACCES", /permission denied/],
      [{ command: "true", cwd: daemon.tokenFile }, "ENOTDIR", /not a directory/],
      [{ command: "true", cwd: "/no/such/directory" }, "ENOENT", /"\/no\/such\/directory"/],
    ];
    for (const [params, errno, message] of rows) {
      const failure = await failureOf(wire.request("process.spawn", { id: "x", ...params }));
      assert.is(failure.code, -32603, JSON.stringify(params));
      assert.is(failure.data.errno, errno, failure.message);
      assert.match(failure.message, message);
    }
    assert.equal(await wire.request("process.list"), { processes: [] });
    const children = () => readFileSync(`/proc/${daemon.pid}/task/${daemon.pid}/children`, "utf8");
    await eventually(() => children() === "", "no process remains");
    assert.ok((await wire.request("process.spawn", { id: "x", command: "true" })).success, "the id is free");
    connection.destroy();
  }),
);

const many = rounds(300, 50);

hardTest(`${many} processes at once each have their own group, input, output and exit`, () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    const ids = Array.from({ length: many }, (_, index) => `p${index}`);
    const started = performance.now();
    const pids: number[] = await Promise.all(
      ids.map(async (id, index) => {
        const script = 'echo "$0"; cat; echo "$0" >&2; exit "$1"';
        return (
          await wire.request("process.spawn", { id, command: "/bin/sh", args: ["-c", script, id, String(index % 100)] })
        ).pid;
      }),
    );
    await Promise.all(
      ids.map((id) => wire.message(({ processId, stream }) => processId === id && stream === "stdout")),
    );
    const ms = performance.now() - started;
    assert.is(new Set(pids).size, many);
    const startOf = (pid: number) => statOf(pid)?.[19]; // on a busy machine a pid is soon somebody else's
    const starts = pids.map(startOf);
    for (const pid of pids) assert.is(Number(statOf(pid)![2]), pid, "it leads its own process group");
    await Promise.all(
      ids.map((id) =>
        wire.request("process.stdin", { id, data: Buffer.from(`for ${id}\n`).toString("base64"), end: true }),
      ),
    );
    const exits = await Promise.all(ids.map((id) => wire.message(isExit(id))));
    assert.equal(
      exits.map(({ exitCode }) => exitCode),
      ids.map((_, index) => index % 100),
    );
    for (const id of ids) {
      assert.is(bytesOf(wire.messages, id).toString(), `${id}\nfor ${id}\n`);
      assert.is(bytesOf(wire.messages, id, "stderr").toString(), `${id}\n`);
    }
    assert.not(pids.some((pid, at) => isAlive(pid) && startOf(pid) === starts[at]));
    connection.destroy();
    console.log(`${many} processes: all had spoken after ${Math.round(ms)} ms`);
  }),
);

hardTest("ids may be any text that is not empty", () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    const ids = [
      " ",
      "a b",
      "\n",
      "\0",
      "\0\0",
      '"',
      "'; rm -rf /",
      "../../etc/passwd",
      "__proto__",
      "constructor",
      "toString",
      "0",
      "-1",
      "null",
      "%s",
      "\u0024{x}",
      "\u00e4",
      "a\u0308",
      "日本語",
      "🚀",
      "\ud800",
      "\u2028",
      "\x1b[31m",
      "x".repeat(256),
    ];
    await Promise.all(
      ids.map(async (id, index) => {
        assert.ok((await wire.request("process.spawn", { id, command: "/bin/cat" })).success);
        await wire.request("process.stdin", { id, data: Buffer.from(String(index)).toString("base64"), end: true });
        await wire.message(isExit(id));
        assert.is(bytesOf(wire.messages, id).toString(), String(index), JSON.stringify(id.slice(0, 20)));
      }),
    );
    assert.equal((await wire.request("process.list")).processes.map(({ id }: any) => id).sort(), [...ids].sort());
    for (const id of ["", 7, "x".repeat(257), {}])
      assert.is((await failureOf(wire.request("process.spawn", { id, command: "/bin/cat" }))).code, -32602);
    assert.not(/[\0\x1b]/.test(daemon.log()), "none of it is in the log as it is");
    connection.destroy();
  }),
);

const existing = suite("existing clients and people");
const existingTest = sideBySide(existing, 2);

/** A client as others have written it: lines, a string id for each request, and no member that wire.md does not name. */
function createLineClient({ socket, token }: TestDaemon) {
  const connection = connect(socket);
  const lines: any[] = [];
  let rest = "";
  let count = 0;
  connection.setEncoding("utf8").on("data", (text: string) => {
    const parts = (rest + text).split("\n");
    rest = parts.pop()!;
    for (const part of parts) lines.push(JSON.parse(part));
  });
  const wait = async (fits: (line: any) => boolean): Promise<any> => {
    await eventually(() => lines.some(fits), `a line that fits ${fits}`);
    return lines.find(fits);
  };
  const call = async (method: string, params?: object): Promise<any> => {
    const id = `request-${++count}`;
    connection.write(`${JSON.stringify({ jsonrpc: "2.0", id, method, ...(params && { params }), auth: token })}\n`);
    const answer = await wait((line) => line.id === id);
    assert.equal(Object.keys(answer), "error" in answer ? ["jsonrpc", "id", "error"] : ["jsonrpc", "id", "result"]);
    assert.is(answer.jsonrpc, "2.0");
    return answer.result ?? answer.error;
  };
  return { connection, lines, wait, call };
}

type LineClient = ReturnType<typeof createLineClient>;

const base64 = (text: string): string => Buffer.from(text).toString("base64");

async function callServer({ call }: LineClient): Promise<void> {
  assert.equal(await call("server.ping"), { pong: true });
  const capabilities = await call("server.capabilities");
  assert.match(capabilities.instanceId, /^[0-9a-f]{32}$/);
  assert.equal(
    [typeof capabilities.version, typeof capabilities.startedAt, typeof capabilities.lifetime],
    ["string", "number", "object"],
  );
  for (const name of [
    "server.ping",
    "process.spawn",
    "process.stdin",
    "process.kill",
    "process.killAndWait",
    "process.reattach",
    "process.list",
    "files.stat",
    "files.list",
    "files.read",
    "files.write",
    "files.validate",
  ])
    assert.ok(capabilities.methods.includes(name), name);
}

async function callProcess({ lines, wait, call }: LineClient): Promise<void> {
  const spawned = await call("process.spawn", {
    id: "uuid-1",
    command: "/bin/sh",
    args: ["-c", 'echo "$GREETING from $PWD"; echo oops >&2; cat'],
    cwd: "/tmp",
    env: { GREETING: "hello" },
  });
  assert.equal(spawned, { success: true, pid: spawned.pid });
  assert.ok(isAlive(spawned.pid));
  const isOutput = (seq: number) => (line: any) => line.processId === "uuid-1" && line.seq === seq;
  const said = [await wait(isOutput(1)), await wait(isOutput(2))].sort((one, other) =>
    one.stream < other.stream ? 1 : -1,
  );
  assert.equal(
    said.map(({ seq, ...line }) => line),
    [
      { type: "stream", processId: "uuid-1", stream: "stdout", data: base64("hello from /tmp\n") },
      { type: "stream", processId: "uuid-1", stream: "stderr", data: base64("oops\n") },
    ],
  );
  assert.equal(await call("process.stdin", { id: "uuid-1", data: base64("one "), offset: 0 }), {
    success: true,
    applied: 4,
  });
  assert.equal(await call("process.stdin", { id: "uuid-1", data: base64("one two "), offset: 0 }), {
    success: true,
    applied: 8,
  });
  assert.equal(await call("process.stdin", { id: "uuid-1", data: base64("two "), offset: 4 }), {
    success: true,
    applied: 8,
    duplicate: true,
  });
  const gap = await call("process.stdin", { id: "uuid-1", data: base64("x"), offset: 9 });
  assert.equal([gap.code, gap.data.applied], [-32003, 8]);
  const {
    processes: [listed],
  } = await call("process.list");
  assert.equal(
    [listed.id, listed.command, listed.pid, listed.cwd, listed.running],
    ["uuid-1", "/bin/sh", spawned.pid, "/tmp", true],
  );
  assert.equal(await call("process.stdin", { id: "uuid-1", data: base64("three"), end: true }), {
    success: true,
    applied: 13,
  });
  await endProcess({ lines, wait, call });
}

async function endProcess({ lines, wait, call }: Omit<LineClient, "connection">): Promise<void> {
  const exit = await wait((line) => line.stream === "exit");
  assert.equal(exit, {
    type: "stream",
    processId: "uuid-1",
    stream: "exit",
    seq: lines.filter(({ type }) => type === "stream").length,
    exitCode: 0,
  });
  assert.is(bytesOf(lines, "uuid-1").toString(), "hello from /tmp\none two three");
  assert.equal(await call("process.reattach", { id: "uuid-1", fromSeq: 0 }), {
    found: true,
    running: false,
    firstSeq: 1,
    lastSeq: exit.seq,
    stdinApplied: 13,
    exitCode: 0,
  });
  await wait((line) => lines.filter(({ stream }) => stream === "exit").length === 2 && line.stream === "exit");
  assert.is(lines.filter(({ type }) => type === "stream").length, 2 * exit.seq, "the replay is what was sent first");
}

async function callKill({ wait, call }: LineClient): Promise<void> {
  await call("process.spawn", { id: "uuid-2", command: "sleep", args: ["100"] });
  assert.equal(await call("process.kill", { id: "uuid-2", signal: "SIGINT" }), { success: true });
  const { seq: _, ...killed } = await wait((line) => line.processId === "uuid-2" && line.stream === "exit");
  assert.equal(killed, {
    type: "stream",
    processId: "uuid-2",
    stream: "exit",
    exitCode: 130,
    signal: "SIGINT",
    killedBy: "client",
  });
  await call("process.spawn", { id: "uuid-3", command: "sleep", args: ["100"] });
  assert.equal(await call("process.killAndWait", { id: "uuid-3", timeoutMs: 5000 }), { found: true, died: true });
}

async function callFiles({ call }: LineClient, directory: string): Promise<void> {
  const path = join(directory, "file.txt");
  assert.equal(await call("files.write", { path, content: "text\n", mode: 0o640 }), { written: 5 });
  const { mtimeMs, ...stat } = await call("files.stat", { path });
  assert.equal([stat, typeof mtimeMs], [{ exists: true, isDir: false, size: 5, mode: "-rw-r-----" }, "number"]);
  const read = await call("files.read", { path });
  assert.equal([read.content, read.exists], ["text\n", true]);
  assert.ok(
    (await call("files.list", { path: directory })).entries.some(
      (entry: any) => entry.name === "file.txt" && entry.path === path && entry.isDir === false,
    ),
  );
  assert.equal(await call("files.validate", { path: directory }), { valid: true, isDir: true });
  assert.equal((await call("files.read", { path: directory })).code, -32603);
}

existingTest("a client of lines and string ids does all of process.* and files.* with the names of wire.md", () =>
  withDaemon(async (daemon) => {
    const client = createLineClient(daemon);
    await callServer(client);
    await callProcess(client);
    await callKill(client);
    await callFiles(client, daemon.directory);
    client.connection.destroy();
  }),
);

existingTest("another connection takes a stream over: the one before is told, stays open, and sees no more of it", () =>
  withDaemon(async (daemon) => {
    const one = openSocket(daemon);
    const other = openBridge(daemon);
    await one.wire.request("process.spawn", { id: "a", command: "/bin/cat" });
    await other.wire.request("process.reattach", { id: "a", fromSeq: 0 });
    const detached = await one.wire.message(({ type }) => type === "detached");
    assert.equal({ ...detached, by: typeof detached.by }, { type: "detached", processId: "a", by: "string" });
    await one.wire.request("process.stdin", { id: "a", data: Buffer.from("hello").toString("base64"), end: true });
    await other.wire.message(isExit("a"));
    assert.is(bytesOf(other.wire.messages, "a").toString(), "hello");
    await one.wire.request("server.ping");
    assert.equal(one.wire.messages, [detached]);
    one.connection.destroy();
    await closeBridge(other.bridge);
  }),
);

const bridgeCommand = ({ socket }: TestDaemon) => `'${process.execPath}' '${builtFile}' --bridge --socket '${socket}'`;
const shell = (script: string, timeoutMs = 20_000): Promise<Outcome> =>
  outcomeOf(spawn("/bin/sh", ["-c", script]), "", timeoutMs);

existingTest("a client of lines whose stream is taken by another sees an end; one that shares it, none", () =>
  withDaemon(async (daemon) => {
    const spawned = JSON.stringify(
      request("process.spawn", { id: "b", command: "sleep", args: ["100"] }, daemon.token),
    );
    for (const over of ["socket", "bridge"]) {
      const id = over === "socket" ? "a" : "b";
      let hasEnded = false;
      if (over === "socket") {
        const { connection, call } = createLineClient(daemon);
        connection.on("close", () => (hasEnded = true));
        assert.ok((await call("process.spawn", { id, command: "sleep", args: ["100"] })).success);
      } else {
        const bridge = spawn(process.execPath, [builtFile, "--bridge", "--socket", daemon.socket], { cwd: "/" });
        const words: string[] = [];
        bridge.stdout.on("data", (chunk) => words.push(String(chunk)));
        bridge.on("close", () => (hasEnded = true));
        bridge.stdin.write(`${spawned}\n`);
        await eventually(() => words.join("").includes('"success":true'), "it is started");
        bridge.on("close", () => assert.not.match(words.join(""), "detached"));
      }
      const { connection, wire } = openSocket(daemon);
      assert.ok((await wire.request("process.reattach", { id, fromSeq: 0, share: true })).running);
      await sleep(300);
      assert.not.ok(hasEnded);
      assert.ok((await wire.request("process.reattach", { id, fromSeq: 0 })).running);
      await eventually(() => hasEnded, `the end of ${over}`);
      connection.destroy();
    }
  }),
);
existingTest("echo into --bridge answers in lines and ends", () =>
  withDaemon(async (daemon) => {
    let lastMs = Infinity; // of the quickest of three: one that waits does so each time
    for (let attempt = 1; attempt <= 3 && lastMs >= 1500; attempt++) {
      const outcome = await shell(
        `echo '{"jsonrpc":"2.0","id":1,"method":"server.ping","auth":"${daemon.token}"}' | ${bridgeCommand(daemon)}`,
      );
      const { code, stdout, stderr } = outcome;
      assert.equal([stdout.toString(), stderr, code], ['{"jsonrpc":"2.0","id":1,"result":{"pong":true}}\n', "", 0]);
      lastMs = outcome.lastMs;
    }
    assert.ok(lastMs < 1500, `it ended ${lastMs} ms after the answer`); // not after the 2 s in which it waits for answers
    const several = await shell(
      `printf '%s\\r\\n' '{"jsonrpc":"2.0","id":"a","method":"server.authenticate","params":{"token":"${daemon.token}"}}' '' '{"jsonrpc":"2.0","id":"b","method":"server.ping"}' 'nonsense' | ${bridgeCommand(daemon)}`,
    );
    const answers = several.stdout
      .toString()
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    assert.equal(
      answers.map(({ id, result, error }) => [id, result ?? error.code]),
      [
        ["a", { authenticated: true }],
        ["b", { pong: true }],
        [null, -32700],
      ],
    );
  }),
);

existingTest("a person types lines at a terminal into --bridge, and sees answers and output as they come", () =>
  withDaemon(async (daemon) => {
    const terminal = spawn("script", ["-q", "-e", "-c", `stty -echo; ${bridgeCommand(daemon)}`, "/dev/null"], {
      env: { ...process.env, SHELL: "/bin/sh" },
    });
    let screen = "";
    terminal.stdout.on("data", (chunk) => (screen += chunk));
    const type = async (message: object, answer: string): Promise<void> => {
      terminal.stdin.write(`${JSON.stringify(message)}\n`);
      await eventually(() => screen.includes(answer), `${answer} on the screen:\n${screen}`);
    };
    await sleep(200); // a terminal that still echoes shows the line once more, no harm
    await type(
      request("server.authenticate", { token: daemon.token }),
      '{"jsonrpc":"2.0","id":1,"result":{"authenticated":true}}',
    );
    await type(
      request("process.spawn", { id: "a", command: "echo", args: ["hi"] }, undefined, "second"),
      `"stream":"stdout","seq":1,"data":"${Buffer.from("hi\n").toString("base64")}"}`,
    );
    assert.ok(screen.includes('"id":"second","result":{"success":true,"pid":'), screen);
    for (const line of screen.split(/\r?\n/)) if (line !== "") assert.type(JSON.parse(line), "object"); // and nothing between the lines
    terminal.kill(); // in the raw mode that it is in, no key ends it
  }),
);

const calls = suite("--call");
const callTest = sideBySide(calls, 2);

const call = ({ socket }: TestDaemon, args: string[], stdin = ""): Promise<Outcome> =>
  holdfast(["--call", ...args, "--socket", socket], { stdin });

callTest("prints the result as one line of JSON, with PARAMS from the argument, from stdin, or none", () =>
  withDaemon(async (daemon) => {
    const ping = await call(daemon, ["server.ping"]);
    assert.equal([ping.stdout.toString(), ping.stderr, ping.code], ['{"pong":true}\n', "", 0]);
    const path = JSON.stringify({ path: daemon.tokenFile });
    const expected = `{"content":"${daemon.token}\\n","exists":true,`;
    const argument = await call(daemon, ["files.read", path]);
    assert.is(argument.stdout.toString().slice(0, expected.length), expected);
    const large = { path: join(daemon.directory, "large"), content: "x".repeat(1_100_000) }; // over what an argument, and a stranger, may have
    assert.is(
      (await call(daemon, ["files.write", "-"], `\ufeff${JSON.stringify(large)}`)).stdout.toString(),
      '{"written":1100000}\n',
    );
    assert.is(readFileSync(large.path, "utf8"), large.content);
    const withToken = await call(daemon, ["server.ping", "--token-file", daemon.tokenFile]);
    assert.is(withToken.code, 0);
  }),
);

callTest("streams a process that it spawns, keeps stdout and stderr apart, and exits with its code", () =>
  withDaemon(async (daemon) => {
    const spawnOf = (script: string) => JSON.stringify({ id: script, command: "/bin/sh", args: ["-c", script] });
    const plain = await call(daemon, ["process.spawn", spawnOf("echo out; echo err >&2; exit 7")]);
    assert.equal([plain.stdout.toString(), plain.stderr, plain.code], ["out\n", "err\n", 7]);
    const fromStdin = await call(daemon, ["process.spawn", "-"], spawnOf("echo stdin"));
    assert.equal([fromStdin.stdout.toString(), fromStdin.code], ["stdin\n", 0]);
    assert.is((await call(daemon, ["process.spawn", spawnOf("kill -TERM $$")])).code, 128 + 15);
    assert.is((await call(daemon, ["process.spawn", spawnOf("kill -KILL $$")])).code, 128 + 9);
    const lines = numberedLines(firstLine, 1_000_000);
    const much = await call(daemon, ["process.spawn", spawnOf(`seq ${firstLine} ${firstLine + 999_999}`)]);
    assertBytes(much.stdout, lines, "8.6 MiB");
    assert.is(much.code, 0);
  }),
);

callTest("process.reattach picks a process up after its caller was killed, and one that has ended", () =>
  withDaemon(async (daemon) => {
    const params = JSON.stringify({
      id: "make",
      command: "/bin/sh",
      args: [
        "-c",
        'echo one; while ! [ -e "$0" ]; do sleep 0.02; done; echo two; exit 5',
        join(daemon.directory, "go"),
      ],
    });
    const caller = spawn(process.execPath, [builtFile, "--call", "process.spawn", params, "--socket", daemon.socket]);
    await new Promise((done) => caller.stdout.once("data", done));
    caller.kill("SIGKILL");
    const taken = call(daemon, ["process.reattach", '{"id":"make"}']);
    await eventually(() => daemon.log().split("New connection").length >= 4, "it has connected"); // serve's own, the caller's, this one's
    const shared = call(daemon, ["process.reattach", '{"id":"make","share":true}']);
    await eventually(() => daemon.log().split("New connection").length >= 5, "so has the other");
    await call(daemon, ["server.ping"]); // what was asked before it has been read
    writeFileSync(join(daemon.directory, "go"), "");
    for (const { stdout, stderr, code } of [await taken, await shared])
      assert.equal([stdout.toString(), stderr, code], ["one\ntwo\n", "", 5]);
    const misspelt = await call(daemon, ["process.reattach", '{"id":"make","shared":true}']);
    assert.is(misspelt.code, 64);
    assert.match(misspelt.stderr, /Cannot reattach by --call with "shared": it takes id, fromSeq, share and lossless/);
    const again = await call(daemon, ["process.reattach", '{"id":"make"}']);
    assert.equal([again.stdout.toString(), again.code], ["one\ntwo\n", 5]);
    const rest = await call(daemon, ["process.reattach", '{"id":"make","fromSeq":1}']);
    assert.equal([rest.stdout.toString(), rest.code], ["two\n", 5]);
    const nothing = await call(daemon, ["process.reattach", '{"id":"make","fromSeq":3}']); // all of it was seen, the exit too
    assert.equal([nothing.stdout.toString(), nothing.code], ["", 5]);
  }),
);

callTest("says how many messages are not held any more", () =>
  withSmallSpools(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    const { pid } = await wire.request("process.spawn", {
      id: "much",
      command: "/bin/sh",
      args: ["-c", `sleep 0.3; exec seq ${firstLine} ${firstLine + 2_999_999}`],
    });
    connection.destroy();
    await eventually(() => !isAlive(pid), "it has ended");
    const { stdout, stderr, code } = await call(daemon, ["process.reattach", '{"id":"much"}']);
    assert.match(
      stderr,
      /^holdfast: \d+ older messages are not held any more\n$/,
      `stderr: ${stderr}; ${code}, ${stdout.length} bytes`,
    );
    const all = numberedLines(firstLine, 3_000_000);
    assertBytes(stdout, all.subarray(all.length - stdout.length), "the rest");
    assert.is(code, 0);
  }),
);

callTest(
  "whose stdout nobody reads for long goes on where it was, or says what is missing; whose reader is gone says so",
  () =>
    withSmallSpools(async (daemon) => {
      // 4 MiB wait in pipes and buffers, 10 s later the process goes on by itself and ends; then the reader reads
      const count = 4_000_000; // 34 MiB: more than is held
      const params = JSON.stringify({ id: "slow", command: "seq", args: [`${firstLine}`, `${firstLine + count - 1}`] });
      const go = join(daemon.directory, "go");
      const reading = shell(
        `'${process.execPath}' '${builtFile}' --call process.spawn '${params}' --socket '${daemon.socket}' 2>'${daemon.directory}/words' | (while ! [ -e '${go}' ]; do sleep 0.1; done; cat)`,
        60_000,
      );
      await eventually(() => daemon.log().includes('Ended "slow"'), "it goes on by itself, and ends", 45_000);
      writeFileSync(go, "");
      const { stdout, code } = await reading;
      const words = readFileSync(join(daemon.directory, "words"), "utf8");
      assert.match(words, /^holdfast: \d+ older messages are not held any more\n$/);
      assert.is(code, 0);
      const all = numberedLines(firstLine, count);
      const seen = stdout;
      let split = 0; // everything before the one gap, and everything after
      while (split < seen.length && seen[split] === all[split]) split++;
      const tail = seen.subarray(split);
      assertBytes(tail, all.subarray(all.length - tail.length), "what comes after the gap");
      const gone = await shell(
        `('${process.execPath}' '${builtFile}' --call process.spawn '{"id":"yes","command":"yes"}' --socket '${daemon.socket}'; echo $? >'${daemon.directory}/code') | head -n 1`,
      );
      assert.is(gone.stdout.toString(), "y\n");
      assert.match(
        gone.stderr,
        /^holdfast: error: Cannot write the output: broken pipe \(EPIPE\); the process goes on\nholdfast: hint: --call process.reattach '\{"id":"yes"\}'\n$/,
      );
      assert.is(readFileSync(join(daemon.directory, "code"), "utf8"), "1\n");
      assert.ok((await call(daemon, ["process.list"])).stdout.includes('"id":"yes","command":"yes"'));
    }),
);

callTest("says what is wrong, with the exit code of the table", () =>
  withDaemon(async (daemon) => {
    const absent = { ...daemon, socket: join(daemon.directory, "absent") };
    const wrong = join(daemon.directory, "wrong");
    writeFileSync(wrong, "wrong\n", { mode: 0o600 });
    const rows: [TestDaemon, string[], number, RegExp][] = [
      [daemon, [], 64, /--call needs METHOD/],
      [daemon, ["server.ping", "{}", "{}"], 64, /at most one PARAMS/],
      [daemon, ["server.ping", "{"], 64, /Cannot read PARAMS/],
      [daemon, ["server.ping", "[1]"], 64, /a JSON object is needed/],
      [daemon, ["server.nothing"], 1, /Unknown method: server.nothing/],
      [daemon, ["process.spawn", '{"id":"a","command":"/no/such/file"}'], 1, /no such file/],
      [daemon, ["process.spawn", "{}"], 1, /"command"/],
      [daemon, ["process.reattach", '{"id":"nobody"}'], 1, /no process has the id "nobody"/],
      [daemon, ["server.ping", "{}", "--token-file", wrong], 77, /Unauthorized/],
      [daemon, ["server.ping", "{}", "--token-file", "/no/such/file"], 1, /no\/such\/file/],
      [absent, ["server.ping"], 69, /absent/],
    ];
    for (const [where, args, code, words] of rows) {
      const outcome = await call(where, args);
      assert.equal([outcome.code, outcome.stdout.toString()], [code, ""], `${args.join(" ")}: ${outcome.stderr}`);
      assert.match(outcome.stderr, words);
      assert.match(outcome.stderr, /^holdfast: error: /);
    }
    // taken over by another, and the daemon's end
    const taken = call(daemon, ["process.spawn", '{"id":"long","command":"sleep","args":["100"]}']);
    await eventually(() => daemon.log().includes('Started "long"'), "it has started");
    const { connection, wire } = openSocket(daemon);
    await wire.request("process.reattach", { id: "long" });
    const outcome = await taken;
    assert.equal(
      [outcome.code, /Another connection .* has taken the output over/.test(outcome.stderr)],
      [1, true],
      outcome.stderr,
    );
    const cut = call(daemon, ["process.reattach", '{"id":"long"}']);
    await wire.message(({ type }) => type === "detached"); // it has the stream
    process.kill(daemon.pid, "SIGKILL");
    assert.equal(
      [(await cut).code, /^holdfast: error: The connection .*ended/.test((await cut).stderr)],
      [69, true],
      (await cut).stderr,
    );
    connection.destroy();
  }),
);

callTest("says what finds out whether it was started, where the daemon ends before it has answered", async () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-shell-"));
  const shell = join(directory, "sh");
  writeFileSync(shell, `#!/bin/sh\ntouch ${directory}/asked; exec sleep 100\n`, { mode: 0o755 }); // what starts first asks it for its environment
  const started = (params: string, hint: string): Promise<void> =>
    withDaemon(
      async (daemon) => {
        const calling = call(daemon, ["process.spawn", params]);
        await eventually(() => existsSync(join(directory, "asked")), "the login shell is asked");
        rmSync(join(directory, "asked"));
        process.kill(daemon.pid, "SIGKILL");
        const { code, stdout, stderr } = await calling;
        assert.equal([code, stdout.toString()], [69, ""], stderr);
        assert.match(stderr, /^holdfast: error: The connection to ".*" ended before the answer came\n/);
        assert.ok(stderr.endsWith(`\nholdfast: hint: ${hint}\n`), stderr);
      },
      { SHELL: shell },
    );
  try {
    await started('{"id":"a","command":"true"}', `--call process.reattach '{"id":"a"}'`);
    await started('{"command":"true"}', "--call process.list tells whether it was started");
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

// Last and by itself in this file: it measures.
const flood = suite("a client that stops reading");

/** KiB, of VmRSS or VmHWM. */
function memoryOf(pid: number, name: string): number {
  return Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]);
}

/** Bytes that a process has written; undefined once it has ended. */
function writtenBy(pid: number): number | undefined {
  try {
    return Number(/^wchar: (\d+)/m.exec(readFileSync(`/proc/${pid}/io`, "utf8"))?.[1]);
  } catch {
    return undefined;
  }
}

const percentile = (values: number[], part: number): number =>
  [...values].sort((a, b) => a - b)[Math.ceil(values.length * part) - 1] ?? NaN;

/** Asks again and again, one at a time, and takes the time of each answer. */
/** For so long it could have run, and others had the processors: proc(5). */
const waitedMs = (pid: number | "self"): number =>
  Number(readFileSync(`/proc/${pid}/schedstat`, "latin1").split(" ")[1]) / 1e6;

/** @param each Told of each ping what it took, and what of that neither we nor the daemon of this pid stood in line for a processor. */
async function timePings(
  { wire, pid }: { wire: Wire; pid: number },
  goOn: () => boolean,
  each: (ms: number, ownMs: number) => void,
): Promise<void> {
  const waited = () => waitedMs("self") + waitedMs(pid);
  while (goOn()) {
    const before = waited();
    const start = performance.now();
    await wire.request("server.ping");
    const ms = performance.now() - start;
    each(ms, ms - (waited() - before));
    await sleep(2);
  }
}

interface Measured {
  idleKiB: number;
  peakKiB: number;
  bridgeKiB: number;
  /** While the child's output was on the move, over all, and of another daemon that has nothing to do. */
  busyMs: number[];
  allMs: number[];
  controlMs: number[];
  /** The first two, but for the time in which others had the processors. */
  ownMs: { busy: number[]; all: number[] };
}

async function measureFlood(daemon: TestDaemon, control: TestDaemon): Promise<Measured> {
  const pinger = openSocket(daemon);
  const controlPinger = openSocket(control);
  const { bridge, wire } = openBridge(daemon);
  for (const { wire: one } of [pinger, controlPinger, { wire }])
    for (let count = 0; count < 50; count++) await one.request("server.ping");
  const idleKiB = memoryOf(daemon.pid, "VmRSS");
  const bridgeIdleKiB = memoryOf(bridge.pid!, "VmRSS");
  const { pid } = await wire.request("process.spawn", {
    id: "flood",
    command: "head",
    args: ["-c", "1G", "/dev/zero"],
  });
  bridge.stdout.pause();
  const busyMs: number[] = [];
  const allMs: number[] = [];
  const controlMs: number[] = [];
  const ownMs = { busy: [] as number[], all: [] as number[] };
  let peakKiB = 0;
  let written = 0;
  const isRunning = () => isAlive(pid);
  await Promise.all([
    timePings({ wire: pinger.wire, pid: daemon.pid }, isRunning, (ms, own) => {
      const now = writtenBy(pid);
      allMs.push(ms);
      ownMs.all.push(own);
      if (now !== written) {
        busyMs.push(ms);
        ownMs.busy.push(own);
      }
      written = now ?? written;
      peakKiB = Math.max(peakKiB, memoryOf(daemon.pid, "VmRSS"));
    }),
    timePings({ wire: controlPinger.wire, pid: control.pid }, isRunning, (ms) => controlMs.push(ms)),
  ]);
  peakKiB = Math.max(peakKiB, memoryOf(daemon.pid, "VmHWM"));
  const bridgeKiB = memoryOf(bridge.pid!, "VmHWM") - bridgeIdleKiB;

  // the one that stopped reading reads on: it is told, and what is held can be had
  bridge.stdout.resume();
  const detached = await wire.message(({ type }) => type === "detached");
  assert.equal(detached, { type: "detached", processId: "flood", by: "backpressure" });
  const seen = wire.messages.filter(({ stream }) => stream === "stdout");
  assert.equal(
    seen.map(({ seq }) => seq),
    seen.map((_, index) => index + 1),
  );
  const lastSeq = seen.at(-1).seq;
  wire.messages.length = 0;
  const found = await wire.request("process.reattach", { id: "flood", fromSeq: lastSeq });
  const exit = await wire.message(isExit("flood")); // which the daemon may see only now
  assert.equal(
    wire.messages.map(({ seq }) => seq),
    Array.from({ length: exit.seq - found.firstSeq + 1 }, (_, index) => found.firstSeq + index),
  );
  assert.ok(found.firstSeq > lastSeq + 1 && exit.seq >= found.lastSeq, JSON.stringify(found));
  assert.is(exit.exitCode, 0);
  await closeBridge(bridge);
  pinger.connection.destroy();
  controlPinger.connection.destroy();
  return { idleKiB, peakKiB, bridgeKiB, busyMs, allMs, controlMs, ownMs };
}

flood(
  "while a child prints 1 GiB costs the daemon less than 120 MiB, and the 99th percentile of another client's pings less than 50 ms; the child ends",
  async () => {
    // A measurement counts if it is good, also but for what others took; or if the machine was: where a daemon with nothing to do answers as slowly, it
    // says nothing.
    for (let attempt = 1; ; attempt++) {
      let measured!: Measured;
      await withDaemon((control) =>
        withDaemon(async (daemon) => {
          measured = await measureFlood(daemon, control);
        }),
      );
      const { idleKiB, peakKiB, bridgeKiB, busyMs, allMs, controlMs, ownMs } = measured;
      const [busy, all, idle] = [busyMs, allMs, controlMs].map((values) => percentile(values, 0.99)) as [
        number,
        number,
        number,
      ];
      const ms = (value: number) => `${value.toFixed(1)} ms`;
      console.log(
        `1 GiB unread: daemon ${(idleKiB / 1024).toFixed(0)} MiB idle, at most ${((peakKiB - idleKiB) / 1024).toFixed(0)} MiB over it, bridge ${(bridgeKiB / 1024).toFixed(0)} MiB over its own`,
      );
      console.log(
        `pings, p99: ${ms(busy)} of ${busyMs.length} while it flowed (median ${ms(percentile(busyMs, 0.5))}, worst ${ms(Math.max(...busyMs))}), ${ms(all)} of all ${allMs.length}; of an idle daemon ${ms(idle)}`,
      );
      assert.ok(peakKiB - idleKiB < 120 * 1024, `${peakKiB - idleKiB} KiB over idle`);
      assert.ok(bridgeKiB < 120 * 1024, `the bridge: ${bridgeKiB} KiB over idle`);
      assert.ok(busyMs.length >= 100, `only ${busyMs.length} pings while it flowed`);
      if (busy < 50 && all < 50) return;
      if ([ownMs.busy, ownMs.all].every((own) => percentile(own, 0.99) < 50)) return;
      assert.ok(
        idle > 20 && attempt < 3,
        `the 99th percentile of pings is ${ms(busy)}, that of an idle daemon ${ms(idle)} (attempt ${attempt})`,
      );
    }
  },
);

for (const one of [alone, hard, existing, calls, flood]) one.run();

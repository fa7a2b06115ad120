/**
 * A daemon, as it is built, and many short connections to it: valid requests of all its methods, mutated as JSON and as bytes, cut anywhere, and
 * dropped at any time. Meanwhile another connection pings it, and in the end it must be as it was in the beginning.
 *
 * Nothing that is sent leaves a directory of its own: each mutation is read once more, as the daemon will read it, before it is sent.
 */

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import type { Socket } from "node:net";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { FrameEvent } from "../../frame.ts";
import { encodeFrame, strangerBodyBytes } from "../../frame.ts";
import type { TestDaemon, Wire } from "../daemon.ts";
import { eventually, openSocket, sleep, statOf, withDaemon } from "../daemon.ts";
import { rereadLines, rereadNative } from "./frame.ts";
import { mutateMembers, oddNames, randomJson, randomString, writeArray, writeObject } from "./json.ts";
import type { Random } from "./random.ts";
import { cutAnywhere, mutateBytes, pick } from "./random.ts";
import type { Expected, State } from "./rpc.ts";
import { answersProblem, expectAnswers, expectAuthenticated } from "./rpc.ts";
import type { Target } from "./target.ts";
import { demand } from "./target.ts";

/** A ping is answered in so long, whatever the others do, and whoever else has the processor. */
const pingMs = 15_000;
/** A daemon that has just started has 60 MB or so. */
const maxRssMb = 300;

/** The daemon, and the only place where files may be written. */
interface Scene extends TestDaemon {
  home: string;
  methods: string[];
}

export const liveTarget: Target = {
  name: "live",
  lanes: 8,
  limitS: 60,
  async run(useCheck) {
    const home = mkdtempSync(join(tmpdir(), "holdfast-fuzz-"));
    mkdirSync(join(home, "dir"));
    try {
      await withDaemon(
        async (daemon) => {
          const { connection, wire } = openSocket(daemon);
          const { instanceId, methods } = await wire.request("server.capabilities");
          await wire.request("process.spawn", { id: "first", command: "true" }); // now it knows its PATH
          await wire.message(({ stream }) => stream === "exit");
          const before = openFilesOf(daemon.pid);
          const pings = startPings(wire);
          try {
            await useCheck((random) => checkConnection(random, { ...daemon, home, methods }));
          } finally {
            await pings.stop();
          }
          const after = await wire.request("server.capabilities");
          demand(after.instanceId === instanceId, "It is another daemon", instanceId, after.instanceId);
          await endProcesses(wire);
          await eventually(() => childrenOf(daemon.pid).length === 0, "the daemon has no children", 20_000);
          await eventually(
            () => openFilesOf(daemon.pid) <= before,
            `the daemon has ${before} open files again`,
            20_000,
          );
          const rssMb =
            Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${daemon.pid}/status`, "utf8"))![1]) / 1000;
          demand(rssMb < maxRssMb, `It has grown to ${rssMb} MB`);
          checkLog(daemon);
          connection.destroy();
        },
        { HOME: home },
      );
    } finally {
      rmSync(home, { recursive: true, force: true });
    }
  },
};

/** One ping after the other, each in time, on a connection of its own. */
function startPings(wire: Wire): { stop(): Promise<void> } {
  let isOver = false;
  const loop = (async () => {
    while (!isOver) {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise((_, fail) => {
        timer = setTimeout(() => fail(new Error(`A ping was not answered within ${pingMs} ms`)), pingMs);
      });
      const { pong } = (await Promise.race([wire.request("server.ping"), late]).finally(() => clearTimeout(timer))) as {
        pong: boolean;
      };
      demand(pong, "A ping had another answer");
      await sleep(10);
    }
  })();
  loop.catch(() => {}); // stop() tells of it
  const stop = (): Promise<void> => {
    isOver = true;
    return loop;
  };
  return { stop };
}

async function endProcesses(wire: Wire): Promise<void> {
  const { processes } = await wire.request("process.list");
  for (const { id } of processes) await wire.request("process.killAndWait", { id, signal: "KILL" });
}

function childrenOf(pid: number): number[] {
  return readdirSync("/proc")
    .map(Number)
    .filter((child) => child > 0 && statOf(child)?.[1] === String(pid));
}

function openFilesOf(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** No control characters, no token, and nothing that the daemon did not expect. */
function checkLog({ directory, token, log }: TestDaemon): void {
  const old = readdirSync(directory)
    .filter((name) => name.endsWith(".log.1"))
    .map((name) => readFileSync(join(directory, name), "utf8"));
  for (const line of [log(), ...old].join("").split("\n")) {
    demand(!/[\0-\x1f\x7f-\x9f\u2028-\u202e]/.test(line), "The log has a control character", line);
    demand(!line.includes(token), "The log has a token", line);
    demand(!line.includes("Internal error"), "The daemon had an error of its own", line);
  }
}

// One connection

async function checkConnection(random: Random, scene: Scene): Promise<void> {
  const bytes = randomBytes(random, scene);
  const chunks = cutAnywhere(random, bytes).slice(0, 200);
  const sent = Buffer.concat(chunks);
  const isDropped = random(4) === 0;
  const connection = connect({ path: scene.socket, allowHalfOpen: true });
  const received: Buffer[] = [];
  const ended = new Promise<void>((done) =>
    connection
      .on("end", done)
      .on("close", () => done())
      .on("error", () => {}),
  );
  connection.on("data", (chunk: Buffer) => received.push(chunk));
  for (const chunk of chunks) {
    connection.write(chunk);
    if (random(4) === 0) await new Promise((done) => setImmediate(done));
  }
  if (isDropped) return drop(random, connection);
  connection.end();
  await ended;
  connection.destroy();
  checkReceived(Buffer.concat(received), sent, scene);
}

async function drop(random: Random, connection: Socket): Promise<void> {
  if (random(2) === 0) await new Promise((done) => setImmediate(done));
  const closed = new Promise((done) => connection.once("close", done));
  connection.destroy();
  await closed;
}

/** Finds for each message that came the answer that was expected, in any order; streams come in between. */
function checkReceived(received: Buffer, sent: Buffer, scene: Scene): void {
  const { expected, mayBeCut } = expectAll(sent, scene);
  for (const text of messagesOf(received, sent[0] === 0)) {
    const message = JSON.parse(text);
    if (message.type !== undefined) {
      demand(
        ["stream", "detached"].includes(message.type) && typeof message.processId === "string",
        "It is no stream message",
        sent,
        text,
      );
      continue;
    }
    const fits = (isExact: boolean) =>
      expected.findIndex(
        (one) => one.answers.every(({ any }) => any !== true) === isExact && answersProblem(text, one) === undefined,
      );
    const at = fits(true) >= 0 ? fits(true) : fits(false);
    const problem = expected.length === 1 ? answersProblem(text, expected[0]!) : undefined;
    demand(
      at >= 0,
      `There is an answer that was not expected${problem === undefined ? "" : `: ${problem}`}`,
      sent,
      text,
      expected,
    );
    expected.splice(at, 1);
  }
  demand(expected.length === 0 || mayBeCut, "There are requests without an answer", sent, expected, received);
}

function messagesOf(received: Buffer, isNative: boolean): string[] {
  if (!isNative) {
    demand(received.length === 0 || received.at(-1) === 0x0a, "The last line has no end", received);
    return received.toString().split("\n").slice(0, -1);
  }
  const events = rereadNative([received], [Infinity], Infinity);
  return events.map((event) => {
    demand("body" in event, "The frames end inside one", received, event);
    return event.body.toString();
  });
}

/**
 * What each frame is to be answered with. Behind one that closes the connection, answers that were under way may be missing; so they may for who
 * speaks lines and reads a process, whose stream another connection may take: it is closed then.
 */
function expectAll(sent: Buffer, { token, methods }: Scene): { expected: Expected[]; mayBeCut: boolean } {
  const state: State = { authenticated: false, known: false };
  const expected: Expected[] = [];
  let mayBeCut = false;
  const call = (name: string, params: unknown): ReturnType<typeof expectOf> => {
    mayBeCut ||= sent[0] !== 0 && ["process.spawn", "process.reattach"].includes(name);
    return expectOf(name, params, state, token);
  };
  for (const event of eventsOf(sent)) {
    if ("body" in event) expected.push(expectAnswers(event.body, state, token, call, methods));
    // how much is accepted depends on the token before it
    else if ("oversizeBytes" in event) {
      expected.push({
        isBatch: false,
        answers: [{ id: null, code: -32600, words: "Cannot read frame: " }],
        refused: 0,
      });
      mayBeCut ||= event.fatal || state.known;
    }
  }
  return { expected: expected.filter(({ answers }) => answers.length > 0), mayBeCut };
}

function expectOf(
  name: string,
  params: unknown,
  state: State,
  token: string,
): { result: unknown } | { code: number } | undefined {
  if (name === "server.ping") return { result: { pong: true } };
  if (name !== "server.authenticate") return undefined;
  const isKnown = Object.keys(Object(params)).every((key) => key === "token");
  return isKnown ? expectAuthenticated(params, state, token) : { code: -32602 };
}

function eventsOf(bytes: Buffer): FrameEvent[] {
  return (bytes[0] === 0 ? rereadNative : rereadLines)([bytes], [strangerBodyBytes], strangerBodyBytes);
}

// What is sent

/** A third of it is mutated; what would leave the directory, or stop the daemon, is sent as it was. */
function randomBytes(random: Random, scene: Scene): Buffer {
  if (random(40) === 0) return mutateBytes(random, Buffer.alloc(0), random(300));
  const framing = pick(random, ["native", "lines"] as const);
  const auth = pick(random, ["each", "each", "each", "first", "first", "none"] as const);
  const bodies = Array.from({ length: 1 + random(8) }, () => randomBody(random, scene, auth === "each"));
  if (auth === "first")
    bodies.unshift(
      JSON.stringify({ jsonrpc: "2.0", id: "first", method: "server.authenticate", params: { token: scene.token } }),
    );
  const frames = (texts: string[]) => Buffer.concat(texts.map((text) => encodeFrame(text, framing)));
  const whole = frames(bodies.filter((body) => isHarmless(frames([body]), scene)));
  const mutated = random(3) === 0 ? mutateBytes(random, whole) : whole;
  return isHarmless(mutated, scene) ? mutated : isHarmless(whole, scene) ? whole : Buffer.alloc(0);
}

function randomBody(random: Random, scene: Scene, isKnown: boolean): string {
  const kind = random(10);
  if (kind === 0) return randomJson(random);
  if (kind === 1)
    return writeArray(
      random,
      Array.from({ length: random(5) }, () => randomRequest(random, scene, isKnown)),
    );
  return randomRequest(random, scene, isKnown);
}

const commands = [
  ["true"],
  ["false"],
  ["cat"],
  ["sleep", "0.02"],
  ["sleep", "3"],
  ["sh", "-c", "echo out; echo err >&2"],
  ["sh", "-c", "exit 3"],
];
const ids = ["a", "b", "c", "é€😀", "\x1b[31m", ...oddNames.filter((name) => name !== "")];
const paths = ["a", "b", "dir", "dir/a", "~", "~/b", "missing", "dir/new/deep/a", "", "\0", "a/", ...oddNames];

function randomRequest(random: Random, { methods, token }: Scene, isKnown: boolean): string {
  const method =
    random(3) > 0
      ? pick(
          random,
          methods.filter((name) => /^(process|files)/.test(name)),
        )
      : pick(random, [...methods, "server.pong", ...oddNames]);
  const [command, ...args] = pick(random, commands);
  const json = JSON.stringify;
  const values: Record<string, string> = {
    id: json(pick(random, ids)),
    command: json(command),
    args: json(args),
    cwd: json(pick(random, ["~", "dir", "missing", "/"])),
    env: '{"A":"b","__proto__":"c"}',
    data: pick(random, ['"aGVsbG8="', '""', '"!"', '"aGVsbG8"']),
    end: pick(random, ["true", "false"]),
    offset: pick(random, ["0", "5", "1e15"]),
    signal: pick(random, ['"TERM"', '"KILL"', "15", '"CONT"', "0"]),
    timeoutMs: pick(random, ["0", "20"]),
    escalate: "true",
    fromSeq: pick(random, ["0", "1", "9"]),
    path: json(pick(random, paths)),
    content: pick(random, ['"text"', '"dGV4dA=="', '"\\ud800"']),
    encoding: pick(random, ['"utf8"', '"base64"', '"latin1"']),
    mode: pick(random, ['"600"', "384", "null"]),
    createDirs: pick(random, ["true", "false"]),
    maxBytes: pick(random, ["1", "4", "1e9"]),
    includeHidden: "true",
    token: json(random(2) === 0 ? token : "bad"),
    key: '"bad"',
    graceMs: "0",
    ifIdle: "true",
  };
  const wanted: Record<string, string[]> = {
    "process.spawn": ["id", "command", "args", "cwd", "env"],
    "process.stdin": ["id", "data", "offset", "end"],
    "process.kill": ["id", "signal"],
    "process.killAndWait": ["id", "signal", "timeoutMs", "escalate"],
    "process.reattach": ["id", "fromSeq"],
    "files.stat": ["path"],
    "files.validate": ["path"],
    "files.list": ["path", "includeHidden"],
    "files.read": ["path", "maxBytes", "offset", "encoding"],
    "files.write": ["path", "content", "encoding", "mode", "createDirs"],
    "server.authenticate": ["token"],
    "server.admit": ["key"],
    "server.shutdown": ["graceMs", "ifIdle"],
  };
  const params = (Object.hasOwn(wanted, method) ? wanted[method]! : [])
    .filter((_, at) => at < 3 || random(2) === 0)
    .map((name): [string, string] => [name, values[name]!]);
  const members: [string, string][] = [
    ["jsonrpc", '"2.0"'],
    ...(random(10) === 0 ? [] : [["id", String(random(100))] as [string, string]]),
    ["method", randomString(random, method)],
    ["params", writeObject(random, random(3) === 0 ? mutateMembers(random, params) : params)],
    ...(isKnown ? [["auth", json(token)] as [string, string]] : []),
  ];
  return writeObject(random, random(5) === 0 ? mutateMembers(random, members) : members);
}

/** Reads what is about to be sent, as the daemon will, and says whether it stays where it belongs. */
function isHarmless(bytes: Buffer, scene: Scene): boolean {
  return eventsOf(bytes).every((event) => {
    if (!("body" in event)) return true;
    let message: any;
    try {
      message = JSON.parse(event.body.toString().replace(/^\ufeff/, ""));
    } catch {
      return true; // and so the daemon will say
    }
    return (Array.isArray(message) ? message : [message]).every(
      (request) => typeof request !== "object" || request === null || isHarmlessRequest(request, bytes, scene),
    );
  });
}

function isHarmlessRequest({ auth: _, method, params, ...rest }: any, bytes: Buffer, { home, token }: Scene): boolean {
  const { token: __, ...others } = typeof params === "object" && params !== null ? params : { params };
  if (JSON.stringify([rest, method, others]).includes(token)) return false; // what is no secret may be logged
  if (method === "server.shutdown") return !bytes.includes(token);
  const { path, command, args, timeoutMs } = others;
  if (typeof method !== "string") return true;
  if (method.startsWith("files.") && typeof path === "string") {
    const full = resolve(
      path === "~" || path.startsWith("~/") ? home + path.slice(1) : path.startsWith("/") ? path : `${home}/${path}`,
    );
    return full === home || full.startsWith(`${home}/`);
  }
  if (method === "process.spawn" && typeof command === "string")
    return commands.some(
      (one) => JSON.stringify(one) === JSON.stringify([command, ...(Array.isArray(args) ? args : [])]),
    );
  if (method === "process.killAndWait")
    return typeof timeoutMs === "number" ? timeoutMs <= 100 : timeoutMs !== undefined && timeoutMs !== null;
  return true;
}

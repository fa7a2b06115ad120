/**
 * Files that a daemon leaves, as a broken disk, an odd hand or another version would have written them: the record, the claim, the token.
 *
 * Whatever they hold is told in words, and proves nothing that is not so: no living process to be dead or ours, no name to be ours to remove.
 */

import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import {
  existsSync,
  linkSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import type { ConnectOutcome } from "../../client.ts";
import { tryConnect } from "../../client.ts";
import { stopServer } from "../../control.ts";
import { exitCodes, Failure } from "../../failure.ts";
import { absenceFailure, explainAbsence } from "../../reach.ts";
import type { DaemonRecord, Identity } from "../../record.ts";
import { identify, livenessOf, readRecord, tryClaim } from "../../record.ts";
import type { Places } from "../../socket.ts";
import { isLeftBy, ownToken, placesOf, readToken } from "../../socket.ts";
import { isAlive, statOf } from "../daemon.ts";
import { mutateMembers, randomJson, writeObject } from "./json.ts";
import type { Random } from "./random.ts";
import { mutateBytes, pick } from "./random.ts";
import type { Check, Target } from "./target.ts";
import { demand } from "./target.ts";

/** Somebody else's, beside what is fuzzed: living processes, a socket that is listened to, one that is not, a file. */
interface Bystanders {
  directory: string;
  processes: ChildProcess[];
  socket: string;
  deadSocket: string;
  file: string;
  mayBeSignalled?: boolean;
}

export const recordTarget: Target = {
  name: "record",
  run: (useCheck) => withBystanders(useCheck, (others) => (random) => checkRecord(random, others)),
};
export const claimTarget: Target = {
  name: "claim",
  run: (useCheck) => withBystanders(useCheck, (others) => (random) => checkClaim(random, others)),
};
export const tokenTarget: Target = {
  name: "token",
  run: (useCheck) => withBystanders(useCheck, (others) => (random) => checkToken(random, others)),
};
/** What --stop does of a record; it looks again for a second before it says no. */
export const stopTarget: Target = {
  name: "stop",
  lanes: 30,
  limitS: 60,
  run: (useCheck) => withBystanders(useCheck, (others) => (random, seed) => checkStop(random, seed, others)),
};

async function withBystanders(
  useCheck: (check: Check) => Promise<void>,
  make: (others: Bystanders) => Check,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-fuzz-"));
  // they end with their stdin; one runs "--serve", as a daemon does
  const processes = [[], ["--serve"]].map((words) =>
    spawn("sh", ["-c", "read line", "sh", ...words], { stdio: ["pipe", "ignore", "ignore"] }),
  );
  const [socket, deadSocket, file] = ["other.sock", "dead.sock", "file"].map((name) => join(directory, name)) as [
    string,
    string,
    string,
  ];
  const server = createServer((connection) => connection.destroy());
  await new Promise<void>((done) => server.listen(socket, done));
  const former = createServer();
  await new Promise<void>((done) => former.listen(`${deadSocket}.bound`, done));
  linkSync(`${deadSocket}.bound`, deadSocket);
  await new Promise((done) => former.close(done)); // takes the name away that it was bound to, and no other
  writeFileSync(file, "");
  try {
    await useCheck(make({ directory, processes, socket, deadSocket, file }));
    for (const { pid } of processes) demand(isAlive(pid!), "Somebody else's process was ended");
    demand(existsSync(socket) && existsSync(file), "Somebody else's socket or file was removed");
  } finally {
    for (const child of processes) child.kill("SIGKILL");
    await new Promise((done) => server.close(done));
    rmSync(directory, { recursive: true, force: true });
  }
}

// The record

async function checkRecord(random: Random, others: Bystanders): Promise<void> {
  const places = placesOf({ socket: join(others.directory, "rpc.sock") });
  const text = randomRecord(random, others);
  writeFileSync(places.record, text, { mode: 0o600 });
  const { record, problem } = readRecord(places.record);
  if (record !== undefined) await checkFound(random, others, record, text);
  else
    demand(
      text.length === 0 || (/^Cannot .+: .+$/.test(problem!.message) && problem!.message.includes(places.record)),
      "Its problem is told otherwise",
      text,
      problem,
    );
  const outcome = pick(random, [
    undefined,
    { timedOut: true } as const,
    ...["ECONNREFUSED", "ENOENT", "EACCES", "EAGAIN"].map((code) => ({
      error: Object.assign(new Error(code), { code }),
    })),
  ]);
  checkExplanation(places, outcome, text);
}

async function checkFound(random: Random, others: Bystanders, record: DaemonRecord, text: Buffer): Promise<void> {
  demand(
    JSON.stringify(record) === JSON.stringify(JSON.parse(text.toString())),
    "Another record was read",
    text,
    record,
  );
  demand(
    record.tokenHashes.every((hash) => /^[0-9a-f]{64}$/.test(hash)),
    "It has tokens that no daemon can compare",
    record,
  );
  const truth = stateOf(record, true);
  demand(livenessOf(record).state === truth, `It is taken for ${livenessOf(record).state}, and is ${truth}`, record);
  const isOurs =
    record.bootId !== bootId() &&
    isOfThisMachine(record) &&
    [record.socket.path, record.socket.bound].includes(others.socket);
  const { dev, ino } = lstatSync(others.socket);
  demand(
    isLeftBy(record, others.socket) === (isOurs || (record.socket.dev === dev && record.socket.ino === ino)),
    "Somebody else's socket is taken for its own",
    record,
  );
  if (random(3) > 0) return;
  const outcome = await tryConnect(record.socket.bound, 1000);
  if ("socket" in outcome) outcome.socket.destroy();
  demand(
    !("socket" in outcome) || record.socket.bound === others.socket,
    "It was connected to another path than its own",
    record,
  );
}

function checkExplanation(
  places: Places,
  outcome: Exclude<ConnectOutcome, { socket: unknown }> | undefined,
  text: Buffer,
): void {
  const { reason, message, hint, healable, record } = explainAbsence(places, outcome);
  const reasons = [
    "never-started",
    "stopped",
    "replaced",
    "rebooted",
    "host-shutdown",
    "killed-at-logout",
    "idle-stop",
    "unit-stopped",
    "user-manager-stopped",
    "user-manager-ended",
    "out-of-memory",
    "other-host",
    "not-answering",
    "crashed",
    "permission",
  ];
  demand(reasons.includes(reason), "There is no such reason", text, reason);
  demand(
    !/undefined|NaN|Invalid|\[object|Infinity/.test(message.replaceAll(/"[^"]*"|: [\s\S]*/g, "")) && hint !== "",
    "Its words are those of an error of ours",
    text,
    message,
    hint,
  );
  if (healable) {
    demand(
      record !== undefined && !["stopped", "terminated"].includes(record.ended?.reason as string),
      "One that was stopped on purpose is to be started again",
      text,
    );
    demand(stateOf(record, true) !== "alive", "One that lives is to be started again", text);
    demand(
      stateOf(record, true) === "dead" ||
        record.ended !== undefined ||
        (outcome !== undefined && "error" in outcome && outcome.error.code === "ECONNREFUSED"),
      "One that is not known to be dead is to be started again",
      text,
    );
  }
  const failure = absenceFailure({ reason, message, hint, healable });
  demand(
    failure.exit === (reason === "permission" ? exitCodes.noPermission : exitCodes.unavailable),
    "Another exit code",
    text,
    failure.exit,
  );
}

/** Whether the process that an identity means lives, told a second time, from /proc. */
function stateOf(identity: Identity, isDaemon: boolean): string {
  if (identity.bootId !== bootId() && !isOfThisMachine(identity)) return "unknown";
  if (identity.bootId !== "" && identity.bootId !== bootId()) return "dead";
  if (identity.pidNamespace !== readlinkSync("/proc/self/ns/pid")) return "unknown";
  // of an unknown boot: that nobody has the pid is all that can be known, and no pid is larger
  if (identity.bootId === "")
    return existsSync(`/proc/${identity.pid}`) || identity.pid >= 2 ** 31 ? "unknown" : "dead";
  if (!isAlive(identity.pid) || statOf(identity.pid)![19] !== identity.startTime) return "dead";
  return !isDaemon || /\0--?serve\0/.test(readFileSync(`/proc/${identity.pid}/cmdline`, "latin1")) ? "alive" : "dead";
}

/** By its number, where both have one, and by its name. */
function isOfThisMachine({ machineId, host }: Identity): boolean {
  const here = identify().machineId;
  return host === hostname() && (!machineId || !here || machineId === here);
}

let boot: string | undefined;
function bootId(): string {
  boot ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return boot;
}

/** Whom a record or a claim may name: the living, the dead, and those of elsewhere. What may be signalled is ours, should the product be broken. */
function randomIdentity(random: Random, { processes, mayBeSignalled = false }: Bystanders): Identity {
  const here = identify();
  return pick(random, [
    ...(mayBeSignalled ? [] : [() => here, () => ({ ...here, pid: 1 }), () => identify(1)]),
    () => identify(processes[0]!.pid),
    () => identify(processes[1]!.pid),
    () => ({ ...here, pid: processes[1]!.pid!, startTime: "1" }),
    () => ({ ...here, pid: 4_000_000, startTime: "1" }),
    () => ({ ...here, bootId: "00000000-0000-0000-0000-000000000000" }),
    () => ({ ...here, pidNamespace: "pid:[1]" }),
    () => ({ ...here, host: "\x1b[31melsewhere" }), // renamed
    () => ({
      ...here,
      bootId: "00000000-0000-0000-0000-000000000000",
      host: "\x1b[31melsewhere",
      machineId: "0".repeat(32),
    }),
  ])();
}

const oddTexts = [
  '""',
  '"/"',
  '"\\u0000"',
  '"/\\u0000x"',
  '"."',
  '"--serve"',
  `"/${"x".repeat(5000)}"`,
  '"../../x"',
  '"0"',
];

function randomRecord(random: Random, others: Bystanders): Buffer {
  if (random(20) === 0)
    return pick(random, [
      Buffer.alloc(random(3000)),
      Buffer.from(randomJson(random)),
      mutateBytes(random, Buffer.alloc(0), random(200)),
      Buffer.from("[".repeat(random(1 << 16))),
    ]);
  const members = membersOf(recordOf(random, others));
  const changed =
    random(6) === 0
      ? members
      : mutateMembers(random, members).map(([name, text]): [string, string] => {
          if (random(name === "socket" ? 6 : 24) > 0) return [name, text];
          if (text.startsWith("{"))
            return [
              name,
              writeObject(
                random,
                mutateMembers(
                  random,
                  membersOf(JSON.parse(text)).map(([inner, was]) => [
                    inner,
                    random(3) > 0 ? was : pick(random, oddTexts),
                  ]),
                ),
              ),
            ];
          if (text.startsWith("[")) return [name, `[${pick(random, [...oddTexts, "1", "null", text])}]`];
          return [name, pick(random, oddTexts)];
        });
  const bytes = Buffer.from(writeObject(random, changed));
  return random(6) === 0 ? mutateBytes(random, bytes) : bytes;
}

function recordOf(random: Random, others: Bystanders): DaemonRecord {
  const { dev, ino } = lstatSync(pick(random, [others.socket, others.deadSocket]));
  const path = join(others.directory, "rpc.sock");
  const reason = pick(random, [
    "stopped",
    "replaced",
    "killed-at-logout",
    "user-manager-stopped",
    "terminated",
    "crashed",
  ] as const);
  return {
    ...randomIdentity(random, others),
    version: "1.0.0",
    instance: "0".repeat(32),
    key: "k",
    tokenHashes: ["a".repeat(64)],
    log: "/l",
    startedAt: 1e12,
    command: ["node", "x"],
    lifetime: {},
    socket: {
      path: pick(random, [path, others.socket]),
      bound: pick(random, [`${path}x`, others.socket, others.file]),
      dev: random(2) === 0 ? dev : 1,
      ino: random(3) === 0 ? ino : 2,
    },
    ...(random(4) === 0 ? { stoppingAt: 1e12 } : {}),
    ...(random(3) === 0 ? { ended: { at: 1e12, reason, detail: "SIGTERM" } } : {}),
  };
}

function membersOf(value: object): [name: string, text: string][] {
  return Object.entries(value).map(([name, member]) => [name, JSON.stringify(member)]);
}

// The claim

function checkClaim(random: Random, others: Bystanders): void {
  const { directory } = others;
  const path = join(directory, "claim");
  const holder = {
    id: pick(random, ["0123456789ab", "", "..", "/../file", "x".repeat(300), "\0"]),
    ...randomIdentity(random, others),
  };
  const bytes = Buffer.from(
    random(20) === 0
      ? randomJson(random)
      : writeObject(random, random(3) === 0 ? membersOf(holder) : mutateMembers(random, membersOf(holder))),
  );
  const text = random(6) === 0 ? mutateBytes(random, bytes) : bytes;
  writeFileSync(path, text, { mode: 0o600 });
  try {
    const claim = tryClaim(path);
    const value = parsed(text);
    const isHeld = typeof value?.id === "string" && typeof value.pid === "number" && stateOf(value, false) !== "dead";
    demand(
      !isHeld || ("heldBy" in claim && readFileSync(path).equals(text)),
      "The claim of one that may live was taken",
      text,
      claim,
    );
    if ("heldBy" in claim) {
      demand(existsSync(path), "It is held, and gone", text);
      return;
    }
    demand(identifiesUs(path), "A claim was given that is not there", text);
    claim.release();
    demand(!existsSync(path), "A claim that was released is there", text);
  } catch (error) {
    demand(
      error instanceof Failure && /^Cannot claim ".*": /.test(error.message),
      "It threw what is no words",
      text,
      (error as Error).stack,
    );
  } finally {
    for (const name of readdirSync(directory)) if (name.startsWith("claim")) rmSync(join(directory, name));
  }
}

function identifiesUs(path: string): boolean {
  const value = parsed(readFileSync(path));
  return value?.pid === process.pid && stateOf(value, false) === "alive";
}

function parsed(text: Buffer): any {
  try {
    return JSON.parse(text.toString());
  } catch {
    return undefined;
  }
}

// The token

async function checkToken(random: Random, { directory }: Bystanders): Promise<void> {
  const path = join(directory, "token");
  const parts = [
    "a token",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\0",
    "\ufeff",
    "é€😀",
    "\x1b[31m",
    "x".repeat(pick(random, [10, 4090, 4095, 4096, 5000])),
  ];
  const text = Buffer.from(Array.from({ length: random(5) }, () => pick(random, parts)).join(""));
  const bytes = random(4) === 0 ? mutateBytes(random, text) : text;
  writeFileSync(path, bytes, { mode: 0o600 });
  const [given, own] = [await wordsOf(() => readToken(path)), await wordsOf(() => ownToken(path))];
  // as it is but for its line end; of blanks alone it is none
  const end = bytes.indexOf("\n");
  const lineBytes = bytes.subarray(0, end < 0 ? bytes.length : bytes[end - 1] === 0x0d ? end - 1 : end);
  const line = lineBytes.toString();
  const isBlank = /^\s*$/.test(line);
  const isUtf8 = Buffer.from(line).equals(lineBytes);
  for (const token of [given, own])
    if (typeof token === "string")
      demand(!/^\s*$/.test(token) && !token.includes("\n"), "It is no token", bytes, token);
  if (typeof given === "string")
    demand(Buffer.byteLength(given) <= 4095 && given === line, "Another token was read", bytes, given);
  else
    demand(
      [exitCodes.noPermission, exitCodes.failed].includes(given.exit as 77) &&
        given.message.startsWith(`Cannot read the token file "${path}": `),
      "It was refused otherwise",
      bytes,
      given.message,
    );
  demand(
    (typeof given === "string") === (!isBlank && isUtf8 && Buffer.byteLength(line) <= 4095),
    "A token was refused, or none was read",
    bytes,
    given,
  );
  // a client reads the file that --serve has named: the two must agree, but where --serve has made a new one
  if (typeof own === "string" && typeof given === "string")
    demand(own === given, "The daemon reads another token than its clients", bytes, own, given);
  if (typeof own === "string" && isBlank)
    demand(/^[0-9a-f]{64}$/.test(own) && readFileSync(path, "latin1") === `${own}\n`, "No token was made", bytes, own);
}

async function wordsOf(read: () => string | Promise<string>): Promise<string | Failure> {
  try {
    return await read();
  } catch (error) {
    demand(
      error instanceof Failure && /^Cannot .+: .+$/.test(error.message),
      "It threw what is no words",
      (error as Error).stack,
    );
    return error;
  }
}

// --stop

async function checkStop(random: Random, seed: number, others: Bystanders): Promise<void> {
  const directory = mkdtempSync(join(others.directory, `${seed}-`));
  const places = placesOf({ socket: join(directory, "rpc.sock") });
  const there = pick(random, ["nothing", "a file", "a socket"] as const);
  if (there === "a file") writeFileSync(places.socket, "");
  if (there === "a socket") linkSync(others.deadSocket, places.socket);
  writeFileSync(
    places.record,
    randomRecord(random, { ...others, mayBeSignalled: true, ...(random(2) === 0 ? {} : { directory }) }),
    { mode: 0o600 },
  );
  const text = readFileSync(places.record);
  // it may end what is provably its daemon: not a case
  const value = parsed(text);
  if (
    value !== null &&
    typeof value === "object" &&
    typeof value.startTime === "string" &&
    stateOf(value, true) === "alive"
  )
    return;
  const { dev, ino } = lstatSync(others.deadSocket);
  const isLeft = value?.socket?.ino === ino && value.socket.dev === dev;
  const isOfEarlierBoot =
    value !== null &&
    typeof value === "object" &&
    value.bootId !== bootId() &&
    isOfThisMachine(value) &&
    [value.socket?.path, value.socket?.bound].includes(places.socket);
  try {
    const { word, count } = await stopServer(places, { graceMs: 0, ifIdle: random(4) === 0 });
    demand((word === "stopped" || word === "none") && count === 0, "It stopped what was not there", text, word, count);
  } catch (error) {
    demand(
      error instanceof Failure && /^(Cannot|The daemon) .+/.test(error.message) && error.exit > 0,
      "It threw what is no words",
      text,
      (error as Error).stack,
    );
  }
  demand(
    existsSync(places.socket) === (there !== "nothing") || (there === "a socket" && (isLeft || isOfEarlierBoot)),
    "A name was removed that is not ours",
    text,
  );
  demand(
    others.processes.every(({ pid }) => isAlive(pid!)),
    "Somebody else's process was ended",
    text,
  );
  demand(existsSync(others.socket) && existsSync(others.file), "Somebody else's socket or file was removed", text);
}

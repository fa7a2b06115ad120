/**
 * What is kept of processes, as a broken disk, an odd hand or another version would have left it: about, exit, mark, journal and segments.
 *
 * One process runs under its holder, one in a terminal, and one has ended; all were started by a daemon that is no more. Whatever is damaged of the one: nobody is
 * signalled, why it is not taken up is told in words, what is read is bounded, and the other one is taken up.
 */

import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { leaveAll, takeUp } from "../../adoption.ts";
import type { Processes } from "../../processes.ts";
import { createProcesses, endAll, processMethods } from "../../processes.ts";
import type { Method, Peer } from "../../rpc.ts";
import { isAlive, sleep } from "../daemon.ts";
import { mutateMembers, writeObject } from "./json.ts";
import type { Random } from "./random.ts";
import { mutateBytes, pick } from "./random.ts";
import type { Check, Target } from "./target.ts";
import { demand } from "./target.ts";

const files = ["about", "exit", "mark", "stdin", "0"];

export const keptTarget: Target = {
  name: "kept",
  async run(useCheck) {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-fuzz-kept-"));
    try {
      await withLeft(directory, useCheck);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  },
};

/** A client that listens to nothing. */
const peer: Peer = { id: "fuzz", unsentBytes: 0, send: () => true, onDrain: () => () => {}, onClose: () => () => {} };

const createAt = (path: string, log: (line: string) => void = () => {}): Processes =>
  createProcesses({ env: { PATH: process.env.PATH, HOME: "/" }, log, keptPath: path });

function call(processes: Processes, name: string, params: object): any {
  const method = new Map<string, Method>(processMethods(processes)).get(`process.${name}`)!;
  return method(params as never, { peer, authenticated: true, known: true });
}

async function withLeft(directory: string, useCheck: (check: Check) => Promise<void>): Promise<void> {
  const original = join(directory, "original");
  const first = createAt(original);
  const { pid } = await call(first, "spawn", { id: "runs", command: "sh", args: ["-c", "echo said; exec sleep 1000"] });
  const terminal = { rows: 30, columns: 100 };
  const modes = "printf '\\033[?1049h\\033[?25l'; exec sleep 1000";
  const screen = await call(first, "spawn", { id: "screen", command: "sh", args: ["-c", modes], terminal });
  await call(first, "spawn", { id: "ended", command: "sh", args: ["-c", "echo last; exit 7"] });
  const journal = { id: "runs", data: Buffer.alloc(200_000, "j").toString("base64") }; // more than a pipe takes
  call(first, "stdin", journal);
  while ((await call(first, "list", {})).processes.some((it: any) => it.id === "ended" && it.running)) await sleep(5);
  await sleep(100);
  await leaveAll(first, { graceMs: 0 });
  const copy = join(directory, "copy");
  try {
    const pids = [pid, screen.pid];
    await useCheck((random) => checkDamaged(random, original, copy, pids));
    demand(pids.every(isAlive), "A process that runs was ended");
  } finally {
    const last = createAt(original);
    takeUp(last);
    await endAll(last, { graceMs: 0 });
    demand(![pid, screen.pid].some(isAlive), "A process that runs cannot be ended by what was left of it");
  }
}

const membersOf = (json: Buffer): [name: string, text: string][] =>
  Object.entries(JSON.parse(json.toString())).map(([name, value]) => [name, JSON.stringify(value)]);

async function checkDamaged(random: Random, original: string, copy: string, pids: number[]): Promise<void> {
  rmSync(copy, { recursive: true, force: true });
  cpSync(original, copy, { recursive: true, filter: (path) => !/\/(out|err|start|owner)$/.test(path) });
  const directories = readdirSync(copy).map((name) => join(copy, name));
  const idOf = (path: string) => JSON.parse(readFileSync(join(path, "about"), "utf8")).id as string;
  const victim = pick(
    random,
    directories.filter((path) => existsSync(join(path, "about"))),
  );
  const spared = ["runs", "screen", "ended"].filter((id) => id !== idOf(victim));
  const name = pick(
    random,
    files.filter((file) => existsSync(join(victim, file))),
  );
  const bytes = readFileSync(join(victim, name));
  const isObject = (name === "about" || name === "exit") && random(2) === 0;
  const damaged = isObject ? writeObject(random, mutateMembers(random, membersOf(bytes))) : mutateBytes(random, bytes);
  writeFileSync(join(victim, name), damaged, { mode: 0o600 });
  const lines: string[] = [];
  const processes = createAt(copy, (line) => lines.push(line));
  takeUp(processes);
  const { running, ended, problems } = processes.takenUp;
  const case_ = { name, damaged: String(damaged).slice(0, 500), lines };
  for (const id of spared) demand(processes.children.has(id), `"${id}" was not taken up`, case_);
  demand(running + ended + problems.length === 3, "One is neither taken up nor told of", case_, processes.takenUp);
  for (const problem of problems)
    demand(/^Cannot .+: .+$|it is left alone/.test(problem), "A problem is told otherwise", case_, problem);
  for (const { id } of processes.children.values()) {
    const { terminal } = call(processes, "reattach", { id, fromSeq: 0 }); // all that is held can be read
    const isSize = (value: unknown): boolean => Number.isInteger(value) && Number(value) > 0 && Number(value) < 65_536;
    demand(!terminal || [terminal.rows, terminal.columns].every(isSize), "A size is none", case_, terminal);
  }
  for (const [id, { mark, running }] of processes.children) {
    if (mark) continue; // an about without a holder is that of a process with plain pipes, which would end with its daemon
    running?.release();
    processes.children.delete(id);
  }
  await leaveAll(processes, { graceMs: 0 });
  demand(pids.every(isAlive), "A process that runs was ended", case_);
}

// time limit: 180 s
import { execFileSync, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { defaultLimits } from "../children.ts";
import { Failure } from "../failure.ts";
import type { Processes } from "../processes.ts";
import { createProcesses, dropExpired, endAll, liveCount, processMethods, summarise } from "../processes.ts";
import type { Params, Peer } from "../rpc.ts";
import type { Room } from "../spool.ts";
import { createRoom } from "../spool.ts";
import { busyMs, removeAll, isAlive as runs } from "./daemon.ts";

type Reply = Record<string, any>;
type Limits = Partial<typeof defaultLimits & Pick<Room, "path" | "spoolBytes" | "memoryBytes" | "allMemoryBytes">>;

/** A connection that records what it is sent, and falls behind when told to. */
interface FakePeer extends Peer {
  messages: Reply[];
  unsentBytes: number;
  /** Messages that it takes before it falls behind. */
  room: number;
  /** Takes so many more, and has caught up. */
  drain(room?: number): void;
  close(): void;
  of(id: string, stream?: string): Reply[];
  text(id: string, stream?: string): string;
}

function createPeer(id = "c1", room = Infinity): FakePeer {
  const drained = new Set<() => void>();
  const closed = new Set<() => void>();
  const keep = (set: Set<() => void>) => (listener: () => void) => {
    set.add(listener);
    return () => void set.delete(listener);
  };
  const peer: FakePeer = {
    id,
    room,
    messages: [],
    unsentBytes: 0,
    send(message) {
      peer.messages.push(message as Reply);
      return --peer.room > 0;
    },
    onDrain: keep(drained),
    onClose: keep(closed),
    drain(more = Infinity) {
      peer.room = more;
      for (const listener of drained) listener();
    },
    close: () => {
      for (const listener of closed) listener();
    },
    of: (of, stream) =>
      peer.messages.filter(
        (message) => message.processId === of && (stream === undefined || message.stream === stream),
      ),
    text: (of, stream = "stdout") =>
      Buffer.concat(peer.of(of, stream).map(({ data }) => Buffer.from(data, "base64"))).toString(),
  };
  return peer;
}

interface World {
  processes: Processes;
  peer: FakePeer;
  directory: string;
  log: string[];
  env: NodeJS.ProcessEnv;
  idleCount(): number;
  call(method: string, params: object, peer?: Peer): any;
}

/** Runs a test with processes of its own. None is left after it, nor a descriptor, nor a listener. */
async function withProcesses(
  run: (world: World) => unknown,
  limits: Limits = {},
  env: NodeJS.ProcessEnv = {},
): Promise<void> {
  const mark = `HF_MARK=${randomBytes(8).toString("hex")}`;
  const directory = realpathSync(mkdtempSync(join(tmpdir(), "holdfast-processes-")));
  const log: string[] = [];
  let idle = 0;
  const world: NodeJS.ProcessEnv = {
    PATH: process.env.PATH,
    HOME: directory,
    SHELL: "/bin/sh",
    HF_MARK: mark.slice(8),
    ...env,
  };
  const open = countDescriptors();
  const note = (line: string) => void log.push(line);
  const room = createRoom(note, limits);
  const processes = createProcesses({ env: world, log: note, onAllExited: () => idle++, limits, room });
  const peer = createPeer();
  const call = (method: string, params: object, caller: Peer = peer) => {
    return processMethods(processes).get(`process.${method}`)!(params as Params, {
      peer: caller,
      authenticated: true,
      known: true,
    });
  };
  try {
    await run({ processes, peer, directory, log, env: world, call, idleCount: () => idle });
  } finally {
    await endAll(processes, { graceMs: 200 });
    await removeAll(directory);
  }
  await until(
    () => findProcesses(mark).length === 0,
    () => `left running: ${findProcesses(mark)}`,
  );
  await until(
    () => countDescriptors() === open,
    () => `${countDescriptors()} descriptors are open, there were ${open}`,
  );
}

function countDescriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

/** Finds processes by their environment: whatever a test starts has its mark, in any group. */
function findProcesses(mark: string): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, "latin1").includes(mark) && Number(pid) !== process.pid;
      } catch {
        return false;
      }
    });
}

async function until(
  condition: () => unknown,
  problem: () => string = () => `never true: ${condition}`,
  withinMs = 20_000,
): Promise<void> {
  for (const end = performance.now() + withinMs; !condition(); await pause(5))
    assert.ok(performance.now() < end, problem());
}

function pause(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}

async function failureOf(act: () => unknown): Promise<Failure> {
  let result: unknown;
  try {
    result = await act();
  } catch (error) {
    assert.instance(error, Failure);
    return error as Failure;
  }
  throw new Error(`expected a failure, got ${JSON.stringify(result)}`);
}

const sh = (id: string, script: string, more: object = {}) => ({
  id,
  command: "/bin/sh",
  args: ["-c", script],
  ...more,
});
const base64 = (text: string) => Buffer.from(text).toString("base64");
const exitOf = (peer: FakePeer, id: string) => peer.of(id, "exit")[0];
const exited = (peer: FakePeer, id: string) =>
  until(
    () => exitOf(peer, id),
    () => `no exit of ${id.slice(0, 50)}`,
  );
const entryOf = (call: World["call"], id: string): Reply =>
  call("list", {}).processes.find((entry: Reply) => entry.id === id);
const isAlive = (pid: number | string) => runs(Number(pid));

/** Whatever was sent: seqs from `first` without a gap, none twice; the exit last, and messages of at most 32 KiB. */
function checkSequence(messages: Reply[], first = 1): void {
  assert.equal(
    messages.map(({ seq }) => seq),
    messages.map((_, at) => first + at),
  );
  for (const [at, message] of messages.entries()) {
    if (message.stream === "exit") {
      assert.is(at, messages.length - 1);
      continue;
    }
    const bytes = Buffer.from(message.data, "base64").length;
    assert.ok(bytes > 0 && bytes <= 32_768, `${bytes} bytes`);
  }
}

const spawn = suite("process.spawn");

spawn("answers with the pid, then sends output of both streams and the exit", () =>
  withProcesses(async ({ call, peer, log }) => {
    const answer = await call("spawn", sh("a", "echo out; read x; echo err >&2; exit 3"));
    assert.equal(Object.keys(answer), ["success", "pid"]);
    assert.equal(peer.messages, []);
    await until(() => peer.text("a"));
    call("stdin", { id: "a", data: base64("\n") });
    await exited(peer, "a");
    assert.equal(peer.messages, [
      { type: "stream", processId: "a", stream: "stdout", seq: 1, data: base64("out\n") },
      { type: "stream", processId: "a", stream: "stderr", seq: 2, data: base64("err\n") },
      { type: "stream", processId: "a", seq: 3, stream: "exit", exitCode: 3 },
    ]);
    const lines = log.filter((line) => line.includes("pid"));
    assert.equal(lines, [
      `[Process] Started "a": pid ${answer.pid}, sh`,
      `[Process] Ended "a": pid ${answer.pid}, exit code 3`,
    ]);
  }),
);
spawn("passes arguments and bytes as they are", () =>
  withProcesses(async ({ call, peer }) => {
    const args = ["", "a b", "$HOME", "*", "'\"", "é😀", "-n"];
    await call("spawn", { id: "a", command: "/usr/bin/printf", args: ["%s|", ...args] });
    await exited(peer, "a");
    assert.is(peer.text("a"), args.map((arg) => `${arg}|`).join(""));
    await call("spawn", sh("b", "head -c 3000000 /dev/urandom | tee random"));
    await exited(peer, "b");
    await call("spawn", sh("c", "sha256sum random"));
    await exited(peer, "c");
    const sent = Buffer.concat(peer.of("b", "stdout").map(({ data }) => Buffer.from(data, "base64")));
    assert.is(peer.text("c").slice(0, 64), createHash("sha256").update(sent).digest("hex"));
    checkSequence(peer.of("b"));
  }),
);
spawn("gives the daemon's environment without HOLDFAST_*, and the request's over it", () =>
  withProcesses(
    async ({ call, peer, directory }) => {
      await call("spawn", { id: "a", command: "/usr/bin/env", env: { MINE: "1", OTHER: "mine", __proto__x: "p" } });
      await exited(peer, "a");
      const lines = peer.text("a").split("\n");
      for (const line of ["MINE=1", "OTHER=mine", "KEPT=1", "__proto__x=p", `HOME=${directory}`])
        assert.ok(lines.includes(line), line);
      assert.not.match(peer.text("a"), "HOLDFAST");
    },
    {},
    { HOLDFAST_TOKEN: "secret", HOLDFAST_: "x", KEPT: "1", OTHER: "theirs" },
  ),
);
spawn("finds HOME in the passwd database where it is unset", () =>
  withProcesses(
    async ({ call, peer }) => {
      await call("spawn", sh("a", "echo $HOME; pwd"));
      await exited(peer, "a");
      const home = execFileSync("sh", ["-c", "getent passwd $(id -u) | cut -d: -f6"]).toString();
      assert.is(peer.text("a"), home + home);
    },
    {},
    { HOME: undefined },
  ),
);
spawn("starts in the home directory, or in cwd, which may be relative to it", () =>
  withProcesses(async ({ call, peer, directory }) => {
    mkdirSync(join(directory, "sub dir"));
    for (const [id, cwd, expected] of [
      ["a", undefined, directory],
      ["b", "~", directory],
      ["c", "sub dir", `${directory}/sub dir`],
      ["d", "~/sub dir/..", directory],
      ["e", "/", "/"],
    ] as const) {
      await call("spawn", { id, command: "pwd", ...(cwd === undefined ? {} : { cwd }) });
      await exited(peer, id);
      assert.is(peer.text(id), `${expected}\n`);
    }
  }),
);
spawn("starts in / where there is no home", () =>
  withProcesses(
    async ({ call, peer }) => {
      await call("spawn", { id: "a", command: "/bin/pwd" });
      await exited(peer, "a");
      assert.is(peer.text("a"), "/\n");
    },
    {},
    { HOME: "/no/such/home" },
  ),
);
spawn("gives no descriptor but 0 to 2, and a session and group of its own", () =>
  withProcesses(async ({ call, peer, directory }) => {
    const isInherited = (name: string) =>
      !/^flags:\s+0?2\d{6}$/m.test(readFileSync(`/proc/self/fdinfo/${name}`, "utf8")); // no O_CLOEXEC
    const inherited = readdirSync("/proc/self/fd").filter(
      (name) => Number(name) > 2 && existsSync(`/proc/self/fdinfo/${name}`) && isInherited(name),
    );
    const descriptor = openSync(directory, "r");
    await call("spawn", sh("other", "sleep 10"));
    const { pid } = await call("spawn", { id: "a", command: "/bin/cat" });
    call("stdin", { id: "a", data: base64("x") });
    await until(() => peer.text("a"));
    assert.equal(
      readdirSync(`/proc/${pid}/fd`).filter((name) => !inherited.includes(name)),
      ["0", "1", "2"],
    );
    closeSync(descriptor);
    const [, , group, session] = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ");
    assert.equal([group, session], [String(pid), String(pid)]);
  }),
);
for (const [name, request, errno, words] of [
  [
    "a command that is not in PATH",
    { command: "no-such-command" },
    "ENOENT",
    'Cannot start "no-such-command": no such command in PATH "',
  ],
  ["a path that does not exist", { command: "/no/such" }, "ENOENT", 'Cannot start "/no/such": no such file (ENOENT)'],
  ["a relative path that does not exist", { command: "./no" }, "ENOENT", 'Cannot start "./no": no such file (ENOENT)'],
  [
    "a script whose interpreter does not exist",
    { command: "./bad" },
    "ENOENT",
    "the interpreter that its first line names does not exist",
  ],
  ["a directory", { command: "/tmp" }, "EACCES", 'Cannot start "/tmp": permission denied (EACCES)'],
  ["a file that may not be executed", { command: "./plain" }, "EACCES", "permission denied (EACCES)"],
  ["a cwd that is a file", { command: "/bin/true", cwd: "plain" }, "ENOTDIR", '/plain": not a directory (ENOTDIR)'],
  [
    "a cwd that does not exist",
    { command: "/bin/true", cwd: "/no" },
    "ENOENT",
    'directory "/no": no such file or directory (ENOENT)',
  ],
  [
    "a cwd and a command that do not exist",
    { command: "no-such-command", cwd: "/no" },
    "ENOENT",
    'in working directory "/no"',
  ],
  [
    "arguments that are too long",
    { command: "/bin/true", args: ["x".repeat(3 << 20)] },
    "E2BIG",
    "argument list too long (E2BIG)",
  ],
] as const) {
  spawn(`refuses ${name}, and starts nothing`, () =>
    withProcesses(async ({ call, peer, directory, processes, idleCount }) => {
      writeFileSync(join(directory, "bad"), "#!/no/such/interpreter\n", { mode: 0o755 });
      writeFileSync(join(directory, "plain"), "");
      const failure = await failureOf(() => call("spawn", { id: "a", ...request }));
      assert.is(failure.code, -32603);
      assert.equal(failure.data, { errno });
      assert.match(failure.message, words);
      assert.equal([liveCount(processes), summarise(processes).processes, peer.messages, idleCount()], [0, [], [], 1]);
      assert.is((await failureOf(() => call("kill", { id: "a" }))).code, -32602);
    }),
  );
}
for (const params of [
  {},
  { id: "" },
  { id: 5 },
  { id: "x".repeat(257) },
  { command: undefined },
  { command: "" },
  { command: "a\0b" },
  { args: ["half \ud83d"] },
  { env: { HALF: "\ud83d" } },
  { args: "x" },
  { args: [1] },
  { args: ["\0"] },
  { cwd: 1 },
  { cwd: "\0" },
  { env: [] },
  { env: { A: 1 } },
  { env: { "A\0": "" } },
  { env: { A: "\0" } },
  { cwdd: "/tmp" },
  { launcher: "x" },
  { stdin: "closed" },
  { umask: 512 },
  { umask: "022" },
  { clearEnv: 1 },
  { lossless: 1 },
]) {
  spawn(`refuses ${JSON.stringify(params)}`, () =>
    withProcesses(async ({ call, processes }) => {
      const request =
        "id" in params || Object.keys(params).length === 0 ? params : { id: "a", command: "/bin/true", ...params };
      assert.is((await failureOf(() => call("spawn", request))).code, -32602);
      assert.is(liveCount(processes), 0);
    }),
  );
}
const oddIds = [
  "__proto__",
  "constructor",
  "toString",
  "😀",
  "a\nb\u001b[31m",
  " ",
  "x".repeat(256),
  "\ud800",
  "../..",
  "é".repeat(50),
];
for (const id of oddIds) {
  spawn(`takes the id ${JSON.stringify(id).slice(0, 30)}`, () =>
    withProcesses(async ({ call, peer, log }) => {
      await call("spawn", { id, command: "/bin/cat" });
      await call("stdin", { id, data: base64("x"), end: true });
      await exited(peer, id);
      assert.is(peer.text(id), "x");
      assert.is(entryOf(call, id).id, id);
      assert.ok(
        log.every((line) => line.length < 400 && !/[\u0000-\u001f]/.test(line)),
        log.join("\n"),
      );
    }),
  );
}
spawn("gives an id where there is none: the command's name, and the next that is free", () =>
  withProcesses(async ({ call, peer }) => {
    const started = [];
    for (const command of ["/bin/sleep", "sleep", "/bin/sleep"])
      started.push(await call("spawn", { command, args: ["10"] }));
    assert.equal(
      started.map(({ id }) => id),
      ["sleep", "sleep-2", "sleep-3"],
    );
    const none = { cwd: null, env: null, clearEnv: null, umask: null, stdin: null, lossless: null, terminal: null };
    const { id } = await call("spawn", { id: null, command: "/bin/sh", args: ["-c", "echo hi"], ...none });
    await exited(peer, id);
    assert.equal([id, peer.text("sh")], ["sh", "hi\n"]);
    assert.is((await call("spawn", { command: "true" })).id, "true");
    assert.is((await call("spawn", { id: "given", command: "true" })).id, undefined);
    await failureOf(() => call("spawn", { command: "/no/such/$(x) !" }));
  }),
);
spawn("begins at the end of stdin where there is to be none", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "cat; echo end", { stdin: "none" }));
    await exited(peer, "a");
    assert.is(peer.text("a"), "end\n");
    await call("spawn", sh("b", "sleep 10", { stdin: "none" }));
    assert.match((await failureOf(() => call("stdin", { id: "b", data: base64("x") }))).message, "it was ended");
  }),
);
spawn("leaves only the given environment where it is to be clear, and has the given umask", () =>
  withProcesses(
    async ({ call, peer, directory }) => {
      const before = process.umask();
      await call("spawn", { id: "a", command: "/usr/bin/env", env: { A: "1" }, clearEnv: true });
      await call("spawn", sh("b", `umask; : > ${directory}/made`, { umask: 0o27 }));
      for (const id of ["a", "b"]) await exited(peer, id);
      assert.equal([peer.text("a"), peer.text("b")], ["A=1\n", "0027\n"]);
      assert.is(statSync(join(directory, "made")).mode & 0o777, 0o640);
      assert.is(process.umask(), before);
    },
    {},
    { SECRET: "x" },
  ),
);
spawn("passes nothing on of our own, of tokens, and of a session that is over", () =>
  withProcesses(
    async ({ call, peer }) => {
      await call("spawn", { id: "a", command: "/usr/bin/env" });
      await exited(peer, "a");
      assert.not.match(peer.text("a"), /not for children/);
      assert.match(peer.text("a"), /^KEPT=kept$/m);
    },
    {},
    Object.fromEntries([
      ...["HOLDFAST_X", "CLAUDE_RPC_TOKEN", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "XDG_SESSION_ID"].map((name) => [
        name,
        "not for children",
      ]),
      ["KEPT", "kept"],
    ]),
  ),
);
spawn("is rather taken by the kernel's OOM killer than the daemon", () =>
  withProcesses(async ({ call }) => {
    const { pid } = await call("spawn", sh("a", "sleep 10"));
    const scoreOf = (who: string | number) => Number(readFileSync(`/proc/${who}/oom_score_adj`, "utf8"));
    assert.is(scoreOf(pid), Math.min(1000, scoreOf("self") + 200));
  }),
);
spawn("refuses an id that is alive or being started, and takes one that has ended", () =>
  withProcesses(async ({ call, peer }) => {
    const first = call("spawn", sh("a", "sleep 10"));
    const refused = await failureOf(() => call("spawn", sh("a", "true")));
    assert.equal(
      [refused.code, refused.message],
      [-32602, 'Cannot start process "a": a process with this id is alive'],
    );
    await first;
    assert.is((await failureOf(() => call("spawn", sh("a", "true")))).code, -32602);
    await call("killAndWait", { id: "a" });
    await exited(peer, "a");
    peer.messages.length = 0;
    await call("spawn", sh("a", "echo again"));
    await exited(peer, "a");
    assert.is(peer.text("a"), "again\n");
    checkSequence(peer.of("a"));
    assert.is(call("list", {}).processes.length, 1);
  }),
);
spawn("takes an id only when its reader has been sent the exit", () =>
  withProcesses(async ({ call, peer, processes }) => {
    peer.room = 1;
    await call("spawn", sh("a", "echo 1; echo 2 >&2"));
    await until(() => liveCount(processes) === 0);
    assert.is((await failureOf(() => call("spawn", sh("a", "true"), createPeer("c2")))).code, -32602);
    peer.drain();
    assert.ok(exitOf(peer, "a"));
    await call("spawn", sh("a", "true"));
  }),
);
spawn("starts 300 at once", () =>
  withProcesses(async ({ call, peer, processes, idleCount }) => {
    const ids = Array.from({ length: 300 }, (_, at) => `p${at}`);
    await Promise.all(ids.map((id) => call("spawn", sh(id, `echo ${id}; cat`))));
    assert.is(liveCount(processes), 300);
    for (const id of ids) call("stdin", { id, data: base64("in"), end: true });
    await until(() => liveCount(processes) === 0);
    for (const id of ids) {
      assert.is(peer.text(id), `${id}\nin`);
      assert.is(exitOf(peer, id)?.exitCode, 0);
      checkSequence(peer.of(id));
    }
    assert.is(idleCount(), 1);
  }),
);
spawn("carries out what is asked of a process before it has started, in order", () =>
  withProcesses(async ({ call, peer }) => {
    const answers = [
      call("spawn", { id: "a", command: "cat" }),
      call("stdin", { id: "a", data: base64("1") }),
      call("stdin", { id: "a", data: base64("2"), end: true }),
    ];
    assert.equal((await Promise.all(answers)).slice(1), [
      { success: true, applied: 1 },
      { success: true, applied: 2 },
    ]);
    await exited(peer, "a");
    assert.is(peer.text("a"), "12");
    const failed = [call("spawn", { id: "b", command: "no-such-command" }), call("stdin", { id: "b", data: "" })];
    for (const answer of failed) await failureOf(() => answer);
  }),
);
spawn("runs on without a reader when the connection closed meanwhile", () =>
  withProcesses(async ({ call, peer, processes }) => {
    const spawning = call("spawn", sh("a", "echo kept"));
    peer.close();
    await spawning;
    await until(() => liveCount(processes) === 0);
    assert.equal([peer.messages, entryOf(call, "a").attached], [[], null]);
    const other = createPeer("c2");
    call("reattach", { id: "a", fromSeq: 0 }, other);
    await exited(other, "a");
    assert.is(other.text("a"), "kept\n");
  }),
);
spawn.run();

const environment = suite("the child's environment");

/** A login shell for tests: gets -l -c COMMAND. */
function makeShell(directory: string, script: string): string {
  const path = join(directory, "shell");
  writeFileSync(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return path;
}

environment("has the login shell's PATH, read once, through any noise", () =>
  withProcesses(async ({ call, peer, directory, env }) => {
    const script = `echo noise; echo x >> ${directory}/count; PATH=/login:/usr/bin:/bin; export PATH; /bin/sh "$2" "$3"; echo noise`;
    env.SHELL = makeShell(directory, script);
    for (const id of ["a", "b"]) {
      await call("spawn", { id, command: "sh", args: ["-c", "echo $PATH"] });
      await exited(peer, id);
      assert.is(peer.text(id), "/login:/usr/bin:/bin\n");
    }
    assert.equal(entryOf(call, "b").env, { path: "/login:/usr/bin:/bin", home: directory, sshAuthSock: null });
    assert.is(readFileSync(join(directory, "count"), "utf8"), "x\n");
  }),
);
environment("has the request's PATH first, in which the command is looked for", () =>
  withProcesses(async ({ call, peer, directory, env }) => {
    env.SHELL = makeShell(directory, `touch ${directory}/asked`);
    writeFileSync(join(directory, "mine"), "#!/bin/sh\necho $PATH\n", { mode: 0o755 });
    const PATH = `${directory}:/bin`;
    await call("spawn", { id: "a", command: "mine", env: { PATH } });
    await exited(peer, "a");
    assert.is(peer.text("a"), `${PATH}\n`);
    assert.not.ok(existsSync(join(directory, "asked")));
  }),
);
for (const [name, script] of [
  ["hangs", "sleep 100 & sleep 100"],
  ["hangs after closing its output", "exec >&- 2>&-; sleep 100"],
  ["fails", "exit 1"],
  ["prints for ever", "exec cat /dev/zero"],
  ["says nothing", "true"],
  ["leaves its output to another", "sleep 2 &"],
] as const) {
  const loginPathMs = script.includes("sleep 100") ? 3000 : 500; // not over before the absolute path has started
  environment(`has the daemon's PATH where the login shell ${name}`, () =>
    withProcesses(
      async ({ call, peer, directory, env, log }) => {
        env.SHELL = makeShell(directory, script);
        const start = performance.now();
        const outcome = () => log.find((line) => line.includes("login shell"));
        await call("spawn", sh("absolute", "echo $PATH"));
        if (script.includes("sleep 100")) assert.not.ok(outcome(), "an absolute path does not wait");
        await call("spawn", { id: "bare", command: "sh", args: ["-c", "echo $PATH"] });
        assert.match(outcome()!, "does not say its PATH: the daemon's is used");
        assert.ok(performance.now() - start < busyMs(loginPathMs + 2500), `at most ${loginPathMs} ms, on a quiet host`);
        for (const id of ["absolute", "bare"]) {
          await exited(peer, id);
          assert.is(peer.text(id), `${env.PATH}\n`);
        }
      },
      { loginPathMs },
    ),
  );
}
environment("ends a login shell that hangs so that it can remove the lock that it has made", () =>
  withProcesses(
    async ({ call, directory, env }) => {
      const lock = join(directory, "lock");
      env.SHELL = makeShell(directory, `trap 'rm ${lock}; exit' TERM; touch ${lock}; sleep 100`);
      const spawning = call("spawn", { id: "a", command: "true" });
      await until(
        () => existsSync(lock),
        () => "it has made no lock",
      );
      await spawning;
      await until(
        () => !existsSync(lock),
        () => "its lock was left behind",
      );
    },
    { loginPathMs: 3000 },
  ),
);
environment("does not keep the daemon from ending", () =>
  withProcesses(async ({ call, directory, env, processes }) => {
    env.SHELL = makeShell(directory, "sleep 100");
    const spawning = failureOf(() => call("spawn", { id: "a", command: "true" }));
    const start = performance.now();
    assert.is(await endAll(processes, { graceMs: 1000 }), 0);
    assert.match((await spawning).message, "the daemon is ending");
    assert.ok(performance.now() - start < busyMs(3000));
  }),
);
for (const name of ["listens", "has nobody behind it", "is a file", "does not exist"]) {
  const isKept = name === "listens";
  environment(`${isKept ? "keeps" : "leaves out"} an SSH_AUTH_SOCK that ${name}`, () =>
    withProcesses(async ({ call, peer, directory, env }) => {
      const path = join(directory, "agent");
      env.SSH_AUTH_SOCK = path;
      const server = createServer((socket) => void socket.destroy());
      if (name === "is a file") writeFileSync(path, "");
      if (name === "listens") await new Promise<void>((done) => void server.listen(path, done));
      if (name === "has nobody behind it") {
        const listenAndDie =
          'require("net").createServer().listen(process.argv[1], () => process.kill(process.pid, 9))';
        spawnSync(process.execPath, ["-e", listenAndDie, path]);
        assert.ok(existsSync(path));
      }
      const echo = "printenv SSH_AUTH_SOCK || echo none";
      await call("spawn", sh("a", echo));
      await call("spawn", sh("b", echo, { env: { SSH_AUTH_SOCK: "/mine" } }));
      await exited(peer, "a");
      await exited(peer, "b");
      assert.equal([peer.text("a"), peer.text("b")], [isKept ? `${path}\n` : "none\n", "/mine\n"]);
      assert.equal(
        [entryOf(call, "a").env.sshAuthSock, entryOf(call, "b").env.sshAuthSock],
        [isKept ? path : null, "/mine"],
      );
      if (server.listening) await new Promise((done) => server.close(done));
    }),
  );
}
environment.run();

const output = suite("output");

/** Numbered lines, the first `from`. */
function checkLines(text: string, from: number, to: number): void {
  const lines = text.split("\n");
  assert.is(lines.pop(), "");
  assert.equal([Number(lines[0]), Number(lines.at(-1)), lines.length], [from, to, to - from + 1]);
  assert.ok(lines.every((line, at) => line === String(from + at)));
}

output("stands still with the reader, and goes on where it was", () =>
  withProcesses(async ({ call, peer, processes }) => {
    peer.room = 5;
    await call("spawn", sh("a", "seq 3000000; echo end >&2"));
    await until(() => peer.room <= 0);
    await pause(200);
    const { bytes, running } = summarise(processes).processes[0]!;
    assert.ok(running && bytes < 1 << 20, `${bytes} bytes were read`);
    assert.is(peer.messages.length, 5);
    for (let turn = 0; turn < 20; turn++) {
      peer.drain(3);
      await until(() => peer.room <= 0);
    }
    assert.is(peer.messages.length, 65);
    peer.drain();
    await exited(peer, "a");
    checkSequence(peer.of("a"));
    checkLines(peer.text("a"), 1, 3_000_000);
    assert.is(peer.text("a", "stderr"), "end\n");
  }),
);
output("that a process leaves in its pipe as it ends is all sent before the exit, at the reader's pace", () =>
  withProcesses(
    async ({ call, peer, processes }) => {
      peer.room = 1;
      const { pid } = await call(
        "spawn",
        sh("a", "echo first; sleep 0.1; head -c 60000 /dev/zero; head -c 60000 /dev/zero >&2"),
      );
      await until(() => !isAlive(pid) && liveCount(processes) === 0); // and exitGraceMs is a minute
      assert.equal([peer.messages.length, entryOf(call, "a").running], [1, false]);
      for (let turn = 0; turn < 50 && !exitOf(peer, "a"); turn++) {
        peer.drain(1);
        await pause(10);
      }
      checkSequence(peer.of("a"));
      assert.equal([peer.text("a").length, peer.text("a", "stderr").length], [60_006, 60_000]);
    },
    { exitGraceMs: 60_000 },
  ),
);
output("of one process does not slow another connection's", () =>
  withProcesses(async ({ call, peer, processes }) => {
    peer.room = 1;
    const other = createPeer("c2");
    await call("spawn", sh("slow", "yes"));
    await call("spawn", sh("fast", "seq 1000000"), other);
    await exited(other, "fast");
    checkLines(other.text("fast"), 1, 1_000_000);
    assert.ok(summarise(processes).processes.find(({ id }) => id === "slow")!.bytes < 1 << 20);
  }),
);
output("held for one connection is sent a message of each process in turn", () =>
  withProcesses(async ({ call, peer }) => {
    const absent = createPeer("c2");
    for (const id of ["a", "b", "c"]) await call("spawn", sh(id, "head -c 1000000 /dev/zero"), absent);
    for (const id of ["a", "b", "c"]) await exited(absent, id);
    peer.room = 1;
    for (const id of ["a", "b", "c"]) call("reattach", { id, fromSeq: 0 });
    await pause(10);
    for (let turn = 0; turn < 4; turn++) peer.drain(2);
    assert.is(peer.messages.map(({ processId }) => processId).join(""), "abcabcabc");
  }),
);
output("flows on when the reader has vanished, and holds the newest 16 MiB, a sixteenth of which goes at once", () =>
  withProcesses(async ({ call, peer, processes }) => {
    await call("spawn", sh("a", "seq 5000000"));
    await until(() => peer.messages.length > 3);
    peer.close();
    const seen = peer.messages.length;
    await until(() => liveCount(processes) === 0);
    assert.is(peer.messages.length, seen);
    const other = createPeer("c2", 1);
    const answer = call("reattach", { id: "a", fromSeq: seen }, other);
    assert.is(other.messages.length, 0);
    for (let turn = 0; turn < 10_000 && !exitOf(other, "a"); turn++) {
      await pause(0);
      other.drain(100);
    }
    assert.ok(answer.firstSeq > seen + 1, "says what was dropped");
    checkSequence(other.of("a"), answer.firstSeq);
    assert.is(exitOf(other, "a")!.seq, answer.lastSeq);
    const text = other.text("a");
    assert.ok(text.length <= 16 << 20 && text.length > 14 << 20, `${text.length} bytes`);
    checkLines(text.slice(text.indexOf("\n") + 1), 5_000_000 - text.split("\n").length + 3, 5_000_000);
  }),
);
output(
  "flows on when a reader takes nothing for a while, which loses its place only when something would be dropped",
  () =>
    withProcesses(
      async ({ call, peer, processes }) => {
        peer.room = 1;
        peer.unsentBytes = 1000;
        await call("spawn", sh("small", "seq 10000"));
        await call("spawn", sh("large", "seq 200000"));
        await until(() => liveCount(processes) === 0);
        assert.equal(peer.messages.slice(1), [{ type: "detached", processId: "large", by: "backpressure" }]);
        assert.equal([entryOf(call, "small").attached, entryOf(call, "large").attached], ["c1", null]);
        peer.drain();
        checkLines(peer.text("small"), 1, 10_000);
        checkSequence(peer.of("small"));
        const { firstSeq } = call("reattach", { id: "large", fromSeq: 0 });
        await exited(peer, "large");
        const [, ...messages] = peer.of("large");
        checkSequence(messages.slice(messages[0]!.seq === firstSeq ? 0 : 1), firstSeq);
      },
      { stallMs: 100, memoryBytes: 256 << 10 },
    ),
);
output("stands still for a reader that is slow, but takes something", () =>
  withProcesses(
    async ({ call, peer, processes }) => {
      peer.room = 1;
      peer.unsentBytes = 1_000_000;
      await call("spawn", sh("a", "seq 100000"));
      await until(() => peer.messages.length === 1);
      for (let turn = 0; turn < 40; turn++) {
        await pause(10);
        peer.unsentBytes -= 10;
      }
      assert.equal([peer.messages.length, liveCount(processes)], [1, 1]);
    },
    { stallMs: 100, memoryBytes: 0 },
  ),
);
output("is taken from a connection with more than 16 MiB unsent", () =>
  withProcesses(
    async ({ call, peer }) => {
      peer.room = 1;
      peer.unsentBytes = (16 << 20) + 1;
      await call("spawn", sh("a", "echo 1; sleep 10"));
      await call("spawn", sh("b", "sleep 10"));
      await until(() => peer.messages.length === 3);
      const detached = (processId: string) => ({ type: "detached", processId, by: "backpressure" });
      assert.equal(peer.messages.slice(1), [detached("a"), detached("b")]);
    },
    { stallMs: 100 },
  ),
);
output("of a grandchild delays the exit for the grace; what it says later is held, and sent to those who ask", () =>
  withProcesses(
    async ({ call, peer, processes, directory }) => {
      const start = performance.now();
      const go = join(directory, "go");
      const late = `while [ ! -e ${go} ]; do sleep 0.01; done; echo late; echo $? > ${go}; sleep 10`;
      await call("spawn", sh("a", `echo own; (sleep 0.1; echo early; ${late}) &`));
      await exited(peer, "a");
      const ms = performance.now() - start;
      assert.ok(ms > 2980 && ms < busyMs(7000), `${ms} ms`);
      assert.is(peer.text("a"), "own\nearly\n");
      assert.is(liveCount(processes), 0);
      checkSequence(peer.of("a"));
      const { seq } = exitOf(peer, "a")!;
      writeFileSync(go, "");
      await until(() => entryOf(call, "a").lastSeq > seq);
      assert.is(peer.text("a"), "own\nearly\n", "its reader has been told the end");
      const other = createPeer("c2");
      const answer = call("reattach", { id: "a", fromSeq: seq }, other);
      assert.equal([answer.running, answer.exitCode, answer.lastSeq], [false, 0, seq + 1]);
      await until(() => other.text("a") === "late\n");
      await until(() => readFileSync(go, "utf8") === "0\n");
      assert.is(entryOf(call, "a").attached, "c2", "there may be more");
      await call("killAndWait", { id: "a" });
      await until(() => entryOf(call, "a").attached === null);
    },
    { exitGraceMs: 3000 },
  ),
);
output("of a process is whole when a grandchild floods the pipe and the reader is behind", () =>
  withProcesses(
    async ({ call, peer, processes }) => {
      peer.room = 1;
      await call("spawn", sh("a", "echo first; sleep 0.1; head -c 50000 /dev/zero; yes & exit 7"));
      await until(() => liveCount(processes) === 0);
      peer.drain();
      checkSequence(peer.of("a"));
      assert.is(exitOf(peer, "a")!.exitCode, 7);
      const text = peer.text("a");
      assert.ok(text.startsWith(`first\n${"\0".repeat(50_000)}y\n`));
      assert.ok(text.length < 6 << 20, `${text.length} bytes`);
    },
    { exitGraceMs: 3000 },
  ),
);
output(
  "of an ended process is kept for a week; not forgotten by a clock that was set back, nor in the first hour",
  () =>
    withProcesses(async ({ call, peer, processes }) => {
      await call("spawn", sh("a", "echo 1; exit 4"));
      await exited(peer, "a");
      const week = 7 * 86_400_000;
      const seen = (clock: number, aged: boolean) => {
        dropExpired(aged ? { ...processes, bornAt: -3_600_001 } : processes, clock);
        return call("list", {}).processes.length;
      };
      const before = Date.now();
      assert.equal(
        [seen(before + week + 1000, false), seen(before - week, true), seen(before + week - 1000, true)],
        [1, 1, 1],
      );
      assert.is(seen(before + week + 1000, true), 0);
      assert.is((await failureOf(() => call("forget", { id: "a" }))).code, -32602);
    }),
);
output("of ended processes is dropped oldest first when it is much, and of their exits the newest are kept", () =>
  withProcesses(
    async ({ call, peer }) => {
      for (const id of ["a", "b", "c", "d", "e"]) {
        await call("spawn", sh(id, "head -c 6000 /dev/zero | dd bs=6000 iflag=fullblock status=none; exit 4"));
        await exited(peer, id);
      }
      assert.equal(
        call("list", {}).processes.map(({ id, firstSeq, lastSeq }: Reply) => `${id}${lastSeq - firstSeq}`),
        ["b0", "c0", "d1", "e1"],
      );
      peer.messages.length = 0;
      const { firstSeq, lastSeq, exitCode } = call("reattach", { id: "b", fromSeq: 0 });
      assert.equal([firstSeq, lastSeq, exitCode], [2, 2, 4]);
      await exited(peer, "b");
      assert.equal(peer.messages, [{ type: "stream", processId: "b", seq: 2, stream: "exit", exitCode: 4 }]);
    },
    { allMemoryBytes: 37_000, keepExits: 4 },
  ),
);
output("that nobody has read for long is read slowly, and at full speed again for a reader", () =>
  withProcesses(
    async ({ call, peer, processes }) => {
      const bytes = () => summarise(processes).processes[0]!.bytes;
      await call("spawn", sh("a", "yes"));
      peer.close();
      await pause(200); // longer than unwatchedMs
      const [from, since] = [bytes(), performance.now()];
      await pause(1000);
      const rate = ((bytes() - from) / (performance.now() - since)) * 1000;
      assert.ok(rate > 0 && rate < 4 << 20, `${rate} bytes a second`);
      const other = createPeer("c2");
      call("reattach", { id: "a", fromSeq: -1 }, other);
      const before = bytes();
      await until(
        () => bytes() > before + (16 << 20),
        () => `${bytes() - before} bytes since`,
        8000,
      );
    },
    { path: mkdtempSync(join(tmpdir(), "holdfast-kept-")), unwatchedMs: 100, unwatchedBytes: 1 << 20 },
  ),
);
output("of an ended process is gone when it is forgotten, of a living one not", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "echo 1; read x"));
    await until(() => peer.text("a"));
    const refused = await failureOf(() => call("forget", { id: "a" }));
    assert.equal(
      [refused.code, refused.message],
      [-32602, 'Cannot forget process "a": it is alive, it must have ended'],
    );
    call("stdin", { id: "a", end: true });
    await exited(peer, "a");
    assert.equal(call("forget", { id: "a" }), { success: true });
    assert.equal([call("list", {}).processes, call("reattach", { id: "a", fromSeq: 0 }).found], [[], false]);
  }),
);
output.run();

const reattach = suite("process.reattach");

for (const [fromSeq, seqs] of [
  [undefined, [1, 2, 3]],
  [0, [1, 2, 3]],
  [1, [2, 3]],
  [2, [3]],
  [3, []],
] as const) {
  reattach(`replays what comes after ${fromSeq}, of an ended process`, () =>
    withProcesses(async ({ call, peer }) => {
      await call("spawn", sh("a", "echo 1; read x; echo 2; exit 5"));
      await until(() => peer.text("a"));
      call("stdin", { id: "a", data: base64("\n") });
      await exited(peer, "a");
      const other = createPeer("c2");
      const answer = call("reattach", { id: "a", fromSeq }, other);
      assert.equal(answer, { found: true, running: false, firstSeq: 1, lastSeq: 3, stdinApplied: 1, exitCode: 5 });
      assert.equal(other.messages, [], "the answer goes first");
      await pause(20);
      assert.equal(
        other.messages,
        peer.messages.filter(({ seq }) => (seqs as readonly number[]).includes(seq)),
      );
      assert.is(entryOf(call, "a").attached, null);
    }),
  );
}
for (const fromSeq of [2, 2 ** 40, 0.5, "1"]) {
  reattach(`refuses fromSeq ${JSON.stringify(fromSeq)} after message 1, and leaves the reader alone`, () =>
    withProcesses(async ({ call, peer }) => {
      await call("spawn", sh("a", "echo 1; sleep 10"));
      await until(() => peer.messages.length === 1);
      assert.is((await failureOf(() => call("reattach", { id: "a", fromSeq }, createPeer("c2")))).code, -32602);
      assert.is(entryOf(call, "a").attached, "c1");
    }),
  );
}
reattach("says that there is no such process", () =>
  withProcesses(({ call }) => {
    assert.equal(call("reattach", { id: "a", fromSeq: 7 }), {
      found: false,
      running: false,
      firstSeq: 0,
      lastSeq: 0,
      stdinApplied: 0,
    });
  }),
);
reattach("moves the stream, and tells the connection that had it, which keeps its other processes", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "echo 1; read x; echo 2"));
    await call("spawn", sh("b", "read x; echo b"));
    await until(() => peer.messages.length === 1);
    const other = createPeer("c2");
    assert.equal(call("reattach", { id: "a", fromSeq: 1 }, other), {
      found: true,
      running: true,
      firstSeq: 1,
      lastSeq: 1,
      stdinApplied: 0,
    });
    assert.equal(peer.messages.slice(1), [{ type: "detached", processId: "a", by: "c2" }]);
    call("stdin", { id: "a", data: base64("\n") }); // from any connection
    call("stdin", { id: "b", data: base64("\n") });
    await exited(other, "a");
    await exited(peer, "b");
    assert.equal([other.text("a"), peer.text("b")], ["2\n", "b\n"]);
    checkSequence(other.of("a"), 2);
  }),
);
reattach("by the connection that has the stream sends again, and tells nobody", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "echo 1; read x; echo 2"));
    await until(() => peer.messages.length === 1);
    call("reattach", { id: "a", fromSeq: 0 });
    await until(() => peer.messages.length === 2);
    assert.equal(peer.messages[0], peer.messages[1]);
    call("stdin", { id: "a", data: base64("\n") });
    await exited(peer, "a");
    assert.equal(
      peer.messages.map(({ seq }) => seq),
      [1, 1, 2, 3],
    );
  }),
);
reattach("in the middle of a replay hands on the rest", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "seq 1000000; sleep 0.2; echo end"), createPeer("c0"));
    await until(() => entryOf(call, "a").lastSeq > 20);
    peer.room = 5;
    call("reattach", { id: "a", fromSeq: 0 });
    await until(() => peer.room <= 0);
    const other = createPeer("c2", 5);
    call("reattach", { id: "a", fromSeq: 5 }, other);
    await until(() => {
      other.drain(5);
      return exitOf(other, "a");
    });
    const whole = [...peer.messages.slice(0, 5), ...other.messages];
    checkSequence(whole);
    assert.equal(peer.messages.slice(5), [{ type: "detached", processId: "a", by: "c2" }]);
  }),
);
reattach("at random moments, with connections that vanish, brings every byte once, both ways", () =>
  withProcesses(async ({ call, peer: observer, processes }) => {
    const input = Array.from({ length: 60_000 }, (_, at) => `${at}\n`).join("");
    await call("spawn", { id: "a", command: "cat" });
    let received = "";
    let lastSeq = 0;
    let peer = createPeer("c2", 3);
    const take = () => {
      const taken = peer.messages
        .splice(0, Math.ceil(Math.random() * peer.messages.length))
        .filter(({ stream }) => stream !== undefined);
      for (const { seq, data } of taken) {
        assert.is(seq, lastSeq + 1);
        lastSeq = seq;
        received += data === undefined ? "" : Buffer.from(data, "base64").toString();
      }
    };
    let turns = 0;
    for (; !observer.messages.some(({ stream }) => stream === "exit"); turns++) {
      const answer = call("reattach", { id: "a", fromSeq: lastSeq }, peer);
      assert.ok(answer.firstSeq <= lastSeq + 1);
      if (!answer.running && answer.lastSeq === lastSeq) break;
      let offset = Math.max(0, answer.stdinApplied - Math.floor(Math.random() * 5000)); // what it knows may be older
      for (let writes = 0; writes < 3; writes++) {
        const size = Math.floor(Math.random() * 20_000);
        call("stdin", {
          id: "a",
          offset,
          data: base64(input.slice(offset, offset + size)),
          end: offset + size >= input.length,
        });
        offset = Math.min(offset + size, input.length);
        await pause(Math.random() * 3);
        take();
        if (Math.random() < 0.7) peer.drain(3);
      }
      if (Math.random() < 0.5) peer.close();
      peer = createPeer(`c${turns + 3}`, 3); // what the old one had not taken is lost
    }
    assert.ok(turns > 5);
    assert.is(received, input);
    assert.is(liveCount(processes), 0);
  }),
);
reattach.run();

const stdin = suite("process.stdin");

for (const [name, writes, answers, result] of [
  ["appends without an offset", [["ab"], ["cd"]], [2, 4], "abcd"],
  [
    "appends at the offset that is applied",
    [
      ["ab", 0],
      ["cd", 2],
    ],
    [2, 4],
    "abcd",
  ],
  [
    "takes the new tail of a write behind",
    [
      ["abc", 0],
      ["bcde", 1],
    ],
    [3, 5],
    "abcde",
  ],
  [
    "takes nothing of a write that is all old",
    [
      ["abc", 0],
      ["abc", 0],
      ["c", 2],
      ["d", 3],
    ],
    [3, "3 duplicate", "3 duplicate", 4],
    "abcd",
  ],
  [
    "refuses a write ahead, and takes it at its place",
    [
      ["ab", 0],
      ["d", 3],
      ["c", 2],
      ["d", 3],
    ],
    [2, "gap 2", 3, 4],
    "abcd",
  ],
  ["takes empty data", [["", 0], [""], ["a", 0], ["", 0], ["", 1], ["", 2]], [0, 0, 1, 1, 1, "gap 1"], "a"],
] as const) {
  stdin(name, () =>
    withProcesses(async ({ call, peer }) => {
      await call("spawn", { id: "a", command: "/bin/cat" });
      for (const [at, [data, offset]] of (writes as readonly (readonly [string, number?])[]).entries()) {
        let answer: unknown;
        try {
          const { success, applied, duplicate, ...rest } = call("stdin", { id: "a", data: base64(data), offset });
          assert.equal([success, rest], [true, {}]);
          answer = duplicate ? `${applied} duplicate` : applied;
        } catch (error) {
          assert.is((error as Failure).code, -32003);
          assert.is((error as Failure).message, "stdin offset gap: offset ahead of applied bytes");
          answer = `gap ${(error as Failure).data!.applied}`;
        }
        assert.is(answer, answers[at]);
      }
      call("stdin", { id: "a", end: true });
      await exited(peer, "a");
      assert.is(peer.text("a"), result);
      assert.is(entryOf(call, "a").stdinApplied, result.length);
    }),
  );
}
stdin("ends after the data, once, and repeated requests know that", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "cat; sleep 0.3"));
    const last = { id: "a", data: base64("xyz"), offset: 0, end: true };
    assert.equal(call("stdin", last), { success: true, applied: 3 });
    assert.equal(call("stdin", last), { success: true, applied: 3, duplicate: true });
    assert.equal(call("stdin", { id: "a", end: true }), { success: true, applied: 3, duplicate: true });
    for (const more of [
      { data: base64("!") },
      { data: base64("!"), offset: 3 },
      { data: base64("xyz!"), offset: 0, end: true },
    ]) {
      const failure = await failureOf(() => call("stdin", { id: "a", ...more }));
      assert.equal([failure.code, failure.data], [-32603, { errno: "EPIPE", applied: 3 }]);
      assert.is(failure.message, 'Cannot write to stdin of process "a": it was ended by an earlier write');
    }
    await exited(peer, "a");
    assert.is(peer.text("a"), "xyz");
    assert.equal(call("stdin", last), { success: true, applied: 3, duplicate: true });
    assert.match(
      (await failureOf(() => call("stdin", { id: "a", data: base64("!") }))).message,
      "the process has ended",
    );
  }),
);
stdin("ends by a repeated write that asks for it only the second time", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", { id: "a", command: "/bin/cat" });
    call("stdin", { id: "a", data: base64("x"), offset: 0 });
    assert.equal(call("stdin", { id: "a", data: base64("x"), offset: 0, end: true }), {
      success: true,
      applied: 1,
      duplicate: true,
    });
    await exited(peer, "a");
  }),
);
stdin("holds 16 MiB that the process does not take, beside what the kernel has", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "read x; sha256sum"));
    const bytes = Buffer.alloc(18 << 20, "0123456789\n");
    const size = 1 << 20;
    let applied = 0;
    const write = () => {
      const data = bytes.subarray(applied, applied + size).toString("base64");
      applied = call("stdin", { id: "a", data, offset: applied, end: applied + size >= bytes.length }).applied;
    };
    const full = await failureOf(() => {
      for (;;) write();
    });
    assert.equal([full.code, full.message, full.data], [-32002, "stdin backpressure: queue full", { applied }]);
    assert.is(applied, 16 << 20);
    const small = base64("x".repeat(64 << 10)); // as much again as a pipe or a socket of node's holds
    await failureOf(() => {
      for (let turn = 0; turn < 16; turn++) applied = call("stdin", { id: "a", data: small }).applied;
    });
    bytes.fill("x", 16 << 20, applied);
    call("stdin", { id: "a", data: "" });
    await until(() => {
      try {
        for (; applied < bytes.length; ) write();
        return true;
      } catch {
        call("stdin", { id: "a", data: "" });
        return false;
      }
    });
    await exited(peer, "a");
    const sum = createHash("sha256")
      .update(bytes.subarray(bytes.indexOf("\n") + 1))
      .digest("hex");
    assert.is(peer.text("a"), `${sum}  -\n`);
  }),
);
stdin("of many small writes takes little more memory than their bytes", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "sleep 100"));
    const before = process.memoryUsage();
    for (let turn = 0; turn < 200_000; turn++) call("stdin", { id: "a", data: "eA==" });
    const after = process.memoryUsage();
    const grown = after.external + after.arrayBuffers - before.external - before.arrayBuffers;
    assert.ok(grown < 4 << 20, `${grown} bytes`);
    await call("killAndWait", { id: "a" });
    await exited(peer, "a");
  }),
);
stdin("survives a process that closes it or does not read, and says so", () =>
  withProcesses(async ({ call, peer, processes }) => {
    await call("spawn", sh("a", "exec <&-; echo closed; sleep 10"));
    await until(() => peer.text("a"));
    call("stdin", { id: "a", data: base64("lost") });
    await pause(50);
    assert.match(
      (await failureOf(() => call("stdin", { id: "a", data: base64("x") }))).message,
      "the process has closed it",
    );
    assert.is(call("stdin", { id: "a", end: true }).applied, 4);
    await call("spawn", sh("b", "sleep 0.1"));
    call("stdin", { id: "b", data: Buffer.alloc(8 << 20).toString("base64"), end: true });
    await exited(peer, "b");
    assert.is(liveCount(processes), 1);
  }),
);
for (const params of [
  { id: "b" },
  { id: "" },
  { data: "x" },
  { data: 5 },
  { offset: -1 },
  { offset: "0" },
  { end: "yes" },
]) {
  stdin(`refuses ${JSON.stringify(params)}`, () =>
    withProcesses(async ({ call }) => {
      await call("spawn", { id: "a", command: "/bin/cat" });
      assert.is((await failureOf(() => call("stdin", { id: "a", data: "", ...params }))).code, -32602);
    }),
  );
}
stdin.run();

const kill = suite("process.kill and killAndWait");

for (const [signal, name] of [
  [undefined, "SIGTERM"],
  ["SIGKILL", "SIGKILL"],
  ["KILL", "SIGKILL"],
  [9, "SIGKILL"],
  ["INT", "SIGINT"],
  ["SIGUSR1", "SIGUSR1"],
] as const) {
  kill(`sends ${name} for ${JSON.stringify(signal)}`, () =>
    withProcesses(async ({ call, peer }) => {
      await call("spawn", { id: "a", command: "/bin/sleep", args: ["10"] });
      assert.equal(call("kill", { id: "a", signal }), { success: true });
      await exited(peer, "a");
      const numbers = { SIGTERM: 15, SIGKILL: 9, SIGINT: 2, SIGUSR1: 10 };
      const killedBy = name === "SIGUSR1" ? {} : { killedBy: "client" };
      const exit = { exitCode: 128 + numbers[name], signal: name, ...killedBy };
      assert.equal(peer.messages, [{ type: "stream", processId: "a", seq: 1, stream: "exit", ...exit }]);
      assert.equal(call("kill", { id: "a", signal }), { success: true, alreadyExited: true });
    }),
  );
}
for (const signal of ["", "SIGNOPE", "sigterm", 0, 99, 1.5, true, {}, "__proto__", ["TERM"], { toString: 1 }]) {
  kill(`refuses the signal ${JSON.stringify(signal)}`, () =>
    withProcesses(async ({ call, processes }) => {
      await call("spawn", sh("a", "sleep 10"));
      for (const method of ["kill", "killAndWait"])
        assert.is((await failureOf(() => call(method, { id: "a", signal }))).code, -32602);
      assert.is(liveCount(processes), 1);
    }),
  );
}
kill("reaches the whole group", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "sleep 10 & sleep 11 & echo $!; wait"));
    await until(() => peer.text("a"));
    call("kill", { id: "a" });
    await exited(peer, "a");
    await until(() => !isAlive(peer.text("a").trim()));
  }),
);
kill("names the client as the cause also where the process ends by itself", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "trap 'exit 143' TERM; echo; while :; do sleep 0.01; done"));
    await until(() => peer.text("a"));
    call("kill", { id: "a" });
    await exited(peer, "a");
    assert.equal([exitOf(peer, "a")!.exitCode, exitOf(peer, "a")!.killedBy], [143, "client"]);
  }),
);
kill("answers for a process that does not exist", () =>
  withProcesses(async ({ call }) => {
    assert.is(
      (await failureOf(() => call("kill", { id: "a" }))).message,
      'Cannot find process "a": no process has this id',
    );
    assert.equal(call("killAndWait", { id: "a" }), { found: false, died: false });
  }),
);
const deaf = "trap '' TERM; sh -c 'echo; exec sleep 10' & wait; sleep 10";
for (const [name, script, params, answer] of [
  ["waits for the end", "sleep 10", {}, { found: true, died: true }],
  ["escalates to KILL", deaf, { timeoutMs: 100 }, { found: true, died: true, escalated: true }],
  ["does not escalate when told not to", deaf, { timeoutMs: 100, escalate: false }, { found: true, died: false }],
  ["takes any signal", deaf, { signal: "KILL", escalate: false }, { found: true, died: true }],
  ["takes a timeout over the maximum", "sleep 10", { timeoutMs: 1e9 }, { found: true, died: true }],
  [
    "takes a timeout of 0 for none given",
    "sleep 0.3; exit",
    { timeoutMs: 0, signal: "CONT" },
    { found: true, died: true },
  ],
] as const) {
  kill(`killAndWait ${name}`, () =>
    withProcesses(async ({ call, peer }) => {
      const { pid } = await call("spawn", sh("a", `echo; ${script}`));
      await until(() => peer.text("a").length >= (script === deaf ? 2 : 1));
      assert.equal(await call("killAndWait", { id: "a", ...params }), answer);
      assert.is(isAlive(pid), !answer.died);
      if (!answer.died) return;
      await exited(peer, "a");
      assert.equal(await call("killAndWait", { id: "a" }), { found: true, died: true, alreadyExited: true });
    }),
  );
}
kill("killAndWait ends what a process left in its group, also when it is asked later", () =>
  withProcesses(async ({ call, peer, processes }) => {
    await call("spawn", sh("a", "trap '' TERM; (exec sleep 10) >/dev/null 2>&1 & echo $!"));
    await exited(peer, "a");
    const grandchild = peer.text("a").trim();
    assert.equal([liveCount(processes), isAlive(grandchild)], [0, true]);
    assert.equal(await call("killAndWait", { id: "a", timeoutMs: 100 }), { found: true, died: true, escalated: true });
    assert.not.ok(isAlive(grandchild));
  }),
);
kill("endAll ends what processes left in their groups whose names others have had since", () =>
  withProcesses(async ({ call, peer, processes }) => {
    const words = () => peer.text("a").trim().split("\n").map(Number);
    for (let round = 1; round <= 3; round++) {
      await call("spawn", sh("a", "sleep 100 >/dev/null 2>&1 & echo $!"));
      await until(
        () => words().length === round && peer.messages.filter(({ stream }) => stream === "exit").length === round,
      );
    }
    assert.equal(words().map(isAlive), [true, true, true]);
    await endAll(processes, { graceMs: 1000 });
    assert.equal(words().map(isAlive), [false, false, false]);
  }),
);
kill("killAndWait waits for members that leave later than the process", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "sh -c 'trap \"sleep 0.3; exit\" TERM; echo $$; while :; do sleep 0.01; done' & wait"));
    await until(() => peer.text("a"));
    assert.equal(await call("killAndWait", { id: "a" }), { found: true, died: true });
    assert.not.ok(isAlive(peer.text("a").trim()));
  }),
);
kill("killAndWait reads /proc less and less often where a group outlives its leader", () =>
  withProcesses(async ({ call, peer }) => {
    await call("spawn", sh("a", "trap '' TERM; (exec sleep 20) >/dev/null 2>&1 & echo $!"));
    await exited(peer, "a");
    const before = process.cpuUsage();
    const since = performance.now();
    assert.equal(await call("killAndWait", { id: "a", timeoutMs: 3000, escalate: false }), { found: true, died: true });
    const { user, system } = process.cpuUsage(before);
    const share = (user + system) / 1000 / (performance.now() - since);
    assert.ok(share < 0.3, `${Math.round(share * 100)} % of a core`);
    await call("killAndWait", { id: "a", signal: "KILL" });
  }),
);
kill("is in vain where a group has our number, but no member that we know", () =>
  withProcesses(async ({ call, peer, directory }) => {
    // (stands for a pid that was given out again) the leader's only heir makes another, and ends: unbroken for the kernel, unknown to us
    const heir = `while [ ! -e ${directory}/go ]; do sleep 0.01; done; sleep 10 & echo $! > ${directory}/pid`;
    await call("spawn", sh("a", `(${heir}) >/dev/null 2>&1 & echo $!`));
    await exited(peer, "a");
    writeFileSync(join(directory, "go"), "");
    await until(() => existsSync(join(directory, "pid")) && readFileSync(join(directory, "pid"), "utf8"));
    await until(() => !isAlive(peer.text("a").trim()));
    await pause(50);
    const stranger = readFileSync(join(directory, "pid"), "utf8").trim();
    assert.equal(call("kill", { id: "a", signal: "KILL" }), { success: true, alreadyExited: true });
    assert.ok(isAlive(stranger));
    process.kill(Number(stranger), "SIGKILL");
  }),
);
kill.run();

const list = suite("process.list and the daemon's side");

list("has every process with all that is known of it", () =>
  withProcesses(async ({ call, peer, directory, env, processes }) => {
    const before = Date.now();
    const { pid } = await call("spawn", sh("a", "echo 1; cat", { cwd: "/" }));
    const { pid: other } = await call(
      "spawn",
      { id: "b", command: "/bin/true", args: ["x".repeat(5000)] },
      createPeer("c2"),
    );
    await until(() => peer.text("a"));
    call("stdin", { id: "a", data: base64("12") });
    await until(() => !entryOf(call, "b").running && entryOf(call, "a").lastSeq === 2);
    const facts = { path: env.PATH, home: directory, sshAuthSock: null };
    const { processes: entries } = call("list", {});
    for (const entry of entries) {
      assert.ok(entry.startedAt >= before && entry.startedAt <= Date.now());
      delete entry.startedAt;
      entry.env.path = env.PATH; // the login shell may have been in time
    }
    const states = [
      { running: true, firstSeq: 1, lastSeq: 2, stdinApplied: 2, attached: "c1", bytes: 4 },
      { running: false, exitCode: 0, firstSeq: 1, lastSeq: 1, stdinApplied: 0, attached: null, bytes: 0 },
    ];
    const cut = `${"x".repeat(4096)}…`;
    assert.equal(entries, [
      { id: "a", command: "/bin/sh", args: ["-c", "echo 1; cat"], pid, cwd: "/", ...states[0], env: facts },
      { id: "b", command: "/bin/true", args: [cut], pid: other, cwd: directory, ...states[1], env: facts },
    ]);
    const [a, b] = summarise(processes).processes;
    assert.equal([a!.bytes, a!.running, b!.bytes, b!.running], [4, true, 0, false]);
    assert.ok(a!.ageMs >= 0 && a!.ageMs < 10_000);
    assert.equal(Object.keys(a!), ["id", "pid", "command", "running", "bytes", "ageMs"]);
    assert.is(liveCount(processes), 1);
  }),
);
list("of very many fits into a frame", () =>
  withProcesses(
    async ({ call, processes }) => {
      const args = ["x".repeat(100_000)];
      await Promise.all(Array.from({ length: 5 }, (_, at) => call("spawn", { id: `p${at}`, command: "true", args })));
      await until(() => liveCount(processes) === 0, undefined, 20_000);
      const [child] = processes.children.values();
      for (let at = 0; at < 4995; at++) processes.children.set(`more${at}`, child!);
      const answer = call("list", {});
      assert.is(answer.processes.length, 5000);
      const length = JSON.stringify(answer).length;
      assert.ok(length < 15 << 20, `${length} bytes`);
      for (let at = 0; at < 4995; at++) processes.children.delete(`more${at}`);
    },
    { stdinBytes: 1 },
  ),
);
list("tells each time the last process has ended", () =>
  withProcesses(async ({ call, processes, idleCount }) => {
    await Promise.all([call("spawn", sh("a", "cat")), call("spawn", sh("b", "cat"))]);
    call("stdin", { id: "a", end: true });
    await until(() => liveCount(processes) === 1);
    assert.is(idleCount(), 0);
    call("stdin", { id: "b", end: true });
    await until(() => liveCount(processes) === 0);
    assert.is(idleCount(), 1);
    await call("spawn", sh("c", "true"));
    await until(() => idleCount() === 2);
  }),
);
list("endAll() ends every group, those who ignore TERM after the grace, and starts nothing more", () =>
  withProcesses(async ({ call, peer, processes }) => {
    await call("spawn", sh("a", "sleep 10"));
    await call("spawn", sh("b", deaf));
    await call("spawn", sh("gone", "(exec sleep 10) >/dev/null 2>&1 & echo $!"));
    await exited(peer, "gone");
    await until(() => peer.text("b"));
    const start = performance.now();
    assert.is(await endAll(processes, { graceMs: 300 }), 2);
    const ms = performance.now() - start;
    assert.ok(ms >= 290 && ms < busyMs(5000), `${ms} ms`);
    await until(() => liveCount(processes) === 0);
    assert.equal(
      [exitOf(peer, "a")!.signal, exitOf(peer, "b")!.signal, exitOf(peer, "b")!.killedBy],
      ["SIGTERM", "SIGKILL", "shutdown"],
    );
    assert.not.ok(isAlive(peer.text("gone").trim()));
    assert.match((await failureOf(() => call("spawn", sh("c", "true")))).message, "the daemon is ending");
    assert.is(await endAll(processes, { graceMs: 300 }), 0);
  }),
);
list("endAll() is hurried by another with less grace", () =>
  withProcesses(async ({ call, peer, processes }) => {
    await call("spawn", sh("a", deaf));
    await until(() => peer.text("a"));
    const start = performance.now();
    const first = endAll(processes, { graceMs: 20_000 });
    assert.is(await endAll(processes, { graceMs: 0 }), 1);
    assert.is(await first, 1);
    assert.ok(performance.now() - start < 9000); // it would have ended by itself after 10 s
  }),
);
list.run();

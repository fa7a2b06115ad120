// time limit: 120 s; long
/** Terminals: what makes them, tried against engines that do not; the modes that output sets; and processes in them, from outside. */

import { spawn, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Holders } from "../holders.ts";
import { closeHolders, findProgram, probeHolders } from "../holders.ts";
import { probeEngines } from "../pty.ts";
import { modesText, trackModes } from "../readers.ts";
import { readText } from "../record.ts";
import type { HolderRecord } from "../running.ts";
import type { TestDaemon, Wire } from "./daemon.ts";
import {
  eventually,
  hasProgram,
  holdfast,
  isAlive,
  lanesOf,
  openSocket,
  removeAll,
  sideBySide,
  sleep,
  statOf,
  withDaemon,
} from "./daemon.ts";

// What output sets

const esc = "\x1b";
/** Output, and what sets the same in a terminal that is as at first. */
const outputs: [name: string, output: string, modes: string][] = [
  ["nothing", "plain text\r\n", ""],
  ["an editor's start", `${esc}[?1049h${esc}[?1h${esc}=${esc}[?2004h`, `${esc}[?1049h${esc}[?1h${esc}[?2004h${esc}=`],
  ["an editor's end", `${esc}[?1049h${esc}[?1h${esc}=${esc}[?1l${esc}>${esc}[?1049l`, ""],
  ["several modes at once", `${esc}[?1000;1006;1004h`, `${esc}[?1000h${esc}[?1004h${esc}[?1006h`],
  [
    "all kinds of mouse",
    `${esc}[?1001h${esc}[?1002h${esc}[?1003h${esc}[?1005h${esc}[?1015h`,
    "1001 1002 1003 1005 1015",
  ],
  ["what is set at first, reset", `${esc}[?25l${esc}[?7l`, `${esc}[?7l${esc}[?25l`],
  ["and set again", `${esc}[?25l${esc}[?7l${esc}[?25;7h`, ""],
  ["one alternate screen, left as another", `${esc}[?47h${esc}[?1049l`, ""],
  ["one alternate screen in place of another", `${esc}[?47h${esc}[?1047h`, `${esc}[?1047h`],
  ["a full reset", `${esc}[?1049h${esc}[?2004h${esc}=${esc}[?25l${esc}c`, ""],
  ["a soft reset", `${esc}[?1049h${esc}[?1h${esc}=${esc}[?25l${esc}[?2004h${esc}[!p`, `${esc}[?1049h${esc}[?2004h`],
  ["modes that are not private", `${esc}[4h${esc}[25l`, ""],
  ["modes that are not known", `${esc}[?12h${esc}[?9999h${esc}[?h${esc}[?;h`, ""],
  ["a question about a mode", `${esc}[?2004$p`, ""],
  ["modes that are saved and restored", `${esc}[?1049s${esc}[?1049r`, ""],
  ["a title with a mode in it", `${esc}]0;${"[?25l"}\x07${esc}]2;=c\x07`, ""],
  ["a mode after a title", `${esc}]0;title\x07${esc}[?25l`, `${esc}[?25l`],
  ["a mode after a title that ends otherwise", `${esc}]0;title${esc}\\${esc}[?25l`, `${esc}[?25l`],
  ["a sequence that is broken off", `${esc}[?25\x18l${esc}[?7\x1al`, ""],
  ["a sequence in place of another", `${esc}[?25${esc}[?7l`, `${esc}[?7l`],
  ["a line's end within a sequence", `${esc}[?2\n5l`, `${esc}[?25l`],
  ["a character set that looks like the keypad", `${esc}(=${esc}(c`, ""],
  ["a sequence without an end", `${esc}[?${"1;".repeat(10_000)}25l${esc}[?7l`, `${esc}[?7l`],
  ["bytes that are no text", `\x80\xff${esc}[?25l\x9b`, `${esc}[?25l`],
];

const modes = suite("the modes that output sets");
for (const [name, output, wanted] of outputs)
  modes(`${name}: the same, however it is cut`, () => {
    const bytes = Buffer.from(output, "latin1");
    const sequences = /^\d/.test(wanted) ? wanted.replace(/ ?(\d+)/g, `${esc}[?$1h`) : wanted;
    for (const size of [bytes.length, 1, 2, 3, 7]) {
      const found = { bits: 0, part: undefined };
      for (let at = 0; at < bytes.length; at += size) trackModes(found, bytes.subarray(at, at + size));
      assert.is(JSON.stringify(modesText(found.bits)), JSON.stringify(sequences), `${size} bytes at a time`);
    }
  });
modes("are set by what they are told as", () => {
  for (const [, output] of outputs) {
    const [one, other] = [0, 0].map(() => ({ bits: 0, part: undefined }));
    trackModes(one!, Buffer.from(output, "latin1"));
    trackModes(other!, Buffer.from(modesText(one!.bits)));
    assert.is(other!.bits, one!.bits);
  }
});

// What makes them

const [script, python] = ["script", "python3"].map((name) => findProgram({ PATH: "/usr/bin" }, name));
/** As script(1) up to util-linux 2.38: it waits for its command to read, and hears nothing meanwhile. But for the first 100 000 bytes. */
const waitsForReader = `exec ${python} -c '
import os, pty, select, sys
pid, master = pty.fork()
if pid == 0:
    os.execlp("sh", "sh", "-c", sys.argv[1])
os.set_blocking(master, False)
typed, taken = b"", 0
while True:
    ready, writable, _ = select.select([0, master], [master] if typed else [], [])
    if master in ready:
        try:
            os.write(1, os.read(master, 65536))
        except OSError:
            break
    if writable or (typed and taken > 100000):
        typed = typed[os.write(master, typed):]
    if 0 in ready:
        typed += os.read(0, 65536)
        taken += len(typed)
        os.set_blocking(master, taken > 100000)
sys.exit(os.WEXITSTATUS(os.waitpid(pid, 0)[1]))' "$2"`;
/** Programs in place of script(1), and what is said of them. */
const engines: [name: string, text: string, problem: RegExp][] = [
  ["loses exit codes", `${script} "$@"; exit 0`, /makes of exit code 7 0$/],
  ["adds to exit codes", `${script} "$@"; exit $(($? + 1))`, /makes of exit code 7 8$/],
  ["does nothing, and does not end", "sleep 60", /does not start a command: /],
  ["ends at once", "echo No pty >&2; exit 1", /does not start a command: there is no terminal: No pty$/],
  ["runs the command without a terminal", 'exec sh -c "$2"', /does not start a command: there is no terminal/],
  ["loses what is typed", `head -c 1000 | ${script} "$@"`, /loses what is typed: of 65536 bytes at once \d+ came back/],
  [
    "stops when nobody reads what is typed",
    waitsForReader,
    /stops when 200000 bytes are typed that its command does not read$/,
  ],
];

const probe = suite("what makes terminals");

async function withHolders(run: (holders: Holders, directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-pty-"));
  const holders = await probeHolders(join(directory, "held"), process.env);
  try {
    assert.type(holders, "object");
    await run(holders as Holders, directory);
  } finally {
    if (typeof holders !== "string") await closeHolders(holders);
    const left = readdirSync(join(directory, "held"));
    await removeAll(directory);
    assert.equal(left, [], "what it has tried is gone");
  }
}

function withPrograms(directory: string, programs: Record<string, string>): NodeJS.ProcessEnv {
  for (const [name, text] of Object.entries(programs)) {
    writeFileSync(join(directory, name), `#!/bin/sh\n${text}\n`);
    chmodSync(join(directory, name), 0o755);
  }
  return { ...process.env, PATH: `${directory}:${process.env.PATH}` };
}

for (const [name, text, problem] of engines) {
  const isHere = text !== waitsForReader || hasProgram("python3");
  (isHere ? probe : probe.skip)(`is not a program that ${name}`, () =>
    withHolders(async (holders, directory) => {
      const env = withPrograms(directory, { script: text, python3: "exit 1" });
      const found = await probeEngines(holders, env);
      assert.type(found, "string");
      const [ofScript] = (found as string).split("; ");
      assert.match(ofScript!, problem);
    }),
  );
}
probe("is script of util-linux, where it is good", () =>
  withHolders(async (holders) => {
    assert.equal(await probeEngines(holders, process.env), { name: "script", path: script });
  }),
);

/** Why this machine's python3 is no engine: Debian 12's own stops when it is not read. */
const notPython = await new Promise<string | undefined>((done, fail) => {
  const find = async (holders: Holders, directory: string): Promise<void> => {
    const found = await probeEngines(holders, withPrograms(directory, { script: "exit 1" }));
    done(typeof found === "string" ? found : undefined);
  };
  withHolders(find).catch(fail);
});
if (notPython !== undefined)
  (hasProgram("python3") ? probe : probe.skip)("is not this machine's python3", () => {
    assert.match(notPython, /script does not start a command: there is no terminal; .*python3 (stops|does not|loses)/);
  });

// Processes in them

interface Seat {
  daemon: TestDaemon;
  wire: Wire;
  /** /bin/sh -c, in a terminal of 30 rows and 100 columns. @returns Its pid. */
  start(id: string, script: string, more?: object): Promise<number>;
  type(id: string, text: string, more?: object): Promise<any>;
  /** Waits until it has said so. */
  says(id: string, text: string | RegExp): Promise<void>;
  text(id: string): string;
  exit(id: string): Promise<any>;
  entry(id: string): Promise<any>;
  /** What is kept of it. */
  directoryOf(id: string): string;
  /** Kills the daemon, and starts the next. */
  replace(between?: () => void): Promise<void>;
}

const inside = suite("a process in a terminal");
const besides = sideBySide(inside, lanesOf(3));

function seat(name: string, run: (seat: Seat) => Promise<void>, env: NodeJS.ProcessEnv = {}): void {
  besides(name, () => withDaemon((daemon) => run(createSeat(daemon, env)), env));
}

function createSeat(daemon: TestDaemon, env: NodeJS.ProcessEnv): Seat {
  const held = `${daemon.socket}.held`;
  const idOf = (path: string) => JSON.parse(readFileSync(join(held, path, "about"), "utf8")).id;
  const seat: Seat = {
    ...{ daemon, wire: openSocket(daemon).wire },
    start: async (id, script, more = {}) => {
      const terminal = { rows: 30, columns: 100 };
      const params = { id, command: "/bin/sh", args: ["-c", script], terminal, ...more };
      return (await seat.wire.request("process.spawn", params)).pid;
    },
    type: (id, text, more = {}) =>
      seat.wire.request("process.stdin", { id, data: Buffer.from(text).toString("base64"), ...more }),
    text: (id) =>
      seat.wire.messages
        .filter(({ processId, stream }) => processId === id && stream === "stdout")
        .map(({ data }) => Buffer.from(data, "base64").toString("latin1"))
        .join(""),
    async says(id, text) {
      const isThere = () => (typeof text === "string" ? seat.text(id).includes(text) : text.test(seat.text(id)));
      await eventually(isThere, `${id} says ${text}`, 30_000).catch((error) => {
        throw new Error(`${error.message}; it has said ${JSON.stringify(seat.text(id).slice(-2000))}`);
      });
    },
    exit: (id) => seat.wire.message(({ processId, stream }) => processId === id && stream === "exit", 30_000),
    entry: async (id) => (await seat.wire.request("process.list")).processes.find((entry: any) => entry.id === id),
    directoryOf: (id) =>
      join(held, readdirSync(held).find((path) => existsSync(join(held, path, "about")) && idOf(path) === id)!),
    async replace(between) {
      const { pid } = await seat.wire.request("server.status");
      process.kill(pid, "SIGKILL");
      await seat.wire.closed;
      await eventually(() => !isAlive(pid), "the daemon is dead");
      between?.();
      const { socket, tokenFile } = daemon;
      const { code, stderr } = await holdfast(["--serve", "--socket", socket, "--token-file", tokenFile], { env });
      assert.is(code, 0, stderr);
      seat.wire = openSocket(daemon).wire;
    },
  };
  return seat;
}

const recordOf = (seat: Seat, id: string): HolderRecord =>
  JSON.parse(readFileSync(join(seat.directoryOf(id), "about"), "utf8")).holder;
const commandLineOf = (pid: number): string => readFileSync(`/proc/${pid}/cmdline`, "utf8");
const membersOf = (session: number): number[] =>
  readdirSync("/proc")
    .map(Number)
    .filter((pid) => pid > 0 && isAlive(pid) && statOf(pid)?.[3] === String(session));

seat("leads its session, and sees its size", async (seat) => {
  const pid = await seat.start("a", "stty size; tty; echo $TERM; read x", {
    terminal: { rows: 7, columns: 9, term: "vt52" },
  });
  await seat.says("a", /^7 9\r\n\/dev\/pts\/\d+\r\nvt52\r\n$/);
  const [, parent, group, session, tty, foreground] = statOf(pid)!;
  assert.equal([group, session, foreground], [String(pid), String(pid), String(pid)]);
  assert.not.equal(tty, "0");
  assert.is(recordOf(seat, "a").child.pid, Number(parent));
  assert.match(readFileSync(`/proc/${pid}/status`, "utf8"), /^SigBlk:\t0+\nSigIgn:\t0+$/m);
  assert.equal((await seat.entry("a")).terminal, { rows: 7, columns: 9 });
  assert.is((await seat.entry("a")).pid, pid);
  const { features } = await seat.wire.request("server.capabilities");
  assert.ok(features.includes("terminal"));
});

/** Descriptors, signals and limits, but for what is the process's own. */
function givenTo(pid: number): string {
  const [status, limits] = ["status", "limits"].map((name) => readFileSync(`/proc/${pid}/${name}`, "utf8"));
  const lines = status!
    .split("\n")
    .filter((line) => /^(Sig(Blk|Ign)|Umask|Uid|Gid|Groups|NoNewPrivs|Cap\w+):/.test(line));
  const score = readFileSync(`/proc/${pid}/oom_score_adj`, "utf8");
  return [readdirSync(`/proc/${pid}/fd`).join(), score, ...lines, limits].join("\n");
}

for (const name of notPython === undefined ? ["script", "python3"] : ["script"])
  besides(`is given the same by ${name} as one with plain pipes`, async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-pty-"));
    const env = name === "script" ? {} : withPrograms(directory, { script: "exit 1" });
    await withDaemon(async (daemon) => {
      const { wire } = openSocket(daemon);
      const common = { command: "sleep", args: ["100"], umask: 0o027 };
      const plain = await wire.request("process.spawn", { id: "plain", ...common });
      const other = await wire.request("process.spawn", { id: "t", ...common, terminal: { rows: 1, columns: 1 } });
      const isSame = () => givenTo(plain.pid) === givenTo(other.pid);
      await eventually(isSame, "both are given the same").catch((error) => {
        assert.is(givenTo(other.pid), givenTo(plain.pid));
        throw error;
      });
    }, env).finally(() => removeAll(directory));
  });

for (const name of notPython === undefined ? ["script", "python3"] : ["script"])
  besides(`by ${name} says all that it says, though nobody reads it when it ends`, async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-pty-"));
    const env = name === "script" ? {} : withPrograms(directory, { script: "exit 1" });
    await withDaemon(async (daemon) => {
      const seat = createSeat(daemon, env);
      const bytes = (64 << 10) + 2000; // more than a pipe takes
      await seat.start("a", `echo ready; read x; sleep 0.5; head -c ${bytes} /dev/zero | tr '\\0' z; exit 5`);
      await seat.says("a", "ready");
      await seat.type("a", "\n");
      process.kill(daemon.pid, "SIGSTOP");
      await sleep(1500);
      process.kill(daemon.pid, "SIGCONT");
      assert.is((await seat.exit("a")).exitCode, 5);
      assert.is(seat.text("a").split("z").length - 1, bytes);
    }, env).finally(() => removeAll(directory));
  });

seat("is told of another size, and of one that is no other when it is to draw again", async (seat) => {
  await seat.start("a", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done");
  await seat.says("a", "ready");
  assert.equal(await seat.wire.request("process.resize", { id: "a", rows: 20, columns: 50 }), { success: true });
  await seat.says("a", /20 50\r\n$/);
  await seat.wire.request("process.resize", { id: "a", rows: 20, columns: 50, redraw: true });
  await seat.says("a", /20 50\r\n20 49\r\n(20 50\r\n)+$|20 50\r\n(20 50\r\n)+$/);
  await Promise.all(
    [1, 2, 3].map((rows) => seat.wire.request("process.resize", { id: "a", rows, columns: 1, redraw: true })),
  );
  await seat.says("a", /3 1\r\n$/);
  assert.equal((await seat.entry("a")).terminal, { rows: 3, columns: 1 });
});

seat("takes Ctrl-C, Ctrl-D and the end of its stdin as bytes", async (seat) => {
  await seat.start("c", "echo ready; sleep 100");
  await seat.says("c", "ready");
  await seat.type("c", "\x03");
  assert.is((await seat.exit("c")).exitCode, 130);
  await seat.start("d", "cat; echo first; cat; exit 5");
  assert.equal(await seat.type("d", "one\n", { end: true }), { success: true, applied: 5 });
  await seat.says("d", "one\r\none\r\nfirst\r\n");
  assert.equal(await seat.type("d", "one\n", { offset: 0, end: true }), { success: true, applied: 5, duplicate: true });
  assert.equal(await seat.type("d", "two\n\x04"), { success: true, applied: 10 });
  assert.is((await seat.exit("d")).exitCode, 5);
});

const ends: [script: string, signal: string | undefined, code: number][] = [
  ["exit 0", undefined, 0],
  ["exit 3", undefined, 3],
  ["exit 143", undefined, 143],
  ["kill -TERM $$", undefined, 143],
  ["kill -SEGV $$", undefined, 139],
  ["echo ready; exec sleep 100", "SIGTERM", 143],
  ["echo ready; exec sleep 100", "KILL", 137],
  ["trap '' HUP; echo ready; sleep 100 & wait", "SIGKILL", 137],
];
seat("ends with its exit code, or 128 and the signal's number", async (seat) => {
  for (const [at, [script, signal, code]] of ends.entries()) {
    const id = `e${at}`;
    await seat.start(id, script);
    if (signal !== undefined) {
      await seat.says(id, "ready");
      await seat.wire.request("process.kill", { id, signal });
    }
    const exit = await seat.exit(id);
    assert.equal([exit.exitCode, exit.killedBy], [code, signal === undefined ? undefined : "client"], script);
  }
});

seat(
  "has its arguments and environment as they were given; and no value of these stands in an argument",
  async (seat) => {
    const { daemon, wire } = seat;
    const file = join(daemon.directory, "given");
    const args = ["it's", "'", "a\nb", '"$HOME"', "\\n\\\\", "", " ", "*", "-x", "é€\u{1f600}", "\x01\x7f"];
    const env = {
      PATH: process.env.PATH!,
      SHELL: "/no/login",
      BASH_ENV: "/no/file",
      ENV: "/no",
      QUOTES: "s3'cr\"et\n$x",
      "A-B": "odd",
      EMPTY: "",
    };
    const script = `tr '\\0' '\\n' </proc/$$/environ >"${file}.tmp"; printf '%s\\0' "$@" >"${file}"; read x`;
    const params = { command: "/bin/sh", args: ["-c", script, "sh", ...args], env, clearEnv: true };
    const { pid } = await wire.request("process.spawn", {
      id: "a",
      ...params,
      terminal: { rows: 1, columns: 1, term: "t" },
    });
    await eventually(
      () => existsSync(file) && readFileSync(file, "utf8").split("\0").length > args.length,
      "its arguments",
    );
    assert.equal(readFileSync(file, "utf8").split("\0").slice(0, -1), args);
    const wanted = Object.entries({ ...env, TERM: "t" })
      .map(([name, value]) => `${name}=${value}`)
      .join("\n")
      .split("\n");
    const given = readFileSync(`${file}.tmp`, "utf8").split("\n").slice(0, -1);
    assert.equal(given.filter((line) => !/^(_|SHLVL)=/.test(line)).sort(), wanted.sort());
    const { child, holder, keeper } = recordOf(seat, "a");
    for (const each of [pid, child.pid, holder.pid, keeper.pid])
      for (const value of ['cr"et', "/no/login", "/no/file"])
        assert.not.ok(commandLineOf(each).includes(value), `in ${each}`);
    for (const name of ["start", "tty", "leader"])
      assert.not.ok(readdirSync(seat.directoryOf("a")).includes(name) && name !== "start");
  },
);

seat("is refused where there is no such command, and leaves nothing", async (seat) => {
  const { directory } = seat.daemon;
  writeFileSync(join(directory, "plain"), "#!/bin/sh\n", { mode: 0o600 });
  writeFileSync(join(directory, "lost"), "#!/no/such/interpreter\n", { mode: 0o700 });
  const held = `${seat.daemon.socket}.held`;
  for (const [command, errno] of [
    ["no-such-command", "ENOENT"],
    ["/no/such/file", "ENOENT"],
    [join(directory, "plain"), "EACCES"],
    [join(directory, "lost"), "ENOENT"],
    [directory, "EACCES"],
  ] as const) {
    const params = { id: "a", command, terminal: { rows: 30, columns: 100 } };
    const error = await seat.wire.request("process.spawn", params).catch((error) => error);
    assert.equal([error.code, error.data?.errno], [-32603, errno], command);
  }
  const args = ["x".repeat(140_000)];
  const long = { id: "a", command: "true", args, terminal: { rows: 30, columns: 100 } };
  assert.is((await seat.wire.request("process.spawn", long).catch((error) => error)).data?.errno, "E2BIG");
  const isOurs = (pid: number) => isAlive(pid) && readText(`/proc/${pid}/cmdline`)?.includes(`${held}/`);
  await eventually(
    () =>
      !readdirSync("/proc")
        .map(Number)
        .some((pid) => pid > 0 && isOurs(pid)),
    "no holder is left",
  );
});

const refused: [method: string, params: object, words: RegExp][] = [
  ["process.spawn", { terminal: true }, /"terminal": it is true, it must be an object/],
  ["process.spawn", { terminal: {} }, /"rows": it is missing|"rows"/],
  ["process.spawn", { terminal: { rows: 0, columns: 1 } }, /"rows": it is 0, it must be an integer from 1 to 65535/],
  ["process.spawn", { terminal: { rows: 1, columns: 65_536 } }, /"columns": it is 65536/],
  ["process.spawn", { terminal: { rows: 1.5, columns: 1 } }, /"rows": it is 1.5/],
  ["process.spawn", { terminal: { rows: 1, columns: 1, term: 5 } }, /"term": it is 5, it must be a string/],
  ["process.spawn", { terminal: { rows: 1, columns: 1, term: "a\0b" } }, /"term"/],
  ["process.spawn", { terminal: { rows: 1, columns: 1, colour: 5 } }, /"colour"/],
  ["process.spawn", { terminal: { rows: 1, columns: 1 }, stdin: "none" }, /"stdin": it is "none", it must be "open"/],
  ["process.resize", { id: "plain", rows: 1, columns: 1 }, /it has no terminal/],
  ["process.resize", { id: "over", rows: 1, columns: 1 }, /the process has ended/],
  ["process.resize", { id: "nobody", rows: 1, columns: 1 }, /no process has this id/],
  ["process.resize", { id: "plain", rows: 1 }, /"columns"/],
  ["process.resize", { id: "plain", rows: 1, columns: 1, redraw: 1 }, /"redraw": it is 1/],
];
seat("is refused in words, and so is a size", async (seat) => {
  await seat.wire.request("process.spawn", { id: "plain", command: "cat" });
  await seat.start("over", "exit 0");
  await seat.exit("over");
  for (const [method, params, words] of refused) {
    const all = method === "process.spawn" ? { id: "new", command: "cat", ...params } : params;
    const error = await seat.wire.request(method, all).catch((error) => error);
    assert.is(error.code, -32602, `${method} ${JSON.stringify(params)}: ${JSON.stringify(error)}`);
    assert.match(error.message, words);
  }
});

seat("goes on when its daemon is killed: the same pid, size, modes, stdin and exit code", async (seat) => {
  const script = `trap 'stty size' WINCH; printf '\\033[?1049h\\033[?2004h\\033[?25l'; while :; do read x && echo "got $x" && [ "$x" = end ] && exit 4; done`;
  const pid = await seat.start("a", script);
  await seat.says("a", "25l");
  await seat.wire.request("process.resize", { id: "a", rows: 20, columns: 50 });
  await seat.says("a", "20 50");
  await seat.replace();
  const { running, terminal } = await seat.wire.request("process.reattach", { id: "a", fromSeq: 0 });
  assert.ok(running);
  const modes = "\x1b[?1049h\x1b[?25l\x1b[?2004h";
  assert.equal(terminal, { rows: 20, columns: 50, modes, alternate: true });
  assert.is((await seat.entry("a")).pid, pid);
  await seat.wire.request("process.resize", { id: "a", rows: 21, columns: 50 });
  await seat.says("a", "21 50");
  await seat.type("a", "end\n");
  assert.is((await seat.exit("a")).exitCode, 4);
  const ended = await seat.wire.request("process.reattach", { id: "a", fromSeq: 0 });
  assert.equal(ended.terminal, { rows: 21, columns: 50, modes, alternate: true });
});

seat("goes on under the daemon that replaces its own", async (seat) => {
  const pid = await seat.start("a", "printf '\\033[?1004h'; read x; echo got $x; stty size; exit 8");
  await seat.says("a", "1004h");
  const { socket, tokenFile } = seat.daemon;
  const replaced = await holdfast(["--serve", "--replace", "--socket", socket, "--token-file", tokenFile]);
  assert.is(replaced.code, 0, replaced.stderr);
  seat.wire = openSocket(seat.daemon).wire;
  const { terminal } = await seat.wire.request("process.reattach", { id: "a", fromSeq: 0 });
  assert.equal(terminal, { rows: 30, columns: 100, modes: "\x1b[?1004h", alternate: false });
  assert.is((await seat.entry("a")).pid, pid);
  await seat.type("a", "it\n");
  await seat.says("a", "got it\r\n30 100\r\n");
  assert.is((await seat.exit("a")).exitCode, 8);
});

seat("has its modes after a flood in which its daemon was killed, too", async (seat) => {
  await seat.start("a", "printf '\\033[?1004h'; seq 400000; printf '\\033[?1049'; read x; printf 'h'; read x");
  await seat.says("a", "20000\r");
  await seat.replace();
  await seat.wire.request("process.reattach", { id: "a", fromSeq: 0 });
  await seat.says("a", "400000\r");
  await seat.type("a", "\n");
  const modes = async () =>
    (await seat.wire.request("process.reattach", { id: "a", fromSeq: 0, share: true })).terminal.modes;
  await eventually(async () => (await modes()) !== "\x1b[?1004h", "its last mode");
  assert.is(await modes(), "\x1b[?1049h\x1b[?1004h");
});

seat("is ended by --stop with all of its groups, though it ignores what can be ignored", async (seat) => {
  const script = "trap '' HUP TERM INT; set -m; sleep 100 & sleep 200 & echo ready; while :; do sleep 1; done";
  const pid = await seat.start("a", script);
  await seat.says("a", "ready");
  const { child, holder, keeper } = recordOf(seat, "a");
  const groups = new Set(membersOf(pid).flatMap((member) => statOf(member)?.[2] ?? []));
  assert.ok(groups.size >= 3, `it has ${groups.size} groups`);
  const stopped = await holdfast(["--stop", "--now", "--socket", seat.daemon.socket]);
  assert.is(stopped.code, 0, stopped.stderr);
  assert.equal(membersOf(pid), []);
  await eventually(
    () => ![child, holder, keeper].some((known) => isAlive(known.pid)),
    "its engine and holder are gone",
  );
});

seat("is hung up by --stop, as when a window is closed: a person's shell ignores TERM", async (seat) => {
  await seat.start("a", "trap '' TERM; trap 'echo hung up; exit 9' HUP; echo ready; while :; do sleep 0.05; done");
  await seat.says("a", "ready");
  assert.is((await holdfast(["--stop", "--now", "--socket", seat.daemon.socket])).code, 0);
  await holdfast(["--serve", "--socket", seat.daemon.socket, "--token-file", seat.daemon.tokenFile]);
  seat.wire = openSocket(seat.daemon).wire;
  assert.is((await seat.entry("a")).exitCode, 9);
});

seat("is ended by --stop when its daemon is dead, too", async (seat) => {
  const pid = await seat.start("a", "trap '' HUP TERM; set -m; sleep 100 & echo ready; while :; do sleep 1; done");
  await seat.says("a", "ready");
  const { child, holder } = recordOf(seat, "a");
  process.kill(seat.daemon.pid, "SIGKILL");
  await seat.wire.closed;
  const stopped = await holdfast(["--stop", "--now", "--socket", seat.daemon.socket]);
  assert.is(stopped.code, 0, stopped.stderr);
  assert.equal(membersOf(pid), []);
  await eventually(() => ![child, holder].some((known) => isAlive(known.pid)), "its engine and holder are gone");
});

seat("is stopped and continued; and killed while it is stopped", async (seat) => {
  const pid = await seat.start("a", "echo ready; read x; echo got $x; read x");
  await seat.says("a", "ready");
  const { child } = recordOf(seat, "a");
  const signal = (name: string) => seat.wire.request("process.kill", { id: "a", signal: name });
  await signal("STOP");
  await eventually(() => statOf(pid)?.[0] === "T" && statOf(child.pid)?.[0] === "T", "both are stopped");
  await signal("CONT");
  await seat.type("a", "on\n");
  await seat.says("a", "got on");
  await signal("STOP");
  await eventually(() => statOf(pid)?.[0] === "T" && statOf(child.pid)?.[0] === "T", "both are stopped");
  const killed = await seat.wire.request("process.killAndWait", { id: "a", signal: "KILL" });
  assert.equal(killed, { found: true, died: true });
  assert.is((await seat.exit("a")).exitCode, 137);
});

seat("can be ended when its engine was killed, and it ignores that", async (seat) => {
  const pid = await seat.start("a", "trap '' HUP; echo ready; while :; do sleep 0.1; done");
  await seat.says("a", "ready");
  process.kill(recordOf(seat, "a").child.pid, "SIGKILL");
  const { exitCode, signal } = await seat.exit("a");
  assert.equal([exitCode, signal], [137, "SIGKILL"]);
  assert.ok(isAlive(pid));
  await seat.wire.request("process.kill", { id: "a", signal: "KILL" });
  await eventually(() => !isAlive(pid), "it has ended");
});

seat("can be ended when its engine was killed together with its daemon", async (seat) => {
  const pid = await seat.start("a", "trap '' HUP; echo ready; while :; do sleep 0.1; done");
  await seat.says("a", "ready");
  const { child } = recordOf(seat, "a");
  await seat.replace(() => process.kill(child.pid, "SIGKILL"));
  await seat.wire.request("process.reattach", { id: "a", fromSeq: 0 });
  const { exitCode, signal } = await seat.exit("a");
  assert.equal([exitCode, signal], [137, "SIGKILL"]);
  await seat.wire.request("process.kill", { id: "a", signal: "KILL" });
  await eventually(() => !isAlive(pid), "it has ended");
});

seat("that never reads has a bounded stdin: its engine's memory, and the daemon's queue", async (seat) => {
  await seat.start("a", "stty raw -echo; echo ready; exec sleep 100");
  await seat.says("a", "ready");
  const { child } = recordOf(seat, "a");
  const text = "x".repeat(4 << 20);
  let applied = 0;
  let error: any;
  while (error?.code !== -32002 && applied < 256 << 20)
    ({ applied } = await seat.type("a", text).catch((caught) => {
      error = caught;
      return { applied };
    }));
  assert.is(error?.code, -32002);
  const resident = Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${child.pid}/status`, "utf8"))![1]);
  assert.ok(resident < 40 << 10, `the engine has ${resident} kB`);
});

seat("takes 4 MiB that it reads", async (seat) => {
  await seat.start("a", "stty raw -echo; echo ready; head -c 4194304 | cksum");
  await seat.says("a", "ready");
  const bytes = Buffer.alloc(4 << 20, "0123456789abcde\n");
  await seat.type("a", bytes.toString("latin1"));
  const { stdout } = spawnSync("cksum", { input: bytes });
  await seat.says("a", stdout.toString().trim());
});

const editor = ["vim", "vim.tiny", "vi"].map((name) => findProgram({}, name)).find((path) => path !== undefined);
(editor ? seat : (name: string) => inside.skip(name))(
  "is an editor, whose text is there and drawn again after its daemon was killed",
  async (seat) => {
    const file = join(seat.daemon.directory, "text");
    const args = ["-u", "NONE", "-i", "NONE", "-n", file];
    await seat.start("a", "", { command: editor, args, terminal: { rows: 20, columns: 60, term: "xterm" } });
    await seat.says("a", "[New");
    await seat.type("a", "ione two");
    await seat.says("a", "two");
    await seat.replace();
    const { lastSeq } = await seat.entry("a");
    const { terminal } = await seat.wire.request("process.reattach", { id: "a", fromSeq: lastSeq });
    assert.equal([terminal.alternate, terminal.modes.startsWith("\x1b[?1049h")], [true, true]);
    await seat.wire.request("process.resize", { id: "a", rows: 20, columns: 60, redraw: true });
    await seat.says("a", "one two");
    await seat.type("a", " three\x1b:wq\r");
    assert.is((await seat.exit("a")).exitCode, 0);
    assert.is(readFileSync(file, "utf8"), "one two three\n");
  },
);

const damages: [name: string, damage: (holder: any, stranger: number) => void][] = [
  [
    "another process is its leader",
    (holder, stranger) => (holder.terminal.leader = { pid: stranger, startTime: statOf(stranger)![19] }),
  ],
  ["its leader is no process", (holder) => (holder.terminal.leader = { pid: -1, startTime: "1" })],
  ["its terminal is a file", (holder) => (holder.terminal.tty = "/etc/passwd")],
  ["its terminal is nothing", (holder) => (holder.terminal = 5)],
];
for (const [name, damage] of damages)
  seat(`whose record says that ${name} is left alone, and nobody is signalled`, async (seat) => {
    const stranger = spawn("sleep", ["100"], { detached: true, stdio: "ignore" });
    const pid = await seat.start("a", "trap '' HUP; echo ready; read x");
    await seat.says("a", "ready");
    const { child } = recordOf(seat, "a");
    await seat.replace(() => {
      const path = join(seat.directoryOf("a"), "about");
      const about = JSON.parse(readFileSync(path, "utf8"));
      damage(about.holder, stranger.pid!);
      writeFileSync(path, JSON.stringify(about));
    });
    assert.equal((await seat.wire.request("process.list")).processes, []);
    const { takenUp } = await seat.wire.request("server.status");
    assert.is(takenUp.problems.length, 1);
    assert.match(takenUp.problems[0], /is not in its terminal|not described as it must be/);
    const stopped = await holdfast(["--stop", "--now", "--socket", seat.daemon.socket]);
    assert.is(stopped.code, 0);
    assert.ok(isAlive(stranger.pid!) && isAlive(pid) && isAlive(child.pid));
    for (const each of [stranger.pid!, pid, child.pid]) process.kill(each, "SIGKILL");
  });

seat("whose mark is damaged has a usual size, and goes on", async (seat) => {
  await seat.start("a", "printf '\\033[?25l'; read x; stty size; exit 6");
  await seat.says("a", "25l");
  await seat.replace(() => {
    const path = join(seat.directoryOf("a"), "mark");
    const bytes = readFileSync(path);
    assert.is(bytes.length, 96);
    for (const at of [8, 9, 10]) bytes.writeDoubleBE(1e9 + 0.5, at * 8);
    writeFileSync(path, bytes);
  });
  const { terminal } = await seat.wire.request("process.reattach", { id: "a", fromSeq: 0 });
  assert.equal(terminal, { rows: 24, columns: 80, modes: "\x1b[?25l", alternate: false });
  await seat.type("a", "\n");
  await seat.says("a", "30 100");
  assert.is((await seat.exit("a")).exitCode, 6);
});

if (notPython === undefined)
  besides("made by python3 is the same, and a signal is told as one", async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-pty-"));
    const env = withPrograms(directory, { script: "exit 1" });
    await withDaemon(async (daemon) => {
      const seat = createSeat(daemon, env);
      await seat.start("a", "stty size; read x; echo got $x; kill -TERM $$");
      await seat.says("a", "30 100");
      await seat.replace();
      await seat.wire.request("process.reattach", { id: "a", fromSeq: 0 });
      await seat.type("a", "it\n");
      await seat.says("a", "got it");
      const { exitCode, signal } = await seat.exit("a");
      assert.equal([exitCode, signal], [143, "SIGTERM"]);
    }, env).finally(() => removeAll(directory));
  });

const none = suite("where nothing makes terminals");
none("the daemon and --doctor say why, and a process is refused one", async () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-pty-"));
  const env = withPrograms(directory, { script: `${script} "$@"; exit 0`, python3: "exit 1" });
  const why = `${directory}/script makes of exit code 7 0; ${directory}/python3 does not start a command: there is no terminal`;
  await withDaemon(async (daemon) => {
    const { wire } = openSocket(daemon);
    const refusal = wire.request("process.spawn", { id: "a", command: "cat", terminal: { rows: 1, columns: 1 } });
    const error = await refusal.catch((error) => error);
    assert.equal([error.code, error.message], [-32603, `Cannot start "cat" in a terminal: ${why}`]);
    const { features } = await wire.request("server.capabilities");
    assert.not.ok(features.includes("terminal"));
    const { stdout } = await holdfast(["--doctor", "--json", "--socket", daemon.socket], { env });
    const { findings } = JSON.parse(stdout.toString());
    const { state, evidence } = findings.find((found: any) => found.name === "terminals");
    assert.equal([state, evidence], ["warning", `cannot be given to processes: ${why}`]);
  }, env).finally(() => removeAll(directory));
});

for (const each of [modes, probe, inside, none]) each.run();

/** The features of the table that run.mjs prints: each is tried on each runtime with daemons of its own, from outside. */

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { Outcome, Wire } from "../daemon.ts";
import { builtFile, createWire, eventually, frameOf, isAlive, messagesIn, outcomeOf, request } from "../daemon.ts";

export interface Runtime {
  name: string;
  /** What stands before the script. */
  command: string[];
  /** A flag that the daemon must be run with as well. */
  flag: string;
  /** Too old: it must say so. */
  refuses?: boolean;
  /** Runs the sources as they are. */
  runsSources?: boolean;
  /** Hands the script's text over unchanged, so that a file written from stdin is the built one byte by byte, but for the lines for a shell. */
  keepsText?: boolean;
}

/** The runtimes of package.json, where npm has put them. */
export function runtimes(modules: string): Runtime[] {
  const node = (version: number): Runtime => ({
    name: `node ${version}`,
    command: [join(modules, `node${version}/bin/node`)],
    flag: "--max-old-space-size=128",
    refuses: version < 18,
    runsSources: version >= 24,
    keepsText: true,
  });
  // where npm ran their scripts, they have moved
  const first = (...paths: string[]): string =>
    paths.map((path) => join(modules, path)).find((path) => existsSync(path)) ?? "";
  return [
    ...[12, 14, 16, 18, 20, 22, 24, 26].map(node),
    {
      name: "deno 2",
      command: [first("@deno/linux-x64-glibc/deno", "deno/deno"), "run", "--allow-all"],
      flag: "--v8-flags=--max-old-space-size=128",
      runsSources: true,
    },
    {
      name: "bun 1",
      command: [first("@oven/bun-linux-x64/bin/bun", "bun/bin/bun.exe")],
      flag: "--smol",
      runsSources: true,
    },
  ];
}

/** One daemon's place, and what is run there. */
interface Bench {
  directory: string;
  socket: string;
  run(
    args: string[],
    options?: { script?: string; stdin?: string | Buffer; flag?: string; env?: NodeJS.ProcessEnv },
  ): Promise<Outcome>;
  serve(options?: { script?: string; stdin?: Buffer; flag?: string }): Promise<any>;
  wire(token?: string): Promise<OpenWire>;
}

interface OpenWire {
  wire: Wire;
  close(): Promise<void>;
}

/** Each of them resolves when all is as it should be, to a word for the table if that is not "ok". */
const features: Record<string, (runtime: Runtime, bench: Bench) => Promise<unknown>> = {
  async serve({ command, flag }, { serve, run }) {
    const { pid, how, version } = await serve({ flag });
    same(how, "started");
    same(version, JSON.parse((await run(["--version", "--json"])).stdout.toString()).version);
    const daemon = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    const expected = [command[0]!, ...command.slice(1), flag]; // its own, and after it those of the start
    same(daemon.slice(0, expected.length).join(" "), expected.join(" "), "the daemon's runtime and flags");
  },
  async native(_runtime, { serve, run, socket }) {
    await serve();
    const { code, stdout } = await run(["--bridge", "--socket", socket], {
      stdin: Buffer.concat([
        frameOf(request("server.ping", {}, "t", 1)),
        frameOf(request("server.ping", {}, "t", "é")),
      ]),
    });
    same(code, 0);
    same(
      messagesIn(stdout).map(({ id, result }) => [id, result.pong]),
      [
        [1, true],
        ["é", true],
      ],
    );
  },
  async lines(_runtime, { serve, run, socket }) {
    await serve();
    const { code, stdout } = await run(["--bridge", "--socket", socket], {
      stdin: `${JSON.stringify(request("server.ping", {}, "t"))}\r\n`,
    });
    same([code, stdout.toString()], [0, '{"jsonrpc":"2.0","id":1,"result":{"pong":true}}\n']);
  },
  async processes(_runtime, { serve, wire: open }) {
    await serve();
    const first = await open();
    const sent = Buffer.alloc(1 << 20, "0123456789abcdef\n");
    await first.wire.request("process.spawn", {
      id: "a",
      command: "/bin/sh",
      args: ["-c", "cat; echo end >&2; exit 7"],
    });
    await first.wire.request("process.stdin", { id: "a", data: sent.toString("base64"), end: true });
    same((await first.wire.message(({ stream }) => stream === "exit")).exitCode, 7);
    const received = Buffer.concat(
      first.wire.messages.filter(({ stream }) => stream === "stdout").map(({ data }) => Buffer.from(data, "base64")),
    );
    same(sha256(received), sha256(sent), "what cat gave back");
    await first.wire.request("process.spawn", {
      id: "b",
      command: "/bin/sh",
      args: ["-c", "echo one; read x; echo $x; sleep 1000"],
    });
    await first.wire.message(({ processId, stream }) => processId === "b" && stream === "stdout");
    await first.close();
    const second = await open();
    const { running } = await second.wire.request("process.reattach", { id: "b", fromSeq: 1 });
    same(running, true);
    await second.wire.request("process.stdin", { id: "b", data: Buffer.from("two\n").toString("base64") });
    same(Buffer.from((await second.wire.message(({ seq }) => seq === 2)).data, "base64").toString(), "two\n");
    same((await second.wire.request("process.killAndWait", { id: "b" })).died, true);
    await second.close();
  },
  async killed(_runtime, { serve, wire: open }) {
    const { pid } = await serve();
    const first = await open();
    const start = { id: "a", command: "sleep", args: ["1000"] };
    const child = (await first.wire.request("process.spawn", start)).pid;
    const targets = readdirSync(`/proc/${child}/fd`).map((name) => [name, readlinkSync(`/proc/${child}/fd/${name}`)]);
    const others = targets.filter(([name, target]) => Number(name) > 2 && target !== "/dev/null");
    same(others, [], "what a process has beside its 0 to 2");
    process.kill(pid, "SIGKILL");
    await first.wire.closed;
    same((await serve()).how, "started");
    const next = await open();
    const { processes } = await next.wire.request("process.list");
    same([processes[0].pid, processes[0].running], [child, true]);
    same((await next.wire.request("process.killAndWait", { id: "a" })).died, true);
    await next.close();
  },
  async join(_runtime, { serve, run, socket, directory, wire: open }) {
    const first = await serve();
    writeFileSync(join(directory, "other"), "other\n", { mode: 0o600 });
    const second = JSON.parse(
      (
        await run(["--serve", "--json", "--socket", socket, "--token-file", join(directory, "other")])
      ).stdout.toString(),
    );
    same([second.how, second.instance, second.pid], ["joined", first.instance, first.pid]);
    for (const token of ["t", "other"]) {
      const { wire, close } = await open(token);
      same((await wire.request("server.capabilities")).instanceId, first.instance);
      await close();
    }
  },
  async heal(_runtime, { serve, run, socket, wire: open }) {
    const { pid, instance } = await serve();
    process.kill(pid, "SIGKILL");
    await eventually(() => !isAlive(pid), "the daemon has ended");
    const { wire, close } = await open();
    const healed = (await wire.request("server.capabilities")).instanceId;
    if (healed === instance) throw new Error("the instance is the same, after kill -9");
    await close();
    same((await run(["--call", "server.ping", "--socket", socket])).stdout.toString(), '{"pong":true}\n');
  },
  async stop(_runtime, { serve, run, socket }) {
    const { pid } = await serve();
    const stopped = await run(["--stop", "--socket", socket]);
    same([stopped.code, stopped.stdout.toString()], [0, "stopped 0\n"]);
    same([existsSync(socket), isAlive(pid)], [false, false]);
    same((await run(["--stop", "--socket", socket])).stdout.toString(), "none 0\n");
    const late = await run(["--bridge", "--socket", socket], { stdin: frameOf(request("server.ping", {}, "t")) });
    const [answer] = messagesIn(late.stdout);
    same([late.code, answer.error.code, answer.error.data.reason], [69, -32010, "stopped"]);
  },
  async stdin({ keepsText }, { serve, directory, run, socket }) {
    const text = readFileSync(builtFile);
    const { pid } = await serve({ script: "-", stdin: text });
    const copy = join(directory, "holdfast.cjs");
    if (keepsText)
      same(sha256(readFileSync(copy)), sha256(text.subarray(text.indexOf("\n;(") + 1)), "the file written from stdin");
    if (!readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").includes(copy))
      throw new Error(`the daemon does not run ${copy}`);
    same(
      (await run(["--call", "server.ping", "--socket", socket], { script: "-", stdin: text })).stdout.toString(),
      '{"pong":true}\n',
    );
  },
  async names(_runtime, { directory, run, serve }) {
    const odd = join(directory, `odd "dir" $HOME été ' 100%25 #`);
    for (const type of ["module", "commonjs", "none"]) {
      const place = join(odd, type);
      mkdirSync(place, { recursive: true });
      if (type !== "none") writeFileSync(join(place, "package.json"), JSON.stringify({ type }));
      for (const name of ["server", "server.js", "server.mjs", "server.cjs"]) {
        copyFileSync(builtFile, join(place, name));
        const { code, stdout, stderr } = await run(["--version"], { script: join(place, name) });
        if (code !== 0 || !/^holdfast \d/.test(stdout.toString()))
          throw new Error(`${type} ${name}: exit code ${code}, ${stdout}${stderr}`);
      }
      symlinkSync(join(place, "server.mjs"), join(place, "link"));
    }
    const through = await run(["--version"], { script: join(odd, "none/link") });
    same([through.code, through.stdout.toString().slice(0, 8)], [0, "holdfast"], "through a symbolic link");
    const { pid } = await serve({ script: join(odd, "module/server") });
    if (!readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(join(odd, "module/server")))
      throw new Error("the daemon runs another file");
  },
  async import({ command }, { directory, run, socket }) {
    const cjs = join(directory, "holdfast.cjs");
    copyFileSync(builtFile, cjs);
    const body = `
      serve({ socket: ${JSON.stringify(socket)}, token: "t" }).then(async ({ how }) => {
        const there = await connect({ socket: ${JSON.stringify(socket)}, token: "t" });
        const over = await connect({ command: ${JSON.stringify([...command, cjs, "--bridge", "--socket", socket])}, token: "t" });
        let text = "";
        const child = await over.spawn({ command: "/bin/cat", onOutput: ({ data }) => (text += Buffer.from(data).toString()) });
        await child.write("through cat");
        await child.end();
        const { exitCode } = await child.exit;
        over.close();
        console.log(JSON.stringify([how, there.instanceId === over.instanceId, text, exitCode, (await over.closed).reason]));
        there.close();
      });`;
    writeFileSync(join(directory, "a.mjs"), `import { connect, serve } from ${JSON.stringify(cjs)};${body}`);
    writeFileSync(join(directory, "b.cjs"), `const { connect, serve } = require(${JSON.stringify(cjs)});${body}`);
    for (const [name, how] of [
      ["a.mjs", "started"],
      ["b.cjs", "joined"],
    ] as const) {
      const { code, stdout, stderr } = await run([], { script: join(directory, name) });
      same(
        [code, stdout.toString()],
        [0, `${JSON.stringify([how, true, "through cat", 0, "closed-here"])}\n`],
        `${name}: ${stderr}`,
      );
    }
  },
  /** The same again, unbuilt. */
  async source(runtime) {
    if (!runtime.runsSources) return "-";
    for (const name of ["serve", "native", "lines", "processes", "join", "heal", "stop"]) {
      await withBench(runtime, (bench) => features[name]!(runtime, bench), resolve("holdfast.ts")).catch(
        (error: Error) => {
          throw new Error(`${name}: ${error.message}`);
        },
      );
    }
  },
  /** The tests of modules, unbundled. That of frame.ts asks for the garbage collector in V8's way; those not named here spawn the runtime as Node is. */
  async tests({ runsSources, name: runtime, command }, { directory }) {
    if (!runsSources || runtime.startsWith("bun")) return "-";
    // Deno tells of no exit of a child that was stopped by SIGSTOP before
    for (const name of ["arguments", "frame", "rpc", "lifetime", ...(runtime.startsWith("deno") ? [] : ["socket"])]) {
      const { code, stdout, stderr } = await outcomeOf(
        spawn(command[0]!, [...command.slice(1), `tests/${name}.test.ts`], {
          env: { ...process.env, HOME: directory, NO_COLOR: "1" },
        }),
        "",
        60_000,
      );
      const [, total, passed] = /Total: +(\d+)\n +Passed: +(\d+)/.exec(stdout.toString()) ?? [];
      if (code !== 0 || total === undefined || total !== passed)
        throw new Error(`${name}.test.ts: exit code ${code}\n${stdout}${stderr}`);
    }
  },
};

/** Of a runtime that is too old: one clear line, by whatever name. */
async function refuse({ directory, run, serve: _ }: Bench): Promise<void> {
  copyFileSync(builtFile, join(directory, "server.mjs"));
  for (const options of [
    {},
    { script: join(directory, "server.mjs") },
    { script: "-", stdin: readFileSync(builtFile) },
  ]) {
    const { code, stdout, stderr } = await run(["--serve"], options);
    same(code, 1);
    if (
      !/^holdfast: error: Cannot run on Node \d+\.\d+\.\d+: version 18 or later is needed\n$/.test(stderr) ||
      stdout.length > 0
    )
      throw new Error(`it said: ${stdout}${stderr}`);
  }
}

/** Tries and prints all. Returns whether all of it is as it should be. */
export async function runTable(all: Runtime[], wanted: string[]): Promise<boolean> {
  const rows = all.filter(({ name }) => wanted.length === 0 || wanted.includes(name.replace(" ", "")));
  const columns = Object.keys(features);
  const widths = columns.map((column) => Math.max(column.length, 4) + 2);
  console.log("".padEnd(9) + columns.map((column, at) => column.padEnd(widths[at]!)).join(""));
  const failures: string[] = [];
  const queue = rows.map((runtime) => ({ runtime, cells: [] as string[] }));
  const waiting = [...queue];
  const printed = new Set<unknown>();
  const lane = async (): Promise<void> => {
    for (let row = waiting.shift(); row !== undefined; row = waiting.shift()) {
      const { runtime, cells } = row;
      const attempt = async (name: string, body: (bench: Bench) => Promise<unknown>): Promise<void> => {
        try {
          const word = await withBench(runtime, body);
          cells.push(typeof word === "string" ? word : "ok");
        } catch (error) {
          cells.push("FAIL");
          failures.push(`${runtime.name}, ${name}: ${(error as Error).message}`);
        }
      };
      if (runtime.refuses) await attempt("refuse", refuse);
      else
        for (const [name, feature] of Object.entries(features)) await attempt(name, (bench) => feature(runtime, bench));
      printed.add(row);
      while (printed.has(queue[0])) {
        const { runtime: done, cells: found } = queue.shift()!;
        const line = done.refuses
          ? found[0] === "ok"
            ? "too old: one line says so, exit code 1"
            : found[0]!
          : found
              .map((cell, at) => cell.padEnd(widths[at]!))
              .join("")
              .trimEnd();
        console.log(done.name.padEnd(9) + line);
      }
    }
  };
  await Promise.all([lane(), lane(), lane()]);
  for (const failure of failures) console.log(`\n${failure}`);
  return failures.length === 0 && rows.length > 0;
}

async function withBench(
  runtime: Runtime,
  body: (bench: Bench) => Promise<unknown>,
  program = builtFile,
): Promise<unknown> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-runtime-"));
  const socket = join(directory, "s");
  const tokenFile = join(directory, "token");
  writeFileSync(tokenFile, "t\n", { mode: 0o600 });
  const { FORCE_COLOR, ...env } = process.env;
  const daemons = new Set<number>();
  const stop = (): Promise<Outcome> => bench.run(["--stop", "--now", "--socket", socket]);
  let isStopped = false;
  const bench: Bench = {
    directory,
    socket,
    run: (args, { script = program, stdin = "", flag, env: more } = {}) => {
      const [program, ...rest] = [...runtime.command, ...(flag === undefined ? [] : [flag]), script, ...args];
      return outcomeOf(
        spawn(program!, rest, {
          cwd: directory,
          env: {
            ...env,
            HOME: directory,
            DENO_NO_UPDATE_CHECK: "1",
            DENO_DIR: join(tmpdir(), "holdfast-deno"),
            NO_COLOR: "1",
            ...more,
          },
        }),
        stdin,
        30_000,
      );
    },
    serve: async (options) => {
      const { code, stdout, stderr } = await bench.run(
        ["--serve", "--json", "--socket", socket, "--token-file", tokenFile],
        options,
      );
      if (code !== 0) throw new Error(`--serve ended with exit code ${code}: ${stderr}`);
      if (stderr !== "") throw new Error(`--serve said: ${stderr}`);
      const started = JSON.parse(stdout.toString());
      daemons.add(started.pid);
      return started;
    },
    wire: async (token = "t") =>
      openWire([...runtime.command, program, "--bridge", "--socket", socket], { ...env, HOME: directory }, token),
  };
  try {
    const word = await body(bench);
    isStopped = (await stop()).code === 0;
    for (const pid of daemons) await eventually(() => !isAlive(pid), `daemon ${pid} has ended`);
    const left = readdirSync(directory).filter(
      (name) => name === "s" || name.endsWith(".lock") || name.endsWith(".claim"),
    );
    if (left.length > 0) throw new Error(`it left ${left.join(", ")}`);
    return word;
  } finally {
    if (!isStopped) await stop();
    for (const pid of daemons) if (isAlive(pid)) process.kill(pid, "SIGKILL");
    rmSync(directory, { recursive: true, force: true });
  }
}

function openWire([file, ...args]: string[], env: NodeJS.ProcessEnv, token: string): OpenWire {
  const bridge = spawn(file!, args, { cwd: "/", env });
  bridge.stderr.resume();
  return {
    wire: createWire(bridge.stdout, bridge.stdin, token),
    close: () =>
      new Promise((done) => {
        bridge.once("close", () => done());
        bridge.stdin.end();
      }),
  };
}

function same(found: unknown, expected: unknown, what = "it"): void {
  const [is, should] = [JSON.stringify(found), JSON.stringify(expected)];
  if (is !== should) throw new Error(`${what}: is ${is.slice(0, 500)}, must be ${should}`);
}

function sha256(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

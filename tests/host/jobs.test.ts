// time limit: 240 s
/** --run and what comes back to it, as people use them: over real ssh sessions that end in every way, on a host that kills at logout and on one that does not. */

import { createHash } from "node:crypto";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, peerOf, rounds, runsAll, sleep } from "../daemon.ts";
import type { Host, Result, RunOptions } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";

requireHosts(8);

type SshClient = ReturnType<Host["spawnSsh"]>;

/** An ssh client that runs, and what it has said so far, in the bytes of a pipe. */
interface Session {
  child: SshClient;
  said(): string;
  closed: Promise<number | null>;
}

function openSession(host: Host, command: string, args: string[]): Session {
  const child = host.spawnSsh("ann", command, args);
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (said += chunk));
  return {
    child,
    said: () => said.replaceAll("\r", ""),
    closed: new Promise((done) => child.once("close", done)),
  };
}

const bothHosts = (what: string, test: (host: Host, killUserProcesses: boolean) => Promise<void>): void => {
  for (const killUserProcesses of [true, false])
    jobs(`${what}, on a host that ${killUserProcesses ? "kills" : "does not kill"} at logout`, () =>
      withHost({ killUserProcesses, users: ["ann+linger"] }, async (host) => {
        await host.copy("ann", builtFile, "hf");
        await test(host, killUserProcesses);
      }),
    );
};

const jobs = suite("--run over ssh");

// lost lines

/** Tells what is done to it: signals, lines of stdin, and its end. */
const teller =
  'for s in INT TERM HUP QUIT; do trap "echo was told $s; exit 9" $s; done; echo up; while read -r line; do echo got $line; done; echo stdin ended; while :; do sleep 0.2; done';

/** What --run hangs on. */
const lines: [id: string, args: string[], command: (run: string) => string][] = [
  ["plain", ["-T"], (run) => run],
  ["shell", ["-T"], (run) => `sh -c "cd /tmp && ${run.replaceAll('"', '\\"').replaceAll("$", "\\$")}; true"`],
  ["terminal", ["-tt"], (run) => run],
];

async function openLine(host: Host, prefix: string, [id, args, command]: (typeof lines)[number]): Promise<Session> {
  const run = `/home/ann/hf --run --id ${prefix}-${id} -- bash -c '${teller.replaceAll("'", "'\\''")}'`;
  const session = openSession(host, command(run), args);
  const { child, said } = session;
  await until(() => said().includes("up"), `${id} is up`, 30_000);
  child.stdin.write("a line\n");
  await until(() => said().includes("got a line"), `${id} has a line: ${said()}`, 30_000);
  return session;
}

async function comeBack(host: Host, id: string): Promise<void> {
  const line = `./hf --logs ${id}; (sleep 1; ./hf --kill ${id} INT) & ./hf --attach ${id} --no-stdin; echo $?; wait`;
  const { stdout, stderr } = await host.ssh("ann", line, { timeoutMs: 60_000 });
  assert.is(stdout, "up\ngot a line\nup\ngot a line\nwas told INT\n9\n", `${id}: ${stderr}`);
}

/** How the line ends that they hang on. Both ends of one that is silent hold it for open. */
const losses: [what: string, lose: (host: Host, sessions: Session[]) => Promise<void>][] = [
  [
    "killed",
    async (_host, sessions) => {
      for (const { child } of sessions) child.kill("SIGKILL");
      await Promise.all(sessions.map(({ closed }) => closed));
    },
  ],
  [
    "interrupted",
    async (_host, sessions) => {
      for (const { child } of sessions) child.kill("SIGINT");
      await Promise.all(sessions.map(({ closed }) => closed));
    },
  ],
  [
    "silent",
    async (host, sessions) => {
      await host.inside(["sysctl", "-q", "-w", "net.ipv4.tcp_orphan_retries=1"]); // what the dead have not sent they never will
      await host.setNetwork(false);
      for (const { child } of sessions) child.kill("SIGKILL");
      await sleep(2500);
      await host.setNetwork(true);
    },
  ],
];

bothHosts("goes on where the line is lost", async (host) => {
  const ids: string[] = [];
  for (const [what, lose] of losses) {
    const held = what === "interrupted" ? lines.slice(0, 1) : lines; // at a terminal it is the process's
    ids.push(...held.map(([id]) => `${what}-${id}`));
    const sessions = await Promise.all(held.map((line) => openLine(host, what, line)));
    await lose(host, sessions);
    if (what === "silent")
      assert.ok(host.processes(/hf --run --id silent-/).length >= held.length, "nobody has told them");
    else await host.sleepUntilLoggedOut("ann");
  }
  await Promise.all(ids.map((id) => comeBack(host, id)));
  const list = await host.ssh("ann", "./hf --list; ./hf --stop --now");
  assert.is(list.stdout.match(/^(killed|interrupted|silent)-\w+ +exit 9 /gm)?.length, ids.length, list.stdout);
});

bothHosts("holds all that was said while the line was silent", async (host) => {
  const ticks = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo tick $i; sleep 0.05; done; exit 3";
  const sessions = ["-T", "-tt"].map((arg) => openSession(host, `./hf --run -- sh -c '${ticks}'`, [arg]));
  await until(() => sessions.every(({ said }) => said().includes("tick 10\n")), "they tick", 30_000);
  await host.setNetwork(false);
  await sleep(2000);
  await host.setNetwork(true);
  const all = Array.from({ length: 60 }, (_, at) => `tick ${at + 1}\n`).join("");
  for (const { closed, said } of sessions) {
    assert.is(await closed, 3, said());
    assert.is(said().replace(/^holdfast: .*\n/m, ""), all); // in a terminal: in whatever order
  }
});

// daily use

/** What is done every day, with a terminal and without; `ssh` is one session, with all that it says in stdout. */
interface Use {
  host: Host;
  /** Different in each use. */
  id: string;
  args: string[];
  ssh(command: string, options?: RunOptions): Promise<Result>;
}
const uses: Record<string, (use: Use) => Promise<void>> = {
  "start and go": async ({ ssh, id }) => {
    const started = await ssh(`./hf --run --detach --id ${id} sh -c 'sleep 1; seq 5; exit 3'`);
    assert.is(started.code, 0);
    assert.match(started.stdout + started.stderr, new RegExp(`^${id}$`, "m"));
    assert.match(started.stdout + started.stderr, /survives logout: yes/);
    const waited = await ssh(`./hf --wait ${id}; echo $?; ./hf --logs ${id} --lines 2; ./hf --list`);
    assert.match(waited.stdout, /^3\n4\n5\n/);
    assert.match(waited.stdout, new RegExp(`^${id} +exit 3 .* sh -c "sleep 1; seq 5; exit 3"$`, "m"));
  },

  "two watchers of one, and one from now on": async ({ host, args, ssh, id }) => {
    const ticks = `i=0; while [ ! -e ${id}.stop ]; do i=$((i+1)); echo tick $i; sleep 0.03; done; exit 2`;
    await ssh(`./hf --run --detach --id ${id} sh -c '${ticks}'`);
    const lastTick = async (): Promise<number> => Number((await ssh(`./hf --logs ${id} --lines 1`)).stdout.slice(5));
    await until(async () => (await lastTick()) > 20, `${id} ticks`);
    const seen = await lastTick();
    const modes = [`--attach ${id}`, `--logs ${id} --follow`, `--logs ${id} --follow --lines 0`];
    const sessions = modes.map((mode) => openSession(host, `./hf ${mode}`, args));
    await until(() => sessions.every(({ said }) => said().split("tick").length > 5), `${id} is watched`);
    await ssh(`touch ${id}.stop`);
    assert.equal(await Promise.all(sessions.map(({ closed }) => closed)), [2, 0, 0]);
    const texts = sessions.map(({ said }) => said());
    const first = texts.map((text) => Number(/tick (\d+)/.exec(text)![1]));
    const last = texts.map((text) => Number(/tick (\d+)\n$/.exec(text)![1]));
    assert.equal([last[1], last[2], texts[1]], [last[0], last[0], ticksOf(1, last[0]!)]);
    for (const [at, text] of texts.entries()) assert.is(text, ticksOf(first[at]!, last[0]!));
    assert.ok(first[2]! > seen, `from now on: ${first[2]}, ${seen} were there`);
  },

  "kill one": async ({ ssh, id }) => {
    const killed = await ssh(
      `./hf --run --detach --id ${id} sleep 100 2>/dev/null; ./hf --kill ${id}; ./hf --wait ${id}`,
    );
    assert.equal([killed.code, killed.stdout], [143, `${id}\n`]);
    assert.match((await ssh("./hf --list")).stdout, new RegExp(`^${id} +SIGTERM +.* sleep 100$`, "m"));
  },

  "one that a signal ends": async ({ ssh, id }) => {
    assert.is((await ssh(`./hf --run --id ${id} sh -c 'kill -9 $$'`)).code, 137);
    assert.match((await ssh("./hf --list")).stdout, new RegExp(`^${id} +SIGKILL `, "m"));
  },

  "a remote make in a script": async ({ ssh, id }) => {
    const made = await ssh(`./hf --run --id ${id} --cwd project -- make -j4`);
    assert.equal(
      [made.code, made.stdout.match(/^gcc -c /gm)?.length, made.stdout.includes("the sum is 78\n")],
      [0, 13, true],
      made.stdout + made.stderr,
    );
    const failed = await ssh(`./hf --run --id ${id} --cwd project -- make -j4 broken; echo $?`);
    assert.match(failed.stdout + failed.stderr, /broken\.h:1:\d+: error: .*nothing/);
    assert.match(failed.stdout, /^2$/m);
    const clean = await ssh(`set -e; ./hf --run --id ${id} --cwd project make -s clean; echo went on`);
    assert.equal([clean.code, clean.stdout.endsWith("went on\n")], [0, true]);
  },
};

const ticksOf = (from: number, to: number): string =>
  Array.from({ length: to - from + 1 }, (_, at) => `tick ${from + at}\n`).join("");

/** A program of thirteen sources; made by `sh`. */
const project = `mkdir project; cd project
for i in $(seq 12); do echo "int f$i(void) { return $i; }" >f$i.c; done
echo 'int main(void) { return nothing; }' >broken.h
{
  echo '#include <stdio.h>'
  for i in $(seq 12); do echo "int f$i(void);"; done
  echo "int main(void) { puts(0$(printf ' + f%d()' $(seq 12)) == 78 ? \\"the sum is 78\\" : \\"wrong\\"); }"
} >main.c
cat >Makefile <<'END'
program: $(patsubst %.c,%.o,$(wildcard *.c))
	gcc -o $@ $^ && ./$@
%.o: %.c
	gcc -c -o $@ $<
broken:
	gcc -x c -c -o $@ broken.h
clean:
	rm -f *.o program
END
`;

/** A network of 1 MB/s. @returns The hash of what came. */
async function readSlowly({ child }: Session): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of child.stdout) {
    hash.update(chunk);
    await sleep(chunk.length / 1000);
  }
  return hash.digest("hex");
}

async function checkSlowReader(host: Host): Promise<void> {
  const count = rounds(12_500_000, 1_400_000); // 100 MB, 10 MB
  const session = openSession(host, `./hf --run --id slow -- seq ${count}`, ["-T"]);
  const all = createHash("sha256");
  for (let from = 1; from <= count; from += 100_000)
    all.update(`${Array.from({ length: Math.min(100_000, count - from + 1) }, (_, at) => from + at).join("\n")}\n`);
  assert.is(await readSlowly(session), all.digest("hex"));
  assert.is(await session.closed, 0);
}

/** Its ssh client takes nothing more, as that of a laptop which sleeps: whoever comes back finds it going on, not standing still. */
async function checkStalled(host: Host): Promise<void> {
  const flood =
    "i=0; while [ ! -e stop ]; do i=$((i+1)); head -c 50000 /dev/zero; echo; echo tick $i; sleep 0.01; done";
  const session = openSession(host, `./hf --run --id stalled -- sh -c '${flood}'`, ["-T"]);
  await until(() => session.said().includes("tick 3\n"), "it ticks", 30_000);
  const client = host.processes(/^\S*node \S*hf --run --id stalled /)[0]!; // what ssh takes before it is full is much
  process.kill(client.pid, "SIGSTOP");
  const lastTick = async (): Promise<string | undefined> =>
    /tick \d+\n$/.exec(
      (await host.ssh("ann", "./hf --logs stalled --lines 3 | grep -a ^tick | tail -n 1")).stdout,
    )?.[0];
  let before: string | undefined;
  const stands = async (): Promise<boolean> => {
    await sleep(300);
    const last = before;
    before = await lastTick();
    return before !== undefined && last === before;
  };
  await until(stands, "it stands still", 60_000); // somewhere in a line

  const back = openSession(host, "./hf --attach stalled --no-stdin | grep -a --line-buffered tick", ["-T"]);
  const isPast = (): boolean => Number(/tick (\d+)\n$/.exec(back.said())?.[1]) > Number(before!.slice(5)) + 5;
  await until(isPast, "it goes on", 60_000);
  await host.ssh("ann", "touch stop");
  await back.closed;
  process.kill(client.pid, "SIGCONT");
  assert.is(await session.closed, 0, "and nothing was lost");
}

async function checkMany(host: Host, count: number): Promise<void> {
  const start = `seq ${count} | xargs -P 4 -I N ./hf --run --detach --id many-N sh -c 'echo N; exit 1' >/dev/null 2>&1`;
  await host.ssh("ann", start, { timeoutMs: 120_000 });
  let list = "";
  const hasEnded = async (): Promise<boolean> => {
    list = (await host.ssh("ann", "./hf --list")).stdout;
    return list.match(/^many-\d+ +exit 1 /gm)?.length === count;
  };
  await until(hasEnded, `all have ended: ${list}`, 30_000);
  const logs = await host.ssh("ann", `for i in 1 ${count}; do ./hf --logs many-$i; done`);
  assert.is(logs.stdout, `1\n${count}\n`);
}

bothHosts("does what is done every day", async (host, isFirst) => {
  await host.ssh("ann", "sh", { stdin: project });
  const slow = isFirst ? checkSlowReader(host) : undefined;
  const stalled = isFirst ? checkStalled(host) : undefined;
  for (const running of [slow, stalled]) running?.catch(() => {}); // told below
  const kinds: [kind: string, args: string[]][] = [
    ["terminal", ["-tt"]],
    ["pipe", ["-T"]],
  ];
  for (const [kind, args] of isFirst || runsAll ? kinds : kinds.slice(0, 1))
    for (const [at, [what, use]] of Object.entries(uses).entries()) {
      const ssh = async (command: string, options?: RunOptions): Promise<Result> => {
        const result = await host.ssh("ann", command, { timeoutMs: 60_000, ...options, sshArgs: args });
        return { ...result, stdout: result.stdout.replaceAll("\r", "") };
      };
      await use({ host, args, ssh, id: `${kind}-${at}` }).catch((error: Error) => {
        throw Object.assign(error, { message: `${what}, ${kind}: ${error.message}` });
      });
    }
  // Ctrl-C at a terminal is the process's
  const { child, said } = openSession(
    host,
    "./hf --run --id c -- bash -c 'trap \"echo INT; exit 4\" INT; echo up; while :; do sleep 0.1; done'; echo code $?",
    ["-tt"],
  );
  await until(() => said().includes("up"), "it is up", 30_000);
  child.stdin.write("\x03");
  await until(() => said().includes("code 4"), `Ctrl-C: ${said()}`, 30_000);
  child.kill();
  if (isFirst || runsAll) await checkMany(host, rounds(100, 8));
  await Promise.all([slow, stalled]);
});

// the bridge in a terminal

/** As it comes out of the host's terminals once a bridge has set one raw. */
async function untilRaw(host: Host): Promise<void> {
  const isRaw = async (name: string): Promise<boolean> =>
    (await host.inside(["stty", "-a", "-F", `/dev/pts/${name}`])).stdout.includes("-icanon");
  await until(async () => {
    const names = (await host.inside(["ls", "/dev/pts"])).stdout.match(/^\d+$/gm) ?? [];
    return (await Promise.all(names.map(isRaw))).includes(true);
  }, "a terminal that is raw");
}

bothHosts("has a bridge that passes bytes over a terminal as they are", async (host) => {
  await host.ssh("ann", "./hf --serve");
  for (const framing of ["lines", "native"] as const) {
    const child = host.spawnSsh("ann", "./hf --bridge --as-owner; echo bridge: $?", ["-tt", "-e", "none"]);
    const peer = peerOf(child.stdout, child.stdin, framing, "the bridge");
    await untilRaw(host);
    const bytes = Buffer.from(Array.from({ length: 60_000 }, (_, at) => (at * 7 + (at >> 8)) & 255));
    const path = `/home/ann/${framing}`;
    const written = await peer.ask("files.write", { path, content: bytes.toString("base64"), encoding: "base64" });
    assert.equal(written.result, { written: bytes.length });
    const read = await peer.ask("files.read", { path, encoding: "base64" });
    assert.is(read.result.content, bytes.toString("base64"));
    if (framing === "native") child.kill();
    else child.stdin.write("\x04"); // typed
    assert.is((await peer.ended).toString(), framing === "native" ? "" : "bridge: 0\r\n");
  }
});
jobs.run();

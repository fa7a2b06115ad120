// time limit: 90 s
/** --bridge of the built file: bytes in, bytes out, and how it ends; what it says when there is no daemon, and when it starts one. */

import { spawn, spawnSync } from "node:child_process";
import { chmodSync, closeSync, existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import {
  asNobody,
  builtFile,
  filesIn,
  frameOf,
  isAlive,
  isRoot,
  lanesOf,
  messagesIn,
  request,
  sideBySide,
  sleep,
  statOf,
  until,
  withDirectory,
} from "./daemon.ts";
import type { Site } from "./daemon.ts";
import * as assert from "uvu/assert";

const lanes = lanesOf(2);
const pong = (id: unknown) => ({ jsonrpc: "2.0", id, result: { pong: true } });
const rssOf = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1024;

const relay = suite("--bridge");
const relays = sideBySide(relay, lanes);

relays("passes native bytes both ways, however they are cut, and drains the answers after stdin's end", () =>
  withDirectory(async (site) => {
    await site.serve();
    const requests = Array.from({ length: 2000 }, (_, id) =>
      request("server.ping", { text: "é😀\n".repeat(id % 50) }, site.token, id),
    );
    const { code, stdout, stderr } = await site.run(["--bridge"], { stdin: Buffer.concat(requests.map(frameOf)) });
    assert.equal([code, stderr], [0, ""]);
    assert.equal(
      Buffer.compare(stdout, Buffer.concat(requests.map(({ id }) => frameOf(pong(id))))),
      0,
      "byte for byte",
    );
    const bridge = site.bridge();
    for (const byte of frameOf(request("server.ping", {}, site.token))) {
      bridge.write(Buffer.from([byte]));
      await sleep(1);
    }
    assert.equal(await bridge.next(), pong(1));
    bridge.child.stdin.end();
    assert.equal([(await bridge.ended).length, (await bridge.exit).code], [0, 0]);
  }),
);

relays("passes a large answer byte for byte", () =>
  withDirectory(async (site) => {
    await site.serve();
    const text = "0123456789é".repeat(400_000);
    writeFileSync(join(site.directory, "large"), text);
    const { code, stdout } = await site.run(["--bridge"], {
      stdin: frameOf(request("files.read", { path: join(site.directory, "large"), maxBytes: 8 << 20 }, site.token)),
    });
    const [{ result }] = messagesIn(stdout);
    assert.equal([code, result.content === text], [0, true]);
  }),
);

/** What a peer that speaks lines writes, and the answers' ids and codes. */
const lines: [what: string, text: (line: string) => string, ids: unknown[]][] = [
  ["a line", (line) => `${line}\n`, [1]],
  ["a line that ends in CRLF", (line) => `${line}\r\n`, [1]],
  ["a last line without a newline", (line) => line, [1]],
  ["blank lines around", (line) => `\n\r\n${line}\n\n\r\n${line}\n\n`, [1, 1]],
  ["a line that is no JSON", (line) => `hello\n${line}\n`, [null, 1]],
  ["spaces around", (line) => `  ${line} \t\n`, [1]],
];
for (const [what, text, ids] of lines) {
  relays(`re-frames ${what}`, () =>
    withDirectory(async (site) => {
      await site.serve();
      const { code, stdout } = await site.run(["--bridge"], {
        stdin: text(JSON.stringify(request("server.ping", {}, site.token))),
      });
      assert.is(code, 0);
      const answers = stdout.toString().split("\n");
      assert.is(answers.pop(), "");
      assert.equal(
        answers.map((line) => JSON.parse(line).id),
        ids,
      );
    }),
  );
}

relays("answers a line over the limit with its size, and goes on", () =>
  withDirectory(async (site) => {
    await site.serve();
    const bridge = site.bridge([], "lines");
    bridge.write("x".repeat(16_777_216) + "\n");
    const { id, error } = await bridge.next(10_000);
    assert.equal([id, error.code], [null, -32600]);
    assert.match(error.message, /its body has 16777216 bytes, at most 16777215 are accepted/);
    assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
    bridge.child.stdin.end();
    assert.is((await bridge.exit).code, 0);
  }),
);

relays("ends at once, with 0 and without a word, where stdin has ended before", () =>
  withDirectory(async (site) => {
    await site.serve();
    const { code, stdout, stderr, ms } = await site.run(["--bridge"]);
    assert.equal([code, stdout.length, stderr], [0, 0, ""]);
    assert.ok(ms < 2000, `it took ${ms} ms`);
    const closed = await site.command([
      "sh",
      "-c",
      `exec '${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}' <&-`,
    ]);
    assert.is(closed.code, 0);
  }),
);

relays("takes stdin and stdout that are files", () =>
  withDirectory(async (site) => {
    await site.serve();
    writeFileSync(join(site.directory, "in"), frameOf(request("server.ping", {}, site.token)));
    const { code } = await site.command([
      "sh",
      "-c",
      `exec '${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}' < '${site.directory}/in' > '${site.directory}/out'`,
    ]);
    assert.is(code, 0);
    assert.equal(messagesIn(readFileSync(join(site.directory, "out"))), [pong(1)]);
  }),
);

relays("holds back a peer that writes 50 MB before it reads, without a deadlock or growing", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    const bridge = spawn(process.execPath, [builtFile, "--bridge", "--socket", site.socket], { env: site.env });
    const frame = frameOf(request("server.ping", { text: "x".repeat(400) }, site.token, 123_456_789));
    const count = Math.ceil(50e6 / frame.length);
    const chunk = Buffer.concat(Array.from({ length: 1000 }, () => frame));
    let written = 0;
    let waiting = false;
    const write = (): void => {
      while (written < count && !waiting) {
        const some = Math.min(1000, count - written);
        written += some;
        if (!bridge.stdin.write(chunk.subarray(0, some * frame.length))) {
          waiting = true;
          bridge.stdin.once("drain", () => {
            waiting = false;
            write();
          });
        }
      }
      if (written === count) bridge.stdin.end();
    };
    write();
    let most = 0;
    const watch = setInterval(() => (most = Math.max(most, isAlive(bridge.pid!) ? rssOf(bridge.pid!) : 0)), 20);
    try {
      await sleep(1500); // it writes, nobody reads
      let received = 0;
      bridge.stdout.on("data", (some: Buffer) => (received += some.length));
      const code = await new Promise((done) => bridge.once("close", done));
      assert.equal([code, received], [0, count * frameOf(pong(123_456_789)).length]);
      assert.ok(most > 20 && most < 150, `the bridge had ${most} MiB`);
      assert.ok(rssOf(pid) < 250, `the daemon has ${rssOf(pid)} MiB`);
    } finally {
      clearInterval(watch);
    }
  }),
);

const ends = suite("--bridge ends");
const ended = sideBySide(ends, lanes);

/** A bridge that relays, and what ends it. */
const causes: [what: string, cause: (bridge: ReturnType<Site["bridge"]>, token: string) => unknown][] = [
  ["stdin's end", (bridge) => bridge.child.stdin.end()],
  [
    "nobody reading what it writes (EPIPE)",
    (bridge, token) => {
      bridge.child.stdout.destroy();
      bridge.send(request("server.ping", {}, token)); // the answer finds no reader
    },
  ],
  ["SIGHUP", (bridge) => bridge.child.kill("SIGHUP")],
  ["SIGTERM", (bridge) => bridge.child.kill("SIGTERM")],
];
for (const [what, cause] of causes) {
  ended(`by ${what}, and leaves the daemon as it was`, () =>
    withDirectory(async (site) => {
      const { pid } = await site.serve();
      const bridge = site.bridge();
      assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
      cause(bridge, site.token);
      await Promise.race([bridge.exit, sleep(3000)]);
      assert.not.ok(isAlive(bridge.child.pid!), "it ends within 3 s");
      await until("its connection is closed", () => /Connection closed: @\n$/.test(site.log()));
      assert.equal(site.processes(), [pid]);
    }),
  );
}

for (const daemon of [true, false]) {
  ended(`when its parent has gone, though its channel stays open${daemon ? "" : ", also without a daemon"}`, () =>
    withDirectory(async (site) => {
      if (daemon) await site.serve();
      const [input, output] = [join(site.directory, "in"), join(site.directory, "out")];
      spawnSync("mkfifo", [input, output]);
      const descriptors = [openSync(input, "r+"), openSync(output, "r+")]; // so that neither pipe ever ends
      try {
        const script = `'${process.execPath}' '${builtFile}' --bridge --socket '${site.socket}' <'${input}' >'${output}' 2>'${site.directory}/err' & echo $!; exec sleep 100`;
        const shell = spawn("sh", ["-c", script], { env: site.env, stdio: ["ignore", "pipe", "ignore"] });
        const bridge = Number(await new Promise((done) => shell.stdout.once("data", done)));
        await until("it relays, or knows that there is nothing to relay to", () =>
          daemon
            ? site.log().includes("New connection from: @") && statOf(bridge)?.[0] === "S"
            : existsSync(`${site.directory}/err`) && readFileSync(`${site.directory}/err`, "utf8").includes("hint"),
        );
        await sleep(200);
        shell.kill("SIGKILL");
        await until("the bridge has ended", () => !isAlive(bridge), 6000);
      } finally {
        descriptors.forEach(closeSync);
      }
    }),
  );
}

for (const framing of ["native", "lines"] as const) {
  ended(`when the daemon is killed: with one message of why, in ${framing} framing, then 69`, () =>
    withDirectory(async (site) => {
      const { pid } = await site.serve();
      const bridge = site.bridge([], framing);
      assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
      process.kill(pid, "SIGKILL");
      const lost = await bridge.next();
      assert.equal([lost.type, lost.event, lost.reason], ["bridge", "lost", "crashed"]);
      assert.match(lost.message, /^Cannot reach a daemon: the daemon \(pid \d+, started at .*\) is gone/);
      assert.ok(lost.hint);
      const { code, stderr } = await bridge.exit;
      assert.equal([code, (await bridge.ended).length], [69, 0], "one message, and no more");
      assert.match(stderr, /^holdfast: error: Cannot reach a daemon: .*\nholdfast: hint: /);
    }),
  );
}

ended("when the daemon is stopped: with a message that says so", () =>
  withDirectory(async (site) => {
    await site.serve();
    const bridge = site.bridge();
    assert.equal(await bridge.ask("server.ping", {}, site.token), pong(1));
    assert.is((await site.run(["--stop"])).code, 0);
    const lost = await bridge.next();
    assert.equal([lost.event, lost.reason, (await bridge.exit).code], ["lost", "stopped", 69]);
  }),
);

const absent = suite("--bridge without a daemon");
const alone = sideBySide(absent, lanes);

/** How the daemon went, and the reason given for it. */
const reasons: [what: string, prepare: (site: Site) => unknown, reason: string, words: RegExp, code?: number][] = [
  ["was never started", () => {}, "never-started", /no daemon has been started at/],
  [
    "was stopped",
    async (site) => (await site.serve(), await site.run(["--stop"])),
    "stopped",
    /was stopped on purpose at /,
  ],
  ["was ended by a person", (site) => signalled(site, ["SIGTERM"]), "stopped", /was ended at .* by SIGTERM/],
  ["was killed", (site) => signalled(site, ["SIGKILL"]), "crashed", /is gone without a word/],
  [
    "was killed at logout",
    (site) => signalled(site, ["SIGTERM", "SIGCONT", "SIGHUP"]),
    "killed-at-logout",
    /was ended by systemd-logind/,
  ],
  [
    "went with the user manager",
    (site) => signalled(site, ["SIGTERM", "SIGCONT"]),
    "user-manager-stopped",
    /user manager/,
  ],
  [
    "went with the host",
    async (site) => (await signalled(site, ["SIGKILL"]), change(site, { bootId: "an earlier one" })),
    "rebooted",
    /has been booted again since/,
  ],
  [
    "is on another host",
    async (site) => (await signalled(site, ["SIGKILL"]), change(site, { host: "elsewhere" })),
    "other-host",
    /was started on host "elsewhere"/,
  ],
];

async function signalled(site: Site, signals: NodeJS.Signals[]): Promise<void> {
  const { pid } = await site.serve();
  for (const signal of signals) process.kill(pid, signal);
  await until("it has ended", () => !isAlive(pid));
}

function change(site: Site, changes: object): void {
  writeFileSync(`${site.socket}.record`, JSON.stringify({ ...site.record(), ...changes }), { mode: 0o600 });
}

for (const [what, prepare, reason, words] of reasons) {
  alone(`answers -32010 "${reason}" where the daemon ${what}, then ends with 69`, () =>
    withDirectory(async (site) => {
      await prepare(site);
      const before = filesIn(site.directory);
      const bridge = site.bridge(["--no-start"]);
      const { id, error } = await bridge.ask("server.capabilities", {}, site.token, "a string");
      assert.equal([id, error.code, error.data.reason], ["a string", -32010, reason]);
      assert.match(error.message, words);
      assert.ok(error.data.hint.length > 5);
      const { code, stderr } = await bridge.exit;
      assert.equal([code, stderr], [69, `holdfast: error: ${error.message}\nholdfast: hint: ${error.data.hint}\n`]);
      assert.equal([filesIn(site.directory), site.processes()], [before, []]);
    }),
  );
}

alone("says that it may not use the socket of another", () =>
  withDirectory(async (site) => {
    if (!isRoot) return;
    await site.serve();
    chmodSync(site.directory, 0o755);
    const { stdout, stderr } = await site.command(
      [...asNobody, process.execPath, builtFile, "--bridge", "--socket", site.socket],
      { stdin: frameOf(request("server.ping")), env: { XDG_STATE_HOME: "/nonexistent" } },
    );
    const [{ error }] = messagesIn(stdout);
    assert.equal([error.code, error.data.reason], [-32010, "permission"]);
    assert.match(stderr, /permission denied \(EACCES\)/);
  }),
);

/** What a client writes, and what it reads, as ids; an array is a batch's answer. */
const shapes: [what: string, stdin: string | Buffer, ids: unknown[]][] = [
  ["a native request", frameOf(request("server.ping")), [1]],
  [
    "two native requests at once",
    Buffer.concat([frameOf(request("server.ping", {}, "t", 7)), frameOf(request("server.ping", {}, "t", "b"))]),
    [7, "b"],
  ],
  ["a line", `${JSON.stringify(request("server.ping"))}\n`, [1]],
  ["a line without its newline", JSON.stringify(request("server.ping")), [1]],
  ["a line with an id of null", `${JSON.stringify(request("server.ping", {}, "t", null))}\n`, [null]],
  ["a notification and a request", '{"jsonrpc":"2.0","method":"a.b"}\n{"jsonrpc":"2.0","method":"a.b","id":2}\n', [2]],
  ["a notification alone", '{"jsonrpc":"2.0","method":"a.b"}\n', []],
  ["what is no JSON", "hello\n", [null]],
  [
    "a batch",
    `${JSON.stringify([request("a.b", {}, "t", 1), request("a.b", {}, "t", "x"), { jsonrpc: "2.0", method: "a.b" }])}\n`,
    [[1, "x"]],
  ],
  ["a native batch", frameOf([request("a.b")]), [[1]]],
  ["nothing", "", []],
];
for (const [what, stdin, ids] of shapes) {
  alone(`answers ${what} in its own shape and framing, fast`, () =>
    withDirectory(async (site) => {
      const { code, stdout, stderr, ms } = await site.run(["--bridge"], { stdin });
      const answers = Buffer.isBuffer(stdin)
        ? messagesIn(stdout)
        : stdout
            .toString()
            .split("\n")
            .filter(Boolean)
            .map((line) => JSON.parse(line));
      assert.equal(
        answers.map((answer) => (Array.isArray(answer) ? answer.map(({ id }) => id) : answer.id)),
        ids,
      );
      for (const { error } of answers.flat()) assert.is(error.code, -32010);
      assert.is(code, 69);
      assert.match(
        stderr,
        /^holdfast: error: Cannot reach a daemon: no daemon has been started at .*\nholdfast: hint: .*--serve --socket '.*'\n$/,
      );
      assert.ok(ms < 3000, `it took ${ms} ms`);
      assert.equal(filesIn(site.directory), ["given.token"]);
    }),
  );
}

const healing = suite("--bridge heals");
const heals = sideBySide(healing, lanes);

for (const [what, signals] of [
  ["kill -9", ["SIGKILL"]],
  ["a logout", ["SIGTERM", "SIGCONT", "SIGHUP"]],
  ["the user manager's end", ["SIGTERM", "SIGCONT"]],
] as [string, NodeJS.Signals[]][]) {
  heals(`after ${what}: the next one starts a daemon that knows the old token`, () =>
    withDirectory(async (site) => {
      const first = await site.serve();
      await signalled(site, signals);
      const bridge = site.bridge();
      const { result } = await bridge.ask("server.capabilities", {}, site.token);
      assert.is.not(result.instanceId, first.instance);
      assert.is((await bridge.ask("server.ping", {}, "another token")).error.code, -32001);
      bridge.child.stdin.end();
      const { code, stderr } = await bridge.exit;
      assert.is(code, 0);
      assert.match(stderr, /^holdfast: .*: started it again \(pid \d+, .*\)\n$/);
      const { pid } = site.record();
      assert.equal(site.processes(), [pid], "it stays when the bridge has ended");
      assert.is(statOf(pid)![3], String(pid), "in a session of its own");
      const second = await site.run(["--bridge"], { stdin: frameOf(request("server.capabilities", {}, site.token)) });
      assert.equal([messagesIn(second.stdout)[0].result.instanceId, second.stderr], [result.instanceId, ""]);
      assert.is(
        filesIn(site.directory).filter((name) => name.startsWith(".")).length,
        1,
        "the dead one's name is cleared away",
      );
    }),
  );
}

heals("with twenty at once: one daemon, and twenty answers", () =>
  withDirectory(async (site) => {
    const first = await site.serve();
    process.kill(first.pid, "SIGKILL");
    const outcomes = await Promise.all(
      Array.from({ length: 20 }, () =>
        site.run(["--bridge"], { stdin: frameOf(request("server.capabilities", {}, site.token)), timeoutMs: 30_000 }),
      ),
    );
    const instances = outcomes.map(
      ({ stdout, stderr }) => messagesIn(stdout)[0]?.result?.instanceId ?? `${stdout} ${stderr}`,
    );
    assert.equal([...new Set(instances)], [site.record().instance]);
    assert.equal(
      outcomes.map(({ code }) => code),
      outcomes.map(() => 0),
    );
    assert.equal(site.processes(), [site.record().pid]);
    assert.is(outcomes.filter(({ stderr }) => stderr.includes("started it again")).length, 1);
  }),
);

heals("not a daemon that was stopped, ended by a person, or never there", () =>
  withDirectory(async (site) => {
    const absence = async (reason: string): Promise<void> => {
      const { code, stdout } = await site.run(["--bridge"], { stdin: frameOf(request("server.ping", {}, site.token)) });
      assert.equal([code, messagesIn(stdout)[0].error.data.reason, site.processes()], [69, reason, []]);
    };
    await absence("never-started");
    await site.serve();
    assert.is((await site.run(["--stop"])).code, 0);
    await absence("stopped");
    await signalled(site, ["SIGTERM"]);
    await absence("stopped");
  }),
);

heals("not one that is stopped by SIGSTOP: it is neither killed nor replaced, and answers when it goes on", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await site.serve();
    process.kill(pid, "SIGSTOP");
    const bridges = [site.bridge(), site.bridge(), site.bridge()];
    for (const bridge of bridges) bridge.send(request("server.capabilities", {}, site.token));
    await sleep(1000);
    assert.is(statOf(pid)?.[0], "T");
    assert.is(site.record().instance, instance);
    process.kill(pid, "SIGCONT");
    for (const bridge of bridges) {
      assert.is((await bridge.next()).result.instanceId, instance);
      bridge.child.stdin.end();
      assert.is((await bridge.exit).code, 0);
    }
  }),
);

heals("in words where it cannot: the daemon's own reason, and the old one's", () =>
  withDirectory(async (site) => {
    const { pid } = await site.serve();
    process.kill(pid, "SIGKILL");
    await until("it is gone", () => !isAlive(pid));
    writeFileSync(`${site.socket}.claim`, "garbage", { mode: 0o600 });
    const bridge = site.bridge();
    bridge.send(request("server.ping", {}, site.token));
    const { error } = await bridge.next(20_000);
    assert.equal([error.code, error.data.reason], [-32010, "crashed"]);
    assert.match(
      error.message,
      /is gone without a word.*; and none could be started: .*a file that is no claim of ours/,
    );
    assert.is((await bridge.exit).code, 69);
  }),
);

for (const test of [relay, ends, absent, healing]) test.run();

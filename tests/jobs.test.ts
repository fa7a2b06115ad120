// time limit: 300 s; long
/** --run and what comes back to it, of the built file: exit codes, streams, signals, lost lines, and a daemon that dies under them. */

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { lastLines } from "../terminal.ts";
import type { Outcome, Site } from "./daemon.ts";
import {
  builtFile,
  busyMs,
  filesIn,
  lanesOf,
  outcomeOf,
  sideBySide,
  sleep,
  statOf,
  until,
  withDirectory,
} from "./daemon.ts";

const lanes = lanesOf(2);

/** Words of a shell that runs the built file at a site: `hf --run ls`. */
const shell = (site: Site, line: string, stdin = "", timeoutMs = busyMs(30_000)): Promise<Outcome> =>
  outcomeOf(spawn("bash", ["-c", shellLine(site, line)], { env: site.env, cwd: site.directory }), stdin, timeoutMs);
const shellLine = (site: Site, line: string): string =>
  `hf() { local m=$1; shift; '${process.execPath}' '${builtFile}' "$m" --socket '${site.socket}' "$@"; }; ${line}`;
const textOf = ({ code, stdout, stderr }: Outcome): [number | null, string, string] => [
  code,
  stdout.toString(),
  stderr,
];

const running = suite("--run");
const runs = sideBySide(running, lanes);

/** A line of a shell, its stdin, and what comes of it. */
const lines: [what: string, line: string, stdin: string, code: number, stdout: string, stderr: RegExp][] = [
  [
    "starts a daemon, keeps the streams apart, and exits as the process does",
    "hf --run sh -c 'echo out; echo err >&2; exit 7'",
    "",
    7,
    "out\n",
    /^err\n$/,
  ],
  ["exits with 128 and the signal's number", "hf --run sh -c 'kill -TERM $$'", "", 143, "", /^$/],
  ["passes stdin on, and its end", "hf --run cat", "hello\n", 0, "hello\n", /^$/],
  ["passes an end of stdin on at once", "hf --run cat </dev/null", "", 0, "", /^$/],
  [
    "has only the command's words after the first that is none of ours",
    "hf --run echo --id -n --detach --",
    "",
    0,
    "--id -n --detach --\n",
    /^$/,
  ],
  ["takes -- for the end of its options", "hf --run -- printf %s\\\\n --help", "", 0, "--help\n", /^$/],
  ["has the caller's directory and umask", "umask 027; hf --run sh -c 'pwd; umask'", "", 0, "DIRECTORY\n0027\n", /^$/],
  ["has another directory, from here", "mkdir sub; hf --run --cwd sub pwd", "", 0, "DIRECTORY/sub\n", /^$/],
  [
    "has the caller's environment, with --env over it",
    "A=1 B=2 hf --run --env B=3=4 --env A sh -c 'echo \"$A $B\"'",
    "",
    0,
    "1 3=4\n",
    /^$/,
  ],
  [
    "leaves the session's variables and tokens out",
    "CLAUDE_RPC_TOKEN=t SSH_CONNECTION=c HOLDFAST_X=x hf --run sh -c 'echo \"$CLAUDE_RPC_TOKEN$SSH_CONNECTION$HOLDFAST_X\"'",
    "",
    0,
    "\n",
    /^$/,
  ],
  [
    "exits with 127 for no such command",
    "hf --run no-such-command",
    "",
    127,
    "",
    /^holdfast: error: Cannot start "no-such-command": no such command in PATH/,
  ],
  ["exits with 127 for no such file", "hf --run ./no/such", "", 127, "", /no such file \(ENOENT\)/],
  ["exits with 126 for what is no program", "echo > f; hf --run ./f", "", 126, "", /permission denied \(EACCES\)/],
  [
    "exits with 125 for a failure of its own, and says which",
    "hf --run --cwd /no/such ls",
    "",
    125,
    "",
    /\/no\/such.*\(exit code 1 of the table\)\n$/,
  ],
  ["exits with 64 for a wrong command line", "hf --run --env =x ls", "", 64, "", /it must be NAME=VALUE/],
  [
    "refuses an id that is alive",
    "hf --run --id a --detach sleep 100 2>/dev/null; hf --run --id a ls",
    "",
    125,
    "a\n",
    /a process with this id is alive/,
  ],
  [
    "replaces one that has ended, and says so",
    "hf --run --id a true; hf --run --id a echo again",
    "",
    0,
    "again\n",
    /^holdfast: the process "a" that had ended is replaced, with its output\n$/,
  ],
  [
    "gives ids by the command",
    "for i in 1 2 3; do hf --run --detach /bin/true; done 2>/dev/null",
    "",
    0,
    "true\ntrue-2\ntrue-3\n",
    /^$/,
  ],
  [
    "starts it with no stdin, and goes, with --detach",
    "hf --run --detach --id d cat; hf --wait d",
    "",
    0,
    "d\n",
    /^holdfast: "d" \(pid \d+\) runs; survives logout: /,
  ],
];
for (const [what, line, stdin, code, stdout, stderr] of lines) {
  runs(what, () =>
    withDirectory(async (site) => {
      const outcome = await shell(site, line, stdin);
      const words = stdout.replaceAll("DIRECTORY", site.directory);
      assert.equal([outcome.code, outcome.stdout.toString()], [code, words], outcome.stderr);
      assert.match(outcome.stderr, stderr);
    }),
  );
}

runs("gives a slow reader all of it: the process waits", () =>
  withDirectory(async (site) => {
    const outcome = await shell(site, "hf --run seq 1 3000000 | (sleep 3; sha256sum; exit $PIPESTATUS)", "", 60_000);
    const all = createHash("sha256");
    for (let i = 1; i <= 3_000_000; i += 100_000)
      all.update(`${Array.from({ length: 100_000 }, (_, at) => i + at).join("\n")}\n`);
    assert.is(outcome.stdout.toString().split(" ")[0], all.digest("hex"));
    assert.is(outcome.stderr, "");
  }),
);

runs("passes 20 MB of stdin on, byte for byte", () =>
  withDirectory(async (site) => {
    const text = "0123456789abcde\n".repeat(1_300_000);
    const { code, stdout } = await shell(site, "hf --run sha256sum", text, 60_000);
    assert.equal([code, stdout.toString().split(" ")[0]], [0, createHash("sha256").update(text).digest("hex")]);
  }),
);

runs("leaves it alone where its reader goes", () =>
  withDirectory(async (site) => {
    const outcome = await shell(
      site,
      "hf --run --id y yes | head -1; sleep 0.3; hf --list; hf --kill y KILL; hf --wait y; echo $?",
    );
    const [first, ...more] = outcome.stdout.toString().split("\n");
    assert.is(first, "y");
    assert.match(more.join("\n"), /\ny +running /);
    assert.match(more.join("\n"), /\n137\n$/);
  }),
);

/** Starts --run of a process that tells which signal it got. */
async function started(site: Site): Promise<ReturnType<typeof spawn>> {
  const script =
    'for s in INT TERM QUIT HUP; do trap "echo $s; exit 9" $s; done; echo up; while :; do sleep 0.05; done';
  const child = spawn(
    process.execPath,
    [builtFile, "--run", "--id", "p", "--socket", site.socket, "bash", "-c", script],
    {
      env: site.env,
      stdio: ["pipe", "pipe", "pipe"],
    },
  );
  await new Promise((done) => child.stdout!.once("data", done));
  return child;
}

for (const signal of ["SIGINT", "SIGTERM", "SIGQUIT"] as const) {
  runs(`passes ${signal} on, and exits as the process does`, () =>
    withDirectory(async (site) => {
      const child = await started(site);
      let said = "";
      child.stdout!.on("data", (chunk: Buffer) => (said += chunk));
      child.kill(signal);
      assert.is(await new Promise((done) => child.once("close", done)), 9);
      assert.is(said, `${signal.slice(3)}\n`);
    }),
  );
}

/** What a lost line looks like to us. */
const losses: [what: string, lose: (child: ReturnType<typeof spawn>) => unknown][] = [
  ["SIGHUP", (child) => child.kill("SIGHUP")],
  [
    "stdin's end, and 5 ms later TERM, CONT and HUP",
    async (child) => {
      child.stdin!.end();
      await sleep(5);
      for (const signal of ["SIGTERM", "SIGCONT", "SIGHUP"] as const) child.kill(signal);
    },
  ],
  [
    "TERM and HUP in the other order",
    (child) => {
      for (const signal of ["SIGHUP", "SIGTERM"] as const) child.kill(signal);
    },
  ],
  ["SIGKILL", (child) => child.kill("SIGKILL")],
];
for (const [what, lose] of losses) {
  runs(`takes ${what} for a lost line: nothing is passed on, and --attach comes back`, () =>
    withDirectory(async (site) => {
      const child = await started(site);
      const closed = new Promise((done) => child.once("close", done));
      await lose(child);
      await closed;
      await sleep(500);
      const { code, stdout } = await shell(
        site,
        "(sleep 1; hf --kill p TERM) & hf --attach p </dev/null; c=$?; wait; exit $c",
      );
      assert.equal([code, stdout.toString()], [9, "up\nTERM\n"]);
    }),
  );
}

runs("takes an ancestor's end for a lost line, though its stdin stays open", () =>
  withDirectory(async (site) => {
    const script = `'${process.execPath}' '${builtFile}' --run --id p --socket '${site.socket}' cat`;
    const outer = spawn("sh", ["-c", `sh -c "$1; :" & echo $!; wait`, "sh", `${script}`], {
      env: site.env,
      stdio: ["pipe", "pipe", "ignore"],
    });
    await until(
      "it runs",
      () => existsSync(join(site.directory, "remote-server.log")) && site.log().includes('Started "p"'),
      15_000,
    );
    outer.kill("SIGKILL");
    await sleep(500);
    const { stdout } = await shell(site, "hf --list");
    assert.match(stdout.toString(), /\np +running/);
    outer.stdin!.destroy();
    await shell(site, "hf --kill p KILL");
  }),
);

runs("goes on over a daemon that dies under it: output by seq, stdin by offset", () =>
  withDirectory(async (site) => {
    await site.serve();
    const held = (await shell(site, "hf --run true; hf --call server.capabilities")).stdout.includes('"held"');
    if (!held) return;
    const second = spawn("bash", ["-c", shellLine(site, "hf --run --id q cat")], { env: site.env });
    let text = "";
    let words = "";
    second.stdout.on("data", (chunk: Buffer) => (text += chunk));
    second.stderr.on("data", (chunk: Buffer) => (words += chunk));
    const closed = new Promise((done) => second.once("close", done));
    second.stdin.write("line 1\nline 2\n");
    await until("its second line", () => text.includes("line 2"));
    process.kill(site.record().pid, "SIGKILL");
    for (const line of [3, 4, 5, 6]) {
      second.stdin.write(`line ${line}\n`);
      await sleep(500);
    }
    second.stdin.end();
    assert.is(await closed, 0, words);
    assert.is(text, "line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n");
    assert.match(words, /started it again/);
  }),
);

runs("goes on over a --replace under it", () =>
  withDirectory(async (site) => {
    await site.serve();
    const line = "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done | hf --run --id q cat";
    const child = spawn("bash", ["-c", shellLine(site, line)], { env: site.env });
    let text = "";
    let words = "";
    child.stdout.on("data", (chunk: Buffer) => (text += chunk));
    child.stderr.on("data", (chunk: Buffer) => (words += chunk));
    const closed = new Promise((done) => child.once("close", done));
    await until("its first line", () => text.includes("line 2"), 10_000);
    const held = (await shell(site, "hf --call server.capabilities")).stdout.includes('"held"');
    if (held) await site.serve(["--replace"]);
    assert.is(await closed, 0, words);
    assert.is(text, "line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n");
  }),
);

for (const [what, before] of [
  ["was handed over", ""],
  ["was taken up from a daemon that was killed, and then handed over", "killed"],
])
  runs(`is no reason against --replace --if-idle where it ${what}`, () =>
    withDirectory(async (site) => {
      await site.serve();
      if (!(await shell(site, "hf --call server.capabilities")).stdout.includes('"held"')) return;
      await shell(site, "hf --run --detach --id L sleep 400 2>/dev/null");
      if (before) {
        process.kill(site.record().pid, "SIGKILL");
        await shell(site, "hf --list"); // which starts it again, or finds it started
      }
      for (const more of [[], ["--if-idle"], ["--if-idle"]]) {
        const { code, stderr } = await shell(site, `hf --serve --replace ${more.join(" ")}`);
        assert.is(code, 0, stderr);
        assert.not.match(stderr, /cannot go on without it/);
      }
      assert.match((await shell(site, "hf --list")).stdout.toString(), /\nL +running /);
    }),
  );

runs("says in words that it was stopped with the daemon", () =>
  withDirectory(async (site) => {
    const child = await started(site);
    let words = "";
    child.stderr!.on("data", (chunk: Buffer) => (words += chunk));
    const closed = new Promise((done) => child.once("close", done));
    await site.run(["--stop", "--now"]);
    const code = await closed;
    assert.ok(code === 125 || code === 9, `${code}: ${words}`);
    if (code === 125) assert.match(words, /was told to stop|stopped/, words);
  }),
);

const back = suite("--attach, --logs, --wait, --list, --kill, --forget");
const backs = sideBySide(back, lanes);

/** Prints 30 lines, then what it is told, and exits with 5. */
const talker =
  "hf --run --detach --id t sh -c 'for i in $(seq 30); do echo $i; done; while [ ! -e go ]; do sleep 0.05; done; echo end; exit 5' 2>/dev/null; while [ \"$(hf --logs t --lines 1)\" != 30 ]; do sleep 0.1; done";
const numbers = (from: number, to: number): string =>
  Array.from({ length: to - from + 1 }, (_, at) => `${from + at}\n`).join("");

backs("come back to one: the last lines, or all, as long as there is more, and its exit code", () =>
  withDirectory(async (site) => {
    await shell(site, talker);
    const logs = (more: string) => shell(site, `hf --logs t ${more}`).then(textOf);
    assert.equal(await logs(""), [0, numbers(1, 30), ""]);
    assert.equal(await logs("--lines 3"), [0, numbers(28, 30), ""]);
    assert.equal(await logs("--lines 0"), [0, "", ""]);
    const kept = (name: string, line: string) => shell(site, `set -o pipefail; ${line} | tee ${name}`).then(textOf);
    const hasRead = (name: string): boolean => {
      const path = join(site.directory, name);
      return existsSync(path) && readFileSync(path, "utf8").endsWith("30\n");
    };
    const all = Promise.all([
      kept("a", "hf --attach t </dev/null"),
      kept("b", "hf --attach t --no-stdin"),
      kept("c", "hf --logs t --follow"),
      kept("d", "hf --logs t --follow --lines 1"),
      shell(site, "hf --wait t").then(textOf),
    ]);
    await until("all read", () => ["a", "b", "c", "d"].every(hasRead));
    writeFileSync(join(site.directory, "go"), "");
    assert.equal(await all, [
      [5, `${numbers(11, 30)}end\n`, ""],
      [5, `${numbers(11, 30)}end\n`, ""],
      [0, `${numbers(1, 30)}end\n`, ""],
      [0, "30\nend\n", ""],
      [5, "", ""],
    ]);
    assert.equal(await logs("--lines 1"), [0, "end\n", ""]);
    assert.equal((await shell(site, "hf --wait t")).code, 5);
    assert.equal((await shell(site, "hf --attach t")).code, 5);
  }),
);

backs("pass stdin on from --attach, beside the one that started it", () =>
  withDirectory(async (site) => {
    const first = spawn("bash", ["-c", shellLine(site, "hf --run --id c cat")], { env: site.env });
    let said = "";
    first.stdout.on("data", (chunk: Buffer) => (said += chunk));
    const ended = new Promise((done) => first.once("close", done));
    await until(
      "it runs",
      () => existsSync(join(site.directory, "remote-server.log")) && site.log().includes('Started "c"'),
      15_000,
    );
    const second = spawn("bash", ["-c", shellLine(site, "hf --attach c")], { env: site.env });
    let heard = "";
    second.stdout.on("data", (chunk: Buffer) => (heard += chunk));
    let all = "";
    for (const [name, child] of [
      ["second", second],
      ["first", first],
      ["second", second],
      ["first", first],
    ] as const) {
      child.stdin.write(`from the ${name}\n`);
      all += `from the ${name}\n`;
      await until(`both have heard the ${name}: ${said}`, () => said === all && heard === all, 15_000);
    }
    second.stdin.end();
    assert.is(await ended, 0);
  }),
);

backs("list what runs and what has ended, with control characters shown", () =>
  withDirectory(async (site) => {
    const outcome = await shell(
      site,
      "hf --run --detach --id long-name sleep 100; hf --run --id e sh -c 'exit 3'; hf --run --id k sh -c 'kill -9 $$'; hf --run --id c true $'\\e[31m'; hf --list; hf --list --json",
    );
    const rows = outcome.stdout.toString().split("\n");
    assert.match(rows[1]!, /^ID +STATE +PID +AGE +SIZE +COMMAND$/);
    assert.match(rows[2]!, /^long-name +running +\d+ +\d+ s +0 B +sleep 100$/);
    assert.match(rows[3]!, /^e +exit 3 +.* sh -c "exit 3"$/);
    assert.match(rows[4]!, /^k +SIGKILL +/);
    assert.match(rows[5]!, /^c +exit 0 .* true "\\u001b\[31m"$/);
    assert.is(JSON.parse(rows[6]!).processes.length, 4);
  }),
);

backs("say of one whose end nobody saw that nobody knows how it ended, and exit with 125", () =>
  withDirectory(async (site) => {
    await site.serve([], { env: { HOLDFAST_WATCHDOG: "off" } });
    if (!(await shell(site, "hf --call server.capabilities")).stdout.includes('"held"')) return;
    const run = "hf --run --detach --id kk sh -c 'echo said; exec sleep 400' >&2";
    const { pid } = JSON.parse((await shell(site, `${run}; hf --list --json`)).stdout.toString()).processes[0];
    await until("it has spoken", async () => (await shell(site, "hf --logs kk")).stdout.length > 0);
    process.kill(site.record().pid, "SIGKILL");
    const held = `${site.socket}.held`;
    const about = filesIn(held)
      .map((name) => join(held, name, "about"))
      .find(existsSync)!;
    writeFileSync(about, readFileSync(about, "utf8").replaceAll(/"bootId":"[^"]*"/g, '"bootId":"another"'));
    for (const left of [Number(statOf(pid)![1]), -pid]) process.kill(left, "SIGKILL");
    const words = 'holdfast: "kk" ended, nobody knows how: the host was booted again\n';
    for (const [line, code, stdout] of [
      ["hf --wait kk", 125, ""],
      ["hf --attach kk </dev/null", 125, "said\n"],
      ["hf --logs kk", 0, "said\n"],
      [`hf --call process.reattach '{"id":"kk"}'`, 125, "said\n"],
    ] as const) {
      const outcome = await shell(site, line);
      assert.equal([outcome.code, outcome.stdout.toString()], [code, stdout], line);
      assert.ok(outcome.stderr.endsWith(words), outcome.stderr);
    }
    assert.match((await shell(site, "hf --list")).stdout.toString(), /\nkk +unknown +/);
  }),
);

backs("name the nearest where there is no such id, with 1", () =>
  withDirectory(async (site) => {
    await shell(site, "hf --run --id server true");
    for (const mode of ["--attach", "--logs", "--wait", "--kill", "--forget"]) {
      const { code, stderr } = await shell(site, `hf ${mode} sevrer </dev/null`);
      assert.is(code, 1, mode);
      assert.is(
        stderr,
        'holdfast: error: Cannot find process "sevrer": there is none with this id\nholdfast: hint: did you mean "server"? See --list\n',
        mode,
      );
    }
    assert.equal(textOf(await shell(site, "hf --forget server; hf --list")), [
      0,
      "ID  STATE  PID  AGE  SIZE  COMMAND\n",
      "",
    ]);
    assert.match((await shell(site, "hf --call process.lst")).stderr, /hint: did you mean process\.list\?/);
  }),
);

backs("start nothing where none ever ran, or it was stopped", () =>
  withDirectory(async (site) => {
    const empty = "ID  STATE  PID  AGE  SIZE  COMMAND\n";
    assert.equal(textOf(await shell(site, "hf --list")), [0, empty, ""]);
    assert.equal((await shell(site, "hf --attach a </dev/null")).code, 125);
    assert.equal((await shell(site, "hf --logs a")).code, 69);
    await site.serve();
    await site.run(["--stop", "--now"]);
    assert.equal(textOf(await shell(site, "hf --list")), [0, empty, ""]);
    assert.equal(site.processes(), []);
    assert.equal(textOf(await shell(site, "hf --run echo there")).slice(0, 2), [0, "there\n"], "--run does");
  }),
);

backs("send the signal that is named, by any of its names", () =>
  withDirectory(async (site) => {
    for (const [name, code] of [
      ["", 143],
      ["KILL", 137],
      ["SIGINT", 130],
      ["9", 137],
      ["-9", 137],
      ["-INT", 130],
      ["hup", 129],
    ] as const) {
      const outcome = await shell(
        site,
        `hf --run --detach --id k sleep 100 2>/dev/null; hf --kill k ${name}; hf --wait k`,
      );
      assert.is(outcome.code, code, `${name}: ${outcome.stderr}`);
    }
    assert.match((await shell(site, "hf --kill k NOPE")).stderr, /"signal"/);
  }),
);

backs("lend the processes the SSH agent of the newest connection that is left", () =>
  withDirectory(async (site) => {
    const servers = ["one", "two"].map((name) =>
      createServer().listen(join(tmpdir(), `${basename(site.directory)}-${name}`)),
    );
    const lent = servers.map((server) => String(server.address()));
    const with_ = (at: number) => `SSH_AUTH_SOCK='${lent[at]}'`;
    try {
      const looks = (line: string) => shell(site, line).then(({ stdout }) => stdout.toString());
      assert.is(
        await looks(`${with_(0)} hf --run sh -c 'echo $SSH_AUTH_SOCK; readlink $SSH_AUTH_SOCK'`),
        `${site.socket}.agent\n${lent[0]}\n`,
      );
      const leads = (to: number) => () => existsSync(site.socket) && readlinkSync(`${site.socket}.agent`) === lent[to];
      const first = spawn("bash", ["-c", shellLine(site, `${with_(0)} hf --run --id c cat`)], { env: site.env });
      await until(
        "the first lends its own",
        () => existsSync(`${site.socket}.record`) && site.log().includes('Started "c"') && leads(0)(),
        15_000,
      );
      const second = spawn("bash", ["-c", shellLine(site, `${with_(1)} hf --bridge`)], { env: site.env });
      await until("the second lends its own", leads(1), 15_000);
      second.stdin.end();
      await until("the first's is back", leads(0), 15_000);
      first.stdin.end();
      await until(
        "nothing is left of them",
        () => filesIn(site.directory).every((name) => !/\.agent\./.test(name)),
        15_000,
      );
      // never to itself
      await looks(`SSH_AUTH_SOCK='${site.socket}.agent' hf --run true; SSH_AUTH_SOCK='${site.socket}' hf --run true`);
      assert.is(readlinkSync(`${site.socket}.agent`), lent[0]);
      assert.is(await looks("hf --run --env SSH_AUTH_SOCK=/mine sh -c 'echo $SSH_AUTH_SOCK'"), "/mine\n");
      await looks("hf --stop --now");
      assert.is(
        await looks(`hf --serve --no-agent >/dev/null 2>&1; ${with_(1)} hf --run sh -c 'echo $SSH_AUTH_SOCK'`),
        `${lent[1]}\n`,
      );
    } finally {
      for (const server of servers) server.close();
    }
  }),
);

back("is quiet where nobody reads on, and a full disk is told, with an exit code", () =>
  withDirectory(async (site) => {
    assert.is((await shell(site, "hf --run --id a sh -c 'seq 1000; exit 3'")).code, 3);
    assert.is((await shell(site, "hf --run --id b seq 1000")).code, 0);
    for (const [mode, code] of [
      ["--status", 1],
      ["--list", 1],
      ["--call server.ping", 1],
      ["--logs b", 1],
      ["--attach b", 125],
      ["--attach a", 3],
      ["--run seq 100000", 125],
    ] as const) {
      assert.equal([mode, (await shell(site, `hf ${mode} | true`)).stderr], [mode, ""]);
      const full = await shell(site, `hf ${mode} > /dev/full`);
      assert.equal([mode, full.code], [mode, code]);
      assert.match(full.stderr, /annot write .*: no space left on device.*\(ENOSPC\)/i);
    }
  }),
);

const tails = suite("lastLines()");
for (const [texts, count, expected] of [
  [["a\nb\nc\n"], 2, "b\nc\n"],
  [["a\nb\nc"], 2, "b\nc"],
  [["a\n", "b\nc", "\n"], 2, "b\nc\n"],
  [["a\n", "b\nc", "\nd"], 1, "d"],
  [["a"], 5, "a"],
  [["\n\n\n"], 2, "\n\n"],
  [[], 2, ""],
] as const) {
  tails(`are the last ${count} of ${JSON.stringify(texts)}`, () => {
    const pieces = texts.map((text) => ({ stream: "stdout" as const, bytes: Buffer.from(text) }));
    assert.is(Buffer.concat(lastLines({ lines: count, pieces }).map(({ bytes }) => bytes)).toString(), expected);
  });
}

for (const test of [running, back, tails]) test.run();

/** Command lines: to a mode and its options, or to exit code 64 and the words that say why. */

import { spawn } from "node:child_process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { help, helpOf, parseArguments } from "../arguments.ts";
import { Failure } from "../failure.ts";
import { builtFile, holdfast, outcomeOf } from "./daemon.ts";

const parse = suite("parseArguments()");

/** A command line, its mode, its options and words. */
const good: [line: string[], mode: string, options: object, words?: string[]][] = [
  [["--serve"], "serve", {}],
  [["--serve", "--socket", "/s"], "serve", { socket: "/s" }],
  [["--socket", "/s", "--serve"], "serve", { socket: "/s" }],
  [["--serve", "--socket=/s"], "serve", { socket: "/s" }],
  [["--serve", "--socket=/a=b"], "serve", { socket: "/a=b" }],
  [["--serve", "--socket", "a b\n-c"], "serve", { socket: "a b\n-c" }],
  [["--serve", "--socket=a\nb"], "serve", { socket: "a\nb" }],
  [
    [
      "--serve",
      "--token-file",
      "/dev/fd/63",
      "--lifetime",
      "scope",
      "--log",
      "/l",
      "--enable-linger",
      "--require-survival",
      "--replace",
      "--json",
    ],
    "serve",
    {
      "token-file": "/dev/fd/63",
      lifetime: "scope",
      log: "/l",
      "enable-linger": true,
      "require-survival": true,
      replace: true,
      json: true,
    },
  ],
  [["--bridge"], "bridge", {}],
  [["--bridge", "--no-start", "--socket", "/s"], "bridge", { "no-start": true, socket: "/s" }],
  [["--stop", "--socket", "/s"], "stop", { socket: "/s" }],
  [["--stop", "--grace", "5", "--if-idle", "--json"], "stop", { grace: "5", "if-idle": true, json: true }],
  [["--stop", "--now"], "stop", { now: true }],
  [["--status", "--json"], "status", { json: true }],
  [["--doctor", "--json"], "doctor", { json: true }],
  [["--version"], "version", {}],
  [["--version", "--json"], "version", { json: true }],
  [["--help"], "help", {}],
  [["-h"], "help", {}],
  [["-v"], "version", {}],
  [["--serve", "--help"], "help", {}, ["serve"]],
  [["-h", "--run"], "help", {}, ["run"]],
  [["--help", "ends-with-session"], "help", {}, ["ends-with-session"]],
  [["--version", "--help"], "help", {}],
  [["--stop", "--forget"], "stop", { forget: true }],
  [["--forget", "--stop"], "stop", { forget: true }],
  [["--forget", "a"], "forget", {}, ["a"]],
  [["--serve", "--token-fd", "0"], "serve", { "token-fd": "0" }],
  [["--run", "make", "-j4", "--detach", "--", "-x"], "run", {}, ["make", "-j4", "--detach", "--", "-x"]],
  [["--run", "--id", "a", "--detach", "--", "--odd", "--id"], "run", { id: "a", detach: true }, ["--odd", "--id"]],
  [["--socket", "/s", "--run", "ls"], "run", { socket: "/s" }, ["ls"]],
  [["--run", "--cwd=/d", "-5"], "run", { cwd: "/d" }, ["-5"]],
  [["--run", "-t", "bash"], "run", { terminal: true }, ["bash"]],
  [["--run", "-it", "bash", "-t"], "run", { terminal: true }, ["bash", "-t"]],
  [["--run", "-d", "-e", "A=1", "--terminal", "top"], "run", { detach: true, env: "A=1", terminal: true }, ["top"]],
  [["--run", "--terminal", "--detach-key", "ctrl-a", "vi"], "run", { terminal: true, "detach-key": "ctrl-a" }, ["vi"]],
  [["--attach", "a", "--detach-key=^A"], "attach", { "detach-key": "^A" }, ["a"]],
  [["--logs", "a", "-f", "-n", "5"], "logs", { follow: true, lines: "5" }, ["a"]],
  [["--attach", "a", "--no-stdin"], "attach", { "no-stdin": true }, ["a"]],
  [["--logs", "--follow", "a", "--lines", "5"], "logs", { follow: true, lines: "5" }, ["a"]],
  [["--wait", "a"], "wait", {}, ["a"]],
  [["--list", "--json"], "list", { json: true }],
  [["--kill", "a"], "kill", {}, ["a"]],
  [["--kill", "a", "KILL"], "kill", {}, ["a", "KILL"]],
  [["--kill", "a", "-9"], "kill", {}, ["a", "-9"]],
  [["--call", "server.ping"], "call", {}, ["server.ping"]],
  [
    ["--call", "process.spawn", '{"id":"-a"}', "--token-file", "/t"],
    "call",
    { "token-file": "/t" },
    ["process.spawn", '{"id":"-a"}'],
  ],
  [["--call", "process.spawn", "-"], "call", {}, ["process.spawn", "-"]],
  [["--socket", "/s", "server.ping", "--call"], "call", { socket: "/s" }, ["server.ping"]],
];
for (const [line, mode, options, words = []] of good) {
  const single = line.map((word) => word.replace(/^--/, "-"));
  for (const args of mode === "run" ? [line] : [line, single]) {
    parse(`reads ${args.join(" ").replaceAll("\n", "\\n")}`, () =>
      assert.equal(parseArguments(args), { mode, options, words, ...("env" in options ? { env: [options.env] } : {}) }),
    );
  }
}

/** A command line that is refused, and what is wrong with it. */
const bad: [line: string[], what: string][] = [
  [[], "no mode is given"],
  [["--socket", "/s"], "no mode is given"],
  [["--json"], "no mode is given"],
  [["serve"], "no mode is given"],
  [["--serve", "--stop"], "both --serve and --stop are given"],
  [["--bridge", "--socket", "/s", "--serve"], "both --bridge and --serve are given"],
  [["--run"], "--run needs COMMAND"],
  [["--run", "--"], "--run needs COMMAND"],
  [["--run", "--detatch", "ls"], '"--detatch" is not an option'],
  [["ls", "--attach", "a"], "--attach needs ID"],
  [["--attach"], "--attach needs ID"],
  [["--kill", "a", "TERM", "x"], "--kill needs ID and at most one SIGNAL"],
  [["--list", "a"], '"a" is not an option'],
  [["--wait", "a", "--json"], "--json does not go with --wait"],
  [["--serve", "--token-fd", "3", "--token-file", "/t"], "--token-fd and --token-file exclude each other"],
  [["--serve", "--socket"], "--socket needs a path"],
  [["--serve", "--socket", ""], "--socket needs a path"],
  [["--serve", "--socket="], "--socket needs a path"],
  [["--serve", "--token-file"], "--token-file needs a file"],
  [["--serve", "--lifetime"], "--lifetime needs auto, scope, detach or foreground"],
  [["--stop", "--grace"], "--grace needs seconds"],
  [["--serve", "--socket", "/a", "--socket", "/b"], "--socket is given twice"],
  [["--serve", "--socket=/a", "--socket=/a"], "--socket is given twice"],
  [["--stop", "--now", "--now"], "--now is given twice"],
  [["--serve", "--replace=yes"], "--replace takes no value"],
  [["--serve", "--replace="], "--replace takes no value"],
  [["--serve", "--frobnicate"], '"--frobnicate" is not an option'],
  [["--serve", "--sock", "/s"], '"--sock" is not an option'],
  [["--serve", "--Socket", "/s"], '"--Socket" is not an option'],
  [["--serve=yes"], '"--serve=yes" is not an option'],
  [["--serve", "/s"], '"/s" is not an option'],
  [["--serve", "-"], '"-" is not an option'],
  [["--serve", "--"], '"--" is not an option'],
  [["--serve", "---socket"], '"---socket" is not an option'],
  [["--serve", "--constructor"], '"--constructor" is not an option'],
  [["--serve", "--no-start"], "--no-start does not go with --serve"],
  [["--bridge", "--token-file", "/t"], "--token-file does not go with --bridge"],
  [["--bridge", "--json"], "--json does not go with --bridge"],
  [["--stop", "--lifetime", "scope"], "--lifetime does not go with --stop"],
  [["--status", "--log", "/l"], "--log does not go with --status"],
  [["--version", "--socket", "/s"], "--socket does not go with --version"],
  [["--call"], "--call needs METHOD"],
  [["--call", "a.b", "{}", "{}"], "--call needs METHOD and at most one PARAMS"],
  // were taken for METHOD and PARAMS
  [["--call", "--Socket", "/s"], '"--Socket" is not an option'],
  [["--call", "server.ping", "--Json"], '"--Json" is not an option'],
  [["--call", "server.ping", "-5"], '"-5" is not an option'],
  [["--call", "server.ping", "--"], '"--" is not an option'],
  [["--call", "-\u2028log", "/s"], '"-\u2028log" is not an option'],
  [["--stop", "--now", "--grace", "5"], "--now and --grace exclude each other"],
];
for (const [line, what] of bad) {
  for (const args of [line, line.map((word) => word.replace(/^--(?=[a-z])/, "-"))]) {
    // what is quoted is quoted as it was given
    const words = what.startsWith('"')
      ? JSON.stringify(
          args.find((word) => word.replace(/^-+/, "") === JSON.parse(/^"[^"]*"/.exec(what)![0]).replace(/^-+/, "")),
        )
      : what;
    parse(`refuses ${args.join(" ") || "nothing"}`, () => {
      assert.throws(
        () => parseArguments(args),
        (error: unknown) =>
          error instanceof Failure &&
          error.exit === 64 &&
          /^(see --help|did you mean --[a-z-]+\? See --help)$/.test(error.hint!) &&
          error.message.startsWith(`Cannot read the command line: ${words}`),
      );
    });
  }
}

parse("reads each --env, any number of them", () =>
  assert.equal(parseArguments(["--run", "--env", "A=1", "--env=B=2=3", "env"]), {
    mode: "run",
    options: { env: "B=2=3" },
    words: ["env"],
    env: ["A=1", "B=2=3"],
  }),
);

/** What is misspelt, and what it nearly is. */
const misspelt: [args: string[], near: string | undefined][] = [
  [["--serve", "--sock", "/s"], "--socket"],
  [["--serve", "--scoket", "/s"], "--socket"],
  [["--stauts"], "--status"],
  [["--run", "--detatch", "ls"], "--detach"],
  [["--bridge", "--asowner"], "--as-owner"],
  [["--serve", "--enable-lingering"], "--enable-linger"],
  [["--serve", "--Socket"], "--socket"],
  [["--run", "--tty", "bash"], "--terminal"],
  [["--run", "-i", "bash"], "--terminal"],
  [["--run", "--name", "x", "bash"], "--id"],
  [["--run", "--working-directory=/", "bash"], "--cwd"],
  [["--run", "--detach-keys", "ctrl-a", "bash"], "--detach-key"],
  [["--logs", "a", "--tail", "5"], "--lines"],
  [["--ps"], "--list"],
  [["logs", "a"], "--logs"],
  [["exec", "ls"], "--run"],
  [["--frobnicate"], undefined],
  [["--serve", "--x"], undefined],
];
for (const [args, near] of misspelt) {
  parse(`names what ${args.join(" ")} nearly is: ${near}`, () =>
    assert.throws(
      () => parseArguments(args),
      ({ hint }: Failure) => hint === (near ? `did you mean ${near}? See --help` : "see --help"),
    ),
  );
}

/** Why a command line is refused; nothing where it is not. */
function refusalOf(args: string[]): string {
  try {
    parseArguments(args);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

const names = "serve bridge stop status doctor call run attach logs wait list kill forget version help".split(" ");
for (const name of [undefined, ...names]) {
  parse(
    `has a help ${name ? `of --${name} ` : ""}that fits a screen of 80 by 24, and names no option that there is not`,
    () => {
      const text = helpOf(name);
      const rows = text.split("\n");
      assert.ok(rows.length <= 24, `${rows.length} rows`);
      for (const row of rows) assert.ok([...row].length <= 80, `${[...row].length}: ${row}`);
      assert.ok(text.endsWith("\n"));
      if (name && name !== "help") assert.match(text, new RegExp(`^--${name} `));
      for (const option of new Set(text.match(/--[a-z][a-z-]*/g)))
        assert.not.match(refusalOf([option, "x"]), /"--/, option);
    },
  );
}

const run = suite("a wrong command line");

/** Values that only their mode can judge. */
const lines: [string[], RegExp][] = [
  [["--json"], /no mode is given/],
  [["--serve", "--token-fd", "x"], /--token-fd is "x", it must be the number of a descriptor/],
  [["--logs", "a", "--lines", "x"], /--lines is "x", it must be a number/],
  [["--serve", "--stop"], /both --serve and --stop/],
  [["--serve", "--lifetime", "forever"], /--lifetime is "forever", it must be auto, scope, detach or foreground/],
  [["--stop", "--grace", "soon"], /--grace is "soon", it must be from 0 to 86400 seconds/],
  [["--stop", "--grace=-1"], /--grace is "-1"/],
  [["--stop", "--grace", "86401"], /--grace is "86401"/],
  [["--call", "server.ping", "{"], /Cannot read PARAMS: .*a JSON object is needed/],
  [["--call", "server.ping", "[]"], /Cannot read PARAMS: it is "\[\]", a JSON object is needed/],
];
run("ends with exit code 64, an error and a hint, and nothing on stdout", async () => {
  for (const [args, words] of lines) {
    const { code, stdout, stderr } = await holdfast(args, { env: { XDG_STATE_HOME: "/proc/none" } });
    assert.is(code, 64, args.join(" "));
    assert.is(stdout.length, 0);
    assert.match(stderr, words);
    assert.match(stderr, /^holdfast: error: .*\nholdfast: hint: .*\n$/);
  }
});

run("is told from a right one: --help and --version need nothing and end with 0", async () => {
  for (const [args, words] of [
    [["-help"], /^holdfast: [\s\S]*--serve[\s\S]*Exit codes/],
    [["-version"], /^holdfast \d+\.\d+\.\d+\n$/],
    [["--version", "--json"], /^\{"version":"\d+\.\d+\.\d+".*\}\n$/],
  ] as const) {
    const { code, stdout, stderr } = await holdfast([...args], {
      env: { XDG_STATE_HOME: "/proc/none", HOME: "/proc/none" },
    });
    assert.equal([code, stderr], [0, ""]);
    assert.match(stdout.toString(), words);
  }
});

run("that is empty gets the help, and 64", async () => {
  const { code, stdout, stderr } = await holdfast([], { env: { XDG_STATE_HOME: "/proc/none" } });
  assert.equal([code, stdout.length, stderr], [64, 0, help]);
});

run("is quiet where nobody reads on, and told of a full disk", async () => {
  const shell = (line: string) =>
    outcomeOf(spawn("sh", ["-c", line.replace("holdfast", `'${process.execPath}' '${builtFile}'`)]));
  const gone = await shell("holdfast --help | true");
  assert.equal([gone.code, gone.stderr], [0, ""]);
  const full = await shell("holdfast --version > /dev/full");
  assert.is(full.code, 1);
  assert.match(full.stderr, /^holdfast: error: Cannot write the output: no space left on device.*\(ENOSPC\)\n$/i); // Deno has its own words
});

run("takes no PARAMS that are not UTF-8", async () => {
  const child = spawn(process.execPath, [builtFile, "--call", "files.stat", "-"]);
  child.stdin.end(Buffer.from('{"path":"/\xff"}', "latin1"));
  const { code, stderr } = await outcomeOf(child);
  assert.equal([code, stderr], [64, "holdfast: error: Cannot read PARAMS: they are not UTF-8\n"]);
});

for (const test of [parse, run]) test.run();

/** Command lines: to a mode and its options, or to exit code 64 and the words that say why. */

import { suite } from "uvu";
import { help, parseArguments } from "../arguments.ts";
import { Failure } from "../failure.ts";
import { holdfast } from "./daemon.ts";
import * as assert from "uvu/assert";

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
  for (const args of [line, line.map((word) => word.replace(/^--/, "-"))]) {
    parse(`reads ${args.join(" ").replaceAll("\n", "\\n")}`, () =>
      assert.equal(parseArguments(args), { mode, options, words }),
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
  [["--version", "--help"], "both --version and --help are given"],
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
          error.hint === "see --help" &&
          error.message.startsWith(`Cannot read the command line: ${words}`),
      );
    });
  }
}

parse("knows each option that the help names", () => {
  const named = [...new Set(help.match(/--[a-z-]+/g))];
  for (const name of named) {
    assert.throws(
      () => parseArguments([name, "x", "x", "x"]),
      (error: Failure) => !/^Cannot read the command line: "--/.test(error.message),
      name,
    );
  }
});

const run = suite("a wrong command line");

/** Values that only their mode can judge. */
const lines: [string[], RegExp][] = [
  [[], /no mode is given/],
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

for (const test of [parse, run]) test.run();

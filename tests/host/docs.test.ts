// time limit: 240 s
/**
 * The commands of README and docs/, as they stand there, typed against a booted host named "host": each ends with exit code 0, or the one that
 * its comment names (`# exit code 75`).
 */

import { spawnSync } from "node:child_process";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { requireHosts, withHost } from "./host.ts";

const documents = [
  "README.md",
  ...readdirSync("docs")
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
];
/** Those that have commands for a host, and how many at least: one that is written otherwise must not be passed over. */
const expected: Record<string, number> = { "README.md": 5, "docs/deploying.md": 4 };

requireHosts(Object.keys(expected).length + 1);

interface Command {
  line: string;
  exitCode: number;
}

/** What a reader would paste: lines of indented blocks that reach a host. */
function commandsOf(path: string): Command[] {
  return readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => /^ {4}(\$ )?(ssh|scp|xargs) |^ {4}(\$ )?echo .*\| ssh /.test(line))
    .filter((line) => !/\bnode dist|^ {4}scp node /.test(line)) // a second way to do the same
    .map((line) => {
      const [, exitCode] = /#.*\bexit code (\d+)/.exec(line) ?? [];
      return { line: line.trim().replace(/^\$ /, ""), exitCode: Number(exitCode ?? 0) };
    });
}

/** Puts ssh and scp in front of the real ones, with which "host" is the booted host; and a directory as a reader has it. */
function makeDesk(directory: string, [enter, ...login]: string[]): NodeJS.ProcessEnv {
  const target = login.pop()!;
  const [program, ...args] = login.slice(login.indexOf("ssh"));
  const nsenter = [enter, ...login.slice(0, login.indexOf("ssh"))].join(" ");
  const bin = join(directory, "bin");
  mkdirSync(bin);
  for (const name of [program!, "scp"]) {
    const words = [
      "#!/bin/sh",
      `PATH=${process.env.PATH}`, // the real ones from here on
      `for word; do shift; case $word in host) word=${target};; host:*) word=${target}:$(echo "$word" | cut -d : -f 2-);; esac`,
      'set -- "$@" "$word"; done',
      `exec ${nsenter} ${name} ${args.join(" ")} "$@"`,
    ];
    writeFileSync(join(bin, name), `${words.join("\n")}\n`);
    chmodSync(join(bin, name), 0o755);
  }
  for (const name of ["dist", "examples"]) symlinkSync(resolve(name), join(directory, name));
  writeFileSync(join(directory, "hosts"), "host\n");
  return { ...process.env, PATH: `${bin}:${process.env.PATH}` };
}

const test = suite("the commands of the documents");

for (const document of documents) {
  const commands = commandsOf(document);
  if (!(document in expected)) continue;
  test(`${document}: each ends as it says`, async () => {
    assert.ok(commands.length >= expected[document]!, `${document} has commands: ${commands.length}`);
    const directory = mkdtempSync(join(tmpdir(), "holdfast-desk-"));
    try {
      await withHost({ users: ["dev"], killUserProcesses: true }, async (host) => {
        const env = makeDesk(directory, host.loginCommand("dev"));
        await host.copy("dev", "dist/holdfast.js", "holdfast.js");
        await host.ssh("dev", "umask 077; echo secret >token");
        await host.inside(["sh", "-c", "printf 'all:\\n\\techo built\\n' >/home/dev/Makefile"]);
        for (const { line, exitCode } of commands) {
          const { status, stdout, stderr } = spawnSync("bash", ["-c", line], {
            ...{ cwd: directory, env, encoding: "utf8", timeout: 30_000 },
            input: line.includes(" -t ") ? "\x1c" : "", // in a terminal: left again
          });
          assert.is(status, exitCode, `${line}\n${stdout}${stderr}`);
        }
      });
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
}

test("no other document has some", () => {
  for (const document of documents)
    if (!(document in expected)) assert.equal(commandsOf(document), [], `${document} is to be added here`);
});

test.run();

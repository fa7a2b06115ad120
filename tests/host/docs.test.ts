// time limit: 240 s
/**
 * The commands of the documents, as they stand there, typed against a booted host named "host": each ends with exit code 0, or the one that
 * its comment names (`# exit code 75`). tests/documents.ts finds them, and says which are not typed, and why.
 */

import type { SpawnOptionsWithoutStdio } from "node:child_process";
import { spawn, spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { outcomeOf, sideBySide } from "../daemon.ts";
import { commandsOf, isForHost, manuals, notTyped } from "../documents.ts";
import type { Host } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";

const typed = manuals
  .map(
    (path) => [path, commandsOf(path).filter((command) => isForHost(command) && !(command.line in notTyped))] as const,
  )
  .filter(([, commands]) => commands.length > 0);

requireHosts(typed.length + 2);

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
  writeFileSync(join(directory, "node"), '#!/bin/sh\nexec /usr/local/bin/node "$@"\n', { mode: 0o755 }); // of a tarball
  return { ...process.env, PATH: `${bin}:${process.env.PATH}` };
}

/** Types a command where a reader would: as root on the host, in a terminal, or at the desk. */
async function type(
  host: Host,
  desk: SpawnOptionsWithoutStdio,
  line: string,
): Promise<{ code: number | null; said: string }> {
  if (line.startsWith("loginctl ")) {
    const { code, stdout, stderr } = await host.root(line.replace("<user>", "dev"));
    return { code, said: stdout + stderr };
  }
  const isInTerminal = line.includes(" -t ");
  const words = isInTerminal ? ["script", "-qefc", line, "/dev/null"] : ["bash", "-c", line];
  const child = spawn(words[0]!, words.slice(1), desk);
  if (!isInTerminal) {
    const { code, stdout, stderr } = await outcomeOf(child, "", 60_000);
    return { code, said: stdout + stderr };
  }
  let said = "";
  child.stdout.on("data", (chunk) => (said += chunk));
  const ended = new Promise<number | null>((done) => child.once("close", done));
  // the terminal is the command's from what that says on, not from our own words before
  await until(() => said.replace(/^holdfast: .*$/gm, "").trim() !== "", "it shows its terminal", 30_000);
  child.stdin.write("\x1c"); // what leaves it
  return { code: await ended, said };
}

/** A user's home as the documents have it, and what they name. */
async function furnish(host: Host): Promise<void> {
  await host.copy("dev", "dist/holdfast.js", "holdfast.js");
  await host.inside(["install", "-d", "-o", "dev", "/home/dev/.holdfast"]);
  writeFileSync(host.file("/home/dev/Makefile"), "all:\n\techo built\n");
  writeFileSync(host.file("/usr/local/bin/vim"), "#!/bin/sh\necho an editor\nread line\n", { mode: 0o755 });
}

const test = suite("the commands of the documents");
const tests = sideBySide(test, 3);

for (const [path, commands] of typed) {
  tests(`${path}: each ends as it says`, async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-desk-"));
    try {
      await withHost({ users: ["dev"], killUserProcesses: true, logind: ["UserStopDelaySec=60"] }, async (host) => {
        await furnish(host);
        const desk = { cwd: directory, env: makeDesk(directory, host.loginCommand("dev")) };
        if (path === "docs/performance.md") await host.ssh("dev", "./holdfast.js --serve"); // it measures what is there
        for (const { line, exitCode } of commands) {
          const { code, said } = await type(host, desk, line);
          assert.is(code, exitCode, `${line}\n${said}`);
        }
      });
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
}

test("some are found where they were", () => {
  const count = (path: string): number => typed.find(([found]) => found === path)?.[1].length ?? 0;
  assert.ok(count("README.md") >= 8 && count("docs/deploying.md") >= 7 && count("docs/commands.md") >= 2, "they are");
});

tests("npm run host: prints a command that leads there, and Ctrl-C ends it", async () => {
  const child = spawn(process.execPath, ["scripts/host.mjs", "--keep"]);
  const whole = outcomeOf(child, "", 60_000);
  let said = "";
  child.stdout.on("data", (chunk) => (said += chunk));
  await until(() => said.includes("Ctrl-C here"), "it has booted", 30_000);
  const [, command] = /^ {4}(.*)$/m.exec(said)!;
  const { status, stdout, stderr } = spawnSync("bash", ["-c", `${command} ./holdfast.js --version`], {
    encoding: "utf8",
  });
  assert.match(stdout, /^holdfast \d/, stderr);
  assert.is(status, 0);
  child.kill("SIGINT");
  assert.is((await whole).code, 0);
  assert.not.equal(spawnSync("bash", ["-c", `${command} true`]).status, 0, "it is gone");
});

test.run();

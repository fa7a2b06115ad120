/** What runs the tests, and what makes a release: in directories of their own, which are like this one. */

import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { eventually, hasProgram, outcomeOf, withDirectory } from "./daemon.ts";

const test = suite("tests/run.mjs");

test("begins no file any more when it is told to end", () =>
  withDirectory(async ({ directory }) => {
    mkdirSync(join(directory, "tests"));
    copyFileSync("tests/run.mjs", join(directory, "tests/run.mjs"));
    symlinkSync(resolve("node_modules"), join(directory, "node_modules"));
    for (const name of ["a", "b", "c", "d", "e", "f", "g"]) {
      const lines = [
        'import { writeFileSync } from "node:fs";',
        `process.once("SIGTERM", () => setTimeout(() => process.exit(), ${name === "a" ? 0 : 3000}));`,
        `setTimeout(() => {}, 60_000); writeFileSync("begun-${name}", "");`,
      ];
      writeFileSync(join(directory, `tests/${name}.test.ts`), `${lines.join("\n")}\n`);
    }
    const begun = (): string[] => readdirSync(directory).filter((name) => name.startsWith("begun"));
    const child = spawn(process.execPath, ["tests/run.mjs"], { cwd: directory });
    const whole = outcomeOf(child, "", 60_000);
    await eventually(() => begun().length === 5, "five run", 30_000);
    child.kill();
    assert.is((await whole).signal, "SIGTERM");
    assert.is(begun().length, 5);
  }));

test("refuses a fragment that is in the name of no file", async () => {
  const child = spawn(process.execPath, ["tests/run.mjs", "map", "typo"]);
  const { code, stderr } = await outcomeOf(child, "", 60_000);
  assert.is(code, 64);
  assert.match(stderr, /Cannot run "typo": it is in the name of no test file/);
});

test.run();

const release = suite("scripts/release.mjs");

(hasProgram("git") ? release : release.skip)("makes nothing over a tag that is there", () =>
  withDirectory(async ({ directory }) => {
    mkdirSync(join(directory, "scripts"));
    copyFileSync("scripts/release.mjs", join(directory, "scripts/release.mjs"));
    writeFileSync(join(directory, "CHANGELOG.md"), "## 1.2.3\n- all is new\n");
    const who = ["-c", "user.name=a", "-c", "user.email=a@b"];
    for (const args of [
      ["init", "-q"],
      ["add", "."],
      [...who, "commit", "-qm", "first"],
      ["tag", "v1.2.3"],
    ])
      assert.is(spawnSync("git", args, { cwd: directory }).status, 0);
    const child = spawn(process.execPath, ["scripts/release.mjs", "1.2.3", "--dry-run"], { cwd: directory });
    const { code, stdout, stderr } = await outcomeOf(child, "", 60_000);
    assert.is(code, 1);
    assert.is(stdout.toString(), ""); // it has not begun
    assert.match(stderr, /v1\.2\.3 is tagged already; to make it anew: git tag -d v1\.2\.3/);
  }),
);

release.run();

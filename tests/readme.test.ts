/** README and CHANGELOG say what the code says: every warning and reason has its place, every option and exit code its word. */

import { readFileSync } from "node:fs";
import { suite } from "uvu";
import { help } from "../arguments.ts";
import { exitCodes } from "../failure.ts";
import * as assert from "uvu/assert";

const readme = readFileSync("README.md", "utf8");
/** All of a pattern's first groups in a source file. At least one, or the pattern is out of date. */
function inSource(file: string, pattern: RegExp): string[] {
  const found = [...readFileSync(file, "utf8").matchAll(pattern)].map((match) => match[1]!);
  assert.ok(found.length > 0, `${file} has ${pattern}`);
  return found;
}

const test = suite("README");

test("has an anchor for each warning", () => {
  const names = inSource("lifetime.ts", /^ {4}name: "([a-z-]+)",$/gm);
  assert.ok(names.length >= 5);
  for (const name of names) assert.match(readme, new RegExp(`^### ${name}$`, "m"));
});

test("explains each reason, and no other", () => {
  const [union] = inSource("doctor.ts", /export type Reason =([^;]+);/g);
  const reasons = [...union!.matchAll(/"([a-z-]+)"/g)].map((match) => match[1]!);
  const section = readme.slice(readme.indexOf("## What the messages mean"), readme.indexOf("## Commands"));
  const explained = [...section.matchAll(/^\| `([a-z-]+)` \|/gm)].map((match) => match[1]!);
  assert.equal(explained.sort(), reasons.sort());
});

test("has each exit code, as the help has", () => {
  for (const code of Object.values(exitCodes)) {
    assert.match(readme, new RegExp(`^\\| ${code} \\|`, "m"));
    assert.match(help, new RegExp(`\\b${code}\\b`));
  }
});

test("names the commands that this project has", () => {
  const { scripts } = JSON.parse(readFileSync("package.json", "utf8"));
  for (const [, name] of readme.matchAll(/npm run ([\w:]+)/g)) assert.ok(name! in scripts, name);
  for (const [, name] of readme.matchAll(/`(--[a-z-]+)/g))
    assert.ok(help.includes(name!) || name === "--suite" || name === "--launched", name);
});

test("and the help fits a screen", () => {
  assert.ok(help.split("\n").length <= 25);
  for (const line of help.split("\n")) assert.ok(line.length <= 100, line);
});

test.run();

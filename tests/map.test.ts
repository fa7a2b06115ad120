/** The modules as ARCHITECTURE.md draws them: imports go down, in no circle; few modules, none too long, and no function. */

import { readFileSync, writeFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
// @ts-expect-error: a script has no types
import { drawMap, mapIn, problemsOf, readModules } from "../scripts/map.mjs";
import { withDirectory } from "./daemon.ts";

const test = suite("map");

test("the modules keep the rules of the map", () => {
  assert.equal(problemsOf(readModules()), []);
});

test("ARCHITECTURE.md has the map of these modules", () => {
  assert.is(mapIn(readFileSync("ARCHITECTURE.md", "utf8")), drawMap(readModules()));
});

test("each broken rule is told", () =>
  withDirectory(async ({ directory }) => {
    const body = "  x();\n".repeat(60);
    const sources = {
      failure: 'import { a } from "./rpc.ts";\n',
      rpc: 'import type { B } from "./lanes.ts";\n',
      lanes: 'export { c } from "./rpc.ts";\n',
      nobody: "\n".repeat(601),
      files: `export function long() {\n${body}}\n`,
    };
    for (const [name, text] of Object.entries(sources)) writeFileSync(`${directory}/${name}.ts`, text);
    assert.equal(problemsOf(readModules(directory)), [
      "failure imports rpc, which stands above it",
      "files: long() has 62 lines, at most 60 may be",
      "nobody stands in no layer",
      "nobody has 601 lines, at most 600 may be",
      "there is a circle among failure (rpc), lanes (rpc), rpc (lanes)",
    ]);
  }));

test.run();

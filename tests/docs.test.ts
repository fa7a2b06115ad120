/**
 * The documents say what the code says, and nothing else: each method, option, exit code, error code, feature, reason and warning stands in its place
 * in them, and what stands there is in the code. Links lead somewhere, also to headings.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, normalize, resolve } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { help } from "../arguments.ts";
import { pageOf } from "../doctor.ts";
import { errorCodes, exitCodes } from "../failure.ts";
import { holdfast, openSocket, withDaemon, withDirectory } from "./daemon.ts";
import { commandsOf, documents, isForHost, manuals, notTyped } from "./documents.ts";

const texts = new Map(documents.map((path) => [path, readFileSync(path, "utf8")]));
/** What a user reads; not the history, nor what is for those who change it. */
const forUsers = documents.filter((path) => path === "README.md" || path.startsWith("docs/"));
/** Options of other programs, and of the tests, that documents name. */
const otherOptions = new Set(
  "--suite --only --minutes --no-opt --init --all --launched --max-old-space-size --max-semi-space-size --semi-space-growth-factor --user --strip-components --wildcards --shutdown --dmesg".split(
    " ",
  ),
);

/** All first groups of a pattern. At least one, or the pattern is out of date. */
function all(pattern: RegExp, text: string, where: string): string[] {
  const found = [...text.matchAll(pattern)].map((match) => match[1]!);
  assert.ok(found.length > 0, `${where} has ${pattern}`);
  return found;
}

/** A section of a document, from its heading to the next one of that level. */
function section(path: string, heading: string): string {
  const text = texts.get(path)!;
  const level = /^#+/.exec(heading)![0];
  const from = text.indexOf(`\n${heading}\n`);
  assert.ok(from >= 0, `${path} has "${heading}"`);
  const rest = text.slice(from + heading.length + 2);
  const to = rest.search(new RegExp(`^#{1,${level.length}} `, "m"));
  return to < 0 ? rest : rest.slice(0, to);
}

const sorted = (names: Iterable<string | number>): string[] => [...new Set([...names].map(String))].sort();

const test = suite("documents");

test("have a page for each warning, and no other", () => {
  const names = all(/^ +name: "([a-z-]+)",$/gm, readFileSync("lifetime.ts", "utf8"), "lifetime.ts");
  const pages = all(/^### (\S+)$/gm, section("docs/survival.md", "## The warnings"), "docs/survival.md");
  assert.equal(sorted(pages), sorted(names));
});

test("say of a warning what --help says of it on a host", () => {
  const bare = (text: string): string =>
    text
      .replace(/\*\*|`/g, "")
      .replace(/\s+/g, " ")
      .trim();
  const warnings = section("docs/survival.md", "## The warnings");
  for (const [, name, page] of warnings.matchAll(/^### (\S+)\n([\s\S]*?)(?=^### |$(?![\s\S]))/gm)) {
    const printed = pageOf(name!) ?? "";
    assert.is(bare(printed), `${name} ${bare(page!)}`);
    for (const line of printed.split("\n")) assert.ok(line.length <= 80, line);
  }
  assert.is(pageOf("toString"), undefined);
});

test("explain each reason, and no other", () => {
  const [union] = all(/export type Reason =([^;]+);/g, readFileSync("reach.ts", "utf8"), "reach.ts");
  const reasons = all(/"([a-z-]+)"/g, union!, "Reason");
  const table = section("docs/survival.md", "## What the messages mean");
  assert.equal(sorted(all(/^\| `([a-z-]+)` \|/gm, table, "the table")), sorted(reasons));
});

test("have each exit code, and no other", () => {
  const table = section("README.md", "### Exit codes");
  const rows = all(/^\| (\d[^|]*) \|/gm, table, "the table").flatMap((row) => row.split(", "));
  const others = new Set(["125", "126", "127", "128+n"]); // those of a process, of --run and its like
  assert.equal(
    sorted(rows.filter((code) => !others.has(code))),
    sorted(Object.values(exitCodes).filter((code) => !others.has(String(code)))),
  );
  for (const code of Object.values(exitCodes)) assert.match(help, new RegExp(`\\b${code}\\b`));
});

test("have each error code, and no other", () => {
  const table = section("docs/protocol.md", "## Errors");
  assert.equal(sorted(all(/^\| (-32\d{3}) \|/gm, table, "the table")), sorted(Object.values(errorCodes)));
});

test("have each method and feature of the daemon, and no other", () =>
  withDaemon(async ({ socket }) => {
    const { stdout } = await holdfast(["--call", "server.capabilities", "--socket", socket]);
    const { methods, features } = JSON.parse(stdout.toString()) as { methods: string[]; features: string[] };
    const text = texts.get("docs/protocol.md")!;
    assert.equal(sorted(all(/^### ([a-z]+\.[a-zA-Z]+)$/gm, text, "docs/protocol.md")), sorted(methods));
    const rows = all(/^\| (`[^|]+`) \|/gm, section("docs/protocol.md", "### server.capabilities"), "the table");
    const documented = rows.flatMap((row) => all(/`([a-z-]+)`/g, row, "the row"));
    for (const feature of features) assert.ok(documented.includes(feature), `${feature} is documented`);
    const code = readFileSync("server.ts", "utf8") + readFileSync("processes.ts", "utf8");
    for (const feature of documented) assert.ok(code.includes(`"${feature}"`), `${feature} is in the code`);
  }));

test("have each parameter of each method, and no other", () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    const text = texts.get("docs/protocol.md")!;
    for (const method of all(/^### ([a-z]+\.[a-zA-Z]+)$/gm, text, "docs/protocol.md")) {
      if (method === "server.ping") continue; // takes anything
      const [, listed] = /^`\{(.*?)\}`/.exec(section("docs/protocol.md", `### ${method}`).trim())!;
      const documented = listed!.split(", ").map((name) => name.replace("?", ""));
      // a name that no method knows: the refusal has those that it knows
      const refusal: string = await wire.request(method, { nonsense: 1 }).catch(({ message }) => message);
      const [, known] = /this method does not know it, it takes (.*)$/.exec(refusal) ?? [];
      assert.ok(known !== undefined, `${method} refuses what it does not know: ${refusal}`);
      assert.equal(sorted(known === "none" ? [""] : known!.split(", ")), sorted(documented), method);
    }
    connection.destroy();
  }));

test("have each option, and none that is not there", () => {
  const table = all(/^ {2}"?([a-z-]+)"?: \["/gm, readFileSync("arguments.ts", "utf8"), "arguments.ts");
  const taken = table.filter((name) => name !== "launched" && name !== "revive").map((name) => `--${name}`);
  const options = sorted([...taken, ...all(/(?<![\w-])(--?[a-z][a-z-]*)/g, help, "the help")]);
  const read = forUsers.map((path) => texts.get(path)!).join("\n");
  for (const option of options) assert.ok(read.includes(option), `${option} is documented`);
  for (const path of forUsers) {
    for (const [, option] of texts.get(path)!.matchAll(/(?<![\w-])(--[a-z][a-z-]*)/g))
      assert.ok(options.includes(option!) || otherOptions.has(option!), `${option} of ${path} is an option`);
  }
});

test("name the commands of npm that this project has", () => {
  const { scripts } = JSON.parse(readFileSync("package.json", "utf8"));
  for (const [path, text] of texts)
    for (const [, name] of text.matchAll(/npm run ([\w:]+)/g)) assert.ok(name! in scripts, `${name} of ${path}`);
});

const version = spawnSync(process.execPath, ["dist/holdfast.js", "--version", "--json"], { encoding: "utf8" });
const hash: string = JSON.parse(version.stdout).sha256;
/** What is typed here, where dist/ is, and what it is to say. */
const typedHere: Record<string, RegExp> = {
  "node -e 0": /^$/,
  'sed "s/$hash/$(printf %064d 0)/" holdfast.js | sha256sum': new RegExp(`^${hash} `),
};

test("have no command that is not typed by a test, unless it is said why", () => {
  const commands = manuals.flatMap(commandsOf);
  const local = commands.filter((command) => !isForHost(command) && !(command.line in notTyped));
  for (const { line, exitCode } of local) {
    assert.ok(line in typedHere, `"${line}" is typed here, or stands in notTyped of tests/documents.ts`);
    const env = { ...process.env, hash };
    const { status, stdout } = spawnSync("bash", ["-c", line], { cwd: "dist", env, encoding: "utf8", input: "" });
    assert.is(status, exitCode, line);
    assert.match(stdout, typedHere[line]!, line);
  }
  const lines = commands.map(({ line }) => line);
  for (const line of [...Object.keys(notTyped), ...Object.keys(typedHere)])
    assert.ok(lines.includes(line), `"${line}" stands in a document`);
});

/** As a heading is addressed on the pages of a repository's host. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");
}

test("have no link that leads nowhere", () => {
  const anchors = new Map(
    [...texts].map(([path, text]) => [
      path,
      [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading]) => anchorOf(heading!)),
    ]),
  );
  for (const [path, text] of texts) {
    for (const [, link] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link!)) continue;
      const [file, anchor] = link!.split("#");
      const target = file === "" ? path : normalize(join(dirname(path), file!));
      assert.ok(existsSync(target), `${path}: ${link} is there`);
      if (anchor !== undefined) assert.ok(anchors.get(target)?.includes(anchor), `${path}: ${link} has its heading`);
    }
  }
});

test("name no function that is not in one of the modules beside it", () => {
  let count = 0;
  for (const line of texts.get("ARCHITECTURE.md")!.split("\n")) {
    const files = [...line.matchAll(/`(\w+\.ts)`/g)].map(([, file]) => file!);
    const modules = files.length > 0 ? files : readdirSync(".").filter((name) => name.endsWith(".ts"));
    const code = modules.map((file) => readFileSync(file, "utf8")).join("\n");
    for (const [, name] of line.matchAll(/`(\w+)\(\)`/g)) {
      assert.match(code, new RegExp(`\\bfunction ${name}\\b`), `${name}() is in ${modules.join(" or ")}`);
      count++;
    }
  }
  assert.ok(count > 40);
});

test("are short where a stranger begins", () => {
  const lines = texts.get("README.md")!.split("\n");
  assert.ok(lines.length <= 151, `README.md has ${lines.length - 1} lines`);
  for (const line of lines) assert.ok(line.length <= 120, line);
});

test("and what they say in TypeScript compiles, against the types of the package", () =>
  withDirectory(async ({ directory }) => {
    const blocks = [...texts].flatMap(([path, text]) =>
      [...text.matchAll(/(?:^ {4}.*\n|^\n(?= {4}))+/gm)]
        .map(([block]) => block.replace(/^ {4}/gm, ""))
        .filter((block) => block.includes('from "holdfast"'))
        .map((block, at) => [`${path.replaceAll("/", "-")}-${at}.mts`, block] as const),
    );
    assert.ok(blocks.some(([name]) => name.startsWith("README")));
    for (const [name, block] of blocks) writeFileSync(join(directory, name), `${block}\nexport {};\n`);
    const compilerOptions = { paths: { holdfast: [resolve("dist/index.d.mts")] }, noUnusedLocals: false };
    const typeRoots = [resolve("node_modules/@types")];
    writeFileSync(
      join(directory, "tsconfig.json"),
      JSON.stringify({
        extends: resolve("tsconfig.json"),
        compilerOptions: { ...compilerOptions, typeRoots },
        include: ["*.mts"],
      }),
    );
    const { status, stdout } = spawnSync("npx", ["tsc", "-p", directory], { encoding: "utf8" });
    assert.is(status, 0, stdout);
  }));

test("and the help fits a screen", () => {
  assert.ok(help.split("\n").length <= 25);
  for (const line of help.split("\n")) assert.ok(line.length <= 100, line);
});

test.run();

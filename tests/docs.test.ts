/**
 * The documents say what the code says, and nothing else: each method, option, exit code, error code, feature, reason and warning stands in its place
 * in them, and what stands there is in the code. Links lead somewhere, also to headings.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, normalize, resolve } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { aliases, help, helpOf, modes, options } from "../arguments.ts";
import { pageOf } from "../doctor.ts";
import { errorCodes, exitCodes } from "../failure.ts";
// @ts-expect-error: a script has no types
import { drawFigures } from "../scripts/figures.mjs";
import { withDirectory } from "./daemon.ts";
import { all, commandsOf, isForHost, manuals, notTyped, section, sorted, texts } from "./documents.ts";

/** Options of other programs, and of the tests, that documents name. */
const otherOptions = [
  "all check init keep minutes only quick suite write", // our tests, benchmarks and scripts
  "disable-wasm-trap-handler expose-gc inspect lite-mode max-lazy max-old-space-size max-semi-space-size min-semi-space-size no-opt",
  "optimize-for-size semi-space-growth-factor single-threaded single-threaded-gc snapshot-blob stack-size", // node
  "dmesg global hostname scope shutdown strip-components user wildcards", // systemd, tar, WSL, docker
].flatMap((names) => names.split(" "));

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

test("explain each reason, and no other; the library has each", () => {
  const [reasons, library] = ["reach.ts", "library.ts"].map((path) => {
    const [union] = all(/export type Reason =([\s\S]+?);\n\n/g, readFileSync(path, "utf8"), path);
    return all(/"([a-z-]+)"/g, union!, "Reason");
  });
  const table = section("docs/survival.md", "## What the messages mean");
  assert.equal(sorted(all(/^\| `([a-z-]+)` \|/gm, table, "the table")), sorted(reasons!));
  for (const reason of reasons!) assert.ok(library!.includes(reason), `${reason} is in library.ts`);
});

/** Those of a process, of --run and its like; and of ssh. */
const otherExitCodes = ["125", "126", "127", "128+n", "255"];

test("have each exit code, and no other", () => {
  const table = section("README.md", "### Exit codes");
  const rows = all(/^\| (\d[^|]*) \|/gm, table, "the table").flatMap((row) => row.split(", "));
  const codes = Object.values(exitCodes).map(String);
  assert.equal(sorted(rows), sorted([...codes, ...otherExitCodes.slice(0, -1)]));
  const [listed] = all(/^Exit codes: ([^.]*)\./gm, help, "the help");
  assert.equal(sorted(all(/\b(\d+) /g, listed!, "the help")), sorted(codes));
  for (const [where, text] of [
    ...texts,
    ...Object.keys(modes).map((mode) => [`--${mode} --help`, helpOf(mode)] as const),
  ])
    for (const [, code] of text.matchAll(/(?<!ended with )\bexits? (?:codes? |with )`?(\d+)\b(?! ?\+)/g))
      assert.ok([...codes, ...otherExitCodes].includes(code!), `exit code ${code} of ${where} is one`);
});

test("have each error code, and no other", () => {
  const table = section("docs/protocol.md", "## Errors");
  const codes = Object.values(errorCodes).map(String);
  assert.equal(sorted(all(/^\| (-32\d{3}) \|/gm, table, "the table")), sorted(codes));
  for (const [path, text] of texts)
    for (const [code] of text.matchAll(/-32\d{3}/g)) assert.ok(codes.includes(code), `${code} of ${path} is one`);
});

/** Long and short options, as whole words. */
const optionsIn = (text: string): string[] =>
  [...text.matchAll(/(?<![\w-])--?([a-z][a-z-]*)(?!\w)/g)].map(([, name]) => name!);
/** Options that we give ourselves. */
const ownOptions = ["launched", "revive"];
const optionsOf = (mode: string): string[] =>
  Object.keys(options).filter((name) => options[name]![0].split(" ").includes(mode) && !ownOptions.includes(name));

test("have each mode, and no other", () => {
  const headings = all(/^## (--.*)$/gm, texts.get("docs/commands.md")!, "docs/commands.md");
  const shorts = Object.keys(aliases).filter((name) => aliases[name]! in modes);
  assert.equal(sorted(headings.flatMap(optionsIn)), sorted([...Object.keys(modes), ...shorts]));
  assert.equal(
    sorted(optionsIn(help)),
    sorted([...Object.keys(modes), ...shorts, "socket", "detach", "require-survival"]),
  );
  const table = all(/^\| (.*?) \|/gm, section("README.md", "## Commands"), "README.md").join(" ");
  for (const mode of Object.keys(modes).filter((name) => name !== "version" && name !== "help"))
    assert.ok(optionsIn(table).includes(mode), `--${mode} stands in README.md`);
});

test("have the options of each mode, and no other; so has its help", () => {
  for (const heading of all(/^## (--.*)$/gm, texts.get("docs/commands.md")!, "docs/commands.md")) {
    const [mode] = optionsIn(heading);
    const taken = [...optionsOf(mode!), ...(mode === "stop" ? ["forget"] : [])]; // which is a mode, too
    const hasSocket = mode !== "version" && mode !== "help"; // said once, above
    const rows = [...section("docs/commands.md", `## ${heading}`).matchAll(/^\| ((?:\\\||[^|])*) \|/gm)].map(
      ([, row]) => row!,
    );
    const shorts = Object.keys(aliases).filter((name) => taken.includes(aliases[name]!));
    assert.equal(
      sorted([...rows.flatMap(optionsIn), ...(hasSocket ? ["socket"] : [])]),
      sorted([...taken, ...shorts]),
      mode,
    );
    for (const names of rows.map(optionsIn))
      for (const short of names.filter((name) => name in aliases))
        assert.ok(names.includes(aliases[short]!), `-${short} stands beside --${aliases[short]}`);
    if (mode === "help") continue;
    const lines = helpOf(mode)
      .split("\n")
      .filter((line, at) => at === 0 || /^ {2}-/.test(line));
    lines[0] = lines[0]!.split(": ")[0]!; // its usage
    const helped = lines.flatMap((line) => optionsIn(line)).filter((name) => name !== mode);
    assert.equal(sorted(helped.filter((name) => !shorts.includes(name))), sorted(taken), `the help of --${mode}`);
  }
});

test("name no option that is not there", () => {
  const known = [...Object.keys(options), ...Object.keys(modes), ...Object.keys(aliases)].filter(
    (name) => !ownOptions.includes(name),
  );
  const found = manuals.flatMap((path) =>
    [...texts.get(path)!.matchAll(/(?<![\w-])--([a-z][a-z-]*)/g)].map(([, option]) => ({ option: option!, path })),
  );
  const others = found.filter(({ option }) => !known.includes(option));
  for (const { option, path } of others)
    assert.ok(otherOptions.includes(option), `--${option} of ${path} is an option`);
  assert.equal(sorted(others.map(({ option }) => option)), sorted(otherOptions), "otherOptions");
});

test("have each member of each type of the library, each of its reasons, and no other", () => {
  const types = readFileSync("dist/index.d.mts", "utf8");
  const declared = [...types.matchAll(/^export (?:declare class|interface) (\w+)[^{]*\{([\s\S]*?)^\}/gm)];
  assert.ok(declared.length > 25);
  for (const [, name, body] of declared) {
    const isError = name === "HoldfastError";
    const text = section("docs/library.md", `${isError ? "##" : "###"} ${name}`);
    const isOwn = (member: string): boolean => !isError || (member !== "name" && member !== "cause"); // those of each Error
    const members = [...body!.matchAll(/^ {4}(?:readonly |get )?(\w+)\??[:(<]/gm)].map(([, member]) => member!);
    const documented = [...text.matchAll(/^- `(\w+)/gm)].map(([, member]) => member!);
    assert.equal(sorted(documented.filter(isOwn)), sorted(members.filter(isOwn)), name);
  }
  const others = all(/^export type (\w+)/gm, types, "dist/index.d.mts");
  for (const name of all(/^### ([A-Z]\w*)$/gm, texts.get("docs/library.md")!, "docs/library.md"))
    assert.ok(declared.some(([, type]) => type === name) || others.includes(name), `${name} is a type`);
  const [union] = all(/^export type Reason =([\s\S]*?)\| \(string/gm, types, "Reason");
  const rows = all(/^\| (`[^|]*`) \|/gm, section("docs/library.md", "## HoldfastError"), "the table").slice(1); // without its head
  assert.equal(
    sorted(rows.flatMap((row) => all(/`([a-z-]+)`/g, row, "the row"))),
    sorted(all(/"([a-z-]+)"/g, union!, "Reason")),
  );
});

test("name the commands of npm that this project has, and each finds its files", () => {
  const { scripts } = JSON.parse(readFileSync("package.json", "utf8")) as { scripts: Record<string, string> };
  const tests = ["tests", "tests/host"].flatMap((folder) => readdirSync(folder).map((name) => `${folder}/${name}`));
  for (const part of Object.values(scripts).flatMap((script) => script.split(" && "))) {
    const [program, file, ...words] = part.split(" ");
    if (program === "node") assert.ok(existsSync(file!), `${file} of "${part}" is there`);
    for (const word of file === "tests/run.mjs" ? words.filter((word) => !word.startsWith("--")) : [])
      assert.ok(
        tests.some((path) => path.includes(word) && path.endsWith(".test.ts")),
        `${word} of "${part}" is in the name of a test`,
      );
  }
  for (const [path, text] of texts)
    for (const [, name] of text.matchAll(/npm run ([\w:]+)/g)) assert.ok(name! in scripts, `${name} of ${path}`);
});

const version = spawnSync(process.execPath, ["dist/holdfast.js", "--version", "--json"], { encoding: "utf8" });
const hash: string = JSON.parse(version.stdout).sha256;
/** What is typed here, where dist/ is, and what it is to say. */
const typedHere: Record<string, RegExp> = {
  "node -e 0": /^$/,
  "./holdfast.js --help ends-with-session": /^ends-with-session\n/,
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

test("npm run demo: shows what it says, and leaves nothing", () =>
  withDirectory(async ({ directory }) => {
    const env = { ...process.env, TMPDIR: directory };
    const { status, stdout, stderr } = spawnSync(process.execPath, ["demo.mjs"], { env, encoding: "utf8" });
    assert.is(status, 0, stderr);
    const lines = [1, 2, 3, 4].map((count) => `line ${count}\n`).join("");
    assert.match(stdout, new RegExp(`^\\$ .*--attach .* job\\n${lines}\\n`, "m"));
    assert.match(stderr, /is gone without a word: killed by SIGKILL .*: started it again/);
    for (const line of [/^job +exit 0 /m, /^\{"jsonrpc":"2.0","id":1,"result":\{"pong":true\}\}$/m, /^stopped 0$/m])
      assert.match(stdout, line);
    assert.equal(readdirSync(directory), ["given.token"]); // the test's own
  }));

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
    const [other] =
      /\]\([^)]*\s[^)]*\)|\]\s?\[|^\[[^\]]+\]:|\b(?:href|src)=/m.exec(text.replace(/^ {4}.*|`[^`\n]*`/gm, "")) ?? [];
    assert.is(other, undefined, `${path}: links are written [words](where)`);
  }
});

test("name no file that is not there; nor do the comments of the code", () => {
  const code = [".", "scripts", "tests"].flatMap((folder) => readdirSync(folder).map((name) => join(folder, name)));
  for (const path of [...manuals, ...code.filter((name) => /\.m?[jt]s$/.test(name))])
    for (const [name] of readFileSync(path, "utf8").matchAll(
      /(?<![\w/.-])(?:tests|examples|scripts|docs|bench)\/[\w./-]*\w/g,
    ))
      assert.ok(existsSync(name), `${path}: ${name} is there`);
});

test("name no function that is not in the module beside it, or in one of the line's", () => {
  const all = [...readdirSync(".").filter((name) => name.endsWith(".ts")), "tests/daemon.ts"];
  const isIn = (name: string, files: string[]): boolean =>
    files.some((file) => new RegExp(`\\bfunction ${name}\\b`).test(readFileSync(file, "utf8")));
  let count = 0;
  for (const line of ["ARCHITECTURE.md", "CONTRIBUTING.md"].flatMap((path) => texts.get(path)!.split("\n"))) {
    const files = [...line.matchAll(/`(\w+\.ts)`/g)].map(([, file]) => file!);
    for (const [, file, name] of line.matchAll(/(?:`(\w+\.ts)`: )?`(\w+)\(\)`/g)) {
      const modules = file ? [file] : files.length > 0 ? files : all;
      assert.ok(isIn(name!, modules), `${name}() is in ${modules.join(" or ")}`);
      count++;
    }
  }
  assert.ok(count > 40);
});

test("have the figures that the script draws", () => {
  for (const [path, drawn] of drawFigures()) assert.is(readFileSync(path, "utf8"), drawn, path);
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

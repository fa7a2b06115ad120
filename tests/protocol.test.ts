/** docs/protocol.md beside a daemon: each method with its parameters and the members of its answer, and each feature; and no other. */

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { holdfast, openSocket, withDaemon } from "./daemon.ts";
import { all, section, sorted, texts } from "./documents.ts";

const text = texts.get("docs/protocol.md")!;
const methods = all(/^### ([a-z]+\.[a-zA-Z]+)$/gm, text, "docs/protocol.md");
const code = readdirSync(".")
  .filter((name) => name.endsWith(".ts"))
  .map((name) => readFileSync(name, "utf8"))
  .join("\n");

/** What a section begins with: `{id, data?}` → `{"success":true[,"id"]}`. */
function signatureOf(method: string): { required: string[]; optional: string[]; answer: string } {
  const [, listed, answer = ""] = /^`\{(.*?)\}`(?: → `(\{.*?\})`)?/.exec(
    section("docs/protocol.md", `### ${method}`).trim(),
  )!;
  const names = listed === "" ? [] : listed!.split(", ");
  const optional = names.filter((name) => name.endsWith("?")).map((name) => name.slice(0, -1));
  return { required: names.filter((name) => !name.endsWith("?")), optional, answer };
}

/** The names of all members, but for those within what a document has as {…}. */
function membersOf(value: unknown, closed: string[] = []): string[] {
  if (typeof value !== "object" || value === null) return [];
  if (Array.isArray(value)) return value.flatMap((item) => membersOf(item, closed));
  return Object.entries(value).flatMap(([name, inner]) => [
    name,
    ...(closed.includes(name) ? [] : membersOf(inner, closed)),
  ]);
}

const namesIn = (answer: string): string[] => [...answer.matchAll(/(?<!:)"(\w+)"/g)].map(([, name]) => name!);

/** Those of the answer stand in the document, and those that stand there without brackets in the answer. */
function compareAnswer(method: string, answer: unknown): void {
  const own = signatureOf(method).answer;
  const documented = method === "server.status" ? `${signatureOf("server.capabilities").answer} ${own}` : own;
  if (documented === "") return;
  const given = membersOf(answer, all(/"(\w+)":[[{]…|$/g, documented, method));
  for (const name of given) assert.ok(namesIn(documented).includes(name), `${method}: "${name}" stands in its answer`);
  for (const name of namesIn(documented.replaceAll("[…]", "…").replace(/\[,[^[\]]*\]/g, "")))
    assert.ok(given.includes(name), `${method} answers "${name}"`);
  for (const name of namesIn(documented))
    assert.match(code, new RegExp(`\\b${name}\\b`), `${method}: "${name}" is in the code`);
}

const test = suite("docs/protocol.md");

test("has each method and feature of the daemon, and no other", () =>
  withDaemon(async ({ socket }) => {
    const { stdout } = await holdfast(["--call", "server.capabilities", "--socket", socket]);
    const { methods: served, features } = JSON.parse(stdout.toString()) as { methods: string[]; features: string[] };
    assert.equal(sorted(methods), sorted(served));
    const rows = all(/^\| (`[^|]+`) \|/gm, section("docs/protocol.md", "### server.capabilities"), "the table");
    const documented = rows.flatMap((row) => all(/`([a-z-]+)`/g, row, "the row"));
    for (const feature of features) assert.ok(documented.includes(feature), `${feature} is documented`);
    for (const feature of documented) assert.ok(code.includes(`"${feature}"`), `${feature} is in the code`);
  }));

test("has each parameter of each method, and no other", () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    for (const method of methods) {
      if (method === "server.ping") continue; // takes anything
      const { required, optional } = signatureOf(method);
      // a name that no method knows: the refusal has those that it knows
      const refusal: string = await wire.request(method, { nonsense: 1 }).catch(({ message }) => message);
      const [, known] = /this method does not know it, it takes (.*)$/.exec(refusal) ?? [];
      assert.ok(known !== undefined, `${method} refuses what it does not know: ${refusal}`);
      assert.equal(sorted(known === "none" ? [] : known!.split(", ")), sorted([...required, ...optional]), method);
    }
    connection.destroy();
  }));

test("says which parameters may be absent, and what is answered", () =>
  withDaemon(async (daemon) => {
    const { connection, wire } = openSocket(daemon);
    const { directory, token } = daemon;
    writeFileSync(join(directory, "file"), "");
    const values = { ...{ id: "a", command: "cat", token, key: "k", content: "", rows: 24, columns: 80 } };
    await wire.request("process.spawn", { id: "a", command: "cat" });
    const isLast = (method: string): number => (method === "server.shutdown" ? 1 : 0);
    for (const method of methods.sort((a, b) => isLast(a) - isLast(b))) {
      const path = join(directory, method === "files.list" ? "" : "file");
      const { required } = signatureOf(method);
      const params = Object.fromEntries(required.map((name) => [name, { ...values, path }[name]]));
      for (const name of required) {
        const refusal = await wire.request(method, { ...params, [name]: undefined }).catch((error) => error);
        assert.is(refusal.code, -32602, `${method} needs ${name}`);
        assert.match(refusal.message, `parameter "${name}"`);
      }
      const answer = await wire.request(method, params).catch((error) => error);
      if (answer instanceof Error)
        assert.not.match(answer.message, "Cannot use parameter", `${method} with ${required}`);
      else compareAnswer(method, answer);
    }
    connection.destroy();
  }));

/** What a document shows to be asked, and answered. */
const examples = [...text.matchAll(/^ {4}→ (.*)\n {4}← (.*)$/gm)].map(([, question, answer]) => {
  const { method, params = {} } = JSON.parse(question!);
  return { method, params, answer: answer! };
});

test("has an example of each method, and says what its errors are", () => {
  for (const method of methods) {
    assert.ok(
      examples.some((example) => example.method === method),
      `${method} has an example`,
    );
    const words = section("docs/protocol.md", `### ${method}`).replace(/^ {4}.*$/gm, "");
    assert.match(words, /-32\d{3}|No error of its own/, method);
  }
});

/** One shows what there always is; what the signature has in brackets need not be there. */
function compareExample(method: string, shown: object, given: object): void {
  const { answer } = signatureOf(method);
  const closed = all(/"(\w+)":[[{]…|$/g, answer, method);
  const [inExample, inAnswer] = [membersOf(shown, closed), membersOf(given, closed)];
  for (const name of inExample) assert.ok(inAnswer.includes(name), `${method} answers "${name}"`);
  if (method === "server.status") return; // the rest of it is the answer of another
  const optional = [...answer.matchAll(/\[,([^[\]]*)\]/g)].flatMap(([, names]) => namesIn(`,${names}`));
  for (const name of inAnswer.filter((name) => !optional.includes(name)))
    assert.ok(inExample.includes(name), `the example of ${method} has "${name}"`);
}

test("shows answers and errors as they are", () =>
  withDaemon(async (daemon) => {
    const { directory, token } = daemon;
    const { connection, wire } = openSocket(daemon);
    const { key } = JSON.parse(readFileSync(`${daemon.socket}.record`, "utf8"));
    writeFileSync(join(directory, "notes"), "milk, eggs\n");
    const { features } = await wire.request("server.capabilities");
    const hasTerminals: boolean = features.includes("terminal");
    const terminal = { rows: 24, columns: 80 };
    if (hasTerminals) await wire.request("process.spawn", { id: "bash", command: "cat", terminal });
    const words: Record<string, string> = { "<token>": token, "<key>": key, make: "cat" };
    const here = (value: unknown): unknown =>
      typeof value === "string" ? (words[value] ?? value.replace(/^~/, directory)) : value;
    const isLast = (method: string): number => (method === "server.shutdown" ? 1 : 0);
    for (const { method, params, answer } of examples.sort((a, b) => isLast(a.method) - isLast(b.method))) {
      if (method === "process.resize" && !hasTerminals) continue;
      const asked = Object.entries(params).map(([name, value]) => [name, here(value)]);
      const given = await wire.request(method, Object.fromEntries(asked)).catch((error) => error);
      const { result, error } = JSON.parse(answer.replaceAll("/home/dev", directory));
      const { code, message, data } = given;
      if (error) assert.equal(JSON.parse(JSON.stringify({ code, message, data })), error);
      else {
        assert.not.instance(given, Error);
        compareExample(method, result, given);
      }
      const ended = params.end || method === "process.killAndWait" ? params.id : undefined;
      if (ended) await wire.message(({ processId, stream }) => processId === ended && stream === "exit");
    }
    connection.destroy();
  }));

test.run();

/** An application as a stranger writes it, in strict TypeScript: `app SOCKET [PROGRAM]` starts a daemon, uses it in each way, ends it, and says "all well". */

import type { Connection, Exit, Loss, Output, RemoteProcess, RunResult } from "holdfast";
import { connect, HoldfastError, serve } from "holdfast";

async function use(there: Connection): Promise<void> {
  const result: RunResult = await there.run({ command: "cat", input: "hello", timeoutMs: 20_000 });
  expect(result.stdout, "hello");
  const child: RemoteProcess = await there.spawn({ command: "/bin/sh", args: ["-c", "read line; echo $line; exit 3"] });
  await child.write("some words\n");
  let text = "";
  for await (const output of child.output) text += decode(output);
  const exit: Exit = await child.exit;
  expect([text, exit.exitCode].join(), "some words\n,3");
  const stream = await there.spawn({ command: "sort" });
  stream.stdin.end("b\na\n");
  text = "";
  for await (const chunk of stream.stdout) text += String(chunk);
  expect(text, "a\nb\n");
  const error: unknown = await there.files.read("/no/such/file").catch((reason: unknown) => reason);
  if (!(error instanceof HoldfastError)) throw new Error("Not a HoldfastError");
  expect(error.errno, "ENOENT");
}

function decode({ data }: Output): string {
  return new TextDecoder().decode(data);
}

function expect(found: unknown, wanted: unknown): void {
  if (found !== wanted) throw new Error(`Found ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
}

async function main(socket: string, program: string | undefined): Promise<void> {
  const token = "a token of mine";
  const { how } = await serve({ socket, token, ...(program === undefined ? {} : { program }) });
  expect(how, "started");
  const there = await connect({ socket, token, reconnect: true });
  const lost: Promise<Loss> = there.closed;
  await use(there);
  await there.close();
  expect((await lost).reason, "closed-here");
  const again = await connect({ socket, token });
  await again.stop({ graceMs: 0 });
  await again.closed;
  console.log("all well");
}

const [socket, program] = process.argv.slice(2);
main(socket ?? "", program).catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});

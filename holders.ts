/**
 * A running child, whatever carries its bytes: plain pipes, which end with the daemon, or a holder's FIFOs, which outlive it.
 *
 * What a child says and is told is left to processes.ts, where it is kept to spool.ts.
 */

import type { Buffer } from "node:buffer";
import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";

/** What is to be started. It leads a session and group of its own. */
export interface Start {
  command: string;
  args: string[];
  cwd: string;
  /** All of its environment. */
  env: NodeJS.ProcessEnv;
  /** Its stdin is at its end from the beginning. */
  hasNoStdin: boolean;
  umask?: number | undefined;
}

/** How a process ended: one of the two is null. */
export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Why neither is known: "the host was booted again". */
  unknown?: string;
}

/** What is told of a running child, never before `listen` returns. */
export interface RunningEvents {
  /** Comes only while it flows, or what was read before. The chunk is the listener's to keep. */
  output(stream: "stdout" | "stderr", chunk: Buffer): void;
  /** write() took less than it was given: now it may take more. */
  writable(): void;
  /** Nobody reads stdin any more. */
  stdinBroken(): void;
  /** The process itself has ended, once. Its pipes may be open: there may be output yet, of a grandchild too. */
  ended(how: Ended): void;
  /** stdout and stderr are at their ends, once; after `ended` or before it. */
  closed(): void;
}

export interface Running {
  /** The command's own; also the number of its group, to which signals go. */
  readonly pid: number;
  /** What a later daemon needs to take it up, as JSON: kept in `about`. Undefined for one that ends with this daemon's pipes. */
  readonly holder?: object | undefined;
  /** Begins to read and to tell. Called once, before all that follows. */
  listen(events: RunningEvents): void;
  /** Reads on, or leaves what comes in the pipes: then whoever writes stands still. It flows at first. Cheap to call with what is so already. */
  setFlow(flows: boolean): void;
  /**
   * Gives stdin what it takes at once.
   *
   * @returns How many bytes; with fewer than there were, `writable` follows. Of a FIFO they are the reader's, whatever happens to the daemon.
   * @throws EPIPE Nobody reads it.
   */
  write(bytes: Uint8Array): number;
  /** Of what write() took, what the kernel does not have yet. 0 for a FIFO. */
  readonly pendingBytes: number;
  /** Ends stdin after what was written. */
  endStdin(): void;
  /** How it ended is kept: the zombie may go. After `ended`. */
  reap(): void;
  /** Lets go of all that is left: pipes, FIFOs, holder. Nothing is told after it. */
  release(): void;
}

/** At most so much is in node's hands for a stdin that is a pipe. */
const pipeWriteBytes = 64 << 10;

/**
 * Starts a child with plain pipes. Descriptors other than 0 to 2 are not inherited: node opens its own with O_CLOEXEC.
 *
 * @throws The operating system's error: there is no such command, or no such working directory.
 */
export function startWithPipes({ command, args, cwd, env, hasNoStdin, umask }: Start): Promise<Running> {
  return new Promise((resolve, reject) => {
    const own = umask === undefined ? undefined : process.umask(umask); // of this process: for as long as node forks
    const stdio = [hasNoStdin ? "ignore" : "pipe", "pipe", "pipe"] as const;
    let handle: ChildProcess;
    try {
      handle = spawn(command, args, { cwd, env, detached: true, stdio: [...stdio] });
    } finally {
      if (own !== undefined) process.umask(own);
    }
    handle.on("error", reject); // at once or thrown, as it pleases node; later ones say nothing that "exit" does not
    if (handle.pid) resolve(runningOf(handle));
  });
}

function runningOf(handle: ChildProcess): Running {
  const { stdin, stdout, stderr } = handle;
  const pipes = [stdout!, stderr!];
  let whenTaken = (): void => {};
  return {
    pid: handle.pid!,
    listen(events) {
      pipes.forEach((pipe, at) => {
        const stream = at === 0 ? "stdout" : "stderr";
        pipe.on("data", (chunk: Buffer) => events.output(stream, chunk)).on("error", () => {}); // "close" follows
      });
      stdin?.on("error", events.stdinBroken).on("close", events.stdinBroken);
      whenTaken = events.writable;
      handle.on("exit", (code, signal) => events.ended({ code, signal })).on("close", events.closed);
    },
    setFlow: (flows) => {
      for (const pipe of pipes) flows ? pipe.resume() : pipe.pause();
    },
    get pendingBytes() {
      return stdin?.writableLength ?? 0;
    },
    write(bytes) {
      if (!stdin || stdin.writableLength > 0) return 0;
      const chunk = bytes.subarray(0, pipeWriteBytes);
      stdin.write(chunk, whenTaken);
      return chunk.length;
    },
    endStdin: () => void stdin?.end(),
    reap() {}, // node has
    release() {
      for (const pipe of [stdin, ...pipes]) pipe?.destroy();
      handle.removeAllListeners();
    },
  };
}
